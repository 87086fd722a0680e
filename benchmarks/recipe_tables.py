"""What the search for a recipe found, as tables made from the stored result and never typed by hand.

    python -c "from sidgym.benchmarks.recipe_tables import *; print(final(stored()))"

``search`` is what every arm gained on validation users in each rung that it was in, for ``RESULTS.md``; ``final`` what
the choice did on test users, once they have been judged, for ``docs/recipe.md`` and for that page. Left out: the search
itself (``recipe``) and what is to be made of it.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent / "results" / "recipe.json"
STORES = {"scientific": "Scientific", "beauty": "Beauty"}
METRICS = {"n@10": "N@10", "r@50": "R@50"}


def stored() -> dict[str, Any]:
    """The search, and the final test where it has been made. ``FileNotFoundError`` before there is either."""
    result: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return result


def search(result: Mapping[str, Any]) -> Iterator[str]:
    """Every arm's gains over the start and over the best control of its store, rung by rung."""
    for number, rung in enumerate(result["search"]["rungs"]):
        yield from told(number, rung)


def told(number: int, rung: Mapping[str, Any]) -> Iterator[str]:
    """A rung: a sentence and a table, the best arm first, then the controls and the start."""
    control, arms = rung["control"], rung["arms"]
    kept = ", ".join(f"*{name}*" for name in rung["kept"])
    against = ", ".join(f"*{control[store]}* ({title})" for store, title in STORES.items())
    seeds = f"{rung['seeds']} seed{'s' if rung['seeds'] > 1 else ''}"
    yield (
        f"**Rung {number + 1}**: {rung['steps']} iterations, at most {rung['users']:,} validation users a store, "
        f"{seeds}. The controls that stand highest: {against}. Went on: {kept}."
    )
    heads = [f"{title} {metric} − {other}" for title in STORES.values() for metric in METRICS.values()
             for other in ("start", "control")]  # fmt: skip
    lines = [_row(("", "score", *heads)), "|---|" + "---|" * (len(heads) + 1)]
    for name in sorted(arms, key=lambda name: -arms[name].get("score", -1000.0)):
        arm = arms[name]
        cells = ["broke"] if arm.get("broken") else [f"{arm['score']:+.2f}" if "score" in arm else "–"]
        for store in STORES:
            for metric in METRICS:
                cells += [_gain(arm, store, metric, "sft"), _gain(arm, store, metric, control[store])]
        lines.append(_row((_name(name), *cells)))
    yield "\n".join(lines).replace("-0.", "−0.").replace("| -", "| −")
    yield from alike(rung)


def alike(rung: Mapping[str, Any]) -> Iterator[str]:
    """What rewards alone add: arms over the control with the same rate and the same way to come by its contexts."""
    arms = {name: arm["like"] for name, arm in rung["arms"].items() if "like" in arm}
    if not arms:
        return
    yield "Over the control with the same learning rate and contexts, 95 % over users, not corrected:"
    heads = [f"{title} {metric}" for title in STORES.values() for metric in METRICS.values()]
    lines = [_row(("", "control", *heads)), "|---|---|" + "---|" * len(heads)]
    for name, pairs in arms.items():
        cells = [_interval(pairs[store][metric]) for store in STORES for metric in METRICS]
        lines.append(_row((name, pairs["control"], *cells)))
    yield "\n".join(lines)


def final(result: Mapping[str, Any]) -> str:
    """The eight differences of the criterion on test users; "" before these have been judged."""
    if "final" not in result:
        return ""
    result = result["final"]
    lines = [_row(("", "metric", "recipe", "start", "control", "recipe − start", "recipe − control", "met"))]
    lines.append("|---|" + "---|" * 7)
    beside = []
    for store, title in STORES.items():
        found = result["stores"][store]
        for metric, head in METRICS.items():
            means = [_mean([seed[metric] for seed in found["seeds"][arm]]) for arm in ("recipe", "sft", "nll")]
            pairs = [found[f"recipe_minus_{other}"][metric] for other in ("sft", "nll")]
            met = "yes" if all(pair["low"] > 0 for pair in pairs) else "no"
            where = f"{title}, {found['users']:,} users, *{result['control'][store]}*"
            lines.append(_row((where, head, *(f"{mean:.4f}" for mean in means), *map(_interval, pairs), met)))
    for store, title in STORES.items():
        for other, pairs in result["stores"][store]["beside"].items():
            told = ", ".join(f"{head} {_interval(pairs[metric])}" for metric, head in METRICS.items())
            beside.append(f"{title}, recipe − *{other}*, the other store's control: {told}.")
    held = "is met" if result["criterion_met"] else "is not met"
    seeds = len(next(iter(result["stores"].values()))["seeds"]["recipe"])
    return "\n".join(
        [
            f"*{result['recipe']}* on test users, {seeds} seeds, 95 % intervals over users. The criterion {held}.",
            "",
            *lines,
            "",
            " ".join(beside),
        ]
    )


def _gain(arm: Mapping[str, Any], store: str, metric: str, other: str) -> str:
    """An arm's mean gain; nothing for a system over itself."""
    value = arm.get(store, {}).get(f"{metric} minus {other}")
    return "–" if value is None else f"{value:+.4f}"


def _name(arm: str) -> str:
    return {"sft": "start (SFT)"}.get(arm, arm)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _interval(pair: Mapping[str, float]) -> str:
    return f"{pair['mean']:+.4f} [{pair['low']:+.4f}, {pair['high']:+.4f}]".replace("-", "−")


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
