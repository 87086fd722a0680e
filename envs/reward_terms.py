"""Rewards that need no model of the user: hits, ranks, prefixes, similarity, format, diversity, popularity, feedback.

Each is a function ``(episodes, rollouts, **args)`` or a class ``(context, **args)`` with such instances; all return
(B, G) float32 for whole groups. What invalid candidates get is without meaning: ``rewards.RewardSum`` replaces it. Left
out: MiniOneRec's collaborative reward (it hurts, by the paper's own ablation) and normalisation inside the group, which
is the advantage's business.

Symbols as in ``records``: B contexts, G candidates a group, C items a SID, L levels, M targets, S places of a page.
"""

from typing import Any

import numpy as np

from sidgym.envs.records import CLICK, NEGATIVE, ORDER, PAD_ITEM, Episodes, Rollouts
from sidgym.envs.reward_context import (
    RewardContext,
    check_choice,
    check_flag,
    check_number,
    common_prefix,
    is_member,
    mean_over_items,
    wanted_items,
)


def rule(episodes: Episodes, rollouts: Rollouts, *, any_positive: bool = False) -> np.ndarray:
    """1 for the target, else 0; a SID of m items is worth 1/m, the chance that it means the target. (B, G) float32.

    ``any_positive`` counts every item of D+ (``Episodes.targets``) as a target. Source: MiniOneRec section 3.4.2.
    """
    wanted = wanted_items(episodes, any_positive)
    return mean_over_items(is_member(rollouts.items, wanted), rollouts.items).astype(np.float32)


def rank(
    episodes: Episodes,
    rollouts: Rollouts,
    *,
    groups: str = "hit_only",
    denominator: str = "paper",
    any_positive: bool = False,
) -> np.ndarray:
    """Penalty on negatives, heaviest on the most probable ones. (B, G) float32, at most 0.

    With the candidate's rank rho in the model's own list, ``R~ = 0`` for the target and ``-1 / log(rho + 1)``
    otherwise, and ``R = -R~ / sum(R~)`` over the group (MiniOneRec section 3.4.2). A candidate whose SID holds the
    target among others counts as the target. Invalid candidates get 0 and take no share.

    groups: ``hit_only`` gives zero to a group without the target, the rule of MiniOneRec's released code; ``all``, the
        paper's formula, penalises such groups too.
    denominator: ``paper`` sums over negatives, which then share exactly -1; ``released`` sums over the target's slot
        too, so that negatives share less (-0.836 for a hit at rank 1 of 16).
    any_positive: every item of D+ (``Episodes.targets``) counts as a target.

    What a group gets in all does not depend on its negatives (with ``released`` hardly): the sum over a page says
    nothing of the page, so that pages refuse this reward (``constant_sum``).
    """
    _check_rank(groups, denominator, any_positive)
    valid = rollouts.valid
    hit = is_member(rollouts.items, wanted_items(episodes, any_positive)).any(axis=-1) & valid
    discount = np.where(valid, 1.0 / np.log(rollouts.rank + 1.0), 0.0)
    penalty = np.where(hit, 0.0, discount)
    total = (discount if denominator == "released" else penalty).sum(axis=1, keepdims=True)
    share = -np.divide(penalty, total, out=np.zeros_like(penalty), where=total > 0)
    if groups == "hit_only":
        share = np.where(hit.any(axis=1, keepdims=True), share, 0.0)
    # Adding zero turns -0.0 into 0.0.
    return (share + 0.0).astype(np.float32)


def legal_format(episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
    """1 for a candidate that is a SID of the catalogue, 0 otherwise. (B, G) float32.

    Source: OneRec-V1's format reward, which sets the advantage to 1 for a legal sample and 0 otherwise; here it is a
    reward. It says something only where candidates are drawn without the trie (``needs_mode``): with it all are legal.
    """
    return rollouts.valid.astype(np.float32)


def diversity(episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
    """1 minus the mean share of levels that a candidate has in common, from the root on, with the group's others.

    ``d_i = 1 - mean over valid j != i of prefix(i, j) / L``: 0 when all others repeat the candidate, 1 when none shares
    its first code. A valid candidate that is alone in its group gets 1. (B, G) float32 in [0, 1]. Ours; the papers
    measure diversity (Div, the share of distinct SIDs) and do not reward it.
    """
    codes, valid = rollouts.codes, rollouts.valid
    levels = codes.shape[-1]
    others = valid[:, None, :] & ~np.eye(codes.shape[1], dtype=bool)
    shared = np.where(others, common_prefix(codes[:, :, None], codes[:, None]), 0).sum(axis=2)
    mean = shared / (levels * np.maximum(others.sum(axis=2), 1))
    return np.where(valid, 1.0 - mean, 0.0).astype(np.float32)


def engagement(
    episodes: Episodes, rollouts: Rollouts, *, click: float = 1.0, order: float = 2.0, negative: float = -1.0
) -> np.ndarray:
    """What the logged user did with the candidate on the page that is the label. (B, G) float32.

    The given values for CLICK, ORDER and NEGATIVE (``Episodes.feedback``); 0 for an item that was shown and ignored,
    and for one that was not on the page. The mean over the items of a shared SID; an item that stands on a page twice
    counts by its first place. The signals are those of GenRec's D+ and OneRec-V2's negative feedback. Raises
    ``ValueError`` for contexts without pages or feedback.
    """
    page, feedback = episodes.page, episodes.feedback
    if page is None or feedback is None:
        missing = "page" if page is None else "feedback"
        raise ValueError(
            f"reward 'engagement' needs Episodes.{missing}, which these contexts do not have; use a data set whose log "
            "records pages and feedback, or another reward"
        )
    worth = np.select([feedback == CLICK, feedback == ORDER, feedback == NEGATIVE], [click, order, negative], 0.0)
    at = (rollouts.items[..., None] == page[:, None, None, :]) & (rollouts.items != PAD_ITEM)[..., None]
    place = at.argmax(axis=-1).reshape(len(page), -1)
    value = np.take_along_axis(worth, place, axis=1).reshape(rollouts.items.shape)
    return mean_over_items(np.where(at.any(axis=-1), value, 0.0), rollouts.items).astype(np.float32)


class PrefixReward:
    """Number of levels on which the candidate's SID agrees with the target's. (B, G) float32 in [0, L].

    match: ``prefix`` counts the levels of the common prefix; ``levels`` counts agreeing levels wherever they stand,
        ``sum_l 1(s_l = target_l)`` of OneRec-Think.
    best_of_group: every valid candidate gets the largest value of its group, OneRec-Think's rollout-beam reward
        ``max over the beam``, which is meant for what the whole beam hangs on, such as a rationale. Candidates of one
        group are then equal, so it carries no signal for the candidates themselves.
    any_positive: the best agreement with any item of D+ instead of the target alone.
    """

    target_is_best = True
    requires = ("table",)

    def __init__(
        self, context: RewardContext, match: str = "prefix", best_of_group: bool = False, any_positive: bool = False
    ) -> None:
        self.check(match, best_of_group, any_positive)
        self.codes: np.ndarray = context.require("table", "prefix").codes
        self.match, self.best_of_group, self.any_positive = match, best_of_group, any_positive

    @staticmethod
    def check(match: Any = "prefix", best_of_group: Any = False, any_positive: Any = False) -> None:
        """Raises ``ValueError`` for an unknown ``match`` and for switches that are not bool."""
        check_choice("prefix", "match", match, ("prefix", "levels"))
        check_flag("prefix", "best_of_group", best_of_group)
        check_flag("prefix", "any_positive", any_positive)

    def __call__(self, episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
        """(B, G) float32 in [0, L]."""
        wanted = wanted_items(episodes, self.any_positive)
        ours, theirs = rollouts.codes[:, :, None], self.codes[wanted][:, None]
        same = common_prefix(ours, theirs) if self.match == "prefix" else (ours == theirs).sum(axis=-1)
        best = np.where((wanted != PAD_ITEM)[:, None], same, 0).max(axis=-1)
        best = np.where(rollouts.valid, best, 0)
        if self.best_of_group:
            best = np.where(rollouts.valid, best.max(axis=1, keepdims=True), 0)
        return best.astype(np.float32)


class SemanticReward:
    """Cosine similarity of the candidate's text embedding to the target's, negative values cut to 0.

    (B, G) float32 in [0, 1], the mean over the items of a shared SID; 0 where the target or the item has no text.
    Ours: a dense form of ``rule``, which pays for items that read like the target.
    """

    target_is_best = True
    requires = ("embeddings",)

    def __init__(self, context: RewardContext) -> None:
        self.unit_vectors = context.unit_embeddings("semantic")

    def __call__(self, episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
        """(B, G) float32 in [0, 1]."""
        target = episodes.target
        goal = np.where((target != PAD_ITEM)[:, None], self.unit_vectors[target], 0.0)
        cosine = np.clip(np.einsum("bgcd,bd->bgc", self.unit_vectors[rollouts.items], goal), 0.0, 1.0)
        # Rounding must not put the target below an item of the same text.
        itself = is_member(rollouts.items, target[:, None]) & (cosine > 0)
        return mean_over_items(np.where(itself, 1.0, cosine), rollouts.items).astype(np.float32)


class PopularityPenalty:
    """Minus the log popularity of the candidate, ``-log(1 + n_i) / log(1 + max n)``. (B, G) float32 in [-1, 0].

    ``n`` counts how often each item was engaged with in the training log (``RewardContext.popularity``); the mean over
    the items of a shared SID. Ours, against the exposure bias that MiniOneRec and GenRec see rewards fall for.
    """

    requires = ("popularity",)

    def __init__(self, context: RewardContext) -> None:
        counts = np.asarray(context.require("popularity", "popularity_penalty"), dtype=np.float64)
        if counts.ndim != 1 or not (np.isfinite(counts) & (counts >= 0)).all():
            raise ValueError(
                "reward 'popularity_penalty': RewardContext.popularity must hold a finite count of at least 0 for "
                f"every item, got shape {counts.shape}"
            )
        scale = np.log1p(counts.max(initial=0.0))
        self.penalty = -np.log1p(counts) / scale if scale > 0 else np.zeros_like(counts)

    def __call__(self, episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
        """(B, G) float32 in [-1, 0]."""
        return (mean_over_items(self.penalty[rollouts.items], rollouts.items) + 0.0).astype(np.float32)


def _check_rule(any_positive: Any = False) -> None:
    check_flag("rule", "any_positive", any_positive)


def _check_rank(groups: Any = "hit_only", denominator: Any = "paper", any_positive: Any = False) -> None:
    check_choice("rank", "groups", groups, ("hit_only", "all"))
    check_choice("rank", "denominator", denominator, ("paper", "released"))
    check_flag("rank", "any_positive", any_positive)


def _check_engagement(click: Any = 1.0, order: Any = 2.0, negative: Any = -1.0) -> None:
    for name, value in (("click", click), ("order", order), ("negative", negative)):
        check_number("engagement", name, value)


rule.check = _check_rule  # type: ignore[attr-defined]
rank.check = _check_rank  # type: ignore[attr-defined]
engagement.check = _check_engagement  # type: ignore[attr-defined]
rule.target_is_best = True  # type: ignore[attr-defined]
rank.target_is_best = True  # type: ignore[attr-defined]
rank.needs_group = True  # type: ignore[attr-defined]
rank.constant_sum = True  # type: ignore[attr-defined]
diversity.needs_group = True  # type: ignore[attr-defined]
legal_format.needs_mode = "free"  # type: ignore[attr-defined]
