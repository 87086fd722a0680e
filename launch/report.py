"""The report of a run: one self-contained HTML page, and the same main figures as a table for the terminal.

The page asks nothing of the network: style and charts are inline, and its own policy forbids any request. Every text
that comes from data is escaped. Left out: wording and columns (``report_text``), charts (``report_figures``), the
reward's own sections (``report_audit``).
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from sidgym.benchmarks.summary import MAIN, validate_summary
from sidgym.launch.charts import Style, styles
from sidgym.launch.report_audit import audit_section, hacking_warnings, reward_components
from sidgym.launch.report_figures import Rows, differences, learning_curves, overview, swatch
from sidgym.launch.report_style import CSS
from sidgym.launch.report_text import (
    Column,
    Summary,
    columns,
    description,
    in_words,
    label,
    number,
    order_systems,
    place,
    verdicts,
)
from sidgym.sid.table import write_atomically


def write_report(
    path: Path,
    summary: Summary,
    curves: Mapping[str, Rows],
    examples: Sequence[Mapping[str, Any]],
    config_toml: str,
    notes: Sequence[str],
    tokeniser: Mapping[str, Any] | None = None,
) -> None:
    """Writes the page to ``path``, through a temporary name.

    ``curves``: rows of ``metrics.jsonl`` by stage; those with an ``epoch`` are supervised training, the others RL arms.
    ``examples``: ``{"user", "history": [titles], "target": title, "lists": {system: [titles]}}``. ``notes`` join the
    summary's own. ``tokeniser``: facts on the Semantic IDs, name -> value. Raises ``ValueError`` for a summary that is
    not valid. Equal arguments give equal bytes.
    """
    validate_summary(summary)
    style = styles(dict.fromkeys([*order_systems(summary["systems"]), *curves]))
    sections = [
        _headline(summary, config_toml, hacking_warnings(curves)),
        _main_table(summary, style),
        differences(summary, style),
        learning_curves(curves, style),
        reward_components(curves, config_toml, style),
        audit_section(curves, style),
        _examples(examples),
        facts_table("Semantic IDs", tokeniser or {}),
        facts_table("The oracle’s own check", flat(summary["oracle_report"] or {})),
        _notes([*notes, *summary["notes"]]),
        _configuration(summary, config_toml),
        facts_table("Environment", flat(summary["environment"])),
    ]
    write_page(path, f"{summary['name']} – sidgym report", sections)


def write_page(path: Path, title: str, sections: Iterable[str]) -> None:
    """Writes a page of the report's style, empty sections left out, through a temporary name."""
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main></body></html>\n"
    )
    write_atomically(Path(path), page.encode())


# Headline and tables -------------------------------------------------------------------------------------------------


def _headline(summary: Summary, config_toml: str, warnings: Sequence[str]) -> str:
    marks = {1: ' class="up"', -1: ' class="down"', 0: ""}
    sentences = [*verdicts(summary), *((-1, warning) for warning in warnings)]
    items = "".join(f"<li{marks[sign]}>{escape(sentence)}</li>" for sign, sentence in sentences)
    tiles = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(t)}</span></div>' for v, t in _tiles(summary))
    return (
        f"<h1>{escape(summary['name'])}</h1>\n"
        f'<p class="lead">{escape(in_words(summary, config_toml))}</p>\n'
        f'<div class="tiles">{tiles}</div>\n<ul class="verdicts">{items}</ul>'
    )


def _tiles(summary: Summary) -> Iterator[tuple[str, str]]:
    for metric, text, digits in (
        ("preference@10", "true preference of the top 10", 3),
        ("ndcg@10", "NDCG@10", 4),
        ("hr@10", "HR@10", 4),
    ):
        sft, rl = ((summary["systems"].get(s) or {}).get(metric) for s in ("sft", MAIN))
        if sft is not None and rl is not None:
            yield f"{number(sft, digits)} → {number(rl, digits)}", f"{text}, SFT\u00a0→\u00a0RL"
    share = (summary["percent_of_oracle"].get(MAIN) or {}).get("preference@10")
    if share is not None:
        yield f"{number(share, 1)}\u00a0%", "of the way from random to the oracle, RL, top 10"


def _main_table(summary: Summary, style: Mapping[str, Style]) -> str:
    shown, systems = columns(summary), order_systems(summary["systems"])
    bold = {column.key: column.best(summary) for column in shown}
    groups = dict.fromkeys(column.group for column in shown)
    firsts = {column.key for column in {c.group: c for c in reversed(shown)}.values()}
    spans = "".join(
        f'<th class="group" colspan="{sum(c.group == group for c in shown)}">{escape(group)}</th>' for group in groups
    )
    heads = "".join(f"<th>{escape(column.head)}</th>" for column in shown)
    body = []
    for row, system in enumerate(systems):
        new_block = row and place(system) != place(systems[row - 1])
        classes = " ".join(filter(None, ["block" if new_block else "", MAIN if system == MAIN else ""]))
        name = f'<th scope="row">{swatch(style[system])}{escape(label(system))}</th>'
        cells = "".join(_cell(column, summary, system, bold, firsts) for column in shown)
        body.append(f'<tr class="{classes}">{name}{cells}</tr>')
    described = "".join(f"<dt>{escape(label(s))}</dt><dd>{escape(description(s))}</dd>" for s in systems)
    return (
        "<h2>Results on the test users</h2>\n"
        f'<div class="scroll"><table class="main"><thead><tr><th></th>{spans}</tr><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>\n"
        '<p class="soft">Means over users. Bold: best of the trained systems, ties included. HaR: share of SIDs '
        "outside the catalogue under free decoding; legal: probability that free decoding stays inside it on the way "
        "to the target. Cover: share of the catalogue in anyone’s top k. Div: distinct SIDs in a list. @k: the cut-off."
        f"</p>\n{overview(summary, systems, style)}\n"
        f'<details open><summary>The systems</summary><dl class="systems">{described}</dl></details>'
    )


def _cell(column: Column, summary: Summary, system: str, bold: Mapping[str, set[str]], firsts: set[str]) -> str:
    text = escape(number(column.value(summary, system), column.digits))
    text = f"<b>{text}</b>" if system in bold[column.key] else text
    return f'<td class="first">{text}</td>' if column.key in firsts else f"<td>{text}</td>"


# Examples, facts, configuration --------------------------------------------------------------------------------------


def _examples(examples: Sequence[Mapping[str, Any]]) -> str:
    if not examples:
        return ""
    users = "\n".join(map(_example, examples))
    return (
        "<h2>Example users</h2>\n"
        '<p class="soft">What the user had, and what each system recommends next. Highlighted: the item that really '
        f"came next. “new”: not in the first list.</p>\n{users}"
    )


def _example(example: Mapping[str, Any]) -> str:
    target, lists = str(example["target"]), {name: list(map(str, v)) for name, v in example["lists"].items()}
    history = "".join(f"<li>{escape(str(title))}</li>" for title in example["history"])
    first = next(iter(lists.values()), [])
    blocks = [f"<div><h4>History, oldest first</h4><ol>{history}</ol></div>"]
    for name, titles in lists.items():
        rows = []
        for title in titles:
            if title == target:
                rows.append(f'<li class="hit">{escape(title)}<span class="tag">came next</span></li>')
            else:
                tag = "" if title in first else '<span class="tag">new</span>'
                rows.append(f"<li>{escape(title)}{tag}</li>")
        missing = "" if target in titles else '<p class="soft">The next item is not in this list.</p>'
        blocks.append(f"<div><h4>{escape(label(name))}</h4><ol>{''.join(rows)}</ol>{missing}</div>")
    return (
        f'<div class="user"><h3>User {escape(str(example["user"]))}</h3>'
        f'<p class="soft">Came next: {escape(target)}</p><div class="lists">{"".join(blocks)}</div></div>'
    )


def facts_table(title: str, facts: Mapping[str, Any]) -> str:
    """A section of names and values; empty where there are none."""
    if not facts:
        return ""
    rows = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(_plain(value))}</td></tr>" for name, value in facts.items()
    )
    return f'<h2>{escape(title)}</h2><div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'


def cells_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str]) -> str:
    """A section of a table of texts; columns whose head is among ``left`` hold words and wrap."""
    how = [' style="text-align:left;white-space:normal"' if head in left else "" for head in heads]
    head = "".join(f"<th{style}>{escape(text)}</th>" for text, style in zip(heads, how))
    body = "".join(
        "<tr>" + "".join(f"<td{style}>{escape(cell)}</td>" for cell, style in zip(row, how)) + "</tr>" for row in rows
    )
    return (
        f'<h2>{escape(title)}</h2>\n<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """One level of names, those of inner tables behind their own."""
    out: dict[str, Any] = {}
    for key, value in table.items():
        out.update(flat(value, f"{prefix}{key} ") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return out


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(notes))
    return f"<h2>Notes</h2><ul>{items}</ul>" if items else ""


def _configuration(summary: Summary, config_toml: str) -> str:
    return (
        f'<h2>Configuration</h2><p class="soft">Hash {escape(summary["config_hash"])}</p>'
        f"<details><summary>The resolved configuration (TOML)</summary><pre>{escape(config_toml)}</pre></details>"
    )


# Terminal ------------------------------------------------------------------------------------------------------------

_CONSOLE = ("hr@10", "ndcg@10", "preference@1", "preference@10", "percent/preference@10", "har")
_CONSOLE_GROUPS = {"NDCG": "NDCG", "Hit rate (HR)": "HR", "True preference": "pref", "% of oracle": "% oracle"}


def _console_head(column: Column) -> Text:
    """Short enough that the table fits a terminal of 80 columns; the percentage is that of the top 10."""
    group = _CONSOLE_GROUPS.get(column.group, "")
    return Text(group if column.key.startswith("percent/") else group + column.head)


def console_table(summary: Summary) -> Table:
    """The main figures of a run for the terminal; columns without data are left out, the best trained value is bold."""
    shown = [column for column in columns(summary) if column.key in _CONSOLE]
    table = Table(
        title=Text(f"{summary['name']}: {summary['n_users']:,} test users, seeds {summary['seeds']}"), box=box.SIMPLE
    )
    table.add_column("system", no_wrap=True)
    for column in shown:
        table.add_column(_console_head(column), justify="right", no_wrap=True)
    bold = {column.key: column.best(summary) for column in shown}
    systems = order_systems(summary["systems"])
    for row, system in enumerate(systems):
        cells = [
            Text(
                number(column.value(summary, system), column.digits), style="bold" if system in bold[column.key] else ""
            )
            for column in shown
        ]
        last = row + 1 < len(systems) and place(systems[row + 1]) != place(system)
        table.add_row(Text(label(system), style="bold" if system == MAIN else ""), *cells, end_section=last)
    if any(summary[f"{MAIN}_minus_sft"].values()):
        table.caption = Text(verdicts(summary)[0][1])
    return table
