"""Metrics against hand values and a brute-force average over the orders of items that share a SID."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.envs import metrics
from sidgym.envs.records import PAD_ITEM


def brute_force(groups: list[list[int]], target: int, k: int) -> tuple[float, float]:
    """HR and NDCG averaged over every order of the items inside each group; an empty group is one blank place."""
    hits, gains, orders = 0.0, 0.0, 0
    for choice in itertools.product(*(list(itertools.permutations(group or [PAD_ITEM])) for group in groups)):
        flat = [item for group in choice for item in group]
        place = flat.index(target) + 1 if target in flat else None
        orders += 1
        if place is not None and place <= k:
            hits += 1
            gains += 1 / math.log2(place + 1)
    return hits / orders, gains / orders


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(0, 8), st.integers(1, 12))
def test_shared_sids_are_worth_the_average_over_orders(sizes: list[int], target: int, k: int) -> None:
    fresh = itertools.count()
    groups = [[next(fresh) for _ in range(size)] for size in sizes]
    items = np.full((1, len(sizes), 3), PAD_ITEM)
    for row, group in enumerate(groups):
        items[0, row, : len(group)] = group
    result = metrics.rank_metrics(items, np.array([target]), (k,))
    hr, ndcg = brute_force(groups, target, k)
    assert result[f"hr@{k}"][0] == pytest.approx(hr)
    assert result[f"ndcg@{k}"][0] == pytest.approx(ndcg)


def test_hand_values() -> None:
    items = np.array([[7, 3, 5], [7, 3, 5], [7, 3, 5]])
    result = metrics.rank_metrics(items, np.array([7, 5, 9]), (1, 3))
    assert result["hr@1"].tolist() == [1, 0, 0]
    assert result["hr@3"].tolist() == [1, 1, 0]
    assert result["ndcg@3"].tolist() == pytest.approx([1, 0.5, 0])


def test_pair_on_the_cut_off_counts_half() -> None:
    items = np.array([[[4, PAD_ITEM], [1, 2]]])
    result = metrics.rank_metrics(items, np.array([2]), (2,))
    assert result["hr@2"][0] == pytest.approx(0.5)
    assert result["ndcg@2"][0] == pytest.approx(0.5 / math.log2(3))


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_every_metric_is_in_range_and_prefers_the_better_list(name: str) -> None:
    items = np.stack([np.roll(np.arange(6), shift) for shift in range(6)])
    value = metrics.METRICS[name](items[:, :, None], np.zeros(6, dtype=int), 6)
    assert value.shape == (6,)
    assert value[0] == 1
    assert ((value >= 0) & (value <= 1)).all()
    assert (np.diff(value) <= 0).all()


def test_nan_scores_recommend_nothing() -> None:
    items = np.tile(np.arange(5), (2, 1))
    scores = np.array([[np.nan] * 5, [np.nan, 1.0, 3.0, -np.inf, 3.0]])
    ranked = metrics.rank_by_score(items, scores)
    assert ranked.tolist() == [[PAD_ITEM] * 5, [2, 4, 1, PAD_ITEM, PAD_ITEM]]
    result = metrics.rank_metrics(ranked, np.array([0, 0]), (10,))
    assert result["hr@10"].tolist() == [0, 0]


def test_rank_by_score_moves_whole_groups_and_takes_infinite_scores_first() -> None:
    items = np.array([[[0, 1], [2, PAD_ITEM], [3, 4]]])
    ranked = metrics.rank_by_score(items, np.array([[0.5, np.inf, 0.7]]))
    assert ranked.tolist() == [[[2, PAD_ITEM], [3, 4], [0, 1]]]


def nan_metric(items: np.ndarray, target: np.ndarray, k: int) -> np.ndarray:
    return np.full(len(target), np.nan)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    items = np.array([[1, 2]])
    with pytest.raises(ValueError, match="rank_by_score"):
        metrics.rank_metrics(np.array([[0.2, np.nan]]), np.array([1]), (1,))
    with pytest.raises(ValueError, match="target"):
        metrics.rank_metrics(items, np.array([PAD_ITEM]), (1,))
    with pytest.raises(ValueError, match="cut-offs"):
        metrics.rank_metrics(items, np.array([1]), (0,))
    with pytest.raises(ValueError, match="Did you mean 'ndcg'"):
        metrics.rank_metrics(items, np.array([1]), (1,), metrics=("ndgc",))
    with pytest.raises(ValueError, match=r"different names.*ndcg would be lost"):
        metrics.rank_metrics(items, np.array([1]), (1,), metrics=("ndcg", f"{__name__}:ndcg"))
    with pytest.raises(ValueError, match="shape"):
        metrics.rank_by_score(items, np.zeros((1, 3)))
    monkeypatch.setitem(metrics.METRICS, "broken", nan_metric)
    with pytest.raises(ValueError, match="'broken' at 1 is not finite"):
        metrics.rank_metrics(items, np.array([1]), (1,), metrics=("broken",))


def test_diversity_and_hallucination() -> None:
    items = np.array([[[0], [0], [1], [PAD_ITEM]], [[0], [1], [2], [3]]])
    assert metrics.diversity(items).tolist() == [0.5, 1.0]
    assert metrics.diversity(np.full((1, 3, 1), PAD_ITEM)).tolist() == [0]
    assert metrics.hallucination_rate(items[:, :, 0] >= 0) == pytest.approx(1 / 8)


def test_coverage_counts_items_within_the_top_places_only() -> None:
    items = np.array([[[0, 1], [2, PAD_ITEM]], [[0, PAD_ITEM], [3, 4]]])
    assert metrics.coverage(items, 10, k=1) == pytest.approx(0.1)
    assert metrics.coverage(items, 10, k=2) == pytest.approx(0.3)
    assert metrics.coverage(items, 10, k=3) == pytest.approx(0.5)
