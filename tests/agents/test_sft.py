"""Supervised warm-up: what is supervised, how rows are cut, and that a known next-item law is learned."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import TINY, naive_logp, toy_policy, toy_table

from sidgym.agents.config import SftConfig
from sidgym.agents.policy import build_policy
from sidgym.agents.sft import sft_loss, train_sft, windows
from sidgym.envs.records import PAD_ITEM, Episodes, Sequences


def sequences_of(rows):
    lengths = [len(row) for row in rows]
    return Sequences(np.arange(len(rows)), np.array([i for row in rows for i in row]), np.r_[0, np.cumsum(lengths)])


@given(st.lists(st.integers(1, 23), min_size=1, max_size=12), st.integers(1, 9), st.integers(0, 99), st.booleans())
def test_every_item_stands_in_exactly_one_window_in_order(lengths, width, seed, shuffled):
    total = iter(range(sum(lengths)))
    rows = [[next(total) for _ in range(n)] for n in lengths]
    cut = windows(sequences_of(rows), width, np.random.default_rng(seed) if shuffled else None)
    assert cut.shape[1] == width
    flat = cut[cut != PAD_ITEM]
    assert flat.tolist() == list(range(sum(lengths))), "row after row the windows read like the sequences"
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for row in cut:
        used = row != PAD_ITEM
        assert used.any()
        assert not (used[1:] & ~used[:-1]).any(), "padding stands on the right"
        assert len(set(owner[row[used]])) == 1, "a window never joins two users"
    for number, length in enumerate(lengths):
        if length <= width:
            assert sum(1 for row in cut if (owner[row[row != PAD_ITEM]] == number).all()) == 1


def test_loss_is_the_mean_over_all_code_tokens_of_a_plain_pass():
    table = toy_table()
    policy = toy_policy(table, scale=4.0)
    rows = np.array([[3, 7, 9], [5, PAD_ITEM, PAD_ITEM]])
    loss, count = sft_loss(policy, rows)
    expected = 0.0
    for row in rows:
        items = row[row != PAD_ITEM]
        for place, item in enumerate(items):
            expected -= naive_logp(policy, items[:place], table.codes[item], "vocab").sum().item()
    assert count == 4 * 3
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def chain_world(items=12, users=60, seed=0):
    """Item i is always followed by i + 1: what is to be learned is known."""
    table = toy_table(items, (3, 4), seed)
    rng = np.random.default_rng(seed)
    rows = [[(start + k) % items for k in range(6)] for start in rng.integers(0, items, users)]
    history = np.arange(items)[:, None]
    valid = Episodes(np.arange(items), np.arange(items), history, (history + 1) % items)
    return table, sequences_of(rows), valid


def test_a_deterministic_law_is_learned_and_the_best_epoch_kept():
    table, sequences, valid = chain_world()
    policy = build_policy(TINY, table, 0)
    config = SftConfig(epochs=20, batch=16, lr=1e-2, warmup_steps=5, patience=20)
    result = train_sft(policy, sequences, valid, config, history=5, seed=0)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert max(row["eval/ndcg@10"] for row in result.history) > 0.95
    assert result.history[result.best_epoch - 1]["eval/ndcg@10"] == max(r["eval/ndcg@10"] for r in result.history)


def test_one_seed_one_result_with_dropout_and_whatever_happened_before():
    weights = []
    for before in range(2):
        torch.manual_seed(before)
        table, sequences, valid = chain_world()
        policy = build_policy(replace(TINY, dropout=0.5), table, 3)
        train_sft(policy, sequences, valid, SftConfig(epochs=2, batch=16), history=5, seed=3)
        weights.append(torch.cat([p.flatten() for p in policy.model.parameters()]))
    assert torch.equal(*weights)


def test_a_broken_loss_stops_training():
    table, sequences, valid = chain_world()
    policy = build_policy(TINY, table, 0)
    with torch.no_grad():
        next(policy.model.parameters())[0] = float("nan")
        policy.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        train_sft(policy, sequences, valid, SftConfig(epochs=1), history=5, seed=0)


def test_dropout_and_width_of_a_fresh_gpt2_are_those_that_were_asked_for():
    """Its own names for them have defaults that would hold in silence."""
    config = replace(TINY, architecture="gpt2", dropout=0.3, intermediate_size=48)
    made = build_policy(config, toy_table(), 0).model.config
    assert (made.attn_pdrop, made.embd_pdrop, made.resid_pdrop, made.n_inner) == (0.3, 0.3, 0.3, 48)
