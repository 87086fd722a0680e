"""Figures of a contest that one value a seed is all there is of: legality, gradients, rewards; and their differences.

The summary's other figures have an interval over users; these have one over seeds alone. Left out: figures of users
(``arms_summary``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sidgym.benchmarks.arms_curves import Log, largest, values_of
from sidgym.benchmarks.arms_summary import LAST, Trial
from sidgym.benchmarks.comparisons import over_seeds

BySeed = Mapping[str, Mapping[str, Mapping[str, float]]]
"""System -> figure -> seed, as text -> value."""


def by_seed(trials: Sequence[Trial]) -> dict[str, dict[str, dict[str, float]]]:
    """System -> figure -> seed -> value; what was not measured is left out.

    ``har`` and ``illegal_mass`` of the evaluation, ``grad_norm_cv`` of the second half of training, ``grad_norm`` of
    its last iterations, ``ratio_max`` the largest of all iterations, ``reward_gain`` and ``ndcg_gain`` from the first
    validation to the last one (the reward is the one that the arm itself learned from), and the means over users of
    every metric.
    """
    out: dict[str, dict[str, dict[str, float]]] = {}
    for trial in trials:
        legal = trial.whole.get("trie/legal_mass")
        figures = {
            **{name: float(np.mean(values)) for name, values in trial.per_user.items()},
            "har": trial.whole.get("har"),
            "illegal_mass": None if legal is None else 1.0 - legal,
            "grad_norm_cv": spread(trial.log),
            "grad_norm": _last(trial.log, "grad_norm"),
            "ratio_max": largest(trial.log, "ratio_max"),
            "reward_gain": _gain(trial.log, "eval/reward"),
            "ndcg_gain": _gain(trial.log, "eval/ndcg@10"),
        }
        own = out.setdefault(trial.system, {})
        for name, value in figures.items():
            if value is not None and np.isfinite(value):
                own.setdefault(name, {})[str(trial.seed)] = float(value)
    return out


def spread(log: Log) -> float | None:
    """Standard deviation of the gradient's norm over its mean in the second half of training."""
    values = values_of(log, "grad_norm")[1]
    values = values[len(values) // 2 :]
    return float(values.std() / values.mean()) if len(values) > 1 and values.mean() > 0 else None


def _last(log: Log, key: str) -> float | None:
    values = values_of(log, key)[1][-LAST:]
    return float(values.mean()) if len(values) else None


def _gain(log: Log, key: str) -> float | None:
    values = values_of(log, key)[1]
    return float(values[-1] - values[0]) if len(values) > 1 else None


def difference(found: BySeed, a: str, b: str, figure: str) -> dict[str, Any] | None:
    """``a`` minus ``b`` of one figure over the seeds that both have: mean, 95 % interval over seeds, and the seeds.

    None where there is no such seed. With one seed both ends are the mean, and nothing is known of other trainings.
    """
    ours, theirs = (found.get(system, {}).get(figure, {}) for system in (a, b))
    shared = [seed for seed in ours if seed in theirs]
    if not shared:
        return None
    return {**over_seeds([ours[seed] - theirs[seed] for seed in shared]), "seeds": len(shared)}


def alone(found: BySeed, system: str, figure: str) -> dict[str, Any] | None:
    """One figure of one system: mean, 95 % interval over seeds, and the number of seeds; None without any."""
    values = list(found.get(system, {}).get(figure, {}).values())
    return {**over_seeds(values), "seeds": len(values)} if values else None
