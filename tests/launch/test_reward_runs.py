"""Rewards in whole runs: what an arm cannot serve is refused, what may be counted, and a broken reward ends it all."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from test_pipeline import AMAZON, refused, write_config

from sidgym.envs.datasets import DataSet
from sidgym.envs.records import CLICK
from sidgym.envs.splits import load_splits
from sidgym.launch.cli import main


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    main(["run", write_config(folder), "--out", str(folder / "runs")])
    return folder


@pytest.mark.parametrize(
    ("reward", "settings", "said"),
    [
        ("format", "", "reward 'format' needs rl.mode = 'free', got 'beam'"),
        ("rank", "group_size = 1\n", "reward 'rank' compares candidates .* group_size of at least 2, got 1"),
        ("diversity", "environment = 'page'\npage_size = 1\n", "'diversity' .* page_size of at least 2, got 1"),
        ("rank", "environment = 'page'\npage_size = 3\n", "'rank' shares a fixed sum .* rule with any_positive"),
        ("true_preference", "", "data set 'amazon' does not have"),
    ],
)
def test_rewards_that_the_arm_cannot_serve_are_refused(tmp_path, capfd, reward, settings, said):
    text = AMAZON.replace('"rule"', f'"{reward}"').replace("group_size = 4\n", settings or "group_size = 4\n")
    assert re.search(said, refused(capfd, "run", write_config(tmp_path, text), "--out", str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()


def test_popularity_is_counted_in_the_training_log_alone(finished):
    folder = finished / "runs/tiny/data"
    dataset, splits = DataSet.load(folder), load_splits(folder)
    log, count = dataset.interactions, np.load(folder / "popularity.npy")
    expected, users = np.zeros(len(dataset.catalogue)), set(splits.train_users.tolist())
    for user, item, feedback in zip(log.user, log.item, log.feedback):
        expected[item] += user in users and feedback >= CLICK
    assert np.array_equal(count, expected)
    assert not set(splits.train_users) & set(splits.test.user), "this split keeps whole users apart"


RAISING = """
import numpy as np

def broken(episodes, rollouts):
    values = np.zeros(rollouts.valid.shape)
    if rollouts.mode == "sample":  # validation ranks by beams: so this happens in training alone
        where = "in the reward's own line"
        {fault}
    return values
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "fault", "said"),
    [
        ("2", "raise KeyError(where)", r"(?s)in broken.*KeyError: .in the reward's own line.*raised KeyError"),
        ("1", "values[1, 2] = np.nan", r"nan at row 1, candidate 2, .*must be finite"),
    ],
)
def test_a_broken_reward_ends_the_run_and_says_where(finished, tmp_path, workers, fault, said):
    (tmp_path / "my_rewards.py").write_text(RAISING.replace("{fault}", fault))
    shutil.copytree(finished / "runs", tmp_path / "runs")
    options = ["--rewards", "my_rewards:broken", "--rl.mode", "sample", "--out", "runs", "--workers", workers]
    command = [sys.executable, "-m", "sidgym.launch.cli", "run", str(finished / "tiny.toml"), *options]
    # The control arm inherits the mode and is built anew too, so that with two workers both run in spawned processes.
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1
    assert re.search(said, ended.stderr), ended.stderr
    assert "reward 'my_rewards:broken'" in ended.stderr
    example = r"at context \d+ \(row \d+ of the batch\): user \d+, history"
    assert re.search(example, ended.stderr), "the offending example"
    assert "Traceback" in ended.stderr
    assert '"sample"' not in (tmp_path / "runs/tiny/rl/stage.json").read_text(), "the finished arm is the old one"
