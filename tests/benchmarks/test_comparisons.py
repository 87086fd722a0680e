"""Paired comparisons: Holm by hand, the t test over seeds, how often a true null is rejected, what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from sidgym.benchmarks.comparisons import (
    compare,
    holm,
    interval,
    mean_of,
    over_seeds,
    over_users,
    shown,
    users_interval,
)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_never_helps(values):
    corrected = holm(values)
    assert all(p <= c <= 1.0 for p, c in zip(values, corrected))
    ranked = [c for _, c in sorted(zip(values, corrected))]
    assert ranked == sorted(ranked)
    if values:
        assert min(corrected) == min(1.0, len(values) * min(values))


@pytest.mark.parametrize("wrong", [[float("nan")], [-0.1], [1.1]])
def test_holm_refuses_what_is_no_probability(wrong):
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm(wrong)


def seeds_of(rng, seeds=4, users=30, mean=0.0, spread=0.1):
    return {s: rng.normal(mean + rng.normal(0, spread), 1.0, users + 3 * s) for s in range(seeds)}


def test_seeds_with_users_of_their_own_are_a_t_test_over_their_means():
    values = seeds_of(np.random.default_rng(0), mean=0.4)
    told, judged = interval(values), ttest_1samp([part.mean() for part in values.values()], 0.0)
    low, high = judged.confidence_interval()
    assert [told[key] for key in ("p", "low", "high")] == pytest.approx([judged.pvalue, low, high])
    assert told["mean"] == pytest.approx(mean_of(values))


def test_one_seed_is_a_t_test_over_users():
    values = {7: np.random.default_rng(0).normal(0.2, 1, 50)}
    judged = ttest_1samp(values[7], 0.0)
    for told in (interval(values), users_interval(values), interval(values, same_users=True)):
        assert told["p"] == pytest.approx(judged.pvalue)


def test_the_same_users_add_their_own_spread():
    rng = np.random.default_rng(1)
    users = rng.normal(0.3, 1.0, 40)
    values = {s: users + rng.normal(0, 0.01, 40) for s in range(3)}
    apart, same = interval(values), interval(values, same_users=True)
    assert same["low"] < 0 < apart["low"]  # the seeds agree, but the users might be others
    assert users_interval(values, same_users=True)["p"] == pytest.approx(
        ttest_1samp(np.mean(list(values.values()), axis=0), 0.0).pvalue
    )


@pytest.mark.parametrize(("spread", "same"), [(0.0, False), (0.3, False), (3.0, False), (0.0, True), (0.3, True)])
def test_a_true_null_is_rejected_no_more_often_than_said(spread, same):
    rng, found = np.random.default_rng(2), []
    for _ in range(600):
        users = rng.normal(0, 1, 20) if same else 0.0
        values = {s: users + rng.normal(rng.normal(0, spread), 1.0, 20) for s in range(3)}
        found.append(interval(values, same)["p"] < 0.05)
    assert np.mean(found) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(found))


def test_a_clear_difference_is_found():
    rng = np.random.default_rng(3)
    assert interval({s: rng.normal(1.0, 1.0, 200) for s in range(5)})["p"] < 0.001


def test_bootstrap_over_users_counts_every_seed_the_same_and_leaves_their_differences_out():
    told = over_users({0: np.zeros(300), 1: np.ones(10)}, False, 200, 0)
    assert [told[key] for key in ("mean", "low", "high")] == pytest.approx([0.5] * 3)  # all users of a seed are alike
    rng = np.random.default_rng(5)
    parts = {s: rng.normal(s, 1.0 + s, 400 * (s + 1)) for s in range(3)}
    told, error = over_users(parts, False, 4000, 0), np.sqrt(sum(p.var() / len(p) for p in parts.values())) / 3
    assert [told["low"], told["high"]] == pytest.approx(
        [told["mean"] - 1.96 * error, told["mean"] + 1.96 * error], abs=0.01
    )


def test_over_seeds():
    assert over_seeds([0.5]) == {"mean": 0.5, "low": 0.5, "high": 0.5}
    told = over_seeds([1.0, 2.0, 3.0])
    assert told["mean"] == 2.0
    assert told["high"] - 2.0 == pytest.approx(4.302653 / np.sqrt(3), rel=1e-5)


def test_pairs_are_over_the_seeds_that_both_have():
    rng = np.random.default_rng(4)
    base = {s: rng.normal(0, 1, 40) for s in range(4)}
    better = {s: values + 1.0 + 0.01 * rng.normal(size=40) for s, values in base.items() if s > 0}
    other = {9: rng.normal(0, 1, 40)}
    pairs = compare({"better": better, "base": base, "other": other}, "m", resamples=100)
    assert [(pair["a"], pair["b"]) for pair in pairs] == [("better", "base")]
    assert list(pairs[0]["seeds"]) == ["1", "2", "3"]
    assert shown(pairs[0]) == 1
    assert pairs[0]["p_holm"] == pairs[0]["p"]  # a family of one
    assert pairs[0]["users"]["low"] < pairs[0]["mean"] < pairs[0]["users"]["high"]
    assert shown({**pairs[0], "p_holm": 0.06}) == 0


def test_equal_systems_do_not_differ():
    values = {s: np.arange(5.0) for s in range(3)}
    (pair,) = compare({"a": values, "b": values}, "m", resamples=10)
    assert (pair["mean"], pair["p"], shown(pair)) == (0.0, 1.0, 0)


@pytest.mark.parametrize(
    ("values", "same", "said"),
    [
        ({0: np.ones(1)}, False, "at least two users"),
        ({0: np.array([1.0, np.nan])}, False, "finite"),
        ({0: np.ones(3), 1: np.ones(4)}, True, "not the same ones"),
        ({}, False, "at least two users"),
    ],
)
def test_what_cannot_be_compared_is_refused(values, same, said):
    with pytest.raises(ValueError, match=said):
        interval(values, same)


def test_systems_of_a_seed_have_the_same_users():
    with pytest.raises(ValueError, match="same users"):
        compare({"a": {0: np.ones(3)}, "b": {0: np.ones(4)}}, "m")
