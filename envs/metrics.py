"""Item-level metrics on ranked lists, with the expectation over the items that share a SID.

Everything here takes lists that are already ranked; ``rank_by_score`` makes one from scores, and NaN never enters it. A
group of items that share a SID takes consecutive places in random order; an invalid candidate takes one place and hits
nothing; an item that is listed twice counts at its first place. Left out: making the lists, which is up to the engine.
"""

from collections.abc import Callable, Sequence

import numpy as np

from sidgym.envs.records import PAD_ITEM
from sidgym.sid.registry import resolve


def rank_by_score(items: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Items ordered by falling score; ties keep their order.

    ``items`` (B, K) or (B, K, C), ``scores`` (B, K); the result has the shape of ``items``. Candidates scored NaN or
    -inf (masked) are not ranked: they become PAD_ITEM at the end, so that a broken scorer recommends nothing.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if items.shape[:2] != scores.shape:
        raise ValueError(f"scores should have the shape of the candidates {items.shape[:2]}, got {scores.shape}")
    ranked = ~np.isnan(scores) & (scores != -np.inf)
    order = np.argsort(np.where(ranked, -scores, np.inf), axis=1, kind="stable")
    keep = np.take_along_axis(ranked, order, axis=1)
    if items.ndim == 3:
        order, keep = order[:, :, None], keep[:, :, None]
    return np.where(keep, np.take_along_axis(items, order, axis=1), PAD_ITEM)


def _checked(items: np.ndarray) -> np.ndarray:
    items = np.asarray(items)
    if not np.issubdtype(items.dtype, np.integer):
        raise ValueError(f"expected ranked items as integers, got {items.dtype}; rank scores with rank_by_score first")
    if items.ndim == 2:
        items = items[:, :, None]
    if items.ndim != 3:
        raise ValueError(f"expected items of shape (B, K) or (B, K, C), got {items.shape}")
    return items


def places(items: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places ahead of the target's group and the size of that group, (B,) each; the size is 0 where it is not listed.

    ``items`` (B, K, C) ranked groups, PAD_ITEM on the right and in invalid candidates; ``target`` (B,).
    """
    items, target = _checked(items), np.asarray(target)
    if target.shape != items.shape[:1] or (target < 0).any():
        raise ValueError(f"expected one item of the catalogue as target for each of {len(items)} lists")
    size = np.maximum((items != PAD_ITEM).sum(axis=2), 1)
    ahead = np.cumsum(size, axis=1) - size
    hit = (items == target[:, None, None]).any(axis=2)
    if hit.shape[1] == 0:
        return np.zeros(len(target), np.int64), np.zeros(len(target), np.int64)
    first, rows = np.argmax(hit, axis=1), np.arange(len(target))
    found = hit[rows, first]
    return np.where(found, ahead[rows, first], 0), np.where(found, size[rows, first], 0)


def hit_rate(items: np.ndarray, target: np.ndarray, k: int) -> np.ndarray:
    """Expected HR@k, (B,) float64: ``clamp(k - b, 0, m) / m`` with ``b`` places ahead of the ``m`` items of the SID.

    ``items`` (B, K, C) ranked groups, ``target`` (B,). 0 where the target is not listed.
    """
    ahead, size = places(items, target)
    return np.where(size > 0, np.clip(k - ahead, 0, size) / np.maximum(size, 1), 0.0)


def ndcg(items: np.ndarray, target: np.ndarray, k: int) -> np.ndarray:
    """Expected NDCG@k with one target, (B,) float64: ``(1/m) sum_{j=b+1}^{min(b+m, k)} 1 / log2(j + 1)``.

    ``b`` places lie ahead of the ``m`` items of the SID; ``items`` (B, K, C) ranked groups, ``target`` (B,).
    """
    return _mean_gain(items, target, k, 1.0 / np.log2(np.arange(2, k + 2)))


def _mean_gain(items: np.ndarray, target: np.ndarray, k: int, worth: np.ndarray) -> np.ndarray:
    """What the target is worth on average over the order of its group, if place j is worth ``worth[j]`` (k,): (B,)."""
    ahead, size = places(items, target)
    gain = np.append(0.0, np.cumsum(worth))  # gain[j] sums the first j places
    total = gain[np.minimum(ahead + size, k)] - gain[np.minimum(ahead, k)]
    return np.where(size > 0, total / np.maximum(size, 1), 0.0)


def mrr(items: np.ndarray, target: np.ndarray, k: int) -> np.ndarray:
    """Expected reciprocal rank within the first k places, (B,) float64: ``(1/m) sum_{j=b+1}^{min(b+m, k)} 1 / j``.

    ``b`` places lie ahead of the ``m`` items of the SID; ``items`` (B, K, C) ranked groups, ``target`` (B,).
    """
    return _mean_gain(items, target, k, 1.0 / np.arange(1, k + 1))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {"hr": hit_rate, "ndcg": ndcg, "mrr": mrr}
"""Name -> ``(items (B, K, C) ranked, target (B,), k) -> (B,)``, each value in [0, 1] and higher is better.

One of your own goes by ``package.module:name``; ``segments`` says for whom a metric is high.
"""


def rank_metrics(
    items: np.ndarray, target: np.ndarray, ks: Sequence[int], metrics: Sequence[str] = ("hr", "ndcg")
) -> dict[str, np.ndarray]:
    """Every metric at every cut-off, ``{"hr@10": (B,) ...}``.

    ``items`` (B, K, C) or (B, K): groups in the order of their rank, PAD_ITEM where there is none. Raises
    ``ValueError`` for scores in place of items, cut-offs below 1, a target that is no item, a metric that yields a NaN,
    or two metrics of one name.
    """
    if any(k < 1 for k in ks):
        raise ValueError(f"cut-offs should be at least 1, got {tuple(ks)}")
    items = _checked(items)
    short = [name.rpartition(":")[2] for name in metrics]
    twice = sorted({name for name in short if short.count(name) > 1})
    if twice:
        raise ValueError(f"expected metrics of different names, got {list(metrics)}: {', '.join(twice)} would be lost")
    values = {}
    for name in metrics:
        metric = resolve("metric", name, METRICS)
        for k in ks:
            value = metric(items, target, k)
            if not np.isfinite(value).all():
                raise ValueError(f"metric {name!r} at {k} is not finite in {int((~np.isfinite(value)).sum())} lists")
            values[f"{name.rpartition(':')[2]}@{k}"] = value
    return values


def diversity(items: np.ndarray) -> np.ndarray:
    """Distinct valid SIDs of each group over G, (B,) float64.

    ``items`` (B, G, C) or (B, G), PAD_ITEM where invalid. A SID is told by its first item, since no item has two SIDs.
    """
    first = np.sort(_checked(items)[:, :, 0], axis=1)
    new = np.ones(first.shape, dtype=bool)
    new[:, 1:] = first[:, 1:] != first[:, :-1]
    return (new & (first != PAD_ITEM)).sum(axis=1) / first.shape[1]


def hallucination_rate(valid: np.ndarray) -> float:
    """Share of all candidates that are no SID of the catalogue (HaR). ``valid`` (B, G) bool.

    Only meaningful for decoding without the trie; under the trie it is 0 by construction.
    """
    return float(1.0 - np.asarray(valid, dtype=bool).mean())


def coverage(items: np.ndarray, num_items: int, k: int) -> float:
    """Share of the catalogue that stands in the top ``k`` of at least one list.

    ``items`` (B, K, C) or (B, K) ranked groups; items that share a SID are listed in their stored order.
    """
    items = _checked(items)
    present = items != PAD_ITEM
    size = np.maximum(present.sum(axis=2), 1)
    place = (np.cumsum(size, axis=1) - size)[:, :, None] + np.cumsum(present, axis=2) - 1
    return len(np.unique(items[present & (place < k)])) / num_items
