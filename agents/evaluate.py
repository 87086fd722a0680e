"""Judging a policy: ranked lists from beam search, item-level metrics, legality, and preference where truth is known.

Left out: baselines and statistics over users, which work on the arrays made here.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from sidgym.agents.engine import TorchEngine
from sidgym.agents.packed import packed_scores
from sidgym.agents.policy import Policy
from sidgym.envs.config import EvalConfig
from sidgym.envs.metrics import coverage, diversity, hallucination_rate, rank_metrics
from sidgym.envs.records import PAD_ITEM, Episodes, Rollouts, concatenate_rollouts
from sidgym.envs.session_dynamics import Sessions, episodes_of
from sidgym.sid.trie import Trie

Progress = Callable[[int, int, str], None]
Preference = Callable[[Episodes, np.ndarray], np.ndarray]
"""``(episodes, items (B, k)) -> (B, k)``, the true preference of each item."""


def rank_contexts(
    policy: Policy,
    episodes: Episodes,
    beam: int,
    batch: int = 64,
    normalise: str = "trie",
    mode: str = "beam",
    trie: Trie | None = None,
    on_progress: Progress | None = None,
) -> Rollouts:
    """The policy's ``beam`` best candidates for each context, best first, in the order of ``episodes``.

    Contexts are batched by length of question, which changes no result beyond rounding and saves most of the padding.
    """
    engine = TorchEngine(policy, chunk=batch, normalise=normalise)
    order = np.argsort((episodes.question >= 0).sum(1), kind="stable")
    parts = []
    for start in range(0, len(order), batch):
        parts.append(engine.rollout(episodes.take(order[start : start + batch]), beam, mode, trie))
        if on_progress:
            on_progress(min(start + batch, len(order)), len(order), "ranking")
    inverse = np.argsort(order)
    return concatenate_rollouts(parts).take(inverse)


def legal_mass(policy: Policy, episodes: Episodes, batch: int = 64) -> np.ndarray:
    """Probability (B,) that the unconstrained policy stays inside the trie along the target's path.

    At each node the mass of the allowed codes is ``p_vocab(c) / p_trie(c)`` for any allowed ``c``; the product over the
    levels is returned.
    """
    codes = torch.from_numpy(policy.table.codes)[torch.from_numpy(episodes.target)][:, None]
    out = []
    with torch.no_grad():
        for start in range(0, len(episodes), batch):
            rows = slice(start, start + batch)
            part = episodes.take(rows).trimmed()
            vocab, trie = packed_scores(policy, part, codes[rows], ("vocab", "trie"))
            out.append((vocab.logp - trie.logp).sum((1, 2)).exp().cpu().numpy())
    return np.concatenate(out)


def evaluate_policy(
    policy: Policy,
    episodes: Episodes,
    config: EvalConfig,
    preference: Preference | None = None,
    on_progress: Progress | None = None,
    free_contexts: int = 256,
) -> tuple[dict[str, np.ndarray], dict[str, float], Rollouts]:
    """Per-context metrics (B,), whole-set metrics and the ranked lists of a policy.

    ``preference(episodes, items (B, k)) -> (B, k)`` adds ``preference@1`` and ``preference@10``, the mean true
    preference of the top of the list. HaR is measured by free decoding of 10 candidates on at most ``free_contexts``.
    """
    beam = max(config.beam, *config.ks)
    ranked = rank_contexts(policy, episodes, beam, config.batch, on_progress=on_progress)
    per_user, whole = judge_items(ranked.items, episodes, config, preference, policy.table.num_items)
    per_user["div"] = diversity(ranked.items)
    few = episodes.take(slice(0, free_contexts))
    free = rank_contexts(policy, few, 10, config.batch, mode="free")
    whole |= {"har": hallucination_rate(free.valid), "trie/legal_mass": float(legal_mass(policy, few).mean())}
    return per_user, whole, ranked


def judge_items(
    items: np.ndarray, episodes: Episodes, config: EvalConfig, preference: Preference | None, num_items: int
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Per-context and whole-set metrics of any system's ranked lists (B, K, C)."""
    per_user = rank_metrics(items, episodes.target, config.ks, ("hr", "ndcg", *config.metrics))
    if preference is not None:
        per_user.update(preference_at_k(preference, episodes, items))
    return per_user, {"coverage@10": float(coverage(items, num_items, 10))}


class PolicyPages:
    """The policy's most probable items as the page: an agent for ``session_oracle.judge_sessions``."""

    def __init__(self, policy: Policy, batch: int = 64):
        self.engine = TorchEngine(policy, chunk=batch)

    def choose(self, sessions: Sessions, rng: np.random.Generator) -> np.ndarray:
        """Pages of distinct items (B, S), most probable first."""
        return self.engine.rollout(episodes_of(sessions), sessions.shown.shape[1]).item


def first_places(items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``k`` items of ranked groups (B, K, C), and the number of the group that each came from.

    Items that share a SID take consecutive places in stored order; PAD_ITEM stands at the end of a shorter list. Both
    are (B, min(k, K * C)).
    """
    flat = items.reshape(len(items), -1)
    order = np.argsort(flat == PAD_ITEM, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(flat, order, axis=1), order // items.shape[2]


def preference_at_k(preference: Preference, episodes: Episodes, items: np.ndarray) -> dict[str, np.ndarray]:
    """``preference@1`` and ``preference@10`` (B,) of ranked groups (B, K, C); an empty place counts as zero.

    Every system is judged on ten places, also one whose list is shorter.
    """
    top, _ = first_places(items, 10)
    values = np.where(top >= 0, preference(episodes, np.maximum(top, 0)), 0.0)
    return {"preference@1": values[:, 0], "preference@10": values.sum(1) / 10}


def rerank(ranked: Rollouts, scores: np.ndarray) -> Rollouts:
    """The same candidates in descending order of ``scores`` (B, G); NaN and invalid candidates go last."""
    usable = np.where(ranked.valid & ~np.isnan(scores), scores, -np.inf)
    order = np.argsort(-usable, axis=1, kind="stable")
    rows = np.arange(len(order))[:, None]
    return replace(
        ranked,
        codes=ranked.codes[rows, order],
        valid=ranked.valid[rows, order],
        items=ranked.items[rows, order],
        logp=ranked.logp[rows, order],
    )
