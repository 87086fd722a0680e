"""The packed pass against one plain forward pass a candidate: values and gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import naive_logp, toy_episodes, toy_policy, toy_table

from sidgym.agents.packed import packed_logp


def gradients(policy, loss):
    policy.model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["trie", "vocab"]))
def test_packed_gradient_is_the_unpacked_one(seed, normalise):
    rng = np.random.default_rng(seed)
    table = toy_table(20, (4, 3, 4), seed)
    policy = toy_policy(table, seed, scale=3.0)
    episodes = toy_episodes(3, 20, seed=seed)
    codes = table.codes[rng.integers(0, 20, (3, 4))]
    weight = torch.from_numpy(rng.normal(size=(3, 4, 3)).astype(np.float32))
    packed = packed_logp(policy, episodes.history, torch.from_numpy(codes), normalise).logp
    plain = torch.stack(
        [torch.stack([naive_logp(policy, episodes.history[b], c, normalise) for c in codes[b]]) for b in range(3)]
    )
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-5)
    got, expected = gradients(policy, (packed * weight).sum()), gradients(policy, (plain * weight).sum())
    assert got.keys() == expected.keys()
    for name in expected:
        scale = max(1.0, float(expected[name].abs().max()))
        assert float((got[name] - expected[name]).abs().max()) < 1e-5 * scale, name


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
    with_gap = packed_logp(policy, toy_episodes(1, 5).history, torch.full((1, 1, 3), -1))
    assert (with_gap.logp == 0).all()
