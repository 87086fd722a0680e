"""What a list may hold and how it is judged: the same for every system.

Where no user of the training sequences takes an item twice, no target stands in its user's history either, and a place
that an item of the history gets is lost. Such items are then left out of every list, as item-kNN does in its paper and
much of the field in its tables; a log with repeats keeps them. Training alone decides which it is. History means the
context's: items that it was too short for may still be listed. Left out: metrics by segment (``envs.segments``).

Symbols: B contexts, T history length, K ranked places, C items of a place.
"""

from collections.abc import Callable

import numpy as np

from sidgym.benchmarks.baselines.protocol import BaselineData
from sidgym.envs.metrics import ndcg
from sidgym.envs.records import PAD_ITEM, Episodes

SPARE = 30
"""Places that are ranked beyond those that are judged, since items of the history go. A user of whose history more than
these are ranked first has a shorter list; systems that search with beams would pay for more."""

Rank = Callable[[np.ndarray, int], np.ndarray]


def asked(places: int, num_items: int, spare: int = SPARE) -> int:
    """How many places to rank where so many are judged."""
    return min(places + spare, num_items)


def allowed_places(items: np.ndarray, history: np.ndarray, k: int, repeats: bool) -> np.ndarray:
    """The first ``k`` of ranked items (B, K) that may be listed after histories (B, T): (B, min(k, K)).

    With ``repeats`` all may; else those of the history are left out, and PAD_ITEM fills the end.
    """
    if repeats:
        return items[:, :k]
    return without_history(items[:, :, None], history)[:, :k, 0]


def without_history(items: np.ndarray, history: np.ndarray) -> np.ndarray:
    """Ranked groups of items (B, K, C) without those of histories (B, T): (B, K, C).

    PAD_ITEM fills the end of a group, whose items are in descending order; empty groups come last.
    """
    known = history[:, (history != PAD_ITEM).any(axis=0)]
    out = np.zeros(items.shape, dtype=bool)
    for column in known.T:  # one at a time, as (B, K, C, T) values would fill the memory
        out |= items == column[:, None, None]
    left = -np.sort(-np.where(out, PAD_ITEM, items), axis=2)
    order = np.argsort((left == PAD_ITEM).all(axis=2), axis=1, kind="stable")
    return np.take_along_axis(left, order[:, :, None], axis=1)


def judged(rank: Rank, contexts: Episodes, data: BaselineData, places: int = 10, spare: int = SPARE) -> float:
    """NDCG@10 of the lists of ``places`` that a baseline gives for ``contexts``."""
    ranked = rank(contexts.history, asked(places, data.num_items, spare))
    return float(ndcg(allowed_places(ranked, contexts.history, places, data.repeats), contexts.target, 10).mean())
