"""Collisions: items whose codes are all equal, and what to do about them (docs/semantic_ids.md).

A policy is ``(codes, sizes) -> (codes, sizes)``; one that takes a third argument is given ``Costs`` (``reassign``).
``resolve_collisions`` counts before and after, so that no policy works silently. Left out: balanced assignment
(Sinkhorn), which can be given as ``package.module:name``; and new items of a finished table (``extension``).
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sidgym.sid.reassign import Costs, reassign, total_cost
from sidgym.sid.registry import resolve
from sidgym.sid.trie import check_codes, pack_rows

Resolver = Callable[..., tuple[np.ndarray, tuple[int, ...]]]
"""Takes codes (N, L) int64, L sizes and, if it wants them, ``Costs`` or None; gives codes of the same N items and their
sizes."""


def leaf_counts(codes: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Leaf number of each item (N,) in the order of the codes, and items of each leaf (leaves,)."""
    _, leaf, counts = np.unique(pack_rows(codes, sizes), return_inverse=True, return_counts=True)
    return leaf.reshape(-1), counts


def number_in_group(group: np.ndarray) -> np.ndarray:
    """0, 1, 2 ... inside each group of equal values (N,), in the order of the rows: (N,) int64."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    number = np.empty(len(group), np.int64)
    number[order] = np.arange(len(group)) - np.searchsorted(ordered, ordered)
    return number


def extra_level(codes: np.ndarray, sizes: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """One more level that counts 0, 1, 2 ... inside each collision, by item number; every item gets it (TIGER).

    Returns codes (N, L + 1), one to one with the items, and L + 1 sizes.
    """
    leaf, counts = leaf_counts(codes, sizes)
    return np.column_stack([codes, number_in_group(leaf)]), (*sizes, int(counts.max()))


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


COLLISIONS: dict[str, Resolver] = {"extra_level": extra_level, "keep": keep, "forbid": forbid, "reassign": reassign}


def resolve_collisions(
    codes: np.ndarray, sizes: Sequence[int], policy: str, costs: Costs | None = None
) -> tuple[np.ndarray, tuple[int, ...], dict[str, Any]]:
    """Apply a collision policy and report what it met.

    Args:
        codes: (N, L) integers.
        sizes: number of codes on each level.
        policy: name in ``COLLISIONS``, or ``package.module:name``.
        costs: what a code costs an item, for policies that weigh codes; without them ``reassign`` changes as few codes
            as it can.

    Returns the new codes (N, L') int64, the new sizes (L'), and a report: ``policy``; ``items``; before the policy
    ``colliding_items`` (items that share their SID), ``distinct_sids`` and ``largest_leaf``; after it
    ``colliding_items_after``. A policy that takes costs adds ``changed_items`` (whose given codes differ now),
    ``changed_prefixes`` (of these, on more than the last level) and, with costs, ``distortion_before`` and
    ``distortion_after``: means over all items of what their last code costs.
    """
    codes, sizes = check_codes(codes, sizes)
    resolver: Resolver = resolve("collision policy", policy, COLLISIONS)
    weighs = takes_costs(resolver)
    _, before = leaf_counts(codes, sizes)
    changed, new_sizes = check_codes(*(resolver(codes, sizes, costs) if weighs else resolver(codes, sizes)))
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
    if weighs and changed.shape == codes.shape:
        differs = changed != codes
        report["changed_items"] = int(differs.any(axis=1).sum())
        report["changed_prefixes"] = int(differs[:, :-1].any(axis=1).sum())
        if costs is not None:
            report["distortion_before"] = total_cost(codes, sizes, costs) / len(codes)
            report["distortion_after"] = total_cost(changed, new_sizes, costs) / len(codes)
    return changed, new_sizes, report


def takes_costs(resolver: Resolver) -> bool:
    """Whether a policy has a third argument."""
    return len(inspect.signature(resolver).parameters) >= 3
