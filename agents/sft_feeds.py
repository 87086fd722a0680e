"""What the steps of supervised training learn from, epoch by epoch: padded histories, or packed examples of any task.

An epoch is a function of seed and number alone, so a resumed run needs to remember nothing but where it stood. Left
out: steps and validation (``sft``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from sidgym.agents.config import SftConfig
from sidgym.agents.mixture import Mixture
from sidgym.agents.policy import Policy
from sidgym.agents.sft_packed import packed_loss, token_parts
from sidgym.agents.tasks import windows
from sidgym.agents.templates import SILENT, Renderer, TokenRows
from sidgym.envs.records import PAD_ITEM, Sequences

Counts = tuple[np.ndarray, np.ndarray]
"""Examples and supervised tokens of each task."""


class Feed(Protocol):
    """A source of steps; what a batch is, the feed alone knows."""

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks."""

    @property
    def steps(self) -> int:
        """Steps of all epochs, which the learning rate's schedule runs over."""

    def epoch(self, number: int) -> Sequence[Any]:
        """The batches of an epoch, one a step."""

    def counts(self, batch: Any) -> Counts:
        """What a batch holds of each task."""

    def parts(self, batch: Any) -> list[Any]:
        """The batch as parts that are passed through the model one after another."""

    def loss(self, policy: Policy, part: Any) -> torch.Tensor:
        """Summed cross-entropy over the supervised tokens of a part."""


@dataclass
class HistoryFeed:
    """Windows of histories, ``config.batch`` of like length a step, padded on the right."""

    sequences: Sequences
    config: SftConfig
    history: int
    seed: int
    levels: int
    names: tuple[str, ...] = ("retrieval",)

    @cached_property
    def steps(self) -> int:
        return sum(len(self.epoch(number)) for number in range(self.config.epochs))

    def epoch(self, number: int) -> Sequence[np.ndarray]:
        rng = np.random.default_rng([self.seed, number])
        rows = windows(self.sequences, self.history + 1, rng)
        return [rows[batch] for batch in _like_lengths(rows, self.config.batch, rng)]

    def counts(self, batch: np.ndarray) -> Counts:
        return np.array([len(batch)]), np.array([int((batch != PAD_ITEM).sum()) * self.levels])

    def parts(self, batch: np.ndarray) -> list[np.ndarray]:
        sizes = np.full(len(batch), 1 + int((batch != PAD_ITEM).sum(axis=1).max()) * self.levels)
        return [batch[rows] for rows in token_parts(sizes, self.config.tokens_per_microbatch)]

    def loss(self, policy: Policy, part: np.ndarray) -> torch.Tensor:
        return history_loss(policy, part)[0]


@dataclass(frozen=True)
class Packed:
    """Examples of one step, and the number of each one's task (R,)."""

    rows: TokenRows
    task: np.ndarray


@dataclass
class ExampleFeed:
    """Examples of a mixture in random order, ``config.tokens_per_batch`` tokens or ``config.batch`` of them a step."""

    mixture: Mixture
    renderer: Renderer
    config: SftConfig
    seed: int
    positions: int | None = None  # tokens that the model reads at most
    _first: int = field(default=0, repr=False)  # steps of the first epoch, once it was made

    @property
    def names(self) -> tuple[str, ...]:
        return self.mixture.names

    @property
    def steps(self) -> int:
        """As many as if all epochs were as long as the first: how a log is cut differs a little between them."""
        if not self._first:
            self.epoch(0)
        return self._first * self.config.epochs

    def epoch(self, number: int) -> Sequence[Packed]:
        """The batches of an epoch, one a step. ``ValueError`` that names the task of an example too long to be read."""
        examples, task = self.mixture.epoch(number)
        rows = self.renderer.render(examples)
        self._check_lengths(rows, task)
        order = np.random.default_rng([self.seed, number, 2]).permutation(len(rows))
        order = order[rows.lengths[order] > 1]
        if self.config.tokens_per_batch > 0:
            batches = [order[part] for part in token_parts(rows.lengths[order], self.config.tokens_per_batch)]
        else:
            batches = [order[at : at + self.config.batch] for at in range(0, len(order), self.config.batch)]
        if number == 0:
            self._first = len(batches)
        return [Packed(rows.take(batch), task[batch]) for batch in batches]

    def _check_lengths(self, rows: TokenRows, task: np.ndarray) -> None:
        """Finds what is too long before a step is spent, and not when its turn comes."""
        if self.positions is None or int(rows.lengths.max(initial=0)) <= self.positions:
            return
        rows, _ = rows.seen_by(rows.predictors(np.flatnonzero(rows.loss != SILENT)))
        beyond = np.flatnonzero(rows.places >= self.positions)
        if len(beyond):
            longest = beyond[rows.places[beyond].argmax()]
            name = self.names[task[np.searchsorted(rows.offsets, longest, side="right") - 1]]
            raise ValueError(
                f"an example of task {name} has {rows.places[longest] + 1} tokens, this model reads {self.positions}: "
                "lower sft.max_text_tokens or data.history"
            )

    def counts(self, batch: Packed) -> Counts:
        size = len(self.names)
        tokens = np.add.reduceat(batch.rows.loss != SILENT, batch.rows.offsets[:-1])
        supervised = np.bincount(batch.task, weights=tokens, minlength=size).astype(np.int64)
        return np.bincount(batch.task, minlength=size), supervised

    def parts(self, batch: Packed) -> list[TokenRows]:
        most = self.config.tokens_per_microbatch
        return [batch.rows.take(rows) for rows in token_parts(batch.rows.lengths, most)]

    def loss(self, policy: Policy, part: TokenRows) -> torch.Tensor:
        return packed_loss(policy, part, self.config.normalise)[0]


def history_loss(policy: Policy, rows: np.ndarray) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy over the code tokens of windows (R, T), and how many tokens that was.

    Raises ``ValueError`` for a policy that reads items merged: its contexts are branches, which ``packed_loss`` reads.
    """
    if policy.merges:
        raise ValueError("padded histories are read code by code, and this policy merges items: set sft.packed = true")
    width = max(int((rows != PAD_ITEM).sum(1).max()), 1)
    rows = rows[:, :width]
    levels = policy.levels
    tokens = np.full((len(rows), 1 + width * levels), policy.tokens.pad, dtype=np.int64)
    tokens[:, 0] = policy.tokens.history
    present = rows != PAD_ITEM
    tokens[:, 1:] = np.where(present[..., None], policy.tokens.item_tokens[rows], policy.tokens.pad).reshape(
        len(rows), -1
    )
    keep = torch.from_numpy(np.repeat(present, levels, axis=1)).to(policy.device)
    ids = torch.from_numpy(tokens).to(policy.device)
    # Padding stands on the right, behind everything that is scored, so plain causal attention needs no mask.
    hidden = policy.hidden(input_ids=ids[:, :-1], use_cache=False)
    logits = policy.logits(hidden[keep])
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][keep], reduction="sum"), int(keep.sum())


def _like_lengths(rows: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Batches of rows of similar length (little padding), in random order."""
    lengths = (rows != PAD_ITEM).sum(1) + rng.random(len(rows))  # the noise shuffles rows of one length
    order = np.argsort(lengths)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return [batches[i] for i in rng.permutation(len(batches))]
