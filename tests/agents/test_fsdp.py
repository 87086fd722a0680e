"""Two ranks with half of the model each give the losses and the weights of one process that has all of it."""

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents.checkpoint import load_policy, save_policy
from sidgym.agents.config import RlConfig
from sidgym.agents.ray_train import FsdpTrainer, check
from sidgym.agents.recovery import WorkersLost
from sidgym.agents.rl import RlTask, TorchTrainer, save_episodes
from sidgym.benchmarks.soak import processes

ray = pytest.importorskip("ray")

CONFIG = RlConfig(
    group_size=6,
    contexts_per_step=12,
    chunk=4,
    epochs=2,
    minibatch=6,
    lr=1e-3,
    warmup_steps=3,
    kl_weight=0.1,
    nll_weight=0.1,
    reference_every=2,
    tokens_per_microbatch=40,  # the ranks take different numbers of passes
    backend="fsdp",
    learners=2,
)


@pytest.fixture
def task(tmp_path: Path) -> RlTask:
    table = toy_table()
    save_policy(tmp_path / "policy", toy_policy(table))
    save_episodes(tmp_path / "contexts.npz", toy_episodes(40, len(table.codes)))
    return RlTask(str(tmp_path / "policy"), str(tmp_path / "contexts.npz"), 3, CONFIG)


@pytest.fixture
def trainer(task) -> Iterator[FsdpTrainer]:
    opened = FsdpTrainer(task)
    yield opened
    opened.close()
    assert not ray.is_initialized(), "the trainer left Ray running"


def assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.ray
def test_two_ranks_agree_with_one_process(task, trainer, tmp_path):
    plain = TorchTrainer(dataclasses.replace(task, config=dataclasses.replace(CONFIG, backend="torch")))
    before = plain.weights()
    for number in range(3):
        mine, theirs = trainer.step(number), plain.step(number)
        assert mine.keys() == theirs.keys()
        for name in ("loss", "reward", "grad_norm", "kl", "rollout/hit"):
            assert mine[name] == pytest.approx(theirs[name], abs=1e-5), name
    assert trainer.updates == plain.updates == 3 * 4
    assert_close(trainer.weights(), plain.weights())
    assert any(not torch.equal(value, before[name]) for name, value in trainer.weights().items())
    # The state is that of any other trainer: the ranks go back to where the plain one stands, and on from there.
    again = TorchTrainer(task)
    again.step(0)
    trainer.restore(again.weights(), again.state(), again.updates)
    assert trainer.state().keys() == again.state().keys()
    assert all(torch.equal(value, again.state()[name]) for name, value in trainer.state().items())
    for number in (1, 2):
        trainer.step(number)
    assert_close(trainer.weights(), plain.weights())
    # What is saved is the same Hugging Face directory.
    policy = load_policy(task.policy)
    policy.model.load_state_dict(trainer.weights(), strict=False)
    save_policy(tmp_path / "saved", policy)
    loaded = dict(load_policy(tmp_path / "saved").model.named_parameters())
    assert all(torch.equal(loaded[name], value) for name, value in trainer.weights().items())
    # A rank that is gone is noticed; the loop makes a new trainer then.
    os.kill(processes("ray::RayTrainWorker")[0], signal.SIGKILL)
    with pytest.raises(WorkersLost, match="a rank was lost"):
        trainer.step(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "vllm"}, "rl.engine = 'torch', got 'vllm'"),
        ({"env_runners": 2}, "rl.env_runners = 0, got 2"),
        ({"learners": 5, "minibatch": 0}, "rl.contexts_per_step must be a multiple of rl.learners = 5, got 12"),
        ({"learners": 4}, "rl.minibatch must be a multiple of rl.learners = 4, got 6"),
    ],
)
def test_settings_that_cannot_run_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(CONFIG, **changes))
