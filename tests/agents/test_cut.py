"""Cuts through the trie against enumeration: their probabilities, their values, and gradients without any draw."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.agents.cut import cut_of, node_values, sid_scores, slots
from sidgym.agents.engine import TorchEngine
from sidgym.agents.packed import packed_logp
from sidgym.agents.update import check_parity, group_forward, group_loss, rollout_groups
from sidgym.envs.rewards import RewardContext, RewardSum

CONFIG = RlConfig(
    objective="rloo", advantage="group_centred", rewards=(RewardConfig("prefix"),), mode="cut", group_size=3, chunk=4
)


@pytest.fixture(scope="module")
def policy():
    return toy_policy(toy_table(30, (4, 5, 6)), scale=6.0)


@pytest.fixture(scope="module")
def contexts():
    return toy_episodes(6, 30, seed=1)


def reward_of(policy, *names: str) -> RewardSum:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(policy.table.num_items, 7))
    return RewardSum([RewardConfig(n) for n in names], RewardContext(table=policy.table, embeddings=embeddings), 3)


def sid_logp(policy, contexts) -> torch.Tensor:
    """Log-probabilities (B, S) of all SIDs in the order of leaves, with gradient."""
    codes = policy.trie.codes_of(torch.arange(policy.trie.num_leaves))
    return packed_logp(policy, contexts, codes.expand(len(contexts), -1, -1)).logp.sum(-1)


def gradient(policy, loss: torch.Tensor) -> torch.Tensor:
    weights = list(policy.model.parameters())
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return torch.cat([torch.zeros_like(w).flatten() if g is None else g.flatten() for w, g in zip(weights, found)])


@pytest.mark.parametrize(("width", "levels"), [(1, 1), (2, 2), (3, 3), (30, 3)])
def test_every_sid_lies_below_exactly_one_node(policy, contexts, width, levels):
    cut = cut_of(policy, contexts, width, levels)
    sids = policy.trie.codes_of(torch.arange(policy.trie.num_leaves))
    below = ((cut.codes[:, :, None] == sids) | (cut.codes[:, :, None] < 0)).all(-1) & cut.valid[..., None]
    assert (below.sum(1) == 1).all()
    with torch.no_grad():
        chance = sid_logp(policy, contexts).double().exp()
    torch.testing.assert_close(cut.chance, (below.double() * chance[:, None]).sum(-1), rtol=1e-4, atol=1e-7)
    depth = (cut.codes >= 0).sum(-1)[cut.valid]
    assert set(depth.tolist()) <= set(range(1, levels + 1))
    assert depth.max() == levels
    expanded = [0, *(min(width, n) for n in slots(policy.trie, width, levels)[:-1])]
    assert cut.valid.shape[1] == sum(slots(policy.trie, width, levels)) - sum(expanded)


def test_below_the_most_probable_nodes_it_goes_on(policy, contexts):
    first, second = cut_of(policy, contexts, 2, 1), cut_of(policy, contexts, 2, 2)
    for row in range(len(contexts)):
        likely = first.codes[row, first.chance[row].argsort(descending=True)[:2], 0]
        deep = second.codes[row][second.valid[row] & (second.codes[row, :, 1] >= 0)]
        assert set(deep[:, 0].tolist()) == set(likely.tolist())


def test_a_node_is_worth_the_mean_of_what_lies_below_it(policy, contexts):
    cut = cut_of(policy, contexts, 2, 3)
    scores = sid_scores(contexts, reward_of(policy, "semantic"), policy.trie)
    values = node_values(scores.total, cut.nodes.numpy(), policy.trie)
    sids = policy.trie.codes_of(torch.arange(policy.trie.num_leaves)).numpy()
    for row, node in np.argwhere(cut.valid.numpy()):
        own = cut.codes[row, node].numpy()
        below = ((sids == own) | (own < 0)).all(-1)
        assert values[row, node] == pytest.approx(scores.total[row, below].mean(), rel=1e-6)
    assert (values[~cut.valid.numpy()] == 0).all()


@pytest.mark.parametrize("levels", [1, 2])
def test_the_gradient_is_that_of_the_expected_value(policy, contexts, levels):
    """Differentiated through the probabilities themselves: sum over nodes of pi(n) v(n)."""
    config, reward = replace(CONFIG, cut_levels=levels), reward_of(policy, "prefix")
    batch, figures = rollout_groups(contexts, TorchEngine(policy, 4), reward, config, 0)
    loss, _ = group_loss(policy, batch, config)
    cut = cut_of(policy, contexts, 3, levels)
    values = node_values(sid_scores(contexts, reward, policy.trie).total, cut.nodes.numpy(), policy.trie)
    chance = packed_logp(policy, contexts, cut.codes).logp.sum(-1).exp() * cut.valid
    expected = (chance * torch.from_numpy(values).float()).sum(1)
    torch.testing.assert_close(gradient(policy, -loss), gradient(policy, expected.mean()), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(figures["reward"], expected.detach().numpy(), rtol=1e-4)


def test_as_deep_and_wide_as_the_trie_it_is_the_expected_reward(policy, contexts):
    """And the score-function gradient of independent draws has it as its mean."""
    config, reward = replace(CONFIG, cut_levels=3, group_size=30), reward_of(policy, "prefix")
    batch, _ = rollout_groups(contexts, TorchEngine(policy, 4), reward, config, 0)
    loss, _ = group_loss(policy, batch, config)
    values = torch.from_numpy(sid_scores(contexts, reward, policy.trie).total)
    expected = gradient(policy, (sid_logp(policy, contexts).exp() * values).sum(1).mean())
    exact = gradient(policy, -loss)
    torch.testing.assert_close(exact, expected, rtol=1e-3, atol=1e-5)

    many = contexts.take(np.repeat(np.arange(len(contexts)), 40))
    many = replace(many, index=np.arange(len(many)))
    drawn = replace(config, mode="sample", group_size=16, chunk=240, advantage="leave_one_out")
    sampled, _ = rollout_groups(many, TorchEngine(policy, 240), reward, drawn, 0)
    groups = [gradient(policy, -group_loss(policy, sampled.take(slice(k, None, 40)), drawn)[0]) for k in range(40)]
    along = torch.stack(groups) @ exact / exact.square().sum()
    error = float(along.std() / len(along) ** 0.5)
    assert abs(float(along.mean()) - 1) < 4 * error, "unbiased along the exact gradient"
    assert float(along.std()) > 0.02, "which draws scatter around"


def test_rule_reaches_groups_that_no_beam_of_that_width_hits(policy, contexts):
    engine, reward = TorchEngine(policy, 4), reward_of(policy, "rule")
    beams = replace(CONFIG, mode="beam", group_size=2)
    hit = rollout_groups(contexts, engine, reward, beams, 0)[1]["rollout/hit"] > 0
    batch, figures = rollout_groups(contexts, engine, reward, replace(CONFIG, group_size=2), 0)
    assert not hit.all()
    assert (np.abs(batch.advantage).max(1) > 0).all()
    assert (figures["rollout/target_mass"] > 0).all()


def test_rollout_and_update_agree_and_older_weights_stay_exact(policy, contexts):
    config, reward = replace(CONFIG, cut_levels=2), reward_of(policy, "prefix")
    batch, _ = rollout_groups(contexts, TorchEngine(policy, 4), reward, config, 0)
    check_parity(policy, group_forward(policy, batch, config), config)
    newer = toy_policy(policy.table, seed=5, scale=6.0)
    loss, _ = group_loss(newer, batch, config)
    values = torch.from_numpy(batch.advantage)
    chance = packed_logp(newer, contexts, torch.from_numpy(batch.codes)).logp.sum(-1).exp() * torch.from_numpy(
        batch.valid
    )
    expected = gradient(newer, (chance * values).sum(1).mean())
    torch.testing.assert_close(gradient(newer, -loss), expected, rtol=1e-3, atol=1e-5)


def test_one_factor_for_all_contexts_keeps_the_direction_and_one_for_each_does_not(policy, contexts):
    found = {}
    for advantage in ("group_centred", "batch_standardised", "group_standardised"):
        config = replace(CONFIG, cut_levels=2, group_size=2, advantage=advantage)
        batch, _ = rollout_groups(contexts, TorchEngine(policy, 4), reward_of(policy, "rule"), config, 0)
        along = gradient(policy, -group_loss(policy, batch, config)[0])
        found[advantage] = along / along.norm()
    exact = found["group_centred"]
    assert float(found["batch_standardised"] @ exact) > 0.9999
    assert float(found["group_standardised"] @ exact) < 0.99


def test_what_cannot_be_is_refused(policy, contexts):
    engine = TorchEngine(policy, 4)
    best = RewardSum([RewardConfig("prefix", args={"best_of_group": True})], RewardContext(table=policy.table), 3)
    with pytest.raises(ValueError, match="'prefix' compares the candidates"):
        rollout_groups(contexts, engine, best, CONFIG, 0)
    with pytest.raises(ValueError, match="'rank' compares the candidates"):
        rollout_groups(contexts, engine, reward_of(policy, "rank"), CONFIG, 0)
    with pytest.raises(ValueError, match=r"rl\.cut_levels: expected 1 to 3"):
        rollout_groups(contexts, engine, reward_of(policy, "rule"), replace(CONFIG, cut_levels=4), 0)
    with pytest.raises(ValueError, match=r"needs rl\.environment = 'next_item'"):
        rollout_groups(contexts, engine, reward_of(policy, "rule"), replace(CONFIG, environment="page"), 0)
