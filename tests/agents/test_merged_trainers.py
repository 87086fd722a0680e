"""Every trainer learns the item merger with all other weights."""

from dataclasses import replace

import pytest
import torch
from toy import TINY, toy_episodes, toy_policy, toy_table
from trainers import CONFIG, assert_alike, resumed, rllib_trainer, steps

from sidgym.agents.checkpoint import load_policy, save_policy
from sidgym.agents.config import LogConfig
from sidgym.agents.logging import MetricsLog
from sidgym.agents.rl import RlTask, TorchTrainer, save_episodes, train_rl

MERGER = ("item_merger.weight", "item_merger.bias")


def merged_task(folder, **changes):
    """A toy task whose policy merges items."""
    save_policy(folder / "policy", toy_policy(toy_table(), config=replace(TINY, merge_items=True)))
    save_episodes(folder / "contexts.npz", toy_episodes(40, 30, targets=2))
    config = replace(CONFIG, backend="torch", **changes)
    return RlTask(str(folder / "policy"), str(folder / "contexts.npz"), 3, config, refused=str(folder / "refused"))


def test_updates_move_the_merger_and_a_file_brings_all_of_it_back(tmp_path):
    task = merged_task(tmp_path, staleness=1, reference_every=1)
    trainer = TorchTrainer(task)
    before = trainer.weights()
    steps(trainer, range(2))
    assert all(not torch.equal(before[name], trainer.weights()[name]) for name in MERGER)
    again = resumed(trainer, tmp_path / "kept", TorchTrainer(task))
    assert_alike(trainer, again)
    assert trainer.step(2) == again.step(2)
    assert_alike(trainer, again)


def test_a_stage_keeps_the_merger_of_its_best_weights(tmp_path):
    task = merged_task(tmp_path, steps=1, eval_every=1, checkpoint_every=1, select_by="last")
    valid = toy_episodes(8, 30, seed=9)
    log = LogConfig(wandb="disabled")
    kept = train_rl(task, valid, tmp_path / "run", lambda step: MetricsLog(tmp_path, log, "x", resume_from=step))
    save_policy(tmp_path / "rl", kept)
    before, after = load_policy(task.policy).model.state_dict(), load_policy(tmp_path / "rl").model.state_dict()
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in MERGER)


def test_rllib_gives_the_bits_of_the_torch_trainer(tmp_path):
    pytest.importorskip("ray")
    task = merged_task(tmp_path)
    plain, trainer = TorchTrainer(task), rllib_trainer(replace(task, config=replace(task.config, backend="rllib")))
    try:
        assert trainer.step(0)["loss"] == plain.step(0)["loss"]
        assert set(MERGER) <= set(trainer.weights())
        assert_alike(trainer, plain)
    finally:
        trainer.close()


@pytest.mark.slow
@pytest.mark.ray
def test_two_sharded_ranks_agree_with_one_process(tmp_path):
    pytest.importorskip("ray")
    from sidgym.agents.ray_train import FsdpTrainer

    task = merged_task(tmp_path, learners=2)
    plain = TorchTrainer(task)
    trainer = FsdpTrainer(replace(task, config=replace(task.config, backend="fsdp")))
    try:
        for number in range(2):
            assert trainer.step(number)["loss"] == pytest.approx(plain.step(number)["loss"], abs=1e-5)
        weights, theirs = trainer.weights(), plain.weights()
        assert set(MERGER) <= set(weights)
        for name, value in weights.items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-5)
    finally:
        trainer.close()
