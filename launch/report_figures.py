"""The report's sections that are made of charts: overview, differences, learning curves.

Left out: drawing (``charts``), tables and text (``report``).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from sidgym.benchmarks.summary import MAIN
from sidgym.launch.charts import Style, dot_chart, interval_chart, line_chart
from sidgym.launch.report_text import Summary, label, order_systems

Rows = Sequence[Mapping[str, Any]]

_SFT_PANELS = (
    ("train_loss", "Training loss", "nats a code"),
    ("eval/ndcg@10", "Validation NDCG@10", "NDCG@10"),
    ("eval/hr@10", "Validation HR@10", "HR@10"),
)
_RL_PANELS = (
    ("reward", "Reward", "mean reward of a candidate"),
    ("eval/reward", "Validation reward", "of the top 10, a page or a session"),
    ("eval/ndcg@10", "Validation NDCG@10", "NDCG@10"),
    ("eval/hr@10", "Validation HR@10", "HR@10"),
    ("eval/preference@10", "Validation preference", "preference of the top 10"),
    ("reward_std", "Spread of rewards", "standard deviation in a group"),
    ("frac_reward_zero_std", "Groups without a signal", "share of groups"),
    ("rollout/unique_items", "Distinct items", "items in a rollout"),
    ("entropy", "Entropy", "nats a candidate"),
    ("kl", "KL to the SFT policy", "nats"),
    ("nll", "NLL of the targets", "nats"),
    ("grad_norm", "Gradient norm", "before clipping"),
)
_FROM_ZERO = ("reward_std", "frac_reward_zero_std", "kl", "grad_norm")
DIFFERENCE_HEADS = {
    "preference@10": ("True preference of the top 10", "difference in preference@10"),
    "preference@1": ("True preference of the first place", "difference in preference@1"),
    "ndcg@10": ("Next item", "difference in NDCG@10"),
}


def swatch(style: Style) -> str:
    """A dot in the colour of a system."""
    return f'<span class="swatch" style="background:{style.colour}"></span>'


def overview(summary: Summary, systems: Sequence[str], style: Mapping[str, Style]) -> str:
    """Dots of every system on the main metrics; empty where there are none."""
    figures = []
    for key, metric, caption, digits in (
        ("p10", "preference@10", "True preference of the top 10", 3),
        ("n10", "ndcg@10", "NDCG@10", 4),
        ("h10", "hr@10", "HR@10", 4),
    ):
        values = [(s, summary["systems"][s].get(metric)) for s in systems]
        rows = [(label(s), value, style[s].colour) for s, value in values if value is not None]
        if rows:
            figures.append(_figure(caption, dot_chart(f"dots-{key}", rows, "mean over test users", digits)))
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def differences(summary: Summary, style: Mapping[str, Style]) -> str:
    """The section of dots and intervals: RL against every other arm, a chart a metric."""
    others = {key.removeprefix(f"{MAIN}_minus_"): v for key, v in summary.items() if key.startswith(f"{MAIN}_minus_")}
    figures = []
    for metric, (caption, axis) in DIFFERENCE_HEADS.items():
        rows = [
            (f"RL − {label(other)}", others[other][metric], style[other].colour)
            for other in order_systems(others)
            if others[other].get(metric)
        ]
        if rows:
            figures.append(_figure(caption, interval_chart(f"diff-{metric.replace('@', '-')}", rows, axis)))
    if not figures:
        return ""
    return (
        "<h2>Differences between RL and the other arms</h2>\n"
        '<p class="soft">Mean difference over the same users and its 95 % interval by paired bootstrap. Right of zero: '
        "RL is higher. A hollow dot: the interval reaches zero.</p>\n"
        f'<div class="charts">{"".join(figures)}</div>'
    )


def learning_curves(curves: Mapping[str, Rows], style: Mapping[str, Style]) -> str:
    """The section of learning curves: a chart a figure, a line a run; a figure that nobody logged is left out."""
    supervised = {name: rows for name, rows in curves.items() if any("epoch" in row for row in rows)}
    arms = {name: rows for name, rows in curves.items() if name not in supervised}
    parts = []
    for title, stage, panels, x in (
        ("Supervised training", supervised, _SFT_PANELS, "epoch"),
        ("Reinforcement learning", arms, _RL_PANELS, "step"),
    ):
        figures, drawn = [], set()
        for row, (key, caption, unit) in enumerate(panels):
            lines = {name: points for name, logged in stage.items() if (points := curve_points(logged, x, key))}
            if lines and any(y != 0 for points in lines.values() for _, y in points):
                svg = line_chart(f"curve-{x}-{row}", lines, x, unit, style, key in _FROM_ZERO)
                figures.append(_figure(caption, svg))
                drawn |= set(lines)
        if figures:
            legend = _legend([name for name in stage if name in drawn], style)
            parts.append(f'<h3>{title}</h3>{legend}<div class="charts">{"".join(figures)}</div>')
    if not parts:
        return ""
    smoothed = (
        '<p class="soft">Long lines are running means; the single steps stand pale behind them. Each arm is drawn with '
        "its own reward, so rewards compare within an arm, and between arms only where the reward is the same.</p>"
    )
    return f"<h2>Learning curves</h2>\n{smoothed}" + "\n".join(parts)


def curve_points(rows: Rows, x: str, key: str) -> list[tuple[float, float]]:
    """The points of one curve; rows without the figure, with null or with NaN are passed over."""
    pairs = [(row.get(x), row.get(key)) for row in rows]
    figures = [(a, b) for a, b in pairs if isinstance(a, int | float) and isinstance(b, int | float)]
    return [(float(a), float(b)) for a, b in figures if math.isfinite(a) and math.isfinite(b)]


def _legend(names: Iterable[str], style: Mapping[str, Style]) -> str:
    entries = (f"<span>{line_swatch(style[name])}{escape(label(name))}</span>" for name in order_systems(names))
    return f'<div class="legend">{"".join(entries)}</div>'


def line_swatch(style: Style) -> str:
    """A short line in a system's colour and dashes, for legends."""
    dash = f' stroke-dasharray="{style.dash}"' if style.dash else ""
    line = f'<line x1="0" y1="5" x2="30" y2="5" stroke="{style.colour}" stroke-width="2.5"{dash}/>'
    return f'<svg viewBox="0 0 30 10" aria-hidden="true">{line}</svg>'
