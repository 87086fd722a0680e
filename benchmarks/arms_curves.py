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


def largest(log: Log, key: str) -> float | None:
    """The largest value of a figure in a log; None where there is none."""
    values = values_of(log, key)[1]
    return float(values.max()) if len(values) else None


def curve(logs: Sequence[Log], key: str) -> list[list[float]]:
    """``[step, mean, low, high]`` rows over the seeds' logs, with a 95 % interval over seeds; [] without the figure.

    Only steps that every log has count; where there are more than ``POINTS`` each log is averaged in bins first.
    """
    common, aligned = _aligned(logs, key)
    if len(common) == 0:
        return []
    bins = np.array_split(np.arange(len(common)), min(POINTS, len(common)))
    out = []
    for part in bins:
        told = over_seeds(aligned[:, part].mean(axis=1).tolist())
        out.append([float(common[part].mean()), told["mean"], told["low"], told["high"]])
    return out


def _aligned(logs: Sequence[Log], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps (P,) at which every log has the figure, and its values there, (seeds, P)."""
    read = [values_of(log, key) for log in logs]
    shared = [set(steps.tolist()) for steps, _ in read]
    common = np.asarray(sorted(set.intersection(*shared))) if shared else np.zeros(0)
    if len(common) == 0:
        return common, np.zeros((len(logs), 0))
    return common, np.stack([values[np.searchsorted(steps, common)] for steps, values in read])


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
    """For each figure of ``TARGETS`` what is to be reached and what each arm spent until it first validated there.

    To be reached is ``given`` for NDCG. Else, and for the reward, it is a gain over each seed's own first validation,
    since seeds begin further apart than arms end: half of the largest mean gain of any arm, and null where the 95 %
    interval of that gain over seeds reaches zero, or there is one seed alone. ``costs``: arm -> ``{"steps",
    "rollouts", "seconds", "flops"}`` of its whole training, of which a step costs an equal part.

    Returns ``{figure: {"start", "gain", "value", "reached": {arm: {"seeds", "of", "at_start", "step", ...} }}}``:
    ``start`` and ``value`` are means over seeds; ``seeds`` of an arm's ``of`` got there, ``at_start`` of them before
    the first step, and what it cost is the mean over the others.
    """
    out: dict[str, dict[str, Any]] = {}
    for key in TARGETS:
        tracks = {arm: _aligned(seeds, key)[1] for arm, seeds in logs.items()}
        tracks = {arm: values for arm, values in tracks.items() if values.size}
        if not tracks:
            continue
        start = float(np.mean([values[:, 0].mean() for values in tracks.values()]))
        best = max((_best_gain(values) for values in tracks.values()), key=lambda gain: gain["mean"])
        value = given if key == TARGETS[0] else None
        is_gain = best["low"] > 0 and "p" in best  # a single seed tells nothing of another training
        gain = best["mean"] / 2 if value is None and is_gain else None
        known = {} if value is None and gain is None else tracks
        out[key] = {
            "start": start,
            "gain": gain,
            "value": value if gain is None else start + gain,
            "reached": {arm: _reached(logs[arm], key, value, gain or 0.0, costs[arm]) for arm in known},
        }
    return out


def _best_gain(values: np.ndarray) -> dict[str, float]:
    """The largest mean gain over the first validation, ``values`` (seeds, P), and its 95 % interval over seeds."""
    gains = values - values[:, :1]
    return over_seeds(gains[:, gains.mean(axis=0).argmax()].tolist())


def _reached(
    logs: Sequence[Log], key: str, value: float | None, gain: float, costs: Mapping[str, float | None]
) -> dict[str, float | int | None]:
    """When an arm first validated at ``value`` (None: at ``gain`` above its first validation) or above."""
    first: list[float] = []
    before = 0
    for log in logs:
        steps, values = values_of(log, key)
        there = values >= (values[0] + gain if value is None else value)
        before += bool(there[0])
        first += [] if there[0] else steps[there][:1].tolist()
    told: dict[str, float | int | None] = {"seeds": len(first) + before, "of": len(logs), "at_start": before}
    step, all_steps = (float(np.mean(first)) if first else None), costs.get("steps")
    told["step"] = step
    for name in ("rollouts", "seconds", "flops"):
        whole = costs.get(name)
        known = step is not None and whole is not None and all_steps
        told[name] = whole * step / all_steps if known else None  # type: ignore[operator]
    return told
