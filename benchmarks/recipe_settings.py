"""What the search for a recipe tries: one table of settings, each a change of one or two things.

``docs/recipe.md`` says why each is there. Left out: how they are trained, judged and chosen between (``recipe``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sidgym.agents.config import RewardConfig, RlConfig

HIT = (RewardConfig("rule"), RewardConfig("rank"))
PREFIX = (RewardConfig("prefix"),)
NEIGHBOURS = (RewardConfig("semantic"),)
"""Cosine similarity to the target in an embedding of the log (``recipe_parts.neighbour_vectors``)."""
NOTHING = (RewardConfig("rule", weight=1e-6),)
"""Says where there is a hit and is too small to be learned from."""


@dataclass(frozen=True)
class Candidate:
    """One arm of the search."""

    rl: RlConfig
    control: bool = False  # likelihood alone: not a candidate, but what candidates have to beat
    rung: int = field(default=0, repr=False)  # the first that it is in; of no account for what it learns


BASE = RlConfig(
    objective="grpo", rewards=HIT, group_size=16, contexts_per_step=64, chunk=64, lr=1e-4, nll_weight=0.03, steps=40,
    backend="torch", select_by="last",
)  # fmt: skip
"""Hit-only rule + rank with the likelihood of the target beside it: what came nearest before (docs/log.md)."""


def candidates() -> dict[str, Candidate]:
    """Name -> arm. A control has no policy gradient; all others are RL.

    Weights of likelihood are such that the gradients beside each other are of about one size, measured at the starts.
    """

    def of(control: bool = False, rung: int = 0, **changes: Any) -> Candidate:
        return Candidate(replace(BASE, **changes), control, rung)

    nll: dict[str, Any] = {"control": True, "objective": "nll", "rewards": (), "nll_weight": 1.0}
    cut: dict[str, Any] = {"mode": "cut", "objective": "rloo", "advantage": "batch_standardised"}
    listed: dict[str, Any] = {"objective": "list_ndcg", "rewards": (), "nll_weight": 0.0}
    return {
        "nll lr 3e-5": of(**nll, lr=3e-5),
        "nll": of(**nll),
        "nll lr 3e-4": of(**nll, lr=3e-4),
        "nll curriculum": of(**nll, curriculum=0.5),
        # The same groups are replaced as with rewards, and learned from by likelihood alone.
        "nll refills": of(True, refills=2, nll_weight=1.0, rewards=NOTHING, advantage="group_centred"),
        "hits": of(nll_weight=0.0),
        "hits + nll .01": of(nll_weight=0.01),
        "hits + nll": of(),
        "hits + nll .1": of(objective="grpo_sr", nll_weight=0.1),
        "hits + nll .3": of(nll_weight=0.3),
        "hits + nll, lr 3e-5": of(lr=3e-5),
        "hits + nll, lr 3e-4": of(lr=3e-4),
        "hits + nll, gbpo": of(objective="gbpo"),
        "hits + nll, refills": of(refills=2),
        "hits + nll, entropy": of(entropy_weight=0.1),
        "hits + nll, stale": of(staleness=4),
        "hits + nll, curriculum": of(curriculum=0.5),
        "hits + nll, kl": of(kl_weight=0.5),
        "hits + nll, 32 beams": of(group_size=32),
        "hits + nll, stochastic beams": of(
            mode="stochastic_beam", objective="rloo", advantage="leave_one_out", rewards=HIT[:1]
        ),
        "prefix + nll": of(rewards=PREFIX),
        "neighbours + nll": of(rewards=NEIGHBOURS),
        "top 1 prefix + nll": of(**cut, rewards=PREFIX, nll_weight=1.0),
        "top 2 prefix": of(**cut, rewards=PREFIX, cut_levels=2, nll_weight=0.0),
        "top 2 prefix + nll": of(**cut, rewards=PREFIX, cut_levels=2, nll_weight=1.0),
        "top 2 neighbours + nll": of(**cut, rewards=NEIGHBOURS, cut_levels=2, nll_weight=0.3),
        "all levels hits + nll": of(**cut, rewards=HIT[:1], cut_levels=4, nll_weight=1.0),
        "list": of(**listed),
        "list, lr 3e-4": of(**listed, lr=3e-4),
        "list + nll": of(**{**listed, "nll_weight": 0.03}),
        "list + nll, curriculum": of(**{**listed, "nll_weight": 0.03}, curriculum=0.5),
        "list of 32, sharper": of(**listed, group_size=32, list_temperature=0.5),
        "preferences + nll": of(objective="s_dpo", rewards=(), kl_weight=0.1),
        # What went on from the first rung, with the curriculum of the control that stood highest in both stores.
        "hits + nll .1, curriculum": of(objective="grpo_sr", nll_weight=0.1, curriculum=0.5, rung=1),
        "hits + nll, stale, curriculum": of(staleness=4, curriculum=0.5, rung=1),
        "top 2 prefix + nll, curriculum": of(
            **cut, rewards=PREFIX, cut_levels=2, nll_weight=1.0, curriculum=0.5, rung=1
        ),
        "all levels hits + nll, curriculum": of(
            **cut, rewards=HIT[:1], cut_levels=4, nll_weight=1.0, curriculum=0.5, rung=1
        ),
    }


def like(arms: Mapping[str, Candidate], name: str) -> str | None:
    """The control that differs from an arm in rewards alone: same rate, same way to come by its contexts."""

    def drawn(arm: Candidate) -> tuple[float, float, int]:
        return arm.rl.lr, arm.rl.curriculum, arm.rl.refills

    alike = [other for other, arm in arms.items() if arm.control and drawn(arm) == drawn(arms[name])]
    return alike[0] if alike and not arms[name].control else None
