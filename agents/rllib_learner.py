"""What learns inside RLlib: the policy as its module, and the optimiser steps of ``update`` as its learner.

Left out: configuration (``rllib_config``) and who asks for an update (``rllib_algorithm``).
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from sidgym.agents.checkpoint import optimizer_tensors, restore_optimizer
from sidgym.agents.microbatches import Accumulated, StepResult, summary
from sidgym.agents.pending import check_versions
from sidgym.agents.policy import Policy
from sidgym.agents.student import (
    extra_tensors,
    learning_policies,
    load_weights,
    model_weights,
    state_tensors,
    synchronise,
)
from sidgym.agents.task import RlTask
from sidgym.agents.update import GroupBatch, group_forward, make_optimizer, minibatches

FIGURES, ITERATION, UPDATES = "figures", "iteration", "updates"


class GroupModule(TorchRLModule, InferenceOnlyAPI):
    """The policy. Its training pass is the loss itself, so that gradients are averaged over learners."""

    def setup(self) -> None:
        settings: Any = self.model_config
        task: RlTask = settings["task"]
        self.rl = task.config
        # Built on the CPU: RLlib moves the module to where it belongs.
        self.policy, self.reference = learning_policies(task)

    def get_non_inference_attributes(self) -> list[str]:
        return ["reference"]

    def train(self, mode: bool = True) -> "GroupModule":
        """Stays in evaluation mode: with dropout it would be another policy than the one that drew the candidates."""
        return super().train(False)

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        groups = GroupBatch(**{field.name: batch[field.name] for field in fields(GroupBatch)})
        return {"forward": group_forward(self.policy, groups, self.rl, self.reference)}

    def get_state(self, *args: Any, inference_only: bool = False, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The language model's weights; unless ``inference_only`` also adapters, and a reference that has changed."""
        weights = model_weights(self.policy)
        return weights if inference_only else {**weights, **extra_tensors(self.policy, self.reference, self.rl)}

    def set_state(self, state: dict[str, torch.Tensor]) -> None:
        load_weights(self.policy, self.reference, state, state)


class GroupLearner(TorchLearner):
    """The optimiser steps of ``update``, each on this learner's share of the groups.

    With several learners the loss is the mean of the shares' losses, which is the loss over all groups: every term of
    an objective is a mean over groups. RLlib's number of the weights is that of the optimiser steps.
    """

    config: Any

    def build(self) -> None:
        if self.config.num_learners:
            torch.set_num_threads(1)
        self.task: RlTask = self.config.task
        self.updates = 0
        self.steps: list[StepResult] = []
        self.refused: dict[int, str] = {}  # optimiser steps of the newest iteration that were refused, and why
        super().build()

    @property
    def policy(self) -> Policy:
        """The policy that is trained."""
        return self._own.policy

    @property
    def _own(self) -> GroupModule:
        return self.module[DEFAULT_MODULE_ID].unwrapped()  # type: ignore[return-value]

    def configure_optimizers_for_module(self, module_id: str, config: AlgorithmConfig | None = None) -> None:
        self.optimizer = make_optimizer(self.policy, self.task.config)
        learned = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.register_optimizer(module_id=module_id, optimizer=self.optimizer, params=learned)

    def _create_iterator_if_necessary(self, *, training_data: Any, **kwargs: Any) -> Iterator[MultiAgentBatch]:
        """This learner's equal share of every minibatch of ``minibatches``, still as numpy arrays."""
        columns = training_data.batch.policy_batches[DEFAULT_MODULE_ID]
        self.iteration = int(columns[ITERATION][0])
        whole = GroupBatch(**{field.name: columns[field.name] for field in fields(GroupBatch)})
        check_versions(whole, self.updates, self.task.config)
        self.steps, self.refused = [], {}
        no_sync = getattr(self.module[DEFAULT_MODULE_ID], "no_sync", nullcontext)
        for part in minibatches(len(whole), self.task.config, self.task.seed, self.updates):
            share = part.reshape(max(self.config.num_learners, 1), -1)[self._learner_index]
            self.accumulated = Accumulated(self.policy, whole.take(share), self.task.config)
            for piece in self.accumulated.passes(no_sync):
                yield MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(vars(piece))}, env_steps=len(piece))

    def compute_loss_for_module(self, *, fwd_out: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        return self.accumulated.add(fwd_out["forward"])

    def compute_gradients(self, loss_per_module: dict[Any, Any], **kwargs: Any) -> dict[Any, Any]:
        """Adds to what the passes before have left."""
        loss_per_module[DEFAULT_MODULE_ID].backward()
        return {name: parameter.grad for name, parameter in self._params.items()}

    def apply_gradients(self, gradients_dict: dict[Any, torch.Tensor]) -> None:
        """Clips and steps, or refuses to where RLlib would put zeros for NaN.

        Learners refuse together: what they look at is the gradient that they have averaged.
        """
        if self.accumulated.complete:
            result = self.accumulated.attempt(self.optimizer, self.updates, first=not self.steps)
            if result.refused:
                self.refused[self.updates] = result.refused
            self.steps.append(result)
            self.updates += 1

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().after_gradient_based_update(timesteps=timesteps)
        self._weights_seq_no = self.updates
        synchronise(self._own.reference, self.policy, self.task.config, self.iteration + 1)
        for name, value in {**summary(self.steps), UPDATES: self.updates}.items():
            over = "max" if name.endswith("_max") else "mean"  # over the learners
            self.metrics.log_value((DEFAULT_MODULE_ID, FIGURES, name), value, reduce=over, window=1)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that learning needs to go on, but the weights."""
        return state_tensors(self.policy, self._own.reference, self.optimizer, self.task.config)

    def _get_optimizer_state(self) -> dict[str, torch.Tensor]:
        return {name: value.cpu() for name, value in optimizer_tensors(self.optimizer).items()}

    def _set_optimizer_state(self, state: dict[str, torch.Tensor]) -> None:
        restore_optimizer(self.optimizer, state)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**super().get_state(*args, **kwargs), WEIGHTS_SEQ_NO: self.updates, UPDATES: self.updates}

    def set_state(self, state: dict[str, Any]) -> None:
        # RLlib passes over weights that are not newer than its own, also where a run goes back.
        super().set_state({**state, WEIGHTS_SEQ_NO: 0} if COMPONENT_RL_MODULE in state else state)
        self.updates = self._weights_seq_no = state.get(UPDATES, self.updates)
