"""The array trie against a trie of plain Python dicts."""

import pickle
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.sid import trie as trie_module
from sidgym.sid.trie import Trie, pack_rows


class DictTrie:
    """What a trie means, written without arrays: prefixes and the items below them."""

    def __init__(self, codes: np.ndarray, items: set[int]) -> None:
        self.below: dict[tuple[int, ...], list[int]] = {}
        for item in sorted(items):
            row = tuple(int(c) for c in codes[item])
            for length in range(len(row) + 1):
                self.below.setdefault(row[:length], []).append(item)

    def children(self, prefix: tuple[int, ...]) -> set[int]:
        return {p[-1] for p in self.below if len(p) == len(prefix) + 1 and p[:-1] == prefix}


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...], np.ndarray, np.ndarray]:
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    row = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    codes = np.array(draw(st.lists(row, min_size=1, max_size=25)), dtype=np.int64)
    items = st.lists(st.integers(0, len(codes) - 1), min_size=1, max_size=len(codes))
    return codes, sizes, np.array(draw(items)), np.array(draw(items))


def all_rows(sizes: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.meshgrid(*(np.arange(s) for s in sizes), indexing="ij"), -1).reshape(-1, len(sizes))


def assert_same(trie: Trie, plain: DictTrie, sizes: tuple[int, ...]) -> None:
    rows = all_rows(sizes)
    path = trie.path(torch.from_numpy(rows))
    assert path.shape == (len(rows), len(sizes) + 1)
    for level in range(len(sizes)):
        mask = trie.children_mask(path[:, level], level)
        assert mask.shape == (len(rows), sizes[level])
        for row, nodes, allowed in zip(rows, path, mask):
            prefix = tuple(int(c) for c in row[:level])
            assert (int(nodes[level]) >= 0) == (prefix in plain.below)
            assert set(allowed.nonzero()[:, 0].tolist()) == plain.children(prefix)
    leaves = trie.leaf_of(torch.from_numpy(rows))
    for row, leaf, items in zip(rows, leaves.tolist(), trie.items_of(leaves).tolist()):
        expected = plain.below.get(tuple(int(c) for c in row), [])
        assert (leaf >= 0) == bool(expected)
        assert items == expected + [-1] * (trie.max_leaf_items - len(expected))
    assert trie.max_leaf_items == max(len(v) for k, v in plain.below.items() if len(k) == len(sizes))


@settings(max_examples=40, deadline=None)
@given(tables())
def test_agrees_with_dict_trie(case: tuple[np.ndarray, tuple[int, ...], np.ndarray, np.ndarray]) -> None:
    codes, sizes, some, other = case
    trie, plain = Trie.from_codes(codes, sizes), DictTrie(codes, set(range(len(codes))))
    assert_same(trie, plain, sizes)
    assert trie.num_nodes == len(plain.below)
    restricted = trie.restrict(torch.from_numpy(some))
    assert_same(restricted, DictTrie(codes, set(some.tolist())), sizes)
    both = set(some.tolist()) & set(other.tolist())
    if both:
        assert_same(restricted.restrict(other), DictTrie(codes, both), sizes)
    else:
        with pytest.raises(ValueError, match="no allowed item"):
            restricted.restrict(other)
    assert_same(trie, plain, sizes)


@settings(max_examples=60, deadline=None)
@given(tables(), st.sampled_from([0, 1, 4, 10, 30]))
def test_searching_and_looking_up_agree(
    case: tuple[np.ndarray, tuple[int, ...], np.ndarray, np.ndarray], entries: int
) -> None:
    codes, sizes, some, _ = case
    looked_up = Trie.from_codes(codes, sizes)
    with mock.patch.object(trie_module, "DENSE_ENTRIES", entries):
        searched = Trie.from_codes(codes, sizes)
        assert_same(searched, DictTrie(codes, set(range(len(codes)))), sizes)
        assert_same(searched.restrict(some), DictTrie(codes, set(some.tolist())), sizes)
        # Every node there is and some that are not, with codes beyond both ends.
        nodes = torch.arange(-2, searched.num_nodes).repeat_interleave(max(sizes) + 4)
        along = torch.arange(-2, max(sizes) + 2).repeat(searched.num_nodes + 2)
        assert torch.equal(searched.step(nodes, along), looked_up.step(nodes, along))
        some_trie = looked_up.restrict(some)
        assert torch.equal(searched.restrict(some).step(nodes, along), some_trie.step(nodes, along))


def test_a_level_that_is_known_changes_nothing() -> None:
    codes = np.stack(np.unravel_index(np.random.default_rng(0).permutation(4**4)[:60], (4,) * 4), axis=1)
    for entries in (0, 4, 20, 2**25):
        with mock.patch.object(trie_module, "DENSE_ENTRIES", entries):
            trie = Trie.from_codes(codes, (4,) * 4)
            for level in range(4):
                nodes = torch.arange(int(trie.level_start[level]), int(trie.level_start[level + 1]))
                nodes = torch.cat([nodes, torch.tensor([-1])])[:, None].expand(-1, 4)
                along = torch.arange(4).expand_as(nodes)
                expected = trie.step(nodes, along)
                assert torch.equal(trie.step(nodes, along, level), expected)
                assert torch.equal(expected >= 0, trie.children_mask(nodes[:, 0], level))


def test_lookup_tables_are_shared_by_restrictions_and_not_stored() -> None:
    trie = example()
    assert len(pickle.dumps(trie)) == len(pickle.dumps(example()))
    before = len(pickle.dumps(trie))
    trie.leaf_of(torch.tensor([[0, 1, 2]]))
    assert len(pickle.dumps(trie)) == before
    part = trie.restrict(np.array([0]))
    assert part._dense is trie._dense
    assert part.leaf_of(torch.tensor([[0, 1, 2], [1, 0, 0]])).tolist() == [0, -1]
    assert trie.to("cpu") is trie
    assert pickle.loads(pickle.dumps(trie)).content_hash() == trie.content_hash()


def test_codes_of_another_depth_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 3 codes a row"):
        example().leaf_of(torch.tensor([0, 1]))


@settings(max_examples=40, deadline=None)
@given(tables())
def test_structure(case: tuple[np.ndarray, tuple[int, ...], np.ndarray, np.ndarray]) -> None:
    codes, sizes, _, _ = case
    trie = Trie.from_codes(codes, sizes)
    assert trie.level_start.shape == (len(sizes) + 2,)
    assert trie.level_start[-1] == trie.num_nodes
    assert trie.code[0] == -1
    assert trie.parent[0] == -1
    assert sorted(trie.leaf_items.tolist()) == list(range(len(codes)))
    for node in range(trie.num_nodes):
        children = range(int(trie.child_start[node]), int(trie.child_start[node + 1]))
        assert all(int(trie.parent[child]) == node for child in children)
        inner = node < int(trie.level_start[-2])
        assert (len(children) > 0) == inner
        below = trie.code[children.start : children.stop].tolist()
        assert below == sorted(set(below))


def example() -> Trie:
    return Trie.from_codes(np.array([[0, 1, 2], [0, 1, 2], [1, 0, 0], [1, 0, 3]]), (2, 2, 4))


def test_missing_nodes_stay_missing() -> None:
    trie = example()
    nodes = torch.tensor([[-1, 1], [2, -1]])
    mask = trie.children_mask(nodes, 1)
    assert mask.tolist() == [[[False, False], [False, True]], [[True, False], [False, False]]]
    assert trie.children_mask(torch.tensor([-1, 0]), 0).tolist() == [[False, False], [True, True]]
    # Node 1 has a child along code 1; 4 codes on, node 0 must not reach it with code 5, nor node 2 with code -3.
    assert trie.step(torch.tensor([1, 0, 2, 0, -1]), torch.tensor([1, 5, -3, 1, 5])).tolist() == [3, -1, -1, 2, -1]
    leaf_node = trie.path(torch.tensor([0, 1, 2]))[-1]
    assert trie.step(leaf_node, torch.tensor(0)) == -1
    assert trie.path(torch.tensor([0, 0, 2])).tolist() == [0, 1, -1, -1]
    assert trie.items_of(torch.tensor([[0, -1]])).tolist() == [[[0, 1], [-1, -1]]]
    assert trie.leaf_of_node(torch.tensor([0, -1, int(leaf_node)])).tolist() == [-1, -1, 0]


@pytest.mark.parametrize("collide", [False, True])
def test_numbers_beyond_the_trie_are_nothing(collide: bool) -> None:
    codes = np.array([[0, 1, 2], [0, 1, 2 if collide else 3], [1, 0, 0], [1, 0, 3]])
    whole = Trie.from_codes(codes, (2, 2, 4))
    for trie in (whole, whole.restrict(np.array([0, 2]))):
        leaves, nodes = trie.num_leaves, trie.num_nodes
        assert (trie.items_of(torch.tensor([leaves, 999, -1, -2])) == -1).all()
        assert trie.items_of(torch.tensor([0]))[0, 0] == 0
        assert trie.reaches_one(torch.tensor([nodes - 1, nodes, 999, -1, -2]))[1:].tolist() == [False] * 4
        assert trie.leaf_of_node(torch.tensor([nodes - 1, nodes, 999, -1, -2])).tolist() == [leaves - 1, -1, -1, -1, -1]


@settings(max_examples=40, deadline=None)
@given(tables(), st.sampled_from([0, 2**25]), st.sampled_from([0, 2**14]), st.data())
def test_dead_rows_are_empty_and_change_no_other(
    case: tuple[np.ndarray, tuple[int, ...], np.ndarray, np.ndarray], entries: int, slots: int, data: st.DataObject
) -> None:
    codes, sizes, some, _ = case
    with mock.patch.multiple(trie_module, DENSE_ENTRIES=entries, FEW_SLOTS=slots):
        whole = Trie.from_codes(codes, sizes)
        for trie in (whole, whole.restrict(some)):
            for level in range(trie.depth):
                nodes = whole.path(torch.from_numpy(codes))[:, level]
                dead = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(nodes), max_size=len(nodes))))
                mask = trie.children_mask(torch.where(dead, -1, nodes), level)
                assert torch.equal(mask, trie.children_mask(nodes, level) & ~dead[:, None])


def test_node_of_another_level_is_refused() -> None:
    with pytest.raises(ValueError, match="another level"):
        example().children_mask(torch.tensor([0]), 1)
    with pytest.raises(ValueError, match="expected a level"):
        example().children_mask(torch.tensor([0]), 3)


def test_restrict_takes_masks_and_refuses_nonsense() -> None:
    trie = example()
    by_mask = trie.restrict(np.array([False, True, False, True]))
    assert by_mask.content_hash() == trie.restrict(np.array([3, 1, 1])).content_hash() != trie.content_hash()
    assert by_mask.max_leaf_items == 1
    assert by_mask.edge_code is trie.edge_code
    with pytest.raises(ValueError, match="no allowed item"):
        trie.restrict(np.array([]))
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        trie.restrict(np.array([0, 4]))
    with pytest.raises(ValueError, match="mask of shape"):
        trie.restrict(np.array([True]))
    with pytest.raises(ValueError, match="integer item numbers"):
        trie.restrict(np.array([0.5]))


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        (np.zeros((0, 2), int), (2, 2), "N and L at least 1"),
        (np.zeros(3, int), (2,), "N and L at least 1"),
        (np.zeros((3, 2)), (2, 2), "expected integers"),
        (np.zeros((3, 2), int), (2,), "expected 2 positive numbers"),
        (np.array([[0, 2]]), (2, 2), "level 1 expects"),
        (np.array([[-1, 0]]), (2, 2), "level 0 expects"),
    ],
)
def test_bad_tables_are_refused(codes: np.ndarray, sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trie.from_codes(codes, sizes)


def test_rows_too_wide_for_one_key_still_sort() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, (60, 5)) * (2**20 - 1) // 2
    key = pack_rows(codes, (2**20,) * 5)
    assert np.argsort(key, kind="stable").tolist() == np.lexsort(codes.T[::-1]).tolist()
    assert len(np.unique(key)) == len(np.unique(codes, axis=0))


def test_hash_sees_every_change() -> None:
    codes = np.array([[0, 1], [1, 0]])
    base = Trie.from_codes(codes, (2, 2)).content_hash()
    assert Trie.from_codes(codes.copy(), [2, 2]).to("cpu").content_hash() == base
    assert Trie.from_codes(codes, (2, 3)).content_hash() != base
    assert Trie.from_codes(codes[::-1], (2, 2)).content_hash() != base


@settings(max_examples=30, deadline=None)
@given(tables(), st.data())
def test_nodes_that_reach_one_sid_only(
    case: tuple[np.ndarray, tuple[int, ...], np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    codes, sizes, *_ = case
    trie = Trie.from_codes(codes, sizes)
    kept = data.draw(st.lists(st.integers(0, len(codes) - 1), min_size=1, unique=True))
    for part, rows in ((trie, codes), (trie.restrict(np.array(kept)), codes[kept])):
        prefixes = [tuple(row[:level]) for row in np.unique(rows, axis=0).tolist() for level in range(len(sizes) + 1)]
        for row in codes.tolist():
            expected = [prefixes.count(tuple(row[:level])) == 1 for level in range(len(sizes) + 1)]
            assert part.reaches_one(trie.path(torch.tensor(row))).tolist() == expected
    assert not bool(trie.reaches_one(torch.tensor(-1)))
