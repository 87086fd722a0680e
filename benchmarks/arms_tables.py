"""A contest of arms as Markdown: the verdict, the table of results, pairs, costs, budgets, where each arm fails.

Left out: the page (``launch.bench_report``) and the figures themselves (``arms_summary``).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidgym.benchmarks.arms_summary import CONTROL, START
from sidgym.benchmarks.arms_words import arms_of, failures, metric_name, name_of, p_value, spread_of, verdict
from sidgym.benchmarks.comparisons import shown

Summary = Mapping[str, Any]
NONE = "–"


@dataclass(frozen=True)
class Column:
    """One column: what it is called, which figure it shows, and how."""

    head: str
    key: str
    digits: int = 3
    text: str = ""  # what it means

    def cell(self, figures: Mapping[str, Any]) -> str:
        """The figure as text; see ``figure_cell``."""
        return figure_cell(figures.get(self.key), self.digits)


def figure_cell(value: Any, digits: int = 4) -> str:
    """A figure as text: a number, or a ``mean`` with its interval where it has one."""
    if value is None:
        return NONE
    ends = ""
    if isinstance(value, Mapping):
        ends = f" [{value['low']:.{digits}f}, {value['high']:.{digits}f}]" if "low" in value else ""
        value = value["mean"]
    return f"{value:.{digits}f}{ends}".replace("-", "−")


RESULTS = (
    Column("NDCG@10", "ndcg@10", 4, "of the item that came next"),
    Column("HR@10", "hr@10", 4),
    Column("pref@10", "preference@10", 3, "true preference of the top 10"),
    Column("% oracle", "pct_oracle", 1, "true preference of the top 10 on the way from random to the oracle"),
    Column("reward", "reward", 3, "of the top 10 on validation users, by the reward that the arm learned from"),
    Column("KL", "kl", 3, "k2 of a code to the start, last ten iterations"),
    Column("entropy", "entropy", 2, "nats a SID, last ten iterations"),
    Column("seconds", "seconds", 0, "of training a seed; SFT's own for SFT"),
)
BEHAVIOUR = (
    Column(
        "illegal mass", "illegal_mass", 3,
        "probability that leaves the catalogue without the trie along the target's codes, of the first 256 test users",
    ),
    Column("HaR", "har", 3, "share of candidates outside the catalogue without the trie, of these users"),
    Column("coverage@10", "coverage@10", 3, "share of the catalogue in anyone's top 10"),
    Column("popular@10", "popular@10", 3, "share of the top 10 in the head of the catalogue"),
    Column("tail@10", "tail@10", 3, "share of the top 10 in its long tail"),
    Column("distinct", "unique_items", 1, "items in a rollout's group"),
    Column("no signal", "no_signal", 2, "share of groups whose rewards are all equal"),
    Column("grad norm", "grad_norm", 2, "before clipping, last ten iterations"),
    Column("its spread", "grad_norm_cv", 2, "standard deviation over mean, second half of training"),
    Column("max ratio", "ratio_max", 1, "largest importance ratio of all iterations and seeds"),
)  # fmt: skip
BUDGET = (
    Column("rollouts", "rollouts", 0, "candidates drawn a seed"),
    Column("updates", "updates", 0, "optimiser steps"),
    Column("FLOPs", "flops", 0, "estimated operations of training"),
    Column("seconds", "seconds", 0),
)


def result_columns(summary: Summary) -> Sequence[Column]:
    """The main table's columns, what decides among them."""
    metric = summary["metric"]
    return RESULTS if metric in [column.key for column in RESULTS] else (Column(metric, metric, 4), *RESULTS)


def present(columns: Sequence[Column], rows: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    """The columns that at least one row has a figure for."""
    return [column for column in columns if any(row.get(column.key) is not None for row in rows.values())]


def systems_of(summary: Summary) -> list[str]:
    """SFT, the control, then the arms, best first."""
    return [*(name for name in (START, CONTROL) if name in summary["objectives"]), *arms_of(summary)]


def markdown(summary: Summary) -> str:
    """The whole report as Markdown."""
    parts = [
        f"# {summary.get('title', 'Policy-gradient variants')}",
        f"`{summary['command']}`",
        "\n".join(f"- {text}" for text in [*(text for _, text in verdict(summary)), *missing(summary)]),
        "## Results",
        results(summary),
        f"Means over test users, 95 % intervals over {spread_of(summary)}. {meanings(result_columns(summary))}",
        "## Pairs",
        pairs(summary),
        f"Mean difference of the row to SFT and to the control, 95 % interval over {spread_of(summary)}, Holm's p over "
        "all pairs of the metric. Every pair stands in `summary.json`.",
        "## Behaviour",
        _table(BEHAVIOUR, summary),
        meanings(BEHAVIOUR),
        "## Cost",
        budgets(summary),
        *cost(summary),
        "## Where each fails",
        "\n".join(f"- {name_of(arm)}: {'; '.join(said)}." for arm, said in failures(summary).items()),
        *(["## Notes", "\n".join(f"- {note}" for note in notes)] if (notes := summary.get("notes")) else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def missing(summary: Summary) -> list[str]:
    """A sentence for each trial that was asked for and is not there."""
    return [f"Missing: {text} is not finished." for text in summary.get("failed", ())]


def meanings(columns: Sequence[Column]) -> str:
    """What the heads mean, in one line."""
    return " ".join(f"{column.head}: {column.text}." for column in columns if column.text)


def results(summary: Summary) -> str:
    """The main table, references below."""
    return _table(result_columns(summary), summary, {name_of(k): v for k, v in summary["references"].items()})


def _table(columns: Sequence[Column], summary: Summary, more: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    rows = {name_of(name): summary["objectives"][name] for name in systems_of(summary)} | dict(more or {})
    kept = present(columns, rows)
    return grid([c.head for c in kept], {name: [c.cell(figures) for c in kept] for name, figures in rows.items()})


def grid(heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table with a line a row."""
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items())])


def pairs(summary: Summary) -> str:
    """Each arm against SFT and the control on every metric that was tested."""
    metrics = list(dict.fromkeys(pair["metric"] for pair in summary["pairs"]))
    found = {(p["a"], p["b"], p["metric"]): p for p in summary["pairs"]}
    others = [name for name in (START, CONTROL) if name in summary["objectives"]]
    heads = [f"{metric_name(metric)} − {name_of(other)}" for metric in metrics for other in others]
    rows = {}
    for arm in [*arms_of(summary), *(name for name in (CONTROL,) if name in others)]:
        keys = [(arm, other, metric) for metric in metrics for other in others]
        rows[name_of(arm)] = [pair_cell(found[key]) if key in found else NONE for key in keys]
    return grid(heads, rows)


def pair_cell(pair: Mapping[str, Any]) -> str:
    """A difference as text, bold where it is shown."""
    text = interval_cell(pair)
    return f"{f'**{text}**' if shown(pair) else text}, p {p_value(pair['p_holm'])}"


def interval_cell(pair: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    return f"{pair['mean']:+.4f} [{pair['low']:+.4f}, {pair['high']:+.4f}]".replace("-", "−")


def budgets(summary: Summary) -> str:
    """What each arm spent, and whether it saw the same contexts in the same order."""
    rows = {name: summary["objectives"][name] for name in systems_of(summary) if name != START}
    kept = present(BUDGET, rows)
    cells = {name_of(name): [spent(column, figures) for column in kept] for name, figures in rows.items()}
    for name in rows:
        cells[name_of(name)].append("yes" if summary["contexts_equal"].get(name) else "no")
    return grid([*(column.head for column in kept), "same contexts, same order"], cells)


def spent(column: Column, figures: Mapping[str, Any]) -> str:
    """A cost as text."""
    value = figures.get(column.key)
    if value is None:
        return NONE
    return f"{value:.2e}" if column.key == "flops" else f"{value:,.0f}"


def cost(summary: Summary) -> Iterator[str]:
    """A table a target: what each arm spent until it validated there."""
    for key, target in summary["targets"].items():
        yield target_words(key, target)
        if target["value"] is not None:
            yield grid(["seeds", "step", "rollouts", "FLOPs", "seconds"], dict(target_rows(target)))


def target_words(key: str, target: Mapping[str, Any]) -> str:
    """What is to be reached, in words."""
    what, start = metric_name(key.removeprefix("eval/")), f"{target['start']:.4f}"
    if target["value"] is None:
        return f"Validation {what}: no arm is shown to rise above its start ({start}), so there is no cost to tell."
    if target["gain"] is None:
        return f"Cost to reach a validation {what} of {target['value']:.4f}, from {start} at the start."
    return (
        f"Cost to raise validation {what} by {target['gain']:.4f}, half of an arm's largest gain, above each seed's "
        f"own start ({start} in the mean)."
    )


def target_rows(target: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Cells of each arm: in how many seeds it got there, and its costs, means over those that did not start there."""
    shapes: tuple[tuple[str, Callable[[float], str]], ...] = (
        ("step", lambda v: f"{v:.0f}"),
        ("rollouts", lambda v: f"{v:,.0f}"),
        ("flops", lambda v: f"{v:.2e}"),
        ("seconds", lambda v: f"{v:.0f}"),
    )
    for arm, told in target["reached"].items():
        cells = [NONE if told[key] is None else shape(told[key]) for key, shape in shapes]
        begun = f", {told['at_start']} from the start" if told["at_start"] else ""
        yield name_of(arm), [f"{told['seeds']} of {told['of']}{begun}", *cells]
