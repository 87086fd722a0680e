"""Rollouts with weights of a fixed age, and what of it is logged, refused and kept in checkpoints."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from trainers import TorchTrainer, assert_alike, never_stopped, resumed, rllib_trainer, same, steps, toy_task

from sidgym.agents.engine import TorchEngine
from sidgym.agents.pending import (
    account,
    check_versions,
    checksum,
    pending_groups,
    pending_tensors,
    updates_per_iteration,
)
from sidgym.agents.rl import model_weights
from sidgym.agents.update import GroupBatch, contexts_of_step

UPDATES = 4
"""Optimiser steps of an iteration of ``trainers.CONFIG``: 2 epochs of 2 minibatches."""


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_groups_are_drawn_with_the_weights_of_so_many_iterations_before(tmp_path, monkeypatch, lag):
    drawn = []
    rollout = TorchEngine.rollout

    def spy(engine, *args, **kwargs):
        drawn.append((engine.version, {k: v.clone() for k, v in model_weights(engine.policy).items()}))
        return rollout(engine, *args, **kwargs)

    monkeypatch.setattr(TorchEngine, "rollout", spy)
    trainer = TorchTrainer(toy_task(tmp_path, staleness=lag))
    history, logged = [], []
    for number in range(5):
        history.append(trainer.weights())
        logged.append(trainer.step(number))
    chunks = 3  # of 4 contexts each
    for number in range(5):
        due = max(0, number - lag)
        for version, weights in drawn[chunks * number : chunks * (number + 1)]:
            assert version == due * UPDATES
            assert same(weights, history[due])
        age = float((number - due) * UPDATES)
        assert logged[number]["sampling/version_lag_max"] == logged[number]["sampling/version_lag_mean"] == age
    assert len(drawn) == chunks * (5 + lag)


def test_the_lag_changes_what_is_learned_and_ratios_are_those_of_the_stored_policy(tmp_path):
    plain = {"minibatch": 0, "epochs": 1, "lr": 1e-2, "warmup_steps": 0}
    fresh, _ = never_stopped(toy_task(tmp_path, **plain), 3)
    stale, logged = never_stopped(toy_task(tmp_path, staleness=1, **plain), 3)
    assert not same(fresh.weights(), stale.weights())
    # Learned from once, in one step: without a lag every ratio is 1.
    assert logged[0]["ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert min(row["ratio_max"] for row in logged[1:]) > 1.01


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_resumed_run_is_one_never_stopped(tmp_path, lag, at):
    task = toy_task(tmp_path, staleness=lag, mode="sample")
    whole, expected = never_stopped(task, 5)
    half, before = never_stopped(task, at)
    fresh = resumed(half, tmp_path / "half", TorchTrainer(task))
    assert before + steps(fresh, range(at, 5)) == expected
    assert_alike(fresh, whole)
    # And back again in the same process.
    resumed(half, tmp_path / "half", fresh)
    assert before + steps(fresh, range(at, 5)) == expected


@pytest.mark.ray
def test_rllib_gives_the_bits_of_the_torch_trainer_and_takes_its_checkpoints(tmp_path):
    pytest.importorskip("ray")
    task = toy_task(tmp_path, staleness=2)
    whole, expected = never_stopped(task, 5)
    half, _ = never_stopped(task, 2)
    trainer = rllib_trainer(task)
    try:
        assert steps(trainer, range(5)) == expected
        assert_alike(trainer, whole)
        resumed(half, tmp_path / "half", trainer)
        assert_alike(trainer, half)
        assert steps(trainer, range(2, 5)) == expected[2:]
        back = resumed(trainer, tmp_path / "end", TorchTrainer(task))
        assert back.step(5) == whole.step(5)
    finally:
        trainer.close()


def batch_of(trainer) -> GroupBatch:
    return trainer._draw(0)[0]


def test_groups_of_weights_too_old_or_not_there_yet_are_refused(tmp_path):
    trainer = TorchTrainer(toy_task(tmp_path))
    config, batch = trainer.config, batch_of(trainer)
    assert updates_per_iteration(config) == UPDATES
    assert updates_per_iteration(replace(config, minibatch=5)) == 6
    assert updates_per_iteration(replace(config, minibatch=0)) == 2

    def drawn_at(version):
        return replace(batch, version=np.full(len(batch), version))

    check_versions(drawn_at(8), 8, config)
    for version in (7, 9):
        with pytest.raises(
            RuntimeError, match=rf"weights of {version} optimiser steps; expected 8 to 8 .*staleness = 0"
        ):
            check_versions(drawn_at(version), 8, config)
    stale = replace(config, staleness=1)
    check_versions(drawn_at(4), 8, stale)
    check_versions(drawn_at(0), 2, stale)
    with pytest.raises(RuntimeError, match="weights of 3 optimiser steps; expected 4 to 8"):
        check_versions(drawn_at(3), 8, stale)


def test_a_trainer_that_is_handed_old_groups_refuses_them(tmp_path):
    trainer = TorchTrainer(toy_task(tmp_path))
    groups = trainer._draw(1)
    trainer.step(0)
    trainer.pending[1] = groups
    before = trainer.weights()
    with pytest.raises(RuntimeError, match="weights of 0 optimiser steps; expected 4 to 4"):
        trainer.step(1)
    assert same(before, trainer.weights())


def test_what_waits_survives_as_tensors(tmp_path):
    trainer = TorchTrainer(toy_task(tmp_path))
    pending = {7: trainer._draw(7), 8: trainer._draw(8)}
    tensors = {**pending_tensors(pending), "0.exp_avg": torch.zeros(2)}
    back = pending_groups(tensors)
    assert list(back) == [7, 8]
    for number, (batch, figures) in pending.items():
        for field in fields(GroupBatch):
            mine, theirs = getattr(back[number][0], field.name), getattr(batch, field.name)
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)
        assert back[number][1].keys() == figures.keys()
        assert all(np.array_equal(back[number][1][name], values) for name, values in figures.items())
    assert pending_groups({}) == {}


def test_every_context_is_accounted_for(tmp_path):
    """The log says which contexts an iteration learned from: those that were its turn, in order."""
    task = toy_task(tmp_path, staleness=1)
    trainer, logged = never_stopped(task, 4)
    index = trainer.contexts.index
    for number, row in enumerate(logged):
        turn = index[contexts_of_step(len(index), trainer.config, task.seed, number)]
        assert row["contexts/checksum"] == checksum(turn)
        assert row["contexts/groups"] == len(turn)
    batch = batch_of(trainer)
    other = batch.take(np.r_[1, 0, 2 : len(batch)])
    assert account(other, 0)["contexts/checksum"] != account(batch, 0)["contexts/checksum"]
    twice = batch.take(np.r_[0, 0, 2 : len(batch)])
    assert account(twice, 0)["contexts/checksum"] != account(batch, 0)["contexts/checksum"]
