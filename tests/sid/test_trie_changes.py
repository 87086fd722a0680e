"""Tries that change: restricting, toggling, adding and removing give what building anew gives, on any kind of table."""

import hashlib
import pickle
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.sid import trie as trie_module
from sidgym.sid.trie import Trie
from sidgym.sid.trie_arrays import Ascending, sort_rows

SHAPES = [(3, 4, 2), (40, 40), (2, 300, 5), (1, 70_000), (7,), (300, 2, 2, 3), (2**31, 2**20, 3)]
"""Few and many codes, one and several bytes a code, blocks that are full and that are not, keys of two passes."""


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...], np.random.Generator]:
    """A table whose codes are drawn evenly or heaped on few, so that some items collide."""
    sizes = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = draw(st.integers(1, 400))
    heaped = draw(st.booleans())
    codes = np.stack([rng.integers(0, min(size, 3) if heaped else size, rows) for size in sizes], axis=1)
    return codes, sizes, rng


def assert_equal(one: Trie, other: Trie, rng: np.random.Generator, codes: np.ndarray) -> None:
    """The same trie to the last array, and the same answers."""
    assert one.content_hash() == other.content_hash()
    for name in ("num_items", "num_nodes", "num_leaves", "max_leaf_items", "num_allowed_items", "num_allowed_leaves"):
        assert getattr(one, name) == getattr(other, name), name
    assert torch.equal(one.parent, other.parent)
    assert (one.allowed is None) == (other.allowed is None)
    assert one.allowed is None or torch.equal(one.allowed, other.allowed)
    nodes = torch.arange(-1, one.num_nodes)
    assert torch.equal(one.reaches_one(nodes), other.reaches_one(nodes))
    leaves = torch.arange(-1, one.num_leaves)
    assert torch.equal(one.items_of(leaves), other.items_of(leaves))
    rows = torch.from_numpy(np.concatenate([codes, rng.permuted(codes, axis=0)]))
    assert torch.equal(one.path(rows), other.path(rows))


def assert_means(part: Trie, whole: Trie, codes: np.ndarray, items: np.ndarray) -> None:
    """A restricted trie says of every SID and prefix what the trie of its items alone says, with their own numbers."""
    alone = Trie.from_codes(codes[items], part.sizes)
    rows = torch.from_numpy(codes)
    mine, theirs = part.path(rows), alone.path(rows)
    assert torch.equal(mine >= 0, theirs >= 0)
    assert torch.equal(part.reaches_one(mine), alone.reaches_one(theirs))
    found = alone.items_of(alone.leaf_of(rows))
    expected = torch.where(found >= 0, torch.from_numpy(items)[found.clamp(min=0)], -1)
    assert torch.equal(part.items_of(part.leaf_of(rows)), expected)
    assert part.num_allowed_items == len(items)
    assert part.num_allowed_leaves == alone.num_leaves
    if max(part.sizes) < 1000:
        for level in range(part.depth):
            assert torch.equal(part.children_mask(mine[:, level], level), alone.children_mask(theirs[:, level], level))
    assert torch.equal(part.leaf_items.long(), whole.leaf_items[part.view.kept(part.bounds[-2])].long())
    assert part.leaf_start.diff().tolist() == [
        int((row >= 0).sum()) for row in part.items_of(torch.arange(part.num_leaves))
    ]


@settings(max_examples=100, deadline=None)
@given(tables(), st.sampled_from([0, 100, 2**25]))
def test_restricting_is_building_from_the_items_that_stay(
    case: tuple[np.ndarray, tuple[int, ...], np.random.Generator], entries: int
) -> None:
    codes, sizes, rng = case
    slots = int(rng.choice([0, 2**14]))
    with mock.patch.multiple(trie_module, DENSE_ENTRIES=entries, FEW_SLOTS=slots):
        whole = Trie.from_codes(codes, sizes)
        mask = rng.random(len(codes)) < rng.random()
        mask[rng.integers(len(codes))] = True
        items = np.flatnonzero(mask)
        by_mask = whole.restrict(mask)
        assert_means(by_mask, whole, codes, items)
        for few in (0, 10**9):  # by passes, and item by item
            with mock.patch.object(trie_module, "FEW", few):
                assert_equal(whole.restrict(rng.permutation(np.repeat(items, 2))), by_mask, rng, codes)
                assert_equal(by_mask.restrict(items[:1]), whole.restrict(items[:1]), rng, codes)


@settings(max_examples=100, deadline=None)
@given(tables())
def test_toggling_is_restricting_to_the_changed_set(
    case: tuple[np.ndarray, tuple[int, ...], np.random.Generator],
) -> None:
    codes, sizes, rng = case
    whole = Trie.from_codes(codes, sizes)
    mask = rng.random(len(codes)) < 0.5
    mask[0] = True
    part = whole.restrict(mask)
    for _ in range(3):
        kind = rng.integers(0, 3, len(codes))  # 1 comes, 2 goes, whether it was there or not
        kind[0] = 1
        before, hashed = part, part.content_hash()
        add = np.flatnonzero(kind == 1)
        part = part.toggle(rng.permutation(np.repeat(add, 2)), remove=kind == 2)
        mask = (mask | (kind == 1)) & (kind != 2)
        assert_equal(part, whole.restrict(mask), rng, codes)
        assert part.item_at is whole.item_at
        del before.__dict__["_hash"]
        assert before.content_hash() == hashed  # and what was there stays as it was
    assert_equal(part.toggle(), part, rng, codes)
    everything = part.toggle(add=np.arange(len(codes)))
    assert everything.content_hash() == whole.content_hash()
    if len(codes) > 1:
        assert_equal(whole.toggle(remove=[0]), whole.restrict(np.arange(len(codes)) > 0), rng, codes)


def test_toggle_refuses_what_it_cannot_mean() -> None:
    trie = Trie.from_codes(np.array([[0, 1], [1, 0], [1, 1]]), (2, 2))
    part = trie.restrict(np.array([0]))
    with pytest.raises(ValueError, match=r"got both for \[2\]"):
        part.toggle(add=np.array([1, 2]), remove=np.array([2]))
    with pytest.raises(ValueError, match="toggle: no allowed item"):
        part.toggle(remove=np.array([0]))
    with pytest.raises(ValueError, match=r"toggle: item numbers are in \[0, 3\)"):
        part.toggle(add=np.array([3]))
    with pytest.raises(ValueError, match="not restricted"):
        part.add(np.array([[0, 0]]))
    with pytest.raises(ValueError, match="not restricted"):
        part.remove(np.array([0]))
    with pytest.raises(ValueError, match="all 3"):
        trie.remove(np.arange(3))
    with pytest.raises(ValueError, match="remove: item numbers"):
        trie.remove(np.array([-1]))
    with pytest.raises(ValueError, match="level 1 expects"):
        trie.add(np.array([[0, 2]]))


@settings(max_examples=100, deadline=None)
@given(tables(), st.data())
def test_adding_and_removing_is_building_anew(
    case: tuple[np.ndarray, tuple[int, ...], np.random.Generator], data: st.DataObject
) -> None:
    codes, sizes, rng = case
    trie = Trie.from_codes(codes, sizes)
    new = np.stack([rng.integers(0, size, data.draw(st.shared(st.integers(1, 60), key="m"))) for size in sizes], axis=1)
    new[::3] = codes[rng.integers(0, len(codes), len(new[::3]))]  # some on leaves that exist
    more = trie.add(new)
    rows = np.concatenate([codes, new])
    assert_equal(more, Trie.from_codes(rows, sizes), rng, rows)
    assert_same_arrays(more, Trie.from_codes(rows, sizes))
    gone = rng.permutation(len(rows))[: rng.integers(0, len(rows))]
    less, stay = more.remove(np.repeat(gone, 2)), np.delete(rows, gone, axis=0)
    assert_equal(less, Trie.from_codes(stay, sizes), rng, stay)
    assert_same_arrays(less, Trie.from_codes(stay, sizes))
    assert trie.content_hash() == Trie.from_codes(codes, sizes).content_hash()


def assert_same_arrays(one: Trie, other: Trie) -> None:
    for name in ("edge_code", "item_at", "place_of", "extra_leaf", "level_start"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert [start.all().tolist() for start in one.starts] == [start.all().tolist() for start in other.starts]
    assert (one.widest, one.most_items) == (other.widest, other.most_items)


@settings(max_examples=20, deadline=None)
@given(tables())
def test_arrays_are_what_their_comments_say(case: tuple[np.ndarray, tuple[int, ...], np.random.Generator]) -> None:
    codes, sizes, _ = case
    trie = Trie.from_codes(codes.astype(np.uint32), sizes)
    order = np.lexsort(codes.T[::-1])
    assert trie.item_at.tolist() == trie.leaf_items.tolist() == order.tolist()
    assert trie.item_at[trie.place_of].tolist() == list(range(len(codes)))
    leaves = trie.leaf_of(torch.from_numpy(codes))
    assert torch.equal(trie.codes_of(leaves), torch.from_numpy(codes))
    assert torch.equal(trie.leaf_at(trie.place_of.long()), leaves)
    assert torch.equal(trie.first_places()[:-1], trie.first_place(torch.arange(trie.num_leaves)))
    inner = int(trie.level_start[-2])
    node = torch.arange(1, trie.num_nodes)
    parent = trie.parent[1:]
    assert bool((trie.child_start[parent] <= node).all())
    assert bool((trie.child_start[parent + 1] > node).all())
    assert trie.child_start[inner:].tolist() == [trie.num_nodes] * (trie.num_leaves + 1)


def test_content_hash_is_that_of_the_plain_arrays() -> None:
    """Checkpoints hold it: SHA-256 of sizes, N and the five plain arrays as little-endian int64."""
    codes = np.array([[0, 1, 2], [0, 1, 2], [1, 0, 0], [1, 0, 3]])
    trie = Trie.from_codes(codes, (2, 2, 4))
    golden = (
        "1843b87b6caccba8236fa186663a57ce57c0a52456623adf2162354014413155",
        "cbe9adfd81bb83c94e750f6565ce4286de0240d0f00209282844d42527e81b39",
    )
    for part, expected in zip((trie, trie.restrict(np.array([1, 3]))), golden):
        digest = hashlib.sha256(b"((2, 2, 4), 4)")
        for array in (part.level_start, part.child_start, part.code, part.leaf_start, part.leaf_items):
            digest.update(array.numpy().astype("<i8").tobytes())
        assert part.content_hash() == digest.hexdigest() == expected


def test_pickles_and_copies_hold_what_is_allowed() -> None:
    codes = np.random.default_rng(0).integers(0, 9, (50, 3))
    for part in (Trie.from_codes(codes, (9, 9, 9)).restrict(np.arange(7)), Trie.from_codes(codes[:, :1], (9,))):
        twin = pickle.loads(pickle.dumps(part))
        assert twin.content_hash() == part.content_hash()
        again = twin.toggle(add=[20]).toggle(remove=[20]).restrict(np.arange(7))
        assert again.content_hash() == part.restrict(np.arange(7)).content_hash()


def test_bytes_count_tables_and_what_restrict_added() -> None:
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, 200, 20_000) for _ in range(3)], axis=1)
    trie = Trie.from_codes(codes, (200,) * 3)
    stored = trie.nbytes
    assert stored == trie.stored_bytes < 13 * trie.num_items
    trie.step(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    assert trie.nbytes == stored + trie._dense[1].nbytes
    part = trie.restrict(np.arange(10_000))
    added = part.nbytes - trie.nbytes
    assert 0 < added < 4 * trie.num_items
    part.reaches_one(torch.zeros(1, dtype=torch.long))
    assert part.nbytes == trie.nbytes + added  # the counters serve as they are


def test_a_dense_table_stays_within_its_budget() -> None:
    rng = np.random.default_rng(0)
    trie = Trie.from_codes(rng.integers(0, 100, (30_000, 3)), (100,) * 3)
    with mock.patch.object(trie_module, "FREE_BYTES", 0):
        assert trie.nbytes <= 16 * trie.num_items
        trie.leaf_of(torch.zeros(1, 3, dtype=torch.long))
        trie.reaches_one(torch.zeros(1, dtype=torch.long))
        assert trie.nbytes <= 16 * trie.num_items
    assert trie._dense[0] < Trie.from_codes(rng.integers(0, 100, (30_000, 3)), (100,) * 3)._dense[0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 70_000), min_size=1, max_size=200), st.integers(0, 1000))
def test_ascending_numbers_pack_and_find_their_owners(gaps: list[int], first: int) -> None:
    numbers = np.concatenate([[first], first + np.cumsum(gaps)])
    packed = Ascending.of(numbers)
    assert packed.all().tolist() == numbers.tolist()
    assert packed.all(since=first).tolist() == (numbers - first).tolist()
    assert packed.at(torch.arange(len(numbers))).tolist() == numbers.tolist()
    asked = np.unique(np.concatenate([numbers[:-1], numbers[1:] - 1]))
    expected = np.searchsorted(numbers, asked, side="right") - 1
    assert packed.owner(torch.from_numpy(asked)).tolist() == expected.tolist()


def test_sorting_refuses_numbers_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"at most 2\^31"):
        sort_rows(np.zeros((3, 1), np.int64), (2**63,))


def test_masks_where_one_node_has_most_children() -> None:
    """Then rows are written by their own number of children instead of the widest node's."""
    codes = np.concatenate([np.stack([np.zeros(90, int), np.arange(90)], 1), [[c, c % 7] for c in range(1, 100)]])
    whole = Trie.from_codes(codes, (100, 100))
    with mock.patch.multiple(trie_module, DENSE_ENTRIES=0, FEW_SLOTS=0):
        for trie, items in ((whole, np.arange(len(codes))), (whole.restrict(np.arange(50, 150)), np.arange(50, 150))):
            nodes = trie.path(torch.from_numpy(codes))[:, 1]
            nodes = torch.cat([nodes[nodes > 1], torch.tensor([1, -1])])
            assert trie.widest[1] * len(nodes) > 2 * int(trie.child_start.diff()[nodes].sum())
            mask = trie.children_mask(nodes, 1)
            first = trie.code[nodes.clamp(min=0)]
            expected = np.zeros((len(nodes), 100), dtype=bool)
            for c0, c1 in codes[items]:
                expected[first.numpy() == c0, c1] = True
            assert mask.tolist() == expected.tolist()
