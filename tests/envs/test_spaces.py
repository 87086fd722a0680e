"""The space of SIDs: members, sampling, equality, and Gymnasium's batching and flattening."""

import copy
import itertools
import json
import pickle

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces.utils import flatdim, flatten, flatten_space, unflatten
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.envs import leaf_sampling
from sidgym.envs.spaces import TrieSpace
from sidgym.sid.trie import Trie

# Item 1 and item 2 share a SID; node 0 has two children, node 2 has one.
CODES = np.array([[0, 0], [0, 1], [0, 1], [2, 3]])
SIZES = (3, 4)


def space(**settings_of_space: object) -> TrieSpace:
    return TrieSpace(Trie.from_codes(CODES, SIZES), **settings_of_space)  # type: ignore[arg-type]


def shares(sampled: np.ndarray) -> list[float]:
    """Observed share of each distinct SID, in the order of CODES."""
    return [float((sampled == row).all(axis=1).mean()) for row in np.unique(CODES, axis=0)]


def test_members_are_existing_sids_of_the_right_shape() -> None:
    one = space()
    assert all(one.contains(row) for row in CODES)
    assert [0, 1] in one
    for wrong in ([1, 0], [0, 3], [2, 4], [-1, 0], [0, 0, 0], [[0, 0]], [0.0, 0.0], "ab", None, [[0], [0, 1]]):
        assert wrong not in one
    pair = space(leading=(2,))
    assert [[0, 0], [2, 3]] in pair
    assert [[0, 0], [2, 2]] not in pair


def test_samples_are_uniform_over_items_or_over_children() -> None:
    many = 20_000
    np.testing.assert_allclose(shares(space(leading=(many,), seed=0).sample()), [1 / 4, 2 / 4, 1 / 4], atol=0.02)
    by_child = space(leading=(many,), uniform="children", seed=0)
    np.testing.assert_allclose(shares(by_child.sample()), [1 / 4, 1 / 4, 1 / 2], atol=0.02)


def test_masks_and_probabilities_are_over_items() -> None:
    many, mask = 20_000, np.array([True, False, True, False])
    np.testing.assert_allclose(shares(space(leading=(many,), seed=0).sample(mask)), [1 / 2, 1 / 2, 0], atol=0.02)
    children = space(leading=(many,), uniform="children", seed=0).sample(np.array([True, False, True, True]))
    np.testing.assert_allclose(shares(children), [1 / 4, 1 / 4, 1 / 2], atol=0.02)
    drawn = space(leading=(many,), seed=0).sample(probability=np.array([0.0, 0.1, 0.2, 0.7]))
    np.testing.assert_allclose(shares(drawn), [0, 0.3, 0.7], atol=0.02)


def test_a_restricted_trie_is_the_space_of_its_items() -> None:
    trie = Trie.from_codes(CODES, SIZES).restrict(np.array([1, 3]))
    for uniform in ("items", "children"):
        part = TrieSpace(trie, (5_000,), uniform, seed=1)
        np.testing.assert_allclose(shares(part.sample()), [0, 1 / 2, 1 / 2], atol=0.03)
    assert [0, 0] not in TrieSpace(trie)
    assert TrieSpace(trie) != space()


@pytest.mark.parametrize(
    ("mask", "probability", "message"),
    [
        (np.ones(4, bool), np.full(4, 0.25), "not both"),
        (np.ones(3, bool), None, "mask over items"),
        (np.zeros(4, bool), None, "no allowed item"),
        (None, np.full(3, 1 / 3), "shape"),
        (None, np.array([0.5, 0.6, -0.1, 0.0]), "sum to 1"),
        (None, np.array([np.nan, 0.5, 0.5, 0.0]), "sum to 1"),
    ],
)
def test_sampling_refuses_what_cannot_be_drawn_from(
    mask: np.ndarray | None, probability: np.ndarray | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        space().sample(mask, probability)


@given(
    codes=st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12),
    group=st.sampled_from([(), (3,), (2, 3)]),
    uniform=st.sampled_from(["items", "children"]),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_every_sample_is_an_allowed_sid(
    codes: list[tuple[int, int, int]], group: tuple[int, ...], uniform: str, data: st.DataObject
) -> None:
    table = np.array(codes)
    spot = TrieSpace(Trie.from_codes(table, (5, 5, 5)), group, uniform, seed=3)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(codes), max_size=len(codes))))
    mask[data.draw(st.integers(0, len(codes) - 1))] = True
    allowed = set(map(tuple, table[mask].tolist()))
    sample = spot.sample(mask=mask)
    assert sample in spot
    assert set(map(tuple, sample.reshape(-1, 3).tolist())) <= allowed
    assert spot.sample() in spot


def test_distinct_members_differ_along_the_last_leading_axis() -> None:
    page = space(leading=(2,), distinct=True)
    assert [[0, 0], [2, 3]] in page
    assert [[0, 0], [0, 0]] not in page
    assert [[0, 0], [1, 0]] not in page
    pages = batch_space(page, 2)
    assert pages == space(leading=(2, 2), distinct=True)
    assert [[[0, 0], [2, 3]], [[2, 3], [0, 0]]] in pages
    assert [[[0, 0], [2, 3]], [[0, 1], [0, 1]]] not in pages
    assert page != space(leading=(2,))
    assert "distinct" in repr(page)
    assert "distinct" not in repr(space(leading=(2,)))


@given(
    codes=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=12),
    rows=st.sampled_from([(), (3,), (2, 3)]),
    uniform=st.sampled_from(["items", "children"]),
    how=st.sampled_from(["all", "mask", "probability", "restricted"]),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_every_distinct_sample_is_a_member(
    codes: list[tuple[int, int, int]], rows: tuple[int, ...], uniform: str, how: str, data: st.DataObject
) -> None:
    table = np.array(codes)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(codes), max_size=len(codes))))
    chosen[data.draw(st.integers(0, len(codes) - 1))] = True
    chosen |= how == "all"
    there = set(map(tuple, table[chosen].tolist()))
    size = data.draw(st.integers(1, len(there)))
    trie = Trie.from_codes(table, (4, 4, 4))
    trie = trie.restrict(chosen) if how == "restricted" else trie
    spot = TrieSpace(trie, (*rows, size), uniform, seed=3, distinct=True)
    weight = chosen * np.arange(1, len(codes) + 1) ** 8.0
    given_to_sample = {"mask": {"mask": chosen}, "probability": {"probability": weight / weight.sum()}}.get(how, {})
    sample = spot.sample(**given_to_sample)
    assert sample in spot
    assert set(map(tuple, sample.reshape(-1, 3).tolist())) <= there


def successive(chances: np.ndarray) -> dict[tuple[int, ...], float]:
    """Probability of every ordered draw of all leaves without replacement."""
    orders = itertools.permutations(range(len(chances)))
    return {order: float(np.prod([chances[o] / chances[list(order[k:])].sum() for k, o in enumerate(order)]))
            for order in orders}  # fmt: skip


@pytest.mark.parametrize("redraws", [leaf_sampling.REDRAWS, 0, 1])
@pytest.mark.parametrize(
    ("uniform", "probability", "chances"),
    [
        ("items", None, [1 / 4, 2 / 4, 1 / 4]),
        ("children", None, [1 / 4, 1 / 4, 1 / 2]),
        ("items", np.array([0.02, 0.03, 0.05, 0.9]), [0.02, 0.08, 0.9]),
    ],
)
def test_distinct_samples_are_successive_draws(
    redraws: int, uniform: str, probability: np.ndarray | None, chances: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaf_sampling, "REDRAWS", redraws)
    monkeypatch.setattr(leaf_sampling, "CHUNK", 10_000)
    many = 40_000
    pages = space(leading=(many, 3), uniform=uniform, seed=0, distinct=True).sample(probability=probability)
    leaves = Trie.from_codes(CODES, SIZES).leaf_of(torch.from_numpy(pages)).numpy()
    for order, expected in successive(np.array(chances)).items():
        assert (leaves == order).all(axis=1).mean() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": np.array([False, True, True, False])}, "at least 2 different SIDs to draw, got 1"),
        ({"probability": np.array([1.0, 0, 0, 0])}, "at least 2 different SIDs to draw, got 1"),
    ],
)
def test_distinct_sampling_says_when_there_are_too_few(arguments: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space(leading=(2,), distinct=True).sample(**arguments)


def test_distinct_spaces_need_enough_sids_and_an_axis() -> None:
    with pytest.raises(ValueError, match="at least 4 different SIDs to draw, got 3"):
        space(leading=(4,), distinct=True)
    with pytest.raises(ValueError, match="at least 3 different SIDs to draw, got 2"):
        TrieSpace(Trie.from_codes(CODES, SIZES).restrict(np.array([0, 3])), (3,), distinct=True)
    with pytest.raises(ValueError, match="leading must not be"):
        space(distinct=True)


def test_a_million_items_are_arrays_like_ten() -> None:
    rng = np.random.default_rng(0)
    sids = np.stack(np.unravel_index(rng.permutation(2**24)[: 10**6], (256,) * 3), axis=1)
    trie = Trie.from_codes(sids, (256,) * 3)
    for uniform in ("items", "children"):
        page = TrieSpace(trie, (5,), uniform, seed=0, distinct=True)
        pages = batch_space(page, 64)
        sample = pages.sample()
        assert sample.shape == (64, 5, 3)
        assert sample in pages
        assert len(np.unique(sample.reshape(-1, 3), axis=0)) > 300
        assert page.sample(mask=np.arange(10**6) < 5) in page
    drawn = page.sample(probability=np.append(np.full(5, 0.2), np.zeros(10**6 - 5)))
    np.testing.assert_array_equal(np.unique(drawn, axis=0), np.unique(sids[:5], axis=0))
    missing = (sids[0] + np.array([0, 0, 1])) % 256
    assert (missing in TrieSpace(trie)) == (sids == missing).all(axis=1).any()


def test_copies_share_the_trie_and_not_the_generator() -> None:
    one = space(leading=(2,), seed=5, distinct=True)
    one.sample()
    twin = copy.deepcopy(one)
    assert twin.trie is one.trie
    first = [one.sample().tolist() for _ in range(5)]
    assert [twin.sample().tolist() for _ in range(5)] == first
    assert [pickle.loads(pickle.dumps(space(leading=(2,), seed=5))).sample().tolist()] == [
        space(leading=(2,), seed=5).sample().tolist()
    ]


def test_equal_seeds_draw_equally_and_equality_is_by_content() -> None:
    one, other = space(seed=7), space(seed=7)
    assert [one.sample().tolist() for _ in range(9)] == [other.sample().tolist() for _ in range(9)]
    assert one == other
    assert one == pickle.loads(pickle.dumps(one))
    assert one != space(leading=(2,))
    assert one != space(uniform="children")
    assert one != TrieSpace(Trie.from_codes(CODES[:3], SIZES))
    assert one != gymnasium.spaces.MultiDiscrete([3, 4])
    with pytest.raises(ValueError, match="uniform"):
        space(uniform="leaves")


def test_samples_survive_json() -> None:
    group = space(leading=(2,), seed=0)
    samples = [group.sample() for _ in range(3)]
    back = group.from_jsonable(json.loads(json.dumps(group.to_jsonable(samples))))
    assert all(sample in group for sample in back)
    np.testing.assert_array_equal(back, samples)


@pytest.mark.parametrize("leading", [(), (2,)])
def test_batches_are_arrays(leading: tuple[int, ...]) -> None:
    single = space(leading=leading, seed=0)
    batch = batch_space(single, 3)
    assert isinstance(batch, TrieSpace)
    assert batch.shape == (3, *single.shape)
    sample = batch.sample()
    rows = list(iterate(batch, sample))
    assert all(row in single for row in rows)
    np.testing.assert_array_equal(concatenate(single, rows, create_empty_array(single, 3)), sample)


def test_one_sid_is_not_iterated_over() -> None:
    with pytest.raises(TypeError, match="no batch"):
        iterate(space(), CODES[0])


@pytest.mark.parametrize("leading", [(), (2,)])
def test_flattening_is_one_hot_by_level(leading: tuple[int, ...]) -> None:
    group = space(leading=leading, seed=0)
    sample = group.sample()
    flat = flatten(group, sample)
    assert flat in flatten_space(group)
    assert len(flat) == flatdim(group)
    np.testing.assert_array_equal(unflatten(group, flat), sample)
    np.testing.assert_array_equal(flatten(space(), np.array([2, 3])), [0, 0, 1, 0, 0, 0, 1])
