"""The trainer of sharded models in the driver: starts the ranks of ``fsdp`` by Ray Train and tells them what to do.

Ray Train runs one function in every rank until it ends, a ``Trainer`` is asked for one thing after another. Between the
two stands a ``Mailbox``, a small actor: every rank reads the driver's commands there, rank 0 leaves the answers. Left
out: what a rank does (``fsdp``).
"""

import asyncio
import itertools
import os
import shutil
import tempfile
import threading
import traceback
from dataclasses import replace
from typing import Any

import torch
from torch import distributed as dist

from sidgym.agents.config import RlConfig
from sidgym.agents.fsdp import Rank
from sidgym.agents.ray_start import start_ray, stay_here
from sidgym.agents.recipes import check_objective, completed
from sidgym.agents.recovery import WorkersLost
from sidgym.agents.refused import Refusals
from sidgym.agents.rllib_parts import told
from sidgym.agents.student import Tensors
from sidgym.agents.task import RlTask
from sidgym.agents.update import minibatches

TIMEOUT = 1800
"""Seconds that a rank waits for the others, unless it is told that one of them is gone."""


class Mailbox:
    """A Ray actor: commands of the driver and answers of the ranks, by number. Whoever takes one waits for it.

    Nothing stays: a command, which may hold a reference to a whole checkpoint, goes once each of ``ranks`` took it.
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.box: dict[tuple[str, int], Any] = {}
        self.taken: dict[tuple[str, int], int] = {}
        self.news = asyncio.Condition()

    async def put(self, kind: str, number: int, value: Any) -> None:
        async with self.news:
            self.box.setdefault((kind, number), value)
            self.news.notify_all()

    async def take(self, kind: str, number: int) -> Any:
        key = kind, number
        async with self.news:
            await self.news.wait_for(lambda: key in self.box)
            self.taken[key] = self.taken.get(key, 0) + 1
            if self.taken[key] < (self.ranks if kind == "command" else 1):
                return self.box[key]
            del self.taken[key]
            return self.box.pop(key)


def run_rank(settings: dict[str, Any]) -> None:
    """What Ray Train runs in each process: does what the mailbox says until it says ``close``."""
    import ray
    import ray.train.torch

    torch.set_num_threads(1)
    rank, mailbox = None, settings["mailbox"]
    for number in itertools.count():
        name, arguments = ray.get(mailbox.take.remote("command", number))
        if name == "close":
            return
        try:
            rank = rank or Rank(settings["task"], ray.train.torch.get_device())
            answer = getattr(rank, name)(*arguments)
        except Exception as error:
            error.add_note(f"on rank {dist.get_rank()}:\n{traceback.format_exc()}")
            ray.get(mailbox.put.remote("answer", number, error))
            raise  # ends all ranks: the others may wait for this one
        if dist.get_rank() == 0:
            # In a list it stays a reference: a whole model goes to the driver by the object store alone.
            ray.get(mailbox.put.remote("answer", number, [ray.put(answer)]))


class FsdpTrainer:
    """The ``Trainer`` that Ray Train runs on ``rl.learners`` ranks, each with a GPU if ``rl.device`` says so."""

    def __init__(self, task: RlTask):
        self.task = task = replace(task, config=completed(task.config))
        check(task.config)
        self.updates, self.refusals = 0, Refusals(task.config.refusals, task.refused)
        ranks = max(task.config.learners, 1)
        self._started_ray = start_ray(task)
        import ray

        self._ray, self._sent = ray, 0
        self._failure: Exception | None = None
        self._folder = tempfile.mkdtemp(prefix="sidgym-train-")
        self._thread: threading.Thread | None = None
        # On the driver's node: lost with the driver or not at all.
        self._mailbox: Any = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=stay_here()).remote(ranks)
        try:
            run = make_run(task, self._mailbox, ranks, self._folder)
        except BaseException:
            self.close()
            raise
        self._thread = threading.Thread(target=self._fit, args=(run,), daemon=True)
        self._thread.start()

    def _fit(self, run: Any) -> None:
        """Runs the ranks until they are told to close."""
        try:
            run.fit()
        except Exception as error:
            self._failure = error

    def _ask(self, name: str, *arguments: Any) -> Any:
        """What rank 0 answers. Raises ``WorkersLost``, or what a rank or Ray Train raised."""
        number, self._sent = self._sent, self._sent + 1
        try:
            self._ray.get(self._mailbox.put.remote("command", number, (name, arguments)))
            answer = self._mailbox.take.remote("answer", number)
            while not self._ray.wait([answer], timeout=0.5)[0]:
                if not self._running() and not self._ray.wait([answer], timeout=1.0)[0]:
                    raise self._ended()
            value = self._ray.get(answer)
            if not isinstance(value, Exception):
                return self._ray.get(value[0])
        except self._ray.exceptions.RayError as error:
            raise WorkersLost(f"a rank, or the driver's mailbox, was lost ({told(error)})") from error
        if self._thread:
            self._thread.join(timeout=TIMEOUT)  # it ends all ranks; by then it is known whether one of them had died
        if self._lost() or broke_off(value):
            raise WorkersLost(f"a rank was lost ({told(self._failure)})") from value
        raise value

    def _running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _lost(self) -> bool:
        """Whether the ranks ended because a process or node did, and not by an error of their own."""
        failure = self._failure
        causes = [*getattr(failure, "worker_failures", {}).values(), getattr(failure, "controller_failure", failure)]
        ray = self._ray.exceptions
        return any(
            "HealthCheck" in type(cause).__name__
            or (isinstance(cause, ray.RayError) and not isinstance(cause, ray.RayTaskError))
            for cause in causes
        )

    def _ended(self) -> Exception:
        """Why there is no answer, where the ranks have ended without one."""
        if self._failure is None or self._lost():
            return WorkersLost(f"a rank was lost ({told(self._failure) if self._failure else 'all have ended'})")
        error = RuntimeError(f"the ranks of Ray Train ended: {self._failure}")
        error.__cause__ = self._failure
        return error

    def step(self, number: int) -> dict[str, float]:
        first = self.updates
        metrics, self.updates, refused, batch = self._ask("step", number)
        self.refusals.record(batch, minibatches(len(batch), self.task.config, self.task.seed, first), first, refused)
        return metrics

    def weights(self) -> Tensors:
        return self._ask("weights")

    def state(self) -> Tensors:
        return {**self._ask("state"), **self.refusals.tensors()}

    def restore(self, weights: Tensors, state: Tensors, updates: int) -> None:
        # In a list it stays a reference, which every rank follows by itself.
        self._ask("restore", [self._ray.put((weights, state, updates))])
        self.refusals.restore(state)
        self.updates = updates

    def close(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._mailbox.put.remote("command", self._sent, ("close", ()))
            self._thread.join(timeout=60.0)
        self._ray.kill(self._mailbox)
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._started_ray:
            self._ray.shutdown()
            self._started_ray = False


def broke_off(error: Exception) -> bool:
    """Whether a rank complains that another one is gone. The first error is kept: had that one failed by an error of
    its own, it would have said so before. Ray Train may notice the death of a process only later."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def make_run(task: RlTask, mailbox: Any, ranks: int, folder: str) -> Any:
    """The run of Ray Train. Raises ``ValueError`` where that is not installed."""
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths of the task mean the driver's folder
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise ValueError(f"rl.backend = 'fsdp' needs Ray Train: pip install 'ray[train]' ({error})") from error
    gpus = task.config.device == "cuda"
    return TorchTrainer(
        run_rank,
        train_loop_config={"task": task, "mailbox": mailbox},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=TIMEOUT),
        scaling_config=ScalingConfig(num_workers=ranks, use_gpu=gpus),
        run_config=RunConfig(name="sidgym", storage_path=folder, failure_config=FailureConfig(max_failures=0)),
    )


def check(config: RlConfig) -> None:
    """Raises ``ValueError`` for settings that this trainer cannot run."""
    check_objective(config)
    for name, wanted in (("engine", "torch"), ("env_runners", 0), ("lora_rank", 0), ("staleness", 0)):
        if getattr(config, name) != wanted:
            raise ValueError(
                f"rl.backend = 'fsdp' needs rl.{name} = {wanted!r}, got {getattr(config, name)!r}: its ranks roll out "
                "by themselves, with the weights that they train; use rl.backend = 'rllib' for the other"
            )
    for name in ("contexts_per_step", "minibatch"):
        if getattr(config, name) % max(config.learners, 1):
            raise ValueError(
                f"rl.{name} must be a multiple of rl.learners = {config.learners}, got {getattr(config, name)}"
            )
