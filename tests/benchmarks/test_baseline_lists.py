"""What a list may hold: items of the history are left out unless training has repeats, for every system alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.benchmarks.baselines.lists import SPARE, allowed_places, asked, judged
from sidgym.benchmarks.baselines.protocol import BaselineData
from sidgym.envs.records import PAD_ITEM, Episodes, Sequences

ROWS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5)


def contexts(history: list[list[int]], target: list[int]) -> Episodes:
    rows = np.arange(len(history))
    return Episodes(rows, rows, np.array(history), np.array(target)[:, None])


def data(rows: list[list[int]], items: int = 100) -> BaselineData:
    offsets = np.cumsum([0, *map(len, rows)])
    flat = np.array([item for row in rows for item in row], dtype=np.int64)
    return BaselineData(Sequences(np.arange(len(rows)), flat, offsets), contexts([[0]], [1]), items)


@settings(deadline=None)
@given(ROWS)
def test_repeats_are_those_of_one_user(rows: list[list[int]]) -> None:
    assert data(rows).repeats == any(len(set(row)) < len(row) for row in rows)


def test_items_of_two_users_are_no_repeat() -> None:
    assert not data([[1, 2], [2, 1]]).repeats
    assert not data([[0, 9], [1, 0]], 10).repeats


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8))
def test_lists_without_history_are_the_rest_in_order(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(12)[:8] for _ in range(3)])
    items[0, 6:] = PAD_ITEM
    history = rng.integers(PAD_ITEM, 12, (3, 4))
    found = allowed_places(items, history, k, repeats=False)
    for row, listed, known in zip(found, items, history):
        rest = [item for item in listed if item not in known and item != PAD_ITEM]
        assert row.tolist() == (rest + [PAD_ITEM] * 8)[: min(k, 8)]
    assert (allowed_places(items, history, k, repeats=True) == items[:, :k]).all()


def test_more_places_are_ranked_than_are_judged_so_that_a_long_history_empties_none() -> None:
    """The system ranks the whole history first; the target comes right behind and counts as first."""
    history = list(range(SPARE))
    asks = []

    def rank(known: np.ndarray, k: int) -> np.ndarray:
        asks.append(k)
        return np.broadcast_to(np.arange(k), (len(known), k))

    contexts_ = contexts([history], [SPARE])
    assert judged(rank, contexts_, data([[1, 2]])) == 1.0
    assert judged(rank, contexts_, data([[1, 2]]), places=50) == 1.0
    assert judged(rank, contexts_, data([[1, 1]])) == 0.0
    assert judged(rank, contexts_, data([[1, 2]]), spare=SPARE - 10) == 0.0
    assert asks == [10 + SPARE, 50 + SPARE, 10 + SPARE, SPARE]
    assert asked(50, 60) == 60


def test_a_fingerprint_is_of_what_may_be_read() -> None:
    first = data([[1, 2], [3]])
    assert first.fingerprint == data([[1, 2], [3]]).fingerprint
    others = [data([[1, 2], [4]]), data([[1], [2, 3]]), data([[1, 2], [3]], 101)]
    changed = BaselineData(first.sequences, contexts([[0]], [2]), first.num_items)
    assert len({one.fingerprint for one in (first, *others, changed)}) == 5


def test_a_negative_history_item_is_never_matched_with_an_empty_place() -> None:
    items = np.array([[PAD_ITEM, 3, 4]])
    assert allowed_places(items, np.array([[PAD_ITEM]]), 3, repeats=False).tolist() == [[3, 4, PAD_ITEM]]


@pytest.mark.parametrize("repeats", [False, True])
def test_input_lists_are_left_as_they_are(repeats: bool) -> None:
    items = np.array([[1, 2, 3]])
    allowed_places(items, np.array([[2]]), 2, repeats)
    assert items.tolist() == [[1, 2, 3]]
