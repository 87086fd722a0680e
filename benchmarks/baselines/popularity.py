"""Popularity: the items that training users took most often, the same list for everyone."""

from dataclasses import dataclass

import numpy as np

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

    def recommend(self, episodes: Episodes, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` most popular items (B, k), best first, and their counts (B, k); items already seen are allowed.

        Raises ``ValueError`` for ``k`` above the number of items.
        """
        if not 1 <= k <= len(self.counts):
            raise ValueError(f"k should be between 1 and the {len(self.counts)} items, got {k}")
        top = self.order[:k]
        shape = (len(episodes), k)
        return np.broadcast_to(top, shape).copy(), np.broadcast_to(self.counts[top].astype(np.float64), shape).copy()
