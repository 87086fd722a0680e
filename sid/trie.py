"""The trie of valid Semantic IDs, as compact arrays.

A root-to-leaf path is a SID that exists; a leaf holds the items that carry it (several after a collision). Nodes are
numbered breadth first and children stand next to each other (CSR), so the trie is built by one sort and every query is
a few tensor operations on the device where the arrays lie. Items can be left out at run time (``restrict``,
``toggle``), which rebuilds nothing, and come and go for good (``add``, ``remove``); each gives a new trie and leaves
the old one as it was. With 10 million items on 3 levels of 8,192 codes the arrays take about 13 bytes an item.

Left out: what the arrays are (``trie_store``) and how they are made (``trie_build``), what is allowed (``trie_view``),
and files (``trie_file``).

Symbols: N items, L levels, C items a leaf at most; (...) is any leading shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from sidgym.sid import trie_build, trie_view
from sidgym.sid.trie_arrays import check_codes, pack_rows
from sidgym.sid.trie_store import NO_NODE, TrieStore

__all__ = ["DENSE_ENTRIES", "NO_NODE", "Trie", "check_codes", "pack_rows"]

DENSE_ENTRIES = 2**25
"""Most entries of a trie's dense table of children (four bytes each); levels beyond it are searched."""

BYTES_AN_ITEM = 16
"""What all arrays of a trie may take together, the dense table included, ..."""

FREE_BYTES = 2**27
"""... unless the whole stays below this many bytes."""

FEW = 64
"""A set of less than one item in ``FEW`` is allowed item by item, a larger one by passes over the trie."""

FEW_SLOTS = 2**14
"""Children of all rows that are written without a look at how many of them there are."""

SHARED_TABLES = ("bounds", "_dense", "_source")
"""What a restricted trie takes over from the one that it is made of; ``_source`` is the file that holds its arrays."""


@dataclass(frozen=True, eq=False)
class Trie(TrieStore):
    """Prefix tree over the codes of N items; build it with ``Trie.from_codes``. Its parts stand in ``TrieStore``."""

    @classmethod
    def from_codes(cls, codes: np.ndarray, sizes: Sequence[int]) -> "Trie":
        """The trie of an item-code table.

        Args:
            codes: (N, L) integers of any width, row i the SID of item i; rows may be equal.
            sizes: number of codes on each of the L levels.

        Raises ``ValueError`` for an empty table, a wrong shape or dtype, or a code outside ``[0, sizes[l])``.
        """
        return cls(**trie_build.build(codes, sizes))

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> "Trie":
        """A trie that ``save`` wrote, its arrays mapped from the file: processes that open it share one copy in memory.

        ``verify`` reads the whole file once to compare its hash, which also finds damage that the length does not show.
        ``ValueError`` for another format, a cut-off or a damaged file.
        """
        from sidgym.sid.trie_file import open_trie

        return open_trie(path, verify)

    def save(self, path: str | Path) -> None:
        """Write the trie to one safetensors file, through a temporary one. ``ValueError`` for a restricted trie."""
        from sidgym.sid.trie_file import save_trie

        save_trie(self, path)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """A trie that was opened from a file is pickled as its name: whoever reads it there shares the pages.

        One that was not, or whose file was moved or replaced since, is pickled with its arrays.
        """
        source = self.__dict__.get("_source")
        if source is None or not source.is_there():
            return super().__reduce_ex__(protocol)
        from sidgym.sid.trie_file import reopen

        return reopen, (source.path, source.content_hash, self.view)

    def children_mask(self, nodes: Tensor, level: int) -> Tensor:
        """Codes that continue each node to a valid SID.

        Args:
            nodes: (...) int64 nodes of ``level``, or -1.
            level: how many codes the nodes have read, 0 (the root) to L - 1.

        Returns (..., sizes[level]) bool; all False for node -1. Do not write into it: at level 0 all rows may be one
        and the same. ``ValueError`` for a node of another level.
        """
        return self._mask(nodes, level).expand(*nodes.shape, self.sizes[level])

    def _mask(self, nodes: Tensor, level: int) -> Tensor:
        """``children_mask``, or the one row (K_0,) of all nodes where they are the root."""
        if not 0 <= level < self.depth:
            raise ValueError(f"children_mask: expected a level in [0, {self.depth}), got {level}")
        first, end = self.bounds[level], self.bounds[level + 1]
        inside = nodes.reshape(-1).long()
        low, high = torch.stack(torch.aminmax(inside)).tolist() if len(inside) else (first, first)
        exists = None
        if low < 0:
            exists = inside >= 0
            inside = torch.where(exists, inside, first)
            low = int(inside.min())
        if low < first or high >= end:
            raise ValueError(
                f"children_mask: nodes of level {level} are {first} to {end - 1}, got one of another level"
            )
        if level == 0:
            inside = torch.zeros(1, dtype=torch.int64, device=self.device)
        rows, dense = self._dense
        if end <= rows:
            child = dense[:-1].view(rows, -1)[inside, : self.sizes[level]]
            mask = child >= 0 if self.view is None else self.view.live[child.long()] > 0
        else:
            # Rows that do not exist write nothing; the root's row is one for all and is multiplied out below.
            mask = self._spread(inside - first, level, None if level == 0 else exists)
            exists = exists if level == 0 else None
        if exists is not None:
            # As a product of bytes: a logical "and" with a column takes fifty times as long.
            mask = (mask.view(torch.uint8) * exists.view(torch.uint8)[:, None]).view(torch.bool)
        return mask[0] if level == 0 and exists is None else mask.reshape(*nodes.shape, self.sizes[level])

    def _spread(self, rows: Tensor, level: int, exists: Tensor | None) -> Tensor:
        """``children_mask`` of nodes of a level, counted from its first, by writing their children one by one.

        Every row writes as many as the widest node has, its last child again and again, unless that is far too many.
        Rows that do not ``exist`` stay empty, whatever node stands there; None where all do.
        """
        first, end = self.starts[level].span(rows) - 1  # edges, one before nodes
        mask = torch.zeros(len(rows), self.sizes[level], dtype=torch.bool, device=self.device)
        slots = len(rows) * self.widest[level]
        if slots <= FEW_SLOTS or slots <= 2 * int((end - first).sum()):
            reach = torch.arange(self.widest[level], dtype=torch.int32, device=self.device)
            edge = torch.minimum(first[:, None] + reach, (end - 1)[:, None])
            code = self.edge_code.index_select(0, edge.view(-1)).view(edge.shape).long()
            if self.view is None:
                return mask.scatter_(1, code, True if exists is None else exists[:, None].expand_as(code))
            live = self.view.live.index_select(0, edge.view(-1) + 1).view(edge.shape) > 0
            return mask.scatter_(1, code, live if exists is None else live & exists[:, None])
        counts = end - first if exists is None else (end - first) * exists
        row = torch.repeat_interleave(counts)
        edge = torch.arange(len(row), device=self.device) + (first - counts.cumsum(0) + counts).index_select(0, row)
        place = row * self.sizes[level] + self.edge_code.index_select(0, edge)
        mask.view(-1)[place] = True if self.view is None else self.view.live.index_select(0, edge + 1) > 0
        return mask

    @cached_property
    def _dense(self) -> tuple[int, Tensor]:
        """How many nodes, from the root down to a whole level, have a row, and all rows: child by code, flat, int32.

        ``restrict`` hands it on: it knows nothing of what is allowed. The last entry is NO_NODE.
        """
        width = max(self.sizes)
        own = self.stored_bytes + len(self.edge_code) - self.num_leaves  # with ``_single``
        spare = max(BYTES_AN_ITEM * self.num_items, FREE_BYTES) - own
        most = min(DENSE_ENTRIES, spare // 4)
        rows = max([0, *(end for end in self.bounds[1:-1] if end * width <= most)])
        table = torch.full((rows * width + 1,), NO_NODE, dtype=torch.int32, device=self.device)
        for level in range(self.depth):
            end = self.bounds[level + 1]
            if end <= rows:
                below = slice(end, self.bounds[level + 2])
                key = self.parents(level) * width + self.edge_code[below.start - 1 : below.stop - 1]
                table[key] = torch.arange(below.start, below.stop, dtype=torch.int32, device=self.device)
        return rows, table

    def step(self, nodes: Tensor, codes: Tensor, level: int | None = None) -> Tensor:
        """The child of each node along a code: (...) and (...) int64 -> (...) int64, -1 where there is none.

        ``level`` of the nodes, where all have one and the caller knows it, saves time and changes nothing.
        """
        nodes, codes = nodes.long(), codes.long()
        width = max(self.sizes)
        rows, table = self._dense
        # Out of range a code would alias with a neighbour's key.
        known = (nodes >= 0) & (codes >= 0) & (codes < width)
        dense = known & (nodes < rows)
        child = table[torch.where(dense, nodes * width + codes, len(table) - 1)].long()
        for here in range(self.depth) if level is None else (level,):
            first, end = self.bounds[here], self.bounds[here + 1]
            if end > rows:
                searched = known & (nodes >= first) & (nodes < end)
                if level is None and not bool(searched.any()):
                    continue
                child = torch.where(searched, self._search(torch.where(searched, nodes - first, 0), codes, here), child)
        return child if self.view is None else torch.where(self.view.live[child] > 0, child, NO_NODE)

    def _search(self, rows: Tensor, codes: Tensor, level: int) -> Tensor:
        """``step`` for nodes of a level, counted from its first, by a binary search among their own children.

        These lie close together, where a search among all edges would wait for memory at each of its many steps.
        """
        first, end = self.starts[level].span(rows).long() - 1  # edges, one before nodes
        last = end - 1
        for power in reversed(range((self.widest[level] - 1).bit_length())):
            later = torch.minimum(first + (1 << power), last)
            first = torch.where(self.edge_code[later] <= codes, later, first)
        return torch.where(self.edge_code[first] == codes, first + 1, NO_NODE)

    def masked(self, logits: Tensor, nodes: Tensor, level: int) -> Tensor:
        """``logits`` (..., K_l) of a level's codes, -inf where ``nodes`` (...) have no (allowed) child."""
        return torch.where(self._mask(nodes, level), logits, float("-inf"))

    def reaches_one(self, nodes: Tensor) -> Tensor:
        """Whether a single (allowed) SID lies at or below each node: (...) int64 -> (...) bool, False for -1."""
        # What does not exist reads the last entry.
        nodes = torch.where((nodes >= 0) & (nodes < self.num_nodes), nodes, NO_NODE)
        return self._single[nodes.clamp(max=self.bounds[-2])] if self.view is None else self.view.live[nodes] == 1

    @cached_property
    def _single(self) -> Tensor:
        """Whether a single SID lies below each inner node, and at a leaf (yes) and at node -1 (no)."""
        below, _ = trie_view.below_inner(self, None)
        return torch.cat([below == 1, torch.tensor([True, False], device=self.device)])

    def path(self, codes: Tensor) -> Tensor:
        """Nodes along each code row: (..., L) int64 -> (..., L + 1) int64.

        Entry ``l`` is the node before code ``l`` (the root first), the last one the leaf's node; -1 once the row has
        left the trie.
        """
        if codes.shape[-1] != self.depth:
            raise ValueError(f"path: expected {self.depth} codes a row, got shape {tuple(codes.shape)}")
        nodes = [torch.zeros(codes.shape[:-1], dtype=torch.int64, device=self.device)]
        for level in range(self.depth):
            nodes.append(self.step(nodes[-1], codes[..., level], level))
        return torch.stack(nodes, dim=-1)

    def leaf_of_node(self, nodes: Tensor) -> Tensor:
        """Leaf number of each node: (...) int64 -> (...) int64 in [0, num_leaves), -1 for inner nodes and -1."""
        return torch.where((nodes >= self.bounds[-2]) & (nodes < self.num_nodes), nodes - self.bounds[-2], NO_NODE)

    def leaf_of(self, codes: Tensor) -> Tensor:
        """Leaf number of each SID: (..., L) int64 -> (...) int64 in [0, num_leaves), -1 if it does not exist."""
        if codes.shape[-1] != self.depth:
            raise ValueError(f"leaf_of: expected {self.depth} codes a row, got shape {tuple(codes.shape)}")
        node = torch.zeros(codes.shape[:-1], dtype=torch.int64, device=self.device)
        for level in range(self.depth):
            node = self.step(node, codes[..., level], level)
        return self.leaf_of_node(node)

    def restrict(self, items: Tensor | np.ndarray) -> "Trie":
        """The same trie with only the paths that lead to the given items; restricting again intersects.

        The arrays are shared, and nodes and leaves keep their numbers. Costs a pass over items and nodes, or, for less
        than one item in ``FEW``, the copy of the counters.

        Args:
            items: item numbers in any order (repeats allowed), or a bool mask of shape (N,).

        Raises ``ValueError`` when no item is left (an empty set must never mean "no constraint") or one is unknown.
        """
        given = self._given(items, "restrict")
        if given.dtype != torch.bool and len(given) * FEW >= self.num_items:
            numbers, given = given, torch.zeros(self.num_items, dtype=torch.bool, device=self.device)
            given[numbers] = True
        if given.dtype == torch.bool:
            return self.seen_through(trie_view.by_mask(self, given), "restrict")
        places = self.place_of[given].long()
        if self.view is not None:
            places = places[self.view.kept_at(places, self.bounds[-2])]
        nothing = trie_view.nothing(self)
        return self.seen_through(
            trie_view.changed(self, nothing, places, torch.ones_like(places, dtype=torch.bool)), "restrict"
        )

    def toggle(self, add: Tensor | np.ndarray | None = None, remove: Tensor | np.ndarray | None = None) -> "Trie":
        """The same trie with some items allowed that were not, and some not that were, such as a change of stock.

        Gives the trie that ``restrict`` of the changed set of the whole trie would give, in time that grows with the
        change: beyond that it copies flags and counters (see ``trie_view``). This trie stays as it is.

        Args:
            add, remove: item numbers in any order, or bool masks of shape (N,); those that are allowed already, or
                not, stay so.

        Raises ``ValueError`` when an item is in both, when no item is left, and when one is unknown.
        """
        none = torch.empty(0, dtype=torch.int64)
        parts = [self._given(none if part is None else part, "toggle") for part in (add, remove)]
        joins, leaves = (part.nonzero()[:, 0] if part.dtype == torch.bool else part for part in parts)
        allow = torch.ones(len(joins) + len(leaves), dtype=torch.bool, device=self.device)
        allow[len(joins) :] = False
        view = trie_view.everything(self) if self.view is None else self.view
        places = self.place_of.index_select(0, torch.cat([joins, leaves])).long()
        return self.seen_through(trie_view.changed(self, view, places, allow), "toggle")

    def add(self, codes: np.ndarray) -> "Trie":
        """The trie with M more items, whose SIDs are ``codes`` (M, L) and whose numbers go on from N.

        Equal to ``Trie.from_codes`` of all rows, without sorting those that are here. ``ValueError`` as there, and for
        a restricted trie.
        """
        return Trie(**trie_build.add(self, codes)).to(self.device)

    def remove(self, items: Tensor | np.ndarray) -> "Trie":
        """The trie without these items; the others are numbered anew without gaps, as rows of a table that move up.

        Equal to ``Trie.from_codes`` of the rows that stay. Nodes and leaves are numbered anew too; to leave items out
        for a while, ``restrict``. ``ValueError`` when no item stays, one is unknown, or the trie is restricted.
        """
        given = self._given(items, "remove")
        numbers = given.nonzero()[:, 0] if given.dtype == torch.bool else given.unique()
        return Trie(**trie_build.remove(self, numbers)).to(self.device)

    def seen_through(self, view: trie_view.Allowed, what: str = "seen_through") -> "Trie":
        """The same arrays, and tables that exist, with another view. ``ValueError`` where that allows nothing."""
        if not view.num_items:
            raise ValueError(f"{what}: no allowed item is left; expected at least one item that this trie still allows")
        part = replace(self, view=view)
        part.__dict__.update({name: self.__dict__[name] for name in SHARED_TABLES if name in self.__dict__})
        return part

    def _given(self, items: Tensor | np.ndarray, what: str) -> Tensor:
        """Items as a bool mask (N,) or as int64 numbers (n,); ``ValueError`` for anything else."""
        given = torch.as_tensor(items, device=self.device)
        if given.dtype == torch.bool:
            if given.shape != (self.num_items,):
                raise ValueError(f"{what}: expected a mask of shape ({self.num_items},), got {tuple(given.shape)}")
            return given
        if given.is_floating_point() and given.numel():
            raise ValueError(f"{what}: expected integer item numbers or a bool mask, got {given.dtype}")
        given = given.reshape(-1).long()
        outside = given[(given < 0) | (given >= self.num_items)]
        if len(outside):
            raise ValueError(f"{what}: item numbers are in [0, {self.num_items}), got {outside[:5].tolist()}")
        return given
