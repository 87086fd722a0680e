"""The contestants of the SFT benchmark do the same work on the same examples."""

import argparse
import copy

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from sidgym.agents.templates import SILENT
from sidgym.benchmarks import sft


def weights_of(policy):
    return torch.cat([p.detach().flatten().clone() for p in policy.model.parameters()])


def test_contestants_learn_from_the_same_tokens(monkeypatch):
    monkeypatch.setattr(sft, "BATCH", 8)
    contest = sft.make_contest(sft.MIXTURE, 24, 10, 0)
    assert sft.loss_difference(contest) < 1e-5
    lists = sft.as_lists(contest.rows)
    assert sum(len(one["input_ids"]) for one in lists) == contest.tokens
    batch = sft.collator(7)(lists[:5])
    lengths = contest.rows.lengths[:5]
    assert batch["input_ids"].shape == (5, lengths.max())
    assert batch["attention_mask"].sum(1).tolist() == lengths.tolist()
    said = contest.rows.take(np.arange(5)).loss != SILENT
    assert int((batch["labels"] != sft.IGNORED).sum()) == said.sum()


def test_one_step_of_all_examples_gives_both_contestants_the_same_weights(monkeypatch):
    monkeypatch.setattr(sft, "BATCH", 8)
    contest = sft.make_contest(sft.MIXTURE, 8, 5, 0)
    before = weights_of(contest.policy)
    mine, theirs, sorted_ones = (copy.deepcopy(contest.policy) for _ in range(3))
    assert min(sft.packed(contest, "vocab", mine)) > 0
    assert min(sft.trainer(contest, False, theirs)) > 0
    assert min(sft.trainer(contest, True, sorted_ones)) > 0
    moved = (weights_of(mine) - before).abs().max()
    assert 0.9 * sft.LR < moved < 1.1 * sft.LR, "one step of AdamW"
    for other in (theirs, sorted_ones):
        assert torch.allclose(weights_of(mine), weights_of(other), rtol=0, atol=0.05 * sft.LR)
    assert torch.equal(weights_of(contest.policy), before)


def test_more_than_one_seed_is_refused():
    with pytest.raises(ValueError, match="expected one seed"):
        sft.measure(argparse.Namespace(quick=True, seeds=[0, 1]))


def test_histories_are_as_unequal_as_the_log_that_they_stand_for():
    lengths = np.diff(sft.skewed_log(20_000, 50, np.random.default_rng(0)).offsets) + 2
    assert lengths.min() == 5
    assert lengths.mean() == pytest.approx(8.8, abs=0.2)
    assert np.percentile(lengths, [50, 90, 99]) == pytest.approx([6, 14, 38], abs=3)
