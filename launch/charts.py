"""The report's charts: inline SVG made with matplotlib, without a display and without global state.

Text and axes take the colour of the page around them (``currentColor``), so a chart is legible on light and on dark.
Ids are prefixed with the chart's own, since all charts share one document, and equal input gives equal bytes. Left
out: captions and legends, which are HTML.
"""

import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK = "#010203"
PAPER = "#030201"
"""INK and PAPER stand for the page's text and background colours until the SVG is written."""

# Okabe and Ito's palette, distinguishable with any common colour vision; greys for what does not learn.
COLOURS = {
    "random": "#9a9a9a",
    "popularity": "#7d7d7d",
    "cooccurrence": "#8a7f6a",
    "sft_all": "#56B4E9",
    "sft": "#0072B2",
    "sft_reranked": "#E69F00",
    "nll_only": "#009E73",
    "rule_rank": "#CC79A7",
    "rl": "#D55E00",
    "oracle": "#8568b5",
    "bound": "#a89bc4",
}
_SPARE = ("#B59A00", "#44AA99", "#AA4499", "#4477AA", "#999933", "#CC6677")
_DASHES = ("4 2", "1.5 1.5", "6 2 1.5 2", "8 3", "3 3")

POINTS = 300
"""A line with more points is averaged in bins of equal width."""
SMOOTH_FROM = 60
"""A line with at least so many points is smoothed over a twentieth of them, the raw line pale behind it."""


@dataclass(frozen=True)
class Style:
    """How one system is drawn in every chart."""

    colour: str
    dash: str = ""  # SVG dash pattern; "" is a solid line


def styles(systems: Iterable[str]) -> dict[str, Style]:
    """One fixed style a system; arms unknown to the project take the spare colours in their order."""
    out: dict[str, Style] = {}
    spare = 0
    for system in systems:
        if system in COLOURS:
            dash = "" if system in ("sft", "rl") else _DASHES[list(COLOURS).index(system) % len(_DASHES)]
            out[system] = Style(COLOURS[system], dash)
        else:
            out[system] = Style(_SPARE[spare % len(_SPARE)], _DASHES[spare % len(_DASHES)])
            spare += 1
    return out


_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sidgym",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}


def line_chart(
    chart_id: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    x: str,
    y: str,
    style: Mapping[str, Style],
    from_zero: bool = False,
) -> str:
    """SVG of one line a system over (x, y) points; ``x`` and ``y`` are the axis labels with their units.

    ``from_zero`` starts the y axis at zero, for figures whose size matters and not only their change.
    """
    with matplotlib.rc_context(_RC):
        figure, axes = _axes(3.6, 2.5)
        for system, points in lines.items():
            xs, ys = _thin(np.asarray(points, dtype=float))
            drawn = style[system]
            line: Any = {"color": drawn.colour, "linewidth": 1.8, "linestyle": _mpl_dash(drawn.dash)}
            if len(xs) < SMOOTH_FROM:
                axes.plot(xs, ys, marker="o" if len(xs) <= 25 else "", markersize=3.2, **line)
                continue
            axes.plot(xs, ys, color=drawn.colour, linewidth=0.8, alpha=0.28)
            axes.plot(xs, _running_mean(ys, max(3, len(ys) // 20)), **line)
        _label_axes(axes, x, y)
        if from_zero:
            axes.set_ylim(bottom=0.0, top=max(axes.get_ylim()[1], 1.1 * axes.dataLim.y1))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return _svg(figure, chart_id, f"{y} by {x}: {', '.join(lines)}")


def _label_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y")
    axes.margins(x=0.02, y=0.08)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    _plain_numbers(axes)


def band_chart(
    chart_id: str,
    lines: Mapping[str, Sequence[Sequence[float]]],
    x: str,
    y: str,
    style: Mapping[str, Style],
    from_zero: bool = False,
) -> str:
    """SVG of one line a system over ``[x, mean, low, high]`` rows, with a pale band from low to high."""
    with matplotlib.rc_context(_RC):
        figure, axes = _axes(3.6, 2.5)
        for system, rows in lines.items():
            xs, means, lows, highs = np.asarray(rows, dtype=float).T
            drawn = style[system]
            if (highs > lows).any():
                axes.fill_between(xs, lows, highs, color=drawn.colour, alpha=0.13, linewidth=0)
            axes.plot(xs, means, color=drawn.colour, linewidth=1.7, linestyle=_mpl_dash(drawn.dash))
        _label_axes(axes, x, y)
        # A band of two seeds may be wider than everything else: it is cut off where lines would become unreadable.
        values = np.concatenate([np.asarray(rows, dtype=float)[:, 1] for rows in lines.values()])
        span = float(np.ptp(values)) or abs(float(values[0])) or 1.0
        low, high = axes.get_ylim()
        bottom, top = max(low, float(values.min()) - 0.6 * span), min(high, float(values.max()) + 0.6 * span)
        axes.set_ylim(0.0 if from_zero else bottom, top)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return _svg(figure, chart_id, f"{y} by {x}, mean and interval over seeds: {', '.join(lines)}")


def path_chart(
    chart_id: str, paths: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, style: Mapping[str, Style]
) -> str:
    """SVG of one path a system over (x, y) points in their own order: hollow where it starts, full where it ends."""
    with matplotlib.rc_context(_RC):
        figure, axes = _axes(4.4, 3.3)
        for system, points in paths.items():
            xs, ys = np.asarray(points, dtype=float).T
            drawn = style[system]
            axes.plot(xs, ys, color=drawn.colour, linewidth=1.6, linestyle=_mpl_dash(drawn.dash))
            axes.plot(xs[0], ys[0], "o", color=drawn.colour, markersize=6, markerfacecolor=PAPER)
            axes.plot(xs[-1], ys[-1], "o", color=drawn.colour, markersize=6)
        _label_axes(axes, x, y)
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        described = "; ".join(f"{name} ends at {path[-1][0]:.4g}, {path[-1][1]:.4g}" for name, path in paths.items())
        return _svg(figure, chart_id, f"{y} against {x}, over training: {described}")


def dot_chart(chart_id: str, rows: Sequence[tuple[str, float, str]], x: str, digits: int) -> str:
    """SVG of one labelled dot a row ``(label, value, colour)``, first row on top."""
    with matplotlib.rc_context(_RC):
        figure, axes = _axes(3.6, 0.75 + 0.235 * len(rows))
        values = [value for _, value, _ in rows]
        places = np.arange(len(rows))[::-1]
        axes.hlines(places, min(0.0, min(values)), values, color=[c for *_, c in rows], linewidth=1.1, alpha=0.45)
        axes.scatter(values, places, c=[c for *_, c in rows], s=34, zorder=3)
        for (_, value, _), y in zip(rows, places):
            text = f"{value:.{digits}f}".replace("-", "−")
            axes.annotate(text, (value, y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8.5)
        _rows(axes, [name for name, *_ in rows], x)
        span = max(values) - min(0.0, min(values)) or 1.0
        axes.set_xlim(min(0.0, min(values)), max(values) + 0.24 * span)
        return _svg(figure, chart_id, f"{x}: " + ", ".join(f"{name} {value:.{digits}f}" for name, value, _ in rows))


def interval_chart(chart_id: str, rows: Sequence[tuple[str, Mapping[str, Any], str]], x: str) -> str:
    """SVG of one dot with its interval a row ``(label, {"mean", "low", "high"}, colour)``, and a line at zero.

    The dot is hollow where the interval reaches zero; a row's own ``"shown"`` decides instead. Where there is a
    narrower interval, ``"inner": {"low", "high"}``, it is drawn in full and the other one thin.
    """
    with matplotlib.rc_context(_RC):
        figure, axes = _axes(3.6, 0.85 + 0.27 * len(rows))
        for y, (_, interval, colour) in zip(range(len(rows))[::-1], rows):
            inner: Any = interval.get("inner")
            width: Any = {"linewidth": 1.0 if inner else 2.2, "solid_capstyle": "round"}
            axes.plot([interval["low"], interval["high"]], [y, y], color=colour, **width)
            if inner:
                axes.plot([inner["low"], inner["high"]], [y, y], color=colour, linewidth=3.4, solid_capstyle="butt")
            clear = interval.get("shown", interval["low"] > 0 or interval["high"] < 0)
            axes.plot(interval["mean"], y, "o", color=colour, markersize=7, markerfacecolor=colour if clear else PAPER)
        axes.axvline(0.0, color=INK, linewidth=0.9, alpha=0.6, zorder=0)
        _rows(axes, [name for name, *_ in rows], x)
        low, high = (extreme(0.0, *axes.get_xlim()) for extreme in (min, max))
        pad = 0.04 * (high - low)
        axes.set_xlim(low - pad, high + pad)
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda v, _: "0" if abs(v) < 1e-12 else f"{v:+g}".replace("-", "−"))
        )
        described = "; ".join(f"{name} {i['mean']:+.4f} ({i['low']:+.4f} to {i['high']:+.4f})" for name, i, _ in rows)
        return _svg(figure, chart_id, f"{x}: {described}")


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.subplots()
    axes.patch.set_alpha(0.0)
    return figure, axes


def _rows(axes: Axes, names: Sequence[str], x: str) -> None:
    axes.set_yticks(range(len(names))[::-1], labels=list(names))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel(x)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=3))
    _plain_numbers(axes)


def _plain_numbers(axes: Axes) -> None:
    """No offsets above the axis: they are easy to overlook."""
    for axis in (axes.xaxis, axes.yaxis):
        formatter = axis.get_major_formatter()
        if hasattr(formatter, "set_useOffset"):
            formatter.set_useOffset(False)


def _mpl_dash(dash: str) -> str | tuple[int, tuple[float, ...]]:
    return (0, tuple(float(part) / 1.6 for part in dash.split())) if dash else "-"


def _thin(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (P, 2) in the order of x, averaged in bins so that at most ``POINTS`` are left."""
    points = points[np.argsort(points[:, 0], kind="stable")]
    if len(points) > POINTS:
        points = np.stack([part.mean(axis=0) for part in np.array_split(points, POINTS)])
    return points[:, 0], points[:, 1]


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over ``width`` points, over fewer at the ends."""
    ones = np.convolve(np.ones(len(values)), np.ones(width), mode="same")
    return np.convolve(values, np.ones(width), mode="same") / ones


def _svg(figure: Figure, chart_id: str, text: str) -> str:
    """The figure as an SVG element for an HTML page: own ids, no prologue, the page's colour for ink."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r"\s+xmlns(:\w+)?=\"[^\"]*\"", "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{chart_id}-', svg)
    svg = re.sub(r'href="#', f'href="#{chart_id}-', svg)
    svg = svg.replace("url(#", f"url(#{chart_id}-").replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    width = f"max-width:{float(size.group(1)) * 4 / 3:.0f}px" if size else ""
    head = f'<svg class="chart" role="img" aria-label="{html.escape(text)}" style="{width}"'
    box = f' viewBox="{size.group(0).split(chr(34))[1]}">' if size else ">"
    return head + box + re.sub(r"\n\s*", "\n", svg[svg.index(">") + 1 :])
