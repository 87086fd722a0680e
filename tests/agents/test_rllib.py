"""RLlib as a backend: the same numbers as the plain trainer, whoever rolls out and whoever is lost on the way."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents.checkpoint import load_training, save_policy, save_training
from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.agents.objectives import grpo
from sidgym.agents.rl import RlTask, TorchTrainer, Trainer, save_episodes
from sidgym.agents.rllib_parts import ChunkSampler, Reply, RolloutError, collect

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray

STEPS = 4
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
)

MakeTask = Callable[..., RlTask]


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
        raise KeyError(order)
    return np.zeros(rollouts.valid.shape)


def nan_objective(inputs, spec):
    """A loss whose gradient is NaN."""
    loss, metrics = grpo(inputs, spec)
    return loss * float("nan"), metrics


@pytest.fixture
def make_task(tmp_path: Path) -> MakeTask:
    """Builds a toy task; arguments replace fields of its config."""
    table = toy_table()
    save_policy(tmp_path / "policy", toy_policy(table))
    save_episodes(tmp_path / "contexts.npz", toy_episodes(40, len(table.codes)))

    def make(**changes: object) -> RlTask:
        config = dataclasses.replace(CONFIG, **changes)
        return RlTask(str(tmp_path / "policy"), str(tmp_path / "contexts.npz"), 3, config)

    return make


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for the tests with remote workers."""
    path = [os.environ.get("PYTHONPATH", ""), str(Path(__file__).parent)]
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, path))}},
    )
    yield
    ray.shutdown()


def rllib_trainer(task: RlTask) -> Trainer:
    from sidgym.agents.rllib import RllibTrainer

    return RllibTrainer(task)


def steps(trainer: Trainer, numbers: range) -> list[dict[str, float]]:
    return [trainer.step(number) for number in numbers]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def assert_alike(trainer: Trainer, other: Trainer) -> None:
    """To the last bit: weights, optimiser and its count of steps."""
    assert same(trainer.weights(), other.weights())
    assert same(trainer.state(), other.state())
    assert trainer.updates == other.updates


def resumed(trainer: Trainer, path: Path, fresh: Trainer) -> Trainer:
    """``fresh``, put where ``trainer`` stands, by way of a file."""
    parts = {"model/": trainer.weights(), "optimizer/": trainer.state()}
    tensors = {kind + name: value for kind, part in parts.items() for name, value in part.items()}
    save_training(path, tensors, {"updates": trainer.updates})
    tensors, position = load_training(path)
    read = {kind: {k.removeprefix(kind): v for k, v in tensors.items() if k.startswith(kind)} for kind in parts}
    fresh.restore(read["model/"], read["optimizer/"], position["updates"])
    return fresh


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


def test_a_rollout_with_other_weights_is_refused(make_task):
    trainer = rllib_trainer(make_task())
    try:
        trainer.step(0)
        with torch.no_grad():
            for weight in trainer.algorithm.env_runner.sampler.policy.parameters():
                weight.add_(0.05)
        with pytest.raises(RuntimeError, match="drew from another policy"):
            trainer.step(1)
    finally:
        trainer.close()


def test_gradients_that_are_not_finite_change_nothing(make_task):
    trainer = rllib_trainer(make_task(objective=f"{__name__}:nan_objective"))
    try:
        before = trainer.weights()
        with pytest.raises(FloatingPointError, match="nothing was changed"):
            trainer.step(0)
        assert same(trainer.weights(), before)
        assert trainer.state() == {}
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
        # Remote runners take weights back to an older version too.
        resumed(TorchTrainer(make_task(chunk=5)), tmp_path / "start", trainer)
        steps(trainer, range(2))
        assert_alike(trainer, torch_trainer)
    finally:
        trainer.close()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_env_runners_one_of_which_is_lost_give_the_bits_of_none(make_task, tmp_path):
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
    finally:
        trainer.close()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_learners_may_take_different_numbers_of_passes(make_task):
    torch_trainer = TorchTrainer(make_task())
    expected = steps(torch_trainer, range(3))
    trainer = rllib_trainer(make_task(learners=2, tokens_per_microbatch=40))
    try:
        for metrics, known in zip(steps(trainer, range(3)), expected):
            assert metrics["loss"] == pytest.approx(known["loss"], abs=1e-5)
        for name, value in torch_trainer.weights().items():
            torch.testing.assert_close(trainer.weights()[name], value, rtol=0, atol=1e-5)
        assert trainer.updates == torch_trainer.updates
    finally:
        trainer.close()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_learners_agree_with_one(make_task, tmp_path):
    torch_trainer = TorchTrainer(make_task())
    expected = steps(torch_trainer, range(2))
    trainer = rllib_trainer(make_task(learners=2))
    try:
        for mine, theirs in zip(steps(trainer, range(2)), expected):
            assert mine.keys() == theirs.keys()
            assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        resumed(torch_trainer, tmp_path / "half", trainer)
        assert_alike(trainer, torch_trainer)
        steps(trainer, range(2, STEPS))
        steps(torch_trainer, range(2, STEPS))
        for name, value in torch_trainer.weights().items():
            torch.testing.assert_close(trainer.weights()[name], value, rtol=0, atol=1e-5)
        assert trainer.updates == torch_trainer.updates
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
    with pytest.raises(ValueError, match="too few CPUs for 5"):
        rllib_trainer(make_task(env_runners=5))


class Workers:
    """Remote workers for ``collect``, in this process: ``lost`` never answer, ``stale`` hold other weights."""

    def __init__(self, task: RlTask, lost: set[int], stale: set[int]):
        self.samplers = {number: ChunkSampler(task) for number in (1, 2)}
        self.lost, self.stale, self.asked = lost, stale, 0

    def numbers(self) -> list[int]:
        return list(self.samplers)

    def ask(self, numbers: list[int], requests: list[dict]) -> list[Reply]:
        self.asked += 1
        for number in numbers:
            self.samplers[number].engine.version = -1 if number in self.stale else 0
        answering = [(n, request) for n, request in zip(numbers, requests) if n not in self.lost]
        return [self.samplers[number].sample_remotely(**request) for number, request in answering]

    def send_weights(self) -> None:
        self.stale = set()


@pytest.mark.parametrize(
    ("lost", "stale", "asked"), [(set(), set(), 1), ({1}, set(), 2), ({1, 2}, set(), 1), (set(), {2}, 2), ({1}, {2}, 2)]
)
def test_chunks_are_collected_in_order_whoever_fails(make_task, lost, stale, asked):
    task = make_task()
    rows, local = np.arange(10, 21), ChunkSampler(task)
    workers = Workers(task, lost, stale)
    groups, figures = collect(rows, 5, local, workers.numbers, workers.ask, workers.send_weights)
    alone, expected = collect(rows, 5, local, list, workers.ask, workers.send_weights)
    for field in dataclasses.fields(groups):
        assert np.array_equal(getattr(groups, field.name), getattr(alone, field.name))
    assert np.array_equal(groups.history, local.contexts.history[rows])
    assert all(np.array_equal(figures[name], expected[name]) for name in expected)
    assert workers.asked == asked
