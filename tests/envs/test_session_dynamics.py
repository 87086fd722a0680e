"""Sessions: the simulator's laws hold in them, forks are reproducible, and every page is told as it was played."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.envs.records import CLICK, ORDER, PAD_ITEM, SHOWN, Episodes
from sidgym.envs.rewards import RewardContext, RewardSum, Term
from sidgym.envs.session_dynamics import (
    SessionDynamics,
    Sessions,
    episodes_of,
    open_sessions,
    open_with_pages,
    play_page,
    session_rewards,
    without_repeats,
)
from sidgym.envs.simulator import SimulatorConfig, World, examine_probability, make_world, outcome_probabilities
from sidgym.sid.table import SidTable

CONFIG = SimulatorConfig(items=60, departments=3, shelves_per_department=2, styles=2)
CODES = np.stack([np.arange(60) // 8, np.arange(60) % 8], axis=1)
TABLE = SidTable(CODES, (8, 8), np.array([f"i{item}" for item in range(60)]))


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(CONFIG, np.random.SeedSequence(0))[0]


def _open(world: World, count: int = 50, seed: int = 0, warm: int = 3) -> Sessions:
    return open_sessions(world, np.arange(count), 6, 4, warm, np.random.default_rng(seed))


def _pages(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permuted(np.tile(np.arange(60), (count, 1)), axis=1)[:, :4]


def _assert_equal(first: Sessions | Episodes, second: Sessions | Episodes) -> None:
    for field in fields(first):
        one, two = getattr(first, field.name), getattr(second, field.name)
        if field.name == "shoppers":
            _assert_equal(one, two)
        elif one is not None:
            np.testing.assert_array_equal(one, two, err_msg=field.name)


def test_a_warm_start_holds_the_clicks_of_the_warm_pages_and_nobody_is_gone(world: World) -> None:
    # Two sessions of one page each: without a rule, three warm pages would outlast everybody.
    hasty = make_world(replace(CONFIG, min_sessions=2, sessions=2, max_pages=1), np.random.SeedSequence(0))[0]
    for place in (world, hasty):
        sessions, warm = open_with_pages(place, np.arange(80), 6, 4, 3, np.random.default_rng(1))
        assert not sessions.done.any()
        assert (sessions.pages == 0).all()
        assert (sessions.shoppers.session == 0).all()
        assert [len(played) for played, _ in warm] == [80, 80, 80]
        for row in range(80):
            clicks = [
                item
                for played, _ in warm
                for item, did in zip(played.page[row], played.feedback[row])  # type: ignore[index]
                if did >= CLICK
            ][-6:]
            assert sessions.history[row].tolist() == [PAD_ITEM] * (6 - len(clicks)) + clicks
        np.testing.assert_array_equal(sessions.shown, warm[-1][0].page)
        assert (sessions.history != PAD_ITEM).sum() > 20
    assert sessions.new_session.all()


def test_the_number_of_sessions_is_that_of_the_simulator_after_any_warm_up(world: World) -> None:
    cold, warm = _open(world, 3000, warm=0), _open(world, 3000, warm=8)
    np.testing.assert_array_equal(cold.shoppers.sessions, warm.shoppers.sessions)
    assert (cold.shown == PAD_ITEM).all()
    assert not cold.new_session.any()
    assert (cold.history == PAD_ITEM).all()


def test_contexts_tell_the_history_and_the_hidden_taste_only(world: World) -> None:
    sessions = _open(world)
    contexts = episodes_of(sessions)
    np.testing.assert_array_equal(contexts.index, np.arange(50))
    np.testing.assert_array_equal(contexts.history, sessions.history)
    np.testing.assert_array_equal(contexts.taste, sessions.shoppers.taste)
    assert contexts.targets.shape == (50, 1)
    assert (contexts.targets == PAD_ITEM).all()


def test_a_played_page_is_told_as_it_was(world: World) -> None:
    before = _open(world, 200)
    items = _pages(200, 5)
    items[:, 2] = items[:, 0]  # a repetition: its later copy is an empty place
    items[:100, 1] = PAD_ITEM
    after, played = play_page(world, before, items, np.random.default_rng(7))
    expected = items.copy()
    expected[:, 2] = PAD_ITEM
    np.testing.assert_array_equal(played.page, expected)
    assert (played.feedback[played.page == PAD_ITEM] == SHOWN).all()  # type: ignore[index]
    assert (played.play_time[played.page == PAD_ITEM] == 0).all()  # type: ignore[index]
    np.testing.assert_array_equal(played.history, before.history)
    np.testing.assert_array_equal(played.taste, before.shoppers.taste)
    np.testing.assert_array_equal(after.shown, played.page)
    np.testing.assert_array_equal(after.feedback, played.feedback)
    np.testing.assert_array_equal(after.pages, 1)
    kinds = set()
    for row in range(200):
        did = played.feedback[row]  # type: ignore[index]
        ordered, clicked = expected[row][did == ORDER].tolist(), expected[row][did == CLICK].tolist()
        wanted = ordered + clicked
        assert played.targets[row].tolist() == wanted + [PAD_ITEM] * (4 - len(wanted))
        history = [*before.history[row], *expected[row][did >= CLICK]]
        assert after.history[row].tolist() == history[-6:]
        kinds.add((bool(ordered), bool(clicked)))
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}


def test_a_fork_with_the_same_page_and_numbers_goes_the_same_way(world: World) -> None:
    state = _open(world, 30)
    before = state.take(np.arange(30))
    forks = state.take(np.repeat(np.arange(30), 2))
    pages = _pages(60, 3)
    first = play_page(world, forks, pages, np.random.default_rng(11))
    again = play_page(world, forks, pages, np.random.default_rng(11))
    _assert_equal(first[0], again[0])
    _assert_equal(first[1], again[1])
    _assert_equal(state, before)  # the state that was forked has not moved
    other = play_page(world, forks, pages, np.random.default_rng(12))
    assert (other[1].feedback != first[1].feedback).any()  # type: ignore[operator]


def test_answers_follow_the_probabilities_of_the_world(world: World) -> None:
    sessions = _open(world, 20000, warm=0)
    items = np.tile([3, PAD_ITEM, 40, 11], (20000, 1))
    _, played = play_page(world, sessions, items, np.random.default_rng(2))
    preference = world.preference_of_states(sessions.shoppers.taste, np.maximum(items, 0)).astype(np.float64)
    chances = outcome_probabilities(CONFIG, preference, examine_probability(CONFIG, 4))
    for place in (0, 2, 3):
        for column, kind in enumerate((-1, SHOWN, CLICK, ORDER)):
            expected = chances[:, place, column]
            seen = (played.feedback[:, place] == kind).mean()  # type: ignore[index]
            error = np.sqrt((expected * (1 - expected)).sum()) / 20000
            assert abs(seen - expected.mean()) < 5 * error + 1e-9


def test_staying_and_drifting_follow_the_settings(world: World) -> None:
    sessions = _open(world, 20000, warm=0)
    after, played = play_page(world, sessions, _pages(20000, 1), np.random.default_rng(2))
    engaged = (played.feedback >= CLICK).any(axis=1)  # type: ignore[operator]
    assert 0.1 < engaged.mean() < 0.9
    assert not after.done.any()  # everybody comes at least twice
    for group, chance in ((engaged, CONFIG.leave_engaged), (~engaged, CONFIG.leave_idle)):
        assert abs(after.new_session[group].mean() - chance) < 0.025
    moved = (after.shoppers.taste != sessions.shoppers.taste).any(axis=1)
    assert not moved[~after.new_session].any()
    assert 0.1 < moved[after.new_session].mean() < CONFIG.drift


def test_what_cannot_be_played_is_refused(world: World) -> None:
    sessions, rng = _open(world, 4), np.random.default_rng(0)
    gone = replace(sessions, shoppers=replace(sessions.shoppers, done=np.array([False, True, False, False])))
    with pytest.raises(ValueError, match=r"rows \[1\] have left"):
        play_page(world, gone, _pages(4, 0), rng)
    for items in (np.full((4, 4), 60), np.full((4, 4), -2)):
        with pytest.raises(ValueError, match=r"expected items in \[0, 60\)"):
            play_page(world, sessions, items, rng)
    with pytest.raises(ValueError, match=r"shape \(4, 4\), got \(4, 3\)"):
        play_page(world, sessions, np.zeros((4, 3), dtype=np.int64), rng)
    with pytest.raises(ValueError, match="page_size in"):
        open_sessions(world, np.arange(2), 6, 61, 0, rng)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 5), min_size=4, max_size=4), min_size=1, max_size=5))
def test_only_first_copies_stay(pages: list[list[int]]) -> None:
    for row, kept in zip(pages, without_repeats(np.array(pages)).tolist()):
        assert kept == [PAD_ITEM if item in row[:place] else item for place, item in enumerate(row)]


def test_a_page_is_worth_the_sum_of_its_places_and_row_by_row_the_same(world: World) -> None:
    _, played = play_page(world, _open(world, 100), _pages(100, 8), np.random.default_rng(0))
    reward = RewardSum([Term("engagement", 2.0)], RewardContext(TABLE), 4)
    worth, scores = session_rewards(played, reward, TABLE)
    value = np.array([0.0, 1.0, 2.0, -1.0])[played.feedback]  # type: ignore[index]
    np.testing.assert_array_equal(worth, 2 * value.sum(axis=1))
    np.testing.assert_array_equal(scores.parts["engagement"], value)
    assert worth.min() <= 0 < worth.max()
    for row in range(0, 100, 9):
        assert session_rewards(played.take([row]), reward, TABLE)[0][0] == worth[row]
    np.testing.assert_array_equal(session_rewards(played, reward, codes=CODES[played.page])[0], worth)
    with pytest.raises(ValueError, match="hold no page"):
        session_rewards(episodes_of(_open(world)), reward, TABLE)


def test_codes_of_a_page_reach_the_reward_empty_places_as_invalid(world: World) -> None:
    items = _pages(20, 8)
    items[:, 1] = items[:, 0]
    _, played = play_page(world, _open(world, 20), items, np.random.default_rng(0))
    seen = {}

    def spy(episodes: Episodes, rollouts: object) -> np.ndarray:
        seen["rollouts"] = rollouts
        return np.ones(items.shape)

    worth, _ = session_rewards(played, RewardSum.of(spy, 4), TABLE)  # type: ignore[arg-type]
    np.testing.assert_array_equal(worth, 3)
    rollouts = seen["rollouts"]
    assert (rollouts.codes[:, 1] == -1).all()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(rollouts.codes[:, 0], CODES[items[:, 0]])  # type: ignore[attr-defined]
    np.testing.assert_array_equal(rollouts.rank, np.tile([1, 4, 2, 3], (20, 1)))  # type: ignore[attr-defined]


def test_sids_are_never_made_up(world: World) -> None:
    _, played = play_page(world, _open(world, 30), _pages(30, 8), np.random.default_rng(0))
    term = Term("prefix", args={"any_positive": True})
    built = RewardSum([term], RewardContext(TABLE), 4)
    worth, _ = session_rewards(played, built, TABLE)
    assert worth.max() > 0
    np.testing.assert_array_equal(session_rewards(played, built)[0], worth)  # the table of its own context
    with pytest.raises(ValueError, match="expected a table or codes"):
        session_rewards(played, RewardSum([Term("diversity")], RewardContext(), 4))


def test_infos_are_nobody_elses(world: World) -> None:
    """Writing into what a step gave out changes no observation, page, number or text that follows."""

    def life(write: bool) -> list[object]:
        dynamics, rng, slots = (
            SessionDynamics(world, TABLE, size=3, page_size=4, history=6),
            np.random.default_rng(0),
            3,
        )
        given = list(dynamics.begin(np.arange(slots), rng, {}).values())
        out: list[object] = []
        for step in range(5):
            for value in given if write else []:
                value[...] = 1
            out += [dynamics.observe(np.arange(slots)), dynamics.render(0), dynamics.sessions.done.copy()]
            dynamics.begin(np.flatnonzero(dynamics.sessions.done), rng, {})
            moved = dynamics.step(np.arange(slots), CODES[_pages(slots, step)], rng)
            given = [moved.reward, moved.terminated, moved.truncated, *moved.info.values()]
            out.append([value.copy() for value in given])
        return out

    assert repr(life(write=True)) == repr(life(write=False))


def test_slots_move_apart_from_each_other_and_give_out_fresh_arrays(world: World) -> None:
    dynamics = SessionDynamics(world, TABLE, size=6, page_size=4, history=6)
    rng, all_slots, some = np.random.default_rng(0), np.arange(6), np.array([1, 4])
    dynamics.begin(all_slots, rng, {})
    moved = dynamics.step(all_slots, CODES[_pages(6, 1)], rng)
    seen, told = dynamics.observe(all_slots), {key: value.copy() for key, value in moved.info.items()}
    kept, others = {key: value.copy() for key, value in seen.items()}, np.array([0, 2, 3, 5])
    still = dynamics.sessions.take(others)
    dynamics.step(some, CODES[_pages(2, 2)], rng)
    dynamics.begin(np.array([1]), rng, {})
    for key in seen:
        np.testing.assert_array_equal(seen[key], kept[key])
    for key in told:
        np.testing.assert_array_equal(moved.info[key], told[key])
    _assert_equal(dynamics.sessions.take(others), still)
    np.testing.assert_array_equal(dynamics.sessions.pages, [1, 0, 1, 1, 2, 1])
    with pytest.raises(ValueError, match="no options"):
        dynamics.begin(some, rng, {"row": 1})
    with pytest.raises(ValueError, match="the world's 60 items, got 59"):
        SessionDynamics(world, SidTable(CODES[:59], (8, 8), TABLE.item_ids[:59]))
    with pytest.raises(ValueError, match="max_pages"):
        SessionDynamics(world, TABLE, max_pages=0)
    with pytest.raises(ValueError, match="'rank' shares out a fixed amount"):
        SessionDynamics(world, TABLE, RewardSum([Term("rank")], RewardContext(TABLE), 4), page_size=4)
