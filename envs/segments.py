"""For whom a metric is high: contexts by what is known of their target and their history.

A segmentation puts every context in one band. ``cold`` and ``popularity`` go by how often the target was seen in
training, ``history`` by how much is known of the user. ``exposure`` says the same of what is recommended. Left out:
intervals, which ``statistics`` gives for the users of a band as for all.

Symbols: B contexts, N items, K candidates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sidgym.envs.records import PAD_ITEM, Episodes, Sequences
from sidgym.sid.registry import resolve

COLD_EVENTS = 5
"""An item with so many training events or fewer is cold."""

HISTORY_EDGES = (5, 10)
"""Items of history at which the next band begins."""


@dataclass(frozen=True)
class Bands:
    """Which band each context (or item) is in."""

    names: tuple[str, ...]
    band: np.ndarray  # (B,) or (N,) int64, an index into ``names``


def training_counts(sequences: Sequences, num_items: int) -> np.ndarray:
    """Events of each item in the training sequences, (N,) int64."""
    return np.bincount(sequences.items, minlength=num_items)


def cold_items(episodes: Episodes, counts: np.ndarray) -> Bands:
    """By training events of the target: none, up to ``COLD_EVENTS``, more."""
    names = ("unseen", f"cold (1-{COLD_EVENTS})", f"warm ({COLD_EVENTS + 1}+)")
    return Bands(names, np.digitize(counts[episodes.target], [1, COLD_EVENTS + 1]))


def history_length(episodes: Episodes, counts: np.ndarray) -> Bands:
    """By items of the history, as far as the context holds them."""
    low, high = HISTORY_EDGES
    length = (episodes.history != PAD_ITEM).sum(axis=1)
    return Bands((f"short (<{low})", f"medium ({low}-{high - 1})", f"long ({high}+)"), np.digitize(length, [low, high]))


def popularity_bands(episodes: Episodes, counts: np.ndarray) -> Bands:
    """By the popularity of the target; see ``item_bands``."""
    items = item_bands(counts)
    return Bands(items.names, items.band[episodes.target])


def item_bands(counts: np.ndarray) -> Bands:
    """Items (N,) by popularity: ``head`` are the most popular ones that together have a third of the training events,
    ``middle`` those that have the next third, ``tail`` the rest. Equal counts go by item number."""
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    band = np.empty(len(counts), dtype=np.int64)
    # In whole events, so that a boundary does not hang on rounding.
    band[order] = np.minimum(3 * before // max(1, int(counts.sum())), 2)
    band[counts == 0] = 2
    return Bands(("head", "middle", "tail"), band)


SEGMENTS: dict[str, Callable[[Episodes, np.ndarray], Bands]] = {
    "cold": cold_items,
    "history": history_length,
    "popularity": popularity_bands,
}
"""Name -> ``(episodes, training events of each item (N,)) -> Bands`` of the contexts."""


def by_segment(
    per_user: Mapping[str, np.ndarray],
    episodes: Episodes,
    counts: np.ndarray,
    segments: Sequence[str] = tuple(SEGMENTS),
) -> dict[str, dict[str, dict[str, float]]]:
    """Means of metrics (B,) in each band: ``{segment: {band: {"users": n, metric: mean}}}``.

    A band without contexts has ``{"users": 0}`` and no means. ``ValueError`` for an unknown segmentation and for
    metrics of other contexts.
    """
    for name, values in per_user.items():
        if len(values) != len(episodes):
            raise ValueError(f"by_segment: {name!r} has {len(values)} values for {len(episodes)} contexts")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for segment in segments:
        bands = resolve("segmentation", segment, SEGMENTS)(episodes, counts)
        rows = {name: bands.band == number for number, name in enumerate(bands.names)}
        found[segment.rpartition(":")[2]] = {
            name: {"users": int(inside.sum())}
            | ({metric: float(values[inside].mean()) for metric, values in per_user.items()} if inside.any() else {})
            for name, inside in rows.items()
        }
    return found


def exposure(items: np.ndarray, counts: np.ndarray, k: int) -> dict[str, float]:
    """Share of the first ``k`` places of all lists that goes to each band of ``item_bands``; ``tail`` is the long-tail
    share. ``items`` (B, K), best first; empty places are not counted. All 0 where every list is empty."""
    if items.ndim != 2:
        raise ValueError(f"exposure: expected items of shape (B, K), got {items.shape}; take the first item of a SID")
    bands = item_bands(counts)
    top = items[:, :k]
    shown = np.bincount(bands.band[top[top != PAD_ITEM]], minlength=len(bands.names))
    return {name: float(share) for name, share in zip(bands.names, shown / max(1, int(shown.sum())))}
