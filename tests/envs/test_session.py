"""``SIDGym/Session-v0`` as Gymnasium sees it: spaces, seeds, the end of an episode, both views of one dynamics."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from sidgym.envs.registration import SESSION_ID
from sidgym.envs.rewards import Term
from sidgym.envs.session import SessionEnv, SessionVectorEnv, session_store
from sidgym.envs.session_dynamics import SessionDynamics
from sidgym.envs.simulator import SimulatorConfig, simulate
from sidgym.envs.spaces import TrieSpace

CONFIG = SimulatorConfig(items=60, departments=3, shelves_per_department=2, styles=2, users=5, page_size=4)
INFO_AT_START = {"user", "pages", "session"}
INFO = INFO_AT_START | {"items", "rewards", "feedback", "play_time", "legal", "distinct", "left"}


def _episode(env: gymnasium.Env[Any, Any], seed: int) -> list[Any]:
    env.action_space.seed(seed)
    out: list[Any] = [env.reset(seed=seed)]
    for _ in range(60):
        out.append(env.step(env.action_space.sample()))
        if out[-1][2] or out[-1][3]:
            break
    return out


def _assert_same(first: Any, second: Any) -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            _assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, two in zip(first, second):
            _assert_same(one, two)
    else:
        np.testing.assert_array_equal(first, second)


def test_gymnasium_finds_nothing_to_say_against_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(SESSION_ID, render_mode="ansi").unwrapped)
        venv = gymnasium.make_vec(SESSION_ID, num_envs=3)
    assert isinstance(venv, SessionVectorEnv)
    assert isinstance(venv.single_action_space, TrieSpace)
    assert venv.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def test_seeded_twins_live_the_same_episode() -> None:
    first, second = SessionEnv(CONFIG), SessionEnv(CONFIG)
    _assert_same(_episode(first, 3), _episode(second, 3))
    assert _episode(first, 4)[0][1]["user"] != _episode(first, 5)[0][1]["user"]


def test_an_episode_ends_when_the_shopper_stays_away() -> None:
    env = SessionEnv(CONFIG, history=4, page_size=3)
    lengths = []
    for seed in range(8):
        (seen, told), *steps = _episode(env, seed)
        assert set(told) == INFO_AT_START
        assert told["pages"] == told["session"] == 0
        for number, (seen, reward, terminated, truncated, info) in enumerate(steps, start=1):
            assert env.observation_space.contains(seen)
            assert set(info) == INFO
            assert info["legal"]
            assert info["distinct"]
            assert info["pages"] == number
            assert not truncated
            assert terminated == info["left"] == (number == len(steps))
            assert reward == info["rewards"].sum()
            np.testing.assert_array_equal(info["rewards"], np.array([0, 1, 2, -1])[info["feedback"]])
        assert steps[-1][4]["session"] >= 1
        lengths.append(len(steps))
    assert len(set(lengths)) > 3
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(env.action_space.sample())


def test_an_episode_is_cut_after_max_pages() -> None:
    steps = _episode(SessionEnv(CONFIG, max_pages=2), 1)[1:]
    assert [(step[2], step[3]) for step in steps] == [(False, False), (False, True)]


def test_places_that_hold_no_item_earn_nothing_and_are_told() -> None:
    env = SessionEnv(CONFIG, reward=lambda episodes, rollouts: np.ones(rollouts.valid.shape), page_size=4)
    env.reset(seed=0)
    codes = env.dynamics.table.codes
    _, reward, _, _, info = env.step(np.stack([codes[7], codes[7], codes[9], np.full(codes.shape[1], 15)]))
    assert info["items"].tolist() == [7, -1, 9, -1]
    assert info["rewards"].tolist() == [1, 0, 1, 0]
    assert reward == 2
    assert not info["legal"]
    assert not info["distinct"]
    seen, reward, _, _, info = env.step(codes[[1, 2, 3, 4]])
    assert reward == 4
    assert info["legal"]
    assert info["distinct"]
    np.testing.assert_array_equal(seen["shown"], codes[[1, 2, 3, 4]])
    with pytest.raises(ValueError, match="shape"):
        env.step(codes[[1, 2, 3]])


def test_one_slot_is_the_scalar_environment() -> None:
    scalar, vector = SessionEnv(CONFIG), SessionVectorEnv(1, CONFIG, autoreset_mode="NextStep")
    steps = _episode(scalar, 6)
    (first, _), *rest = steps
    seen, _ = vector.reset(seed=6)
    scalar.action_space.seed(6)
    _assert_same({key: value[0] for key, value in seen.items()}, first)
    for step in rest:
        seen, reward, terminated, truncated, info = vector.step(scalar.action_space.sample()[None])
        _assert_same({key: value[0] for key, value in seen.items()}, step[0])
        assert (reward[0], terminated[0], truncated[0]) == step[1:4]
        _assert_same({key: info[key][0] for key in step[4]}, step[4])
    assert terminated[0]


def test_many_slots_begin_anew_by_themselves() -> None:
    venv = SessionVectorEnv(40, CONFIG, history=5)
    seen, info = venv.reset(seed=1)
    assert venv.observation_space.contains(seen)
    assert len(set(info["user"])) == 40
    venv.action_space.seed(0)
    ended = 0
    for _ in range(25):
        before = info["user"].copy()
        seen, _, terminated, truncated, info = venv.step(venv.action_space.sample())
        assert venv.observation_space.contains(seen)
        over = terminated | truncated
        np.testing.assert_array_equal(info["user"] != before, over)
        np.testing.assert_array_equal(info["pages"] == 0, over)
        if over.any():
            np.testing.assert_array_equal(info["_final_info"], over)
            assert info["final_info"]["left"][over].all()
            ended += int(over.sum())
    assert ended > 20


def test_rewards_by_name_term_and_component() -> None:
    terms = [Term("engagement", 1.0), Term("true_preference", 0.5), Term("popularity_penalty", 1.0)]
    terms.append(Term("diversity", 0.1))
    env = SessionEnv(SimulatorConfig(items=60), reward=terms, render_mode="ansi")
    assert env.render() == "no episode yet: call reset()"
    env.reset(seed=2)
    start = env.render()
    assert start is not None
    assert "history" in start
    _, reward, _, _, info = env.step(env.action_space.sample())
    text = env.render()
    assert text is not None
    assert f"reward   {reward:.4g} (1 x engagement" in text
    assert "0.5 x true_preference" in text
    assert text.count("place ") == 5
    assert "true_preference" in text
    assert "the shopper" in text
    for item in info["items"]:
        assert session_store(SimulatorConfig(items=60))[2].titles[item] in text


def test_the_world_is_that_of_the_log() -> None:
    store, (world, table, catalogue, _) = simulate(CONFIG), session_store(CONFIG)
    np.testing.assert_array_equal(world.appeal, store.truth.world.appeal)
    assert catalogue.titles == store.catalogue.titles
    assert table.num_items == 60
    assert table.collision_count() == 0
    env = SessionEnv(world=world, table=table)
    assert isinstance(env.dynamics, SessionDynamics)
    assert env.dynamics.world is world
    with pytest.raises(ValueError, match="both world and table"):
        SessionEnv(world=world)
    with pytest.raises(ValueError, match="both world and table"):
        SessionEnv(CONFIG, world=world, table=table)
    with pytest.raises(ValueError, match="group"):
        SessionEnv(CONFIG, page_size=1, reward="diversity")


def test_a_reward_that_adds_up_to_the_same_is_refused() -> None:
    for make in (SessionEnv, lambda *args, **settings: SessionVectorEnv(2, *args, **settings)):
        with pytest.raises(ValueError, match="'rank' shares out a fixed amount"):
            make(CONFIG, reward=["engagement", "rank"])


@pytest.mark.parametrize("value", [0, 2.5, True, "a"])
@pytest.mark.parametrize("name", ["num_envs", "page_size", "history", "max_pages"])
def test_sizes_are_integers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name}.* must be an integer of at least 1, got {value!r}"):
        SessionVectorEnv(**{"config": CONFIG, name: value})


def test_popularity_is_counts_of_impressions() -> None:
    """Not shares of 1, of which log(1 + n) would be next to linear."""
    world, _, _, context = session_store(CONFIG)
    assert context.popularity is not None
    assert context.popularity.sum() == pytest.approx(CONFIG.users * CONFIG.sessions * CONFIG.page_size)
    np.testing.assert_array_equal(np.argsort(context.popularity), np.argsort(world.popularity))
    # The log has about as many a page: its sessions are longer.
    log = simulate(CONFIG).interactions
    assert 0.2 < context.popularity.sum() / len(log) <= 1.5
