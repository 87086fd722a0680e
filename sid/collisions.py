"""Collisions: items whose codes are all equal, and what to do about them (method: Semantic IDs).

A policy is ``(codes, sizes) -> (codes, sizes)``; ``resolve_collisions`` counts before and after, so that no policy
works silently. Left out: balanced assignment (Sinkhorn) and min-cost reassignment of the last level; either can be
given as ``package.module:name``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sidgym.sid.registry import resolve
from sidgym.sid.trie import check_codes, pack_rows

Resolver = Callable[[np.ndarray, tuple[int, ...]], tuple[np.ndarray, tuple[int, ...]]]
"""Takes codes (N, L) int64 and L sizes; gives codes of the same N items and their sizes."""


def leaf_counts(codes: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Leaf number of each item (N,) in the order of the codes, and items of each leaf (leaves,)."""
    _, leaf, counts = np.unique(pack_rows(codes, sizes), return_inverse=True, return_counts=True)
    return leaf.reshape(-1), counts


def extra_level(codes: np.ndarray, sizes: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """One more level that counts 0, 1, 2 ... inside each collision, by item number; every item gets it (TIGER).

    Returns codes (N, L + 1), one to one with the items, and L + 1 sizes.
    """
    leaf, counts = leaf_counts(codes, sizes)
    order = np.argsort(leaf, kind="stable")
    place = np.empty(len(codes), np.int64)
    place[order] = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.column_stack([codes, place]), (*sizes, int(counts.max()))


def keep(codes: np.ndarray, sizes: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Leave the codes as they are: several items share a SID, and rewards and metrics must average over them."""
    return codes, sizes


def forbid(codes: np.ndarray, sizes: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Leave the codes as they are, and raise ``ValueError`` when two items share a SID."""
    leaf, counts = leaf_counts(codes, sizes)
    colliding = int(counts[counts > 1].sum())
    if colliding:
        order = np.argsort(leaf, kind="stable")
        pairs = np.flatnonzero(leaf[order][1:] == leaf[order][:-1])[:5]
        named = ", ".join(f"({order[i]}, {order[i + 1]})" for i in pairs)
        raise ValueError(
            f"collisions are forbidden, but {colliding} of {len(codes)} items share a SID; first pairs of item "
            f"numbers: {named}. Use more levels or codes, or collisions='extra_level'."
        )
    return codes, sizes


COLLISIONS: dict[str, Resolver] = {"extra_level": extra_level, "keep": keep, "forbid": forbid}


def resolve_collisions(
    codes: np.ndarray, sizes: Sequence[int], policy: str
) -> tuple[np.ndarray, tuple[int, ...], dict[str, Any]]:
    """Apply a collision policy and report what it met.

    Args:
        codes: (N, L) integers.
        sizes: number of codes on each level.
        policy: name in ``COLLISIONS``, or ``package.module:name``.

    Returns the new codes (N, L') int64, the new sizes (L'), and a report: ``policy``; ``items``; before the policy
    ``colliding_items`` (items that share their SID), ``distinct_sids`` and ``largest_leaf``; after it
    ``colliding_items_after``.
    """
    codes, sizes = check_codes(codes, sizes)
    resolver: Resolver = resolve("collision policy", policy, COLLISIONS)
    _, before = leaf_counts(codes, sizes)
    changed, new_sizes = check_codes(*resolver(codes, sizes))
    if len(changed) != len(codes):
        raise ValueError(f"collision policy {policy!r}: expected codes of {len(codes)} items, got {len(changed)}")
    _, after = leaf_counts(changed, new_sizes)
    report = {
        "policy": policy,
        "items": len(codes),
        "colliding_items": int(before[before > 1].sum()),
        "distinct_sids": len(before),
        "largest_leaf": int(before.max()),
        "colliding_items_after": int(after[after > 1].sum()),
    }
    return changed, new_sizes, report
