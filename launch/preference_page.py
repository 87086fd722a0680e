"""The page of ``sidgym preference inspect --html``: one file that works without a network.

Charts, tables and style are the run report's. Every text that comes from data is escaped. Left out: what the figures
say in words (``preference_inspect``).
"""

from html import escape
from pathlib import Path

from sidgym.launch.charts import Style, line_chart
from sidgym.launch.preference_inspect import KINDS, LEFT, Inspected, headline, number, remarks, tables
from sidgym.launch.report import cells_table
from sidgym.launch.report_figures import line_swatch
from sidgym.launch.report_style import CSS
from sidgym.launch.sid_inspect import percent
from sidgym.sid.table import write_atomically

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
LINES = {
    "targets": Style("#0072B2"),
    "ignored": Style("#CC79A7", "4 2"),
    "favourites": Style("#D55E00", "6 2 1.5 2"),
    "random": Style("#7d7d7d", "1.5 1.5"),
    "observed": Style("#0072B2"),
    "perfect": Style("#7d7d7d", "1.5 1.5"),
}


def write_page(path: Path, found: Inspected) -> None:
    """Writes the page to ``path`` in one piece."""
    marks = {1: ' class="up"', -1: ' class="down"', 0: ""}
    said = "".join(f"<li{marks[sign]}>{escape(sentence)}</li>" for sign, sentence in remarks(found))
    sections = [
        f'<h1>{escape(found.name)}</h1>\n<p class="lead">Preference model {escape(headline(found))}.</p>',
        _tiles(found),
        f'<ul class="verdicts">{said}</ul>',
        f'<h2>Figures</h2>\n<div class="charts">{_reliability(found)}{_pass_rates(found)}</div>',
        '<p class="soft">The reliability curve is of training users whom neither a gradient nor the calibration saw. '
        "The gate is judged by validation users: by what they took next, what they were shown and left where the log "
        "tells, random items, and those of the random items that the model praises most, where a policy is drawn "
        "to.</p>",
        *(cells_table(*cells, LEFT) for cells in tables(found)),
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(found.name)} – preference</title>\n<style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )
    write_atomically(path, page.encode())


def _tiles(found: Inspected) -> str:
    rates = found.gate["pass_rate"]
    tiles = [
        (number(found.model["auc"]), "AUC on held-out training users"),
        (number(found.model["ece"]), "expected calibration error"),
        (f"{found.gate['tau']:.3g}", f"threshold of the gate, relevance {found.gate['relevance']}"),
        (percent(rates["targets"]), "of what validation users took next pass the gate"),
        (percent(rates["random"]), "of random items pass it"),
    ]
    shares = [told["share"] for told in found.arms.values() if "share" in told]
    if shares:
        tiles.append((percent(max(shares)), "of an RL iteration went into scoring"))
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in tiles
    ) + "</div>"  # fmt: skip


def _reliability(found: Inspected) -> str:
    bins = found.model.get("reliability", [])
    if not bins:
        return ""
    lines = {
        "observed": [(b["predicted"], b["observed"]) for b in bins],
        "perfect": [(0.0, 0.0), (top := max(max(b["predicted"], b["observed"]) for b in bins), top)],
    }
    svg = line_chart("preference-reliability", lines, "predicted", "observed", LINES, from_zero=True)
    return _figure("Reliability curve", {"observed": "what happened", "perfect": "as predicted"}, svg)


def _pass_rates(found: Inspected) -> str:
    kinds = [kind for kind in KINDS if kind in found.gate["pass_rate"]]
    lines = {kind: [(row["tau"], row[kind]) for row in found.gate["curve"] if row[kind] is not None] for kind in kinds}
    lines = {kind: points for kind, points in lines.items() if points}
    if not lines:
        return ""
    svg = line_chart("preference-gate", lines, "threshold", "share that passes", LINES, from_zero=True)
    return _figure("What passes the gate", {kind: KINDS[kind] for kind in lines}, svg)


def _figure(caption: str, names: dict[str, str], svg: str) -> str:
    legend = "".join(f"<span>{line_swatch(LINES[line])}{escape(text)}</span>" for line, text in names.items())
    return f'<figure><figcaption>{escape(caption)}</figcaption><div class="legend">{legend}</div>{svg}</figure>'
