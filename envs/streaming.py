"""A raw log of any size as ``Interactions``: two passes, counting first, in memory that the file's size does not set.

The first pass counts events a user and an item in a table of fixed size, whose counts are never too low (a count-min
sketch). The second keeps only events whose user and item may reach ``min_events``; these, few for most logs, are then
filtered exactly in memory. So memory is that of one block, the sketches, and what survives: with ``min_events`` 0 that
is the whole log, as 8 bytes a column and event, because ``Interactions`` holds it anyway.

Users and items travel as 64-bit keys: an integer id itself, a name by its hash. Two of n names share a key with
probability n^2 / 2^65, one in 37 million for a million names. Left out: filters that need the whole log (``filters``).

Symbols: E events of the log, n events of a chunk.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from sidgym.envs.config import DataConfig
from sidgym.envs.filters import Ledger, repeats_and_core, window_of, window_words
from sidgym.envs.loaders_amazon import by_number
from sidgym.envs.raw_files import Reading
from sidgym.envs.records import CLICK, Catalogue, Interactions

NAMES = 10_000
"""Names that are hashed at a time."""

FEWEST_BITS, MOST_BITS = 16, 26
"""Sizes of a sketch's table as powers of 2, for a small file and for any large one; two tables of a byte each."""


@dataclass(frozen=True)
class Events:
    """A chunk of a log in the order of the file."""

    user: np.ndarray  # (n,) uint64 keys
    code: np.ndarray  # (n,) int64, the event's item as an index into ``items``
    items: np.ndarray  # (m,) uint64 keys of the chunk's different items
    names: np.ndarray | None = None  # (m,) object, their names; None where a key is the id itself, an int64
    time: np.ndarray | None = None  # (n,) float64, seconds
    rating: np.ndarray | None = None  # (n,) float64
    feedback: np.ndarray | None = None  # (n,) int8, as in Interactions
    play_time: np.ndarray | None = None  # (n,) float32, seconds
    page: np.ndarray | None = None  # (n,) int64, keys
    position: np.ndarray | None = None  # (n,) int64
    signals: np.ndarray | None = None  # (n,) int32, as in Interactions
    duration: np.ndarray | None = None  # (n,) float32, seconds that the item lasts

    def __len__(self) -> int:
        return len(self.user)

    def select(self, rows: np.ndarray) -> "Events":
        """The given events; ``items`` and ``names`` stay."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value[rows] for name, value in values.items()
                                if value is not None and name not in ("items", "names")})  # fmt: skip


def keys_of_text(column: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An Arrow string column: index (n,) into the different values, their keys (m,) uint64 and the values (m,)."""
    import pyarrow.compute as pc

    encoded = pc.dictionary_encode(column)
    names = np.asarray(encoded.dictionary.to_pylist(), dtype=object)
    return encoded.indices.to_numpy().astype(np.int64), hash_names(names), names


def hash_names(names: np.ndarray) -> np.ndarray:
    """Keys (m,) uint64 of names (m,) object."""
    return np.asarray(pd.util.hash_array(np.asarray(names, dtype=object), categorize=False), dtype=np.uint64)


def keys_of_titled(names: Iterable[str]) -> np.ndarray:
    """Sorted keys (m,) uint64 of names as they come; only 8 bytes a name are kept."""
    parts, batch = [], []
    for name in names:
        batch.append(name)
        if len(batch) == NAMES:
            parts.append(hash_names(np.array(batch, dtype=object)))
            batch.clear()
    return np.unique(np.concatenate([*parts, hash_names(np.array(batch, dtype=object))]))


def keys_of_pages(column: Any) -> np.ndarray:
    """Keys (n,) int64 of an Arrow string column: whole numbers of up to 18 digits as they are, others by hash."""
    import pyarrow as pa
    import pyarrow.compute as pc

    plain = pc.match_substring_regex(column, r"^(0|-?[1-9][0-9]{0,17})$")
    numbers = pc.cast(pc.if_else(plain, column, "0"), pa.int64()).to_numpy()
    if pc.all(plain).as_py():
        return numbers
    which, keys, _ = keys_of_text(column)
    return np.where(plain.to_numpy(zero_copy_only=False), numbers, keys.view(np.int64)[which])


def keys_of_numbers(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integer ids (n,): index (n,) into the different ones and their keys (m,) uint64."""
    values, code = np.unique(ids.astype(np.int64), return_inverse=True)
    return code.reshape(-1), values.view(np.uint64)


class CountSketch:
    """How often a key was added, never too low, in two tables of 2^bits bytes (Cormode, Muthukrishnan 2005).

    Counts stop at 255.
    """

    def __init__(self, bits: int) -> None:
        self._shift = np.uint64(64 - bits)
        self._tables = np.zeros((2, 1 << bits), dtype=np.uint8)

    def _places(self, keys: np.ndarray) -> list[np.ndarray]:
        mixed = keys ^ (keys >> np.uint64(31))
        odd = (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93)
        # Multiplication wraps around: the upper bits of the product depend on all bits of the key.
        return [((mixed * np.uint64(a)) >> self._shift).astype(np.int64) for a in odd]

    def add(self, keys: np.ndarray) -> None:
        """Count keys, (n,) uint64."""
        for table, places in zip(self._tables, self._places(keys)):
            place, count = np.unique(places, return_counts=True)
            table[place] = np.minimum(table[place].astype(np.int64) + count, 255)

    def at_least(self, keys: np.ndarray, count: int) -> np.ndarray:
        """Whether each key may have been added so often, (n,) bool; never false for one that was."""
        wanted = min(count, 255)
        one, two = (table[places] >= wanted for table, places in zip(self._tables, self._places(keys)))
        return one & two


def sketch_bits(size: int) -> int:
    """Bits of a sketch for ``size`` bytes of raw files: one place for about 64 bytes, within fixed bounds."""
    return min(MOST_BITS, max(FEWEST_BITS, (size // 64).bit_length()))


Source = Callable[[Reading], Iterable[Events]]
"""What a reader gives: a new pass over its files, counting rows in the ``Reading``."""


class _RowFilter:
    """The filters that need one event only, with the events that each let through."""

    def __init__(self, config: DataConfig, allowed: np.ndarray | None) -> None:
        self.config, self.allowed = config, allowed
        self.window = window_of(config)
        self.let = {"": 0, "title": 0, "rating": 0, "window": 0}
        self.span = [np.inf, -np.inf]

    def __call__(self, events: Events) -> Events:
        self.let[""] += len(events)
        if self.allowed is not None:
            place = np.searchsorted(self.allowed, events.items)
            known = np.zeros(len(events.items), dtype=bool)
            inside = place < len(self.allowed)
            known[inside] = self.allowed[place[inside]] == events.items[inside]
            events = events.select(known[events.code])
        self.let["title"] += len(events)
        if self.config.min_rating > 0:
            if events.rating is None:
                raise ValueError("data.min_rating is set, but this log holds no ratings; set it to 0")
            events = events.select(events.rating >= self.config.min_rating)
        self.let["rating"] += len(events)
        if self.config.start or self.config.end:
            if events.time is None:
                raise ValueError(
                    "this data set has order only, no timestamps: a time window cannot be cut; leave data.start and "
                    "data.end empty"
                )
            if len(events):
                self.span = [min(self.span[0], events.time.min()), max(self.span[1], events.time.max())]
            events = events.select((events.time >= self.window[0]) & (events.time < self.window[1]))
        self.let["window"] += len(events)
        return events

    def tell(self, ledger: Ledger) -> None:
        """Rows in and out of every filter that is set."""
        config, let = self.config, self.let
        if self.allowed is not None:
            what = f"items with a title of at most {config.title_words} words"
            ledger.filtered(what, (let[""],), (let["title"],))
        if config.min_rating > 0:
            ledger.filtered(f"rating at least {config.min_rating:g}", (let["title"],), (let["rating"],))
        if config.start or config.end:
            ledger.filtered(window_words(config), (let["rating"],), (let["window"],))
        if let["window"] == 0:
            span = f"; the times in the file run from {self.span[0]:.10g} to {self.span[1]:.10g}"
            raise ValueError(
                f"no event is left of {let['']}: {'; '.join(ledger.notes)}{span if self.span[0] < np.inf else ''}. "
                "Widen data.start and data.end, lower data.min_rating, or raise data.title_words"
            )


def read_log(
    source: Source, what: str, size: int, config: DataConfig, ledger: Ledger, allowed: np.ndarray | None = None
) -> tuple[Catalogue, Interactions]:
    """A filtered log and the catalogue of its items by name alone; texts are up to the reader.

    Args:
        source: called once for each pass; chunks must be the same each time.
        what: name of the files in notes.
        size: bytes of the files, about; sets the size of the sketches, within bounds.
        config: its ``min_rating``, ``start``, ``end``, ``repeats``, ``min_events`` and ``max_malformed``.
        ledger: told the rows in and out of every filter.
        allowed: sorted keys of the items that pass ``title_words``, (A,) uint64; None where that is not set.

    Users are numbered in order of appearance, items in order of their names. Raises ``ValueError`` for too many
    malformed rows and when nothing remains.
    """
    sketches = None
    if config.min_events > 0:
        reading = Reading()
        sketches = _count(source(reading), _RowFilter(config, allowed), sketch_bits(size))
        reading.check(what, config.max_malformed)
    reading, row_filter = Reading(), _RowFilter(config, allowed)
    kept, names = _survivors(source(reading), row_filter, sketches, config.min_events)
    reading.check(what, config.max_malformed)
    ledger.note(reading.described(what))
    row_filter.tell(ledger)
    if sketches is not None:
        counting = f"users and items that may have {config.min_events} events, by counting"
        ledger.filtered(counting, (row_filter.let["window"],), (sum(len(part) for part in kept),))
    if not kept:
        raise ValueError(
            f"no event is left of {row_filter.let['']}: no user and item with {config.min_events} positive events "
            "each; lower min_events, or set it to 0 to keep all"
        )
    catalogue, log = _assemble(kept, names, ledger)
    return repeats_and_core(catalogue, log, config, ledger)


def _count(chunks: Iterable[Events], row_filter: _RowFilter, bits: int) -> tuple[CountSketch, CountSketch]:
    """Positive events of every user and of every item that pass the filters by row."""
    users, items = CountSketch(bits), CountSketch(bits)
    for chunk in chunks:
        events = row_filter(chunk)
        if events.feedback is not None:
            events = events.select(events.feedback >= CLICK)
        users.add(events.user)
        items.add(events.items[events.code])
    return users, items


def _survivors(
    chunks: Iterable[Events], row_filter: _RowFilter, sketches: tuple[CountSketch, CountSketch] | None, count: int
) -> tuple[list[Events], dict[int, str]]:
    """What passes the filters by row and may reach ``count``, and the names of the items by key."""
    kept: list[Events] = []
    names: dict[int, str] = {}
    for chunk in chunks:
        events = row_filter(chunk)
        if sketches is not None:
            user = sketches[0].at_least(events.user, count)
            events = events.select(user & sketches[1].at_least(events.items, count)[events.code])
        if len(events):
            kept.append(_with_item_keys(events, names))
    return kept, names


def _with_item_keys(events: Events, names: dict[int, str]) -> Events:
    """The events with ``code`` an index into the few items that are left, whose names join ``names``."""
    left, code = np.unique(events.code, return_inverse=True)
    items = events.items[left]
    text = items.view(np.int64).astype(str) if events.names is None else events.names[left]
    names.update(zip(items.tolist(), text.tolist()))
    # The next chunk has its own numbers, so the keys are what stays; they take the place of the codes.
    return replace(events, code=items[code.reshape(-1)], items=items[:0], names=None)


def _assemble(kept: list[Events], names: dict[int, str], ledger: Ledger) -> tuple[Catalogue, Interactions]:
    """The chunks as one log sorted by user and ``_ordered``; consumes ``kept``."""
    columns: dict[str, np.ndarray] = {}
    for field in fields(Events):
        parts = [getattr(part, field.name) for part in kept]
        if field.name not in ("items", "names", "rating") and all(part is not None for part in parts):
            columns[field.name] = np.concatenate(parts)
    kept.clear()
    user, item, ids = _numbered(columns.pop("user"), columns.pop("code"), names)
    duration = None
    if "duration" in columns:
        duration = np.zeros(len(ids), dtype=np.float32)
        np.maximum.at(duration, item, columns.pop("duration"))
    rows = _ordered(user, columns, ledger)
    user, item = user[rows], item[rows]
    starts = np.flatnonzero(np.append(True, user[1:] != user[:-1]))
    order = np.arange(len(user)) - np.repeat(starts, np.diff(np.append(starts, len(user))))
    more: dict[str, Any] = {name: value[rows] for name, value in columns.items()}
    blank = ("",) * len(ids)
    catalogue = Catalogue(np.array(ids, dtype=str), blank, blank, ((),) * len(ids), duration=duration)
    return catalogue, Interactions(user=user, item=item, order=order, **more)


def _ordered(user: np.ndarray, columns: dict[str, np.ndarray], ledger: Ledger) -> np.ndarray:
    """Rows (E,) by user, start of the page, page, position, else by user, time, position; what is missing is passed
    over, and what is equal stays in the order of the file.

    The events of pages that overlap in time take the time at which their page starts, as a log cannot run backwards.
    """
    time, page = columns.get("time"), columns.get("page")
    if time is None:
        return np.argsort(user, kind="stable")
    place = [columns["position"]] if "position" in columns else []
    if page is None:
        return np.lexsort((*place, time, user))
    by_page = np.lexsort((page, user))
    new = (np.diff(page[by_page]) != 0) | (np.diff(user[by_page]) != 0)
    which = np.empty(len(user), dtype=np.int64)
    which[by_page] = np.append(0, np.cumsum(new))
    start = np.full(which.max() + 1, np.inf)
    np.minimum.at(start, which, time)
    rows = np.lexsort((*(place or [time]), page, start[which], user))
    back = (np.diff(time[rows]) < 0) & (np.diff(user[rows]) == 0)
    if back.any():
        columns["time"] = start[which]
        ledger.note(
            f"{back.sum()} events come before the one that stands ahead of them on their page, or on one that started "
            "earlier: every event takes the time at which its page starts"
        )
    return rows


def _numbered(
    user_keys: np.ndarray, item_keys: np.ndarray, names: dict[int, str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Users (E,) from 0 in order of appearance, items (E,) from 0 in order of their names, and the names (N,)."""
    first, which = np.unique(user_keys, return_index=True, return_inverse=True)[1:]
    user = np.argsort(np.argsort(first))[which.reshape(-1)]
    keys, item = np.unique(item_keys, return_inverse=True)
    found = [names[key] for key in keys.tolist()]
    ids = by_number(found)
    place = {name: row for row, name in enumerate(ids)}
    return user, np.array([place[name] for name in found], dtype=np.int64)[item.reshape(-1)], ids
