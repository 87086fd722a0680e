"""Baselines that turn a history into a state and score every item by it: what they share.

A subclass of ``ItemNetwork`` gives states; the loss is cross-entropy over all items at every position of a sequence,
with which older networks do better than with the sampled losses that they were published with (Klenitskiy and
Vasilev, RecSys 2023; Petrov and Macdonald, RecSys 2023). Left out: the networks, a module each.

Symbols: B rows, t places, T longest history, W width, N items, C targets.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidgym.benchmarks.baselines.lists import judged
from sidgym.benchmarks.baselines.protocol import BaselineData, OnEpoch, check_k
from sidgym.benchmarks.baselines.training import Plan, Training
from sidgym.envs.item_softmax import item_cross_entropy
from sidgym.envs.records import PAD_ITEM, Sequences

CELLS = 1 << 24
"""Scores that are held at once where items are ranked, 64 MiB."""

ALIKE = 16
"""Batches that are sorted by length together, so that little is padded; which these are is drawn anew each epoch."""


class ItemNetwork(nn.Module):
    """A network over item ids. ``item`` holds the item vectors, (N, W) or with more rows behind those of the items."""

    item: nn.Embedding

    def __init__(self, items: int, plan: Plan) -> None:
        super().__init__()
        self.items, self.plan = items, plan

    def forward(self, items: Tensor) -> Tensor:
        """(B, t) item ids with t at most T, PAD_ITEM on the left, to the state after each of them, (B, t, W)."""
        raise NotImplementedError

    def vectors(self, items: Tensor) -> Tensor:
        """What is read of items (B, t): their vectors times the root of their width, zero at PAD_ITEM, (B, t, W).

        As in SASRec: vectors small enough for scores that begin near zero say too little as an input.
        """
        return self.item(items.clamp(min=0)) * (items != PAD_ITEM)[..., None] * self.item.embedding_dim**0.5

    def factors(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What scores are made of: of states (..., W) what is multiplied with vectors of all items (N, W), those
        vectors, and what is added for each item, (N,) or None."""
        return states, self.item.weight[: self.items], None

    def logits(self, states: Tensor) -> Tensor:
        """Scores of all items by states: (..., W) to (..., N)."""
        return F.linear(*self.factors(states))

    def loss(self, rows: Tensor) -> Tensor:
        """Mean loss of sequences (B, t + 1), PAD_ITEM on the left: each item is predicted from those before it."""
        before, target = rows[:, :-1], rows[:, 1:]
        wanted = (before != PAD_ITEM) & (target != PAD_ITEM)
        return self.softmax_loss(self(before)[wanted], target[wanted])

    def softmax_loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of states (C, W) over all items."""
        queries, vectors, bias = self.factors(states)
        return item_cross_entropy(queries, vectors, targets, bias)

    def last(self, history: Tensor) -> Tensor:
        """State after histories (B, t) with at least one place: (B, W)."""
        return self(history)[:, -1]


class SequentialBaseline:
    """A fitted ``ItemNetwork``. A subclass names its ``network_type`` and ``settings_type``."""

    network_type: ClassVar[Any]
    settings_type: ClassVar[Any]

    def __init__(self, network: ItemNetwork, report: dict[str, Any]) -> None:
        self.network, self.report = network.eval(), report

    @classmethod
    def fit(
        cls, data: BaselineData, seed: int = 0, directory: Path | None = None, on_epoch: OnEpoch | None = None,
        **settings: Any,
    ) -> Self:  # fmt: skip
        """Fit on the training sequences; ``settings`` are fields of ``settings_type``.

        With ``directory`` the training leaves checkpoints there and goes on from them. Raises ``TypeError`` for an
        unknown setting and ``ValueError`` for settings that do not fit, no pairs to learn from and a loss that is not
        finite.
        """
        plan = cls.settings_type(**settings)
        rows = windows(data.sequences, plan.history)
        if not len(rows):
            raise ValueError("no training sequence has two items; there is nothing to learn the next one from")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = cls.network_type(data.num_items, plan).to(plan.device)
        model = cls(network, {})
        valid = data.valid.spread(plan.eval_users)
        lengths = (rows != PAD_ITEM).sum(axis=1)

        def batches(rng: np.random.Generator) -> Iterator[Tensor]:
            for chosen in alike(lengths, plan.batch, rng):
                part = rows[chosen][:, rows.shape[1] - int(lengths[chosen].max()) :]
                yield torch.from_numpy(part).to(plan.device)

        training = Training(
            network, plan, seed, batches, network.loss, lambda: judged(model.rank, valid, data), data.fingerprint
        )
        model.report = training.run(directory, on_epoch) | {"settings": asdict(plan)}
        return model

    def rank(self, history: np.ndarray, k: int) -> np.ndarray:
        """The ``k`` best next items (B, k); see ``Baseline.rank``. ``ValueError`` for scores that are not numbers."""
        check_k(k, self.network.items)
        # Contexts of like length together: padding is read by no network, but it takes its time.
        order = np.argsort((history != PAD_ITEM).sum(axis=1), kind="stable")
        best = np.empty((len(history), k), dtype=np.int64)
        with torch.inference_mode():
            for rows in np.split(order, range(self._at_once, len(order), self._at_once)):
                states = self.network.last(recent(history[rows], self.network.plan.history).to(self._device))
                scores = self.network.logits(states).float()
                if bool(torch.isnan(scores).any()):
                    raise ValueError(
                        f"{type(self).__name__}: scores are not numbers; the weights are damaged, fit again"
                    )
                best[rows] = scores.topk(k, dim=1).indices.cpu().numpy()
        return best

    @property
    def _at_once(self) -> int:
        return max(1, min(256, CELLS // self.network.items))

    @property
    def _device(self) -> torch.device:
        return self.network.item.weight.device


def recent(history: np.ndarray, length: int) -> Tensor:
    """The last ``length`` items of histories (B, T), without columns that are padding in all rows: (B, t), t >= 1."""
    kept = history[:, max(0, history.shape[1] - length) :]
    used = np.flatnonzero((kept != PAD_ITEM).any(axis=0))
    if not len(used):
        return torch.full((len(history), 1), PAD_ITEM)
    return torch.from_numpy(np.array(kept[:, used[0] :], dtype=np.int64))


def windows(sequences: Sequences, length: int) -> np.ndarray:
    """Training sequences cut from their ends into windows of ``length`` targets and the item before the first of them:
    (R, at most length + 1), PAD_ITEM on the left. Every item but a user's first one is a target once."""
    count = np.diff(sequences.offsets)
    parts = np.maximum(-(-(count - 1) // length), 0)
    user = np.repeat(np.arange(len(count)), parts)
    number = np.arange(len(user)) - np.repeat(np.cumsum(parts) - parts, parts)
    width = int(min(length, max(count.max(initial=1) - 1, 1))) + 1
    place = (count[user] - number * length)[:, None] + np.arange(-width, 0)
    at = sequences.offsets[:-1][user][:, None] + np.maximum(place, 0)
    return np.where(place >= 0, sequences.items[at], PAD_ITEM)


def alike(lengths: np.ndarray, batch: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows in random batches of like length, each row once."""
    order = rng.permutation(len(lengths))
    parts: list[np.ndarray] = []
    for start in range(0, len(order), batch * ALIKE):
        pool = order[start : start + batch * ALIKE]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        parts += np.split(pool, range(batch, len(pool), batch))
    for number in rng.permutation(len(parts)):
        yield parts[number]


def embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding with normal entries of standard deviation 0.02, as in BERT."""
    made = nn.Embedding(rows, width)
    nn.init.normal_(made.weight, std=0.02)
    return made
