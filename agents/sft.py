"""Supervised warm-up: next-SID prediction with every position of a history supervised.

Rows are windows of user sequences, each ``<|history|>`` and up to T + 1 items; the loss is next-token cross-entropy
over the whole vocabulary (the papers' choice), so that the policy also learns what a legal SID looks like when
nothing constrains it. Left out: text tasks, packing of several histories in a row, LoRA.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from sidgym.agents.config import SftConfig
from sidgym.agents.evaluate import rank_contexts
from sidgym.agents.policy import Policy
from sidgym.envs.metrics import rank_metrics
from sidgym.envs.records import PAD_ITEM, Episodes, Sequences

IGNORE = -100
Progress = Callable[[int, int, str], None]


@dataclass
class SftResult:
    """What training did: one entry an epoch."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0


def windows(sequences: Sequences, length: int, rng: np.random.Generator | None) -> np.ndarray:
    """Cuts every sequence into windows of at most ``length`` items: (R, length) items, PAD_ITEM on the right.

    Each item of each sequence stands in exactly one window. With ``rng`` the first window of a sequence has a random
    size, so that over the epochs an item is seen behind contexts of different lengths.
    """
    sizes = np.diff(sequences.offsets)
    phase = np.zeros(len(sizes), dtype=np.int64) if rng is None else rng.integers(0, length, len(sizes))
    # A sequence that fits whole is never cut: short histories keep all the context that they have.
    phase = np.where(sizes <= length, 0, phase)
    place = np.arange(len(sequences.items)) - np.repeat(sequences.offsets[:-1], sizes)
    shifted = place + np.repeat(np.where(phase > 0, length - phase, 0), sizes)
    window = shifted // length
    owner = np.repeat(np.arange(len(sizes)), sizes)
    _, row = np.unique(owner * (window.max(initial=0) + 1) + window, return_inverse=True)
    first = np.r_[True, row[1:] != row[:-1]]
    column = np.arange(len(row)) - np.flatnonzero(first)[row]
    out = np.full((row.max(initial=-1) + 1, length), PAD_ITEM, dtype=np.int64)
    out[row, column] = sequences.items
    return out


def sft_loss(policy: Policy, rows: np.ndarray) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy over the code tokens of windows (R, T), and how many tokens that was."""
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


def train_sft(
    policy: Policy,
    sequences: Sequences,
    valid: Episodes,
    config: SftConfig,
    history: int,
    seed: int,
    on_progress: Progress | None = None,
    on_metrics: Callable[[dict[str, float]], None] | None = None,
) -> SftResult:
    """Trains ``policy`` in place and leaves it with the weights of the best epoch by validation NDCG@10.

    Cosine schedule with linear warm-up over ``config.epochs``; stops after ``config.patience`` epochs without a better
    validation. ``history`` is the number of items T that a prompt may hold. Raises ``FloatingPointError`` on a loss
    that is not finite.
    """
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    sizes = [len(_epoch_plan(sequences, history + 1, config.batch, seed, e)[1]) for e in range(config.epochs)]
    result, best, best_weights, step = SftResult(), -1.0, None, 0
    for epoch in range(config.epochs):
        rows, batches = _epoch_plan(sequences, history + 1, config.batch, seed, epoch)

        def rate(number: int, done: int = step) -> float:
            if on_progress:
                on_progress(done + number, sum(sizes), f"epoch {epoch + 1}")  # noqa: B023 - called in this turn only
            return config.lr * _schedule(done + number, sum(sizes), config.warmup_steps)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence([seed, epoch, 1]).generate_state(1)[0]))  # dropout's stream
            loss = _train_epoch(policy, optimizer, [rows[batch] for batch in batches], config.max_grad_norm, rate)
        step += len(batches)
        figures = {"epoch": epoch + 1, "train_loss": loss, **validate(policy, valid, config)}
        result.history.append(figures)
        if on_metrics:
            on_metrics(figures)
        if figures["eval/ndcg@10"] > best:
            best, result.best_epoch = figures["eval/ndcg@10"], epoch + 1
            best_weights = {name: value.detach().clone() for name, value in policy.model.state_dict().items()}
        elif epoch + 1 - result.best_epoch >= config.patience:
            break
    if best_weights is not None:
        policy.model.load_state_dict(best_weights)
    policy.eval()
    return result


def _train_epoch(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batches: list[np.ndarray],
    max_grad_norm: float,
    rate: Callable[[int], float],
) -> float:
    """One pass over the batches of windows; the mean loss a token. ``rate(number)`` is a step's learning rate."""
    policy.train()
    loss_sum, tokens = 0.0, 0
    for number, rows in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate(number)
        loss, count = sft_loss(policy, rows)
        optimizer.zero_grad(set_to_none=True)
        (loss / count).backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.model.parameters(), max_grad_norm)
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError(f"the SFT gradient is not finite at step {number} of an epoch")
        optimizer.step()
        loss_sum, tokens = loss_sum + loss.item(), tokens + count
    return loss_sum / max(tokens, 1)


def _epoch_plan(
    sequences: Sequences, length: int, batch: int, seed: int, epoch: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Windows and batches of one epoch, a function of seed and epoch alone."""
    rng = np.random.default_rng([seed, epoch])
    rows = windows(sequences, length, rng)
    return rows, _batches(rows, batch, rng)


def validate(policy: Policy, valid: Episodes, config: SftConfig) -> dict[str, float]:
    """HR@10 and NDCG@10 of the first ``config.eval_users`` validation contexts, beam of 10."""
    contexts = valid.take(slice(0, config.eval_users or None))
    ranked = rank_contexts(policy, contexts, beam=10, batch=64)
    figures = rank_metrics(ranked.items, contexts.target, (10,))
    return {f"eval/{name}": float(values.mean()) for name, values in figures.items()}


def _batches(rows: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Batches of rows of similar length (little padding), in random order."""
    lengths = (rows != PAD_ITEM).sum(1) + rng.random(len(rows))  # the noise shuffles rows of one length
    order = np.argsort(lengths)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _schedule(step: int, total: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(total - warmup, 1))))
