"""Learning curves of arms over seeds, and what it costs an arm to reach a given figure.

An arm's log is the rows of its ``metrics.jsonl``. Left out: figures of the end of training (``arms_summary``), drawing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sidgym.benchmarks.comparisons import over_seeds

Log = Sequence[Mapping[str, Any]]

CURVES = (
    "eval/ndcg@10",
    "eval/reward",
    "reward",
    "entropy",
    "kl/k2",
    "grad_norm",
    "trie/legal_mass",
    "rollout/unique_items",
    "audit/popularity_correlation",
    "frac_reward_zero_std",
    "ratio_max",
)
"""Figures of a log that are kept as curves."""
POINTS = 40
"""Points a curve at most; a log with more is averaged in bins."""
TARGETS = ("eval/ndcg@10", "eval/reward")
"""Validated figures that a cost is told for."""


def values_of(log: Log, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (P,) and finite values (P,) of one figure of a log."""
    found = [(row["step"], row[key]) for row in log if isinstance(row.get(key), int | float) and np.isfinite(row[key])]
    steps, values = zip(*found) if found else ((), ())
    return np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)


def curve(logs: Sequence[Log], key: str) -> list[list[float]]:
    """``[step, mean, low, high]`` rows over the seeds' logs, with a 95 % interval over seeds; [] without the figure.

    Only steps that every log has count; where there are more than ``POINTS`` each log is averaged in bins first.
    """
    read = [values_of(log, key) for log in logs]
    shared = [set(steps.tolist()) for steps, _ in read]
    common = np.asarray(sorted(set.intersection(*shared))) if shared else np.zeros(0)
    if len(common) == 0:
        return []
    aligned = np.stack([values[np.searchsorted(steps, common)] for steps, values in read])
    bins = np.array_split(np.arange(len(common)), min(POINTS, len(common)))
    out = []
    for part in bins:
        told = over_seeds(aligned[:, part].mean(axis=1).tolist())
        out.append([float(common[part].mean()), told["mean"], told["low"], told["high"]])
    return out


def curves(logs: Mapping[str, Sequence[Log]]) -> dict[str, dict[str, list[list[float]]]]:
    """Figure -> arm -> its curve; what nobody logged is left out."""
    out: dict[str, dict[str, list[list[float]]]] = {}
    for key in CURVES:
        found = {arm: rows for arm, seeds in logs.items() if (rows := curve(seeds, key))}
        if found:
            out[key] = found
    return out


def targets(
    logs: Mapping[str, Sequence[Log]], costs: Mapping[str, Mapping[str, float | None]], given: float | None = None
) -> dict[str, dict[str, Any]]:
    """For each figure of ``TARGETS`` the value to reach and what each arm spent until it first validated there.

    The value of NDCG is ``given``; else, and for the reward, it is half way from where all start to the best that any
    arm reached, both as means over seeds, and null where no arm rose. ``costs``: arm -> ``{"steps", "rollouts",
    "seconds", "flops"}`` of its whole training, of which a step costs an equal part. Returns ``{figure: {"start",
    "value", "reached": {arm: {"seeds", "of", "step", ...} }}}``: of how many seeds reached it, and means over these.
    """
    out: dict[str, dict[str, Any]] = {}
    for key in TARGETS:
        tracks = {arm: curve(seeds, key) for arm, seeds in logs.items()}
        tracks = {arm: rows for arm, rows in tracks.items() if rows}
        if not tracks:
            continue
        start = float(np.mean([rows[0][1] for rows in tracks.values()]))
        best = max(row[1] for rows in tracks.values() for row in rows)
        value = given if given is not None and key == TARGETS[0] else (start + best) / 2 if best > start else None
        reached = {arm: _reached(logs[arm], key, value, costs[arm]) for arm in tracks} if value is not None else {}
        out[key] = {"start": start, "value": value, "reached": reached}
    return out


def _reached(
    logs: Sequence[Log], key: str, value: float, costs: Mapping[str, float | None]
) -> dict[str, float | int | None]:
    """When an arm first validated at ``value`` or above, over the seeds where it did."""
    first = []
    for log in logs:
        steps, values = values_of(log, key)
        first += steps[values >= value][:1].tolist()
    told: dict[str, float | int | None] = {"seeds": len(first), "of": len(logs)}
    step, all_steps = (float(np.mean(first)) if first else None), costs.get("steps")
    told["step"] = step
    for name in ("rollouts", "seconds", "flops"):
        whole = costs.get(name)
        known = step is not None and whole is not None and all_steps
        told[name] = whole * step / all_steps if known else None  # type: ignore[operator]
    return told
