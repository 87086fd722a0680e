"""Rewards that need no model of the user, against numbers computed by hand."""

import numpy as np
import pytest
from reward_cases import ITEMS, TABLE, context, make_episodes, make_rollouts, values

from sidgym.envs.records import CLICK, NEGATIVE, ORDER, PAD_ITEM, SHOWN, Episodes
from sidgym.envs.rewards import RewardContext, Term, build_reward


def test_rule_is_one_for_the_target_and_one_over_m_for_a_shared_sid() -> None:
    rollouts = make_rollouts([[[3, -1, -1], [3, 4, -1], [3, 4, 5], [6, -1, -1], [-1, -1, -1]]])
    np.testing.assert_allclose(values("rule", make_episodes([[3, 6]]), rollouts), [[1, 1 / 2, 1 / 3, 0, 0]])
    anything = values("rule", make_episodes([[3, 5]]), rollouts, any_positive=True)
    np.testing.assert_allclose(anything, [[1, 1 / 2, 2 / 3, 0, 0]])


def test_rank_penalties_by_hand() -> None:
    # Ranks 2, 1, 3; the target holds rank 1, so the negatives weigh 1/ln 3 and 1/ln 4.
    result = values("rank", make_episodes([[7]]), make_rollouts([[1, 7, 2]], [[-2.0, -1.0, -3.0]]))
    a, b = 1 / np.log(3), 1 / np.log(4)
    np.testing.assert_allclose(result, [[-a / (a + b), 0, -b / (a + b)]], rtol=1e-6)


def test_rank_sums_to_minus_one_in_the_paper_and_less_in_the_released_code() -> None:
    rollouts = make_rollouts(np.arange(16)[None])
    episodes = make_episodes([[0]])
    assert values("rank", episodes, rollouts).sum() == pytest.approx(-1.0, abs=1e-6)
    assert values("rank", episodes, rollouts, denominator="released").sum() == pytest.approx(-0.836, abs=5e-4)


def test_rank_of_a_group_without_a_hit() -> None:
    rollouts, episodes = make_rollouts([[1, 2, 3]]), make_episodes([[9]])
    assert not values("rank", episodes, rollouts).any()
    penalised = values("rank", episodes, rollouts, groups="all")
    assert penalised.sum() == pytest.approx(-1.0, abs=1e-6)
    assert (np.diff(penalised[0]) > 0).all()


def test_rank_gives_invalid_candidates_no_share_and_a_shared_sid_counts_as_hit() -> None:
    rollouts = make_rollouts([[[7, 8], [-1, -1], [2, -1]]])
    np.testing.assert_allclose(values("rank", make_episodes([[8]]), rollouts), [[0, 0, -1]])
    assert not values("rank", make_episodes([[2]]), make_rollouts([[2, 2]])).any()


def test_rank_can_take_every_positive_of_the_page() -> None:
    episodes, rollouts = make_episodes([[9, 2]]), make_rollouts([[1, 2, 3]])
    assert not values("rank", episodes, rollouts).any()
    a, b = 1 / np.log(2), 1 / np.log(4)
    expected = [[-a / (a + b), 0, -b / (a + b)]]
    np.testing.assert_allclose(values("rank", episodes, rollouts, any_positive=True), expected, rtol=1e-6)


@pytest.mark.parametrize("args", [{"groups": "some"}, {"denominator": "none"}])
def test_rank_names_its_choices(args: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        values("rank", make_episodes([[1]]), make_rollouts([[1, 2]]), **args)


def test_prefix_counts_levels_from_the_root_and_levels_counts_them_anywhere() -> None:
    # The target is 102; the candidates are 102, 101, 112, 002, 111 and no item.
    episodes, rollouts = make_episodes([[8, 4]]), make_rollouts([[8, 7, 11, 2, 10, -1]])
    np.testing.assert_array_equal(values("prefix", episodes, rollouts), [[3, 2, 1, 0, 1, 0]])
    np.testing.assert_array_equal(values("prefix", episodes, rollouts, match="levels"), [[3, 2, 2, 2, 1, 0]])


def test_prefix_can_pay_the_best_of_the_beam_and_any_positive() -> None:
    # The candidates are 101, 002 and 000; the positives 102 and 001.
    episodes, rollouts = make_episodes([[8, 1]]), make_rollouts([[7, 2, 0, -1]])
    best = values("prefix", episodes, rollouts, match="levels", best_of_group=True)
    np.testing.assert_array_equal(best, [[2, 2, 2, 0]])
    np.testing.assert_array_equal(values("prefix", episodes, rollouts, any_positive=True), [[2, 2, 2, 0]])
    assert not values("prefix", make_episodes([[PAD_ITEM]]), rollouts).any(), "no target, no level to agree with"


def test_an_invalid_candidate_earns_no_level_however_much_of_it_is_right() -> None:
    rollouts = make_rollouts([[-1, 6]], codes=[[[0, 0, 1], TABLE.codes[6]]])
    assert not values("prefix", make_episodes([[0]]), rollouts, best_of_group=True).any()


def test_semantic_is_the_cosine_to_the_target_cut_at_zero() -> None:
    # Item 0 along x, 1 between, 2 along y, 3 opposite to 0, 4 without text.
    vectors = np.array([[2, 0], [1, 1], [0, 3], [-1, 0], [0, 0]])
    reward = build_reward(Term("semantic"), RewardContext(embeddings=vectors))
    shared = make_rollouts([[[0, -1], [1, -1], [2, -1], [3, -1], [4, -1], [0, 2], [-1, -1]]])
    expected = [[1, np.sqrt(0.5), 0, 0, 0, 0.5, 0]]
    np.testing.assert_allclose(reward(make_episodes([[0, 2]]), shared), expected, atol=1e-6)
    assert not np.any(reward(make_episodes([[4]]), shared)), "a target without text is like nothing"
    assert not np.any(reward(make_episodes([[PAD_ITEM]]), shared))


def test_rounding_never_puts_the_target_below_an_item_of_the_same_text() -> None:
    # Pairs of parallel vectors of unequal length: both cosines are 1, up to the rounding of float32.
    first = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    vectors = np.stack([first, first * np.float32(0.3)], axis=1).reshape(-1, 3)
    reward = build_reward(Term("semantic"), RewardContext(embeddings=vectors))
    pairs = np.arange(400).reshape(-1, 2)
    result = np.asarray(reward(make_episodes(pairs[:, :1].tolist()), make_rollouts(pairs)))
    assert (result[:, 0] >= result[:, 1]).all()
    np.testing.assert_allclose(result, 1, atol=1e-6)


def test_format_pays_for_what_exists() -> None:
    np.testing.assert_array_equal(values("format", make_episodes([[5]]), make_rollouts([[1, -1, 5]])), [[1, 0, 1]])


def test_diversity_pays_least_for_repeats() -> None:
    # 000 twice and 100 once: prefixes in common (3, 0), (3, 0) and (0, 0) of 3 levels; the invalid 000 counts nowhere.
    result = values("diversity", make_episodes([[0]]), make_rollouts([[0, 0, 6, -1]]))
    np.testing.assert_allclose(result, [[0.5, 0.5, 1, 0]])
    # 000, 001 and 002 share two levels each, 000 and 010 one.
    result = values("diversity", make_episodes([[0]]), make_rollouts([[0, 1, 3]]))
    np.testing.assert_allclose(result, [[0.5, 0.5, 2 / 3]])
    np.testing.assert_allclose(values("diversity", make_episodes([[0]]), make_rollouts([[0, -1]])), [[1, 0]])


def test_popularity_penalty_is_relative_to_the_most_popular_item() -> None:
    counts = np.zeros(ITEMS)
    counts[[1, 2]] = 3, 63
    reward = build_reward(Term("popularity_penalty"), context(popularity=counts))
    result = reward(make_episodes([[0]]), make_rollouts([[[0, -1], [1, -1], [2, -1], [0, 2], [-1, -1]]]))
    np.testing.assert_allclose(result, [[0, -2 / 6, -1, -0.5, 0]])
    unseen = build_reward(Term("popularity_penalty"), context(popularity=np.zeros(ITEMS)))
    assert not np.any(unseen(make_episodes([[0]]), make_rollouts([[0, 1]])))


@pytest.mark.parametrize("counts", [[1.0, np.nan], [1.0, -2.0], [[1.0]]])
def test_popularity_must_be_counts(counts: list[float]) -> None:
    with pytest.raises(ValueError, match=r"RewardContext\.popularity must hold"):
        build_reward(Term("popularity_penalty"), context(popularity=np.array(counts)))


def page() -> Episodes:
    shown = np.array([[4, 7, 2, 9, 4, PAD_ITEM]])
    feedback = np.array([[CLICK, ORDER, NEGATIVE, SHOWN, SHOWN, SHOWN]], dtype=np.int8)
    return make_episodes([[7, 4]], page=shown, feedback=feedback)


def test_engagement_is_what_the_user_did_on_the_page() -> None:
    rollouts = make_rollouts([[[4, -1], [7, -1], [2, -1], [9, -1], [11, -1], [7, 11], [-1, -1]]])
    np.testing.assert_allclose(values("engagement", page(), rollouts), [[1, 2, -1, 0, 0, 1, 0]])
    other = values("engagement", page(), rollouts, click=0.5, order=3.0, negative=0.0)
    np.testing.assert_allclose(other, [[0.5, 3, 0, 0, 0, 1.5, 0]])


@pytest.mark.parametrize(("missing", "fields"), [("page", {}), ("feedback", {"page": np.array([[1, 2]])})])
def test_engagement_says_what_the_contexts_lack(missing: str, fields: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=rf"'engagement' needs Episodes\.{missing}"):
        values("engagement", make_episodes([[1]], **fields), make_rollouts([[1, 2]]))
