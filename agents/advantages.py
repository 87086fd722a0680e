"""Advantages: by how much a candidate was better than what it is compared with.

An estimator is any function ``(rewards (B, G), valid (B, G) bool) -> (B, G)``: an entry of ``ADVANTAGES``, or an object
named ``package.module:name``. What is not valid gets 0 and counts for nothing; a group with equal rewards gives exactly
0; rewards that are not finite raise ``FloatingPointError``. An estimator that looks beyond its group is a ``TwoStep``,
whose last step is done once the groups of all workers are together. Left out: rewards, and where in a rollout all of
this is called (``update``).

Symbols: B contexts, G candidates a group; n valid candidates of a group.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from sidgym.agents.importance import leave_one_out as leave_one_out_without_replacement

Advantage = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

FORMAT_SHARE = 0.25
"""Share of a group's candidates that are judged by their format alone, where an objective asks for that; one at
least. OneRec-V1 states no number."""


@dataclass(frozen=True)
class TwoStep:
    """An estimator in two steps: ``within`` each group, then ``over`` all groups of a rollout.

    Groups are made by many workers; ``over`` sees all of them in their order, so that the result is the same on any
    number of workers. Both take and return (B, G) with ``valid``. Called as a function it takes the given groups for
    the whole rollout. ``each``: ``within`` is taken of every term of the reward, and the results are added up with the
    terms' weights.
    """

    within: Advantage
    over: Advantage
    each: bool = False

    def __call__(self, rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return self.over(self.within(rewards, valid), valid)


def group_standardised(rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """``A_i = (r_i - mean(r)) / std(r)`` inside each group (DeepSeekMath's GRPO; MiniOneRec section 3.4).

    ``rewards`` and ``valid`` are (B, G); the population standard deviation over the valid candidates is used. A group
    whose rewards are equal gives exactly zero, and so does an invalid candidate.
    """
    count = valid.sum(-1, keepdim=True).clamp_min(1)
    kept = _kept(rewards, valid)
    centred = (kept - kept.sum(-1, keepdim=True) / count).masked_fill(~valid, 0.0)
    std = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    equal = _equal(rewards, valid)
    return torch.where(equal, 0.0, centred / torch.where(equal, 1.0, std))


def group_centred(rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """``A_i = r_i - mean(r)`` inside each group (Dr. GRPO: no division by the standard deviation). Shapes (B, G)."""
    count = valid.sum(-1, keepdim=True).clamp_min(1)
    mean = _kept(rewards, valid).sum(-1, keepdim=True) / count
    return torch.where(_equal(rewards, valid) | ~valid, 0.0, rewards - mean)


def leave_one_out(rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """``A_i = r_i - mean of the others' r_j`` (RLOO; Kool et al. 2019, Ahmadian et al. 2024). Shapes (B, G).

    That is ``n / (n - 1)`` times the centred reward. The baseline does not depend on the candidate itself, so that the
    policy gradient of independent draws is unbiased.
    """
    count = valid.sum(-1, keepdim=True)
    return group_centred(rewards, valid) * (count / (count - 1).clamp_min(1))


def without_replacement(estimator: Advantage, logp: np.ndarray) -> Advantage:
    """The estimator for draws without replacement, where there is another: ``leave_one_out`` has one that keeps the
    weighted gradient unbiased (``importance.leave_one_out``).

    ``logp`` (B, G, L) are those of the draws; anything else than ``leave_one_out`` comes back as it is.
    """
    if estimator is not leave_one_out:
        return estimator
    score = torch.from_numpy(logp).sum(-1)
    return lambda rewards, valid: leave_one_out_without_replacement(_kept(rewards, valid), valid, score)


def signed(rewards: torch.Tensor, valid: torch.Tensor, low: float = 0.0, high: float = 0.0) -> torch.Tensor:
    """``A_i = 1`` where ``r_i > high``, -1 where ``r_i < low``, 0 otherwise (OneRec-V2). Shapes (B, G).

    OneRec-V2 gives +1 to plays in the top quantile of their duration bucket and -1 to explicit negative feedback, and
    normalises nothing inside the group; the reward has to be such that its sign says this (``engagement`` is). Like
    everywhere a group with equal rewards gives 0: nothing in it is better than anything else. Other thresholds are
    ``functools.partial(signed, low=..., high=...)`` in a module of one's own.
    """
    kept = _kept(rewards, valid)
    sign = (kept > high).to(kept.dtype) - (kept < low).to(kept.dtype)
    return torch.where(_equal(rewards, valid) | ~valid, 0.0, sign)


def unit_spread(advantage: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Advantages (B, G) divided by their root mean square over all valid candidates; 0 stays 0."""
    kept = advantage.masked_fill(~valid, 0.0)
    spread = (kept.double().square().sum() / valid.sum().clamp_min(1)).sqrt()
    return kept if not bool(spread > 0) else (kept.double() / spread).to(advantage.dtype)


batch_standardised = TwoStep(group_centred, unit_spread)
"""``A_i = (r_i - mean of the group) / std over the rollout``: groups keep their differences in scale, and one of small
spread is not blown up (REINFORCE++ with a group baseline, Hu et al. 2025). The spread is the root mean square of the
centred rewards of all valid candidates of the iteration."""

per_component = TwoStep(group_standardised, unit_spread, each=True)
"""``A_i = sum_k w_k (r_ik - mean(r_k)) / std(r_k)`` over the terms k of the reward, divided by its standard deviation
over the rollout (GDPO). ``rl.combine = "each"`` takes the same sum with any estimator and without the last step."""

ADVANTAGES: dict[str, Advantage] = {
    "group_standardised": group_standardised,
    "group_centred": group_centred,
    "leave_one_out": leave_one_out,
    "batch_standardised": batch_standardised,
    "per_component": per_component,
    "signed": signed,
}


def within_groups(
    estimator: Advantage,
    combine: str,
    total: torch.Tensor,
    terms: Mapping[str, torch.Tensor],
    weights: Mapping[str, float],
    valid: torch.Tensor,
) -> torch.Tensor:
    """Advantages (B, G) float32 as far as they can be told from each group alone.

    ``combine = "sum"`` takes the advantage of ``total`` (B, G), the weighted sum of the ``terms``. ``"each"`` takes
    every term's own and adds those with the ``weights``, so that a term of small spread is not drowned by one of large
    spread; an estimator that says ``each`` is always taken so. Raises ``FloatingPointError`` for what is not finite.
    """
    if combine not in ("sum", "each"):
        raise ValueError(f"unknown rl.combine {combine!r}; known: sum, each")
    each = combine == "each" or bool(getattr(estimator, "each", False))
    parts: Mapping[str, torch.Tensor] = terms if each else {"": total}
    inside = estimator.within if isinstance(estimator, TwoStep) else estimator
    out = torch.zeros(total.shape)
    for name, part in parts.items():
        out = out + (weights[name] if each else 1.0) * inside(part.float(), valid)
    if not bool(torch.isfinite(out).all()):
        raise FloatingPointError("advantages are not finite; check the rewards")
    return out


def with_format(
    advantage: torch.Tensor, legal: torch.Tensor, weight: float, index: np.ndarray, seed: int
) -> torch.Tensor:
    """Advantages (B, G) in which some candidates, drawn at random, count for their format alone.

    Of each group ``FORMAT_SHARE`` are drawn; they get ``weight`` if they are ``legal`` (B, G) and 0 otherwise, not
    normalised, instead of their own advantage (OneRec-V1's generation format regularisation). The draw depends on
    ``seed`` and the number of the context (``index`` (B,)) alone.
    """
    groups, size = advantage.shape
    count = max(1, int(size * FORMAT_SHARE))
    drawn = np.zeros((groups, size), dtype=bool)
    for row, number in enumerate(index):
        drawn[row, np.random.default_rng([seed, int(number), 4]).permutation(size)[:count]] = True
    return torch.where(torch.from_numpy(drawn), weight * legal.to(advantage.dtype), advantage)


def _kept(rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Rewards with 0 where they are not valid. Raises ``FloatingPointError`` for any other that is not finite."""
    kept = rewards.masked_fill(~valid, 0.0)
    if not bool(torch.isfinite(kept).all()):
        raise FloatingPointError("rewards of valid candidates are not finite: no advantage can be told from them")
    return kept


def _equal(rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Whether a group's rewards are equal (B, 1), up to the rounding of the model that computed them.

    Judged on the rewards themselves: neither their rounding nor a mean's must become a standardised signal.
    """
    highest = rewards.masked_fill(~valid, float("-inf")).amax(-1, keepdim=True)
    lowest = rewards.masked_fill(~valid, float("inf")).amin(-1, keepdim=True)
    scale = rewards.masked_fill(~valid, 0.0).abs().amax(-1, keepdim=True)
    return ~(highest - lowest > 1e-6 * scale.clamp_min(1e-6))
