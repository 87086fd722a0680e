"""Kill -9 in the middle of RL, then --resume: the weights of a run that was never stopped."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_pipeline import TINY, write_config

STEPS = ["--rl.steps", "40", "--rl.checkpoint-every", "4", "--rl.eval-every", "10"]


def start(folder: Path, out: str, *options: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "sidgym.launch.cli", "rl", str(folder / "tiny.toml"), "--out", str(folder / out)]
    return subprocess.Popen([*command, *STEPS, *options], stderr=subprocess.DEVNULL, start_new_session=True)


def wait_for_checkpoint(process: "subprocess.Popen[bytes]", training: Path, least: int) -> None:
    """Until the run has written a checkpoint of at least so many steps; fails if it ends first."""
    while not any(int(p.name[-6:]) >= least for p in training.glob("checkpoint-??????")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """What the plain trainer, which no one stopped, came to: RLlib comes to the same."""
    folder = tmp_path_factory.mktemp("whole")
    write_config(folder, TINY)
    assert start(folder, "whole").wait() == 0
    return folder / "whole/tiny"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(280)
@pytest.mark.parametrize("backend", ["torch", "rllib"])
def test_killed_and_resumed(whole, tmp_path, backend):
    write_config(tmp_path, TINY.replace('backend = "torch"', f'backend = "{backend}"'))
    shutil.copytree(whole, tmp_path / "halves/tiny", ignore=shutil.ignore_patterns("rl"))  # all that comes before RL
    process = start(tmp_path, "halves")
    wait_for_checkpoint(process, tmp_path / "halves/tiny/rl.partial/training", 8)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "halves/tiny/rl").exists(), "a killed run leaves no result that looks finished"
    assert start(tmp_path, "halves", "--resume").wait() == 0
    halves = tmp_path / "halves/tiny/rl"
    assert (whole / "rl/model.safetensors").read_bytes() == (halves / "model.safetensors").read_bytes()
    assert (whole / "rl/metrics.jsonl").read_text() == (halves / "metrics.jsonl").read_text()
