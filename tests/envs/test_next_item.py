"""``SIDGym/NextItem-v0``: rewards by hand, groups, rendering, and what is refused."""

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import pytest

from sidgym.envs.next_item import NextItemEnv, NextItemVectorEnv, answer, demonstration_store
from sidgym.envs.records import PAD_ITEM, Catalogue, Episodes
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


def test_the_mean_of_a_group_hides_what_rule_and_rank_say_of_its_candidates() -> None:
    env = make(reward=["rule", "rank"], group_size=3)
    told = []
    for group in ([[1, 2], [0, 1], [0, 0]], [[1, 2], [1, 2], [0, 0]]):
        env.reset(options={"row": 1})
        _, reward, _, _, info = env.step(np.array(group))
        assert reward == pytest.approx(0, abs=1e-7)
        told.append(info["rewards"])
    assert told[0][1] == 1 > 0 > told[0].min()
    assert not told[1].any()


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


def test_gymnasiums_own_vector_environment_batches_actions_to_one_array() -> None:
    env = gymnasium.make_vec("SIDGym/NextItem-v0", 3, vectorization_mode="sync", group_size=2)
    env.reset(seed=0)
    actions = env.action_space.sample()
    assert actions.shape == (3, 2, actions.shape[-1])
    observations, rewards, terminated, _, info = env.step(actions)
    assert observations["history"].shape[0] == 3
    assert rewards.shape == (3,)
    assert terminated.all()
    assert info["rewards"].shape == (3, 2)


def test_rows_may_be_chosen_one_by_one() -> None:
    env = NextItemVectorEnv(3, EPISODES, TABLE, autoreset_mode="Disabled")
    observation, info = env.reset(options={"row": np.array([2, 0, 1])})
    np.testing.assert_array_equal(info["user"], [12, 10, 11])
    np.testing.assert_array_equal(observation["length"], [2, 1, 3])
    np.testing.assert_array_equal(env.step(TABLE.codes[[2, 0, 0]])[1], [0.5, 1.0, 0.0])
    observation, info = env.reset(options={"row": 1, "reset_mask": np.array([True, False, True])})
    np.testing.assert_array_equal(info["row"], [1, 0, 1])
    np.testing.assert_array_equal(info["_row"], [True, False, True])
    np.testing.assert_array_equal(observation["length"], [3, 1, 3])


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
    env = make(render_mode="ansi", reward=[ConfigLike("rule"), ConfigLike("rank", 0.5)], group_size=2)
    assert env.render() == "no episode yet: call reset()"
    env.reset(options={"row": 1})
    begun = "user 11\n  history  a | c | d"
    assert env.render() == begun
    env.step(np.array([[0, 1], [1, 0]]))
    assert env.render() == (
        f"{begun}\n"
        "  answer 1 <a_0> of 2 <b_1> of 2: b, reward 1 (1 x rule 1, 0.5 x rank 0)\n"
        "  answer 2 <a_1> of 2 <b_0> not one of 1: (no item), reward 0 (1 x rule 0, 0.5 x rank 0)\n"
        "  next     b"
    )
    env.reset(options={"row": 0})
    assert env.render() == "user 10\n  history  b"
    assert make().render() is None


def test_rendering_calls_items_by_title() -> None:
    titles = ("Ball", "", "Cat", "Dog")
    catalogue = Catalogue(TABLE.item_ids, titles, ("",) * 4, ((),) * 4)
    env = make(render_mode="ansi", context=RewardContext(TABLE, catalogue=catalogue))
    env.reset(options={"row": 1})
    env.step(np.array([0, 0]))
    assert str(env.render()).splitlines()[1:] == [
        "  history  Ball | Cat | Dog",
        "  answer 1 <a_0> of 2 <b_0> of 2: Ball, reward 0 (1 x rule 0)",
        "  next     b",
    ]


def test_every_environment_of_a_vector_is_rendered() -> None:
    env = NextItemVectorEnv(2, EPISODES, TABLE, render_mode="ansi", autoreset_mode="NextStep")
    env.reset(options={"row": np.array([0, 1])})
    env.step(TABLE.codes[[0, 0]])
    one, other = env.render() or ()
    assert one.splitlines()[2] == "  answer 1 <a_0> of 2 <b_0> of 2: a, reward 1 (1 x rule 1)"
    assert other.splitlines()[2] == "  answer 1 <a_0> of 2 <b_0> of 2: a, reward 0 (1 x rule 0)"


def test_a_callable_reward_sees_whole_groups() -> None:
    seen = []

    def place(episodes: Episodes, rollouts: Any) -> np.ndarray:
        seen.append((len(episodes), rollouts.valid.shape))
        return rollouts.rank.astype(np.float32)

    env = NextItemVectorEnv(4, EPISODES, TABLE, reward=place, group_size=3)
    env.reset(seed=0)
    _, reward, _, _, _ = env.step(env.action_space.sample())
    assert seen == [(4, (4, 3))]
    np.testing.assert_array_equal(reward, np.full(4, 2.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward": "rank"}, "'rank'.*group_size"),
        ({"reward": "ruel"}, "Did you mean 'rule'"),
        ({"group_size": 0}, "group_size must be an integer of at least 1, got 0"),
        ({"group_size": 2.5}, "group_size must be an integer of at least 1, got 2.5"),
        ({"group_size": True}, "group_size must be an integer"),
        ({"group_size": "a"}, "group_size must be an integer"),
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
    with pytest.raises(ValueError, match="expected integers of shape"):
        env.step(np.zeros((2, 2)))
    env.step(TABLE.codes[:2])
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(TABLE.codes[:2])
    for row, message in ((3, "row must be in"), (-1, "row must be in"), (0.5, "an integer"), ([0, 1], "an integer")):
        with pytest.raises(ValueError, match=message):
            env.reset(options={"row": row})
    with pytest.raises(ValueError, match=r"the only option is 'row', got \['rows'\]"):
        env.reset(options={"rows": 0})
    with pytest.raises(ValueError, match="num_envs must be an integer of at least 1"):
        NextItemVectorEnv(0, EPISODES, TABLE)
