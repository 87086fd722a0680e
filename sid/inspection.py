"""Figures on an item-code table: are the codes used, do they collide, and does a shared prefix mean anything.

All of them are exact and without a Python loop over items or events; a figure that the input cannot give is ``None``.
Left out: files, tables and pages, which are ``launch``'s.

Symbols: N items, L levels, K codes of a level, E events of a log; a prefix of depth d is an item's first d codes.
"""

from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import Any

import numpy as np

from sidgym.sid.collisions import leaf_counts
from sidgym.sid.trie import check_codes, pack_rows

COSTS = 2**24
"""Distances of items to a level's codes that are held at once."""

Figures = dict[str, Any]
"""JSON values by name."""


def perplexity(counts: np.ndarray) -> float:
    """``exp(-sum p log p)`` of shares ``p`` (K,) of ``counts``: K when all are equal, 1 when one has everything."""
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of ``counts`` (K,), zeros included: 0 when all are equal, (K - 1) / K when one has everything.

    ``G = sum_i (2 i - K - 1) c_(i) / (K sum c)`` over the counts in ascending order; 0 where they add up to nothing.
    """
    ordered = np.sort(np.asarray(counts, dtype=np.float64))
    total = ordered.sum()
    rank = 2.0 * np.arange(1, len(ordered) + 1) - len(ordered) - 1
    return float((rank * ordered).sum() / (len(ordered) * total)) if total else 0.0


def prefix_numbers(codes: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Number of each item's prefix by depth: (N, L) codes -> (L, N) int64.

    Row d - 1 counts the distinct prefixes of depth d from 0 on, in the order of their codes.
    """
    codes, sizes = check_codes(codes, sizes)
    order = np.argsort(pack_rows(codes, sizes), kind="stable")
    numbers = np.empty(codes.shape[::-1], np.int64)
    begins = np.zeros(len(codes), dtype=bool)
    for level in range(len(sizes)):
        column = codes[order, level]
        begins[1:] |= column[1:] != column[:-1]
        numbers[level, order] = np.cumsum(begins)
    return numbers


def level_figures(codes: np.ndarray, sizes: Sequence[int]) -> list[Figures]:
    """How evenly each level's codes are used, over all items and whatever codes come before.

    One entry a level: ``level`` (its letter), ``codes`` K, ``used``, ``perplexity``, ``gini``, ``largest`` (items of
    the most used code).
    """
    codes, sizes = check_codes(codes, sizes)
    out = []
    for level, size in enumerate(sizes):
        counts = np.bincount(codes[:, level], minlength=size)
        out.append(
            {
                "level": ascii_lowercase[level],
                "codes": size,
                "used": int((counts > 0).sum()),
                "perplexity": perplexity(counts),
                "gini": gini(counts),
                "largest": int(counts.max()),
            }
        )
    return out


def collision_figures(codes: np.ndarray, sizes: Sequence[int], show: int = 20) -> Figures:
    """Items that share all their codes: how many, and the ``show`` largest ``groups`` of item numbers (rows)."""
    codes, sizes = check_codes(codes, sizes)
    leaf, counts = leaf_counts(codes, sizes)
    order, start = np.argsort(leaf, kind="stable"), np.cumsum(counts) - counts
    crowded = np.flatnonzero(counts > 1)
    largest = crowded[np.argsort(-counts[crowded], kind="stable")][:show]
    return {
        "items": len(codes),
        "distinct_sids": len(counts),
        "colliding_items": int(counts[crowded].sum()),
        "colliding_sids": len(crowded),
        "largest_leaf": int(counts.max()),
        "groups": [order[start[one] : start[one] + counts[one]].tolist() for one in largest],
    }


def branching_figures(numbers: np.ndarray) -> list[Figures]:
    """How many children the trie's nodes have, by depth 0 (the root) to L - 1.

    Args:
        numbers: (L, N) of ``prefix_numbers``.

    One entry a depth: ``depth``, ``nodes``, ``mean``, ``median`` and ``largest`` number of children, ``single_share``
    (nodes with one child: the code after them says nothing) and ``largest_subtree`` (items below the fullest node).
    """
    out = []
    above = np.zeros(numbers.shape[1], np.int64)
    for depth, below in enumerate(numbers):
        children = np.bincount(above[np.unique(below, return_index=True)[1]])
        out.append(
            {
                "depth": depth,
                "nodes": len(children),
                "mean": float(children.mean()),
                "median": float(np.median(children)),
                "largest": int(children.max()),
                "single_share": float((children == 1).mean()),
                "largest_subtree": int(np.bincount(above).max()),
            }
        )
        above = below
    return out


def category_agreement(numbers: np.ndarray, labels: np.ndarray) -> list[Figures]:
    """Do items that share a prefix share a category?

    For an item, the share of the other items of its prefix that have its label; averaged over the items that have such
    neighbours. ``chance`` is the same for neighbours picked from all items: what random codes give on average. Items
    without a label (-1) are passed over, as items and as neighbours.

    Args:
        numbers: (L, N) of ``prefix_numbers``.
        labels: (N,) integers, -1 for an item without one.

    One entry a depth 1 to L: ``depth``, ``items`` (with neighbours), ``share``, ``chance``, ``lift`` (their ratio).
    """
    known = labels >= 0
    label = np.unique(labels[known], return_inverse=True)[1].reshape(-1)
    of_label = np.bincount(label)
    out = []
    for depth, prefix in enumerate(numbers[:, known], start=1):
        of_prefix = np.bincount(prefix, minlength=1)
        both = _counts_of(prefix * max(len(of_label), 1) + label)
        has = of_prefix[prefix] > 1
        share = (both[has] - 1) / (of_prefix[prefix[has]] - 1)
        chance = (of_label[label[has]] - 1) / max(len(label) - 1, 1)
        out.append({"depth": depth, "items": int(has.sum()), **_compared(share, chance)})
    return out


def engagement_agreement(numbers: np.ndarray, user: np.ndarray, item: np.ndarray) -> list[Figures]:
    """Are items that share a prefix engaged with together?

    For an event (user u, item i), the share of u's other items that have i's prefix; averaged over the events of users
    with at least two items. ``chance`` is the same share in what all other users engaged with, i itself left out, so a
    prefix that is merely popular does not count as agreement. Of repeated (user, item) pairs one counts.

    Args:
        numbers: (L, N) of ``prefix_numbers``.
        user, item: (E,) int64, the log's positive events.

    One entry a depth 1 to L: ``depth``, ``events``, ``share``, ``chance``, ``lift`` (their ratio).
    """
    items = numbers.shape[1]
    pairs = np.unique(np.unique(user, return_inverse=True)[1].reshape(-1) * items + item)
    user, item = pairs // items, pairs % items
    of_user, of_item = np.bincount(user, minlength=1), np.bincount(item, minlength=items)
    others = of_user[user] - 1
    elsewhere = len(pairs) - of_user[user] - (of_item[item] - 1)
    usable = (others > 0) & (elsewhere > 0)
    out = []
    for depth, row in enumerate(numbers, start=1):
        prefix = row[item]
        both = _counts_of(user * (int(row.max()) + 1) + prefix)
        theirs = np.bincount(prefix, minlength=1)[prefix] - both - (of_item[item] - 1)
        share = (both[usable] - 1) / others[usable]
        out.append(
            {"depth": depth, "events": int(usable.sum()), **_compared(share, theirs[usable] / elsewhere[usable])}
        )
    return out


def _counts_of(keys: np.ndarray) -> np.ndarray:
    """How often each entry's key occurs, (n,)."""
    _, where, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return counts[where.reshape(-1)]


def _compared(share: np.ndarray, chance: np.ndarray) -> Figures:
    """Means of a share and of its chance level, and their ratio; ``None`` where there is nothing to average."""
    if not len(share):
        return {"share": None, "chance": None, "lift": None}
    mean, base = float(share.mean()), float(chance.mean())
    return {"share": mean, "chance": base, "lift": mean / base if base else None}


def popularity_figures(
    codes: np.ndarray, sizes: Sequence[int], numbers: np.ndarray, popularity: np.ndarray, show: int = 10
) -> Figures:
    """How engagement spreads over the subtrees.

    Args:
        codes, sizes: the table's.
        numbers: (L, N) of ``prefix_numbers``.
        popularity: (N,) events of each item.

    Returns ``events``; ``by_depth``: ``depth``, ``gini`` of events over the prefixes that exist, and of the most
    popular prefix ``largest_items`` and ``largest_events``, its shares of the items and of the events; ``top``: the
    ``show`` most popular codes of the first level with ``code``, ``items``, ``events`` and both shares.
    """
    popularity = np.asarray(popularity, dtype=np.float64)
    total, items = float(popularity.sum()), len(codes)
    by_depth = []
    for depth, prefix in enumerate(numbers, start=1):
        events, count = np.bincount(prefix, weights=popularity), np.bincount(prefix)
        most = int(events.argmax())
        by_depth.append(
            {
                "depth": depth,
                "gini": gini(events),
                "largest_items": float(count[most] / items),
                "largest_events": float(events[most] / total) if total else 0.0,
            }
        )
    events = np.bincount(codes[:, 0], weights=popularity, minlength=int(sizes[0]))
    count = np.bincount(codes[:, 0], minlength=int(sizes[0]))
    top = [
        {
            "code": int(code),
            "items": int(count[code]),
            "events": int(events[code]),
            "items_share": float(count[code] / items),
            "events_share": float(events[code] / total) if total else 0.0,
        }
        for code in np.argsort(-events, kind="stable")[:show]
        if count[code]
    ]
    return {"events": int(total), "by_depth": by_depth, "top": top}


def reconstruction_figures(tokenizer: Any, x: np.ndarray, codes: np.ndarray) -> list[Figures] | None:
    """What of the embeddings is left over after each level's codes; ``None`` for a tokeniser without codebooks.

    Args:
        tokenizer: fitted; ``costs(x, codes, level) -> (rows, K)`` are squared distances of what remains after the codes
            before ``level`` to each code of it. Where it quantises something else than ``x``, ``latent(x)`` is that.
        x: (N, D) embeddings.
        codes: (N, at least the tokeniser's L) the codes that the items really have, so that what a collision policy
            changed counts too; a level that it added is not read.

    One entry a level: ``level`` (its letter), ``error``, the mean squared distance that remains after it, in the space
    that is quantised, and ``share`` of the mean square there, which is what no code at all would leave.
    """
    if not hasattr(tokenizer, "costs"):
        return None
    levels = len(tokenizer.sizes)
    own = np.ascontiguousarray(codes[:, :levels])
    if own.shape[1] < levels or np.any(own >= np.asarray(tokenizer.sizes)):
        return None  # codes of another tokeniser, or codes that were added later
    errors, energy, step = np.zeros(levels), 0.0, max(1, COSTS // max(tokenizer.sizes))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        latent = tokenizer.latent(x[part]) if hasattr(tokenizer, "latent") else x[part]
        energy += float((np.asarray(latent, dtype=np.float64) ** 2).sum())
        for level in range(levels):
            costs = np.asarray(tokenizer.costs(x[part], own[part], level), dtype=np.float64)
            errors[level] += np.take_along_axis(costs, own[part, level, None], axis=1).sum()
    if not (np.isfinite(errors).all() and np.isfinite(energy)):
        raise ValueError(f"reconstruction: expected finite distances, got {errors.tolist()}; check the embeddings")
    return [
        {
            "level": ascii_lowercase[level],
            "error": float(error / len(x)),
            "share": float(error / energy) if energy else 0.0,
        }
        for level, error in enumerate(errors)
    ]


def telling_depth(categories: Sequence[Sequence[str]]) -> int:
    """The first depth of the category paths that tells items apart (every item of a shop may share its root); 0: none.

    An item whose path ends above that depth counts with what it has.
    """
    longest = max((len(path) for path in categories), default=0)
    depths = (d for d in range(1, longest + 1) if len({tuple(path[:d]) for path in categories if path}) > 1)
    return next(depths, 0)


def category_labels(categories: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Labels (N,) of the items by how much of their category's path counts: ``broad`` and ``fine``, -1 without one.

    ``broad`` is the path down to ``telling_depth``, ``fine`` the whole path. Empty where the paths tell nothing apart;
    only ``broad`` where both are the same.
    """
    depth = telling_depth(categories)
    if not depth:
        return {}
    broad, fine = _numbered([tuple(path[:depth]) for path in categories]), _numbered([tuple(p) for p in categories])
    return {"broad": broad} if broad.max() == fine.max() else {"broad": broad, "fine": fine}


def _numbered(paths: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Paths as numbers in the order in which they first occur, -1 for the empty one."""
    known: dict[tuple[str, ...], int] = {}
    return np.array([known.setdefault(path, len(known)) if path else -1 for path in paths], dtype=np.int64)


def inspect_codes(
    codes: np.ndarray,
    sizes: Sequence[int],
    labels: Mapping[str, np.ndarray] | None = None,
    events: tuple[np.ndarray, np.ndarray] | None = None,
    quantised: tuple[Any, np.ndarray] | None = None,
) -> Figures:
    """All figures of an item-code table.

    Args:
        codes: (N, L) integers.
        sizes: L.
        labels: (N,) category numbers by name, -1 for none; see ``category_labels``.
        events: users (E,) and items (E,) of the log's positive events.
        quantised: the fitted tokeniser and the embeddings (N, D) that it gave the codes to.

    Returns ``items``, ``sizes``, ``levels``, ``collisions``, ``branching``, and, ``None`` (``{}``) where the input for
    them is missing, ``reconstruction``, ``categories`` (by name), ``together`` and ``popularity``.
    Raises ``ValueError`` for codes, labels or events that do not fit.
    """
    codes, sizes = check_codes(codes, sizes)
    numbers = prefix_numbers(codes, sizes)
    for name, label in (labels or {}).items():
        if np.shape(label) != (len(codes),):
            raise ValueError(f"labels {name!r}: expected one for each of {len(codes)} items, got {np.shape(label)}")
    if events is not None and len(events[1]) and not 0 <= events[1].min() <= events[1].max() < len(codes):
        raise ValueError(f"events: expected items in [0, {len(codes)}), got {events[1].min()} to {events[1].max()}")
    if quantised is not None and len(quantised[1]) != len(codes):
        raise ValueError(f"embeddings: expected one for each of {len(codes)} items, got {len(quantised[1])}")
    if events is not None and not len(events[0]):
        events = None
    return {
        "items": len(codes),
        "sizes": list(sizes),
        "levels": level_figures(codes, sizes),
        "collisions": collision_figures(codes, sizes),
        "branching": branching_figures(numbers),
        "reconstruction": None if quantised is None else reconstruction_figures(*quantised, codes),
        "categories": {name: category_agreement(numbers, label) for name, label in (labels or {}).items()},
        "together": None if events is None else engagement_agreement(numbers, *events),
        "popularity": None
        if events is None
        else popularity_figures(codes, sizes, numbers, np.bincount(events[1], minlength=len(codes))),
    }
