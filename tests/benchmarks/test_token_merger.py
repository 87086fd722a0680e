"""The arms of the merger's benchmark differ in how items are read, and in nothing else."""

from argparse import Namespace

import numpy as np
import pytest

from sidgym.agents.policy import build_policy
from sidgym.benchmarks import token_merger
from sidgym.benchmarks.script import random_codes
from sidgym.sid.table import SidTable


def test_arms_share_codes_and_learn_from_the_same_groups(monkeypatch):
    rng = np.random.default_rng(0)
    table = SidTable(random_codes(40, (8, 8, 8), rng), (8, 8, 8), np.array([f"i{n}" for n in range(40)]), {})
    shape = token_merger.QUICK.policy
    policies = {
        name: build_policy(token_merger.replace(shape, merge_items=merge), table, 0)
        for name, merge in token_merger.ARMS.items()
    }
    own = {name: dict(policy.model.named_parameters()) for name, policy in policies.items()}
    assert set(own["merged"]) - set(own["codes"]) == {"item_merger.weight", "item_merger.bias"}
    assert all((value == own["merged"][name]).all() for name, value in own["codes"].items())
    batches, loss = [], token_merger.group_loss
    monkeypatch.setattr(token_merger, "group_loss", lambda *args: batches.append(args[1]) or loss(*args))
    setting = token_merger.replace(token_merger.QUICK, rounds=1, contexts=5)
    speed = token_merger.compare_speed(policies, setting, 6, 0)
    assert speed["prompt_tokens"] == {"codes": 1 + 6 * 3, "merged": 1 + 6}
    assert len(batches) == 4  # a round that warms up and one that counts, of two arms
    assert batches[0] is batches[1]
    assert batches[2] is batches[3]
    assert batches[2].codes.shape == (5, token_merger.GROUP, 3)
    assert np.isfinite(batches[2].advantage).all()


def test_the_headline_is_of_the_datas_own_histories_and_seeds_have_differences_of_their_own(monkeypatch):
    def judge(setting, seed):
        arms = {"codes": np.array([0.1, 0.2]), "merged": np.array([0.2, 0.3 + seed])}
        per_user = {name: {metric: values for metric in token_merger.METRICS} for name, values in arms.items()}
        return {name: {"prompt_tokens_mean": 1.0, "per_user": per_user[name]} for name in arms}, {}

    def compare(policies, setting, items, seed):
        return {"rollout_codes_vs_merged": float(items), "update_codes_vs_merged": 2.0 * items}

    monkeypatch.setattr(token_merger, "judge", judge)
    monkeypatch.setattr(token_merger, "compare_speed", compare)
    for quick in (True, False):
        found = token_merger.measure(Namespace(quick=quick, seeds=[0, 2]))
        assert (found["rollout_codes_vs_merged"], found["update_codes_vs_merged"]) == (20.0, 40.0)
        assert list(found["speed_by_items"]) == (["20", "100"] if quick else ["20", "100", "400"])
    assert found["ndcg@10_merged_minus_codes"]["seeds"] == pytest.approx([0.1, 1.1])
    assert found["ndcg@10_merged_minus_codes"]["mean"] == pytest.approx(0.6)
