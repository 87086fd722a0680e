"""The parts of the RLlib backend that do not need RLlib: rolling out chunks, sending them about, starting Ray.

Left out: everything that subclasses RLlib (``rllib``) and the loop (``rl``).
"""

import logging
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.agents.checkpoint import load_policy
from sidgym.agents.engine import close_engine, engine_of
from sidgym.agents.rl import RlTask, model_weights
from sidgym.agents.update import Groups, concatenate_groups, rollout_groups

ATTEMPTS = 3
"""How often a chunk is sent to remote workers at most, before it is rolled out in the driver."""
OBJECT_STORE = 150 * 2**20
"""Bytes of Ray's object store beside room for the weights."""


class RolloutError(RuntimeError):
    """A rollout failed in a remote worker; the message holds the traceback from there."""


@dataclass(frozen=True)
class Reply:
    """What a worker hands back: its number, chunks by position, the version of its weights, or what went wrong."""

    worker: int
    groups: dict[int, Groups]
    version: int
    error: str = ""
    not_finite: bool = False

    def check(self) -> None:
        """Raises what went wrong in the worker: ``FloatingPointError`` or ``RolloutError``."""
        if self.error:
            kind = FloatingPointError if self.not_finite else RolloutError
            raise kind(f"a rollout failed in a remote worker:\n{self.error}")


class ChunkSampler:
    """Policy, contexts and reward of one process; rolls out whole chunks."""

    def __init__(self, task: RlTask):
        self.config = task.config
        self.policy = load_policy(task.policy)
        self.contexts = task.load_contexts()
        self.reward = task.load_reward(self.policy.table)
        self.engine = engine_of(self.config, self.policy)

    def sample(self, chunks: dict[int, np.ndarray], seed: int, version: int, worker: int = 0) -> Reply:
        """Groups for the contexts (rows of the task's contexts) of each chunk, keyed by the chunk's position.

        Weights of another version than ``version`` roll out nothing.
        """
        if version != self.engine.version:
            return Reply(worker, {}, self.engine.version)
        groups = {
            position: rollout_groups(self.contexts.take(rows), self.engine, self.reward, self.config, seed)
            for position, rows in chunks.items()
        }
        return Reply(worker, groups, version)

    def sample_remotely(self, chunks: dict[int, np.ndarray], seed: int, version: int, worker: int) -> Reply:
        """``sample`` with an exception as data: RLlib ends an actor that raises and keeps the reason to itself."""
        try:
            return self.sample(chunks, seed, version, worker)
        except Exception as error:
            return Reply(worker, {}, version, traceback.format_exc(), isinstance(error, FloatingPointError))

    def weights(self) -> dict[str, torch.Tensor]:
        """The language model's weights."""
        return model_weights(self.policy)

    def set_weights(self, weights: dict[str, torch.Tensor], version: int) -> None:
        """Takes weights of any version, older ones too: a run may go back."""
        self.engine.load_weights(weights, version)

    def close(self) -> None:
        """Ends what the engine runs in other processes."""
        close_engine(self.engine)


def collect(
    rows: np.ndarray,
    seed: int,
    local: ChunkSampler,
    workers: Callable[[], list[int]],
    ask: Callable[[list[int], list[dict[str, Any]]], list[Reply]],
    send_weights: Callable[[], None],
) -> Groups:
    """Groups for the contexts ``rows``, in their order, whoever rolled them out.

    ``workers`` lists the healthy remote workers and ``ask`` puts a request to each of some, returning the answers that
    came. Chunks of a worker that does not answer, or has other weights than ``local``, go to those that do; what is
    missing after ``ATTEMPTS`` is rolled out by ``local``. Raises what ``Reply.check`` finds.
    """
    width, version = local.config.chunk, local.engine.version
    chunks = {start: rows[start : start + width] for start in range(0, len(rows), width)}
    done: dict[int, Groups] = {}
    silent: set[int] = set()
    for _ in range(ATTEMPTS):
        waiting = [position for position in chunks if position not in done]
        chosen = [worker for worker in workers() if worker not in silent][: len(waiting)]
        if not chosen:
            break
        shares = [waiting[place :: len(chosen)] for place in range(len(chosen))]
        requests = [
            {"chunks": {p: chunks[p] for p in share}, "seed": seed, "version": version, "worker": worker}
            for worker, share in zip(chosen, shares)
        ]
        replies = ask(chosen, requests)
        for reply in replies:
            reply.check()
            done.update(reply.groups)
        silent.update(set(chosen) - {reply.worker for reply in replies})
        if any(reply.version != version for reply in replies):
            send_weights()
    rest = {position: chunk for position, chunk in chunks.items() if position not in done}
    if rest:
        done.update(local.sample(rest, seed, version).groups)
    return concatenate_groups([done[position] for position in sorted(done)])


def start_ray(task: RlTask) -> bool:
    """Starts Ray on this machine unless it runs: small, no dashboard, no reports to anybody. Whether it had to.

    Raises ``ValueError`` when Ray runs with fewer CPUs than there are to be workers: they would wait for ever.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    workers = task.config.env_runners + task.config.learners
    if ray.is_initialized():
        if ray.cluster_resources().get("CPU", 0) < workers:
            raise ValueError(f"the Ray that runs has too few CPUs for {workers} env runners and learners; use fewer")
        return False
    weights = sum(path.stat().st_size for path in Path(task.policy).glob("*.safetensors"))
    ray.init(
        address="local",
        num_cpus=max(1, workers),
        include_dashboard=False,
        dashboard_host="127.0.0.1",
        object_store_memory=OBJECT_STORE + 6 * weights,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    return True
