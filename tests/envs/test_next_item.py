"""The Gymnasium environment: Gymnasium's own checks, seeding, rewards by hand, and vector environments."""

import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import sidgym.envs
from sidgym.envs.next_item import NextItemEnv, answer, demonstration_store
from sidgym.envs.records import PAD_ITEM, Episodes
from sidgym.envs.registration import ENVIRONMENTS, NEXT_ITEM_ID, register_environments
from sidgym.envs.rewards import RewardContext, RewardSum, Term
from sidgym.sid.table import SidTable

# Items 2 and 3 share a SID.
TABLE = SidTable(np.array([[0, 0], [0, 1], [1, 2], [1, 2]]), (2, 3), np.array(["a", "b", "c", "d"]))
EPISODES = Episodes(
    index=np.arange(3),
    user=np.array([10, 11, 12]),
    history=np.array([[PAD_ITEM, PAD_ITEM, 1], [0, 2, 3], [PAD_ITEM, 0, 1]]),
    targets=np.array([[0, 1], [1, PAD_ITEM], [2, PAD_ITEM]]),
)


@dataclass(frozen=True)
class ConfigLike:
    """What a run's reward settings look like."""

    name: str
    weight: float = 1.0
    args: dict[str, Any] = field(default_factory=dict)


def make(**arguments: Any) -> NextItemEnv:
    return NextItemEnv(EPISODES, TABLE, **arguments)


@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize("arguments", [{}, {"group_size": 4, "reward": ["rule", "rank"]}, {"render_mode": "ansi"}])
def test_gymnasium_has_no_complaint(name: str, arguments: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(name, **arguments).unwrapped)


def test_registering_again_changes_nothing() -> None:
    before = gymnasium.spec(NEXT_ITEM_ID)
    register_environments()
    assert gymnasium.spec(NEXT_ITEM_ID) is before
    assert sidgym.envs.__doc__ is not None


def test_registration_loads_no_torch() -> None:
    program = "import sidgym.envs, sys, gymnasium as g; g.spec('SIDGym/NextItem-v0'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_seeded_twins_live_the_same_life() -> None:
    one, two, other = (gymnasium.make(NEXT_ITEM_ID) for _ in range(3))
    lives = []
    for env, seed in ((one, 5), (two, 5), (other, 6)):
        env.action_space.seed(seed)
        life: list[Any] = [env.reset(seed=seed)]
        for _ in range(20):
            life += [env.step(env.action_space.sample()), env.reset()]
        lives.append(repr(life))
    assert lives[0] == lives[1]
    assert lives[0] != lives[2]


def test_observations_and_rewards_by_hand() -> None:
    env = make()
    observation, info = env.reset(options={"row": 0})
    np.testing.assert_array_equal(observation["history"], [[-1, -1], [-1, -1], [0, 1]])
    assert observation["length"] == 1
    assert info == {"row": 0, "user": 10}
    after, reward, terminated, truncated, told = env.step(np.array([0, 0]))
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert told["legal"]
    assert told["target"] == 0
    np.testing.assert_array_equal(after["history"], observation["history"])

    env.reset(options={"row": 0})
    assert env.step([0, 1])[1] == 0.0
    # The SID of the target of row 2 belongs to two items.
    env.reset(options={"row": 2})
    assert env.step(np.array([1, 2]))[1] == 0.5


def test_a_sid_that_does_not_exist_earns_nothing_and_is_reported() -> None:
    env = make(reward=lambda episodes, rollouts: np.ones(rollouts.valid.shape), group_size=2)
    env.reset(options={"row": 1})
    _, reward, _, _, info = env.step(np.array([[1, 0], [0, 1]]))
    assert reward == 0.5
    np.testing.assert_array_equal(info["rewards"], [0, 1])
    np.testing.assert_array_equal(info["items"], [PAD_ITEM, 1])
    assert not info["legal"]
    assert [[1, 0], [0, 1]] not in env.action_space
    env.reset()
    assert not env.step(np.array([[99, -7], [0, 1]]))[4]["legal"]


def test_a_group_is_ranked_in_the_given_order() -> None:
    env = make(reward=[ConfigLike("rule"), ConfigLike("rank", 0.5)], group_size=3)
    env.reset(options={"row": 1})
    _, reward, _, _, info = env.step(np.array([[1, 2], [0, 1], [0, 0]]))
    first, third = 1 / np.log(2), 1 / np.log(4)
    expected = [-0.5 * first / (first + third), 1, -0.5 * third / (first + third)]
    np.testing.assert_allclose(info["rewards"], expected, rtol=1e-6)
    assert reward == pytest.approx(np.mean(expected))


def test_answer_is_the_environment_for_many_contexts_at_once() -> None:
    reward = RewardSum([Term("rule"), Term("rank")], RewardContext(), 3)
    codes = TABLE.codes[np.random.default_rng(0).integers(0, 4, (3, 3))]
    rewards, terms, rollouts = answer(EPISODES, codes, TABLE, reward)
    np.testing.assert_array_equal(rewards, terms["rule"] + terms["rank"])
    assert rollouts.items.shape == (3, 3, 2)
    env = make(reward=["rule", "rank"], group_size=3)
    for row in range(3):
        env.reset(options={"row": row})
        np.testing.assert_array_equal(env.step(codes[row])[4]["rewards"], rewards[row])


def test_contexts_are_drawn_evenly() -> None:
    env = make()
    rows = [env.reset(seed=0)[1]["row"]] + [env.reset()[1]["row"] for _ in range(900)]
    assert np.bincount(rows, minlength=3).min() > 240


def test_vector_environments_batch_actions_to_one_array() -> None:
    env = gymnasium.make_vec(NEXT_ITEM_ID, 3, vectorization_mode="sync", group_size=2)
    env.reset(seed=0)
    actions = env.action_space.sample()
    assert actions.shape == (3, 2, actions.shape[-1])
    observations, rewards, terminated, _, info = env.step(actions)
    assert observations["history"].shape[0] == 3
    assert rewards.shape == (3,)
    assert terminated.all()
    assert info["rewards"].shape == (3, 2)


def test_the_simulated_store_offers_its_truth() -> None:
    store = demonstration_store(users=20, items=40)
    env = NextItemEnv(store.episodes, store.table, reward="true_preference", context=store.context)
    _, info = env.reset(seed=0)
    row = info["row"]
    item = 7
    assert store.context.truth is not None
    assert store.episodes.event is not None
    expected = store.context.truth.preference(store.episodes.event[[row]], np.array([[item]]))[0, 0]
    assert env.step(store.table.codes[item])[1] == pytest.approx(expected)


def test_rendering_tells_the_story() -> None:
    env = make(render_mode="ansi")
    assert env.render() == "no episode yet"
    env.reset(options={"row": 1})
    assert env.render() == "user 11: a c d"
    env.step(np.array([0, 1]))
    assert env.render() == "user 11: a c d\n  b: 1\n  next was b"
    assert make().render() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward": "rank"}, "'rank'.*group_size"),
        ({"reward": "ruel"}, "Did you mean 'rule'"),
        ({"group_size": 0}, "group_size must be at least 1"),
        ({"render_mode": "human"}, "render_mode"),
        ({"reward": "gated_preference"}, "RewardContext.preference"),
    ],
)
def test_construction_says_what_is_wrong(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_data_come_together() -> None:
    with pytest.raises(ValueError, match="both episodes and table"):
        NextItemEnv(episodes=EPISODES)
    with pytest.raises(ValueError, match="at least one context"):
        NextItemEnv(EPISODES.take([]), TABLE)


def test_steps_are_checked() -> None:
    env = make(group_size=2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(TABLE.codes[:2])
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(2, 2\), got int64 \(2,\)"):
        env.step(TABLE.codes[0])
    with pytest.raises(ValueError, match="integer codes"):
        env.step(np.zeros((2, 2)))
    env.step(TABLE.codes[:2])
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(TABLE.codes[:2])
    with pytest.raises(ValueError, match="row must be in"):
        env.reset(options={"row": 3})
