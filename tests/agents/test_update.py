"""Rollout and update: what a group carries, what an optimiser step does, and independence of layout."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents.config import RlConfig
from sidgym.agents.engine import TorchEngine
from sidgym.agents.objectives import OBJECTIVES
from sidgym.agents.rl import frozen_copy
from sidgym.agents.update import (
    apply_gradients,
    contexts_of_step,
    group_loss,
    learning_rate,
    make_optimizer,
    minibatches,
    rollout_groups,
)
from sidgym.envs.rewards import RewardContext, RewardSum

CONFIG = RlConfig(group_size=6, contexts_per_step=8, chunk=4, nll_weight=0.1)


def world(config=CONFIG, scale=6.0):
    table = toy_table()
    policy = toy_policy(table, scale=scale)
    reward = RewardSum(config.rewards, RewardContext(table=table), config.group_size)
    episodes = toy_episodes(8, 30, targets=2)
    return policy, reward, episodes, TorchEngine(policy, config.chunk)


def test_on_policy_the_ratio_is_one_and_nothing_is_clipped():
    policy, reward, episodes, engine = world()
    batch, stats = rollout_groups(episodes, engine, reward, CONFIG, seed=0)
    _, metrics = group_loss(policy, batch, CONFIG)
    assert metrics["sampling/logp_difference_max"] < 1e-5
    assert metrics["ratio_max"] == pytest.approx(1, abs=1e-5)
    assert metrics["clip_ratio/low_mean"] == metrics["clip_ratio/high_mean"] == 0
    assert set(stats) >= {"reward", "reward_std", "frac_reward_zero_std", "rewards/rule/mean", "rewards/rank/mean"}
    np.testing.assert_allclose(stats["rollout/unique_items"], 6)


def test_whole_chunks_on_any_worker_give_the_same_groups():
    _, reward, episodes, engine = world()
    whole, _ = rollout_groups(episodes, engine, reward, CONFIG, seed=0)
    parts = [rollout_groups(episodes.take(slice(s, s + 4)), engine, reward, CONFIG, seed=0)[0] for s in (4, 0)][::-1]
    for name in ("codes", "valid", "old_logp", "advantage"):
        np.testing.assert_array_equal(getattr(whole, name), np.concatenate([getattr(p, name) for p in parts]))


def test_gradient_of_a_batch_is_the_mean_over_its_groups():
    policy, reward, episodes, engine = world()
    batch, _ = rollout_groups(episodes, engine, reward, CONFIG, seed=0)

    def gradient(part):
        policy.model.zero_grad()
        group_loss(policy, part, CONFIG)[0].backward()
        return torch.cat([p.grad.flatten() for p in policy.model.parameters()])

    single = torch.stack([gradient(batch.take(slice(k, k + 1))) for k in range(len(batch))]).mean(0)
    torch.testing.assert_close(gradient(batch), single, atol=1e-6, rtol=1e-4)


def test_kl_to_itself_is_zero_and_grows():
    config = replace(CONFIG, kl_weight=0.1)
    policy, reward, episodes, engine = world(config)
    reference = frozen_copy(policy)
    batch, _ = rollout_groups(episodes, engine, reward, config, seed=0)
    assert group_loss(policy, batch, config, reference)[1]["kl"] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    assert group_loss(policy, batch, config, reference)[1]["kl"] > 1e-4


def test_a_gradient_that_is_not_finite_changes_nothing():
    policy, *_ = world()
    optimizer = make_optimizer(policy, CONFIG)
    before = [p.detach().clone() for p in policy.model.parameters()]
    for p in policy.model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    with pytest.raises(FloatingPointError, match="gradient norm"):
        apply_gradients(policy, optimizer, CONFIG, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters()))


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (torch.tensor(1.0), "expected .loss, metrics."),
        ((torch.ones(2, requires_grad=True), {}), "scalar tensor with a gradient"),
        ((torch.tensor(1.0), {}), "gradient False"),
        ((torch.tensor(1.0, requires_grad=True), {"note": "fine"}), "metric 'note'"),
    ],
)
def test_a_broken_objective_is_named(monkeypatch, result, said):
    policy, reward, episodes, engine = world()
    batch, _ = rollout_groups(episodes, engine, reward, CONFIG, seed=0)
    monkeypatch.setitem(OBJECTIVES, "mine", lambda inputs, spec: result)
    with pytest.raises(ValueError, match=f"objective 'mine'.*{said}"):
        group_loss(policy, batch, replace(CONFIG, objective="mine"))


def test_a_reward_of_nan_is_refused():
    _, _, episodes, engine = world()
    reward = RewardSum.of(lambda e, r: np.full(r.valid.shape, np.nan), 6, "mine")
    with pytest.raises(ValueError, match="mine"):
        rollout_groups(episodes, engine, reward, CONFIG, seed=0)


def test_contexts_come_in_seeded_permutations_without_gaps():
    config = replace(CONFIG, contexts_per_step=4)
    steps = [contexts_of_step(10, config, 0, k) for k in range(5)]
    flat = np.concatenate(steps)
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10)), "an epoch holds every context once"
    assert flat[:10].tolist() != flat[10:].tolist()
    np.testing.assert_array_equal(steps[3], contexts_of_step(10, config, 0, 3))
    assert contexts_of_step(10, config, 1, 0).tolist() != steps[0].tolist()


def test_minibatches_cover_every_group_once_an_epoch():
    config = replace(CONFIG, epochs=2, minibatch=3)
    parts = minibatches(8, config, 0, 5)
    assert [len(p) for p in parts] == [3, 3, 2] * 2
    assert sorted(np.concatenate(parts[:3])) == sorted(np.concatenate(parts[3:])) == list(range(8))
    assert [len(p) for p in minibatches(8, CONFIG, 0, 0)] == [8]


def test_learning_rate_warms_up():
    config = replace(CONFIG, lr=1.0, warmup_steps=4)
    assert [learning_rate(config, k) for k in (0, 1, 3, 9)] == [0.25, 0.5, 1.0, 1.0]
