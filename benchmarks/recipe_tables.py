"""What the search for a recipe found, as tables made from the stored result and never typed by hand.

``search`` is what every arm gained on validation users in each rung that it was in, for ``RESULTS.md``; ``final`` what
the choice did on test users, once they have been judged, for ``docs/recipe.md`` and for that page. Left out: the search
itself (``recipe``) and what is to be made of it.
"""

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from sidgym.benchmarks.arms_tables import grid, interval_cell

STORES = {"scientific": "Scientific", "beauty": "Beauty"}
METRICS = {"n@10": "N@10", "r@50": "R@50"}


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
        f"{seeds}. The controls furthest above the start, in standard errors: {against}. Went on: {kept}."
    )
    heads = [f"{title} {metric} − {other}" for title in STORES.values() for metric in METRICS.values()
             for other in ("start", "control")]  # fmt: skip
    rows = {}
    for name in sorted(arms, key=lambda name: -arms[name].get("score", -1000.0)):
        arm = arms[name]
        cells = ["broke" if arm.get("broken") else _signed(arm.get("score"), 2)]
        for store in STORES:
            for metric in METRICS:
                cells += [_signed(arm.get(store, {}).get(f"{metric} minus {o}"), 4) for o in ("sft", control[store])]
        rows["start (SFT)" if name == "sft" else name] = cells
    yield grid(["score", *heads], rows)
    yield from alike(rung)


def alike(rung: Mapping[str, Any]) -> Iterator[str]:
    """What rewards alone add: arms over the control with the same rate and the same way to come by its contexts."""
    arms = {name: arm["like"] for name, arm in rung["arms"].items() if "like" in arm}
    if not arms:
        return
    yield "Over the control with the same learning rate and contexts, 95 % over users, not corrected:"
    heads = [f"{title} {metric}" for title in STORES.values() for metric in METRICS.values()]
    cells = {name: [interval_cell(pairs[store][metric]) for store in STORES for metric in METRICS]
             for name, pairs in arms.items()}  # fmt: skip
    yield grid(["control", *heads], {name: [arms[name]["control"], *row] for name, row in cells.items()})


def final(result: Mapping[str, Any]) -> str:
    """The eight differences of the criterion on test users; "" before these have been judged."""
    if "final" not in result:
        return ""
    result = result["final"]
    rows, beside = {}, []
    for store, title in STORES.items():
        found = result["stores"][store]
        for metric, head in METRICS.items():
            means = [fmean(seed[metric] for seed in found["seeds"][arm]) for arm in ("recipe", "sft", "nll")]
            pairs = [found[f"recipe_minus_{other}"][metric] for other in ("sft", "nll")]
            met = "yes" if all(pair["low"] > 0 for pair in pairs) else "no"
            where = f"{head}, {title}, {found['users']:,} users, *{result['control'][store]}*"
            rows[where] = [*(f"{mean:.4f}" for mean in means), *map(interval_cell, pairs), met]
        for other, pairs in found["beside"].items():
            told = ", ".join(f"{head} {interval_cell(pairs[metric])}" for metric, head in METRICS.items())
            beside.append(f"{title}, recipe − *{other}*, the other store's control: {told}.")
    held = "is met" if result["criterion_met"] else "is not met"
    seeds = len(next(iter(result["stores"].values()))["seeds"]["recipe"])
    said = f"*{result['recipe']}* on test users, {seeds} seeds, 95 % intervals over users. The criterion {held}."
    table = grid(["recipe", "start", "control", "recipe − start", "recipe − control", "met"], rows)
    return "\n\n".join(part for part in (said, table, " ".join(beside)) if part)


def _signed(value: float | None, digits: int) -> str:
    """A gain with its sign; nothing for a system over itself."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")
