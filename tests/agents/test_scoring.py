"""Asking a preference model inside RL: what is remembered never changes a score, and what it costs is told."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy_episodes, toy_table
from trainers import local_ray, same, toy_task

from sidgym.agents.config import LogConfig, RewardConfig, RlConfig, ScoringConfig
from sidgym.agents.logging import TIMES, MetricsLog, read_metrics
from sidgym.agents.rl import RlTask, TorchTrainer, train_rl
from sidgym.agents.scoring import (
    ROWS,
    WIDTH,
    Account,
    Actors,
    Here,
    Scorer,
    check_scoring,
    gpus_of_scoring,
    row_numbers,
    scorer,
    scoring_figures,
    split_times,
)
from sidgym.envs.datasets import DataSet
from sidgym.envs.gate import Gate
from sidgym.envs.preference import LoggedPreference
from sidgym.envs.preference.network import Network, Shape
from sidgym.envs.records import PAD_ITEM, Catalogue, Interactions
from sidgym.envs.reward_context import RewardContext

ITEMS, LENGTH = 30, 5


class Plain:
    """A score that any history and item alone decide, with an account of what it was asked."""

    def __init__(self) -> None:
        self.shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        self.pairs: list[tuple[bytes, int]] = []

    def score(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        self.shapes.append((history.shape, items.shape))
        rows, columns = np.nonzero(items != PAD_ITEM)
        self.pairs += [(history[r].tobytes(), int(items[r, c])) for r, c in zip(rows, columns)]
        weights = np.arange(1, history.shape[1] + 1)
        past = ((history + 1) * weights).sum(axis=1) % 97
        return np.where(items == PAD_ITEM, 0.0, (past[:, None] * 31 + items * 7) % 101 / 101).astype(np.float32)


def asked(rng: np.random.Generator, rows: int, width: int, distinct: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Histories of which some are equal, and items of which some are equal or missing."""
    past = rng.integers(PAD_ITEM, ITEMS, size=(distinct, LENGTH))
    return past[rng.integers(0, distinct, rows)], rng.integers(PAD_ITEM, ITEMS, size=(rows, width))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 7, 1 << 12]),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5),
)
def test_whatever_is_remembered_scores_are_those_of_the_model(seed, cache, calls):
    rng, model = np.random.default_rng(seed), Plain()
    remembering = Scorer(Here(model), cache)
    for rows, width in calls:
        history, items = asked(rng, rows, width)
        np.testing.assert_array_equal(remembering.score(history, items), Plain().score(history, items))
    assert set(model.shapes) <= {((ROWS, LENGTH), (ROWS, WIDTH))}, "a block has the same shape whatever is asked"


def test_what_is_known_is_not_asked_again():
    model, (history, items) = Plain(), asked(np.random.default_rng(0), 20, 8)
    remembering = Scorer(Here(model), 1 << 16)
    remembering.score(history, items)
    pairs = {(row.tobytes(), int(item)) for row, own in zip(history, items) for item in own if item != PAD_ITEM}
    assert sorted(model.pairs) == sorted(pairs), "each pair once, and nothing else"
    first = remembering.account.taken()
    assert (first.asked, first.remembered) == ((items != PAD_ITEM).sum(), (items != PAD_ITEM).sum() - len(pairs))
    remembering.score(history[::-1], items[::-1])
    assert len(model.pairs) == len(pairs)
    again = remembering.account.taken()
    assert again.remembered == again.asked == first.asked
    assert again.seconds > 0


def test_another_history_or_another_length_is_asked():
    model = Plain()
    remembering = Scorer(Here(model), 64)
    for history in ([[PAD_ITEM, 3]], [[3, PAD_ITEM]], [[3]], [[PAD_ITEM, PAD_ITEM, 3]]):
        past = np.array(history)
        np.testing.assert_array_equal(remembering.score(past, np.array([[4]])), Plain().score(past, np.array([[4]])))
    assert len(model.pairs) == 4
    numbers = row_numbers(np.stack(np.unravel_index(np.arange(31**3), (31, 31, 31)), axis=1) - 1)
    assert len(np.unique(numbers)) == 31**3


def test_without_a_cache_the_model_is_asked_in_the_shape_that_it_is_asked_for():
    model, (history, items) = Plain(), asked(np.random.default_rng(0), 3, 4)
    plain = Scorer(Here(model), 0)
    np.testing.assert_array_equal(plain.score(history, items), Plain().score(history, items))
    assert model.shapes == [((3, LENGTH), (3, 4))]


def test_a_model_that_answers_in_another_shape_is_refused():
    class Short(Plain):
        def score(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
            return np.zeros((len(items), 1))

    with pytest.raises(ValueError, match=r"expected scores \(16, 16\), got \(16, 1\)"):
        Scorer(Here(Short()), 8).score(np.zeros((2, 3), int), np.zeros((2, 3), int))


def network_model(items: int = ITEMS, length: int = LENGTH) -> LoggedPreference:
    """The shipped model with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(Shape(items, 24, 4, length, 32, 4), torch.randn(items, 24))
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return LoggedPreference(network, {})


def test_real_scores_have_the_same_bits_whatever_was_asked_before():
    rng, model = np.random.default_rng(0), network_model()
    history, items = asked(rng, 200, 16, distinct=150)
    whole = Scorer(Here(model), 1 << 16).score(history, items)
    pieces, small = Scorer(Here(model), 1 << 16), Scorer(Here(model), 3)
    for rows in np.array_split(rng.permutation(200), 23):
        columns = rng.permutation(16)
        for one in (pieces, small):
            answer = one.score(history[rows][:, :], items[rows][:, columns])
            assert answer.tobytes() == whole[rows][:, columns].tobytes()
    np.testing.assert_allclose(whole, model.score(history, items), atol=1e-6)


def test_figures_of_time_are_kept_from_all_others():
    figures = {"reward": 0.5, **scoring_figures(Account(seconds=3.0, asked=40.0, remembered=30.0), processes=2)}
    plain, times = split_times(figures, wall=10.0)
    assert plain == {"reward": 0.5}
    assert times == {
        "time/iteration": 10.0,
        "time/preference_share": 0.15,
        "time/preference_seconds": 1.5,
        "time/preference_remembered": 0.75,
    }
    assert split_times({"reward": 1.0, **scoring_figures(None)}, 2.0) == ({"reward": 1.0}, {"time/iteration": 2.0})


@pytest.mark.parametrize(
    ("replicas", "share", "gpus"), [(0, 1.0, 0), (3, 0.0, 0), (4, 0.25, 1), (3, 0.4, 2), (3, 0.6, 3), (2, 2.0, 4)]
)
def test_gpus_that_actors_take_up(replicas, share, gpus):
    assert gpus_of_scoring(ScoringConfig(replicas=replicas, gpus=share)) == gpus


@pytest.mark.parametrize(
    ("scoring", "said"),
    [
        (ScoringConfig(gpus=0.5), "set preference.scoring.replicas, too"),
        (ScoringConfig(replicas=1, gpus=1.5), "a share of one GPU or a whole number, got 1.5"),
        (ScoringConfig(replicas=1), "rl: preference.scoring.replicas = 1 asks Ray actors, which backend 'torch'"),
    ],
)
def test_settings_that_cannot_work_are_refused(scoring, said):
    with pytest.raises(ValueError, match=said):
        check_scoring(scoring, RlConfig(backend="torch"))
    check_scoring(ScoringConfig(replicas=2, gpus=0.5), RlConfig(backend="rllib"))


# In the loop ---------------------------------------------------------------------------------------------------------


def gated_task(folder: Path, cache: int = 1 << 12, **changes: object) -> RlTask:
    """A toy task whose reward reads a preference model."""
    task = toy_task(folder, rewards=(RewardConfig("gated", args={"tau": -1.0}),), **changes)
    if not (folder / "preference").exists():
        network_model().save(folder / "preference")
        np.save(folder / "embeddings.npy", np.random.default_rng(0).normal(size=(30, 4)))
    paths = {"preference": str(folder / "preference"), "embeddings": str(folder / "embeddings.npy")}
    return replace(task, **paths, scoring=ScoringConfig(cache=cache))


def test_the_loop_logs_the_share_of_scoring_beside_figures_that_are_the_same_every_time(tmp_path):
    valid = toy_episodes(6, 30, seed=9)

    def run(name: str, cache: int) -> Path:
        folder = tmp_path / name
        task = gated_task(tmp_path, cache, backend="torch", steps=3, eval_every=3, checkpoint_every=3)

        def log(step: int | None) -> MetricsLog:
            return MetricsLog(folder, LogConfig(wandb="disabled"), name, resume_from=step)

        train_rl(task, valid, folder / "training", log)
        return folder

    much, little = run("much", 1 << 12), run("little", 1)
    assert (much / "metrics.jsonl").read_text() == (little / "metrics.jsonl").read_text()
    assert "time/" not in (much / "metrics.jsonl").read_text()
    assert "audit/gated/raw" in (much / "metrics.jsonl").read_text(), "there was something to score"
    rows = read_metrics(much / TIMES)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(0 < row["time/preference_share"] < 1 for row in rows)
    assert rows[-1]["time/preference_remembered"] > read_metrics(little / TIMES)[-1]["time/preference_remembered"]


def test_a_resumed_log_drops_later_times(tmp_path):
    for resume_from, steps in ((None, (1, 2, 3)), (2, (3,)), (None, (1,))):
        with MetricsLog(tmp_path, LogConfig(wandb="disabled"), "x", resume_from) as log:
            for step in steps:
                log.log_times({"time/iteration": float("nan") if step == 2 else 1.0}, step)
        kept = [json.loads(line)["step"] for line in (tmp_path / TIMES).read_text().splitlines()]
        assert kept == ([1] if steps == (1,) else [1, 2, 3])
    assert read_metrics(tmp_path / TIMES) == [{"step": 1, "time/iteration": 1.0}]


def test_an_arm_that_reads_no_preference_loads_no_model(tmp_path):
    task = gated_task(tmp_path)
    plain = replace(task, preference=str(tmp_path / "nowhere"), config=replace(task.config, rewards=()))
    trainer = TorchTrainer(replace(plain, config=replace(plain.config, rewards=(RewardConfig("rule"),))))
    assert trainer.reward.context.preference is None
    assert not [name for name in trainer.step(0) if name.startswith("time/")]
    with pytest.raises(FileNotFoundError, match="holds no saved preference model"):
        replace(task, preference=str(tmp_path / "nowhere")).load_reward(trainer.policy.table)


class CatalogueRelevance:
    """A relevance of a user's own, which reads the catalogue and does not say so."""

    def __init__(self, context: RewardContext) -> None:
        self.known = len(context.require("catalogue", "mine").ids)

    def __call__(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        return items / self.known


def test_a_relevance_of_ones_own_that_the_gate_names_finds_the_catalogue(tmp_path):
    task = gated_task(tmp_path)
    name = f"{__name__}:CatalogueRelevance"
    Gate(name, {name: 0.5}).save(tmp_path / "preference")
    ids = np.array([f"item{n}" for n in range(30)])
    log = Interactions(np.zeros(2, int), np.arange(2), np.arange(2))
    DataSet("toy", Catalogue(ids, ("",) * 30, ("",) * 30, ((),) * 30), log).save(tmp_path / "data")
    config = replace(task.config, rewards=(RewardConfig("gated"),))
    reward = replace(task, data=str(tmp_path / "data"), config=config).load_reward(toy_table()).rewards["gated"]
    assert reward.tau == 0.5
    assert reward.relevance(np.zeros((1, 2), int), np.array([[3, 15]])).tolist() == [[0.1, 0.5]]


def test_actors_need_ray_that_runs(tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(RuntimeError, match="Ray does not run"):
        scorer(str(tmp_path), ScoringConfig(replicas=1)).score(np.zeros((1, 2), int), np.zeros((1, 2), int))


@pytest.mark.slow
@pytest.mark.ray
def test_actors_answer_as_the_model_does_and_are_started_again(tmp_path):
    ray = pytest.importorskip("ray")
    model = network_model()
    model.save(tmp_path / "preference")
    history, items = asked(np.random.default_rng(1), 90, 20, distinct=70)
    here = Scorer(Here(model), 1 << 12).score(history, items)
    with local_ray(processors=2):
        actors = Actors(str(tmp_path / "preference"), ScoringConfig(replicas=2))
        there = Scorer(actors, 1 << 12)
        there.start()
        assert sorted(actors.handles) == [0, 1]
        assert there.score(history, items).tobytes() == here.tobytes()
        ray.kill(actors.handles[0], no_restart=True)
        again = Scorer(actors, 1 << 12)
        assert again.score(history, items).tobytes() == here.tobytes()
        ray.kill(actors.handles[1], no_restart=False)  # as when its machine runs out of memory
        assert Scorer(actors, 1 << 12).score(history, items).tobytes() == here.tobytes()
        other = Actors(str(tmp_path / "preference"), ScoringConfig(replicas=2))
        other.start()
        assert other.handles[1]._actor_id == actors.handles[1]._actor_id, "every process asks the same ones"


@pytest.mark.slow
@pytest.mark.ray
def test_rllib_scores_by_actors_with_the_bits_of_one_process(tmp_path):
    pytest.importorskip("ray")
    from sidgym.agents.rllib import RllibTrainer

    task = gated_task(tmp_path)
    plain = TorchTrainer(task)
    expected, _ = split_times(plain.step(0), 1.0)
    with local_ray(processors=4):
        apart = replace(task.config, env_runners=2)
        trainer = RllibTrainer(replace(task, config=apart, scoring=ScoringConfig(replicas=2)))
        try:
            figures, times = split_times(trainer.step(0), 1.0)
            assert same(trainer.weights(), plain.weights())
        finally:
            trainer.close()
    assert figures["reward"] == expected["reward"]
    assert times["time/preference_seconds"] > 0
