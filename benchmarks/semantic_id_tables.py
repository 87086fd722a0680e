"""The tables of ``docs/semantic_ids.md``, made from the stored results and never typed by hand.

    python -c "from sidgym.benchmarks.semantic_id_tables import results; print(results())"

Left out: the README's (``tables``) and those of the objectives (``algorithm_tables``).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sidgym.benchmarks.semantic_id_arms import BASE
from sidgym.benchmarks.tables import RESULTS

HEADS = (
    "codes",
    "distortion",
    "in collision",
    "perplexity by level",
    "category",
    "together",
    "fit, CPU s",
    "NDCG@10",
    f"against `{BASE}`",
)
COSTS = {
    "build": "build from the codes",
    "restrict": "a new mask of half of the items",
    "toggle_10k": "10,000 items come or go in stock",
    "add_10k": "10,000 new items",
    "remove_10k": "10,000 items gone for good",
    "mmap_open": "open the file",
}
"""Figures of the trie's benchmark and what they are called."""

TITLES = {"simulator": "The simulated store", "scientific": "Amazon Industrial & Scientific"}


def results() -> str:
    """The part of ``docs/semantic_ids.md`` that quotes results: a table for each store."""
    result = json.loads((RESULTS / "semantic_ids.json").read_text())
    parts = []
    for name, store in result["stores"].items():
        parts += [_title(name, store, result), table(store)]
    return "\n\n".join(parts)


def table(store: Mapping[str, Any]) -> str:
    """Markdown, an arm a line: means over the seeds, for NDCG@10 with the range of the seeds' means."""
    lines = ["| " + " | ".join(("", *HEADS)).strip() + " |", "|---|" + "---|" * len(HEADS)]
    for name, arm in store["arms"].items():
        lines.append(f"| {name} | " + " | ".join(_cells(name, arm)) + " |")
    return "\n".join(lines)


def trie() -> str:
    """The part that quotes the trie's benchmark: a beam step by contender, and what the trie costs in lexsorts."""
    result = json.loads((RESULTS / "trie.json").read_text())
    step, figures = result["beam_step"], result["figures"]
    lines = ["| a beam step | ms by level | times the trie's | bytes an item |", "|---|---|---|---|"]
    for name, by_level in step["ms_by_level"].items():
        shown = " / ".join(f"{value:.2f}" for value in by_level)
        size = (
            f"{step['dense_mask_in_full_bytes'] / result['items']:,.0f}"
            if name == "dense_mask"
            else f"{step['bytes_per_item'][name]:.1f}"
        )
        lines.append(f"| {name.replace('_', ' ')} | {shown} | {step['ratio'][name]:.2f} | {size} |")
    lines += ["", "| the trie | lexsorts | ms |", "|---|---|---|"]
    for name, what in COSTS.items():
        lines.append(f"| {what} | {figures[f'{name}_vs_lexsort']:.4f} | {1e3 * figures[f'{name}_s']:.1f} |")
    return "\n".join(lines)


def _title(name: str, store: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    settings, one = store["settings"], store["arms"][BASE]["per_seed"][0]
    return (
        f"**{TITLES[name]}**: {one['items']:,} items, K = {settings['codes']}, L = {settings['levels']}, "
        f"{one['test_users']:,} test users a seed, {len(result['seeds'])} seeds, {settings['sft']['epochs']} epochs of "
        f"SFT; {result['machine']}."
    )


def _cells(name: str, arm: Mapping[str, Any]) -> list[str]:
    seeds = arm["per_seed"]
    levels = len(seeds[0]["sizes"])
    difference = arm[f"ndcg@10_vs_{BASE}"]
    fit = np.mean([seed["fit_cpu_s"] + seed.get("align_cpu_s", 0.0) for seed in seeds])
    category = [seed["category"]["share"] for seed in seeds if seed["category"]]
    return [
        str(levels),
        _mean([seed["distortion"] for seed in seeds], ".3f"),
        _mean([seed["colliding_items"] for seed in seeds], ",.0f"),
        " / ".join(f"{value:.0f}" for value in np.mean([seed["perplexity"] for seed in seeds], axis=0)),
        f"{100 * np.mean(category):.0f} %" if category else "–",
        f"{100 * np.mean([seed['together']['share'] for seed in seeds]):.1f} %",
        f"{fit:.1f}",
        _range([seed["ndcg@10"] for seed in seeds]),
        "" if name == BASE else f"{difference['mean']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]",
    ]


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return format(float(np.mean(known)), form) if known else "–"


def _range(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f} ({min(values):.4f}–{max(values):.4f})"
