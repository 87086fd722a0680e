"""Bootstrap intervals: hand values, determinism and coverage."""

import numpy as np
import pytest

from sidgym.envs import statistics
from sidgym.envs.statistics import bootstrap_mean, paired_bootstrap


def test_constant_difference_has_no_width() -> None:
    a = np.array([0.3, 0.1, 0.9])
    assert paired_bootstrap(a + 0.5, a, 200, 0) == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})


def test_interval_agrees_with_the_normal_one_for_many_users() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, size=2000)
    result = bootstrap_mean(values, 2000, 1)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert result["mean"] == pytest.approx(values.mean())
    assert result["low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert result["high"] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 10, size=500)
    a, b = shared + 0.5 + rng.normal(0, 0.1, 500), shared
    paired = paired_bootstrap(a, b, 500, 0)
    assert paired["low"] > 0
    assert bootstrap_mean(a, 500, 0)["low"] < 0


def test_about_95_percent_of_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(3)
    inside = 0
    for trial in range(300):
        result = bootstrap_mean(rng.exponential(size=100), 300, trial)
        inside += result["low"] <= 1.0 <= result["high"]
    assert 0.88 <= inside / 300 <= 0.99


def test_same_seed_same_interval_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_mean(values, 100, 7)
    assert bootstrap_mean(values, 100, 8) != whole
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 151)
    assert bootstrap_mean(values, 100, 7) == whole


@pytest.mark.parametrize("bad", [np.array([0.1, np.nan]), np.array([]), np.zeros((2, 2))])
def test_bad_values_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"not finite|shape \(U,\)"):
        bootstrap_mean(bad, 10, 0)


def test_unpaired_lengths_and_no_resamples_are_refused() -> None:
    with pytest.raises(ValueError, match="same users"):
        paired_bootstrap(np.zeros(3), np.zeros(4), 10, 0)
    with pytest.raises(ValueError, match="at least one resample"):
        bootstrap_mean(np.zeros(3), 0, 0)
