"""Reward functions as TRL's and verl's documentation writes them, run unchanged."""

import re
from typing import Any

import numpy as np
import pytest
from reward_cases import context, make_episodes, make_rollouts

from sidgym.envs.records import PAD_ITEM, Episodes, Rollouts
from sidgym.envs.reward_adapters import TRL_COLUMNS
from sidgym.envs.rewards import RewardContext, RewardError, RewardSum, Term, build_reward


def case() -> tuple[Episodes, Rollouts]:
    """Two contexts of two candidates: 002 and nothing, 102 and 110; targets 102 and 110; histories none and 000 101."""
    episodes = make_episodes([[8, 1], [9, PAD_ITEM]], [[PAD_ITEM, PAD_ITEM], [0, 7]])
    items = [[2, -1], [8, 9]]
    return episodes, make_rollouts(
        items, [[-1.0, -9.0], [-2.0, -1.0]], [[[0, 0, 2], [0, 7, 1]], [[1, 0, 2], [1, 1, 0]]]
    )


def accuracy(completions: list[str], ground_truth: list[str], **kwargs: Any) -> list[float]:
    """The accuracy pattern: a match with a column of the data set."""
    matches = [re.search(r"<a_\d+>", completion) for completion in completions]
    contents = [match.group(0) if match else "" for match in matches]
    return [1.0 if truth.startswith(content) and content else 0.0 for content, truth in zip(contents, ground_truth)]


def by_length(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def only_known_users(prompts: list[str], completions: list[str], user: list[int], **kwargs: Any) -> list[float | None]:
    """Several tasks in one data set: None where this reward has nothing to say."""
    return [None if not prompt else float(number) for prompt, number in zip(prompts, user)]


def trl(**args: Any) -> np.ndarray:
    return build_reward(Term("trl", args=args), context())(*case())  # type: ignore[return-value]


def test_trl_accuracy_with_a_column_of_its_own_name() -> None:
    result = trl(function=f"{__name__}:accuracy", columns={"ground_truth": "target"})
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, [[0, 0], [1, 1]])


def test_trl_none_is_not_applicable_and_worth_nothing() -> None:
    np.testing.assert_array_equal(trl(function=only_known_users), [[0, 0], [1, 1]])


def test_trl_is_given_whole_groups_of_token_texts_and_columns() -> None:
    seen: dict[str, Any] = {}

    def spy(**given: Any) -> list[float]:
        seen.update(given)
        return [0.0] * len(given["completions"])

    trl(function=spy)
    assert seen == {
        "prompts": ["", "", "<a_0><b_0><c_0><a_1><b_0><c_1>", "<a_0><b_0><c_0><a_1><b_0><c_1>"],
        "completions": ["<a_0><b_0><c_2>", "<a_0><c_1>", "<a_1><b_0><c_2>", "<a_1><b_1><c_0>"],
        "completion_ids": [[0, 2, 6], [0, 5], [1, 2, 6], [1, 3, 4]],
        "target": ["<a_1><b_0><c_2>"] * 2 + ["<a_1><b_1><c_0>"] * 2,
        "target_item": ["i08", "i08", "i09", "i09"],
        "item": ["i02", "", "i08", "i09"],
        "history": [[], [], ["i00", "i07"], ["i00", "i07"]],
        "user": [0, 0, 1, 1],
        "rank": [1, 2, 2, 1],
    }
    assert set(TRL_COLUMNS) < set(seen)


def test_trl_function_without_keyword_arguments_gets_what_it_names() -> None:
    def plain(completions: list[str], item: list[str]) -> list[int]:
        return [int(name == "i09") for name in item]

    np.testing.assert_array_equal(trl(function=plain), [[0, 0], [0, 1]])


def coroutine() -> Any:
    async def later(completions: list[str], **kwargs: Any) -> list[float]:
        return [0.0]

    return later


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"function": accuracy}, r"missing a required argument: 'ground_truth'.*columns = \{"),
        ({"function": by_length, "columns": {"solution": "answer"}}, "columns must be one of"),
        ({"function": "by_length"}, "expected function = 'package.module:name', got 'by_length'"),
        ({"function": f"{__name__}:nothing"}, "has no attribute 'nothing'"),
        ({"function": coroutine()}, "expected a plain function"),
    ],
)
def test_trl_refuses_what_it_cannot_call(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trl(**args)


def test_trl_wrong_number_of_values_stops_with_the_example() -> None:
    total = RewardSum([Term("trl", args={"function": lambda completions, **_: [1.0]})], context(), 2)
    with pytest.raises(RewardError, match="expected 4 values, one for each completion, got 1") as caught:
        total(*case())
    assert caught.value.example["group"] == [["i02"], []]


def test_trl_terms_are_told_apart_in_the_sum() -> None:
    terms = [Term("trl", 1.0, {"function": by_length}), Term("trl", 10.0, {"function": only_known_users})]
    total, parts = RewardSum(terms, context(), 2)(*case())
    assert list(parts) == ["trl", "trl#2"]
    np.testing.assert_array_equal(total, [[15, 0], [25, 25]])


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    """The shape of verl's rule-based scores: a format check first, then the answer."""
    if data_source != "sidgym" or not re.fullmatch(r"(<[a-z]_\d+>)+", solution_str):
        return 0.0
    return 1.0 if solution_str == ground_truth else 0.1


def detailed(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any], bonus: float = 0.0
) -> dict[str, Any]:
    correct = extra_info["item"] == ground_truth
    return {"score": correct + bonus, "acc": correct, "pred": solution_str, "reward": 3, "rank": extra_info["rank"]}


def verl(**args: Any) -> Any:
    return build_reward(Term("verl", args=args), context())


def test_verl_compute_score_unchanged() -> None:
    result = verl(function=f"{__name__}:compute_score")(*case())
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, [[0.1, 0], [0.1, 1]])
    assert not verl(function=compute_score, data_source="other")(*case()).any()


def test_verl_dictionary_gives_score_and_the_other_numbers_as_diagnostics() -> None:
    args = {"function": detailed, "ground_truth": "target_item", "kwargs": {"bonus": 0.5}}
    scores = RewardSum([Term("verl", 2.0, args)], context(), 2).score(*case())
    np.testing.assert_array_equal(scores.parts["verl"], [[0.5, 0], [0.5, 1.5]])
    np.testing.assert_array_equal(scores.total, [[1, 0], [1, 3]])
    assert scores.diagnostics.keys() == {"verl/acc", "verl/extra_reward", "verl/rank"}
    np.testing.assert_array_equal(scores.diagnostics["verl/acc"], [[0, 0], [0, 1]])
    np.testing.assert_array_equal(scores.diagnostics["verl/rank"], [[1, 0], [2, 1]])


def test_verl_is_told_who_is_asked() -> None:
    seen: list[dict[str, Any]] = []

    def spy(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]) -> int:
        seen.append({"solution": solution_str, "truth": ground_truth, **extra_info})
        return 0

    verl(function=spy)(*case())
    assert len(seen) == 3, "the candidate that does not exist is not asked about"
    assert seen[1] == {
        "solution": "<a_1><b_0><c_2>", "truth": "<a_1><b_1><c_0>", "index": 1, "user": 1, "history": ["i00", "i07"],
        "prompt": "<a_0><b_0><c_0><a_1><b_0><c_1>", "target": "<a_1><b_1><c_0>", "target_item": "i09", "item": "i08",
        "rank": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"function": by_length}, "must take data_source, solution_str"),
        ({"function": compute_score, "kwargs": {"bonus": 1}}, "must take data_source, solution_str"),
        ({"function": compute_score, "ground_truth": "answer"}, "ground_truth must be one of"),
        ({"function": "compute_score"}, "expected function = 'package.module:name'"),
    ],
)
def test_verl_refuses_what_it_cannot_call(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verl(**args)


def test_verl_dictionary_without_a_score_stops_the_run() -> None:
    args = {"function": lambda data_source, solution_str, ground_truth, extra_info: {"acc": 1}}
    with pytest.raises(RewardError, match="dictionary with 'score'"):
        RewardSum([Term("verl", args=args)], context(), 2)(*case())


@pytest.mark.parametrize("name", ["trl", "verl"])
def test_adapters_need_the_table(name: str) -> None:
    function = by_length if name == "trl" else compute_score
    with pytest.raises(ValueError, match=r"needs RewardContext\.table"):
        build_reward(Term(name, args={"function": function}), RewardContext())
