"""Collision policies: what each promises, and that none is silent."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.sid.collisions import COLLISIONS, forbid, number_in_group, resolve_collisions

CODES = np.array([[0, 1], [1, 0], [0, 1], [0, 1], [1, 0], [1, 1]])
SIZES = (2, 2)


def ban_code_zero(codes: np.ndarray, sizes: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """A policy from outside the tree."""
    return codes + 1, tuple(size + 1 for size in sizes)


def lose_an_item(codes: np.ndarray, sizes: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """A broken policy from outside the tree."""
    return codes[1:], sizes


@given(st.lists(st.integers(-2, 3), max_size=20))
def test_rows_are_numbered_inside_their_group(group: list[int]) -> None:
    assert number_in_group(np.array(group, np.int64)).tolist() == [group[:i].count(one) for i, one in enumerate(group)]


@pytest.mark.parametrize("policy", sorted(COLLISIONS))
def test_contract(policy: str) -> None:
    distinct = np.array([[0, 1], [1, 0], [1, 1]])
    codes, sizes, report = resolve_collisions(distinct, SIZES, policy)
    assert codes[:, :2].tolist() == distinct.tolist()
    assert sizes[:2] == SIZES
    assert codes.dtype == np.int64
    weighed = {"changed_items": 0, "changed_prefixes": 0} if policy == "reassign" else {}
    assert report == {
        **weighed,
        "policy": policy,
        "items": 3,
        "colliding_items": 0,
        "distinct_sids": 3,
        "largest_leaf": 1,
        "colliding_items_after": 0,
    }


def test_extra_level_counts_inside_each_collision() -> None:
    codes, sizes, report = resolve_collisions(CODES, SIZES, "extra_level")
    assert codes[:, :2].tolist() == CODES.tolist()
    assert codes[:, 2].tolist() == [0, 0, 1, 2, 1, 0]
    assert sizes == (2, 2, 3)
    assert (report["colliding_items"], report["distinct_sids"], report["largest_leaf"]) == (5, 3, 3)
    assert report["colliding_items_after"] == 0


def test_keep_changes_nothing_and_says_so() -> None:
    codes, sizes, report = resolve_collisions(CODES, SIZES, "keep")
    assert codes.tolist() == CODES.tolist()
    assert sizes == SIZES
    assert report["colliding_items"] == report["colliding_items_after"] == 5


def test_forbid_names_the_items() -> None:
    with pytest.raises(ValueError, match=r"5 of 6 items share a SID.*\(0, 2\), \(2, 3\), \(1, 4\)"):
        forbid(CODES, SIZES)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=40))
def test_extra_level_is_one_to_one_and_dense(rows: list[tuple[int, int]]) -> None:
    codes, sizes, _ = resolve_collisions(np.array(rows), (3, 2), "extra_level")
    seen: dict[tuple[int, ...], int] = {}
    for row in codes.tolist():
        prefix = tuple(row[:2])
        assert row[2] == seen.get(prefix, 0)
        seen[prefix] = row[2] + 1
    assert sizes == (3, 2, max(seen.values()))


def test_policies_from_outside() -> None:
    codes, sizes, _ = resolve_collisions(CODES, SIZES, f"{__name__}:ban_code_zero")
    assert codes.min() == 1
    assert sizes == (3, 3)
    with pytest.raises(ValueError, match="expected codes of 6 items, got 5"):
        resolve_collisions(CODES, SIZES, f"{__name__}:lose_an_item")
    with pytest.raises(ValueError, match="Did you mean 'forbid'"):
        resolve_collisions(CODES, SIZES, "forbit")
