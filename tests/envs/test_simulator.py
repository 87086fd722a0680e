"""The simulated store: its laws are checked against direct formulas, its log against its own truth."""

from dataclasses import fields, replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from sidgym.envs import simulator
from sidgym.envs.records import CLICK, NEGATIVE, ORDER
from sidgym.envs.simulator import (
    Feedback,
    Shoppers,
    SimulatedStore,
    SimulatorConfig,
    Truth,
    advance,
    draw_page,
    examine_probability,
    make_world,
    new_shoppers,
    outcome_probabilities,
    respond,
    simulate,
)

CONFIG = SimulatorConfig(users=150, items=200, seed=3)


@pytest.fixture(scope="module")
def store() -> SimulatedStore:
    return simulate(CONFIG)


def _columns(store: SimulatedStore) -> dict[str, np.ndarray]:
    named = {f.name: getattr(store.interactions, f.name) for f in fields(store.interactions)}
    columns = {name: values for name, values in named.items() if name != "signals"}  # none: feedback has them
    return columns | {"state": store.truth.state, "session": store.truth.session, "price": store.catalogue.price}


def test_same_seed_same_arrays_other_seed_other_log(store: SimulatedStore) -> None:
    again, other = simulate(CONFIG), simulate(replace(CONFIG, seed=4))
    for name, values in _columns(store).items():
        np.testing.assert_array_equal(values, _columns(again)[name], err_msg=name)
    assert again.catalogue.titles == store.catalogue.titles
    assert other.catalogue.titles != store.catalogue.titles
    assert len(other.interactions) != len(store.interactions)


def test_users_of_one_block_do_not_depend_on_later_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "USERS_PER_BLOCK", 40)
    one, two = simulate(replace(CONFIG, users=40)), simulate(replace(CONFIG, users=70))
    rows = np.flatnonzero(two.interactions.user < 40)
    assert two.interactions.user.max() == 69
    np.testing.assert_array_equal(one.interactions.item, two.interactions.item[rows])
    np.testing.assert_array_equal(one.truth.state, two.truth.state[rows])


def test_every_column_of_the_log_is_valid(store: SimulatedStore) -> None:
    log, width = store.interactions, CONFIG.page_size
    assert log.play_time is not None
    assert log.feedback is not None
    assert log.propensity is not None
    assert log.time is not None
    assert all(np.isfinite(values).all() for values in _columns(store).values())
    pages = log.item.reshape(-1, width)
    assert (np.sort(pages, axis=1)[:, 1:] > np.sort(pages, axis=1)[:, :-1]).all(), "an item stands twice on a page"
    assert log.item.min() >= 0
    assert log.item.max() < CONFIG.items
    np.testing.assert_array_equal(log.position, np.tile(np.arange(width), len(pages)))
    same_user = log.user[1:] == log.user[:-1]
    assert (np.diff(log.user) >= 0).all()
    np.testing.assert_array_equal(np.diff(log.order)[same_user], 1)
    assert (np.diff(log.time)[same_user] >= 0).all()
    assert (log.order[np.flatnonzero(~same_user) + 1] == 0).all()
    clicked = log.feedback >= CLICK
    assert set(np.unique(log.feedback)) == {-1, 0, 1, 2}
    np.testing.assert_array_equal(log.play_time > 0, clicked)
    assert (log.play_time <= store.catalogue.duration[log.item] * (1 + 1e-6)).all()
    assert (log.propensity > 0).all()
    assert (log.propensity <= 1).all()
    np.testing.assert_array_equal(np.unique(log.user), np.arange(CONFIG.users))


def test_sessions_are_apart_and_only_they_change_the_current_shelf(store: SimulatedStore) -> None:
    log, truth = store.interactions, store.truth
    same_user = log.user[1:] == log.user[:-1]
    new_session = same_user & (np.diff(truth.session) != 0)
    assert (np.diff(truth.session)[new_session] == 1).all()
    assert (np.diff(log.time)[new_session] >= 3600).all()
    changed = (np.diff(truth.state, axis=0) != 0) & same_user[:, None]
    assert not changed[:, [0, 2]].any()
    assert not (changed[:, 1] & ~new_session).any()
    assert 0 < changed[:, 1].sum() < new_session.sum()


def test_catalogue_shows_shelf_and_style_and_titles_differ(store: SimulatedStore) -> None:
    catalogue, truth = store.catalogue, store.truth
    assert len(set(catalogue.titles)) > 0.99 * len(catalogue)
    assert catalogue.ids[0] == "i0000"
    assert len(set(catalogue.categories)) == CONFIG.shelves
    assert len({(path, shelf) for path, shelf in zip(catalogue.categories, truth.shelf.tolist())}) == CONFIG.shelves
    minimal = [i for i, style in enumerate(truth.style) if style == 1]
    words = ("minimal", "plain", "pared-back", "clean-lined", "understated")
    assert all(any(word in catalogue.titles[i] for word in words) for i in minimal)
    assert catalogue.price is not None
    assert catalogue.price.min() > 0


def test_names_do_not_run_out() -> None:
    config = SimulatorConfig(users=2, items=400, departments=9, shelves_per_department=5, styles=5)
    paths = set(simulate(config).catalogue.categories)
    assert len(paths) == 45


def _page_probability(weights: np.ndarray, page: tuple[int, ...]) -> float:
    """Plackett-Luce, straight from its definition."""
    probability, left = 1.0, weights.sum()
    for item in page:
        probability *= weights[item] / left
        left -= weights[item]
    return probability


@pytest.mark.parametrize("redraws", [0, 16])
def test_pages_follow_plackett_luce(monkeypatch: pytest.MonkeyPatch, redraws: int) -> None:
    monkeypatch.setattr(simulator, "_REDRAWS", redraws)
    config = SimulatorConfig(users=1, items=5, page_size=3, departments=2, shelves_per_department=1, history_weight=1.5)
    world, _ = make_world(config, np.random.SeedSequence(5))
    draws, rng = 20_000, np.random.default_rng(0)
    shoppers = new_shoppers(world, np.arange(draws), rng)
    shoppers = replace(shoppers, clicked=np.tile([0.3, 1.1], (draws, 1)))
    page, propensity = draw_page(world, shoppers, rng)
    score = np.log(world.popularity) + 1.5 * np.array([0.3, 1.1])[world.shelf] / (1 + 1.4)
    expected = {p: _page_probability(np.exp(score), p) for p in permutations(range(5), 3)}
    assert sum(expected.values()) == pytest.approx(1)
    for row in range(200):
        assert propensity[row].prod() == pytest.approx(expected[tuple(page[row])], rel=1e-9)
    counts = {p: 0 for p in expected}
    for drawn in map(tuple, page.tolist()):
        counts[drawn] += 1
    chi2 = sum((counts[p] - draws * q) ** 2 / (draws * q) for p, q in expected.items())
    assert chi2 < 59 + 5 * np.sqrt(2 * 59)  # 60 pages, 5 standard deviations


def test_logged_propensities_follow_from_the_log_alone(store: SimulatedStore) -> None:
    log, truth = store.interactions, store.truth
    rows = np.flatnonzero(log.user == 7)
    clicked = np.zeros(CONFIG.shelves)
    for start in range(0, len(rows), CONFIG.page_size):
        page = rows[start : start + CONFIG.page_size]
        share = clicked / (1 + clicked.sum())
        weights = np.exp(
            CONFIG.popularity_weight * np.log(truth.popularity) + CONFIG.history_weight * share[truth.shelf]
        )
        assert np.prod(log.propensity[page], dtype=float) == pytest.approx(
            _page_probability(weights, tuple(log.item[page])), rel=1e-4
        )
        clicked *= CONFIG.history_decay
        np.add.at(clicked, truth.shelf[log.item[page]], log.feedback[page] >= CLICK)
    assert clicked.sum() > 0


def test_feedback_rates_match_the_truth(store: SimulatedStore) -> None:
    log, truth = store.interactions, store.truth
    p = truth.preference(np.arange(len(log)), log.item[:, None])[:, 0].astype(float)
    examine = (1.0 + log.position) ** -CONFIG.examine_exponent
    for kind, chance in [
        (CLICK, examine * p),
        (ORDER, examine * p * CONFIG.order_rate * p),
        (NEGATIVE, (1 - examine * p) * CONFIG.dislike_rate * (1 - p)),
    ]:
        seen = log.feedback >= kind if kind != NEGATIVE else log.feedback == NEGATIVE
        sigma = np.sqrt((chance * (1 - chance)).sum())
        assert abs(seen.sum() - chance.sum()) < 4 * sigma, kind
    played = log.play_time / store.catalogue.duration[log.item]
    alpha = CONFIG.play_base + CONFIG.play_slope * p
    mean, variance = alpha / (alpha + 1), alpha / ((alpha + 1) ** 2 * (alpha + 2))
    clicked = log.feedback >= CLICK
    assert abs((played - mean)[clicked].sum()) < 4 * np.sqrt(variance[clicked].sum())


def test_outcomes_are_a_distribution() -> None:
    p = np.linspace(0, 1, 11)[:, None]
    chances = outcome_probabilities(CONFIG, p, examine_probability(CONFIG, 10))
    np.testing.assert_allclose(chances.sum(axis=-1), 1)
    assert (chances >= 0).all()


def test_exposure_is_long_tailed(store: SimulatedStore) -> None:
    shown = np.sort(np.bincount(store.interactions.item, minlength=CONFIG.items))[::-1]
    assert shown[: CONFIG.items // 10].sum() > 0.4 * shown.sum()


def test_preference_by_definition_and_in_any_chunk(store: SimulatedStore) -> None:
    truth, rows = store.truth, np.arange(0, len(store.interactions), 97)
    everything = truth.preference(rows)
    np.testing.assert_array_equal(everything, truth.preference(rows, chunk=1))
    items = np.random.default_rng(0).integers(CONFIG.items, size=(len(rows), 4))
    np.testing.assert_array_equal(truth.preference(rows, items), np.take_along_axis(everything, items, axis=1))
    np.testing.assert_array_equal(truth.preference_of_states(truth.state[rows]), everything)
    assert everything.dtype == np.float32
    for row in range(20):
        (a, b, s), item = truth.state[rows[row]], items[row, 0]
        logit = float(truth.world.appeal[item]) + CONFIG.weight_style * (s == truth.style[item])
        for shelf, weight in ((a, CONFIG.weight_long), (b, CONFIG.weight_now)):
            same_department = shelf // 4 == truth.shelf[item] // 4
            sim = 1.0 if shelf == truth.shelf[item] else CONFIG.department_similarity * same_department
            logit += weight * sim
        assert everything[row, item] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)


def test_truth_survives_saving(store: SimulatedStore, tmp_path: Path) -> None:
    store.truth.save(tmp_path / "truth")
    loaded = Truth.load(tmp_path / "truth")
    assert loaded.config == CONFIG
    np.testing.assert_array_equal(loaded.state, store.truth.state)
    np.testing.assert_array_equal(loaded.session, store.truth.session)
    rows = np.arange(50)
    np.testing.assert_array_equal(loaded.preference(rows), store.truth.preference(rows))


def test_shoppers_leave_and_finish() -> None:
    world, _ = make_world(replace(CONFIG, max_pages=3, leave_idle=0.0, leave_engaged=0.0), np.random.SeedSequence(0))
    rng = np.random.default_rng(1)
    shoppers = new_shoppers(world, np.arange(30), rng)
    sessions = shoppers.sessions
    for step in range(int(3 * sessions.max())):
        assert (shoppers.session == np.minimum(step // 3, sessions - 1)).all()
        page, _ = draw_page(world, shoppers, rng)
        shoppers = advance(world, shoppers, page, respond(world, shoppers, page, rng), rng)
    assert shoppers.done.all()


def test_the_new_shelf_of_a_row_may_be_drawn_apart_from_the_others() -> None:
    world, _ = make_world(CONFIG, np.random.SeedSequence(0))
    shoppers = new_shoppers(world, np.arange(3000), np.random.default_rng(1))
    page, _ = draw_page(world, shoppers, np.random.default_rng(2))
    nothing = Feedback(np.zeros(page.shape, dtype=np.int8), np.zeros(page.shape, dtype=np.float32))
    half = replace(nothing, feedback=np.where(np.arange(3000)[:, None] < 1500, 0, CLICK).astype(np.int8))

    def after(answer: Feedback, every_row: bool) -> Shoppers:
        return advance(world, shoppers, page, answer, np.random.default_rng(3), every_row)

    def different(every_row: bool) -> np.ndarray:
        """Rows in which the answers of the second half of the shoppers changed the new taste of the first."""
        one, other = after(nothing, every_row).taste[:1500], after(half, every_row).taste[:1500]
        return (one != other).any(axis=1)

    assert not different(True).any()
    assert different(False).any(), "the stream of the log, which is frozen"
    moved = after(nothing, True)
    drifted = (moved.taste != shoppers.taste).any(axis=1)
    assert not drifted[moved.session == shoppers.session].any()
    # The same law either way: as many drift, give or take the noise of 3000 shoppers.
    plain = (after(nothing, False).taste != shoppers.taste).any(axis=1)
    assert abs(drifted.mean() - plain.mean()) < 0.03
    assert drifted.mean() > 0.05


def test_a_page_without_clicks_bores() -> None:
    config = replace(CONFIG, leave_idle=0.7, leave_engaged=0.2)
    world, _ = make_world(config, np.random.SeedSequence(0))
    rng = np.random.default_rng(1)
    shoppers = new_shoppers(world, np.arange(4000), rng)
    page, _ = draw_page(world, shoppers, rng)
    answer = respond(world, shoppers, page, rng)
    after = advance(world, shoppers, page, answer, rng)
    left = after.session > shoppers.session
    clicked = (answer.feedback >= CLICK).any(axis=1)
    assert left[~clicked].mean() == pytest.approx(0.7, abs=0.05)
    assert left[clicked].mean() == pytest.approx(0.2, abs=0.05)
    assert (after.page_of_session == np.where(left, 0, 1)).all()


def test_drift_follows_its_kernel() -> None:
    config = SimulatorConfig(users=1, items=20, departments=2, shelves_per_department=2, drift_home=0.6)
    world, _ = make_world(config, np.random.SeedSequence(2))
    np.testing.assert_allclose(world.drift_kernel[0], [0.4, 0.4, 0.1, 0.1])
    taste = new_shoppers(world, np.arange(40_000), np.random.default_rng(0)).taste
    for long in range(4):
        now = np.bincount(taste[taste[:, 0] == long, 1], minlength=4)
        np.testing.assert_allclose(now / now.sum(), world.drift_kernel[long], atol=0.03)


@pytest.mark.parametrize("wrong", [{"items": 5}, {"drift": 1.5}, {"min_sessions": 9}, {"max_pages": 0}])
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        SimulatorConfig(**wrong)
