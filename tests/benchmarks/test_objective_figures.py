"""The curves of docs/algorithms.md: autograd through the objectives against closed forms."""

import numpy as np
import pytest
import torch

from sidgym.agents.objectives import OBJECTIVES, RECIPES, LossInputs
from sidgym.benchmarks.objective_figures import OLD, SHOWN, SPEC, draw, factors, weights

RATIOS = np.array([0.3, 0.9, 1.0, 1.25, 2.0, 4.5])
CODES = 3
CLIPPED = {
    "grpo": (np.array([0.3, 0.9, 1.0, 0, 0, 0]) / CODES, np.array([0, 0.9, 1.0, 1.25, 2.0, 4.5]) / CODES),
    "dapo": (np.array([0.3, 0.9, 1.0, 1.25, 0, 0]) / CODES, np.array([0, 0.9, 1.0, 1.25, 2.0, 4.5]) / CODES),
    "grpo_sr": ([1 / CODES] * 6, [1 / CODES] * 6),
    "ecpo": ([0.3, 0.9, 1.0, 0, 0, 0], [0, 0.9, 1.0, 1.25, 1.3, 1.3]),
    "reinforce": ([1.0] * 6, [1.0] * 6),
    "rloo": (RATIOS, RATIOS),
    "gbpo": ([0.3, 0.9, 1, 1, 1, 1], RATIOS / np.maximum(1, (1 - 0.2 * RATIOS) / 0.2)),
}


@pytest.mark.parametrize("name", sorted(CLIPPED))
def test_curves_are_those_of_the_equations(name):
    better, worse = CLIPPED[name]
    np.testing.assert_allclose(weights(name, RATIOS, 1.0), better, rtol=1e-9)
    np.testing.assert_allclose(-weights(name, RATIOS, -1.0), worse, rtol=1e-9)


def test_what_is_alike_is_alike():
    for advantage in (1.0, -1.0):
        grpo = weights("grpo", RATIOS, advantage)
        np.testing.assert_allclose(weights("gspo", RATIOS, advantage), grpo, rtol=1e-9)
        np.testing.assert_allclose(weights("dr_grpo", RATIOS, advantage), 3 * grpo, rtol=1e-9)


def test_s_dpo_raises_the_target_and_lowers_the_negative():
    """beta / (1 + x^beta) for a target x times as likely as under the reference, against one negative."""
    np.testing.assert_allclose(weights("s_dpo", RATIOS, 1.0), 0.1 / (1 + RATIOS**0.1), rtol=1e-9)
    np.testing.assert_allclose(weights("s_dpo", RATIOS, -1.0), -0.1 / (1 + RATIOS**-0.1), rtol=1e-9)


def test_the_factor_on_the_gradient_of_pi():
    chances = np.array([0.01, 0.3, 0.5, 0.9])
    np.testing.assert_allclose(factors("ecpo", chances), 1 / chances, rtol=1e-9)
    np.testing.assert_allclose(factors("gbpo", chances), 1 / np.maximum(chances, 1 - chances), rtol=1e-9)
    np.testing.assert_allclose(factors("grpo", chances), 1 / (CODES * chances), rtol=1e-9)


@pytest.mark.parametrize("name", sorted({*SHOWN} - {"s_dpo"}))
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_weights_are_on_the_gradient_of_the_whole_log_probability(name, advantage):
    """Codes that each grow by 1 / V make a SID that grows by 1, whatever the objective takes ratios of."""
    before = torch.full((1, 1, CODES), np.log(OLD) / CODES, dtype=torch.float64)
    now = before + np.log(0.9) / (CODES if RECIPES[name].ratio == "sequence" else 1)
    given = LossInputs(
        now.requires_grad_(),
        before,
        torch.full((1, 1), advantage, dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.bool),
    )
    OBJECTIVES[name](given, SPEC)[0].backward()
    expected = -given.logp.grad.mean().item()
    np.testing.assert_allclose(weights(name, np.array([0.9]), advantage), [expected], rtol=1e-9)


def test_everything_is_shown(tmp_path):
    why = "one is drawn as ecpo, one weighs the target by all the others, one has no candidates"
    assert set(RECIPES) - set(SHOWN) == {"format_ecpo", "list_ndcg", "nll"}, why
    draw(np.linspace(0.01, 5, 20), np.linspace(0.1, 0.9, 5), tmp_path / "picture.svg")
    first = (tmp_path / "picture.svg").read_bytes()
    draw(np.linspace(0.01, 5, 20), np.linspace(0.1, 0.9, 5), tmp_path / "picture.svg")
    assert first == (tmp_path / "picture.svg").read_bytes()
    assert b"<svg" in first
