"""Contests of objectives: which arms they have, what options reach, what is refused, what notes tell."""

from dataclasses import asdict, replace

import pytest

from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.benchmarks.arms_summary import CONTROL
from sidgym.envs.splits import load_splits
from sidgym.launch.bench import OBJECTIVES, PRESETS, make_bench, make_parser, run_bench_command
from sidgym.launch.bench_arms import arm_name, differences, rewards_of, settings_of, with_arms
from sidgym.launch.bench_runs import setting_of
from sidgym.launch.builders import build_data
from sidgym.launch.config import load_config
from sidgym.launch.pipeline import make_plan
from sidgym.launch.schema import ConfigError, RunConfig


def asked(*given):
    options, rest = make_parser("variants").parse_known_args(list(given))
    return make_bench("variants", options, rest, ["variants", *given])


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_have_every_objective_and_the_control(preset):
    bench = asked("--preset", preset)
    assert list(bench.config.arms) == [*OBJECTIVES, CONTROL]
    assert {arm: rl.objective for arm, rl in bench.config.arms.items()} == {
        **dict(zip(OBJECTIVES, OBJECTIVES)),
        CONTROL: "nll",
    }
    budgets = [
        (rl.steps, rl.contexts_per_step, rl.group_size, rl.epochs, rl.minibatch, rl.rewards)
        for rl in bench.config.arms.values()
    ]
    assert budgets == budgets[:1] * len(budgets)
    assert bench.seeds == PRESETS[preset].seeds
    assert bench.config.directory.name == f"bench-variants-{preset}"


def test_options_reach_all_arms_that_learn_from_rewards():
    bench = asked(
        "--objectives", "grpo", "ecpo", "dr_grpo", "--rl.lr", "5e-5", "--arms.ecpo.lr", "7e-5", "--rewards", "rule"
    )
    assert {arm: rl.lr for arm, rl in bench.config.arms.items()} == {
        "grpo": 5e-5, "ecpo": 7e-5, "dr_grpo": 5e-5, CONTROL: 1e-4,
    }  # fmt: skip
    assert {tuple(term.name for term in rl.rewards) for rl in bench.config.arms.values()} == {("rule",)}


def test_any_arm_of_a_contest_can_be_set_alone(tmp_path, monkeypatch):
    (tmp_path / "own_loss.py").write_text("def cautious(*given): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = ["--arms.cautious.lr", "2e-5", "--arms.nll-only.lr", "3e-5", "--arms.ecpo.lr", "4e-5", "--rl.lr", "5e-5"]
    arms = asked("--objectives", "grpo", "ecpo", "own_loss:cautious", *own).config.arms
    assert {name: arm.lr for name, arm in arms.items()} == {
        "grpo": 5e-5, "ecpo": 4e-5, "cautious": 2e-5, CONTROL: 3e-5,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="no arm of that name; known: grpo, nll_only"):
        asked("--objectives", "grpo", "--arms.gropo.lr", "1e-4")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--rl.objective", "gspo"], "name objectives with --objectives"),
        (["--target-ndcg", "5"], "between 0 and 1"),
        (["--start-of", "nowhere"], "expected the folder of a contest"),
    ],
)
def test_what_would_change_nothing_or_cannot_be_is_refused_before_an_estimate(given, said):
    with pytest.raises(ConfigError, match=said):
        run_bench_command(["variants", *given, "--dry-run"])


def test_every_setting_of_all_arms_can_be_printed(tmp_path, capsys):
    run_bench_command(["variants", "--objectives", "grpo", "--arms.grpo.lr", "2e-5", "--print-config"])
    printed = tmp_path / "printed.toml"
    printed.write_text(capsys.readouterr().out)
    config = load_config(printed)
    assert list(config.arms) == ["grpo", CONTROL]
    assert config.arms["grpo"].lr == 2e-5


def test_notes_tell_reward_budget_rates_and_what_is_set_otherwise():
    notes = asked("--objectives", "rloo", "s_dpo", "gspo", "--arms.s_dpo.kl_weight", "1e-3").notes
    assert notes[0] == "All arms learn from the reward gated_preference (tau=0.1)."
    assert (
        "100 iterations of 64 contexts with 16 candidates each, 2 passes over a rollout in minibatches of 32"
        in notes[1]
    )
    assert "s_dpo kl_weight 0.001 (its own: 0.1)" in notes[2]
    assert "rloo 0.001, s_dpo 0.0001, gspo 0.001; the control's is 0.0001" in notes[3]
    (*_, rates) = asked("--config", "objectives_scientific", "--objectives", "grpo", "rloo", "ecpo").notes
    assert rates.endswith("rloo: rl's, which was chosen for grpo, if for any.")


def test_the_users_options_win_over_the_presets_and_the_folder_is_no_part_of_the_command(tmp_path):
    bench = asked("--preset", "quick", "--rl.steps", "7", "--seeds", "2", "--out", str(tmp_path / "x y"))
    assert {rl.steps for rl in bench.config.arms.values()} == {7}
    assert bench.config.directory == tmp_path / "x y"
    assert [run.directory for run in bench.runs()] == [tmp_path / "x y" / f"seed-{k}" for k in (0, 1)]
    assert bench.command == "sidgym bench variants --preset quick --rl.steps 7 --seeds 2"


def test_objectives_of_ones_own_go_by_their_names(tmp_path, monkeypatch):
    for module in ("own_one", "own_two"):
        (tmp_path / f"{module}.py").write_text("from sidgym.agents.objectives import policy_gradient as cautious\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = RunConfig(name="x")
    arms = with_arms(config, ["own_one:cautious", "own_two:cautious", "grpo"]).arms
    assert {name: rl.objective for name, rl in arms.items()} == {
        "cautious": "own_one:cautious", "own_two-cautious": "own_two:cautious", "grpo": "grpo", CONTROL: "nll",
    }  # fmt: skip
    assert arms[CONTROL].nll_weight == 1.0
    with pytest.raises(ConfigError, match="'oracle' is the name of another system"):
        arm_name("oracle")
    with pytest.raises(ConfigError, match="at least one besides the control"):
        with_arms(config, ["nll", "sft"])


def test_no_objective_of_ones_own_takes_anothers_name(tmp_path, monkeypatch):
    (tmp_path / "own_three.py").write_text(
        "from sidgym.agents.objectives import policy_gradient as grpo\nslow = nll_only = grpo\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = RunConfig(name="x", arms={"slow": RlConfig(lr=1e-5), "own_three-slow": RlConfig(lr=1.0)})
    for order in (["own_three:grpo", "grpo"], ["grpo", "own_three:grpo"]):
        arms = {name: rl.objective for name, rl in with_arms(config, order).arms.items()}
        assert arms == {"own_three-grpo": "own_three:grpo", "grpo": "grpo", CONTROL: "nll"}
    assert list(with_arms(config, ["own_three:nll_only"]).arms) == ["own_three-nll_only", CONTROL]
    with pytest.raises(ConfigError, match="would go by the name 'own_three-slow', as another one does"):
        with_arms(config, ["own_three-slow", "own_three:slow"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--metric", "ndgc@10"], "got 'ndgc@10'"),
        (["--metric", "hr@10", "--eval.ks", "5", "20"], "got 'hr@10'"),
        (["--metric", "preference@10", "--data.name", "movielens"], "got 'preference@10'"),
        (["--data.name", "movielens", "--eval.ks", "5", "20"], "got 'ndcg@10'"),
    ],
)
def test_a_metric_that_will_not_be_measured_is_refused_before_training(given, said):
    with pytest.raises(ConfigError, match=said):
        asked("--objectives", "grpo", *given)
    assert asked("--metric", "hr@5").metric == "hr@5"
    assert asked("--metric", "mrr@5", "--eval.metrics", "mrr").metric == "mrr@5"


LOG = """
import numpy as np
from sidgym.envs.datasets import DataSet
from sidgym.envs.records import Catalogue, Interactions


def load(config, seed):
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(80), 8)
    titles = [f"thing {n}" for n in range(30)]
    catalogue = Catalogue(np.array(titles), titles, titles, [()] * 30)
    order = np.tile(np.arange(8), 80)
    return DataSet("own", catalogue, Interactions(user, rng.integers(0, 30, len(user)), order))
"""


def test_a_log_is_cut_alike_for_all_seeds_of_a_contest(tmp_path, monkeypatch):
    (tmp_path / "own_log.py").write_text(LOG)
    monkeypatch.syspath_prepend(tmp_path)
    bench = asked("--data.name", "own_log:load", "--seeds", "2", "--seed", "4", "--out", str(tmp_path / "out"))
    tested = []
    for run in (*bench.runs(), replace(bench.config, split_seed="seed", seed=5, name="apart")):
        work = tmp_path / f"work-{len(tested)}"
        work.mkdir()
        build_data(run, work, None, "data")
        tested.append(load_splits(work).test.user.tolist())
    assert tested[0] == tested[1] != tested[2]
    plans = [make_plan(run) for run in (bench.config, replace(bench.config, split_seed="seed"))]
    assert plans[0].stages["data"].hash != plans[1].stages["data"].hash
    assert setting_of(bench.config) != setting_of(replace(bench.config, split_seed=5))
    for given in ([], ["--data.name", "movielens", "--data.split", "leave_one_out"]):
        assert asked(*given).config.split_seed == "seed"


def test_rewards_are_told_in_words():
    terms = [asdict(term) for term in (RewardConfig("rule"), RewardConfig("rank", 0.5, {"k": 5, "gate": False}))]
    assert rewards_of(terms) == "rule + 0.5 rank (k=5, gate=False)"
    assert rewards_of([]) == ""


def test_differences_are_told_with_what_empty_settings_stand_for():
    told = differences({name: settings_of(RlConfig(objective=name)) for name in ("grpo", "dapo", "rloo")})
    assert told["dapo"]["refills"] == 3
    assert told["rloo"]["advantage"] == "leave_one_out"
    assert "steps" not in told["grpo"]


def test_trials_of_different_settings_are_not_compared(tmp_path):
    one = replace(load_config(None), out=str(tmp_path))
    hashes = {setting_of(config) for config in (one, replace(one, seed=3), replace(one, arms={"a": RlConfig(lr=1.0)}))}
    assert len(hashes) == 1  # neither seed nor arm
    for other in (replace(one, rl=RlConfig(steps=3)), replace(one, sft=replace(one.sft, epochs=1))):
        assert setting_of(other) not in hashes


def test_an_edited_reward_is_another_setting(tmp_path, monkeypatch):
    source = tmp_path / "own_reward.py"
    monkeypatch.syspath_prepend(tmp_path)
    config = replace(load_config(None), rl=RlConfig(rewards=(RewardConfig("own_reward:fresh"),)))
    hashes = []
    for text in ("fresh = 1", "fresh = 2", "fresh = 1"):
        source.write_text(text)
        hashes.append(setting_of(config))
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize(
    ("given", "said"), [(["nothing"], "invalid choice"), (["variants", "--seeds", "0"], "whole number of at least 1")]
)
def test_malformed_commands_are_explained(given, said, capsys):
    with pytest.raises(SystemExit) as stop:
        run_bench_command(given)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
