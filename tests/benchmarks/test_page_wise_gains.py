"""The page-wise benchmark: what is compared with what, and retrieval in as many passes."""

from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest

from sidgym.agents.policy import build_policy
from sidgym.benchmarks import page_wise
from sidgym.benchmarks.script import random_codes
from sidgym.envs.records import Sequences
from sidgym.sid.table import SidTable


def judged(setting, seed):
    worth = {name: 0.01 * place for place, name in enumerate(page_wise.arms(setting.sft))}
    worth["retrieval"] = 0.5 + seed  # the stronger baseline, and another difference in each seed
    return {
        name: {"har": value, "per_user": {metric: np.array([value, value + 0.1]) for metric in page_wise.METRICS}}
        for name, value in worth.items()
    }


def test_page_wise_stands_beside_point_wise_and_beside_retrieval_seed_by_seed(monkeypatch):
    monkeypatch.setattr(page_wise, "judge", judged)
    found = page_wise.measure(Namespace(quick=False, seeds=[0, 1], epochs=[1, 2]))
    assert set(found["page_minus_point"]) == set(found["page_minus_retrieval"]) == {"1", "2"}
    gains = found["epochs"]["2"]["gains"]
    assert set(gains) == {*page_wise.ORDERS, "exposed", "retrieval"}
    assert (gains["retrieval"]["of"], gains["retrieval"]["over"]) == ("page, strongest", "retrieval")
    place = list(page_wise.arms(page_wise.FULL.sft)).index("page, strongest")
    own = [0.01 * place - 0.5, 0.01 * place - 1.5]
    assert found["page_minus_retrieval"]["2"]["seeds"] == pytest.approx(own)
    assert found["page_minus_retrieval"]["2"]["mean"] == pytest.approx(np.mean(own))
    assert found["page_minus_point"]["2"]["seeds"] == pytest.approx([0.01 * place] * 2)
    assert gains["retrieval"]["har"] == pytest.approx(own)
    assert "per_user" not in found["epochs"]["1"]["arms"]["retrieval"][0]


def test_retrieval_gets_as_many_passes_and_as_many_validations():
    rng = np.random.default_rng(0)
    table = SidTable(random_codes(40, (8, 8, 8), rng), (8, 8, 8), np.array([f"i{n}" for n in range(40)]), {})
    policy = build_policy(page_wise.QUICK.policy, table, 0)
    log = Sequences(np.arange(10), rng.integers(0, 40, 60), np.arange(0, 61, 6))  # ten windows an epoch
    sft = replace(page_wise.QUICK.sft, tasks=("retrieval",), batch=4, epochs=2)
    found = page_wise.in_passes(sft, 70, policy, log, 20, 0)
    assert (found.epochs, found.eval_every) == (7, 10)  # 3 steps an epoch, two validations in 21 steps
    assert page_wise.in_passes(sft, 1, policy, log, 20, 0).epochs == 1
