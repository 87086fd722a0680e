"""Objectives against numbers worked out by hand, plain arithmetic and finite differences, and what all have in common.

Their bounds, and enumeration on a toy trie, are in ``test_objective_bounds``.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sidgym.agents.importance import without_replacement
from sidgym.agents.objective_terms import KL_ESTIMATORS
from sidgym.agents.objectives import (
    OBJECTIVES,
    RECIPES,
    LossInputs,
    ObjectiveSpec,
    ecpo,
    grpo,
    nll_only,
    policy_gradient,
    s_dpo,
)

SPEC = ObjectiveSpec(clip=0.2, ecpo_delta=0.1)
PAIRS = {name for name, recipe in RECIPES.items() if recipe.pairs}
REWARDED = sorted(name for name, recipe in RECIPES.items() if recipe.rewarded)


def inputs(logp, old, advantage, **extra):
    logp = torch.tensor(logp, requires_grad=True)
    valid = torch.ones(logp.shape[:2], dtype=torch.bool)
    return LossInputs(logp, torch.tensor(old), torch.tensor(advantage), extra.pop("valid", valid), **extra)


def test_every_objective_has_a_recipe():
    assert OBJECTIVES.keys() == RECIPES.keys()


# By hand -------------------------------------------------------------------------------------------------------------

# Two candidates of two codes, each drawn with probability 0.5 * 0.4 = 0.2. The first (A = 2) is now 0.75 * 0.4 = 0.3:
# ratios 1.5 and 1, in all 1.5. The second (A = -1) is now 0.75 * 0.6 = 0.45: ratios 1.5 and 1.5, in all 2.25. Clipped
# at 1.2: 2 * 1.2 for 2 * 1.5, while -1.5 stays, as it is below -1.2.
OLD = [[[math.log(0.5), math.log(0.4)]] * 2]
NEW = [[[math.log(0.75), math.log(0.4)], [math.log(0.75), math.log(0.6)]]]
GOLDEN = {
    "reinforce": -(2 - 1) / 2,
    "rloo": -(2 * 1.5 - 2.25) / 2,
    "grpo": -(2 * 1.2 + 2 * 1 - 1.5 - 1.5) / 4,
    "dr_grpo": -(2 * 1.2 + 2 * 1 - 1.5 - 1.5) / 2,
    "dapo": -(2 * 1.28 + 2 * 1 - 1.5 - 1.5) / 4,
    "gspo": -(2 * 1.2 - 1.5) / 2,  # sqrt(1.5) = 1.22 is clipped; sqrt(2.25) = 1.5
    "ecpo": -(2 * 1.2 - 1.3) / 2,  # 0.45 / max(0.45 / 1.3, 0.2)
    "gbpo": -(2 * 1 - 0.45 / 0.55) / 2,  # 0.3 / max(0.2, 0.3), 0.45 / max(0.2, 0.55)
    "grpo_sr": -(2 - 1) / 2 + 0.1 * math.log(8),
    "format_ecpo": -(2 * 1.2 - 1.3) / 2,
    "s_dpo": -math.log(3 / (3 + 1.5 + 2.25)),  # beta 1: ratios to the reference
    "list_ndcg": -1 / math.log2(2 + 0.3 / 0.9 + 0.45 / 1.05),  # who of 0.3 and 0.45 stands before 0.6
    "nll": 0.1 * math.log(8),
}


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_golden_value(name):
    extra = {}
    if name in ("grpo_sr", "nll"):  # one target of probability 1/2 * 1/4, one that is padding
        targets = torch.tensor([[[math.log(0.5), math.log(0.25)], [-9.0, -9.0]]], requires_grad=True)
        extra = {"target_logp": targets, "target_valid": torch.tensor([[True, False]])}
    if name == "s_dpo":  # the reference is what the candidates were drawn from; the target has become 3 times as likely
        extra = {
            "target_logp": torch.tensor([[[math.log(0.6), 0.0]]], requires_grad=True),
            "target_valid": torch.tensor([[True]]),
            "ref_target_logp": torch.tensor([[[math.log(0.2), 0.0]]]),
            "ref_logp": torch.tensor(OLD),
            "positive": torch.tensor([[False, False]]),
        }
    if name == "list_ndcg":
        extra = {
            "target_logp": torch.tensor([[[math.log(0.6), 0.0]]], requires_grad=True),
            "target_valid": torch.tensor([[True]]),
            "positive": torch.tensor([[False, False]]),
        }
    given = inputs(NEW, OLD, [[2.0, -1.0]], **extra)
    spec = replace(SPEC, nll_weight=0.0 if name in PAIRS else 0.1, kl_weight=1.0)
    loss, metrics = OBJECTIVES[name](given, spec)
    assert loss.item() == pytest.approx(GOLDEN[name], rel=1e-5)
    assert metrics["loss"] == loss.item()


def test_a_ratio_of_sequences_is_an_option():
    given = inputs(NEW, OLD, [[2.0, -1.0]])
    assert grpo(given, replace(SPEC, ratio="sequence"))[0].item() == pytest.approx(-(2 * 1.2 - 2.25) / 2)
    assert ecpo(given, replace(SPEC, ratio="token"))[0].item() == pytest.approx(-(2 * 1.2 + 2 - 1.3 - 1.3) / 4)


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


@pytest.mark.parametrize(
    ("estimator", "total"),
    [
        ("k1", -math.log(2) + math.log(2)),
        ("k2", math.log(2) ** 2),
        ("k3", (2 - math.log(2) - 1) + (0.5 - math.log(0.5) - 1)),
    ],
)
def test_kl_golden_value(estimator, total):
    # Three candidates of two codes, the last one invalid: the metric is the mean over four valid codes, the loss the
    # mean over all six slots, as for the policy term.
    ref = torch.tensor([[[math.log(2), 0.0], [0.0, math.log(0.5)], [9.0, 9.0]]])
    zero = [[[0.0, 0.0]] * 3]
    for name in REWARDED:
        given = inputs(zero, zero, [[0.0] * 3], ref_logp=ref, valid=torch.tensor([[True, True, False]]))
        loss, metrics = OBJECTIVES[name](given, ObjectiveSpec(kl_weight=0.5, kl_estimator=estimator))
        assert metrics["kl"] == metrics[f"kl/{estimator}"] == pytest.approx(total / 4, abs=1e-7)
        assert loss.item() == pytest.approx(0.5 * total / 6, abs=1e-7), "beta means the same everywhere"


def test_invalid_candidates_and_large_distances_do_not_spoil_the_kl():
    """What an invalid slot holds may be anything; e^300 is cut off and carries no gradient."""
    ref = torch.tensor([[[math.log(2), 0.0], [300.0, 0.0], [300.0, 300.0]]])
    zero, valid = [[[0.0, 0.0]] * 3], torch.tensor([[True, True, False]])
    for name in KL_ESTIMATORS:
        given = inputs(zero, zero, [[0.0] * 3], ref_logp=ref, valid=valid)
        loss, metrics = grpo(given, ObjectiveSpec(kl_weight=0.5, kl_estimator=name))
        loss.backward()
        assert all(math.isfinite(value) for value in metrics.values())
        assert torch.isfinite(given.logp.grad).all()
        assert not given.logp.grad[0, 2].any()
    given = inputs(zero, zero, [[0.0] * 3], ref_logp=ref, valid=valid)
    grpo(given, ObjectiveSpec(kl_weight=1.0))[0].backward()
    torch.testing.assert_close(given.logp.grad, torch.tensor([[[-1 / 6, 0.0], [0.0, 0.0], [0.0, 0.0]]]))


def test_nll_measures_the_kl_and_is_not_held_by_it():
    arrays = world()
    given, other = tensors(arrays), tensors(arrays)
    loss, metrics = nll_only(given, ALL)
    expected = grpo(other, ALL)[1]
    assert {k: v for k, v in metrics.items() if "kl" in k} == {k: v for k, v in expected.items() if "kl" in k}
    assert set(metrics) >= {"kl", "kl/k1", "kl/k2", "kl/k3"}
    assert loss.item() == pytest.approx(ALL.nll_weight * metrics["nll"])
    loss.backward()
    assert not given.logp.grad.any()


def test_of_a_group_with_few_sids_dapo_divides_by_the_weights():
    """Draws without replacement of two SIDs in a group of six: their weights add up to six, as those of the mean do."""
    generator = torch.Generator().manual_seed(0)
    logp = torch.log(torch.tensor([[[0.7, 1.0], [0.3, 1.0]] + [[1.0, 1.0]] * 4], dtype=torch.float64))
    valid = torch.tensor([[True, True] + [False] * 4])
    weight = without_replacement(logp.sum(-1), valid).double()
    advantage = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    values = {}
    for name in ("dapo", "grpo"):
        given = LossInputs(logp.clone().requires_grad_(), logp, advantage, valid, weight=weight)
        values[name] = OBJECTIVES[name](given, SPEC)[0].item()
    assert values["dapo"] == pytest.approx(values["grpo"], rel=1e-6)
    assert values["grpo"] == pytest.approx(-float(0.7 * advantage[0, 0] + 0.3 * advantage[0, 1]), rel=1e-6)
    nothing = LossInputs(logp.clone().requires_grad_(), logp, advantage, valid, weight=torch.zeros(1, 6).double())
    assert OBJECTIVES["dapo"](nothing, SPEC)[0].item() == 0


def test_nll_golden_value():
    for name in sorted(OBJECTIVES.keys() - PAIRS):
        targets = torch.tensor([[[-1.0, -2.0], [-7.0, -7.0]]], requires_grad=True)
        extra = {"target_logp": targets, "target_valid": torch.tensor([[True, False]])}
        given = inputs([[[0.0, 0.0]]], [[[0.0, 0.0]]], [[0.0]], **extra)
        loss, metrics = OBJECTIVES[name](given, ObjectiveSpec(nll_weight=0.5))
        assert metrics["nll"] == pytest.approx(3.0)
        assert loss.item() == pytest.approx(1.5), "a padded target carries no loss"


# Finite differences --------------------------------------------------------------------------------------------------


def world(seed=0, groups=3, size=5, codes=3):
    """Inputs in float64 with everything an objective may read: ratios on both sides of the clip, gaps, duplicates."""
    rng = np.random.default_rng(seed)
    arrays = {
        "logp": np.log(rng.uniform(0.3, 0.95, (groups, size, codes))),
        "advantage": rng.normal(size=(groups, size)),
        "valid": rng.random((groups, size)) < 0.8,
        "weight": rng.uniform(0.2, 2.0, (groups, size)),
        "target_logp": np.log(rng.uniform(0.1, 0.9, (groups, 2, codes))),
        "target_valid": np.array([[True, True], [True, False], [False, False]]),
        "positive": rng.random((groups, size)) < 0.3,
    }
    arrays["old_logp"] = np.minimum(arrays["logp"] + rng.normal(scale=0.3, size=arrays["logp"].shape), -1e-3)
    arrays["ref_logp"] = arrays["logp"] + rng.normal(scale=0.5, size=arrays["logp"].shape)
    arrays["ref_target_logp"] = arrays["target_logp"] + rng.normal(scale=0.5, size=arrays["target_logp"].shape)
    return arrays


def tensors(arrays):
    out = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    return LossInputs(**{**out, **{name: out[name].requires_grad_() for name in ("logp", "target_logp")}})


ALL = ObjectiveSpec(clip=0.2, kl_weight=0.3, nll_weight=0.2, ecpo_delta=0.1, list_temperature=0.7)


def candidate_value(name, new, held, old, a):
    """What one candidate adds, by plain arithmetic; ``held`` are the log-probabilities under the stop-gradient."""
    p, pi, po = np.exp(new.sum()), np.exp(held.sum()), np.exp(old.sum())
    high = 1.28 if name == "dapo" else 1.2

    def least(w):
        return min(w * a, min(max(w, 0.8), high) * a)

    if name == "reinforce":
        return p / pi * a
    if name == "rloo":
        return p / po * a
    if name == "gspo":
        return least((p / po) ** (1 / len(new)))
    if name in ("ecpo", "format_ecpo"):
        return least(p / max(pi / 1.3, po))
    if name == "gbpo":
        return p / max(po, pi if a >= 0 else 1 - pi) * a
    ratios = np.exp(new - (held if name == "grpo_sr" else old))
    values = [w * a if name == "grpo_sr" else least(w) for w in ratios]
    return sum(values) if name in ("dr_grpo", "dapo") else sum(values) / len(values)


def plain_loss(name, arrays, held):
    """The loss by loops over groups and candidates. ``held``: log-probabilities where gradients stop."""
    groups, size, codes = arrays["logp"].shape
    policy = kl = nll = preference = listed = 0.0
    for b in range(groups):
        good = [i for i in range(size) if arrays["valid"][b, i]]
        values = 0.0
        for i in good:
            row = arrays["logp"][b, i], held[b, i], arrays["old_logp"][b, i]
            if RECIPES[name].rewarded:
                values += arrays["weight"][b, i] * candidate_value(name, *row, arrays["advantage"][b, i])
            far = arrays["ref_logp"][b, i] - arrays["logp"][b, i]
            kl += arrays["weight"][b, i] * (np.exp(far) - far - 1).sum() / (groups * size * codes)
        counted = arrays["weight"][b, good].sum() * codes if name == "dapo" else size
        policy += values / (groups * counted)
        known = [m for m in range(2) if arrays["target_valid"][b, m]]
        nll -= sum(arrays["target_logp"][b, m].sum() for m in known) / max(len(known), 1) / groups
        rest = [
            np.exp(ALL.kl_weight * (arrays["logp"] - arrays["ref_logp"])[b, i].sum())
            for i in good
            if not arrays["positive"][b, i]
        ]
        for m in known if rest else []:
            ours = np.exp(ALL.kl_weight * (arrays["target_logp"] - arrays["ref_target_logp"])[b, m].sum())
            preference -= np.log(ours / (ours + sum(rest))) / len(known) / groups
            scores = [arrays["logp"][b, i].sum() for i in good if not arrays["positive"][b, i]]
            gaps = [(score - arrays["target_logp"][b, m].sum()) / 0.7 for score in scores]
            listed -= 1 / np.log2(2 + sum(1 / (1 + np.exp(-gap)) for gap in gaps)) / len(known) / groups
    if name == "s_dpo":
        return preference + ALL.nll_weight * nll
    if name == "list_ndcg":
        policy = -listed
    return -policy + (ALL.kl_weight * kl if name != "nll" else 0.0) + ALL.nll_weight * nll


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_are_those_of_plain_arithmetic(name, seed):
    arrays = world(seed)
    given = tensors(arrays)
    loss, metrics = OBJECTIVES[name](given, ALL)
    assert loss.item() == pytest.approx(plain_loss(name, arrays, arrays["logp"]), rel=1e-9)
    assert all(math.isfinite(value) for value in metrics.values())
    loss.backward()
    step = 1e-6
    for field in ("logp", "target_logp"):
        expected = np.zeros_like(arrays[field])
        for place in np.ndindex(expected.shape):
            ends = []
            for sign in (1, -1):
                moved = {**arrays, field: arrays[field].copy()}
                moved[field][place] += sign * step
                ends.append(plain_loss(name, moved, arrays["logp"]))
            expected[place] = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(getattr(given, field).grad, expected, atol=1e-8, rtol=1e-6, err_msg=field)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_is_a_mean_over_groups(name):
    arrays = world()
    whole = OBJECTIVES[name](tensors(arrays), ALL)[0].item()
    parts = [OBJECTIVES[name](tensors({k: v[b : b + 1] for k, v in arrays.items()}), ALL)[0].item() for b in range(3)]
    assert whole == pytest.approx(np.mean(parts), rel=1e-9)


# The contract --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_contract_of_every_objective(name):
    generator = torch.Generator().manual_seed(0)
    logp = -torch.rand(3, 4, 2, generator=generator)
    advantage = torch.tensor([[1.0, -1.0, 0.0, 2.0]] * 3)
    valid = torch.tensor([[True, True, True, False]] * 3)
    given = LossInputs(logp.clone().requires_grad_(), logp, advantage, valid)
    if name in PAIRS:  # a preference among candidates and targets, whatever the advantages are
        targets = -torch.rand(3, 1, 2, generator=generator)
        extra = {"ref_logp": logp, "ref_target_logp": targets, "positive": advantage == 1}
        pairs = {"target_logp": targets.clone().requires_grad_(), "target_valid": torch.ones(3, 1, dtype=torch.bool)}
        given = replace(given, **pairs, **extra)
    loss, metrics = OBJECTIVES[name](given, ObjectiveSpec(kl_weight=0.1 if name == "s_dpo" else 0.0))
    assert loss.ndim == 0
    assert all(math.isfinite(value) for value in metrics.values())
    loss.backward()
    gradient = given.logp.grad
    assert (gradient[:, 3] == 0).all(), "an invalid candidate carries no gradient"
    if name in PAIRS:
        assert (gradient[:, 0] == 0).all(), "a candidate that is a target is no negative"
        assert (gradient[:, 1:3] > 0).all()
        assert (given.target_logp.grad < 0).all()
        return
    assert (gradient[:, 2] == 0).all(), "no advantage, no gradient"
    if name != "nll":  # which has no policy term at all
        assert (gradient[:, 0] < 0).all(), "gradient descent raises what was better than the group"
        assert (gradient[:, 1] > 0).all(), "and lowers what was worse"
    else:
        assert (gradient == 0).all()


def test_list_ndcg_is_that_of_lists_drawn_from_the_policy():
    """Places in lists in the order of Gumbel-perturbed log-probabilities, by simulation; NDCG at the mean place is a
    lower bound of the mean NDCG, and for small temperatures that of the ranked list."""
    score, target = np.log([0.3, 0.2, 0.05, 0.01]), np.log(0.1)
    given = inputs(
        [score[:, None].tolist()], [score[:, None].tolist()], [[0.0] * 4], positive=torch.zeros(1, 4, dtype=torch.bool),
        target_logp=torch.tensor([[[target]]], requires_grad=True), target_valid=torch.tensor([[True]]),
    )  # fmt: skip
    loss, metrics = OBJECTIVES["list_ndcg"](given, ObjectiveSpec())
    noise = np.random.default_rng(0).gumbel(size=(200_000, 5))
    place = 1 + ((score + noise[:, :4]) > (target + noise[:, 4:])).sum(1)
    assert metrics["list/place"] == pytest.approx(place.mean(), abs=0.02)
    assert -loss.item() < (1 / np.log2(1 + place)).mean() < -loss.item() + 0.1
    sharp = OBJECTIVES["list_ndcg"](given, ObjectiveSpec(list_temperature=1e-3))[0]
    assert -sharp.item() == pytest.approx(1 / math.log2(4), rel=1e-4), "third"


@pytest.mark.parametrize("name", REWARDED)
def test_weights_multiply_each_candidates_term(name):
    arrays = world(size=6)
    arrays["valid"][:] = True
    arrays["weight"][:, :3], arrays["weight"][:, 3:] = 2.0, 0.0
    half = {key: value[:, :3] if value.shape[1] == 6 else value for key, value in arrays.items()}
    half["weight"] = np.ones_like(half["weight"])
    # DAPO's sum of lengths and everybody's G count all candidates: twice the weight on half of them is the same mean.
    assert OBJECTIVES[name](tensors(arrays), ALL)[0].item() == pytest.approx(
        OBJECTIVES[name](tensors(half), ALL)[0].item(), rel=1e-9
    )
    ones = replace(tensors(half), weight=torch.ones(3, 3, dtype=torch.float64))
    assert OBJECTIVES[name](ones, ALL)[0].item() == OBJECTIVES[name](replace(ones, weight=None), ALL)[0].item()


def test_unknown_choices_are_named():
    given = inputs(NEW, OLD, [[2.0, -1.0]], ref_logp=torch.tensor(OLD))
    for change, said in (
        ({"ratio": "word"}, "unknown ratio 'word'; known: token, sequence"),
        ({"behaviour": "x"}, "unknown behaviour 'x'; known: stored, policy, ecpo, gbpo"),
        ({"normaliser": "x"}, "unknown normaliser 'x'; known: length, tokens, constant"),
        ({"kl_estimator": "k4"}, "unknown rl.kl_estimator 'k4'; known: k1, k2, k3"),
    ):
        with pytest.raises(ValueError, match=said):
            policy_gradient(given, replace(SPEC, **change))
    with pytest.raises(ValueError, match=r"'s_dpo' compares targets with candidates.*rl.kl_weight above 0"):
        s_dpo(given, SPEC)


def test_groups_without_a_pair_say_nothing_to_s_dpo():
    arrays = world()
    arrays["valid"][0] = False  # no negatives; the last group has no targets
    arrays["positive"][1] = True
    given = tensors(arrays)
    loss, metrics = s_dpo(given, replace(ALL, nll_weight=0.0))
    loss.backward()
    assert loss.item() == 0
    assert (given.logp.grad == 0).all()
    assert (given.target_logp.grad == 0).all()
    assert metrics["s_dpo/targets_above_all"] == 0
