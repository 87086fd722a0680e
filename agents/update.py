"""One rollout and one update: the two Ray-free functions that every trainer is a thin caller of.

``rollout_groups`` turns contexts into a ``GroupBatch`` (one row is one group, so that sharding and minibatching never
split a group); ``group_loss`` turns a batch into a loss. Left out: what a candidate is and earns (``candidates``),
loops, checkpoints, logging.

Symbols: B contexts, G candidates, L levels; W codes of a candidate (L of an item, S * L of a page of S items) and its V
log-probabilities (one a code of an item, one an item of a page).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from sidgym.agents.advantages import ADVANTAGES, TwoStep, with_format, within_groups, without_replacement
from sidgym.agents.candidates import ANSWERS, Candidates, page_logp
from sidgym.agents.config import RlConfig
from sidgym.agents.curriculum import drawn_contexts
from sidgym.agents.cut import CUT, answer_cut
from sidgym.agents.engine import Engine
from sidgym.agents.objectives import OBJECTIVES, LossInputs
from sidgym.agents.packed import packed_logp
from sidgym.agents.policy import Policy, Questions
from sidgym.agents.precision import mixed_precision
from sidgym.agents.recipes import FORMAT, check_objective, completed, recipe_of, spec_of
from sidgym.envs.records import PAD_ITEM, Episodes
from sidgym.envs.rewards import RewardSum
from sidgym.sid.registry import resolve


@dataclass(frozen=True)
class GroupBatch:
    """Groups ready to learn from; numpy, so that it crosses process boundaries as it is."""

    history: np.ndarray  # (B, T) int64, PAD_ITEM on the left
    targets: np.ndarray  # (B, M) int64, PAD_ITEM on the right
    codes: np.ndarray  # (B, G, W) int64; vocabulary ids in mode "free"
    valid: np.ndarray  # (B, G) bool
    old_logp: np.ndarray  # (B, G, V) float32
    advantage: np.ndarray  # (B, G) float32
    weight: np.ndarray  # (B, G) float32, factor of each candidate's policy term (``Rollouts.importance``)
    context: np.ndarray  # (B,) int64, number of each context: what was learned from can be accounted for
    version: np.ndarray  # (B,) int64, optimiser steps of the weights that drew the group
    prompt: np.ndarray = None  # type: ignore[assignment]  # (B, Q) int64 vocabulary ids, PAD_ITEM on the left; Q may be 0

    def __post_init__(self) -> None:
        if self.prompt is None:
            object.__setattr__(self, "prompt", np.zeros((len(self.history), 0), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.history)

    def take(self, rows: slice | np.ndarray) -> "GroupBatch":
        """The given groups."""
        return GroupBatch(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


Groups = tuple[GroupBatch, dict[str, np.ndarray]]
"""Groups and statistics (B,) of each context."""

COARSE = 0.5
"""Largest difference, in nats, between a log-probability of the rollout and of the update where that computes in less
than float32."""


def rollout_groups(episodes: Episodes, engine: Engine, reward: RewardSum, config: RlConfig, seed: int) -> Groups:
    """Rolls out a group for each context, scores it and computes its advantages.

    Rollout and reward see ``config.chunk`` contexts at a time, because the shape of a batch can change the last bit of
    a matrix product: so the result does not depend on how whole chunks are spread over workers. The second value holds
    per-context statistics, to be averaged over all workers.
    """
    starts = range(0, len(episodes), config.chunk)
    chunks = (episodes.take(slice(start, start + config.chunk)) for start in starts)
    return concatenate_groups([_rollout_chunk(chunk, engine, reward, config, seed) for chunk in chunks])


def concatenate_groups(parts: Sequence[Groups]) -> Groups:
    """Chunks one after another; a statistic that a chunk lacks (a reward may name its own) counts as 0 there."""
    arrays = {f.name: np.concatenate([getattr(groups, f.name) for groups, _ in parts]) for f in fields(GroupBatch)}
    names = dict.fromkeys(name for _, stats in parts for name in stats)
    figures = {name: np.concatenate([stats.get(name, np.zeros(len(g))) for g, stats in parts]) for name in names}
    return GroupBatch(**arrays), figures


def _rollout_chunk(episodes: Episodes, engine: Engine, reward: RewardSum, config: RlConfig, seed: int) -> Groups:
    if config.environment not in ANSWERS:
        raise ValueError(f"unknown rl.environment {config.environment!r}; known: {', '.join(ANSWERS)}")
    answer = answer_cut if config.mode == CUT else ANSWERS[config.environment]
    found = answer(episodes, engine, reward, config, seed)
    advantage = advantages(found, reward.weights, config, seed)
    contexts = found.contexts
    batch = GroupBatch(
        contexts.history,
        contexts.targets,
        found.codes,
        found.valid,
        found.logp,
        advantage,
        found.weight,
        contexts.index,
        np.full(len(contexts), engine.version, dtype=np.int64),
        contexts.prompt,  # type: ignore[arg-type]
    )
    counts = np.maximum(found.valid.sum(1), 1)
    stats = {
        "reward": (found.total * found.valid).sum(1) / counts,
        "reward_std": _masked_std(found.total, found.valid),
        "frac_reward_zero_std": (np.abs(advantage).max(1) == 0).astype(np.float64),
        **found.figures,
    }
    return batch, stats


def advantages(found: Candidates, weights: dict[str, float], config: RlConfig, seed: int = 0) -> np.ndarray:
    """Advantages (B, G) float32 of scored candidates; finite, or ``FloatingPointError``.

    They are complete but for what looks at the whole rollout (``over_rollout``). An objective that wants it has some
    candidates judged by their format alone, drawn from ``seed``; the others are then compared among legal ones.
    Raises ``ValueError`` for settings that the objective cannot be used with.
    """
    check_objective(config)
    config, recipe = completed(config), recipe_of(config.objective)
    estimator = resolve("advantage", config.advantage, ADVANTAGES)
    terms = {name: torch.from_numpy(np.asarray(part, dtype=np.float32)) for name, part in found.terms.items()}
    total, valid = torch.from_numpy(np.asarray(found.total, dtype=np.float32)), torch.from_numpy(found.valid)
    if config.mode == "stochastic_beam" and config.environment == "next_item":
        estimator = without_replacement(estimator, found.logp)
    if not recipe.format:
        return within_groups(estimator, config.combine, total, terms, weights, valid).numpy()
    if FORMAT not in terms:
        raise ValueError(f"objective {config.objective!r} needs the reward {FORMAT!r}, got {sorted(terms)}")
    legal = valid & (terms.pop(FORMAT) > 0)
    total = sum((weights[name] * part for name, part in terms.items()), torch.zeros(total.shape))
    others = within_groups(estimator, config.combine, total, terms, weights, legal)
    return with_format(others, legal, weights[FORMAT], found.contexts.index, seed).numpy()


def over_rollout(batch: GroupBatch, config: RlConfig) -> GroupBatch:
    """The groups of a whole rollout with their advantages completed, where the estimator has a last step over all of
    them (``advantages.TwoStep``); others come back as they are. Once for each rollout, before it is learned from."""
    estimator = resolve("advantage", completed(config).advantage, ADVANTAGES)
    if not isinstance(estimator, TwoStep):
        return batch
    advantage = estimator.over(torch.from_numpy(batch.advantage), torch.from_numpy(batch.valid))
    return replace(batch, advantage=advantage.numpy())


@dataclass(frozen=True)
class GroupForward:
    """What one pass over some groups gives: the loss, and what it was computed from."""

    loss: torch.Tensor  # scalar, with gradient
    metrics: dict[str, float]
    inputs: LossInputs
    entropy: torch.Tensor  # (B, G, W), no gradient


def group_loss(
    policy: Policy, batch: GroupBatch, config: RlConfig, reference: Policy | None = None
) -> tuple[torch.Tensor, dict[str, float]]:
    """The configured objective on a batch of groups: scalar loss and metrics."""
    forward = group_forward(policy, batch, config, reference)
    return forward.loss, forward.metrics


def group_forward(policy: Policy, batch: GroupBatch, config: RlConfig, reference: Policy | None = None) -> GroupForward:
    """``group_loss`` with what it was computed from.

    Targets ride along as further candidates of the same packed pass when their log-likelihood is asked for. The items
    of a page do, too, and become one candidate again behind it.
    """
    check_objective(config)
    pairs = recipe_of(config.objective).pairs
    asked, normalise = _trimmed(batch), normalisation(config)
    groups = torch.from_numpy(batch.codes)
    codes = candidate_codes(policy, batch, config)
    group = groups.shape[1] * groups.shape[2] // policy.levels
    with mixed_precision(policy.device.type, config.precision):
        scores = packed_logp(policy, asked, codes, normalise, entropy_gradient=config.entropy_weight > 0)
    known = torch.from_numpy(batch.targets != PAD_ITEM).to(policy.device) if codes.shape[1] > group else None
    ref_logp = ref_targets = None
    if reference is not None:
        with torch.no_grad(), mixed_precision(policy.device.type, config.precision):
            read = packed_logp(reference, asked, codes if pairs else codes[:, :group], normalise).logp
        ref_logp, ref_targets = _by_candidate(read[:, :group], groups), read[:, group:] if pairs else None
    inputs = LossInputs(
        logp=_by_candidate(scores.logp[:, :group], groups),
        old_logp=torch.from_numpy(batch.old_logp).to(policy.device),
        advantage=torch.from_numpy(batch.advantage).to(policy.device),
        valid=torch.from_numpy(batch.valid).to(policy.device),
        weight=torch.from_numpy(batch.weight).to(policy.device),
        ref_logp=ref_logp,
        target_logp=None if known is None else scores.logp[:, group:],
        target_valid=known,
        ref_target_logp=ref_targets,
        positive=_positive(codes[:, :group], codes[:, group:]).to(policy.device) if pairs else None,
    )
    return judged(inputs, scores.entropy[:, :group].reshape(groups.shape), config)


def _positive(codes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Which candidates (B, G, L) are among the targets (B, M, L), both -1 where there is none: (B, G) bool."""
    same = (codes[:, :, None] == targets[:, None]).all(-1) & (targets >= 0).all(-1)[:, None]
    return same.any(-1)


def candidate_codes(policy: Policy, batch: GroupBatch, config: RlConfig) -> torch.Tensor:
    """Codes (B, C, L) of all that a batch scores: G items or G * S items of pages, then the targets if they count.

    A target that is padding is -1, and costs nothing.
    """
    codes = torch.from_numpy(batch.codes).reshape(len(batch), -1, policy.levels)
    if completed(config).nll_weight <= 0 and not recipe_of(config.objective).pairs:
        return codes
    known = policy.tokens.item_tokens if config.mode == "free" else policy.table.codes
    wanted = np.where((batch.targets != PAD_ITEM)[..., None], known[np.maximum(batch.targets, 0)], -1)
    return torch.cat([codes, torch.from_numpy(wanted)], dim=1)


def judged(inputs: LossInputs, entropy: torch.Tensor, config: RlConfig) -> GroupForward:
    """The configured objective on log-probabilities; ``ValueError`` for one that returns something else than a loss."""
    objective = resolve("objective", config.objective, OBJECTIVES)
    loss, metrics = _checked(config.objective, objective(inputs, spec_of(config)))
    valid = inputs.valid[..., None]
    metrics["entropy"] = float(entropy.detach().masked_fill(~valid, 0.0).sum() / valid.sum().clamp_min(1))
    if config.entropy_weight > 0:
        loss = loss - config.entropy_weight * entropy_bonus(entropy, inputs)
        metrics["loss"] = float(loss.detach())
    drift = (inputs.logp.detach() - inputs.old_logp).masked_fill(~valid, 0.0).abs()
    metrics["sampling/logp_difference_max"] = float(drift.max())
    metrics["sampling/logp_difference_mean"] = float(drift.sum() / valid.expand_as(drift).sum().clamp_min(1))
    return GroupForward(loss, metrics, inputs, entropy.detach())


def entropy_bonus(entropy: torch.Tensor, inputs: LossInputs) -> torch.Tensor:
    """Mean over groups of the entropy (B, G, W) of the candidates' codes, in nats a code; ``LossInputs.weight`` counts.

    Its gradient is that of each code's conditional entropy with the prefixes held fixed, as usual; that prefixes
    change how often they are reached is no part of it.
    """
    kept = entropy.masked_fill(~inputs.valid[..., None], 0.0)
    return (kept if inputs.weight is None else kept * inputs.weight[..., None]).sum() / kept.numel()


def check_parity(policy: Policy, forward: GroupForward, config: RlConfig, fresh: np.ndarray | None = None) -> None:
    """For the first update of a rollout: its log-probabilities must be those that the rollout stored.

    Raises ``RuntimeError`` where they differ by more than ``config.parity_tolerance``: the importance ratios would be
    those of another policy. In less than float32 rounding alone differs by more, so ``COARSE`` is allowed. An item of a
    page counts by the probability that was left for it, because the rounding of those before it is divided by that.
    ``fresh`` (B,) bool says which groups the weights drew that are trained now, by default all: those of older weights
    (``GroupBatch.version``) are meant to differ.
    """
    coarse = config.precision != "float32" or next(policy.model.parameters()).dtype != torch.float32
    if config.parity_tolerance <= 0:
        return
    allowed = max(config.parity_tolerance, COARSE) if coarse else config.parity_tolerance
    inputs = forward.inputs
    checked = inputs.valid
    if fresh is not None:
        checked = checked & torch.from_numpy(fresh).to(checked.device)[:, None]
    # What is hardly ever drawn has large logits behind it, and rounding grows with them.
    drift = (inputs.logp.detach() - inputs.old_logp).abs() / (1 + inputs.old_logp.abs())
    if config.environment != "next_item":
        missed = 1 - inputs.old_logp.exp().clamp(max=1.0)
        drift = drift * (missed.cumprod(-1) / missed.clamp_min(torch.finfo(missed.dtype).tiny))
    worst = float(drift.masked_fill(~checked[..., None], 0.0).max())
    if not worst <= allowed:
        raise RuntimeError(
            f"log-probabilities of the rollout and of the first update after it differ by {worst:.3g} of 1 + |log p|, "
            f"expected at most {allowed:g} (rl.parity_tolerance = {config.parity_tolerance:g}): engine "
            f"{config.engine!r} drew from another policy than the one that is trained. Check that it has the newest "
            f"weights, computes in float32 and normalises by {normalisation(config)!r}; "
            "rl.parity_tolerance = 0 does not check"
        )


def _trimmed(batch: GroupBatch) -> Questions | np.ndarray:
    """What the groups were asked, without columns that are all padding: histories alone where nothing was in words."""
    history, prompt = (
        part[:, -(int((part != PAD_ITEM).any(0).sum()) or 1) :] for part in (batch.history, batch.prompt)
    )
    return Questions(history, prompt) if prompt.shape[1] else history


def normalisation(config: RlConfig) -> str:
    """How log-probabilities are normalised (``packed_scores``)."""
    return "free" if config.mode == "free" else config.normalise


def _by_candidate(logp: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of codes (B, G * S, L) as those of candidates (B, G, V); an item's own are left as they are."""
    levels = logp.shape[-1]
    if groups.shape[-1] == levels:
        return logp
    return page_logp(logp.unflatten(1, (groups.shape[1], groups.shape[-1] // levels)))


def learning_rate(config: RlConfig, update: int) -> float:
    """Learning rate of optimiser step ``update`` (from 0): linear warm-up, then constant."""
    return config.lr * min(1.0, (update + 1) / max(config.warmup_steps, 1))


def make_optimizer(policy: Policy, config: RlConfig) -> torch.optim.Optimizer:
    """AdamW over every parameter of the language model that has a gradient."""
    learned = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(learned, lr=config.lr, weight_decay=config.weight_decay)


def apply_gradients(policy: Policy, optimizer: torch.optim.Optimizer, config: RlConfig, update: int) -> float:
    """Clips and steps; the gradient norm before clipping. One that is not finite changes nothing and raises
    ``FloatingPointError``."""
    norm = torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.max_grad_norm)
    if not bool(torch.isfinite(norm)):
        raise FloatingPointError(f"the gradient norm is {float(norm)}")
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, update)
    optimizer.step()
    return float(norm)


def minibatches(size: int, config: RlConfig, seed: int, step: int) -> list[np.ndarray]:
    """Row indices of every optimiser step of iteration ``step``, in order: epochs times minibatches."""
    width = config.minibatch or size
    if width >= size:
        return [np.arange(size)] * config.epochs
    rng = np.random.default_rng([seed, step, 1])
    rows = [rng.permutation(size) for _ in range(config.epochs)]
    return [order[start : start + width] for order in rows for start in range(0, size, width)]


def _checked(name: str, result: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """An objective's output: a scalar that something can be learned from, and metrics that are numbers."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise ValueError(f"objective {name!r}: expected (loss, metrics), got {type(result).__name__}")
    loss, metrics = result
    if not isinstance(loss, torch.Tensor) or loss.ndim or not loss.requires_grad:
        what = f"shape {tuple(loss.shape)}, gradient {loss.requires_grad}" if isinstance(loss, torch.Tensor) else loss
        raise ValueError(f"objective {name!r}: expected a scalar tensor with a gradient, got {what}")
    wrong = [key for key, value in metrics.items() if not isinstance(value, (int, float))]
    if wrong:
        raise ValueError(f"objective {name!r}: metric {wrong[0]!r} should be a number, got {metrics[wrong[0]]!r}")
    return loss, dict(metrics)


def step_seed(seed: int, step: int, further: int = 0) -> int:
    """Seed of the draws of iteration ``step``, slice ``further``; runs with neighbouring seeds share none."""
    numbers = [seed, step, further] if further else [seed, step]
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def contexts_of_step(
    total: int, config: RlConfig, seed: int, step: int, further: int = 0, chances: np.ndarray | None = None
) -> np.ndarray:
    """Which contexts iteration ``step`` uses: successive slices of seeded permutations, one after another.

    A pure function of its arguments, so that a resumed run needs to remember nothing but the step. An iteration owns
    ``1 + refills`` slices; those that ``refill`` may ask for (``further`` = 1, 2, ...) and does not are left out. With
    ``chances`` (total,) contexts are drawn by them instead (``curriculum``).
    """
    if chances is not None:
        return drawn_contexts(chances, config, seed, step, further)
    number = step * (1 + completed(config).refills) + further
    wanted = np.arange(number * config.contexts_per_step, (number + 1) * config.contexts_per_step)
    epochs = np.unique(wanted // total)
    order = {epoch: np.random.default_rng([seed, int(epoch), 0]).permutation(total) for epoch in epochs}
    return np.array([order[position // total][position % total] for position in wanted])


def _masked_std(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    count = np.maximum(valid.sum(1), 1)
    mean = (values * valid).sum(1) / count
    return np.sqrt((((values - mean[:, None]) ** 2) * valid).sum(1) / count)
