"""Systems judged on the same users over seeds, where no arm is trained from a common start: figures, and all pairs.

What ``arms_summary`` is for contests of RL arms, this is for models of different sizes and for policies that come from
elsewhere. Left out: where the figures come from, and what is said of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sidgym.benchmarks.arms_seeds import by_seed
from sidgym.benchmarks.arms_summary import Trial, count_users
from sidgym.benchmarks.arms_tables import figure_cell, grid, interval_cell
from sidgym.benchmarks.arms_words import metric_name, p_value, scope_of
from sidgym.benchmarks.comparisons import compare, interval, mean_of, shown

SCHEMA_VERSION = 1
UNBOUNDED = ("loss", "nll")
"""Metrics that may be above 1."""


def summarise_systems(
    trials: Sequence[Trial],
    metrics: Sequence[str],
    tested: Sequence[str],
    references: Sequence[str] = (),
    same_users: bool = False,
    bootstrap: int = 2000,
) -> dict[str, Any]:
    """``{"schema_version", "seeds", "n_users", "same_users", "systems", "references", "pairs", "by_seed"}``.

    ``systems``: name -> ``{"seeds", metric: {"mean", "low", "high"}, "seconds"}`` for those of ``metrics`` that were
    measured, with 95 % intervals over users and seeds; the systems in ``references`` have means alone and are tested
    against nothing. ``pairs``: ``compare`` on each of ``tested``. Raises ``ValueError`` without a trial.
    """
    if not trials:
        raise ValueError("expected at least one trial")
    names = list(dict.fromkeys(trial.system for trial in trials))
    own = {name: sorted((t for t in trials if t.system == name), key=lambda t: t.seed) for name in names}
    values = {
        metric: {
            name: {t.seed: t.per_user[metric] for t in found if metric in t.per_user} for name, found in own.items()
        }
        for metric in dict.fromkeys([*metrics, *tested])
    }
    compared = [name for name in names if name not in references]
    systems: dict[str, dict[str, Any]] = {}
    for name in compared:
        known = {metric: values[metric][name] for metric in metrics if values[metric][name]}
        told = {metric: interval(parts, same_users) for metric, parts in known.items()}
        figures = {metric: _within(one, metric) for metric, one in told.items()}
        seconds = [t.cost["seconds"] for t in own[name] if t.cost.get("seconds") is not None]
        whole = {"seconds": sum(seconds) / len(seconds) if seconds else None}  # type: ignore[arg-type]
        systems[name] = {"seeds": [trial.seed for trial in own[name]], **figures, **whole}
    pairs = []
    for metric in tested:
        known = {name: values[metric][name] for name in compared if values[metric][name]}
        pairs += compare(known, metric, same_users, bootstrap)
    return {
        "schema_version": SCHEMA_VERSION,
        "seeds": sorted({trial.seed for trial in trials}),
        "n_users": count_users(own[compared[0]], same_users),
        "same_users": same_users,
        "systems": systems,
        "references": {
            name: {metric: mean_of(values[metric][name]) for metric in metrics if values[metric][name]}
            for name in names
            if name in references
        },
        "pairs": pairs,
        "by_seed": by_seed(trials),
    }


def _within(told: Mapping[str, float], metric: str) -> dict[str, float]:
    """Mean and interval, inside what the metric can be: losses are at least 0, all others also at most 1."""
    most = np.inf if metric in UNBOUNDED else 1.0
    return {end: float(np.clip(told[end], 0.0, most)) for end in ("mean", "low", "high")}


def systems_table(summary: Mapping[str, Any], metrics: Sequence[str], more: Mapping[str, str] | None = None) -> str:
    """Markdown, a system a line, references below; ``more`` names further figures of the systems and their heads."""
    rows = {**summary["systems"], **summary["references"]}
    kept = [metric for metric in metrics if any(metric in figures for figures in rows.values())]
    heads = [*(more or {}).values(), *(metric_name(metric) for metric in kept)]
    cells = {}
    for name, figures in rows.items():
        first = [f"{figures[key]:,.0f}" if figures.get(key) is not None else "–" for key in more or {}]
        cells[name] = [*first, *(figure_cell(figures.get(metric)) for metric in kept)]
    return grid(heads, cells)


def pairs_table(summary: Mapping[str, Any]) -> str:
    """Markdown, a pair a line."""
    rows = {}
    for pair in summary["pairs"]:
        text = interval_cell(pair)
        key = f"{pair['a']} − {pair['b']}, {metric_name(pair['metric'])}"
        rows[key] = [f"**{text}**" if shown(pair) else text, p_value(pair["p_holm"])]
    return grid(["difference", "p (Holm)"], rows)


def pair_words(pair: Mapping[str, Any]) -> str:
    """A comparison as a sentence that says no more than the test does."""
    what = metric_name(pair["metric"])
    text = f"{pair['mean']:+.4f} ({pair['low']:+.4f} to {pair['high']:+.4f}, corrected p {p_value(pair['p_holm'])})"
    scope = scope_of(len(pair["seeds"]))
    said = {1: f"is shown{scope} to be above", -1: f"is shown{scope} to be below", 0: "is not shown to differ from"}
    return f"{pair['a']} {said[shown(pair)]} {pair['b']} in {what}: {text.replace('-', '−')}."
