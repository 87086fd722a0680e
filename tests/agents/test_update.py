"""Rollout and update: what a group carries, what an optimiser step does, and independence of layout."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_packed import alone
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents import update
from sidgym.agents.checkpoint import save_policy
from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.agents.engine import TorchEngine
from sidgym.agents.microbatches import Accumulated, group_tokens
from sidgym.agents.objectives import OBJECTIVES
from sidgym.agents.packed import PathScores
from sidgym.agents.rl import RlTask, TorchTrainer, frozen_copy, save_episodes
from sidgym.agents.update import (
    apply_gradients,
    check_parity,
    contexts_of_step,
    group_forward,
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


def perturbed(policy, scale=0.03, seed=0):
    """A copy of a policy with other weights."""
    twin = frozen_copy(policy)
    with torch.no_grad():
        for p in twin.model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
    return twin


def drawn(config, table=None, policy=None, count=6):
    """A policy, a batch that an older policy drew (so that ratios differ from 1 and some are clipped), a reference."""
    table = toy_table() if table is None else table
    policy = toy_policy(table, scale=6.0) if policy is None else policy
    group = config.group_size if config.environment == "next_item" else config.page_size
    reward = RewardSum(config.rewards, RewardContext(table=table), group)
    episodes = toy_episodes(count, len(table.codes), targets=6 if config.environment == "page" else 2, seed=3)
    if config.environment == "page":
        episodes = replace(episodes, feedback=np.ones(episodes.targets.shape, dtype=np.int8))
    episodes.targets[1::2, 1] = -1
    engine = TorchEngine(perturbed(policy), config.chunk, config.normalise)
    batch, _ = rollout_groups(episodes, engine, reward, config, seed=0)
    spread = np.random.default_rng(0).normal(size=batch.advantage.shape).astype(np.float32)
    return policy, replace(batch, advantage=spread * batch.valid), perturbed(policy, 0.02, 1)


def gradient(policy, loss):
    policy.model.zero_grad(set_to_none=True)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters()])


def scored_alone(policy, history, codes, normalise="trie", entropy_gradient=False):
    """``packed_logp`` as replicated prompts: every candidate in a pass of its own; 0 for one that does not exist."""
    known = (codes >= 0).all(-1, keepdim=True)
    logp = alone(policy, history, torch.where(known, codes, 0).numpy(), normalise)
    return PathScores(torch.where(known, logp, 0.0), torch.zeros(codes.shape))


SETTINGS = {
    "trie": {},
    "vocab": {"normalise": "vocab"},
    "free": {"mode": "free"},
    "page": {"environment": "page", "page_size": 3, "mode": "stochastic_beam"},
    "short": {"group_size": 40},  # more slots than SIDs
}


CASES = [(objective, setting) for objective in ("grpo", "nll") for setting in SETTINGS]
CASES += [(name, "free" if name == "format_ecpo" else "trie") for name in sorted(OBJECTIVES.keys() - {"grpo", "nll"})]
"""What an objective reads is the same in every setting: one for each, and all for two."""


def objective_config(objective, setting):
    rewards = (*CONFIG.rewards, RewardConfig("format")) if objective == "format_ecpo" else CONFIG.rewards
    more = {"rewards": rewards, **SETTINGS[setting]}
    return replace(CONFIG, objective=objective, kl_weight=0.1, nll_weight=0.3, **more)


@pytest.mark.parametrize(("objective", "setting"), CASES)
def test_gradient_is_that_of_replicated_prompts(monkeypatch, objective, setting):
    """With targets in the same pass and a KL term, for every objective."""
    config = objective_config(objective, setting)
    policy, batch, reference = drawn(config, count=3)
    loss, metrics = group_loss(policy, batch, config, reference)
    got = gradient(policy, loss)
    monkeypatch.setattr(update, "packed_logp", scored_alone)
    expected_loss, expected_metrics = group_loss(policy, batch, config, reference)
    expected = gradient(policy, expected_loss)
    assert float(expected.abs().max()) > 1e-4
    assert float((got - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    for name in expected_metrics.keys() - {"entropy"}:
        assert metrics[name] == pytest.approx(expected_metrics[name], abs=1e-4), name


def accumulated(policy, batch, config, reference):
    step = Accumulated(policy, batch, config)
    for piece in step.passes():
        step.add(group_forward(policy, piece, config, reference)).backward()
    assert step.complete
    return step, torch.cat([p.grad.flatten() for p in policy.model.parameters()])


@pytest.mark.parametrize(("objective", "setting"), CASES)
def test_microbatches_add_up_to_the_whole(objective, setting):
    config = objective_config(objective, setting)
    policy, batch, reference = drawn(config)
    whole, expected = accumulated(policy, batch, config, reference)
    assert len(whole.parts) == 1
    sizes = sum(group_tokens(policy, batch, config))
    for tokens, parts in ((1, 6), (2 * int(sizes.max()), None), (10**6, 1)):
        small = replace(config, tokens_per_microbatch=tokens)
        step, got = accumulated(policy, batch, small, reference)
        assert len(step.parts) == parts if parts else 1 < len(step.parts) < 6
        assert float((got - expected).abs().max()) < 1e-6 * max(1.0, float(expected.abs().max()))
        metrics = step.whole().metrics
        assert metrics.keys() == whole.whole().metrics.keys()
        for name, value in whole.whole().metrics.items():
            assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def per_token(inputs, spec):
    """An objective that divides by the number of valid candidates of the batch: no mean over groups."""
    loss = (inputs.logp.sum(-1) * inputs.valid * inputs.advantage).sum() / inputs.valid[:, ::2].sum()
    return loss, {"loss": float(loss.detach())}


def test_an_objective_that_is_no_mean_over_groups_is_refused(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "mine", per_token)
    config = replace(CONFIG, objective="mine", nll_weight=0.0)
    policy, batch, _ = drawn(config)
    batch.valid[0, 1:] = False
    with pytest.raises(ValueError, match=r"'mine' is no mean over groups.*tokens_per_microbatch = 0"):
        accumulated(policy, batch, replace(config, tokens_per_microbatch=1), None)[0].whole()
    accumulated(policy, batch, config, None)[0].whole()


def test_learners_average_their_gradients_in_the_last_pass():
    policy, batch, _ = drawn(CONFIG)
    step = Accumulated(policy, batch, replace(CONFIG, tokens_per_microbatch=1))
    apart = []

    class NoSync:
        def __enter__(self):
            apart.append(1)

        def __exit__(self, *error):
            apart.append(-1)

    assert [sum(apart) for _ in step.passes(NoSync)] == [1] * 5 + [0]


def trainer(folder, **changes):
    config = replace(CONFIG, backend="torch", epochs=2, minibatch=4, lr=1e-2, warmup_steps=0, **changes)
    save_policy(folder / "sft", toy_policy(toy_table(), scale=6.0), {"history": 5})
    save_episodes(folder / "contexts.npz", toy_episodes(20, 30, targets=2))
    return TorchTrainer(RlTask(str(folder / "sft"), str(folder / "contexts.npz"), 0, config))


def test_training_by_microbatches_is_training(tmp_path):
    whole, parts = trainer(tmp_path, kl_weight=0.1), trainer(tmp_path, kl_weight=0.1, tokens_per_microbatch=60)
    for step in range(2):
        expected, got = whole.step(step), parts.step(step)
        assert got == {name: pytest.approx(value, rel=1e-3, abs=1e-4) for name, value in expected.items()}
    # Adam divides by the root of the squared gradient, which makes rounding visible.
    for name, value in whole.weights().items():
        torch.testing.assert_close(parts.weights()[name], value, rtol=0, atol=2e-3)


def test_a_rollout_of_another_policy_is_refused_before_anything_changes(tmp_path):
    stale = trainer(tmp_path)
    before = stale.weights()
    stale.engine.policy = perturbed(stale.policy)
    with pytest.raises(RuntimeError, match=r"differ by 0\.\d+.*rl.parity_tolerance = 0.001.*'torch'.*'trie'"):
        stale.step(0)
    assert all(torch.equal(value, before[name]) for name, value in stale.weights().items())
    assert stale.updates == 0
    unchecked = trainer(tmp_path, parity_tolerance=0.0)
    unchecked.engine.policy = perturbed(unchecked.policy)
    unchecked.step(0)
    # Every update but the first of a rollout is off the policy that drew it; that is what the ratios are for.
    on_policy = trainer(tmp_path)
    figures = on_policy.step(0)
    assert figures["sampling/logp_difference_max"] < 1e-5 < 1e-3 < figures["sampling/drift_max"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_rollouts_own_log_probabilities_are_those_of_the_update(setting, monkeypatch):
    config = replace(CONFIG, parity_tolerance=1e-5, **SETTINGS[setting])
    policy, batch, _ = drawn(config)
    older = perturbed(policy)
    check_parity(older, group_forward(older.requires_grad_(True), batch, config), config)
    with pytest.raises(RuntimeError, match="drew from another policy"):
        check_parity(policy, group_forward(policy, batch, config), config)
    half = toy_policy(policy.table, scale=6.0)
    half.model.to(torch.bfloat16)
    forward = group_forward(policy, batch, config)
    for coarse, settings in ((half, config), (policy, replace(config, precision="bfloat16"))):
        monkeypatch.setattr(update, "COARSE", 100.0)
        check_parity(coarse, forward, settings)
        monkeypatch.setattr(update, "COARSE", 1e-4)
        with pytest.raises(RuntimeError, match=r"expected at most 0\.0001"):
            check_parity(coarse, forward, settings)


def test_groups_of_older_weights_are_not_compared():
    config = replace(CONFIG, parity_tolerance=1e-5)
    policy, batch, _ = drawn(config)
    forward = group_forward(policy, batch, config)
    check_parity(policy, forward, config, fresh=np.zeros(len(batch), dtype=bool))
    with pytest.raises(RuntimeError, match="drew from another policy"):
        check_parity(policy, forward, config, fresh=np.arange(len(batch)) == 2)


def test_a_batch_says_what_drew_it():
    policy, reward, episodes, engine = world()
    engine.load_weights(policy.model.state_dict(), 11)
    for mode in ("beam", "sample", "top_k", "dynamic", "stochastic_beam"):
        config = replace(CONFIG, mode=mode, top_k=2)
        batch, _ = rollout_groups(episodes, engine, reward, config, seed=0)
        assert batch.version.tolist() == [11] * 8
        np.testing.assert_array_equal(batch.context, episodes.index)
        assert batch.weight.shape == (8, 6)
        assert (batch.weight == 1).all() == (mode not in ("top_k", "stochastic_beam"))
        metrics = group_loss(policy, batch, config)[1]
        assert 0 <= metrics["sampling/logp_difference_mean"] <= metrics["sampling/logp_difference_max"] < 1e-5


def test_the_mean_difference_is_over_codes_that_exist():
    policy, batch, _ = drawn(CONFIG)
    batch.valid[:, 3:] = False
    forward = group_forward(policy, batch, CONFIG)
    drift = (forward.inputs.logp.detach() - forward.inputs.old_logp)[:, :3].abs()
    assert forward.metrics["sampling/logp_difference_mean"] == pytest.approx(float(drift.mean()), rel=1e-5)


def test_nan_does_not_pass_for_parity():
    policy, batch, _ = drawn(CONFIG)
    batch.old_logp[0, 0, 0] = np.nan
    with pytest.raises(RuntimeError, match="differ by nan"):
        check_parity(policy, group_forward(policy, batch, CONFIG), CONFIG)


def test_targets_that_are_padding_cost_nothing():
    config = replace(CONFIG, nll_weight=0.1)
    policy, batch, _ = drawn(config)
    padded = replace(batch, targets=np.full((len(batch), 5), -1))
    without = group_tokens(policy, batch, replace(config, nll_weight=0.0))
    np.testing.assert_array_equal(group_tokens(policy, padded, config), without)
    assert (group_tokens(policy, batch, config)[1] > without[1]).any()
