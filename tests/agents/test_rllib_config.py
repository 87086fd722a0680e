"""``GRPOConfig``: used as RLlib's own configurations are, in a running algorithm and under Tune."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from trainers import CONFIG, TorchTrainer, local_ray, same, steps, toy_task

from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.agents.recipes import completed

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray

from ray import tune  # noqa: E402
from ray.rllib.callbacks.callbacks import RLlibCallback  # noqa: E402

from sidgym.agents.rllib import GRPOConfig  # noqa: E402
from sidgym.agents.rllib_algorithm import GroupAlgorithm  # noqa: E402

SETTINGS = {name: value for name, value in vars(CONFIG).items() if value != getattr(RlConfig(), name)}
"""What ``trainers.CONFIG`` sets."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray(2):
        yield


def toy_config(folder: Path, **settings) -> GRPOConfig:
    """The settings of ``toy_task``, said in the public way."""
    task = toy_task(folder)
    paths = {"policy": task.policy, "contexts": task.contexts, "seed": task.seed}
    return GRPOConfig().environment("SIDGym/NextItem-v0", env_config=paths).training(**SETTINGS, **settings)


def test_settings_reach_the_task(tmp_path):
    config = toy_config(tmp_path, objective="ecpo", clip=0.3, rewards=["rule", {"name": "rank", "weight": 0.5}])
    config.env_runners(num_env_runners=8).learners(num_learners=2, num_gpus_per_learner=1)
    task = config.task
    assert (task.config.objective, task.config.clip, task.config.lr) == ("ecpo", 0.3, CONFIG.lr)
    assert task.config.rewards == (RewardConfig("rule"), RewardConfig("rank", 0.5))
    assert (task.config.env_runners, task.config.learners, task.config.device) == (8, 2, "cuda")
    assert (task.seed, task.policy) == (3, str(tmp_path / "policy"))
    assert GRPOConfig().for_task(task).task == task
    # Tune hands a configuration over as a dictionary.
    assert GRPOConfig().update_from_dict(config.to_dict()).task == task


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda c: c.training(learning_rate=1.0), "unknown training setting 'learning_rate'; known: .*lr"),
        (lambda c: c.training(num_epochs=2), r"num_epochs=...\) is not for this algorithm; use epochs"),
        (lambda c: c.training(env_runners=2), r"use \.env_runners\(num_env_runners=...\)"),
        (lambda c: c.training(steps=2), "the caller or Tune decides when to stop"),
        (lambda c: c.environment("CartPole-v1"), "unknown environment 'CartPole-v1'; known: SIDGym/NextItem-v0"),
        (lambda c: c.environment(env_config={"context": "x"}), "unknown env_config 'context'; known: .*contexts"),
        (lambda c: c.validate(), "env_config has no 'policy'"),
    ],
)
def test_what_is_wrong_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call(GRPOConfig())


def test_settings_that_cannot_work_are_refused_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match="unknown objective 'gropo'"):
        toy_config(tmp_path, objective="gropo").validate()
    with pytest.raises(ValueError, match="needs a custom_evaluation_function"):
        toy_config(tmp_path).evaluation(evaluation_interval=1).validate()


class Diary(RLlibCallback):
    """Notes what it is called for."""

    entries: list[str] = []  # noqa: RUF012 - one diary for all

    def on_algorithm_init(self, *, algorithm, **kwargs):
        self.entries.append("init")

    def on_train_result(self, *, algorithm, result, **kwargs):
        self.entries.append("result")
        result["doubled"] = 2 * result["env_runners"]["figures"]["reward"]

    def on_checkpoint_loaded(self, *, algorithm, **kwargs):
        self.entries.append(f"loaded {algorithm.position}")


def figures(result):
    return {**result["env_runners"]["figures"], **result["learners"]["default_policy"]["figures"]}


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("changes", [{"epochs": 1, "minibatch": 0}, {}])
def test_it_says_so_where_the_objective_makes_no_difference(tmp_path, capfd, changes):
    toy_config(tmp_path, objective="ecpo").training(**changes).build_algo().stop()
    assert ("cannot differ from GRPO here" in capfd.readouterr().err) == bool(changes)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_algorithm_of_ones_own_learns_what_the_plain_trainer_does_and_goes_back(tmp_path, runners):
    """Weights, optimiser, reference and waiting rollouts go back, by RLlib's own state and by its checkpoint."""
    changes = {"staleness": 1, "reference_every": 2}
    plain = TorchTrainer(toy_task(tmp_path, **changes))
    Diary.entries.clear()
    config = toy_config(tmp_path, **changes).callbacks(Diary).env_runners(num_env_runners=runners)
    algorithm = config.build_algo()
    learner = algorithm.learner_group._learner

    def weights():
        return {name: value.clone() for name, value in learner.policy.model.state_dict().items()}

    try:
        results = [algorithm.train() for _ in range(3)]
        for result, expected in zip(results, steps(plain, range(3)), strict=True):
            assert expected.items() <= figures(result).items()
            assert result["doubled"] == 2 * expected["reward"]
            assert result["env_runners"]["episode_return_mean"] == expected["reward"]
        assert Diary.entries == ["init", "result", "result", "result"]
        middle, state = weights(), algorithm.get_state()
        saved = algorithm.save(str(tmp_path / "saved"))
        further = [figures(algorithm.train()) for _ in range(3)]
        end, tensors = weights(), learner.tensors()
        assert not same(middle, end)
        for go_back in (lambda: algorithm.set_state(state), lambda: algorithm.restore(saved)):
            go_back()
            assert same(weights(), middle)
            assert (algorithm.position, algorithm.updates, learner.updates) == (3, 12, 12)
            assert [figures(algorithm.train()) for _ in range(3)] == further
            assert same(weights(), end)
            assert same(learner.tensors(), tensors)
        assert "loaded 3" in Diary.entries
    finally:
        algorithm.stop()
    fresh = GroupAlgorithm.from_checkpoint(saved.checkpoint.path)
    try:
        assert [figures(fresh.train()) for _ in range(3)] == further
    finally:
        fresh.stop()


class FailsOnce(RLlibCallback):
    """Ends the first trial in its second iteration, the first time; leaves notes of what it was called for."""

    def on_train_result(self, *, algorithm, result, **kwargs):
        note = Path(algorithm.task.refused) / "failed"
        if result["training_iteration"] == 2 and not note.exists():
            note.parent.mkdir(exist_ok=True)
            note.touch()
            raise OSError("the trial's machine is gone")

    def on_checkpoint_loaded(self, *, algorithm, **kwargs):
        (Path(algorithm.task.refused) / f"loaded-{algorithm.position}").touch()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_tune_sweeps_saves_and_recovers(tmp_path):
    config = toy_config(tmp_path, objective=tune.grid_search(["grpo", "ecpo"])).training(lr=tune.grid_search([2e-3]))
    config.environment(env_config={"refused": str(tmp_path / "notes")}).callbacks(FailsOnce)
    found = tune.Tuner(
        config.algo_class,
        param_space=config,
        tune_config=tune.TuneConfig(max_concurrent_trials=1, metric="env_runners/figures/reward", mode="max"),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path / "tune"),
            stop={"training_iteration": 2},
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    ).fit()
    assert not found.errors
    assert (tmp_path / "notes" / "loaded-1").exists(), "the second try began with what the first one had saved"
    by_objective = {result.metrics["config"]["rl"]["objective"]: result for result in found}
    assert by_objective.keys() == {"grpo", "ecpo"}
    for objective, result in by_objective.items():
        expected = steps(TorchTrainer(toy_task(tmp_path, objective=objective, lr=2e-3)), range(2))[-1]
        assert expected.items() <= figures(result.metrics).items()
        assert result.checkpoint is not None
    found.get_best_result()


def test_defaults_are_those_of_the_command_line(tmp_path):
    task = toy_task(tmp_path)
    paths = {"policy": task.policy, "contexts": task.contexts}
    own = GRPOConfig().environment("SIDGym/NextItem-v0", env_config=paths).task.config
    assert own == completed(RlConfig())
