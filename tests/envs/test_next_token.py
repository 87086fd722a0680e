"""``SIDGym/NextToken-v0``: walks by hand, masks, features, illegal codes, rendering, and what is refused."""

from typing import Any

import numpy as np
import pytest

from sidgym.envs.next_item import NextItemVectorEnv
from sidgym.envs.next_token import NextTokenEnv, NextTokenVectorEnv
from sidgym.envs.records import PAD_ITEM, Episodes
from sidgym.sid.table import SidTable

# Items 2 and 3 share a SID.
TABLE = SidTable(np.array([[0, 0], [0, 1], [1, 2], [1, 2]]), (2, 3), np.array(["a", "b", "c", "d"]))
EPISODES = Episodes(
    index=np.arange(2),
    user=np.array([10, 11]),
    history=np.array([[PAD_ITEM, 1], [0, 2]]),
    targets=np.array([[0], [2]]),
)


def make(**arguments: Any) -> NextTokenEnv:
    return NextTokenEnv(EPISODES, TABLE, **arguments)


def test_a_walk_by_hand() -> None:
    env = make()
    first, info = env.reset(options={"row": 1})
    assert info == {"row": 1, "user": 11}
    assert (first["observations"].dtype, first["action_mask"].dtype) == (np.float32, np.float32)
    # Two SIDs of the history, none chosen, level 0.
    np.testing.assert_array_equal(first["observations"], [1, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(first["action_mask"], [1, 1, 0])
    np.testing.assert_array_equal(env.action_masks(), [True, True, False])
    second, reward, terminated, truncated, info = env.step(1)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info == {"legal": True, "item": PAD_ITEM, "target": PAD_ITEM}
    np.testing.assert_array_equal(second["observations"][10:], [0, 1, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(second["action_mask"], [0, 0, 1])
    last, reward, terminated, truncated, info = env.step(2)
    assert (reward, terminated, truncated) == (0.5, True, False)
    assert info == {"legal": True, "item": 2, "target": 2}
    np.testing.assert_array_equal(last["observations"][10:], [0, 1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(last["action_mask"], [1, 1, 0])
    assert env.action_masks().dtype == bool


def test_codes_as_plain_numbers() -> None:
    env = make(features="codes")
    first, _ = env.reset(options={"row": 0})
    np.testing.assert_array_equal(first["observations"], [-1, -1, 0, 1, -1, -1, 0])
    np.testing.assert_array_equal(env.step(0)[0]["observations"], [-1, -1, 0, 1, 0, -1, 1])
    last = env.step(1)[0]
    np.testing.assert_array_equal(last["observations"], [-1, -1, 0, 1, 0, 1, 2])
    assert last in env.observation_space


@pytest.mark.parametrize("codes", [(2,), (0, 2), (-1,), (99,), (1, 0)])
@pytest.mark.parametrize("features", ["one_hot", "codes"])
def test_an_illegal_code_ends_the_episode_with_nothing(codes: tuple[int, ...], features: str) -> None:
    env = make(features=features, reward=lambda episodes, rollouts: np.ones(rollouts.valid.shape))
    before = env.reset(options={"row": 0})[0]
    for code in codes:
        observation, reward, terminated, _, info = env.step(code)
        if code != codes[-1]:
            before = observation
    assert (reward, terminated) == (0.0, True)
    assert info == {"legal": False, "item": PAD_ITEM, "target": 0}
    np.testing.assert_array_equal(observation["observations"], before["observations"])
    np.testing.assert_array_equal(observation["action_mask"], [1, 1, 0])
    assert observation in env.observation_space


def test_masked_walks_are_the_whole_sids_of_next_item() -> None:
    walk = NextTokenVectorEnv(64, EPISODES, TABLE, autoreset_mode="Disabled")
    whole = NextItemVectorEnv(64, EPISODES, TABLE, autoreset_mode="Disabled")
    rows, rng = np.arange(64) % 2, np.random.default_rng(0)
    walk.reset(options={"row": rows})
    whole.reset(options={"row": rows})
    codes = []
    for _ in range(2):
        chances = rng.random((64, 3)) * walk.action_masks()
        codes.append(chances.argmax(axis=1))
        _, rewards, terminated, _, info = walk.step(codes[-1])
    assert terminated.all()
    _, expected, _, _, told = whole.step(np.stack(codes, axis=1))
    np.testing.assert_array_equal(rewards, expected)
    np.testing.assert_array_equal(info["item"], told["items"][:, 0])
    assert told["legal"].all()
    assert len(np.unique(info["item"])) == 3


def test_environments_of_a_vector_stand_on_different_levels() -> None:
    env = NextTokenVectorEnv(3, EPISODES, TABLE)
    env.reset(options={"row": np.array([0, 1, 1])})
    observation, _, terminated, _, info = env.step(np.array([0, 2, 1]))
    np.testing.assert_array_equal(terminated, [False, True, False])
    np.testing.assert_array_equal(observation["action_mask"], [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(env.action_masks(), observation["action_mask"] > 0)
    np.testing.assert_array_equal(info["_final_obs"], terminated)
    _, reward, terminated, _, _ = env.step(np.array([0, 1, 2]))
    np.testing.assert_array_equal(reward, [1.0, 0.0, 0.5])
    np.testing.assert_array_equal(terminated, [True, False, True])


def test_rendering_follows_the_path() -> None:
    env = make(render_mode="ansi")
    env.reset(options={"row": 1})
    begun = ["user 11", "  history  a | c"]
    assert str(env.render()).splitlines() == [*begun, "  path     next: 2 codes"]
    env.step(1)
    assert str(env.render()).splitlines() == [*begun, "  path     <a_1> of 2 next: 1 code"]
    env.step(2)
    answer = "  answer 1 <a_1> of 2 <b_2> of 1: c, reward 0.5 (1 x rule 0.5)"
    assert str(env.render()).splitlines() == [*begun, answer, "  next     c"]
    env.reset(options={"row": 1})
    env.step(0)
    env.step(2)
    assert str(env.render()).splitlines() == [*begun, "  path     <a_0> of 2 <b_2> not one of 2", "  next     c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"reward": "rank"}, "'rank'.*group_size"), ({"features": "tokens"}, r"features must be one of \('one_hot'")],
)
def test_construction_says_what_is_wrong(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_an_action_is_one_whole_number() -> None:
    env = make()
    env.reset(seed=0)
    for action in (np.array([0]), 0.0):
        with pytest.raises(ValueError, match=r"expected integers of shape \(\)"):
            env.step(action)
