"""A trainer for models beyond one GPU: the functions of ``update`` under Ray Train, with weights, gradients and
optimiser sharded by FSDP2.

A ``Rank`` is one process: it has a share of the rollouts and of every minibatch, and a shard of the model. Those who
start the ranks and tell them what to do stand in ``ray_train``.

The model is one unit of sharding. It is gathered before a rollout and let go after the last backward pass, because its
blocks are walked by hand (``tree_cache.BlockTree``), past the hooks that would gather them one by one, and because the
ranks take different numbers of passes. So a GPU has to hold all weights, all gradients of the newest pass (2 bytes a
parameter each in bfloat16) and what they add up to over several passes (4 bytes, float32): 8 bytes a parameter, beside
its shard of 16 bytes a parameter, and all weights in float32 when it starts. A reference adds 2, and 4 to the shard;
activations are bounded by ``rl.tokens_per_microbatch``. Left out: models whose weights alone do
not fit, for which blocks would have to be sharded one by one; engines that hold a copy of the weights; adapters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sidgym.agents.checkpoint import optimizer_tensors, restore_optimizer
from sidgym.agents.config import RlConfig
from sidgym.agents.curriculum import chances_of
from sidgym.agents.engine import engine_of
from sidgym.agents.microbatches import Accumulated, StepResult, summary
from sidgym.agents.pending import account, check_versions
from sidgym.agents.policy import Policy
from sidgym.agents.precision import mixed_precision
from sidgym.agents.recipes import completed
from sidgym.agents.refill import refill
from sidgym.agents.scoring import scoring_figures, taken
from sidgym.agents.student import REFERENCE, Tensors, learning_policies
from sidgym.agents.task import RlTask
from sidgym.agents.update import (
    GroupBatch,
    Groups,
    concatenate_groups,
    contexts_of_step,
    group_forward,
    make_optimizer,
    minibatches,
    over_rollout,
    rollout_groups,
    step_seed,
)

Step = tuple[dict[str, float], int, dict[int, str], GroupBatch]
"""Metrics of an iteration, optimiser steps so far, which of its own were refused and why, what it learned from."""


class ShardedLoss(torch.nn.Module):
    """The objective on some groups as a forward pass, so that FSDP gathers weights before it and spreads gradients."""

    def __init__(self, policy: Policy, config: RlConfig):
        super().__init__()
        self.policy, self.config = policy, config

    def forward(self, groups: GroupBatch, reference: Policy | None) -> tuple[torch.Tensor, Any]:
        forward = group_forward(self.policy, groups, self.config, reference)
        return forward.loss, forward


class Rank:
    """What one process does; all ranks are asked for the same at the same time."""

    def __init__(self, task: RlTask, device: torch.device):
        self.task = task = replace(task, config=completed(task.config))
        self.config = task.config
        self.number, self.world = dist.get_rank(), dist.get_world_size()
        self.policy, reference = learning_policies(task, device)
        self.contexts, self.reward = task.load_contexts(), task.load_reward(self.policy.table)
        self.chances = chances_of(task, self.contexts)
        half = torch.bfloat16 if self.config.precision == "bfloat16" else None
        mixed = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
        mesh = init_device_mesh(device.type, (self.world,))
        self.reference: Any = reference and fully_shard(reference, mesh=mesh, mp_policy=mixed)
        self.module: Any = fully_shard(ShardedLoss(self.policy, self.config), mesh=mesh, mp_policy=mixed)
        self.module.set_reduce_scatter_unused_params(True)  # what one rank has no use for, another may have
        self.engine = engine_of(self.config, self.policy)
        self.optimizer = make_optimizer(self.policy, self.config)
        self.updates = 0

    def step(self, number: int) -> Step:
        """Iteration ``number``; the same on every rank."""
        self.module.unshard()
        self.engine.version = self.updates  # it shares the policy's weights
        batch, figures = refill(self._draw(number, 0), lambda further: self._draw(number, further), self.config.refills)
        batch = over_rollout(batch, self.config)
        check_versions(batch, self.updates, self.config)
        metrics = {**{name: float(values.mean()) for name, values in figures.items()}, **account(batch, self.updates)}
        first, steps = self.updates, self._update(batch)
        if self.reference and self.config.reference_every and (number + 1) % self.config.reference_every == 0:
            with torch.no_grad():
                for mine, new in zip(self.reference.parameters(), self.policy.parameters()):
                    mine.copy_(new)
        refused = {first + n: step.refused for n, step in enumerate(steps) if step.refused}
        ranks = self._everyones((summary(steps) | scoring_figures(taken(self.reward)), refused))
        for name in ranks[0][0]:
            values = [own[name] for own, _ in ranks]
            metrics[name] = float(np.max(values) if name.endswith("_max") else np.mean(values))
        return metrics, self.updates, {n: why for _, own in ranks for n, why in own.items()}, batch

    def _draw(self, number: int, further: int) -> Groups:
        """Groups of a slice of contexts; this rank draws every so many-th chunk of them."""
        rows = contexts_of_step(len(self.contexts), self.config, self.task.seed, number, further, self.chances)
        seed, width = step_seed(self.task.seed, number, further), self.config.chunk
        own = {}
        with mixed_precision(self.policy.device.type, self.config.precision):
            for start in range(self.number * width, len(rows), self.world * width):
                chunk = self.contexts.take(rows[start : start + width])
                own[start] = rollout_groups(chunk, self.engine, self.reward, self.config, seed)
        parts = {start: groups for part in self._everyones(own) for start, groups in part.items()}
        return concatenate_groups([parts[start] for start in sorted(parts)])

    def _update(self, batch: GroupBatch) -> list[StepResult]:
        """All optimiser steps of one rollout, on this rank's share of each minibatch."""
        steps: list[StepResult] = []
        if self.reference is not None:
            self.reference.unshard()
        for part in minibatches(len(batch), self.config, self.task.seed, self.updates):
            share = part.reshape(self.world, -1)[self.number]
            step = Accumulated(self.policy, batch.take(share), self.config)
            self.optimizer.zero_grad(set_to_none=True)
            for piece in step.passes(self._gathered):
                _, forward = self.module(piece, self.reference)
                step.add(forward).backward()
            steps.append(step.attempt(self.optimizer, self.updates, first=not steps))
            self.updates += 1
        if self.reference is not None:
            self.reference.reshard()
        return steps

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """A pass after which weights stay gathered and gradients stay here: the ranks do not wait for each other."""
        self.module.set_requires_gradient_sync(False)
        self.module.set_reshard_after_backward(False)
        try:
            yield
        finally:
            self.module.set_requires_gradient_sync(True)
            self.module.set_reshard_after_backward(True)

    def _everyones(self, own: Any) -> list[Any]:
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, own)
        return found

    def _kept(self) -> dict[str, Any]:
        """Shards of all parameters that change, by name."""
        self.module.reshard()
        kept: dict[str, Any] = dict(self.policy.model.named_parameters())
        if self.reference is not None and self.config.reference_every:
            kept |= {REFERENCE + name: value for name, value in self.reference.model.named_parameters()}
        return kept

    def weights(self) -> Tensors:
        """The whole model's weights, on rank 0 alone."""
        return self._whole({name: value for name, value in self._kept().items() if not name.startswith(REFERENCE)})

    def state(self) -> Tensors:
        """The whole optimiser, and a reference that has changed, on rank 0 alone."""
        beside = {name: value for name, value in self._kept().items() if name.startswith(REFERENCE)}
        return self._whole({**optimizer_tensors(self.optimizer), **beside})

    def _whole(self, tensors: Tensors) -> Tensors:
        full = ((name, value.full_tensor() if isinstance(value, DTensor) else value) for name, value in tensors.items())
        return {name: value.detach().cpu().clone() for name, value in full if self.number == 0}

    @torch.no_grad()
    def restore(self, sent: list[Any]) -> None:
        """Weights, state and optimiser steps, as a reference to an object of Ray's store."""
        import ray

        weights, state, self.updates = ray.get(sent[0])
        known = {**weights, **state}
        for name, parameter in self._kept().items():
            parameter.copy_(_sharded(known[name], parameter))
        likes = list(self.policy.model.parameters())
        moments = {}
        for key, value in state.items():
            number, _, kind = key.partition(".")
            if number.isdigit():
                moments[key] = value if kind == "step" else _sharded(value, likes[int(number)])
        restore_optimizer(self.optimizer, moments)


def _sharded(value: torch.Tensor, like: Any) -> DTensor:
    """A whole tensor, known on every rank, sharded as ``like`` is."""
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
