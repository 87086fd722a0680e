"""Advantages against their definitions, alone and on the way from rewards to a batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_candidates import train
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents.advantages import (
    ADVANTAGES,
    TwoStep,
    leave_one_out,
    signed,
    unit_spread,
    with_format,
    within_groups,
    without_replacement,
)
from sidgym.agents.candidates import Candidates
from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.agents.engine import TorchEngine
from sidgym.agents.evaluate import legal_mass
from sidgym.agents.importance import leave_one_out as weighted
from sidgym.agents.update import advantages, over_rollout, rollout_groups
from sidgym.envs.rewards import RewardContext, RewardSum

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 9.0], [0.1, 0.1, 0.1, 0.1], [5.0, 5.0, 5.0, -3.0], [2.0, -1.0, 0.5, 0.5]])
VALID = torch.tensor([[True, True, True, False], [True] * 4, [True, True, True, False], [True] * 4])


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_contract_of_every_advantage(name):
    advantage = ADVANTAGES[name](REWARDS, VALID)
    assert advantage.shape == REWARDS.shape
    assert torch.isfinite(advantage).all()
    assert (advantage[1:3] == 0).all(), "equal rewards give exactly zero"
    assert float(advantage[0, 3]) == 0
    assert float(advantage[0, 0]) > 0
    assert float(advantage[3, 1]) < 0
    if name != "signed":  # which compares with thresholds, not with the group
        assert float(advantage[0].sum()) == pytest.approx(0, abs=1e-6)
    nothing = ADVANTAGES[name](REWARDS, torch.zeros_like(VALID))
    assert (nothing == 0).all()


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_rounding_is_no_signal(name):
    rewards = torch.tensor([[0.3, 0.3 + 3e-8, 0.3, 0.3], [0.0, 1e-25, 2e-25, 0.0]])
    assert (ADVANTAGES[name](rewards, torch.ones(2, 4, dtype=torch.bool)) == 0).all()


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_where_it_counts(name, value):
    rewards = REWARDS.clone()
    rewards[0, 3] = value
    assert torch.isfinite(ADVANTAGES[name](rewards, VALID)).all(), "an invalid candidate may say anything"
    rewards[3, 0] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        ADVANTAGES[name](rewards, VALID)


def test_golden_values():
    """The last group has mean 0.5 and deviations 1.5, -1.5, 0, 0: standard deviation sqrt(4.5 / 4)."""
    last = {name: ADVANTAGES[name](REWARDS, VALID)[3].tolist() for name in ADVANTAGES}
    std = (4.5 / 4) ** 0.5
    # Of all fourteen valid candidates: 4.5 from the last group, (2/3)^2 + 2/9 from the first, 0 from the others.
    whole = ((4.5 + 4 / 9 + 2 / 9) / 14) ** 0.5
    # Standardised groups have a sum of squares of n: 4 and 3 here.
    each = ((4 + 3) / 14) ** 0.5
    expected = {
        "group_standardised": [1.5 / std, -1.5 / std, 0, 0],
        "group_centred": [1.5, -1.5, 0, 0],
        "leave_one_out": [2.0 - 0.0, -1.0 - 1.0, 0, 0],
        "batch_standardised": [1.5 / whole, -1.5 / whole, 0, 0],
        "per_component": [1.5 / std / each, -1.5 / std / each, 0, 0],
        "signed": [1, -1, 1, 1],
    }
    assert last == {name: pytest.approx(values, rel=1e-6) for name, values in expected.items()}


def test_group_standardised_is_the_textbook_formula():
    rewards = torch.tensor([[1.0, 0.0, -0.5, 0.25]])
    expected = (rewards - rewards.mean()) / rewards.std(unbiased=False)
    torch.testing.assert_close(ADVANTAGES["group_standardised"](rewards, torch.ones(1, 4, dtype=torch.bool)), expected)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6), st.integers(0, 63))
def test_leave_one_out_leaves_one_out(values, mask):
    rewards = torch.tensor([values], dtype=torch.float64)
    valid = torch.tensor([[bool(mask >> k & 1) for k in range(len(values))]])
    advantage = leave_one_out(rewards, valid)[0]
    kept = [k for k in range(len(values)) if valid[0, k]]
    for k in range(len(values)):
        others = [values[j] for j in kept if j != k]
        expected = values[k] - np.mean(others) if k in kept and others else 0.0
        assert advantage[k].item() == pytest.approx(expected, abs=1e-5)


def test_signed_has_thresholds():
    rewards = torch.tensor([[0.9, 0.5, 0.2, -0.1]])
    valid = torch.ones(1, 4, dtype=torch.bool)
    assert signed(rewards, valid).tolist() == [[1, 1, 1, -1]]
    assert signed(rewards, valid, low=0.3, high=0.8).tolist() == [[1, 0, -1, -1]]


# On the way to a batch -----------------------------------------------------------------------------------------------


def candidates(terms, weights, valid=None):
    shape = next(iter(terms.values())).shape
    total = sum(weights[name] * values for name, values in terms.items())
    return Candidates(
        toy_episodes(shape[0], 5),
        np.zeros((*shape, 2)),
        np.ones(shape, bool) if valid is None else valid,
        np.zeros((*shape, 2), np.float32),
        total.astype(np.float32),
        terms,
        {},
        np.ones(shape, np.float32),
    )


def batch_of(config, episodes, scale=6.0, table=None):
    """Groups of a toy policy."""
    table = table or toy_table()
    reward = RewardSum(config.rewards, RewardContext(table=table), config.group_size)
    return rollout_groups(episodes, TorchEngine(toy_policy(table, scale=scale), config.chunk), reward, config, seed=3)


def test_an_empty_setting_takes_the_objectives_own():
    terms = {"one": np.random.default_rng(0).random((4, 5))}
    found, weights = candidates(terms, {"one": 1.0}), {"one": 1.0}
    for objective, name in (("grpo", "group_standardised"), ("dr_grpo", "group_centred"), ("rloo", "leave_one_out")):
        own = advantages(found, weights, RlConfig(objective=objective))
        np.testing.assert_array_equal(own, advantages(found, weights, RlConfig(advantage=name)))
        given = advantages(found, weights, RlConfig(objective=objective, advantage="signed"))
        assert set(np.unique(given)) == {1.0}, "what is set counts"


def test_per_component_is_each_term_standardised_and_then_the_rollout():
    rng = np.random.default_rng(0)
    terms = {"big": 100 * rng.random((6, 4)), "small": 0.01 * rng.random((6, 4))}
    weights = {"big": 1.0, "small": 2.0}
    found = candidates(terms, weights)
    each = advantages(found, weights, RlConfig(combine="each"))
    own = advantages(found, weights, RlConfig(advantage="per_component"))
    np.testing.assert_array_equal(own, each)
    whole = unit_spread(torch.from_numpy(own), torch.from_numpy(found.valid))
    assert float(whole.square().mean()) == pytest.approx(1)
    np.testing.assert_allclose(whole, own / np.sqrt(np.square(own).mean()), rtol=1e-5)
    # Another estimator for each term is still an option.
    centred = advantages(found, weights, RlConfig(combine="each", advantage="group_centred"))
    expected = sum(weights[n] * (v - v.mean(1, keepdims=True)) for n, v in terms.items())
    np.testing.assert_allclose(centred, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("advantage", ["batch_standardised", "per_component"])
def test_the_last_step_sees_the_whole_rollout_whoever_made_its_groups(advantage):
    config = RlConfig(advantage=advantage, group_size=6, chunk=4)
    episodes = toy_episodes(16, 30, seed=1)
    whole, _ = batch_of(config, episodes)
    silent = (whole.advantage == 0).all(1)
    assert 0 < silent.sum() < len(whole), "some groups say nothing"
    small, _ = batch_of(replace(config, chunk=2), episodes)
    np.testing.assert_allclose(small.advantage, whole.advantage, atol=1e-6)
    done = over_rollout(whole, config)
    signal = done.advantage[done.valid]
    assert float(np.square(signal).mean()) == pytest.approx(1, rel=1e-5)
    assert not done.advantage[silent].any(), "and nothing is made of that"
    ratio = done.advantage[whole.advantage != 0] / whole.advantage[whole.advantage != 0]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    assert abs(ratio[0] - 1) > 1e-3


def test_an_estimator_without_a_last_step_leaves_the_rollout_alone():
    config = RlConfig(group_size=6, chunk=4)
    batch, _ = batch_of(config, toy_episodes(8, 30, seed=1))
    assert over_rollout(batch, config) is batch


def test_unknown_ways_to_combine_are_named():
    found = candidates({"one": np.zeros((1, 2))}, {"one": 1.0})
    with pytest.raises(ValueError, match=r"unknown rl.combine 'product'; known: sum, each"):
        advantages(found, {"one": 1.0}, RlConfig(combine="product"))


def test_an_estimator_of_ones_own_that_is_not_finite_is_refused():
    zero = torch.zeros(1, 2)
    with pytest.raises(FloatingPointError, match="check the rewards"):
        within_groups(lambda r, v: r / 0, "sum", zero, {}, {}, torch.ones(1, 2, dtype=torch.bool))
    own = TwoStep(lambda r, v: r - 1, lambda a, v: 2 * a)
    assert own(zero, zero.bool()).tolist() == [[-2, -2]]


def test_draws_without_replacement_have_a_baseline_of_their_own():
    config = RlConfig(objective="rloo", mode="stochastic_beam", group_size=6, chunk=4)
    batch, _ = batch_of(config, toy_episodes(8, 30, targets=1, seed=1))
    assert (batch.weight != 1).any()
    rewards = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    valid, logp = torch.ones(2, 3, dtype=torch.bool), np.log(np.full((2, 3, 2), 0.4, np.float32))
    inside = without_replacement(leave_one_out, logp)
    torch.testing.assert_close(inside(rewards, valid), weighted(rewards, valid, torch.from_numpy(logp).sum(-1)))
    assert without_replacement(signed, logp) is signed
    with pytest.raises(FloatingPointError):
        inside(torch.full((2, 3), float("nan")), valid)
    # The pipeline asks for it where it applies, with the log-probabilities of the draws.
    made_up = np.random.default_rng(0).random(batch.valid.shape).astype(np.float32)
    found = replace(candidates({"one": made_up}, {"one": 1.0}, batch.valid), logp=batch.old_logp)
    given, some = torch.from_numpy(made_up), torch.from_numpy(batch.valid)
    score = torch.from_numpy(batch.old_logp).sum(-1)
    for mode, expected in (
        ("stochastic_beam", weighted(given, some, score)),
        ("sample", leave_one_out(given, some)),
        ("top_k", leave_one_out(given, some)),
    ):
        own = advantages(found, {"one": 1.0}, RlConfig(objective="rloo", mode=mode))
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(weighted(given, some, score), leave_one_out(given, some))


# Format --------------------------------------------------------------------------------------------------------------


def test_some_candidates_count_for_their_format_alone():
    """Of eight candidates two are drawn; they have weight * legal, the others what they had."""
    before = torch.full((300, 8), -3.0)
    legal = torch.arange(8).expand(300, 8) % 2 == 0
    index = np.arange(300)
    after = with_format(before, legal, 0.5, index, seed=7)
    drawn = after != -3
    assert (drawn.sum(1) == 2).all()
    assert set(after[drawn & legal].tolist()) == {0.5}
    assert set(after[drawn & ~legal].tolist()) == {0.0}
    assert float(drawn.double().mean(0).min()) > 0.2, "every place has its turn"
    again = with_format(before[5:9], legal[5:9], 0.5, index[5:9], seed=7)
    assert torch.equal(again, after[5:9]), "the draw hangs on seed and context alone"
    assert not torch.equal(with_format(before, legal, 0.5, index, seed=8), after)
    assert (with_format(before[:, :2], legal[:, :2], 0.5, index, seed=7) != -3).sum() == 300, "one at least"


def test_format_ecpo_compares_legal_candidates_and_lifts_legal_ones():
    config = RlConfig(
        objective="format_ecpo",
        mode="free",
        rewards=(RewardConfig("rule"), RewardConfig("prefix", 0.5), RewardConfig("format", 0.25)),
        group_size=40,
        chunk=4,
    )
    table = toy_table(8, (3, 3))
    batch, stats = batch_of(config, toy_episodes(8, 8, seed=1), 4.0, table)
    assert 0 < stats["rollout/valid"].mean() < 1, "some candidates are legal, some are not"
    known = {tuple(row) for row in toy_policy(table, scale=4.0).tokens.item_tokens}
    legal = np.array([[tuple(codes) in known for codes in group] for group in batch.codes])
    assert batch.valid.all()
    assert not batch.advantage[~legal].any(), "what is illegal is neither raised nor lowered"
    lifted = (batch.advantage == np.float32(0.25)).sum(1)
    assert 0 < lifted.sum() <= 10 * len(batch)
    assert (batch.advantage < 0).any(), "the other rewards still compare"


def legal_share_after(weight, steps=60):
    """Probability of legal output after training with a reward for targets, formats counting ``weight``."""
    table = toy_table(10, (4, 5), seed=4)
    policy = toy_policy(table, seed=4, scale=2.0)
    episodes = toy_episodes(8, 10, targets=3, seed=5)
    engine, context = TorchEngine(policy, 8), RewardContext(table=table)
    warm = RlConfig(rewards=(), objective="nll", nll_weight=1.0, lr=1e-2, warmup_steps=0, chunk=8, group_size=2)
    train(policy, episodes, RewardSum((), context, 2), engine, warm, 25)
    rewards = (RewardConfig("rule", 1.0, {"any_positive": True}), RewardConfig("format", weight))
    config = RlConfig(
        objective="format_ecpo", mode="free", rewards=rewards, lr=3e-3, warmup_steps=0, chunk=8, group_size=8
    )
    train(policy, episodes, RewardSum(rewards, context, 8), engine, config, steps)
    return float(legal_mass(policy, episodes).mean())


def test_the_format_makes_output_legal():
    before, without, after = legal_share_after(1.0, steps=0), legal_share_after(1e-9), legal_share_after(1.0)
    assert abs(without - before) < 0.1
    assert after > before + 0.3, (before, without, after)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": "beam"}, r"'format_ecpo' needs rl.mode = 'free', got 'beam'"),
        ({"advantage": "batch_standardised"}, r"'batch_standardised' would divide by the spread of the rollout"),
        ({"advantage": "per_component"}, r"take one that looks at single groups, such as 'group_standardised'"),
        ({"environment": "page"}, r"judges single items; expected rl.environment = 'next_item', got 'page'"),
    ],
)
def test_format_ecpo_says_what_it_needs(change, said):
    config = RlConfig(objective="format_ecpo", mode="free", rewards=(RewardConfig("format"),))
    with pytest.raises(ValueError, match=said):
        advantages(candidates({"format": np.ones((1, 2))}, {"format": 1.0}), {"format": 1.0}, replace(config, **change))
    with pytest.raises(ValueError, match=r"needs the reward 'format', got \['rule'\]"):
        advantages(candidates({"rule": np.ones((1, 2))}, {"rule": 1.0}), {"rule": 1.0}, config)
