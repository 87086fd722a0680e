"""Judging a policy and models of preference on users who are in no training stage, where the truth is known.

Left out: fitting and training (``preference_parts``).

Symbols: B contexts, K items a context, P logged pages, S places a page.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sidgym.agents.audit import correlation
from sidgym.agents.engine_torch import TorchEngine
from sidgym.agents.evaluate import first_places, preference_at_k, rank_contexts
from sidgym.agents.packed import packed_scores
from sidgym.agents.policy import Policy
from sidgym.envs.gate import Gate, asked
from sidgym.envs.impressions import impressions
from sidgym.envs.metrics import rank_metrics
from sidgym.envs.preference import Preference, evaluate_probabilities
from sidgym.envs.records import PAD_ITEM, Episodes, Interactions
from sidgym.envs.relevance import items_of, relevance_function
from sidgym.envs.reward_context import RewardContext
from sidgym.envs.simulator import Truth

DRAWS = 8
"""SIDs a context from which the divergence from the start is estimated."""


@dataclass(frozen=True)
class Held:
    """The users who are judged, what they truly like, and the models whose word is compared with that."""

    episodes: Episodes
    truth: Truth
    models: Mapping[str, Preference]
    relevance: Any = None
    tau: float = 0.0

    def true(self, episodes: Episodes, items: np.ndarray) -> np.ndarray:
        """True preference (B, K) at the moment of the contexts."""
        assert episodes.event is not None
        return self.truth.preference(episodes.event, items)

    def judge(self, policy: Policy, beam: int) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
        """Figures of each context (B,), and by model the correlations over the policy's ``beam`` best candidates.

        ``learned/<name>`` is what a model says of the ten first items, without gate and anchor; ``passed`` the share of
        them that the gate lets pass.
        """
        contexts = self.episodes
        ranked = rank_contexts(policy, contexts, beam)
        liked = preference_at_k(self.true, contexts, ranked.items)
        metrics = rank_metrics(ranked.items, contexts.target, (10, 50))
        figures = {"true@10": liked["preference@10"], "true@1": liked["preference@1"], **metrics}
        items, _ = first_places(ranked.items, beam)
        true = self.true(contexts, np.maximum(items, 0))
        top, agreement = items[:, :10], {}
        for name, model in self.models.items():
            scores = asked(model.score, contexts.history, items)
            figures[f"learned/{name}"] = scores[:, :10].sum(axis=1) / 10
            agreement[name] = correlations(scores, true, items != PAD_ITEM)
        if self.relevance is not None:
            passed = (asked(self.relevance, contexts.history, top) > self.tau) & (top != PAD_ITEM)
            figures["passed"] = passed.mean(axis=1)
        return figures, agreement


def correlations(scores: np.ndarray, true: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Agreement of scores (B, K) with the truth (B, K) at ``real`` places.

    ``pearson`` and ``spearman`` are over all pairs; ``within`` is the mean over contexts of Pearson's inside one, which
    is what the advantage of a group sees.
    """
    from scipy.stats import rankdata

    mine, other = scores[real].astype(np.float64), true[real].astype(np.float64)

    def pearson(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0

    return {
        "pearson": pearson(mine, other),
        "spearman": pearson(rankdata(mine), rankdata(other)),
        "within": float(correlation(scores, true, real).mean()),
    }


def divergence(policy: Policy, start: Policy, episodes: Episodes, draws: int = DRAWS, batch: int = 64) -> float:
    """KL(policy || start) of whole SIDs in nats, under the trie, from ``draws`` independent SIDs of each context."""
    engine, total = TorchEngine(policy, chunk=batch), 0.0
    for begin in range(0, len(episodes), batch):
        part = episodes.take(slice(begin, begin + batch)).trimmed()
        drawn = engine.rollout(part, draws, "sample", seed=begin)
        with torch.no_grad():
            before = packed_scores(start, part, torch.from_numpy(drawn.codes), ("trie",))[0].logp.numpy()
        total += float((drawn.logp - before).sum(dtype=np.float64))
    return total / (len(episodes) * draws)


def on_logged_pages(
    model: Preference, log: Interactions, truth: Truth, users: np.ndarray, history: int
) -> dict[str, Any]:
    """A model against held-out users' pages: the truth of all that was shown, and clicks at the first place.

    The first place is always looked at, so that a click there happens with the true preference as its probability.
    """
    pages, rows = impressions(log, users, history), np.flatnonzero(np.isin(log.user, users))
    # Pages stand in the order of (user, page); the taste is that of the page's first row.
    page = rows if log.page is None else log.page[rows]
    _, first = np.unique(np.stack([log.user[rows], page]), axis=1, return_index=True)
    seen = (pages.history != PAD_ITEM).any(axis=1)
    pages, event = pages.take(seen), rows[first][seen]
    scores = asked(model.score, pages.history, pages.items)
    true = truth.preference(event, np.maximum(pages.items, 0))
    clicks = evaluate_probabilities(scores[:, 0], pages.engaged[:, 0], bins=15)
    return {
        "logged": correlations(scores, true, pages.items != PAD_ITEM),
        "clicks": {name: clicks[name] for name in ("auc", "log_loss", "ece", "base_rate", "base_log_loss")},
        "pages": len(event),
    }


def gate_figures(judged: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a gate's report: what passes, and what the model says of its favourites on both sides."""
    return {"pass_rate": judged["pass_rate"], "preference": judged["preference"]}


def gate_price(held: Held, context: RewardContext, relevance: str, tau: float | str, gate: Gate) -> dict[str, Any]:
    """What a gate lets pass of the catalogue, of what the judged users took next, and of the ten items each of them
    truly likes best."""
    function = relevance_function(relevance, replace(context, gate=gate))
    threshold = gate.threshold(relevance) if isinstance(tau, str) else tau
    contexts, count = held.episodes, items_of(context)
    every = np.broadcast_to(np.arange(count), (len(contexts), count))
    true = held.true(contexts, every)
    passed = asked(function, contexts.history, every) > threshold
    best = np.argsort(-true, axis=1, kind="stable")[:, :10]
    return {
        "relevance": relevance,
        "tau": float(threshold),
        "catalogue": float(passed.mean()),
        "targets": float(np.take_along_axis(passed, contexts.targets[:, :1], axis=1).mean()),
        "best_ten": float(np.take_along_axis(passed, best, axis=1).mean()),
    }
