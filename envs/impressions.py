"""Impressions: the pages of a log as a preference model reads them, with what the user had liked before each page.

Left out: play time, and the difference between clicks and orders; both count as engagement.

Symbols: E events, P pages, S places a page, T history length.
"""

from dataclasses import dataclass

import numpy as np

from sidgym.envs.records import CLICK, PAD_ITEM, Interactions


@dataclass(frozen=True)
class Impressions:
    """Pages of the log as the model reads them."""

    history: np.ndarray  # (P, T) int64 positives strictly before the page, oldest first, PAD_ITEM on the left
    items: np.ndarray  # (P, S) int64 shown items, PAD_ITEM on the right
    position: np.ndarray  # (P, S) int64 place on the page, 0 at padding
    engaged: np.ndarray  # (P, S) bool
    user: np.ndarray  # (P,) int64

    def take(self, rows: np.ndarray) -> "Impressions":
        """The given pages."""
        return Impressions(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def impressions(interactions: Interactions, users: np.ndarray, history: int) -> Impressions:
    """The pages of some users, with no other user's row read.

    Args:
        interactions: the log, with ``feedback``; without ``page`` every event is a page of its own, without
            ``position`` the place is the event's rank on its page.
        users: ids of the users to read.
        history: items of history kept, T.

    Raises ``ValueError`` for a log of positive events only, and when the users have no event.
    """
    if interactions.feedback is None:
        raise ValueError(
            "a preference model needs items that were shown and ignored, but this data set has positive events only "
            "(Interactions.feedback is None); use the rewards 'rule' and 'rank' instead"
        )
    rows = np.isin(interactions.user, users)
    log, positive = interactions.select(rows), interactions.feedback[rows] >= CLICK
    if not len(log):
        raise ValueError(f"impressions: none of the {len(users)} users has an event in the log")
    page = np.arange(len(log)) if log.page is None else log.page
    keys = np.stack([log.user, page])
    # A page starts at its first event; page numbers need not be ordered or contiguous.
    _, first, label = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    label = label.reshape(-1)
    place = rank_within(label)
    shape = (len(first), int(place.max()) + 1)
    items = np.full(shape, PAD_ITEM, dtype=np.int64)
    position = np.zeros(shape, dtype=np.int64)
    engaged = np.zeros(shape, dtype=bool)
    items[label, place] = log.item
    position[label, place] = place if log.position is None else log.position
    engaged[label, place] = positive
    past = _last_before(log.item, log.user, positive, first, history)
    return Impressions(past, items, position, engaged, log.user[first])


def rank_within(label: np.ndarray) -> np.ndarray:
    """Rank of each row among the rows of its label, in row order. (E,) -> (E,)."""
    order = np.argsort(label, kind="stable")
    counts = np.bincount(label)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(label)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank


def _last_before(item: np.ndarray, user: np.ndarray, positive: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """The last ``count`` positive items of the same user before each row of a log sorted by user. (P, count)."""
    before = np.append(0, np.cumsum(positive))
    user_start = before[np.searchsorted(user, user[rows], side="left")]
    place = before[rows][:, None] + np.arange(-count, 0)
    real = place >= user_start[:, None]
    liked = np.append(item[positive], PAD_ITEM)
    return np.where(real, liked[np.where(real, place, -1)], PAD_ITEM)
