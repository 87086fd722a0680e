"""Training examples of preference models: pages of items, what came of each, and what the user had liked before.

Where a log tells what was shown and ignored, a page is what was shown together. A log of positive events alone has no
refusals: there each event is a page of its own, and its negatives are drawn at random from the catalogue, from the
other pages of a batch, or both (``NegativeSampler``, ``training``); a model's report says which.

A history is a range of one flat array, cut into a window when a batch needs it, so that histories of 10 000 items cost
no memory. Symbols: E events, P pages, S places a page, L liked items in all, B pages of a batch, N items.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from sidgym.envs.impressions import rank_within
from sidgym.envs.preference.data import PreferenceData
from sidgym.envs.records import CLICK, PAD_ITEM, Interactions

WIDEST = 32
"""Places of a page; a longer one is cut into several with the same history, so that one of them does not widen all."""

REDRAWS = 8
"""Times that a negative is drawn again which the user has liked; what then still is one is left out."""


@dataclass(frozen=True)
class NegativeSampler:
    """Items drawn at random that the user is not known to like."""

    count: int  # a positive
    name: str  # "uniform" or "popularity"
    edges: np.ndarray  # (N,) float64 cumulated probabilities
    liked: np.ndarray  # sorted int64 keys user * N + item of what users are known to like

    def fitted_on(self, items: np.ndarray) -> "NegativeSampler":
        """The same sampler with the popularity of these positive items alone, such as those of training users."""
        return self if self.name == "uniform" else replace(self, edges=_edges(items, len(self.edges), self.name))

    def likes(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Whether the users are known to like the items; shapes broadcast."""
        key = user * len(self.edges) + item
        place = np.searchsorted(self.liked, key)
        return self.liked[np.minimum(place, len(self.liked) - 1)] == key

    def draw(self, user: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(P,) users to (P, count) items; PAD_ITEM where only liked ones were drawn."""
        users = np.repeat(user, self.count)
        items = np.full(len(users), PAD_ITEM, dtype=np.int64)
        open_ = np.arange(len(users))
        for _ in range(1 + REDRAWS):
            point = rng.random(len(open_)) * self.edges[-1]
            # Rounding may put a point on the last edge.
            drawn = np.minimum(np.searchsorted(self.edges, point, side="right"), len(self.edges) - 1)
            fine = ~self.likes(users[open_], drawn)
            items[open_[fine]] = drawn[fine]
            open_ = open_[~fine]
        return items.reshape(len(user), self.count)


@dataclass(frozen=True)
class Examples:
    """Pages of a log. With a ``sampler`` they hold one positive each until ``drawn`` adds negatives."""

    liked: np.ndarray  # (L,) int64 positives of the log, sorted by user and order
    begin: np.ndarray  # (P,) int64 the first of the page's user in ``liked``
    end: np.ndarray  # (P,) int64 one past the last one before the page
    user: np.ndarray  # (P,) int64
    items: np.ndarray  # (P, S) int64, PAD_ITEM where there is none
    position: np.ndarray  # (P, S) int64 place on the page, 0 at padding
    labels: Mapping[str, np.ndarray]  # (P, S) float32 each, 0 at padding; "engaged" always
    sampler: NegativeSampler | None = None

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> "Examples":
        """The given pages (boolean mask or indices)."""
        names = ("begin", "end", "user", "items", "position")
        labels = {name: value[rows] for name, value in self.labels.items()}
        return replace(self, labels=labels, **{name: getattr(self, name)[rows] for name in names})

    def history(self, rows: np.ndarray, most: int) -> np.ndarray:
        """The last ``most`` positives before each of the given pages, (B, T) with T at most ``most``, PAD_ITEM left."""
        begin, end = self.begin[rows], self.end[rows]
        width = int(min(most, max(1, (end - begin).max(initial=1))))
        place = end[:, None] + np.arange(-width, 0)
        real = place >= begin[:, None]
        if not real.any():
            return np.full(place.shape, PAD_ITEM, dtype=np.int64)
        return np.where(real, self.liked[np.where(real, place, 0)], PAD_ITEM)

    def drawn(self, rng: np.random.Generator) -> "Examples":
        """The pages with fresh negatives behind each positive; pages that were shown are as they are."""
        if self.sampler is None:
            return self
        negatives = self.sampler.draw(self.user, rng)
        items = np.concatenate([self.items, negatives], axis=1)
        zeros = np.zeros(negatives.shape, dtype=np.float32)
        labels = {name: np.concatenate([value, zeros], axis=1) for name, value in self.labels.items()}
        return replace(self, items=items, position=np.zeros_like(items), labels=labels, sampler=None)


def tells_refusals(log: Interactions) -> bool:
    """Whether a log holds anything that was shown and not engaged with."""
    return log.feedback is not None and bool((log.feedback < CLICK).any())


def impression_examples(
    data: PreferenceData, labels: Mapping[str, np.ndarray] | None = None, keep: np.ndarray | None = None
) -> Examples:
    """Pages that were shown, with what was ignored.

    ``labels`` are (events of ``data.log``,) each, and so is ``keep``: other events are left out of the pages, but not
    of the histories. Without ``page`` every event is a page of its own, without ``position`` the place is the event's
    rank on its page. Raises ``ValueError`` for a log of positive events only.
    """
    log = data.log
    if log.feedback is None:
        raise ValueError(
            "negatives = 'impressions' needs items that were shown and ignored, but this data set has positive events "
            "only (Interactions.feedback is None); use 'uniform', 'popularity', 'in_batch' or 'mixed'"
        )
    positive = log.feedback >= CLICK
    first, label = _pages(log)
    place = rank_within(label)
    # Cut long pages; each part keeps the page's first row, and so its history.
    parts, label_of_part, part = np.unique(
        label * (len(log) + 1) + place // WIDEST, return_index=True, return_inverse=True
    )
    column = place % WIDEST
    shape = (len(parts), int(column.max()) + 1)
    starts = first[label[label_of_part]]
    columns = {"engaged": positive, **(labels or {})}
    kept = np.ones(len(log), dtype=bool) if keep is None else keep

    def laid_out(values: np.ndarray, padding: int, dtype: type) -> np.ndarray:
        out: np.ndarray = np.full(shape, padding, dtype=dtype)
        out[part, column] = values
        return out

    begin, end = _before(log.user, positive, starts)
    position = place if log.position is None else log.position
    wrong = np.flatnonzero(position < 0)
    if len(wrong):
        row = wrong[0]
        raise ValueError(
            f"position of user {log.user[row]} and item {log.item[row]} (order {log.order[row]}) is {position[row]}; "
            "expected places from 0"
        )
    pages = Examples(
        liked=log.item[positive],
        begin=begin,
        end=end,
        user=log.user[starts],
        items=laid_out(np.where(kept, log.item, PAD_ITEM), PAD_ITEM, np.int64),
        position=laid_out(position, 0, np.int64),
        labels={name: laid_out(values * kept, 0, np.float32) for name, values in columns.items()},
    )
    return pages if keep is None else pages.take((pages.items != PAD_ITEM).any(axis=1))


def implicit_examples(data: PreferenceData, negatives: int, sampling: str = "uniform") -> Examples:
    """Every positive event as a page of one item, with a sampler of its negatives.

    ``sampling`` is ``uniform`` over the catalogue, or ``popularity``: in proportion to (1 + positives) ** 0.75, where
    the 1 lets items be drawn that nobody liked yet, whose scores nothing else would hold down.
    """
    if sampling not in ("uniform", "popularity"):
        raise ValueError(f"sampling: expected 'uniform' or 'popularity', got {sampling!r}")
    log = data.log.positives()
    if not len(log):
        raise ValueError("a preference model needs positive events, but the training users have none")
    first, label = _pages(log)
    begin, end = _before(log.user, np.ones(len(log), dtype=bool), first[label])
    edges = _edges(log.item, data.num_items, sampling)
    sampler = NegativeSampler(negatives, sampling, edges, np.unique(log.user * data.num_items + log.item))
    items = log.item[:, None]
    labels = {"engaged": np.ones(items.shape, dtype=np.float32)}
    return Examples(log.item, begin, end, log.user, items, np.zeros_like(items), labels, sampler)


def _edges(items: np.ndarray, count: int, sampling: str) -> np.ndarray:
    """Cumulated weights (N,) of ``count`` items, given the positive ones."""
    weight = 1.0 + np.bincount(items, minlength=count) if sampling == "popularity" else np.ones(count)
    return np.cumsum(weight**0.75)


def hold_out(examples: Examples, share: float, rng: np.random.Generator) -> tuple[Examples, Examples, Examples]:
    """Pages of most users, of users for early stopping and calibration, and of users for the report.

    ``share`` of the users are held out, half of them for each purpose; all parts draw negatives by the popularity among
    the others. Raises ``ValueError`` when a part would be
    empty.
    """
    users = rng.permutation(np.unique(examples.user))
    held = max(2, round(share * len(users)))
    if held >= len(users):
        raise ValueError(
            f"fit: expected at least 3 users, of whom a share {share} is held out in two parts; got {len(users)} users"
        )
    group = np.zeros(len(users), dtype=np.int64)
    group[:held] = 1 + np.arange(held) % 2
    of_page = group[np.argsort(users)][np.searchsorted(np.sort(users), examples.user)]
    if examples.sampler is not None:
        examples = replace(examples, sampler=examples.sampler.fitted_on(examples.items[of_page == 0, 0]))
    train, stop, judge = (examples.take(of_page == number) for number in range(3))
    return train, stop, judge


def _pages(log: Interactions) -> tuple[np.ndarray, np.ndarray]:
    """First row (P,) and page (E,) of each event. Page numbers need not be ordered or contiguous."""
    if log.page is None:
        return np.arange(len(log)), np.arange(len(log))
    return grouped(log.user, log.page)


def grouped(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First row (P,) and number (n,) of each different pair of values (n,), numbered in their order."""
    left, right = (np.unique(values, return_inverse=True)[1].reshape(-1) for values in (one, two))
    # One key a pair: many times faster than unique columns. Below n * n, so it fits.
    key = left * (right.max(initial=0) + 1) + right
    _, first, label = np.unique(key, return_index=True, return_inverse=True)
    return first, label.reshape(-1)


def _before(user: np.ndarray, positive: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positives of the same user before each row of a log sorted by user, as a range of all positives."""
    before = np.append(0, np.cumsum(positive))
    return before[np.searchsorted(user, user[rows], side="left")], before[rows]
