"""The RL loop in plain torch: it finds a known optimum, repeats itself, and resumes as if never stopped."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents import rl
from sidgym.agents.audit import FIRED, STREAK
from sidgym.agents.checkpoint import read_position, save_policy
from sidgym.agents.config import LogConfig, RewardConfig, RlConfig
from sidgym.agents.engine import TorchEngine
from sidgym.agents.logging import MetricsLog, read_metrics
from sidgym.agents.recovery import checkpoints
from sidgym.agents.rl import RlTask, save_episodes, train_rl
from sidgym.agents.rllib_parts import ChunkSampler, RolloutError

CONFIG = RlConfig(
    backend="torch",
    group_size=6,
    contexts_per_step=8,
    chunk=4,
    steps=6,
    epochs=2,
    minibatch=4,
    lr=1e-3,
    warmup_steps=3,
    kl_weight=0.01,
    nll_weight=0.1,
    eval_every=3,
    checkpoint_every=2,
    select_by="last",
)


def favourite(episodes, rollouts):
    """A reward of the tests: item 7 is best for everyone."""
    return (rollouts.items == 7).any(-1).astype(np.float32)


def broken(episodes, rollouts, *, how="raise"):
    """A reward of the tests that fails."""
    values = np.zeros(rollouts.valid.shape)
    if how == "raise":
        raise KeyError("the reward's own words")
    values[-1, 1] = np.nan
    return values


def make_task(folder, config=CONFIG, seed=0):
    policy = toy_policy(toy_table(), scale=4.0)
    save_policy(folder / "sft", policy, {"history": 5})
    save_episodes(folder / "contexts.npz", toy_episodes(20, 30, targets=2))
    return RlTask(str(folder / "sft"), str(folder / "contexts.npz"), seed, config)


def run(task, folder, valid=None, **kwargs):
    def log(step):
        return MetricsLog(folder, LogConfig(wandb="disabled"), "test", resume_from=step)

    return train_rl(task, valid or toy_episodes(6, 30, seed=9), folder / "training", log, **kwargs)


def flat(policy):
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


class Copying(TorchEngine):
    """An engine of the tests with a copy of the weights, which notes what it is given."""

    def __init__(self, policy, chunk, normalise, **options):
        super().__init__(copy.deepcopy(policy), chunk, normalise)
        self.options, self.given, self.closed = options, [], False

    def load_weights(self, state, version):
        self.given.append(version)
        super().load_weights(state, version)

    def close(self):
        self.closed = True


def test_an_engine_with_a_copy_of_the_weights_follows(tmp_path):
    """Before every rollout after an update, and whenever a run goes back, if only to as many updates."""
    config = replace(CONFIG, engine=f"{__name__}:Copying", engines=2, epochs=1, minibatch=0)
    trainer = rl.TorchTrainer(make_task(tmp_path, config))
    engine, before = trainer.engine, trainer.weights()
    assert engine.options == {"engines": 2}
    trainer.step(0)
    state = trainer.state()
    trainer.step(1)
    assert engine.given == [1]
    trainer.restore(before, state, 1)
    trainer.step(1)
    assert engine.given == [1, 1]
    trainer.close()
    assert engine.closed


def test_policy_gradient_finds_the_rewarded_item(tmp_path):
    config = replace(
        CONFIG,
        steps=80,
        lr=3e-3,
        epochs=1,
        minibatch=0,
        kl_weight=0.0,
        nll_weight=0.0,
        eval_every=80,
        mode="sample",
        group_size=16,
        rewards=(RewardConfig("test_rl:favourite"),),
    )
    policy = run(make_task(tmp_path, config), tmp_path)
    top = TorchEngine(policy).rollout(toy_episodes(40, 30, seed=5), 1)
    assert (top.item[:, 0] == 7).all(), "for histories that were never trained on, too"
    rows = read_metrics(tmp_path / "metrics.jsonl")
    rewards = [row["reward"] for row in rows if "reward" in row]
    assert np.mean(rewards[-5:]) > 0.9 > 0.5 > np.mean(rewards[:3])


def test_one_seed_one_result_to_the_last_bit(tmp_path):
    results = []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        results.append((flat(run(make_task(folder), folder)), (folder / "metrics.jsonl").read_text()))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize(
    "changes", [{"select_by": "last"}, {"select_by": "ndcg@10"}, {"staleness": 2, "reference_every": 2, "refills": 1}]
)
@pytest.mark.parametrize("at", [1, 3, 5])
def test_stopped_and_resumed_is_never_stopped(tmp_path, at, changes):
    config = replace(CONFIG, **changes)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    whole.mkdir(), halves.mkdir()
    expected = flat(run(make_task(whole, config), whole))

    def kill(done, total, text):
        if done == at:
            raise Killed

    task = make_task(halves, config)
    with pytest.raises(Killed):
        run(task, halves, on_progress=kill)
    resumed = flat(run(task, halves))
    assert torch.equal(expected, resumed)
    assert (whole / "metrics.jsonl").read_text() == (halves / "metrics.jsonl").read_text()


def test_only_the_two_newest_checkpoints_and_their_best_are_kept(tmp_path):
    run(make_task(tmp_path, replace(CONFIG, select_by="ndcg@10")), tmp_path)
    assert [path.name for path in checkpoints(tmp_path / "training")] == ["checkpoint-000004", "checkpoint-000006"]
    known = {read_position(path)["best"]["step"] for path in checkpoints(tmp_path / "training")}
    assert {path.name for path in (tmp_path / "training").glob("best-*")} == {f"best-{step:06d}" for step in known}


def test_training_without_steps_keeps_the_policy(tmp_path):
    task = make_task(tmp_path, replace(CONFIG, steps=0))
    assert torch.equal(flat(run(task, tmp_path)), flat(toy_policy(toy_table(), scale=4.0)))


def test_half_a_line_in_the_log_is_dropped_on_resume(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "rew')
    with MetricsLog(tmp_path, LogConfig(wandb="disabled"), "x", resume_from=2) as log:
        log.log({"reward": float("nan")}, 3)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "reward": 0.5}, {"step": 3, "reward": None}]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", r"(?s)in broken.*KeyError.*reward 'test_rl:broken': raised KeyError: .the reward's own words"),
        ("nan", r"reward 'test_rl:broken': nan at row 3, candidate 1.*\n.*at context \d+ .*user \d+.*\n.*codes \["),
    ],
)
def test_a_broken_reward_in_a_remote_worker_comes_back_in_its_own_words(tmp_path, how, said):
    config = replace(CONFIG, rewards=(RewardConfig("test_rl:broken", args={"how": how}),))
    sampler = ChunkSampler(make_task(tmp_path, config))
    reply = pickle.loads(pickle.dumps(sampler.sample_remotely({0: np.arange(4)}, seed=0, version=0, worker=1)))
    assert reply.groups == {}, "nothing of it is trained on"
    with pytest.raises(RolloutError, match=said):
        reply.check()


def test_the_loop_logs_each_term_and_warns_once_also_across_a_resumption(tmp_path, monkeypatch, capfd):
    config = replace(CONFIG, steps=6, eval_every=1, checkpoint_every=1)
    planned = [(0.1 * k, 0.9 - 0.1 * k) for k in range(7)]
    real = rl.validate

    def validate(policy, valid, reward, settings):
        figures, ndcg = real(policy, valid, reward, settings)
        assert {"eval/reward", "eval/rewards/rule", "eval/rewards/rank"} <= figures.keys()
        assert ndcg.mean() == figures["eval/ndcg@10"]
        figures["eval/reward"], mean = planned.pop(0)
        return figures, np.full(len(ndcg), mean)

    def kill(done, total, text):
        if done == 2:
            raise Killed

    monkeypatch.setattr(rl, "validate", validate)
    task = make_task(tmp_path, config)
    with pytest.raises(Killed):
        run(task, tmp_path, on_progress=kill)
    assert "reward hacking" not in capfd.readouterr().err, "two evaluations are not enough"
    run(task, tmp_path)
    assert capfd.readouterr().err.count("reward hacking") == 1
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row[STREAK] for row in rows if STREAK in row] == list(range(7))
    assert [row["step"] for row in rows if row.get(FIRED)] == [3, 4, 5, 6]


def test_an_arm_without_a_reward_has_no_audit(tmp_path):
    run(make_task(tmp_path, replace(CONFIG, rewards=(), objective="nll", steps=1)), tmp_path)
    assert not [key for row in read_metrics(tmp_path / "metrics.jsonl") for key in row if key.startswith("audit/")]


def test_unknown_choices_name_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="rllib, torch"):
        run(make_task(tmp_path, replace(CONFIG, backend="tensorflow")), tmp_path)
    with pytest.raises(ValueError, match=r"unknown objective 'gropo'.*grpo"):
        run(make_task(tmp_path, replace(CONFIG, objective="gropo")), tmp_path / "x")
    with pytest.raises(ValueError, match=r"unknown rl.select_by.*ndcg@10"):
        run(make_task(tmp_path, replace(CONFIG, select_by="recall")), tmp_path / "y")
