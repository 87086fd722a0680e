"""What is drawn of a trie: nothing is lost, nothing is counted twice, and what is left out is said."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidgym.launch.sunburst import cut_sectors, shortened
from sidgym.sid.inspection import prefix_numbers


@st.composite
def codes(draw):
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    row = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    return np.array(draw(st.lists(row, min_size=1, max_size=30))), sizes


@given(codes(), st.integers(1, 60), st.integers(1, 5))
def test_angles_add_up_however_much_is_cut(table, most, first_ring):
    rows, sizes = table
    drawn = cut_sectors(prefix_numbers(rows, sizes), most, first_ring)
    assert drawn.parent[0] == -1
    assert drawn.items[0] == len(rows)
    assert (drawn.parent[1:] < np.arange(1, len(drawn.parent))).all()
    below = np.bincount(drawn.parent[1:], weights=drawn.items[1:], minlength=len(drawn.parent))
    inner = np.unique(drawn.parent[1:])
    assert (below[inner] == drawn.items[inner]).all()
    ends = ~np.isin(np.arange(len(drawn.parent)), inner)
    assert drawn.items[ends].sum() == len(rows)
    assert drawn.shown_items == drawn.is_item.sum()
    for sector in np.flatnonzero((drawn.rest == 0) & ~drawn.is_item):
        prefix = rows[drawn.first[sector], : drawn.depth[sector]]
        assert drawn.items[sector] == (rows[:, : drawn.depth[sector]] == prefix).all(axis=1).sum()
    assert (drawn.items[drawn.is_item] == 1).all()


@given(codes())
def test_everything_is_drawn_where_there_is_room(table):
    rows, sizes = table
    drawn = cut_sectors(prefix_numbers(rows, sizes), 10_000, 10_000)
    assert sorted(drawn.first[drawn.is_item]) == list(range(len(rows)))
    assert not drawn.rest.any()
    prefixes = {tuple(row[:depth]) for row in rows.tolist() for depth in range(1, len(sizes) + 1)}
    shared = [p for p in prefixes if (rows[:, : len(p)] == p).all(axis=1).sum() > 1]
    assert len(drawn.parent) == len(rows) + (len(shared) + 1 if len(rows) > 1 else 0)


def test_a_prefix_of_one_item_is_that_item_and_colliding_items_stand_side_by_side():
    rows = np.array([[0, 0], [0, 1], [1, 3], [0, 1]])
    drawn = cut_sectors(prefix_numbers(rows, (2, 4)))
    sectors = list(zip(drawn.depth.tolist(), drawn.items.tolist(), drawn.is_item.tolist(), drawn.first.tolist()))
    assert sectors == [(0, 4, False, 0), (1, 3, False, 0), (2, 2, False, 1),
                       (2, 1, True, 0), (3, 1, True, 1), (1, 1, True, 2), (3, 1, True, 3)]  # fmt: skip
    assert drawn.parent.tolist() == [-1, 0, 1, 1, 2, 0, 2]


def test_a_large_catalogue_is_cut_to_its_fullest_branches():
    rng = np.random.default_rng(0)
    rows = np.minimum(rng.geometric(0.02, (50_000, 3)) - 1, 255)
    drawn = cut_sectors(prefix_numbers(rows, (256,) * 3), 2_000, 100)
    kept = drawn.rest == 0
    assert 1_000 < kept.sum() <= 2_000
    first = kept & (drawn.depth == 1) & ~drawn.is_item
    counts = np.bincount(rows[:, 0], minlength=256)
    assert np.sort(drawn.items[first])[::-1].tolist() == np.sort(counts)[::-1][:100].tolist()
    grey = np.flatnonzero((drawn.rest > 0) & (drawn.parent == 0))
    assert drawn.rest[grey].tolist() == [(counts > 0).sum() - 100]
    assert drawn.items[grey].tolist() == [np.sort(counts)[::-1][100:].sum()]
    assert drawn.shown_items > 100


@pytest.mark.parametrize(("text", "short"), [("a\n b", "a b"), ("abcdefgh", "abcd…"), ("abc d ef", "abc…"), ("", "")])
def test_titles_are_one_short_line(text, short):
    assert shortened(text, 5) == short
