"""Residual k-means."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.sid import rq_kmeans
from sidgym.sid.rq_kmeans import RQKMeans, nearest


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
    monkeypatch.setattr(rq_kmeans, "ENCODE_ROWS", 7)
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


def test_save_and_load(tmp_path: Path) -> None:
    x = clouds()
    quantiser = RQKMeans(2, 4, seed=0).fit(x)
    quantiser.save(tmp_path / "rq")
    loaded = RQKMeans.load(tmp_path / "rq")
    assert np.array_equal(loaded.encode(x), quantiser.encode(x))
    assert (loaded.levels, loaded.codes, loaded.seed) == (2, 4, 0)
    header = json.loads((tmp_path / "rq" / "rq_kmeans.json").read_text())
    (tmp_path / "rq" / "rq_kmeans.json").write_text(json.dumps({**header, "schema_version": 99}))
    with pytest.raises(ValueError, match="expected schema_version 1, got 99"):
        RQKMeans.load(tmp_path / "rq")
    (tmp_path / "rq" / "rq_kmeans.json").write_text(json.dumps({**header, "levels": 3}))
    with pytest.raises(ValueError, match="damaged or incomplete"):
        RQKMeans.load(tmp_path / "rq")


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
