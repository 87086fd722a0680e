"""One optimiser step in several passes, so that only as many tokens' activations are held at once as memory allows.

    step = Accumulated(policy, batch, config)
    for piece in step.passes():
        step.add(group_forward(policy, piece, config, reference)).backward()
    result = step.attempt(optimizer, update, first=True)

A part's loss counts by its share of the groups, which gives the gradient of the whole because every term of an
objective is a mean over groups; an objective that is none is refused. A step whose loss or gradient is not finite
changes nothing and says why. Left out: the objectives and the forward pass (``update``), and what is done about a step
that changed nothing (``refused``).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sidgym.agents.config import RlConfig
from sidgym.agents.objectives import LossInputs
from sidgym.agents.packed import Paths
from sidgym.agents.packing import token_batches
from sidgym.agents.policy import Policy, prompt_arrays
from sidgym.agents.update import (
    GroupBatch,
    GroupForward,
    apply_gradients,
    candidate_codes,
    check_parity,
    judged,
    normalisation,
)

TOLERANCE = 1e-3
"""Largest difference between gradients of a whole batch and of its parts, as a share of the largest gradient."""
PARITY, DRIFT = "sampling/logp_difference", "sampling/drift"
"""Prefixes of metrics: |trainer - rollout| log-probability before the first optimiser step of a rollout, and over all
of them."""


@dataclass(frozen=True)
class StepResult:
    """What an optimiser step did."""

    metrics: dict[str, float]
    refused: str = ""  # why nothing was changed; empty where it was


def summary(steps: Sequence[StepResult]) -> dict[str, float]:
    """Metrics of an iteration: means over its optimiser steps, and the largest of what ends in ``_max``.

    Refused steps are left out unless all were; ``updates_refused`` counts them. ``PARITY`` compares the trainer with
    the rollout, so it is that of the first step, whose weights nothing has changed yet; over all steps, the distance
    that learning itself has made included, it is ``DRIFT``.
    """
    counted = [step.metrics for step in steps if not step.refused] or [step.metrics for step in steps]
    figures = {}
    for name in counted[0]:
        values = [metrics[name] for metrics in counted]
        over = float(np.max(values) if name.endswith("_max") else np.mean(values))
        if name.startswith(PARITY):
            figures[DRIFT + name.removeprefix(PARITY)], over = over, values[0]
        figures[name] = over
    return {**figures, "updates_refused": float(sum(bool(step.refused) for step in steps))}


class Accumulated:
    """The parts of one optimiser step on ``batch``: ``parts`` are the groups that each pass takes.

    There is one part, and nothing is computed but its own loss, unless ``config.tokens_per_microbatch`` asks for more.
    """

    def __init__(self, policy: Policy, batch: GroupBatch, config: RlConfig):
        self.policy, self.batch, self.config = policy, batch, config
        self.parts = [np.arange(len(batch))]
        if config.tokens_per_microbatch > 0:
            self.parts = token_batches(*group_tokens(policy, batch, config), config.tokens_per_microbatch)
        self.done: list[GroupForward] = []

    def passes(self, no_sync: Callable[[], AbstractContextManager] = nullcontext) -> Iterator[GroupBatch]:
        """The groups of each part. All but the last pass run inside ``no_sync()``.

        Learners that average their gradients do it in the last: they may take different numbers of passes.
        """
        for number, rows in enumerate(self.parts, 1):
            with no_sync() if number < len(self.parts) else nullcontext():
                yield self.batch.take(rows)

    @property
    def complete(self) -> bool:
        """Whether all parts were added."""
        return len(self.done) == len(self.parts)

    def add(self, forward: GroupForward) -> torch.Tensor:
        """The share of the next part in the loss, to be differentiated; the first clears the gradients.

        A loss that is not finite makes the gradient NaN, if it is not so yet: learners that add up their gradients all
        refuse the step then, without asking one another.
        """
        if not self.done:
            self.policy.model.zero_grad(set_to_none=True)
        self.done.append(forward)
        loss = forward.loss
        if not bool(torch.isfinite(loss)):
            loss = loss * float("nan")
        if len(self.parts) == 1:
            return loss
        for logp in _learned(forward.inputs):
            logp.retain_grad()
        return loss * (len(self.parts[len(self.done) - 1]) / len(self.batch))

    def attempt(self, optimizer: torch.optim.Optimizer, update: int, first: bool) -> StepResult:
        """``apply``, with what is not finite as a reason why nothing was changed."""
        try:
            return StepResult(self.apply(optimizer, update, first))
        except FloatingPointError as error:
            return StepResult({**self.whole().metrics, "grad_norm": float("nan")}, str(error))

    def apply(self, optimizer: torch.optim.Optimizer, update: int, first: bool) -> dict[str, float]:
        """The optimiser step number ``update``; metrics of the whole batch.

        ``first`` of its rollout, the groups that the present weights drew are checked against it (``check_parity``).
        Raises what that and ``whole`` do, and ``FloatingPointError`` for a loss or gradient that is not finite, before
        anything changes.
        """
        whole = self.whole()
        losses = [float(forward.loss.detach()) for forward in self.done]
        finite = bool(np.isfinite(losses).all())
        if first and finite:
            check_parity(self.policy, whole, self.config, self.batch.version[np.concatenate(self.parts)] == update)
        try:
            norm = apply_gradients(self.policy, optimizer, self.config, update)
        except FloatingPointError:
            if finite:
                raise
            raise FloatingPointError(f"the loss is {next(v for v in losses if not np.isfinite(v))}") from None
        return {**whole.metrics, "grad_norm": norm}

    def whole(self) -> GroupForward:
        """Loss and metrics of all groups, once every part was added and differentiated.

        Raises ``ValueError`` if the parts' gradients are not those of the objective on all groups.
        """
        if len(self.parts) == 1:
            return self.done[0]
        # Activations are gone; what is left are numbers per code.
        together = _joined([forward.inputs for forward in self.done])
        entropy = torch.cat([forward.entropy for forward in self.done])
        whole = judged(together, entropy, self.config)
        learned = _learned(together)
        expected = torch.autograd.grad(whole.loss, learned, allow_unused=True)
        for number, (values, wanted) in enumerate(zip(learned, expected)):
            parts = [_learned(forward.inputs)[number] for forward in self.done]
            got = torch.cat([part.new_zeros(part.shape) if part.grad is None else part.grad for part in parts])
            wanted = torch.zeros_like(values) if wanted is None else wanted
            scale = wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny)
            # What is not finite is refused where gradients are applied.
            if bool(((got - wanted).abs().max() / scale) > TOLERANCE):
                raise ValueError(
                    f"objective {self.config.objective!r} is no mean over groups: its gradient on all groups is not "
                    "the sum of those on parts of them. Set rl.tokens_per_microbatch = 0, and use one learner at most"
                )
        return whole


def group_tokens(policy: Policy, batch: GroupBatch, config: RlConfig) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (B,) of each group's prompt, and tokens (B,) that are fed behind it."""
    paths = Paths.of(policy, candidate_codes(policy, batch, config), (normalisation(config),))
    return prompt_arrays(policy, batch)[1].sum(axis=1), paths.tree.nodes


def _learned(inputs: LossInputs) -> list[torch.Tensor]:
    return [inputs.logp] if inputs.target_logp is None else [inputs.logp, inputs.target_logp]


def _joined(parts: list[LossInputs]) -> LossInputs:
    """Parts one after another; what a loss is differentiated by is cut off from what it came from."""
    arrays: dict[str, Any] = {}
    for name in vars(parts[0]):
        values = [getattr(part, name) for part in parts]
        arrays[name] = None if values[0] is None else torch.cat([value.detach() for value in values])
    whole = replace(parts[0], **arrays)
    for logp in _learned(whole):
        logp.requires_grad_()
    return whole
