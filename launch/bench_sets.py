"""The contests besides ``variants``: named sets of arms that differ in one thing, all from one start.

A set names its arms and what each changes in the settings that all have in common. Left out: objectives as arms
(``bench_arms``), sizes (``bench_scaling``), another catalogue (``bench_transfer``), running any of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.benchmarks.arms_summary import CONTROL
from sidgym.launch.bench_arms import _control
from sidgym.launch.schema import ConfigError, PreferenceConfig, RunConfig, validate

COLLABORATIVE = "sidgym.envs.reward_collaborative:Collaborative"


@dataclass(frozen=True)
class ArmSet:
    """One contest."""

    about: str  # what differs, for --help
    title: str
    kind: str  # what an arm is called in sentences
    arms: Mapping[str, Mapping[str, Any]]  # name -> fields of RlConfig that are its own
    apart: Mapping[str, PreferenceConfig] = field(default_factory=dict)  # arms with a preference model of their own
    preference: bool = False  # whether arms need a preference model
    quick: Sequence[str] = ()  # options of the quick preset
    full: Sequence[str] = ()
    notes: Sequence[str] = ()


def _rewards(*terms: RewardConfig) -> dict[str, Any]:
    return {"rewards": terms}


SETS: Mapping[str, ArmSet] = {
    "sampling": ArmSet(
        about="ways to draw the candidates of a group",
        title="How candidates are drawn",
        kind="way of drawing",
        arms={
            "beam": {"mode": "beam"},
            "sample": {"mode": "sample"},
            "top_k": {"mode": "top_k"},
            "dynamic": {"mode": "dynamic"},
            "stochastic_beam": {"mode": "stochastic_beam"},
        },
        full=("--rewards", "rule", "rank"),
        quick=("--rewards", "rule", "rank"),
        notes=(
            "All modes learn from as many candidates a context; dynamic draws one and a half times as many and keeps "
            "the rest out. Rewards are rule + rank, MiniOneRec's.",
        ),
    ),
    "rewards": ArmSet(
        about="rewards: hits, ranks, both, a next-item model's score, texts, preference with and without its gate",
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
        apart={"collaborative": PreferenceConfig(enabled=True, kind="sasrec")},
        preference=True,
        notes=(
            "Every arm is validated by its own reward, so that rewards of different arms are not on one scale. "
            "collaborative is the logit of a SASRec fitted on the same users, alone; ungated is gated with every gate "
            "open, and both have the anchor of GenRec's equation 7.",
        ),
    ),
    "normalise": ArmSet(
        about="the policy's softmax: over the children of the trie's node, or over the whole vocabulary",
        title="What the policy is normalised over",
        kind="normalisation",
        arms={"trie": {"normalise": "trie"}, "vocab": {"normalise": "vocab"}},
        full=("--rewards", "rule", "rank"),
        quick=("--rewards", "rule", "rank"),
        notes=("Both are judged alike: beams through the trie, and HaR without it.",),
    ),
}


def with_set(config: RunConfig, chosen: ArmSet, names: Sequence[str] = ()) -> RunConfig:
    """``config`` with the arms of a set (or those of them that are named) and the control, and no others.

    An arm's settings are ``rl``'s with what the set says of it; a name that the set does not have is taken from the
    configuration's own arms. Raises ``ConfigError`` for names that neither has, and for values that cannot work.
    """
    arms: dict[str, RlConfig] = {}
    for name in dict.fromkeys(names or chosen.arms):
        if name in chosen.arms:
            arms[name] = replace(config.rl, **chosen.arms[name])
        elif name in config.arms:
            arms[name] = config.arms[name]
        else:
            known = ", ".join(dict.fromkeys([*chosen.arms, *config.arms]))
            raise ConfigError(f"--arms: no {chosen.kind} {name!r}; known: {known}")
    arms[CONTROL] = _control(config)
    preference = replace(config.preference, enabled=config.preference.enabled or chosen.preference)
    found = replace(config, arms=arms, preference=preference)
    validate(found, "bench")
    return found


def apart_of(config: RunConfig, chosen: ArmSet) -> dict[str, PreferenceConfig]:
    """The arms of ``config`` that need another preference model than it has, and which."""
    return {arm: one for arm, one in chosen.apart.items() if arm in config.arms and one != config.preference}
