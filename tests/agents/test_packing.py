"""Plans of where tokens stand, against what can be counted one by one."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.agents.packing import PrefixTree, fill_rows, rows_pay, token_batches

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 6), st.integers(1, 4))
def test_the_tree_holds_every_distinct_prefix_once_behind_its_ancestors(seed, batch, count, levels):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, (batch, count, levels))
    # Some candidates can be read up to some code only.
    exists = np.arange(levels) <= rng.integers(0, levels, (batch, count, 1))
    tree = PrefixTree.build(codes, exists)
    for row in range(batch):
        prefixes = {tuple(codes[row, c, :n]) for c in range(count) for n in range(1, levels) if exists[row, c, n]}
        assert tree.nodes[row] == len(prefixes)
        place = {}
        for level in range(1, levels):
            for number in np.flatnonzero(tree.group[level] == row):
                assert tree.first[level][number] // count == row
                prefix = tuple(codes.reshape(-1, levels)[tree.first[level][number], :level])
                place[prefix] = tree.ancestors[level][number, -1]
                seen = [place[prefix[: n + 1]] for n in range(level)]
                assert tree.ancestors[level][number].tolist() == seen
        assert place.keys() == prefixes
        assert sorted(place.values()) == list(range(len(prefixes)))
        for c in range(count):
            for level in range(levels):
                if exists[row, c, level]:
                    found = tree.of[level].reshape(batch, count)[row, c]
                    assert tree.group[level][found] == row
                    first = codes.reshape(-1, levels)[tree.first[level][found], :level]
                    assert first.tolist() == codes[row, c, :level].tolist()


@settings(max_examples=40, deadline=None)
@given(SIZES)
def test_rows_hold_every_group_and_no_two_in_one_place(sizes):
    rows = fill_rows(np.array(sizes))
    taken = np.zeros((rows.count, rows.width), dtype=int)
    for row, start, size in zip(rows.row, rows.start, sizes):
        assert start + size <= rows.width
        taken[row, start : start + size] += 1
    assert taken.max() == 1
    assert taken.any(axis=1).all(), "no row is empty"
    assert taken.sum() == sum(sizes)
    assert rows.width == max(sizes)


def test_rows_are_taken_where_they_save_padding():
    nodes = np.full(16, 10)
    equal, mixed = np.full(16, 60), np.repeat([4, 60], 8)
    assert not rows_pay(fill_rows(equal + nodes), equal, nodes, 64)
    assert rows_pay(fill_rows(mixed + nodes), mixed, nodes, 64)
    long = mixed * 50
    assert not rows_pay(fill_rows(long + nodes), long, nodes, 64), "attention over long rows costs more than padding"


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 200), st.integers(0, 10_000))
def test_token_batches_hold_every_group_once_within_their_size(prompts, tokens, seed):
    lengths = np.array(prompts)
    nodes = np.random.default_rng(seed).integers(0, 20, len(lengths))
    batches = token_batches(lengths, nodes, tokens)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * (lengths[rows].max() + nodes[rows].max()) <= tokens
    for rows, after in itertools.pairwise(batches):
        more = np.append(rows, after[0])
        assert len(more) * (lengths[more].max() + nodes[more].max()) > tokens, "one more would not have fitted"
