"""With what weight each objective learns from a candidate, by its ratio: the picture of docs/algorithms.md.

    python benchmarks/objective_figures.py [--quick] [--plot docs/objectives.svg] [--out FILE]

Nothing is drawn from formulas: a curve is the derivative that autograd finds in the objective itself, like figures 6, 8
and 9 of the OneRec papers. The last line printed is one JSON object: the weights at a few ratios, and the largest ones.
Left out: training (the results of docs/algorithms.md), and advantages.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.agents.objectives import OBJECTIVES, RECIPES, LossInputs, ObjectiveSpec
from sidgym.benchmarks.script import main

LEVELS = 3
OLD = 0.2
"""Probability of the SID when it was drawn."""
SPEC = ObjectiveSpec(clip=0.2, ecpo_delta=0.1, kl_weight=0.1)
RATIOS = (0.5, 1.0, 2.0, 4.0)
"""Where the JSON object tells the weights."""
SHOWN = (
    "reinforce", "rloo", "grpo", "dr_grpo", "dapo", "gspo", "ecpo", "gbpo", "grpo_sr", "s_dpo",
)  # fmt: skip
BETTER, WORSE, FAINT = "#1b6ca8", "#c8553d", "#888888"


def weights(name: str, ratios: np.ndarray, advantage: float, old: float = OLD) -> np.ndarray:
    """Derivative of what the objective maximises by log pi(o) of the whole SID, at each of ``ratios``.

    So the weights of objectives compare, whatever ratio each takes: all scale the gradient of log pi(o). One candidate
    of ``LEVELS`` codes, which share its probability equally, ``old`` when it was drawn. The ratio is that of each code
    (or their mean), or of the whole SID where the objective takes one a sequence; for ``s_dpo`` it is the target's to
    the reference (advantage above 0) or the one negative's (below), the other's being 1.
    """
    whole = RECIPES[name].ratio == "sequence" or RECIPES[name].pairs
    # log pi(o) - log pi_old(o)
    moved = torch.tensor(np.log(ratios) * (1 if whole else LEVELS), dtype=torch.float64, requires_grad=True)
    before = torch.full((len(ratios), 1, LEVELS), np.log(old) / LEVELS, dtype=torch.float64)
    now = before + (moved / LEVELS)[:, None, None]
    valid = torch.ones(len(ratios), 1, dtype=torch.bool)
    inputs = LossInputs(now, before, torch.full((len(ratios), 1), advantage, dtype=torch.float64), valid)
    if RECIPES[name].pairs:
        negative, target = (before, now) if advantage > 0 else (now, before)
        inputs = LossInputs(
            negative, before, inputs.advantage, valid, before, target, valid, None, before, torch.zeros_like(valid)
        )
    loss = OBJECTIVES[name](inputs, SPEC)[0] * len(ratios)  # of the mean over groups the sum
    return torch.autograd.grad(-loss, moved)[0].numpy()


def factors(name: str, chances: np.ndarray) -> np.ndarray:
    """Factor on the gradient of the probability of a candidate with A = -1, on-policy, by its probability."""
    return np.array([-weights(name, np.ones(1), -1.0, chance)[0] / chance for chance in chances])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    grid = np.linspace(0.01, 1 / OLD, 50 if options.quick else 500)
    chances = np.linspace(0.001, 0.999, 20 if options.quick else 200)
    wide = np.geomspace(0.01, 1e6, 200)
    told = {
        name: {
            side: [round(float(w), 6) for w in weights(name, np.array(RATIOS), advantage)]
            for side, advantage in (("better", 1.0), ("worse", -1.0))
        }
        for name in SHOWN
    }
    for name in SHOWN:
        print(name, told[name])
    if options.plot:
        draw(grid, chances, options.plot)
    return {
        "ratios": RATIOS,
        "weights": told,
        "grpo_largest_weight_worse": float(-weights("grpo", wide, -1.0).min()),
        "ecpo_largest_weight_worse": float(-weights("ecpo", wide, -1.0).min()),
        "gbpo_largest_factor_to_bce": float((factors("gbpo", chances) * (1 - chances)).max()),
        "grpo_largest_factor_to_bce": float((factors("grpo", chances) * (1 - chances)).max()),
    }


def draw(grid: np.ndarray, chances: np.ndarray, path: Path) -> None:
    """Writes an SVG file; the same library gives the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "sidgym"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(3, 4, figsize=(11, 7.6), constrained_layout=True)
    for name, axes in zip(SHOWN, panels.flat):
        _panel(axes, name, grid[grid <= 3])
    _compared(panels.flat[10], grid)
    _bounded(panels.flat[11], chances)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    panels[0, 0].legend(frameon=False, fontsize=8, loc="upper left")
    for row in panels[:, 0]:
        row.set_ylabel("weight", fontsize=8)
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _panel(axes: Any, name: str, grid: np.ndarray) -> None:
    """One objective: its weights, beside those of plain importance sampling."""
    recipe = RECIPES[name]
    of = {"token": "of a code", "sequence": "of a SID", "sequence_mean": "of codes, mean"}[recipe.ratio]
    better, worse = weights(name, grid, 1.0), weights(name, grid, -1.0)
    axes.axhline(0, color=FAINT, linewidth=0.6)
    if recipe.pairs:
        of = "to the reference"
    else:
        scale = 1 if recipe.ratio == "sequence" or recipe.normaliser == "constant" else 1 / LEVELS
        for sign in (1, -1):
            axes.plot(grid, sign * scale * grid, color=FAINT, linestyle=":", linewidth=1)
        axes.set_ylim(-3.1, 3.1)
    axes.plot(grid, better, color=BETTER, label="A = 1" if not recipe.pairs else "")
    axes.plot(grid, worse, color=WORSE, label="A = -1" if not recipe.pairs else "")
    axes.set_title(name + (", format_ecpo" if name == "ecpo" else ""), fontsize=9)
    axes.set_xlabel(f"ratio {of}", fontsize=8)


def _compared(axes: Any, grid: np.ndarray) -> None:
    """Off-policy: how much a candidate that was worse counts when the policy has moved towards it."""
    for name, colour, style in (("rloo", FAINT, "--"), ("ecpo", BETTER, "-"), ("gbpo", WORSE, "-")):
        axes.plot(grid, -weights(name, grid, -1.0), color=colour, linestyle=style, label=name)
    axes.set_ylim(0, 5)
    axes.set_title("A = -1, pi_old = 0.2", fontsize=9)
    axes.set_xlabel("ratio of a SID", fontsize=8)
    axes.legend(frameon=False, fontsize=8)


def _bounded(axes: Any, chances: np.ndarray) -> None:
    """On-policy: the factor on the gradient of pi itself."""
    axes.plot(chances, factors("ecpo", chances), color=BETTER, label="ecpo: 1 / pi")
    axes.plot(chances, factors("grpo", chances), color=BETTER, linestyle="--", label=f"grpo: 1 / ({LEVELS} pi)")
    axes.plot(chances, factors("gbpo", chances), color=WORSE, label="gbpo")
    axes.plot(chances, 1 / (1 - chances), color=FAINT, linestyle=":", label="1 / (1 - pi)")
    axes.set(ylim=(0, 10))
    axes.set_title("A = -1, ratio 1: factor on grad pi", fontsize=9)
    axes.set_xlabel("pi of the SID", fontsize=8)
    axes.legend(frameon=False, fontsize=8)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plot", type=Path, help="draw the picture to this SVG file")


if __name__ == "__main__":
    main("objective_figures", __doc__ or "", measure, add_options=add_options)
