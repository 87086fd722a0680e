"""One iteration inside RLlib: contexts -> chunks over env runners -> learners -> weights for later rollouts.

With ``rl.staleness`` the env runners draw iterations that come later while the learners learn from this one. Every
request for a rollout brings a reference to the weights it is to be drawn with, so that whoever answers, also after a
restart, draws with the same. Left out: configuration (``rllib_config``), learning (``rllib_learner``), and how chunks
are spread (``rllib_parts``).
"""

import tempfile
import uuid
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EPISODE_RETURN_MEAN, LEARNER_RESULTS, WEIGHTS_SEQ_NO
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME as ENV_STEPS

from sidgym.agents.curriculum import chances_of
from sidgym.agents.pending import account, pending_groups, pending_tensors
from sidgym.agents.recipes import indistinct
from sidgym.agents.recovery import warn
from sidgym.agents.refill import refill
from sidgym.agents.refused import Refusals
from sidgym.agents.rllib_config import GRPOConfig
from sidgym.agents.rllib_learner import FIGURES, ITERATION, UPDATES
from sidgym.agents.rllib_parts import ChunkSampler, Draw, Reply
from sidgym.agents.scoring import Account, scorer_of, scoring_figures
from sidgym.agents.student import model_weights
from sidgym.agents.update import GroupBatch, Groups, contexts_of_step, minibatches, over_rollout, step_seed

NOTICED = 1.0
"""Seconds in which a learner that has failed is noticed while others are waited for."""
WEIGHTS = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"


class GroupEnvRunner(EnvRunner, Checkpointable):
    """RLlib's shell around a ``ChunkSampler``."""

    def __init__(self, *, config: GRPOConfig, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        if self.worker_index:
            torch.set_num_threads(1)
        gpus = config.num_gpus_per_env_runner if self.worker_index else config.num_gpus_per_learner
        there = torch.cuda.is_available()
        # A driver whose learners have GPUs elsewhere needs none: it rolls out in an emergency only.
        if gpus > 0 and not there and (self.worker_index or not config.num_learners):
            raise ValueError(
                f"env runner {self.worker_index} was given a GPU and cannot use it: torch finds none. Ray was told of "
                "more GPUs than there are, or torch was built without CUDA"
            )
        self.sampler = ChunkSampler(config.task, "cuda" if gpus > 0 and there else "cpu", _resolved)

    def sample(self, **request: Any) -> Reply:
        return self.sampler.sample_remotely(**request)

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        state: dict[str, Any] = {WEIGHTS_SEQ_NO: self.sampler.engine.version}
        if self._check_component(COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = {DEFAULT_MODULE_ID: self.sampler.weights()}
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        if COMPONENT_RL_MODULE in state:
            found = state[COMPONENT_RL_MODULE]
            module = ray.get(found) if isinstance(found, ray.ObjectRef) else found
            self.sampler.set_weights(_resolved(module[DEFAULT_MODULE_ID]), int(state[WEIGHTS_SEQ_NO]))

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), {"config": self.config, "worker_index": self.worker_index}

    def assert_healthy(self) -> None:
        assert self.sampler is not None

    def stop(self) -> None:
        self.sampler.close()

    def get_spaces(self) -> dict[str, Any]:
        spaces = (self.config.observation_space, self.config.action_space)
        return {INPUT_ENV_SPACES: spaces, DEFAULT_MODULE_ID: spaces}


def _resolved(weights: Any) -> Any:
    found = ray.get(weights) if isinstance(weights, ray.ObjectRef) else weights
    # Copied: what lies in the object store cannot be written to.
    return {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in found.items()}


def _put_weights(learner: Any) -> ray.ObjectRef:
    """Called where a learner is: its weights go to the object store from there, not by the driver.

    As arrays, which those that roll out read where they lie.
    """
    return ray.put({name: value.numpy() for name, value in model_weights(learner.policy).items()})


class GroupAlgorithm(Algorithm):
    """Rollout and update; ``position`` is the iteration that comes next, ``updates`` the optimiser steps so far."""

    # RLlib declares these as optional; they are there once ``setup`` has run.
    config: Any
    env_runner_group: Any
    learner_group: Any
    metrics: Any

    @classmethod
    def get_default_config(cls) -> GRPOConfig:
        return GRPOConfig()

    def setup(self, config: Any) -> None:
        self.position = self.updates = 0
        self.drawing: dict[int, Draw] = {}  # rollouts on their way, by iteration
        self.pending: dict[int, Groups] = {}  # rollouts that are here and not yet learned from
        self._newest: dict[str, Any] | None = None  # the newest weights, as requests hold them
        self._waited: dict[str, list[int]] = {}  # env runners that were asked, by tag
        self.scoring = Account()  # what env runners waited for scores since the last iteration
        self._hung: list[Any] = []  # learners that wait for another one which has failed
        self.patience = self.config.sample_timeout_s
        self.task = self.config.task
        if self.config.warns and (warning := indistinct(self.task.config)):
            warn(warning)
        self.refusals = Refusals(self.task.config.refusals, self.task.refused or str(Path(self.logdir) / "refused"))
        super().setup(config)
        self.chances = chances_of(self.task, self.env_runner.sampler.contexts)

    def _setup_logdir(self) -> None:
        """Without Tune, a temporary directory instead of ~/ray_results."""
        if self._storage:
            super()._setup_logdir()
        else:
            self._logdir: Any = tempfile.mkdtemp(prefix="sidgym-rllib-")

    def training_step(self) -> None:
        number, config = self.position, self.task.config
        for iteration in range(number, number + config.staleness + 1):
            self._begin(iteration)
        batch, figures = self._finish(number)
        del self.pending[number]
        batch = over_rollout(batch, config)
        for name, values in figures.items():
            self._log(name, float(values.mean()))
        for name, value in account(batch, self.updates).items():
            self._log(name, value)
        scoring = self.scoring.taken() if scorer_of(self.env_runner.sampler.reward) else None
        for name, value in scoring_figures(scoring, config.env_runners).items():
            self._log(name, value)
        if "reward" in figures:
            mean = float(figures["reward"].mean())
            self.metrics.log_value((ENV_RUNNER_RESULTS, EPISODE_RETURN_MEAN), mean, window=1)
        self.metrics.log_value((ENV_RUNNER_RESULTS, ENV_STEPS), len(batch), reduce="lifetime_sum")
        self._learn(batch)
        self.position += 1

    def _log(self, name: str, value: float) -> None:
        self.metrics.log_value((ENV_RUNNER_RESULTS, FIGURES, name), value, window=1)

    def _learn(self, batch: GroupBatch) -> None:
        """All optimiser steps on ``batch``."""
        columns = {field.name: getattr(batch, field.name) for field in fields(GroupBatch)}
        columns[ITERATION] = np.full(len(batch), self.position)
        sent = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=len(batch))
        learners = self.config.num_learners
        # Every learner gets all groups and takes its share of each minibatch: minibatches stay those of one learner.
        data: dict[str, Any] = {"batch_refs": [ray.put(sent)] * learners} if learners else {"batch": sent}
        steps = {ENV_STEPS: (self.position + 1) * len(batch)}
        self._newest = None
        self.metrics.aggregate(self._updated(**data, timesteps=steps), key=LEARNER_RESULTS)
        parts, first = minibatches(len(batch), self.task.config, self.task.seed, self.updates), self.updates
        self.updates += len(parts)
        refused: dict[int, str] = {}
        if self.metrics.peek((LEARNER_RESULTS, DEFAULT_MODULE_ID, FIGURES, "updates_refused")):
            for answer in self.learner_group.foreach_learner(_refused):
                refused |= {n: why for n, why in answer.get().items() if n not in refused or "loss" in why}
        self.refusals.record(batch, parts, first, refused)

    def _updated(self, **data: Any) -> list[Any]:
        """``LearnerGroup.update``, but the first learner that fails ends it: the others may wait for that one long."""
        learners = self.config.num_learners
        if not learners:
            return self.learner_group.update(**data)
        self.learner_group.update(async_update=True, **data)
        manager = self.learner_group._worker_manager
        if manager.num_outstanding_async_reqs() != learners:
            raise RuntimeError("a learner has failed before, so there is nothing to go on with; make a new algorithm")
        results: dict[int, Any] = {}
        while len(results) < learners:
            for answer in manager.fetch_ready_async_reqs(timeout_seconds=NOTICED):
                results[answer.actor_id] = answer
            if failed := [answer for answer in results.values() if not answer.ok]:
                self._hung = [actor for number, actor in manager.actors().items() if number not in results]
                raise failed[0].get()
        return [results[number].get() for number in sorted(results)]

    def cleanup(self) -> None:
        for learner in self._hung:  # nobody can talk to them, also not to end them
            ray.kill(learner)
        super().cleanup()

    def _begin(self, number: int) -> None:
        """Asks for the groups of iteration ``number``, with the newest weights; does not wait if others roll out."""
        if number in self.drawing or number in self.pending:
            return
        self.drawing[number] = self._draw(number, 0, self._weights())
        self.drawing[number].ask(self)
        if not self.config.num_env_runners:
            self._finish(number)

    def _draw(self, number: int, further: int, weights: dict[str, Any]) -> Draw:
        task = self.task
        contexts = self.env_runner.sampler.contexts
        rows = contexts_of_step(len(contexts), task.config, task.seed, number, further, self.chances)
        request = {"seed": step_seed(task.seed, number, further), **weights}
        return Draw.of(uuid.uuid4().hex, rows, task.config.chunk, request)

    def _finish(self, number: int) -> Groups:
        """Waits for the groups of iteration ``number``, and draws further ones if they are refilled."""
        if number not in self.pending:
            draw = self.drawing[number]
            weights = {name: draw.request[name] for name in ("version", "weights", "stamp")}

            def gathered(wanted: Draw) -> Groups:
                found = wanted.gather(self, self.env_runner.sampler)
                self.scoring.add(wanted.scoring)
                return found

            self.pending[number] = refill(
                gathered(draw),
                lambda further: gathered(self._draw(number, further, weights)),
                self.task.config.refills,
            )
            del self.drawing[number]
        return self.pending[number]

    def _weights(self) -> dict[str, Any]:
        """The learners' weights as part of a request."""
        if self._newest is None:
            if self.config.num_env_runners:
                first = [0] if self.config.num_learners else None
                (answer,) = self.learner_group.foreach_learner(_put_weights, remote_actor_ids=first)
                if not answer.ok:
                    raise answer.get()
                sent = answer.get()
            else:
                state = self.learner_group.get_state(WEIGHTS, inference_only=True)[COMPONENT_LEARNER]
                sent = state[COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]
            self._newest = {"version": self.updates, "weights": sent, "stamp": uuid.uuid4().hex}
        return self._newest

    def healthy(self) -> list[int]:
        """As ``rllib_parts.Workers``: env runners that are there."""
        return self.env_runner_group.healthy_env_runner_ids()

    def send(self, tag: str, requests: dict[int, dict[str, Any]]) -> None:
        """As ``rllib_parts.Workers``: asks env runners for rollouts."""
        self._waited[tag] = list(requests)
        self.env_runner_group.foreach_env_runner_async(
            ["sample"] * len(requests), tag=tag, kwargs=list(requests.values()), remote_worker_ids=list(requests)
        )

    def answers(self, tag: str) -> list[Reply]:
        """As ``rllib_parts.Workers``: waits for what was asked, ``sample_timeout_s`` seconds at most.

        An env runner that lives and has not answered then hangs; it is killed, and Ray starts it again.
        """
        found = self.env_runner_group.fetch_ready_async_reqs(tags=tag, timeout_seconds=self.patience)
        late = set(self._waited.pop(tag, ())) - {worker for worker, _ in found}
        manager = self.env_runner_group._worker_manager
        for worker in sorted(late & set(self.healthy())):
            warn(f"env runner {worker} has not answered for {self.patience:g} s; it is started again")
            ray.kill(manager.actors()[worker], no_restart=False)
            manager.set_actor_state(worker, healthy=False)  # also forgets all that it was asked for
        return [reply for _, reply in found]

    def waiting(self) -> dict[int, Groups]:
        """Rollouts that were asked for and not yet learned from, by iteration; waits for those on their way."""
        for number in sorted(self.drawing):
            self._finish(number)
        return dict(self.pending)

    def put_at(self, position: int, updates: int, pending: dict[int, Groups], refused_in_a_row: int) -> None:
        """Where the run goes on once the learners were put there; what is on its way is waited for and forgotten."""
        for tag in list(self._waited):
            self.answers(tag)
        self.position, self.updates = position, updates
        self.drawing, self.pending, self._newest = {}, pending, None
        self.refusals.in_a_row = refused_in_a_row

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        own = {
            "position": self.position,
            UPDATES: self.updates,
            "pending": pending_tensors(self.waiting()),
            "refused_in_a_row": self.refusals.in_a_row,
        }
        return {**super().get_state(*args, **kwargs), **own}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if "position" in state:
            pending = pending_groups(state["pending"])
            self.put_at(state["position"], state[UPDATES], pending, state["refused_in_a_row"])


def _refused(learner: Any) -> dict[int, str]:
    return learner.refused
