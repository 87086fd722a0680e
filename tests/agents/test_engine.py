"""Rollouts against brute-force enumeration, and what the built-in engine leaves out without changing the result."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from toy import TINY, naive_logp, toy_episodes, toy_policy, toy_table

from sidgym.agents.engine import MODES, TorchEngine, make_engine
from sidgym.agents.packed import packed_logp
from sidgym.agents.tree_cache import BlockTree, ModelTree
from sidgym.envs.records import Rollouts


def brute_force(policy, history, normalise):
    """Every distinct SID with its score, most probable first."""
    codes = np.unique(policy.table.codes, axis=0)
    with torch.no_grad():
        logp = torch.stack([naive_logp(policy, history, row, normalise) for row in codes]).numpy()
    order = np.argsort(-logp.sum(1), kind="stable")
    return codes[order], logp[order]


@pytest.mark.parametrize("engine", ["torch", "hf"])
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["trie", "vocab"]), st.booleans())
def test_wide_beam_of_every_engine_is_brute_force(engine, seed, normalise, unique):
    rng = np.random.default_rng(seed)
    sizes = tuple(int(n) for n in rng.integers(1, 5, rng.integers(1, 4)))  # one level up to three
    items = int(rng.integers(1, np.prod(sizes) + 1)) if unique else int(rng.integers(1, 12))
    table = toy_table(items, sizes, seed, unique)
    policy = toy_policy(table, seed)
    episodes = toy_episodes(3, items, seed=seed)
    width = items + 2
    found = make_engine(engine, policy, 2, normalise).rollout(episodes, width)
    for row in range(3):
        codes, logp = brute_force(policy, episodes.history[row], normalise)
        count = len(codes)
        assert found.valid[row].sum() == count, "a beam as wide as the catalogue finds every SID once"
        assert not found.valid[row, count:].any()
        np.testing.assert_allclose(found.score[row, :count], logp.sum(1), atol=1e-4)
        by_code = {tuple(c): p for c, p in zip(codes, logp)}
        for g in range(count):
            np.testing.assert_allclose(found.logp[row, g], by_code[tuple(found.codes[row, g])], atol=1e-4)
            members = found.items[row, g][found.items[row, g] >= 0]
            assert sorted(members) == np.flatnonzero((table.codes == found.codes[row, g]).all(1)).tolist()


def narrow_beam(policy, history, width):
    """Textbook beam search over prefixes, one plain forward pass a prefix."""
    beams = [((), 0.0)]
    for level in range(policy.levels):
        grown = []
        for prefix, _ in beams:
            rows = policy.table.codes[(policy.table.codes[:, :level] == prefix).all(1)] if level else policy.table.codes
            for code in sorted(set(rows[:, level].tolist())):
                whole = rows[rows[:, level] == code][0]
                with torch.no_grad():
                    logp = naive_logp(policy, history, whole)[: level + 1]
                grown.append(((*prefix, code), float(logp.sum())))
        beams = sorted(grown, key=lambda b: -b[1])[:width]
    return beams


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_narrow_beam_is_textbook_beam_search(seed, width):
    table = toy_table(25, (4, 4, 5), seed)
    policy = toy_policy(table, seed)
    episodes = toy_episodes(2, 25, seed=seed)
    found = TorchEngine(policy).rollout(episodes, width)
    for row in range(2):
        expected = narrow_beam(policy, episodes.history[row], width)
        assert [tuple(c) for c in found.codes[row]] == [prefix for prefix, _ in expected]
        np.testing.assert_allclose(found.score[row], [score for _, score in expected], atol=1e-4)


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2", "llama", "gpt2"])
def test_architectures_agree_with_plain_forward(architecture):
    table = toy_table()
    policy = toy_policy(table, config=replace(TINY, architecture=architecture), scale=4.0)
    episodes = toy_episodes(3, 30)
    found = TorchEngine(policy).rollout(episodes, 5)
    for row in range(3):
        for g in range(5):
            with torch.no_grad():
                expected = naive_logp(policy, episodes.history[row], found.codes[row, g])
            np.testing.assert_allclose(found.logp[row, g], expected, atol=1e-4)


def test_sampling_follows_the_policy():
    table = toy_table(12, (3, 4), 1)
    policy = toy_policy(table, 1, scale=6.0)
    episodes = toy_episodes(1, 12, seed=3)
    drawn = TorchEngine(policy).rollout(episodes, 4000, mode="sample", seed=5)
    codes, logp = brute_force(policy, episodes.history[0], "trie")
    for sid, p in zip(codes, np.exp(logp.sum(1))):
        seen = (drawn.codes[0] == sid).all(1).mean()
        assert abs(seen - p) < 4 * np.sqrt(p * (1 - p) / 4000) + 1e-9
    picked = TorchEngine(policy).rollout(episodes, 4000, mode="sample", seed=6)
    assert (picked.codes != drawn.codes).any(), "another seed draws other candidates"


def test_draws_depend_on_the_context_and_not_on_its_neighbours():
    table = toy_table()
    policy = toy_policy(table)
    episodes = toy_episodes(6, 30)
    whole = TorchEngine(policy, chunk=6).rollout(episodes, 4, mode="sample", seed=1)
    apart = TorchEngine(policy, chunk=1).rollout(episodes, 4, mode="sample", seed=1)
    np.testing.assert_array_equal(whole.codes, apart.codes)


def test_restricted_trie_yields_allowed_items_only():
    table = toy_table()
    policy = toy_policy(table)
    allowed = np.array([1, 4, 9, 20])
    found = TorchEngine(policy).rollout(toy_episodes(4, 30), 6, trie=policy.trie.restrict(allowed))
    assert found.valid.sum(1).tolist() == [4] * 4
    for row in range(4):
        assert sorted(found.item[row][found.valid[row]]) == allowed.tolist()


def test_free_mode_can_leave_the_trie_and_says_so():
    table = toy_table(8, (6, 6, 6))
    policy = toy_policy(table, scale=1.0)
    found = TorchEngine(policy).rollout(toy_episodes(4, 8), 20, mode="free")
    assert found.normalise == "vocab"
    assert not found.valid.all(), "an untrained policy emits SIDs that do not exist"
    real = {tuple(c) for c in table.codes}
    for row, group in np.ndindex(found.valid.shape):
        assert found.valid[row, group] == (tuple(found.codes[row, group]) in real)


def test_nan_never_ranks():
    table = toy_table()
    policy = toy_policy(table)
    with torch.no_grad():
        next(policy.model.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="NaN"):
        TorchEngine(policy).rollout(toy_episodes(2, 30), 4)


def test_unknown_mode_names_the_known_ones():
    with pytest.raises(ValueError, match="beam, sample, top_k, dynamic, stochastic_beam, free"):
        TorchEngine(toy_policy(toy_table())).rollout(toy_episodes(1, 30), 2, mode="bean")


@pytest.mark.parametrize("normalise", ["trie", "vocab"])
def test_trainer_and_rollout_agree(normalise):
    table = toy_table()
    policy = toy_policy(table, scale=6.0)
    episodes = toy_episodes(8, 30)
    found = TorchEngine(policy, chunk=3, normalise=normalise).rollout(episodes, 6)
    with torch.no_grad():
        scores = packed_logp(policy, episodes.history, torch.from_numpy(found.codes), normalise)
    np.testing.assert_allclose(scores.logp.numpy(), found.logp, atol=1e-5)


def assert_same(one: Rollouts, other: Rollouts) -> None:
    """The same candidates in the same order, log-probabilities but for rounding."""
    for name in ("codes", "valid", "items"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.logp, other.logp, atol=1e-5)


class Widths(TorchDispatchMode):
    """Notes the largest dimension of any tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, *value.shape, 0)
        return out


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
@pytest.mark.parametrize("mode", ["beam", "sample", "top_k", "stochastic_beam"])
def test_trie_policy_makes_no_tensor_of_vocabulary_width(architecture, mode):
    vocabulary = 151_936
    policy = toy_policy(toy_table(), config=replace(TINY, architecture=architecture))
    policy.model.resize_token_embeddings(vocabulary, mean_resizing=False)
    policy.model.tie_weights()
    with Widths() as seen:
        TorchEngine(policy).rollout(toy_episodes(3, 30), 4, mode)
    assert 0 < seen.largest < 10_000
    with Widths() as seen:
        TorchEngine(policy, normalise="vocab").rollout(toy_episodes(3, 30), 4)
    assert seen.largest >= vocabulary, "the measure would see one"


def fed(monkeypatch) -> list[tuple[int, int]]:
    """Shapes of the branches that a tree is asked to read from now on; prompts are (contexts, 0)."""
    shapes = []
    for tree in (BlockTree, ModelTree):
        begin, grow = tree.prompt, tree.branches

        def prompt(self, begin=begin):
            shapes.append((len(self.length), 0))
            return begin(self)

        def branches(self, tokens, path, last, grow=grow):
            shapes.append(tuple(tokens.shape))
            return grow(self, tokens, path, last)

        monkeypatch.setattr(tree, "prompt", prompt)
        monkeypatch.setattr(tree, "branches", branches)
    return shapes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_a_tight_budget_splits_a_chunk_and_changes_nothing(mode, architecture, monkeypatch):
    policy = toy_policy(toy_table(), config=replace(TINY, architecture=architecture))
    episodes = toy_episodes(7, 30, seed=1)
    whole = TorchEngine(policy, chunk=7).rollout(episodes, 4, mode, seed=3)
    shapes = fed(monkeypatch)
    tight = TorchEngine(policy, chunk=7, memory=1).rollout(episodes, 4, mode, seed=3)
    assert {rows for rows, _ in shapes} == {1}, "not even one context fits: one at a time"
    assert_same(whole, tight)


def test_equal_contexts_are_encoded_once(monkeypatch):
    policy = toy_policy(toy_table())
    episodes = toy_episodes(4, 30, seed=2)
    every = episodes.take(np.array([2, 0, 2, 2, 3, 0]))
    alone = TorchEngine(policy, chunk=6).rollout(episodes, 4)
    shapes = fed(monkeypatch)
    found = TorchEngine(policy, chunk=6).rollout(every, 4)
    assert shapes[0] == (3, 0)
    assert_same(found, alone.take(np.array([2, 0, 2, 2, 3, 0])))


def test_draws_of_one_prefix_are_fed_once(monkeypatch):
    policy = toy_policy(toy_table(40, (2, 5, 6)))
    shapes = fed(monkeypatch)
    TorchEngine(policy).rollout(toy_episodes(3, 40), 64, "sample")
    assert shapes[1] == (3, 2), "64 draws have two first codes to choose from"


@pytest.mark.parametrize("normalise", ["trie", "vocab"])
def test_codes_that_are_certain_cost_nothing(normalise, monkeypatch):
    codes = np.array([[0, 0, 0], [1, 2, 1], [2, 1, 0], [3, 1, 1]])
    table = replace(toy_table(4, (4, 3, 2)), codes=codes)
    policy = toy_policy(table)
    shapes = fed(monkeypatch)
    found = TorchEngine(policy, normalise=normalise).rollout(toy_episodes(2, 4), 4)
    assert len(shapes) == (1 if normalise == "trie" else 3), "a first code says it all, unless the vocabulary counts"
    for row in range(2):
        for g in range(4):
            with torch.no_grad():
                expected = naive_logp(policy, toy_episodes(2, 4).history[row], found.codes[row, g], normalise)
            np.testing.assert_allclose(found.logp[row, g], expected, atol=1e-4)


@pytest.mark.parametrize("engine", ["torch", "hf"])
def test_new_weights_are_used_and_their_version_is_carried_along(engine):
    table, episodes = toy_table(), toy_episodes(3, 30)
    mine, other = toy_policy(table, 0), toy_policy(table, 1)
    rollouts = make_engine(engine, mine, 4, "trie")
    assert rollouts.rollout(episodes, 4).weight_version == 0
    state = other.model.state_dict()
    del state["lm_head.weight"]  # tied: one name is enough
    rollouts.load_weights(state, 7)
    found = rollouts.rollout(episodes, 4)
    assert found.weight_version == rollouts.version == 7
    assert_same(found, TorchEngine(other, 4).rollout(episodes, 4))
    with pytest.raises(ValueError, match=r"missing.*norm"):
        rollouts.load_weights({k: v for k, v in state.items() if "norm" not in k}, 8)
    with pytest.raises(ValueError, match=r"unknown.*extra"):
        rollouts.load_weights({**state, "extra": state["model.norm.weight"]}, 8)
    before = {name: value.clone() for name, value in mine.model.state_dict().items()}
    with pytest.raises(ValueError, match=r"another shape.*norm"):
        rollouts.load_weights({**toy_policy(table, 2).model.state_dict(), "model.norm.weight": torch.ones(1)}, 8)
    assert all(torch.equal(value, before[name]) for name, value in mine.model.state_dict().items())
    assert rollouts.version == 7


def test_unknown_engine_names_the_known_ones():
    with pytest.raises(ValueError, match=r"tensorflow.*torch"):
        make_engine("tensorflow", toy_policy(toy_table()), 4, "trie")
