"""Relevance: whether an item has to do with a history at all, which is what the gate of a preference asks.

GenRec does not say what its relevance score measures. Three are in the box: similarity of texts, agreement of SIDs, and
a small classifier of both that is fitted beside the preference model. Left out: the gate's threshold (``gate``) and the
reward (``reward_preference``).

Symbols: B contexts, T history length, K items asked, L levels, F features, E examples, N items.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sidgym.envs.records import PAD_ITEM, Sequences
from sidgym.envs.reward_context import RewardContext, common_prefix
from sidgym.sid.registry import resolve

Relevance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""History (B, T) and items (B, K), PAD_ITEM allowed, to (B, K)."""

EXAMPLES = 20_000
"""Positives that the classifier is fitted on at most."""
AGAINST = 4
"""Random items a positive."""
ROWS = 64
"""Contexts whose features are worked out at once."""
RIDGE = 1e-3
"""Penalty on the squared weights of the standardised features, a mean example's log loss being 1."""


class TextRelevance:
    """Largest cosine similarity of an item's text embedding to those of the history's items; 0 without a history."""

    def __init__(self, context: RewardContext) -> None:
        self.unit_vectors = context.unit_embeddings("gated")

    def __call__(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(B, K) float32 in [-1, 1]."""
        cosine = np.einsum("bkd,btd->bkt", self.unit_vectors[items], self.unit_vectors[history])
        seen = (history != PAD_ITEM)[:, None, :]
        best = np.where(seen, cosine, -np.inf).max(axis=2)
        return np.where(seen.any(axis=2), best, 0.0)


class PrefixRelevance:
    """Longest common SID prefix with any item of the history, divided by L; 0 without a history."""

    def __init__(self, context: RewardContext) -> None:
        self.codes: np.ndarray = context.require("table", "gated").codes

    def __call__(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(B, K) float32 in [0, 1]."""
        depth = common_prefix(self.codes[items][:, :, None], self.codes[history][:, None])
        seen = (history != PAD_ITEM)[:, None, :]
        return (np.where(seen, depth, 0).max(axis=2) / self.codes.shape[1]).astype(np.float32)


@dataclass(frozen=True)
class Classifier:
    """Logistic regression: does this item come from this user's log, or is it any item of the catalogue?

    ``reads`` names what its features are taken from: ``embeddings`` (the largest cosine to an item of the history, the
    mean over the history and that to its last item) and ``table`` (the longest common prefix, the mean over the history
    and that with its last item, divided by L).
    """

    reads: tuple[str, ...]
    mean: tuple[float, ...]  # (F,) of the features in the examples
    scale: tuple[float, ...]  # (F,)
    weights: tuple[float, ...]  # (F,) of the standardised features
    bias: float

    @classmethod
    def fit(
        cls, sequences: Sequences, context: RewardContext, history: int, seed: int, examples: int = EXAMPLES
    ) -> "Classifier":
        """Fit on what users took after a history of theirs, against ``AGAINST`` items drawn uniformly for each.

        Args:
            sequences: positives of training users; nothing else is read.
            context: with ``table``, ``embeddings`` or both.
            history: items of history before each positive, T.
            seed: of the draws; the same seed, the same classifier.
            examples: positives read at most, a random part where there are more.

        Raises ``ValueError`` where no user has two events, or where there is nothing to compare items by.
        """
        reads = tuple(name for name in ("embeddings", "table") if getattr(context, name) is not None)
        if not reads:
            raise ValueError("relevance 'learned' compares items by text embeddings or SIDs; this run has neither")
        rng = np.random.default_rng([seed, 5])
        past, taken = examples_of(sequences, history, examples, rng)
        count = items_of(context)
        items = np.concatenate([taken[:, None], rng.integers(0, count, size=(len(taken), AGAINST))], axis=1)
        values = features(context, reads, past, items).reshape(-1, len(_NAMES) * len(reads)).astype(np.float64)
        labels = np.zeros(items.shape)
        labels[:, 0] = 1.0
        mean, scale = values.mean(axis=0), values.std(axis=0)
        scale = np.where(scale > 1e-6, scale, 1.0)
        # Positives weigh as much as all else: at 0.5 both are equally likely.
        weight = np.where(labels > 0, 0.5, 0.5 / AGAINST) / len(taken)
        found = _logistic((values - mean) / scale, labels.reshape(-1), weight.reshape(-1))
        return cls(reads, tuple(mean.tolist()), tuple(scale.tolist()), tuple(found[1:].tolist()), float(found[0]))

    def probability(self, values: np.ndarray) -> np.ndarray:
        """Features (..., F) to probabilities (...) float32."""
        unit = (values - np.array(self.mean)) / np.array(self.scale)
        # Summed feature by feature: a product with a matrix could depend on how many rows it has.
        logit = np.full(values.shape[:-1], self.bias)
        for number, weight in enumerate(self.weights):
            logit = logit + weight * unit[..., number]
        return _sigmoid(logit).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Plain values that ``from_json`` reads."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Classifier":
        """What ``to_json`` wrote."""
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**given)


class LearnedRelevance:
    """Probability by ``Classifier`` that the item belongs to the history; 0 without a history.

    The classifier is that of ``RewardContext.gate``.
    """

    def __init__(self, context: RewardContext) -> None:
        self.classifier: Classifier | None = context.require("gate", "gated").classifier
        if self.classifier is None:
            raise ValueError("reward 'gated': relevance 'learned' needs a fitted classifier; fit the preference again")
        for field in self.classifier.reads:
            context.require(field, "gated")
        self.context = context

    def __call__(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(B, K) float32 in [0, 1]."""
        assert self.classifier is not None
        values = self.classifier.probability(features(self.context, self.classifier.reads, history, items))
        return np.where((history != PAD_ITEM).any(axis=1, keepdims=True), values, np.float32(0.0))


RELEVANCES: dict[str, Any] = {"text": TextRelevance, "prefix": PrefixRelevance, "learned": LearnedRelevance}
RELEVANCE_NEEDS = {"text": "embeddings", "prefix": "table", "learned": "gate"}
"""Built-in relevance -> the field of ``RewardContext`` that it reads."""

_NAMES = ("best", "mean", "last")


def items_of(context: RewardContext) -> int:
    """Items N of the catalogue. Raises ``ValueError`` where neither table nor embeddings tell."""
    if context.table is not None:
        return len(context.table.codes)
    return len(context.require("embeddings", "gated"))


def features(context: RewardContext, reads: tuple[str, ...], history: np.ndarray, items: np.ndarray) -> np.ndarray:
    """What ``Classifier`` looks at, (B, K, F) float32; 0 without a history."""
    out = np.zeros((*items.shape, len(_NAMES) * len(reads)), dtype=np.float32)
    for start in range(0, len(items), ROWS):
        rows = slice(start, start + ROWS)
        parts = [part for name in reads for part in _features(_closeness(context, name, history[rows], items[rows]))]
        out[rows] = np.where((history[rows] != PAD_ITEM).any(axis=1)[:, None, None], np.stack(parts, axis=-1), 0.0)
    return out


def _closeness(context: RewardContext, name: str, history: np.ndarray, items: np.ndarray) -> np.ndarray:
    """How close each item is to each of the history, (B, K, T) float32; NaN at padding of the history."""
    if name == "embeddings":
        unit = context.unit_embeddings("gated")
        close = np.einsum("bkd,btd->bkt", unit[items], unit[history])
    else:
        codes = context.require("table", "gated").codes
        close = (common_prefix(codes[items][:, :, None], codes[history][:, None]) / codes.shape[1]).astype(np.float32)
    return np.where((history != PAD_ITEM)[:, None, :], close, np.nan)


def _features(close: np.ndarray) -> list[np.ndarray]:
    seen = ~np.isnan(close)
    best = np.where(seen, close, -1.0).max(axis=2)
    mean = np.where(seen, close, 0.0).sum(axis=2) / np.maximum(seen.sum(axis=2), 1)
    return [best, mean, np.nan_to_num(close[:, :, -1])]


def examples_of(
    sequences: Sequences, history: int, most: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Positives (E,) that follow an item of the same user, at most ``most`` of them, and what came before, (E, T).

    Raises ``ValueError`` where there are none.
    """
    begin = np.repeat(sequences.offsets[:-1], np.diff(sequences.offsets))
    place = np.arange(len(sequences.items))
    found = place[place > begin]
    if not len(found):
        raise ValueError("relevance 'learned': no training user has an event that follows another one")
    if len(found) > most:
        found = np.sort(rng.choice(found, size=most, replace=False))
    before = found[:, None] + np.arange(-history, 0)
    inside = before >= begin[found][:, None]
    past = np.where(inside, sequences.items[np.where(inside, before, 0)], PAD_ITEM)
    return past, sequences.items[found]


def _logistic(values: np.ndarray, labels: np.ndarray, weight: np.ndarray, steps: int = 50) -> np.ndarray:
    """Bias and weights (1 + F,) of least weighted log loss with ``RIDGE``, by Newton's method."""
    design = np.concatenate([np.ones((len(values), 1)), values], axis=1)
    penalty = RIDGE * np.diag([0.0, *np.ones(values.shape[1])])
    found = np.zeros(design.shape[1])
    for _ in range(steps):
        chance = _sigmoid(design @ found)
        slope = design.T @ (weight * (chance - labels)) + penalty @ found
        # The bias gets a trace of a penalty, too: without it perfectly separated examples have no solution.
        curve = (design * (weight * chance * (1 - chance))[:, None]).T @ design + penalty + 1e-9 * np.eye(len(found))
        step = np.linalg.solve(curve, slope)
        found = found - step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    return found


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(logit))
    return np.where(logit >= 0, 1.0, small) / (1.0 + small)


def relevance_function(choice: str | Relevance, context: RewardContext) -> Relevance:
    """The relevance that ``GatedPreference``'s argument means. Raises ``ValueError`` where it cannot be called so."""
    found: Any = resolve("relevance", choice, RELEVANCES) if isinstance(choice, str) else choice
    if isinstance(found, type) or (callable(found) and not _takes_two(found)):
        found = found(context)
    if not callable(found) or not _takes_two(found):
        raise ValueError(
            f"reward 'gated': relevance {choice!r} must be callable as (history, items) -> (contexts, items), or make "
            f"such a function from a RewardContext; got {type(found).__name__}"
        )
    return found


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    return True
