"""``sidgym bench variants`` without training: arms, options, progress, the estimate, the page."""

import io
import json
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from html import escape

import numpy as np
import pytest
from test_report import Page, check_page

from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.benchmarks.arms_summary import CONTROL, Trial, summarise_arms
from sidgym.benchmarks.arms_words import failures, verdict
from sidgym.envs.segments import Bands
from sidgym.envs.splits import load_splits
from sidgym.launch.bench import OBJECTIVES, PRESETS, make_bench, make_parser, run_bench_command
from sidgym.launch.bench_arms import arm_name, differences, rewards_of, settings_of, with_arms
from sidgym.launch.bench_estimate import makespan
from sidgym.launch.bench_figures import arm_styles, cost_section, curve_section, hacking_section, pair_section
from sidgym.launch.bench_report import console_table, write_report
from sidgym.launch.bench_runs import Step, setting_of
from sidgym.launch.bench_table import TrialTable
from sidgym.launch.builders import build_data
from sidgym.launch.charts import band_chart, interval_chart, path_chart, styles
from sidgym.launch.config import load_config
from sidgym.launch.pipeline import make_plan
from sidgym.launch.schema import ConfigError, RunConfig

HOSTILE = "<script>alert('1')</script> & \"co\""


# Arms and options ----------------------------------------------------------------------------------------------------


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
    ("given", "said"), [(["nothing"], "invalid choice"), (["variants", "--seeds", "0"], "expected at least 1")]
)
def test_malformed_commands_are_explained(given, said, capsys):
    with pytest.raises(SystemExit) as stop:
        run_bench_command(given)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


# Progress ------------------------------------------------------------------------------------------------------------


def test_makespan_gives_jobs_to_whoever_is_free():
    assert makespan([3.0, 1.0, 1.0, 2.0], 2) == 4.0
    assert makespan([], 2) == 0.0


def test_progress_in_a_log_is_a_line_a_trial():
    steps = [Step(seed, system, RunConfig(name="x"), ()) for seed in (0, 1) for system in ("grpo", CONTROL)]
    stream, ended = io.StringIO(), []

    def on_end(step):
        ended.append(step)
        return "ndcg@10 0.1"

    with TrialTable(steps, "A contest", stream) as table:
        table.finished(steps[0])
        display = table.showing(steps[1:], on_end)
        display.update(0, 1, 4, "reward 0.1")
        assert "1/4" in [str(cell) for column in table.table().columns for cell in column.cells]
        display.end(0, failed=False)
        display.end(1, failed=True)
    assert ended == [steps[1]]
    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(r"seed 0, NLL only: done, \d+ s: ndcg@10 0\.1 \(2 of 4 trials, about [\d.]+ min left\)", first)
    assert second.startswith("seed 1, grpo: FAILED (3 of 4 trials, about ")


# The page ------------------------------------------------------------------------------------------------------------


def make_summary(arms=("grpo", "ecpo"), seeds=(0, 1, 2), name="Variants"):
    trials = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        base = 0.3 + 0.1 * rng.random(30)
        for place, system in enumerate(("sft", CONTROL, *arms, "random", "oracle")):
            value = np.clip(base + 0.05 * place + rng.normal(0, 0.01, 30), 0, 1)
            log = [
                {
                    "step": s,
                    "eval/reward": 0.3 + 0.02 * s,
                    "eval/ndcg@10": 0.2 - 0.01 * s,
                    "grad_norm": 1.0 + s,
                    "entropy": 2.0,
                }
                for s in range(6)
            ]
            figures = {"preference@10": value, "ndcg@10": value, "hr@10": value, "tail@10": value}
            cost = {"seconds": 5.0, "steps": 5.0, "rollouts": 800.0, "updates": 10.0, "flops": 3e9}
            trained = system in (*arms, CONTROL)
            bands = {"history": Bands(("short", "long"), np.arange(30) % 2)}
            whole = {"har": 0.1, "trie/legal_mass": 0.8}
            trials.append(Trial(system, seed, figures, whole, bands, log if trained else (), cost if trained else {}))
    summary = summarise_arms(trials, bootstrap=50) | {
        "title": name,
        "command": f"sidgym bench {name}",
        "failed": [f"{name}, seed 9"],
        "notes": [name],
        "config": name,
        "settings": {arm: {"objective": arm, "lr": 1e-3} for arm in arms},
        "environment": {"python": name},
        "commit": None,
    }
    summary["verdict"], summary["failures"] = [list(said) for said in verdict(summary)], failures(summary)
    return json.loads(json.dumps(summary))  # as it is read back from the file


def render(tmp_path, **settings) -> str:
    write_report(tmp_path / "report.html", make_summary(**settings))
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_asks_nothing_of_the_network(tmp_path):
    check_page(render(tmp_path))


def test_the_page_answers_its_questions(tmp_path):
    text = render(tmp_path)
    summary = make_summary()
    for _, sentence in summary["verdict"]:
        assert escape(sentence) in text
    for head in (
        "Differences, paired by user",
        "Learning curves",
        "Hacking plot",
        "Cost",
        "Whom each serves",
        "Where each fails",
    ):
        assert head in text
    assert "Missing: Variants, seed 9 is not finished." in text
    assert text.count('<svg class="chart"') >= 4 + 4 + 1 + 4  # differences, curves, hacking, cost


def test_dots_are_full_where_a_difference_is_shown_after_correction():
    summary, style = make_summary(), arm_styles(["sft", CONTROL, "grpo", "ecpo"])
    hollow = [pair_section({**summary, "pairs": [p | {"p_holm": p_holm} for p in summary["pairs"]]}, style)
              for p_holm in (0.001, 0.06)]  # fmt: skip
    assert all(pair["low"] > 0 for pair in summary["pairs"] if pair["b"] == "sft")  # by itself
    assert [text.count("var(--paper)") for text in hollow] == [0, 2 * 5]


def test_rewards_of_their_own_share_no_chart():
    summary, style = make_summary(), arm_styles(["sft", CONTROL, "grpo", "ecpo"])
    assert "Validation reward by" in cost_section(summary, style)
    assert "Validation reward by" not in cost_section(summary | {"own_rewards": True}, style)
    own = summary | {"own_rewards": True}
    drawn = hacking_section(own, style)
    assert "Hacking plot" not in drawn
    assert drawn.count('<svg class="chart"') == len(summary["curves"]["eval/reward"]) > 1
    assert "Validation reward</figcaption>" in curve_section(summary, style)
    assert "Validation reward</figcaption>" not in curve_section(own, style)


def test_the_page_escapes_what_it_is_told(tmp_path):
    text = render(tmp_path, arms=("a<i>rm", "grpo"), name=HOSTILE)
    assert "<script" not in text
    assert "<i>" not in text
    assert Page(text).open == []


def test_one_seed_and_equal_bytes(tmp_path):
    assert render(tmp_path, seeds=(4,)) == render(tmp_path, seeds=(4,))
    assert console_table(make_summary()).row_count == 4


def test_colours_go_by_name_and_no_two_arms_look_alike():
    names = [f"arm{number}" for number in range(14)]
    style = arm_styles(["sft", CONTROL, *names])
    assert len({(one.colour, one.dash) for one in style.values()}) == 16
    assert arm_styles(reversed(names))["arm3"] == style["arm3"]


def test_charts_have_their_data():
    style = styles(["a", "b"])
    rows = [[0.0, 1.0, 0.5, 1.5], [10.0, 2.0, 1.0, 3.0]]
    banded, single = (
        band_chart("c", {"a": r}, "x", "y", style) for r in (rows, [[r[0], r[1], r[1], r[1]] for r in rows])
    )
    assert banded.count('id="c-FillBetweenPolyCollection') == 1
    assert "FillBetween" not in single
    path = path_chart("p", {"a": [(0, 1), (1, 0)], "b": [(0, 1), (2, 2)]}, "x", "y", style)
    assert "a ends at 1, 0; b ends at 2, 2" in path
    assert "var(--paper)" in path  # the hollow start
    plain = {"mean": 0.1, "low": -0.1, "high": 0.3}
    thick = interval_chart("i", [("a", {**plain, "inner": {"low": 0.05, "high": 0.15}}, "#000000")], "x")
    assert thick.count("<path") > interval_chart("i", [("a", plain, "#000000")], "x").count("<path")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium here")
def test_the_page_renders_in_a_browser(tmp_path):
    """In a browser as wide as a phone all charts are there and nothing is complained of."""
    render(tmp_path)
    page = tmp_path / "report.html"
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--window-size=390,900",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000"]
    shown = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in shown.stderr
    assert shown.stdout.count('<svg class="chart"') == page.read_text(encoding="utf-8").count('<svg class="chart"') > 0
    charts = re.findall(r'<svg class="chart".*?</svg>', shown.stdout, flags=re.S)
    assert all(chart.count("<path") > 3 for chart in charts)
    assert shown.stdout.rstrip().endswith("</html>")
