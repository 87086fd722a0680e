"""Min-cost reassignment of the last level: every SID one item, at the least total distortion.

Inside each second-to-last prefix the items and the codes of the last level make an assignment problem, which
``scipy.optimize.linear_sum_assignment`` solves exactly (docs/semantic_ids.md). Prefixes without a collision are left as
they are. Where a prefix holds more items than its last level has codes, those that lose least by it move to the nearest
sibling prefixes with room (same codes up to the third-to-last level), whose own items keep their SIDs. Left out:
balanced assignment while the codebooks are being fitted, which is a tokeniser's.

Symbols: N items, L levels, n rows of one prefix, K codes of the last level.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from sidgym.sid.trie import pack_rows

Costs = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""``costs(rows, codes, level)`` -> (n, K_level) float64: what each code of ``level`` costs items ``rows`` (n,), given
``codes`` (n, L) on the levels before it. Tokenisers with codebooks give the squared distance of what remains of the
item's embedding to each code."""

COST_ENTRIES = 2**22
"""Entries of a cost matrix that are asked for at once."""


def changed_levels(codes: np.ndarray, sizes: Sequence[int]) -> Costs:
    """The cost where there are no codebooks: on how many levels, up to ``level``, a SID differs from that of ``codes``.

    With it ``reassign`` keeps as many codes as it can.
    """

    def costs(rows: np.ndarray, given: np.ndarray, level: int) -> np.ndarray:
        before = (given[:, :level] != codes[rows, :level]).sum(axis=1, dtype=np.float64)
        here = np.arange(sizes[level])[None] != codes[rows, level, None]
        return before[:, None] + here

    return costs


def reassign(
    codes: np.ndarray, sizes: tuple[int, ...], costs: Costs | None = None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """New codes of the last level, so that no two items share a SID, with the least total cost inside each prefix.

    Args:
        codes: (N, L) int64.
        sizes: codes on each level.
        costs: what a code costs an item; without it, the number of codes that change.

    Returns codes (N, L), one to one with the items, and the same sizes. Raises ``ValueError`` where too many items
    share their codes up to the third-to-last level to have a SID each, and for costs that are not finite.
    """
    if len(codes) > math.prod(sizes):
        raise ValueError(
            f"reassign: {len(codes)} items, but levels of {sizes} codes make {math.prod(sizes)} SIDs; use more codes "
            "or levels, or collisions='extra_level'"
        )
    return assign_last_level(codes, sizes, np.zeros(len(codes), bool), costs), sizes


def assign_last_level(
    codes: np.ndarray, sizes: tuple[int, ...], fixed: np.ndarray, costs: Costs | None = None
) -> np.ndarray:
    """``reassign`` for the items that are not ``fixed`` (N,) bool; the others keep their SIDs, whatever these are."""
    costs = changed_levels(codes, sizes) if costs is None else costs
    codes = codes.copy()
    prefix = _prefix_numbers(codes[:, :-1], sizes[:-1])
    crowded = _crowded(codes[:, -1], prefix, fixed, sizes[-1])
    rows = np.flatnonzero(crowded[prefix] & ~fixed)
    rows = rows[np.argsort(prefix[rows], kind="stable")]
    used = _used(codes, prefix, np.setdiff1d(np.flatnonzero(crowded[prefix]), rows), sizes[-1])
    overflowing = []
    for first, end in _batches(np.flatnonzero(np.diff(prefix[rows], prepend=-1)), len(rows), sizes[-1]):
        part = rows[first:end]
        matrix = _checked(costs(part, codes[part], codes.shape[1] - 1), (len(part), sizes[-1]))
        starts = np.append(np.flatnonzero(np.diff(prefix[part], prepend=-1)), len(part))
        for begin, stop in itertools.pairwise(starts):
            free = np.flatnonzero(~used.get(int(prefix[part[begin]]), np.zeros(sizes[-1], bool)))
            if stop - begin > len(free):
                overflowing.append((part[begin:stop], free))
                continue
            chosen = _assign(matrix[begin:stop][:, free])
            codes[part[begin:stop], -1] = free[chosen]
    waiting = np.zeros(len(codes), bool)
    for members, _ in overflowing:
        waiting[members] = True
    if overflowing:
        families = _families(codes, sizes)
    for members, free in overflowing:
        _spill(codes, sizes, members, free, families(int(members[0])), waiting, costs)
        waiting[members] = False
    return codes


def _families(codes: np.ndarray, sizes: Sequence[int]) -> Callable[[int], np.ndarray]:
    """Given an item, all items (n,) with its codes up to the third-to-last level; grouped once, since these stay."""
    family = _prefix_numbers(codes[:, :-2], sizes[:-2])
    order = np.argsort(family, kind="stable")
    starts = np.append(0, np.cumsum(np.bincount(family)))
    return lambda item: order[starts[family[item]] : starts[family[item] + 1]]


def _spill(
    codes: np.ndarray,
    sizes: tuple[int, ...],
    rows: np.ndarray,
    free: np.ndarray,
    family: np.ndarray,
    waiting: np.ndarray,
    costs: Costs,
) -> None:
    """Assigns the items ``rows`` (n,) of one prefix, too many for its ``free`` codes, also to sibling prefixes.

    Siblings come in the order of what their code costs on the second-to-last level, averaged over the items, as many as
    are needed, and their items are among ``family``; rows that are ``waiting`` (N,) have no place yet. Writes into
    ``codes``.
    """
    levels, own = codes.shape[1], codes[rows[0]].copy()
    targets = [(int(own[-2]) if levels > 1 else 0, free)]
    room = len(free)
    if levels > 1:
        siblings, reserved = family[~waiting[family]], family[waiting[family]]
        taken = np.zeros(sizes[-2:], bool)
        taken[codes[siblings, -2], codes[siblings, -1]] = True
        # A sibling that overflows as well keeps its place for its own items.
        taken[codes[reserved, -2]] = True
        taken[own[-2]] = True
        price = _checked(costs(rows, codes[rows], levels - 2), (len(rows), sizes[-2])).mean(axis=0)
        for code in np.argsort(price, kind="stable"):
            if room >= len(rows):
                break
            open_codes = np.flatnonzero(~taken[code])
            if len(open_codes):
                targets.append((int(code), open_codes))
                room += len(open_codes)
    if room < len(rows):
        where = f"share the codes {own[:-1].tolist()}" if levels > 1 else "have one level alone"
        raise ValueError(
            f"reassign: {len(rows)} items {where} and only {room} SIDs are free for them, also in the prefixes beside "
            f"that one; first item numbers {rows[:5].tolist()}. Use more codes or levels, collisions='extra_level', or "
            "drop items whose texts are equal"
        )
    parts = []
    for code, open_codes in targets:
        there = codes[rows]
        if levels > 1:
            there[:, -2] = code
        parts.append(_checked(costs(rows, there, levels - 1), (len(rows), sizes[-1]))[:, open_codes])
    columns = np.concatenate([np.stack([np.full(len(o), c), o], axis=1) for c, o in targets])
    chosen = columns[_assign(np.concatenate(parts, axis=1))]
    codes[rows, -1] = chosen[:, 1]
    if levels > 1:
        codes[rows, -2] = chosen[:, 0]


def total_cost(codes: np.ndarray, sizes: Sequence[int], costs: Costs) -> float:
    """Sum over all items of what their last code costs, given their codes before it."""
    total = 0.0
    step = max(1, COST_ENTRIES // sizes[-1])
    for start in range(0, len(codes), step):
        rows = np.arange(start, min(start + step, len(codes)))
        matrix = _checked(costs(rows, codes[rows], codes.shape[1] - 1), (len(rows), sizes[-1]))
        total += float(matrix[np.arange(len(rows)), codes[rows, -1]].sum())
    return total


def _prefix_numbers(prefixes: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Number (N,) of each row of (N, L - 1), in the order of the rows; all 0 where the last level is the only one."""
    if not sizes:
        return np.zeros(len(prefixes), np.int64)
    return np.unique(pack_rows(prefixes, sizes), return_inverse=True)[1].reshape(-1)


def _crowded(last: np.ndarray, prefix: np.ndarray, fixed: np.ndarray, size: int) -> np.ndarray:
    """By prefix, whether an item that is not fixed shares its SID with another one."""
    _, leaf, counts = np.unique(prefix * size + last, return_inverse=True, return_counts=True)
    crowded = np.zeros(int(prefix.max()) + 1, bool)
    crowded[prefix[(counts[leaf.reshape(-1)] > 1) & ~fixed]] = True
    return crowded


def _used(codes: np.ndarray, prefix: np.ndarray, rows: np.ndarray, size: int) -> dict[int, np.ndarray]:
    """By prefix, which codes of the last level the given rows hold: (K,) bool."""
    numbers, place = np.unique(prefix[rows], return_inverse=True)
    held = np.zeros((len(numbers), size), bool)
    held[place.reshape(-1), codes[rows, -1]] = True
    return dict(zip(numbers.tolist(), held))


def _batches(starts: np.ndarray, end: int, width: int) -> list[tuple[int, int]]:
    """Whole groups of rows, which begin at ``starts``, cut into batches of about ``COST_ENTRIES`` entries."""
    out: list[tuple[int, int]] = []
    first = 0
    for start, stop in zip(starts, np.append(starts[1:], end)):
        if (stop - first) * width > COST_ENTRIES and start > first:
            out.append((first, int(start)))
            first = int(start)
    return [*out, (first, end)] if end > first else out


def _assign(matrix: np.ndarray) -> np.ndarray:
    """Column (n,) of each row of costs (n, m), n <= m, all different and with the least sum."""
    from scipy.optimize import linear_sum_assignment

    return np.asarray(linear_sum_assignment(matrix)[1])


def _checked(matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Costs as float64 of the shape asked for, all finite."""
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape != shape:
        raise ValueError(f"reassign: expected costs of shape {shape}, got {matrix.shape}; see Costs")
    if not np.isfinite(matrix).all():
        raise ValueError("reassign: costs that are not finite; the embeddings or codebooks hold NaN or infinities")
    return matrix
