"""What of a policy learns in supervised training, and one optimiser step of it.

    all        every weight, or with ``lora_rank`` adapters, the rows of the SID tokens and the item merger
    rows       the rows of the SID tokens alone, in the embeddings and (where it has its own) the output layer: in the
               first ``token_warmup_steps`` (OneRec-Think's token warm-up), or to the end (``frozen``); and the item
               merger, where there is one, which is as new as they are

Where rows are trained they are parameters of their own, which are copied into the tables after each step: no other row
moves, by weight decay neither. When the second stage begins the optimiser is a new one, and the learning rate rises
anew over ``warmup_steps`` (``sft``). Left out: what is learned from
(``sft_feeds``).
"""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import nn

from sidgym.agents.checkpoint import optimizer_tensors, restore_optimizer
from sidgym.agents.config import SftConfig
from sidgym.agents.lora import MARK, add_adapters, merged_weights
from sidgym.agents.merger import merger_names
from sidgym.agents.policy import Policy
from sidgym.agents.precision import mixed_precision

Tensors = dict[str, torch.Tensor]


class SidRows:
    """The rows of the SID tokens (and of the token that opens a history) as parameters of their own."""

    def __init__(self, policy: Policy):
        levels = [policy.level_ids(level) for level in range(policy.levels)]
        own = torch.tensor([policy.tokens.history], device=policy.device)
        self.ids = torch.cat([*levels, own])
        self.tables = _tables(policy)
        self.rows = [nn.Parameter(table.detach()[self.ids].clone()) for table in self.tables]

    def read_gradients(self) -> None:
        """Takes the gradients from the tables."""
        for table, rows in zip(self.tables, self.rows):
            rows.grad = None if table.grad is None else table.grad[self.ids]
            table.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Puts the rows into the tables."""
        for table, rows in zip(self.tables, self.rows):
            table[self.ids] = rows


def _tables(policy: Policy) -> list[nn.Parameter]:
    """The embedding table, and the output layer's where that is another one."""
    found = [policy.model.get_input_embeddings().weight, policy.model.get_output_embeddings().weight]
    return found[:1] if found[0] is found[1] else found


class Learner:
    """Trains ``policy``. ``student`` is what the passes go through: the policy, or a copy that has adapters."""

    def __init__(self, policy: Policy, config: SftConfig, seed: int):
        self.policy, self.config = policy, config
        self.student = policy
        if config.lora_rank:
            self.student = copy.deepcopy(policy)
            add_adapters(self.student, config.lora_rank, seed)
        self.known = {name: value.requires_grad for name, value in policy.model.named_parameters()}
        self.stage, self.rows = "", SidRows(self.student)
        self.learned: list[nn.Parameter] = []
        self.optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])

    def begin(self, step: int) -> None:
        """Sees to it that what learns is what is to learn in optimiser step ``step``, counted from 0."""
        stage = "rows" if self.config.frozen or step < self.config.token_warmup_steps else "all"
        if stage == self.stage:
            return
        self.stage = stage
        adapters, model = self.config.lora_rank > 0, self.student.model
        if stage == "all" and not adapters:
            self.learned = list(model.parameters())
            for parameter in self.learned:
                parameter.requires_grad_(True)
        else:
            tables = {id(table) for table in self.rows.tables}
            new = set(merger_names(model))
            names = [name for name, _ in model.named_parameters() if name in new or (stage == "all" and MARK in name)]
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(id(parameter) in tables or name in names)
            self.rows = SidRows(self.student)
            trained = [model.get_parameter(name) for name in names]
            self.learned = [*self.rows.rows, *trained]
        self.optimizer = torch.optim.AdamW(self.learned, lr=self.config.lr, weight_decay=self.config.weight_decay)

    @property
    def _by_rows(self) -> bool:
        return self.stage == "rows" or self.config.lora_rank > 0

    def step(self, losses: Iterable[Callable[[], torch.Tensor]], count: int, rate: float) -> float:
        """One step on the mean over ``count`` tokens of the summed ``losses``, which are made one after another; their
        sum. Raises ``FloatingPointError`` for a gradient that is not finite, before anything changes."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.student.model.zero_grad(set_to_none=True)
        total = 0.0
        for make in losses:
            with mixed_precision(self.student.device.type, self.config.precision):
                loss = make()
            (loss / count).backward()
            total += loss.item()
        if self._by_rows:
            self.rows.read_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.learned, self.config.max_grad_norm)
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError("the SFT gradient is not finite")
        self.optimizer.step()
        if self._by_rows:
            self.rows.write_back()
        return total

    def settle(self) -> Policy:
        """The policy with the weights as they are now; adapters are added to what they adapt."""
        if self.config.lora_rank:
            self.policy.model.load_state_dict(merged_weights(self.student))
        return self.policy

    def end(self) -> None:
        """Gives the policy's parameters back as they were found."""
        for name, parameter in self.policy.model.named_parameters():
            parameter.requires_grad_(self.known[name])
            parameter.grad = None

    def weights(self) -> Tensors:
        """All that the passes go through, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.student.model.state_dict().items()}

    def restore(self, weights: Tensors, state: Tensors, steps: int) -> None:
        """Goes on after ``steps`` optimiser steps from what ``weights`` and ``optimizer_tensors`` gave then."""
        self.student.model.load_state_dict(weights)
        self.stage = ""
        self.begin(steps - 1)
        restore_optimizer(self.optimizer, state)

    def state(self) -> Tensors:
        """The optimiser's tensors."""
        return optimizer_tensors(self.optimizer)
