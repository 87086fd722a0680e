"""How the arrays of a trie come about: from a table by one sort, and from another trie by adding or removing items.

Adding and removing pass once over the arrays, level by level: nodes are put in or taken out where they stand, and the
children of every node are counted anew. Left out: what the arrays answer (``trie``), and leaving items out for a while
(``trie_view``).

Symbols: N items, M items that come or go, L levels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sidgym.sid.trie_arrays import Ascending, sort_rows, validate_codes

if TYPE_CHECKING:
    from sidgym.sid.trie import Trie

Fields = dict[str, Any]
"""Fields of a ``Trie`` by name."""


def build(codes: np.ndarray, sizes: Sequence[int]) -> Fields:
    """The fields of the trie of a table (N, L); see ``Trie.from_codes``."""
    codes, sizes = validate_codes(codes, sizes)
    if len(codes) * len(sizes) >= 2**31:
        raise ValueError(f"codes: at most 2^31 nodes can be numbered; {len(codes)} rows of {len(sizes)} may need more")
    order, columns = sort_rows(codes, sizes)
    begins = np.zeros(len(codes), dtype=bool)  # sorted rows at which a node of the level begins
    begins[0] = True
    rows, counts, edges = np.zeros(1, dtype=np.int64), [], []
    for column in columns:
        begins[1:] |= column[1:] != column[:-1]
        counts.append(_between(np.append(rows, len(codes)), begins))
        rows = np.flatnonzero(begins)
        edges.append(column if len(rows) == len(codes) else column[rows])
    extra = np.repeat(np.arange(len(rows), dtype=np.int32), np.diff(rows, append=len(codes)) - 1)
    place_of = np.empty(len(codes), dtype=np.int32)
    place_of[order] = np.arange(len(codes), dtype=np.int32)
    return _fields(sizes, counts, edges, extra, order, place_of)


def _between(rows: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """How many flags are set from each of ``rows`` (n + 1,) up to the next: (n,) int32."""
    before = np.zeros(len(flags) + 1, dtype=np.int32)
    np.cumsum(flags, out=before[1:])
    return np.diff(before[rows])


def _fields(
    sizes: tuple[int, ...],
    counts: list[np.ndarray],
    edges: list[np.ndarray],
    extra: np.ndarray,
    item_at: np.ndarray,
    place_of: np.ndarray,
) -> Fields:
    """Fields from the number of children of every inner node and the codes of every level below the root."""
    level_start = np.cumsum([0, 1, *map(len, edges)])
    starts = []
    for level, below in enumerate(counts):
        start = np.empty(len(below) + 1, dtype=np.int32)
        start[0] = level_start[level + 1]
        np.cumsum(below, out=start[1:])
        start[1:] += start[0]
        starts.append(Ascending.of(start))
    most = 1 + int(np.unique(extra, return_counts=True)[1].max()) if len(extra) else 1
    return {
        "sizes": sizes,
        "level_start": torch.from_numpy(level_start.astype(np.int64)),
        "starts": tuple(starts),
        "edge_code": torch.from_numpy(np.concatenate(edges)),
        "item_at": torch.from_numpy(item_at),
        "place_of": torch.from_numpy(place_of),
        "extra_leaf": torch.from_numpy(extra),
        "num_items": len(item_at),
        "widest": tuple(int(below.max()) for below in counts),
        "most_items": most,
    }


class _Parts:
    """The arrays of a trie in numpy, level by level, for ``add`` and ``remove`` to change."""

    def __init__(self, trie: "Trie") -> None:
        if trie.view is not None:
            raise ValueError(
                "add/remove: expected a trie that is not restricted; change the whole trie and restrict the result"
            )
        trie = trie.to("cpu")
        bounds = trie.level_start.tolist()
        code = trie.edge_code.numpy()
        self.counts = [start.all().diff().numpy() for start in trie.starts]
        self.edges = [code[bounds[level] - 1 : bounds[level + 1] - 1] for level in range(1, trie.depth + 1)]
        self.extra, self.item_at, self.place_of = (t.numpy() for t in (trie.extra_leaf, trie.item_at, trie.place_of))
        self.sizes = trie.sizes

    def fields(self) -> Fields:
        return _fields(self.sizes, self.counts, self.edges, self.extra, self.item_at, self.place_of)


def add(trie: "Trie", codes: np.ndarray) -> Fields:
    """The trie with M more items, numbered from N on; see ``Trie.add``."""
    codes, _ = validate_codes(codes, trie.sizes)
    if (trie.num_items + len(codes)) * trie.depth >= 2**31:
        raise ValueError(f"add: at most 2^31 nodes can be numbered; {len(codes)} more rows may need more")
    parts = _Parts(trie)
    whole = trie.to("cpu")
    order, columns = sort_rows(codes, trie.sizes)
    begins = np.arange(len(codes)) == 0
    # By sorted row: the node reached, as its place among the old nodes of a level, or where a new one is put in before.
    at, known = np.zeros(len(codes), dtype=np.int64), np.ones(len(codes), dtype=bool)
    number = np.zeros(len(codes), dtype=np.int64)  # the node's place in the level as it will be
    for level, column in enumerate(columns):
        begins = begins | np.append(True, column[1:] != column[:-1])
        below, is_child = _lower_bound(whole, level, at, known, column)
        fresh = begins & ~is_child
        counts = parts.counts[level]
        new_parent = np.unique(number[~known])
        counts = np.insert(counts, new_parent - np.arange(len(new_parent)), 0) if len(new_parent) else counts.copy()
        np.add.at(counts, number[fresh], 1)
        parts.counts[level] = counts
        put_in = below[fresh]
        parts.edges[level] = np.insert(parts.edges[level], put_in, column[fresh])
        earlier = np.cumsum(fresh)  # new nodes up to and with this row's
        number = np.where(is_child, below + np.searchsorted(put_in, below, side="right"), below + earlier - 1)
        at, known = below, is_child
    _add_items(parts, whole, order, at, known, number)
    return parts.fields()


def _lower_bound(
    trie: "Trie", level: int, at: np.ndarray, known: np.ndarray, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where among the old nodes of ``level + 1`` a row's node stands or would be put in, and whether it is there.

    ``at`` are the rows' old nodes of ``level`` where ``known``, else where their new one is put in before.
    """
    start = int(trie.level_start[level + 1])
    edges = trie.edge_code.numpy()[start - 1 : int(trie.level_start[level + 2]) - 1]
    ends = trie.starts[level]
    first = ends.at(torch.from_numpy(at)).numpy() - start
    end = ends.at(torch.from_numpy(at + known)).numpy() - start
    high = end.copy()
    for _ in range(trie.widest[level].bit_length()):
        middle = (first + high) >> 1
        smaller = (middle < high) & (edges[np.minimum(middle, len(edges) - 1)] < codes)
        first, high = np.where(smaller, middle + 1, first), np.where(smaller, high, middle)
    return first, (first < end) & (edges[np.minimum(first, len(edges) - 1)] == codes)


def _add_items(
    parts: _Parts, trie: "Trie", order: np.ndarray, at: np.ndarray, known: np.ndarray, leaf: np.ndarray
) -> None:
    """The new items, sorted, behind the items of their leaves; ``leaf`` is their leaf as it will be."""
    before = trie.first_place(torch.from_numpy(at + known)).numpy()  # the place behind the leaf's old items
    is_extra = known | np.append(False, leaf[1:] == leaf[:-1])
    if len(parts.extra):
        fresh = np.unique(leaf[~known])  # new leaves, which move the old ones
        gap = fresh - np.arange(len(fresh))
        parts.extra = parts.extra + np.searchsorted(gap, parts.extra, side="right").astype(np.int32)
    parts.extra = np.sort(np.concatenate([parts.extra, leaf[is_extra].astype(np.int32)]))
    items = order + np.int32(trie.num_items)
    parts.item_at = np.insert(parts.item_at, before, items)
    moved_by = np.cumsum(np.bincount(before, minlength=trie.num_items)[: trie.num_items], dtype=np.int32)
    moved_by += np.arange(trie.num_items, dtype=np.int32)
    place_of = np.empty(len(parts.item_at), dtype=np.int32)
    np.take(moved_by, parts.place_of, out=place_of[: trie.num_items], mode="clip")
    place_of[items] = before + np.arange(len(items))
    parts.place_of = place_of


def remove(trie: "Trie", items: Tensor) -> Fields:
    """The trie without M items (distinct numbers), the others numbered as rows that move up; see ``Trie.remove``."""
    if len(items) >= trie.num_items:
        raise ValueError(f"remove: expected at least one item to stay, got all {trie.num_items}")
    parts = _Parts(trie)
    whole = trie.to("cpu")
    gone = np.sort(whole.place_of[items.cpu()].numpy())
    leaf = whole.leaf_at(torch.from_numpy(gone).long()).numpy()
    touched, lost = np.unique(leaf, return_counts=True)
    had = 1 + np.searchsorted(parts.extra, touched, side="right") - np.searchsorted(parts.extra, touched)
    _remove_extra(parts, touched, lost, had)
    dead = touched[lost == had]
    for level in reversed(range(whole.depth)):
        parts.edges[level] = np.delete(parts.edges[level], dead)
        counts = parts.counts[level].copy()
        parent = whole.starts[level].owner(torch.from_numpy(dead) + whole.level_start[level + 1]).numpy()
        np.subtract.at(counts, parent, 1)
        parent = np.unique(parent)
        dead = parent[counts[parent] == 0]
        parts.counts[level] = np.delete(counts, dead)
    stays = np.ones(whole.num_items, dtype=bool)
    stays[gone] = False
    place = np.cumsum(stays, dtype=np.int32) - np.int32(1)  # by old place
    kept = np.ones(whole.num_items, dtype=bool)
    kept[items.cpu().numpy()] = False
    number = np.cumsum(kept, dtype=np.int32) - np.int32(1)  # by old item
    parts.item_at = np.take(number, parts.item_at[stays])
    parts.place_of = np.take(place, parts.place_of[kept])
    return parts.fields()


def _remove_extra(parts: _Parts, touched: np.ndarray, lost: np.ndarray, had: np.ndarray) -> None:
    """Takes out the entries of items that were not their leaf's only one, and renumbers the leaves of the others."""
    if not len(parts.extra):
        return
    fewer = np.minimum(lost, had - 1)
    first = np.searchsorted(parts.extra, touched)
    out = np.repeat(first - np.append(0, np.cumsum(fewer)[:-1]), fewer) + np.arange(fewer.sum())
    extra = np.delete(parts.extra, out)
    dead = touched[lost == had]
    parts.extra = extra - np.searchsorted(dead, extra).astype(np.int32)
