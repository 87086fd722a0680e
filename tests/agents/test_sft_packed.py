"""The loss without padding against each example read by itself, on every kind of architecture."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_toy import text_policy, text_store
from toy import TINY, toy_policy, toy_table

from sidgym.agents import sft_packed
from sidgym.agents.policy import build_policy
from sidgym.agents.sft_feeds import history_loss
from sidgym.agents.sft_packed import packed_loss, token_parts
from sidgym.agents.tasks import TASKS, TaskContext
from sidgym.agents.templates import SID_LOSS, SILENT, Renderer, TokenRows

CATALOGUE, LOG = text_store()


def mixed_rows(policy, tasks=("retrieval", "caption", "titles_to_sid")):
    context = TaskContext(LOG, CATALOGUE, 4, chat=policy.template == "chat")
    parts = [Renderer.of(policy).render(TASKS[name](context)) for name in tasks]
    sizes = np.concatenate([part.lengths for part in parts])
    tokens, loss = (np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "loss"))
    return TokenRows(tokens, loss, np.append(0, np.cumsum(sizes)))


def alone(policy, rows, normalise="vocab"):
    """The same loss, one example and one plain forward pass after another."""
    sids = torch.cat([policy.level_ids(level) for level in range(policy.levels)]).tolist()
    total = 0.0
    for begin, end in zip(rows.offsets[:-1], rows.offsets[1:]):
        ids, loss = rows.tokens[begin:end], rows.loss[begin:end]
        logits = policy.model(input_ids=torch.from_numpy(ids)[None]).logits[0].float()
        for place in np.flatnonzero(loss != SILENT):
            row = logits[place - 1]
            bottom = row[sids] if normalise == "sid" and loss[place] == SID_LOSS else row
            total = total + bottom.logsumexp(0) - row[ids[place]]
    return total


def gradients(policy, loss):
    policy.model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
@pytest.mark.parametrize("normalise", ["vocab", "sid"])
def test_loss_and_gradient_are_those_of_examples_read_alone(architecture, normalise):
    if architecture == "qwen3":
        policy = text_policy()
        rows = mixed_rows(policy)
    else:
        policy = toy_policy(toy_table(20), config=replace(TINY, architecture="gpt2"), scale=2.0)
        rows = Renderer(policy.tokenizer, policy.tokens, sft_packed_template()).render(
            TASKS["retrieval"](TaskContext(LOG, None, 4))
        )
    loss, count = packed_loss(policy, rows, normalise)
    expected = alone(policy, rows, normalise)
    assert count == int((rows.loss != SILENT).sum())
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    own, theirs = gradients(policy, loss), gradients(policy, expected)
    assert set(own) == set(theirs)
    for name, value in theirs.items():
        assert torch.allclose(own[name], value, atol=1e-4 * float(value.abs().max().clamp_min(1e-3))), name


def sft_packed_template():
    from sidgym.agents.templates import Template

    return Template("plain", (), (), (1,))


def test_histories_packed_are_histories_padded():
    policy = toy_policy(toy_table(20), scale=2.0)
    examples = TASKS["retrieval"](TaskContext(LOG, None, 4))
    rows = Renderer(policy.tokenizer, policy.tokens, sft_packed_template()).render(examples)
    from sidgym.agents.tasks import windows

    padded = windows(LOG, 5, TaskContext(LOG, None, 4).rng("retrieval"))
    loss, count = packed_loss(policy, rows)
    other, tokens = history_loss(policy, padded)
    assert count == tokens
    assert float(loss.detach()) == pytest.approx(float(other.detach()), rel=1e-5)


def test_logits_beyond_the_limit_are_computed_again_and_change_nothing(monkeypatch):
    policy = text_policy()
    rows = mixed_rows(policy)
    whole = packed_loss(policy, rows)[0]
    expected = gradients(policy, whole)
    monkeypatch.setattr(sft_packed, "MOST_LOGITS", 7 * policy.model.config.vocab_size)
    parts = packed_loss(policy, rows)[0]
    assert float(parts.detach()) == pytest.approx(float(whole.detach()), rel=1e-6)
    for name, value in gradients(policy, parts).items():
        assert torch.allclose(value, expected[name], atol=1e-5), name


def test_attention_drops_out_in_training_alone():
    policy = build_policy(replace(TINY, dropout=0.5), toy_table(20), 0)
    rows = Renderer(policy.tokenizer, policy.tokens, sft_packed_template()).render(
        TASKS["retrieval"](TaskContext(LOG, None, 4))
    )
    losses = {}
    for mode in (True, False):
        policy.train(mode)
        losses[mode] = [float(packed_loss(policy, rows)[0].detach()) for _ in range(2)]
    assert losses[True][0] != losses[True][1]
    assert losses[False][0] == losses[False][1]


def test_what_is_too_long_or_says_nothing_is_refused():
    policy = toy_policy(toy_table(20))
    long = TokenRows(np.full(5000, 3), np.full(5000, 1, np.int8), np.array([0, 5000]))
    with pytest.raises(ValueError, match=r"lower sft\.max_text_tokens or data\.history"):
        packed_loss(policy, long)
    silent = TokenRows(np.full(4, 3), np.zeros(4, np.int8), np.array([0, 4]))
    with pytest.raises(ValueError, match="a task must have an answer"):
        packed_loss(policy, silent)
    with pytest.raises(ValueError, match="known: vocab, sid"):
        packed_loss(policy, TokenRows(np.full(4, 3), np.array([0, 1, 1, 1]), np.array([0, 4])), "trie")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=20), st.integers(0, 60))
def test_parts_hold_all_examples_in_order_and_no_more_tokens_than_asked(lengths, tokens):
    sizes = np.array(lengths, dtype=np.int64)
    parts = token_parts(sizes, tokens)
    assert np.concatenate(parts).tolist() == list(range(len(lengths)))
    if tokens:
        assert all(sizes[part].sum() <= tokens or len(part) == 1 for part in parts)
        joined = [sizes[a].sum() + sizes[b[0]] for a, b in itertools.pairwise(parts)]
        assert all(total > tokens for total in joined), "a part is as full as it can be"
