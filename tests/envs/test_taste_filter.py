"""The filter over tastes: equal to Bayes' rule taste by taste, empty places and drift included."""

from itertools import product

import numpy as np
import pytest

from sidgym.envs.records import CLICK, PAD_ITEM
from sidgym.envs.simulator import SimulatorConfig, World, make_world
from sidgym.envs.taste_filter import TasteFilter, best

TINY = SimulatorConfig(
    items=9, page_size=3, departments=2, shelves_per_department=2, styles=2, drift=0.3, base=-1.0, weight_now=1.5,
    dislike_rate=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(TINY, np.random.SeedSequence(4))[0]


def _pages(world: World, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pages with every kind of answer and with empty places."""
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(9)[:3] for _ in range(count)])
    items[rng.random(items.shape) < 0.3] = PAD_ITEM
    feedback = np.where(items == PAD_ITEM, 0, rng.integers(-1, 3, size=items.shape)).astype(np.int8)
    played = world.duration[items] * rng.random(items.shape)
    return items, feedback, np.where(feedback >= CLICK, played, 0).astype(np.float32)


def _likelihood(
    world: World, taste: tuple[int, ...], items: np.ndarray, feedback: np.ndarray, play: np.ndarray
) -> float:
    """Probability (density) of one page's answers under a taste, written out."""
    config, total = world.config, 1.0
    for place, item in enumerate(items):
        if item == PAD_ITEM:
            continue
        p = float(world.preference_of_states(np.array([taste]), np.array([[item]]))[0, 0])
        click = p * (1 + place) ** -config.examine_exponent
        dislike = (1 - click) * config.dislike_rate * (1 - p)
        order = click * config.order_rate * p
        total *= {-1: dislike, 0: 1 - click - dislike, 1: click - order, 2: order}[int(feedback[place])]
        if feedback[place] >= CLICK:
            alpha = config.play_base + config.play_slope * p
            total *= alpha * (play[place] / world.duration[item]) ** (alpha - 1)
    return total


def test_prior_drift_and_learning_are_bayes_rule_taste_by_taste(world: World) -> None:
    tastes, count = list(product(range(4), range(4), range(2))), 6
    tracker, kernel = TasteFilter(world), world.drift_kernel
    prior = np.array([world.shelf_prior[a] * kernel[a, b] * world.style_prior[s] for a, b, s in tastes])
    expected = np.repeat(prior[None], count, axis=0)
    belief = tracker.prior(count)
    starts = np.arange(count) % 2 == 0
    moves = np.array(
        [
            [((a, s) == (c, t)) * ((1 - TINY.drift) * (b == d) + TINY.drift * kernel[a, d]) for c, d, t in tastes]
            for a, b, s in tastes
        ]
    )
    for step in range(3):
        items, feedback, play = _pages(world, count, step)
        weight = np.array(
            [[_likelihood(world, taste, *page) for taste in tastes] for page in zip(items, feedback, play)]
        )
        expected = expected * weight / (expected * weight).sum(axis=1, keepdims=True)
        expected[starts] = expected[starts] @ moves
        belief = tracker.drift(tracker.learn(belief, items, feedback, play), starts)
        np.testing.assert_allclose(belief.reshape(count, -1), expected, atol=2e-6)
    assert np.abs(expected - prior).max() > 0.2  # the pages do move the belief
    table = world.preference_of_states(np.array(tastes))
    np.testing.assert_allclose(tracker.expected_preference(belief), expected @ table, atol=2e-6)
    items, values = tracker.top(belief, 2)
    np.testing.assert_allclose(values, -np.sort(-(expected @ table), axis=1)[:, :2], atol=2e-6)
    np.testing.assert_allclose(np.take_along_axis(expected @ table, items, axis=1), values, atol=2e-6)


def test_an_empty_page_teaches_nothing_and_beliefs_are_not_changed_in_place(world: World) -> None:
    tracker = TasteFilter(world)
    items, feedback, play = _pages(world, 5, 9)
    belief = tracker.learn(tracker.prior(5), items, feedback, play)
    before = belief.copy()
    empty = np.full((5, 3), PAD_ITEM)
    np.testing.assert_allclose(tracker.learn(belief, empty, 0 * feedback, 0 * play), belief, atol=1e-6)
    tracker.drift(belief, np.ones(5, dtype=bool))
    tracker.learn(belief, items, feedback, play)
    np.testing.assert_array_equal(belief, before)


def test_shoppers_are_followed_apart_from_each_other(world: World) -> None:
    tracker = TasteFilter(world)
    items, feedback, play = _pages(world, 7, 3)
    together = tracker.learn(tracker.prior(7), items, feedback, play)
    parts = tracker.learn(tracker.prior(7), items, feedback, play, rows=2)
    np.testing.assert_allclose(parts, together, atol=1e-7)
    np.testing.assert_allclose(
        tracker.expected_preference(together, rows=3), tracker.expected_preference(together), atol=1e-6
    )


def test_best_sorts_and_refuses_more_items_than_there_are() -> None:
    items, values = best(np.array([[0.1, 0.5, 0.5, 0.2]]), 3)
    assert items.tolist() == [[1, 2, 3]]
    assert values.tolist() == [[0.5, 0.5, 0.2]]
    with pytest.raises(ValueError, match="1 to 4"):
        best(np.zeros((1, 4)), 5)
