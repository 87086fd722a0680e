"""The way out: names in, names out."""

import numpy as np
import pytest
from toy import toy_policy, toy_table

from sidgym.agents.recommender import Recommender


@pytest.fixture(scope="module")
def recommender():
    return Recommender(toy_policy(toy_table()), history=4)


def test_ranked_names_with_falling_scores(recommender):
    names, scores = recommender.recommend([["item1", "item2"], []], k=7)
    assert names.shape == scores.shape == (2, 7)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == 7 for row in names)


def test_scores_are_the_whole_distribution(recommender):
    _, scores = recommender.recommend([["item3"]], k=30)
    assert np.exp(scores.astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-4)


def test_only_allowed_items_and_empty_slots_where_too_few(recommender):
    names, scores = recommender.recommend([["item1"]], k=4, allowed=["item9", "item4"])
    assert set(names[0, :2]) == {"item9", "item4"}
    assert names[0, 2:].tolist() == ["", ""]
    assert np.isneginf(scores[0, 2:]).all()


def test_only_the_latest_items_count(recommender):
    long = [f"item{i}" for i in range(12)]
    np.testing.assert_array_equal(recommender.recommend([long], 5)[0], recommender.recommend([long[-4:]], 5)[0])


def test_order_of_answers_is_that_of_the_questions(recommender):
    histories = [["item1"], ["item2", "item3", "item4"], [], ["item5", "item6"]]
    together, _ = recommender.recommend(histories, 5, batch=2)
    for row, history in enumerate(histories):
        np.testing.assert_array_equal(together[row], recommender.recommend([history], 5)[0][0])


def test_unknown_items_are_named(recommender):
    with pytest.raises(ValueError, match="unknown item 'nonsense'"):
        recommender.recommend([["item1", "nonsense"]])
    with pytest.raises(ValueError, match="allowed: unknown item"):
        recommender.recommend([["item1"]], allowed=["nonsense"])


def test_shared_sids_yield_all_their_items():
    shared = toy_table(12, (2, 2), seed=4, unique=False)
    names, scores = Recommender(toy_policy(shared), 4).recommend([["item1"]], k=12)
    assert sorted(names[0]) == sorted(shared.item_ids)
    assert np.isfinite(scores).all()


def test_nothing_asked_nothing_answered(recommender):
    names, scores = recommender.recommend([], 3)
    assert names.shape == scores.shape == (0, 3)
