"""Calibration: maps from logits to probabilities, and how they are judged."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.envs.preference.calibration import (
    CALIBRATIONS,
    Calibrator,
    expected_calibration_error,
    fit_calibrator,
    judge_calibrator,
    reliability,
    sigmoid,
)


def known_curve(slope: float, offset: float, size: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and outcomes whose log odds are ``slope * logit + offset``."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=size) * 2
    return logits, rng.random(size) < sigmoid(slope * logits + offset)


@pytest.mark.parametrize(("slope", "offset"), [(0.5, -1.0), (2.0, 0.5), (1.0, 0.0)])
def test_platt_finds_the_curve_that_made_the_outcomes(slope: float, offset: float) -> None:
    found = fit_calibrator(*known_curve(slope, offset))
    np.testing.assert_allclose(found.points[0], (slope, offset), atol=0.06)


def test_temperature_keeps_one_half_where_it_is() -> None:
    found = fit_calibrator(*known_curve(0.4, 0.0), "temperature")
    assert found.points[0][1] == 0.0
    assert found.points[0][0] == pytest.approx(0.4, abs=0.03)
    assert found(np.array([0.0])).tolist() == [0.5]


def test_isotonic_follows_a_curve_that_no_platt_does() -> None:
    rng = np.random.default_rng(0)
    logits = rng.uniform(-3, 3, 20_000)
    truth = np.where(logits < -1, 0.1, np.where(logits < 1, 0.2, 0.9))
    outcomes = rng.random(len(logits)) < truth
    steps, line = (fit_calibrator(logits, outcomes, kind) for kind in ("isotonic", "platt"))
    away = np.minimum(abs(logits - 1), abs(logits + 1)) > 0.1
    assert np.abs(steps(logits) - truth)[away].mean() < 0.02
    assert np.abs(line(logits) - truth)[away].mean() > 0.05


@pytest.mark.parametrize("kind", CALIBRATIONS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_maps_rise_stay_in_the_unit_interval_and_survive_json(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=40) * 10 ** rng.uniform(-2, 2)
    found = fit_calibrator(logits, rng.random(40) < 0.3, kind)
    grid = np.sort(np.concatenate([logits, [-1e9, 1e9]]))
    values = found(grid)
    assert ((values >= 0) & (values <= 1)).all()
    assert (np.diff(values) >= 0).all()
    if kind == "isotonic":
        assert values[0] > 0  # 40 examples do not prove a certainty
        assert values[-1] < 1
    np.testing.assert_array_equal(Calibrator.from_json(found.to_json())(grid), values)


def test_a_perfect_or_a_reversed_order_does_not_ask_for_an_infinite_or_falling_map() -> None:
    logits = np.linspace(-1, 1, 50)
    perfect = fit_calibrator(logits, logits > 0)
    assert 0 < perfect(np.array([-1.0]))[0] < 0.1
    assert 0.9 < perfect(np.array([1.0]))[0] < 1
    reversed_ = fit_calibrator(logits, logits < 0)
    assert 0 < reversed_.points[0][0] < 0.01
    np.testing.assert_allclose(reversed_(logits), 0.5, atol=0.01)
    with_one_class = fit_calibrator(logits, np.zeros(50, dtype=bool))
    assert with_one_class(logits).max() < 0.1


def test_what_is_not_finite_is_refused_by_its_example() -> None:
    outcomes = np.array([0.0, 1.0, 0.0])
    with pytest.raises(ValueError, match=r"example 1 is nan with outcome 1\.0"):
        fit_calibrator(np.array([0.0, np.nan, 1.0]), outcomes)
    with pytest.raises(ValueError, match=r"example 2 is 1\.0 with outcome nan"):
        fit_calibrator(np.array([0.0, 0.0, 1.0]), np.array([0, 1, np.nan]))
    with pytest.raises(ValueError, match="there are none"):
        fit_calibrator(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="expected one of platt, temperature, isotonic, none, got 'beta'"):
        fit_calibrator(outcomes, outcomes, "beta")


def test_reliability_by_hand() -> None:
    p = np.array([0.1, 0.3, 0.3, 0.3, 0.8, 0.9])
    y = np.array([0, 1, 0, 0, 1, 1])
    curve = reliability(p, y, bins=3)
    # The second quantile falls among the equal 0.3, which stay together.
    assert [(part["low"], part["high"], part["count"]) for part in curve] == [(0.1, 0.1, 1), (0.3, 0.3, 3),
                                                                             (0.8, 0.9, 2)]  # fmt: skip
    assert [part["observed"] for part in curve] == pytest.approx([0, 1 / 3, 1])
    assert [part["predicted"] for part in curve] == pytest.approx([0.1, 0.3, 0.85])
    assert expected_calibration_error(curve) == pytest.approx((0.1 + 3 * (1 / 3 - 0.3) + 2 * 0.15) / 6)
    assert reliability(np.zeros(0), np.zeros(0)) == []
    assert expected_calibration_error([]) == 0.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=80), st.integers(1, 20))
def test_every_example_is_in_one_bin_and_equal_ones_in_the_same(rows: list[tuple[int, bool]], bins: int) -> None:
    p, y = np.array([value for value, _ in rows]) / 8, np.array([value for _, value in rows])
    curve = reliability(p, y, bins)
    assert sum(part["count"] for part in curve) == len(rows)
    assert sum(part["observed"] * part["count"] for part in curve) == pytest.approx(y.sum())
    assert len(curve) <= bins
    assert all(one["high"] < two["low"] for one, two in itertools.pairwise(curve))


def test_calibration_is_seen_in_the_figures() -> None:
    logits, outcomes = known_curve(0.5, -1.0)
    fresh = known_curve(0.5, -1.0, seed=1)
    told = judge_calibrator(fit_calibrator(logits, outcomes), *fresh)
    assert told["ece"] < 0.02 < 0.1 < told["ece_before"]
    assert told["log_loss"] < told["log_loss_before"]
    assert told["base_rate"] == pytest.approx(fresh[1].mean())
    assert told["valid_rows"] == len(fresh[0])
    assert told["calibration"]["kind"] == "platt"
    # A known prior is no fault of the scores.
    shifted = judge_calibrator(Calibrator("none"), fresh[0] * 0.5 + 3.0, fresh[1], prior=4.0)
    assert shifted["ece_before"] < 0.02 < shifted["ece"]


def test_outcomes_may_be_shares() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=5000)
    shares = np.clip(sigmoid(0.7 * logits) + 0.1 * rng.normal(size=5000), 0, 1)
    told = judge_calibrator(fit_calibrator(logits, shares), logits, shares)
    assert told["ece"] < 0.02
    assert told["base_rate"] == pytest.approx(shares.mean())
