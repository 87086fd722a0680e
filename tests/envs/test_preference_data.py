"""What preference models may read: users, moments, pages and histories, and the signals of an event."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preference_cases import (
    EMBEDDINGS,
    ITEMS,
    SHELF,
    SMALL,
    positives_only,
    same_weights,
    shelf_data,
    shelf_log,
)

from sidgym.envs.preference import PREFERENCES, PreferenceData, fit_preference
from sidgym.envs.preference.data import leaf_categories
from sidgym.envs.preference.examples import hold_out, implicit_examples, impression_examples
from sidgym.envs.preference.plan import Plan
from sidgym.envs.preference.signals import find_signals
from sidgym.envs.preference.training import Feed
from sidgym.envs.records import (
    CLICK,
    NEGATIVE,
    ORDER,
    PAD_ITEM,
    SHOWN,
    SIGNALS,
    Catalogue,
    Interactions,
    pack_signals,
)


def spoiled(log: Interactions, rows: np.ndarray, seed: int) -> Interactions:
    """The log with all there is of some rows replaced; it stays sorted."""
    rng = np.random.default_rng(seed)
    count = int(rows.sum())
    values: dict[str, Any] = {
        "item": rng.integers(0, ITEMS, count),
        "feedback": rng.integers(-1, 3, count).astype(np.int8),
        "play_time": np.full(count, np.nan, dtype=np.float32),
        "position": rng.integers(0, 50, count),
        "page": rng.integers(0, 3, count),
        "signals": rng.integers(0, 64, count).astype(np.int32),
    }
    changed = {}
    for name, value in values.items():
        column = getattr(log, name)
        if column is not None:
            changed[name] = column.copy()
            changed[name][rows] = value
    return replace(log, **changed)


@pytest.mark.parametrize("kind", PREFERENCES)
def test_rows_that_may_not_be_read_do_not_change_a_bit(kind: str) -> None:
    log = shelf_log(2, users=40)
    # Users 0, 2, 4 ... up to a page each: the first two or three or four.
    users = np.arange(0, 40, 2)
    before = 10 + 5 * (np.arange(len(users)) % 3)
    allowed = (log.user % 2 == 0) & (log.order < before[log.user // 2])
    short = SMALL[kind] | {"epochs": 2}
    model = fit_preference(kind, shelf_data(log, users, before=before), 1, **short)
    dirty = fit_preference(kind, shelf_data(spoiled(log, ~allowed, 7), users, before=before), 1, **short)
    assert same_weights(model, dirty)
    assert model.report == dirty.report
    # The same test sees a change of rows that are read.
    other = spoiled(log, allowed & (log.order < 5), 7)
    assert log.play_time is not None
    other = replace(other, play_time=log.play_time)
    assert not same_weights(model, fit_preference(kind, shelf_data(other, users, before=before), 1, **short))


def flipped(log: Interactions, rows: np.ndarray) -> Interactions:
    """The log with feedback and play times turned round in some rows."""
    assert log.feedback is not None
    assert log.play_time is not None
    other = np.where(log.feedback >= CLICK, NEGATIVE, CLICK)
    return replace(
        log,
        feedback=np.where(rows, other, log.feedback).astype(np.int8),
        play_time=np.where(rows, 100.0 - log.play_time, log.play_time).astype(np.float32),
    )


@pytest.mark.parametrize("kind", PREFERENCES)
def test_users_held_out_have_no_part_in_the_weights_of_an_epoch(kind: str) -> None:
    log = shelf_log(2, users=40)
    if kind == "din":
        held = np.random.default_rng(1).permutation(40)[:4]
    else:
        _, stop, judge = hold_out(impression_examples(shelf_data(log)), 0.1, np.random.default_rng(1))
        held = np.unique(np.concatenate([stop.user, judge.user]))
    assert len(held) == 4
    base = SMALL[kind] | {"epochs": 1}
    model, unseen, seen = (
        fit_preference(kind, shelf_data(flipped(log, np.isin(log.user, who))), 1, **base)
        for who in ([], held, np.setdiff1d(np.arange(40), held)[:4])
    )
    assert same_weights(model, unseen)
    assert model.report["log_loss"] != unseen.report["log_loss"]
    assert not same_weights(model, seen)


def test_times_cut_a_log_too() -> None:
    log = shelf_log(users=6)
    data = shelf_data(log, before=10.0)
    assert len(data.log) == 6 * 10
    assert data.log.time is not None
    assert data.log.time.max() < 10
    with pytest.raises(ValueError, match="the log has no times"):
        shelf_data(replace(log, time=None), before=10.0)
    assert log.time is not None
    broken = log.time.copy()
    broken[31] = np.nan
    with pytest.raises(ValueError, match="the time of user 1's event in row 31 is nan"):
        shelf_data(replace(log, time=broken), before=10.0)


def test_data_that_do_not_fit_are_refused_by_name() -> None:
    log = shelf_log(users=6)
    with pytest.raises(ValueError, match="nothing tells the number of items"):
        PreferenceData(log, np.arange(6))
    with pytest.raises(ValueError, match="one number of items, got embeddings 24, categories 3"):
        PreferenceData(log, np.arange(6), embeddings=EMBEDDINGS, categories=np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match="none of the 1 users has an event"):
        shelf_data(log, np.array([77]))
    with pytest.raises(ValueError, match="user 0 has item"):
        PreferenceData(log, np.arange(6), embeddings=EMBEDDINGS[:3])
    with pytest.raises(ValueError, match="sorted by user, then order"):
        shelf_data(log.select(np.arange(len(log))[::-1]))
    with pytest.raises(ValueError, match="one order for each of the 6 users, got shape"):
        shelf_data(log, before=np.array([3]))
    with pytest.raises(ValueError, match=r"signals\['share'\]: expected 180 rows, got 1"):
        shelf_data(log, signals={"share": np.array([True])})


def test_leaf_categories_number_whole_paths() -> None:
    blank = ("",) * 4
    paths = (("a", "b"), (), ("a",), ("a", "b"))
    leaf = leaf_categories(Catalogue(np.arange(4).astype(str), blank, blank, paths))
    assert leaf[1] == -1
    assert leaf[0] == leaf[3] != leaf[2]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), most=st.integers(1, 12))
def test_pages_agree_with_a_plain_loop(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    size = 30
    user = np.sort(rng.integers(0, 3, size))
    order = np.arange(size)
    page = np.array([rng.integers(0, 100)] * size) + order // rng.integers(1, 6)
    log = Interactions(
        user, rng.integers(0, 9, size), order, page=page, feedback=rng.integers(-1, 3, size).astype(np.int8)
    )
    pages = impression_examples(PreferenceData(log, np.arange(3), embeddings=np.eye(9)))
    assert log.feedback is not None
    history = pages.history(np.arange(len(pages)), most)
    seen = 0
    for row in range(len(pages)):
        mine = user == pages.user[row]
        number = np.unique(page[mine])[(pages.user[:row] == pages.user[row]).sum()]
        rows = np.flatnonzero(mine & (page == number))
        shown = pages.items[row] != PAD_ITEM
        assert pages.items[row][shown].tolist() == log.item[rows].tolist()
        assert pages.labels["engaged"][row][shown].tolist() == (log.feedback[rows] >= CLICK).tolist()
        assert pages.position[row][shown].tolist() == list(range(len(rows)))
        past = log.item[mine & (order < rows[0]) & (log.feedback >= CLICK)].tolist()
        assert history[row][history[row] != PAD_ITEM].tolist() == past[-most:]
        seen += len(rows)
    assert seen == size


def test_long_pages_are_cut_and_keep_their_history() -> None:
    size = 100
    log = Interactions(
        user=np.zeros(size, dtype=np.int64),
        item=np.arange(size) % 5,
        order=np.arange(size),
        page=np.where(np.arange(size) < 10, 0, 1),
        feedback=np.full(size, CLICK, dtype=np.int8),
    )
    pages = impression_examples(PreferenceData(log, np.array([0]), embeddings=np.eye(5)))
    assert pages.items.shape == (1 + 3, 32)
    assert (pages.items != PAD_ITEM).sum() == size
    # Nothing of a page is in its own history, cut or not.
    assert (pages.history(np.arange(4), 50) != PAD_ITEM).sum(axis=1).tolist() == [0, 10, 10, 10]


def test_events_that_are_not_kept_leave_pages_but_not_histories() -> None:
    log = shelf_log(users=5)
    data = shelf_data(log)
    keep = log.page != 0  # the first page of everybody
    pages = impression_examples(data, keep=keep)
    assert len(pages) == 5 * 5
    odd = impression_examples(data, keep=log.order % 2 == 1)
    assert odd.labels["engaged"].any()
    assert not odd.labels["engaged"][odd.items == PAD_ITEM].any()
    assert log.feedback is not None
    first = pages.history(np.array([0]), 50)[0]
    clicked = log.item[(log.user == 0) & (log.page == 0) & (log.feedback >= CLICK)]
    assert first[first != PAD_ITEM].tolist() == clicked.tolist()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_sampled_negatives_are_never_liked(sampling: str, seed: int) -> None:
    data = shelf_data(positives_only(shelf_log(seed % 50, users=10)))
    pages = implicit_examples(data, 3, sampling)
    drawn = pages.drawn(np.random.default_rng(seed))
    assert drawn.items.shape == (len(data.log), 4)
    likes = {(user, item) for user, item in zip(data.log.user.tolist(), data.log.item.tolist())}
    for user, row in zip(drawn.user.tolist(), drawn.items.tolist()):
        assert (user, row[0]) in likes
        assert all((user, item) not in likes for item in row[1:] if item != PAD_ITEM)
    assert (drawn.labels["engaged"] == [1, 0, 0, 0]).all()


def test_popularity_draws_what_is_liked_often_more_often() -> None:
    # User 0 likes item 1; a hundred others like item 2 only.
    users = np.arange(101)
    log = Interactions(users, np.where(users == 0, 1, 2), np.zeros(101, dtype=np.int64))
    sampler = implicit_examples(PreferenceData(log, users, embeddings=np.eye(4)), 4000, "popularity").sampler
    assert sampler is not None
    drawn = sampler.draw(np.array([0]), np.random.default_rng(0))
    share = np.bincount(drawn[drawn != PAD_ITEM], minlength=4) / (drawn != PAD_ITEM).sum()
    weight = np.array([1, 0, 101**0.75, 1])  # never item 1, which the user likes
    np.testing.assert_allclose(share, weight / weight.sum(), atol=0.02)


def test_popularity_is_that_of_training_users() -> None:
    # Every user has an item of their own, which is popular with nobody else.
    users = np.arange(40)
    log = Interactions(np.repeat(users, 3), np.repeat(users, 3), np.tile(np.arange(3), 40))
    examples = implicit_examples(PreferenceData(log, users, embeddings=np.eye(40)), 2, "popularity")
    parts = hold_out(examples, 0.2, np.random.default_rng(0))
    train = np.unique(parts[0].user)
    assert len(train) == 32
    for part in parts:
        assert part.sampler is not None
        weight = np.diff(part.sampler.edges, prepend=0.0)
        np.testing.assert_allclose(weight, np.where(np.isin(users, train), 4**0.75, 1.0))


def test_places_below_the_first_are_refused() -> None:
    log = shelf_log(users=6)
    position = np.where(np.arange(len(log)) == 4, -1, log.position)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"position of user 0 and item \d+ \(order 4\) is -1; expected places from 0"):
        impression_examples(shelf_data(replace(log, position=position)))


def test_in_batch_negatives_come_from_other_pages_with_their_log_q() -> None:
    data = shelf_data(positives_only(shelf_log(users=10)))
    pages = implicit_examples(data, 2)
    feed = Feed("mixed", Plan(in_batch=6, batch=16), pages, ITEMS)
    sampler, rate = pages.sampler, np.bincount(data.log.item, minlength=ITEMS) / len(data.log)
    assert sampler is not None
    seen = np.zeros(len(pages), dtype=bool)
    for batch, rows in feed.batches(pages, np.random.default_rng(0), shuffle=True):
        seen[rows] = True
        assert batch.log_q is not None
        others = batch.items[:, batch.shown.shape[1] :].numpy()
        assert np.isin(others, pages.items[rows, 0]).all()
        known = sampler.likes(pages.user[rows][:, None], others)
        expected = np.where(known, np.inf, np.log(rate[others]))
        np.testing.assert_allclose(batch.log_q[:, 1:].numpy(), expected, rtol=1e-5)
        np.testing.assert_allclose(batch.log_q[:, 0].numpy(), np.log(rate[pages.items[rows, 0]]), rtol=1e-5)
    assert seen.all()


def test_signals_of_a_log_by_hand() -> None:
    flags = {"like": np.array([1, 0, 0, 1], bool), "follow": np.zeros(4, bool)}
    log = Interactions(
        user=np.zeros(4, dtype=np.int64),
        item=np.array([0, 1, 2, 0]),
        order=np.arange(4),
        play_time=np.array([5, 5, 5, 4.9], dtype=np.float32),
        feedback=np.array([SHOWN, CLICK, NEGATIVE, ORDER], dtype=np.int8),
        signals=pack_signals(flags),
    )
    more = {"share": np.array([0.0, 1.0, 0.0, 0.0])}
    data = PreferenceData(
        log, np.array([0]), embeddings=np.eye(3), duration=np.array([10, 20, np.nan], np.float32), signals=more
    )
    found = find_signals(data)
    assert {name: value.tolist() for name, value in found.labels.items()} == {
        "click": [False, True, False, True],
        "order": [False, False, False, True],
        "negative": [False, False, True, False],
        "long_play": [True, False, False, False],
        "like": [True, False, False, True],
        "share": [False, True, False, False],
    }
    assert found.absent == {name: "it is in no event" for name in SIGNALS if name != "like"}
    assert list(find_signals(data, ("like", "click")).labels) == ["like", "click"]
    with pytest.raises(ValueError, match="signal 'follow': it is in no event; the signals present are click, order"):
        find_signals(data, ("follow",))
    with pytest.raises(ValueError, match="signal 'poke': the log has no such column"):
        find_signals(data, ("poke",))
    broken = replace(data, signals={"share": np.array([0, 1, np.nan, 0])})
    with pytest.raises(
        ValueError, match=r"signals\['share'\] of user 0 and item 2 \(order 2\) is nan; expected 0 or 1"
    ):
        find_signals(broken)
    assert log.play_time is not None
    hollow = replace(data, interactions=replace(log, play_time=np.array([5, np.nan, 5, 5], np.float32)))
    with pytest.raises(ValueError, match=r"play_time of user 0 and item 1 \(order 1\) is nan"):
        find_signals(hollow)


def test_the_shelves_are_what_the_other_tests_believe() -> None:
    assert (EMBEDDINGS.argmax(axis=1) == SHELF).all()
