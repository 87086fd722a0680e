"""What a contest of arms shows, in words: which is best, by how much, how sure that is, at what cost, where each fails.

A difference is called one only where the corrected p-value says so; else the sentence says that none is shown. Left
out: figures and tests (``arms_summary``), tables (``arms_tables``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sidgym.benchmarks.arms_summary import CONTROL, START
from sidgym.benchmarks.comparisons import LEVEL, shown

Summary = Mapping[str, Any]

NAMES = {START: "SFT", CONTROL: "NLL only"}
METRICS = {
    "preference@10": "true preference of the top 10",
    "preference@1": "true preference of the first place",
    "ndcg@10": "NDCG@10",
    "hr@10": "HR@10",
}
COSTLY = 1.05
"""Times the rollouts or operations of the leanest arm from which on a budget is called another one."""
UNSTEADY = 10.0
"""Largest importance ratio of all iterations from which on it is remarked on."""


def name_of(system: str) -> str:
    """What readers call a system; objectives go by their own names."""
    return NAMES.get(system, system)


def kind_of(summary: Summary) -> str:
    """What an arm of the contest is called."""
    return summary.get("kind", "objective")


def metric_name(metric: str) -> str:
    """What readers call a metric."""
    return METRICS.get(metric, metric)


def scope_of(seeds: int) -> str:
    """What a test holds for, to be put behind "shown": with one seed nothing is known of another training."""
    return "" if seeds > 1 else ", for this one training of each,"


def spread_of(summary: Summary) -> str:
    """What the summary's intervals are over."""
    return "users and seeds" if len(summary["seeds"]) > 1 else "the users of this one training"


def arms_of(summary: Summary) -> list[str]:
    """The arms that were trained to earn a reward, best first by the summary's metric."""
    figures, metric = summary["objectives"], summary["metric"]
    arms = [name for name in figures if name not in (START, CONTROL)]
    return sorted(arms, key=lambda name: -figures[name][metric]["mean"])


def pair_of(summary: Summary, a: str, b: str, metric: str) -> dict[str, Any] | None:
    """The comparison of two systems with the difference as a minus b; None where there is none."""
    for pair in summary["pairs"]:
        if pair["metric"] != metric or {pair["a"], pair["b"]} != {a, b}:
            continue
        if pair["a"] == a:
            return pair
        turned = {key: -pair[other] for key, other in (("mean", "mean"), ("low", "high"), ("high", "low"))}
        users = {"low": -pair["users"]["high"], "high": -pair["users"]["low"]}
        seeds = {seed: -value for seed, value in pair["seeds"].items()}
        return {**pair, "a": a, "b": b, **turned, "users": users, "seeds": seeds}
    return None


def verdict(summary: Summary) -> list[tuple[int, str]]:
    """Sentences, each with its sign: 1 good news of an arm, -1 bad news, 0 neither."""
    arms = arms_of(summary)
    if not arms:
        return [(0, f"No {kind_of(summary)} has been trained yet besides the start and its control.")]
    return [
        *_fewer(summary),
        _best(summary, arms),
        *_against(summary, arms, START),
        *_against(summary, arms, CONTROL),
        *_other_metric(summary, arms),
        *_cost(summary, arms),
        (0, _confidence(summary)),
    ]


def headline(summary: Summary) -> list[str]:
    """Of the verdict: who is best, who is above the start, and who finds less of what users took next."""
    arms = arms_of(summary)
    above = [said for said in _against(summary, arms, START) if said[0] > 0]
    return [text for _, text in (_best(summary, arms), *above, *_other_metric(summary, arms))]


def _fewer(summary: Summary) -> list[tuple[int, str]]:
    """Which systems lack seeds, so that the others' are not counted either."""
    if not summary["fewer"]:
        return []
    each = "; ".join(
        f"{name_of(name)} lacks {_numbers(seeds)}"
        + ("" if name in summary["objectives"] else " and has none in common with the others, so it is left out")
        for name, seeds in summary["fewer"].items()
    )
    return [(-1, f"Only what all have is compared, {_numbers(summary['seeds'])}: {each}.")]


def _numbers(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _best(summary: Summary, arms: Sequence[str]) -> tuple[int, str]:
    metric, top = summary["metric"], arms[0]
    what, value = metric_name(metric), _value(summary, top, metric)
    percent = summary["objectives"][top]["pct_oracle"]
    oracle = "" if percent is None else f", {percent:.1f} % of the way from random to the oracle"
    rivals = [name for name in summary["objectives"] if name != top]
    pairs = {name: pair_of(summary, top, name, metric) for name in rivals}
    tied = [name for name, pair in pairs.items() if pair is None or shown(pair) == 0]
    above = [name for name, pair in pairs.items() if pair and shown(pair) < 0]
    scope = scope_of(len(summary["seeds"]))
    if above:
        return -1, (
            f"No {kind_of(summary)} is best: {_listed(above)} {'are' if len(above) > 1 else 'is'} shown{scope} to be "
            f"above the highest of them in {what}, {top} with {value}{oracle}."
        )
    if not tied:
        margin = min((pair for pair in pairs.values() if pair), key=lambda pair: pair["mean"])
        return 1, (
            f"{top} is best in {what}: {value}{oracle}. It is shown{scope} to be above all others; the nearest is "
            f"{name_of(margin['b'])}, by {_difference(margin)}."
        )
    return 0, (
        f"No single best is shown in {what}. The highest mean is {top}'s, {value}{oracle}. Its lead is not shown to be "
        f"more than chance over {_listed(tied)}{_ranges(pairs, tied)}."
    )


def _ranges(pairs: Mapping[str, Any], tied: Sequence[str]) -> str:
    """How large the lead that is not shown may still be."""
    highs = [pair["high"] for name, pair in pairs.items() if name in tied and pair]
    return f" (by the 95 % intervals it could be up to {max(highs):.4f})" if highs else ""


def _against(summary: Summary, arms: Sequence[str], other: str) -> list[tuple[int, str]]:
    """The arms above, below and beside the start or the control, in the summary's metric."""
    metric, said = summary["metric"], []
    pairs = {arm: pair for arm in arms if (pair := pair_of(summary, arm, other, metric))}
    for sign, verb in ((1, "above"), (-1, "below")):
        found = {arm: pair for arm, pair in pairs.items() if shown(pair) == sign}
        if found:
            each = "; ".join(f"{arm} by {_difference(pair)}" for arm, pair in found.items())
            scope = scope_of(len(summary["seeds"]))
            said.append((sign, f"Shown{scope} to be {verb} {name_of(other)} in {metric_name(metric)}: {each}."))
    beside = [arm for arm, pair in pairs.items() if shown(pair) == 0]
    if beside:
        each = "; ".join(f"{arm} {_difference(pairs[arm])}" for arm in beside)
        said.append((0, f"Not shown to differ from {name_of(other)} in {metric_name(metric)}: {each}."))
    return said


def _other_metric(summary: Summary, arms: Sequence[str]) -> list[tuple[int, str]]:
    """The next item where the summary's metric is the preference: what the preference costs there."""
    if summary["metric"] == "ndcg@10":
        return []
    pairs = {arm: pair for arm in arms if (pair := pair_of(summary, arm, START, "ndcg@10"))}
    below = {arm: pair for arm, pair in pairs.items() if shown(pair) < 0}
    above = [arm for arm, pair in pairs.items() if shown(pair) > 0]
    scope, said = scope_of(len(summary["seeds"])), []
    if below:
        least = max(below, key=lambda arm: below[arm]["mean"])
        most = min(below, key=lambda arm: below[arm]["mean"])
        span = f"least by {least}, {_difference(below[least])}, most by {most}, {_difference(below[most])}"
        each = f"{_listed(below)}; {span}" if most != least else f"{least}, {_difference(below[least])}"
        said.append((-1, f"What users took next is found less often than by SFT{scope} (NDCG@10): {each}."))
    if above:
        said.append((1, f"What users took next is found more often than by SFT{scope} (NDCG@10): {_listed(above)}."))
    return said


def _cost(summary: Summary, arms: Sequence[str]) -> list[tuple[int, str]]:
    figures, metric, top = summary["objectives"], summary["metric"], arms[0]
    tied = [
        arm for arm in arms if arm == top or not shown(pair_of(summary, top, arm, metric) or {"p_holm": 1, "mean": 0})
    ]
    timed = [arm for arm in tied if figures[arm]["seconds"] is not None]
    said = []
    if timed:
        cheap = min(timed, key=lambda arm: figures[arm]["seconds"])
        text = f"One training of {top} took {figures[top]['seconds']:.0f} s"
        if cheap != top:
            text += f", of {cheap}, not shown to differ, {figures[cheap]['seconds']:.0f} s"
        said.append((0, text + ", in one process, with whatever else ran beside it."))
    unequal = [arm for arm in arms if _budget(summary, arm) > COSTLY]
    if unequal:
        each = ", ".join(f"{arm} {_budget(summary, arm):.2f} times" for arm in unequal)
        why = "because groups were refilled, or more was drawn than is learned from"
        said.append((-1, f"Not at an equal budget: {each} the rollouts of the leanest, {why}."))
    apart = [arm for arm in arms if not summary["contexts_equal"].get(arm, True)]
    if apart:
        said.append(
            (-1, f"Not from the same contexts as the others: {_listed(apart)} (refills have contexts of their own).")
        )
    return said


def _budget(summary: Summary, arm: str) -> float:
    """Rollouts of an arm over those of the leanest."""
    known = {name: f["rollouts"] for name, f in summary["objectives"].items() if f.get("rollouts")}
    return known[arm] / min(known.values()) if arm in known else 1.0


def _confidence(summary: Summary) -> str:
    seeds, pairs = summary["seeds"], [pair for pair in summary["pairs"] if pair["metric"] == summary["metric"]]
    counted = f"{summary['n_users']:,} test users of {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    text = (
        f"How sure this is: {counted}; differences are paired by user, {len(pairs)} pairs are tested at once (Holm, "
        f"{LEVEL:.0%} for all of them together)"
    )
    if len(seeds) == 1:
        return f"{text}. With one seed nothing is known of the spread between trainings: repeat with more seeds."
    few = " With fewer than five seeds only large differences can be shown." if len(seeds) < 5 else ""
    return f"{text}, and the spread between seeds counts as well as that between users.{few}"


def failures(summary: Summary) -> dict[str, list[str]]:
    """Where each arm fails: worse segments of users, lost legality, narrowed lists, a gamed reward, wild ratios."""
    told = {}
    for arm in [*arms_of(summary), *(name for name in (CONTROL,) if name in summary["objectives"])]:
        told[arm] = [*_worse_segments(summary, arm), *_behaviour(summary, arm)] or ["nothing that these figures show"]
    return told


def _worse_segments(summary: Summary, arm: str) -> list[str]:
    said = []
    for row in summary["segments"]:
        cell = row["arms"].get(arm)
        if cell and cell["mean"] < 0 and cell["agree"] and cell["p_holm"] < LEVEL:
            said.append(
                f"below SFT by {-cell['mean']:.4f} where {row['segment']} is {row['band']} ({row['users']} users)"
            )
    return said


def _behaviour(summary: Summary, arm: str) -> list[str]:
    figures, start, said = summary["objectives"][arm], summary["objectives"][START], []
    hacking = summary["hacking"].get(arm, {})
    reward, ndcg = hacking.get("reward"), hacking.get("ndcg@10")
    if reward and ndcg and reward["low"] > 0 and ndcg["high"] < 0:
        text = f"its reward rises by {reward['mean']:.3f} while validation NDCG@10 falls by {-ndcg['mean']:.3f}"
        said.append(text + (f"; the audit warned in {hacking['warned']} seed(s)" if hacking["warned"] else ""))
    for key, text, least in (
        ("illegal_mass", "probability that leaves the catalogue along the target's codes, without the trie", 0.1),
        ("har", "share of candidates without the trie that do not exist", 0.05),
    ):
        if figures[key] is not None and start[key] is not None and figures[key] - start[key] > least:
            said.append(f"{text}: {start[key]:.2f} at the start, {figures[key]:.2f} now")
    for key, text in (("coverage@10", "share of the catalogue in anyone's top 10"), ("tail@10", "long-tail share")):
        before, now = (_plain(part.get(key)) for part in (start, figures))
        if before and now is not None and now < 0.8 * before:
            said.append(f"{text} falls from {before:.3f} to {now:.3f}")
    if figures["ratio_max"] is not None and figures["ratio_max"] > UNSTEADY:
        said.append(f"importance ratios of up to {figures['ratio_max']:.0f}")
    if figures["refused"]:
        said.append(f"{figures['refused']:.0f} updates were refused because they were not finite")
    return said


def _plain(value: Any) -> float | None:
    return value["mean"] if isinstance(value, Mapping) else value


def _value(summary: Summary, system: str, metric: str) -> str:
    told = summary["objectives"][system][metric]
    return f"{told['mean']:.4f} (95 % interval {told['low']:.4f} to {told['high']:.4f})"


def _difference(pair: Mapping[str, Any]) -> str:
    text = f"{pair['mean']:+.4f} ({pair['low']:+.4f} to {pair['high']:+.4f}, corrected p {p_value(pair['p_holm'])})"
    return text.replace("-", "−")


def p_value(p: float) -> str:
    """A p-value as it is printed."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _listed(names: Any) -> str:
    told = [name_of(name) for name in names]
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"
