"""The trie of valid Semantic IDs, as arrays.

A root-to-leaf path is a SID that exists; a leaf holds the items that carry it (several after a collision). Nodes are
numbered breadth first and children stand next to each other (CSR), so the trie is built by one sort and every query is
a few tensor operations on the device where the arrays lie. Left out: changing a trie. New items mean a new build;
leaving items out at run time is ``Trie.restrict``, which rebuilds nothing.

Symbols: N items, L levels, C items a leaf at most; (...) is any leading shape.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

NO_NODE = -1
"""Node, leaf or item that does not exist."""

DENSE_ENTRIES = 2**25
"""Most entries of a trie's dense table of children (four bytes each); levels beyond it are searched."""


@dataclass(frozen=True, eq=False)
class Trie:
    """Prefix tree over the codes of N items; build it with ``Trie.from_codes``.

    Node 0 is the root, then come the nodes of level 1 and so on; siblings are contiguous and sorted by code. A node of
    level ``l`` has read ``l`` codes and chooses among ``sizes[l]``. Nodes of level L are the leaves; leaf ``j`` is node
    ``level_start[L] + j``. All tensors are int64 on one device.
    """

    sizes: tuple[int, ...]  # L, number of codes on each level
    level_start: Tensor  # (L + 2,) first node of each level; the last entry is num_nodes
    child_start: Tensor  # (num_nodes + 1,) children of node n are child_start[n]:child_start[n + 1], none for a leaf
    code: Tensor  # (num_nodes,) code on the edge into the node, -1 for the root
    parent: Tensor  # (num_nodes,) -1 for the root
    leaf_start: Tensor  # (num_leaves + 1,) items of leaf j are leaf_items[leaf_start[j]:leaf_start[j + 1]]
    leaf_items: Tensor  # (N,) item numbers, ascending in each leaf; only the allowed ones after ``restrict``
    edge_key: (
        Tensor  # (num_nodes - 1,) parent * max(sizes) + code of nodes 1, 2, ...: ascending, what ``step`` searches
    )
    num_items: int  # N; item numbers are in [0, N) and stay so after ``restrict``
    max_leaf_items: int  # C, the largest number of (allowed) items on one leaf
    allowed: Tensor | None = None  # (num_nodes,) bool, nodes above an allowed item; None allows all

    @classmethod
    def from_codes(cls, codes: np.ndarray, sizes: Sequence[int]) -> "Trie":
        """The trie of an item-code table.

        Args:
            codes: (N, L) integers, row i the SID of item i; rows may be equal.
            sizes: number of codes on each of the L levels.

        Raises ``ValueError`` for an empty table, a wrong shape or dtype, or a code outside ``[0, sizes[l])``.
        """
        codes, sizes = check_codes(codes, sizes)
        order, firsts = _sort_rows(codes, sizes)
        starts = [np.zeros(1, np.int64), *firsts]  # starts[l]: sorted rows at which a node of level l begins
        level_start = np.concatenate([[0], np.cumsum([len(s) for s in starts])])
        num_nodes = int(level_start[-1])
        code = np.full(num_nodes, -1, np.int64)
        parent = np.full(num_nodes, NO_NODE, np.int64)
        child_start = np.full(num_nodes + 1, num_nodes, np.int64)
        for level in range(len(sizes)):
            below = slice(level_start[level + 1], level_start[level + 2])
            # Both lists of first rows ascend, so each child's parent is the last one that starts no later.
            first_child = np.searchsorted(starts[level + 1], starts[level])
            child_start[level_start[level] : level_start[level + 1]] = level_start[level + 1] + first_child
            counts = np.diff(first_child, append=len(starts[level + 1]))
            parent[below] = np.repeat(np.arange(level_start[level], level_start[level + 1]), counts)
            code[below] = codes[order[starts[level + 1]], level]
        leaf_start = np.append(starts[-1], len(codes))
        return cls(
            sizes=sizes,
            level_start=torch.from_numpy(level_start.astype(np.int64)),
            child_start=torch.from_numpy(child_start),
            code=torch.from_numpy(code),
            parent=torch.from_numpy(parent),
            leaf_start=torch.from_numpy(leaf_start),
            leaf_items=torch.from_numpy(order),
            edge_key=torch.from_numpy(parent[1:] * max(sizes) + code[1:]),
            num_items=len(codes),
            max_leaf_items=int(np.diff(leaf_start).max()),
        )

    @property
    def depth(self) -> int:
        """Levels L."""
        return len(self.sizes)

    @property
    def num_nodes(self) -> int:
        """All nodes, the root and the leaves included; not changed by ``restrict``."""
        return len(self.code)

    @property
    def num_leaves(self) -> int:
        """Distinct SIDs; not changed by ``restrict``, so that leaf numbers keep their meaning."""
        return len(self.leaf_start) - 1

    @property
    def device(self) -> torch.device:
        """Where the arrays lie."""
        return self.code.device

    @cached_property
    def _bounds(self) -> tuple[int, ...]:
        return tuple(self.level_start.tolist())

    def children_mask(self, nodes: Tensor, level: int) -> Tensor:
        """Codes that continue each node to a valid SID.

        Args:
            nodes: (...) int64 nodes of ``level``, or -1.
            level: how many codes the nodes have read, 0 (the root) to L - 1.

        Returns (..., sizes[level]) bool; all False for node -1. ``ValueError`` for a node of another level.
        """
        if not 0 <= level < self.depth:
            raise ValueError(f"children_mask: expected a level in [0, {self.depth}), got {level}")
        flat = nodes.reshape(-1).long()
        exists = flat >= 0
        first, end = self._bounds[level], self._bounds[level + 1]
        if bool((exists & ((flat < first) | (flat >= end))).any()):
            raise ValueError(
                f"children_mask: nodes of level {level} are {first} to {end - 1}, got one of another level"
            )
        # All rows of level 0 are the root's: one row is computed and shared.
        unique = torch.zeros(1, dtype=torch.int64, device=self.device) if level == 0 else flat.clamp(min=0)
        dense_rows, dense = self._dense
        if end <= dense_rows:
            child = dense[:-1].view(dense_rows, -1)[unique, : self.sizes[level]]
            mask = child >= 0 if self.allowed is None else (child >= 0) & self.allowed[child.long()]
            return (mask & exists[:, None]).reshape(*nodes.shape, self.sizes[level])
        counts = self.child_start[unique + 1] - self.child_start[unique]
        counts = counts if level == 0 else counts * exists
        rows = torch.repeat_interleave(counts)
        before = torch.cumsum(counts, 0) - counts
        child = torch.arange(len(rows), device=self.device) + (self.child_start[unique] - before)[rows]
        mask = torch.zeros(len(unique), self.sizes[level], dtype=torch.bool, device=self.device)
        mask[rows, self.code[child]] = True if self.allowed is None else self.allowed[child]
        if level == 0:
            mask = mask & exists[:, None]
        return mask.reshape(*nodes.shape, self.sizes[level])

    @cached_property
    def _dense(self) -> tuple[int, Tensor]:
        """How many nodes, from the root down to a whole level, have a row, and all rows: child by code, flat, int32.

        ``restrict`` hands it on: it knows nothing of ``allowed``. The last entry is NO_NODE.
        """
        width = max(self.sizes)
        rows = max([0, *(end for end in self._bounds[1:-1] if end * width <= DENSE_ENTRIES)])
        table = torch.full((rows * width + 1,), NO_NODE, dtype=torch.int32, device=self.device)
        edges = int(self.child_start[rows]) - 1
        table[self.edge_key[:edges]] = torch.arange(1, edges + 1, dtype=torch.int32, device=self.device)
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
        if self._bounds[-2 if level is None else level + 1] > rows:
            searched = known & ~dense & (nodes < self._bounds[-2])
            child = torch.where(searched, self._search(torch.where(searched, nodes, rows), codes), child)
        if self.allowed is not None:
            child = torch.where((child >= 0) & self.allowed[child], child, NO_NODE)
        return child

    def masked(self, logits: Tensor, nodes: Tensor, level: int) -> Tensor:
        """``logits`` (..., K_l) of a level's codes, -inf where ``nodes`` (...) have no (allowed) child."""
        return logits.masked_fill(~self.children_mask(nodes, level), float("-inf"))

    def reaches_one(self, nodes: Tensor) -> Tensor:
        """Whether a single (allowed) SID lies at or below each node: (...) int64 -> (...) bool, False for -1."""
        return self._single[nodes.clamp(min=0)] & (nodes >= 0)

    @cached_property
    def _single(self) -> Tensor:
        """By node, whether a single (allowed) SID lies at or below it; a pass over the nodes."""
        count = torch.zeros(self.num_nodes, dtype=torch.int32, device=self.device)
        leaves = slice(self._bounds[-2], None)
        count[leaves] = 1 if self.allowed is None else self.allowed[leaves].int()
        for level in range(self.depth, 0, -1):
            here = slice(self._bounds[level], self._bounds[level + 1])
            count.index_add_(0, self.parent[here], count[here].clone())
        return count == 1

    @cached_property
    def _halvings(self) -> int:
        """Times that the most children of a node without a dense row are halved until none is left."""
        return int(self.child_start[self._dense[0] :].diff().max()).bit_length()

    def _search(self, nodes: Tensor, codes: Tensor) -> Tensor:
        """``step`` for inner nodes by a binary search among their own children.

        These lie close together, where a search among all edges would wait for memory at each of its many steps.
        """
        first, end = self.child_start[nodes], self.child_start[nodes + 1]
        high = end
        for _ in range(self._halvings):
            middle = (first + high) >> 1
            # An empty range asks for the code after it, which may not exist.
            smaller = (middle < high) & (self.code[middle.clamp(max=self.num_nodes - 1)] < codes)
            first, high = torch.where(smaller, middle + 1, first), torch.where(smaller, high, middle)
        found = (first < end) & (self.code[first.clamp(max=self.num_nodes - 1)] == codes)
        return torch.where(found, first, NO_NODE)

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
        return torch.where(nodes >= self._bounds[-2], nodes - self._bounds[-2], NO_NODE)

    def leaf_of(self, codes: Tensor) -> Tensor:
        """Leaf number of each SID: (..., L) int64 -> (...) int64 in [0, num_leaves), -1 if it does not exist."""
        if codes.shape[-1] != self.depth:
            raise ValueError(f"leaf_of: expected {self.depth} codes a row, got shape {tuple(codes.shape)}")
        node = torch.zeros(codes.shape[:-1], dtype=torch.int64, device=self.device)
        for level in range(self.depth):
            node = self.step(node, codes[..., level], level)
        return self.leaf_of_node(node)

    def items_of(self, leaf: Tensor) -> Tensor:
        """Items of each leaf, ascending: (...) int64 -> (..., max_leaf_items) int64, -1 on the right."""
        if self.max_leaf_items == 1 and len(self.leaf_items) == self.num_leaves:
            # One item on every leaf: its place is the leaf's number.
            return torch.where(leaf >= 0, self.leaf_items[leaf.long().clamp(min=0)], NO_NODE)[..., None]
        row = leaf.long().clamp(min=0)[..., None]
        place = self.leaf_start[row] + torch.arange(self.max_leaf_items, device=self.device)
        filled = (leaf[..., None] >= 0) & (place < self.leaf_start[row + 1])
        return torch.where(filled, self.leaf_items[place.clamp(max=len(self.leaf_items) - 1)], NO_NODE)

    def restrict(self, items: Tensor | np.ndarray) -> "Trie":
        """The same trie with only the paths that lead to the given items; restricting again intersects.

        The node arrays are shared, and nodes and leaves keep their numbers. Costs a pass over N.

        Args:
            items: item numbers in any order (repeats allowed), or a bool mask of shape (N,).

        Raises ``ValueError`` when no item is left (an empty set must never mean "no constraint") or one is unknown.
        """
        keep = self._item_mask(items)[self.leaf_items]
        if not bool(keep.any()):
            raise ValueError(
                "restrict: no allowed item is left; expected at least one item that this trie still allows"
            )
        before = torch.cat([keep.new_zeros(1, dtype=torch.int64), torch.cumsum(keep, 0)])
        leaf_start = before[self.leaf_start]
        per_leaf = leaf_start.diff()
        allowed = torch.zeros(self.num_nodes, dtype=torch.bool, device=self.device)
        allowed[self._bounds[-2] :] = per_leaf > 0
        for level in range(self.depth, 0, -1):
            here = slice(self._bounds[level], self._bounds[level + 1])
            allowed[self.parent[here][allowed[here]]] = True
        part = replace(
            self,
            leaf_start=leaf_start,
            leaf_items=self.leaf_items[keep],
            max_leaf_items=int(per_leaf.max()),
            allowed=allowed,
        )
        part.__dict__.update(
            {name: self.__dict__[name] for name in ("_bounds", "_dense", "_halvings") if name in self.__dict__}
        )
        return part

    def _item_mask(self, items: Tensor | np.ndarray) -> Tensor:
        """Items as a bool mask (N,); see ``restrict``."""
        given = torch.as_tensor(items, device=self.device)
        if given.dtype == torch.bool:
            if given.shape != (self.num_items,):
                raise ValueError(f"restrict: expected a mask of shape ({self.num_items},), got {tuple(given.shape)}")
            return given
        if given.is_floating_point() and given.numel():
            raise ValueError(f"restrict: expected integer item numbers or a bool mask, got {given.dtype}")
        given = given.reshape(-1).long()
        outside = given[(given < 0) | (given >= self.num_items)]
        if len(outside):
            raise ValueError(f"restrict: item numbers are in [0, {self.num_items}), got {outside[:5].tolist()}")
        mask = torch.zeros(self.num_items, dtype=torch.bool, device=self.device)
        mask[given] = True
        return mask

    def to(self, device: torch.device | str) -> "Trie":
        """The same trie on a device; itself where it lies there already."""
        if torch.device(device) == self.device:
            return self
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the fields, and no table that is made from them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def content_hash(self) -> str:
        """SHA-256 (hex) of what the trie says: sizes, structure and allowed items; the same on every device."""
        digest = hashlib.sha256(repr((self.sizes, self.num_items)).encode())
        for tensor in (self.level_start, self.child_start, self.code, self.leaf_start, self.leaf_items):
            digest.update(tensor.cpu().numpy().astype("<i8", copy=False).data)
        return digest.hexdigest()


def check_codes(codes: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, tuple[int, ...]]:
    """An item-code table as int64 (N, L) and its sizes as plain ints; ``ValueError`` says what is wrong with them."""
    codes = np.asarray(codes)
    sizes = tuple(int(size) for size in sizes)
    if codes.ndim != 2 or codes.shape[0] == 0 or codes.shape[1] == 0:
        raise ValueError(f"codes: expected shape (N, L) with N and L at least 1, got {codes.shape}")
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes: expected integers, got dtype {codes.dtype}")
    if len(sizes) != codes.shape[1] or min(sizes) < 1:
        raise ValueError(f"sizes: expected {codes.shape[1]} positive numbers, one a level, got {sizes}")
    low, high = codes.min(axis=0), codes.max(axis=0)
    for level, size in enumerate(sizes):
        if low[level] < 0 or high[level] >= size:
            found = f"{low[level]} to {high[level]}"
            raise ValueError(f"codes: level {level} expects codes in [0, {size}), got {found}")
    return codes.astype(np.int64, copy=False), sizes


def pack_rows(codes: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """One int64 key a row, (N,), that sorts as the rows do: equal keys are equal rows.

    The key is the row read as a mixed-radix number; a prefix is first replaced by its dense rank where the number
    would not fit 63 bits.
    """
    key = codes[:, 0].astype(np.int64)
    span = int(sizes[0])
    for level in range(1, len(sizes)):
        if span * int(sizes[level]) >= 2**63:
            distinct, key = np.unique(key, return_inverse=True)
            span = len(distinct)
        key = key * int(sizes[level]) + codes[:, level]
        span *= int(sizes[level])
    return key


def _sort_rows(codes: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Order (N,) that sorts the rows, equal rows in their order, and by level the sorted rows where a prefix begins."""
    order = np.argsort(pack_rows(codes, sizes), kind="stable")
    begins = np.zeros(len(codes), dtype=bool)
    begins[0] = True
    firsts = []
    for level in range(codes.shape[1]):
        column = codes[order, level]
        begins[1:] |= column[1:] != column[:-1]
        firsts.append(np.flatnonzero(begins))
    return order, firsts
