"""The marks of live sessions: in their order, comparable in pairs, and the live filter equal to that of the log."""

from dataclasses import replace

import numpy as np
import pytest

from sidgym.envs import session_oracle
from sidgym.envs.oracle import BayesReference, percent_of_oracle
from sidgym.envs.records import Episodes, Interactions
from sidgym.envs.rewards import RewardContext, RewardSum, Term
from sidgym.envs.session_dynamics import Sessions, open_sessions, open_with_pages, play_any, play_page
from sidgym.envs.session_oracle import AGENTS, Bound, RandomPages, SessionOracle, judge_sessions, session_marks
from sidgym.envs.simulator import SimulatorConfig, Truth, World, make_world
from sidgym.sid.table import SidTable

CONFIG = SimulatorConfig(items=120)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(CONFIG, np.random.SeedSequence(0))[0]


def _as_log(pages: list[tuple[Sessions, Episodes]], world: World) -> tuple[Truth, Interactions]:
    """Pages played, as a log of the simulator and its truth, users in order."""
    user = np.concatenate([played.user for _, played in pages])
    order = np.argsort(user, kind="stable")

    def column(values: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(values)[order]

    width = pages[0][1].page.shape[1]  # type: ignore[union-attr]
    flat = {
        "item": column([played.page for _, played in pages]),  # type: ignore[misc]
        "feedback": column([played.feedback for _, played in pages]),  # type: ignore[misc]
        "play_time": column([played.play_time for _, played in pages]),  # type: ignore[misc]
    }
    log = Interactions(
        user=np.repeat(user[order], width),
        order=np.arange(len(order) * width),
        position=np.tile(np.arange(width), len(order)),
        **{name: values.reshape(-1) for name, values in flat.items()},
    )
    session = np.repeat(column([before.shoppers.session for before, _ in pages]), width)
    state = np.repeat(column([played.taste for _, played in pages]), width, axis=0)  # type: ignore[misc]
    return Truth(world, state, session), log


def test_the_live_filter_is_the_reference_of_a_log_of_the_same_pages(world: World) -> None:
    count, width = 12, CONFIG.page_size
    rng, oracle, random = np.random.default_rng(5), SessionOracle(world), RandomPages(world)
    sessions, warm = open_with_pages(world, np.arange(count), 8, width, 0, rng)
    oracle.begin(sessions, warm)
    pages, beliefs, choices, going = [], [], [], []
    for step in range(14):
        beliefs.append(oracle.belief.copy())
        choices.append(oracle.choose(sessions, rng))
        going.append(sessions.shoppers.user)
        items = choices[-1] if step % 2 else random.choose(sessions, rng)
        after, played = play_page(world, sessions, items, rng)
        pages.append((sessions, played))
        oracle.observe(played, after)
        sessions = after.take(~after.done)
        if len(sessions) == 0:
            break
    assert max(before.shoppers.session.max() for before, _ in pages) >= 2
    assert 0 < len(going[-1]) < count
    truth, log = _as_log(pages, world)
    reference = BayesReference(truth, log)
    page_of = {}
    for page, user in enumerate(log.user[::width]):
        page_of.setdefault(int(user), []).append(page)
    for step, users in enumerate(going):
        events = np.array([page_of[int(user)][step] * width for user in users])
        posterior = reference.posterior(events).reshape(beliefs[step].shape)
        np.testing.assert_allclose(beliefs[step], posterior, atol=1e-5)
        best = np.sort(reference.top(events, width)[1], axis=1)
        mine = np.take_along_axis(reference.expected_preference(events), choices[step], axis=1)
        np.testing.assert_allclose(np.sort(mine, axis=1), best, atol=1e-5)


def test_the_warm_up_teaches_the_oracle(world: World) -> None:
    sessions, warm = open_with_pages(world, np.arange(30), 8, 5, 4, np.random.default_rng(0))
    oracle = SessionOracle(world)
    oracle.begin(sessions, warm)
    belief = oracle.filter.prior(30)
    assert np.abs(oracle.belief - belief).max() > 0.05
    for played, after in warm:
        belief = oracle.filter.learn(belief, played.page, played.feedback, played.play_time)  # type: ignore[arg-type]
        belief = oracle.filter.drift(belief, after.new_session)
    np.testing.assert_array_equal(oracle.belief, belief)
    with pytest.raises(ValueError, match="follows 30 sessions and was asked for 4"):
        oracle.choose(sessions.take(np.arange(4)), np.random.default_rng(0))


def test_marks_are_ordered_with_a_margin(world: World) -> None:
    marks = session_marks(world, np.arange(300))
    worth = {name: mark["discounted"] for name, mark in marks.items()}
    error = max(mark["standard_error"] for mark in marks.values())
    assert worth["random"] + 4 * error < worth["logging"]
    assert worth["logging"] + 8 * error < worth["oracle"]
    assert worth["oracle"] + 4 * error < worth["bound"]
    assert 0 < percent_of_oracle(worth["logging"], worth["random"], worth["oracle"]) < 50
    for mark in marks.values():
        assert mark["discounted"] < mark["total"]
        assert mark["orders"] < mark["clicks"]
        assert abs(mark["sessions"] - CONFIG.sessions) < 0.4
        assert mark["left"] == 1


def test_all_agents_meet_the_same_shoppers_and_runs_repeat(world: World) -> None:
    users = np.arange(100)
    results = {name: judge_sessions(world, build(world), users, seed=3) for name, build in AGENTS.items()}
    for result in results.values():
        np.testing.assert_array_equal(result["sessions"], results["random"]["sessions"])
    # Engaged shoppers stay as long as others or longer on the same random numbers: no shopper has fewer pages.
    assert (results["bound"]["pages"] >= results["random"]["pages"]).all()
    assert results["bound"]["pages"].sum() > results["random"]["pages"].sum()
    again = judge_sessions(world, SessionOracle(world), users, seed=3)
    for key, values in results["oracle"].items():
        np.testing.assert_array_equal(again[key], values)
    other = judge_sessions(world, SessionOracle(world), users, seed=4)
    assert (other["clicks"] != again["clicks"]).any()


@pytest.mark.parametrize("other", ["random", "oracle"])
def test_tastes_are_the_same_whatever_was_shown(world: World, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as a shopper's sessions began on the same pages under two agents, the taste is the same under both."""
    seen: list[Sessions] = []

    def spy(*args: object, **settings: object) -> tuple[Sessions, Episodes]:
        after, played = play_any(*args, **settings)  # type: ignore[arg-type]
        seen.append(after)
        return after, played

    monkeypatch.setattr(session_oracle, "play_any", spy)
    lives = []
    for name in ("bound", other):
        seen.clear()
        judge_sessions(world, AGENTS[name](world), np.arange(400), max_pages=8)
        lives.append(list(seen))
    alike, shelf, drifts = np.ones(400, dtype=bool), None, 0
    for one, two in zip(*lives, strict=True):
        alike &= (one.shoppers.session == two.shoppers.session) & (one.new_session == two.new_session)
        np.testing.assert_array_equal(one.shoppers.taste[alike], two.shoppers.taste[alike])
        drifts += 0 if shelf is None else int((one.shoppers.taste[alike, 1] != shelf[alike]).sum())
        shelf = one.shoppers.taste[:, 1]
    assert alike.sum() > 20
    assert (~alike).sum() > 20, "the agents make a difference"
    assert drifts > 50


def test_a_reward_of_sids_finds_its_table_or_says_so(world: World) -> None:
    table = SidTable(
        np.stack([np.arange(120) // 12, np.arange(120) % 12], axis=1), (10, 12), np.arange(120).astype(str)
    )
    agent, users, term = Bound(world), np.arange(20), Term("prefix", args={"any_positive": True})
    reward = RewardSum([term], RewardContext(table), 5)
    given = judge_sessions(world, agent, users, reward=reward, table=table)["total"]
    np.testing.assert_array_equal(judge_sessions(world, agent, users, reward=reward)["total"], given)
    assert given.mean() > 0
    with pytest.raises(ValueError, match="expected a table or codes"):
        judge_sessions(world, agent, users, reward=RewardSum([Term("diversity")], RewardContext(), 5))


def test_returns_add_up(world: World) -> None:
    class Count:
        """One item a page; counts what it is told."""

        def __init__(self) -> None:
            self.pages = np.zeros(0, dtype=np.int64)
            self.going = np.zeros(0, dtype=np.int64)

        def begin(self, sessions: Sessions, warm: list[tuple[Episodes, Sessions]]) -> None:
            assert len(warm) == 2
            self.pages, self.going = np.zeros(len(sessions), dtype=np.int64), np.arange(len(sessions))

        def choose(self, sessions: Sessions, rng: np.random.Generator) -> np.ndarray:
            assert not sessions.done.any()
            np.testing.assert_array_equal(sessions.shoppers.user, 100 + self.going)
            return np.tile([7, -1, -1], (len(sessions), 1))

        def observe(self, played: Episodes, after: Sessions) -> None:
            self.pages[self.going] += 1
            self.going = self.going[~after.done]

    agent, reward = Count(), RewardSum.of(lambda episodes, rollouts: 2.0 * np.ones(rollouts.valid.shape), 3)
    table = SidTable(np.arange(120)[:, None], (120,), np.arange(120).astype(str))
    settings = {"page_size": 3, "history": 4, "warm_pages": 2, "discount": 0.5, "reward": reward, "table": table}
    result = judge_sessions(world, agent, np.arange(100, 120), max_pages=6, **settings)  # type: ignore[arg-type]
    np.testing.assert_array_equal(result["pages"], agent.pages)
    np.testing.assert_array_equal(result["total"], 2 * agent.pages)
    np.testing.assert_allclose(result["discounted"], 4 * (1 - 0.5**agent.pages))
    assert result["pages"].max() == 6
    assert not result["left"].all()
    endless = judge_sessions(world, Count(), np.arange(100, 120), max_pages=None, **settings)  # type: ignore[arg-type]
    assert endless["left"].all()
    assert endless["pages"].max() > 6


def test_random_pages_are_uniform_over_sets_and_places(world: World) -> None:
    tiny = make_world(SimulatorConfig(items=5, page_size=5), np.random.SeedSequence(0))[0]
    sessions = open_sessions(tiny, np.arange(12000), 3, 3, 0, np.random.default_rng(0))
    pages = RandomPages(tiny).choose(sessions, np.random.default_rng(1))
    codes, counts = np.unique(pages @ [25, 5, 1], return_counts=True)
    assert len(codes) == 60  # every arrangement of 3 of 5 items
    assert counts.min() > 200 - 5 * np.sqrt(200)
    assert counts.max() < 200 + 5 * np.sqrt(200)


def test_the_bound_shows_the_truly_best_items_first(world: World) -> None:
    sessions = open_sessions(world, np.arange(40), 3, 4, 1, np.random.default_rng(0))
    pages = Bound(world).choose(sessions, np.random.default_rng(0))
    preference = world.preference_of_states(sessions.shoppers.taste)
    np.testing.assert_array_equal(np.take_along_axis(preference, pages, axis=1), -np.sort(-preference, axis=1)[:, :4])


def test_no_page_earns_more_clicks_or_more_often_one_than_the_bound(world: World) -> None:
    """Greedy by brute force: over all pages of 3 of 6 items, in every order."""
    from itertools import permutations

    from sidgym.envs.simulator import examine_probability

    small = replace(CONFIG, items=6, page_size=3, base=-1.0)
    place = make_world(small, np.random.SeedSequence(2))[0]
    sessions = open_sessions(place, np.arange(25), 3, 3, 0, np.random.default_rng(0))
    preference = place.preference_of_states(sessions.shoppers.taste).astype(np.float64)
    clicks = {page: preference[:, page] * examine_probability(small, 3) for page in permutations(range(6), 3)}
    greedy = Bound(place).choose(sessions, np.random.default_rng(0))
    for row in range(25):
        mine = clicks[tuple(greedy[row].tolist())][row]
        for other in clicks.values():
            assert mine.sum() >= other[row].sum() - 1e-9
            assert 1 - (1 - mine).prod() >= 1 - (1 - other[row]).prod() - 1e-9


@pytest.mark.parametrize(("negative", "best"), [(-1.0, True), (-100.0, True), (-1e4, False)])
def test_the_order_of_the_bound_earns_most_under_its_condition(negative: float, best: bool) -> None:
    """click = order = 1 >= dislike_rate * |negative| holds for the first two, on the boundary for the second."""
    from itertools import permutations

    from sidgym.envs.simulator import examine_probability, outcome_probabilities

    preference, examine = np.array([0.95, 0.9, 0.6, 0.3, 0.1]), examine_probability(CONFIG, 5)
    worth = {
        order: (outcome_probabilities(CONFIG, preference[list(order)], examine) @ [negative, 0, 1, 1]).sum()
        for order in permutations(range(5))
    }
    assert (worth[(0, 1, 2, 3, 4)] >= max(worth.values()) - 1e-12) == best
