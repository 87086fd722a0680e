"""One schema for the outcome of every run and every benchmark: what was measured, on whom, and how sure it is.

Several systems are judged on the same test users; ``summarise`` turns their per-user values into means, paired
differences with intervals, and percentages of the way from random to the oracle, for each seed and over all of them.
Left out: making the lists and the metrics (``agents.evaluate``, ``benchmarks.baselines``), and showing the result.

Means over several seeds are means over the users of all seeds together, and so are the intervals; ``over_seeds`` has
the mean, the least and the greatest of the seeds' own means. A figure that does not exist is null, never NaN.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sidgym.benchmarks.summary_schema import (
    BASELINES,
    CEILINGS,
    DIFFERENCES,
    MAIN,
    PERCENT,
    REQUIRED,
    RERANKED,
    SCHEMA_VERSION,
    load_summary,
    validate_summary,
    write_summary,
)
from sidgym.envs.statistics import paired_bootstrap

__all__ = [
    "BASELINES",
    "CEILINGS",
    "DIFFERENCES",
    "MAIN",
    "RERANKED",
    "SCHEMA_VERSION",
    "SystemResult",
    "is_trained",
    "load_summary",
    "summarise",
    "validate_summary",
    "write_summary",
]


@dataclass(frozen=True)
class SystemResult:
    """What one system scored on the test users of one seed."""

    name: str
    per_user: dict[str, np.ndarray]  # metric -> (U,) float, the users in one order for every system of the seed
    whole: dict[str, float] = field(default_factory=dict)  # metrics of the whole set: har, coverage@10 ...


def is_trained(system: str) -> bool:
    """Whether a system is a policy that was trained: neither a baseline, nor a ceiling, nor a reranker."""
    return system not in (*BASELINES, *CEILINGS, RERANKED)


def summarise(
    name: str,
    results: Sequence[Mapping[str, SystemResult]],
    seeds: Sequence[int],
    oracle: Mapping[str, Any] | None,
    environment: Mapping[str, Any],
    config_hash: str,
    notes: Sequence[str],
    bootstrap: int,
    same_users: bool = False,
) -> dict[str, Any]:
    """The summary of a run: JSON values only, valid by ``validate_summary``.

    ``results[i]`` holds the systems of ``seeds[i]`` by name. ``oracle`` is the oracle's report on itself, such as how
    well its predictions are calibrated; it is kept as it is under ``oracle_report``. ``bootstrap`` is the number of
    resamples. ``same_users`` says that every seed judged the same users in the same order: then each user's values are
    averaged over the seeds before users are resampled, because repeated users are not independent. Otherwise the users
    of the seeds are pooled.

    Raises ``ValueError`` for values that are not finite, systems of one seed with different numbers of users, or no
    seeds.
    """
    _check_results(results, seeds)
    pooled = {system: _pool(results, seeds, system, same_users) for system in _names(results)}
    measured = _figures(pooled)
    per_seed = [_one_seed(result, seed, bootstrap) for result, seed in zip(results, seeds)]
    systems = {s: {**measured[s], "n_users": one.users, "seeds": one.seeds} for s, one in pooled.items()}
    summary = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "config_hash": config_hash,
        "seeds": [int(seed) for seed in seeds],
        "n_users": _users(pooled),
        "bootstrap_resamples": int(bootstrap),
        **{system: dict(systems[system]) if system in systems else None for system in REQUIRED},
        **_differences(results, seeds, bootstrap, same_users),
        "percent_of_oracle": _percent_of_oracle(measured),
        "systems": systems,
        "over_seeds": _over_seeds(per_seed),
        "per_seed": per_seed,
        "notes": list(notes),
        "oracle_report": None if oracle is None else _plain(oracle),
        "environment": _plain(environment),
    }
    validate_summary(summary)
    return summary


@dataclass(frozen=True)
class _Pooled:
    """One system over all seeds that have it."""

    per_user: dict[str, np.ndarray]
    whole: dict[str, float]
    users: int
    seeds: list[int]

    def figures(self) -> dict[str, float]:
        return {metric: float(np.mean(values)) for metric, values in self.per_user.items()} | self.whole


def _check_results(results: Sequence[Mapping[str, SystemResult]], seeds: Sequence[int]) -> None:
    if not seeds or len(results) != len(seeds):
        raise ValueError(
            f"expected the results of at least one seed, one mapping each; got {len(results)}, seeds {seeds}"
        )
    for result, seed in zip(results, seeds):
        lengths = {}
        for system, scored in result.items():
            if scored.name != system:
                raise ValueError(f"results of seed {seed}: the key {system!r} holds the result of {scored.name!r}")
            for metric, values in scored.per_user.items():
                where = f"{system}.per_user[{metric!r}], seed {seed}"
                if values.ndim != 1 or not np.isfinite(values).all():
                    raise ValueError(
                        f"{where}: expected finite values (U,), got shape {values.shape} with "
                        f"{int((~np.isfinite(values)).sum())} values that are not finite"
                    )
                lengths[where] = len(values)
            for metric, value in scored.whole.items():
                if metric in scored.per_user or not math.isfinite(value):
                    raise ValueError(
                        f"{system}.whole[{metric!r}], seed {seed}: expected one finite value that is not also given "
                        f"per user, got {value!r}; leave out what was not measured"
                    )
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise ValueError(f"systems of one seed should be judged on the same users, at least one; got {lengths}")


def _plain(table: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that holds JSON values only; what JSON does not know becomes its text."""
    return json.loads(json.dumps(table, allow_nan=False, default=str))


def _names(results: Sequence[Mapping[str, SystemResult]]) -> list[str]:
    return list(dict.fromkeys(system for result in results for system in result))


def _users(pooled: Mapping[str, _Pooled]) -> int:
    return max((one.users for one in pooled.values()), default=0)


def _join(arrays: list[np.ndarray], same_users: bool) -> np.ndarray:
    if not same_users:
        return np.concatenate(arrays)
    if len({len(values) for values in arrays}) > 1:
        raise ValueError(f"same_users: the seeds judged {[len(values) for values in arrays]} users, not the same ones")
    return np.mean(arrays, axis=0)


def _pool(
    results: Sequence[Mapping[str, SystemResult]], seeds: Sequence[int], system: str, same_users: bool
) -> _Pooled:
    """A system's values over the seeds that have it; a metric counts only where every one of those seeds has it."""
    present = [(result[system], int(seed)) for result, seed in zip(results, seeds) if system in result]
    first = present[0][0]
    shared = [m for m in first.per_user if all(m in scored.per_user for scored, _ in present)]
    per_user = {m: _join([np.asarray(scored.per_user[m], float) for scored, _ in present], same_users) for m in shared}
    whole = {
        m: float(np.mean([scored.whole[m] for scored, _ in present]))
        for m in first.whole
        if all(m in scored.whole for scored, _ in present)
    }
    users = max((len(values) for values in per_user.values()), default=0)
    return _Pooled(per_user, whole, users, [seed for _, seed in present])


def _figures(pooled: Mapping[str, _Pooled]) -> dict[str, dict[str, float | None]]:
    """Every metric of every system, null where a system lacks it."""
    measured = {system: one.figures() for system, one in pooled.items()}
    metrics = dict.fromkeys(metric for figures in measured.values() for metric in figures)
    return {system: {metric: figures.get(metric) for metric in metrics} for system, figures in measured.items()}


def _differences(
    results: Sequence[Mapping[str, SystemResult]], seeds: Sequence[int], resamples: int, same_users: bool
) -> dict[str, dict[str, dict[str, float] | None]]:
    """``rl_minus_X`` for SFT, every other trained system, the reranker and the baselines, over seeds that have both."""
    compared = (RERANKED, "cooccurrence", "popularity")
    others = [s for s in _names(results) if s not in (MAIN, "sft") and (is_trained(s) or s in compared)]
    out: dict[str, dict[str, dict[str, float] | None]] = {}
    for other in ["sft", *others]:
        intervals: dict[str, dict[str, float] | None] = {}
        for metric in DIFFERENCES:
            pairs = [
                (result[MAIN].per_user[metric], result[other].per_user[metric])
                for result in results
                if all(s in result and metric in result[s].per_user for s in (MAIN, other))
            ]
            if not pairs:
                intervals[metric] = None
                continue
            ours, theirs = (_join([np.asarray(pair[i], float) for pair in pairs], same_users) for i in (0, 1))
            intervals[metric] = paired_bootstrap(ours, theirs, resamples, int(seeds[0]))
        out[f"{MAIN}_minus_{other}"] = intervals
    return out


def _percent_of_oracle(measured: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """``100 (x - random) / (oracle - random)`` of every system; null without both, or where they do not differ."""

    def percent(system: str, metric: str) -> float | None:
        value, low, high = (measured.get(name, {}).get(metric) for name in (system, "random", "oracle"))
        if value is None or low is None or high is None or high - low < 1e-12:
            return None
        return 100.0 * (value - low) / (high - low)

    return {system: {metric: percent(system, metric) for metric in PERCENT} for system in measured}


def _one_seed(result: Mapping[str, SystemResult], seed: int, resamples: int) -> dict[str, Any]:
    pooled = {system: _pool([result], [seed], system, False) for system in result}
    measured = _figures(pooled)
    return {
        "seed": int(seed),
        "n_users": _users(pooled),
        "systems": measured,
        "differences": _differences([result], [seed], resamples, False),
        "percent_of_oracle": _percent_of_oracle(measured),
    }


def _over_seeds(per_seed: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float] | None]]:
    """Mean, least and greatest of the seeds' own figures, of systems and differences; null where no seed has one."""
    values: dict[str, dict[str, list[float]]] = {}
    for seed in per_seed:
        means = {
            pair: {metric: interval and interval["mean"] for metric, interval in intervals.items()}
            for pair, intervals in seed["differences"].items()
        }
        for key, figures in {**seed["systems"], **means}.items():
            for metric, value in figures.items():
                values.setdefault(key, {}).setdefault(metric, []).extend([] if value is None else [value])
    return {
        key: {m: {"mean": float(np.mean(v)), "min": min(v), "max": max(v)} if v else None for m, v in figures.items()}
        for key, figures in values.items()
    }
