"""The reference: equal to Bayes by brute force on a tiny world, calibrated on a larger one."""

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest

from sidgym.envs.oracle import (
    BayesReference,
    bound,
    last_session_rows,
    oracle_table,
    percent_of_oracle,
    random_value,
)
from sidgym.envs.records import CLICK
from sidgym.envs.simulator import SimulatedStore, SimulatorConfig, simulate

TINY = SimulatorConfig(
    users=12, items=9, page_size=3, departments=2, shelves_per_department=1, styles=2, drift=0.4, sessions=3.0,
    min_sessions=2, max_pages=2, base=-1.0, weight_now=1.5, seed=1, dislike_rate=0.1,
)  # fmt: skip
CONFIG = SimulatorConfig(users=250, items=200, seed=2)


@pytest.fixture(scope="module")
def tiny() -> SimulatedStore:
    return simulate(TINY)


@pytest.fixture(scope="module")
def store() -> SimulatedStore:
    return simulate(CONFIG)


def _likelihood(store: SimulatedStore, row: int, state: tuple[int, int, int]) -> float:
    """Probability (density) of one log row under a taste, written out."""
    log, config = store.interactions, store.truth.config
    item = int(log.item[row])
    p = float(store.truth.preference_of_states(np.array([state]), np.array([[item]]))[0, 0])
    click = p * (1 + log.position[row]) ** -config.examine_exponent
    dislike = (1 - click) * config.dislike_rate * (1 - p)
    outcome = {
        -1: dislike,
        0: 1 - click - dislike,
        1: click * (1 - config.order_rate * p),
        2: click * config.order_rate * p,
    }[int(log.feedback[row])]
    if log.feedback[row] >= CLICK:
        alpha = config.play_base + config.play_slope * p
        outcome *= alpha * (log.play_time[row] / store.catalogue.duration[item]) ** (alpha - 1)
    return outcome


def _brute_force(store: SimulatedStore, event: int) -> np.ndarray:
    """Posterior of (a, b, s) by summing over all a, s and all paths of b, one b a session."""
    world, log, config = store.truth.world, store.interactions, store.truth.config
    first_row = event // 3 * 3
    past = [r for r in range(first_row) if log.user[r] == log.user[event]]
    session = store.truth.session
    kernel = world.drift_kernel
    posterior = np.zeros((config.shelves, config.shelves, config.styles))
    for a, s in product(range(config.shelves), range(config.styles)):
        for path in product(range(config.shelves), repeat=int(session[event]) + 1):
            weight = world.shelf_prior[a] * world.style_prior[s] * kernel[a, path[0]]
            for before, after in pairwise(path):
                weight *= (1 - config.drift) * (before == after) + config.drift * kernel[a, after]
            for row in past:
                weight *= _likelihood(store, row, (a, path[session[row]], s))
            posterior[a, path[-1], s] += weight
    return posterior.reshape(-1) / posterior.sum()


def test_filter_equals_brute_force(tiny: SimulatedStore) -> None:
    events = np.arange(1, len(tiny.interactions), 3)
    posterior = BayesReference(tiny.truth, tiny.interactions).posterior(events)
    expected = np.stack([_brute_force(tiny, event) for event in events])
    assert tiny.truth.session.max() >= 2
    assert np.abs(expected - expected[0]).max() > 0.2  # the log does move the belief
    np.testing.assert_allclose(posterior, expected, atol=2e-5)


def test_expected_preference_is_the_posterior_mean(store: SimulatedStore) -> None:
    events = last_session_rows(store.truth, store.interactions)[:15]
    reference = BayesReference(store.truth, store.interactions)
    states = np.stack(np.unravel_index(np.arange(32 * 32 * 4), (32, 32, 4)), axis=1)
    table = store.truth.preference_of_states(states)
    expected = reference.posterior(events) @ table
    np.testing.assert_allclose(reference.expected_preference(events), expected, atol=1e-5)
    items, values = reference.top(events, 5)
    np.testing.assert_allclose(values, -np.sort(-expected, axis=1)[:, :5], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(expected, items, axis=1), values, atol=1e-5)


def test_chunks_and_order_of_events_do_not_matter(store: SimulatedStore) -> None:
    events = np.random.default_rng(0).choice(len(store.interactions), size=60)
    events[1] = events[0]
    big = BayesReference(store.truth, store.interactions, chunk=1000).expected_preference(events)
    small = BayesReference(store.truth, store.interactions, chunk=7)
    np.testing.assert_allclose(small.expected_preference(events), big, atol=1e-6)
    np.testing.assert_allclose(small.expected_preference(events[::-1]), big[::-1], atol=1e-6)
    np.testing.assert_array_equal(bound(store.truth, events, 3, chunk=5), bound(store.truth, events, 3))
    np.testing.assert_array_equal(random_value(store.truth, events, chunk=5), random_value(store.truth, events))


def test_reference_does_not_see_the_page_of_the_event(store: SimulatedStore) -> None:
    log, truth = store.interactions, store.truth
    events = last_session_rows(truth, log)
    later = np.isin(np.arange(len(log)) // CONFIG.page_size, events // CONFIG.page_size)
    last_user_page = later | (np.arange(len(log)) > events[log.user])
    changed = replace(
        log,
        feedback=np.where(last_user_page, 0, log.feedback).astype(np.int8),
        play_time=np.where(last_user_page, 0, log.play_time).astype(np.float32),
    )
    assert (changed.feedback != log.feedback).any()
    before = BayesReference(truth, log).posterior(events)
    np.testing.assert_array_equal(BayesReference(truth, changed).posterior(events), before)


def test_first_page_is_the_prior(store: SimulatedStore) -> None:
    posterior = BayesReference(store.truth, store.interactions).posterior(np.array([0]))
    world = store.truth.world
    prior = world.shelf_prior[:, None, None] * world.drift_kernel[:, :, None] * world.style_prior
    np.testing.assert_allclose(posterior[0], prior.reshape(-1), atol=1e-7)


def test_marks_are_ordered_and_the_reference_is_calibrated(store: SimulatedStore) -> None:
    events = last_session_rows(store.truth, store.interactions)
    assert len(events) == CONFIG.users
    table = oracle_table(store.truth, store.interactions, events, ks=(1, 10))
    for k in (1, 10):
        assert table["random"] + 0.1 < table[f"reference@{k}"] < table[f"bound@{k}"]
        check = table[f"calibration@{k}"]
        assert 0 < check["standard_error"] < 0.02
        assert abs(check["difference"]) < 4 * check["standard_error"]
    assert table["bound@10"] < table["bound@1"]


def test_bound_is_the_best_true_list(store: SimulatedStore) -> None:
    events = np.arange(0, len(store.interactions), 501)
    preference = store.truth.preference(events)
    np.testing.assert_allclose(
        bound(store.truth, events, 4), np.sort(preference, axis=1)[:, -4:].mean(axis=1), rtol=1e-6
    )
    np.testing.assert_allclose(bound(store.truth, events, CONFIG.items), random_value(store.truth, events), rtol=1e-6)


def test_percent_of_oracle() -> None:
    assert percent_of_oracle(0.35, 0.1, 0.6) == pytest.approx(50)
    with pytest.raises(ValueError, match="reference"):
        percent_of_oracle(0.3, 0.5, 0.5)


def test_a_filtered_log_is_refused(store: SimulatedStore) -> None:
    with pytest.raises(ValueError, match="complete log"):
        BayesReference(store.truth, store.interactions.positives())
    with pytest.raises(ValueError, match="number of items"):
        bound(store.truth, np.array([0]), CONFIG.items + 1)
