"""What a trie consists of, and everything that can be read off it without walking: the arrays, places and leaves.

Stored is only what a look-up needs; the plain arrays (``child_start``, ``parent``, ``leaf_start`` ...) are made when
they are asked for and not kept. Left out: look-ups by code and restricting (``trie``).

Symbols: N items, L levels, C items a leaf at most; (...) is any leading shape.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sidgym.sid.trie_arrays import Ascending, bytes_of, moved
from sidgym.sid.trie_view import Allowed

NO_NODE = -1
"""Node, leaf or item that does not exist."""

HASH_CHUNK = 2**20
"""Numbers that are widened at once for the content hash."""


@dataclass(frozen=True, eq=False)
class TrieStore:
    """The arrays of a trie; see ``Trie``.

    Node 0 is the root, then come the nodes of level 1 and so on; siblings are contiguous and sorted by code. A node of
    level ``l`` has read ``l`` codes and chooses among ``sizes[l]``. Nodes of level L are the leaves; leaf ``j`` is node
    ``level_start[L] + j``. Items stand in the order of their leaves; an item's position there is its place.
    """

    sizes: tuple[int, ...]  # L, number of codes on each level
    level_start: Tensor  # (L + 2,) int64 first node of each level; the last entry is num_nodes
    starts: tuple[Ascending, ...]  # by level of inner nodes: first child of each node, then the end
    edge_code: Tensor  # (num_nodes - 1,) code on the edge into node 1, 2, ...; uint8, int16 or int32
    item_at: Tensor  # (N,) int32 item by place, ascending in each leaf
    place_of: Tensor  # (N,) int32 place by item
    extra_leaf: Tensor  # (N - num_leaves,) int32 leaf of every item that is not its leaf's first, ascending
    num_items: int  # N; item numbers are in [0, N) and stay so after ``restrict``
    widest: tuple[int, ...]  # L, most children of a node of each level
    most_items: int  # most items of a leaf, whether allowed or not
    view: Allowed | None = None  # what is allowed; None allows all

    @property
    def depth(self) -> int:
        """Levels L."""
        return len(self.sizes)

    @property
    def num_nodes(self) -> int:
        """All nodes, the root and the leaves included; not changed by ``restrict``."""
        return len(self.edge_code) + 1

    @property
    def num_leaves(self) -> int:
        """Distinct SIDs; not changed by ``restrict``, so that leaf numbers keep their meaning."""
        return self.num_items - len(self.extra_leaf)

    @property
    def num_allowed_items(self) -> int:
        """Items that are allowed."""
        return self.num_items if self.view is None else self.view.num_items

    @property
    def num_allowed_leaves(self) -> int:
        """Distinct SIDs with an allowed item."""
        return self.num_leaves if self.view is None else self.view.num_leaves

    @property
    def max_leaf_items(self) -> int:
        """C, the largest number of (allowed) items on one leaf."""
        return self.most_items if self.view is None else self.view.most_items

    @property
    def device(self) -> torch.device:
        """Where the arrays lie."""
        return self.edge_code.device

    @property
    def stored_bytes(self) -> int:
        """Bytes of the arrays of the whole trie, which restricted ones share."""
        return sum(bytes_of(getattr(self, f.name)) for f in fields(self) if f.name != "view")

    @property
    def nbytes(self) -> int:
        """``stored_bytes``, what ``restrict`` added, and the tables for look-ups that exist by now."""
        tables = (*self.__dict__.get("_dense", ()), self.__dict__.get("_single"))
        return self.stored_bytes + bytes_of(self.view) + bytes_of(tables)

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """``level_start`` as plain numbers."""
        return tuple(self.level_start.tolist())

    @property
    def one_to_one(self) -> bool:
        """Whether every leaf has a single item, allowed or not: the place of an item is then its leaf."""
        return len(self.extra_leaf) == 0

    def first_place(self, leaf: Tensor) -> Tensor:
        """Place of each leaf's first item, N for leaf ``num_leaves``: (...) int64 -> (...) int64."""
        return leaf if self.one_to_one else leaf + torch.searchsorted(self.extra_leaf, leaf.int())

    def first_places(self) -> Tensor:
        """``first_place`` of all leaves, then N: (num_leaves + 1,) int64."""
        places = torch.arange(self.num_leaves + 1, device=self.device)
        if not self.one_to_one:
            places[1:] += torch.bincount(self.extra_leaf, minlength=self.num_leaves).cumsum(0)
        return places

    def leaf_at(self, places: Tensor) -> Tensor:
        """Leaf of the item at each place: (...) int64 -> (...) int64."""
        if self.one_to_one:
            return places
        extra_place = self.extra_leaf + torch.arange(1, len(self.extra_leaf) + 1, device=self.device)
        return places - torch.searchsorted(extra_place, places, right=True)

    def codes_of(self, leaf: Tensor) -> Tensor:
        """SID of each leaf, read upwards: (...) int64 in [0, num_leaves) -> (..., L) int64."""
        node, codes = leaf.long() + self.bounds[-2], []
        for level in reversed(range(self.depth)):
            codes.append(self.edge_code[node - 1].long())
            node = self.starts[level].owner(node) + self.bounds[level]
        return torch.stack(codes[::-1], dim=-1)

    def items_of(self, leaf: Tensor) -> Tensor:
        """Items of each leaf, ascending: (...) int64 -> (..., max_leaf_items) int64, -1 on the right.

        A number that is no leaf's, such as -1, has none.
        """
        exists = (leaf >= 0) & (leaf < self.num_leaves)
        row = torch.where(exists, leaf, 0).long()
        if self.one_to_one:  # its place is the leaf's number
            if self.view is not None:
                exists = exists & self.view.kept_at(row, self.bounds[-2])
            return torch.where(exists, self.item_at[row].long(), NO_NODE)[..., None]
        place = self.first_place(row)[..., None] + torch.arange(self.most_items, device=self.device)
        filled = exists[..., None] & (place < self.first_place(row + 1)[..., None])
        place = place.clamp(max=self.num_items - 1)
        if self.view is None:
            return torch.where(filled, self.item_at[place].long(), NO_NODE)
        filled = filled & self.view.kept_at(place, self.bounds[-2])
        items = torch.where(filled, self.item_at[place].long(), self.num_items).sort(dim=-1).values
        items = items[..., : self.max_leaf_items]
        return torch.where(items < self.num_items, items, NO_NODE)

    @property
    def leaf_items(self) -> Tensor:
        """(N,) items in the order of their leaves, int32; only the allowed ones after ``restrict``."""
        return self.item_at if self.view is None else self.item_at[self.view.kept(self.bounds[-2])]

    @property
    def leaf_start(self) -> Tensor:
        """(num_leaves + 1,) int64: items of leaf j are ``leaf_items[leaf_start[j]:leaf_start[j + 1]]``. Made anew."""
        places = self.first_places()
        if self.view is None:
            return places
        before = places.new_zeros(self.num_items + 1)
        torch.cumsum(self.view.kept(self.bounds[-2]), 0, out=before[1:])
        return before[places]

    @property
    def allowed(self) -> Tensor | None:
        """(num_nodes,) bool, nodes at or above an allowed item, made anew; None allows all."""
        return None if self.view is None else self.view.live[:-1] > 0

    @property
    def code(self) -> Tensor:
        """(num_nodes,) int64 code on the edge into each node, -1 for the root. Made anew."""
        return torch.cat([self.level_start.new_full((1,), -1), self.edge_code.long()])

    @property
    def child_start(self) -> Tensor:
        """(num_nodes + 1,) int64: children of node n are child_start[n]:child_start[n + 1]; a leaf has none. Anew."""
        inner = [start.all()[:-1].long() for start in self.starts]
        return torch.cat([*inner, self.level_start.new_full((self.num_leaves + 1,), self.num_nodes)])

    @property
    def parent(self) -> Tensor:
        """(num_nodes,) int64 parent of each node, -1 for the root. Made anew."""
        levels = [self.parents(level) for level in range(self.depth)]
        return torch.cat([self.level_start.new_full((1,), NO_NODE), *levels])

    def parents(self, level: int) -> Tensor:
        """Parents of all nodes of ``level + 1``, int64."""
        nodes = torch.arange(self.bounds[level], self.bounds[level + 1], device=self.device)
        return nodes.repeat_interleave(self.starts[level].all().diff())

    def to(self, device: torch.device | str) -> Self:
        """The same trie on a device; itself where it lies there already."""
        if torch.device(device) == self.device:
            return self
        return replace(self, **{f.name: moved(getattr(self, f.name), device) for f in fields(self)})

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the fields, and no table that is made from them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def content_hash(self) -> str:
        """SHA-256 (hex) of what the trie says: sizes, structure and allowed items; the same on every device."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        digest = hashlib.sha256(repr((self.sizes, self.num_items)).encode())
        for tensor in self._plain():
            for part in tensor.split(HASH_CHUNK):
                digest.update(np.ascontiguousarray(part.cpu().numpy(), dtype="<i8").data)
        return digest.hexdigest()

    def _plain(self) -> Iterator[Tensor]:
        """``level_start``, ``child_start``, ``code``, ``leaf_start`` and ``leaf_items``, in parts."""
        yield self.level_start
        for start in self.starts:
            yield start.all()[:-1]
        yield torch.tensor([self.num_nodes], device=self.device).expand(self.num_leaves + 1)
        yield self.level_start.new_full((1,), -1)
        yield self.edge_code
        yield self.leaf_start
        yield self.leaf_items
