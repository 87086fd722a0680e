"""What a trainer is, and the plain one: rollout and update in this process, without Ray.

Left out: the loop around a trainer (``rl``) and the same two functions spread over processes (``rllib``, ``fsdp``).
"""

from dataclasses import replace
from typing import Protocol

from sidgym.agents.checkpoint import load_policy, restore_optimizer
from sidgym.agents.curriculum import chances_of
from sidgym.agents.engine import close_engine, engine_of
from sidgym.agents.microbatches import Accumulated, StepResult, summary
from sidgym.agents.pending import account, check_versions, pending_groups, pending_tensors
from sidgym.agents.recipes import completed
from sidgym.agents.refill import refill
from sidgym.agents.refused import Refusals
from sidgym.agents.scoring import scoring_figures, taken
from sidgym.agents.student import (
    Tensors,
    learning_policies,
    load_weights,
    model_weights,
    state_tensors,
    synchronise,
)
from sidgym.agents.task import RlTask
from sidgym.agents.update import (
    GroupBatch,
    Groups,
    contexts_of_step,
    group_forward,
    make_optimizer,
    minibatches,
    over_rollout,
    rollout_groups,
    step_seed,
)


class Trainer(Protocol):
    """One backend of the loop. ``updates`` counts the optimiser steps so far, refused ones included."""

    updates: int

    def step(self, number: int) -> dict[str, float]:
        """Iteration ``number``: rollout and update; metrics averaged over its contexts.

        Figures of what scoring took (``scoring.PREFIX``) are the only ones that differ from run to run. With
        ``rl.staleness`` iterations must follow one another: what is learned from was drawn in earlier ones.
        Raises ``FloatingPointError`` after too many refused updates (``refused.Refusals``).
        """

    def weights(self) -> Tensors:
        """The language model's current weights, on the CPU; adapters are added to what they adapt."""

    def state(self) -> Tensors:
        """All else that it needs to go on, as named tensors: the optimiser, adapters, rollouts that wait ..."""

    def restore(self, weights: Tensors, state: Tensors, updates: int) -> None:
        """Continues from given weights and state after ``updates`` optimiser steps, whatever was before."""

    def close(self) -> None:
        """Frees what the trainer holds."""


class TorchTrainer:
    """Rollout and update in this process, on ``rl.device``."""

    def __init__(self, task: RlTask):
        self.task = task = replace(task, config=completed(task.config))
        self.config = task.config
        self.policy, self.reference = learning_policies(task, task.config.device)
        self.contexts = task.load_contexts()
        self.chances = chances_of(task, self.contexts)
        # Rollouts with other weights than those that learn need a model of their own.
        apart = self.config.staleness > 0 or self.config.lora_rank > 0
        drawing = load_policy(task.policy).to(task.config.device) if apart else self.policy
        self.reward = task.load_reward(drawing.table)
        self.engine = engine_of(self.config, drawing)
        self.optimizer = make_optimizer(self.policy, self.config)
        self.refusals = Refusals(self.config.refusals, task.refused)
        self.pending: dict[int, Groups] = {}
        self.updates = 0

    def step(self, number: int) -> dict[str, float]:
        for iteration in range(number, number + self.config.staleness + 1):
            if iteration not in self.pending:
                self.pending[iteration] = self._draw(iteration)
        batch, figures = self.pending.pop(number)
        batch = over_rollout(batch, self.config)
        check_versions(batch, self.updates, self.config)
        known = {**{name: float(values.mean()) for name, values in figures.items()}, **account(batch, self.updates)}
        known |= scoring_figures(taken(self.reward))
        metrics = summary(self._update(batch))
        synchronise(self.reference, self.policy, self.config, number + 1)
        return {**known, **metrics}

    def _draw(self, number: int) -> Groups:
        """Groups for iteration ``number``, with the newest weights."""
        if self.engine.version != self.updates:  # an engine may hold a copy of the weights
            self._load_engine()

        def draw(further: int) -> Groups:
            rows = contexts_of_step(len(self.contexts), self.config, self.task.seed, number, further, self.chances)
            seed = step_seed(self.task.seed, number, further)
            return rollout_groups(self.contexts.take(rows), self.engine, self.reward, self.config, seed)

        return refill(draw(0), draw, self.config.refills)

    def _load_engine(self) -> None:
        weights = model_weights(self.policy) if self.config.lora_rank > 0 else self.policy.model.state_dict()
        self.engine.load_weights(weights, self.updates)

    def _update(self, batch: GroupBatch) -> list[StepResult]:
        """All optimiser steps of one rollout."""
        steps: list[StepResult] = []
        parts, start = minibatches(len(batch), self.config, self.task.seed, self.updates), self.updates
        for rows in parts:
            step = Accumulated(self.policy, batch.take(rows), self.config)
            for piece in step.passes():
                step.add(group_forward(self.policy, piece, self.config, self.reference)).backward()
            steps.append(step.attempt(self.optimizer, self.updates, first=not steps))
            self.updates += 1
        refused = {start + number: step.refused for number, step in enumerate(steps) if step.refused}
        self.refusals.record(batch, parts, start, refused)
        return steps

    def weights(self) -> Tensors:
        return model_weights(self.policy)

    def state(self) -> Tensors:
        return {
            **state_tensors(self.policy, self.reference, self.optimizer, self.config),
            **pending_tensors(self.pending),
            **self.refusals.tensors(),
        }

    def restore(self, weights: Tensors, state: Tensors, updates: int) -> None:
        load_weights(self.policy, self.reference, weights, state)
        restore_optimizer(self.optimizer, state)
        self.pending = pending_groups(state)
        self.refusals.restore(state)
        self.updates = updates
        self._load_engine()  # also where the number of the old ones was the same

    def close(self) -> None:
        close_engine(self.engine)
