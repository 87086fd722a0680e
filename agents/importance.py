"""Weights with which a mean over a group estimates an expectation of the policy, and a baseline that keeps it unbiased.

``Rollouts.importance`` holds the weights ``w_i`` (B, G), so that ``1/G sum_i w_i f(o_i)`` estimates ``E_pi f(o)``:

    sample             w = 1: independent draws, unbiased. Of a policy over the whole vocabulary (rl.normalise =
                       "vocab") legal codes are drawn as if they were all: w = the product over levels of their mass,
                       unbiased for what the policy gives to SIDs
    stochastic_beam    w = G p E[1/q], over the probability of being among the G: unbiased, and exact where all SIDs are
    top_k              w = pi / (probability of the truncated draw), the product over levels of the mass of the k most
                       probable codes: unbiased for the part of the expectation that k codes a level reach
    beam, dynamic      w = 1: biased, nothing is known of what was left out

With ``f = A grad log pi`` the weighted gradient of an objective at ratio 1 is that of the expected reward, if the
advantages do not bring the draws in by another door:

    the reward itself              unbiased
    leave_one_out                  unbiased for ``sample`` (that of ``advantages``) and ``stochastic_beam`` (the one
                                   below), both of the policy over the trie. Otherwise biased: a baseline costs nothing
                                   only where the probabilities of what can be drawn add up to one, which those that k
                                   codes reach, or the legal part of a vocabulary, do not
    group_centred                  ``sample``: 1 - 1/G times the gradient; ``stochastic_beam``: biased
    what divides by a spread       biased: the divisor is drawn, too

Rewards that look at the whole group (``rank``, ``diversity``) depend on the draws as well.

Without replacement. Drawn are the G largest of ``log p_s + Gumbel`` (Kool, van Hoof and Welling 2019, "Stochastic Beams
and Where to Find Them", section 4.2). Given the (G + 1)-th largest, kappa, an SID is among them with probability
``q_s = 1 - exp(-exp(log p_s - kappa))``, and ``p / q`` is an unbiased weight. It swings with kappa, which says nothing
of the SIDs; its mean over kappa given the SIDs drawn is as unbiased and varies less (Rao and Blackwell; the estimator
for unordered sets of the same authors, 2020, "Estimating Gradients for Discrete Random Variables by Sampling without
Replacement"). Those weights add up to G. With ``a_s = p_s / (1 - sum p)``, S the SIDs drawn:

    E[1/q_s] = R(S, s) = I(S without s) / I(S),   I(S) = int_0^inf exp(-t) prod_(s in S) (1 - exp(-a_s t)) dt

computed by the trapezoidal rule in log t. Left out: the draws (``tree_search``).

Symbols: B contexts, G candidates, N nodes of the rule.
"""

import math

import torch

SMALL = -30.0
"""Below this logarithm x stands for 1 - exp(-x)."""
ROUNDING = 1e-6
"""Rewards that differ by less than this share of the largest are equal."""


def without_replacement(score: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Weights ``G p E[1/q]`` (B, G) float32 of SIDs drawn without replacement; 0 where not ``valid``.

    ``score`` (B, G) are their log-probabilities; those of all SIDs must add up to one. Every row sums to G, and is
    ``G p`` where all SIDs were drawn. Finite whatever the scores are.
    """
    density, shares = _integrand(score, valid)
    return (score.shape[-1] * (density[:, None] * shares).sum(-1)).float()


def leave_one_out(rewards: torch.Tensor, valid: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """``A_i = r_i - b_i`` (B, G) for draws without replacement: against what the others say of the expected reward.

    ``b_i = p_i r_i + sum_(j != i) p_j R_i(S, j) r_j``, where ``R_i`` is R among all SIDs but i (Kool et al. 2020,
    section 3.3). What the j make of ``b_i`` is unbiased for the rest of ``E_pi r`` whatever i is, so that the gradient
    with the weights of ``without_replacement`` stays unbiased; where all SIDs were drawn ``b_i = E_pi r``. Equal
    rewards give exactly 0, as does a candidate that is alone or not valid. ``score`` (B, G): log-probabilities of the
    SIDs under the policy that drew them.
    """
    density, shares = _integrand(score, valid)
    pairs = (density[:, None] * shares) @ shares.transpose(1, 2)
    alone = (density[:, None] * shares).sum(-1, keepdim=True)
    others = pairs / torch.where(alone > 0, alone, 1.0)
    others.diagonal(dim1=1, dim2=2).copy_(score.double().exp())
    kept = rewards.double().masked_fill(~valid, 0.0)
    baseline = (others @ kept[..., None])[..., 0]
    highest, lowest = kept.masked_fill(~valid, -math.inf).amax(-1), kept.masked_fill(~valid, math.inf).amin(-1)
    differs = highest - lowest > ROUNDING * kept.abs().amax(-1)
    return torch.where(differs[:, None] & valid, kept - baseline, 0.0).to(rewards.dtype)


def _integrand(score: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The integrand of I(S) at the nodes (B, N), which sums to one, and ``p_s / (1 - exp(-a_s t))`` (B, G, N)."""
    size = score.shape[-1]
    # exp(-t) prod(1 - exp(-a t)) is at least 1 / sqrt(G + 1) wide in log t, and ends at t of about G + 80; what is left
    # out below exp(-24) is no more than that.
    step = min(0.2, (size + 1) ** -0.5)
    nodes = torch.arange(-24.0, math.log(size + 80), step, dtype=torch.float64, device=score.device)
    logp = score.double().masked_fill(~valid, 0.0)
    left = (1 - logp.exp().masked_fill(~valid, 0.0).sum(-1, keepdim=True)).clamp_min(0.0)
    exponent = (logp - left.log())[..., None] + nodes
    missed = torch.where(exponent < SMALL, exponent, torch.log(-torch.expm1(-exponent.exp())))
    missed = missed.masked_fill(~valid[..., None], 0.0)
    density = torch.softmax(nodes - nodes.exp() + missed.sum(1), dim=-1)
    return density, (logp[..., None] - missed).exp().masked_fill(~valid[..., None], 0.0)
