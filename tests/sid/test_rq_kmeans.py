"""Residual k-means, and what all residual quantisers share."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.sid import residual, rq_kmeans
from sidgym.sid.balanced_kmeans import BalancedRQKMeans
from sidgym.sid.residual import code_usage, collapsed_levels, nearest, one_thread
from sidgym.sid.rq_kmeans import RQKMeans, fit_codebook


def clouds(items: int = 300, width: int = 6) -> np.ndarray:
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(5, width)) * 4
    return (centres[rng.integers(0, 5, items)] + rng.normal(size=(items, width))).astype(np.float32)


def test_codes_follow_the_definition() -> None:
    x = clouds()
    quantiser = RQKMeans(3, 8, seed=0).fit(x)
    codes = quantiser.encode(x)
    assert codes.shape == (300, 3)
    assert quantiser.sizes == (8, 8, 8)
    residual = x.astype(np.float64)
    for level, book in enumerate(quantiser.codebooks):
        distance = ((residual[:, None] - book[None]) ** 2).sum(axis=-1)
        chosen = np.take_along_axis(distance, codes[:, level : level + 1], axis=1)[:, 0]
        assert np.allclose(chosen, distance.min(axis=1), atol=1e-4)
        residual = residual - book[codes[:, level]]
    assert quantiser.distortion(x) == pytest.approx((residual**2).sum(axis=1).mean(), rel=1e-4)


def test_every_level_lowers_the_distortion() -> None:
    x = clouds()
    found = [RQKMeans(levels, 8, seed=0).fit(x).distortion(x) for levels in (1, 2, 3)]
    assert found[0] > found[1] > found[2] > 0
    # One code for everything leaves the variance, so k-means must stay below it.
    assert found[0] < ((x - x.mean(axis=0)) ** 2).sum(axis=1).mean()


def test_first_level_finds_separate_clouds() -> None:
    corners = np.array([[0, 0], [0, 50], [50, 0], [50, 50]], np.float32)
    which = np.arange(80) % 4
    x = corners[which] + np.random.default_rng(0).normal(size=(80, 2)).astype(np.float32)
    codes = RQKMeans(1, 4, seed=1).fit(x).encode(x)[:, 0]
    assert all(len(set(codes[which == corner])) == 1 for corner in range(4))
    assert len(set(codes)) == 4


def test_same_seed_same_codes() -> None:
    x = clouds()
    first, again, other = (RQKMeans(2, 8, seed=seed).fit(x).encode(x) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_fewer_distinct_points_than_codes() -> None:
    x = np.repeat(np.array([[1, 0], [0, 1], [3, 3]], np.float32), 4, axis=0)
    quantiser = RQKMeans(2, 8, seed=0).fit(x)
    assert quantiser.sizes == (3, 1)
    codes = quantiser.encode(x)
    assert len(np.unique(codes, axis=0)) == 3
    assert quantiser.describe(x)["reduced_levels"] == {"0": 3, "1": 1}
    assert quantiser.distortion(x) == pytest.approx(0, abs=1e-6)


def test_many_rows_use_mini_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rq_kmeans, "MINIBATCH_ROWS", 100)
    monkeypatch.setattr(residual, "ENCODE_ROWS", 7)
    x = clouds()
    first, again = (RQKMeans(2, 5, seed=2).fit(x) for _ in range(2))
    assert np.array_equal(first.encode(x), again.encode(x))
    variance = ((x - x.mean(axis=0)) ** 2).sum(axis=1).mean()
    assert first.distortion(x) < variance / 2


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 1000))
def test_nearest_is_nearest(rows: int, codes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    book = rng.normal(size=(codes, 3)).astype(np.float32)
    distance = ((x[:, None].astype(np.float64) - book[None]) ** 2).sum(axis=-1)
    chosen = distance[np.arange(rows), nearest(x, book)]
    assert np.allclose(chosen, distance.min(axis=1), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 6), st.integers(1, 9), st.integers(0, 1000))
def test_residuals_shrink_level_by_level(rows: int, width: int, levels: int, codes: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(-4, 5, (rows, width)).astype(np.float32)  # equal rows are frequent
    shares = [1.0, *RQKMeans(levels, codes, seed).fit(x).describe(x)["residual_shares"]]
    assert all(after <= before + 1e-6 for before, after in itertools.pairwise(shares))
    if x.any():
        # A centre takes its rows' mean square away, unless that mean is zero.
        assert shares[1] < 1 or not x.mean(axis=0).any()


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 60), st.integers(1, 4), st.integers(1, 9), st.integers(0, 1000))
def test_encode_of_the_fitted_rows_is_a_fixed_point(rows: int, levels: int, codes: int, seed: int) -> None:
    """What ``encode`` leaves of the rows on a level is what that level's codebook was fitted to."""
    x = np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)
    quantiser = RQKMeans(levels, codes, seed).fit(x)
    found, rest = quantiser.encode(x), x
    for level, book in enumerate(quantiser.codebooks):
        assert np.array_equal(fit_codebook(rest, len(book), seed + level), book)
        rest = rest - book[found[:, level]]
    assert np.array_equal(quantiser.encode(x), found)


def test_product_of_separate_clusters_is_found_exactly() -> None:
    coarse = np.array([[100, 0], [-100, 0], [0, 100], [0, -100]], np.float32)
    fine = np.array([[1, 1], [-1, 1], [1, -1], [-1, -1]], np.float32)
    first, second = (part.reshape(-1) for part in np.meshgrid(range(4), range(4), indexing="ij"))
    x = np.repeat(coarse[first] + fine[second], 5, axis=0)
    quantiser = RQKMeans(2, 4, seed=0).fit(x)
    codes = quantiser.encode(x)
    for level, truth in enumerate((np.repeat(first, 5), np.repeat(second, 5))):
        pairs = np.unique(np.column_stack([codes[:, level], truth]), axis=0)
        assert len(pairs) == 4
        assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == 4
    assert quantiser.distortion(x) == pytest.approx(0, abs=1e-8)
    assert quantiser.distances(x + np.float32([0, 0.5])) == pytest.approx(np.full(80, 0.5), abs=1e-4)
    assert quantiser.reconstruct(codes) == pytest.approx(x, abs=1e-4)


def test_costs_are_squared_distances_of_what_remains() -> None:
    x = clouds()
    quantiser = RQKMeans(3, 8, seed=0).fit(x)
    codes = quantiser.encode(x)
    for level in range(3):
        rest = x.astype(np.float64) - sum(quantiser.codebooks[before][codes[:, before]] for before in range(level))
        expected = ((rest[:, None] - quantiser.codebooks[level][None]) ** 2).sum(axis=-1)
        costs = quantiser.costs(x, codes, level)
        assert costs.dtype == np.float64
        assert costs == pytest.approx(expected, abs=1e-4)
    assert np.array_equal(costs.argmin(axis=1), codes[:, 2])
    assert costs.min(axis=1).mean() == pytest.approx(quantiser.distortion(x), rel=1e-4)


@pytest.mark.parametrize("kind", [RQKMeans, BalancedRQKMeans])
def test_rows_whose_squares_overflow_are_refused(kind: type[RQKMeans]) -> None:
    x = clouds()
    with pytest.raises(ValueError, match=r"300 rows .* longer than 3e\+17, first \[0, 1, 2, 3, 4\]"):
        kind(2, 4, 0).fit(x * np.float32(1e25))
    fitted = kind(2, 4, 0).fit(x)
    far = x.copy()
    far[299] *= np.float32(1e25)
    for call in (fitted.encode, fitted.distances, fitted.describe):
        with pytest.raises(ValueError, match=r"1 rows .* longer than .*, first \[299\]"):
            call(far)
    assert np.isfinite(kind(2, 4, 0).fit(x * np.float32(1e14)).distances(x * np.float32(1e14))).all()


def threads_within() -> int:
    with one_thread():
        return torch.get_num_threads()


def test_one_thread_holds_for_torch_too_and_is_taken_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        # A thread that has not used torch yet would take up torch's own number, whatever OpenMP was told.
        with ThreadPoolExecutor(1) as fresh:
            assert fresh.submit(threads_within).result() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_usage_and_collapse() -> None:
    even, one = np.arange(400) % 8, np.zeros(400, np.int64)
    skewed = np.where(np.arange(400) < 8, even, 0)  # all codes used, seven of them once
    codes = np.column_stack([even, one, skewed])
    used, perplexity = code_usage(codes, (8, 8, 8))
    assert used == [8, 1, 8]
    assert perplexity[:2] == pytest.approx([8, 1])
    assert collapsed_levels(codes, (8, 8, 8)) == [1, 2]
    assert collapsed_levels(codes[:2], (8, 1, 1)) == []  # two rows can use no more than two codes


def test_wrong_use_is_refused() -> None:
    x = clouds()
    with pytest.raises(ValueError, match="call fit or load"):
        RQKMeans(2, 4, 0).encode(x)
    with pytest.raises(ValueError, match="at least 1 level"):
        RQKMeans(0, 4, 0)
    fitted = RQKMeans(1, 4, 0).fit(x)
    with pytest.raises(ValueError, match=r"expected shape \(N, 6\)"):
        fitted.encode(x[:, :3])
    x[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"1 rows are not finite, first \[7\]"):
        fitted.encode(x)
