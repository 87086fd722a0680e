"""The figures of ``docs/rewards.md``, made from the stored result of ``preference`` and never typed by hand.

    python -c "from sidgym.benchmarks.preference_tables import PARTS; print(PARTS['arms']())"
    python -c "from sidgym.benchmarks.preference_tables import *; draw(stored(), Path('docs/hacking.svg'))"

Left out: the README's (``tables``).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sidgym.benchmarks.tables import RESULTS

READS = {
    "din": "what was shown and ignored",
    "sim": "what was shown and ignored",
    "pscore": "clicks, orders, dislikes, long plays",
    "duration_aware": "play time and duration",
    "sasrec": "clicks alone",
    "weak": "what was shown and ignored, {users} users",
    "weak_other": "the same, {users} others",
}
"""What of the simulated log each model is fitted on."""


def setting() -> str:
    """How the figures were made."""
    result = stored()
    taus = ", ".join(f"{tau:.3f}" for tau in result["gates"]["text"]["tau"]["seeds"])
    return (
        f"`{result['command']}`: {result['contexts']:,} test users, {len(result['seeds'])} seeds of which each is a "
        f"store of its own, {result['settings']['rl']['steps']} iterations; {result['machine']}. Thresholds of the "
        f"gate `text`, chosen on validation users: {taus}."
    )


def models() -> str:
    """Every model against the truth."""
    result = stored()
    heads = ("", "learns from", "AUC", "ECE", "logged", "candidates of SFT", "scoring's share")
    lines = [_row(heads), "|---|---|" + "---|" * (len(heads) - 2)]
    for name, one in result["models"].items():
        users = result["settings"]["models"][name]["users"]
        cells = (
            f"`{name}`",
            READS[name].format(users=users),
            f"{one['clicks']['auc']['mean']:.3f}",
            f"{one['own']['ece']['mean']:.3f}",
            _agreement(one["logged"]),
            _agreement(one["generated"]["start"]),
            f"{100 * one['share_of_iteration']['mean']:.1f} %",
        )
        lines.append(_row(cells))
    return "\n".join(lines)


def gates() -> str:
    """What gates let pass."""
    heads = ("gate", "of the catalogue", "of what users took next", "of the ten that they like best")
    lines = [_row(heads), "|---|" + "---|" * (len(heads) - 1)]
    for one in stored()["gates"].values():
        shares = (f"{100 * one[name]['mean']:.0f} %" for name in ("catalogue", "targets", "best_ten"))
        lines.append(_row((f"`{one['relevance']}` > {one['tau']['mean']:.2f}", *shares)))
    return "\n".join(lines)


def arms() -> str:
    """What RL changed, by arm."""
    result = stored()
    start, named = result["start"], [arm["model"] for arm in result["arms"].values() if arm["model"]]
    heads = ("", "true preference", "learned", "the judge", "NDCG@10", "HR@50", "KL")
    lines = [_row(heads), "|---|" + "---|" * (len(heads) - 1)]
    said = ", ".join(f"{start[f'learned/{model}']['mean']:.3f} `{model}`" for model in dict.fromkeys(named))
    begin = (start[figure]["mean"] for figure in ("true@10", "ndcg@10", "hr@50"))
    true, *kept = (f"{value:.3f}" for value in begin)
    lines.append(_row(("SFT, where all begin", true, said, "", *kept, "0")))
    for name, arm in result["arms"].items():
        gained = arm["minus_start"]
        cells = [
            f"{name} (lr {arm['lr']:g})" if not arm["model"] else name,
            _interval(gained["true@10"]),
            *(_interval(gained[f"learned/{of}"]) if of else "–" for of in (arm["model"], JUDGES.get(arm["model"]))),
            *(_interval(gained[figure]) for figure in ("ndcg@10", "hr@50")),
            f"{arm['curve'][-1]['kl']:.1f}",
        ]
        lines.append(_row(cells))
    return "\n".join(lines)


JUDGES = {"din": "pscore", "weak": "weak_other"}
"""Model of an arm -> another one that had no part in its training, and is no better."""


TOLD = (
    "ungated - gated",
    "ungated, no nll - gated, no nll",
    "weak ungated - weak gated",
    "weak ungated, bare - weak gated, bare",
    "weak ungated, bare - weak prefix gate, bare",
    "gated - nll only",
)
"""Pairs that the page tells."""


def pairs() -> str:
    """One arm over another, a line each."""
    result = stored()
    lines = []
    for name in TOLD:
        pair, (mine, other) = result["pairs"][name], name.split(" - ")
        models = {result["arms"][arm]["model"] for arm in (mine, other)}
        parts = [f"true preference {_interval(pair['true@10'])}"]
        parts += [f"learned {_interval(pair[f'learned/{model}'])}" for model in models if len(models) == 1]
        parts.append(f"NDCG@10 {_interval(pair['ndcg@10'])}")
        seeds = ", ".join(f"{x:+.3f}" for x in pair["true@10"]["seeds"])
        lines.append(f"- {mine} over {other}: {'; '.join(parts)}. True preference by seed: {seeds}.")
    return "\n".join(lines)


def results() -> str:
    """All parts, one after another."""
    return "\n\n".join(part() for part in PARTS.values())


PARTS: Mapping[str, Callable[[], str]] = {
    "setting": setting,
    "models": models,
    "gates": gates,
    "arms": arms,
    "pairs": pairs,
}
"""The parts of the page that quote results."""


DRAWN = (
    *("gated", "ungated", "ungated, bare", "prefix gate"),
    *("weak gated", "weak ungated", "weak ungated, bare", "weak prefix gate, bare"),
)
"""Arms of the picture, four a row."""
LINES = (
    ("true@10", "true", "#1b6ca8", "-"),
    ("own", "learned", "#c8553d", "-"),
    ("judge", "the judge", "#c8553d", ":"),
    ("ndcg@10", "NDCG@10", "#888888", "--"),
)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """The hacking curves as an SVG file; the same result gives the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "sidgym"
    from matplotlib import pyplot

    shown = [name for name in DRAWN if name in result["arms"]]
    figure, panels = pyplot.subplots(
        -(-len(shown) // 4), 4, figsize=(11, 2.6 * -(-len(shown) // 4)), sharex=True, sharey=True, squeeze=False,
        constrained_layout=True,
    )  # fmt: skip
    for name, axes in zip(shown, panels.flat):
        arm = result["arms"][name]
        models = {"own": f"learned/{arm['model']}", "judge": f"learned/{JUDGES[arm['model']]}"}
        for line, label, colour, style in LINES:
            values = [one[models.get(line, line)] for one in arm["curve"]]
            axes.plot([one["step"] for one in arm["curve"]], values, color=colour, linestyle=style, label=label)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(frameon=False, fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("iteration", fontsize=8)
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def stored() -> dict[str, Any]:
    """The stored result."""
    return json.loads((RESULTS / "preference.json").read_text())


def _agreement(found: Mapping[str, Any]) -> str:
    """Spearman over all pairs, and Pearson inside a context."""
    return f"{found['spearman']['mean']:.2f} / {found['within']['mean']:.2f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _interval(figures: Mapping[str, Any]) -> str:
    return f"{figures['mean']:+.3f} [{figures['low']:+.3f}, {figures['high']:+.3f}]"
