"""What the papers claim, and what our stored results say of it: reproduced, not reproduced, or not testable here.

A claim is a function from one stored summary to an outcome with its figure and interval; it is asked of every data set
that has a result. "Reproduced" needs a test or an interval that shows it: a difference in the right direction that is
not shown is not reproduced, and the outcome says so. Accuracy is NDCG@10 throughout, which every summary tests. Left
out: running anything (``sidgym bench``), and the tables (``results_page``).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sidgym.benchmarks.arms_seeds import alone, difference
from sidgym.benchmarks.arms_tables import NONE
from sidgym.benchmarks.arms_words import p_value, pair_of
from sidgym.benchmarks.comparisons import shown

Summary = Mapping[str, Any]

REPRODUCED, NOT, UNTESTABLE = "reproduced", "not reproduced", "not testable here"
ACCURACY = "ndcg@10"


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
    """Without the gate the reward is gamed; with it accuracy is above that, and not below SFT's."""
    open_gate = _gamed(summary, "ungated")
    guarded, kept = pair_of(summary, "gated", "ungated", ACCURACY), pair_of(summary, "gated", "sft", ACCURACY)
    if open_gate.status == UNTESTABLE or guarded is None or kept is None:
        return _missing("gated and ungated preference")
    figure = f"{_pair(guarded)}; {_pair(kept)}; without the gate: {open_gate.figure}"
    if open_gate.status == NOT:
        return Outcome(NOT, f"nothing to stop, the ungated reward is not shown to be gamed: {figure}", _ends(guarded))
    stopped = shown(guarded) > 0 and shown(kept) >= 0
    return Outcome(REPRODUCED if stopped else NOT, figure, _ends(guarded))


def grpo_sr_stays_legal(summary: Summary) -> Outcome:
    """GRPO-SR ends with less HaR than GRPO."""
    told = difference(summary["by_seed"], "grpo_sr", "grpo", "har")
    if told is None:
        return _missing("GRPO-SR and GRPO")
    ours = {name: alone(summary["by_seed"], name, "har") for name in ("sft", "grpo", "grpo_sr")}
    levels = ", ".join(f"{name} {one['mean']:.2%}" for name, one in ours.items() if one)
    return _by_seeds(told, f"HaR of grpo_sr − grpo {_signed(told)} ({levels})", below=True)


def gbpo_is_steadiest(summary: Summary) -> Outcome:
    """GBPO's gradient norms vary least, relative to their mean, of all objectives."""
    found = summary["by_seed"]
    others = [name for name in summary["objectives"] if name not in ("sft", "nll_only", "gbpo")]
    told = {name: one for name in others if (one := difference(found, "gbpo", name, "grad_norm_cv"))}
    if not told:
        return _missing("GBPO and another objective")
    worst = max(told, key=lambda name: told[name]["high"])
    figure = "; ".join(f"gbpo − {name} {_signed(one)}" for name, one in told.items())
    return _by_seeds(told[worst], f"spread of the gradient norm over its mean: {figure}", below=True)


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
    """RL alone on one catalogue is above its own start on another; SFT's transfer beside it."""
    pair, beside = (pair_of(summary, "rl_only", other, ACCURACY) for other in ("untrained", "sft"))
    told = _above(pair, "RL alone and its start")
    if told.status == UNTESTABLE or beside is None:
        return told
    return Outcome(told.status, f"{told.figure}; {_pair(beside)}", told.interval)


CLAIMS: tuple[Claim, ...] = (
    Claim("beam search beats sampling", "MiniOneRec §5.5.2", "highest in figure 4b", "sampling", beam_beats_sampling),
    Claim("rule + rank beats rule", "MiniOneRec §5.5.3", "highest in figure 4c", "rewards", both_beat_rule),
    Claim(
        "a collaborative reward is gamed", "MiniOneRec §5.5.3", "reward up, accuracy down", "rewards",
        collaborative_is_gamed,
    ),
    Claim(
        "the gate stops reward hacking", "GenRec table 3", "HR@50 .7438, without the gate .7016", "rewards",
        gate_stops_gaming,
    ),
    Claim("GRPO-SR keeps HaR down", "GenRec table 3", "GRPO 6.03 %, GRPO-SR 2.68 %", "variants", grpo_sr_stays_legal),
    Claim("GBPO's gradients are the steadiest", "OneRec-V2", "a figure without numbers", "variants", gbpo_is_steadiest),
    Claim("larger models have lower loss", "MiniOneRec §5", "0.5B to 7B", "scaling", larger_have_lower_loss),
    Claim(
        "RL alone transfers to a new catalogue", "MiniOneRec §5", "HR@10 .0892, NDCG@10 .0553", "transfer",
        rl_alone_transfers,
    ),
)  # fmt: skip


def judge_all(results: Mapping[str, Summary]) -> list[dict[str, Any]]:
    """Every claim on every stored contest that tests it (``summary["benchmark"]``), by the name that it has there.

    Rows ``{"claim", "source", "published", "result", "status", "figure", "interval"}``; a claim without any result has
    one, not testable here.
    """
    rows = []
    for claim in CLAIMS:
        told = {name: claim.judge(summary) for name, summary in results.items() if of(summary, claim.benchmark)}
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
    """Whether an arm's own reward rises, by an interval over seeds, while accuracy is shown to be below SFT's."""
    gain, pair = alone(summary["by_seed"], arm, "reward_gain"), pair_of(summary, arm, "sft", ACCURACY)
    if gain is None or pair is None:
        return _missing(f"{arm} and SFT")
    figure = f"{_pair(pair)}; its own reward {_signed(gain)}"
    if gain["seeds"] < 2:
        return Outcome(UNTESTABLE, f"one seed says nothing of another training: {figure}", _ends(pair))
    return Outcome(REPRODUCED if gain["low"] > 0 and shown(pair) < 0 else NOT, figure, _ends(pair))


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


def _signed(told: Mapping[str, Any]) -> str:
    return _minus(f"{told['mean']:+.4f} [{told['low']:+.4f}, {told['high']:+.4f}]")


def _pair(pair: Mapping[str, Any]) -> str:
    metric = {"ndcg@10": "NDCG@10"}.get(pair["metric"], pair["metric"])
    return f"{metric} of {pair['a']} − {pair['b']} {_signed(pair)}, p {p_value(pair['p_holm'])}"


def _minus(text: str) -> str:
    return text.replace("+-", "−").replace(" -", " −").replace("[-", "[−")
