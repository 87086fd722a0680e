"""What the papers claim, and what our stored results say of it: reproduced, not reproduced, or not testable here.

A claim is a function from one stored summary to an outcome with its figure and interval; it is asked of every data set
that has a result. "Reproduced" needs a test or an interval that shows it: a difference in the right direction that is
not shown is not reproduced, and the outcome says so. Accuracy is NDCG@10 throughout, which every summary tests. A
reward that what users truly prefer rises with is not gamed, whatever happens to the log's accuracy: where the truth is
known it has to fall, too. Left out: running anything (``sidgym bench``), and the tables (``results_page``).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sidgym.benchmarks.arms_seeds import alone, difference
from sidgym.benchmarks.arms_tables import NONE, interval_cell
from sidgym.benchmarks.arms_words import p_value, pair_of
from sidgym.benchmarks.comparisons import shown

Summary = Mapping[str, Any]

REPRODUCED, NOT, UNTESTABLE = "reproduced", "not reproduced", "not testable here"
ACCURACY = "ndcg@10"
TRUTH = "preference@10"
"""What users truly prefer, known in the simulated store alone."""
STOPPED = 0.1
"""Share of the harm done without the gate that may be left with it, by the end of the interval, where it is stopped."""
RATIOS = ("grpo", "dr_grpo", "dapo", "gspo", "rloo", "ecpo")
"""Objectives whose gradients GBPO's are compared with: those with an importance ratio, and with nothing else in the
loss."""


@dataclass(frozen=True)
class Outcome:
    """What one stored result says of a claim."""

    status: str
    figure: str  # the figure that decided, in words
    interval: tuple[float, float] | None = None  # 95 %, of what ``figure`` tells first


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, and the benchmark whose result tests it."""

    name: str
    source: str
    published: str  # the paper's own figure
    benchmark: str
    judge: Callable[[Summary], Outcome]


def beam_beats_sampling(summary: Summary) -> Outcome:
    """Beams above every way of independent drawing that was measured."""
    modes = [mode for mode in ("sample", "top_k", "dynamic") if mode in summary["objectives"]]
    pairs = [pair for mode in modes if (pair := pair_of(summary, "beam", mode, ACCURACY))]
    if not pairs:
        return _missing("beam and a way of sampling")
    least = min(pairs, key=lambda pair: pair["mean"])
    above = all(shown(pair) > 0 for pair in pairs)
    return Outcome(REPRODUCED if above else NOT, "; ".join(map(_pair, pairs)), _ends(least))


def both_beat_rule(summary: Summary) -> Outcome:
    """Rule and rank together above rule alone."""
    return _above(pair_of(summary, "rule_rank", "rule", ACCURACY), "rule and rule + rank")


def collaborative_is_gamed(summary: Summary) -> Outcome:
    """The collaborative reward rises in training while accuracy falls below SFT's."""
    return _gamed(summary, "collaborative")


def gate_stops_gaming(summary: Summary) -> Outcome:
    """Without the gate the reward is gamed; with it what fell is shown to be above that, and at most a tenth of the
    harm is left by the interval of its difference to SFT."""
    open_gate = _gamed(summary, "ungated")
    metrics = [metric for metric in (ACCURACY, TRUTH) if pair_of(summary, "ungated", "sft", metric)]
    told = {metric: _guard(summary, metric) for metric in metrics}
    if open_gate.status == UNTESTABLE or not told or None in told.values():
        return _missing("gated and ungated preference")
    figures = [one for one in told.values() if one]
    figure = "; ".join(text for _, text, _ in figures)
    hits = difference(summary["by_seed"], "gated", "ungated", "hr@50")
    figure += f"; HR@50 of gated − ungated over seeds {interval_cell(hits)}" if hits else ""
    figure += f"; without the gate: {open_gate.figure}"
    if open_gate.status == NOT:
        return Outcome(NOT, f"nothing to stop, the ungated reward is not shown to be gamed: {figure}", figures[0][2])
    return Outcome(REPRODUCED if all(stopped for stopped, _, _ in figures) else NOT, figure, figures[0][2])


def _guard(summary: Summary, metric: str) -> tuple[bool, str, tuple[float, float]] | None:
    """Whether the gate keeps a metric from falling, in words, and the interval of gated minus ungated."""
    guarded, kept, harm = (
        pair_of(summary, a, b, metric) for a, b in (("gated", "ungated"), ("gated", "sft"), ("ungated", "sft"))
    )
    if guarded is None or kept is None or harm is None:
        return None
    margin = STOPPED * max(0.0, -harm["mean"])
    stopped = shown(guarded) > 0 and kept["low"] > -margin
    text = f"{_pair(guarded)}; {_pair(kept)}, stopped if above {_minus(f'{-margin:.4f}')}"
    return stopped, text, _ends(guarded)


def grpo_sr_stays_legal(summary: Summary) -> Outcome:
    """GRPO-SR ends with less HaR than GRPO, both over the whole vocabulary: over the trie neither has a gradient at
    what is not allowed."""
    found = summary["by_seed"]
    told, start = (difference(found, "vocab_sr", other, "har") for other in ("vocab", "sft"))
    if told is None:
        return _missing("GRPO-SR and GRPO over the whole vocabulary")
    ours = {name: alone(found, name, "har") for name in ("sft", "vocab", "vocab_sr", "trie", "trie_sr")}
    levels = ", ".join(f"{name} {one['mean']:.2%}" for name, one in ours.items() if one)
    figure = f"HaR of vocab_sr − vocab {interval_cell(told)}"
    figure += f"; vocab_sr − sft {interval_cell(start)}" if start else ""
    return _by_seeds(told, f"{figure} ({levels})", below=True)


def gbpo_is_steadiest(summary: Summary) -> Outcome:
    """GBPO's gradient norms vary least, relative to their mean, of all objectives with an importance ratio."""
    found, settings = summary["by_seed"], summary.get("settings") or {}
    objective = {name: (settings.get(name) or {}).get("objective", name) for name in summary["objectives"]}
    others = [name for name, one in objective.items() if one in RATIOS]
    told = {name: one for name in others if (one := difference(found, "gbpo", name, "grad_norm_cv"))}
    if not told:
        return _missing("GBPO and another objective with an importance ratio")
    worst = max(told.values(), key=lambda one: one["high"])
    figure = "; ".join(f"gbpo − {name} {interval_cell(one)}" for name, one in told.items())
    fewest = {"seeds": min(one["seeds"] for one in told.values())}  # a single seed has no interval, and shows nothing
    return _by_seeds({**worst, **fewest}, f"spread of the gradient norm over its mean: {figure}", below=True)


def larger_have_lower_loss(summary: Summary) -> Outcome:
    """Loss falls with the number of parameters: the slope of the law, and the largest size against the smallest."""
    law, systems = summary.get("law"), summary["systems"]
    if not law:
        return _missing("four sizes")
    names = sorted(systems, key=lambda name: systems[name]["parameters"])
    pair = pair_of(summary, names[-1], names[0], "loss")
    low, high = law["slope_interval"]["low"], law["slope_interval"]["high"]
    figure = f"slope of log loss on log N {law['slope']:+.4f} [{low:+.4f}, {high:+.4f}], exponent {law['exponent']:.3f}"
    figure += f" above a floor of {law['floor']:.3f}; {_pair(pair)}" if pair else ""
    falls = high < 0 and pair is not None and shown(pair) < 0
    return Outcome(REPRODUCED if falls else NOT, _minus(figure), (low, high))


def rl_alone_transfers(summary: Summary) -> Outcome:
    """RL alone on one catalogue is above its own start on another; beside it SFT's transfer, and SFT on the other."""
    told = _above(pair_of(summary, "rl_only", "untrained", ACCURACY), "RL alone and its start")
    if told.status == UNTESTABLE:
        return told
    beside = [pair for other in ("sft", "inside") if (pair := pair_of(summary, "rl_only", other, ACCURACY))]
    return Outcome(told.status, "; ".join([told.figure, *map(_pair, beside)]), told.interval)


CLAIMS: tuple[Claim, ...] = (
    Claim("beam search beats sampling", "MiniOneRec §5.5.2", "highest in figure 4b", "sampling", beam_beats_sampling),
    Claim("rule + rank beats rule", "MiniOneRec §5.5.3", "highest in figure 4c", "rewards", both_beat_rule),
    Claim(
        "a collaborative reward is gamed", "MiniOneRec §5.5.3", "reward up, accuracy down", "rewards",
        collaborative_is_gamed,
    ),
    Claim(
        "the gate stops reward hacking", "GenRec table 3", "GRPO: HR@50 .7248, without the gate .6975", "rewards",
        gate_stops_gaming,
    ),
    Claim(
        "GRPO-SR keeps HaR down", "GenRec table 3", "SFT 4.96 %, GRPO 6.03 %, GRPO-SR 2.68 %", "normalise",
        grpo_sr_stays_legal,
    ),
    Claim("GBPO's gradients are the steadiest", "OneRec-V2", "a figure without numbers", "variants", gbpo_is_steadiest),
    Claim("larger models have lower loss", "MiniOneRec §5", "0.5B to 7B", "scaling", larger_have_lower_loss),
    Claim(
        "RL alone transfers to a new catalogue", "MiniOneRec §5",
        "NDCG@10 .0553 from a pretrained start's .0373; GRU4Rec trained inside .0669", "transfer",
        rl_alone_transfers,
    ),
)  # fmt: skip


def judge_all(results: Mapping[str, Summary]) -> list[dict[str, Any]]:
    """Every claim on every stored contest that tests it (``summary["benchmark"]``), by the name that it has there.

    Rows ``{"claim", "source", "published", "result", "status", "figure", "interval"}``. Contests without the arms that
    a claim needs are left out where another one tests it; a claim without any result has one row, not testable here.
    """
    rows = []
    for claim in CLAIMS:
        told = {name: claim.judge(summary) for name, summary in results.items() if of(summary, claim.benchmark)}
        tested = {name: outcome for name, outcome in told.items() if outcome.status != UNTESTABLE}
        told = tested or told
        for name, outcome in (told or {"": _missing(f"`sidgym bench {claim.benchmark}`")}).items():
            rows.append(
                {
                    "claim": claim.name,
                    "source": claim.source,
                    "published": claim.published,
                    "result": name,
                    "status": outcome.status,
                    "figure": outcome.figure,
                    "interval": outcome.interval,
                }
            )
    return rows


def of(summary: Summary, benchmark: str) -> bool:
    """Whether a stored result is the summary of a contest: other benchmarks' have no verdict."""
    return summary.get("benchmark") == benchmark and "verdict" in summary


def claims_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown, a claim and result a line."""
    lines = ["| claim | source | the paper's figure | our result | outcome | figure, 95 % interval |", "|" + "---|" * 6]
    for row in rows:
        result = f"`{row['result']}`" if row["result"] else NONE
        cells = [row["claim"], row["source"], row["published"], result, f"**{row['status']}**", row["figure"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _gamed(summary: Summary, arm: str) -> Outcome:
    """Whether an arm's own reward rises, by an interval over seeds, while accuracy is shown to be below SFT's, and so
    is the truth where it is known: a right reward, too, may leave what the log says."""
    gain, pair = alone(summary["by_seed"], arm, "reward_gain"), pair_of(summary, arm, "sft", ACCURACY)
    truth = pair_of(summary, arm, "sft", TRUTH)
    if gain is None or pair is None:
        return _missing(f"{arm} and SFT")
    figure = "; ".join([_pair(pair), *([_pair(truth)] if truth else []), f"its own reward {interval_cell(gain)}"])
    if gain["seeds"] < 2:
        return Outcome(UNTESTABLE, f"one seed says nothing of another training: {figure}", _ends(pair))
    if gain["low"] <= 0 or shown(pair) >= 0:
        return Outcome(NOT, figure, _ends(pair))
    if truth and shown(truth) >= 0:
        return Outcome(NOT, f"what users truly prefer is not shown to have fallen: {figure}", _ends(pair))
    return Outcome(REPRODUCED, figure, _ends(pair))


def _above(pair: Mapping[str, Any] | None, what: str) -> Outcome:
    if pair is None:
        return _missing(what)
    return Outcome(REPRODUCED if shown(pair) > 0 else NOT, _pair(pair), _ends(pair))


def _by_seeds(told: Mapping[str, Any], figure: str, below: bool) -> Outcome:
    """By an interval over seeds alone: one seed tells nothing of another training."""
    if told["seeds"] < 2:
        return Outcome(UNTESTABLE, f"one seed says nothing of another training: {figure}", _ends(told))
    held = told["high"] < 0 if below else told["low"] > 0
    return Outcome(REPRODUCED if held else NOT, figure, _ends(told))


def _missing(what: str) -> Outcome:
    return Outcome(UNTESTABLE, f"no stored result of {what}")


def _ends(told: Mapping[str, Any]) -> tuple[float, float]:
    return told["low"], told["high"]


def _pair(pair: Mapping[str, Any]) -> str:
    metric = {ACCURACY: "NDCG@10", TRUTH: "true preference of the top 10"}.get(pair["metric"], pair["metric"])
    return f"{metric} of {pair['a']} − {pair['b']} {interval_cell(pair)}, p {p_value(pair['p_holm'])}"


def _minus(text: str) -> str:
    return re.sub(r"(?<!\w)-(?=\d)", "−", text)
