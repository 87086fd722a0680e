"""Objectives against numbers computed by hand, and advantages against their definition."""

import math

import numpy as np
import pytest
import torch
from toy import naive_logp, toy_episodes, toy_policy, toy_table

from sidgym.agents.objectives import ADVANTAGES, OBJECTIVES, LossInputs, ObjectiveSpec, grpo
from sidgym.agents.packed import packed_logp


def inputs(logp, old, advantage, **extra):
    logp = torch.tensor(logp, requires_grad=True)
    valid = torch.ones(logp.shape[:2], dtype=torch.bool)
    return LossInputs(logp, torch.tensor(old), torch.tensor(advantage), extra.pop("valid", valid), **extra)


def test_grpo_golden_value():
    # Two candidates of two codes. Ratios: 1.5 and 0.5 for A = 2 (clipped to 1.2, kept 0.5); 1.5 and 0.5 for A = -1
    # (kept 1.5, clipped up to 0.8).
    up, down = math.log(1.5), math.log(0.5)
    given = inputs([[[up, down], [up, down]]], [[[0.0, 0.0], [0.0, 0.0]]], [[2.0, -1.0]])
    loss, metrics = grpo(given, ObjectiveSpec(clip=0.2))
    assert loss.item() == pytest.approx(-(2 * 1.2 + 2 * 0.5 - 1.5 - 0.8) / 4)
    assert metrics["clip_ratio/high_mean"] == pytest.approx(1 / 4)
    assert metrics["clip_ratio/low_mean"] == pytest.approx(1 / 4)
    loss.backward()
    # d(ratio)/d(logp) = ratio where nothing is clipped, 0 where the clip is active.
    expected = -torch.tensor([[[0.0, 2 * 0.5], [-1.5, 0.0]]]) / 4
    torch.testing.assert_close(given.logp.grad, expected)


def test_grpo_kl_golden_value():
    # Three candidates of two codes, the last one invalid: the metric is the mean over four valid codes, the loss the
    # mean over all six slots, as for the policy term.
    ref = torch.tensor([[[math.log(2), 0.0], [0.0, math.log(0.5)], [9.0, 9.0]]])
    zero = [[[0.0, 0.0]] * 3]
    given = inputs(zero, zero, [[0.0] * 3], ref_logp=ref, valid=torch.tensor([[True, True, False]]))
    loss, metrics = grpo(given, ObjectiveSpec(kl_weight=0.5))
    total = (2 - math.log(2) - 1) + (0.5 - math.log(0.5) - 1)
    assert metrics["kl"] == pytest.approx(total / 4)
    assert loss.item() == pytest.approx(0.5 * total / 6)


def test_nll_golden_value():
    targets = torch.tensor([[[-1.0, -2.0], [-7.0, -7.0]]], requires_grad=True)
    extra = {"target_logp": targets, "target_valid": torch.tensor([[True, False]])}
    for name in ("nll", "grpo"):
        given = inputs([[[0.0, 0.0]]], [[[0.0, 0.0]]], [[0.0]], **extra)
        loss, metrics = OBJECTIVES[name](given, ObjectiveSpec(nll_weight=0.5))
        assert metrics["nll"] == pytest.approx(3.0)
        assert loss.item() == pytest.approx(1.5), "a padded target carries no loss"


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_contract_of_every_objective(name):
    generator = torch.Generator().manual_seed(0)
    logp = -torch.rand(3, 4, 2, generator=generator)
    advantage = torch.tensor([[1.0, -1.0, 0.0, 2.0]] * 3)
    valid = torch.tensor([[True, True, True, False]] * 3)
    given = LossInputs(logp.clone().requires_grad_(), logp, advantage, valid)
    loss, metrics = OBJECTIVES[name](given, ObjectiveSpec())
    assert loss.ndim == 0
    assert all(math.isfinite(value) for value in metrics.values())
    loss.backward()
    gradient = given.logp.grad
    assert (gradient[:, 2] == 0).all(), "no advantage, no gradient"
    assert (gradient[:, 3] == 0).all(), "an invalid candidate carries no gradient"
    if name != "nll":  # which has no policy term at all
        assert (gradient[:, 0] < 0).all(), "gradient descent raises what was better than the group"
        assert (gradient[:, 1] > 0).all(), "and lowers what was worse"
    else:
        assert (gradient == 0).all()


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_contract_of_every_advantage(name):
    rewards = torch.tensor([[1.0, 0.0, 0.0, 9.0], [0.1, 0.1, 0.1, 0.1], [5.0, 5.0, 5.0, -3.0]])
    valid = torch.tensor([[True, True, True, False], [True] * 4, [True, True, True, False]])
    advantage = ADVANTAGES[name](rewards, valid)
    assert torch.isfinite(advantage).all()
    assert (advantage[1:] == 0).all(), "equal rewards give exactly zero"
    assert float(advantage[0, 3]) == 0
    assert float(advantage[0].sum()) == pytest.approx(0, abs=1e-6)
    nothing = ADVANTAGES[name](rewards, torch.zeros_like(valid))
    assert (nothing == 0).all()


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_rounding_is_no_signal(name):
    rewards = torch.tensor([[0.3, 0.3 + 3e-8, 0.3, 0.3], [0.0, 1e-25, 2e-25, 0.0]])
    assert (ADVANTAGES[name](rewards, torch.ones(2, 4, dtype=torch.bool)) == 0).all()


def test_group_standardised_is_the_textbook_formula():
    rewards = torch.tensor([[1.0, 0.0, -0.5, 0.25]])
    expected = (rewards - rewards.mean()) / rewards.std(unbiased=False)
    torch.testing.assert_close(ADVANTAGES["group_standardised"](rewards, torch.ones(1, 4, dtype=torch.bool)), expected)


def test_grpo_gradient_is_the_exact_policy_gradient_of_the_toy_trie():
    """With the whole catalogue as the group and p-weighted advantages the gradient of the expectation is known."""
    table = toy_table(8, (3, 4))
    policy = toy_policy(table, scale=4.0)
    history = toy_episodes(1, 8, seed=2).history
    reward = torch.from_numpy(np.random.default_rng(0).random(8).astype(np.float32))
    logp = torch.stack([naive_logp(policy, history[0], c).sum() for c in table.codes])
    policy.model.zero_grad()
    (logp.exp() * reward).sum().backward()
    exact = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}

    policy.model.zero_grad()
    packed = packed_logp(policy, history, torch.from_numpy(table.codes)[None]).logp
    # E_p[r grad log p] = sum_i p_i r_i grad log p_i: advantage p_i r_i, times G * L for the means of the objective.
    advantage = (logp.detach().exp() * reward)[None] * 8 * 2
    given = LossInputs(packed, packed.detach(), advantage, torch.ones(1, 8, dtype=torch.bool))
    loss, _ = grpo(given, ObjectiveSpec())
    loss.backward()
    for name, p in policy.model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(-p.grad, exact[name], atol=1e-5, rtol=1e-4)
