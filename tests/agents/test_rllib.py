"""RLlib as a backend: the same numbers as the plain trainer, whoever rolls out and whoever is lost on the way."""

import dataclasses
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from trainers import MakeTask, assert_alike, local_ray, resumed, rllib_trainer, same, steps, toy_task

from sidgym.agents import rllib_parts
from sidgym.agents.config import RewardConfig
from sidgym.agents.rl import RlTask, TorchTrainer
from sidgym.agents.rllib_parts import ChunkSampler, Draw, Reply, RolloutError
from sidgym.agents.update import minibatches

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray

STEPS = 4


def commanded(episodes, rollouts, *, command: str, driver: int) -> np.ndarray:
    """A reward of zeros that, in any process but the driver, does what the file ``command`` says, once."""
    taken = Path(f"{command}.{os.getpid()}")
    if os.getpid() != driver and Path(command).exists():
        try:
            Path(command).rename(taken)  # of two that have seen it one gets it
        except FileNotFoundError:
            return np.zeros(rollouts.valid.shape)
        order = taken.read_text()
        if order == "die":
            os._exit(1)
        if order == "hang":
            time.sleep(600)
        raise KeyError(order)
    return np.zeros(rollouts.valid.shape)


@pytest.fixture
def make_task(tmp_path: Path) -> MakeTask:
    """Builds a toy task; arguments replace fields of its config."""
    return partial(toy_task, tmp_path)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for the tests with remote workers."""
    with local_ray():
        yield


def test_one_process_gives_the_bits_of_the_torch_trainer(make_task):
    torch_trainer = TorchTrainer(make_task())
    before = torch_trainer.weights()
    assert not ray.is_initialized()
    trainer = rllib_trainer(make_task())
    try:
        assert steps(trainer, range(STEPS)) == steps(torch_trainer, range(STEPS))
        assert_alike(trainer, torch_trainer)
        assert not same(trainer.weights(), before)
        assert trainer.updates == STEPS * 4
        logs = Path(trainer.algorithm.logdir)
    finally:
        trainer.close()
    assert not ray.is_initialized(), "the trainer left Ray running"
    assert not logs.exists()
    with pytest.raises(RuntimeError, match="closed"):
        trainer.step(STEPS)


def test_checkpoints_are_exchanged_with_the_torch_trainer(make_task, tmp_path):
    never_stopped = TorchTrainer(make_task())
    steps(never_stopped, range(STEPS))
    first_half = TorchTrainer(make_task())
    steps(first_half, range(2))
    trainer = rllib_trainer(make_task())
    try:
        # Torch to RLlib, then back to where it came from inside the running algorithm, and once more.
        for _ in range(2):
            resumed(first_half, tmp_path / "half", trainer)
            steps(trainer, range(2, STEPS))
            assert_alike(trainer, never_stopped)
        steps(never_stopped, range(STEPS, STEPS + 1))
        other = resumed(trainer, tmp_path / "whole", TorchTrainer(make_task()))
        steps(other, range(STEPS, STEPS + 1))
        assert_alike(other, never_stopped)
    finally:
        trainer.close()


def test_microbatches_of_tokens_give_the_bits_of_the_torch_trainer(make_task):
    torch_trainer = TorchTrainer(make_task(tokens_per_microbatch=40))
    trainer = rllib_trainer(make_task(tokens_per_microbatch=40))
    try:
        assert steps(trainer, range(3)) == steps(torch_trainer, range(3))
        assert_alike(trainer, torch_trainer)
    finally:
        trainer.close()


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "dapo", "refills": 2, "staleness": 1},
        {"advantage": "batch_standardised", "objective": "gbpo"},
        {"objective": "s_dpo"},
    ],
)
def test_what_looks_at_the_whole_rollout_gives_the_bits_of_the_torch_trainer(make_task, changes):
    """Groups that are replaced, advantages over all groups, and an objective that compares with the reference."""
    torch_trainer, trainer = TorchTrainer(make_task(**changes)), rllib_trainer(make_task(**changes))
    try:
        rows = steps(torch_trainer, range(3))
        assert steps(trainer, range(3)) == rows
        assert_alike(trainer, torch_trainer)
        assert ("refill/rounds" in rows[0]) == ("refills" in changes)
    finally:
        trainer.close()


def test_a_rollout_with_other_weights_is_refused(make_task):
    trainer = rllib_trainer(make_task())
    try:
        trainer.step(0)
        engine = trainer.algorithm.env_runner.sampler.engine
        take = engine.load_weights
        engine.load_weights = lambda state, version: take({k: v + 0.05 for k, v in state.items()}, version)
        with pytest.raises(RuntimeError, match="drew from another policy"):
            trainer.step(1)
    finally:
        trainer.close()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_one_env_runner_gives_the_bits_of_none(make_task, tmp_path):
    torch_trainer = TorchTrainer(make_task(chunk=5))  # the last chunk of 12 contexts is short
    trainer = rllib_trainer(make_task(chunk=5, env_runners=1))
    try:
        assert steps(trainer, range(2)) == steps(torch_trainer, range(2))
        assert_alike(trainer, torch_trainer)
        trainer.algorithm._begin(8)  # on its way, and then forgotten
        manager = trainer.algorithm.env_runner_group._worker_manager
        assert manager.num_outstanding_async_reqs()
        # Remote runners take weights back to an older version too.
        resumed(TorchTrainer(make_task(chunk=5)), tmp_path / "start", trainer)
        assert not manager.num_outstanding_async_reqs(), "it would keep what nobody takes any more"
        steps(trainer, range(2))
        assert_alike(trainer, torch_trainer)
    finally:
        trainer.close()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_env_runners_one_of_which_is_lost_and_then_one_hangs_give_the_bits_of_none(make_task, tmp_path):
    """Both times it is started again."""
    command = tmp_path / "command"
    reward = RewardConfig(f"{__name__}:commanded", args={"command": str(command), "driver": os.getpid()})
    rewards = (RewardConfig("rule"), RewardConfig("rank"), reward)
    torch_trainer = TorchTrainer(make_task(rewards=rewards))
    trainer = rllib_trainer(make_task(rewards=rewards, env_runners=2))
    group = trainer.algorithm.env_runner_group
    try:
        assert steps(trainer, range(2)) == steps(torch_trainer, range(2))
        assert group.num_healthy_remote_env_runners() == 2
        command.write_text("die")
        assert trainer.step(2) == torch_trainer.step(2)
        assert not command.exists(), "no env runner died"
        assert group.num_healthy_remote_env_runners() == 1
        command.write_text("the reward's own words")
        with pytest.raises(RolloutError, match=r"(?s)Traceback.*in commanded.*the reward's own words"):
            trainer.step(3)
        assert trainer.step(3) == torch_trainer.step(3)
        assert_alike(trainer, torch_trainer)
        await_both(group)
        assert trainer.step(4) == torch_trainer.step(4)
        command.write_text("hang")
        trainer.algorithm.patience = 3.0
        assert trainer.step(5) == torch_trainer.step(5)
        assert group.num_healthy_remote_env_runners() == 1
        assert not group._worker_manager.num_outstanding_async_reqs(), "it is still waited for"
        await_both(group)
        assert trainer.step(6) == torch_trainer.step(6)
        assert_alike(trainer, torch_trainer)
    finally:
        trainer.close()


def await_both(group) -> None:
    """Until both env runners are there."""
    end = time.monotonic() + 120.0
    while group.num_healthy_remote_env_runners() < 2:
        assert time.monotonic() < end, "it did not come back"
        group.probe_unhealthy_env_runners()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_what_a_lost_env_runner_was_to_draw_with_older_weights_is_drawn_with_them(make_task, tmp_path):
    command = tmp_path / "command"
    reward = RewardConfig(f"{__name__}:commanded", args={"command": str(command), "driver": os.getpid()})
    changes = {"rewards": (RewardConfig("rule"), RewardConfig("rank"), reward), "staleness": 2}
    torch_trainer, trainer = TorchTrainer(make_task(**changes)), rllib_trainer(make_task(env_runners=2, **changes))
    try:
        for number in range(6):
            if number in (1, 2):
                command.write_text("die")
            assert trainer.step(number) == torch_trainer.step(number)
        assert list(tmp_path.glob("command.*")), "no env runner died"
        assert_alike(trainer, torch_trainer)
    finally:
        trainer.close()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_any_number_of_env_runners_gives_the_same_batch_in_the_same_order(make_task, tmp_path, monkeypatch):
    """To the bit, also while the learner learns from what was drawn before; of four those that are let take part."""
    expected = []
    start = TorchTrainer(make_task(staleness=1, mode="sample"))
    torch_trainer = TorchTrainer(make_task(staleness=1, mode="sample"))
    torch_trainer._update = kept(torch_trainer._update, expected)
    steps(torch_trainer, range(3))
    trainer = rllib_trainer(make_task(staleness=1, mode="sample", env_runners=4))
    algorithm, learn = trainer.algorithm, trainer.algorithm._learn
    try:
        for count in (4, 2, 1):
            batches, on_their_way, asked = [], [], set()
            monkeypatch.setattr(algorithm, "healthy", lambda count=count: [1, 2, 3, 4][-count:])

            def learn_meanwhile(batch, batches=batches, on_their_way=on_their_way, asked=asked):
                on_their_way.append({number: bool(draw.asked) for number, draw in algorithm.drawing.items()})
                asked.update(worker for draw in algorithm.drawing.values() for worker in draw.asked)
                batches.append(batch)
                return learn(batch)

            monkeypatch.setattr(algorithm, "_learn", learn_meanwhile)
            resumed(start, tmp_path / f"start-{count}", trainer)
            steps(trainer, range(3))
            assert on_their_way == [{1: True}, {2: True}, {3: True}]
            assert len(asked) == min(count, 3), "there are three chunks"
            assert_alike(trainer, torch_trainer)
            for mine, theirs in zip(batches, expected, strict=True):
                for field in dataclasses.fields(mine):
                    np.testing.assert_array_equal(getattr(mine, field.name), getattr(theirs, field.name), field.name)
    finally:
        trainer.close()


def kept(function, into: list):
    """``function``, which also keeps what it is given."""

    def call(batch):
        into.append(batch)
        return function(batch)

    return call


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("changes", [{}, {"tokens_per_microbatch": 40, "staleness": 1}])
def test_two_learners_equal_one_after_ten_iterations(make_task, changes):
    """By microbatches they take different numbers of passes."""
    torch_trainer = TorchTrainer(make_task(**changes))
    expected, start = steps(torch_trainer, range(10)), TorchTrainer(make_task()).weights()
    trainer = rllib_trainer(make_task(learners=2, **changes))
    try:
        for mine, theirs in zip(steps(trainer, range(10)), expected):
            assert mine.keys() == theirs.keys()
            for name, value in theirs.items():
                if name.endswith("_max"):  # averaged over optimiser steps by each learner, of its own groups alone
                    assert 0.5 * value - 1e-4 < mine[name] < value + 1e-4
                else:
                    assert mine[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
        for name, value in torch_trainer.weights().items():
            torch.testing.assert_close(trainer.weights()[name], value, rtol=0, atol=1e-6)
        assert trainer.updates == torch_trainer.updates
        assert max(float((value - start[name]).abs().max()) for name, value in trainer.weights().items()) > 1e-3
    finally:
        trainer.close()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_error_in_one_of_two_learners_ends_the_run_and_is_the_one_that_is_told(make_task, monkeypatch):
    """The other one waits for its gradients: without a word from anybody, half an hour."""
    monkeypatch.setattr(rllib_parts, "PROBE", 1.0)  # the other one never answers, so this is waited out in full
    task = make_task(learners=2)
    trainer = rllib_trainer(task)
    learn = trainer.algorithm._learn

    def learn_from_a_wrong_group(batch):
        first, *_ = minibatches(len(batch), task.config, task.seed, 0)
        batch.old_logp[first.reshape(2, -1)[1]] -= 1.0  # the second learner's share
        return learn(batch)

    trainer.algorithm._learn = learn_from_a_wrong_group
    try:
        with pytest.raises(RuntimeError, match="drew from another policy"):
            trainer.step(0)
    finally:
        trainer.close()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_learners_are_put_where_another_trainer_stands(make_task, tmp_path):
    task = make_task(learners=2, reference_every=1, staleness=1)
    torch_trainer = TorchTrainer(task)
    steps(torch_trainer, range(2))
    trainer = rllib_trainer(task)
    try:
        steps(trainer, range(1))
        resumed(torch_trainer, tmp_path / "half", trainer)
        assert_alike(trainer, torch_trainer)
        steps(trainer, range(2, STEPS))
        steps(torch_trainer, range(2, STEPS))
        for name, value in torch_trainer.weights().items():
            torch.testing.assert_close(trainer.weights()[name], value, rtol=0, atol=1e-6)
    finally:
        trainer.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learners": 5}, "rl.contexts_per_step must be a multiple of rl.learners = 5, got 12"),
        ({"learners": 4}, "rl.minibatch must be a multiple of rl.learners = 4, got 6"),
        ({"chunk": 0}, "rl.chunk must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_run_are_refused(make_task, changes, message):
    with pytest.raises(ValueError, match=message):
        rllib_trainer(make_task(**changes))


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_cpus_are_refused(make_task):
    with pytest.raises(ValueError, match="too few CPUs: the run wants 5"):
        rllib_trainer(make_task(env_runners=5))


class Workers:
    """Two remote workers for ``Draw``, in this process; those that are ``lost`` never answer."""

    def __init__(self, task: RlTask, lost: set[int]):
        self.samplers = {number: ChunkSampler(task) for number in (1, 2)}
        self.lost, self.asked = lost, 0
        self.requests: dict[int, dict] = {}

    def healthy(self) -> list[int]:
        return list(self.samplers)

    def send(self, tag: str, requests: dict[int, dict]) -> None:
        self.asked += 1
        self.requests = requests

    def answers(self, tag: str) -> list[Reply]:
        answering = {n: request for n, request in self.requests.items() if n not in self.lost}
        return [self.samplers[number].sample_remotely(**request) for number, request in answering.items()]


@pytest.mark.parametrize(("lost", "asked"), [(set(), 1), ({1}, 2), ({1, 2}, 1)])
def test_chunks_are_collected_in_order_whoever_fails(make_task, lost, asked):
    task = make_task()
    rows, local = np.arange(10, 21), ChunkSampler(task)
    workers = Workers(task, lost)
    groups, figures = draw(task, rows).gather(workers, local)
    nobody = Workers(task, set())
    nobody.samplers = {}
    alone, expected = draw(task, rows).gather(nobody, local)
    for field in dataclasses.fields(groups):
        assert np.array_equal(getattr(groups, field.name), getattr(alone, field.name))
    assert np.array_equal(groups.history, local.contexts.history[rows])
    assert all(np.array_equal(figures[name], expected[name]) for name in expected)
    assert workers.asked == asked


def draw(task: RlTask, rows: np.ndarray) -> Draw:
    """A rollout with the weights that the workers have."""
    return Draw.of("tag", rows, task.config.chunk, {"seed": 5, "version": 0})
