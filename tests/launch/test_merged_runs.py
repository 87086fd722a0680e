"""A run whose policy reads items merged: settings, what is refused, and every stage to the end."""

from pathlib import Path

import numpy as np
import pytest
from test_pipeline import TINY, write_config

from sidgym.agents.checkpoint import load_policy, read_info, save_policy
from sidgym.agents.config import PolicyConfig
from sidgym.agents.merger import FILE
from sidgym.agents.policy import build_policy
from sidgym.agents.recommender import Recommender
from sidgym.launch.cli import main
from sidgym.launch.config import ConfigError, load_config, to_toml
from sidgym.launch.doctor_policy import check_policy
from sidgym.launch.pipeline import check_names
from sidgym.sid.table import SidTable

SETTINGS = [
    "--policy.merge-items", "--sft.tasks", "retrieval:0.6", "caption:0.2", "title_to_sid:0.2", "--sft.epochs", "1",
    "--policy.text-vocabulary", "300", "--rl.tasks", "retrieval:0.5", "title_to_sid:0.5", "--rl.eval-every", "4",
    "--data.users", "60", "--preference.no-enabled", "--rewards", "rule",
]  # fmt: skip


def test_the_setting_is_off_unless_asked_for_and_comes_back_from_toml(tmp_path):
    path = Path(write_config(tmp_path))
    assert not load_config(path, []).policy.merge_items
    config = load_config(path, SETTINGS)
    assert config.policy.merge_items
    (tmp_path / "again.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "again.toml").policy == config.policy


@pytest.mark.parametrize("engine", ["hf", "vllm"])
def test_engines_that_take_token_ids_are_refused_before_anything_runs(engine, tmp_path):
    with pytest.raises(ConfigError, match=rf"rl\.engine: '{engine}' .* merged items; use 'torch'"):
        load_config(Path(write_config(tmp_path)), [*SETTINGS, "--rl.engine", engine])


def test_a_merged_checkpoint_is_not_opened_code_by_code_nor_without_its_merger(tmp_path):
    table = SidTable(np.arange(8).reshape(8, 1), (8,), np.array([f"i{n}" for n in range(8)]), {})
    shape = PolicyConfig(hidden_size=8, intermediate_size=8, layers=1, heads=1, kv_heads=1, merge_items=True)
    save_policy(tmp_path / "policy", build_policy(shape, table, 0))
    given = ["--policy.path", str(tmp_path / "policy")]
    path = Path(write_config(tmp_path))
    with pytest.raises(ValueError, match=r"set policy\.merge_items = true"):
        check_names(load_config(path, given))
    merged = load_config(path, [*given, "--policy.merge-items"])
    check_names(merged)
    check_names(load_config(path, [*given, "--policy.merge-items", "--sft.normalise", "sid"]))  # packed without a word
    (tmp_path / "policy" / FILE).unlink()
    with pytest.raises(ValueError, match=rf"{FILE} is missing"):
        check_names(merged)


def test_a_run_goes_through_all_stages_and_ends_in_a_recommender(tmp_path):
    write_config(tmp_path, TINY)
    run = tmp_path / "tiny"
    main(["rl", str(tmp_path / "tiny.toml"), "--out", str(tmp_path), "--workers", "1", *SETTINGS])
    for stage in ("sft", "rl"):
        assert read_info(run / stage)["merge_items"]
        assert not [found.what for found in check_policy(run / stage, None) if found.level == "error"]
        assert (run / stage / FILE).is_file()
        assert load_policy(run / stage).merges
    recommender = Recommender.load(run / "rl")
    names, scores = recommender.recommend([recommender.policy.table.item_ids[:3].tolist()], k=5)
    assert names.shape == scores.shape == (1, 5)
    assert len(set(names[0].tolist())) == 5
