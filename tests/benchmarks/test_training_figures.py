"""What the comparison of objectives reads from the logs of a run, also of arms that have no rewards."""

import json

import numpy as np
import pytest

from sidgym.agents.checkpoint import save_policy
from sidgym.agents.config import LogConfig, PolicyConfig, RlConfig
from sidgym.agents.logging import MetricsLog
from sidgym.agents.policy import build_policy
from sidgym.agents.rl import RlTask, save_episodes, train_rl
from sidgym.benchmarks.objectives import TRAINING, VALIDATED, training_figures
from sidgym.envs.records import Episodes
from sidgym.launch.config import load_config
from sidgym.sid.config import SidConfig
from sidgym.sid.tokenizers import build_table

ARMS = {
    "rl": {"kl_weight": 0.1},
    "rl_dapo": {"objective": "dapo", "refills": 1},
    "rl_s_dpo": {"objective": "s_dpo", "rewards": ()},
    "rl_nll": {"objective": "nll", "rewards": (), "nll_weight": 1.0, "kl_weight": 0.1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two iterations of each arm."""
    folder = tmp_path_factory.mktemp("run")
    names, rng = np.array([f"item{i}" for i in range(20)]), np.random.default_rng(0)
    table = build_table(np.zeros((20, 1)), names, SidConfig(tokenizer="random", levels=2, codes=6), 0)
    shape = PolicyConfig(hidden_size=16, intermediate_size=32, layers=1, heads=2, kv_heads=1)
    save_policy(folder / "policy", build_policy(shape, table, 0), {"history": 5})
    contexts = Episodes(np.arange(12), np.arange(12), rng.integers(0, 20, (12, 5)), rng.integers(0, 20, (12, 1)))
    save_episodes(folder / "contexts.npz", contexts)
    for name, change in ARMS.items():
        config = RlConfig(
            group_size=3,
            contexts_per_step=4,
            chunk=4,
            mode="sample",
            steps=2,
            backend="torch",
            select_by="last",
            **change,
        )
        where = folder / "out/seed-0" / name

        def log(step, where=where):
            return MetricsLog(where, LogConfig(wandb="disabled"), "test", resume_from=step)

        task = RlTask(str(folder / "policy"), str(folder / "contexts.npz"), 0, config)
        train_rl(task, contexts, where / "training", log)
    return folder / "out"


def test_every_arm_tells_what_it_has(run):
    figures = training_figures(run)
    assert set(figures) == set(ARMS)
    assert set(figures["rl"]) == {*TRAINING, *VALIDATED, "rollouts"}
    assert set(figures["rl"]) - set(figures["rl_dapo"]) == {"kl/k2"}
    missing = {"reward", "eval/reward", "ratio_max"}
    assert set(figures["rl"]) - set(figures["rl_nll"]) == missing, "a reward of 0 that nobody gave is none"
    assert set(figures["rl"]) - set(figures["rl_s_dpo"]) == missing
    for arm in figures.values():
        assert all(len(values) == 1 and np.isfinite(values).all() for values in arm.values())
    assert figures["rl"]["rollouts"] == [1.0]
    rows = [json.loads(row) for row in (run / "seed-0/rl_dapo/metrics.jsonl").read_text().splitlines()]
    rounds = [row["refill/rounds"] for row in rows if "refill/rounds" in row]
    assert figures["rl_dapo"]["rollouts"] == [1 + sum(rounds) / 2]


def test_the_shipped_comparison_changes_nothing_but_what_it_says():
    """Arms differ in their objective and its own settings, and each has a learning rate of its own."""
    config = load_config("objectives", [])
    free = {"objective", "ratio", "lr", "nll_weight"}
    for name, arm in config.arms.items():
        other = free | {"format_ecpo": {"mode"}, "s_dpo": {"kl_weight"}}.get(name, set())
        changed = {key for key, value in vars(arm).items() if value != getattr(config.rl, key)}
        assert changed <= other, name
    assert config.rl.mode == "beam"
    assert {arm.mode for name, arm in config.arms.items() if name != "format_ecpo"} == {"beam"}
