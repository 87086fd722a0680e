"""Rewards against hand-computed numbers, and the contract that every registered reward keeps."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.envs.records import PAD_ITEM, Episodes, Rollouts
from sidgym.envs.rewards import REWARDS, RewardContext, RewardSum, Term, build_reward, claims

ITEMS = 12


class FixedPreference:
    """Item i is engaged with at probability i / 20, whoever looks."""

    def score(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        return np.where(items == PAD_ITEM, 0.0, items / 20).astype(np.float32)

    def preference(self, event_rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        return (items / 20).astype(np.float32)


def make_episodes(targets: list[list[int]], history: list[list[int]] | None = None) -> Episodes:
    rows = np.arange(len(targets))
    past = np.array(history or [[PAD_ITEM, 0]] * len(targets))
    return Episodes(index=rows, user=rows, history=past, targets=np.array(targets), event=rows)


def make_rollouts(items: Any, score: Any = None) -> Rollouts:
    """Items (B, G) or (B, G, C); a candidate without items is not valid."""
    items = np.array(items)
    items = items[..., None] if items.ndim == 2 else items
    groups = items.shape[:2]
    logp = np.zeros((*groups, 2), dtype=np.float32)
    logp[..., 0] = -np.arange(groups[1]) if score is None else score
    codes = np.zeros((*groups, 2), dtype=np.int64)
    return Rollouts(codes, items[..., 0] != PAD_ITEM, items, logp, mode="sample", normalise="trie")


def context() -> RewardContext:
    embeddings = np.random.default_rng(0).normal(size=(ITEMS, 4)).astype(np.float32)
    return RewardContext(embeddings=embeddings, preference=FixedPreference(), truth=FixedPreference())


def values(name: str, episodes: Episodes, rollouts: Rollouts, **args: Any) -> np.ndarray:
    return build_reward(Term(name, args=args), context())(episodes, rollouts)


@st.composite
def groups(draw: Callable[..., Any]) -> tuple[Episodes, Rollouts]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    contexts, size = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    items = rng.integers(PAD_ITEM, ITEMS, size=(contexts, size))
    targets = rng.integers(0, ITEMS, size=(contexts, 2)).tolist()
    history = rng.integers(PAD_ITEM, ITEMS, size=(contexts, 3)).tolist()
    return make_episodes(targets, history), make_rollouts(items, rng.permutation(size)[None] * -1.0)


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


@pytest.mark.parametrize("args", [{"groups": "some"}, {"denominator": "none"}])
def test_rank_names_its_choices(args: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        values("rank", make_episodes([[1]]), make_rollouts([[1, 2]]), **args)


def gated(**args: Any) -> Any:
    # Item 0 points along x, item 1 along y, item 2 is between, item 3 has no text, item 4 is opposite to item 0.
    vectors = np.array([[1, 0], [0, 2], [3, 3], [0, 0], [-1, 0], [0.5, 0]], dtype=np.float32)
    return build_reward(
        Term("gated_preference", args=args), RewardContext(embeddings=vectors, preference=FixedPreference())
    )


def test_gate_closes_on_candidates_unlike_the_history() -> None:
    episodes = make_episodes([[11]], [[PAD_ITEM, 0]])
    reward = gated(tau=0.2)
    told = reward.explain(episodes, make_rollouts([[1, 2, 3, 4, 5]]))
    np.testing.assert_allclose(told["relevance"], [[0, np.sqrt(0.5), 0, -1, 1]], atol=1e-6)
    np.testing.assert_array_equal(told["passed"], [[0, 1, 0, 0, 1]])
    np.testing.assert_allclose(told["reward"], [[0, 0.1, 0, 0, 0.25]], atol=1e-6)
    open_gate = gated(gate=False)(episodes, make_rollouts([[1, 2, 3, 4, 5]]))
    np.testing.assert_allclose(open_gate, [[0.05, 0.1, 0.15, 0.2, 0.25]], atol=1e-6)


def test_relevance_takes_the_most_similar_item_of_the_history_and_padding_never_counts() -> None:
    episodes = make_episodes([[0], [0]], [[PAD_ITEM, 0, 1], [PAD_ITEM, PAD_ITEM, PAD_ITEM]])
    told = gated().explain(episodes, make_rollouts([[1, 5], [1, 5]]))
    np.testing.assert_allclose(told["relevance"], [[1, 1], [0, 0]], atol=1e-6)
    assert not told["reward"][1].any()


def test_anchor_lifts_positives_to_the_best_of_the_group() -> None:
    episodes, rollouts = make_episodes([[1, 4]]), make_rollouts([[1, 2, 5, 4, -1]])
    np.testing.assert_allclose(gated()(episodes, rollouts), [[0.25, 0.1, 0.25, 0.25, 0]], atol=1e-6)
    np.testing.assert_allclose(gated(anchor=False)(episodes, rollouts), [[0, 0.1, 0.25, 0, 0]], atol=1e-6)


def test_a_text_embedding_of_nan_never_passes_the_gate() -> None:
    vectors = np.array([[1, 0], [np.nan, 1]], dtype=np.float32)
    reward = build_reward(Term("gated_preference"), RewardContext(embeddings=vectors, preference=FixedPreference()))
    told = reward.explain(make_episodes([[5]], [[0, 1]]), make_rollouts([[0, 1]]))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(told["passed"], [[1, 0]])


def test_true_preference_reads_the_truth_of_the_episodes_events() -> None:
    rollouts = make_rollouts([[[2, 4], [6, -1], [-1, -1]]])
    np.testing.assert_allclose(values("true_preference", make_episodes([[1]]), rollouts), [[0.15, 0.3, 0]])
    rows = np.zeros(1, dtype=np.int64)
    blind = Episodes(rows, rows, rows[:, None], rows[:, None])
    with pytest.raises(ValueError, match=r"Episodes\.event"):
        values("true_preference", blind, rollouts)


@pytest.mark.parametrize("name", REWARDS)
@given(group=groups(), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_contract(name: str, group: tuple[Episodes, Rollouts], seed: int) -> None:
    episodes, rollouts = group
    reward = build_reward(Term(name), context())
    result = reward(episodes, rollouts)
    assert result.shape == rollouts.valid.shape
    assert result.dtype == np.float32
    assert np.isfinite(result).all()
    # Values belong to candidates, not to their places.
    order = np.random.default_rng(seed).permutation(result.shape[1])
    arrays = {name: getattr(rollouts, name)[:, order] for name in ("codes", "valid", "items", "logp")}
    moved = replace(rollouts, **arrays)
    np.testing.assert_allclose(reward(episodes, moved), result[:, order], atol=1e-6)
    # ... and to contexts, whichever others are in the batch.
    np.testing.assert_allclose(reward(episodes.take([0]), rollouts.take([0])), result[:1], atol=1e-6)
    if claims(reward, "target_is_best"):
        hit = rollouts.item == episodes.target[:, None]
        best = np.where(rollouts.valid, result, -np.inf).max(axis=1, keepdims=True)
        assert (result == best)[hit].all()


def test_sum_weighs_terms_and_keeps_them_apart() -> None:
    episodes, rollouts = make_episodes([[2]]), make_rollouts([[1, 2, -1]])
    terms = [Term("rule", 2.0), Term("rank", 0.5), Term("rule", 1.0, {"any_positive": True})]
    total, parts = RewardSum(terms, context(), 3, invalid_value=-5.0)(episodes, rollouts)
    assert list(parts) == ["rule", "rank", "rule#2"]
    np.testing.assert_allclose(parts["rank"], [[-1, 0, 0]])
    np.testing.assert_allclose(total, [[-0.5, 3, -5]])


def test_sum_refuses_rank_for_single_candidates() -> None:
    with pytest.raises(ValueError, match=r"'rank'.*group_size"):
        RewardSum([Term("rule"), Term("rank", args={"groups": "all"})], context(), 1)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.zeros((2, 3)), r"'mine': expected shape \(contexts, group\) = \(1, 2\), got \(2, 3\)"),
        (np.array([[0.0, np.nan]]), "'mine': nan at row 0, candidate 1"),
        (np.array([[np.inf, 0.0]]), "'mine': inf at row 0, candidate 0"),
    ],
)
def test_sum_says_which_reward_is_wrong(output: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardSum.of(lambda *_: output, 2, name="mine")(make_episodes([[1]]), make_rollouts([[1, 2]]))


def test_nan_at_an_invalid_candidate_is_no_error() -> None:
    total, _ = RewardSum.of(lambda *_: np.array([[1.0, np.nan]]), 2)(make_episodes([[1]]), make_rollouts([[1, -1]]))
    np.testing.assert_array_equal(total, [[1, 0]])


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Term("rul"), "Did you mean 'rule'"),
        (Term("rule", args={"any": True}), "'rule' must take"),
        (Term("gated_preference", args={"threshold": 1}), "'gated_preference' must take"),
        (Term("gated_preference"), re.escape("needs RewardContext.preference")),
        (Term("true_preference"), re.escape("needs RewardContext.truth")),
    ],
)
def test_build_says_what_is_missing(term: Term, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_reward(term, RewardContext())


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_weights_are_finite(weight: float) -> None:
    with pytest.raises(ValueError, match="finite weight"):
        RewardSum([Term("rule", weight)], context(), 2)


def shelf_reward(episodes: Episodes, rollouts: Rollouts, *, shelf: int = 0) -> np.ndarray:
    return (rollouts.item % 4 == shelf).astype(np.float32)


def test_a_reward_from_outside_the_tree() -> None:
    term = Term(f"{__name__}:shelf_reward", args={"shelf": 1})
    total, _ = RewardSum([term], RewardContext(), 3)(make_episodes([[0]]), make_rollouts([[1, 5, 6]]))
    np.testing.assert_array_equal(total, [[1, 1, 0]])
