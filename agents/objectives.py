"""Objectives: pure functions that know nothing of models, tokens or rewards.

An objective takes one frozen record and returns a scalar to minimise and its metrics. ``policy_gradient`` is nearly all
of them: a ``Recipe`` says which of its choices an objective takes. Left out: ratios, KL estimators and means
(``objective_terms``), advantages (``advantages``), what a recipe makes of a configuration (``recipes``), the forward
pass that fills the record (``packed``) and the optimiser step (``update``). ``docs/algorithms.md`` explains each.

Every objective is a mean over groups: gradients of parts of a batch add up to that of the whole.

Symbols: B contexts, G candidates a group, V log-probabilities a candidate (L codes of an item, S items of a page), M
targets.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from sidgym.agents.objective_terms import (
    BEHAVIOURS,
    KL_ESTIMATORS,
    LARGEST_LOG_RATIO,
    NORMALISERS,
    RATIOS,
    choose,
    share,
)


@dataclass(frozen=True)
class LossInputs:
    """Everything that an objective may look at."""

    logp: torch.Tensor  # (B, G, V) log-probabilities under the policy that is trained, with gradient
    old_logp: torch.Tensor  # (B, G, V) behaviour log-probabilities stored at rollout
    advantage: torch.Tensor  # (B, G)
    valid: torch.Tensor  # (B, G) bool; what is not valid carries no loss
    ref_logp: torch.Tensor | None = None  # (B, G, V) under the reference policy
    target_logp: torch.Tensor | None = None  # (B, M, L) of the true targets D+, with gradient
    target_valid: torch.Tensor | None = None  # (B, M) bool
    weight: torch.Tensor | None = None  # (B, G) factor of each candidate in means over them; None counts all alike
    ref_target_logp: torch.Tensor | None = None  # (B, M, L) under the reference policy, where Recipe.pairs
    positive: torch.Tensor | None = None  # (B, G) bool, candidates that are in D+, where Recipe.pairs


@dataclass(frozen=True)
class ObjectiveSpec:
    """The settings of an objective. Those above the line come from ``RlConfig``; an objective of ``OBJECTIVES`` sets
    those below it itself (``Recipe``)."""

    clip: float = 0.2  # epsilon of the clipping range [1 - eps, 1 + eps]
    kl_weight: float = 0.0  # beta
    nll_weight: float = 0.0  # alpha
    ratio: str = ""  # a name in RATIOS; empty: the objective's own
    clip_high: float = 0.0  # epsilon above 1; 0: the objective's own, or clip
    ecpo_delta: float = 0.1  # delta: no ratio of ECPO exceeds 1 + eps + delta
    kl_estimator: str = "k3"
    list_temperature: float = 1.0  # of list_ndcg
    # ---
    behaviour: str = "stored"  # a name in BEHAVIOURS
    clipped: bool = True
    normaliser: str = "length"  # a name in NORMALISERS


@dataclass(frozen=True)
class Recipe:
    """What an objective is, and what it brings along where the settings are empty or 0.

    A function of one's own carries one as its attribute ``recipe``; without it, it is the default.
    """

    advantage: str = "group_standardised"  # name in ADVANTAGES, or package.module:name
    ratio: str = "token"
    behaviour: str = "stored"
    clipped: bool = True
    normaliser: str = "length"
    clip_high: float = 0.0
    kl_weight: float = 0.0
    nll_weight: float = 0.0
    refills: int = 0  # times that groups without signal are replaced
    mode: str = ""  # the only rl.mode that it can use
    format: bool = False  # some candidates count for their format alone (advantages.with_format)
    pairs: bool = False  # compares candidates with targets: reads target_logp, ref_target_logp and positive
    rewarded: bool = True  # reads advantages at all


Result = tuple[torch.Tensor, dict[str, float]]
Objective = Callable[[LossInputs, ObjectiveSpec], Result]

RECIPES: dict[str, Recipe] = {
    "reinforce": Recipe("batch_standardised", "sequence", "policy", clipped=False),
    "rloo": Recipe("leave_one_out", "sequence", clipped=False),
    "grpo": Recipe(),
    "dr_grpo": Recipe("group_centred", normaliser="constant"),
    "dapo": Recipe(normaliser="tokens", clip_high=0.28, refills=3),
    "gspo": Recipe(ratio="sequence_mean"),
    "ecpo": Recipe(ratio="sequence", behaviour="ecpo"),
    "gbpo": Recipe(ratio="sequence", behaviour="gbpo", clipped=False),
    "grpo_sr": Recipe(behaviour="policy", clipped=False, nll_weight=0.1),
    "format_ecpo": Recipe(ratio="sequence", behaviour="ecpo", mode="free", format=True),
    "s_dpo": Recipe(kl_weight=0.1, pairs=True, rewarded=False),
    "list_ndcg": Recipe(pairs=True, rewarded=False),
    "nll": Recipe(rewarded=False),
}
"""Name in ``OBJECTIVES`` -> what it is."""


def policy_gradient(inputs: LossInputs, spec: ObjectiveSpec) -> Result:
    """The loss that most objectives are cases of.

    Maximises, for each group, ``norm_i,t m_i min(w_it A_i, clip(w_it, 1 - eps, 1 + eps_high) A_i) - beta KL``, plus
    ``alpha`` times the log-likelihood of the targets D+, with ``w = pi / pi'_old``:

    - ``spec.ratio``: w of each code or of the whole sequence; ``spec.behaviour``: what ``pi'_old`` is.
    - ``spec.clipped``: without it ``w_it A_i`` stands alone. ``spec.normaliser``: what ``norm`` divides the sum by.
    - ``m`` is ``inputs.weight``. The KL term is taken per code with ``spec.kl_estimator`` and averaged over all B * G *
      V slots whatever the ratio and the normaliser are, so that ``beta`` means the same for every objective.

    Returns the loss and the metrics of GRPO; ``ratio_max`` and the shares clipped are of ``w`` as it is used.
    """
    low, high = 1 - spec.clip, 1 + (spec.clip_high or spec.clip)
    valid, advantage = inputs.valid[..., None], inputs.advantage[..., None]
    taken = choose("ratio", spec.ratio or "token", RATIOS)
    logp, old = taken(inputs.logp), taken(inputs.old_logp)
    transform = choose("behaviour", spec.behaviour, BEHAVIOURS)
    behaviour = transform(logp.detach(), old, advantage, high + spec.ecpo_delta)
    ratio = (logp - behaviour).masked_fill(~valid, 0.0).clamp_max(LARGEST_LOG_RATIO).exp()
    gain = ratio * advantage
    if spec.clipped:
        gain = torch.minimum(gain, ratio.clamp(low, high) * advantage)
    loss = -choose("normaliser", spec.normaliser, NORMALISERS)(_weighted(gain, inputs), valid, inputs.weight)
    metrics = {
        "policy_loss": float(loss.detach()),
        "clip_ratio/low_mean": share((ratio < low) & (advantage < 0), valid) if spec.clipped else 0.0,
        "clip_ratio/high_mean": share((ratio > high) & (advantage > 0), valid) if spec.clipped else 0.0,
        "ratio_max": float(ratio.detach().max()),
    }
    if inputs.ref_logp is not None:
        loss = loss + spec.kl_weight * _kl(inputs, spec, metrics) / inputs.logp.numel()
    return _with_nll(loss, metrics, inputs, spec)


def _weighted(values: torch.Tensor, inputs: LossInputs) -> torch.Tensor:
    return values if inputs.weight is None else values * inputs.weight[..., None]


def _kl(inputs: LossInputs, spec: ObjectiveSpec, metrics: dict[str, float]) -> torch.Tensor:
    """The chosen estimator, added up over valid codes. Metrics: its mean over them, and every estimator's by name."""
    assert inputs.ref_logp is not None
    valid = inputs.valid[..., None]
    # Before anything is taken of them: a gradient of infinity times zero would be NaN.
    delta = (inputs.ref_logp - inputs.logp).masked_fill(~valid, 0.0)
    codes = (valid.sum() * delta.shape[-1]).clamp_min(1)
    chosen = _weighted(choose("rl.kl_estimator", spec.kl_estimator, KL_ESTIMATORS)(delta), inputs)
    total = chosen.masked_fill(~valid, 0.0).sum()
    metrics["kl"] = float(total.detach() / codes)
    with torch.no_grad():
        for name, estimator in KL_ESTIMATORS.items():
            each = _weighted(estimator(delta), inputs).masked_fill(~valid, 0.0)
            metrics[f"kl/{name}"] = float(each.sum() / codes)
    return total


def _with_nll(loss: torch.Tensor, metrics: dict[str, float], inputs: LossInputs, spec: ObjectiveSpec) -> Result:
    """Adds ``alpha`` times the negative log-likelihood of whole targets, the mean over those of each group."""
    if inputs.target_logp is not None and inputs.target_valid is not None:
        whole = inputs.target_logp.sum(-1).masked_fill(~inputs.target_valid, 0.0)  # (B, M)
        nll = -(whole.sum(-1) / inputs.target_valid.sum(-1).clamp_min(1)).mean()
        loss = loss + spec.nll_weight * nll
        metrics["nll"] = float(nll.detach())
    metrics["loss"] = float(loss.detach())
    return loss, metrics


def _as(name: str, spec: ObjectiveSpec) -> ObjectiveSpec:
    """The settings of an objective of this module: what its recipe fixes, and what it brings along for empty ones."""
    own = RECIPES[name]
    return replace(
        spec,
        ratio=spec.ratio or own.ratio,
        clip_high=spec.clip_high or own.clip_high,
        behaviour=own.behaviour,
        clipped=own.clipped,
        normaliser=own.normaliser,
    )


def reinforce(inputs: LossInputs, spec: ObjectiveSpec) -> Result:
    """``1/G sum_i A_i log pi(o_i)``, written as ``pi / sg(pi) A`` (Williams 1992). Reads logp (B, G, V) as sums.

    Candidates of an older policy are taken for those of this one: biased off-policy. On-policy the gradient is that of
    the expected reward as far as the advantages leave it so (``importance``).
    """
    return policy_gradient(inputs, _as("reinforce", spec))


def rloo(inputs: LossInputs, spec: ObjectiveSpec) -> Result:
    """``1/G sum_i w_i A_i``, ``w_i = pi(o_i) / pi_old(o_i)``, with leave-one-out advantages (Ahmadian et al. 2024).

    Nothing is clipped: over independent draws the estimator is unbiased off-policy, too, at the price of unbounded
    ratios. (B, G, V) as sums.
    """
    return policy_gradient(inputs, _as("rloo", spec))


def grpo(inputs: LossInputs, spec: ObjectiveSpec) -> Result:
    """GRPO with a ratio per code (MiniOneRec section 3.4.2), or per sequence (``spec.ratio``). Shapes (B, G, V).

    Maximises ``1/G sum_i 1/|o_i| sum_t min(w_it A_i, clip(w_it, 1-eps, 1+eps) A_i) - beta KL(pi || pi_ref)`` with
    ``w_it = pi(c_it) / pi_old(c_it)`` and the estimator ``exp(ref - pi) - (ref - pi) - 1`` per token inside the mean,
    plus ``alpha`` times the log-likelihood of the targets D+ (GenRec eq. 8 when ``alpha > 0``). The average runs over
    the valid candidates of all groups' slots G, so a group of few SIDs weighs no more than a full one.
    """
    return policy_gradient(inputs, _as("grpo", spec))


def dr_grpo(inputs: LossInputs, spec: ObjectiveSpec) -> Result:
    """``1/G sum_i sum_t min(w_it A_i, clip(w_it) A_i)`` with centred advantages (Dr. GRPO; Liu et al. 2025).

    Neither the standard deviation of the rewards nor the length divides: over independent draws, on-policy, the
    gradient is ``1 - 1/G`` times that of the expected reward. Shapes (B, G, V).
    """
    return policy_gradient(inputs, _as("dr_grpo", spec))


def dapo(inputs: LossInputs, spec: ObjectiveSpec) -> Result:
    """``1/(sum_i |o_i|) sum_i sum_t min(w_it A_i, clip(w_it, 1 - eps, 1 + eps_high) A_i)`` (DAPO; Yu et al. 2025, eq.
    8), eps_high = 0.28, with groups without signal replaced at rollout.

    The sum of lengths is that of a group, as in the paper's equation; as all candidates are of one length, it differs
    from GRPO's mean where some are not valid. Weighted candidates count there by their weights. Shapes (B, G, V).
    """
    return policy_gradient(inputs, _as("dapo", spec))


def gspo(inputs: LossInputs, spec: ObjectiveSpec) -> Result:
    """``1/G sum_i min(s_i A_i, clip(s_i) A_i)``, ``s_i = (pi(o_i) / pi_old(o_i))^(1/|o_i|)`` (GSPO; Zheng et al. 2025).

    One ratio a candidate, the geometric mean of its codes'. Reads (B, G, V) as means.
    """
    return policy_gradient(inputs, _as("gspo", spec))


def ecpo(inputs: LossInputs, spec: ObjectiveSpec) -> Result:
    """``1/G sum_i min(w_i A_i, clip(w_i, 1-eps, 1+eps) A_i)``, ``w_i = pi / max(sg(pi) / (1+eps+delta), pi_old)``.

    Source: OneRec-V1. No ratio exceeds ``1 + eps + delta``, which matters where A < 0: GRPO keeps the gradient of any
    ratio there. Where A > 0 it is GRPO. Reads (B, G, V) as sums.
    """
    return policy_gradient(inputs, _as("ecpo", spec))


def gbpo(inputs: LossInputs, spec: ObjectiveSpec) -> Result:
    """``1/G sum_i pi / pi'_old A_i``, with ``pi'_old = max(pi_old, sg(pi))`` where A >= 0 and ``max(pi_old, 1 -
    sg(pi))`` where A < 0; nothing is clipped (OneRec-V2, whose advantages are ``signed``).

    Where A < 0 the factor on the gradient of pi is at most ``|A| / (1 - pi)``, that of the binary cross-entropy. Reads
    (B, G, V) as sums.
    """
    return policy_gradient(inputs, _as("gbpo", spec))


def grpo_sr(inputs: LossInputs, spec: ObjectiveSpec) -> Result:
    """``1/G sum_i 1/|o_i| sum_t pi / sg(pi) A_i + alpha E_(v in D+) sum_t log pi(v_t)`` (GenRec eq. 8), alpha = 0.1.

    Its ratio is always 1, so that nothing is clipped. Shapes (B, G, V) and targets (B, M, L).
    """
    return policy_gradient(inputs, _as("grpo_sr", spec))


def format_ecpo(inputs: LossInputs, spec: ObjectiveSpec) -> Result:
    """ECPO whose advantages hold OneRec-V1's generation format regularisation: some candidates drawn at random have A =
    1 if they are legal and 0 otherwise. Shapes as ``ecpo``.

    The advantages come so (``advantages.with_format``): candidates are drawn without the trie, the reward ``format``
    says which are legal, and the other rewards are compared among those.
    """
    return policy_gradient(inputs, _as("format_ecpo", spec))


def s_dpo(inputs: LossInputs, spec: ObjectiveSpec) -> Result:
    """``-log sigma(-log sum_(d in negatives) exp(h_d - h_p))``, ``h = beta log(pi(o) / pi_ref(o))`` (S-DPO; Chen et al.
    2024), the mean over the targets p of each group; ``beta`` is ``spec.kl_weight``, 0.1 in the paper.

    Positives are the targets D+ (B, M, L), negatives the candidates (B, G, V) that are not among them; rewards are not
    read. A group without the one or the other gives 0. ``spec.nll_weight`` adds the targets' likelihood as elsewhere.
    """
    given = (inputs.target_logp, inputs.target_valid, inputs.ref_target_logp, inputs.ref_logp, inputs.positive)
    targets, known, ref_targets, ref, positive = given
    if targets is None or known is None or ref_targets is None or ref is None or positive is None:
        raise ValueError(
            "objective 's_dpo' compares targets with candidates under a reference policy: it needs target_logp, "
            "target_valid, ref_target_logp, ref_logp and positive, and rl.kl_weight above 0 as its beta"
        )
    negative = inputs.valid & ~positive
    chosen = spec.kl_weight * (targets - ref_targets).sum(-1)  # (B, M)
    others = (spec.kl_weight * (inputs.logp - ref).sum(-1)).masked_fill(~negative, float("-inf"))  # (B, G)
    some = negative.any(-1, keepdim=True)
    against = torch.where(some, others, 0.0).logsumexp(-1, keepdim=True)  # (B, 1)
    counted = known & some
    lost = torch.nn.functional.softplus(against - chosen).masked_fill(~counted, 0.0)
    loss = (lost.sum(-1) / counted.sum(-1).clamp_min(1)).mean()
    beaten = chosen.detach() > others.detach().amax(-1, keepdim=True)
    metrics = {"policy_loss": float(loss.detach()), "s_dpo/targets_above_all": share(beaten, counted)}
    _kl(inputs, spec, metrics)
    return _with_nll(loss, metrics, inputs, spec)


def list_ndcg(inputs: LossInputs, spec: ObjectiveSpec) -> Result:
    """``1 / log2(1 + place)`` of each target p at its expected place in a list that the policy draws.

    Lists are drawn without replacement in proportion to pi^(1/tau) (Plackett and Luce; stochastic beams are that of the
    policy, tau = 1), where candidate i stands before p with probability ``sigma((log pi(i) - log pi(p)) / tau)``. So
    ``place = 1 + sum_i sigma(...)`` over the candidates that are not in D+; as NDCG is convex in the place, this is a
    lower bound of the expected NDCG of a list of these candidates. With tau = ``spec.list_temperature`` towards 0 it is
    the NDCG of the ranked list (ApproxNDCG; Qin, Liu and Li 2010). A target has a gradient whether or not it is among
    the candidates, largest where it is as likely as they are, and none where it is far below all of them.

    Rewards are not read; a group without other candidates gives 0. Candidates (B, G, V), targets (B, M, L).
    """
    targets, known, positive = inputs.target_logp, inputs.target_valid, inputs.positive
    if targets is None or known is None or positive is None:
        raise ValueError(
            "objective 'list_ndcg' compares targets with candidates: it needs target_logp, target_valid and positive"
        )
    negative = inputs.valid & ~positive
    others = inputs.logp.sum(-1).masked_fill(~negative, 0.0)
    margin = (others[:, None] - targets.sum(-1).masked_fill(~known, 0.0)[..., None]) / spec.list_temperature
    place = 1 + torch.sigmoid(margin).masked_fill(~negative[:, None], 0.0).sum(-1)  # (B, M)
    counted = known & negative.any(-1, keepdim=True)
    gained = torch.log2(1 + place).reciprocal().masked_fill(~counted, 0.0)
    loss = -(gained.sum(-1) / counted.sum(-1).clamp_min(1)).mean()
    count = counted.sum().clamp_min(1)
    metrics = {
        "policy_loss": float(loss.detach()),
        "list/place": float(place.detach().masked_fill(~counted, 0.0).sum() / count),
    }
    if inputs.ref_logp is not None:
        loss = loss + spec.kl_weight * _kl(inputs, spec, metrics) / inputs.logp.numel()
    return _with_nll(loss, metrics, inputs, spec)


def nll_only(inputs: LossInputs, spec: ObjectiveSpec) -> Result:
    """No policy gradient at all: the log-likelihood of the targets, the control for every RL arm.

    With a reference the KL to it is measured and is no part of the loss.
    """
    metrics = {"policy_loss": 0.0}
    if inputs.ref_logp is not None:
        with torch.no_grad():
            _kl(inputs, spec, metrics)
    return _with_nll(inputs.logp.sum() * 0.0, metrics, inputs, spec)


OBJECTIVES: dict[str, Objective] = {
    "reinforce": reinforce,
    "rloo": rloo,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "ecpo": ecpo,
    "gbpo": gbpo,
    "grpo_sr": grpo_sr,
    "format_ecpo": format_ecpo,
    "s_dpo": s_dpo,
    "list_ndcg": list_ndcg,
    "nll": nll_only,
}
