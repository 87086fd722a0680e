"""What tests of trainers share: a small task, iterations in a row, comparisons to the last bit, resuming by a file."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents.checkpoint import load_training, save_policy, save_training
from sidgym.agents.config import RlConfig
from sidgym.agents.rl import RlTask, TorchTrainer, Trainer, save_episodes

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


def toy_task(folder: Path, **changes: object) -> RlTask:
    """A toy task whose files lie in ``folder``; ``changes`` replace fields of ``CONFIG``."""
    table = toy_table()
    if not (folder / "policy").exists():
        save_policy(folder / "policy", toy_policy(table))
        save_episodes(folder / "contexts.npz", toy_episodes(40, len(table.codes), targets=2))
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    return RlTask(str(folder / "policy"), str(folder / "contexts.npz"), 3, config, refused=str(folder / "refused"))


def rllib_trainer(task: RlTask) -> Trainer:
    """The trainer inside RLlib; imported when it is asked for."""
    from sidgym.agents.rllib import RllibTrainer

    return RllibTrainer(task)


@contextmanager
def local_ray(processors: int = 4, gpus: int = 0) -> Iterator[None]:
    """Ray on this machine, whose workers find the modules of the tests."""
    import ray

    path = [os.environ.get("PYTHONPATH", ""), str(Path(__file__).parent)]
    ray.init(
        address="local",
        num_cpus=processors,
        num_gpus=gpus,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, path))}},
    )
    yield
    ray.shutdown()


def steps(trainer: Trainer, numbers: range) -> list[dict[str, float]]:
    """Metrics of several iterations."""
    return [trainer.step(number) for number in numbers]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors have equal names and bits."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def assert_alike(trainer: Trainer, other: Trainer) -> None:
    """To the last bit: weights, all else that is needed to go on, and the count of optimiser steps."""
    assert same(trainer.weights(), other.weights())
    assert same(trainer.state(), other.state())
    assert trainer.updates == other.updates


def resumed(trainer: Trainer, path: Path, fresh: Trainer) -> Trainer:
    """``fresh``, put where ``trainer`` stands, by way of a file."""
    parts = {"model/": trainer.weights(), "state/": trainer.state()}
    tensors = {kind + name: value for kind, part in parts.items() for name, value in part.items()}
    save_training(path, tensors, {"updates": trainer.updates})
    tensors, position = load_training(path)
    read = {kind: {k.removeprefix(kind): v for k, v in tensors.items() if k.startswith(kind)} for kind in parts}
    fresh.restore(read["model/"], read["state/"], position["updates"])
    return fresh


def never_stopped(task: RlTask, iterations: int) -> tuple[TorchTrainer, list[dict[str, float]]]:
    """A plain trainer after some iterations, and their metrics."""
    trainer = TorchTrainer(task)
    return trainer, steps(trainer, range(iterations))
