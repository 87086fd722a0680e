"""Supervised tasks and RL's questions in a run: settings, what is refused before it starts, stages, and resuming."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_pipeline import TINY, write_config

from sidgym.agents.checkpoint import load_policy, read_info
from sidgym.agents.task import load_episodes
from sidgym.launch import builders
from sidgym.launch.cli import main
from sidgym.launch.config import load_config, to_toml
from sidgym.launch.pipeline import check_names, make_plan

SETTINGS = [
    "--sft.tasks", "retrieval:0.6", "caption:0.1", "title_to_sid:0.2", "summary:0.1", "--sft.labels", "categories",
    "--sft.checkpoint-every", "2", "--sft.epochs", "1", "--sft.batch", "8", "--policy.text-vocabulary", "300",
    "--rl.tasks", "retrieval:0.5", "title_to_sid:0.5", "--rl.eval-every", "4", "--data.users", "60",
    "--preference.no-enabled", "--rewards", "rule",
]  # fmt: skip


def test_settings_come_from_the_command_line_and_back_from_toml(tmp_path):
    config = load_config(Path(write_config(tmp_path)), SETTINGS)
    assert config.sft.tasks[1] == "caption:0.1"
    (tmp_path / "again.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "again.toml").sft == config.sft


@pytest.mark.parametrize(("settings", "message"), [
    (["--sft.tasks", "retrieval", "captions"], "Did you mean 'caption'"),
    (["--sft.tasks", "retrieval:1", "summary:1"], r"needs sft\.labels"),
    (["--sft.tasks", "text", "--sft.text", "no-such-file"], "is no file"),
    (["--sft.frozen", "--sft.lora-rank", "2"], "set one of them"),
    (["--sft.normalise", "sid"], r"sft\.packed = true"),
    (["--sft.template", "chat"], r"policy\.path"),
    (["--sft.tasks", "retrieval:0,5", "caption:1"], "expected a number behind retrieval:"),
    (["--rl.tasks", "retrieval:1", "caption:1"], "cannot be rolled out"),
    (["--rl.tasks", "retrieval:1", "title_to_sid:1", "--rl.environment", "page"], "next_item"),
])  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_runs(settings, message, tmp_path):
    config = load_config(Path(write_config(tmp_path)), settings)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_names(config)


def test_a_changed_file_of_profiles_is_another_stage(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"user": 1, "text": "a"}\n')
    options = ["--sft.tasks", "retrieval", "summary", "--sft.labels", str(path)]
    config = load_config(Path(write_config(tmp_path)), options)
    before = make_plan(config).stages["sft"].hash
    path.write_text('{"user": 1, "text": "b"}\n')
    assert make_plan(config).stages["sft"].hash != before


def test_a_changed_task_of_ones_own_is_another_stage_with_its_share_or_without(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = "from sidgym.agents.tasks import caption\n"
    for tasks in (["retrieval:0.5", "own_task:caption:1e-1"], ["retrieval", "own_task:caption"]):
        (tmp_path / "own_task.py").write_text(code)
        config = load_config(Path(write_config(tmp_path)), ["--sft.tasks", *tasks])
        before = make_plan(config).stages
        (tmp_path / "own_task.py").write_text(code + "caption = None\n")
        after = make_plan(config).stages
        assert before["sft"].hash != after["sft"].hash
        assert before["rl"].hash != after["rl"].hash
        assert before["sid"].hash == after["sid"].hash


def test_how_often_a_checkpoint_is_written_is_no_other_stage(tmp_path):
    plans = [
        make_plan(load_config(Path(write_config(tmp_path)), ["--sft.checkpoint-every", every, "--sft.batch", batch]))
        for every, batch in (("0", "8"), ("5", "8"), ("5", "16"))
    ]
    hashes = [plan.stages["sft"].hash for plan in plans]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_run_with_tasks_resumes_its_warmup_and_asks_rl_in_words(tmp_path, monkeypatch, capfd):
    write_config(tmp_path, TINY)
    command = ["rl", str(tmp_path / "tiny.toml"), "--out", str(tmp_path), "--workers", "1", *SETTINGS]
    run, trained = tmp_path / "tiny", builders.train_sft

    def broken(*arguments, **named):
        arguments = list(arguments)
        report = arguments[6]

        def progress(done, total, what):
            if done == 3:
                raise RuntimeError("pulled the plug")
            if report:
                report(done, total, what)

        arguments[6] = progress
        return trained(*arguments, **named)

    monkeypatch.setattr(builders, "train_sft", broken)
    with pytest.raises(RuntimeError, match="plug"):
        main(command)
    assert (run / "sft.partial/training/checkpoint-000002").is_dir()
    monkeypatch.setattr(builders, "train_sft", trained)
    main(command)
    info = read_info(run / "sft")
    assert set(info["seen"]) == {"retrieval", "caption", "title_to_sid", "summary"}
    assert "title_to_sid" in capfd.readouterr().err, "the table of what was seen is printed"
    logged = [json.loads(line) for line in (run / "sft/metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["examples/caption"] == info["seen"]["caption"][0]
    assert not (run / "sft/training").exists()
    contexts = load_episodes(run / "rl/contexts.npz")
    worded = (contexts.prompt >= 0).any(axis=1)
    assert worded.sum() == (~worded).sum()
    policy = load_policy(run / "rl")
    text = policy.tokenizer.decode(contexts.prompt[worded][0][contexts.prompt[worded][0] >= 0])
    assert text.startswith("Which item is called: ")
    assert np.isin(contexts.history[worded], -1).all()
