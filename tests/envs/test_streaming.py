"""Logs read in chunks equal logs read whole; counts are never too low; filters by row."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.envs.config import DataConfig
from sidgym.envs.filters import Ledger, k_core
from sidgym.envs.raw_files import Reading
from sidgym.envs.records import CLICK, SHOWN, Catalogue, Interactions
from sidgym.envs.streaming import CountSketch, Events, hash_names, keys_of_numbers, read_log, sketch_bits

CONFIG = DataConfig(min_events=0)


def source_of(rows: list[tuple], size: int, *more: str) -> Any:
    """Rows (user, item, *more) in chunks of ``size``."""

    def source(reading: Reading) -> Iterator[Events]:
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            reading.rows += len(part)
            user, item, *rest = (np.array(column) for column in zip(*part))
            code, items = keys_of_numbers(item)
            values: dict[str, Any] = dict(zip(more, rest))
            yield Events(user.astype(np.uint64), code, items, **values)

    return source


def lists(log: Interactions, catalogue: Catalogue) -> dict[int, list[str]]:
    return {int(u): catalogue.ids[log.item[log.user == u]].tolist() for u in np.unique(log.user)}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=400), st.integers(1, 4))
def test_counts_are_never_too_low(keys: list[int], count: int) -> None:
    values = np.array(keys, dtype=np.uint64)
    sketch = CountSketch(4)  # 16 places, so that many keys share one
    for part in np.array_split(values, 3):
        sketch.add(part)
    unique, number = np.unique(values, return_counts=True)
    assert sketch.at_least(unique[number >= count], count).all()


def test_counts_are_exact_where_places_are_plenty_and_stop_at_255() -> None:
    keys = np.repeat(np.arange(300, dtype=np.uint64), np.arange(300))
    sketch = CountSketch(20)
    for part in np.array_split(keys, 5):
        sketch.add(part)
    unique = np.arange(300, dtype=np.uint64)
    assert sketch.at_least(unique, 7).tolist() == [False] * 7 + [True] * 293
    assert sketch.at_least(unique, 1000).tolist() == [False] * 255 + [True] * 45


def test_sketches_stay_within_fixed_bounds() -> None:
    assert [sketch_bits(size) for size in (0, 5_000_000, 64_000_000, 50 << 30)] == [16, 17, 20, 26]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=60),
    st.integers(1, 7),
    st.integers(0, 3),
)
def test_streaming_equals_the_k_core_of_the_whole_log(rows: list[tuple[int, int, int]], size: int, k: int) -> None:
    order = sorted(range(len(rows)), key=lambda i: (rows[i][0], rows[i][2], i))
    user, item, time = (np.array(column)[order] for column in zip(*rows))
    whole = Interactions(user, item, np.arange(len(rows)), time=time.astype(float))
    names = Catalogue(np.arange(7).astype(str), ("",) * 7, ("",) * 7, ((),) * 7)
    config = DataConfig(min_events=k, max_malformed=0)
    source = source_of(rows, size, "time")
    try:
        expected_names, expected = k_core(names, whole, k)
    except ValueError:
        with pytest.raises(ValueError, match="lower min_events"):
            read_log(source, "rows", 0, config, Ledger())
        return
    catalogue, log = read_log(source, "rows", 0, config, Ledger())
    # Users are numbered in order of appearance here, and by their own number there.
    by_user = sorted(lists(log, catalogue).values())
    assert by_user == sorted(lists(expected, expected_names).values())
    assert log.time is not None
    assert all((np.diff(log.time[log.user == u]) >= 0).all() for u in np.unique(log.user))
    assert all((np.diff(log.order[log.user == u]) == 1).all() for u in np.unique(log.user))


def test_users_are_numbered_by_appearance_and_items_by_name() -> None:
    rows = [(9, 10, 5.0), (3, 2, 4.0), (9, 2, 1.0), (3, 10, 4.0)]
    catalogue, log = read_log(source_of(rows, 3, "time"), "rows", 0, CONFIG, Ledger())
    assert catalogue.ids.tolist() == ["2", "10"]
    assert log.user.tolist() == [0, 0, 1, 1]
    assert log.item.tolist() == [0, 1, 0, 1]  # by time; equal times in the order of the file


def test_rows_pass_titles_then_ratings_then_the_window() -> None:
    rows = [(0, 1, 0.0, 5.0), (0, 2, 1.0, 5.0), (0, 1, 2.0, 1.0), (0, 1, 9.0, 5.0), (0, 1, 3.0, 4.0)]
    config = DataConfig(min_events=0, min_rating=4, title_words=20, start="1", end="9")
    ledger = Ledger()
    _, log = read_log(
        source_of(rows, 2, "time", "rating"), "rows", 0, config, ledger, allowed=np.array([1, 7], dtype=np.uint64)
    )
    assert log.time is not None
    assert log.time.tolist() == [3.0]
    assert ledger.notes == [
        "rows: 5 rows, 0 malformed",
        "items with a title of at most 20 words: 5 -> 4 events",
        "rating at least 4: 4 -> 3 events",
        "time window from 1 to before 9: 3 -> 1 events",
    ]


def test_positive_events_are_what_is_counted() -> None:
    rows = [(0, 1, CLICK), (0, 1, CLICK), (0, 2, SHOWN), (0, 2, SHOWN), (1, 1, SHOWN), (1, 1, CLICK)]
    catalogue, log = read_log(source_of(rows, 4, "feedback"), "rows", 0, DataConfig(min_events=2), Ledger())
    assert lists(log, catalogue) == {0: ["1", "1"]}


def test_optional_columns_and_durations_follow_their_events() -> None:
    rows = [(0, 5, 2.0, 3.0, 7, 60.0), (0, 4, 1.0, 0.5, 6, 30.0), (0, 5, 3.0, 9.0, 7, 61.0)]
    source = source_of(rows, 2, "time", "play_time", "page", "duration")
    catalogue, log = read_log(source, "rows", 0, CONFIG, Ledger())
    assert log.play_time is not None
    assert log.page is not None
    assert catalogue.duration is not None
    assert log.play_time.tolist() == [0.5, 3.0, 9.0]
    assert log.page.tolist() == [6, 7, 7]
    assert catalogue.duration.tolist() == [30.0, 61.0]
    assert (log.feedback, log.position) == (None, None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(min_events=0, start="5"), "no event is left of 2: .*run from 1 to 2"),
        (DataConfig(min_events=3), "no user and item with 3 positive events each; lower min_events"),
        (DataConfig(min_rating=1), "holds no ratings; set it to 0"),
    ],
)
def test_what_leaves_nothing_or_cannot_be_done_is_refused(config: DataConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_log(source_of([(0, 1, 1.0), (0, 2, 2.0)], 2, "time"), "rows", 0, config, Ledger())


def test_a_window_needs_times() -> None:
    with pytest.raises(ValueError, match="order only, no timestamps"):
        read_log(source_of([(0, 1)], 1), "rows", 0, DataConfig(start="2016"), Ledger())


def test_names_hash_alike_in_every_chunk() -> None:
    one, two = hash_names(np.array(["a", "b"], dtype=object)), hash_names(np.array(["b"], dtype=object))
    assert one[1] == two[0]
    assert one[0] != one[1]
