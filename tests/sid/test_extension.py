"""New items of a finished table: old SIDs stay, new ones are free, and the table says what happened."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.sid.collisions import resolve_collisions
from sidgym.sid.extension import PLACERS, check_extends
from sidgym.sid.table import SidTable


def table_of(codes: np.ndarray, sizes: tuple[int, ...], policy: str) -> SidTable:
    placed, grown, report = resolve_collisions(codes, sizes, policy)
    ids = np.array([f"old{i}" for i in range(len(codes))])
    return SidTable(placed, grown, ids, {"tokenizer": "random", "collisions": report})


def shift_by_one(codes: np.ndarray, sizes: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """A policy from outside the tree that moves every item."""
    return (codes + 1) % np.array(sizes), sizes


def leave(codes: np.ndarray, sizes: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """A policy from outside the tree that moves none."""
    return codes, sizes


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["extra_level", "reassign", "keep"]))
def test_old_items_stay_and_new_ones_are_free(data: st.DataObject, policy: str) -> None:
    row = st.tuples(st.integers(0, 2), st.integers(0, 3))
    old = np.array(data.draw(st.lists(row, min_size=1, max_size=6)))
    new = np.array(data.draw(st.lists(row, min_size=1, max_size=6)))
    table = table_of(old, (3, 4), policy)
    names = [f"new{i}" for i in range(len(new))]
    grown = table.extend(names, new)
    assert np.array_equal(grown.codes[: len(old)], table.codes)
    assert grown.item_ids.tolist() == [*table.item_ids.tolist(), *names]
    assert grown.content_hash() != table.content_hash()
    check_extends(table, grown)
    if policy == "keep":
        assert np.array_equal(grown.codes[len(old) :], new)
    else:
        assert grown.collision_count() == 0
    if policy == "extra_level":
        assert np.array_equal(grown.codes[len(old) :, :2], new)
        assert np.array_equal(grown.codes, table_of(np.concatenate([old, new]), (3, 4), policy).codes)


def test_new_items_go_to_the_cheapest_free_code() -> None:
    table = table_of(np.array([[0, 0], [0, 1]]), (1, 4), "reassign")
    points, book = np.array([0.0, 2.6]), np.array([0.0, 1.0, 2.0, 3.0])

    def costs(rows: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
        return (points[rows, None] - (book if level else np.zeros(1))[None]) ** 2

    grown = table.extend(["x", "y"], np.array([[0, 0], [0, 3]]), costs)
    assert grown.codes[2:].tolist() == [[0, 2], [0, 3]]
    (entry,) = grown.metadata["extensions"]
    assert (entry["items"], entry["first_row"], entry["changed_items"]) == (2, 2, 1)
    assert entry["distortion_before"] == pytest.approx(0.08)
    assert entry["distortion_after"] == pytest.approx((4 + 0.16) / 2)
    with pytest.raises(ValueError, match="SIDs are free"):
        grown.extend(["z"], np.array([[0, 0]]), costs)


def test_codes_are_added_where_a_new_item_needs_them() -> None:
    table = table_of(np.array([[0, 0], [1, 1]]), (2, 2), "forbid")
    grown = table.extend(["x"], np.array([[2, 0]]))
    assert grown.sizes == (3, 2)
    assert table.extend(["x"], np.array([[0, 1]]), sizes=(4, 2)).sizes == (4, 2)
    counting = table_of(np.array([[0, 0], [0, 0]]), (1, 1), "extra_level")
    assert counting.extend(["x", "y"], np.array([[0, 0], [0, 0]])).codes[:, 2].tolist() == [0, 1, 2, 3]


def test_metadata_tells_every_extension_and_survives_the_disk(tmp_path: Path) -> None:
    table = table_of(np.array([[0, 0], [1, 1]]), (2, 2), "keep")
    once = table.extend(["x"], np.array([[0, 1]]), provenance={"file": "more.csv"})
    twice = once.extend(["y"], np.array([[0, 1]]))
    first, second = twice.metadata["extensions"]
    assert first["file"] == "more.csv"
    assert (first["base_hash"], second["base_hash"]) == (table.content_hash(), once.content_hash())
    assert second["colliding_items_after"] == 2
    assert "extensions" not in table.metadata
    twice.save(tmp_path)
    assert SidTable.load(tmp_path).metadata == json.loads(json.dumps(twice.metadata))


def test_policies_by_name() -> None:
    from sidgym.sid.collisions import COLLISIONS

    assert set(PLACERS) == set(COLLISIONS), "every policy says how it places new items"
    plain = SidTable(np.array([[0, 0], [1, 1]]), (2, 2), np.array(["a", "b"]))
    with pytest.raises(ValueError, match="give collisions, one of extra_level, forbid, keep, reassign"):
        plain.extend(["x"], np.array([[0, 0]]))
    assert plain.extend(["x"], np.array([[0, 0]]), collisions="reassign").codes[2].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"1 of 2 new items share a SID, first new items \[1\]"):
        plain.extend(["x", "y"], np.array([[0, 1], [0, 0]]), collisions="forbid")
    assert plain.extend(["x"], np.array([[0, 1]]), collisions=f"{__name__}:leave").num_items == 3
    with pytest.raises(ValueError, match="changed SIDs of old items"):
        plain.extend(["x"], np.array([[0, 1]]), collisions=f"{__name__}:shift_by_one")
    with pytest.raises(ValueError, match="weighs codes"):
        plain.extend(["x"], np.array([[0, 1]]), collisions="sidgym.sid.reassign:reassign")


@pytest.mark.parametrize(
    ("ids", "codes", "message"),
    [
        (["old0"], [[0, 0]], "1 items are in the table already"),
        (["x", "x"], [[0, 0], [1, 0]], "repeated ids"),
        (["x"], [[0, 0, 0]], r"expected codes of shape \(1, 2\)"),
        (["x", "y"], [[0, 0]], r"expected codes of shape \(2, 2\)"),
        (["x"], [[0, -1]], "level 1 expects"),
        ([], np.zeros((0, 2), int), "expected shape"),
    ],
)
def test_what_does_not_fit_is_refused(ids: list[str], codes: list[list[int]], message: str) -> None:
    table = table_of(np.array([[0, 0], [1, 1]]), (2, 2), "keep")
    with pytest.raises(ValueError, match=message):
        table.extend(ids, np.array(codes))


def test_other_tables_are_no_extensions() -> None:
    table = table_of(np.array([[0, 0], [1, 1]]), (2, 2), "keep")
    ids = np.array(["old0", "old1", "x"])
    more = np.array([[0, 0], [1, 1], [0, 1]])
    check_extends(table, SidTable(more, (2, 3), ids))
    with pytest.raises(ValueError, match=r"another SID than before, first \['old1'\]"):
        check_extends(table, SidTable(np.array([[0, 0], [1, 0], [0, 1]]), (2, 2), ids))
    with pytest.raises(ValueError, match="old table first"):
        check_extends(table, SidTable(more, (2, 2), ids[[2, 0, 1]]))
    with pytest.raises(ValueError, match="not taken away"):
        check_extends(table, SidTable(more[:, :1], (2,), ids))
