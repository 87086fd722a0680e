"""The gate's threshold, what it lets pass and what it rejects, against counting by hand."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_cases import ITEMS, TABLE, FixedPreference, context, make_episodes, make_rollouts

from sidgym.envs.gate import (
    RANDOM_ITEMS,
    Gate,
    check_gate,
    choose_gate,
    choose_tau,
    judge_gate,
    target_relevance,
)
from sidgym.envs.records import CLICK, PAD_ITEM, SHOWN
from sidgym.envs.relevance import RELEVANCES, Classifier
from sidgym.envs.reward_context import RewardContext
from sidgym.envs.rewards import Term, build_reward

VALUES = st.lists(st.sampled_from([-1.0, 0.0, 0.1, 0.25, 1 / 3, 0.5, 1.0]) | st.floats(-1, 1, width=32), min_size=1)


@given(VALUES, st.sampled_from([0.01, 0.5, 0.9, 0.98, 1.0]))
def test_the_threshold_is_the_highest_that_keeps_the_share(values: list[float], keep: float) -> None:
    relevance = np.array(values, dtype=np.float32)
    tau = choose_tau(relevance, keep)
    assert (relevance > tau).mean() >= keep - 1e-9
    higher = relevance[relevance > tau].min()
    assert (relevance > higher).mean() < keep, "a threshold above the next value would reject too many"


def test_a_threshold_lies_between_what_passes_and_what_does_not() -> None:
    relevance = np.linspace(0, 1, 101)
    assert choose_tau(relevance, keep=0.98) == pytest.approx(0.015)
    assert choose_tau(relevance, keep=1.0) == pytest.approx(-0.01)
    assert choose_tau(np.repeat([0.0, 1.0], [1, 49]), keep=0.98) == pytest.approx(0.5)


@pytest.mark.parametrize("values", [[1e6], [3e5, 4e5, 5e5]])
def test_a_threshold_below_everything_exists_where_float32_has_no_hundredths(values: list[float]) -> None:
    assert choose_tau(np.array(values), keep=1.0) < min(values)


@pytest.mark.parametrize(
    ("values", "keep", "said"),
    [
        ([-np.inf, 0.5], 0.9, "got NaN or an infinity among them"),
        ([], 0.9, "expected the relevance of validation targets, got none"),
        ([0.5, np.nan], 0.9, "got NaN or an infinity among them"),
        ([0.5], 0.0, "keep above 0 and at most 1, got 0"),
        ([0.5], 1.1, "got 1.1"),
    ],
)
def test_no_threshold_comes_from_nothing(values: list[float], keep: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        choose_tau(np.array(values), keep)


def test_targets_are_all_of_a_page_and_only_behind_a_history() -> None:
    valid = make_episodes([[1, 5], [2, PAD_ITEM], [7, 8]], [[0, 3], [PAD_ITEM, 2], [PAD_ITEM, PAD_ITEM]])
    told = target_relevance(lambda past, items: items.astype(float), valid)
    np.testing.assert_array_equal(np.sort(told), [1, 2, 5])


CLASSIFIER = Classifier(("table",), (0.0,) * 3, (1.0,) * 3, (4.0, 0.0, 0.0), -2.0)


def test_every_relevance_that_is_at_hand_gets_a_threshold_and_a_given_one_stays() -> None:
    valid = make_episodes([[1], [4], [11]], [[0, 0], [0, 5], [PAD_ITEM, 11]])
    every = context()
    assert set(choose_gate(every, valid).taus) == {"text", "prefix"}
    gate = choose_gate(every, valid, "learned", 0.25, classifier=CLASSIFIER)
    assert gate.taus["learned"] == 0.25
    assert gate.taus["prefix"] == pytest.approx(2 / 3 - 0.01), (
        "items 1 and 4 agree in two codes with 0 and 5, 11 in all"
    )
    assert set(choose_gate(replace(every, embeddings=None), valid, "prefix").taus) == {"prefix"}
    with pytest.raises(ValueError, match=r"needs RewardContext\.embeddings"):
        choose_gate(replace(every, embeddings=None), valid, "text", 0.3)
    own = choose_gate(every, valid, "gate_functions:as_numbers", classifier=None)
    assert own.threshold("gate_functions:as_numbers") == pytest.approx(1 - 0.01)


def test_a_gate_is_read_as_it_was_written(tmp_path: Any) -> None:
    assert Gate.load(tmp_path) is None
    for gate in (Gate("text", {"text": 0.1}), Gate("learned", {"learned": 0.5, "prefix": -0.01}, CLASSIFIER)):
        gate.save(tmp_path)
        assert Gate.load(tmp_path) == gate
    told = json.loads((tmp_path / "gate.json").read_text())
    (tmp_path / "gate.json").write_text(json.dumps(told | {"schema_version": 7}))
    with pytest.raises(ValueError, match="expected schema_version 1, got 7; fit the preference again"):
        Gate.load(tmp_path)
    with pytest.raises(ValueError, match="no threshold was chosen for relevance 'prefix', only for text"):
        Gate("text", {"text": 0.1}).threshold("prefix")


@pytest.mark.parametrize(
    ("args", "expected"),
    [({}, (0.5, "prefix")), ({"relevance": "text"}, (0.3, "text")), ({"tau": 0.9}, (0.9, "prefix"))],
)
def test_a_reward_takes_from_the_gate_what_its_arguments_leave_open(args: dict[str, Any], expected: Any) -> None:
    given = context(gate=Gate("prefix", {"prefix": 0.5, "text": 0.3}))
    reward: Any = build_reward(Term("gated", args=args), given)
    assert (reward.tau, type(reward.relevance)) == (expected[0], RELEVANCES[expected[1]])
    told = reward.explain(make_episodes([[1]], [[PAD_ITEM, 0]]), make_rollouts([[0, 2, 4, 11]]))
    np.testing.assert_array_equal(told["passed"], told["relevance"] > expected[0])


def test_without_a_gate_the_reward_is_what_it_was() -> None:
    reward: Any = build_reward(Term("gated"), context())
    assert (reward.tau, type(reward.relevance)) == (0.2, RELEVANCES["text"])
    with pytest.raises(ValueError, match="no threshold was chosen for relevance 'prefix'"):
        build_reward(Term("gated", args={"relevance": "prefix"}), context(gate=Gate("text", {"text": 0.3})))
    opened: Any = build_reward(
        Term("gated", args={"relevance": "prefix", "gate": False}), context(gate=Gate("text", {"text": 0.3}))
    )
    assert not opened.gate


# What a gate does ----------------------------------------------------------------------------------------------------


def page_case() -> tuple[RewardContext, Gate, Any]:
    """Two users with a history and one without, with pages on which something was ignored."""
    page = np.array([[1, 6, 2, PAD_ITEM], [11, 3, 4, 5], [0, 1, 2, 3]])
    feedback = np.array([[CLICK, SHOWN, SHOWN, PAD_ITEM], [CLICK, SHOWN, CLICK, SHOWN], [CLICK, SHOWN, SHOWN, SHOWN]])
    history = [[PAD_ITEM, 0], [0, 6], [PAD_ITEM, PAD_ITEM]]
    valid = make_episodes(
        [[1, PAD_ITEM], [11, 4], [0, PAD_ITEM]], history, page=page, feedback=feedback.astype(np.int8)
    )
    return context(), Gate("prefix", {"prefix": 0.5, "text": 0.0}), valid


def shared(past: list[int], item: int) -> float:
    """Longest common prefix of an item with a history, divided by L, level by level."""
    best = 0
    for other in past:
        depth = 0
        while other != PAD_ITEM and depth < 3 and TABLE.codes[other][depth] == TABLE.codes[item][depth]:
            depth += 1
        best = max(best, depth)
    return best / 3


def test_rates_and_examples_are_what_counting_gives() -> None:
    given, gate, valid = page_case()
    told = judge_gate(given, gate, FixedPreference(), valid, seed=0)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    past = [[0], [0, 6]]
    targets = [(0, 1), (1, 11), (1, 4)]
    ignored = [(0, 6), (0, 2), (1, 3), (1, 5)]
    for kind, pairs in (("targets", targets), ("ignored", ignored)):
        passes = [shared(past[row], item) > 0.5 for row, item in pairs]
        assert told["counts"][kind] == len(pairs), "nobody without a history is judged"
        assert told["pass_rate"][kind] == pytest.approx(np.mean(passes)), kind
    assert (told["contexts"], told["counts"]["random"]) == (2, 2 * RANDOM_ITEMS)
    # Candidates are drawn from all items, and item i is praised with i / 20: favourites are the highest numbers.
    favourites = [(row["item"], row["preference"]) for row in told["rejected"]]
    assert favourites, "the most praised are unlike these histories"
    assert all(praise == pytest.approx(item / 20) for item, praise in favourites)
    lost = {(row["user"], row["item"]) for row in told["lost"]}
    closed = {(row, item) for row, item in targets if shared(past[row], item) <= 0.5}
    assert lost <= closed
    assert {user for user, _ in lost} == {row for row, _ in closed}, "one of each user who lost some"
    assert [other["relevance"] for other in told["others"]] == ["prefix", "text"], "the one in use first"
    assert told["others"][0]["pass_rate"] == told["pass_rate"]
    assert told["model"] == {"against": "ignored", "auc": pytest.approx(auc(targets, ignored)), "rows": 7}


def auc(taken: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
    pairs = [(a > b) + 0.5 * (a == b) for _, a in taken for _, b in others]
    return float(np.mean(pairs))


def test_curves_fall_and_pass_through_the_threshold() -> None:
    given, gate, valid = page_case()
    told = judge_gate(given, gate, FixedPreference(), valid, seed=0)
    taus = [row["tau"] for row in told["curve"]]
    assert taus == sorted(taus)
    for kind, rate in told["pass_rate"].items():
        rates = [row[kind] for row in told["curve"]]
        assert rates == sorted(rates, reverse=True)
        assert rates[taus.index(0.5)] == rate
    again = judge_gate(given, gate, FixedPreference(), valid, seed=0)
    assert again == told


def test_popularity_quarters_have_as_many_items_and_need_counts() -> None:
    given, gate, valid = page_case()
    told = judge_gate(given, gate, FixedPreference(), valid, seed=0)["by_popularity"]
    # Popularity grows with the number of the item, and so does the praise.
    assert [row["quarter"] for row in told] == [1, 2, 3, 4]
    for row in told:
        low = (row["quarter"] - 1) * ITEMS // 4
        assert low / 20 <= row["preference"] <= (low + ITEMS // 4 - 1) / 20
    unknown = judge_gate(replace(given, popularity=None), gate, FixedPreference(), valid, seed=0)
    assert unknown["by_popularity"] == []


def test_without_impressions_what_is_taken_stands_against_random_items() -> None:
    given, gate, valid = page_case()
    told = judge_gate(given, gate, FixedPreference(), replace(valid, page=None, feedback=None), seed=0)
    assert "ignored" not in told["pass_rate"]
    assert told["model"]["against"] == "random"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("texts", "auto", 0.9), "unknown relevance 'texts'; known: learned, prefix, text"),
        (("text", "high", 0.9), r"preference\.tau: expected 'auto' or a number, got 'high'"),
        (("text", 1.0, 0.9), r"at least -1 and below 1 for relevance 'text', got 1\.0, which lets nothing pass"),
        (("prefix", -1.5, 0.9), r"got -1\.5, which lets everything pass; a gate that is always open is gate = false"),
        (("text", 0.1, 1.5), r"preference\.keep: expected more than 0 and at most 1, got 1\.5"),
    ],
)
def test_settings_that_make_no_gate_are_refused(settings: tuple[Any, Any, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_gate(*settings, names=list(RELEVANCES))


def test_settings_that_make_one_are_not() -> None:
    for settings in (("text", "auto", 1.0), ("prefix", -0.01, 0.5), ("gate_functions:as_numbers", 5.0, 0.9)):
        check_gate(*settings, names=list(RELEVANCES))
