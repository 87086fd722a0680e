"""Segments: every context in one band, bands as they are defined, means that add up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidgym.envs.records import PAD_ITEM, Episodes, Sequences
from sidgym.envs.segments import SEGMENTS, Bands, by_segment, exposure, item_bands, training_counts

COUNTS = np.array([30, 20, 6, 4, 0])


def contexts(targets: list[int], lengths: list[int]) -> Episodes:
    history = np.full((len(targets), max(lengths, default=1)), PAD_ITEM)
    for row, length in enumerate(lengths):
        history[row, history.shape[1] - length :] = 0
    rows = np.arange(len(targets))
    return Episodes(rows, rows, history, np.array(targets)[:, None])


def test_bands_by_hand() -> None:
    episodes = contexts([0, 1, 2, 3, 4], [4, 5, 9, 10, 20])
    assert training_counts(Sequences(np.arange(1), np.array([1, 1, 3]), np.array([0, 3])), 5).tolist() == [
        0,
        2,
        0,
        1,
        0,
    ]
    assert SEGMENTS["cold"](episodes, COUNTS).band.tolist() == [2, 2, 2, 1, 0]
    assert SEGMENTS["history"](episodes, COUNTS).band.tolist() == [0, 1, 1, 2, 2]
    # 60 events: the first item begins at 0, the second at 30, the third at 50.
    assert item_bands(COUNTS).band.tolist() == [0, 1, 2, 2, 2]
    assert SEGMENTS["popularity"](episodes, COUNTS).band.tolist() == [0, 1, 2, 2, 2]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_popularity_bands_fall_and_the_head_has_a_third(counts: list[int]) -> None:
    array = np.array(counts)
    band = item_bands(array).band
    order = np.argsort(-array, kind="stable")
    assert (np.diff(band[order]) >= 0).all()
    if array.sum():
        assert 3 * array[band == 0].sum() >= array.sum()
        assert 3 * (array[band == 0].sum() - array[order[(band == 0).sum() - 1]]) < array.sum()
    assert (band[array == 0] == 2).all()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 20), st.floats(0, 1)), min_size=1, max_size=30))
def test_means_of_bands_add_up_to_the_mean_of_all(rows: list[tuple[int, int, float]]) -> None:
    targets, lengths, values = map(list, zip(*rows))
    found = by_segment({"ndcg@10": np.array(values)}, contexts(targets, lengths), COUNTS)
    assert set(found) == set(SEGMENTS)
    for bands in found.values():
        assert sum(band["users"] for band in bands.values()) == len(rows)
        total = sum(band["users"] * band["ndcg@10"] for band in bands.values() if band["users"])
        assert total / len(rows) == pytest.approx(np.mean(values))
        assert all(("ndcg@10" in band) == (band["users"] > 0) for band in bands.values())


def even_targets(episodes: Episodes, counts: np.ndarray) -> Bands:
    return Bands(("even", "odd"), episodes.target % 2)


def test_a_segmentation_of_ones_own_and_refusals() -> None:
    episodes = contexts([0, 1, 2], [1, 2, 3])
    found = by_segment({"hr@1": np.array([1.0, 0.0, 0.0])}, episodes, COUNTS, (f"{__name__}:even_targets",))
    assert found == {"even_targets": {"even": {"users": 2, "hr@1": 0.5}, "odd": {"users": 1, "hr@1": 0.0}}}
    with pytest.raises(ValueError, match="Did you mean 'history'"):
        by_segment({}, episodes, COUNTS, ("histroy",))
    with pytest.raises(ValueError, match="'hr@1' has 2 values for 3 contexts"):
        by_segment({"hr@1": np.zeros(2)}, episodes, COUNTS)


def test_exposure_counts_the_first_places_only() -> None:
    items = np.array([[0, 1, 2], [0, 4, PAD_ITEM]])
    assert exposure(items, COUNTS, 1) == {"head": 1.0, "middle": 0.0, "tail": 0.0}
    assert exposure(items, COUNTS, 3) == pytest.approx({"head": 0.4, "middle": 0.2, "tail": 0.4})
    assert sum(exposure(np.full((2, 3), PAD_ITEM), COUNTS, 3).values()) == 0
    with pytest.raises(ValueError, match="shape"):
        exposure(items[:, :, None], COUNTS, 1)
