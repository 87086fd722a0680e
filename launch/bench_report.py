"""The report of a contest of arms: one self-contained HTML page, and its main figures for the terminal.

The page has the style of a run's report and asks nothing of the network. All of it comes from the summary, so a stored
one can be shown again. Left out: charts (``bench_figures``), words and Markdown (``benchmarks.arms_*``).
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from sidgym.benchmarks.arms_summary import CONTROL, START
from sidgym.benchmarks.arms_tables import (
    BEHAVIOUR,
    BUDGET,
    NONE,
    Column,
    meanings,
    missing,
    present,
    result_columns,
    spent,
    systems_of,
    target_rows,
    target_words,
)
from sidgym.benchmarks.arms_words import arms_of, kind_of, metric_name, name_of, p_value, pair_of, spread_of
from sidgym.benchmarks.comparisons import shown
from sidgym.launch.bench_figures import arm_styles, cost_section, curve_section, hacking_section, pair_section
from sidgym.launch.charts import Style
from sidgym.launch.report import facts_table, flat, write_page
from sidgym.launch.report_figures import swatch
from sidgym.launch.report_text import number

Summary = Mapping[str, Any]
Rows = Sequence[tuple[str, Sequence[str]]]


def write_report(path: Path, summary: Summary) -> None:
    """Writes the page to ``path``. Equal summaries give equal bytes."""
    style = arm_styles(systems_of(summary))
    sections = [
        _headline(summary),
        _results(summary, style),
        pair_section(summary, style),
        _all_pairs(summary),
        curve_section(summary, style),
        hacking_section(summary, style),
        cost_section(summary, style),
        _costs(summary, style),
        _behaviour(summary, style),
        _segments(summary, style),
        _failures(summary),
        _settings(summary, style),
        _notes(summary),
        facts_table("Environment", flat(summary.get("environment") or {}) | {"commit": summary.get("commit")}),
        _configuration(summary),
    ]
    write_page(path, f"{summary['title']} – sidgym report", sections)


def table(heads: Sequence[str], rows: Rows, kind: str = "main") -> str:
    """An HTML table; heads are text, cells HTML."""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for name, cells in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr><th></th>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _soft(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def _named(system: str, style: Mapping[str, Style]) -> str:
    return f"{swatch(style[system])}{escape(name_of(system))}"


def _headline(summary: Summary) -> str:
    marks = {1: ' class="up"', -1: ' class="down"', 0: ""}
    sentences = [*summary["verdict"], *((-1, text) for text in missing(summary))]
    items = "".join(f"<li{marks[sign]}>{escape(text)}</li>" for sign, text in sentences)
    lead = (
        f"{len(arms_of(summary))} arms (each another {kind_of(summary)}) and the likelihood-only control from the same "
        f"supervised checkpoint, over {len(summary['seeds'])} seed(s) and {summary['n_users']:,} test users. What "
        f"decides is the {metric_name(summary['metric'])}."
    )
    return (
        f'<h1>{escape(summary["title"])}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        f'<ul class="verdicts">{items}</ul>\n<pre>{escape(summary["command"])}</pre>'
    )


def _cells(columns: Sequence[Column], figures: Mapping[str, Any]) -> list[str]:
    """A mean above its interval, so that the table stays narrow."""
    cells = []
    for column in columns:
        mean, _, ends = column.cell(figures).partition(" [")
        cells.append(escape(mean) + (f'<br><span class="soft">{escape(ends.rstrip("]"))}</span>' if ends else ""))
    return cells


def _results(summary: Summary, style: Mapping[str, Style]) -> str:
    rows = {name: summary["objectives"][name] for name in systems_of(summary)}
    kept = present(result_columns(summary), rows)
    body = [(_named(name, style), _cells(kept, figures)) for name, figures in rows.items()]
    body += [(escape(name), _cells(kept, figures)) for name, figures in summary["references"].items()]
    return f"<h2>Results on the test users</h2>\n{table([c.head for c in kept], body)}\n" + _soft(
        f"Means over test users; below them 95 % intervals over {spread_of(summary)}. {meanings(kept)}"
    )


def _all_pairs(summary: Summary) -> str:
    """A square of all pairs in the summary's metric."""
    order, metric = [*arms_of(summary), *(n for n in (CONTROL, START) if n in summary["objectives"])], summary["metric"]
    rows = []
    for a in order:
        pairs = [pair_of(summary, a, b, metric) if a != b else None for b in order]
        rows.append((escape(name_of(a)), [_pair_cell(pair) for pair in pairs]))
    return (
        f"<h3>All pairs: {escape(metric_name(metric))}</h3>\n{table([name_of(name) for name in order], rows)}\n"
        + _soft("Row minus column; below it the p-value after Holm's correction over all pairs. Bold: shown to differ.")
    )


def _pair_cell(pair: Mapping[str, Any] | None) -> str:
    if pair is None:
        return NONE
    text = escape(number(pair["mean"], 4, signed=True))
    text = f"<b>{text}</b>" if shown(pair) else text
    return f'{text}<br><span class="soft">{escape(p_value(pair["p_holm"]))}</span>'


def _costs(summary: Summary, style: Mapping[str, Style]) -> str:
    rows = {name: summary["objectives"][name] for name in systems_of(summary) if name != START}
    kept = present(BUDGET, rows)
    equal = {True: "yes", False: "no"}
    body = [
        (_named(n, style), [*(spent(c, f) for c in kept), equal[bool(summary["contexts_equal"].get(n))]])
        for n, f in rows.items()
    ]
    parts = [
        "<h3>Budget of a seed</h3>",
        table([*(column.head for column in kept), "same contexts, same order"], body),
        _soft(f"{meanings(kept)} Seconds are of one process each, with whatever else ran beside it."),
    ]
    for key, target in summary["targets"].items():
        parts.append(_soft(target_words(key, target)))
        if target["value"] is not None:
            reached = [(escape(name), [escape(cell) for cell in cells]) for name, cells in target_rows(target)]
            parts.append(table(["seeds that got there", "step", "rollouts", "FLOPs", "seconds"], reached))
    return "\n".join(parts)


def _behaviour(summary: Summary, style: Mapping[str, Style]) -> str:
    rows = {name: summary["objectives"][name] for name in systems_of(summary)}
    kept = present(BEHAVIOUR, rows)
    body = [(_named(name, style), _cells(kept, figures)) for name, figures in rows.items()]
    return f"<h2>Behaviour</h2>\n{table([c.head for c in kept], body)}\n{_soft(meanings(kept))}"


def _segments(summary: Summary, style: Mapping[str, Style]) -> str:
    arms = [name for name in systems_of(summary) if name != START]
    if not summary["segments"]:
        return ""
    body = []
    for row in summary["segments"]:
        cells = [_segment_cell(row["arms"].get(arm)) for arm in arms]
        body.append((escape(f"{row['segment']}: {row['band']}"), [f"{row['users']:,}", f"{row['start']:.4f}", *cells]))
    return (
        "<h2>Whom each serves</h2>\n"
        + table(["users", "SFT", *(name_of(arm) for arm in arms)], body)
        + _soft(
            f"{metric_name(summary['metric'])} by what is known of target and history: SFT's mean, and the difference "
            "of each arm to it. Bold: differs for these very trainings, in every seed and by a test over users after "
            "Holm's correction over the whole table."
        )
    )


def _segment_cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return NONE
    text = escape(number(cell["mean"], 4, signed=True))
    return f"<b>{text}</b>" if cell["agree"] and shown(cell) else text


def _failures(summary: Summary) -> str:
    rows = "".join(
        f"<dt>{escape(name_of(arm))}</dt><dd>{escape('; '.join(said))}.</dd>"
        for arm, said in summary["failures"].items()
    )
    return f'<h2>Where each fails</h2>\n<dl class="systems">{rows}</dl>'


def _settings(summary: Summary, style: Mapping[str, Style]) -> str:
    told = {name: s for name in systems_of(summary) if (s := summary["settings"].get(name))}
    keys = list(dict.fromkeys(key for settings in told.values() for key in settings))
    if not keys:
        return ""
    body = [(_named(name, style), [escape(_plain(s.get(key))) for key in keys]) for name, s in told.items()]
    return f"<h2>Settings that differ</h2>\n{table(keys, body)}\n" + _soft(
        "Everything else is the same for all arms; empty settings are told as what the objective makes of them."
    )


def _plain(value: Any) -> str:
    if value is None or value == "":
        return NONE
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _notes(summary: Summary) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(summary["notes"]))
    return f"<h2>Notes</h2><ul>{items}</ul>" if items else ""


def _configuration(summary: Summary) -> str:
    return (
        "<h2>Configuration</h2><details><summary>The resolved configuration (TOML)</summary>"
        f"<pre>{escape(summary['config'])}</pre></details>"
    )


def console_table(summary: Summary) -> Table:
    """The main figures for the terminal."""
    rows = {name: summary["objectives"][name] for name in systems_of(summary)}
    narrow = {"hr@10", "entropy", "kl"} - {summary["metric"]}
    kept = [column for column in present(result_columns(summary), rows) if column.key not in narrow]
    shown_table = Table(title=Text(f"{summary['title']}, seeds {summary['seeds']}"), box=box.SIMPLE)
    shown_table.add_column("", no_wrap=True)
    for column in kept:
        shown_table.add_column(column.head, justify="right")
    for name, figures in rows.items():
        shown_table.add_row(Text(name_of(name)), *(Text(column.cell(figures)) for column in kept))
    return shown_table
