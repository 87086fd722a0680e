"""The charts of a contest's report: differences, learning curves, reward against NDCG, cost.

Left out: drawing (``charts``), tables and text (``bench_report``).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from sidgym.benchmarks.arms_summary import CONTROL, START
from sidgym.benchmarks.arms_words import arms_of, metric_name, name_of, pair_of, spread_of
from sidgym.benchmarks.comparisons import shown
from sidgym.launch.charts import Style, band_chart, interval_chart, path_chart
from sidgym.launch.report_figures import line_swatch

Summary = Mapping[str, Any]

# Okabe and Ito's palette without its yellow and black, then two more; each with dashes of its own.
_ARMS = (
    Style("#D55E00"),
    Style("#56B4E9", "6 2"),
    Style("#CC79A7", "2 2"),
    Style("#E69F00", "8 2 2 2"),
    Style("#8568b5", "4 2"),
    Style("#8a7f6a", "1.5 1.5"),
)
_FIXED = {START: Style("#0072B2"), CONTROL: Style("#009E73", "8 3")}
_DASHES = ("3 1", "5 1 1 1", "10 2", "2 1", "1 2")

PANELS = (
    ("eval/ndcg@10", "Validation NDCG@10", "NDCG@10", False),
    ("eval/reward", "Validation reward", "of the top 10", False),
    ("reward", "Reward in training", "mean of a candidate", False),
    ("entropy", "Entropy", "nats a SID", True),
    ("kl/k2", "Distance from SFT", "KL (k2), nats a code", True),
    ("grad_norm", "Gradient norm", "before clipping", True),
    ("trie/legal_mass", "Legal mass", "share, without the trie", True),
    ("rollout/unique_items", "Diversity", "distinct items of a group", True),
    ("audit/popularity_correlation", "Reward and popularity", "correlation in a group", False),
    ("frac_reward_zero_std", "Groups without a signal", "share of groups", True),
    ("ratio_max", "Largest importance ratio", "of an iteration", True),
)

REWARDS = ("eval/reward", "reward")
"""Not drawn together where each arm has a reward of its own: their scales differ."""


def arm_styles(systems: Iterable[str]) -> dict[str, Style]:
    """One style a system, by name and not by rank: the same colours whoever wins."""
    out = {name: style for name, style in _FIXED.items()}
    for number, name in enumerate(sorted(set(systems) - set(out))):
        style, again = _ARMS[number % len(_ARMS)], number // len(_ARMS)
        out[name] = style if not again else Style(style.colour, _DASHES[(number + again) % len(_DASHES)])
    return out


def figure(caption: str, svg: str) -> str:
    """A chart with its caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def legend(names: Iterable[str], style: Mapping[str, Style]) -> str:
    """Lines and names."""
    entries = (f"<span>{line_swatch(style[name])}{escape(name_of(name))}</span>" for name in names)
    return f'<div class="legend">{"".join(entries)}</div>'


def pair_section(summary: Summary, style: Mapping[str, Style]) -> str:
    """Each arm against SFT and the control on every metric that was tested."""
    figures = []
    metrics = list(dict.fromkeys(pair["metric"] for pair in summary["pairs"]))
    for metric in metrics:
        for other in (START, CONTROL):
            rows = [*arms_of(summary), *([CONTROL] if other == START else [])]
            found = {name: pair_of(summary, name, other, metric) for name in rows}
            drawn = [
                (name_of(n), {**p, "inner": p["users"], "shown": shown(p) != 0}, style[n].colour)
                for n, p in found.items()
                if p
            ]
            if drawn:
                svg = interval_chart(f"pair-{metric.replace('@', '-')}-{other}", drawn, f"difference in {metric}")
                figures.append(figure(f"{metric_name(metric)}, minus {name_of(other)}", svg))
    if not figures:
        return ""
    return (
        '<h2>Differences, paired by user</h2>\n<p class="soft">Mean difference over the same users. Thick: 95 % paired '
        f"bootstrap interval over users, for these very trainings. Thin: 95 % interval over {spread_of(summary)}, not "
        "corrected for the number of pairs. A full dot: shown to differ after Holm's correction. Hollow: not.</p>\n"
        f'<div class="charts">{"".join(figures)}</div>'
    )


def curve_section(summary: Summary, style: Mapping[str, Style]) -> str:
    """Learning curves, a chart a figure: mean over seeds and its 95 % interval."""
    figures, drawn = [], set()
    for number, (key, caption, unit, from_zero) in enumerate(PANELS):
        lines = summary["curves"].get(key)
        if key in REWARDS and summary.get("own_rewards"):
            continue
        if lines and any(row[1] for rows in lines.values() for row in rows):
            figures.append(figure(caption, band_chart(f"curve-{number}", lines, "step", unit, style, from_zero)))
            drawn |= set(lines)
    if not figures:
        return ""
    names = [name for name in summary["objectives"] if name in drawn]
    return (
        '<h2>Learning curves</h2>\n<p class="soft">Means over seeds; bands are 95 % intervals over seeds, cut off '
        "where they leave the chart, and there are none for a single seed. Iterations are averaged in bins. The "
        "gradient is that of each arm's own loss, and the ratio that of its own kind.</p>\n"
        f'{legend(names, style)}<div class="charts">{"".join(figures)}</div>'
    )


def hacking_section(summary: Summary, style: Mapping[str, Style]) -> str:
    """Validation reward against validation NDCG over training: to the right and down is a reward that is gamed."""
    reward, ndcg = (summary["curves"].get(key, {}) for key in ("eval/reward", "eval/ndcg@10"))
    paths = {name: _path(reward[name], ndcg[name]) for name in reward if name in ndcg}
    paths = {name: path for name, path in paths.items() if len(path) > 1}
    if not paths:
        return ""
    # Rewards on scales of their own have a chart each.
    groups = [(name_of(n), {n: path}) for n, path in paths.items()] if summary.get("own_rewards") else []
    charts = [
        figure(title, path_chart(f"hacking-{number}", drawn, "validation reward", "validation NDCG@10", style))
        for number, (title, drawn) in enumerate(groups or [("Hacking plot", paths)])
    ]
    warned = [f"{name_of(n)} in {h['warned']} seed(s)" for n, h in summary["hacking"].items() if h["warned"]]
    told = f"The audit warned of a gamed reward: {', '.join(warned)}." if warned else "The audit warned in no seed."
    return (
        "<h2>Reward against what users took next</h2>\n"
        '<p class="soft">From the start (hollow) to the end (full) of training, means over seeds. Up and right: both '
        "gain. Right and down: the reward rises at the cost of what users really took next, by design where the reward "
        f"is to lead away from the log, and as reward hacking where it is not. {escape(told)}</p>\n"
        f'{legend(paths, style)}<div class="charts">{"".join(charts)}</div>'
    )


def _path(reward: Sequence[Sequence[float]], ndcg: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Points of the steps that both have."""
    known = {row[0]: row[1] for row in ndcg}
    return [(row[1], known[row[0]]) for row in reward if row[0] in known]


def cost_section(summary: Summary, style: Mapping[str, Style]) -> str:
    """What was validated against what had been spent by then: rollouts and estimated operations."""
    figures = []
    keys = {"eval/reward": "validation reward", "eval/ndcg@10": "validation NDCG@10"}
    if summary.get("own_rewards"):
        keys.pop("eval/reward")
    for key, unit in keys.items():
        for cost, axis in (("rollouts", "rollouts"), ("flops", "estimated operations")):
            lines = _by_cost(summary, key, cost)
            if not lines:
                continue
            power = 3 * int(math.log10(max(1.0, *(rows[-1][0] for rows in lines.values()))) // 3)
            scaled = {name: [[row[0] / 10**power, *row[1:]] for row in rows] for name, rows in lines.items()}
            chart_id = f"cost-{cost}-{key.replace('/', '-').replace('@', '-')}"
            svg = band_chart(chart_id, scaled, f"{axis}, 10^{power}" if power else axis, unit, style)
            figures.append(figure(f"{unit[0].upper()}{unit[1:]} by {axis}", svg))
    if not figures:
        return ""
    names = [name for name in summary["objectives"] if name in summary["curves"].get("eval/ndcg@10", {})]
    return f'<h2>Cost</h2>\n{legend(names, style)}<div class="charts">{"".join(figures)}</div>'


def _by_cost(summary: Summary, key: str, cost: str) -> dict[str, list[list[float]]]:
    """The curves of a figure over what was spent; an iteration costs an equal part of the whole."""
    out = {}
    for name, rows in summary["curves"].get(key, {}).items():
        told = summary["objectives"][name]
        if told.get(cost) and told.get("steps"):
            out[name] = [[row[0] * told[cost] / told["steps"], *row[1:]] for row in rows]
    return out
