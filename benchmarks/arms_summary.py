"""What a contest of arms came to: figures of each, all pairs tested, segments, curves, costs; JSON values only.

An arm is a policy trained by RL; it stands beside the SFT policy that all arms start from, and beside references that
are not trained. Each is judged on the same test users of every seed, and all figures are over the seeds that all of
them have, since seeds lie further apart than arms. The summary holds all that tables, words and the report need. Left
out: training and reading runs (``launch.bench_runs``), and telling it (``arms_words``).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sidgym.agents.audit import FIRED
from sidgym.benchmarks.arms_curves import Log, curves, largest, targets, values_of
from sidgym.benchmarks.comparisons import compare, holm, interval, mean_of, over_seeds, users_interval
from sidgym.benchmarks.summary import BASELINES, CEILINGS
from sidgym.envs.segments import Bands

SCHEMA_VERSION = 1
START = "sft"
CONTROL = "nll_only"
"""The same contexts and steps with the likelihood of the targets alone."""
LAST = 10
"""Iterations at the end of training over which its figures are averaged."""
LEAST_USERS = 20
"""Users of a segment, all seeds together, below which nothing is said of it."""
JUDGED = ("preference@10", "preference@1", "ndcg@10", "hr@10", "popular@10", "tail@10", "div")
"""Metrics a user that are told with an interval; all lie between 0 and 1."""
TESTED = ("preference@10", "ndcg@10")
REFERENCES = (*BASELINES, *CEILINGS)
WHOLE = {"har": "har", "coverage@10": "coverage@10"}
TRAINED = {
    "kl": "kl/k2",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "unique_items": "rollout/unique_items",
    "no_signal": "frac_reward_zero_std",
}
"""Figures of the last iterations and what the log calls them."""
COSTS = ("seconds", "steps", "rollouts", "updates", "flops")


@dataclass(frozen=True)
class Trial:
    """One system of one seed."""

    system: str
    seed: int
    per_user: dict[str, np.ndarray]  # metric -> (U,), the users of a seed in one order for all systems
    whole: dict[str, float] = field(default_factory=dict)  # metrics of the whole list
    bands: dict[str, Bands] = field(default_factory=dict)  # segmentation -> band of each user
    log: Log = ()  # rows of metrics.jsonl; () for what was not trained by RL
    cost: dict[str, float | None] = field(default_factory=dict)  # of the whole training, by name in COSTS


def summarise_arms(
    trials: Sequence[Trial],
    metric: str = "",
    target: float | None = None,
    same_users: bool = False,
    bootstrap: int = 2000,
) -> dict[str, Any]:
    """The summary's figures.

    ``metric`` decides what is best: empty takes the true preference where it is known, else NDCG@10. ``target``:
    NDCG@10 on validation users that costs are told for; None chooses one (``arms_curves.targets``). ``same_users``: all
    seeds judged the same test users.

    ``fewer`` in it names the systems that lack seeds which others have, and these seeds. Raises ``ValueError`` without
    a trial of SFT, and for a metric that was not measured.
    """
    systems = _by_system(trials)
    if START not in systems:
        raise ValueError(f"expected trials of {START!r}, where all arms start, got {list(systems)}")
    seeds, fewer = _shared_seeds({name: found for name, found in systems.items() if name not in REFERENCES})
    systems = _by_system([trial for trial in trials if trial.seed in seeds])
    systems = {name: found for name, found in systems.items() if name in REFERENCES or len(found) == len(seeds)}
    references = [name for name in REFERENCES if name in systems]
    compared = [name for name in systems if name not in references]
    known = set(systems[START][0].per_user)
    metric = metric or next(name for name in TESTED if name in known)
    if metric not in known:
        raise ValueError(f"metric {metric!r} was not measured; known: {', '.join(sorted(known))}")
    tested = list(dict.fromkeys([metric, *(name for name in TESTED if name in known)]))
    judged = dict.fromkeys([*JUDGED, metric])
    objectives = {name: _figures(systems[name], judged, same_users) for name in compared}
    _add_start(objectives[START], [systems[name] for name in compared if name != START])
    standing = {name: _means(systems[name]) for name in references}
    _add_percent({**objectives, **standing}, systems)
    logs = {name: [trial.log for trial in systems[name]] for name in compared if systems[name][0].log}
    costs = {name: {key: objectives[name][key] for key in COSTS} for name in logs}
    return {
        "schema_version": SCHEMA_VERSION,
        "seeds": seeds,
        "fewer": fewer,
        "n_users": count_users(systems[START], same_users),
        "same_users": same_users,
        "metric": metric,
        "objectives": objectives,
        "references": standing,
        "pairs": [pair for name in tested for pair in _pairs(systems, compared, name, same_users, bootstrap)],
        "segments": _segments(systems, compared, metric, same_users),
        "targets": targets(logs, costs, target),
        "hacking": {name: _hacking(seeds) for name, seeds in logs.items()},
        "contexts_equal": _contexts_equal({name: systems[name] for name in logs}),
        "curves": _rounded(curves(logs)),
    }


def count_users(trials: Sequence[Trial], same_users: bool) -> int:
    """Test users that a system's trials were judged on, each counted once; ``same_users``: all seeds have the same."""
    counts = [len(next(iter(trial.per_user.values()))) for trial in trials]
    return counts[0] if same_users else sum(counts)


def _shared_seeds(systems: Mapping[str, Sequence[Trial]]) -> tuple[list[int], dict[str, list[int]]]:
    """The seeds that all systems have, and the seeds that some system lacks while others have them.

    Where no seed is in all, the arms with the fewest do not count, as many of them as it takes.
    """
    owned = {name: {trial.seed for trial in trials} for name, trials in systems.items()}
    every = set.union(*owned.values())
    fewer = {name: sorted(every - seeds) for name, seeds in owned.items() if every - seeds}
    while not (shared := set.intersection(*owned.values())):
        owned.pop(min((name for name in owned if name != START), key=lambda name: len(owned[name])))
    return sorted(shared), fewer


def _by_system(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """System -> its trials in the order of their seeds; the start first, then the control, then as they come."""
    names = list(dict.fromkeys(trial.system for trial in trials))
    names.sort(key=lambda name: (name != START, name != CONTROL))
    return {
        name: sorted((trial for trial in trials if trial.system == name), key=lambda trial: trial.seed)
        for name in names
    }


def _values(trials: Sequence[Trial], metric: str) -> dict[int, np.ndarray]:
    return {trial.seed: trial.per_user[metric] for trial in trials if metric in trial.per_user}


def _means(trials: Sequence[Trial]) -> dict[str, Any]:
    """Means of what every seed has."""
    shared = [name for name in trials[0].per_user if all(name in trial.per_user for trial in trials)]
    return {name: mean_of(_values(trials, name)) for name in shared}


def _figures(trials: Sequence[Trial], judged: Iterable[str], same_users: bool) -> dict[str, Any]:
    """One system: intervals over users and seeds, whole-list figures, the end of its training, its costs."""
    out: dict[str, Any] = {"seeds": [trial.seed for trial in trials]}
    for metric in judged:
        if values := _values(trials, metric):
            told = interval(values, same_users)
            out[metric] = {key: float(np.clip(told[key], 0.0, 1.0)) for key in ("mean", "low", "high")}
    for name, key in WHOLE.items():
        out[name] = _mean([trial.whole.get(key) for trial in trials])
    legal = _mean([trial.whole.get("trie/legal_mass") for trial in trials])
    out["illegal_mass"] = None if legal is None else 1.0 - legal
    out["reward"] = _mean([_last(trial.log, "eval/reward", 1) for trial in trials])
    for name, key in TRAINED.items():
        out[name] = _mean([_last(trial.log, key, LAST) for trial in trials])
    ratios = [ratio for trial in trials if (ratio := largest(trial.log, "ratio_max")) is not None]
    out["ratio_max"] = max(ratios, default=None)
    out["grad_norm_cv"] = _mean([_spread(trial.log) for trial in trials])
    out["refused"] = sum(float(values_of(trial.log, "updates_refused")[1].sum()) for trial in trials)
    return out | {name: _mean([trial.cost.get(name) for trial in trials]) for name in COSTS}


def _last(log: Log, key: str, count: int) -> float | None:
    values = values_of(log, key)[1][-count:]
    return float(values.mean()) if len(values) else None


def _spread(log: Log) -> float | None:
    """Standard deviation of the gradient's norm over its mean, in the second half of training: how unsteady it is."""
    values = values_of(log, "grad_norm")[1]
    values = values[len(values) // 2 :]
    return float(values.std() / values.mean()) if len(values) > 1 and values.mean() > 0 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _add_start(start: dict[str, Any], arms: Sequence[Sequence[Trial]]) -> None:
    """What arms validated before their first step is SFT's; so is no distance from it."""
    start["kl"] = 0.0
    for trials in arms:
        before = [values_of(trial.log, "eval/reward")[1][:1].tolist() for trial in trials]
        if before and all(before):
            start["reward"] = float(np.mean(before))
            return


def _add_percent(told: Mapping[str, dict[str, Any]], systems: Mapping[str, Sequence[Trial]]) -> None:
    """``pct_oracle``: true preference of the top 10 on the way from random (0) to the oracle (100), over the seeds that
    the system has; null where no oracle is known."""
    scale = {name: _values(systems.get(name, ()), "preference@10") for name in ("random", "oracle")}
    for name, figures in told.items():
        values = _values(systems[name], "preference@10")
        seeds = [seed for seed in values if all(seed in known for known in scale.values())]
        figures["pct_oracle"] = None
        if seeds:
            ours, low, high = (
                mean_of({seed: part[seed] for seed in seeds}) for part in (values, scale["random"], scale["oracle"])
            )
            figures["pct_oracle"] = 100.0 * (ours - low) / (high - low) if high > low else None


def _pairs(
    systems: Mapping[str, Sequence[Trial]], compared: Sequence[str], metric: str, same_users: bool, bootstrap: int
) -> list[dict[str, Any]]:
    """All pairs on one metric; in each the arm stands before the control and the start."""
    ordered = [
        *(name for name in compared if name not in (START, CONTROL)),
        *(n for n in (CONTROL, START) if n in compared),
    ]
    return compare({name: _values(systems[name], metric) for name in ordered}, metric, same_users, bootstrap)


def _segments(
    systems: Mapping[str, Sequence[Trial]], compared: Sequence[str], metric: str, same_users: bool
) -> list[dict[str, Any]]:
    """Difference of each arm to SFT in each band of users: ``{"segment", "band", "users", "start", "arms": {arm:
    {"mean", "low", "high", "p_holm", "agree"}}}``.

    Intervals and tests are over users alone, for these very trainings, and all cells are one family for Holm; ``agree``
    says whether every seed's difference has the sign of the mean.
    """
    start = {trial.seed: trial for trial in systems[START]}
    first = systems[START][0].bands
    rows: list[dict[str, Any]] = []
    for segment, bands in first.items():
        for number, band in enumerate(bands.names):
            inside = {seed: trial.bands[segment].band == number for seed, trial in start.items()}
            inside = {seed: rows_ for seed, rows_ in inside.items() if rows_.sum() >= 2}
            users = sum(int(rows_.sum()) for rows_ in inside.values())
            if users < LEAST_USERS:
                continue
            row: dict[str, Any] = {"segment": segment, "band": band, "users": users, "arms": {}}
            row["start"] = mean_of({s: start[s].per_user[metric][r] for s, r in inside.items()})
            for arm in compared:
                trials = {trial.seed: trial for trial in systems[arm] if trial.seed in inside}
                if arm == START or not trials:
                    continue
                difference = {s: (t.per_user[metric] - start[s].per_user[metric])[inside[s]] for s, t in trials.items()}
                cell = row["arms"][arm] = users_interval(difference, same_users)
                cell["agree"] = len({bool(part.mean() > 0) for part in difference.values()}) == 1
            rows.append(row)
    cells = [cell for row in rows for cell in row["arms"].values()]
    for cell, corrected in zip(cells, holm([cell.pop("p") for cell in cells])):
        cell["p_holm"] = corrected
    return rows


def _hacking(logs: Sequence[Log]) -> dict[str, Any]:
    """From the first validation to the last: change of the reward and of NDCG@10 over seeds, and in how many seeds the
    audit warned."""
    out: dict[str, Any] = {}
    for name, key in (("reward", "eval/reward"), ("ndcg@10", "eval/ndcg@10")):
        values = [values_of(log, key)[1] for log in logs]
        moved = [float(part[-1] - part[0]) for part in values if len(part) > 1]
        told = over_seeds(moved) if moved else None
        out[name] = told and {key: told[key] for key in ("mean", "low", "high")}
    out["warned"] = sum(any(row.get(FIRED) for row in log) for log in logs)
    return out


def _contexts_equal(arms: Mapping[str, Sequence[Trial]]) -> dict[str, bool]:
    """Arm -> whether it learned from the contexts that most arms learned from, in the same order, in every seed."""
    seen: dict[int, dict[str, tuple[float, ...]]] = {}
    for arm, trials in arms.items():
        for trial in trials:
            seen.setdefault(trial.seed, {})[arm] = tuple(values_of(trial.log, "contexts/checksum")[1])
    equal = dict.fromkeys(arms, True)
    for found in seen.values():
        every = list(found.values())
        usual = max(every, key=every.count)
        for arm, contexts in found.items():
            equal[arm] &= contexts == usual
    return equal


def _rounded(value: Any) -> Any:
    """The same with five significant digits: curves are to be looked at."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
