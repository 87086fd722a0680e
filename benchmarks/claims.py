"""What the papers claim, and what our stored results say of it: reproduced, not reproduced, or not testable here.

A claim is a function from one stored summary to an outcome with its figure and interval; it is asked of every data set
that has a result. "Reproduced" needs a test that shows it: a difference in the right direction that is not shown is not
reproduced, and the outcome says so. A claim is a question of its own, put before the figures were known, so each of the
comparisons that it names is tested at 5 %, without correction for what else the contest compares; one that names
several holds where each of them does (an intersection-union test, Berger 1982). P-values are multiplied by the number
of times that the contest was summed up with more seeds, and one seed tests no claim. Accuracy is NDCG@10 throughout. A
reward that what users truly prefer rises with is not gamed, whatever happens to the log's accuracy: where the truth is
known it has to fall, too. Left out: running anything (``sidgym bench``), and the tables (``results_page``).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sidgym.benchmarks.arms_seeds import alone, difference
from sidgym.benchmarks.arms_tables import NONE, interval_cell
from sidgym.benchmarks.arms_words import p_value, pair_of
from sidgym.benchmarks.comparisons import LEVEL

Summary = Mapping[str, Any]

REPRODUCED, NOT, UNTESTABLE = "reproduced", "not reproduced", "not testable here"
ONE_SEED = "one seed says nothing of another training"
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
    but: str = ""  # how far it goes, where it is reproduced in part of what the paper shows


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
    above = all(_shown(summary, pair) > 0 for pair in pairs)
    return Outcome(REPRODUCED if above else NOT, _pairs(summary, pairs), _ends(least))


def both_beat_rule(summary: Summary) -> Outcome:
    """Rule and rank together above rule alone."""
    return _above(summary, pair_of(summary, "rule_rank", "rule", ACCURACY), "rule and rule + rank")


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
    stopped = _shown(summary, guarded) > 0 and kept["low"] > -margin
    text = f"{_pairs(summary, [guarded, kept])}, stopped if above {_minus(f'{-margin:.4f}')}"
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
    outcome = _by_seeds(summary, told, f"{figure} ({levels})", below=True)
    if outcome.status == REPRODUCED and start and start["high"] >= 0:
        return replace(outcome, but="not shown to be below SFT's")
    return outcome


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
    least = {"seeds": min(one["seeds"] for one in told.values()), "p": max(one.get("p", 1.0) for one in told.values())}
    return _by_seeds(summary, {**worst, **least}, f"spread of the gradient norm over its mean: {figure}", below=True)


def larger_have_lower_loss(summary: Summary) -> Outcome:
    """Loss falls with the number of parameters: the slope of the law, and the largest size against the smallest; and
    from which size on no fall is shown."""
    law, systems = summary.get("law"), summary["systems"]
    if not law:
        return _missing("four sizes")
    names = sorted(systems, key=lambda name: systems[name]["parameters"])
    pair = pair_of(summary, names[-1], names[0], "loss")
    low, high = law["slope_interval"]["low"], law["slope_interval"]["high"]
    figure = f"slope of log loss on log N {law['slope']:+.4f} [{low:+.4f}, {high:+.4f}], exponent {law['exponent']:.3f}"
    figure += f" above a floor of {law['floor']:.3f}; {_pairs(summary, [pair])}" if pair else ""
    if not (high < 0 and pair is not None and _shown(summary, pair) < 0):
        return Outcome(NOT, _minus(figure), (low, high))
    to_largest = {name: pair_of(summary, names[-1], name, "loss") for name in names[:-1]}
    flat = [name for name, pair in to_largest.items() if pair is None or _shown(summary, pair) >= 0]
    but = f"no fall is shown from {systems[flat[0]]['parameters']:,.0f} parameters on" if flat else ""
    return Outcome(REPRODUCED, _minus(figure), (low, high), but)


def rl_alone_transfers(summary: Summary) -> Outcome:
    """RL alone on one catalogue is above its own start on another; beside it SFT's transfer, and SFT on the other."""
    told = _above(summary, pair_of(summary, "rl_only", "untrained", ACCURACY), "RL alone and its start")
    if told.status == UNTESTABLE:
        return told
    beside = [pair for other in ("sft", "inside") if (pair := pair_of(summary, "rl_only", other, ACCURACY))]
    return replace(told, figure="; ".join([told.figure, _pairs(summary, beside)])) if beside else told


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

    Rows ``{"claim", "source", "published", "result", "status", "but", "figure", "interval"}``. Contests without the
    arms that a claim needs are left out where another one tests it; a claim without any result has one row, not
    testable here.
    """
    rows = []
    for claim in CLAIMS:
        told = {name: _judged(claim, summary) for name, summary in results.items() if of(summary, claim.benchmark)}
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
                    "but": outcome.but,
                    "figure": outcome.figure,
                    "interval": outcome.interval,
                }
            )
    return rows


def status_words(row: Mapping[str, Any]) -> str:
    """A row's outcome, and how far it goes."""
    return f"{row['status']}, but {row['but']}" if row["but"] else row["status"]


def _judged(claim: Claim, summary: Summary) -> Outcome:
    outcome = claim.judge(summary)
    if outcome.status == UNTESTABLE or len(summary["seeds"]) > 1:
        return outcome
    return Outcome(UNTESTABLE, f"{ONE_SEED}: {outcome.figure}", outcome.interval)


def of(summary: Summary, benchmark: str) -> bool:
    """Whether a stored result is the summary of a contest: other benchmarks' have no verdict."""
    return summary.get("benchmark") == benchmark and "verdict" in summary


def claims_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown, a claim and result a line."""
    lines = ["| claim | source | the paper's figure | our result | outcome | figure, 95 % interval |", "|" + "---|" * 6]
    for row in rows:
        result = f"`{row['result']}`" if row["result"] else NONE
        cells = [row["claim"], row["source"], row["published"], result, f"**{status_words(row)}**", row["figure"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _gamed(summary: Summary, arm: str) -> Outcome:
    """Whether an arm's own reward rises, by an interval over seeds, while accuracy is shown to be below SFT's, and so
    is the truth where it is known: a right reward, too, may leave what the log says."""
    gain, pair = alone(summary["by_seed"], arm, "reward_gain"), pair_of(summary, arm, "sft", ACCURACY)
    truth = pair_of(summary, arm, "sft", TRUTH)
    if gain is None or pair is None:
        return _missing(f"{arm} and SFT")
    figure = f"{_pairs(summary, [pair, *([truth] if truth else [])])}; its own reward {interval_cell(gain)}"
    if gain["seeds"] < 2:
        return Outcome(UNTESTABLE, f"{ONE_SEED}: {figure}", _ends(pair))
    if _shown(summary, gain) <= 0 or _shown(summary, pair) >= 0:
        return Outcome(NOT, figure, _ends(pair))
    if truth and _shown(summary, truth) >= 0:
        return Outcome(NOT, f"what users truly prefer is not shown to have fallen: {figure}", _ends(pair))
    return Outcome(REPRODUCED, figure, _ends(pair))


def _above(summary: Summary, pair: Mapping[str, Any] | None, what: str) -> Outcome:
    if pair is None:
        return _missing(what)
    return Outcome(REPRODUCED if _shown(summary, pair) > 0 else NOT, _pairs(summary, [pair]), _ends(pair))


def _by_seeds(summary: Summary, told: Mapping[str, Any], figure: str, below: bool) -> Outcome:
    """By the spread of seeds alone."""
    if told["seeds"] < 2:
        return Outcome(UNTESTABLE, f"{ONE_SEED}: {figure}", _ends(told))
    held = _shown(summary, told) == (-1 if below else 1)
    return Outcome(REPRODUCED if held else NOT, figure, _ends(told))


def _shown(summary: Summary, told: Mapping[str, Any]) -> int:
    """1 if a difference is shown to be above 0, -1 if below, 0 if neither."""
    return (int(told["mean"] > 0) - int(told["mean"] < 0)) if _p(summary, told) < LEVEL else 0


def _p(summary: Summary, told: Mapping[str, Any]) -> float:
    """A comparison's own p-value, times the number of looks (Bonferroni)."""
    return min(1.0, told["p"] * max(1, len(summary.get("looks") or ())))


def _missing(what: str) -> Outcome:
    return Outcome(UNTESTABLE, f"no stored result of {what}")


def _ends(told: Mapping[str, Any]) -> tuple[float, float]:
    return told["low"], told["high"]


def _pairs(summary: Summary, pairs: Iterable[Mapping[str, Any]]) -> str:
    names = {ACCURACY: "NDCG@10", TRUTH: "true preference of the top 10"}
    return "; ".join(
        f"{names.get(pair['metric'], pair['metric'])} of {pair['a']} − {pair['b']} {interval_cell(pair)}, "
        f"p {p_value(_p(summary, pair))}"
        for pair in pairs
    )


def _minus(text: str) -> str:
    return re.sub(r"(?<!\w)-(?=\d)", "−", text)
