"""What a reward may be and do: what it says of itself, terms that hold callables, and arrays that it cannot write."""

import pickle
from typing import Any

import numpy as np
import pytest
from reward_cases import context, make_episodes, make_rollouts

from sidgym.envs.records import Episodes, Rollouts
from sidgym.envs.rewards import RewardContext, RewardError, RewardSum, Term, build_reward, find_reward, required_fields


def halves(episodes: Episodes, rollouts: Rollouts) -> dict[str, np.ndarray]:
    return {"even": (rollouts.item % 2 == 0) * 0.5, "small": (rollouts.item < 4) * 2}


class Mute:
    """Has no ``__call__``."""

    def __init__(self, context: RewardContext) -> None: ...


def test_a_class_whose_instances_cannot_be_called_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a method __call__"):
        find_reward(Term(f"{__name__}:Mute"))


@pytest.mark.parametrize("requires", ["truth", ("truht",), 3, (1,), lambda: ("colour",)])
def test_requires_names_fields_of_the_context(requires: Any) -> None:
    def mine(episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
        return np.zeros(rollouts.valid.shape)

    mine.requires = requires  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"'mine': requires must be a tuple of names among table, .*truth"):
        find_reward(Term(mine))
    mine.requires = ["truth", "table"]  # type: ignore[attr-defined]
    assert required_fields(Term(mine)) == ("truth", "table")


def test_a_function_may_check_its_arguments() -> None:
    def mine(episodes: Episodes, rollouts: Rollouts, *, shelf: int = 0) -> np.ndarray:
        return np.zeros(rollouts.valid.shape)

    def check(shelf: int = 0) -> None:
        if shelf < 0:
            raise ValueError("no such shelf")

    mine.check = check  # type: ignore[attr-defined]
    assert find_reward(Term(mine, args={"shelf": 1})) is mine
    with pytest.raises(ValueError, match="no such shelf"):
        find_reward(Term(mine, args={"shelf": -1}))


class Constant:
    """A class with an argument, for terms that hold the class itself."""

    def __init__(self, context: RewardContext, value: float = 1.0) -> None:
        self.value = value

    def __call__(self, episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
        return np.full(rollouts.valid.shape, self.value)


def test_a_term_may_hold_a_callable_or_a_class() -> None:
    terms = [Term(halves, 2.0), Term(Constant, 0.5, {"value": 4.0}), Term(Constant(context()), 0.25)]
    terms.append(Term(build_reward(Term("gated", args={"tau": 0.9}), context())))
    total, parts = RewardSum(terms, context(), 2)(make_episodes([[2]]), make_rollouts([[2, 5]]))
    assert list(parts) == ["halves", "Constant", "Constant#2", "GatedPreference"]
    np.testing.assert_allclose(total, [[5.0, 0.0]] + np.array([[2.25, 2.25]]) + parts["GatedPreference"])


ARRAYS = (
    "history",
    "targets",
    "user",
    "index",
    "page",
    "feedback",
    "codes",
    "valid",
    "items",
    "logp",
    "item",
    "target",
)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_reward_cannot_write_what_training_reads(name: str) -> None:
    def writes(episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
        array = getattr(episodes if hasattr(episodes, name) else rollouts, name)
        array[array < 0] = 0
        return np.zeros(rollouts.valid.shape)

    page, feedback = np.array([[1, -1]]), np.array([[1, 0]], dtype=np.int8)
    episodes, rollouts = make_episodes([[1]], [[-1, 3]], page=page, feedback=feedback), make_rollouts([[1, -1]])
    before = pickle.dumps((episodes, rollouts))
    with pytest.raises(RewardError, match=r"'writes': raised ValueError: .*read-only; .*change a copy\n  at context"):
        RewardSum([Term(writes)], context(), 2).score(episodes, rollouts)
    assert pickle.dumps((episodes, rollouts)) == before
    assert episodes.history.flags.writeable, "only the reward's views are read-only"


def test_errors_of_adapters_name_the_function() -> None:
    def short(completions: list[str], **kwargs: Any) -> list[float]:
        return [0.0]

    with pytest.raises(RewardError, match=r"'trl' \(test_reward_checks:.*short\): raised") as caught:
        RewardSum([Term("trl", args={"function": short})], context(), 2)(make_episodes([[1]]), make_rollouts([[1, 2]]))
    assert caught.value.reward == "trl"
