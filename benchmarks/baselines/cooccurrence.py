"""Last-item co-occurrence: what other users took soon after the item that this user took last.

A first-order Markov chain with a window, the floor that any sequential model should clear.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from sidgym.benchmarks.baselines.popularity import Popularity
from sidgym.benchmarks.baselines.protocol import check_k
from sidgym.envs.records import PAD_ITEM, Episodes, Sequences

_CELLS_AT_ONCE = 1 << 23  # bounds the dense score block of a chunk to 64 MiB


@dataclass(frozen=True)
class LastItemCooccurrence:
    """Ranks items by how often they follow the last item within ``window`` steps; ties and gaps go to popularity."""

    following: sparse.csr_matrix  # (N, N) float64, [i, j] counts j within the window after i
    popularity: Popularity
    window: int = 3

    @property
    def report(self) -> dict[str, Any]:
        """The settings."""
        return {"settings": {"window": self.window}}

    @classmethod
    def fit(cls, sequences: Sequences, num_items: int, window: int = 3) -> "LastItemCooccurrence":
        """Counts of ordered item pairs at most ``window`` steps apart within one sequence."""
        if window < 1:
            raise ValueError(f"window should be at least 1, got {window}")
        owner = np.repeat(np.arange(len(sequences)), np.diff(sequences.offsets))
        first, second = [], []
        for step in range(1, window + 1):
            same = owner[:-step] == owner[step:]
            first.append(sequences.items[:-step][same])
            second.append(sequences.items[step:][same])
        pairs = (np.concatenate(first), np.concatenate(second))
        counts = sparse.coo_matrix((np.ones(len(pairs[0])), pairs), shape=(num_items, num_items)).tocsr()
        return cls(counts, Popularity.fit(sequences, num_items), window)

    def recommend(self, episodes: Episodes, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The list of ``rank`` and the scores of its items, (B, k) each."""
        return self._best(episodes.history, k)

    def rank(self, history: np.ndarray, k: int) -> np.ndarray:
        """The ``k`` best items (B, k), best first, after histories (B, T); items already seen are allowed.

        A score is the count after the last item plus a fraction below 1 that falls with the popularity rank, so an
        empty history or a last item that nobody followed gets popularity. Raises ``ValueError`` for ``k`` above the
        number of items.
        """
        return self._best(history, k)[0]

    def _best(self, history: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        num_items = len(self.popularity.counts)
        check_k(k, num_items)
        backoff = np.empty(num_items)
        backoff[self.popularity.order] = np.arange(num_items, 0, -1) / (num_items + 1)
        last = history[:, -1]
        items = np.empty((len(history), k), dtype=np.int64)
        scores = np.empty((len(history), k))
        step = max(1, _CELLS_AT_ONCE // num_items)
        for start in range(0, len(history), step):
            rows = slice(start, start + step)
            block = self.following[np.maximum(last[rows], 0)].toarray()
            block = np.where((last[rows] == PAD_ITEM)[:, None], 0.0, block) + backoff
            top = np.argpartition(-block, k - 1, axis=1)[:, :k]  # all scores of a row differ: the choice is unique
            value = np.take_along_axis(block, top, axis=1)
            best = np.argsort(-value, axis=1)
            items[rows] = np.take_along_axis(top, best, axis=1)
            scores[rows] = np.take_along_axis(value, best, axis=1)
        return items, scores
