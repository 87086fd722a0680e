"""Reinforcement learning inside Ray RLlib (2.60, new API stack): rollouts and learning spread over processes.

RLlib carries the data, the weights and the recovery of lost workers; what is computed comes from ``update`` and is the
same as in ``trainer.TorchTrainer``, to the last bit with one learner. One row of a training batch is one group.

    GRPOConfig       settings, as RLlib's own configurations are used (``rllib_config``)
    GroupAlgorithm   one iteration; with it GroupEnvRunner, which rolls out whole chunks (``rllib_algorithm``)
    GroupLearner     loss, optimiser, clipping, minibatches; with it GroupModule, the policy (``rllib_learner``)
    RllibTrainer     all of it behind the ``Trainer`` protocol

Left out: models that do not fit one process (RLlib's learners are data parallel only; see ``fsdp``). RLlib's own
checkpoints work but hold pickles; ``rl`` saves safetensors instead.
"""

import shutil
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_OPTIMIZER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS

from sidgym.agents.pending import pending_groups, pending_tensors
from sidgym.agents.ray_start import start_ray
from sidgym.agents.recipes import completed
from sidgym.agents.refused import IN_A_ROW
from sidgym.agents.rllib_algorithm import WEIGHTS, GroupAlgorithm
from sidgym.agents.rllib_config import GRPOConfig
from sidgym.agents.rllib_learner import FIGURES, UPDATES, GroupLearner, GroupModule
from sidgym.agents.rllib_parts import losing_learners
from sidgym.agents.student import ADAPTERS, REFERENCE, Tensors
from sidgym.agents.task import RlTask

__all__ = ["GRPOConfig", "GroupAlgorithm", "GroupLearner", "GroupModule", "RllibTrainer"]


class RllibTrainer:
    """The ``Trainer`` that RLlib runs. Starts Ray on this machine unless it runs already, or connects to a cluster.

    Everything is computed with one thread a process: results must not depend on where a chunk was rolled out. ``close``
    undoes that and stops what was started.
    """

    def __init__(self, task: RlTask):
        self.task = task = replace(task, config=completed(task.config))
        self.config = task.config
        self.updates = 0
        self.algorithm: Any = None  # a GroupAlgorithm while the trainer is open
        config = GRPOConfig().for_task(task)
        config.validate()
        self._started_ray = start_ray(task)
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with self._watched():
                self.algorithm = config.build_algo()
        except BaseException:
            self.close()
            raise

    def step(self, number: int) -> dict[str, float]:
        algorithm = self._running()
        algorithm.position = number
        with self._watched():
            result = algorithm.train()
        figures = {**result[ENV_RUNNER_RESULTS][FIGURES], **result[LEARNER_RESULTS][DEFAULT_MODULE_ID][FIGURES]}
        self.updates = int(figures.pop(UPDATES))
        return {name: float(value) for name, value in figures.items()}

    def weights(self) -> Tensors:
        with self._watched():
            state = self._running().learner_group.get_state(WEIGHTS, inference_only=True)
        return state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]

    def state(self) -> Tensors:
        algorithm = self._running()
        with self._watched():
            first = [0] if self.config.learners else None
            (answer,) = algorithm.learner_group.foreach_learner(_learner_tensors, remote_actor_ids=first)
            return {**_checked(answer), **pending_tensors(algorithm.waiting()), **algorithm.refusals.tensors()}

    def restore(self, weights: Tensors, state: Tensors, updates: int) -> None:
        algorithm = self._running()
        beside = {name: value for name, value in state.items() if name.startswith((ADAPTERS, REFERENCE))}
        module = {DEFAULT_MODULE_ID: {**weights, **beside}}
        optimizer = {name: value for name, value in state.items() if name[0].isdigit()}
        sent = ray.put({COMPONENT_RL_MODULE: module, COMPONENT_OPTIMIZER: optimizer, UPDATES: updates})
        with self._watched():
            for answer in algorithm.learner_group.foreach_learner(_set_learner_state, sent=sent):
                _checked(answer)
        # Where it goes on is said by the next ``step``.
        algorithm.put_at(0, updates, pending_groups(state), int(state.get(IN_A_ROW, 0)))
        self.updates = updates

    def close(self) -> None:
        if self.algorithm is not None:
            self.algorithm.stop()
            shutil.rmtree(self.algorithm.logdir, ignore_errors=True)
            self.algorithm = None
        if self._started_ray:
            ray.shutdown()
            self._started_ray = False
        torch.set_num_threads(self._threads)

    def _watched(self) -> AbstractContextManager[None]:
        return losing_learners(lambda: self.algorithm and self.algorithm.learner_group)

    def _running(self) -> Any:
        if self.algorithm is None:
            raise RuntimeError("this trainer is closed; make a new one and restore it")
        return self.algorithm


def _checked(answer: Any) -> Any:
    """What a learner answered; raises what it raised."""
    if not answer.ok:
        raise answer.get()
    return answer.get()


def _learner_tensors(learner: Any) -> Tensors:
    return learner.tensors()


def _set_learner_state(learner: Any, sent: ray.ObjectRef) -> None:
    learner.set_state(ray.get(sent))
