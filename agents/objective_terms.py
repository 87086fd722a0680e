"""What objectives are made of: ratios, what stands for the behaviour policy, KL estimators, means over candidates.

Every function takes and returns tensors; a table names the choices of each kind. Left out: the objectives themselves
and their records (``objectives``).

Symbols: B contexts, G candidates a group, V log-probabilities a candidate (one a code, or one an item of a page), R
ratios a candidate (V, or 1 of the whole sequence).
"""

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

LARGEST_LOG_RATIO = 80.0
"""Logarithm of the largest ratio that is computed: above it a ratio is cut off and carries no gradient, so that a clip
which discards it does not multiply infinity by zero."""

Choice = TypeVar("Choice")


def choose(setting: str, name: str, known: Mapping[str, Choice]) -> Choice:
    """An entry of ``known``; ``ValueError`` that lists them."""
    if name not in known:
        raise ValueError(f"unknown {setting} {name!r}; known: {', '.join(known)}")
    return known[name]


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """``log(1 - exp(x))`` for ``x <= 0`` without cancellation; ``-inf`` at 0. Above 0, which is rounding, as at 0."""
    x = x.clamp_max(0.0)
    return torch.where(x > -math.log(2.0), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


# Ratios --------------------------------------------------------------------------------------------------------------


def of_tokens(logp: torch.Tensor) -> torch.Tensor:
    """A ratio a code: (B, G, V) as it is."""
    return logp


def of_sequence(logp: torch.Tensor) -> torch.Tensor:
    """A ratio a candidate: log-probabilities (B, G, V) of its codes add up to (B, G, 1)."""
    return logp.sum(-1, keepdim=True)


def of_sequence_mean(logp: torch.Tensor) -> torch.Tensor:
    """The geometric mean of a candidate's ratios (GSPO): (B, G, V) to (B, G, 1)."""
    return logp.mean(-1, keepdim=True)


RATIOS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "token": of_tokens,
    "sequence": of_sequence,
    "sequence_mean": of_sequence_mean,
}
"""What a ratio is of."""


# The behaviour policy ------------------------------------------------------------------------------------------------

Behaviour = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""``(logp (B, G, R) without gradient, old_logp (B, G, R), advantage (B, G, 1), bound) -> log pi'_old (B, G, R)``."""


def stored(logp: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor, bound: float) -> torch.Tensor:
    """``pi_old`` as the rollout stored it."""
    return old


def current(logp: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor, bound: float) -> torch.Tensor:
    """``sg(pi)``: every ratio is 1, and its gradient that of the log-probability."""
    return logp


def early_clipped(logp: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor, bound: float) -> torch.Tensor:
    """``max(sg(pi) / bound, pi_old)``: no ratio exceeds ``bound`` = 1 + eps + delta (ECPO, OneRec-V1)."""
    return torch.maximum(logp - math.log(bound), old)


def gradient_bounded(logp: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor, bound: float) -> torch.Tensor:
    """``max(pi_old, sg(pi))`` where A >= 0, ``max(pi_old, 1 - sg(pi))`` where A < 0 (GBPO, OneRec-V2)."""
    return torch.maximum(old, torch.where(advantage < 0, log1mexp(logp), logp))


BEHAVIOURS: dict[str, Behaviour] = {
    "stored": stored,
    "policy": current,
    "ecpo": early_clipped,
    "gbpo": gradient_bounded,
}
"""What the policy is divided by."""


# KL to the reference -------------------------------------------------------------------------------------------------


def k1(delta: torch.Tensor) -> torch.Tensor:
    """``log pi - log ref``, from ``delta = log ref - log pi``: unbiased, of large variance, of either sign."""
    return -delta


def k2(delta: torch.Tensor) -> torch.Tensor:
    """``(log pi - log ref)^2 / 2``: biased, and on-policy its gradient is exactly that of KL(pi || ref)."""
    return delta.square() / 2


def k3(delta: torch.Tensor) -> torch.Tensor:
    """``ref / pi - 1 - log(ref / pi)``: unbiased, never negative (Schulman 2020; GRPO's). Where ref is more than
    ``exp(LARGEST_LOG_RATIO)`` times as likely it is cut off and carries no gradient."""
    delta = delta.clamp_max(LARGEST_LOG_RATIO)
    return delta.exp() - delta - 1


KL_ESTIMATORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""Estimators of KL(pi || ref) from one draw, by their names in Schulman's note."""


# Means over candidates -----------------------------------------------------------------------------------------------


def by_length(gain: torch.Tensor, valid: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """``1/G sum_i 1/|o_i| sum_t`` of ``gain`` (B, G, R), the mean over groups: GRPO's. All G slots count, those without
    a SID too, so that a group of few SIDs weighs no more than a full one."""
    scale = valid.shape[0] * valid.shape[1] * gain.shape[-1]
    return gain.masked_fill(~valid, 0.0).sum() / scale


def by_tokens(gain: torch.Tensor, valid: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """``1/(sum_i |o_i|) sum_i sum_t`` over the valid candidates of each group, the mean over groups: DAPO's. Weighted
    candidates count by their weights below the line as above it."""
    whole = gain.masked_fill(~valid, 0.0).sum((1, 2))
    counts = valid[..., 0].to(gain.dtype) if weight is None else weight.masked_fill(~valid[..., 0], 0.0)
    total = counts.sum(1) * gain.shape[-1]
    return (whole / torch.where(total > 0, total, 1.0)).mean()


def by_constant(gain: torch.Tensor, valid: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """``1/G sum_i sum_t``, the mean over groups: Dr. GRPO's, whose gradient is that of whole sequences."""
    return gain.masked_fill(~valid, 0.0).sum() / (valid.shape[0] * valid.shape[1])


NORMALISERS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]] = {
    "length": by_length,
    "tokens": by_tokens,
    "constant": by_constant,
}
"""How terms (B, G, R), weighted by weight (B, G) already, become one number; all are means over groups."""


def share(event: torch.Tensor, valid: torch.Tensor) -> float:
    """Share of what is valid (broadcast to ``event``) where ``event`` holds."""
    valid = valid.expand_as(event)
    return float((event & valid).sum() / valid.sum().clamp_min(1))
