"""The space of SIDs: members, sampling, equality, and Gymnasium's batching and flattening."""

import json
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces.utils import flatdim, flatten, flatten_space, unflatten
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from hypothesis import given, settings
from hypothesis import strategies as st

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
