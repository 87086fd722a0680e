"""Contexts drawn by the chance of a hit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import toy_episodes, toy_policy, toy_table
from trainers import local_ray, rllib_trainer, toy_task

from sidgym.agents.checkpoint import save_policy
from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.agents.curriculum import drawn_contexts, hit_chances
from sidgym.agents.packed import packed_logp
from sidgym.agents.rl import RlTask, TorchTrainer, save_episodes
from sidgym.agents.update import contexts_of_step

CONFIG = RlConfig(
    steps=10, contexts_per_step=8, curriculum=1.0, group_size=4, chunk=4, backend="torch",
    rewards=(RewardConfig("rule"),), eval_every=5,
)  # fmt: skip


def test_the_chance_is_that_of_independent_draws():
    policy, contexts = toy_policy(toy_table()), toy_episodes(9, 30)
    codes = torch.from_numpy(policy.table.codes[contexts.target])[:, None]
    with torch.no_grad():
        target = packed_logp(policy, contexts, codes).logp.sum((1, 2)).exp().numpy().astype(np.float64)
    np.testing.assert_allclose(hit_chances(policy, contexts, 4, batch=4), 1 - (1 - target) ** 4, rtol=1e-3, atol=1e-9)


def test_likely_hits_come_first_and_all_alike_in_the_end():
    chances = np.where(np.arange(400) < 200, 0.5, 0.05)
    early = np.concatenate([drawn_contexts(chances, CONFIG, seed, 0) for seed in range(100)])
    late = np.concatenate([drawn_contexts(chances, CONFIG, seed, 10) for seed in range(100)])
    assert np.mean(early < 200) == pytest.approx(10 / 11, abs=0.05), "in proportion to the chances"
    assert np.mean(late < 200) == pytest.approx(0.5, abs=0.08)


def test_a_draw_is_distinct_contexts_and_a_function_of_its_iteration():
    chances = np.linspace(0, 1, 20)
    first = drawn_contexts(chances, CONFIG, 3, 4)
    assert len(set(first.tolist())) == 8
    assert np.array_equal(first, contexts_of_step(20, CONFIG, 3, 4, 0, chances))
    assert not np.array_equal(first, drawn_contexts(chances, CONFIG, 3, 5))
    assert not np.array_equal(first, drawn_contexts(chances, CONFIG, 3, 4, further=1))
    with pytest.raises(ValueError, match="8 distinct contexts"):
        drawn_contexts(chances[:5], CONFIG, 3, 4)


def test_without_it_contexts_come_in_turn():
    rows = np.concatenate([contexts_of_step(16, CONFIG, 0, step) for step in range(2)])
    assert sorted(rows.tolist()) == list(range(16))


def test_the_trainer_draws_by_the_policy_that_it_starts_from(tmp_path):
    policy, contexts = toy_policy(toy_table()), toy_episodes(40, 30)
    save_policy(tmp_path / "start", policy)
    save_episodes(tmp_path / "contexts.npz", contexts)
    task = RlTask(str(tmp_path / "start"), str(tmp_path / "contexts.npz"), 1, replace(CONFIG, curriculum=20.0))
    trainer = TorchTrainer(task)
    wanted = hit_chances(policy, contexts, 4)
    hits = [trainer.step(number)["rollout/hit"] for number in range(2)]
    plain = TorchTrainer(replace(task, config=replace(CONFIG, curriculum=0.0)))
    assert plain.chances is None
    np.testing.assert_allclose(trainer.chances, wanted, rtol=1e-3, atol=1e-9)
    assert hits[0] > plain.step(0)["rollout/hit"]


@pytest.mark.ray
def test_rllib_draws_the_same_contexts(tmp_path):
    """With candidates that are nodes, too: the weights are those of the plain trainer."""
    task = toy_task(
        tmp_path, curriculum=1.0, mode="cut", cut_levels=2, entropy_weight=0.1, epochs=1, minibatch=0,
        rewards=(RewardConfig("prefix"),),
    )  # fmt: skip
    plain = TorchTrainer(task)
    with local_ray():
        inside = rllib_trainer(task)
        for number in range(2):
            ours, theirs = plain.step(number), inside.step(number)
            assert ours["reward"] == theirs["reward"]
        weights = inside.weights()
        inside.close()
    assert all(torch.equal(value, weights[name]) for name, value in plain.weights().items())
