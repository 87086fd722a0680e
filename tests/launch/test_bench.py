"""``sidgym bench variants`` without training: progress, the estimate, the page."""

import io
import json
import re
import shutil
import subprocess
from html import escape

import numpy as np
import pytest
from test_report import Page, check_page

from sidgym.benchmarks.arms_summary import CONTROL, Trial, summarise_arms
from sidgym.benchmarks.arms_words import failures, verdict
from sidgym.envs.segments import Bands
from sidgym.launch.bench_estimate import makespan
from sidgym.launch.bench_figures import arm_styles, cost_section, curve_section, hacking_section, pair_section
from sidgym.launch.bench_report import console_table, write_report
from sidgym.launch.bench_runs import Step
from sidgym.launch.bench_table import TrialTable
from sidgym.launch.charts import band_chart, interval_chart, path_chart, styles
from sidgym.launch.schema import RunConfig

HOSTILE = "<script>alert('1')</script> & \"co\""


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
