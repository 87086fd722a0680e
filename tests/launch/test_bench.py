"""``sidgym bench variants`` without training: arms, options, the line a trial, progress, the estimate, the page."""

import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape

import numpy as np
import pytest
from test_report import Page

from sidgym.agents.config import RlConfig
from sidgym.benchmarks.arms_summary import CONTROL, Trial, summarise_arms
from sidgym.benchmarks.arms_words import failures, verdict
from sidgym.envs.records import PAD_ITEM
from sidgym.envs.segments import Bands
from sidgym.launch import bench_trials
from sidgym.launch.bench import OBJECTIVES, PRESETS, make_bench, make_parser, run_bench_command
from sidgym.launch.bench_arms import arm_name, differences, settings_of, with_arms
from sidgym.launch.bench_estimate import makespan
from sidgym.launch.bench_figures import arm_styles
from sidgym.launch.bench_report import console_table, write_report
from sidgym.launch.bench_runs import Step, setting_of
from sidgym.launch.bench_table import TrialTable
from sidgym.launch.charts import band_chart, interval_chart, path_chart, styles
from sidgym.launch.config import load_config
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


@pytest.mark.parametrize(
    ("given", "said"), [(["nothing"], "invalid choice"), (["variants", "--seeds", "0"], "expected at least 1")]
)
def test_malformed_commands_are_explained(given, said, capsys):
    with pytest.raises(SystemExit) as stop:
        run_bench_command(given)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


# Trials --------------------------------------------------------------------------------------------------------------


def test_lines_are_appended_and_a_cut_one_spoils_no_other(tmp_path):
    bench_trials.append_line(tmp_path, {"a": 1})
    with (tmp_path / bench_trials.RESULTS).open("a") as file:
        file.write('{"a": 2, "b')
    bench_trials.append_line(tmp_path, {"a": 3})
    assert bench_trials.read_lines(tmp_path) == [{"a": 1}, {"a": 3}]
    assert bench_trials.read_lines(tmp_path / "nowhere") == []


def test_the_newest_line_of_a_trial_counts_if_its_results_stand(tmp_path):
    folder = tmp_path / "seed-0" / "evaluate" / "rl_grpo"
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text(json.dumps({"complete": True, "inputs_hash": "new"}))
    line = {"system": "grpo", "seed": 0, "run": "seed-0", "setting": "s", "key": "new"}
    lines = [
        {**line, "key": "old"},
        {**line, "n": 1},
        {**line, "n": 2},
        {**line, "setting": "t"},
        {**line, "seed": 1, "run": "seed-1"},
    ]
    assert bench_trials.newest(lines, tmp_path, "s") == [{**line, "n": 2}]


def test_shares_of_head_and_tail_by_hand():
    counts = np.array([6, 3, 2, 1, 0])  # a third of 12 events: item 0; the next: items 1 (and what begins before 8)
    items = np.array([[0, 4, PAD_ITEM], [PAD_ITEM] * 3])
    found = bench_trials.exposed(items, counts)
    assert found["popular@10"].tolist() == [0.5, 0.0]
    assert found["tail@10"].tolist() == [0.5, 0.0]


def test_the_shape_of_a_model_is_read_from_its_checkpoint(tmp_path):
    path = tmp_path / "config.json"
    shape = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16, "vocab_size": 30}
    path.write_text(json.dumps({**shape, "num_attention_heads": 2}))
    model = bench_trials.decoder_of(path)
    assert (model.kv_heads, model.head_dim, model.weights) == (2, 4, 2 * (4 * 8 * 8 + 3 * 8 * 16) + 8 * 30)
    path.write_text(json.dumps({"model_type": "gpt2", "n_layer": 2}))
    assert bench_trials.decoder_of(path) is None


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
    text = render(tmp_path)
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids)) > 0
    assert set(page.references) <= set(page.ids)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in text


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
    assert "Missing: Variants, seed 9 could not be trained." in text
    assert text.count('<svg class="chart"') >= 4 + 4 + 1 + 4  # differences, curves, hacking, cost


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
