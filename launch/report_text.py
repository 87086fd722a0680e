"""What the report says in words and figures: names of systems, columns of the main table, verdicts.

Verdicts follow the intervals: a difference is called one only if its interval lies on one side of zero. Left out: HTML,
charts and where the figures come from.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidgym.benchmarks.summary import BASELINES, CEILINGS, MAIN, RERANKED, is_trained

Summary = Mapping[str, Any]

_SYSTEMS = {
    "random": ("Random", "items drawn at random, by the exact expectation"),
    "popularity": ("Popularity", "the most frequent items of the training data, the same list for everyone"),
    "cooccurrence": ("Co-occurrence", "items that most often follow the history's last item in the training data"),
    "sft_all": ("SFT on all data", "supervised training on the RL contexts too: the same data spent without RL"),
    "sft": ("SFT", "the supervised policy that RL and every control start from"),
    "sft_reranked": ("SFT, reranked", "the top 50 of SFT sorted by the learned reward; costs extra time at inference"),
    "nll_only": ("NLL only", "control: RL's contexts and steps, but only the likelihood of the targets is raised"),
    "rule_rank": ("Rule + rank", "control: RL with the rule and rank rewards"),
    "rl": ("RL", "the policy after reinforcement learning, the main arm"),
    "oracle": ("Oracle", "best expected preference for one who knows the simulator and the history, not the taste"),
    "bound": ("Bound", "best preference for one who also knows the user's latent taste; out of reach"),
}

_GROUPS = {
    "hr": "Hit rate (HR)",
    "ndcg": "NDCG",
    "preference": "True preference",
    "percent": "% of oracle",
    "har": "Legality",
    "trie/legal_mass": "Legality",
    "coverage": "Variety",
    "div": "Variety",
}
_HEADS = {"har": "HaR %", "trie/legal_mass": "legal", "coverage": "cover", "div": "Div"}
_NAMES = {
    "ndcg@10": "NDCG@10 of the item that came next",
    "preference@1": "the expected true preference of the first recommendation",
    "preference@10": "the expected true preference of the top 10",
}


def label(system: str) -> str:
    """The name of a system as readers see it."""
    return _SYSTEMS[system][0] if system in _SYSTEMS else system.replace("_", " ")


def description(system: str) -> str:
    """What a system is, in half a sentence; arms that the project does not know are called controls."""
    return _SYSTEMS[system][1] if system in _SYSTEMS else "control arm of this run's configuration"


def order_systems(systems: Iterable[str]) -> list[str]:
    """Baselines, trained policies with the main arm last, the reranker, ceilings."""
    names = list(systems)
    arms = [s for s in names if is_trained(s) and s not in ("sft_all", "sft", MAIN)]
    sequence = (*BASELINES, "sft_all", "sft", *arms, MAIN, RERANKED, *CEILINGS)
    return [s for s in sequence if s in names]


def place(system: str) -> int:
    """Which block of the table a system stands in: 0 baselines, 1 trained, 2 reranker, 3 ceilings."""
    return 0 if system in BASELINES else 2 if system == RERANKED else 3 if system in CEILINGS else 1


@dataclass(frozen=True)
class Column:
    """One column of the main table."""

    key: str  # metric name; "percent/METRIC" for a percentage of the oracle
    group: str
    head: str
    digits: int
    better: str = "high"  # "high", "low", or "" where neither end is better in itself
    scale: float = 1.0

    def value(self, summary: Summary, system: str) -> float | None:
        """The figure of a system, in the column's unit; None where it has none."""
        if self.key.startswith("percent/"):
            value = summary["percent_of_oracle"].get(system, {}).get(self.key.removeprefix("percent/"))
        else:
            value = summary["systems"].get(system, {}).get(self.key)
        return None if value is None else value * self.scale

    def best(self, summary: Summary) -> set[str]:
        """Trained systems with the best value as shown; empty unless two trained systems can be compared."""
        if not self.better:
            return set()
        values = {s: self.value(summary, s) for s in summary["systems"] if is_trained(s)}
        shown = {s: round(v, self.digits) for s, v in values.items() if v is not None}
        if len(shown) < 2:
            return set()
        top = max(shown.values()) if self.better == "high" else min(shown.values())
        return {s for s, v in shown.items() if v == top}


def columns(summary: Summary) -> list[Column]:
    """Columns with at least one figure: HR, NDCG, preference, % of oracle, legality, variety, then unknown metrics."""
    metrics = dict.fromkeys(m for figures in summary["systems"].values() for m in figures)
    keys = [m for m in metrics if m not in ("n_users", "seeds")]
    keys += [f"percent/{m}" for m in ("preference@1", "preference@10")]
    rank = list(dict.fromkeys(_GROUPS.values()))
    built = [_column(key) for key in keys]
    built = [c for c in built if any(c.value(summary, system) is not None for system in summary["systems"])]
    return sorted(built, key=lambda c: (rank.index(c.group) if c.group in rank else len(rank), _cutoff(c.key)))


def _cutoff(key: str) -> tuple[str, int]:
    stem, _, k = key.partition("@")
    return ("" if stem in ("har",) else stem, int(k) if k.isdigit() else 0)


def _column(key: str) -> Column:
    stem = key.partition("/")[0] if key.startswith("percent/") else key.partition("@")[0]
    cut = re.sub(r"^[^@]*", "", key)
    if stem == "percent":
        return Column(key, _GROUPS[stem], cut, 1)
    if stem in ("hr", "ndcg"):
        return Column(key, _GROUPS[stem], cut, 4)
    if stem == "preference":
        return Column(key, _GROUPS[stem], cut, 3)
    if stem == "har":
        return Column(key, _GROUPS[stem], _HEADS[stem], 2, "low", 100.0)
    if stem in ("coverage", "div"):
        return Column(key, _GROUPS[stem], _HEADS[stem] + cut, 3, "")
    if stem in _HEADS:
        return Column(key, _GROUPS[stem], _HEADS[stem] + cut, 3)
    return Column(key, "Other", key, 4, "")


def number(value: float | None, digits: int, signed: bool = False) -> str:
    """A figure with a true minus sign; an en dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0.0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


# Sentences -----------------------------------------------------------------------------------------------------------


def judgement(interval: Mapping[str, float]) -> int:
    """1 if the whole interval lies above zero, -1 if below, 0 if it touches zero."""
    return 1 if interval["low"] > 0 else -1 if interval["high"] < 0 else 0


def verdicts(summary: Summary) -> list[tuple[int, str]]:
    """Sentences on RL against its SFT start, against every other arm, and on the way to the oracle.

    Each with the direction of the change against SFT: 1 up, -1 down, 0 neither or another matter.
    """
    out = [
        (judgement(interval), _against_sft(summary, metric, interval))
        for metric in ("preference@10", "preference@1", "ndcg@10")
        if (interval := summary[f"{MAIN}_minus_sft"].get(metric))
    ]
    for pair in summary:
        other = pair.removeprefix(f"{MAIN}_minus_")
        if other not in (pair, "sft"):
            out += [(0, sentence) for sentence in _against_control(other, summary[pair])]
    shares = {s: (summary["percent_of_oracle"].get(s) or {}).get("preference@10") for s in ("sft", MAIN)}
    if shares["sft"] is not None and shares[MAIN] is not None:
        sft, rl = (number(shares[s], 1) for s in ("sft", MAIN))
        sentence = (
            f"On the scale from random (0\u00a0%) to the oracle (100\u00a0%), the true preference of the top 10 "
            f"stands at {rl}\u00a0% with RL and at {sft}\u00a0% with SFT."
        )
        out.append((0, sentence))
    return [*out, (0, _spread(summary))] if out else [(0, "There is no pair of SFT and RL results to compare.")]


def _digits(metric: str, interval: Mapping[str, float]) -> int:
    """As many as in the table; one more for a preference whose difference or bound would show as almost nothing."""
    small = min(abs(interval[key]) for key in ("mean", "low", "high")) < 0.0015
    return 3 if metric.startswith("preference") and not small else 4


def _range(interval: Mapping[str, float], digits: int, sign: int = 1) -> str:
    low, high = sorted((sign * interval["low"], sign * interval["high"]))
    return f"95\u00a0% interval {number(low, digits)} to {number(high, digits)}"


def _against_sft(summary: Summary, metric: str, interval: Mapping[str, float]) -> str:
    digits, sign = _digits(metric, interval), judgement(interval)
    before, after = (number((summary["systems"].get(s) or {}).get(metric), digits) for s in ("sft", MAIN))
    if sign == 0:
        mean = number(interval["mean"], digits, signed=True)
        return (
            f"RL did not measurably change {_NAMES[metric]} against its own SFT start: {before} before, {after} after, "
            f"difference {mean} ({_range(interval, digits)})."
        )
    verb = "raised" if sign > 0 else "lowered"
    return (
        f"RL {verb} {_NAMES[metric]} over its own SFT start by {number(abs(interval['mean']), digits)} "
        f"({_range(interval, digits, sign)}), from {before} to {after}."
    )


def _against_control(other: str, intervals: Mapping[str, Any]) -> list[str]:
    """One sentence on the difference to another arm: by preference of the top 10, else by NDCG@10."""
    metric = next((m for m in ("preference@10", "ndcg@10") if intervals.get(m)), None)
    if metric is None:
        return []
    interval = intervals[metric]
    digits, sign = _digits(metric, interval), judgement(interval)
    name = label(other)
    what = "the true preference of the top 10" if metric == "preference@10" else "NDCG@10"
    if sign == 0:
        mean = number(interval["mean"], digits, signed=True)
        return [f"In {what}, RL and {name} cannot be told apart: difference {mean} ({_range(interval, digits)})."]
    size, side = number(abs(interval["mean"]), digits), "above" if sign > 0 else "below"
    return [f"In {what}, RL stands {size} {side} {name} ({_range(interval, digits, sign)})."]


def _spread(summary: Summary) -> str:
    """What the intervals cover, and how the seeds agree."""
    seeds = summary["seeds"]
    covers = f"Intervals come from {summary['bootstrap_resamples']:,} paired bootstrap resamples of the test users"
    if len(seeds) == 1:
        return f"{covers}; this is one seed, so they say nothing about the spread between training runs."
    across = (summary["over_seeds"].get(f"{MAIN}_minus_sft") or {}).items()
    ranges = [f"{m} {number(v['min'], 4, True)} to {number(v['max'], 4, True)}" for m, v in across if v]
    listed = f" Over the {len(seeds)} seeds the mean difference of RL to SFT ranges: {'; '.join(ranges)}."
    return f"{covers}, all seeds together; they leave out the spread between runs." + (listed if ranges else "")


def in_words(summary: Summary, config_toml: str) -> str:
    """What was run: data, policy, training, users. Says only what the configuration and the summary hold."""
    try:
        config = tomllib.loads(config_toml)
    except tomllib.TOMLDecodeError:
        config = {}
    data, policy, sft, rl = (_section(config, name) for name in ("data", "policy", "sft", "rl"))
    parts = []
    if "name" in data:
        size = f" ({data['users']:,} users, {data['items']:,} items)" if data["name"] == "simulator" else ""
        parts.append(f"Data: {data['name']}{size if {'users', 'items'} <= data.keys() else ''}.")
    if policy.get("path"):
        parts.append("Policy: a pretrained language model.")
    elif {"architecture", "layers", "hidden_size"} <= policy.keys():
        parts.append(
            f"Policy: a {policy['architecture']} language model of {policy['layers']} layers and width "
            f"{policy['hidden_size']}, from scratch."
        )
    if "epochs" in sft and {"objective", "steps", "group_size", "contexts_per_step"} <= rl.keys():
        parts.append(
            f"Training: at most {sft['epochs']} epochs of SFT, then {rl['steps']:,} steps of {rl['objective']} with "
            f"{rl['contexts_per_step']} contexts a step and {_candidates(rl)}{_rewards(rl)}."
        )
    seeds = summary["seeds"]
    counted = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds ({', '.join(map(str, seeds))})"
    whose = "each seed's own" if len(seeds) > 1 else "the same"
    parts.append(
        f"Within a seed every system was judged on {whose} test users: {summary['n_users']:,} in all, {counted}."
    )
    return " ".join(parts)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _candidates(rl: Mapping[str, Any]) -> str:
    """How many candidates a context gets, and what one is."""
    count, size = rl["group_size"], rl.get("page_size")
    if rl.get("environment") == "page":
        return f"{count} candidates a context, each a page of {size} items judged by the log"
    if rl.get("environment") == "session":
        return (
            f"{count} candidates a context, each a page of {size} items shown to a simulated shopper with up to "
            f"{rl.get('horizon')} pages after it (discount {rl.get('discount')}); the tables below judge single items, "
            "`benchmarks/sessions.py` whole sessions"
        )
    return f"{count} candidates a context"


def _rewards(rl: Mapping[str, Any]) -> str:
    terms: Sequence[Any] = rl.get("rewards") or ()
    named = [f"{t['name']} × {t.get('weight', 1.0):g}" for t in terms if isinstance(t, dict) and "name" in t]
    return f", reward {' + '.join(named)}" if named else ""
