"""The contests besides ``variants``: named sets of arms that differ in one thing, all from one start.

A set names its arms and what each changes in the settings that all have in common. Left out: objectives as arms
(``bench_arms``), sizes (``bench_scaling``), another catalogue (``bench_transfer``), running any of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.benchmarks.arms_summary import CONTROL
from sidgym.envs.rewards import REWARDS
from sidgym.launch.bench_arms import arm_name, arm_of, control_arm, rates_of, refuse_idle, told_of
from sidgym.launch.schema import ConfigError, PreferenceConfig, RunConfig, validate

COLLABORATIVE = "sidgym.envs.reward_collaborative:Collaborative"
RATE, LOW_RATE = 1e-3, 3e-4
CHOSEN = (
    "That one was chosen for beams that learn from a gated preference, by the validation reward of a seed that is not "
    "reported; for none of these arms was it tried against another."
)

TRIED = (
    f"Each was chosen from {RATE:g} and {LOW_RATE:g} by the validation reward of seed 10, which is not reported "
    "(docs/log.md)."
)


@dataclass(frozen=True)
class ArmSet:
    """One contest."""

    about: str  # what differs, for --help
    title: str
    kind: str  # what an arm is called in sentences
    arms: Mapping[str, Mapping[str, Any]]  # name -> fields of RlConfig that are its own; lr: for the presets' store
    apart: Mapping[str, PreferenceConfig] = field(default_factory=dict)  # arms with a preference model of their own
    preference: bool = False  # whether arms need a preference model
    quick: Sequence[str] = ()  # options of the quick preset
    full: Sequence[str] = ()
    notes: Sequence[str] = ()
    of_rewards: bool = False  # whether any reward may be named as an arm
    chosen: str = CHOSEN  # how the arms' learning rates were chosen


def _rewards(*terms: RewardConfig, lr: float = RATE) -> dict[str, Any]:
    return {"rewards": terms, "lr": lr}


def _normalised(over: str, likelihood: bool, lr: float = RATE) -> dict[str, Any]:
    """GRPO's settings under a softmax, or GRPO-SR's: its likelihood of the targets is under the same softmax."""
    own = {"objective": "grpo_sr", "nll_weight": 0.1} if likelihood else {"objective": "grpo", "nll_weight": 0.0}
    return {"normalise": over, **own, "lr": lr}


HITS = ("--rewards", "rule", "rank", "--preference.no-enabled")
"""Options of sets that learn from hits: no arm reads a preference model, so none is fitted."""

SETS: Mapping[str, ArmSet] = {
    "sampling": ArmSet(
        about="ways to draw the candidates of a group",
        title="How candidates are drawn",
        kind="way of drawing",
        arms={
            "beam": {"mode": "beam", "lr": RATE},
            "sample": {"mode": "sample", "lr": LOW_RATE},
            "top_k": {"mode": "top_k", "lr": LOW_RATE},
            "dynamic": {"mode": "dynamic", "lr": LOW_RATE},
            "stochastic_beam": {"mode": "stochastic_beam", "lr": LOW_RATE},
        },
        chosen=TRIED,
        full=HITS,
        quick=HITS,
        notes=(
            "All modes learn from as many candidates a context; dynamic draws one and a half times as many and keeps "
            "the rest out.",
        ),
    ),
    "rewards": ArmSet(
        about="hits, ranks, both, a next-item model's score, texts, preference with and without its gate",
        title="What is rewarded",
        kind="reward",
        arms={
            "rule": _rewards(RewardConfig("rule")),
            "rank": _rewards(RewardConfig("rank")),
            "rule_rank": _rewards(RewardConfig("rule"), RewardConfig("rank")),
            "collaborative": _rewards(RewardConfig(COLLABORATIVE)),
            "semantic": _rewards(RewardConfig("semantic")),
            "gated": _rewards(RewardConfig("gated")),
            "ungated": _rewards(RewardConfig("gated", args={"gate": False})),
        },
        of_rewards=True,
        apart={"collaborative": PreferenceConfig(enabled=True, kind="sasrec")},
        preference=True,
        notes=(
            "collaborative is the logit of a SASRec fitted on the same users, alone; ungated is gated with every gate "
            "open, and both have the anchor of GenRec's equation 7.",
        ),
    ),
    "normalise": ArmSet(
        about="the policy's softmax: over the children of the trie's node, or over the whole vocabulary; each without "
        "and with GRPO-SR's likelihood",
        title="What the policy is normalised over",
        kind="normalisation",
        arms={
            "trie": _normalised("trie", likelihood=False),
            "vocab": _normalised("vocab", likelihood=False),
            "trie_sr": _normalised("trie", likelihood=True),
            "vocab_sr": _normalised("vocab", likelihood=True),
        },
        full=HITS,
        quick=HITS,
        notes=(
            "All are judged alike: beams through the trie, and HaR without it. trie and vocab are GRPO, trie_sr and "
            "vocab_sr GRPO-SR: likelihood of the targets besides, weight 0.1, under the same softmax as the policy. "
            "Over the trie neither loss has a gradient at what the trie does not allow; there HaR only drifts.",
        ),
    ),
}


def with_set(
    config: RunConfig, chosen: ArmSet, names: Sequence[str] = (), options: Sequence[str] = (), rated: bool = False
) -> RunConfig:
    """``config`` with the arms of a set (or those of them that are named) and the control, and no others.

    An arm's settings are ``rl``'s with what the set says of it; a name that the set does not have is taken from the
    configuration's own arms. ``options`` are the command-line options that ``config`` was read with, and reach those
    as ``bench_arms.with_arms`` says. ``rated``: the set's learning rates hold, unless the options give one; they were
    made for the presets' store, elsewhere ``rl``'s holds.

    Raises ``ConfigError`` for names that neither has, and for values that cannot work.
    """
    rated = rated and not any(token.partition("=")[0] == "--rl.lr" for token in options)
    names = list(dict.fromkeys(names or chosen.arms))
    owned = dict.fromkeys(key for name in names for key in chosen.arms.get(name, ()) if key != "lr")
    instead = "say it of one arm (--arms.NAME), or name arms of a configuration: --config FILE --arms NAME"
    refuse_idle(options, dict.fromkeys(owned, instead))
    arms: dict[str, RlConfig] = {}
    for name in names:
        if name in chosen.arms:
            own = {key: value for key, value in chosen.arms[name].items() if rated or key != "lr"}
            arms[name] = replace(config.rl, **own)
        elif name in config.arms:
            arms[name] = arm_of(config, name, options)
        elif chosen.of_rewards and (":" in name or name in REWARDS):
            rate: dict[str, Any] = {"lr": RATE} if rated else {}
            arms[arm_name(name, arms)] = replace(config.rl, rewards=(RewardConfig(name),), **rate)
        else:
            raise ConfigError(f"--arms: no {chosen.kind} {name!r}; {_known(config, chosen)}")
    arms[CONTROL] = control_arm(config)
    preference = replace(config.preference, enabled=config.preference.enabled or chosen.preference)
    found = replace(config, arms=arms, preference=preference)
    validate(found, "bench")
    return found


def _known(config: RunConfig, chosen: ArmSet) -> str:
    """What --arms may name."""
    told = f"known: {', '.join(chosen.arms)}"
    if chosen.of_rewards:
        told += f", any other reward ({', '.join(sorted(set(REWARDS) - set(chosen.arms)))}), or 'package.module:name'"
    return f"{told}; arms of the configuration: {', '.join(config.arms)}" if config.arms else told


def notes_of(config: RunConfig, chosen: ArmSet, rated: bool = False) -> tuple[str, ...]:
    """What the report says of a set: its own notes, what all arms have in common, and learning rates.

    ``config`` and ``rated`` as ``with_set`` returned and took them.
    """
    arms = {name: arm for name, arm in config.arms.items() if name != CONTROL}
    of_set = rated and all(name in chosen.arms and arm.lr == chosen.arms[name]["lr"] for name, arm in arms.items())
    how = chosen.chosen if of_set else "They are those of the configuration and its options, and none was tuned here."
    return (*chosen.notes, *told_of(config), f"{rates_of(config)} {how}")


def apart_of(config: RunConfig, chosen: ArmSet) -> dict[str, PreferenceConfig]:
    """The arms of ``config`` that need another preference model than it has, and which."""
    return {arm: one for arm, one in chosen.apart.items() if arm in config.arms and one != config.preference}
