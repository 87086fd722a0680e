"""``sidgym bench variants`` end to end on a tiny store: resumable, appending, with pieces of one's own, on Ray too."""

import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_bench_arms import LOG
from test_pipeline import TINY
from test_report import Page

from sidgym.benchmarks.arms_summary import CONTROL
from sidgym.launch import bench_runs
from sidgym.launch.bench_ray import check_room, run_on_ray
from sidgym.launch.cli import main
from sidgym.launch.jobs import Bars, Job
from sidgym.launch.schema import RunConfig

pytestmark = pytest.mark.slow

OWN = """
from dataclasses import replace
from sidgym.agents.objectives import policy_gradient


def cautious(inputs, spec):
    return policy_gradient(inputs, replace(spec, clip=0.1))


def first(episodes, rollouts):
    return -rollouts.rank.astype("float32")
"""


def bench(folder, *options):
    config = folder / "tiny.toml"
    config.write_text(TINY)
    measured = ("--rl.kl-weight", "1e-3")  # else there is no reference to be far from
    main(["bench", "variants", "--config", str(config), "--out", str(folder / "out"), *measured, *options])
    return json.loads((folder / "out" / "summary.json").read_text())


def copied(grown, folder):
    """The folder of the grown contest once more, to be grown in another way."""
    return Path(shutil.copytree(grown[0], folder / "copy", symlinks=True))


def lines(folder):
    return [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]


@contextmanager
def fail_at(name):
    """Inside the block the stage ``name`` fails to be built."""
    built = bench_runs.build_stage

    def fails(config, stage, on_progress=None):
        if stage.name == name:
            raise RuntimeError("no luck")
        built(config, stage, on_progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_runs, "build_stage", fails)
        yield


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A contest of one objective and seed, and then of one more of each: summaries and lines of both."""
    folder = tmp_path_factory.mktemp("bench")
    first = bench(folder, "--objectives", "grpo", "--seeds", "1")
    before = lines(folder)
    second = bench(folder, "--objectives", "ecpo", "grpo", "--seeds", "2")
    return folder, first, before, second, lines(folder)


def test_results_append_and_finished_trials_stay(grown):
    _, first, before, second, after = grown
    assert after[: len(before)] == before
    trials = [(line["system"], line["seed"]) for line in after]
    assert len(trials) == len(set(trials))
    assert {t for t in trials if t[0] in ("sft", CONTROL, "grpo", "ecpo")} == {
        (system, seed) for system in ("sft", CONTROL, "grpo", "ecpo") for seed in (0, 1)
    }
    assert (first["seeds"], second["seeds"]) == ([0], [0, 1])
    assert set(first["objectives"]) == {"sft", CONTROL, "grpo"}
    assert set(second["objectives"]) == {"sft", CONTROL, "grpo", "ecpo"}


def test_seeds_that_were_added_are_told(grown):
    _, first, _, second, _ = grown
    assert (first["looks"], second["looks"]) == ([1], [1, 2])
    assert not any("before there were" in note for note in first["notes"])
    assert any("with 1 seed before there were 2" in note for note in second["notes"])


def test_the_start_of_another_contest_is_taken_where_it_is_the_same(grown, tmp_path, capsys):
    given = ("--objectives", "grpo", "--seeds", "1", "--start-of", str(grown[0] / "out"))
    with fail_at("sft"):
        taken = bench(tmp_path, *given)
        with pytest.raises(RuntimeError, match="no luck"):
            bench(tmp_path, *given, "--sft.epochs", "3", "--out", str(tmp_path / "other"))
    assert "--start-of" not in taken["command"]
    before = grown[1]["objectives"]
    assert {name: one["ndcg@10"] for name, one in taken["objectives"].items()} == {
        name: one["ndcg@10"] for name, one in before.items()
    }
    assert taken["objectives"]["sft"]["seconds"] == before["sft"]["seconds"], "of the training, not of the copy"
    with pytest.raises(SystemExit):
        bench(tmp_path, *given[:-1], str(tmp_path / "other" / "seed-0"), "--out", str(tmp_path / "third"))
    assert "--start-of: expected the folder of a contest" in capsys.readouterr().err


def test_the_summary_is_what_was_promised(grown):
    _, _, _, summary, _ = grown
    for name, figures in summary["objectives"].items():
        assert {"mean", "low", "high"} <= set(figures["ndcg@10"]), name
        assert 0 <= figures["ndcg@10"]["low"] <= figures["ndcg@10"]["mean"] <= figures["ndcg@10"]["high"] <= 1
        assert figures["pct_oracle"] is not None
        assert figures["seconds"] > 0
    assert all(summary["objectives"]["grpo"][name] is not None for name in ("reward", "kl", "entropy"))
    assert len(summary["pairs"]) == 2 * 6
    assert all(pair["p"] <= pair["p_holm"] <= 1 for pair in summary["pairs"])
    assert set(summary["contexts_equal"].values()) == {True}
    budgets = {(f["rollouts"], f["updates"]) for name, f in summary["objectives"].items() if name != "sft"}
    assert budgets == {(4 * 8 * 4, 4)}  # steps, contexts, candidates
    assert all(f["flops"] > 0 for name, f in summary["objectives"].items() if name != "sft")
    assert summary["failed"] == []


def test_the_reports_are_there(grown):
    folder, _, _, summary, _ = grown
    text = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert Page(text).open == []
    assert summary["verdict"][0][1] in (folder / "out" / "report.md").read_text(encoding="utf-8")


def test_nothing_is_done_twice(grown, monkeypatch, capsys):
    folder, _, _, before, after = grown
    monkeypatch.setattr(bench_runs, "build_stage", lambda *_: pytest.fail("everything is finished"))
    again = bench(folder, "--objectives", "ecpo", "grpo", "--seeds", "2")
    assert "every trial is finished already" in capsys.readouterr().err
    assert lines(folder) == after
    assert again["objectives"] == before["objectives"]


def test_a_trial_that_fails_is_told_and_goes_on_later(grown):
    folder, *_ = grown
    with fail_at("rl_rloo"), pytest.raises(RuntimeError, match="no luck"):
        bench(folder, "--objectives", "grpo", "rloo", "--seeds", "1")
    told = json.loads((folder / "out" / "summary.json").read_text())
    assert told["failed"] == ["rloo, seed 0"]
    assert "ecpo" in told["objectives"]  # of the runs before
    assert "rloo" in bench(folder, "--objectives", "grpo", "rloo", "--seeds", "1")["objectives"]


def test_one_failure_keeps_no_other_trial_from_its_turn(grown, tmp_path):
    folder = copied(grown, tmp_path)
    with fail_at("rl_dr_grpo"), pytest.raises(RuntimeError, match="no luck"):
        bench(folder, "--objectives", "dr_grpo", "gspo", "--seeds", "1", "--workers", "1")
    told = json.loads((folder / "out" / "summary.json").read_text())
    assert told["failed"] == ["dr_grpo, seed 0"]
    assert "gspo" in told["objectives"]  # which came after it
    assert told["fewer"]["gspo"] == [1]
    assert "Missing: dr_grpo, seed 0 is not finished." in (folder / "out" / "report.md").read_text(encoding="utf-8")


def test_another_setting_in_the_same_folder_is_a_contest_of_its_own(grown, tmp_path, capsys):
    folder = copied(grown, tmp_path)
    before = lines(folder)
    bench(folder, "--objectives", "grpo", "--seeds", "1", "--dry-run")
    assert "of other settings" not in capsys.readouterr().err
    summary = bench(folder, "--objectives", "grpo", "--seeds", "1", "--rl.steps", "2")
    assert set(summary["objectives"]) == {"sft", CONTROL, "grpo"}  # not ecpo, which has the old setting
    after = lines(folder)
    assert f"has {len(before)} line(s) of other settings: they are left out" in capsys.readouterr().err
    assert after[: len(before)] == before
    assert {line["setting"] for line in after[len(before) :]} == {summary["setting"]}
    assert {line["system"] for line in after[len(before) :]} >= {"sft", CONTROL, "grpo", "oracle"}


def test_seeds_of_a_log_judge_the_same_users(tmp_path, monkeypatch):
    (tmp_path / "own_bench_log.py").write_text(LOG)
    monkeypatch.syspath_prepend(tmp_path)
    options = ("--data.name", "own_bench_log:load", "--preference.no-enabled", "--rewards", "rule", "--rl.steps", "1")
    summary = bench(tmp_path, "--objectives", "grpo", "--seeds", "2", *options)
    assert summary["same_users"]
    assert summary["own_rewards"] is False
    assert "split_seed = 0" in summary["config"]


def test_an_objective_and_a_reward_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_bench_pieces.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    options = ("--objectives", "own_bench_pieces:cautious", "--rewards", "own_bench_pieces:first", "--seeds", "1")
    summary = bench(tmp_path, *options, "--rl.steps", "2", "--metric", "ndcg@10")
    assert summary["settings"]["cautious"]["objective"] == "own_bench_pieces:cautious"
    assert summary["metric"] == "ndcg@10"


def test_the_estimate_alone_trains_nothing(tmp_path, capsys):
    config = tmp_path / "tiny.toml"
    config.write_text(TINY)
    command = ["bench", "variants", "--config", str(config), "--out", str(tmp_path / "out"), "--dry-run"]
    main([*command, "--objectives", "grpo", "dapo"])
    assert re.search(r"about [\d.]+ minutes for 20 trials", " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "out" / "results.jsonl").exists()


@pytest.mark.ray
def test_trials_on_ray_come_to_the_same(grown, tmp_path):
    summary = bench(tmp_path, "--objectives", "grpo", "--seeds", "1", "--ray", "--workers", "2")
    _, first, *_ = grown
    for name in ("sft", CONTROL, "grpo"):
        assert summary["objectives"][name]["ndcg@10"] == first["objectives"][name]["ndcg@10"]
        assert summary["objectives"][name]["reward"] == first["objectives"][name]["reward"]


@pytest.mark.ray
def test_a_trial_on_ray_has_room_for_its_threads():
    jobs = [Job("Nothing", bench_runs.build, (RunConfig(name="x"), ()))]
    run_on_ray(jobs, RunConfig(name="x", workers=1, threads=2), Bars(jobs))  # or waits for ever


def test_what_no_node_of_a_cluster_can_hold_is_refused():
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 1.0}}]
    check_room({"CPU": 2, "GPU": 0}, nodes)
    check_room({"CPU": 1, "GPU": 1}, nodes)
    for asked, given in (({"CPU": 3, "GPU": 0}, nodes), ({"CPU": 2, "GPU": 1}, nodes)):
        with pytest.raises(ValueError, match="the nodes have 2 CPUs, 0 GPUs; 1 CPUs, 1 GPUs"):
            check_room(asked, given)
    with pytest.raises(ValueError, match="on one node"):
        check_room({"CPU": 2, "GPU": 0}, [nodes[0] | {"Alive": False}])
