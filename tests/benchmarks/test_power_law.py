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


def noisy(seeds, users, shared, training, hard, rng):
    """Losses of each size and seed around a law with exponent 0.3. ``training``: noise of each model; ``hard``: of each
    user with each size; users are the same in all seeds, or others."""
    mean = 1.0 + 2.0 * (np.array(SIZES) / SIZES[0]) ** -0.3
    common = rng.normal(0, hard, (len(SIZES), users))
    losses = []
    for m, level in enumerate(mean):
        own = [common[m] if shared else rng.normal(0, hard, users) for _ in range(seeds)]
        losses.append([level + one + rng.normal(0, training) + rng.normal(0, 0.05, users) for one in own])
    return losses, mean


@pytest.mark.parametrize(
    ("seeds", "shared", "training", "hard"), [(2, False, 0.02, 0.05), (3, False, 0.02, 0.3), (3, True, 0.01, 0.5)]
)
def test_intervals_hold_the_truth_as_often_as_they_say(seeds, shared, training, hard):
    count, held = 60, {"exponent": 0, "slope": 0, "floor": 0}
    for number in range(count):
        losses, mean = noisy(seeds, 100, shared, training, hard, np.random.default_rng(number))
        told = law_with_interval(SIZES, losses, 40, number, same_users=shared)
        truth = {"exponent": 0.3, "slope": slope(SIZES, mean), "floor": 1.0}
        for name in held:
            held[name] += told[f"{name}_interval"]["low"] <= truth[name] <= told[f"{name}_interval"]["high"]
    assert min(held.values()) >= 0.9 * count, held  # 57 are expected


def test_no_figure_lies_outside_of_its_interval():
    rng = np.random.default_rng(3)
    flat = (1.46, 1.10, 1.097, 1.104, 1.109)  # the fitted floor is above the lowest of these
    losses = [[level + rng.normal(0, 0.02) + np.zeros(9) for _ in range(3)] for level in flat]
    told = law_with_interval(SIZES, losses)
    for name in ("exponent", "slope", "floor"):
        assert told[f"{name}_interval"]["low"] <= told[name] <= told[f"{name}_interval"]["high"]


def test_noise_without_a_law_has_a_slope_interval_around_zero():
    rng = np.random.default_rng(1)
    losses = [[2.0 + rng.normal(0, 0.5, 40) for _ in range(2)] for _ in SIZES]
    told = law_with_interval(SIZES, losses, 200)
    assert told["slope_interval"]["low"] < 0 < told["slope_interval"]["high"]
    assert (told["seeds"], told["users"]) == (2, 80)


def test_users_that_all_seeds_share_are_counted_once_and_not_averaged_away():
    rng = np.random.default_rng(2)
    users = [2.0 + rng.normal(0, 0.5, 40) for _ in SIZES]
    one = [[row] for row in users]
    three = [[row + 1e-6 * rng.normal() for _ in range(3)] for row in users]  # the same models three times over
    alone, same = law_with_interval(SIZES, one, 200), law_with_interval(SIZES, three, 200, same_users=True)
    width = [told["slope_interval"]["high"] - told["slope_interval"]["low"] for told in (alone, same)]
    assert width[1] >= width[0]
    assert same["users"] == alone["users"] == 40
    with pytest.raises(ValueError, match=r"the seeds judged \[3, 2\] users"):
        law_with_interval((1, 2, 3, 4), [[np.ones(3), np.ones(2)]] * 4, same_users=True)


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
