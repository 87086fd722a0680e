"""The built-in engine and ``generate`` of transformers find the same candidates with the same log-probabilities."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import TINY, toy_episodes, toy_policy, toy_table

from sidgym.agents.engine import MODES, HfEngine, TorchEngine
from sidgym.agents.engine_hf import children_by_prefix
from sidgym.envs.records import Rollouts
from sidgym.sid.table import SidTable

TOLERANCE = 5e-4
"""Of log-probabilities; candidates whose scores are nearer than this may stand in any order, also at the cut-off."""


def assert_alike(one: Rollouts, other: Rollouts) -> None:
    """The same candidates, items and log-probabilities, in the same order wherever scores differ."""
    np.testing.assert_array_equal(one.valid, other.valid)
    np.testing.assert_allclose(one.score, other.score, atol=TOLERANCE)
    for row, valid in enumerate(one.valid):
        places = [{tuple(codes): g for g, codes in enumerate(r.codes[row][valid].tolist())} for r in (one, other)]
        assert len(places[0]) == len(places[1]) == valid.sum(), "a candidate stands twice in a group"
        for sid, g in places[0].items():
            h = places[1].get(sid)
            if h is None:
                assert abs(one.score[row, g] - other.score[row][valid].min()) <= TOLERANCE, sid
                continue
            assert abs(one.score[row, g] - one.score[row, h]) <= TOLERANCE, (sid, g, h)
            np.testing.assert_allclose(one.logp[row, g], other.logp[row, h], atol=TOLERANCE)
            np.testing.assert_array_equal(one.items[row, g], other.items[row, h])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    group=st.integers(1, 12),
    normalise=st.sampled_from(["trie", "vocab"]),
    architecture=st.sampled_from(["qwen3", "qwen2", "llama", "gpt2"]),
    unique=st.booleans(),
)
def test_same_candidates_and_log_probabilities(seed, sizes, group, normalise, architecture, unique):
    """Random models and tries (nodes with a single child and groups larger than the catalogue among them), prompts of
    unequal length, padded left, and contexts that stand twice."""
    rng = np.random.default_rng(seed)
    items = int(rng.integers(1, min(20, int(np.prod(sizes))) + 1)) if unique else int(rng.integers(1, 20))
    table = toy_table(items, tuple(sizes), seed, unique)
    policy = toy_policy(table, seed, config=replace(TINY, architecture=architecture))
    episodes = toy_episodes(5, items, seed=seed).take(np.array([0, 1, 2, 1, 3, 4, 4]))
    arms = [kind(policy, 4, normalise).rollout(episodes, group) for kind in (TorchEngine, HfEngine)]
    assert_alike(*arms)
    assert arms[0].valid.sum(1).tolist() == [min(group, len(np.unique(table.codes, axis=0)))] * 7


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8))
def test_ties_may_be_broken_either_way(seed, group):
    """Codes of the last level come in pairs that the model cannot tell apart."""
    table = toy_table(40, (4, 4, 6), seed)
    policy = toy_policy(table, seed)
    with torch.no_grad():
        weight = policy.model.get_output_embeddings().weight
        ids = policy.level_ids(2)
        weight[ids[1::2]] = weight[ids[::2]]
    episodes = toy_episodes(4, 40, seed=seed)
    assert_alike(TorchEngine(policy).rollout(episodes, group), HfEngine(policy).rollout(episodes, group))


def test_restricted_trie_and_a_second_one_after_it():
    table = toy_table()
    policy = toy_policy(table)
    episodes, engine = toy_episodes(3, 30), HfEngine(policy)
    for allowed in ([1, 4, 9, 20], [2, 3]):
        trie = policy.trie.restrict(np.array(allowed))
        found = engine.rollout(episodes, 6, trie=trie)
        assert_alike(TorchEngine(policy).rollout(episodes, 6, trie=trie), found)
        assert sorted(found.item[0][found.valid[0]]) == allowed
    assert_alike(TorchEngine(policy).rollout(episodes, 6), engine.rollout(episodes, 6))


def test_children_by_prefix_is_the_catalogue():
    table = SidTable(np.array([[0, 1], [0, 2], [2, 1]]), (3, 3), np.array(["a", "b", "c"]), {})
    policy = toy_policy(table)
    a, b = policy.level_ids(0).tolist(), policy.level_ids(1).tolist()
    expected = {(): [a[0], a[2]], (a[0],): [b[1], b[2]], (a[2],): [b[1]]}
    assert children_by_prefix(policy, policy.trie) == expected


@pytest.mark.parametrize(("mode", "lanes"), [*((mode, 1) for mode in MODES if mode != "beam"), ("beam", 2)])
def test_other_modes_are_refused_by_name(mode, lanes):
    with pytest.raises(ValueError, match=f"'{mode}', lanes {lanes}.*engine torch"):
        HfEngine(toy_policy(toy_table())).rollout(toy_episodes(1, 30), 2, mode, lanes=lanes)
