"""``pscore``: a tower for each signal of a log, and a personalised fusion of them into one score (OneRec-V1's P-Score).

Each tower reads the body's features and predicts its signal, with binary cross-entropy. The fusion, a last MLP, reads
the towers' hidden states with features of the user and of the item, and learns the goal: engagement, or a weighted sum
of signals. ``L = sum_x w_x BCE_x + BCE_goal``. Any subset of signals will do (``signals``). Left out: experts shared by
the towers, and towers for watch time as a number.

Symbols: B contexts, T history length, K candidates, X towers, H hidden width, N items.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidgym.envs.preference.base import NetworkPreference
from sidgym.envs.preference.body import InterestBody, Shape, fill_body, shape_of
from sidgym.envs.preference.calibration import evaluate_probabilities, sigmoid
from sidgym.envs.preference.data import PreferenceData
from sidgym.envs.preference.examples import Examples, tells_refusals
from sidgym.envs.preference.plan import Plan
from sidgym.envs.preference.signals import find_signals
from sidgym.envs.preference.training import Batch, base_logit, fit_pages, page_examples, predict, single_thread
from sidgym.envs.records import CLICK, PAD_ITEM


class Towers(nn.Module):
    """One hidden layer and one logit for each signal, with biases of items and places of their own."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        count = len(shape.towers)
        self.shape = shape
        self.inner = nn.ModuleList(nn.Linear(shape.features, shape.hidden) for _ in range(count))
        self.outer = nn.ModuleList(nn.Linear(shape.hidden, 1) for _ in range(count))
        self.item_bias = nn.Embedding(shape.items, count)
        self.position_bias = nn.Embedding(shape.positions, count)
        for bias in (self.item_bias, self.position_bias):
            nn.init.zeros_(bias.weight)

    def hidden(self, features: Tensor) -> list[Tensor]:
        """(B, K, F) to the X hidden states (B, K, H)."""
        return [F.gelu(inner(features)) for inner in self.inner]

    def forward(self, hidden: list[Tensor], items: Tensor, place: Tensor) -> Tensor:
        """Hidden states, items and places (B, K) to logits (B, K, X)."""
        logits = torch.cat([outer(state) for outer, state in zip(self.outer, hidden)], dim=-1)
        return logits + self.item_bias(items.clamp(min=0)) + self.position_bias(place)

    def start_at(self, logits: list[float]) -> None:
        """Let the towers begin at these logits."""
        for outer, logit in zip(self.outer, logits):
            assert isinstance(outer, nn.Linear)
            nn.init.constant_(outer.bias, logit)


def places(items: Tensor, position: Tensor | None, shape: Shape) -> Tensor:
    """Places (B, K) that the log knows; the first where none is given."""
    return torch.zeros_like(items) if position is None else position.clamp(max=shape.positions - 1)


def towers_loss(logits: Tensor, batch: Batch, names: Sequence[str], weights: Tensor) -> Tensor:
    """``sum_x w_x BCE_x`` of logits (B, K, X) over what is shown."""
    own = logits[:, : batch.shown.shape[1]][batch.shown]
    wanted = torch.stack([batch.labels[name][batch.shown] for name in names], dim=-1)
    loss = F.binary_cross_entropy_with_logits(own, wanted, reduction="none").mean(dim=0)
    return (loss * weights).sum()


class PScoreNetwork(nn.Module):
    """Logit of the goal; the towers' logits on the way."""

    target = "goal"
    weights: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.body = InterestBody(shape)
        self.towers = Towers(shape)
        self.register_buffer("weights", torch.ones(len(shape.towers)))
        # What the fusion reads: every tower, what the user liked lately and how much of it, and the item.
        self.inner = nn.Linear(len(shape.towers) * (shape.hidden + 1) + 2 * shape.hidden + 1, shape.hidden)
        self.outer = nn.Linear(shape.hidden, 1)
        self.item_bias = nn.Parameter(torch.zeros(shape.items))
        self.position_bias = nn.Parameter(torch.zeros(shape.positions))

    def parts(self, history: Tensor, items: Tensor, position: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of the goal (B, K) and of the towers (B, K, X)."""
        place = places(items, position, self.shape)
        features = self.body(history, items)
        hidden = self.towers.hidden(features)
        towers = self.towers(hidden, items, place)
        item = features[..., : self.shape.hidden]
        user = self._user(history)[:, None].expand(-1, items.shape[1], -1)
        fused = F.gelu(self.inner(torch.cat([*hidden, towers, user, item], dim=-1)))
        goal = self.outer(fused).squeeze(-1) + self.item_bias[items.clamp(min=0)] + self.position_bias[place]
        return goal, towers

    def forward(self, history: Tensor, items: Tensor, position: Tensor | None = None) -> Tensor:
        """(B, T) and (B, K) item ids, PAD_ITEM allowed, and places (B, K) to logits of the goal (B, K)."""
        return self.parts(history, items, position)[0]

    def _user(self, history: Tensor) -> Tensor:
        """Mean of what the user liked lately, and how much: (B, H + 1)."""
        recent = history[:, max(0, history.shape[1] - self.shape.recent) :]
        real = (recent != PAD_ITEM)[..., None]
        vectors = self.body.candidate(self.body.embeddings[recent.clamp(min=0)])
        count = real.sum(dim=1)
        mean = (vectors * real).sum(dim=1) / count.clamp(min=1)
        return torch.cat([mean, torch.log1p(count.to(mean.dtype))], dim=-1)

    def loss(self, batch: Batch, pointwise: bool = True) -> Tensor:
        """Weighted cross-entropies of the towers, and that of the goal."""
        goal, towers = self.parts(batch.history, batch.items, batch.position)
        own = F.binary_cross_entropy_with_logits(goal[batch.shown], batch.labels[self.target][batch.shown])
        return own + towers_loss(towers, batch, self.shape.towers, self.weights)


class PScorePreference(NetworkPreference):
    """Towers and fusion; make it with ``fit`` or ``load``. Its score is the probability of engagement, or the expected
    value of the goal's weighted sum, if the item stood first on the page."""

    kind = "pscore"
    network_type = PScoreNetwork

    @classmethod
    def fit(
        cls,
        data: PreferenceData,
        seed: int = 0,
        *,
        signals: Sequence[str] = (),
        weights: Mapping[str, float] | None = None,
        goal: Mapping[str, float] | None = None,
        long_play: float = 0.5,
        search: str = "none",
        found: int = 32,
        recent: int = 20,
        hidden: int = 32,
        heads: int = 4,
        **plan: Any,
    ) -> "PScorePreference":
        """Fit on impressions.

        Args:
            data: with ``feedback`` and ``embeddings``, and ``categories`` or ``table`` for a hard search.
            seed: the same seed, the same weights.
            signals: names of the towers; empty: every signal that the log has (``signals.find_signals``).
            weights: ``w_x`` of a tower's loss, 1 where not named.
            goal: weight of each signal in what the fusion learns, such as ``{"click": 1, "order": 2, "negative": -1}``:
                their sum, divided by the sum of the positive weights and cut to [0, 1]. ``None``: engagement.
            long_play: share of the duration that counts as a long play.
            search, found, recent, hidden, heads, plan: as of ``SimPreference.fit``.

        Raises ``ValueError`` for what the data lack and for settings that do not fit.
        """
        settings = Plan(**plan)
        labels = find_signals(data, signals, long_play).labels
        if not tells_refusals(data.log) or settings.negatives not in ("auto", "impressions"):
            raise ValueError(
                "preference 'pscore' learns what users did with what they were shown: it needs Interactions.feedback "
                "with refusals, and negatives = 'impressions'; for a log of positive events use 'sim' or 'sasrec'"
            )
        aim = _goal(labels, goal, data)
        mode, examples = page_examples(data, settings, {**labels, "goal": aim})
        shape, groups = shape_of(data, examples, cls.kind, history=settings.history, recent=recent, found=found,
                                 hidden=hidden, heads=heads, search=search, towers=tuple(labels))  # fmt: skip
        loss_weights = _weights(weights or {}, shape.towers)

        def build(train: Examples) -> PScoreNetwork:
            network = PScoreNetwork(shape)
            fill_body(network.body, data.require("embeddings", cls.kind), groups)
            network.weights.copy_(torch.tensor(loss_weights))
            network.towers.start_at([base_logit(train, name) for name in shape.towers])
            nn.init.constant_(network.outer.bias, base_logit(train, "goal"))
            return network

        fitted = fit_pages(examples, mode, build, settings, seed, data.num_items)
        report = {"kind": cls.kind, "search": shape.search, "signals": list(shape.towers), **fitted.report}
        report["towers"] = _judge_towers(fitted.network, fitted.judge, settings)
        return cls(fitted.network, fitted.calibrator, report)

    def scores_by_signal(self, history: np.ndarray, items: np.ndarray) -> dict[str, np.ndarray]:
        """Each tower's probability of its signal, (B, K) float32, 0 at PAD_ITEM; not calibrated."""
        logits = self.logits(history, items, lambda *inputs: self.network.parts(*inputs)[1])
        values = np.where((items == PAD_ITEM)[..., None], 0.0, sigmoid(logits)).astype(np.float32)
        return {name: values[..., number] for number, name in enumerate(self.network.shape.towers)}


def _goal(labels: Mapping[str, np.ndarray], goal: Mapping[str, float] | None, data: PreferenceData) -> np.ndarray:
    """What the fusion learns, (E,) float32 in [0, 1]."""
    if goal is None:
        assert data.log.feedback is not None
        return (data.log.feedback >= CLICK).astype(np.float32)
    unknown = [name for name in goal if name not in labels]
    scale = sum(weight for weight in goal.values() if weight > 0)
    if unknown or not all(map(np.isfinite, goal.values())) or scale <= 0:
        raise ValueError(
            f"goal: expected weights of {', '.join(labels)}, finite and at least one of them above 0; got {dict(goal)}"
        )
    total = sum(weight * labels[name].astype(np.float64) for name, weight in goal.items())
    return np.clip(np.asarray(total) / scale, 0, 1).astype(np.float32)


def _weights(weights: Mapping[str, float], towers: Sequence[str]) -> list[float]:
    wrong = [name for name, value in weights.items() if name not in towers or not np.isfinite(value) or value < 0]
    if wrong:
        raise ValueError(
            f"weights: expected a finite number of at least 0 for {', '.join(towers)}, got {dict(weights)}"
        )
    return [float(weights.get(name, 1.0)) for name in towers]


def _judge_towers(network: Any, pages: Examples, plan: Plan) -> dict[str, dict[str, float]]:
    """AUC, log loss and rate of every tower on the users of the report."""
    told = {}
    with single_thread():
        for number, name in enumerate(network.shape.towers):

            def tower(*inputs: Tensor, number: int = number) -> Tensor:
                return network.parts(*inputs)[1][..., number]

            logits, labels = predict(network, pages, plan, name, tower)
            figures = evaluate_probabilities(sigmoid(logits), labels > 0.5)
            told[name] = {key: figures[key] for key in ("auc", "log_loss", "base_log_loss", "base_rate")}
    return told
