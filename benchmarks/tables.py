"""The README's tables, made from the stored results and never typed by hand.

    python -c "from sidgym.benchmarks.tables import readme; print(readme())"

Left out: anything that is not in a stored summary.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"

NAMES = {
    "popularity": "popularity",
    "cooccurrence": "last-item co-occurrence",
    "sft_all": "SFT on all contexts",
    "sft": "SFT",
    "nll_only": "SFT + NLL only, same contexts and steps",
    "rule_rank": "SFT + GRPO, rule + rank",
    "rl": "**SFT + GRPO**",
    "sft_reranked": "SFT's top 50 reranked by the reward",
    "oracle": "oracle (Bayes, knows the history)",
    "bound": "bound (knows the taste, too)",
}
"""Systems of the tables, in their order."""

DEMO = ("hr@10", "ndcg@10", "preference@1", "preference@10", "percent@1", "percent@10")
AMAZON = ("hr@1", "hr@5", "hr@10", "hr@50", "ndcg@5", "ndcg@10", "ndcg@50")


def table(result: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """Markdown table of one stored result: means over users and seeds; with several seeds the range of their means."""
    lines = ["| | " + " | ".join(_head(metric) for metric in metrics) + " |", "|---|" + "---|" * len(metrics)]
    for system, name in NAMES.items():
        if system in result["systems"]:
            cells = [_cell(result, system, metric) for metric in metrics]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(result: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """One line a comparison of RL with another arm, 95 % intervals over users."""
    lines = []
    for other in ("sft", "nll_only", "sft_reranked"):
        figures = result.get(f"rl_minus_{other}") or {}
        said = [
            f"{_head(metric)} {_interval(figures[metric])}" for metric in metrics if figures.get(metric) is not None
        ]
        if said:
            lines.append(f"- GRPO minus {NAMES[other].replace('*', '')}: " + "; ".join(said))
    return "\n".join(lines)


def readme() -> str:
    """The part of the README that quotes results."""
    demo, amazon = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("demo", "amazon_scientific"))
    parts = [
        f"**The demonstration** (`{demo['command']}`; {_setting(demo)}). Logs come from a popularity-biased "
        "recommender and the true preference is known. The preference reward is learned from the same logs. Range over "
        "seeds in brackets; % of the way from random to the oracle, which knows the history but not the taste:",
        table(demo, DEMO),
        differences(demo, ("preference@1", "preference@10", "ndcg@10")),
        f"**Amazon Industrial & Scientific**, leave-one-out (`{amazon['command']}`; {_setting(amazon)}). Not "
        "comparable with MiniOneRec's table: other items, another split.",
        table(amazon, AMAZON),
        differences(amazon, ("ndcg@10",)),
    ]
    return "\n\n".join(part for part in parts if part)


def _setting(result: Mapping[str, Any]) -> str:
    machine = result["environment"]
    seeds = len(result["seeds"])
    return (
        f"{result['n_users']:,} test users, {seeds} seed{'s' if seeds > 1 else ''}; {machine['cpu_count']} CPU cores "
        f"({machine['machine']}), one thread a process, {result['wall_seconds'] / 60:.0f} minutes, at most "
        f"{result['peak_memory_gib']:.1f} GiB"
    )


SHORT = {"preference@1": "pref@1", "preference@10": "pref@10", "percent@1": "% oracle@1", "percent@10": "% oracle@10"}


def _head(metric: str) -> str:
    return SHORT.get(metric, metric.upper())


def _cell(result: Mapping[str, Any], system: str, metric: str) -> str:
    if metric.startswith("percent@"):
        value = result["percent_of_oracle"].get(system, {}).get(metric.replace("percent", "preference"))
        return "–" if value is None else f"{value:.1f}"
    value = result["systems"][system].get(metric)
    if value is None:
        return "–"
    spread = result["over_seeds"][system][metric] if len(result["seeds"]) > 1 else None
    digits = 3 if metric.startswith("preference") else 4
    around = f" [{spread['min']:.{digits}f}, {spread['max']:.{digits}f}]" if spread else ""
    return f"{value:.{digits}f}{around}"


def _interval(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:+.4f} [{figure['low']:+.4f}, {figure['high']:+.4f}]"
