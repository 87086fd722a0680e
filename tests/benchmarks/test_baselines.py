"""Popularity and co-occurrence against counts made by hand and by plain loops."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.benchmarks.baselines import cooccurrence
from sidgym.benchmarks.baselines.cooccurrence import LastItemCooccurrence
from sidgym.benchmarks.baselines.popularity import Popularity
from sidgym.envs.records import PAD_ITEM, Episodes, Sequences


def sequences(*rows: list[int]) -> Sequences:
    offsets = np.cumsum([0, *map(len, rows)])
    return Sequences(np.arange(len(rows)), np.array([i for row in rows for i in row], dtype=np.int64), offsets)


def contexts(*histories: list[int]) -> Episodes:
    width = max(map(len, histories))
    history = np.array([[PAD_ITEM] * (width - len(row)) + row for row in histories])
    rows = np.arange(len(history))
    return Episodes(rows, rows, history, np.zeros((len(history), 1), np.int64))


def test_popularity_by_hand() -> None:
    model = Popularity.fit(sequences([0, 2, 2], [2, 1], [3, 1]), 5)
    items, scores = model.recommend(contexts([0], [1]), 3)
    assert items.tolist() == [[2, 1, 0]] * 2
    assert scores.tolist() == [[3, 2, 1]] * 2


def test_cooccurrence_by_hand() -> None:
    model = LastItemCooccurrence.fit(sequences([0, 1, 2, 3, 4], [0, 1], [4, 4]), 6)
    assert model.following.toarray()[0].tolist() == [0, 2, 1, 1, 0, 0]
    assert model.following.toarray()[4].tolist() == [0, 0, 0, 0, 1, 0]
    items, scores = model.recommend(contexts([3, 0], [PAD_ITEM], [5]), 4)
    assert items[0].tolist() == [1, 2, 3, 4]  # 2 and 3 tie at one count and one occurrence, 4 comes by popularity
    assert items[1].tolist() == items[2].tolist() == [4, 0, 1, 2]
    assert np.floor(scores).astype(int).tolist() == [[2, 1, 1, 0], [0] * 4, [0] * 4]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=7), min_size=1, max_size=6), st.integers(1, 4))
def test_pair_counts_equal_plain_loops(rows: list[list[int]], window: int) -> None:
    expected: Counter[tuple[int, int]] = Counter()
    for row in rows:
        for i, first in enumerate(row):
            expected.update((first, second) for second in row[i + 1 : i + 1 + window])
    counts = LastItemCooccurrence.fit(sequences(*rows), 7, window).following.toarray()
    assert {(i, j): counts[i, j] for i, j in zip(*np.nonzero(counts))} == expected


def test_lists_hold_distinct_items_in_order_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    model = LastItemCooccurrence.fit(sequences(*rng.integers(0, 40, size=(60, 9)).tolist()), 40)
    episodes = contexts(*rng.integers(0, 40, size=(33, 3)).tolist())
    items, scores = model.recommend(episodes, 15)
    assert all(len(set(row)) == 15 for row in items.tolist())
    assert (np.diff(scores, axis=1) < 0).all()
    monkeypatch.setattr(cooccurrence, "_CELLS_AT_ONCE", 200)
    again = model.recommend(episodes, 15)
    assert (again[0] == items).all()
    assert (again[1] == scores).all()


@pytest.mark.parametrize("model", [Popularity, LastItemCooccurrence])
def test_k_beyond_the_catalogue_is_refused(model: type[Popularity] | type[LastItemCooccurrence]) -> None:
    fitted = model.fit(sequences([0, 1]), 3)
    with pytest.raises(ValueError, match="between 1 and the 3 items"):
        fitted.recommend(contexts([0]), 4)
    with pytest.raises(ValueError, match="between 1 and the 3 items"):
        fitted.recommend(contexts([0]), 0)


def test_window_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        LastItemCooccurrence.fit(sequences([0, 1]), 3, window=0)
