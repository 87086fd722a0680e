"""What the search for a recipe tries: one table of settings, each a change of one or two things.

``docs/recipe.md`` says why each is there. Left out: how they are trained, judged and chosen between (``recipe``).
"""

from dataclasses import dataclass, replace
from typing import Any

from sidgym.agents.config import RewardConfig, RlConfig

FRESH, REPLAY = "fresh", "replay"
"""Contexts: what SFT never saw, or those and the newest of SFT's own targets of each user."""

HIT = (RewardConfig("rule"), RewardConfig("rank"))
PREFIX = (RewardConfig("prefix"),)
NEIGHBOURS = (RewardConfig("semantic"),)
"""Cosine similarity to the target in an embedding of the log (``recipe_parts.neighbour_vectors``)."""


@dataclass(frozen=True)
class Candidate:
    """One arm of the search."""

    rl: RlConfig
    contexts: str = FRESH
    control: bool = False  # likelihood alone: not a candidate, but what candidates have to beat


BASE = RlConfig(
    objective="grpo", rewards=HIT, group_size=16, contexts_per_step=64, chunk=64, lr=3e-5, nll_weight=1.0, steps=40,
    backend="torch", select_by="last",
)  # fmt: skip
"""Hit-only rule + rank with the likelihood of the target beside it: what came nearest before (method, section 9)."""


def candidates() -> dict[str, Candidate]:
    """Name -> arm. Every NLL arm is a control; all others are RL."""

    def of(contexts: str = FRESH, **changes: Any) -> Candidate:
        return Candidate(replace(BASE, **changes), contexts, changes.get("objective") == "nll")

    nll: dict[str, Any] = {"objective": "nll", "rewards": ()}
    cut: dict[str, Any] = {"mode": "cut", "objective": "rloo", "advantage": "group_standardised"}
    listed: dict[str, Any] = {"objective": "list_ndcg", "rewards": (), "nll_weight": 0.0}
    return {
        "nll lr 1e-5": of(**nll, lr=1e-5),
        "nll lr 3e-5": of(**nll),
        "nll lr 1e-4": of(**nll, lr=1e-4),
        "nll replay": of(REPLAY, **nll),
        "nll curriculum": of(**nll, curriculum=0.5),
        "hits": of(nll_weight=0.0),
        "hits + nll": of(),
        "hits + nll, lr 1e-5": of(lr=1e-5),
        "hits + nll, lr 1e-4": of(lr=1e-4),
        "hits + nll .1": of(objective="grpo_sr", nll_weight=0.1),
        "hits + nll, gbpo": of(objective="gbpo"),
        "hits + nll, refills": of(refills=2),
        "hits + nll, entropy": of(entropy_weight=0.01),
        "hits + nll, 2 epochs": of(epochs=2, minibatch=32),
        "hits + nll, stale": of(staleness=1),
        "hits + nll, curriculum": of(curriculum=0.5),
        "hits + nll, replay": of(REPLAY),
        "hits + nll, kl": of(kl_weight=0.05),
        "hits + nll, 32 beams": of(group_size=32),
        "hits + nll, stochastic beams": of(
            mode="stochastic_beam", objective="rloo", advantage="leave_one_out", rewards=HIT[:1]
        ),
        "prefix + nll": of(rewards=PREFIX),
        "neighbours + nll": of(rewards=NEIGHBOURS),
        "top 1 prefix + nll": of(**cut, rewards=PREFIX),
        "top 2 prefix": of(**cut, rewards=PREFIX, cut_levels=2, nll_weight=0.0),
        "top 2 prefix + nll": of(**cut, rewards=PREFIX, cut_levels=2),
        "top 2 neighbours + nll": of(**cut, rewards=NEIGHBOURS, cut_levels=2),
        "all levels hits + nll": of(**cut, rewards=HIT[:1], cut_levels=4),
        "list": of(**listed),
        "list, lr 1e-4": of(**listed, lr=1e-4),
        "list + nll .1": of(**{**listed, "nll_weight": 0.1}),
        "list of 32, sharper": of(**listed, group_size=32, list_temperature=0.5),
        "list + kl": of(**listed, kl_weight=0.05),
        "preferences + nll": of(objective="s_dpo", rewards=(), kl_weight=0.1),
    }
