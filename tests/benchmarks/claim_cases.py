"""Made-up summaries of contests, as the tests of claims and of the page of results need them."""

import numpy as np

from sidgym.benchmarks.arms_seeds import by_seed
from sidgym.benchmarks.arms_summary import CONTROL, Trial, summarise_arms
from sidgym.benchmarks.arms_words import verdict
from sidgym.benchmarks.power_law import law_with_interval
from sidgym.benchmarks.systems_summary import summarise_systems

USERS = 60
SEEDS = (0, 1, 2, 3, 4)
MADE = {
    "command": "sidgym bench something",
    "environment": {"cpu_count": 2, "machine": "x86_64", "packages": {"torch": "2"}},
    "commit": "abc123",
    "notes": ["a note"],
}


def arms(benchmark, gains, seeds=SEEDS, rewards=None, har=None, spread=None, noise=1e-3, truth=None, missing=()):
    """A contest of arms whose NDCG is SFT's and their gain, one number or one a seed; ``rewards``: how far an arm's own
    reward rises; ``har``, and ``spread`` of its gradient norms; ``truth``: its gain in true preference, which is not
    known without; ``missing``: system and seed of trials that failed."""
    trials = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        base = 0.3 + 0.1 * rng.random(USERS)
        for name in ("sft", CONTROL, *gains):
            gain = gains.get(name, 0.0)
            gain = gain if isinstance(gain, float) else gain[seeds.index(seed)]
            value = base + gain + (rng.normal(0, noise, USERS) if name != "sft" else 0)
            norms = 1 + (spread or {}).get(name, 0.5) * np.array([-1.0, 1.0] * 5) * (1 + 0.05 * rng.random())
            rise = (rewards or {}).get(name, 0.0) + rng.normal(0, 1e-3)
            log = [{"step": step + 1, "grad_norm": float(norm)} for step, norm in enumerate(norms)]
            log = [{"step": 0, "eval/reward": 0.2, "eval/ndcg@10": 0.2}, *log]
            log.append({"step": 10, "eval/reward": 0.2 + rise, "eval/ndcg@10": 0.2 + gain})
            whole = {"har": (har or {}).get(name, 0.05) + 1e-3 * rng.random(), "trie/legal_mass": 0.9}
            per_user = {"ndcg@10": value}
            if truth is not None:
                per_user["preference@10"] = base + truth.get(name, 0.0) + rng.normal(0, noise, USERS)
            if (name, seed) not in missing:
                trials.append(Trial(name, seed, per_user, whole, {}, log if name != "sft" else ()))
    summary = summarise_arms(trials, bootstrap=50) | {"benchmark": benchmark, "title": benchmark, **MADE}
    summary["by_seed"] = by_seed(trials)
    summary["verdict"] = [list(said) for said in verdict(summary)]
    return summary


def systems(benchmark, levels, metric="ndcg@10", seeds=SEEDS, noise=1e-3):
    """Systems whose metric lies at given levels for the users of each seed."""
    trials = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        base = 0.05 * rng.random(USERS)
        for name, level in levels.items():
            value = level + base + rng.normal(0, noise, USERS)
            trials.append(Trial(name, seed, {metric: value, "ndcg@10": value}, cost={"seconds": 1.0}))
    summary = summarise_systems(trials, (metric, "ndcg@10"), (metric,), bootstrap=50)
    return summary | {"benchmark": benchmark, "title": benchmark, "verdict": [[0, "as it is"]], **MADE}, trials


def sizes(losses, noise=1e-3):
    """A contest of sizes with the given losses, smallest size first."""
    names = [f"size{number}" for number in range(len(losses))]
    summary, trials = systems("scaling", dict(zip(names, losses)), "loss", noise=noise)
    parameters = [10.0 ** (4 + number) for number in range(len(losses))]
    for name, count in zip(names, parameters):
        summary["systems"][name]["parameters"] = count
    given = [[t.per_user["loss"] for t in trials if t.system == name] for name in names]
    return summary | {"law": law_with_interval(parameters, given, 50)}
