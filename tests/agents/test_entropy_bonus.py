"""The entropy bonus against enumeration, and that nothing changes without it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.agents.engine import TorchEngine
from sidgym.agents.microbatches import Accumulated
from sidgym.agents.packed import packed_logp
from sidgym.agents.update import group_forward, group_loss, rollout_groups
from sidgym.envs.rewards import RewardContext, RewardSum

CONFIG = RlConfig(rewards=(RewardConfig("rule"),), group_size=6, chunk=4)


def gradient(policy, loss):
    found = torch.autograd.grad(loss, list(policy.model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def groups(policy, contexts, config):
    reward = RewardSum(config.rewards, RewardContext(table=policy.table), config.group_size)
    return rollout_groups(contexts, TorchEngine(policy, 4), reward, config, 0)[0]


def test_it_is_the_entropy_of_the_policy_where_all_sids_are_candidates():
    policy, contexts = toy_policy(toy_table(6, (8,)), scale=6.0), toy_episodes(5, 6, seed=2)
    batch = groups(policy, contexts, replace(CONFIG, mode="cut"))
    without, with_it = (group_loss(policy, batch, replace(CONFIG, mode="cut", entropy_weight=w))[0] for w in (0.0, 0.3))
    codes = torch.from_numpy(np.sort(policy.table.codes, axis=0)).expand(5, 6, 1)
    logp = packed_logp(policy, contexts, codes).logp[..., 0]
    entropy = -(logp.exp() * logp).sum(1).mean()
    assert with_it.item() == pytest.approx(without.item() - 0.3 * entropy.item(), rel=1e-4)
    change = gradient(policy, with_it) - gradient(policy, without)
    torch.testing.assert_close(change, -0.3 * gradient(policy, entropy), rtol=1e-3, atol=1e-5)


def test_without_it_entropies_carry_no_gradient_and_with_it_parts_add_up():
    policy, contexts = toy_policy(toy_table(), scale=6.0), toy_episodes(5, 30, seed=2)
    batch = groups(policy, contexts, CONFIG)
    codes = torch.from_numpy(batch.codes)
    assert not packed_logp(policy, contexts, codes).entropy.requires_grad
    assert packed_logp(policy, contexts, codes, entropy_gradient=True).entropy.requires_grad
    found = []
    for tokens in (0, 30):
        step = Accumulated(policy, batch, replace(CONFIG, entropy_weight=0.2, tokens_per_microbatch=tokens))
        for piece in step.passes():
            step.add(group_forward(policy, piece, step.config)).backward()
        found.append((len(step.parts), step.whole(), [p.grad.clone() for p in policy.model.parameters()]))
    (one, whole, grads), (several, same, parts) = found
    assert one == 1 < several
    assert same.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-5)
    assert not whole.entropy.requires_grad
    for a, b in zip(grads, parts):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
