"""New items for a finished item-code table: the SIDs that exist never change, new items get free ones.

Each collision policy says here how it places items beside those that are fixed. Left out: how new items get codes
(a saved tokeniser's ``encode``) and the policy's new embedding rows (``agents.grow``).

Symbols: N old items, M new ones, L levels of the table, L' levels of the tokeniser.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sidgym.sid.collisions import COLLISIONS, leaf_counts, number_in_group, takes_costs
from sidgym.sid.reassign import Costs, assign_last_level, changed_levels, total_cost
from sidgym.sid.registry import resolve
from sidgym.sid.trie import check_codes, pack_rows

if TYPE_CHECKING:
    from sidgym.sid.table import SidTable

Placed = tuple[np.ndarray, tuple[int, ...]]
"""Codes (M, L) of the new items, and L sizes."""

Placer = Callable[[np.ndarray, np.ndarray, tuple[int, ...], Costs], Placed]
"""Takes old codes (N, L), new codes (M, L'), the sizes of all levels of both, and the new items' costs."""


def count_on(old: np.ndarray, new: np.ndarray, sizes: tuple[int, ...], costs: Costs) -> Placed:
    """``extra_level``: the last level goes on counting inside each collision, in the order of the new items."""
    key = pack_rows(np.concatenate([old[:, :-1], new]), sizes[:-1])
    _, leaf = np.unique(key, return_inverse=True)
    leaf = leaf.reshape(-1)
    taken = np.zeros(int(leaf.max()) + 1, np.int64)
    np.maximum.at(taken, leaf[: len(old)], old[:, -1] + 1)
    mine = leaf[len(old) :]
    place = number_in_group(mine) + taken[mine]
    return np.column_stack([new, place]), (*sizes[:-1], max(sizes[-1], int(place.max()) + 1))


def share(old: np.ndarray, new: np.ndarray, sizes: tuple[int, ...], costs: Costs) -> Placed:
    """``keep``: new items may share a SID with one another and with old ones."""
    return new, sizes


def refuse(old: np.ndarray, new: np.ndarray, sizes: tuple[int, ...], costs: Costs) -> Placed:
    """``forbid``: a new item on a SID that is taken raises ``ValueError``."""
    _, leaf, counts = np.unique(pack_rows(np.concatenate([old, new]), sizes), return_inverse=True, return_counts=True)
    clash = np.flatnonzero(counts[leaf.reshape(-1)[len(old) :]] > 1)
    if len(clash):
        raise ValueError(
            f"collisions are forbidden, but {len(clash)} of {len(new)} new items share a SID, first new items "
            f"{clash[:5].tolist()}. Leave them out, or build the table again with another collision policy"
        )
    return new, sizes


def fill_gaps(old: np.ndarray, new: np.ndarray, sizes: tuple[int, ...], costs: Costs) -> Placed:
    """``reassign``: new items that collide share out the free codes of their prefix at the least cost."""
    fixed = np.arange(len(old) + len(new)) < len(old)

    def shifted(rows: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
        return costs(rows - len(old), codes, level)

    return assign_last_level(np.concatenate([old, new]), sizes, fixed, shifted)[len(old) :], sizes


PLACERS: dict[str, Placer] = {"extra_level": count_on, "keep": share, "forbid": refuse, "reassign": fill_gaps}


def extended(
    table: "SidTable",
    item_ids: Sequence[str] | np.ndarray,
    codes: np.ndarray,
    costs: Costs | None = None,
    collisions: str = "",
    sizes: Sequence[int] | None = None,
    provenance: dict[str, Any] | None = None,
) -> "SidTable":
    """``SidTable.extend``, whose docstring says what it does."""
    from sidgym.sid.table import SidTable

    ids = np.asarray(item_ids, dtype=str)
    policy = collisions or table_policy(table)
    resolver = resolve("collision policy", policy, COLLISIONS)
    levels = table.levels - (policy == "extra_level")
    codes, given = check_codes(codes, _room(codes, sizes))
    if codes.shape != (len(ids), levels):
        counting = ", the last of them counts collisions" if policy == "extra_level" else ""
        raise ValueError(
            f"extend: expected codes of shape ({len(ids)}, {levels}) for a table of {table.levels} levels{counting}; "
            f"got {codes.shape}. Encode the items with the tokeniser that made the table"
        )
    both = np.concatenate([table.item_ids, ids])
    repeated = np.isin(ids, table.item_ids)
    if repeated.any():
        raise ValueError(f"extend: {int(repeated.sum())} items are in the table already, first {ids[repeated][:5]}")
    grown = tuple(max(old, new) for old, new in zip(table.sizes, given)) + table.sizes[levels:]
    weigh = changed_levels(codes, grown) if costs is None else costs
    if policy in PLACERS:
        placed, grown = PLACERS[policy](table.codes, codes, grown, weigh)
    else:
        placed, grown = _by_resolver(resolver, policy, table.codes, codes, grown)
    report = _report(table, codes, placed, grown, policy, costs)
    metadata = {
        **table.metadata,
        "extensions": [*table.metadata.get("extensions", []), {**report, **(provenance or {})}],
    }
    return SidTable(np.concatenate([table.codes, placed]), grown, both, metadata)


def table_policy(table: "SidTable") -> str:
    """The collision policy that a table was made with. ``ValueError`` where its metadata does not say."""
    policy = table.metadata.get("collisions", {}).get("policy", "")
    if not policy:
        raise ValueError(
            "the table does not say how collisions were resolved; give collisions, one of "
            f"{', '.join(sorted(COLLISIONS))}"
        )
    return str(policy)


def check_extends(old: "SidTable", new: "SidTable") -> None:
    """Raises ``ValueError`` unless ``new`` holds the items of ``old`` first, with the SIDs that they had."""
    if new.levels != old.levels or any(after < before for before, after in zip(old.sizes, new.sizes)):
        raise ValueError(
            f"expected a table of {old.levels} levels with at least {old.sizes} codes, got {new.sizes}: levels and "
            "codes can be added to, not taken away; train anew"
        )
    count = old.num_items
    if new.num_items < count or not np.array_equal(new.item_ids[:count], old.item_ids):
        raise ValueError(f"expected the {count} items of the old table first, in their order; use SidTable.extend")
    moved = np.flatnonzero((new.codes[:count] != old.codes).any(axis=1))
    if len(moved):
        raise ValueError(
            f"{len(moved)} items have another SID than before, first {old.item_ids[moved][:5].tolist()}; a policy that "
            "learned the old ones would take them for other items. Use SidTable.extend"
        )


def _room(codes: np.ndarray, sizes: Sequence[int] | None) -> Sequence[int]:
    """Sizes of the tokeniser's levels: as given, else as many as the new codes need."""
    if sizes is not None:
        return sizes
    codes = np.asarray(codes)
    return tuple(codes.max(axis=0).clip(min=0) + 1) if codes.ndim == 2 and codes.size else ()


def _by_resolver(resolver: Any, policy: str, old: np.ndarray, new: np.ndarray, sizes: tuple[int, ...]) -> Placed:
    """A policy from outside the tree resolves all items; it must leave the old ones where they are."""
    if takes_costs(resolver):
        raise ValueError(
            f"collision policy {policy!r} weighs codes, so that it cannot be asked to leave the old items alone; give "
            f"collisions, one of {', '.join(sorted(PLACERS))}, for the new items"
        )
    whole, grown = check_codes(*resolver(np.concatenate([old, new]), sizes))
    if not np.array_equal(whole[: len(old)], old):
        raise ValueError(
            f"collision policy {policy!r} changed SIDs of old items; give collisions, one of "
            f"{', '.join(sorted(PLACERS))}, for the new items"
        )
    return whole[len(old) :], grown


def _report(
    table: "SidTable",
    wanted: np.ndarray,
    placed: np.ndarray,
    sizes: tuple[int, ...],
    policy: str,
    costs: Costs | None,
) -> dict[str, Any]:
    """What the metadata keeps of one extension."""
    _, counts = leaf_counts(np.concatenate([table.codes, placed]), sizes)
    differs = placed[:, : wanted.shape[1]] != wanted
    report: dict[str, Any] = {
        "policy": policy,
        "items": len(placed),
        "first_row": table.num_items,
        "base_hash": table.content_hash(),
        "sizes_before": list(table.sizes),
        "sizes_after": list(sizes),
        "changed_items": int(differs.any(axis=1).sum()),
        "colliding_items_after": int(counts[counts > 1].sum()),
    }
    if costs is not None and placed.shape == wanted.shape:
        report["distortion_before"] = total_cost(wanted, sizes, costs) / len(placed)
        report["distortion_after"] = total_cost(placed, sizes, costs) / len(placed)
    return report
