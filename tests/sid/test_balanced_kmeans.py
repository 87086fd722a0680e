"""Balanced assignment and balanced residual k-means."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from sidgym.sid import assignment, balanced_kmeans
from sidgym.sid.assignment import balanced_assignment
from sidgym.sid.balanced_kmeans import BalancedRQKMeans, find_rows, hash_rows, means_of
from sidgym.sid.rq_kmeans import RQKMeans


def clouds(items: int = 300, width: int = 6) -> np.ndarray:
    """Clouds of very unequal sizes."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(5, width)) * 4
    which = rng.choice(5, items, p=[0.7, 0.2, 0.05, 0.03, 0.02])
    return (centres[which] + rng.normal(size=(items, width))).astype(np.float32)


def total(costs: np.ndarray, codes: np.ndarray) -> float:
    return float(costs[np.arange(len(costs)), codes].sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 1), st.integers(0, 10_000), st.booleans())
def test_assignment_is_the_cheapest_by_brute_force(rows: int, size: int, spare: int, seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 3, (rows, size)).astype(float) if ties else rng.random((rows, size))
    capacity = -(-rows // size) + spare
    codes, _ = balanced_assignment(costs, capacity)
    every = [np.array(one) for one in itertools.product(range(size), repeat=rows)]
    allowed = [one for one in every if np.bincount(one, minlength=size).max() <= capacity]
    assert np.bincount(codes, minlength=size).max() <= capacity
    assert total(costs, codes) == pytest.approx(min(total(costs, one) for one in allowed))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 2), st.integers(0, 10_000), st.booleans())
def test_assignment_is_the_cheapest_and_its_prices_say_so(
    rows: int, size: int, spare: int, seed: int, ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 3, (rows, size)).astype(float) if ties else rng.random((rows, size))
    capacity = -(-rows // size) + spare
    codes, prices = balanced_assignment(costs, capacity)
    places = np.repeat(costs, capacity, axis=1)
    load = np.bincount(codes, minlength=size)
    assert load.max() <= capacity
    assert total(costs, codes) == pytest.approx(places[linear_sum_assignment(places)].sum())
    # Complementary slackness: no row would rather go elsewhere, and a place that is left costs nothing.
    assert (prices >= 0).all()
    assert ((costs + prices)[np.arange(rows), codes] <= (costs + prices).min(axis=1) + 1e-7).all()
    assert (prices[load < capacity] <= 1e-7).all()


def test_assignment_from_a_sample_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = np.random.default_rng(0).random((200, 10)) ** np.arange(1, 11)
    best = total(costs, balanced_assignment(costs, 20)[0])
    monkeypatch.setattr(assignment, "SAMPLE_ROWS", 30)
    codes = balanced_assignment(costs, 20)[0]
    assert total(costs, codes) == pytest.approx(best)
    monkeypatch.setattr(assignment, "BLOCK_ROWS", 7)
    assert np.array_equal(balanced_assignment(costs, 20)[0], codes)
    assert np.array_equal(codes, balanced_assignment(costs, 20)[0])
    with pytest.raises(ValueError, match="10 codes with 19 rows each cannot hold 200 rows"):
        balanced_assignment(costs, 19)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 3), st.sampled_from([1.0, 1.3]), st.integers(0, 1000))
def test_no_code_has_more_than_its_share(rows: int, codes: int, levels: int, slack: float, seed: int) -> None:
    x = np.random.default_rng(seed).integers(-2, 3, (rows, 2)).astype(np.float32)  # equal rows are frequent
    quantiser = BalancedRQKMeans(levels, codes, seed, slack=slack).fit(x)
    found = quantiser.encode(x)
    for level, size in enumerate(quantiser.sizes):
        assert np.bincount(found[:, level]).max() <= np.ceil(slack * rows / size - 1e-9)
    shares = [1.0, *quantiser.describe(x)["residual_shares"]]
    assert all(after <= before + 1e-6 for before, after in itertools.pairwise(shares))


def test_loads_are_even_where_plain_k_means_is_not() -> None:
    x = clouds()
    plain, even = RQKMeans(3, 8, 0).fit(x), BalancedRQKMeans(3, 8, 0).fit(x)
    assert even.sizes == (8, 8, 8)
    assert even.describe(x)["largest_loads"] == [38, 38, 38]  # ceil(300 / 8)
    assert np.bincount(plain.encode(x)[:, 0]).max() > 50
    assert min(even.describe(x)["perplexity"]) > 7.9
    variance = ((x - x.mean(axis=0)) ** 2).sum(axis=1).mean()
    assert plain.distortion(x) < even.distortion(x) < 0.5 * variance


def test_separate_clusters_of_equal_size_are_found_exactly() -> None:
    corners = np.array([[0, 0], [0, 50], [50, 0], [50, 50]], np.float32)
    which = np.arange(80) % 4
    x = corners[which] + np.random.default_rng(0).normal(size=(80, 2)).astype(np.float32)
    codes = BalancedRQKMeans(1, 4, seed=1).fit(x).encode(x)[:, 0]
    assert all(len(set(codes[which == corner])) == 1 for corner in range(4))
    assert len(set(codes)) == 4


def test_fitted_rows_keep_the_codes_of_fit_and_equal_rows_part() -> None:
    x = np.repeat(np.float32([[0, 0], [9, 9], [9, 8]]), [8, 2, 2], axis=0)
    quantiser = BalancedRQKMeans(1, 3, seed=0).fit(x)
    codes = quantiser.encode(x)
    assert np.bincount(codes[:, 0]).tolist() == [4, 4, 4]
    assert np.array_equal(quantiser.encode(x + np.float32(-0.0)), codes)
    # Rows are told apart by their values alone, so of equal ones the first has the first one's codes.
    assert np.array_equal(quantiser.encode(x[8:]), codes[8:])
    assert np.array_equal(quantiser.encode(np.concatenate([x[:8], x[:8]]))[8:], codes[:8])
    assert quantiser.distances(x) == pytest.approx([0] * 8 + [0.5] * 4)


def test_a_new_row_goes_where_its_like_went() -> None:
    x = clouds()
    quantiser = BalancedRQKMeans(1, 8, seed=0).fit(x)
    close = quantiser.encode(x + np.float32(1e-5))[:, 0] == quantiser.encode(x)[:, 0]
    plain = quantiser.costs(x, np.zeros((len(x), 0), np.int64), 0).argmin(axis=1) == quantiser.encode(x)[:, 0]
    assert close.mean() > 0.97  # all but rows whom two codes suit alike
    assert close.mean() > plain.mean()


def test_save_and_load(tmp_path: Path) -> None:
    x = clouds()
    quantiser = BalancedRQKMeans(2, 4, 5, slack=1.2, rounds=3).fit(x[:200])
    quantiser.save(tmp_path)
    loaded = BalancedRQKMeans.load(tmp_path)
    assert (loaded.slack, loaded.rounds, loaded.seed) == (1.2, 3, 5)
    assert np.array_equal(loaded.encode(x), quantiser.encode(x))
    assert np.array_equal(loaded.kept, quantiser.kept)


def test_hashes_and_means() -> None:
    x = np.float32([[0, 1], [-0.0, 1], [1, 0], [0, 1]])
    keys = hash_rows(x)
    assert len(set(keys.tolist())) == 2
    assert keys[0] == keys[1] == keys[3]
    # Rows of two values that differ in one bit, as many hashes as rows.
    bits = np.random.default_rng(0).integers(0, 256, (300_000, 5), dtype=np.uint8)
    signs = 1 - 2 * np.unpackbits(bits, axis=1).view(np.int8).astype(np.float32)
    assert len(np.unique(hash_rows(signs))) == len(np.unique(bits.astype(np.int64) @ 256 ** np.arange(5)))
    known, place = find_rows(np.uint64([7, 5, 7, 6, 7]), np.uint64([4, 5, 7, 7]))
    assert known.tolist() == [True, True, True, False, True]
    assert place[known].tolist() == [2, 1, 3, 2]
    book = np.float32([[9, 9], [8, 8], [7, 7]])
    assert means_of(x, np.array([2, 2, 0, 2]), book).tolist() == [[1, 0], [8, 8], [0, 1]]


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="expected slack >= 1"):
        BalancedRQKMeans(1, 4, 0, slack=0.9)
    with pytest.raises(ValueError, match="expected slack >= 1"):
        BalancedRQKMeans(1, 4, 0, slack=float("nan"))


def test_of_too_many_rows_a_sample_is_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balanced_kmeans, "MOST_COSTS", 1000)
    x = np.random.default_rng(1).normal(size=(300, 6)).astype(np.float32)
    quantiser = BalancedRQKMeans(2, 4, 0).fit(x)
    told = quantiser.describe(x)
    assert (told["fitted_rows"], told["codes_used"]) == (250, [4, 4])
    sampled = find_rows(hash_rows(x), quantiser.keys)[0]
    assert sampled.sum() == 250
    codes = quantiser.encode(x)
    assert [np.bincount(codes[sampled, level]).max() for level in range(2)] == [63, 63]  # ceil(250 / 4)
    # The others go by the prices of the sample, under which loads are about even as well.
    assert min(told["perplexity"]) > 3.9
    assert np.array_equal(BalancedRQKMeans(2, 4, 0).fit(x).encode(x), codes)
    other = BalancedRQKMeans(2, 4, 1).fit(x)
    assert not np.array_equal(find_rows(hash_rows(x), other.keys)[0], sampled), "the seed draws the sample"
