"""A preference model learned from logged impressions: the probability that a user engages with an item that is shown.

Target attention in the manner of DIN and SIM (Pi et al. 2020), which GenRec's reward uses: the candidate is compared
with every item of the history, and an MLP reads the candidate and how much of the history it matches. As in DIN the
match is not normalised over the history, so that three matching items say more than one. A learned bias an item
stands for what its text does not show, and a bias a place on the page keeps the examination effect out of the score.
Small on purpose: it fits on one CPU thread. Left out: the search stage of SIM (histories here are short), other
behaviours than engagement, and online updates.

Symbols: N items, D embedding width, H hidden width, P pages, S places a page, T history length, K candidates.
"""

import inspect
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidgym.envs.impressions import Impressions, impressions
from sidgym.envs.preference.base import check_items, check_scores
from sidgym.envs.preference.calibration import evaluate_probabilities, reliability
from sidgym.envs.preference.data import PreferenceData
from sidgym.envs.preference.examples import implicit_examples, tells_refusals
from sidgym.envs.preference.network import Network, Shape
from sidgym.envs.preference.training import BIAS_SPEED, single_thread
from sidgym.envs.records import CLICK, PAD_ITEM, SHOWN, Interactions
from sidgym.sid.table import write_atomically

SCHEMA_VERSION = 1
"""Of the directory that ``LoggedPreference.save`` writes."""


class LoggedPreference:
    """A fitted model; make it with ``fit`` or ``load``.

    ``report`` holds ``rows`` and ``pages`` trained on, ``epochs`` (of the kept weights), and what was measured on
    training users that no gradient saw: ``valid_rows``, ``auc``, ``log_loss``, ``base_rate``, ``base_log_loss`` and
    ``ece``.
    """

    def __init__(self, network: Network, report: dict[str, float]) -> None:
        self.network = network.eval()
        self.report = report

    @classmethod
    def fit(
        cls,
        interactions: Interactions,
        users: np.ndarray,
        embeddings: np.ndarray,
        history: int = 20,
        seed: int = 0,
        epochs: int = 30,
        hidden: int = 32,
        heads: int = 4,
        lr: float = 3e-3,
        weight_decay: float = 0.01,
        bias_penalty: float = 0.5,
        batch: int = 400,
        valid_share: float = 0.1,
        patience: int = 2,
    ) -> "LoggedPreference":
        """Fit by binary cross-entropy on the impressions of the given users; nobody else's rows are read.

        Args:
            interactions: a log with ``feedback``.
            users: (U,) ids of training users.
            embeddings: (N, D) float, text embedding of every item of the catalogue.
            history: positives before a page that the model reads, T.
            seed: of the initial weights, the held-out users and the order of batches; the same seed, the same weights.
            epochs, patience: passes at most, and passes without a lower held-out log loss before training stops.
            hidden, heads: width H of item vectors, and the heads that share it.
            lr, weight_decay: of AdamW; biases learn at ``BIAS_SPEED * lr`` and do not decay.
            bias_penalty: L2 shrinkage of the item biases, in units of one impression's log loss (a Gaussian prior with
                variance ``1 / (2 bias_penalty)`` on the logit).
            batch: pages a step.
            valid_share: share of the users kept for early stopping and the report.

        Raises ``ValueError`` for a log without feedback, embeddings that are not finite or too few users.
        """
        pages = impressions(interactions, users, history)
        vectors = torch.from_numpy(np.ascontiguousarray(embeddings, dtype=np.float32))
        if vectors.ndim != 2 or not bool(torch.isfinite(vectors).all()):
            raise ValueError(
                f"fit: expected finite embeddings (items, width), got shape {tuple(vectors.shape)} with NaN"
            )
        if int(pages.items.max()) >= len(vectors):
            raise ValueError(f"fit: the log shows item {pages.items.max()}, but embeddings has {len(vectors)} rows")
        if heads < 1 or hidden % heads:
            raise ValueError(f"fit: hidden ({hidden}) must be a multiple of heads ({heads})")
        rng = np.random.default_rng(seed)
        train, valid = _hold_out(pages, valid_share, rng)
        shape = Shape(len(vectors), vectors.shape[1], int(pages.position.max()) + 1, history, hidden, heads)
        with single_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            network = Network(shape, vectors)
            # Starting at the base rate saves the first epochs.
            nn.init.constant_(network.outer.bias, _logit(train.engaged[train.items != PAD_ITEM].mean()))
            trainer = _Trainer(network, train, batch, lr, weight_decay, bias_penalty, rng)
            kept = trainer.run(valid, epochs, patience)
            probability, engaged = _predict(network, valid, batch)
        report = {"rows": int((train.items != PAD_ITEM).sum()), "pages": len(train.items), "epochs": kept}
        return cls(network, report | evaluate_probabilities(probability, engaged))

    def score(self, history: np.ndarray, items: np.ndarray, chunk: int = 1 << 16) -> np.ndarray:
        """Probability that the user would engage with each item if it stood first on the page.

        Args:
            history: (B, T) item ids, oldest first, PAD_ITEM on the left; only the last ``shape.history`` columns count.
            items: (B, K) item ids, or PAD_ITEM.
            chunk: values worked on at once.

        Returns (B, K) float32 in [0, 1], 0 at PAD_ITEM. Raises ``ValueError`` for an item that does not exist and for a
        score that is not a number.
        """
        check_items(history, self.network.shape.items, "history")
        check_items(items, self.network.shape.items, "items")
        # Copies: what a reward is given may be read-only, which torch does not know.
        past = torch.from_numpy(np.array(history[:, -self.network.shape.history :], dtype=np.int64, order="C"))
        shown = torch.from_numpy(np.array(items, dtype=np.int64, order="C"))
        rows = max(1, chunk // max(1, shown.shape[1]))
        with torch.inference_mode(), single_thread():
            parts = [self.network(h, i).sigmoid() for h, i in zip(past.split(rows), shown.split(rows))]
            scores = torch.cat(parts) if parts else torch.zeros(shown.shape)
        out = np.where(items == PAD_ITEM, np.float32(0.0), scores.numpy())
        check_scores(out, history, items, "din")
        return out

    def save(self, directory: str | Path) -> None:
        """Write ``preference.safetensors`` (weights and item embeddings) and ``preference.json`` (sizes and report)."""
        from safetensors.torch import save

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        header = {"schema_version": SCHEMA_VERSION, "kind": "din", "shape": asdict(self.network.shape)}
        header["report"] = self.report
        text = json.dumps(header, allow_nan=False)  # fails before anything is written
        write_atomically(directory / "preference.safetensors", save(self.network.state_dict()))
        write_atomically(directory / "preference.json", text.encode())

    @classmethod
    def load(cls, directory: str | Path) -> "LoggedPreference":
        """Read what ``save`` wrote; ``ValueError`` for another schema version."""
        from safetensors.torch import load

        directory = Path(directory)
        header: dict[str, Any] = json.loads((directory / "preference.json").read_text())
        if header.get("schema_version") != SCHEMA_VERSION:
            found = header.get("schema_version")
            raise ValueError(f"{directory}: expected schema_version {SCHEMA_VERSION}, got {found}; fit it again")
        weights = load((directory / "preference.safetensors").read_bytes())
        network = Network(Shape(**header["shape"]), weights["embeddings"])
        network.load_state_dict(weights)
        return cls(network, header["report"])


class _Trainer:
    """AdamW over pages with early stopping."""

    def __init__(
        self,
        network: Network,
        train: Impressions,
        batch: int,
        lr: float,
        weight_decay: float,
        bias_penalty: float,
        rng: np.random.Generator,
    ) -> None:
        self.network, self.batch, self.rng = network, batch, rng
        self.tensors = _tensors(train)
        # The loss is a mean over impressions, so the prior counts once over all of them.
        self.bias_penalty = bias_penalty / max(1, int((train.items != PAD_ITEM).sum()))
        biases = [p for p in network.parameters() if p.ndim < 2]
        matrices = [p for p in network.parameters() if p.ndim >= 2]
        # Adam moves a parameter by about lr a step; item biases, in logits, have further to go than the weights.
        groups = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": biases, "weight_decay": 0.0, "lr": BIAS_SPEED * lr},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=lr)

    def run(self, valid: Impressions, epochs: int, patience: int) -> int:
        """Train and leave the best weights in the network; the number of passes they took."""
        best, kept, weights = np.inf, 0, None
        for epoch in range(1, epochs + 1):
            self._epoch()
            probability, engaged = _predict(self.network, valid, self.batch)
            loss = evaluate_probabilities(probability, engaged)["log_loss"]
            if loss < best:
                best, kept = loss, epoch
                weights = {name: value.clone() for name, value in self.network.state_dict().items()}
            elif epoch - kept >= patience:
                break
        if weights is None:
            raise ValueError("fit: the held-out log loss was never finite; lower lr or check the embeddings")
        self.network.load_state_dict(weights)
        return kept

    def _epoch(self) -> None:
        self.network.train()
        order = torch.from_numpy(self.rng.permutation(len(self.tensors[0])))
        for rows in order.split(self.batch):
            history, items, position, engaged = (tensor[rows] for tensor in self.tensors)
            shown = items != PAD_ITEM
            logits = self.network(history, items, position)[shown]
            loss = F.binary_cross_entropy_with_logits(logits, engaged[shown])
            loss = loss + self.bias_penalty * self.network.item_bias.square().sum()
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()


def _hold_out(pages: Impressions, share: float, rng: np.random.Generator) -> tuple[Impressions, Impressions]:
    """Pages of most users and of a random share of them; ``ValueError`` when either side would be empty."""
    users = rng.permutation(np.unique(pages.user))
    held = max(1, round(share * len(users)))
    if held >= len(users):
        raise ValueError(f"fit: expected at least 2 users, of whom a share {share} is held out; got {len(users)}")
    valid = np.isin(pages.user, users[:held])
    return pages.take(~valid), pages.take(valid)


def _tensors(pages: Impressions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arrays = (pages.history, pages.items, pages.position, pages.engaged.astype(np.float32))
    history, items, position, engaged = (torch.from_numpy(array) for array in arrays)
    return history, items, position, engaged


def _predict(network: Network, pages: Impressions, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and outcomes of all impressions, both (E,)."""
    network.eval()
    history, items, position, _ = _tensors(pages)
    with torch.inference_mode():
        parts = [network(*p).sigmoid() for p in zip(history.split(batch), items.split(batch), position.split(batch))]
    shown = pages.items != PAD_ITEM
    return torch.cat(parts).numpy()[shown], pages.engaged[shown]


def _logit(probability: float) -> float:
    p = min(max(float(probability), 1e-4), 1 - 1e-4)
    return float(np.log(p / (1 - p)))


class Din(LoggedPreference):
    """``LoggedPreference`` as a member of the registry: fitted on ``PreferenceData``, with a reliability curve.

    A log of positive events is given sampled negatives first: each positive is a page with ``sampled`` items that the
    user is not known to like. The weights are those of ``LoggedPreference.fit`` on the same log.
    """

    kind = "din"
    report: dict[str, Any]  # type: ignore[assignment]

    @classmethod
    def fit(  # type: ignore[override]
        cls, data: PreferenceData, seed: int = 0, *, sampled: int = 4, **settings: Any
    ) -> "Din":
        """Fit on impressions, or on a log of positive events with uniform sampled negatives.

        Args:
            data: with ``embeddings``.
            seed: the same seed, the same weights.
            sampled: negatives a positive, where the log has no refusals.
            settings: of ``LoggedPreference.fit``.
        """
        embeddings, log = data.require("embeddings", cls.kind), data.log
        negatives = "impressions: items that were shown and ignored"
        if not tells_refusals(log):
            log = with_negatives(data, sampled, seed)
            negatives = f"none in the log; for each positive {sampled} sampled (uniform)"
        fitted = LoggedPreference.fit(log, data.users, embeddings, seed=seed, **settings)
        defaults = inspect.signature(LoggedPreference.fit).parameters
        chosen = {name: settings.get(name, defaults[name].default) for name in ("history", "valid_share", "batch")}
        # The users that the fit held out: the first numbers of the same stream.
        pages = impressions(log, data.users, chosen["history"])
        _, held = _hold_out(pages, chosen["valid_share"], np.random.default_rng(seed))
        with single_thread():
            curve = reliability(*_predict(fitted.network, held, chosen["batch"]))
        report: dict[str, Any] = {"kind": cls.kind, "negatives": negatives, **fitted.report, "reliability": curve}
        report |= {"ece_before": fitted.report["ece"], "calibration": {"kind": "none", "points": []}}
        return cls(fitted.network, report)


def with_negatives(data: PreferenceData, count: int, seed: int) -> Interactions:
    """The positive events that may be read, each on a page with ``count`` sampled items that count as ignored."""
    pages = implicit_examples(data, count).drawn(np.random.default_rng([seed, 1]))
    rows, width = pages.items.shape
    feedback = np.where(pages.labels["engaged"] > 0, CLICK, SHOWN).astype(np.int8)
    numbers = np.arange(rows * width)
    log = Interactions(
        user=np.repeat(pages.user, width),
        item=pages.items.reshape(-1),
        order=numbers,
        page=np.repeat(np.arange(rows), width),
        position=np.zeros(rows * width, dtype=np.int64),
        feedback=feedback.reshape(-1),
    )
    return log.select(log.item != PAD_ITEM)
