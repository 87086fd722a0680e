"""What training for whole sessions brings: every arm of ``sessions.toml`` judged with new shoppers, beside the oracle.

    python benchmarks/sessions.py [--quick] [--seeds 0 1 2] [--out FILE]

Runs ``sidgym run sessions`` once a seed, then lets each trained policy fill whole sessions with its most probable
items. Shoppers, warm-up and the random numbers of every page are the same for all, so differences are paired by
shopper. The last line printed is one JSON object.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.agents.checkpoint import load_policy
from sidgym.agents.evaluate import PolicyPages
from sidgym.benchmarks.script import main
from sidgym.envs.oracle import percent_of_oracle
from sidgym.envs.session_oracle import AGENTS, judge_sessions
from sidgym.envs.simulator import Truth
from sidgym.envs.statistics import paired_bootstrap

CONFIG = "sessions"
SETTINGS: dict[str, Any] = {"page_size": 5, "history": 20, "warm_pages": 3, "discount": 0.9}
POLICIES = {
    "sft": "SFT",
    "rl_logged_pages": "SFT + GRPO on logged pages",
    "rl_immediate": "SFT + GRPO in sessions, the page alone counts",
    "rl": "**SFT + GRPO in sessions**",
}
MARKS = {
    "random": "random pages",
    "logging": "the logging recommender",
    "oracle": "oracle (Bayes, greedy)",
    "bound": "bound (knows the taste)",
}
DIFFERENCES = (("rl", "sft"), ("rl", "rl_logged_pages"), ("rl", "rl_immediate"))
SHOPPERS, QUICK_SHOPPERS = 2000, 100
QUICK = "--data.users 150 --data.items 150 --sft.epochs 1 --rl.steps 2 --eval.bootstrap 50 --workers 1".split()  # noqa: SIM905
JUDGE_SEED = 10_000
"""Added to a run's seed: nobody who is judged with was trained on."""


def judge(folder: Path, seed: int, shoppers: int) -> dict[str, dict[str, np.ndarray]]:
    """Per-shopper results of every policy of a finished run and of the agents that mark the scale."""
    world = Truth.load(folder / "data" / "truth").world
    agents = {name: build(world) for name, build in AGENTS.items()}
    agents |= {name: PolicyPages(load_policy(str(folder / name))) for name in POLICIES}
    users, settings = np.arange(shoppers), {**SETTINGS, "seed": JUDGE_SEED + seed}
    return {name: judge_sessions(world, agent, users, **settings) for name, agent in agents.items()}


def run(seed: int, quick: bool, shoppers: int) -> dict[str, Any]:
    """One seed: training, judging, figures."""
    with tempfile.TemporaryDirectory() as scratch:
        command = ["run", CONFIG, "--out", scratch, "--seed", str(seed), *(QUICK if quick else [])]
        subprocess.run([sys.executable, "-m", "sidgym.launch.cli", *command], stdout=sys.stderr, check=True)
        results = judge(Path(scratch) / CONFIG, seed, shoppers)
    low, high = (results[name]["discounted"].mean() for name in ("random", "oracle"))
    systems = {
        name: {
            **{key: float(values.mean()) for key, values in result.items()},
            "percent_of_oracle": percent_of_oracle(float(result["discounted"].mean()), low, high),
        }
        for name, result in results.items()
    }
    differences = {
        f"{a}_minus_{b}": paired_bootstrap(results[a]["discounted"], results[b]["discounted"], 1000, seed)
        for a, b in DIFFERENCES
    }
    return {"seed": seed, "systems": systems, "differences": differences}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every seed, and means over seeds."""
    torch.set_num_threads(1)
    shoppers = QUICK_SHOPPERS if options.quick else SHOPPERS
    runs = [run(seed, options.quick, shoppers) for seed in options.seeds]
    mean = {
        name: {key: float(np.mean([r["systems"][name][key] for r in runs])) for key in runs[0]["systems"][name]}
        for name in runs[0]["systems"]
    }
    for name, label in {**MARKS, **POLICIES}.items():
        figures = mean[name]
        print(
            f"{label:46} return {figures['discounted']:6.2f}  {figures['percent_of_oracle']:6.1f} % of oracle"
            f"  {figures['clicks']:.1f} clicks on {figures['pages']:.1f} pages"
        )
    return {"settings": SETTINGS, "shoppers": shoppers, "labels": {**MARKS, **POLICIES}, "systems": mean, "runs": runs}


if __name__ == "__main__":
    main(CONFIG, __doc__ or "", measure, (0, 1, 2))
