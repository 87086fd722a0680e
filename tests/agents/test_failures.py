"""Killed, cut off, out of room: a run goes on to the same bits, or says in one line why it does not."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents import checkpoint, rl
from sidgym.agents.checkpoint import CheckpointError, load_policy, load_training, save_policy, save_training
from sidgym.agents.config import LogConfig, RlConfig
from sidgym.agents.logging import MetricsLog
from sidgym.agents.recovery import RECOVERIES, WorkersLost, checkpoints, until_done
from sidgym.agents.rl import RlTask, save_episodes, train_rl
from sidgym.benchmarks import soak

CONFIG = RlConfig(
    group_size=4,
    steps=8,
    contexts_per_step=6,
    chunk=3,
    eval_every=2,
    eval_users=4,
    checkpoint_every=2,
    lr=1e-3,
    warmup_steps=3,
    backend="torch",
)


NAMES = ["checkpoint-000002", "checkpoint-000004"]


@pytest.fixture
def task(tmp_path: Path) -> RlTask:
    table = toy_table()
    save_policy(tmp_path / "policy", toy_policy(table, scale=4.0))
    save_episodes(tmp_path / "contexts.npz", toy_episodes(40, len(table.codes)))
    return RlTask(str(tmp_path / "policy"), str(tmp_path / "contexts.npz"), 3, CONFIG)


def run(task: RlTask, folder: Path, on_progress: Callable | None = None) -> dict[str, torch.Tensor]:
    """Weights after training in ``folder``."""

    def log(step: int | None) -> MetricsLog:
        return MetricsLog(folder, LogConfig(wandb="disabled"), "x", resume_from=step)

    valid = toy_episodes(8, 30, seed=1)
    return train_rl(task, valid, folder / "training", log, on_progress).model.state_dict()


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten() for value in weights.values()])


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Stop(Exception):
    """The driver is gone."""


def stop_at(step: int) -> Callable[[int, int, str], None]:
    def stop(done: int, total: int, text: str) -> None:
        if done == step:
            raise Stop

    return stop


@pytest.fixture
def folder(task, tmp_path) -> Path:
    """A run that stopped at iteration 5, and so has checkpoints 2 and 4."""
    with pytest.raises(Stop):
        run(task, tmp_path / "run", stop_at(5))
    assert [path.name for path in checkpoints(tmp_path / "run/training")] == NAMES
    return tmp_path / "run"


def test_a_trainer_that_loses_its_learner_is_replaced(task, tmp_path, monkeypatch, capsys):
    whole = run(task, tmp_path / "whole")
    lost = iter([3, 3, 6])
    made: list[rl.Trainer] = []

    class Losing(rl.TorchTrainer):
        def __init__(self, task: RlTask) -> None:
            super().__init__(task)
            made.append(self)
            self.lost = next(lost, -1)

        def step(self, number: int) -> dict[str, float]:
            figures = super().step(number)
            if number == self.lost:
                raise WorkersLost("a learner was lost")
            return figures

    monkeypatch.setattr(rl, "make_trainer", Losing)
    assert same(run(task, tmp_path / "halves"), whole)
    assert len(made) == 4
    assert (tmp_path / "halves/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()
    said = capsys.readouterr().err.splitlines()
    assert [line.rpartition(" ")[2] for line in said] == ["checkpoint-000002"] * 2 + ["checkpoint-000006"]


def test_a_run_that_loses_learners_again_and_again_gives_up(tmp_path):
    attempts = 0

    def attempt() -> None:
        nonlocal attempts
        attempts += 1
        raise WorkersLost("a learner was lost")

    with pytest.raises(WorkersLost):
        until_done(attempt, tmp_path)
    assert attempts == RECOVERIES + 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, Path.unlink, empty])
@pytest.mark.parametrize("name", ["training.safetensors", "training.json"])
def test_the_newest_whole_checkpoint_is_used(task, folder, tmp_path, damage, name):
    damage(folder / "training/checkpoint-000004" / name)
    first = []
    assert same(run(task, folder, lambda done, total, text: first.append(done)), run(task, tmp_path / "whole"))
    assert first[0] == 3
    assert (folder / "metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


def test_a_checkpoint_whose_best_weights_are_cut_off_is_not_used(task, tmp_path, monkeypatch):
    first, real = flat(load_policy(task.policy).model.state_dict()), rl.validate

    def farther_is_better(policy, *args, **kwargs):
        figures, ndcg = real(policy, *args, **kwargs)
        return {**figures, "eval/ndcg@10": float((flat(policy.model.state_dict()) - first).abs().sum())}, ndcg

    monkeypatch.setattr(rl, "validate", farther_is_better)
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        run(task, folder, stop_at(5))
    step = {name: load_training(folder / f"training/{name}")[1]["best"]["step"] for name in NAMES}
    assert step["checkpoint-000002"] != step["checkpoint-000004"], "the test needs two"
    cut(folder / f"training/best-{step['checkpoint-000004']:06d}/training.safetensors")
    assert same(run(task, folder), run(task, tmp_path / "whole"))


def test_no_whole_checkpoint_is_said(task, folder):
    for path in checkpoints(folder / "training"):
        cut(path / "training.safetensors")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"none of the checkpoints in .* --restart"):
            run(task, folder)


def test_a_checkpoint_of_another_catalogue_is_refused(task, folder, tmp_path):
    table = toy_table(seed=1)
    save_policy(tmp_path / "policy", toy_policy(table, scale=4.0))
    with pytest.raises(CheckpointError, match=r"checkpoint-000004 was written while training on another catalogue"):
        run(task, folder)


def test_what_a_kill_in_the_middle_of_writing_leaves_is_cleaned_up(task, folder, tmp_path):
    training = folder / "training"
    (training / "checkpoint-000006.writing").mkdir()
    (training / "checkpoint-000004").rename(training / "checkpoint-000004.old")  # killed between two renames
    first = []
    assert same(run(task, folder, lambda done, total, text: first.append(done)), run(task, tmp_path / "whole"))
    assert first[0] == 5
    assert not list(training.glob("*.writing")) + list(training.glob("*.old"))


def test_a_cut_off_policy_is_named(task):
    cut(Path(task.policy) / "model.safetensors")
    with pytest.raises(CheckpointError, match="policy cannot be read, a file of it is missing or cut off"):
        load_policy(task.policy)


def full(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_what_was_there(task, tmp_path, monkeypatch):
    whole = run(task, tmp_path / "whole")
    real, calls = checkpoint.save_file, []

    def sometimes(*args: object, **kwargs: object) -> None:
        calls.append(1)
        if len(calls) == 5:
            full()
        real(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_file", sometimes)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left"):
        run(task, tmp_path / "run")
    assert not list((tmp_path / "run/training").glob("*.writing")), "it takes the room that is missing"
    assert checkpoints(tmp_path / "run/training")
    assert same(run(task, tmp_path / "run"), whole)
    assert (tmp_path / "run/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    save_training(small_disk / "state", {"a": torch.arange(1000)}, {"step": 1})
    with pytest.raises(CheckpointError, match=r"cannot be written: .*make room"):
        save_training(small_disk / "state", {"a": torch.zeros(200_000)}, {"step": 2})
    tensors, position = load_training(small_disk / "state")
    assert position["step"] == 1
    assert torch.equal(tensors["a"], torch.arange(1000))
    assert [path.name for path in small_disk.iterdir()] == ["state"]


def test_every_group_is_learned_from_once(task, tmp_path, monkeypatch):
    """Of a run that is stopped and resumed at an iteration without a checkpoint, by the log's own checksums."""
    run(task, tmp_path / "whole")
    with pytest.raises(Stop):
        run(task, tmp_path / "run", stop_at(5))
    run(task, tmp_path / "run")
    soak.check_accounts(tmp_path / "run/metrics.jsonl", CONFIG.steps, CONFIG.contexts_per_step)
    rows = (tmp_path / "run/metrics.jsonl").read_text().replace('"step": 3,', '"step": 4,', 1)
    (tmp_path / "twice.jsonl").write_text(rows)
    with pytest.raises(soak.Stuck, match="once each"):
        soak.check_accounts(tmp_path / "twice.jsonl", CONFIG.steps, CONFIG.contexts_per_step)
