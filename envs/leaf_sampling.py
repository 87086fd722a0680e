"""Random leaves of a trie: uniform over items, uniform over children, by given probabilities, with and without repeats.

What ``spaces.TrieSpace`` samples by; no Gymnasium. Left out: policies, which the engines sample from.

Symbols: N items, R rows, S leaves a row.
"""

from functools import cached_property
from typing import Protocol

import numpy as np

from sidgym.envs.dynamics import repeats
from sidgym.sid.trie import Trie

REDRAWS = 16
"""Times that repeated leaves are drawn anew before a row is finished among all leaves that remain."""

CHUNK = 2**24
"""Most chances of leaves held at once while rows are finished so."""


class LeafLaw(Protocol):
    """A distribution over the leaves of a trie."""

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Independent leaves, (count,) int64."""
        ...

    def chances(self) -> np.ndarray:
        """Chance of each leaf up to a factor, (num_leaves,) float64."""
        ...


class ByItems:
    """Every allowed item equally often."""

    def __init__(self, trie: Trie) -> None:
        self.trie, self.num_items = trie, trie.num_allowed_items
        # With one item on every leaf, the place of an item is its leaf.
        self.one_to_one = self.num_items == trie.num_leaves and trie.max_leaf_items == 1

    @cached_property
    def leaf_start(self) -> np.ndarray:
        """First item of every leaf, and the end: (num_leaves + 1,)."""
        return self.trie.leaf_start.numpy()

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """See ``LeafLaw``."""
        places = rng.integers(self.num_items, size=count)
        return places if self.one_to_one else np.searchsorted(self.leaf_start, places, side="right") - 1

    def chances(self) -> np.ndarray:
        """See ``LeafLaw``."""
        return np.diff(self.leaf_start).astype(np.float64)


class ByChildren:
    """From the root down, every allowed child of a node equally often."""

    def __init__(self, trie: Trie) -> None:
        self.trie, self.child_start = trie, trie.child_start.numpy()
        self.before = None if trie.allowed is None else np.append(0, np.cumsum(trie.allowed.numpy()))

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """See ``LeafLaw``."""
        node = np.zeros(count, dtype=np.int64)
        for _ in range(self.trie.depth):
            first, end = self.child_start[node], self.child_start[node + 1]
            if self.before is None:
                node = first + rng.integers(end - first)
            else:
                nth = rng.integers(self.before[end] - self.before[first])
                node = np.searchsorted(self.before, self.before[first] + nth + 1) - 1
        return node - int(self.trie.level_start[-2])

    def chances(self) -> np.ndarray:
        """See ``LeafLaw``."""
        allowed = np.ones(self.trie.num_nodes, bool) if self.trie.allowed is None else self.trie.allowed.numpy()
        before = np.append(0, np.cumsum(allowed))
        start, chance = self.trie.level_start.tolist(), np.ones(1)
        for level in range(self.trie.depth):
            edges = self.child_start[start[level] : start[level + 1] + 1]
            each = chance / np.maximum(np.diff(before[edges]), 1)
            chance = np.repeat(each, np.diff(edges)) * allowed[start[level + 1] : start[level + 2]]
        return chance


class ByProbability:
    """Items by given chances, (N,) float64; those of items that are not allowed are left out.

    Raises ``ValueError`` for a wrong shape, chances below 0 or that do not sum to 1, and when nothing may be drawn.
    """

    def __init__(self, trie: Trie, probability: np.ndarray) -> None:
        expected = (trie.num_items,)
        if probability.shape != expected:
            raise ValueError(f"TrieSpace.sample: expected a probability of shape {expected}, got {probability.shape}")
        if not (probability >= 0).all() or not np.isclose(probability.sum(), 1.0):
            raise ValueError("TrieSpace.sample: probabilities must be at least 0 and sum to 1")
        self.leaf_start = trie.leaf_start.numpy()
        self.weight = probability[trie.leaf_items.numpy()]
        self.cumulative = np.cumsum(self.weight)
        if self.cumulative[-1] <= 0:
            raise ValueError("TrieSpace.sample: every allowed item has probability 0")

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """See ``LeafLaw``."""
        total = self.cumulative[-1]
        # Strictly above the draw, so that an item of probability 0 is never taken; the product may round up to the sum.
        places = np.searchsorted(self.cumulative, rng.random(count) * total, side="right")
        places = np.minimum(places, np.searchsorted(self.cumulative, total))
        return np.searchsorted(self.leaf_start, places, side="right") - 1

    def chances(self) -> np.ndarray:
        """See ``LeafLaw``."""
        leaf = np.repeat(np.arange(len(self.leaf_start) - 1), np.diff(self.leaf_start))
        return np.bincount(leaf, weights=self.weight, minlength=len(self.leaf_start) - 1)


def draw_distinct(law: LeafLaw, rows: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Leaves without replacement, (R, S) int64: each is drawn by the law, given that it is none of those before it.

    At least ``size`` leaves must have a chance. A leaf that stands in its row already is drawn anew, which gives just
    this distribution; rows that still repeat after ``REDRAWS`` rounds are finished among the leaves that remain.
    """
    leaves = law.draw(rows * size, rng).reshape(rows, size)
    for _ in range(REDRAWS):
        again = repeats(leaves)
        if not again.any():
            return leaves
        leaves[again] = law.draw(int(again.sum()), rng)
    crowded = np.flatnonzero(repeats(leaves).any(axis=1))
    if len(crowded):
        chances = law.chances()
        for part in np.array_split(crowded, -(-len(crowded) * len(chances) // CHUNK)):
            leaves[part] = _finish(leaves[part], chances, rng)
    return leaves


def _finish(leaves: np.ndarray, chances: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows (R, S) with each leaf that stands in its row already drawn anew among those that do not, left to right."""
    left = np.tile(chances, (len(leaves), 1))
    for place in range(leaves.shape[1]):
        rows = np.flatnonzero(left[np.arange(len(leaves)), leaves[:, place]] == 0)
        if len(rows):
            cumulative = np.cumsum(left[rows], axis=1)
            total = cumulative[:, -1:]
            drawn = (cumulative <= rng.random((len(rows), 1)) * total).sum(axis=1)
            leaves[rows, place] = np.minimum(drawn, (cumulative < total).sum(axis=1))
        left[np.arange(len(leaves)), leaves[:, place]] = 0
    return leaves
