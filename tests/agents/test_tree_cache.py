"""Trees of tokens read block by block, through transformers, and token by token without any tree: the same numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import TINY, toy_episodes, toy_policy, toy_table

from sidgym.agents import tree_cache
from sidgym.agents.policy import Policy, prompt_tensors
from sidgym.agents.tree_cache import BlockTree, ModelTree, grow_tree, knows_blocks, read_prefixes

ARCHITECTURES = ["qwen3", "qwen2", "llama"]


def random_prompts(architecture: str, seed: int):
    """A policy of one to three layers, and prompts of unequal length, one of them empty histories' at times."""
    config = replace(TINY, architecture=architecture, layers=1 + seed % 3)
    policy = toy_policy(toy_table(seed=seed), seed, config=config)
    return policy, *prompt_tensors(policy, toy_episodes(4, 30, seed=seed).history)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(ARCHITECTURES), st.integers(0, 10_000), st.integers(1, 5), st.booleans())
def test_own_walk_through_the_blocks_is_the_models(architecture, seed, width, right):
    """Prompts padded on either side; two levels of branches below random ones."""
    policy, ids, mask = random_prompts(architecture, seed)
    rng = torch.Generator().manual_seed(seed)
    first = torch.randint(len(policy.tokenizer), (4, width), generator=rng)
    second = torch.randint(len(policy.tokenizer), (4, 3), generator=rng)
    path = torch.randint(width, (4, 3, 1), generator=rng)
    expected = ModelTree(policy, ids, mask)
    if right:
        order = (~mask).long().argsort(dim=1, stable=True)
        ids, mask = ids.gather(1, order), mask.gather(1, order)
    trees = (BlockTree(policy, ids, mask), ModelTree(policy, ids, mask))
    with torch.no_grad():
        wanted = expected.prompt()
        for tree in trees:
            torch.testing.assert_close(tree.prompt(), wanted, atol=2e-5, rtol=1e-4)
        for tokens, below, last in ((first, path.new_zeros(4, width, 0), False), (second, path, True)):
            wanted = expected.branches(tokens, below, last)
            for tree in trees:
                torch.testing.assert_close(tree.branches(tokens, below, last), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("held", [True, False])
@settings(max_examples=10, deadline=None)
@given(st.sampled_from(ARCHITECTURES), st.integers(0, 10_000))
def test_prefixes_and_their_gradient_are_those_of_plain_forward_passes(held, architecture, seed):
    """With attention weights that are held for the backward pass, and with some that are computed again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_cache, "MANY_WEIGHTS", 2**40 if held else 0)
        compare_with_plain_passes(architecture, seed)


def compare_with_plain_passes(architecture: str, seed: int) -> None:
    policy, ids, mask = random_prompts(architecture, seed)
    rng = np.random.default_rng(seed)
    tokens, groups, parents, above = [], [], [], np.arange(4)
    for _ in range(int(rng.integers(0, 3))):
        count = int(rng.integers(0, 7)) if len(above) else 0
        parent = np.sort(rng.integers(0, max(len(above), 1), count))
        above = above[parent]  # contexts, ascending
        for found, values in ((parents, parent), (groups, above)):
            found.append(values)
        tokens.append(rng.integers(0, len(policy.tokenizer), count))
    states = read_prefixes(policy, ids, mask, tokens, groups, parents)
    plain = [[policy.hidden(input_ids=ids[row : row + 1, mask[row]], use_cache=False)[0, -1] for row in range(4)]]
    behind = [[[] for _ in range(4)]]
    for newest, group, parent in zip(tokens, groups, parents):
        behind.append([behind[-1][p] + [int(token)] for token, p in zip(newest, parent)])
        rows = [torch.cat([ids[g, mask[g]], torch.tensor(path)]) for g, path in zip(group, behind[-1])]
        plain.append([policy.hidden(input_ids=row[None], use_cache=False)[0, -1] for row in rows])
    assert len(states) == len(plain)
    losses = [torch.zeros(()), torch.zeros(())]
    for own, theirs in zip(states, plain):
        assert len(own) == len(theirs)
        if len(own):
            torch.testing.assert_close(own, torch.stack(theirs), atol=2e-5, rtol=1e-4)
            weight = torch.from_numpy(rng.normal(size=own.shape).astype(np.float32))
            losses = [losses[0] + (own * weight).sum(), losses[1] + (torch.stack(theirs) * weight).sum()]
    parameters = list(policy.model.parameters())
    grads = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in losses]
    scale = max(float(grad.abs().max()) for grad in grads[1] if grad is not None)
    for own, theirs in zip(*grads):
        own, theirs = (torch.zeros(()) if grad is None else grad for grad in (own, theirs))
        assert float((own - theirs).abs().max()) <= 1e-5 * scale


def test_which_architectures_are_walked():
    for architecture in ARCHITECTURES:
        assert knows_blocks(toy_policy(toy_table(), config=replace(TINY, architecture=architecture)))
    other = toy_policy(toy_table(), config=replace(TINY, architecture="gpt2"))
    assert not knows_blocks(other)
    assert isinstance(grow_tree(other, *prompt_tensors(other, toy_episodes(2, 30).history)), ModelTree)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        {"attention_dropout": 0.1},
    ],
)
def test_what_the_walk_leaves_out_is_left_to_transformers(changes):
    policy = toy_policy(toy_table()).train()
    assert knows_blocks(policy)
    for name, value in changes.items():
        setattr(policy.model.config, name, value)
    assert not knows_blocks(policy)


def test_attention_weights_that_are_many_are_not_held(monkeypatch):
    """What is saved for the backward pass grows with prompt and group, not with their product."""
    policy = toy_policy(toy_table())
    ids, mask = prompt_tensors(policy, np.zeros((1, 60), dtype=np.int64))  # 181 tokens
    branches = [np.arange(40) % 5], [np.zeros(40, dtype=np.int64)], [np.zeros(40, dtype=np.int64)]
    most = {}
    for name, limit in (("held", 2**40), ("again", 0)):
        monkeypatch.setattr(tree_cache, "MANY_WEIGHTS", limit)
        sizes: list[int] = []

        def note(kept: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(kept.numel())
            return kept

        with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
            read_prefixes(policy, ids, mask, *branches)[1].sum()
        most[name] = max(sizes)
    heads = policy.model.config.num_attention_heads
    assert most["held"] >= heads * 40 * 181
    assert most["again"] < heads * 40 * 181


def test_a_class_that_computes_something_else_is_not_walked(monkeypatch):
    """Whatever its model_type says."""
    policy = toy_policy(toy_table())
    real = policy.hidden

    class Shifted(type(policy.model)):
        pass

    policy.model.__class__ = Shifted
    monkeypatch.setattr(policy, "hidden", lambda **inputs: real(**inputs) + 1.0)
    with pytest.warns(UserWarning, match="Shifted computes something else"):
        assert not knows_blocks(policy)


def test_a_class_is_judged_in_full_precision_wherever_it_is_first_met(monkeypatch):
    """Under autocast the two ways round differently, and the verdict holds for the rest of the process."""
    monkeypatch.setattr(tree_cache, "_SAME", {})
    policy = toy_policy(toy_table(), config=replace(TINY, hidden_size=64, layers=3), seed=3)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(3.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert knows_blocks(policy)


def test_models_that_cannot_read_a_tree_are_refused_by_name():
    table = toy_table()
    policy = toy_policy(table)
    base = policy.model.model
    real = base.forward
    # Causal, but what it is told of who sees whom and where is lost.
    base.forward = lambda attention_mask=None, position_ids=None, **inputs: real(**inputs)
    with pytest.raises(ValueError, match=r"'qwen3' is not supported.*does not read a 4-D attention mask"):
        Policy(policy.model, policy.tokenizer, table)
    policy = toy_policy(table)
    policy.model.config.layer_types = ["sliding_attention"] * 2
    policy.model.config.sliding_window = 8
    with pytest.raises(ValueError, match=r"attention to the whole prompt.*window 8"):
        Policy(policy.model, policy.tokenizer, table)
