"""``SIDGym/Page-v0``: pages by hand, repeated SIDs, the logged page, rendering, and what is refused."""

from typing import Any

import numpy as np
import pytest

from sidgym.envs.page import PageEnv, PageVectorEnv
from sidgym.envs.records import CLICK, NEGATIVE, ORDER, PAD_ITEM, SHOWN, Episodes
from sidgym.envs.rewards import Term
from sidgym.sid.table import SidTable

# Items 2 and 3 share a SID.
TABLE = SidTable(np.array([[0, 0], [0, 1], [1, 2], [1, 2], [1, 0]]), (2, 3), np.array(["a", "b", "c", "d", "e"]))
EPISODES = Episodes(
    index=np.arange(2),
    user=np.array([10, 11]),
    history=np.array([[PAD_ITEM, 1], [0, 2]]),
    targets=np.array([[0, 4], [2, PAD_ITEM]]),
    page=np.array([[0, 1, 4], [2, 4, PAD_ITEM]]),
    feedback=np.array([[ORDER, NEGATIVE, CLICK], [CLICK, SHOWN, SHOWN]], dtype=np.int8),
)
A, B, CD, E = TABLE.codes[[0, 1, 2, 4]]


def make(**arguments: Any) -> PageEnv:
    return PageEnv(EPISODES, TABLE, **{"page_size": 3, **arguments})


def test_every_positive_on_the_page_counts() -> None:
    env = make()
    env.reset(options={"row": 0})
    observation, reward, terminated, truncated, info = env.step(np.array([E, B, A]))
    assert (reward, terminated, truncated) == (2.0, True, False)
    np.testing.assert_array_equal(info["rewards"], [1, 0, 1])
    np.testing.assert_array_equal(info["items"], [4, 1, 0])
    assert (info["legal"], info["distinct"], info["hits"], info["positives"]) == (True, True, 2, 2)
    assert observation["length"] == 1
    # One of the two items behind the SID is the positive.
    env.reset(options={"row": 1})
    _, reward, _, _, info = env.step(np.array([CD, A, B]))
    assert (reward, info["hits"], info["positives"]) == (0.5, 1, 1)


def test_a_repeated_sid_earns_nothing_the_second_time() -> None:
    env = make()
    env.reset(options={"row": 0})
    _, reward, _, _, info = env.step(np.array([A, A, E]))
    assert reward == 2.0
    np.testing.assert_array_equal(info["rewards"], [1, 0, 1])
    np.testing.assert_array_equal(info["items"], [0, PAD_ITEM, 4])
    assert (info["legal"], info["distinct"], info["hits"]) == (True, False, 2)
    assert np.array([A, A, E]) not in env.action_space


def test_a_sid_that_does_not_exist_is_not_taken_for_a_repeated_one() -> None:
    env = make()
    env.reset(options={"row": 0})
    _, reward, _, _, info = env.step(np.array([[1, 1], [1, 1], E]))
    assert (reward, info["legal"], info["distinct"], info["hits"]) == (1.0, False, True, 1)
    np.testing.assert_array_equal(info["items"], [PAD_ITEM, PAD_ITEM, 4])


def test_the_logged_page_can_be_the_reward() -> None:
    env = make(reward=Term("engagement"))
    env.reset(options={"row": 0})
    info = env.step(np.array([A, B, E]))[4]
    liked, disliked, clicked = info["rewards"]
    assert liked > clicked > 0 > disliked


def test_the_page_is_the_group_of_rewards_that_compare() -> None:
    env = PageVectorEnv(2, EPISODES, TABLE, reward="diversity", page_size=3)
    env.reset(options={"row": 0})
    _, reward, _, _, info = env.step(np.array([[A, B, CD], [CD, E, A]]))
    rewards = info["final_info"]["rewards"]
    # Two SIDs of a page share their first code of two, which is half a SID with one of the two others.
    np.testing.assert_allclose(rewards, [[0.75, 0.75, 1], [0.75, 0.75, 1]])
    np.testing.assert_allclose(reward, [2.5, 2.5])
    with pytest.raises(ValueError, match=r"'diversity'.*group_size"):
        make(reward="diversity", page_size=1)


def test_the_place_on_the_page_is_the_rank() -> None:
    env = make(reward=lambda episodes, rollouts: rollouts.rank * 1.0)
    env.reset(options={"row": 0})
    np.testing.assert_array_equal(env.step(np.array([CD, A, B]))[4]["rewards"], [1, 2, 3])


def test_a_reward_that_adds_up_to_the_same_is_refused() -> None:
    terms = [Term("rule"), Term("rank", 0.5, {"any_positive": True})]
    for build in (make, lambda **settings: PageVectorEnv(2, EPISODES, TABLE, page_size=3, **settings)):
        with pytest.raises(ValueError, match="'rank' shares out a fixed amount"):
            build(reward=terms)


def test_rendering_lists_the_page_and_what_was_wanted() -> None:
    env = make(render_mode="ansi")
    env.reset(options={"row": 0})
    env.step(np.array([A, A, B]))
    assert str(env.render()).splitlines() == [
        "user 10",
        "  history  b",
        "  answer 1 <a_0> of 2 <b_0> of 2: a, reward 1 (1 x rule 1)",
        "  answer 2 <a_0> of 2 <b_0> of 2: (no item), reward 0 (1 x rule 0)",
        "  answer 3 <a_0> of 2 <b_1> of 2: b, reward 0 (1 x rule 0)",
        "  wanted   a | e",
    ]


@pytest.mark.parametrize(
    ("page_size", "message"),
    [
        (0, "page_size must be an integer of at least 1"),
        (2.5, "page_size must be an integer of at least 1"),
        (5, "at least 5 different SIDs to draw, got 4"),
    ],
)
def test_a_page_must_have_places_and_sids_for_them(page_size: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(page_size=page_size)
