"""The Gymnasium space of Semantic IDs: an element is a SID that exists, or an array of such SIDs.

Works on the arrays of a ``Trie``, with no Python object per item. Importing this module registers the space with
Gymnasium's batching and flattening functions, so that vector environments batch actions to one array instead of a
tuple. Left out: shared-memory observations of this space (a policy's input is codes with padding, which is a ``Box``).
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces.utils import flatdim, flatten, flatten_space, unflatten
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from sidgym.sid.trie import Trie


class TrieSpace(gymnasium.Space[NDArray[np.int64]]):
    """SIDs of a catalogue: int64 arrays of shape ``leading + (L,)`` whose every last row is a root-to-leaf path.

    Args:
        trie: the SIDs that exist; a restricted trie gives the space of the allowed items only.
        leading: ``()`` for one SID, ``(G,)`` for a group of G, ``(B, G)`` for a batch of groups. SIDs may repeat.
        uniform: ``"items"`` samples every item equally often, ``"children"`` every child of a node equally often.
        seed: of the generator behind ``sample``.
    """

    def __init__(
        self,
        trie: Trie,
        leading: tuple[int, ...] = (),
        uniform: str = "items",
        seed: int | np.random.Generator | None = None,
    ) -> None:
        if uniform not in ("items", "children"):
            raise ValueError(f"TrieSpace: uniform must be 'items' or 'children', got {uniform!r}")
        self.trie = trie.to("cpu")
        self.leading = tuple(int(n) for n in leading)
        self.uniform = uniform
        self._hash: str | None = None
        super().__init__(shape=(*self.leading, trie.depth), dtype=np.int64, seed=seed)

    @property
    def shape(self) -> tuple[int, ...]:
        """``leading + (L,)``."""
        return (*self.leading, self.trie.depth)

    @property
    def is_np_flattenable(self) -> bool:
        """A sample flattens to one array (one-hot by level)."""
        return True

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> NDArray[np.int64]:
        """Random SIDs of this space's shape.

        Args:
            mask: (N,) bool, items that may be drawn.
            probability: (N,) float, chance of each item; it replaces ``uniform``.

        Raises ``ValueError`` when both are given, for wrong shapes, and when nothing may be drawn.
        """
        if mask is not None and probability is not None:
            raise ValueError("TrieSpace.sample: give a mask or a probability, not both")
        count = int(np.prod(self.leading, dtype=np.int64))
        trie = self.trie
        if mask is not None:
            mask = np.asarray(mask)
            if mask.shape != (trie.num_items,):
                raise ValueError(f"TrieSpace.sample: expected a mask over items ({trie.num_items},), got {mask.shape}")
            trie = trie.restrict(mask.astype(bool))
        if probability is not None:
            leaves = self._leaves_at(trie, self._places_by_probability(np.asarray(probability, np.float64), count))
        elif self.uniform == "items":
            leaves = self._leaves_at(trie, self.np_random.integers(len(trie.leaf_items), size=count))
        else:
            leaves = self._leaves_by_children(trie, count)
        return _codes_of_leaves(trie, leaves).reshape(self.shape)

    def _places_by_probability(self, probability: np.ndarray, count: int) -> np.ndarray:
        """Places in ``leaf_items`` drawn with the items' probabilities, (count,)."""
        expected = (self.trie.num_items,)
        if probability.shape != expected:
            raise ValueError(f"TrieSpace.sample: expected a probability of shape {expected}, got {probability.shape}")
        if not (probability >= 0).all() or not np.isclose(probability.sum(), 1.0):
            raise ValueError("TrieSpace.sample: probabilities must be at least 0 and sum to 1")
        cumulative = np.cumsum(probability[self.trie.leaf_items.numpy()])
        if cumulative[-1] <= 0:
            raise ValueError("TrieSpace.sample: every allowed item has probability 0")
        # Strictly above the draw, so that an item of probability 0 is never taken; the product may round up to the sum.
        places = np.searchsorted(cumulative, self.np_random.random(count) * cumulative[-1], side="right")
        return np.minimum(places, np.searchsorted(cumulative, cumulative[-1]))

    @staticmethod
    def _leaves_at(trie: Trie, places: np.ndarray) -> np.ndarray:
        """Leaves that hold the given places of ``leaf_items``, (count,)."""
        return np.searchsorted(trie.leaf_start.numpy(), places, side="right") - 1

    def _leaves_by_children(self, trie: Trie, count: int) -> np.ndarray:
        """Leaves reached from the root by a uniform choice among the (allowed) children on each level, (count,)."""
        child_start = trie.child_start.numpy()
        allowed = None if trie.allowed is None else np.append(0, np.cumsum(trie.allowed.numpy()))
        node = np.zeros(count, dtype=np.int64)
        for _ in range(trie.depth):
            first, end = child_start[node], child_start[node + 1]
            if allowed is None:
                node = first + self.np_random.integers(end - first)
            else:
                nth = self.np_random.integers(allowed[end] - allowed[first])
                node = np.searchsorted(allowed, allowed[first] + nth + 1) - 1
        return node - int(trie.level_start[trie.depth])

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is an integer array of this shape (or nested lists of integers) that holds only valid SIDs."""
        try:
            x = np.asarray(x)
        except ValueError:
            return False
        if x.shape != self.shape or not np.issubdtype(x.dtype, np.integer):
            return False
        return bool((self.trie.leaf_of(torch.from_numpy(x.astype(np.int64))) >= 0).all())

    def to_jsonable(self, sample_n: Sequence[NDArray[np.int64]]) -> list[Any]:
        """Samples as nested lists of ints."""
        return [np.asarray(sample).tolist() for sample in sample_n]

    def from_jsonable(self, sample_n: list[Any]) -> list[NDArray[np.int64]]:
        """The inverse of ``to_jsonable``."""
        return [np.asarray(sample, dtype=np.int64) for sample in sample_n]

    def content_hash(self) -> str:
        """The trie's content hash, computed once."""
        if self._hash is None:
            self._hash = self.trie.content_hash()
        return self._hash

    def __eq__(self, other: object) -> bool:
        """Same SIDs on the same items, same shape and same way of sampling."""
        if not isinstance(other, TrieSpace) or (self.shape, self.uniform) != (other.shape, other.uniform):
            return False
        return self.trie is other.trie or self.content_hash() == other.content_hash()

    def __repr__(self) -> str:
        trie = self.trie
        return f"TrieSpace(shape={self.shape}, items={len(trie.leaf_items)}, sizes={trie.sizes}, {self.uniform})"


def _codes_of_leaves(trie: Trie, leaves: np.ndarray) -> NDArray[np.int64]:
    """SIDs of leaves, read upwards: (count,) -> (count, L)."""
    code, parent = trie.code.numpy(), trie.parent.numpy()
    node = leaves + int(trie.level_start[trie.depth])
    codes = np.empty((len(leaves), trie.depth), dtype=np.int64)
    for level in reversed(range(trie.depth)):
        codes[:, level] = code[node]
        node = parent[node]
    return codes


@batch_space.register(TrieSpace)
def _batch_space(space: TrieSpace, n: int = 1) -> TrieSpace:
    return TrieSpace(space.trie, (n, *space.leading), space.uniform, seed=deepcopy(space.np_random))


@create_empty_array.register(TrieSpace)
def _create_empty_array(space: TrieSpace, n: int = 1, fn: Callable[..., np.ndarray] = np.zeros) -> np.ndarray:
    return fn((n, *space.shape), dtype=space.dtype)


@concatenate.register(TrieSpace)
def _concatenate(space: TrieSpace, items: Any, out: np.ndarray) -> np.ndarray:
    return np.stack(list(items), axis=0, out=out)


@iterate.register(TrieSpace)
def _iterate(space: TrieSpace, items: np.ndarray) -> Iterator[np.ndarray]:  # type: ignore[misc]
    if not space.leading:
        raise TypeError(f"cannot iterate over a sample of {space}: one SID is no batch")
    return iter(items)


def _rows(space: TrieSpace) -> int:
    return int(np.prod(space.leading, dtype=np.int64))


@flatdim.register(TrieSpace)
def _flatdim(space: TrieSpace) -> int:
    return _rows(space) * sum(space.trie.sizes)


@flatten_space.register(TrieSpace)
def _flatten_space(space: TrieSpace) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(0, 1, (_flatdim(space),), dtype=np.int64)


@flatten.register(TrieSpace)
def _flatten(space: TrieSpace, x: NDArray[np.int64]) -> NDArray[np.int64]:  # type: ignore[misc]
    """One-hot by level, as Gymnasium flattens a MultiDiscrete."""
    sizes = space.trie.sizes
    offsets = np.append(0, np.cumsum(sizes)[:-1])
    flat = np.zeros((_rows(space), sum(sizes)), dtype=np.int64)
    np.put_along_axis(flat, np.asarray(x).reshape(-1, len(sizes)) + offsets, 1, axis=1)
    return flat.reshape(-1)


@unflatten.register(TrieSpace)
def _unflatten(space: TrieSpace, x: NDArray[np.int64]) -> NDArray[np.int64]:  # type: ignore[misc]
    sizes = space.trie.sizes
    levels = np.split(np.asarray(x).reshape(_rows(space), sum(sizes)), np.cumsum(sizes)[:-1], axis=1)
    return np.stack([level.argmax(axis=1) for level in levels], axis=1).astype(np.int64).reshape(space.shape)
