"""Swing similarity against its equation, and the pairs that alignment learns from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.sid import swing
from sidgym.sid.swing import swing_similarity, top_neighbours, user_to_item_pairs

# Users 0, 1, 2 share items 0 and 1; users 0 and 1 item 2 too; user 3 has one of them, user 4 is alone with two.
USER = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 4])
ITEM = np.array([0, 1, 2, 2, 1, 0, 0, 1, 0, 3, 4])


def by_the_equation(user: np.ndarray, item: np.ndarray, items: int, alpha: float, power: float) -> np.ndarray:
    """The double sum over users, as the module's docstring writes it."""
    of_user = {u: set(item[user == u].tolist()) for u in np.unique(user).tolist()}
    found = np.zeros((items, items))
    for i in range(items):
        for j in range(items):
            both = [u for u, own in of_user.items() if i in own and j in own]
            for place, u in enumerate(both):
                for v in both[:place]:
                    weight = (len(of_user[u]) * len(of_user[v])) ** -power
                    found[i, j] += weight / (alpha + len(of_user[u] & of_user[v])) * (i != j)
    return found


def test_by_hand() -> None:
    found = swing_similarity(USER, ITEM, 6, user_power=0).toarray()
    # Of items 0 and 1: users 0 and 1 share three items, each of them and user 2 share two. One user makes no swing.
    assert found[0, 1] == pytest.approx(1 / 4 + 1 / 3 + 1 / 3)
    assert found[0, 2] == pytest.approx(1 / 4)
    assert found[3, 4] == 0
    weighted = swing_similarity(USER, ITEM, 6).toarray()
    assert weighted[0, 1] == pytest.approx(1 / 3 / 4 + 2 * (3 * 2) ** -0.5 / 3)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_equals_the_double_sum(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    users, items = int(rng.integers(1, 12)), int(rng.integers(1, 9))
    user = np.sort(rng.integers(0, users, int(rng.integers(1, 60)))) * 7 - 3
    item = rng.integers(0, items, len(user))
    alpha, power = data.draw(st.sampled_from([0.1, 1.0, 5.0])), data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    found = swing_similarity(user, item, items, smoothing=alpha, user_power=power)
    assert np.allclose(found.toarray(), by_the_equation(user, item, items, alpha, power))
    assert (found != found.T).nnz == 0
    assert (found.data > 0).all()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    user, item = np.sort(rng.integers(0, 40, 400)), rng.integers(0, 25, 400)
    told: list[tuple[int, int, str]] = []
    whole = swing_similarity(user, item, 25).toarray()
    monkeypatch.setattr(swing, "MOST_PRODUCTS", 50)
    monkeypatch.setattr(swing, "USER_PAIRS", 7)
    parts = swing_similarity(user, item, 25, on_progress=lambda *report: told.append(report))
    assert np.allclose(parts.toarray(), whole, rtol=1e-12)
    done = [report[0] for report in told]
    assert len(done) > 20
    assert done == sorted(done)
    assert {report[1] for report in told} == {40}
    assert 30 < done[-1] <= 40
    assert np.array_equal(swing_similarity(user, item, 25).toarray(), swing_similarity(user, item, 25).toarray())


def test_popular_items_and_crawlers() -> None:
    rng = np.random.default_rng(1)
    user, item = np.repeat(np.arange(60), 4), np.concatenate([rng.permutation(12)[:4] for _ in range(60)])
    capped = swing_similarity(user, item, 12, users_per_item=15, seed=3)
    assert np.array_equal(capped.toarray(), swing_similarity(user, item, 12, users_per_item=15, seed=3).toarray())
    assert 0 < capped.nnz < swing_similarity(user, item, 12).nnz
    everything = np.append(user, np.full(12, 60)), np.append(item, np.arange(12))
    without = swing_similarity(*everything, 12, items_per_user=11)
    assert np.array_equal(without.toarray(), swing_similarity(user, item, 12).toarray())


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"items in \[0, 3\), got 0 to 4"):
        swing_similarity(USER, ITEM, 3)
    with pytest.raises(ValueError, match="one user for each item"):
        swing_similarity(USER, ITEM[1:], 6)
    with pytest.raises(ValueError, match="smoothing > 0"):
        swing_similarity(USER, ITEM, 6, smoothing=float("nan"))
    with pytest.raises(ValueError, match="two users and two items"):
        swing_similarity(USER, ITEM, 6, users_per_item=1)
    assert swing_similarity(np.array([], int), np.array([], int), 4).shape == (4, 4)


def test_neighbours_are_the_most_similar() -> None:
    similarity = swing_similarity(USER, ITEM, 6, user_power=0)
    # Item 2 is as similar to 0 as to 1: the smaller number comes first.
    assert top_neighbours(similarity, 1).tolist() == [[0, 1], [1, 0], [2, 0]]
    assert top_neighbours(similarity, 5).tolist() == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]]
    assert top_neighbours(swing_similarity(USER[:3], ITEM[:3], 6), 5).shape == (0, 2)


def test_a_target_is_paired_with_its_most_similar_earlier_positive() -> None:
    similarity = swing_similarity(USER, ITEM, 6, user_power=0)
    found = user_to_item_pairs(USER, ITEM, similarity)
    # User 0: 1 after 0; 2 after 0 and 1, equally similar, 1 is the more recent. User 1: 1 after 2; 0 after 2 and 1,
    # of which 1 is more similar. User 2: 1 after 0. User 4: 4 after 3, which nobody else took.
    assert found.tolist() == [[1, 0], [2, 1], [1, 2], [0, 1], [1, 0], [4, 3]]
    one = np.zeros(4, int)
    assert user_to_item_pairs(one, np.array([0, 3, 1, 1]), similarity, history=1).tolist() == [[3, 0], [1, 3]]
    assert user_to_item_pairs(one, np.array([0, 3, 1, 1]), similarity, history=3).tolist() == [[3, 0], [1, 0], [1, 0]]
    with pytest.raises(ValueError, match="sort the log by user"):
        user_to_item_pairs(np.array([0, 1, 0]), np.array([0, 1, 2]), similarity)


def test_the_future_is_never_a_partner() -> None:
    rng = np.random.default_rng(2)
    user, item = np.repeat(np.arange(50), 6), rng.integers(0, 15, 300)
    similarity = swing_similarity(user, item, 15)
    earlier = {(u, t): item[user == u][:t] for u in range(50) for t in range(6)}
    expected = []
    for (u, t), before in earlier.items():
        target = item[user == u][t]
        scores = np.array([similarity[target, other] for other in before[::-1]])
        scores[before[::-1] == target] = -1
        if len(scores) and scores.max() >= 0:
            expected.append([target, before[::-1][int(np.argmax(scores))]])
    assert user_to_item_pairs(user, item, similarity).tolist() == expected
