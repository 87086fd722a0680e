"""The parts of the RLlib backend that do not need RLlib: rolling out chunks, sending them about, noticing losses.

Left out: everything that subclasses RLlib (``rllib``), starting Ray (``ray_start``) and the loop (``rl``).
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from sidgym.agents.checkpoint import load_policy
from sidgym.agents.engine import close_engine, engine_of
from sidgym.agents.recipes import completed
from sidgym.agents.recovery import WorkersLost
from sidgym.agents.scoring import Account, taken
from sidgym.agents.student import model_weights
from sidgym.agents.task import RlTask
from sidgym.agents.update import Groups, concatenate_groups, rollout_groups

ATTEMPTS = 3
"""How often a chunk is sent to remote workers at most, before it is rolled out in the driver."""
PROBE = 10.0
"""Seconds in which a learner that lives says so, unless it waits for another one."""


class RolloutError(RuntimeError):
    """A rollout failed in a remote worker; the message holds the traceback from there."""


@dataclass(frozen=True)
class Reply:
    """What a worker hands back: its number, chunks by position, or what went wrong."""

    worker: int
    groups: dict[int, Groups]
    error: str = ""
    not_finite: bool = False
    scoring: Account | None = None  # what it waited for scores, of a preference model if there is one

    def check(self) -> None:
        """Raises what went wrong in the worker: ``FloatingPointError`` or ``RolloutError``."""
        if self.error:
            kind = FloatingPointError if self.not_finite else RolloutError
            raise kind(f"a rollout failed in a remote worker:\n{self.error}")


class ChunkSampler:
    """Policy, contexts and reward of one process; rolls out whole chunks.

    ``read`` turns the weights of a request, where they are only a reference, into a state dict.
    """

    def __init__(self, task: RlTask, device: str = "cpu", read: Callable[[Any], dict[str, torch.Tensor]] = dict):
        self.config = completed(task.config)
        self.read, self.stamp = read, ""
        self.policy = load_policy(task.policy).to(device)
        self.contexts = task.load_contexts()
        self.reward = task.load_reward(self.policy.table)
        self.engine = engine_of(self.config, self.policy)

    def sample(
        self,
        chunks: dict[int, np.ndarray],
        seed: int,
        version: int,
        worker: int = 0,
        weights: Any = None,
        stamp: str = "",
    ) -> Reply:
        """Groups for the contexts (rows of the task's contexts) of each chunk, keyed by the chunk's position.

        ``weights`` are taken first unless those called ``stamp`` are there already: no two weights share a stamp, while
        a run that went back gives a ``version`` twice. Without ``weights`` those that are there are used.
        """
        if weights is not None and stamp != self.stamp:
            self.set_weights(self.read(weights), version)
            self.stamp = stamp
        groups = {
            position: rollout_groups(self.contexts.take(rows), self.engine, self.reward, self.config, seed)
            for position, rows in chunks.items()
        }
        return Reply(worker, groups, scoring=taken(self.reward))

    def sample_remotely(
        self, chunks: dict[int, np.ndarray], seed: int, version: int, worker: int, **weights: Any
    ) -> Reply:
        """``sample`` with an exception as data: RLlib ends an actor that raises and keeps the reason to itself."""
        try:
            return self.sample(chunks, seed, version, worker, **weights)
        except Exception as error:
            return Reply(worker, {}, traceback.format_exc(), isinstance(error, FloatingPointError))

    def weights(self) -> dict[str, torch.Tensor]:
        """The language model's weights."""
        return model_weights(self.policy)

    def set_weights(self, weights: dict[str, torch.Tensor], version: int) -> None:
        """Takes weights of any version, older ones too: a run may go back."""
        self.stamp = ""
        self.engine.load_weights(weights, version)

    def close(self) -> None:
        """Ends what the engine runs in other processes."""
        close_engine(self.engine)


class Workers(Protocol):
    """Remote workers, by number."""

    def healthy(self) -> list[int]:
        """Those that are there."""

    def send(self, tag: str, requests: dict[int, dict[str, Any]]) -> None:
        """Puts a request to each of some, to be answered under ``tag``; does not wait."""

    def answers(self, tag: str) -> list[Reply]:
        """Waits for what was sent under ``tag``; a worker that is lost does not answer."""


@dataclass
class Draw:
    """A rollout that was asked for and is on its way."""

    tag: str
    chunks: dict[int, np.ndarray]  # contexts by position
    request: dict[str, Any]  # what every request holds besides: seed, version, and weights where they come with it
    done: dict[int, Groups] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)  # workers that have not been waited for
    silent: set[int] = field(default_factory=set)  # workers that did not answer
    scoring: Account = field(default_factory=Account)  # what all of them waited for scores

    @classmethod
    def of(cls, tag: str, rows: np.ndarray, chunk: int, request: dict[str, Any]) -> "Draw":
        """For contexts ``rows``, ``chunk`` at a time."""
        return cls(tag, {start: rows[start : start + chunk] for start in range(0, len(rows), chunk)}, request)

    def ask(self, workers: Workers) -> bool:
        """Spreads the chunks that are missing over the healthy workers; False where there are none or none missing."""
        waiting = [position for position in self.chunks if position not in self.done]
        self.asked = [worker for worker in workers.healthy() if worker not in self.silent][: len(waiting)]
        shares = {worker: waiting[place :: len(self.asked)] for place, worker in enumerate(self.asked)}
        if shares:
            workers.send(
                self.tag,
                {w: {**self.request, "chunks": {p: self.chunks[p] for p in s}, "worker": w} for w, s in shares.items()},
            )
        return bool(shares)

    def gather(self, workers: Workers, local: ChunkSampler) -> Groups:
        """The groups in the order of their contexts, whoever rolled them out.

        Chunks of a worker that does not answer go to those that do; what is missing after ``ATTEMPTS`` is rolled out by
        ``local``. Raises what ``Reply.check`` finds.
        """
        for _ in range(ATTEMPTS):
            if not self.asked and not self.ask(workers):
                break
            replies = workers.answers(self.tag)
            self.silent.update(set(self.asked) - {reply.worker for reply in replies})
            self.asked = []
            for reply in replies:
                reply.check()
                self._take(reply)
        rest = {position: chunk for position, chunk in self.chunks.items() if position not in self.done}
        if rest:
            self._take(local.sample(rest, **self.request))
        return concatenate_groups([self.done[position] for position in sorted(self.done)])

    def _take(self, reply: Reply) -> None:
        self.done.update(reply.groups)
        if reply.scoring is not None:
            self.scoring.add(reply.scoring)


@contextmanager
def losing_learners(learners: Callable[[], Any]) -> Iterator[None]:
    """While learners are built or asked for something: whatever goes wrong is ``WorkersLost`` if a process was lost.

    ``learners`` gives RLlib's group of them, or None while there is none. The others complain of a dead one in words of
    their own, those of the library that they talk to each other with. An actor that cannot be built is no lost one.
    """
    try:
        yield
    except Exception as error:
        from ray.exceptions import RayActorError, RayError, RayTaskError

        unfit = isinstance(error, RayActorError) and error.actor_init_failed
        lost = isinstance(error, RayError) and not isinstance(error, RayTaskError) and not unfit
        group = learners()
        if not lost and not unfit and group is not None:
            # Alive or not is asked of all of them, also of those that RLlib has given up.
            answers = group.foreach_learner(_alive, healthy_only=False, timeout_seconds=PROBE)
            lost = any(isinstance(answer.get(), RayActorError) for answer in answers if not answer.ok)
        if lost:
            raise WorkersLost(f"a learner, an env runner or an engine was lost ({told(error)})") from error
        raise


def told(error: BaseException | None) -> str:
    """An error's type and the first line of what it says."""
    return ": ".join(filter(None, [type(error).__name__, str(error).strip().partition("\n")[0]]))


def _alive(learner: Any) -> bool:
    return True
