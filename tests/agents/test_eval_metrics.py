"""Metrics beside HR and NDCG reach the evaluation by their names, and the defaults stay what they were."""

import numpy as np
import pytest

from sidgym.agents.evaluate import judge_items
from sidgym.envs.config import EvalConfig
from sidgym.envs.records import Episodes

ITEMS = np.array([[4, 1, 2], [3, 0, 5]])[:, :, None]
CONTEXTS = Episodes(np.arange(2), np.arange(2), np.zeros((2, 1), np.int64), np.array([[1], [5]]))


def last_place(items: np.ndarray, target: np.ndarray, k: int) -> np.ndarray:
    """A metric from outside the tree: whether the last of three places has the target."""
    return (items[:, 2, 0] == target).astype(float)


def test_named_metrics_stand_beside_hr_and_ndcg() -> None:
    config = EvalConfig(ks=(1, 3), metrics=("mrr", f"{__name__}:last_place"))
    per_user, _ = judge_items(ITEMS, CONTEXTS, config, None, 6)
    assert per_user["mrr@3"].tolist() == pytest.approx([1 / 2, 1 / 3])
    assert per_user["last_place@1"].tolist() == [0, 1]
    assert per_user["hr@3"].tolist() == [1, 1]


def test_by_default_there_are_hr_and_ndcg_alone() -> None:
    per_user, _ = judge_items(ITEMS, CONTEXTS, EvalConfig(ks=(1, 3)), None, 6)
    assert list(per_user) == ["hr@1", "hr@3", "ndcg@1", "ndcg@3"]


def test_a_metric_that_is_there_already_is_refused() -> None:
    with pytest.raises(ValueError, match="hr would be lost"):
        judge_items(ITEMS, CONTEXTS, EvalConfig(metrics=("hr",)), None, 6)
