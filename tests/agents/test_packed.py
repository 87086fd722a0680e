"""The packed pass against one plain forward pass a candidate: values, gradients, and what it feeds and makes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy import naive_logp, toy_episodes, toy_policy, toy_table

from sidgym.agents import packed
from sidgym.agents.engine import TorchEngine
from sidgym.agents.packed import packed_logp, packed_scores
from sidgym.agents.policy import Policy
from sidgym.envs.records import PAD_ITEM

SIZES = [(8,), (5, 6), (4, 3, 4), (3, 2, 2, 3)]
WAYS = ["blocks", "apart", "rows"]


def take_way(patch: pytest.MonkeyPatch, way: str) -> None:
    """Every packed pass goes this way from here on; the toy policies allow each."""
    patch.setattr(packed, "knows_blocks", lambda policy: way == "blocks")
    patch.setattr(packed, "rows_pay", lambda *sizes: way == "rows")


def gradients(policy, loss):
    policy.model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


def assert_same_gradients(got, expected):
    assert got.keys() == expected.keys()
    scale = max(float(values.abs().max()) for values in expected.values())
    for name in expected:
        assert float((got[name] - expected[name]).abs().max()) <= 1e-5 * scale, name


def free_logp(policy: Policy, history: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
    """Log-probabilities (L,) of vocabulary ids after one history, in one plain forward pass."""
    known = history[history != PAD_ITEM]
    prompt = [policy.tokens.history, *policy.tokens.item_tokens[known].flatten().tolist()]
    table = torch.log_softmax(policy.model(input_ids=torch.tensor([[*prompt, *tokens.tolist()]])).logits[0].float(), -1)
    return table[len(prompt) - 1 + np.arange(len(tokens)), torch.from_numpy(tokens)]


def alone(policy: Policy, history: np.ndarray, codes: np.ndarray, normalise: str) -> torch.Tensor:
    """What ``packed_logp`` gives (B, G, L), one candidate at a time; 0 from where a SID does not exist."""
    known = {tuple(sid[:n]) for sid in policy.table.codes.tolist() for n in range(1, policy.levels + 1)}
    rows = []
    for past, group in zip(history, codes):
        for code in group:
            if normalise == "free":
                rows.append(free_logp(policy, past, code))
                continue
            length = next((n for n in range(len(code)) if tuple(code[: n + 1].tolist()) not in known), len(code))
            scored = naive_logp(policy, past, code, normalise) if length == len(code) else torch.zeros(len(code))
            if 0 < length < len(code):
                # The codes before the one that leaves the trie, read from a SID that has them.
                match = (policy.table.codes[:, :length] == code[:length]).all(1)
                scored = naive_logp(policy, past, policy.table.codes[match][0], normalise)
            rows.append(torch.cat([scored[:length], torch.zeros(len(code) - length)]))
    return torch.stack(rows).view(codes.shape)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["trie", "vocab", "free"]), st.sampled_from(SIZES))
def test_packed_gradient_is_the_unpacked_one(way, seed, normalise, sizes):
    rng = np.random.default_rng(seed)
    items = max(3, int(np.prod(sizes)) // 2)
    table = toy_table(items, sizes, seed)
    policy = toy_policy(table, seed, scale=3.0)
    episodes = toy_episodes(3, items, seed=seed)
    # Candidates repeat, share prefixes, and some do not exist.
    codes = table.codes[rng.integers(0, items, (3, 6))]
    codes[:, 0] = codes[:, 1]
    codes[0, 2] = rng.integers(0, sizes)
    if normalise == "free":
        codes = rng.integers(0, len(policy.tokenizer), codes.shape)
        codes[:, 3, :1] = codes[:, 4, :1]
    weight = torch.from_numpy(rng.normal(size=codes.shape).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        take_way(patch, way)
        together = packed_logp(policy, episodes.history, torch.from_numpy(codes), normalise).logp
    plain = alone(policy, episodes.history, codes, normalise)
    torch.testing.assert_close(together, plain, atol=1e-5, rtol=1e-5)
    got = gradients(policy, (together * weight).sum())
    assert_same_gradients(got, gradients(policy, (plain * weight).sum()))


def test_both_ways_of_an_unknown_architecture_are_taken(monkeypatch):
    """The shapes above take either way by force; what is chosen by itself is right, too."""
    monkeypatch.setattr(packed, "knows_blocks", lambda policy: False)
    table = toy_table()
    policy = toy_policy(table)
    taken = []
    real = packed.rows_pay
    monkeypatch.setattr(packed, "rows_pay", lambda *sizes: taken.append(real(*sizes)) or taken[-1])
    history = np.random.default_rng(0).integers(0, 30, (8, 12))
    short = np.where(np.arange(12) < 11, PAD_ITEM, history)
    for past in (history, np.concatenate([history[:2], short[2:]])):
        codes = table.codes[:8].reshape(8, 1, 3)
        logp = packed_logp(policy, past, torch.from_numpy(codes)).logp
        torch.testing.assert_close(logp, alone(policy, past, codes, "trie"), atol=1e-5, rtol=1e-5)
    assert taken == [False, True]


def test_several_normalisations_of_one_pass_are_those_of_each():
    table = toy_table(20, (4, 3, 4))
    policy = toy_policy(table)
    history, codes = toy_episodes(3, 20).history, torch.from_numpy(table.codes[:18].reshape(3, 6, 3))
    for name, scores in zip(("vocab", "trie"), packed_scores(policy, history, codes, ("vocab", "trie"))):
        single = packed_logp(policy, history, codes, name)
        torch.testing.assert_close(scores.logp, single.logp, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scores.entropy, single.entropy, atol=1e-5, rtol=1e-5)


def test_entropy_is_that_of_the_children():
    table = toy_table(20, (4, 3, 4))
    policy = toy_policy(table)
    episodes = toy_episodes(2, 20)
    codes = torch.from_numpy(table.codes[:6].reshape(2, 3, 3))
    scores = packed_logp(policy, episodes.history, codes)
    first = []
    for code in np.unique(table.codes[:, 0]):
        whole = table.codes[table.codes[:, 0] == code][0]
        first.append(naive_logp(policy, episodes.history[0], whole)[0])
    p = torch.stack(first).exp()
    assert p.sum().item() == pytest.approx(1.0, abs=1e-5)
    expected = -(p * p.log()).sum()
    torch.testing.assert_close(scores.entropy[0, :, 0], expected.expand(3), atol=1e-5, rtol=1e-5)


def test_sids_of_one_level():
    table = toy_table(6, (8,))
    policy = toy_policy(table)
    episodes = toy_episodes(2, 6)
    scores = packed_logp(policy, episodes.history, torch.from_numpy(table.codes)[None].expand(2, -1, -1))
    torch.testing.assert_close(scores.logp.exp().sum((1, 2)), torch.ones(2), atol=1e-5, rtol=1e-5)


def test_a_sid_outside_the_trie_scores_nothing_and_leaves_finite_gradients():
    table = toy_table(5, (4, 4, 4))
    policy = toy_policy(table)
    missing = np.array([[c for c in np.ndindex(4, 4, 4) if not (table.codes == c).all(1).any()][:2]])
    scores = packed_logp(policy, toy_episodes(1, 5).history, torch.from_numpy(missing.astype(np.int64)))
    scores.logp.sum().backward()
    assert torch.isfinite(scores.logp).all()
    assert all(torch.isfinite(p.grad).all() for p in policy.model.parameters() if p.grad is not None)
    for normalise in ("trie", "free"):
        with_gap = packed_logp(policy, toy_episodes(1, 5).history, torch.full((1, 1, 3), -1), normalise)
        assert (with_gap.logp == 0).all()


def tokens_fed(policy, history, codes, normalise="trie"):
    """Tokens (padding included) that a pass feeds to the language model's first block."""
    fed = []
    hook = policy.model.base_model.layers[0].mlp.register_forward_hook(
        lambda block, inputs, out: fed.append(inputs[0][..., 0].numel())
    )
    packed_logp(policy, history, torch.from_numpy(codes), normalise)
    hook.remove()
    return sum(fed)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("group", [4, 16, 64, 256])
def test_tokens_grow_with_the_prompt_plus_the_group(monkeypatch, group, way):
    """Not with their product: P + G * (L - 1) tokens at most, fewer where candidates begin alike or are certain."""
    take_way(monkeypatch, way)
    table = toy_table(700, (10, 10, 10))
    policy = toy_policy(table)
    rng = np.random.default_rng(0)
    history = rng.integers(0, 700, (3, 13))  # prompts of 40 tokens
    drawn = table.codes[np.stack([rng.choice(700, group, replace=False) for _ in range(3)])]
    assert tokens_fed(policy, history, drawn, "vocab") <= 3 * (40 + group * 2)
    # A group has at most 10 first codes, and 100 beginnings of two.
    assert tokens_fed(policy, history, drawn, "vocab") <= 3 * (40 + 10 + 100)
    assert tokens_fed(policy, history, drawn[:, :1].repeat(group, axis=1), "vocab") == 3 * 42
    beams = TorchEngine(policy).rollout(toy_episodes(3, 700, length=13), group).codes
    starts = [[len({tuple(c[:n]) for c in row}) for row in beams.tolist()] for n in (1, 2)]
    # Trees are padded to the largest: level by level in blocks, as wholes otherwise.
    padded = sum(map(max, starts)) if way == "blocks" else max(map(sum, zip(*starts)))
    assert tokens_fed(policy, history, beams, "vocab") == 3 * (40 + padded)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_fed_for_codes_that_are_certain(monkeypatch, way):
    take_way(monkeypatch, way)
    codes = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [2, 1, 0], [2, 2, 0]])
    policy = toy_policy(toy_table(5, (3, 3, 2)).__class__(codes, (3, 3, 2), np.array(list("abcde")), {}))
    history = np.zeros((1, 1), dtype=np.int64)  # a prompt of 4 tokens
    fed = [tokens_fed(policy, history, codes[None, rows]) for rows in ([2], [3], [0], [0, 1, 2, 3, 4])]
    # 1-0-0 is certain after its first code, and 2-1-0 after its second; 0-0 is followed by two codes.
    assert fed == [4, 4 + 1, 4 + 2, 4 + 3]


class Shapes(TorchDispatchMode):
    """Notes the shape and storage of every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.made: list[tuple[tuple[int, ...], int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        for leaf in tree_leaves(out):
            if torch.is_tensor(leaf) and leaf.untyped_storage().data_ptr() not in known:
                self.made.append((tuple(leaf.shape), leaf.untyped_storage().data_ptr()))
        return out


@pytest.mark.parametrize("way", WAYS)
def test_no_tensor_of_vocabulary_width_but_the_gradient_of_the_table(monkeypatch, way):
    """At Qwen's 151,936 tokens; the rest of the update does not know how many there are."""
    vocabulary, hidden = 151_936, 16
    policy = toy_policy(toy_table())
    policy.model.resize_token_embeddings(vocabulary, mean_resizing=False)
    take_way(monkeypatch, way)
    codes = torch.from_numpy(policy.table.codes[:12].reshape(2, 6, 3))
    with Shapes() as shapes:
        packed_logp(policy, toy_episodes(2, 30).history, codes).logp.sum().backward()
    wide = [shape for shape, _ in shapes.made if any(size >= vocabulary for size in shape)]
    # One for the tokens that are read, one for those that are scored, and, the tables being one, their sum.
    assert wide == [(vocabulary, hidden)] * 3
    with Shapes() as shapes:
        packed_logp(policy, toy_episodes(2, 30).history, codes, "vocab")
    assert any(shape[-1:] == (vocabulary,) for shape, _ in shapes.made), "the check sees what it looks for"
