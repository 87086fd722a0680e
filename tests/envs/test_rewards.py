"""The registry and the sum of rewards: the contract of every entry, what is reported, and how faults are told."""

import pickle
import re
import traceback
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reward_cases import TABLE, context, groups, make_episodes, make_rollouts

from sidgym.envs.records import Episodes, Rollouts, concatenate_rollouts
from sidgym.envs.rewards import (
    REWARDS,
    GatedPreference,
    RewardContext,
    RewardError,
    RewardSum,
    Scores,
    Term,
    build_reward,
    check_page_reward,
    claims,
    find_reward,
    required_mode,
)


def trl_prefix(completions: list[str], target: list[str], **kwargs: Any) -> list[float]:
    return [float(c.split(">")[0] == t.split(">")[0]) for c, t in zip(completions, target)]


def verl_match(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> dict[str, Any]:
    return {"score": float(solution_str == ground_truth), "length": len(solution_str), "said": solution_str}


ARGS = {"trl": {"function": f"{__name__}:trl_prefix"}, "verl": {"function": f"{__name__}:verl_match"}}
"""Arguments without which an entry cannot be built."""


def one(name: str, size: int) -> RewardSum:
    return RewardSum([Term(name, args=ARGS.get(name, {}))], context(), size)


def same(left: Scores, right: Scores) -> None:
    np.testing.assert_array_equal(left.total, right.total)
    for kind in ("parts", "components", "diagnostics"):
        ours, theirs = getattr(left, kind), getattr(right, kind)
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("name", REWARDS)
@given(group=groups(), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_contract(name: str, group: tuple[Episodes, Rollouts], seed: int) -> None:
    episodes, rollouts = group
    reward = build_reward(Term(name, args=ARGS.get(name, {})), context())
    result = reward(episodes, rollouts)
    assert isinstance(result, np.ndarray)
    assert result.shape == rollouts.valid.shape
    assert result.dtype == np.float32
    assert np.isfinite(result).all()
    # Values belong to candidates, not to their places; the rank goes along with the log-probabilities.
    order = np.random.default_rng(seed).permutation(result.shape[1])
    arrays = {name: getattr(rollouts, name)[:, order] for name in ("codes", "valid", "items", "logp")}
    moved = reward(episodes, replace(rollouts, **arrays))
    np.testing.assert_allclose(moved, result[:, order], atol=1e-6)
    if claims(reward, "target_is_best"):
        hit = rollouts.item == episodes.target[:, None]
        best = np.where(rollouts.valid, result, -np.inf).max(axis=1, keepdims=True)
        assert (result == best)[hit].all()


@pytest.mark.parametrize("name", REWARDS)
@given(group=groups(contexts=8), chunk=st.integers(1, 8))
@settings(max_examples=10, deadline=None)
def test_a_context_is_worth_the_same_whichever_others_are_in_the_batch(
    name: str, group: tuple[Episodes, Rollouts], chunk: int
) -> None:
    episodes, rollouts = group
    total = one(name, rollouts.valid.shape[1])
    whole = total.score(episodes, rollouts)
    same(pickle.loads(pickle.dumps(whole)), whole)
    rows = [slice(start, start + chunk) for start in range(0, len(episodes), chunk)]
    parts = [total.score(episodes.take(part), rollouts.take(part)) for part in rows]
    np.testing.assert_array_equal(np.concatenate([part.total for part in parts]), whole.total)
    for kind in ("parts", "diagnostics"):
        for key, expected in getattr(whole, kind).items():
            told = [getattr(part, kind).get(key, np.zeros_like(part.total)) for part in parts]
            np.testing.assert_array_equal(np.concatenate(told), expected)


def test_joined_rollouts_with_wider_sids_are_worth_the_same() -> None:
    narrow, wide = make_rollouts([[3, 4]]), make_rollouts([[[5, 6], [7, -1]]])
    both, episodes = concatenate_rollouts([narrow, wide]), make_episodes([[3], [6]])
    for name in ("rule", "rank", "semantic", "popularity_penalty", "true_preference", "gated"):
        result = one(name, 2).score(episodes, both).total
        np.testing.assert_array_equal(result[:1], one(name, 2).score(episodes.take([0]), narrow).total)
        np.testing.assert_array_equal(result[1:], one(name, 2).score(episodes.take([1]), wide).total)


def test_sum_weighs_terms_and_keeps_them_apart() -> None:
    episodes, rollouts = make_episodes([[2]]), make_rollouts([[1, 2, -1]])
    terms = [Term("rule", 2.0), Term("rank", 0.5), Term("rule", 1.0, {"any_positive": True})]
    total, parts = RewardSum(terms, context(), 3, invalid_value=-5.0)(episodes, rollouts)
    assert list(parts) == ["rule", "rank", "rule#2"]
    np.testing.assert_allclose(parts["rank"], [[-1, 0, 0]])
    np.testing.assert_allclose(total, [[-0.5, 3, -5]])


def test_terms_that_are_added_keep_their_names_apart() -> None:
    total = RewardSum([Term("rule")], context(), 2)
    assert [total.add("rule", one("rule", 2).rewards["rule"], 1.0) for _ in range(2)] == ["rule#2", "rule#3"]
    result, _ = total(make_episodes([[2]]), make_rollouts([[1, 2]]))
    np.testing.assert_array_equal(result, [[0, 3]])


def halves(episodes: Episodes, rollouts: Rollouts) -> dict[str, np.ndarray]:
    return {"even": (rollouts.item % 2 == 0) * 0.5, "small": (rollouts.item < 4) * 2}


def test_components_sum_to_their_term_and_are_told_under_its_name() -> None:
    terms = [Term("rule"), Term(f"{__name__}:halves", -2.0)]
    scores = RewardSum(terms, context(), 3).score(make_episodes([[2]]), make_rollouts([[2, 5, -1]]))
    name = f"{__name__}:halves"
    assert list(scores.parts) == ["rule", name]
    np.testing.assert_array_equal(scores.parts[name], [[2.5, 0, 0]])
    np.testing.assert_array_equal(scores.components[f"{name}/even"], [[0.5, 0, 0]])
    np.testing.assert_array_equal(scores.components[f"{name}/small"], [[2, 0, 0]])
    np.testing.assert_array_equal(scores.total, [[-4, 0, 0]])
    assert {value.dtype for value in (*scores.components.values(), *scores.parts.values())} == {np.dtype(np.float32)}
    assert not scores.diagnostics


class Counting:
    """A preference model that knows how often it was asked."""

    calls = 0

    def score(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.full(items.shape, 0.5, dtype=np.float32)


def test_a_reward_that_explains_itself_is_asked_once() -> None:
    model = Counting()
    total = RewardSum([Term("gated", 2.0)], context(preference=model), 2)
    scores = total.score(make_episodes([[1]], [[0, 1]]), make_rollouts([[1, -1]]))
    assert model.calls == 1
    told = {"gated/relevance", "gated/preference", "gated/passed", "gated/gated"}
    assert scores.diagnostics.keys() == told
    np.testing.assert_array_equal(scores.diagnostics["gated/preference"], [[0.5, 0]])
    np.testing.assert_array_equal(scores.parts["gated"], [[0.5, 0]])
    np.testing.assert_array_equal(scores.total, [[1, 0]])


class Doubled(GatedPreference):
    """Overrides the value but not its explanation."""

    def __call__(self, episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
        return 2 * super().__call__(episodes, rollouts)


def test_a_subclass_that_overrides_the_value_alone_is_taken_at_its_value() -> None:
    scores = RewardSum([Term(f"{__name__}:Doubled")], context(preference=Counting()), 2).score(
        make_episodes([[1]], [[0, 1]]), make_rollouts([[1, -1]])
    )
    np.testing.assert_array_equal(scores.total, [[1, 0]])


def test_sum_refuses_rank_for_single_candidates() -> None:
    with pytest.raises(ValueError, match=r"'rank'.*group_size"):
        RewardSum([Term("rule"), Term("rank", args={"groups": "all"})], context(), 1)


def test_format_asks_for_free_decoding() -> None:
    assert required_mode(find_reward(Term("format"))) == "free"
    assert required_mode(build_reward(Term("rule", args={"any_positive": True}), RewardContext())) == ""


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.zeros((2, 3)), r"'mine': expected shape \(contexts, group\) = \(1, 2\), got \(2, 3\)"),
        (np.array([[0.0, np.nan]]), "'mine': nan at row 0, candidate 1"),
        (np.array([[np.inf, 0.0]]), "'mine': inf at row 0, candidate 0"),
        (np.array([[1e300, 0.0]]), "'mine': inf at row 0, candidate 0"),
        (None, "'mine': expected numbers .* got NoneType"),
        ([[1], [1, 2]], "'mine': expected an array"),
        (np.array([["1", "2"]]), "'mine': expected numbers"),
        ({}, "'mine': expected components"),
        ({"part": np.zeros(2)}, "'mine': component 'part': expected shape"),
        ({"part": np.zeros((1, 2)), "other": np.array([[0, np.nan]])}, "component 'other': nan at row 0, candidate 1"),
    ],
)
def test_sum_says_which_reward_is_wrong(output: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        RewardSum.of(lambda *_: output, 2, name="mine")(make_episodes([[1]]), make_rollouts([[1, 2]]))


def test_nan_at_an_invalid_candidate_is_no_error() -> None:
    total, _ = RewardSum.of(lambda *_: np.array([[1.0, np.nan]]), 2)(make_episodes([[1]]), make_rollouts([[1, -1]]))
    np.testing.assert_array_equal(total, [[1, 0]])


def huge(episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
    return np.where(rollouts.item == 2, 3e38, 1.0)


def test_weights_that_make_the_sum_infinite_are_an_error_of_their_terms() -> None:
    total = RewardSum([Term("rule"), Term(f"{__name__}:huge", 1000.0)], context(), 2)
    with pytest.raises(RewardError, match="inf at row 1, candidate 0, and at 1 of 4") as caught:
        total(make_episodes([[1], [2]]), make_rollouts([[5, 7], [2, 5]]))
    assert f"the weighted sum 1 x rule + 1000 x {__name__}:huge of finite values" in str(caught.value)
    assert caught.value.reward == f"rule + {__name__}:huge"
    assert (caught.value.example["user"], caught.value.example["items"]) == (1, ["i02"])


def test_rewards_of_a_fixed_sum_are_refused_for_pages() -> None:
    fixed = {name for name in REWARDS if claims(find_reward(Term(name, args=ARGS.get(name, {}))), "constant_sum")}
    assert fixed == {"rank"}
    check_page_reward(RewardSum([Term("rule"), Term("diversity")], context(), 2))
    for term in (Term("rank"), Term("rank", args={"any_positive": True})):
        with pytest.raises(ValueError, match="'rank' shares out a fixed amount"):
            check_page_reward(RewardSum([Term("rule"), term], context(), 2))


def breaks_on_seven(episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
    if (rollouts.item == 7).any():
        raise KeyError("seven")
    return np.where(rollouts.item == 5, np.nan, 0.0)


def failing(items: list[list[int]], given: RewardContext) -> RewardError:
    episodes = replace(make_episodes([[1], [2], [3]], [[-1, 0], [4, 6], [0, 0]]), user=np.array([10, 11, 12]))
    total = RewardSum([Term(f"{__name__}:breaks_on_seven")], given, 2)
    with pytest.raises(RewardError) as caught:
        total(episodes, make_rollouts(items))
    return caught.value


def test_a_reward_that_raises_shows_the_context_and_its_own_traceback() -> None:
    error = failing([[0, 1], [3, 7], [7, 7]], context())
    assert isinstance(error.__cause__, KeyError)
    assert "raise KeyError" in "".join(traceback.format_exception(error))
    assert error.reward == f"{__name__}:breaks_on_seven"
    assert error.example == {
        "row": 1, "context": 1, "user": 11, "history": ["i04", "i06"], "target": "i02", "group": [["i03"], ["i07"]],
    }  # fmt: skip
    assert "raised KeyError: 'seven'" in str(error)
    assert "at context 1 (row 1 of the batch): user 11, history ['i04', 'i06'], target i02" in str(error)


def test_a_value_of_nan_shows_the_candidate() -> None:
    error = failing([[0, 1], [3, 4], [6, 5]], RewardContext())
    assert error.example["user"] == 12
    shown = {key: error.example[key] for key in ("candidate", "codes", "items")}
    assert shown == {"candidate": 1, "codes": TABLE.codes[5].tolist(), "items": ["5"]}
    assert np.isnan(error.example["value"])
    assert "candidate 1: codes [0, 1, 2], items ['5'], value nan" in str(error)


def test_a_fault_of_the_whole_batch_is_said_to_be_one() -> None:
    def whole(episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
        if len(episodes) > 1:
            raise RuntimeError("too many")
        return np.zeros(rollouts.valid.shape)

    with pytest.raises(RewardError, match=r"too many\n  no context fails alone") as caught:
        RewardSum.of(whole, 2)(make_episodes([[1], [2]]), make_rollouts([[1, 2], [3, 4]]))
    assert caught.value.example == {}


def test_an_error_keeps_its_example_and_traceback_across_processes() -> None:
    error = failing([[0, 1], [3, 7], [7, 7]], context())
    copy = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(error))))
    assert type(copy) is RewardError
    assert (str(copy), copy.reward, copy.example) == (str(error), error.reward, error.example)
    assert "raise KeyError" in "".join(traceback.format_exception(copy))
    assert len(copy.__notes__) == 1


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Term("rul"), "Did you mean 'rule'"),
        (Term("rule", args={"any": True}), "'rule' must take"),
        (Term("gated_preference", args={"threshold": 1}), "'gated_preference' must take"),
        (Term("prefix", args={"match": "suffix"}), "match must be one of"),
        (Term("trl"), "'trl' must take"),
        (Term("trl", args={"function": f"{__name__}:trl_prefix", "columns": "target"}), "columns must be a table"),
        (Term("trl", args={"function": f"{__name__}:trl_prefix", "columns": {"a": 1}}), "columns must be a table"),
        (Term("rule", args={"any_positive": "yes"}), "'rule': any_positive must be true or false, got 'yes'"),
        (Term("rank", args={"groups": "some"}), "'rank': groups must be one of"),
        (Term("rank", args={"denominator": ["paper"]}), "'rank': denominator must be one of"),
        (Term("rank", args={"any_positive": 1}), "'rank': any_positive must be true or false"),
        (Term("engagement", args={"click": np.nan}), "'engagement': click must be a finite number"),
        (Term("engagement", args={"order": "2"}), "'engagement': order must be a finite number"),
        (Term("gated", args={"tau": True}), "'gated': tau must be a finite number"),
        (Term("gated", args={"anchor": "no"}), "'gated': anchor must be true or false"),
        (Term("rule", args=[]), "expected args as a table"),  # type: ignore[arg-type]
        (Term(3), "expected a name or a callable"),  # type: ignore[arg-type]
        (Term(f"{__name__}:trl_prefix"), "written for TRL goes into the reward 'trl'"),
        (Term(f"{__name__}:verl_match"), "written for verl goes into the reward 'verl'"),
        (Term("rule", args={"any": True}), "TOML file or by --reward-args"),
        (Term("gated_preference"), re.escape("needs RewardContext.preference")),
        (Term("true_preference"), re.escape("needs RewardContext.truth")),
        (Term("prefix"), re.escape("needs RewardContext.table")),
        (Term("semantic"), re.escape("needs RewardContext.embeddings")),
        (Term("popularity_penalty"), re.escape("needs RewardContext.popularity")),
    ],
)
def test_build_says_what_is_missing(term: Term, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_reward(term, RewardContext())


@pytest.mark.parametrize("weight", [np.nan, np.inf, "1", True, None])
def test_weights_are_finite(weight: Any) -> None:
    with pytest.raises(ValueError, match="finite weight"):
        RewardSum([Term("rule", weight)], context(), 2)


def shelf_reward(episodes: Episodes, rollouts: Rollouts, *, shelf: int = 0) -> np.ndarray:
    return (rollouts.item % 4 == shelf).astype(np.float32)


def test_a_reward_from_outside_the_tree() -> None:
    term = Term(f"{__name__}:shelf_reward", args={"shelf": 1})
    total, _ = RewardSum([term], RewardContext(), 3)(make_episodes([[0]]), make_rollouts([[1, 5, 6]]))
    np.testing.assert_array_equal(total, [[1, 1, 0]])
