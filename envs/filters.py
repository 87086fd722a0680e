"""Filters of a log: titles, time window, repeats, k-core, latest events; and the ledger of what each let through.

They are applied in this order. MiniOneRec's code, too, leaves out titles and the time outside the window before it
counts for the k-core; its appendix B names the 5-core first and the window second. What that appendix calls truncation
to ten is the history of each label (``data.history``), not ``data.max_events``. Every filter that is set leaves a line
with the rows it took in and let through: on standard error as it happens, and in ``DataSet.notes``. Left out: reading
(``streaming`` applies what needs one row at a time while it reads) and splits.

Symbols: E events, N items.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from sidgym.envs.config import DataConfig
from sidgym.envs.records import CLICK, Catalogue, Interactions

REPEATS = ("keep", "exact", "first")


class Ledger:
    """What was read and dropped, one line each: shown at once, and kept for ``DataSet.notes``."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep a line and show it."""
        self.notes.append(text)
        print(text, file=sys.stderr, flush=True)

    def filtered(self, what: str, before: Sequence[int], after: Sequence[int]) -> None:
        """Rows in and out of a filter: ``(events,)``, ``(users, events)`` or ``(users, items, events)``."""
        names = {1: ("events",), 2: ("users", "events"), 3: ("users", "items", "events")}[len(before)]
        self.note(f"{what}: " + ", ".join(f"{old} -> {new} {name}" for old, new, name in zip(before, after, names)))


def select_items(catalogue: Catalogue, rows: np.ndarray) -> Catalogue:
    """The given rows of a catalogue, (n,) indices, every optional field carried along."""
    return Catalogue(
        ids=catalogue.ids[rows],
        titles=tuple(catalogue.titles[i] for i in rows),
        descriptions=tuple(catalogue.descriptions[i] for i in rows),
        categories=tuple(catalogue.categories[i] for i in rows),
        price=None if catalogue.price is None else catalogue.price[rows],
        duration=None if catalogue.duration is None else catalogue.duration[rows],
    )


def renumbered(interactions: Interactions) -> Interactions:
    """The same events with ``order`` counted from 0 in each user's log; rows must be sorted by user and order."""
    _, first, inverse = np.unique(interactions.user, return_index=True, return_inverse=True)
    return replace(interactions, order=np.arange(len(interactions)) - first[inverse])


def k_core(catalogue: Catalogue, interactions: Interactions, min_events: int) -> tuple[Catalogue, Interactions]:
    """Drop users and items with fewer than ``min_events`` positive events, repeatedly, until none is left to drop.

    Users and items are numbered anew without gaps, in the old order; ``min_events`` 0 keeps everything as it is. Raises
    ``ValueError`` when nothing remains.
    """
    if min_events <= 0:
        return catalogue, interactions
    users = int(interactions.user.max(initial=-1)) + 1
    log = interactions
    while True:
        good = log.positives()
        by_user = np.bincount(good.user, minlength=users) >= min_events
        by_item = np.bincount(good.item, minlength=len(catalogue)) >= min_events
        keep = by_user[log.user] & by_item[log.item]
        if keep.all():
            break
        log = log.select(keep)
    if len(log) == 0:
        raise ValueError(
            f"no event is left of {len(interactions)}: no user and item with {min_events} positive events each remain; "
            "lower min_events, or set it to 0 to keep all"
        )
    kept = np.flatnonzero(by_item)
    new_item = np.cumsum(by_item) - 1
    log = replace(log, user=np.unique(log.user, return_inverse=True)[1], item=new_item[log.item])
    return select_items(catalogue, kept), renumbered(log)


def time_window(interactions: Interactions, start: float, end: float) -> Interactions:
    """Events with ``start <= time < end``, seconds. Raises ``ValueError`` where the log holds no times."""
    if interactions.time is None:
        raise ValueError("this data set has order only, no timestamps: a time window cannot be cut; use the whole log")
    return renumbered(interactions.select((interactions.time >= start) & (interactions.time < end)))


def parse_time(text: str, setting: str, otherwise: float) -> float:
    """Seconds from a setting: a year, a month (2016-10), a date or a moment in ISO form, UTC; else plain seconds.

    "" gives ``otherwise``. Raises ``ValueError`` naming the setting, also for a date without its dashes.
    """
    if not text:
        return otherwise
    if re.fullmatch(r"(19|20)\d{4}(\d\d)?", text):
        raise ValueError(
            f"data.{setting}: {text!r} may be a date or seconds; write a date as {text[:4]}-{text[4:6]}"
            f"{'-' + text[6:] if text[6:] else ''}, seconds as {text}.0"
        )
    if re.fullmatch(r"\d{4}(-\d\d)?", text):
        text_of_day = (text + "-01-01")[:10]
    else:
        text_of_day = text
    try:
        if re.match(r"\d{4}-", text_of_day):
            moment = datetime.fromisoformat(text_of_day)
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        else:
            seconds = float(text)
    except ValueError:
        seconds = np.nan
    if not np.isfinite(seconds):
        raise ValueError(f"data.{setting}: expected a date such as 2016-10 or 2016-10-01, or seconds; got {text!r}")
    return seconds


def window_of(config: DataConfig) -> tuple[float, float]:
    """First moment that is kept and first one after it that is not, seconds; infinite where none is set."""
    start, end = parse_time(config.start, "start", -np.inf), parse_time(config.end, "end", np.inf)
    if start >= end:
        raise ValueError(f"data.start = {config.start!r} does not come before data.end = {config.end!r}; swap them")
    return start, end


def window_words(config: DataConfig) -> str:
    """The time window as it stands in notes."""
    return f"time window from {config.start or 'the beginning'} to before {config.end or 'the end'}"


def keeps_title(title: str, words: int) -> bool:
    """Whether an item stays under ``title_words``: it has a title of at most so many words; of any length for 0."""
    count = len(title.split())
    return count > 0 and (count <= words or not words)


def with_titles(catalogue: Catalogue, interactions: Interactions, words: int) -> Interactions:
    """Events on items that have a title of at most ``words`` words."""
    keep = np.array([keeps_title(title, words) for title in catalogue.titles], dtype=bool)
    return renumbered(interactions.select(keep[interactions.item]))


def without_repeats(interactions: Interactions, repeats: str) -> Interactions:
    """Each user's positive events without repeats; events that are not positive stay.

    ``exact`` keeps the strongest of those with one item at one time (an order rather than a click), ``first`` keeps the
    first event with each item.

    Raises ``ValueError`` for an unknown word, and for ``exact`` where the log holds no times.
    """
    if repeats not in REPEATS:
        raise ValueError(f"data.repeats: expected one of {', '.join(REPEATS)}; got {repeats!r}")
    if repeats == "keep" or not len(interactions):
        return interactions
    log = interactions
    if repeats == "exact" and log.time is None:
        raise ValueError("data.repeats = 'exact' compares times, and this data set has none; use 'keep' or 'first'")
    positive = np.ones(len(log), dtype=bool) if log.feedback is None else log.feedback >= CLICK
    keys = [log.user, log.item, positive]
    if repeats == "exact" and log.time is not None:
        keys.insert(2, log.time)
    weaker = [-log.feedback.astype(np.int64)] if repeats == "exact" and log.feedback is not None else []
    rows = np.lexsort((np.arange(len(log)), *weaker, *reversed(keys)))
    same = np.logical_and.reduce([key[rows][1:] == key[rows][:-1] for key in keys])
    again = np.zeros(len(log), dtype=bool)
    again[rows[1:]] = same
    return renumbered(log.select(~(again & positive)))


def latest_events(interactions: Interactions, count: int) -> Interactions:
    """Each user's last ``count`` positive events, and of the others those from the first of these on.

    A page is not cut: where the first of them stands on a page, the page stays whole.
    """
    log = interactions
    rows = np.arange(len(log)) if log.feedback is None else np.flatnonzero(log.feedback >= CLICK)
    owner = log.user[rows]
    _, first, inverse, number = np.unique(owner, return_index=True, return_inverse=True, return_counts=True)
    from_end = first[inverse] + number[inverse] - np.arange(len(rows))
    begin = np.zeros(int(log.user.max(initial=0)) + 1, dtype=np.int64)
    cut = rows[from_end == count]
    if log.page is not None and len(cut):
        new = np.ones(len(log), dtype=bool)
        new[1:] = (log.page[1:] != log.page[:-1]) | (log.user[1:] != log.user[:-1])
        starts = np.flatnonzero(new)
        cut = starts[np.searchsorted(starts, cut, side="right") - 1]
    begin[log.user[cut]] = cut
    return renumbered(log.select(np.arange(len(log)) >= begin[log.user]))


def sizes(interactions: Interactions) -> tuple[int, int]:
    """Users and events of a log."""
    return len(np.unique(interactions.user)), len(interactions)


def filter_log(
    catalogue: Catalogue, interactions: Interactions, config: DataConfig, ledger: Ledger
) -> tuple[Catalogue, Interactions]:
    """Titles and time window, then ``repeats_and_core``: what a reader that does not filter leaves to do.

    Raises ``ValueError`` when nothing remains, or when the log lacks what a filter reads.
    """
    log = interactions
    if config.title_words:
        before, log = sizes(log), with_titles(catalogue, log, config.title_words)
        ledger.filtered(f"items with a title of at most {config.title_words} words", before, sizes(log))
    if config.start or config.end:
        before, log = sizes(log), time_window(log, *window_of(config))
        ledger.filtered(window_words(config), before, sizes(log))
    if len(log) == 0:
        raise ValueError(
            f"no event is left of {len(interactions)}: {'; '.join(ledger.notes)}; widen data.start, data.end or "
            "data.title_words"
        )
    return repeats_and_core(catalogue, log, config, ledger)


def repeats_and_core(
    catalogue: Catalogue, interactions: Interactions, config: DataConfig, ledger: Ledger
) -> tuple[Catalogue, Interactions]:
    """Repeats, then the k-core."""
    log = interactions
    if config.repeats != "keep":
        before, log = sizes(log), without_repeats(log, config.repeats)
        what = "the same item at the same time once" if config.repeats == "exact" else "each item once, the first time"
        ledger.filtered(f"{what} for each user", before, sizes(log))
    if config.min_events > 0:
        users, events = sizes(log)
        kept, core = k_core(catalogue, log, config.min_events)
        after = sizes(core)
        ledger.filtered(f"{config.min_events}-core", (users, len(catalogue), events), (after[0], len(kept), after[1]))
        catalogue, log = kept, core
    return catalogue, log


def truncated(interactions: Interactions, config: DataConfig, ledger: Ledger) -> Interactions:
    """The latest ``config.max_events`` events of each user; all for 0."""
    if not config.max_events:
        return interactions
    log = latest_events(interactions, config.max_events)
    ledger.filtered(f"the last {config.max_events} events of each user", sizes(interactions), sizes(log))
    return log
