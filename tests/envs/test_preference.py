"""The preference model: what it reads of a log, what it can learn, and what its scores promise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sidgym.envs.impressions import impressions
from sidgym.envs.preference import LoggedPreference, evaluate_probabilities
from sidgym.envs.records import CLICK, NEGATIVE, ORDER, PAD_ITEM, SHOWN, Interactions

USERS, PAGES, PLACES, ITEMS = 120, 6, 5, 24
EMBEDDINGS = np.eye(4, dtype=np.float32)[np.arange(ITEMS) % 4]
"""Item i stands on shelf i % 4, and its text says so."""


def tiny_log() -> Interactions:
    """User 3: pages 0 (items 5, 6) and 1 (7, 8, 9). User 8: page 0 (5, 7)."""
    return Interactions(
        user=np.array([3, 3, 3, 3, 3, 8, 8]),
        item=np.array([5, 6, 7, 8, 9, 5, 7]),
        order=np.array([0, 1, 2, 3, 4, 0, 1]),
        page=np.array([0, 0, 1, 1, 1, 0, 0]),
        position=np.array([1, 0, 0, 1, 2, 0, 1]),
        feedback=np.array([CLICK, SHOWN, NEGATIVE, ORDER, SHOWN, SHOWN, CLICK], dtype=np.int8),
    )


def shelf_log(seed: int, examine: float = 1.0) -> Interactions:
    """Users love one shelf (engagement 0.8) and nothing else (0.05), except for item 0, which everybody loves.

    What stands at place j is seen with probability ``examine ** j``.
    """
    rng = np.random.default_rng(seed)
    shape = (USERS, PAGES, PLACES)
    user = np.broadcast_to(np.arange(USERS)[:, None, None], shape)
    item = rng.permuted(np.broadcast_to(np.arange(ITEMS), (USERS, PAGES, ITEMS)), axis=2)[..., :PLACES]
    likes = np.where((item % 4 == user % 4) | (item == 0), 0.8, 0.05) * examine ** np.arange(PLACES)
    clicked = rng.random(shape) < likes
    return Interactions(
        user=user.reshape(-1),
        item=item.reshape(-1),
        order=np.tile(np.arange(PAGES * PLACES), USERS),
        page=np.tile(np.repeat(np.arange(PAGES), PLACES), USERS),
        position=np.tile(np.arange(PLACES), USERS * PAGES),
        feedback=np.where(clicked, CLICK, SHOWN).reshape(-1).astype(np.int8),
    )


def fit(log: Interactions, users: np.ndarray | None = None, **settings: int) -> LoggedPreference:
    users = np.arange(USERS) if users is None else users
    return LoggedPreference.fit(log, users, EMBEDDINGS, history=6, batch=50, **{"epochs": 12, "hidden": 16, **settings})


@pytest.fixture(scope="module")
def model() -> LoggedPreference:
    return fit(shelf_log(0))


def test_impressions_by_hand() -> None:
    pages = impressions(tiny_log(), np.array([3, 8]), history=2)
    np.testing.assert_array_equal(pages.user, [3, 3, 8])
    np.testing.assert_array_equal(pages.items, [[5, 6, -1], [7, 8, 9], [5, 7, -1]])
    np.testing.assert_array_equal(pages.position, [[1, 0, 0], [0, 1, 2], [0, 1, 0]])
    np.testing.assert_array_equal(pages.engaged, [[1, 0, 0], [0, 1, 0], [0, 1, 0]])
    # Nothing of the page itself, and nothing of another user.
    np.testing.assert_array_equal(pages.history, [[-1, -1], [-1, 5], [-1, -1]])


def test_impressions_without_pages_see_every_earlier_positive() -> None:
    pages = impressions(replace(tiny_log(), page=None, position=None), np.array([3]), history=3)
    assert pages.items.tolist() == [[5], [6], [7], [8], [9]]
    assert pages.history[-1].tolist() == [-1, 5, 8]
    assert pages.history[0].tolist() == [-1, -1, -1]


def test_histories_agree_with_a_plain_loop() -> None:
    log = shelf_log(3)
    pages = impressions(log, np.array([4, 9]), history=6)
    assert len(pages.user) == 2 * PAGES
    assert log.feedback is not None
    for row in range(len(pages.user)):
        user, page = pages.user[row], row % PAGES
        before = [i for u, p, i, f in zip(log.user, log.page, log.item, log.feedback)  # type: ignore[arg-type]
                  if u == user and p < page and f >= CLICK][-6:]  # fmt: skip
        assert pages.history[row][pages.history[row] != PAD_ITEM].tolist() == before


def test_a_log_without_feedback_is_refused_with_advice() -> None:
    log = replace(tiny_log(), feedback=None)
    with pytest.raises(ValueError, match="positive events only"):
        LoggedPreference.fit(log, np.array([3, 8]), EMBEDDINGS)


def test_fit_says_what_does_not_fit() -> None:
    users = np.array([3, 8])
    with pytest.raises(ValueError, match="none of the 1 users"):
        LoggedPreference.fit(tiny_log(), np.array([5]), EMBEDDINGS)
    with pytest.raises(ValueError, match="at least 2 users"):
        LoggedPreference.fit(tiny_log(), users[:1], EMBEDDINGS)
    with pytest.raises(ValueError, match="shows item 9"):
        LoggedPreference.fit(tiny_log(), users, EMBEDDINGS[:6])
    with pytest.raises(ValueError, match="finite"):
        LoggedPreference.fit(tiny_log(), users, np.full_like(EMBEDDINGS, np.nan))
    with pytest.raises(ValueError, match="multiple of heads"):
        LoggedPreference.fit(tiny_log(), users, EMBEDDINGS, hidden=10, heads=4)


def test_it_learns_the_shelf_of_a_history_and_the_worth_of_an_item(model: LoggedPreference) -> None:
    histories = np.array([[PAD_ITEM, PAD_ITEM, 4 + s, 8 + s, 12 + s, 16 + s] for s in range(4)])
    scores = model.score(histories, np.tile(np.arange(ITEMS), (4, 1)))
    own = np.arange(ITEMS) % 4 == np.arange(4)[:, None]
    loved = own.copy()
    loved[:, 0] = True
    assert scores[own].min() > 0.6
    assert scores[~loved].max() < 0.3
    # The text of item 0 says the same as that of item 4: only the item's own bias can tell them apart.
    assert (scores[1:, 0] > 2 * scores[1:, 4]).all()
    assert model.report["auc"] > 0.8
    assert model.report["log_loss"] < 0.8 * model.report["base_log_loss"]
    assert model.report["rows"] + model.report["valid_rows"] == USERS * PAGES * PLACES


def test_scores_are_probabilities_and_padding_is_zero(model: LoggedPreference) -> None:
    history = np.array([[1, 5, 9], [PAD_ITEM, PAD_ITEM, PAD_ITEM]])
    scores = model.score(history, np.array([[1, 2, PAD_ITEM], [1, PAD_ITEM, 3]]))
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores == 0, [[False, False, True], [False, True, False]])
    assert ((scores >= 0) & (scores <= 1)).all()
    assert model.score(history[:0], np.zeros((0, 4), np.int64)).shape == (0, 4)


def test_padding_and_batching_do_not_change_a_score(model: LoggedPreference) -> None:
    rng = np.random.default_rng(0)
    history, items = rng.integers(0, ITEMS, (5, 4)), rng.integers(0, ITEMS, (5, 7))
    scores = model.score(history, items)
    padded = np.pad(history, ((0, 0), (2, 0)), constant_values=PAD_ITEM)
    np.testing.assert_allclose(model.score(padded, items), scores, atol=1e-6)
    # Items that are too old for the model do not count.
    older = np.pad(padded, ((0, 0), (3, 0)), constant_values=1)
    np.testing.assert_allclose(model.score(older, items), scores, atol=1e-6)
    np.testing.assert_allclose(model.score(history, items, chunk=7), scores, atol=1e-6)


def test_the_place_on_the_page_does_not_enter_the_score() -> None:
    # Loved items are seen for sure at the top and hardly ever at the bottom: clicked 0.31 of the time over all places.
    model = fit(shelf_log(1, examine=0.5))
    history = np.array([[5, 9, 13, 17]])
    assert model.score(history, np.array([[1, 21]])).min() > 0.45
    bias = model.network.position_bias.detach().numpy()
    assert (np.diff(bias) < 0).all()


def test_other_users_are_never_read(model: LoggedPreference) -> None:
    train, log = np.arange(60), shelf_log(0)
    rng = np.random.default_rng(1)
    foreign = log.user >= 60
    assert log.feedback is not None
    poisoned = replace(
        log,
        item=np.where(foreign, rng.integers(0, ITEMS, len(log)), log.item),
        feedback=np.where(foreign, ORDER, log.feedback).astype(np.int8),
    )
    history, items = np.array([[1, 5, 9]]), np.arange(ITEMS)[None]
    clean, dirty = (fit(one, train, epochs=2).score(history, items) for one in (log, poisoned))
    np.testing.assert_array_equal(clean, dirty)
    assert not np.array_equal(clean, model.score(history, items))


def test_seeds_decide_the_weights() -> None:
    history, items = np.array([[1, 5, 9]]), np.arange(ITEMS)[None]
    first, again, other = (fit(shelf_log(0), epochs=2, seed=seed).score(history, items) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_round_trip(model: LoggedPreference, tmp_path: Path) -> None:
    model.save(tmp_path / "preference")
    loaded = LoggedPreference.load(tmp_path / "preference")
    history, items = np.array([[1, 5, 9]]), np.arange(ITEMS)[None]
    np.testing.assert_array_equal(loaded.score(history, items), model.score(history, items))
    assert loaded.report == model.report
    header = tmp_path / "preference" / "preference.json"
    header.write_text(header.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(ValueError, match="schema_version 1, got 99"):
        LoggedPreference.load(tmp_path / "preference")


def test_measures_by_hand() -> None:
    p, y = np.array([0.9, 0.6, 0.6, 0.1]), np.array([True, True, False, False])
    told = evaluate_probabilities(p, y, bins=2)
    assert told["auc"] == pytest.approx(3.5 / 4)
    assert told["log_loss"] == pytest.approx(-np.log([0.9, 0.6, 0.4, 0.9]).mean())
    assert told["base_log_loss"] == pytest.approx(np.log(2))
    # Bins {0.1, 0.6} and {0.6, 0.9}: gaps 0.7 and 0.5 of 4 rows; the tie goes in row order.
    assert told["ece"] == pytest.approx((abs(0.7 - 1) + abs(1.5 - 1)) / 4)
    assert evaluate_probabilities(p, np.zeros(4, bool))["auc"] == 0.5
