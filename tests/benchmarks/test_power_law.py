"""Power laws: a known one is found, its interval holds it, flat losses have none, what cannot be fitted is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.benchmarks.power_law import fit_law, law_with_interval, slope

SIZES = (1e4, 1e5, 1e6, 1e7, 1e8)


@given(exponent=st.floats(0.05, 1.0), floor=st.floats(0.0, 3.0), scale=st.floats(0.5, 4.0))
@settings(max_examples=30, deadline=None)
def test_a_law_without_noise_is_found(exponent, floor, scale):
    losses = floor + scale * (np.array(SIZES) / SIZES[0]) ** -exponent
    told = fit_law(SIZES, losses)
    assert told["exponent"] == pytest.approx(exponent, rel=1e-3)
    assert told["r2"] > 0.999999
    assert told["floor"] >= 0


def test_without_a_floor_the_slope_is_the_exponent():
    losses = 3.0 * np.array(SIZES) ** -0.2
    assert slope(SIZES, losses) == pytest.approx(-0.2)
    told = fit_law(SIZES, losses, floor=False)
    assert told["floor"] == 0
    assert told["exponent"] == pytest.approx(0.2, rel=1e-3)
    assert told["scale"] == pytest.approx(losses[0], rel=1e-3)


def test_losses_that_do_not_fall_have_no_scale():
    told = fit_law(SIZES, [1.0, 1.1, 1.2, 1.3, 1.4])
    assert told["scale"] == 0
    assert told["floor"] == pytest.approx(1.2)
    assert fit_law(SIZES, [2.0] * 5)["r2"] == 0


def noisy(seeds, users, exponent, noise, rng):
    """Losses of each size and seed; a user's noise is the same at every size, as a hard target is hard for all."""
    mean = 1.0 + 2.0 * (np.array(SIZES) / SIZES[0]) ** -exponent
    own = [rng.normal(0, 0.3, users) + rng.normal(0, noise) for _ in range(seeds)]
    return [[level + own[s] + rng.normal(0, noise, users) for s in range(seeds)] for level in mean]


def test_the_interval_holds_the_exponent_about_as_often_as_it_says():
    held = 0
    for number in range(20):
        told = law_with_interval(SIZES, noisy(3, 200, 0.3, 0.02, np.random.default_rng(number)), 60, number)
        ends = told["exponent_interval"]
        held += ends["low"] <= 0.3 <= ends["high"]
        assert told["slope_interval"]["high"] < 0
    assert held >= 14


def test_noise_without_a_law_has_a_slope_interval_around_zero():
    rng = np.random.default_rng(1)
    losses = [[2.0 + rng.normal(0, 0.5, 40) for _ in range(2)] for _ in SIZES]
    told = law_with_interval(SIZES, losses, 200)
    assert told["slope_interval"]["low"] < 0 < told["slope_interval"]["high"]
    assert (told["seeds"], told["users"]) == (2, 80)


@pytest.mark.parametrize(
    ("sizes", "losses"), [((1, 2, 3), (1, 1, 1)), ((1, 2, 2, 3), (1, 1, 1, 1)), ((1, 2, 3, 4), (1, 1, 1))]
)
def test_too_few_sizes_are_refused(sizes, losses):
    with pytest.raises(ValueError, match="at least 4 sizes"):
        fit_law(sizes, losses)


@pytest.mark.parametrize("losses", [(1, 1, 1, float("nan")), (1, 1, 1, 0)])
def test_losses_that_are_none_are_refused(losses):
    with pytest.raises(ValueError, match="above 0"):
        fit_law((1, 2, 3, 4), losses)


def test_sizes_with_other_seeds_are_refused():
    with pytest.raises(ValueError, match="the same seeds"):
        law_with_interval((1, 2, 3, 4), [[np.ones(3)]] * 3 + [[np.ones(3)] * 2])
