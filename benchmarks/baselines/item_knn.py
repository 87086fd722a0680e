"""Item-kNN: the items most like those of the history (Sarwar et al., 2001; Deshpande and Karypis, 2004).

Two items are alike when the same users took both: the cosine of their columns in the matrix of users and items, with
``shrink`` added to the denominator so that few common users count little, and only an item's ``neighbours`` most alike
kept. An item is scored by the sum over the history of its likeness to each item there, an item that lies ``a`` steps
back weighing ``decay ** a`` (1: order plays no role, as published). Ferrari Dacrema et al. (RecSys 2019), whose search
is over 5 to 1,000 neighbours and a shrink of 0 to 1,000, found it hard to beat when tuned. Left out: other
likenesses, and taking what the user has out of the list, which ``lists`` does for every system.

Symbols: B contexts, T history length, U users, N items.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from sidgym.benchmarks.baselines.popularity import Popularity
from sidgym.benchmarks.baselines.protocol import BaselineData, OnEpoch, check_k
from sidgym.envs.records import PAD_ITEM

_CELLS_AT_ONCE = 1 << 22  # bounds the dense scores, and the rows of likeness before neighbours are chosen


@dataclass(frozen=True)
class ItemKnn:
    """Ranks items by likeness to the history; ties and gaps go to popularity."""

    likeness: sparse.csr_matrix  # (N, N) float32, [i, j] how much having i speaks for j
    popularity: Popularity
    decay: float
    report: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def fit(
        cls, data: BaselineData, seed: int = 0, directory: Path | None = None, on_epoch: OnEpoch | None = None, *,
        neighbours: int = 100, shrink: float = 10.0, decay: float = 1.0,
    ) -> "ItemKnn":  # fmt: skip
        """Count and choose neighbours; nothing is drawn and nothing is kept in ``directory``.

        Raises ``ValueError`` for fewer than one neighbour, a negative shrink and a decay outside (0, 1].
        """
        if neighbours < 1 or shrink < 0 or not 0 < decay <= 1:
            raise ValueError(
                f"expected neighbours of at least 1, a shrink of at least 0 and a decay in (0, 1]; got {neighbours}, "
                f"{shrink}, {decay}"
            )
        users = np.repeat(np.arange(len(data.sequences)), np.diff(data.sequences.offsets))
        ones = np.ones(len(users), dtype=np.float32)
        shape = (len(data.sequences), data.num_items)
        taken = sparse.coo_matrix((ones, (users, data.sequences.items)), shape=shape).tocsr()
        taken.data[:] = 1.0  # whoever took an item twice took it
        settings = {"neighbours": neighbours, "shrink": shrink, "decay": decay}
        popularity = Popularity.fit(data.sequences, data.num_items)
        return cls(_likeness(taken, neighbours, shrink), popularity, decay, {"settings": settings})

    def rank(self, history: np.ndarray, k: int) -> np.ndarray:
        """The ``k`` best next items (B, k); see ``Baseline.rank``."""
        num_items = len(self.popularity.counts)
        check_k(k, num_items)
        backoff = np.empty(num_items)
        # Below any likeness that could be told apart, so that only ties are decided.
        backoff[self.popularity.order] = 1e-9 * np.arange(num_items, 0, -1) / num_items
        best = np.empty((len(history), k), dtype=np.int64)
        step = max(1, _CELLS_AT_ONCE // num_items)
        for start in range(0, len(history), step):
            rows = slice(start, start + step)
            scores = (self._weights(history[rows], num_items) @ self.likeness).toarray() + backoff
            top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
            best[rows] = np.take_along_axis(top, order, axis=1)
        return best

    def _weights(self, history: np.ndarray, num_items: int) -> sparse.csr_matrix:
        """What each item of histories (B, T) counts, (B, N)."""
        row, column = np.nonzero(history != PAD_ITEM)
        weight = self.decay ** (history.shape[1] - 1.0 - column)
        return sparse.coo_matrix((weight, (row, history[row, column])), shape=(len(history), num_items)).tocsr()


def _likeness(taken: sparse.csr_matrix, neighbours: int, shrink: float) -> sparse.csr_matrix:
    """Shrunk cosines (N, N) of the columns of ``taken`` (U, N), of each row the largest ``neighbours``."""
    num_items = taken.shape[1]
    norm = np.sqrt(np.asarray(taken.sum(axis=0)).ravel())
    by_item = taken.T.tocsr()
    parts = []
    step = max(1, _CELLS_AT_ONCE // num_items)
    for start in range(0, num_items, step):
        common = np.asarray((by_item[start : start + step] @ taken).todense())
        own = np.arange(start, start + len(common))
        common[own - start, own] = 0.0
        cosine = common / (norm[own][:, None] * norm + shrink + (common == 0))
        if neighbours < num_items:
            least = np.partition(cosine, num_items - neighbours, axis=1)[:, num_items - neighbours]
            cosine[cosine < least[:, None]] = 0.0
        parts.append(sparse.csr_matrix(cosine.astype(np.float32)))
    return sparse.vstack(parts).tocsr()
