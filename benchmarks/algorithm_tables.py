"""The tables of ``docs/algorithms.md``, made from the stored results and never typed by hand.

    python -c "from sidgym.benchmarks.algorithm_tables import results; print(results())"

Left out: the README's (``tables``).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sidgym.benchmarks.script import processors
from sidgym.benchmarks.tables import RESULTS

TRAINING = {
    "eval/reward": "reward",
    "kl/k2": "KL (k2)",
    "entropy": "entropy",
    "rollout/unique_items": "unique items",
    "grad_norm": "gradient norm",
    "ratio_max": "largest ratio",
    "rollouts": "groups drawn",
}
"""Figures of a run's log and how the tables call them."""


def results() -> str:
    """The part of ``docs/algorithms.md`` that quotes results."""
    toy, real = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("objectives", "objectives_scientific"))
    return "\n\n".join(
        [
            f"**The simulated store** (`python benchmarks/objectives.py --seeds {len(toy['seeds'])}`: "
            f"`{toy['command']}`; {_setting(toy)}). % oracle@k: true preference of the first k items, on the way from "
            "random to the oracle.",
            table(toy, ("ndcg@10",), ("preference@1", "preference@10")),
            "**Amazon Industrial & Scientific** (`python benchmarks/objectives_scientific.py --data-path DATA`: "
            f"`{real['command']}`; {_setting(real)}). Nobody knows an oracle there.",
            table(real, ("ndcg@10", "hr@10"), ()),
        ]
    )


def table(result: Mapping[str, Any], metrics: Sequence[str], percents: Sequence[str]) -> str:
    """Markdown, an objective a line: means over seeds, and the range of the seeds' figures for ``metrics`` and
    ``percents`` (of the oracle)."""
    heads = (
        [metric.upper() for metric in metrics]
        + [f"% oracle@{name.rpartition('@')[2]}" for name in percents]
        + list(TRAINING.values())
    )
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for arm, name in arms(result).items():
        judged = [[seed["systems"][arm][metric] for seed in result["per_seed"]] for metric in metrics]
        judged += [[seed["percent_of_oracle"][arm][metric] for seed in result["per_seed"]] for metric in percents]
        digits = [4] * len(metrics) + [1] * len(percents)
        cells = [_range(values, places) for values, places in zip(judged, digits, strict=True)]
        logged = result["training"].get(_folder(arm), {})
        cells += [f"{np.mean(logged[figure]):.3g}" if figure in logged else "–" for figure in TRAINING]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arms(result: Mapping[str, Any]) -> dict[str, str]:
    """System -> how it is called, SFT first, the run's own arm (``grpo``) second."""
    known = {"sft": "SFT, where all start", "rl": "`grpo`"}
    trained = [folder.removeprefix("rl_") for folder in result["training"] if folder != "rl"]
    return known | {arm: f"`{arm}`" for arm in trained}


def _setting(result: Mapping[str, Any]) -> str:
    machine = result["environment"]
    return (
        f"{result['n_users']:,} test users, {len(result['seeds'])} seeds; "
        f"{processors(machine['cpu_count'], machine['machine'])}"
    )


def _folder(arm: str) -> str:
    return arm if arm == "rl" else f"rl_{arm}"


def _range(values: Sequence[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"
