"""The Gymnasium space of Semantic IDs: an element is a SID that exists, or an array of such SIDs.

Works on the arrays of a ``Trie``, with no Python object per item, so that 10 million items are no different from ten.
Importing this module registers the space with Gymnasium's batching and flattening functions, so that vector
environments batch actions to one array instead of a tuple. Left out: shared-memory observations of this space (a
policy's input is codes with padding, which is a ``Box``).
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy, deepcopy
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces.utils import flatdim, flatten, flatten_space, unflatten
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from sidgym.envs.dynamics import repeats
from sidgym.envs.leaf_sampling import ByChildren, ByItems, ByProbability, LeafLaw, draw_distinct
from sidgym.sid.trie import Trie


class TrieSpace(gymnasium.Space[NDArray[np.int64]]):
    """SIDs of a catalogue: int64 arrays of shape ``leading + (L,)`` whose every last row is a root-to-leaf path.

    Args:
        trie: the SIDs that exist; a restricted trie gives the space of the allowed items only.
        leading: ``()`` for one SID, ``(G,)`` for a group of G, ``(B, G)`` for a batch of groups. SIDs may repeat.
        uniform: ``"items"`` samples every item equally often, ``"children"`` every child of a node equally often.
        seed: of the generator behind ``sample``.
        distinct: the SIDs along the last axis of ``leading`` differ, as on a page. They are sampled without
            replacement: each as without ``distinct``, given that it is none of those before it.

    Raises ``ValueError`` for another ``uniform``, and where ``distinct`` asks for more SIDs than there are.
    """

    def __init__(
        self,
        trie: Trie,
        leading: tuple[int, ...] = (),
        uniform: str = "items",
        seed: int | np.random.Generator | None = None,
        distinct: bool = False,
    ) -> None:
        if uniform not in ("items", "children"):
            raise ValueError(f"TrieSpace: uniform must be 'items' or 'children', got {uniform!r}")
        self.trie = trie.to("cpu")
        self.leading = tuple(int(n) for n in leading)
        self.uniform, self.distinct = uniform, bool(distinct)
        self._hash: str | None = None
        if distinct and not self.leading:
            raise ValueError("TrieSpace: distinct is about the last axis of leading; leading must not be ()")
        self._check_enough(self.trie.num_allowed_leaves if distinct else 0)
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

        Raises ``ValueError`` when both are given, for wrong shapes, and when nothing may be drawn, or less than
        ``distinct`` needs.
        """
        if mask is not None and probability is not None:
            raise ValueError("TrieSpace.sample: give a mask or a probability, not both")
        law = self._law
        if mask is not None:
            mask = np.asarray(mask)
            if mask.shape != (self.trie.num_items,):
                expected = (self.trie.num_items,)
                raise ValueError(f"TrieSpace.sample: expected a mask over items {expected}, got {mask.shape}")
            part = self.trie.restrict(mask.astype(bool))
            self._check_enough(part.num_allowed_leaves if self.distinct else 0)
            law = self._law_of(part)
        elif probability is not None:
            law = ByProbability(self.trie, np.asarray(probability, np.float64))
            self._check_enough(int(np.count_nonzero(law.chances())) if self.distinct else 0)
        if self.distinct:
            rows = int(np.prod(self.leading[:-1], dtype=np.int64))
            leaves = draw_distinct(law, rows, self.leading[-1], self.np_random).reshape(-1)
        else:
            leaves = law.draw(int(np.prod(self.leading, dtype=np.int64)), self.np_random)
        return self.trie.codes_of(torch.from_numpy(leaves)).numpy().reshape(self.shape)

    @cached_property
    def _law(self) -> LeafLaw:
        return self._law_of(self.trie)

    def _law_of(self, trie: Trie) -> LeafLaw:
        return ByItems(trie) if self.uniform == "items" else ByChildren(trie)

    def _check_enough(self, leaves: int) -> None:
        if self.distinct and leaves < self.leading[-1]:
            raise ValueError(f"TrieSpace: expected at least {self.leading[-1]} different SIDs to draw, got {leaves}")

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is an integer array of this shape (or nested lists of integers) that holds only valid SIDs, and
        different ones where ``distinct`` says so."""
        try:
            x = np.asarray(x)
        except ValueError:
            return False
        if x.shape != self.shape or not np.issubdtype(x.dtype, np.integer):
            return False
        leaves = self.trie.leaf_of(torch.from_numpy(x.astype(np.int64))).numpy()
        if (leaves < 0).any():
            return False
        return not self.distinct or not repeats(leaves.reshape(-1, max(self.leading[-1], 1))).any()

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
        """Same SIDs on the same items, same shape, same members and same way of sampling."""
        if not isinstance(other, TrieSpace):
            return False
        if (self.shape, self.uniform, self.distinct) != (other.shape, other.uniform, other.distinct):
            return False
        return self.trie is other.trie or self.content_hash() == other.content_hash()

    def __repr__(self) -> str:
        trie = self.trie
        how = f"{self.uniform}, distinct" if self.distinct else self.uniform
        return f"TrieSpace(shape={self.shape}, items={trie.num_allowed_items}, sizes={trie.sizes}, {how})"

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied; the tables that sampling makes are made again."""
        return {name: value for name, value in self.__dict__.items() if name != "_law"}

    def __deepcopy__(self, memo: dict[int, Any]) -> "TrieSpace":
        """A space with a generator of its own; the trie, which nothing changes, is shared."""
        twin = copy(self)
        twin._np_random = deepcopy(self._np_random, memo)
        return twin


@batch_space.register(TrieSpace)
def _batch_space(space: TrieSpace, n: int = 1) -> TrieSpace:
    return TrieSpace(space.trie, (n, *space.leading), space.uniform, deepcopy(space.np_random), space.distinct)


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
