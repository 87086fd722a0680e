"""What ``--dry-run`` multiplies out."""

import numpy as np
import pytest

from sidgym.agents.config import PolicyConfig, RlConfig
from sidgym.agents.policy import build_policy
from sidgym.envs.records import Episodes
from sidgym.envs.rewards import RewardContext
from sidgym.launch import estimate
from sidgym.sid.config import SidConfig
from sidgym.sid.tokenizers import build_table


@pytest.mark.parametrize(("change", "rollouts"), [({}, 1), ({"refills": 2}, 3), ({"objective": "dapo"}, 4)])
def test_an_iteration_has_as_many_rollouts_as_it_may_refill(change, rollouts, monkeypatch):
    names = np.array([f"item{i}" for i in range(20)])
    table = build_table(np.zeros((20, 1)), names, SidConfig(tokenizer="random", levels=2, codes=6), 0)
    policy = build_policy(PolicyConfig(hidden_size=16, intermediate_size=32, heads=2, kv_heads=1), table, 0)
    rng, shape = np.random.default_rng(0), (4, 5)
    contexts = Episodes(np.arange(4), np.arange(4), rng.integers(0, 20, shape), rng.integers(0, 20, (4, 1)))
    counted, drawn = [], estimate.rollout_groups
    monkeypatch.setattr(estimate, "rollout_groups", lambda *args: counted.append(1) or drawn(*args))
    monkeypatch.setattr(estimate, "_seconds", lambda call: call())
    rl = RlConfig(group_size=3, contexts_per_step=4, chunk=4, **change)
    estimate._rl_seconds(policy, contexts, rl, RewardContext(table=table))
    assert len(counted) == rollouts
