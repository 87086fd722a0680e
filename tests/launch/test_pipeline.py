"""The pipeline end to end on a tiny store: stages once, resumable, the same twice, nothing half-written."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sidgym.benchmarks.summary import load_summary, validate_summary
from sidgym.launch.cli import main
from sidgym.launch.config import load_config
from sidgym.launch.pipeline import check_names

TINY = """
name = "tiny"
workers = 1
[data]
users = 150
items = 60
[sid]
levels = 2
codes = 8
embedding_dim = 16
[policy]
hidden_size = 16
intermediate_size = 32
heads = 2
kv_heads = 1
[sft]
epochs = 2
[preference]
enabled = true
epochs = 1
[rl]
backend = "torch"
steps = 4
contexts_per_step = 8
group_size = 4
chunk = 4
eval_every = 2
checkpoint_every = 2
select_by = "last"
nll_weight = 0.1
[[rl.rewards]]
name = "gated_preference"
[arms.nll_only]
objective = "nll"
rewards = []
nll_weight = 1.0
[eval]
beam = 10
ks = [1, 5, 10]
bootstrap = 100
[log]
wandb = "disabled"
"""


def write_config(folder: Path, text: str = TINY) -> str:
    path = folder / "tiny.toml"
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    main(["run", write_config(folder), "--out", str(folder / "runs")])
    return folder


def test_summary_has_what_readers_rely_on(finished):
    summary = load_summary(finished / "runs/tiny/summary.json")
    validate_summary(summary)
    for system in ("popularity", "sft", "rl", "oracle"):
        assert 0 <= summary[system]["ndcg@10"] <= 1
        assert summary[system]["n_users"] > 0
        assert summary[system]["seeds"] == 1 or summary[system]["seeds"] == [0]
    for metric in ("ndcg@10", "preference@10"):
        difference = summary["rl_minus_sft"][metric]
        assert difference["low"] <= difference["mean"] <= difference["high"]
    per_user = np.load(finished / "runs/tiny/evaluate/rl/rl/per_user.npz")["preference@10"]
    assert summary["rl"]["preference@10"] == pytest.approx(per_user.mean(), abs=1e-6)
    assert summary["oracle"]["preference@10"] > summary["sft"]["preference@10"]
    assert "nll_only" in summary["systems"]
    assert "sft_reranked" in summary["systems"]


def test_report_stands_alone(finished):
    text = (finished / "runs/tiny/report.html").read_text()
    assert "<svg" in text
    for outside in ("http://", "https://", "src=", "@import"):
        found = [line for line in text.splitlines() if outside in line and "www.w3.org" not in line]
        assert not found, found[:2]


def test_a_finished_stage_is_not_run_again(finished, capfd):
    before = {p: p.stat().st_mtime_ns for p in (finished / "runs/tiny").rglob("stage.json")}
    main(["run", str(finished / "tiny.toml"), "--out", str(finished / "runs")])
    assert before == {p: p.stat().st_mtime_ns for p in (finished / "runs/tiny").rglob("stage.json")}
    assert "warm-up" not in capfd.readouterr().err


@pytest.mark.slow
def test_two_runs_with_one_seed_are_the_same_to_the_last_bit(finished, tmp_path):
    main(["run", str(finished / "tiny.toml"), "--out", str(tmp_path), "--workers", "2"])
    first, second = finished / "runs/tiny", tmp_path / "tiny"
    for name in ("sft", "sft_all", "rl", "rl_nll_only"):
        assert (first / name / "model.safetensors").read_bytes() == (second / name / "model.safetensors").read_bytes()
        assert (first / name / "metrics.jsonl").read_text() == (second / name / "metrics.jsonl").read_text()
    a, b = (json.loads((p / "summary.json").read_text()) for p in (first, second))
    assert a["systems"] == b["systems"]


def test_changed_settings_rebuild_what_depends_on_them(finished, tmp_path):
    import shutil

    shutil.copytree(finished / "runs", tmp_path / "runs")
    run = tmp_path / "runs/tiny"
    before = {p.parent.name: json.loads(p.read_text())["inputs_hash"] for p in run.glob("*/stage.json")}
    main(["rl", str(finished / "tiny.toml"), "--out", str(tmp_path / "runs"), "--rl.lr", "0.002"])
    after = {p.parent.name: json.loads(p.read_text())["inputs_hash"] for p in run.glob("*/stage.json")}
    assert {name for name in before if before[name] != after[name]} == {"rl"}


def test_an_own_reward_by_name_and_its_changes_are_seen(finished, tmp_path, monkeypatch):
    import shutil

    from sidgym.launch.config import load_config
    from sidgym.launch.pipeline import make_plan

    source = tmp_path / "my_rewards.py"
    source.write_text("def late(episodes, rollouts):\n    return rollouts.item / 100.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    shutil.copytree(finished / "runs", tmp_path / "runs")
    own = ["--rewards", "my_rewards:late", "--out", str(tmp_path / "runs")]
    main(["rl", str(finished / "tiny.toml"), *own])
    rows = [json.loads(line) for line in (tmp_path / "runs/tiny/rl/metrics.jsonl").read_text().splitlines()]
    assert any(row.get("rewards/my_rewards:late/mean", 0) > 0 for row in rows)
    plan = make_plan(load_config(finished / "tiny.toml", own))
    assert plan.stages["rl"].complete
    source.write_text("def late(episodes, rollouts):\n    return rollouts.item / 50.0\n")
    plan = make_plan(load_config(finished / "tiny.toml", own))
    assert not plan.stages["rl"].complete, "the reward's code is an input"
    assert plan.stages["sft"].complete


def test_recommend_a_file(finished, tmp_path):
    names = ["i0001", "i0002", "i0005"]
    pd.DataFrame({"user": ["a", "b"], "history": [names, []]}).to_parquet(tmp_path / "in.parquet")
    checkpoint = str(finished / "runs/tiny/rl")
    main(
        [
            "recommend",
            str(tmp_path / "in.parquet"),
            str(tmp_path / "out.parquet"),
            "--checkpoint",
            checkpoint,
            "--k",
            "3",
        ]
    )
    out = pd.read_parquet(tmp_path / "out.parquet")
    assert out["user"].tolist() == ["a", "b"]
    assert [len(row) for row in out["items"]] == [3, 3]
    assert all(np.all(np.diff(row) <= 0) for row in out["scores"])
    from sidgym import Recommender

    items, _ = Recommender.load(checkpoint).recommend([names, []], k=3)
    assert [list(row) for row in out["items"]] == items.tolist()


def refused(capfd, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    return capfd.readouterr().err


def test_recommend_refuses_bad_input_and_writes_nothing(finished, tmp_path, capfd):
    checkpoint = ["--checkpoint", str(finished / "runs/tiny/rl")]
    source = tmp_path / "in.parquet"
    command = ["recommend", str(source), str(tmp_path / "out.parquet")]
    pd.DataFrame({"items": [["i0001"]]}).to_parquet(source)
    message = refused(capfd, *command, *checkpoint)
    assert "no column 'history'" in message
    assert "items" in message
    pd.DataFrame({"history": [["nonsense"]]}).to_parquet(source)
    message = refused(capfd, *command, *checkpoint)
    assert "unknown item 'nonsense'" in message
    assert "history 0" in message
    pd.DataFrame({"history": [["i0001"], None]}).to_parquet(source)
    assert "row 1 has no history" in refused(capfd, *command, *checkpoint)
    pd.DataFrame({"history": [["i0001"]], "scores": [1]}).to_parquet(source)
    assert "'scores'" in refused(capfd, *command, *checkpoint)
    (tmp_path / "text.parquet").write_text("no parquet")
    text = ["recommend", str(tmp_path / "text.parquet"), str(tmp_path / "out.parquet")]
    assert "not a Parquet file" in refused(capfd, *text, *checkpoint)
    assert "does not exist" in refused(capfd, "recommend", str(tmp_path / "none"), str(tmp_path / "out.parquet"))
    pd.DataFrame({"history": [["nonsense"]]}).to_parquet(source)
    assert "no sidgym checkpoint" in refused(capfd, *command, "--checkpoint", str(tmp_path))
    assert not list(tmp_path.glob("out.parquet*"))


def write_amazon(folder: Path, items: int = 12, users: int = 30) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    log = {str(u): rng.choice(items, size=7, replace=False).tolist() for u in range(users)}
    text = {
        str(i): {"title": f"thing number {i}", "description": f"word{i % 3}", "brand": "b", "categories": "c"}
        for i in range(items)
    }
    (folder / "Toy.inter.json").write_text(json.dumps(log))
    (folder / "Toy.item.json").write_text(json.dumps(text))


AMAZON = (
    TINY.replace("enabled = true\n", "enabled = false\n")
    .replace("gated_preference", "rule")
    .replace("users = 150\nitems = 60", 'name = "amazon"\nsplit = "leave_one_out"\nmin_events = 0')
)


def test_a_real_format_goes_from_raw_files_to_a_report(tmp_path):
    write_amazon(tmp_path / "raw")
    main(["run", write_config(tmp_path, AMAZON), "--data.path", str(tmp_path / "raw"), "--out", str(tmp_path / "runs")])
    summary = load_summary(tmp_path / "runs/tiny/summary.json")
    assert summary["rl_minus_sft"]["preference@10"] is None, "there is no true preference in such data"
    assert summary["rl_minus_sft"]["ndcg@10"]["low"] <= summary["rl_minus_sft"]["ndcg@10"]["high"]
    assert "order" in (tmp_path / "runs/tiny/report.html").read_text()


def cut_short(raw):
    path = raw / "Toy.inter.json"
    path.write_text(path.read_text()[:-40])


def drop_text(raw):
    path = raw / "Toy.item.json"
    items = json.loads(path.read_text())
    items["3"].update(title="", description="")
    path.write_text(json.dumps(items))


def unknown_item(raw):
    path = raw / "Toy.inter.json"
    log = json.loads(path.read_text())
    log["4"][2] = 999
    path.write_text(json.dumps(log))


BROKEN = {cut_short: "Toy.inter.json", drop_text: "3", unknown_item: "999"}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
def test_broken_files_are_named_and_leave_nothing(tmp_path, capfd, damage):
    write_amazon(tmp_path / "raw")
    damage(tmp_path / "raw")
    config = write_config(tmp_path, AMAZON)
    message = refused(capfd, "run", config, "--data.path", str(tmp_path / "raw"), "--out", str(tmp_path / "runs"))
    assert BROKEN[damage] in message
    assert not [p for p in (tmp_path / "runs").rglob("*") if p.is_file()]


def test_forbidden_collisions_an_empty_split_and_a_missing_path(tmp_path, capfd):
    write_amazon(tmp_path / "raw")
    config, raw = write_config(tmp_path, AMAZON), str(tmp_path / "raw")
    out = ["--out", str(tmp_path / "runs")]
    crowded = ["--sid.levels", "1", "--sid.codes", "2", "--sid.collisions", "forbid"]
    assert "share" in refused(capfd, "sid", config, "--data.path", raw, *out, *crowded)
    assert not (tmp_path / "runs/tiny/sid").exists()
    assert "empty" in refused(capfd, "data", config, "--data.path", raw, *out, "--data.rl-share", "0.001")
    assert "does not exist" in refused(capfd, "run", config, "--data.path", str(tmp_path / "nowhere"), *out)


def test_a_checkpoint_of_another_catalogue(finished, tmp_path, capfd):
    import shutil

    shutil.copytree(finished / "runs", tmp_path / "runs")
    run = tmp_path / "runs/tiny"
    table = pd.read_json(run / "sid/table.json", typ="series")
    assert len(table)
    from sidgym.sid.table import SidTable

    own = SidTable.load(run / "sid")
    SidTable(own.codes[::-1].copy(), own.sizes, own.item_ids, {}).save(run / "sid")
    shutil.rmtree(run / "evaluate")
    message = refused(capfd, "run", str(finished / "tiny.toml"), "--out", str(tmp_path / "runs"))
    assert "another catalogue" in message


def test_old_and_foreign_folders_are_not_read_as_results(finished, tmp_path):
    import shutil

    from sidgym.launch.config import load_config
    from sidgym.launch.evaluation import load_systems

    shutil.copytree(finished / "runs", tmp_path / "runs")
    config = load_config(finished / "tiny.toml", ["--out", str(tmp_path / "runs")])
    folder = tmp_path / "runs/tiny/evaluate"
    shutil.copytree(folder / "sft", folder / "rl.old")
    (folder / "rl.old/sft").rename(folder / "rl.old/rl")
    (folder / "removed_arm/removed_arm").mkdir(parents=True)
    shutil.copy2(folder / "rl/rl/per_user.npz", folder / "removed_arm/removed_arm/per_user.npz")
    systems = load_systems(config)
    assert "removed_arm" not in systems
    expected = np.load(folder / "rl/rl/per_user.npz")["ndcg@10"]
    np.testing.assert_array_equal(systems["rl"].per_user["ndcg@10"], expected)


def test_the_reranker_is_judged_anew_when_its_reward_changes(finished):
    from sidgym.launch.config import load_config
    from sidgym.launch.pipeline import make_plan

    text = (finished / "tiny.toml").read_text()
    other = finished / "other.toml"
    other.write_text(text.replace('name = "gated_preference"', 'name = "gated_preference"\nargs = { tau = 0.9 }'))
    first, second = (make_plan(load_config(path, ["--name", "tiny"])) for path in (finished / "tiny.toml", other))
    assert first.stages["evaluate/sft"].hash != second.stages["evaluate/sft"].hash
    assert first.stages["evaluate/sft_all"].hash == second.stages["evaluate/sft_all"].hash


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("enabled = true", "enabled = false"), "preference.enabled"),
        (("[arms.nll_only]", "[arms.oracle]"), "another system"),
        (("nll_weight = 1.0", "nll_weight = 0.0"), "nothing"),
        (('select_by = "last"', 'select_by = "reward"'), "rank"),
    ],
)
def test_settings_that_cannot_mean_anything_are_refused(tmp_path, capfd, change, said):
    text = TINY.replace(*change)
    if said == "rank":
        text = text.replace("gated_preference", "rank")
    assert said in refused(capfd, "run", write_config(tmp_path, text), "--out", str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_an_unfinished_run_of_other_settings_is_not_resumed(finished, tmp_path, capfd):
    work = tmp_path / "tiny/rl.partial"
    work.mkdir(parents=True)
    (work / "stage.json").write_text(json.dumps({"inputs_hash": "another", "complete": False}))
    (work / "precious").write_text("hours of training")
    (work / "training/checkpoint-000002").mkdir(parents=True)
    (work / "training/checkpoint-000002/training.json").write_text("{}")
    message = refused(capfd, "rl", str(finished / "tiny.toml"), "--out", str(tmp_path), "--resume")
    assert "other settings" in message
    assert (work / "precious").exists()


def test_an_unfinished_run_is_neither_continued_nor_discarded_unasked(finished, tmp_path, capfd):
    checkpoint = tmp_path / "tiny/rl.partial/training/checkpoint-000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "training.json").write_text("{}")
    message = refused(capfd, "rl", str(finished / "tiny.toml"), "--out", str(tmp_path))
    assert "--resume" in message
    assert "--restart" in message


def test_unknown_components_are_refused_before_anything_is_built(tmp_path, capfd, monkeypatch):
    config, out = write_config(tmp_path), ["--out", str(tmp_path / "runs")]
    assert "Did you mean 'grpo'" in refused(capfd, "run", config, *out, "--rl.objective", "gropo")
    assert "known: diversity" in refused(capfd, "run", config, *out, "--rewards", "hitt")
    (tmp_path / "bad_reward.py").write_text("def f(episodes):\n    return 0\n")
    monkeypatch.chdir(tmp_path)
    assert "must take (episodes, rollouts" in refused(capfd, "run", config, *out, "--rewards", "bad_reward:f")
    assert "cannot import" in refused(capfd, "run", config, *out, "--rewards", "no_such_package.here:it")
    assert not (tmp_path / "runs").exists()


def test_unknown_key_is_named_with_the_nearest(tmp_path, capfd):
    message = refused(capfd, "run", write_config(tmp_path, TINY.replace("group_size", "group_sise")))
    assert "rl.group_size" in message


def test_print_config_and_dry_run_write_nothing(tmp_path, capsys):
    config = write_config(tmp_path)
    main(["run", config, "--print-config", "--rl.lr", "0.5", "--out", str(tmp_path / "runs")])
    assert "lr = 0.5" in capsys.readouterr().out
    main(["run", config, "--print-config", "--seed", "5"])
    assert "seed = 5" in capsys.readouterr().out, "--seed is a setting, and not short for --seeds"
    main(["run", config, "--dry-run", "--out", str(tmp_path / "runs")])
    assert "minutes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["run", config, "--dry-run", "--rewards", "nope"])
    assert "unknown reward 'nope'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("installed", "why"), [(None, "which is not installed"), (object(), "this model's have 8")])
def test_vllm_is_missed_before_anything_runs(monkeypatch, tmp_path, installed, why):
    config = load_config(Path(write_config(tmp_path)), ["--rl.engine", "vllm"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=why):
        check_names(config)
