"""Popularity: the items that training users took most often, the same list for everyone."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sidgym.benchmarks.baselines.protocol import check_k
from sidgym.envs.records import Episodes, Sequences


@dataclass(frozen=True)
class Popularity:
    """Ranks items by how often they occur in the training sequences; ties go to the lower item number."""

    counts: np.ndarray  # (N,) int64

    @classmethod
    def fit(cls, sequences: Sequences, num_items: int) -> "Popularity":
        """Counts of each of ``num_items`` items in ``sequences``."""
        return cls(np.bincount(sequences.items, minlength=num_items))

    @property
    def order(self) -> np.ndarray:
        """Items, most popular first, (N,)."""
        return np.argsort(-self.counts, kind="stable")

    @property
    def report(self) -> dict[str, Any]:
        """There is nothing to set."""
        return {"settings": {}}

    def recommend(self, episodes: Episodes, k: int) -> tuple[np.ndarray, np.ndarray]:
        """``rank`` of the contexts, and the counts (B, k) of what it lists.

        Raises ``ValueError`` for ``k`` above the number of items.
        """
        items = self.rank(episodes.history, k)
        return items, self.counts[items].astype(np.float64)

    def rank(self, history: np.ndarray, k: int) -> np.ndarray:
        """The ``k`` most popular items (B, k), best first; items already seen are allowed.

        Raises ``ValueError`` for ``k`` above the number of items.
        """
        check_k(k, len(self.counts))
        return np.broadcast_to(self.order[:k], (len(history), k)).copy()
