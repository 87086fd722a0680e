"""The collaborative reward: the logit of the model's score, finite at the ends, NaN refused, a logit's advantages."""

import numpy as np
import pytest
from reward_cases import context, make_episodes, make_rollouts

from sidgym.envs.records import PAD_ITEM
from sidgym.envs.reward_context import RewardContext
from sidgym.envs.rewards import RewardSum, Term, required_fields

NAME = "sidgym.envs.reward_collaborative:Collaborative"


class Logits:
    """Platt's calibration of the logit i / 4 - 1 of item i."""

    def score(self, history, items):
        return np.where(items == PAD_ITEM, 0.0, 1 / (1 + np.exp(-(0.5 * (items / 4 - 1) + 0.3)))).astype(np.float32)


class Fixed:
    def __init__(self, values):
        self.values = np.asarray(values, dtype=np.float32)

    def score(self, history, items):
        return np.broadcast_to(self.values, items.shape)


def reward(**fields):
    return RewardSum([Term(NAME)], context(**fields), 4)


def test_it_is_linear_in_the_logit_so_that_standardised_advantages_are_the_logits():
    total, _ = reward(preference=Logits())(make_episodes([[2]]), make_rollouts([[1, 4, 7, 9]]))
    logits = np.array([1, 4, 7, 9]) / 4 - 1
    np.testing.assert_allclose(total[0], 0.5 * logits + 0.3, rtol=1e-5)
    ours, theirs = (v - v.mean() for v in (total[0], logits))
    np.testing.assert_allclose(ours / ours.std(), theirs / theirs.std(), rtol=1e-4)


def test_scores_of_0_and_1_stay_finite_and_the_target_gets_nothing_extra():
    total, _ = reward(preference=Fixed([0.0, 1.0, 0.5, 0.5]))(make_episodes([[9]]), make_rollouts([[1, 4, 7, 9]]))
    assert np.isfinite(total).all()
    assert total[0, 0] == -total[0, 1] < -10
    np.testing.assert_allclose(total[0, 2:], 0, atol=1e-6)


def test_a_shared_sid_is_worth_the_mean_of_its_items():
    total, _ = reward(preference=Logits())(make_episodes([[2]]), make_rollouts([[[1, 5], [3, -1]]]))
    np.testing.assert_allclose(total[0], [0.5 * (3 / 4 - 1) + 0.3] * 2, rtol=1e-5)


def test_what_it_cannot_use_is_refused():
    assert required_fields(Term(NAME)) == ("preference",)
    with pytest.raises(ValueError, match=r"RewardContext\.preference"):
        RewardSum([Term(NAME)], RewardContext(), 4)
    with pytest.raises(ValueError, match="candidate 1 of context 0 is nan"):
        reward(preference=Fixed([0.5, np.nan]))(make_episodes([[2]]), make_rollouts([[1, 4]]))
