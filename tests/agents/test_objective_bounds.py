"""Objectives against the bounds that they claim, and against exact gradients where all SIDs of a trie are known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import naive_logp, toy_episodes, toy_policy, toy_table

from sidgym.agents.objective_terms import KL_ESTIMATORS, log1mexp
from sidgym.agents.objectives import (
    OBJECTIVES,
    RECIPES,
    LossInputs,
    ObjectiveSpec,
    ecpo,
    gbpo,
    grpo,
    reinforce,
    rloo,
    s_dpo,
)
from sidgym.agents.packed import packed_logp

SPEC = ObjectiveSpec(clip=0.2, ecpo_delta=0.1)
REWARDED = sorted(name for name, recipe in RECIPES.items() if recipe.rewarded)

# Bounds --------------------------------------------------------------------------------------------------------------

codes = st.lists(st.floats(-40, 0), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(codes, codes)
def test_ratios_of_ecpo_are_bounded(new, old):
    """At most 1 + eps + delta for A < 0, and where that is less than the ratio, exactly so."""
    given = tensors_of(new, old, -1.0)
    ecpo(given, SPEC)[0].backward()
    weight = given.logp.grad[0, 0, 0].item()
    ratio = math.exp(min(sum(new) - sum(old), 700))
    expected = min(ratio, 1.3) if ratio >= 0.8 else 0.0
    assert 0 <= weight <= 1.3 + 1e-9
    if abs(ratio - 0.8) > 1e-9:
        assert weight == pytest.approx(expected, rel=1e-9)
    given = tensors_of(new, old, 1.0)
    ecpo(given, SPEC)[0].backward()
    assert -1.2 - 1e-9 <= given.logp.grad[0, 0, 0].item() <= 0


@settings(max_examples=60, deadline=None)
@given(codes, codes)
def test_gradients_of_gbpo_are_bounded(new, old):
    """The factor on the gradient of pi is 1 / max(pi_old, 1 - pi) <= 1 / (1 - pi) for A = -1: that of the BCE."""
    given = tensors_of(new, old, -1.0)
    gbpo(given, SPEC)[0].backward()
    pi, before = math.exp(sum(new)), math.exp(sum(old))
    left = -math.expm1(sum(new))  # 1 - pi
    factor = given.logp.grad[0, 0, 0].item() / max(pi, 1e-300)
    assert factor == pytest.approx(1 / max(before, left), rel=1e-6)
    assert factor * left <= 1 + 1e-6
    given = tensors_of(new, old, 1.0)
    gbpo(given, SPEC)[0].backward()
    assert -1 - 1e-9 <= given.logp.grad[0, 0, 0].item() < 0, "no candidate loses its gradient, none counts double"


def tensors_of(new, old, advantage):
    """One candidate in float64."""
    new, old = (torch.tensor([[values]], dtype=torch.float64) for values in (new, old))
    return LossInputs(
        new.requires_grad_(), old, torch.tensor([[advantage]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    )


def test_without_the_bounds_negatives_have_none():
    for objective in (grpo, rloo):
        given = tensors_of([-0.1, -0.1, -0.1], [-3.0, -3.0, -3.0], -1.0)
        objective(given, replace(SPEC, ratio="sequence"))[0].backward()
        assert given.logp.grad[0, 0, 0].item() == pytest.approx(math.exp(8.7))


@pytest.mark.parametrize("name", REWARDED)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_nothing_overflows_where_a_clip_or_bound_holds(name, ratio):
    """Log-probabilities from 0 to -300 in float32; a ratio of e^300 is discarded, not multiplied by zero."""
    values = [0.0, -1e-7, -0.7, -90.0, -100.0]
    pairs = [(new, old) for new in values for old in values]
    new, old = (torch.tensor(side)[None, :, None].expand(1, -1, 3).clone() for side in zip(*pairs))
    for sign in (1.0, -1.0):
        given = LossInputs(
            new.clone().requires_grad_(), old, torch.full((1, len(pairs)), sign), torch.ones(1, len(pairs)).bool()
        )
        loss, metrics = OBJECTIVES[name](given, replace(SPEC, ratio=ratio))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(given.logp.grad).all()
        assert math.isfinite(metrics["ratio_max"])


def test_log1mexp_is_exact_at_both_ends():
    x = torch.tensor([-1e-12, -1e-3, -0.7, -5.0, -60.0], dtype=torch.float64)
    expected = [math.log(1e-12), math.log(-math.expm1(-1e-3)), math.log(1 - math.exp(-0.7)), math.log1p(-math.exp(-5))]
    np.testing.assert_allclose(log1mexp(x)[:4], expected, rtol=1e-11)
    assert log1mexp(x)[4].item() == pytest.approx(-math.exp(-60))
    assert log1mexp(torch.tensor([0.0, 1e-6])).tolist() == [-math.inf, -math.inf]


# Enumeration ---------------------------------------------------------------------------------------------------------


def test_kl_estimators_by_enumeration():
    """What each estimates, and what holding on to it does: k1's gradient is 0 on average, k2's that of KL(pi || ref),
    k3's that of KL(ref || pi)."""
    score, other = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    score.requires_grad_()
    logp, ref = torch.log_softmax(score, 0), torch.log_softmax(other, 0)
    chance = logp.exp().detach()
    forward, backward = (logp.exp() * (logp - ref)).sum(), (ref.exp() * (ref - logp)).sum()
    wanted = {"k1": torch.zeros(6), "k2": torch.autograd.grad(forward, score, retain_graph=True)[0]}
    wanted["k3"] = torch.autograd.grad(backward, score, retain_graph=True)[0]
    for name, estimator in KL_ESTIMATORS.items():
        mean = (chance * estimator(ref - logp)).sum()
        if name != "k2":
            assert mean.item() == pytest.approx(forward.item())
        got = torch.autograd.grad(mean, score, retain_graph=True)[0]
        torch.testing.assert_close(got, wanted[name].double(), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(("name", "way"), [("k1", None), ("k2", "forward"), ("k3", "backward")])
def test_kl_of_codes_holds_each_with_its_prefixes_fixed(name, way):
    """Two levels by enumeration. The mean of what is added up over codes is KL(pi || ref) of the SIDs, and its gradient
    that of each code's conditional KL, averaged over prefixes that the policy draws; that those would be drawn less
    often is no part of it, so it is not the gradient of the KL of SIDs."""
    score, other = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, first_ref = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = [first.requires_grad_(), score.requires_grad_()]
    top, below = torch.log_softmax(first, 0), torch.log_softmax(score, 1)
    top_ref, below_ref = torch.log_softmax(first_ref, 0), torch.log_softmax(other, 1)
    chance = (top[:, None] + below).exp().detach()  # (3, 4) of the SIDs
    estimator = KL_ESTIMATORS[name]
    mean = (chance * (estimator(top_ref - top)[:, None] + estimator(below_ref - below))).sum()
    whole = top[:, None] + below - top_ref[:, None] - below_ref
    if name != "k2":
        assert mean.item() == pytest.approx((chance * whole).sum().item())
    got = torch.autograd.grad(mean, leaves, retain_graph=True)

    def divergence(p, q):
        return (p.exp() * (p - q)).sum(-1)

    pairs = {"forward": ((top, top_ref), (below, below_ref)), "backward": ((top_ref, top), (below_ref, below))}
    expected = [torch.zeros(3), torch.zeros(3, 4)]
    if way:
        one, two = (divergence(*pair) for pair in pairs[way])
        expected = torch.autograd.grad(one + (top.exp().detach() * two).sum(), leaves, retain_graph=True)
    for mine, wanted in zip(got, expected):
        torch.testing.assert_close(mine, wanted.double(), atol=1e-12, rtol=1e-9)
    of_sids = torch.autograd.grad(((top[:, None] + below).exp() * whole).sum(), leaves)
    assert float((of_sids[0] - got[0]).abs().max()) > 1e-2


class Toy:
    """All eight SIDs of a toy trie as one group, weighted by their probability: its mean is the expectation."""

    def __init__(self):
        self.table = toy_table(8, (3, 4))
        self.policy = toy_policy(self.table, scale=4.0)
        self.history = toy_episodes(1, 8, seed=2).history
        self.reward = torch.from_numpy(np.random.default_rng(0).normal(size=8).astype(np.float32))
        self.names = [name for name, _ in self.policy.model.named_parameters()]

    def logp(self, policy=None):
        """(8,) by plain forward passes."""
        return torch.stack([naive_logp(policy or self.policy, self.history[0], c).sum() for c in self.table.codes])

    def gradient(self, loss):
        self.policy.model.zero_grad()
        loss.backward()
        return {name: p.grad for name, p in self.policy.model.named_parameters() if p.grad is not None}

    def packed(self, policy=None):
        return packed_logp(policy or self.policy, self.history, torch.from_numpy(self.table.codes)[None]).logp

    def group(self, old=None):
        """LossInputs of the whole catalogue drawn from ``old``, (1, 8, 2)."""
        packed = self.packed()
        old = packed.detach() if old is None else old
        weight = 8 * old.sum(-1).exp()
        return LossInputs(packed, old, self.reward[None], torch.ones(1, 8, dtype=torch.bool), weight=weight)


@pytest.fixture(scope="module")
def toy():
    return Toy()


def assert_same(got, expected):
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-4)


ON_POLICY = {"reinforce": 1, "rloo": 1, "dr_grpo": 1, "ecpo": 1, "format_ecpo": 1, "grpo": 1 / 2, "gspo": 1 / 2}
ON_POLICY |= {"dapo": 1 / 2, "grpo_sr": 1 / 2}
"""Factor on the exact gradient: 1, or one over the number of codes."""


@pytest.mark.parametrize("name", sorted(ON_POLICY))
def test_on_policy_the_gradient_is_that_of_the_expected_reward(toy, name):
    logp = toy.logp()
    exact = toy.gradient(-ON_POLICY[name] * (logp.exp() * toy.reward).sum())
    exact = {name: value.clone() for name, value in exact.items()}
    assert_same(toy.gradient(OBJECTIVES[name](toy.group(), SPEC)[0]), exact)


def test_on_policy_gbpo_weakens_unlikely_negatives(toy):
    """A positive counts as in the policy gradient, a negative pi / max(pi, 1 - pi) times as much."""
    logp = toy.logp()
    chance = logp.exp().detach()
    factor = torch.where(toy.reward >= 0, 1.0, chance / torch.maximum(chance, 1 - chance))
    exact = toy.gradient(-(logp.exp() * toy.reward * factor).sum())
    exact = {name: value.clone() for name, value in exact.items()}
    assert_same(toy.gradient(gbpo(toy.group(), SPEC)[0]), exact)


def test_off_policy_rloo_is_exact_and_reinforce_is_not(toy):
    other = toy_policy(toy.table, seed=5, scale=4.0)
    with torch.no_grad():
        old = toy.packed(other)
    exact = toy.gradient(-(toy.logp().exp() * toy.reward).sum())
    exact = {name: value.clone() for name, value in exact.items()}
    assert_same(toy.gradient(rloo(toy.group(old), SPEC)[0]), exact)
    got = toy.gradient(reinforce(toy.group(old), SPEC)[0])
    assert max(float((got[name] - value).abs().max()) for name, value in exact.items()) > 1e-3


@pytest.mark.parametrize("name", ["nll", "grpo_sr"])
def test_the_likelihood_of_targets_is_exact(toy, name):
    logp = toy.logp()
    policy_term = ON_POLICY.get(name, 0) * (logp.exp() * toy.reward).sum()
    exact = toy.gradient(-policy_term - 0.3 * (logp[2] + logp[5]) / 2)
    exact = {key: value.clone() for key, value in exact.items()}
    group = toy.group()
    targets = {"target_logp": group.logp[:, [2, 5]], "target_valid": torch.ones(1, 2, dtype=torch.bool)}
    assert_same(toy.gradient(OBJECTIVES[name](replace(group, **targets), replace(SPEC, nll_weight=0.3))[0]), exact)


def test_s_dpo_is_exact(toy):
    other = toy_policy(toy.table, seed=5, scale=4.0)
    logp, ref = toy.logp(), toy.logp(other).detach()
    ours = 0.5 * (logp - ref)
    exact = toy.gradient(-torch.log_softmax(ours, 0)[3])
    exact = {key: value.clone() for key, value in exact.items()}
    group = toy.group()
    with torch.no_grad():
        packed = toy.packed(other)
    given = replace(
        group,
        ref_logp=packed,
        target_logp=group.logp[:, [3]],
        target_valid=torch.ones(1, 1, dtype=torch.bool),
        ref_target_logp=packed[:, [3]],
        positive=torch.arange(8)[None] == 3,
    )
    assert_same(toy.gradient(s_dpo(given, replace(SPEC, kl_weight=0.5))[0]), exact)
