"""Models of graded feedback: towers for any subset of signals, and labels that know how long an item lasts."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preference_cases import DURATION, EMBEDDINGS, ITEMS, SHELF, SMALL, shelf_data, shelf_log

from sidgym.envs.preference import PreferenceData, fit_preference
from sidgym.envs.preference.duration_aware import duration_labels
from sidgym.envs.records import CLICK, NEGATIVE, PAD_ITEM, SHOWN, Interactions

SIGNALS = ("click", "order", "negative", "long_play", "like")
SUBSETS = [subset for size in range(1, 6) for subset in itertools.combinations(SIGNALS, size)]
HISTORY = np.array([[shelf, shelf + 4, shelf + 8] for shelf in range(4)])
EVERYTHING = np.broadcast_to(np.arange(ITEMS), (4, ITEMS))
LOVED = np.arange(4)[:, None] == SHELF


@pytest.mark.parametrize("names", SUBSETS[::4], ids="+".join)
def test_any_subset_of_signals_will_do(names: tuple[str, ...]) -> None:
    model: Any = fit_preference("pscore", shelf_data(shelf_log(users=24)), signals=names, hidden=8, heads=2, epochs=1)
    assert model.report["signals"] == list(names)
    assert set(model.report["towers"]) == set(names)
    parts = model.scores_by_signal(HISTORY, np.concatenate([EVERYTHING, np.full((4, 1), PAD_ITEM)], axis=1))
    assert list(parts) == list(names)
    for score in parts.values():
        assert score.shape == (4, ITEMS + 1)
        assert (score[:, -1] == 0).all()
        assert ((score[:, :-1] > 0) & (score[:, :-1] < 1)).all()


def test_without_names_every_signal_of_the_log_has_a_tower_that_learns_it() -> None:
    model: Any = fit_preference("pscore", shelf_data(), 0, **SMALL["pscore"])
    assert model.report["signals"] == ["click", "order", "negative", "long_play", "like"]
    parts = model.scores_by_signal(HISTORY, EVERYTHING)
    for name in ("click", "order", "long_play", "like"):
        assert parts[name][LOVED].mean() > 3 * parts[name][~LOVED].mean(), name
    hated = (np.arange(4)[:, None] + 1) % 4 == SHELF
    assert parts["negative"][hated].mean() > 1.2 * parts["negative"][~hated].mean()
    for name, figures in model.report["towers"].items():
        assert figures["log_loss"] < figures["base_log_loss"], name


def test_a_goal_weighs_signals_and_its_score_is_their_expected_sum() -> None:
    data = shelf_data(shelf_log(users=240))
    clicks, orders = (
        fit_preference("pscore", data, 0, goal=goal, **SMALL["pscore"])
        for goal in ({"click": 1.0}, {"click": 1.0, "order": 3.0, "negative": -1.0})
    )
    assert data.log.feedback is not None
    value = np.array([0, 0, 1, 4])[data.log.feedback + 1] / 4  # NEGATIVE is cut to 0
    assert orders.report["base_rate"] == pytest.approx(value.mean(), rel=0.3)
    rate = data.log.feedback >= CLICK
    assert clicks.report["base_rate"] == pytest.approx(rate.mean(), rel=0.3)
    # Half of the users order half of what they click.
    ratio = orders.score(HISTORY, EVERYTHING)[LOVED].mean() / clicks.score(HISTORY, EVERYTHING)[LOVED].mean()
    assert ratio == pytest.approx((0.75 * 1 + 0.25 * 4) / 4, rel=0.2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"signals": ("click", "poke")}, "signal 'poke': the log has no such column"),
        ({"goal": {"poke": 1.0}}, "goal: expected weights of click"),
        ({"goal": {"negative": -1.0}}, "at least one of them above 0"),
        ({"goal": {"click": 1.0, "order": float("nan")}}, "finite and at least one of them above 0"),
        ({"weights": {"click": float("nan")}}, "weights: expected a finite number"),
        ({"weights": {"poke": 1.0}}, "weights: expected a finite number of at least 0 for click"),
        ({"negatives": "uniform"}, "needs Interactions.feedback with refusals, and negatives = 'impressions'"),
        ({"hidden": 10}, r"hidden \(10\) must be a multiple of heads \(4\)"),
    ],
)
def test_what_a_pscore_cannot_be_fitted_with(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_preference("pscore", shelf_data(shelf_log(users=8)), **more)


def test_a_tower_without_weight_does_not_learn() -> None:
    data = shelf_data(shelf_log(users=60))
    told: list[float] = []
    for weight in (0.0, 1.0):
        model: Any = fit_preference("pscore", data, 0, weights={"like": weight}, **SMALL["pscore"])
        parts = model.scores_by_signal(HISTORY, EVERYTHING)["like"]
        told.append(parts[LOVED].mean() / parts[~LOVED].mean())
    assert told[0] < 2 < told[1]


def plays() -> PreferenceData:
    """User 0: three plays of short items (8 to 15 s) and two of long ones (64 to 127 s), one not played, one disliked,
    one whose duration is not known. User 1: one play."""
    duration = np.array([8, 15, 10, 64, 127, np.nan, 9], dtype=np.float32)
    return PreferenceData(
        Interactions(
            user=np.array([0] * 8 + [1]),
            item=np.array([0, 1, 2, 3, 4, 5, 6, 0, 3]),
            order=np.r_[np.arange(8), 0],
            play_time=np.array([2, 6, 6, 50, 20, 9, 8, 0, 3], dtype=np.float32),
            feedback=np.array([SHOWN] * 6 + [NEGATIVE, SHOWN, CLICK], dtype=np.int8),
        ),
        np.array([0, 1]),
        embeddings=np.eye(7),
        duration=duration,
    )


def test_duration_labels_by_hand() -> None:
    told = duration_labels(plays(), tau=0.7)
    # Bucket 8-15 s of user 0 holds plays of 2, 6, 6 and (the disliked one) 8 s; bucket 64-127 s holds 50 and 20 s.
    nan = np.nan
    np.testing.assert_allclose(told.percentile, [0.125, 0.5, 0.5, 0.75, 0.25, nan, 0.875, nan, 0.5])
    assert told.label.tolist() == [0, 0, 0, 1, 0, 0, -1, 0, 0]
    assert told.known.tolist() == [True] * 5 + [False] + [True] * 3
    assert told.label.dtype == np.int8
    # Half an octave a bucket: 8, 10 and 9 s are apart from 15 s, and 64 from 127.
    finer = duration_labels(plays(), tau=0.7, buckets=2.0)
    np.testing.assert_allclose(finer.percentile, [1 / 6, 0.5, 0.5, 0.5, 0.5, nan, 5 / 6, nan, 0.5])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(0.1, 10))
def test_a_users_pace_does_not_matter(seed: int, factor: float) -> None:
    data = shelf_data(shelf_log(seed % 100, users=6))
    log = data.log
    assert log.play_time is not None
    # Whoever plays all items so much longer has the same labels. A power of two, so that ties stay ties.
    pace = np.where(log.user == 3, 2.0 ** np.round(np.log2(factor)), 1.0)
    faster = replace(data, interactions=replace(log, play_time=(log.play_time * pace).astype(np.float32)))
    np.testing.assert_array_equal(duration_labels(data).label, duration_labels(faster).label)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), tau=st.floats(0.05, 0.95))
def test_percentiles_agree_with_a_plain_loop(seed: int, tau: float) -> None:
    rng = np.random.default_rng(seed)
    size = 40
    user = np.sort(rng.integers(0, 3, size))
    log = Interactions(
        user=user,
        item=rng.integers(0, ITEMS, size),
        order=np.arange(size),
        play_time=rng.integers(0, 5, size).astype(np.float32),
        feedback=rng.integers(-1, 2, size).astype(np.int8),
    )
    told = duration_labels(shelf_data(log, np.arange(3)), tau)
    bucket = np.floor(np.log2(DURATION[log.item]))
    assert log.play_time is not None
    for row in range(size):
        same = (user == user[row]) & (bucket == bucket[row]) & (log.play_time > 0)
        theirs, own = log.play_time[same], log.play_time[row]
        if own == 0:
            assert np.isnan(told.percentile[row])
            assert told.label[row] <= 0
            continue
        wanted = ((theirs < own).sum() + (theirs == own).sum() / 2) / len(theirs)
        assert told.percentile[row] == pytest.approx(wanted)


def test_a_log_without_play_time_or_duration_is_refused_by_what_is_missing() -> None:
    log = shelf_log(users=8)
    with pytest.raises(ValueError, match="this log has no play_time; use 'sim' or 'pscore'"):
        fit_preference("duration_aware", shelf_data(replace(log, play_time=None)))
    with pytest.raises(ValueError, match="this log has no feedback and no duration;"):
        fit_preference("duration_aware", shelf_data(replace(log, feedback=None), duration=None))
    assert log.play_time is not None
    broken = log.play_time.copy()
    broken[33] = np.nan
    with pytest.raises(ValueError, match=r"play_time of user 1 and item \d+ \(order 3\) is nan; expected seconds"):
        fit_preference("duration_aware", shelf_data(replace(log, play_time=broken)))
    with pytest.raises(ValueError, match="expected tau in"):
        fit_preference("duration_aware", shelf_data(log), tau=1.0)
    with pytest.raises(ValueError, match=r"no play exceeds the percentile tau = 0\.99"):
        fit_preference("duration_aware", shelf_data(log), tau=0.99)
    with pytest.raises(ValueError, match="negatives must be 'impressions', got 'in_batch'"):
        fit_preference("duration_aware", shelf_data(log), negatives="in_batch")


def test_items_of_unknown_duration_are_left_out_and_counted() -> None:
    few = np.where(np.arange(ITEMS) == 2, DURATION, np.nan).astype(np.float32)
    log = shelf_log(users=40)
    assert log.feedback is not None
    kept = ((log.item == 2) | (log.feedback == NEGATIVE)).sum()
    # Most pages hold nothing that can be told, and small batches none at all.
    model = fit_preference("duration_aware", shelf_data(log, duration=few), hidden=8, heads=2, epochs=2, batch=2)
    assert model.report["rows_without_duration"] == len(log) - kept
    assert 0 < model.report["shares"]["plus"] < 1
    assert np.isfinite(model.report["log_loss"])


def test_long_items_are_not_wanted_for_their_length() -> None:
    """Everybody plays half of every item, so that play time says only how long items are; what is disliked still shows.

    The raw play time would rank all long items first.
    """
    log = shelf_log(users=120)
    rng = np.random.default_rng(0)
    share = 0.5 + 0.1 * rng.random(len(log))
    log = replace(log, play_time=(share * DURATION[log.item]).astype(np.float32))
    model = fit_preference("duration_aware", shelf_data(log), 0, **SMALL["duration_aware"])
    scores = model.score(HISTORY, EVERYTHING)
    long, hated = DURATION > 50, (np.arange(4)[:, None] + 1) % 4 == SHELF
    assert scores[:, long].mean() / scores[:, ~long].mean() == pytest.approx(1, abs=0.35)
    assert scores[hated].mean() < scores[~hated].mean()


def test_the_embeddings_know_no_duration() -> None:
    assert EMBEDDINGS[DURATION > 50].mean(axis=0) == pytest.approx(EMBEDDINGS[DURATION < 50].mean(axis=0))
