"""Reinforcement learning inside Ray RLlib (2.60, new API stack): rollouts and learning spread over processes.

RLlib carries the data, the weights and the recovery of lost workers; what is computed comes from ``update`` and is the
same as in ``rl.TorchTrainer``, to the last bit with one learner. One row of a training batch is one group.

    GroupAlgorithmConfig   an ``RlTask`` in RLlib's terms
    GroupAlgorithm         one iteration: contexts -> chunks over env runners -> learners -> weights back
    GroupEnvRunner         policy, contexts and reward; rolls out whole chunks
    GroupModule            the policy, and on learners the frozen reference of a KL term
    GroupLearner           loss, optimiser, clipping, minibatches
    RllibTrainer           all of it behind the ``Trainer`` protocol

Left out: devices other than the CPU, and models that do not fit one process (RLlib's learners are data parallel only).
RLlib's own checkpoints work but hold pickles; ``rl`` saves safetensors instead.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_OPTIMIZER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS, WEIGHTS_SEQ_NO
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME as ENV_STEPS
from ray.rllib.utils.spaces.simplex import Simplex
from ray.util.debug import log_once

from sidgym.agents.checkpoint import load_policy, optimizer_tensors, restore_optimizer
from sidgym.agents.microbatches import Accumulated
from sidgym.agents.policy import Policy
from sidgym.agents.rl import RlTask, frozen_copy, model_weights
from sidgym.agents.rllib_parts import ChunkSampler, Reply, collect, start_ray
from sidgym.agents.update import GroupBatch, contexts_of_step, group_forward, make_optimizer, minibatches, step_seed

SAMPLE_TIMEOUT = 600.0
"""Seconds after which an env runner that has not answered counts as lost for this attempt."""
FIGURES, VERSION, UPDATES = "figures", "weight_version", "updates"


class NoSpace(Simplex):
    """Stands where RLlib wants the space of an environment; nothing reads it."""

    def __init__(self) -> None:
        super().__init__(shape=(1,))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoSpace)


class GroupAlgorithmConfig(AlgorithmConfig):
    """An ``RlTask`` as a configuration of RLlib."""

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or GroupAlgorithm)
        self.task: Any = None  # an RlTask once for_task was called

    def for_task(self, task: RlTask) -> "GroupAlgorithmConfig":
        """Settings of RLlib for ``task``."""
        self.task = task
        self.environment(observation_space=NoSpace(), action_space=NoSpace())
        self.env_runners(
            env_runner_cls=GroupEnvRunner,
            num_env_runners=task.config.env_runners,
            merge_env_runner_states=False,
            broadcast_env_runner_states=False,
        )
        self.learners(num_learners=task.config.learners, add_default_connectors_to_learner_pipeline=False)
        self.fault_tolerance(
            restart_failed_env_runners=True,
            delay_between_env_runner_restarts_s=1.0,
            env_runner_health_probe_timeout_s=1.0,
        )
        self.debugging(log_level="WARN", log_sys_usage=False)
        # Counts as said: that this is the new API stack.
        log_once(f"{GroupAlgorithm.__name__}_on_new_api_stack")
        # Otherwise every forward pass would send the buffers of the policy from learner to learner.
        self.torch_ddp_kwargs = {"broadcast_buffers": False}
        return self

    def get_default_learner_class(self) -> type[Learner]:
        return GroupLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=GroupModule, model_config={"task": self.task})

    def validate(self) -> None:
        """Raises ``ValueError`` for settings that RLlib or this algorithm cannot run."""
        super().validate()
        if self.task is None:
            raise ValueError("GroupAlgorithmConfig has no task: call for_task(RlTask(...)) before it is built")
        config, learners = self.task.config, self.task.config.learners
        for name in ("contexts_per_step", "chunk", "epochs"):
            if getattr(config, name) < 1:
                raise ValueError(f"rl.{name} must be at least 1, got {getattr(config, name)}")
        for name in ("contexts_per_step", "minibatch"):
            # Learners that take unequal numbers of groups would wait for each other for ever, or weigh them wrongly.
            if learners and getattr(config, name) % learners:
                raise ValueError(
                    f"rl.{name} must be a multiple of rl.learners = {learners}, got {getattr(config, name)}"
                )


class GroupEnvRunner(EnvRunner, Checkpointable):
    """RLlib's shell around a ``ChunkSampler``."""

    def __init__(self, *, config: GroupAlgorithmConfig, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        if self.worker_index:
            torch.set_num_threads(1)
        self.sampler = ChunkSampler(config.task)

    def sample(self, **request: Any) -> Reply:
        return self.sampler.sample_remotely(**request)

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        state: dict[str, Any] = {WEIGHTS_SEQ_NO: self.sampler.engine.version}
        if self._check_component(COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = {DEFAULT_MODULE_ID: self.sampler.weights()}
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        if COMPONENT_RL_MODULE in state:
            weights = state[COMPONENT_RL_MODULE]
            weights = ray.get(weights) if isinstance(weights, ray.ObjectRef) else weights
            self.sampler.set_weights(weights[DEFAULT_MODULE_ID], int(state[WEIGHTS_SEQ_NO]))

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), {"config": self.config, "worker_index": self.worker_index}

    def assert_healthy(self) -> None:
        assert self.sampler

    def stop(self) -> None:
        self.sampler.close()

    def get_spaces(self) -> dict[str, Any]:
        spaces = (self.config.observation_space, self.config.action_space)
        return {INPUT_ENV_SPACES: spaces, DEFAULT_MODULE_ID: spaces}


class GroupModule(TorchRLModule, InferenceOnlyAPI):
    """The policy. Its training pass is the loss itself, so that gradients are averaged over learners."""

    def setup(self) -> None:
        settings: Any = self.model_config
        task: RlTask = settings["task"]
        self.rl = task.config
        self.policy = load_policy(task.policy)
        self.reference = frozen_copy(self.policy) if self.rl.kl_weight > 0 else None

    def get_non_inference_attributes(self) -> list[str]:
        return ["reference"]

    def train(self, mode: bool = True) -> "GroupModule":
        """Stays in evaluation mode: with dropout it would be another policy than the one that drew the candidates."""
        return super().train(False)

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        groups = GroupBatch(**{field.name: batch[field.name] for field in fields(GroupBatch)})
        return {"forward": group_forward(self.policy, groups, self.rl, self.reference)}

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The language model's weights; the reference never changes and is read from the task's checkpoint."""
        return model_weights(self.policy)

    def set_state(self, state: dict[str, torch.Tensor]) -> None:
        self.policy.model.load_state_dict(state, strict=False)


class GroupLearner(TorchLearner):
    """The optimiser steps of ``update``, each on this learner's share of the groups.

    With several learners the loss is the mean of the shares' losses, which is the loss over all groups: every term of
    an objective is a mean over groups.
    """

    config: Any

    def build(self) -> None:
        if self.config.num_learners:
            torch.set_num_threads(1)
        self.task: RlTask = self.config.task
        self.updates = 0
        self.rows: list[dict[str, float]] = []
        super().build()

    @property
    def policy(self) -> Policy:
        """The policy that is trained."""
        module: Any = self.module[DEFAULT_MODULE_ID].unwrapped()
        return module.policy

    def configure_optimizers_for_module(self, module_id: str, config: AlgorithmConfig | None = None) -> None:
        self.optimizer = make_optimizer(self.policy, self.task.config)
        self.register_optimizer(
            module_id=module_id, optimizer=self.optimizer, params=list(self.policy.model.parameters())
        )

    def _create_iterator_if_necessary(self, *, training_data: Any, **kwargs: Any) -> Iterator[MultiAgentBatch]:
        """This learner's equal share of every minibatch of ``minibatches``, still as numpy arrays."""
        columns = training_data.batch.policy_batches[DEFAULT_MODULE_ID]
        # RLlib counts the version up before it asks for data.
        if (columns[VERSION] != self._weights_seq_no - 1).any():
            raise RuntimeError(
                f"groups were drawn with weights {set(columns[VERSION].tolist())}, the learner holds "
                f"{self._weights_seq_no - 1}"
            )
        self.rows = []
        no_sync = getattr(self.module[DEFAULT_MODULE_ID], "no_sync", nullcontext)
        for part in minibatches(len(columns), self.task.config, self.task.seed, self.updates):
            share = part.reshape(max(self.config.num_learners, 1), -1)[self._learner_index]
            groups = GroupBatch(**{field.name: columns[field.name][share] for field in fields(GroupBatch)})
            self.accumulated = Accumulated(self.policy, groups, self.task.config)
            for piece in self.accumulated.passes(no_sync):
                yield MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(vars(piece))}, env_steps=len(piece))

    def compute_loss_for_module(self, *, fwd_out: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        return self.accumulated.add(fwd_out["forward"])

    def compute_gradients(self, loss_per_module: dict[Any, Any], **kwargs: Any) -> dict[Any, Any]:
        """Adds to what the passes before have left."""
        loss_per_module[DEFAULT_MODULE_ID].backward()
        return {name: parameter.grad for name, parameter in self._params.items()}

    def apply_gradients(self, gradients_dict: dict[Any, torch.Tensor]) -> None:
        """Clips and steps; raises ``FloatingPointError`` where RLlib would put zeros for NaN."""
        if self.accumulated.complete:
            self.rows.append(self.accumulated.apply(self.optimizer, self.updates, first=not self.rows))
            self.updates += 1

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().after_gradient_based_update(timesteps=timesteps)
        figures = {name: float(np.mean([row[name] for row in self.rows])) for name in self.rows[0]}
        for name, value in {**figures, UPDATES: self.updates}.items():
            self.metrics.log_value((DEFAULT_MODULE_ID, FIGURES, name), value, window=1)

    def _get_optimizer_state(self) -> dict[str, torch.Tensor]:
        return optimizer_tensors(self.optimizer)

    def _set_optimizer_state(self, state: dict[str, torch.Tensor]) -> None:
        restore_optimizer(self.optimizer, state)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**super().get_state(*args, **kwargs), UPDATES: self.updates}

    def set_state(self, state: dict[str, Any]) -> None:
        if COMPONENT_RL_MODULE in state:
            # RLlib passes over weights that are not newer than its own.
            self._weights_seq_no = -1
        super().set_state(state)
        self._weights_seq_no = state.get(WEIGHTS_SEQ_NO, self._weights_seq_no)
        self.updates = state.get(UPDATES, self.updates)


class GroupAlgorithm(Algorithm):
    """Rollout and update; ``position`` is the iteration that comes next."""

    position = 0
    # RLlib declares these as optional; they are there once ``setup`` has run.
    config: Any
    env_runner_group: Any
    learner_group: Any
    metrics: Any

    @classmethod
    def get_default_config(cls) -> GroupAlgorithmConfig:
        return GroupAlgorithmConfig()

    def _setup_logdir(self) -> None:
        """Without Tune, a temporary directory instead of ~/ray_results."""
        if self._storage:
            super()._setup_logdir()
        else:
            self._logdir: Any = tempfile.mkdtemp(prefix="sidgym-rllib-")

    def training_step(self) -> None:
        task, local = self.config.task, self.env_runner.sampler
        rows = contexts_of_step(len(local.contexts), task.config, task.seed, self.position)
        seed, runners = step_seed(task.seed, self.position), self.env_runner_group.healthy_env_runner_ids
        groups, figures = collect(rows, seed, local, runners, self._ask, self.send_weights)
        columns = {field.name: getattr(groups, field.name) for field in fields(GroupBatch)}
        columns[VERSION] = np.full(len(groups), local.engine.version)
        batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=len(groups))
        learners = self.config.num_learners
        # Every learner gets all groups and takes its share of each minibatch: minibatches stay those of one learner.
        data: dict[str, Any] = {"batches": [batch] * learners} if learners else {"batch": batch}
        steps = {ENV_STEPS: (self.position + 1) * len(groups)}
        self.metrics.aggregate(self.learner_group.update(**data, timesteps=steps), key=LEARNER_RESULTS)
        self.metrics.log_value((ENV_RUNNER_RESULTS, ENV_STEPS), len(groups), reduce="lifetime_sum")
        for name, values in figures.items():
            self.metrics.log_value((ENV_RUNNER_RESULTS, FIGURES, name), float(values.mean()), window=1)
        self.send_weights()
        self.position += 1

    def send_weights(self) -> None:
        """The learners' weights to every env runner; waits for what was sent before."""
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group, inference_only=True, timeout_seconds=SAMPLE_TIMEOUT
        )

    def _ask(self, runners: list[int], requests: list[dict[str, Any]]) -> list[Reply]:
        return self.env_runner_group.foreach_env_runner(
            ["sample"] * len(runners),
            kwargs=requests,
            remote_worker_ids=runners,
            local_env_runner=False,
            timeout_seconds=SAMPLE_TIMEOUT,
        )

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**super().get_state(*args, **kwargs), "position": self.position}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.position = state.get("position", self.position)


class RllibTrainer:
    """The ``Trainer`` that RLlib runs. Starts Ray on this machine unless it runs already.

    Everything is computed with one thread a process: results must not depend on where a chunk was rolled out. ``close``
    undoes that and stops what was started.
    """

    def __init__(self, task: RlTask):
        self.task, self.config = task, task.config
        self.updates = 0
        self.algorithm: Any = None  # a GroupAlgorithm while the trainer is open
        config = GroupAlgorithmConfig().for_task(task)
        config.validate()
        self._started_ray = start_ray(task)
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            self.algorithm = config.build_algo()
        except BaseException:
            self.close()
            raise

    def step(self, number: int) -> dict[str, float]:
        algorithm = self._running()
        algorithm.position = number
        result = algorithm.train()
        figures = {**result[ENV_RUNNER_RESULTS][FIGURES], **result[LEARNER_RESULTS][DEFAULT_MODULE_ID][FIGURES]}
        self.updates = int(figures.pop(UPDATES))
        return {name: float(value) for name, value in figures.items()}

    def weights(self) -> dict[str, torch.Tensor]:
        return self._running().learner_group.get_weights()[DEFAULT_MODULE_ID]

    def state(self) -> dict[str, torch.Tensor]:
        components = f"{COMPONENT_LEARNER}/{COMPONENT_OPTIMIZER}"
        return self._running().learner_group.get_state(components)[COMPONENT_LEARNER][COMPONENT_OPTIMIZER]

    def restore(self, weights: dict[str, torch.Tensor], state: dict[str, torch.Tensor], updates: int) -> None:
        algorithm = self._running()
        # A version that no env runner has had: one that restarts must not take its first weights for these.
        version = max(updates, algorithm.env_runner.sampler.engine.version) + 1
        whole = {WEIGHTS_SEQ_NO: version, COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: weights}}
        reference = ray.put({**whole, COMPONENT_OPTIMIZER: state, UPDATES: updates})
        for result in algorithm.learner_group.foreach_learner(_set_learner_state, reference=reference):
            if not result.ok:
                raise result.get()
        algorithm.send_weights()
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

    def _running(self) -> Any:
        if self.algorithm is None:
            raise RuntimeError("this trainer is closed; make a new one and restore it")
        return self.algorithm


def _set_learner_state(learner: Any, reference: ray.ObjectRef) -> None:
    learner.set_state(ray.get(reference))
