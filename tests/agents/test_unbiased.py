"""Rollout modes against enumeration: whose mean is the policy's expectation, and whose is not.

One history stands in many contexts, each with draws of its own, so that a rollout is a sample of groups. All SIDs are
enumerated and the gradient of the expected reward is exact. Estimates are compared in the few directions that gradients
of log-probabilities of SIDs span.
"""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents.advantages import leave_one_out as leave_one_out_equal
from sidgym.agents.config import RlConfig
from sidgym.agents.engine import TorchEngine
from sidgym.agents.importance import leave_one_out, without_replacement
from sidgym.agents.packed import packed_logp
from sidgym.agents.tree_search import most_distinct
from sidgym.agents.update import group_loss, rollout_groups
from sidgym.envs.rewards import RewardSum

CONTEXTS = 6000
REWARDS = torch.tensor([0.2, 1.0, 0.7, 1.5, 0.4, 0.9, 1.2, 0.1], dtype=torch.float64)


class World:
    """Eight SIDs on three levels, some of them certain before the last code."""

    def __init__(self, scale: float = 4.0, normalise: str = "trie"):
        self.normalise = normalise
        self.policy = toy_policy(toy_table(8, (3, 3, 2), seed=3), seed=3, scale=scale)
        self.history = toy_episodes(1, 8, seed=3)
        self.codes = torch.from_numpy(np.unique(self.policy.table.codes, axis=0))
        scores = packed_logp(self.policy, self.history.history, self.codes[None], normalise).logp[0]
        weights = list(self.policy.model.parameters())
        rows = [torch.autograd.grad(row.sum(), weights, retain_graph=True, allow_unused=True) for row in scores]
        dense = torch.stack(
            [torch.cat([torch.zeros_like(w).flatten() if g is None else g.flatten() for g, w in zip(row, weights)])
             for row in rows]
        ).double()  # fmt: skip
        self.basis = torch.linalg.svd(dense, full_matrices=False).Vh.T
        self.directions = dense @ self.basis  # (S, S) gradients of log pi
        self.logp = scores.detach().double()  # (S, L)
        self.chance = self.logp.sum(-1).exp()
        self.exact = (self.chance * REWARDS) @ self.directions

    def rollout(self, mode: str, group: int, contexts: int = CONTEXTS, **arguments):
        """Groups for as many contexts with the same history."""
        episodes = replace(self.history.take([0] * contexts), index=np.arange(contexts))
        engine = TorchEngine(self.policy, contexts, self.normalise)
        return engine.rollout(episodes, group, mode, **arguments)

    def places(self, found) -> torch.Tensor:
        """(B, G, S), which SID each candidate is."""
        return (torch.from_numpy(found.codes)[:, :, None] == self.codes).all(-1)

    def estimates(self, found, advantage=None, weighted=True) -> torch.Tensor:
        """Estimates (B, S) of the gradient of the expected reward, one of each group."""
        places, valid = self.places(found).double(), torch.from_numpy(found.valid)
        weight = torch.from_numpy(found.weight).double() if weighted else torch.ones(valid.shape).double()
        rewards = places @ REWARDS
        score = places @ self.logp.sum(-1)
        gain = rewards if advantage is None else advantage(rewards, valid, score)
        return ((weight * gain * valid)[..., None] * places).sum(1) @ self.directions / valid.shape[1]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def standard_errors(values: torch.Tensor, expected: torch.Tensor) -> float:
    """By how many standard errors the mean of values (B, D) is off, at most; rounding counts for nothing."""
    error = values.std(0) / len(values) ** 0.5
    return float(((values.mean(0) - expected).abs() / (error + 1e-6 * expected.abs().max())).max())


def equal_weights(rewards, valid, score):
    return leave_one_out_equal(rewards, valid)


@pytest.mark.parametrize(
    ("mode", "advantage"),
    [("sample", None), ("sample", equal_weights), ("stochastic_beam", None), ("stochastic_beam", leave_one_out)],
)
def test_the_gradient_is_unbiased(world, mode, advantage):
    found = world.rollout(mode, 4, seed=1)
    assert standard_errors(world.estimates(found, advantage), world.exact) < 4.5


@pytest.fixture(scope="module")
def leaking() -> World:
    """The same policy over the whole vocabulary: some of its mass is on no SID."""
    return World(normalise="vocab")


def test_of_a_vocabulary_draws_count_by_the_mass_that_is_legal(leaking):
    """Legal codes are drawn as if they were all, so a draw stands for no more than the policy gives to SIDs."""
    found = leaking.rollout("sample", 4, seed=1)
    assert float(leaking.chance.sum()) < 0.5
    drawn = torch.from_numpy(found.weight).double()[..., None] * leaking.places(found) / 4
    assert standard_errors(drawn.sum(1), leaking.chance) < 4.5
    assert standard_errors(leaking.estimates(found), leaking.exact) < 4.5
    assert standard_errors(leaking.estimates(found, weighted=False), leaking.exact) > 20


def test_a_baseline_costs_nothing_only_where_what_is_drawn_from_adds_up(world, leaking):
    """Its mean gradient is that of the probability of all that can be drawn, which is 1 under the trie alone."""
    truncation = truncated(world, 2)
    reached = torch.where(truncation > 0, world.chance * REWARDS, 0.0) @ world.directions
    of_some = world.rollout("top_k", 4, seed=1, top_k=2)
    assert standard_errors(world.estimates(of_some), reached) < 4.5
    assert standard_errors(world.estimates(of_some, equal_weights), reached) > 10
    assert standard_errors(leaking.estimates(leaking.rollout("sample", 4, seed=1), equal_weights), leaking.exact) > 10


@pytest.mark.parametrize("mode", ["sample", "stochastic_beam"])
def test_the_loss_has_that_gradient(world, mode):
    """From contexts to the gradients of the model's weights, by the functions that trainers call."""
    contexts = 1500
    config = RlConfig(objective="rloo", mode=mode, group_size=4, chunk=contexts, rewards=())
    every = world.rollout("beam", 8, 1)
    value = np.zeros(8, dtype=np.float32)
    value[every.item[0]] = world.places(every)[0].double() @ REWARDS
    reward = RewardSum.of(lambda episodes, rollouts: value[rollouts.item], 4)
    episodes = replace(world.history.take([0] * contexts), index=np.arange(contexts))
    batch, stats = rollout_groups(episodes, TorchEngine(world.policy, contexts), reward, config, 7)
    assert ("rollout/weight_mean" in stats) == (mode == "stochastic_beam")
    world.policy.model.zero_grad()
    group_loss(world.policy, batch, config)[0].backward()
    found = torch.cat([p.grad.flatten() for p in world.policy.model.parameters()]).double() @ world.basis
    advantage = leave_one_out if mode == "stochastic_beam" else equal_weights
    estimates = world.estimates(world.rollout(mode, 4, contexts, seed=7), advantage)
    torch.testing.assert_close(-found, estimates.mean(0), rtol=1e-3, atol=1e-3 * float(world.exact.abs().max()))
    assert standard_errors(estimates, world.exact) < 4.5


def test_without_weights_draws_without_replacement_are_biased(world):
    found = world.rollout("stochastic_beam", 4, seed=1)
    assert standard_errors(world.estimates(found, weighted=False), world.exact) > 20
    assert standard_errors(world.estimates(found, equal_weights, weighted=False), world.exact) > 20
    assert standard_errors(world.estimates(found, equal_weights), world.exact) > 20, "its baseline takes no weights"


def test_beams_are_biased(world):
    estimates = world.estimates(world.rollout("beam", 4, contexts=3))
    assert (estimates == estimates[0]).all(), "there is nothing to average over"
    assert float((estimates[0] - world.exact).norm() / world.exact.norm()) > 0.5
    wide = world.estimates(world.rollout("beam", 8, contexts=1))
    assert float((wide[0] - world.exact).norm() / world.exact.norm()) > 0.5, "nor does width help"


@pytest.mark.parametrize("group", [2, 4])
def test_no_draw_is_spent_on_what_was_drawn_already(world, group):
    """The variance is below that of independent draws with the same baseline."""
    found, independent = world.rollout("stochastic_beam", group, seed=1), world.rollout("sample", group, seed=1)
    plain, based = (world.estimates(found, advantage).var(0).sum() for advantage in (None, leave_one_out))
    assert based < 0.7 * plain
    assert based < 0.9 * world.estimates(independent, equal_weights).var(0).sum()


@pytest.mark.parametrize("group", [2, 5])
def test_every_sid_counts_by_its_probability(world, group):
    """Inclusion probabilities, whatever the gradients are."""
    found = world.rollout("stochastic_beam", group, seed=2)
    drawn = torch.from_numpy(found.weight).double()[..., None] * world.places(found) / group
    assert standard_errors(drawn.sum(1), world.chance) < 4.5


@pytest.mark.parametrize("group", [8, 11])
def test_where_all_sids_are_drawn_the_sum_is_exact(world, group):
    found = world.rollout("stochastic_beam", group, contexts=5)
    assert found.valid.sum(1).tolist() == [8] * 5
    np.testing.assert_allclose(found.importance[found.valid], group * np.exp(found.score[found.valid]), rtol=1e-5)
    assert not found.importance[~found.valid].any()
    for advantage in (None, leave_one_out):
        estimates = world.estimates(found, advantage)
        torch.testing.assert_close(estimates, world.exact.expand_as(estimates), rtol=1e-4, atol=1e-5)


def test_the_baseline_is_the_expected_reward_where_all_sids_are_drawn(world):
    valid = torch.ones(1, 8, dtype=torch.bool)
    advantage = leave_one_out(REWARDS[None], valid, world.chance.log()[None])
    torch.testing.assert_close(advantage[0], REWARDS - world.chance @ REWARDS, rtol=1e-6, atol=1e-6)


def test_only_one_lane_has_weights(world):
    assert world.rollout("stochastic_beam", 3, contexts=2, lanes=2).importance is None
    for mode in ("beam", "sample", "dynamic", "free"):
        found = world.rollout(mode, 3, contexts=2)
        assert found.importance is None
        assert (found.weight == 1).all()


def scores(seed: int, drawn: int, others: int) -> np.ndarray:
    """Log-probabilities of some SIDs, the drawn ones first."""
    values = 2 * np.random.default_rng(seed).normal(size=drawn + others)
    return values - np.log(np.exp(values).sum())


def in_any_order(chances: np.ndarray, total: float) -> float:
    """Probability that just these SIDs are drawn first from SIDs of probability ``total`` in all."""
    out = 0.0
    for order in permutations(chances):
        left = total - np.cumsum([0.0, *order[:-1]])
        out += float(np.prod(np.array(order) / left))
    return out


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 4))
def test_weights_are_those_of_unordered_sets(seed, drawn, others):
    """By the definition of R(S, s): probability of the set given that s is drawn first, over its probability."""
    chances = np.exp(scores(seed, drawn, others))
    drawn_first = torch.from_numpy(np.log(chances[:drawn]))[None]
    found = without_replacement(drawn_first, torch.ones(1, drawn, dtype=torch.bool))[0]
    whole = in_any_order(chances[:drawn], 1.0)
    expected = [
        drawn * chances[s] * in_any_order(np.delete(chances[:drawn], s), 1 - chances[s]) / whole for s in range(drawn)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert float(found.sum()) == pytest.approx(drawn, rel=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 20))
def test_weights_are_the_mean_of_those_given_the_threshold(seed, drawn, others):
    """``p / q`` of Kool et al. 2019 over the law of the threshold, given which SIDs were drawn."""
    logp = scores(seed, drawn, others)
    found = without_replacement(torch.from_numpy(logp[None, :drawn]), torch.ones(1, drawn, dtype=torch.bool))[0]
    kappa = np.linspace(-12, 25, 8000)
    left = np.log(np.exp(logp[drawn:]).sum())
    inclusion = -np.expm1(-np.exp(logp[:drawn, None] - kappa))
    density = np.exp(left - kappa - np.exp(left - kappa)) * inclusion.prod(0)
    expected = (density * np.exp(logp[:drawn, None]) / inclusion).sum(1) / density.sum()
    np.testing.assert_allclose(found, drawn * expected, rtol=1e-4)


@settings(max_examples=40)
@given(st.lists(st.floats(-3000, 0), min_size=1, max_size=6), st.floats(0, 1))
def test_weights_are_finite_and_add_up(logs, share):
    """However unequal the SIDs are, and whatever they leave."""
    score = torch.tensor(logs, dtype=torch.float64).log_softmax(0) + np.log(max(share, 1e-300))
    valid = torch.tensor([[*[True] * len(logs), False]])
    score = torch.cat([score, torch.zeros(1)])[None].double()
    weight = without_replacement(score, valid)
    assert torch.isfinite(weight).all()
    assert float(weight.sum()) == pytest.approx(len(logs) + 1, rel=1e-5)
    assert (weight >= (score.exp() * (1 - 1e-5))).where(valid, True).all()
    assert weight[0, -1] == 0
    rewards = torch.arange(len(logs) + 1.0)[None]
    assert torch.isfinite(leave_one_out(rewards, valid, score)).all()
    assert not leave_one_out(torch.full_like(rewards, 0.7), valid, score).any(), "equal rewards say nothing"


@pytest.mark.parametrize("mode", ["sample", "top_k", "dynamic", "stochastic_beam"])
def test_draws_and_weights_hang_on_seed_and_context_alone(mode):
    table = toy_table(30)
    policy, episodes = toy_policy(table, scale=6.0), toy_episodes(7, 30, seed=4)
    whole = TorchEngine(policy, 7).rollout(episodes, 4, mode, seed=5, top_k=3)
    for engine in (TorchEngine(policy, 2), TorchEngine(policy, 7, memory=1)):
        again = engine.rollout(episodes, 4, mode, seed=5, top_k=3)
        np.testing.assert_array_equal(again.codes, whole.codes)
        np.testing.assert_allclose(again.logp, whole.logp, atol=1e-5)
        np.testing.assert_allclose(again.weight, whole.weight, rtol=1e-4)
    part = TorchEngine(policy, 7).rollout(episodes.take([5, 2]), 4, mode, seed=5, top_k=3)
    np.testing.assert_array_equal(part.codes, whole.codes[[5, 2]])
    other = TorchEngine(policy, 7).rollout(episodes, 4, mode, seed=6, top_k=3)
    assert (other.codes != whole.codes).any()


def truncated(world: World, k: int) -> torch.Tensor:
    """Probability (S,) of each SID when every code is drawn from the k most probable ones below its prefix."""
    out = torch.ones(len(world.codes), dtype=torch.float64)
    for row, path in enumerate(world.codes):
        for level in range(world.codes.shape[1]):
            below = (world.codes[:, :level] == path[:level]).all(1)
            chances = {int(c): float(p.exp()) for c, p in zip(world.codes[below, level], world.logp[below, level])}
            kept = dict(sorted(chances.items(), key=lambda entry: -entry[1])[:k])
            out[row] *= kept.get(int(path[level]), 0.0) / sum(kept.values())
    return out


@pytest.mark.parametrize("k", [1, 2])
def test_top_k_draws_from_the_truncated_distribution(world, k):
    expected = truncated(world, k)
    assert 0 < (expected > 0).sum() < len(expected)
    found = world.rollout("top_k", 5, seed=3, top_k=k)
    places = world.places(found).double()
    share = places.mean(1)
    assert (share[:, expected == 0] == 0).all()
    assert standard_errors(share[:, expected > 0], expected[expected > 0]) < 4.5
    weight = (places * (world.chance / expected.clamp_min(1e-300))).sum(-1)
    np.testing.assert_allclose(found.importance, weight, rtol=1e-4)
    np.testing.assert_allclose(found.score, places @ world.logp.sum(-1), atol=1e-5)
    reached = torch.where(expected > 0, world.chance * REWARDS, 0.0) @ world.directions
    assert standard_errors(world.estimates(found), reached) < 4.5, "the reachable part of the gradient"


def test_top_k_of_all_codes_is_sampling(world):
    found, expected = world.rollout("top_k", 6, 50, seed=2, top_k=3), world.rollout("sample", 6, 50, seed=2)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.logp, expected.logp)
    np.testing.assert_allclose(found.importance, 1.0, rtol=1e-6)


@pytest.mark.parametrize("mode", ["top_k", "dynamic"])
@pytest.mark.parametrize("normalise", ["trie", "vocab"])
def test_stored_log_probabilities_are_the_policys(mode, normalise):
    policy, episodes = toy_policy(toy_table(30), scale=6.0), toy_episodes(5, 30, seed=4)
    found = TorchEngine(policy, 5, normalise).rollout(episodes, 6, mode, seed=1, top_k=2)
    with torch.no_grad():
        scores = packed_logp(policy, episodes.history, torch.from_numpy(found.codes), normalise)
    np.testing.assert_allclose(found.logp, scores.logp, atol=1e-5)


@pytest.mark.parametrize("group", [1, 4, 5])
def test_dynamic_keeps_the_target_and_the_most_distinct_items(group):
    policy = toy_policy(toy_table(12, (3, 4)), scale=4.0)
    contexts = 300
    episodes = toy_episodes(contexts, 12, targets=2, seed=6)
    episodes.targets[::7, 0] = -1
    engine = TorchEngine(policy, contexts)
    drawn = -(-3 * group // 2)
    every, kept = engine.rollout(episodes, drawn, "sample", seed=8), engine.rollout(episodes, group, "dynamic", seed=8)
    assert kept.item.shape == (contexts, group)
    assert kept.valid.all()
    hits = 0
    for row in range(contexts):
        pool, chosen, target = every.item[row].tolist(), kept.item[row].tolist(), int(episodes.target[row])
        assert (target in chosen) == (target in pool)
        assert len(set(chosen)) == min(group, len(set(pool))) >= len(set(pool[:group]))
        left = iter(pool)
        assert all(item in left for item in chosen), "a part of the draws, in their order"
        hits += target in pool and target not in pool[:group]
    assert hits > 0, "the target is among the last draws now and then"


def test_of_draws_the_wanted_then_the_first_of_each_leaf_stay():
    nodes = torch.tensor([[7, 7, 9, 7, 8, 6], [5, 5, 5, 5, 5, 5], [1, 2, 3, 4, 5, 6]])
    wanted = torch.tensor([[0, 0, 0, 0, 0, 1], [0] * 6, [0, 0, 0, 0, 1, 0]], dtype=torch.bool)
    assert most_distinct(nodes, wanted, 4).tolist() == [[0, 2, 4, 5], [0, 1, 2, 3], [0, 1, 2, 4]]
    assert most_distinct(nodes, wanted, 1).tolist() == [[5], [0], [4]]


def test_top_k_needs_a_code():
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        TorchEngine(toy_policy(toy_table())).rollout(toy_episodes(1, 30), 2, "top_k", top_k=0)
