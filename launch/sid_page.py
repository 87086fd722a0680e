"""The page of ``sidgym sid inspect --html``: one file that works without a network.

Tables, charts and style are the run report's; the sunburst brings plotly's code along inside the page, whose own policy
forbids every request. Every text that comes from data is escaped. Left out: the drawing (``sunburst``).
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from sidgym.launch.charts import Style, line_chart
from sidgym.launch.report import cells_table, facts_table
from sidgym.launch.report_figures import line_swatch
from sidgym.launch.report_style import CSS
from sidgym.launch.sid_inspect import COMPARED, compared, counts_collisions, facts, headline, remarks, tables
from sidgym.launch.sid_source import SidSource
from sidgym.launch.sunburst import sunburst_html
from sidgym.sid.index_readers import parse_tokens
from sidgym.sid.inspection import Figures
from sidgym.sid.table import write_atomically

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
"""Nothing is fetched; plotly's code stands in the page itself."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8568b5", "#7d7d7d")
LEFT = {"which", "most popular item"}
"""Columns of words."""
DASHES = ("", "6 2 1.5 2", "4 2", "1.5 1.5")


def write_page(
    path: Path, source: SidSource, figures: Figures, below: str = "", rows: np.ndarray | None = None
) -> None:
    """Writes the page to ``path`` in one piece.

    ``rows`` (n,) restricts the sunburst to some items, which ``below`` names. Raises ``ValueError`` where plotly is not
    installed.
    """
    drawing, left_out = sunburst_html(source, rows)
    whose = f" below {escape(below)}" if below else ""
    sections = [
        f'<h1>{escape(source.name)}</h1>\n<p class="lead">{escape(headline(source))}.</p>',
        _tiles(figures),
        _remarks(source, figures),
        f'<h2>The trie{whose}</h2>\n<p class="soft">A ring is a level, a sector a prefix, its angle the items below '
        "it. Click a sector to see what lies in it, the middle to go back. A prefix of one item is drawn as that item."
        f'{_colour_key(source)} {escape(left_out)} The same as numbers: <a href="#tables">the tables</a>.</p>\n'
        f"{drawing}",
        _charts(source, figures),
        f'<section id="tables">{"".join(cells_table(*cells, LEFT) for cells in tables(source, figures))}</section>',
        facts_table("How it was made", facts(source)),
        f"<h2>Notes</h2><ul>{''.join(f'<li>{escape(note)}</li>' for note in source.notes)}</ul>"
        if source.notes
        else "",
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(source.name)} – Semantic IDs</title>\n<style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main></body></html>\n"
    )
    write_atomically(path, page.encode())


def items_below(source: SidSource, prefix: str) -> np.ndarray:
    """Rows of the items whose SID begins with a prefix such as ``<a_3><b_7>``; ``ValueError`` where there are none."""
    codes = parse_tokens([f"{part}>" for part in prefix.split(">")[:-1]], f"--below {prefix!r}")
    table = source.table
    if prefix.split(">")[-1].strip() or len(codes) > table.levels:
        raise ValueError(f"--below {prefix!r}: expected at most {table.levels} tokens such as <a_3><b_7>")
    rows = np.flatnonzero((table.codes[:, : len(codes)] == np.array(codes)).all(axis=1))
    if not len(rows):
        raise ValueError(f"--below {prefix!r}: no item's SID begins so; the table on the page lists the first codes")
    return rows


def _colour_key(source: SidSource) -> str:
    known = source.popularity is not None
    return (
        " Colour: events an item, against the average item of what is drawn." if known else " Colour: the first code."
    )


def _tiles(figures: Figures) -> str:
    found, levels = figures["collisions"], figures["levels"]
    least = min(levels, key=lambda row: row["used"] / row["codes"])
    tiles = [
        (f"{figures['items']:,}", "items"),
        (f"{found['distinct_sids']:,}", "distinct SIDs"),
        (f"{found['colliding_items']:,}", "items that share their SID"),
        (f"{least['used'] / least['codes']:.0%}", f"of the codes used on level {least['level']}, the least of all"),
    ]
    for kind, rows in compared(figures):
        if rows[0]["lift"] is not None:
            tiles.append((f"{rows[0]['lift']:.1f}×", f"chance: items with one first code {COMPARED[kind]}"))
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in tiles
    ) + "</div>"  # fmt: skip


def _remarks(source: SidSource, figures: Figures) -> str:
    marks = {1: ' class="up"', -1: ' class="down"', 0: ""}
    items = "".join(f"<li{marks[sign]}>{escape(sentence)}</li>" for sign, sentence in remarks(source, figures))
    return f'<ul class="verdicts">{items}</ul>'


# Charts --------------------------------------------------------------------------------------------------------------

Lines = Mapping[str, Sequence[tuple[float, float]]]


def _charts(source: SidSource, figures: Figures) -> str:
    codes, depth = "codes in their order", "codes shared"
    parts = [_chart("use", "How often each code is used", _usage(source), codes, "items", zero=True)]
    if figures["reconstruction"]:
        line = {"left": [(0.0, 1.0), *((i + 1.0, r["share"]) for i, r in enumerate(figures["reconstruction"]))]}
        parts.append(_chart("error", "Reconstruction error", line, "levels read", "share left over", zero=True))
    mean = {"mean": [(r["depth"], r["mean"]) for r in figures["branching"]]}
    mean["most"] = [(r["depth"], r["largest"]) for r in figures["branching"]]
    parts.append(_chart("branches", "Branches of a prefix", mean, "codes read", "branches", zero=True))
    for kind, rows in compared(figures):
        known = [r for r in rows if r["share"] is not None]
        lines = {
            "share": [(r["depth"], r["share"]) for r in known],
            "chance": [(r["depth"], r["chance"]) for r in known],
        }
        if known:
            caption = f"Neighbours that {COMPARED[kind]}"
            parts.append(_chart(f"agree-{kind}", caption, lines, depth, "share", zero=True))
    if figures["popularity"]:
        parts.append(
            _chart("popular", "Popularity of the first codes", _lorenz(source), "% of the codes, rarest first", "share")
        )
    return f'<h2>Figures</h2>\n<div class="charts">{"".join(parts)}</div>'


def _usage(source: SidSource) -> Lines:
    """Items of each code by level, most used code first; without a level that counts collisions."""
    out = {}
    for level, size in list(enumerate(source.table.sizes))[: -1 if counts_collisions(source) else None]:
        counts = np.sort(np.bincount(source.table.codes[:, level], minlength=size))[::-1]
        out[f"level {'abcdefghijklmnopqrstuvwxyz'[level]}"] = [(float(i), float(c)) for i, c in enumerate(counts)]
    return out


def _lorenz(source: SidSource) -> Lines:
    """The Lorenz curve of events over the first codes, and of items."""
    codes, size = source.table.codes[:, 0], source.table.sizes[0]
    out = {}
    for name, weight in (("events", source.popularity), ("items", None)):
        counts = np.sort(np.bincount(codes, weights=weight, minlength=size))
        curve = np.concatenate([[0.0], np.cumsum(counts) / max(counts.sum(), 1)])
        out[name] = [(100.0 * i / size, float(value)) for i, value in enumerate(curve)]
    return out


def _chart(name: str, caption: str, lines: Lines, x: str, y: str, zero: bool = False) -> str:
    style = {line: Style(COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]) for i, line in enumerate(lines)}
    legend = "".join(f"<span>{line_swatch(style[line])}{escape(line)}</span>" for line in lines)
    shown = f'<div class="legend">{legend}</div>' if len(lines) > 1 else ""
    svg = line_chart(f"sid-{name}", lines, x, y, style, zero)
    return f"<figure><figcaption>{escape(caption)}</figcaption>{shown}{svg}</figure>"
