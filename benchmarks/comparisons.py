"""Many systems against each other over users and seeds: paired tests, Holm's correction, intervals.

A difference may be due to the users at hand and to the seeds of training. Where each seed has users of its own
(another simulated store), a paired t test on the means of the seeds holds both: seeds - 1 degrees of freedom, and exact
for normal means however few they are. Where all seeds judge the same users, the variance of the mean over users is
added to that over seeds (Clark 1973, "The language-as-fixed-effect fallacy"), with the fewer degrees of freedom, which
errs on the careful side; Clark's own, between the two, would reject a true null far too often with two or three seeds.
With one seed the users alone count, and nothing is said about other trainings.

Left out: which systems are compared, and what is said about it (``arms_summary``, ``arms_words``).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from sidgym.envs.statistics import bootstrap_mean

LEVEL = 0.05
"""Familywise error rate, and one minus the coverage of intervals."""

Seeds = Mapping[int, np.ndarray]
"""Seed -> one value a user, (U,); the users of a seed in one order for all systems."""


def holm(p: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in the same order: none below its own, none above 1.

    Controls the familywise error rate under any dependence. Source: Holm 1979, "A Simple Sequentially Rejective
    Multiple Test Procedure". Raises ``ValueError`` for what is no probability.
    """
    values = np.asarray(p, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():  # NaN is neither
        raise ValueError(f"holm: expected p-values between 0 and 1, got {list(p)}")
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(factors * values[order]), 1.0)
    return [float(value) for value in corrected]


def mean_of(values: Seeds) -> float:
    """Mean over seeds of the means over users: every training counts the same."""
    return float(np.mean([np.mean(part) for part in values.values()]))


def interval(values: Seeds, same_users: bool = False) -> dict[str, float]:
    """Mean, its 95 % interval over users and seeds, and the p-value of a true mean of 0.

    ``same_users``: every seed judged the same users in the same order. Returns ``{"mean", "low", "high", "p"}``. Raises
    ``ValueError`` for values that are not finite or fewer than two users.
    """
    parts = _checked(values, same_users)
    users, freedom = _over_users(parts, same_users)
    if len(parts) == 1:
        return _by_t(mean_of(values), users, freedom)
    seeds = float(np.var([part.mean() for part in parts], ddof=1)) / len(parts)
    return _by_t(mean_of(values), seeds + (users if same_users else 0.0), len(parts) - 1.0)


def users_interval(values: Seeds, same_users: bool = False) -> dict[str, float]:
    """As ``interval``, but over users alone: what other users would make of these very policies."""
    parts = _checked(values, same_users)
    return _by_t(mean_of(values), *_over_users(parts, same_users))


def _by_t(mean: float, variance: float, freedom: float) -> dict[str, float]:
    """Interval and two-sided p-value by Student's t; ``variance`` is the squared standard error."""
    from scipy.stats import t  # late: it takes as long as everything else here

    if variance <= 0:
        return {"mean": mean, "low": mean, "high": mean, "p": 1.0 if mean == 0 else 0.0}
    error = math.sqrt(variance)
    half = float(t.ppf(1 - LEVEL / 2, freedom)) * error
    return {"mean": mean, "low": mean - half, "high": mean + half, "p": float(2 * t.sf(abs(mean) / error, freedom))}


def _checked(values: Seeds, same_users: bool) -> list[np.ndarray]:
    parts = [np.asarray(part, dtype=np.float64) for part in values.values()]
    if not parts or any(part.ndim != 1 or len(part) < 2 for part in parts):
        raise ValueError(f"expected at least two users of each seed, got shapes {[part.shape for part in parts]}")
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError("expected finite values of every user; leave out what was not measured")
    if same_users and len({len(part) for part in parts}) > 1:
        raise ValueError(f"same_users: the seeds judged {[len(part) for part in parts]} users, not the same ones")
    return parts


def _over_users(parts: Sequence[np.ndarray], same_users: bool) -> tuple[float, float]:
    """Squared standard error over users, and its degrees of freedom."""
    if same_users:
        each = np.mean(parts, axis=0)
        return float(each.var(ddof=1)) / len(each), len(each) - 1.0
    within = sum(float(part.var(ddof=1)) / len(part) for part in parts)
    return within / len(parts) ** 2, float(sum(map(len, parts)) - len(parts))


def over_users(values: Seeds, same_users: bool, resamples: int, seed: int) -> dict[str, float]:
    """Mean and 95 % bootstrap interval over users alone: ``{"mean", "low", "high"}``."""
    parts = _checked(values, same_users)
    if same_users:
        return bootstrap_mean(np.mean(parts, axis=0), resamples, seed)
    count, mean = sum(map(len, parts)), mean_of(values)
    # What differs between seeds is no spread of users; weighted, so that every seed counts the same.
    apart = [(part - part.mean()) * (count / len(parts) / len(part)) for part in parts]
    told = bootstrap_mean(np.concatenate(apart), resamples, seed)
    return {"mean": mean, "low": mean + told["low"], "high": mean + told["high"]}


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean of one figure a seed, its 95 % interval by Student's t and ``p``, the p-value of a true mean of 0.

    Both ends are the mean for a single seed, which has no ``p``.
    """
    if len(values) == 1:
        return dict.fromkeys(("mean", "low", "high"), float(values[0]))
    return _by_t(float(np.mean(values)), float(np.var(values, ddof=1)) / len(values), len(values) - 1.0)


def compare(
    systems: Mapping[str, Seeds], metric: str, same_users: bool = False, resamples: int = 2000, against: str = ""
) -> list[dict[str, Any]]:
    """Every pair of ``systems`` on one metric, over the seeds that both have; the pairs are one family for Holm.

    With ``against`` only the pairs of that system, ``a`` in all of them.

    A pair is ``{"a", "b", "metric", "mean", "low", "high", "users": {"low", "high"}, "seeds": {seed: mean}, "p",
    "p_holm"}``, the difference being a minus b: ``low`` and ``high`` over users and seeds, ``users`` by paired
    bootstrap over users alone. Pairs without a seed in common are left out.
    """
    pairs: list[dict[str, Any]] = []
    chosen = [(against, b) for b in systems if b != against] if against else combinations(systems, 2)
    for a, b in chosen:
        shared = sorted(set(systems[a]) & set(systems[b]))
        if not shared:
            continue
        difference = {seed: _paired(systems[a][seed], systems[b][seed], a, b) for seed in shared}
        users = over_users(difference, same_users, resamples, shared[0])
        pairs.append(
            {
                "a": a,
                "b": b,
                "metric": metric,
                **interval(difference, same_users),
                "users": {"low": users["low"], "high": users["high"]},
                "seeds": {str(seed): float(values.mean()) for seed, values in difference.items()},
            }
        )
    for pair, corrected in zip(pairs, holm([pair["p"] for pair in pairs])):
        pair["p_holm"] = corrected
    return pairs


def _paired(ours: np.ndarray, theirs: np.ndarray, a: str, b: str) -> np.ndarray:
    if ours.shape != theirs.shape:
        raise ValueError(f"{a} and {b} should be judged on the same users, got {ours.shape} and {theirs.shape} values")
    return ours - theirs


def shown(pair: Mapping[str, Any]) -> int:
    """1 if a is shown to be above b, -1 if below, 0 if neither is shown: by the corrected p-value."""
    return int(np.sign(pair["mean"])) if pair["p_holm"] < LEVEL else 0
