"""Min-cost reassignment of the last level: a bijection, exact, and honest about what it moved."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.sid.collisions import resolve_collisions
from sidgym.sid.reassign import Costs, assign_last_level, changed_levels, reassign, total_cost


def squared(points: np.ndarray, books: list[np.ndarray]) -> Costs:
    """What a residual quantiser's codebooks cost."""

    def costs(rows: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
        residual = points[rows].copy()
        for before in range(level):
            residual -= books[before][codes[:, before]]
        return ((residual[:, None] - books[level][None]) ** 2).sum(axis=2)

    return costs


def quantised(points: np.ndarray, books: list[np.ndarray]) -> np.ndarray:
    """Nearest codes, level by level."""
    codes = np.zeros((len(points), len(books)), np.int64)
    for level in range(len(books)):
        codes[:, level] = squared(points, books)(np.arange(len(points)), codes, level).argmin(axis=1)
    return codes


def distinct(codes: np.ndarray) -> bool:
    return len(np.unique(codes, axis=0)) == len(codes)


def least(codes: np.ndarray, size: int, costs: Costs) -> float:
    """Least total cost over all ways to give the items of each prefix different codes of the last level."""
    total = 0.0
    for prefix in {tuple(row) for row in codes[:, :-1].tolist()}:
        rows = np.flatnonzero((codes[:, :-1] == prefix).all(axis=1))
        matrix = costs(rows, codes[rows], codes.shape[1] - 1)
        ways = itertools.permutations(range(size), len(rows))
        total += min(sum(matrix[i, code] for i, code in enumerate(way)) for way in ways)
    return total


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 3))
def test_it_is_the_cheapest_bijection_that_keeps_every_prefix(seed: int, items: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = (*rng.integers(1, 4, levels - 1).tolist(), 5)
    points = rng.normal(size=(items, 2)).round(1)
    books = [rng.normal(size=(size, 2)) * 0.5**level for level, size in enumerate(sizes)]
    costs = squared(points, books)
    codes = quantised(points, books)
    members = np.unique(codes[:, :-1], axis=0, return_counts=True)[1]
    if members.max() > 5:
        return  # what does not fit is another test's
    found, same = reassign(codes, sizes, costs)
    assert same == sizes
    assert distinct(found)
    assert np.array_equal(found[:, :-1], codes[:, :-1])
    assert total_cost(found, sizes, costs) == pytest.approx(least(codes, 5, costs), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 24), st.booleans())
def test_more_items_than_codes_still_get_a_sid_each(seed: int, items: int, weighed: bool) -> None:
    rng = np.random.default_rng(seed)
    sizes = (2, 4, 3)
    points = rng.normal(size=(items, 2)) * 0.01
    books = [rng.normal(size=(size, 2)) for size in sizes]
    codes = quantised(points, books)
    costs = squared(points, books) if weighed else None
    if np.unique(codes[:, :-2], axis=0, return_counts=True)[1].max() > 12:
        with pytest.raises(ValueError, match=r"(?i)use more codes or levels"):
            reassign(codes, sizes, costs)
        return
    found, _ = reassign(codes, sizes, costs)
    assert distinct(found)
    assert np.array_equal(found[:, 0], codes[:, 0]), "an item leaves its prefix for a sibling, no further"
    crowded = {tuple(row) for row, n in zip(*np.unique(codes[:, :-1], axis=0, return_counts=True)) if n > 3}
    moved = (found[:, :-1] != codes[:, :-1]).any(axis=1)
    assert all(tuple(row) in crowded for row in codes[moved, :-1].tolist()), "and only where it is too full"
    assert (
        int(moved.sum())
        == sum(n - 3 for n in np.unique(codes[:, :-1], axis=0, return_counts=True)[1].tolist() if n > 3)
        or weighed
    ), "without costs no more than need be"


def test_the_item_that_loses_least_moves_to_the_nearest_sibling() -> None:
    books = [np.array([[0.0], [10.0], [4.0]]), np.array([[0.0], [1.0]])]
    points = np.array([[0.0], [1.0], [1.9]])  # all nearest to prefix 0, which has room for two
    codes = quantised(points, books)
    assert codes[:, 0].tolist() == [0, 0, 0]
    found, _ = reassign(codes, (3, 2), squared(points, books))
    assert found.tolist() == [[0, 0], [0, 1], [2, 0]]


def test_the_report_says_what_was_moved_and_what_it_costs() -> None:
    books = [np.zeros((1, 1)), np.array([[0.0], [1.0], [3.0]])]
    points = np.array([[0.0], [0.1], [0.4], [3.0]])
    three = points[[0, 1, 3]]
    codes, _, report = resolve_collisions(quantised(three, books), (1, 3), "reassign", squared(three, books))
    assert codes.tolist() == [[0, 0], [0, 1], [0, 2]]
    assert (report["changed_items"], report["changed_prefixes"], report["colliding_items"]) == (1, 0, 2)
    assert report["distortion_before"] == pytest.approx(0.01 / 3)
    assert report["distortion_after"] == pytest.approx(0.81 / 3)
    with pytest.raises(ValueError, match=r"4 items, but levels of \(1, 3\) codes make 3 SIDs"):
        resolve_collisions(quantised(points, books), (1, 3), "reassign", squared(points, books))


def test_prefixes_without_a_collision_stay_as_they_are_even_off_their_nearest_code() -> None:
    codes = np.array([[0, 2], [1, 0], [1, 0]])
    points = np.zeros((3, 1))
    books = [np.zeros((2, 1)), np.array([[0.0], [1.0], [2.0]])]
    found, _ = reassign(codes, (2, 3), squared(points, books))
    assert found[0].tolist() == [0, 2]
    assert sorted(found[1:, 1].tolist()) == [0, 1]


def test_without_costs_as_few_codes_change_as_possible() -> None:
    codes = np.array([[0, 1], [0, 1], [0, 0], [1, 1]])
    found, _ = reassign(codes, (2, 3))
    assert distinct(found)
    assert int((found != codes).sum()) == 1
    assert changed_levels(codes, (2, 3))(np.array([3]), np.array([[0, 1]]), 1).tolist() == [[2.0, 1.0, 2.0]]


def test_one_level_alone() -> None:
    found, _ = reassign(np.array([[1], [1], [1]]), (3,))
    assert sorted(found[:, 0].tolist()) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"3 items, but levels of \(2,\) codes make 2 SIDs"):
        reassign(np.array([[1], [1], [1]]), (2,))


def test_fixed_items_never_move() -> None:
    codes = np.array([[0, 0], [0, 0], [0, 1], [0, 0]])
    fixed = np.array([True, True, False, False])  # two old items share a SID already: theirs to keep
    found = assign_last_level(codes, (1, 4), fixed)
    assert found[:2].tolist() == [[0, 0], [0, 0]]
    assert found[2].tolist() == [0, 1]
    assert found[3, 1] in (2, 3)


def test_large_problems_are_cut_into_batches_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    points, books = rng.normal(size=(60, 2)), [rng.normal(size=(4, 2)), rng.normal(size=(40, 2))]
    codes = quantised(points, books)
    whole, _ = reassign(codes, (4, 40), squared(points, books))
    monkeypatch.setattr("sidgym.sid.reassign.COST_ENTRIES", 100)
    parts, _ = reassign(codes, (4, 40), squared(points, books))
    assert np.array_equal(whole, parts)
    assert (whole != codes).any()


def test_costs_that_are_not_finite_are_refused() -> None:
    def broken(rows: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
        return np.full((len(rows), 3), np.nan)

    with pytest.raises(ValueError, match="not finite"):
        reassign(np.array([[0], [0]]), (3,), broken)
    with pytest.raises(ValueError, match=r"shape \(2, 4\), got \(2, 3\)"):
        reassign(np.array([[0], [0]]), (4,), broken)
