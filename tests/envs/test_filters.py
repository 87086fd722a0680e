"""Filters against plain loops, the lines they leave, and settings that would do nothing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.envs import datasets
from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import DataSet, load_dataset
from sidgym.envs.filters import latest_events, parse_time, window_of, without_repeats
from sidgym.envs.records import CLICK, ORDER, SHOWN, Catalogue, Interactions


def log_of(rows: list[tuple[int, ...]], *more: str) -> Interactions:
    """Rows (user, item, *more) in order."""
    columns = [np.array(column) for column in zip(*sorted(rows, key=lambda row: row[0]))]
    user, item, *rest = columns
    order = np.arange(len(user)) - np.searchsorted(user, user)
    named: dict[str, Any] = dict(zip(more, rest))
    return Interactions(user=user, item=item, order=order, **named)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", -1.0),
        ("1970", 0.0),
        ("1970-02", 31 * 86400.0),
        ("1970-01-02", 86400.0),
        ("1970-01-01T01:00", 3600.0),
        ("1970-01-01T01:00+01:00", 0.0),
        ("86400", 86400.0),
        ("-2.5", -2.5),
    ],
)
def test_times_are_dates_or_seconds(text: str, seconds: float) -> None:
    assert parse_time(text, "start", -1.0) == seconds


@pytest.mark.parametrize("text", ["yesterday", "2016-13", "nan", "inf", "2016/10"])
def test_what_is_no_time_names_the_setting(text: str) -> None:
    with pytest.raises(ValueError, match=r"data\.end: expected a date such as 2016-10"):
        parse_time(text, "end", 0.0)


@pytest.mark.parametrize(("text", "date"), [("20161001", "2016-10-01"), ("201610", "2016-10")])
def test_dates_without_dashes_are_not_taken_for_seconds(text: str, date: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.end: '{text}' may be a date or seconds; write a date as {date}, "):
        parse_time(text, "end", 0.0)
    assert parse_time(text + ".0", "end", 0.0) == float(text)


def test_a_window_must_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="does not come before"):
        window_of(DataConfig(start="2018-11", end="2016-10"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=25))
def test_repeats_equal_plain_loops(rows: list[tuple[int, int, int]]) -> None:
    log = log_of(rows, "time")
    for repeats, width in (("exact", 3), ("first", 2)):
        seen: set[tuple[int, ...]] = set()
        expected = []
        for row in sorted(rows, key=lambda row: row[0]):
            if row[:width] not in seen:
                expected.append(row)
                seen.add(row[:width])
        got = without_repeats(replace(log, time=log.time), repeats)
        assert got.time is not None
        assert list(zip(got.user, got.item, got.time)) == expected
        assert all((np.diff(got.order[got.user == u]) == 1).all() for u in np.unique(got.user))


def test_an_ignored_impression_does_not_hide_a_later_click() -> None:
    log = log_of([(0, 7, SHOWN), (0, 7, CLICK), (0, 7, CLICK), (0, 7, SHOWN)], "feedback")
    got = without_repeats(log, "first")
    assert got.feedback is not None
    assert got.feedback.tolist() == [SHOWN, CLICK, SHOWN]


def test_of_a_click_and_an_order_at_one_time_the_order_stays() -> None:
    rows = [(0, 7, CLICK, 5), (0, 7, ORDER, 5), (0, 7, CLICK, 5), (0, 7, CLICK, 6), (0, 7, SHOWN, 5)]
    log = log_of(rows, "feedback", "time")
    got = without_repeats(log, "exact")
    assert got.feedback is not None
    assert got.feedback.tolist() == [ORDER, CLICK, SHOWN]
    assert without_repeats(log, "first").feedback.tolist() == [CLICK, SHOWN]  # type: ignore[union-attr]


def test_repeats_refuse_unknown_words_and_logs_without_times() -> None:
    log = log_of([(0, 1), (0, 1)])
    with pytest.raises(ValueError, match="expected one of keep, exact, first; got 'last'"):
        without_repeats(log, "last")
    with pytest.raises(ValueError, match="this data set has none; use 'keep' or 'first'"):
        without_repeats(log, "exact")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=30), st.integers(1, 4))
def test_latest_events_equal_slices(rows: list[tuple[int, int]], count: int) -> None:
    log = log_of(rows)
    got = latest_events(log, count)
    for user in np.unique(log.user):
        assert got.item[got.user == user].tolist() == log.item[log.user == user][-count:].tolist()
        assert got.order[got.user == user].tolist() == list(range(min(count, (log.user == user).sum())))


def test_latest_events_count_positives_and_keep_pages_whole() -> None:
    rows = [(0, 1, CLICK, 0), (0, 2, SHOWN, 1), (0, 3, CLICK, 1), (0, 4, SHOWN, 2), (0, 5, CLICK, 2), (1, 6, SHOWN, 3)]
    log = log_of(rows, "feedback", "page")
    assert latest_events(log, 2).item.tolist() == [2, 3, 4, 5, 6]
    assert latest_events(replace(log, page=None), 2).item.tolist() == [3, 4, 5, 6]


def amazon(folder: Path, **more: Any) -> DataConfig:
    logs = {"a": [0, 1, 0, 1], "b": [0, 1], "c": [0, 2, 1], "d": [3]}
    titles = ["one", "one two", "one two three", ""]
    items = {str(i): {"title": title, "description": "text"} for i, title in enumerate(titles)}
    (folder / "Toy.inter.json").write_text(json.dumps(logs))
    (folder / "Toy.item.json").write_text(json.dumps(items))
    return DataConfig(**({"name": "amazon", "path": str(folder), "min_events": 0} | more))


def test_rows_in_and_out_of_every_filter_are_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = amazon(tmp_path, title_words=2, repeats="first", min_events=2, max_events=1)
    data = load_dataset(config, seed=0)
    lines = [
        "items with a title of at most 2 words: 4 -> 3 users, 10 -> 8 events",
        "each item once, the first time for each user: 3 -> 3 users, 8 -> 6 events",
        "2-core: 3 -> 3 users, 4 -> 2 items, 6 -> 6 events",
        "the last 1 events of each user: 3 -> 3 users, 6 -> 3 events",
    ]
    assert list(data.notes[-4:]) == lines
    assert capsys.readouterr().err.splitlines()[-4:] == lines
    # Truncation comes after the k-core: items are not dropped again for what it takes away.
    assert data.catalogue.ids.tolist() == ["0", "1"]
    assert data.interactions.item.tolist() == [1, 1, 1]


def test_filters_that_leave_nothing_say_what_each_let_through(tmp_path: Path) -> None:
    config = amazon(tmp_path)
    items = {str(i): {"title": "", "description": "text"} for i in range(4)}
    (tmp_path / "Toy.item.json").write_text(json.dumps(items))
    with pytest.raises(
        ValueError, match=r"no event is left of 10: items with a title of at most 2 words: .*10 -> 0 ev"
    ):
        load_dataset(replace(config, title_words=2), seed=0)
    with pytest.raises(ValueError, match="order only"):
        load_dataset(replace(config, start="2016"), seed=0)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [("amazon", "min_rating", 3.0), ("simulator", "clicks", ("a",)), ("movielens", "domain", "ad"),
     ("amazon_reviews", "orders", ("a",)), ("openonerec", "title_words", 20)],
)  # fmt: skip
def test_settings_that_would_do_nothing_are_refused(name: str, setting: str, value: Any) -> None:
    config = replace(DataConfig(name=name, path="x"), **{setting: value})
    with pytest.raises(ValueError, match=rf"data\.{setting} = .* does nothing for data set '{name}'"):
        load_dataset(config, seed=0)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_events", -1), ("title_words", -1), ("min_rating", np.nan), ("min_rating", np.inf), ("max_malformed", np.nan),
     ("max_malformed", 1.5)],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(setting: str, value: float) -> None:
    config = replace(DataConfig(name="movielens", path="x"), **{setting: value})
    with pytest.raises(ValueError, match=rf"data\.{setting}: expected a .*, got {value}"):
        load_dataset(config, seed=0)


def test_a_log_with_ground_truth_is_not_filtered() -> None:
    with pytest.raises(ValueError, match=r"ground truth, .* leave max_events, repeats at the default"):
        load_dataset(DataConfig(users=20, items=30, max_events=2, repeats="first"), seed=0)


def timed_loader(config: DataConfig, seed: int) -> DataSet:
    names = np.array(["x", "y"])
    log = Interactions(
        np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([0, 1, 0]), time=np.array([0.0, 86400.0, 5.0])
    )
    return DataSet("timed", Catalogue(names, ("x", "y"), ("", ""), ((), ())), log)


def test_the_window_reaches_readers_that_do_not_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(datasets.DATASETS, "timed", timed_loader)
    data = load_dataset(DataConfig(name="timed", min_events=0, end="1970-01-02"), seed=0)
    assert data.interactions.item.tolist() == [0, 0]
    assert data.notes == ("time window from the beginning to before 1970-01-02: 2 -> 2 users, 3 -> 2 events",)
