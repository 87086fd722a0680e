"""Trials of a contest: their lines in ``results.jsonl``, which of them count, what they cost."""

import json

import numpy as np
import pytest

from sidgym.agents.config import RlConfig
from sidgym.envs.records import PAD_ITEM
from sidgym.launch import bench_trials


def test_lines_are_appended_and_a_cut_one_spoils_no_other(tmp_path):
    bench_trials.append_line(tmp_path, {"a": 1})
    with (tmp_path / bench_trials.RESULTS).open("a") as file:
        file.write('{"a": 2, "b')
    bench_trials.append_line(tmp_path, {"a": 3})
    assert bench_trials.read_lines(tmp_path) == [{"a": 1}, {"a": 3}]
    assert bench_trials.read_lines(tmp_path / "nowhere") == []


def make_trial(folder, system="grpo", seed=0, key="k", lr=1.0, code=None, trained="t", judged="t"):
    """A finished training and its evaluation; the line of both."""
    run = folder / f"seed-{seed}"
    for name, told in (
        (f"rl_{system}", {"inputs_hash": trained, "inputs": {"rl": {"lr": lr, "rewards": []}, "code": code or {}}}),
        (f"evaluate/rl_{system}", {"inputs_hash": key, "inputs": {"needs": [judged]}}),
    ):
        (run / name).mkdir(parents=True, exist_ok=True)
        (run / name / "stage.json").write_text(json.dumps({"complete": True, **told}))
    return {"system": system, "seed": seed, "run": run.name, "setting": "s", "key": key}


def test_the_newest_line_of_a_trial_counts_if_its_results_stand(tmp_path):
    line, other = make_trial(tmp_path), make_trial(tmp_path, seed=2, judged="another training")
    lines = [
        {**line, "key": "old"},
        {**line, "n": 1},
        {**line, "n": 2},
        {**line, "setting": "t"},
        {**line, "seed": 1, "run": "seed-1"},
        other,
    ]
    assert bench_trials.newest(lines, tmp_path, "s") == ([{**line, "n": 2}], [])


@pytest.mark.parametrize("change", [{"lr": 2.0}, {"code": {"my:loss": "edited"}}])
def test_trainings_of_one_name_that_differ_are_not_averaged(tmp_path, change):
    lines = [make_trial(tmp_path, seed=seed) for seed in range(3)]
    lines += [make_trial(tmp_path, "ecpo"), make_trial(tmp_path, seed=1, key="k2", **change)]
    kept, notes = bench_trials.newest(lines, tmp_path, "s")
    assert sorted((line["system"], line["seed"]) for line in kept) == [("ecpo", 0), ("grpo", 1)]
    assert len(notes) == 1
    assert "newest trial of grpo: its seeds 0, 2." in notes[0]


def test_a_line_is_added_where_the_last_one_says_something_else(tmp_path):
    line = {"system": "sft", "seed": 0, "setting": "s", "key": "k", "settings": {"tasks": ("retrieval",)}}
    for one in (line, line, {**line, "setting": "t"}, line, {**line, "key": "k2"}, line, line):
        bench_trials.keep_line(tmp_path, one)
    told = [(one["setting"], one["key"]) for one in bench_trials.read_lines(tmp_path)]
    assert told == [("s", "k"), ("t", "k"), ("s", "k2"), ("s", "k")]


def test_seeds_that_were_added_after_a_look_are_told(tmp_path):
    assert bench_trials.looks(tmp_path, "s", 3) == [3]
    told = tmp_path / "summary.json"
    told.write_text(json.dumps({"setting": "s", "seeds": [0, 1, 2]}))
    assert bench_trials.looks(tmp_path, "s", 3) == [3]
    assert bench_trials.looks(tmp_path, "s", 5) == [3, 5]
    assert bench_trials.looks(tmp_path, "another", 5) == [5]
    told.write_text(json.dumps({"setting": "s", "seeds": [0, 1, 2], "looks": [1, 3]}))
    assert bench_trials.looks(tmp_path, "s", 5) == [1, 3, 5]
    told.write_text(told.read_text()[:-5])
    assert bench_trials.looks(tmp_path, "s", 5) == [5]
    assert bench_trials.looks_note([5]) == []
    (note,) = bench_trials.looks_note([1, 3, 5])
    assert "with 1 and 3 seeds before there were 5" in note
    assert "p-values times 3" in note


@pytest.mark.parametrize(("mode", "times"), [("beam", 1.0), ("dynamic", 1.5)])
def test_candidates_that_are_drawn_and_left_out_are_counted(tmp_path, mode, times):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "rl_a").mkdir()
    rows = [{"step": step, "contexts/groups": 4} for step in (1, 2)]
    (tmp_path / "rl_a" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cost = bench_trials._cost(tmp_path, "a", RlConfig(mode=mode, contexts_per_step=4, group_size=8))
    assert cost["rollouts"] == 2 * 4 * 8 * times


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
