"""Contexts whose question is text: every engine draws what the policy says behind it, and the update learns from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from text_toy import text_policy, text_store
from toy import toy_episodes

from sidgym.agents.checkpoint import save_policy
from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.agents.engine import make_engine
from sidgym.agents.packed import packed_logp
from sidgym.agents.policy import prompt_arrays
from sidgym.agents.rl import RlTask, TorchTrainer, load_episodes, save_episodes
from sidgym.agents.task_contexts import task_contexts
from sidgym.envs.records import Episodes

CATALOGUE, _ = text_store()
TASKS = ("retrieval:0.5", "title_to_sid:0.5", "titles_to_sid:0.5")


def sharp_policy(template="plain"):
    policy = text_policy(template)
    with torch.no_grad():
        for weight in policy.model.parameters():
            if weight.ndim == 2:
                weight.mul_(3.0)
    return policy


def mixed(policy, count=6) -> Episodes:
    return task_contexts(policy, toy_episodes(count, 20), CATALOGUE, TASKS, seed=0)


def behind(policy, contexts, codes):
    """Log-probabilities (B, G, L) over the whole vocabulary by one plain pass a candidate."""
    ids, mask = prompt_arrays(policy, contexts)
    out = np.zeros(codes.shape)
    for b, group in enumerate(codes):
        prompt = ids[b][mask[b]].tolist()
        for g, path in enumerate(group):
            tokens = [int(policy.level_ids(level)[code]) for level, code in enumerate(path)]
            logits = policy.model(input_ids=torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)
            out[b, g] = [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(tokens)]
    return out


@pytest.mark.parametrize("template", ["plain", "chat"])
@torch.no_grad()
def test_engines_and_update_read_the_same_question(template):
    policy = sharp_policy(template)
    contexts = mixed(policy)
    drawn = make_engine("torch", policy, 7, "vocab").rollout(contexts, 4)
    expected = behind(policy, contexts, drawn.codes)
    assert np.abs(drawn.logp - expected).max() < 1e-4
    scores = packed_logp(policy, contexts, torch.from_numpy(drawn.codes), "vocab")
    assert np.abs(scores.logp.numpy() - expected).max() < 1e-4
    theirs = make_engine("hf", policy, 7, "vocab").rollout(contexts, 4)
    assert np.array_equal(theirs.codes, drawn.codes)
    assert np.abs(theirs.logp - drawn.logp).max() < 1e-4


def test_the_question_decides_and_not_the_history():
    policy = sharp_policy()
    contexts = mixed(policy)
    engine = make_engine("torch", policy, 16, "trie")
    titles = contexts.take(np.arange(6, 12))
    assert len(np.unique(engine.rollout(titles, 4).logp.sum((1, 2)))) == 6, "six titles, one empty history"
    other = replace(titles, history=np.zeros_like(titles.history))
    assert np.array_equal(engine.rollout(other, 4).codes, engine.rollout(titles, 4).codes)


def test_a_trainer_learns_from_them_and_files_keep_them(tmp_path):
    policy = sharp_policy()
    contexts = mixed(policy, 8)
    save_policy(tmp_path / "policy", policy)
    save_episodes(tmp_path / "contexts.npz", contexts)
    assert np.array_equal(load_episodes(tmp_path / "contexts.npz").prompt, contexts.prompt)
    config = RlConfig(
        group_size=4,
        contexts_per_step=8,
        chunk=4,
        lr=1e-2,
        nll_weight=1.0,
        warmup_steps=1,
        tokens_per_microbatch=60,
        staleness=1,
        rewards=(RewardConfig("rule"),),
        parity_tolerance=1e-3,
    )
    task = RlTask(str(tmp_path / "policy"), str(tmp_path / "contexts.npz"), 3, config)
    trainer = TorchTrainer(task)
    metrics = [trainer.step(number) for number in range(12)]
    assert all(m["updates_refused"] == 0 for m in metrics)
    assert metrics[0]["sampling/logp_difference_max"] < 1e-4, "the first update reads what the rollout read"
    assert np.mean([m["reward"] for m in metrics[-3:]]) > np.mean([m["reward"] for m in metrics[:3]])
    again = TorchTrainer(task)
    again.restore(trainer.weights(), trainer.state(), trainer.updates)
    assert again.step(12) == trainer.step(12), "rollouts that wait keep their questions"
