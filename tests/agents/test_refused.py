"""A loss or gradient that is not finite: nothing changes, the batch is kept, and after some in a row the run stops."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import toy_episodes
from trainers import TorchTrainer, assert_alike, local_ray, resumed, rllib_trainer, same, steps, toy_task

from sidgym.agents.config import LogConfig
from sidgym.agents.logging import MetricsLog, read_metrics
from sidgym.agents.objectives import grpo
from sidgym.agents.pending import checksum
from sidgym.agents.refused import Refusals
from sidgym.agents.rl import train_rl
from sidgym.agents.update import minibatches

HERE = Path(__file__).stem


def faulty(inputs, spec):
    """GRPO, broken as the file named by FAULT says while it is there.

    ``loss``: the loss is infinite. ``gradient``: it is finite and its gradient is not. ``only``: for batches alone that
    hold the group whose ``mark`` is this.
    """
    loss, metrics = grpo(inputs, spec)
    path = Path(os.environ.get("FAULT", "/nowhere"))
    if not path.exists():
        return loss, metrics
    order = json.loads(path.read_text())
    if "only" in order and order["only"] not in inputs.old_logp[:, 0, 0].tolist():
        return loss, metrics
    if order["kind"] == "loss":
        return loss + float("inf"), metrics
    zero = (inputs.logp.sum() * 0.0).abs()
    return loss + torch.sqrt(zero), metrics  # the derivative of a root at 0


def mark(batch, row=1):
    """What tells a group from the others."""
    values = batch.old_logp[:, 0, 0].tolist()
    assert values.count(values[row]) == 1
    return values[row]


@pytest.fixture
def fault(tmp_path, monkeypatch):
    """Writes what is to go wrong; None puts it right."""
    path = tmp_path / "fault.json"
    monkeypatch.setenv("FAULT", str(path))

    def order(kind, **only):
        if kind is None:
            path.unlink()
        else:
            path.write_text(json.dumps({"kind": kind, **only}))

    return order


def task_of(folder, **changes):
    return toy_task(folder, objective=f"{HERE}:faulty", **changes)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("tokens", [0, 40])
def test_a_refused_step_changes_nothing_and_its_groups_are_kept(tmp_path, fault, kind, tokens, capfd):
    task = task_of(tmp_path, epochs=1, tokens_per_microbatch=tokens)
    trainer = TorchTrainer(task)
    trainer.step(0)
    before, state = trainer.weights(), trainer.state()
    drawn = trainer._draw(1)[0]
    fault(kind)
    metrics = trainer.step(1)
    assert metrics["updates_refused"] == 2
    assert np.isnan(metrics["grad_norm"])
    assert trainer.updates == 4
    assert same(trainer.weights(), before)
    assert same({k: v for k, v in trainer.state().items() if k[0].isdigit()}, state)
    said = capfd.readouterr().err
    for update, rows in zip((2, 3), minibatches(12, trainer.config, task.seed, 2), strict=True):
        path = tmp_path / "refused" / f"{update:08d}.npz"
        assert f"update {update} was refused: the {'loss is inf' if kind == 'loss' else 'gradient norm is nan'}" in said
        assert str(path) in said
        with np.load(path, allow_pickle=False) as kept:
            assert str(kept["why"]) in said
            assert int(kept["update"]) == update
            for name, values in vars(drawn.take(rows)).items():
                np.testing.assert_array_equal(kept[name], values)
    fault(None)
    assert trainer.step(2)["updates_refused"] == 0
    assert not same(trainer.weights(), before)
    assert trainer.refusals.in_a_row == 0


def test_the_run_stops_after_some_in_a_row_and_says_why(tmp_path, fault):
    trainer = TorchTrainer(task_of(tmp_path, epochs=1, minibatch=0))
    fault("gradient")
    for number in range(2):
        assert trainer.step(number)["updates_refused"] == 1
    with pytest.raises(FloatingPointError, match=r"3 updates in a row.*number 2, because the gradient norm is nan"):
        trainer.step(2)
    assert len(list((tmp_path / "refused").glob("*.npz"))) == 3


def test_counting_goes_on_in_a_resumed_run_and_begins_anew_after_a_step(tmp_path, fault):
    task = task_of(tmp_path, epochs=1, minibatch=0)
    trainer = TorchTrainer(task)
    fault("loss")
    steps(trainer, range(2))
    fresh = resumed(trainer, tmp_path / "saved", TorchTrainer(task))
    assert_alike(fresh, trainer)
    with pytest.raises(FloatingPointError, match="3 updates in a row"):
        fresh.step(2)
    fault(None)
    trainer.step(2)
    fault("loss")
    assert trainer.step(3)["updates_refused"] == 1


def test_metrics_are_those_of_the_steps_that_were_done(tmp_path, fault):
    config = {"epochs": 1, "kl_weight": 0.0, "nll_weight": 0.0}
    plain, broken = (TorchTrainer(task_of(tmp_path, **config)) for _ in range(2))
    batch = plain._draw(0)[0]
    fault("loss", only=mark(batch))
    metrics = broken.step(0)
    assert metrics["updates_refused"] == 1
    assert np.isfinite(list(metrics.values())).all()
    assert not same(broken.weights(), plain.weights()), "the second step was done"


def test_the_loop_writes_the_batch_below_the_run_and_the_number_into_the_log(tmp_path, fault):
    task = replace(task_of(tmp_path, backend="torch", steps=2, epochs=1, minibatch=0, eval_every=2), refused="")
    fault("gradient")

    def log(step):
        return MetricsLog(tmp_path / "run", LogConfig(wandb="disabled"), "test", resume_from=step)

    valid = toy_episodes(6, 30, seed=9)
    train_rl(task, valid, tmp_path / "run/training", log)
    rows = [row for row in read_metrics(tmp_path / "run/metrics.jsonl") if "updates_refused" in row]
    assert [row["updates_refused"] for row in rows] == [1, 1]
    assert [row["grad_norm"] for row in rows] == [None, None]
    kept = sorted((tmp_path / "run/training/refused").glob("*"))
    assert [path.name for path in kept] == ["00000000.npz", "00000001.npz"]
    with np.load(kept[1]) as arrays:
        assert checksum(arrays["context"]) == rows[1]["contexts/checksum"]


def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path, capfd):
    (tmp_path / "file").write_text("in the way")
    refusals = Refusals(3, str(tmp_path / "file" / "refused"))
    batch = TorchTrainer(toy_task(tmp_path))._draw(0)[0]
    refusals.record(batch, [np.arange(4)], 5, {5: "the loss is nan"})
    assert "could not be kept" in capfd.readouterr().err
    assert refusals.in_a_row == 1
    refusals.record(batch, [np.arange(4)], 6, {})
    assert refusals.in_a_row == 0


@pytest.mark.ray
def test_rllib_refuses_what_the_torch_trainer_refuses(tmp_path, fault):
    pytest.importorskip("ray")
    task = task_of(tmp_path)
    plain, trainer = TorchTrainer(task), rllib_trainer(task)
    batch = plain._draw(0)[0]
    try:
        fault("loss", only=mark(batch))
        for number in range(3):
            mine, theirs = trainer.step(number), plain.step(number)
            assert {k: v for k, v in mine.items() if v == v} == {k: v for k, v in theirs.items() if v == v}
            if number == 0:
                assert mine["updates_refused"] == 2, "one minibatch of two, in both passes"
        assert_alike(trainer, plain)
        fault("gradient")
        before = trainer.weights()
        for each in (trainer, plain):
            with pytest.raises(FloatingPointError, match="updates in a row were refused"):
                each.step(3)
        assert same(trainer.weights(), before)
    finally:
        trainer.close()


@pytest.mark.slow
@pytest.mark.ray
def test_two_learners_refuse_together(tmp_path, fault):
    """The loss of one learner's share is infinite: neither takes the step."""
    pytest.importorskip("ray")
    task = task_of(tmp_path, learners=2, epochs=1, minibatch=0, refusals=9)
    plain = TorchTrainer(task)
    batch = plain._draw(0)[0]
    fault("loss", only=mark(batch))
    with local_ray(2):
        trainer = rllib_trainer(task)
        try:
            before = trainer.weights()
            metrics = trainer.step(0)
            assert metrics["updates_refused"] == 1
            copies = [a.get() for a in trainer.algorithm.learner_group.foreach_learner(_weights_of)]
            assert len(copies) == 2
            assert all(same(copy, before) for copy in copies)
            with np.load(tmp_path / "refused/00000000.npz") as kept:
                assert str(kept["why"]) == "the loss is inf"
                assert len(kept["context"]) == 12, "the groups of both"
            fault(None)
            assert trainer.step(1)["updates_refused"] == 0
            copies = [a.get() for a in trainer.algorithm.learner_group.foreach_learner(_weights_of)]
            assert same(*copies)
            assert not same(copies[0], before)
        finally:
            trainer.close()


def _weights_of(learner):
    from sidgym.agents.rl import model_weights

    return model_weights(learner.policy)
