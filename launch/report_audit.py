"""The report's sections on the reward: its components over training, and what the audit found.

Everything is read from the metrics logs of the arms; the weights from the run's configuration. Left out: how the
figures come about (``agents.audit``) and drawing (``charts``).
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from sidgym.agents.audit import CLEAR_FALL, EVALUATIONS, FIRED, STREAK, closing_warnings, phase_mean
from sidgym.benchmarks.summary import MAIN
from sidgym.launch.charts import Style, line_chart, styles
from sidgym.launch.report_figures import Rows, curve_points, line_swatch
from sidgym.launch.report_text import label, number, order_systems

_FIGURES = {
    "all_zero": "groups where every reward is 0",
    "all_equal": "groups where all rewards are equal",
    "all_hit": "groups where every candidate is in D⁺",
    "popularity_correlation": "correlation with item popularity",
}
_QUANTITIES = {
    "pass_rate": "candidates that pass the gate",
    "raw": "preference before the gate",
    "gated": "preference behind the gate",
    "gate_loss": "lost at the gate",
}
_EVALUATIONS = {"eval/reward": "validation reward", "eval/ndcg@10": "validation NDCG@10"}


def arms_with_reward(curves: Mapping[str, Rows]) -> list[str]:
    """The arms whose log holds at least one reward term, in the report's order."""
    return order_systems(name for name, rows in curves.items() if any(_terms(rows)))


def reward_weights(config_toml: str) -> dict[str, dict[str, float]]:
    """Arm -> term -> weight, from the resolved configuration; copies of a term are named as in the log."""
    try:
        config = tomllib.loads(config_toml)
    except tomllib.TOMLDecodeError:
        return {}
    arms = {MAIN: config.get("rl", {}), **config.get("arms", {})}
    out: dict[str, dict[str, float]] = {}
    for arm, table in arms.items():
        weights = out.setdefault(arm, {})
        for term in table.get("rewards", []):
            copies = sum(name.partition("#")[0] == term["name"] for name in weights)
            weights[term["name"] if not copies else f"{term['name']}#{copies + 1}"] = term.get("weight", 1.0)
    return out


def reward_components(curves: Mapping[str, Rows], config_toml: str, style: Mapping[str, Style]) -> str:
    """The section of reward components: a chart an arm and term, its components as further lines."""
    weights = reward_weights(config_toml)
    figures: list[str] = []
    for arm in arms_with_reward(curves):
        for term, components in _terms(curves[arm]).items():
            lines = {term: style[arm], **styles(f"{term}/{component}" for component in components)}
            points = {name: curve_points(curves[arm], "step", f"rewards/{name}/mean") for name in lines}
            points = {name: found for name, found in points.items() if found}
            if not points:
                continue
            weight = weights.get(arm, {}).get(term)
            texts = {term: term if weight is None else f"{term} × {weight:g}"}
            texts |= {f"{term}/{component}": component for component in components}
            legend = "".join(f"<span>{line_swatch(lines[name])}{escape(texts[name])}</span>" for name in points)
            svg = line_chart(f"term-{len(figures)}", points, "step", "mean of an item", lines)
            caption = f"<figcaption>{escape(label(arm))}: {escape(term)}</figcaption>"
            figures.append(f'<figure>{caption}<div class="legend">{legend}</div>{svg}</figure>')
    if not figures:
        return ""
    return (
        "<h2>Reward by component</h2>\n"
        '<p class="soft">Each term as it came out, before its weight, averaged over the items of a step; the '
        "weight that it has in the total stands behind its name. Where a candidate is a page its reward is the sum "
        "over its items, and in sessions also what later pages bring, discounted.</p>"
        f'\n<div class="charts">{"".join(figures)}</div>'
    )


def _terms(rows: Rows) -> dict[str, list[str]]:
    """Term -> its components, of everything that a log holds as ``rewards/<name>/mean``."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith("rewards/") and key.endswith("/mean"))
    names = [key.removeprefix("rewards/").removesuffix("/mean") for key in keys]
    terms: dict[str, list[str]] = {name: [] for name in names if "/" not in name}
    for name in names:
        term, _, component = name.partition("/")
        if component and term in terms:
            terms[term].append(component)
    return terms


def hacking_warnings(curves: Mapping[str, Rows]) -> list[str]:
    """One sentence for every arm whose validation reward rose while NDCG fell, evaluation after evaluation."""
    out = []
    for arm in arms_with_reward(curves):
        fired = [row["step"] for row in curves[arm] if row.get(FIRED)]
        if fired:
            out.append(
                f"{label(arm)}: the validation reward rose while NDCG@10 clearly fell in at least {EVALUATIONS} "
                f"evaluations in a row up to step {fired[0]}. The policy may have learned to please the reward instead "
                "of the users (reward hacking); a gate, anchoring, more NLL or more KL can prevent it."
            )
    return out


def audit_section(curves: Mapping[str, Rows], style: Mapping[str, Style]) -> str:
    """The audit: a row a figure, for each arm the first and the last tenth of its training, and the warnings."""
    arms = arms_with_reward(curves)
    if not arms:
        return ""
    warnings = hacking_warnings(curves) + [
        f"{label(arm)}: {text.removeprefix('warning: ')}" for arm in arms for text in closing_warnings(curves[arm])
    ]
    said = "".join(f'<li class="down">{escape(text)}</li>' for text in warnings)
    if not hacking_warnings(curves):
        said += f"<li>{escape(_all_clear(arms, curves))}</li>"
    heads = "".join(f'<th class="group" colspan="2">{escape(label(arm))}</th>' for arm in arms)
    halves = "<th>first</th><th>last</th>" * len(arms)
    body = "".join(
        f'<tr><th scope="row">{escape(text)}</th>{"".join(_cells(curves[arm], key, digits) for arm in arms)}</tr>'
        for key, text, digits in _rows(arms, curves)
    )
    return (
        f'<h2>Audit of the reward</h2>\n<ul class="verdicts">{said}</ul>\n'
        f'<div class="scroll"><table><thead><tr><th></th>{heads}</tr><tr><th></th>{halves}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>\n"
        '<p class="soft">Means over the first and over the last tenth of the training steps, and of the evaluations '
        "(at least one). Groups whose rewards are all equal teach nothing; their correlation with popularity counts as "
        "0. The correlation is taken inside each group, with the logarithm of how often an item was taken in the "
        "training log.</p>"
    )


def _all_clear(arms: Sequence[str], curves: Mapping[str, Rows]) -> str:
    """No warning, and where there could not have been one."""
    few = [arm for arm in arms if sum(STREAK in row for row in curves[arm]) <= EVALUATIONS]
    text = (
        f"In no arm did the validation reward rise while NDCG@10 fell in {EVALUATIONS} evaluations in a row and by "
        f"more than {CLEAR_FALL:g} standard errors."
    )
    if few:
        names = ", ".join(map(label, few))
        text += f" With {EVALUATIONS} evaluations or fewer that cannot be seen: {names}. Lower rl.eval_every to see it."
    return text


def _rows(arms: Sequence[str], curves: Mapping[str, Rows]) -> Iterator[tuple[str, str, int]]:
    """(key, text, digits) of every figure that some arm has."""
    logged = {key: None for arm in arms for row in curves[arm] for key in row}
    for key, text in _EVALUATIONS.items():
        if key in logged:
            yield key, text, 4
    for name, text in _FIGURES.items():
        if f"audit/{name}" in logged:
            yield f"audit/{name}", text, 3
    terms = {term: None for arm in arms for term in _terms(curves[arm])}
    for term in terms:
        prefix = f"audit/{term}/"
        own = [key.removeprefix(prefix) for key in logged if key.startswith(prefix)]
        ordered = [name for name in _QUANTITIES if name in own] + [name for name in own if name not in _QUANTITIES]
        for name in ordered:
            yield prefix + name, f"{term}: {_QUANTITIES.get(name, name)}", 3


def _cells(rows: Sequence[Mapping[str, Any]], key: str, digits: int) -> str:
    values = (phase_mean(rows, key, last) for last in (False, True))
    return "".join(f"<td>{escape(number(value, digits))}</td>" for value in values)
