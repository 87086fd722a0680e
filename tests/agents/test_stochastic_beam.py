"""Draws without replacement against the law that they should follow, by enumeration."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents.engine import TorchEngine


def law(scores: np.ndarray, count: int) -> dict[tuple[int, ...], float]:
    """Probability of each ordered choice of ``count`` among SIDs with log-probabilities ``scores``."""
    chances = np.exp(scores)
    out = {}
    for order in permutations(range(len(scores)), count):
        left, probability = 1.0, 1.0
        for place in order:
            probability *= chances[place] / left
            left -= chances[place]
        out[order] = probability
    return out


@pytest.mark.parametrize("sizes", [(3, 3), (6,), (2, 2, 2)])
def test_draws_follow_the_law_of_sampling_without_replacement(sizes):
    table = toy_table(6, sizes, seed=3)
    policy = toy_policy(table, seed=3, scale=6.0)
    episodes = toy_episodes(1, 6, seed=3)
    engine = TorchEngine(policy)
    every = engine.rollout(episodes, 6)
    contexts, lanes, count = 1000, 20, 3
    same = replace(episodes.take([0] * contexts), index=np.arange(contexts))
    drawn = engine.rollout(same, count, "stochastic_beam", seed=5, lanes=lanes)
    assert drawn.codes.shape == (contexts, lanes * count, len(sizes))
    assert drawn.valid.all()
    place = {int(item): rank for rank, item in enumerate(every.item[0])}
    orders = [tuple(place[int(item)] for item in page) for page in drawn.item.reshape(-1, count)]
    assert all(len(set(order)) == count for order in orders)
    expected = law(every.score[0].astype(np.float64), count)
    for order, probability in expected.items():
        seen = sum(o == order for o in orders) / len(orders)
        assert abs(seen - probability) < 5 * np.sqrt(probability / len(orders)) + 1e-4, (order, probability, seen)


def test_log_probabilities_are_those_of_the_beam():
    table = toy_table(20, seed=1)
    engine = TorchEngine(toy_policy(table, seed=1))
    episodes = toy_episodes(4, 20, seed=1)
    every, drawn = engine.rollout(episodes, 20), engine.rollout(episodes, 5, "stochastic_beam", seed=2, lanes=3)
    for row in range(4):
        score = dict(zip(every.item[row].tolist(), every.score[row]))
        for item, value in zip(drawn.item[row].tolist(), drawn.score[row]):
            assert abs(score[item] - value) < 1e-4


def test_each_context_has_its_own_stream_whatever_stands_beside_it():
    table = toy_table(20, seed=1)
    engine = TorchEngine(toy_policy(table, seed=1))
    episodes = toy_episodes(4, 20, seed=1)
    whole = engine.rollout(episodes, 5, "stochastic_beam", seed=2, lanes=3)
    alone = engine.rollout(episodes.take([2]), 5, "stochastic_beam", seed=2, lanes=3)
    np.testing.assert_array_equal(whole.codes[2], alone.codes[0])
    other = engine.rollout(episodes, 5, "stochastic_beam", seed=3, lanes=3)
    assert (whole.codes != other.codes).any()


def test_slots_beyond_the_catalogue_are_invalid_in_every_lane():
    table = toy_table(4, (2, 2), seed=1)
    engine = TorchEngine(toy_policy(table, seed=1))
    drawn = engine.rollout(toy_episodes(2, 4, seed=1), 6, "stochastic_beam", lanes=3)
    assert drawn.valid.reshape(2, 3, 6).sum(-1).tolist() == [[4] * 3] * 2
    assert drawn.valid.reshape(2, 3, 6)[..., :4].all()


def test_lanes_are_for_draws_without_replacement_only():
    table = toy_table(4, (2, 2), seed=1)
    engine = TorchEngine(toy_policy(table, seed=1))
    with pytest.raises(ValueError, match="lanes must be at least 1"):
        engine.rollout(toy_episodes(2, 4, seed=1), 2, "beam", lanes=2)
