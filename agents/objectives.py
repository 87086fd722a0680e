"""Objectives and advantages: pure functions that know nothing of models, tokens or rewards.

An objective takes one frozen record and returns a scalar to minimise and its metrics. Left out: the forward pass that
fills the record (``packed``) and the optimiser step (``update``).

Symbols: B contexts, G candidates a group, L levels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LossInputs:
    """Everything that an objective may look at."""

    logp: torch.Tensor  # (B, G, L) log-probabilities under the policy that is trained, with gradient
    old_logp: torch.Tensor  # (B, G, L) behaviour log-probabilities stored at rollout
    advantage: torch.Tensor  # (B, G)
    valid: torch.Tensor  # (B, G) bool; what is not valid carries no loss
    ref_logp: torch.Tensor | None = None  # (B, G, L) under the frozen reference policy
    target_logp: torch.Tensor | None = None  # (B, M, L) of the true targets D+, with gradient
    target_valid: torch.Tensor | None = None  # (B, M) bool


@dataclass(frozen=True)
class ObjectiveSpec:
    """The numbers of an objective."""

    clip: float = 0.2  # epsilon of the clipping range [1 - eps, 1 + eps]
    kl_weight: float = 0.0  # beta
    nll_weight: float = 0.0  # alpha


Objective = Callable[[LossInputs, ObjectiveSpec], tuple[torch.Tensor, dict[str, float]]]
Advantage = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def group_standardised(rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """``A_i = (r_i - mean(r)) / std(r)`` inside each group (DeepSeekMath's GRPO; MiniOneRec section 3.4).

    ``rewards`` and ``valid`` are (B, G); the population standard deviation over the valid candidates is used. A group
    whose rewards are equal gives exactly zero, and so does an invalid candidate.
    """
    count = valid.sum(-1, keepdim=True).clamp_min(1)
    kept = rewards.masked_fill(~valid, 0.0)
    centred = (kept - kept.sum(-1, keepdim=True) / count).masked_fill(~valid, 0.0)
    std = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    equal = _equal(rewards, valid)
    return torch.where(equal, 0.0, centred / torch.where(equal, 1.0, std))


def group_centred(rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """``A_i = r_i - mean(r)`` inside each group (Dr. GRPO: no division by the standard deviation). Shapes (B, G)."""
    count = valid.sum(-1, keepdim=True).clamp_min(1)
    mean = rewards.masked_fill(~valid, 0.0).sum(-1, keepdim=True) / count
    return torch.where(_equal(rewards, valid) | ~valid, 0.0, rewards - mean)


def _equal(rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Whether a group's rewards are equal (B, 1), up to the rounding of the model that computed them.

    Judged on the rewards themselves: neither their rounding nor a mean's must become a standardised signal.
    """
    highest = rewards.masked_fill(~valid, float("-inf")).amax(-1, keepdim=True)
    lowest = rewards.masked_fill(~valid, float("inf")).amin(-1, keepdim=True)
    scale = rewards.masked_fill(~valid, 0.0).abs().amax(-1, keepdim=True)
    return ~(highest - lowest > 1e-6 * scale.clamp_min(1e-6))


def grpo(inputs: LossInputs, spec: ObjectiveSpec) -> tuple[torch.Tensor, dict[str, float]]:
    """GRPO with a ratio per token (MiniOneRec section 3.4.2), as a loss.

    Maximises ``1/G sum_i 1/|o_i| sum_t min(w_it A_i, clip(w_it, 1-eps, 1+eps) A_i) - beta KL(pi || pi_ref)`` with
    ``w_it = pi(c_it) / pi_old(c_it)`` and the estimator ``exp(ref - pi) - (ref - pi) - 1`` per token inside the mean,
    plus ``alpha`` times the log-likelihood of the targets D+ (GenRec eq. 8 when ``alpha > 0``). The average runs over
    the valid candidates of all groups' slots G, so a group of few SIDs weighs no more than a full one.
    """
    ratio = (inputs.logp - inputs.old_logp).exp()  # (B, G, L)
    advantage = inputs.advantage[..., None]
    clipped = ratio.clamp(1 - spec.clip, 1 + spec.clip)
    gain = torch.minimum(ratio * advantage, clipped * advantage)
    valid = inputs.valid[..., None].expand_as(gain)
    scale = inputs.valid.shape[0] * inputs.valid.shape[1] * gain.shape[-1]
    loss = -gain.masked_fill(~valid, 0.0).sum() / scale
    metrics = {
        "policy_loss": float(loss.detach()),
        "clip_ratio/low_mean": _share((ratio < 1 - spec.clip) & (advantage < 0), valid),
        "clip_ratio/high_mean": _share((ratio > 1 + spec.clip) & (advantage > 0), valid),
        "ratio_max": float(ratio.detach().masked_fill(~valid, 1.0).max()),
    }
    if inputs.ref_logp is not None:
        delta = inputs.ref_logp - inputs.logp
        kl = (delta.exp() - delta - 1).masked_fill(~valid, 0.0).sum()
        loss = loss + spec.kl_weight * kl / scale
        metrics["kl"] = float(kl.detach() / valid.sum().clamp_min(1))
    return _add_nll(loss, metrics, inputs, spec)


def nll_only(inputs: LossInputs, spec: ObjectiveSpec) -> tuple[torch.Tensor, dict[str, float]]:
    """No policy gradient at all: the log-likelihood of the targets, the control for every RL arm."""
    return _add_nll(inputs.logp.sum() * 0.0, {"policy_loss": 0.0}, inputs, spec)


def _add_nll(
    loss: torch.Tensor, metrics: dict[str, float], inputs: LossInputs, spec: ObjectiveSpec
) -> tuple[torch.Tensor, dict[str, float]]:
    if inputs.target_logp is not None and inputs.target_valid is not None:
        whole = inputs.target_logp.sum(-1).masked_fill(~inputs.target_valid, 0.0)  # (B, M)
        nll = -(whole.sum(-1) / inputs.target_valid.sum(-1).clamp_min(1)).mean()
        loss = loss + spec.nll_weight * nll
        metrics["nll"] = float(nll.detach())
    metrics["loss"] = float(loss.detach())
    return loss, metrics


def _share(event: torch.Tensor, valid: torch.Tensor) -> float:
    return float((event & valid).sum() / valid.sum().clamp_min(1))


OBJECTIVES: dict[str, Objective] = {"grpo": grpo, "nll": nll_only}
ADVANTAGES: dict[str, Advantage] = {"group_standardised": group_standardised, "group_centred": group_centred}
