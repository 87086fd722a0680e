"""Claims of the papers: each is reproduced where the figures show it, and not where they only point there."""

import json

import numpy as np
import pytest
from claim_cases import arms, sizes, systems

from sidgym.benchmarks import claims
from sidgym.benchmarks.arms_seeds import alone, difference
from sidgym.benchmarks.claims import CLAIMS, NOT, REPRODUCED, UNTESTABLE, claims_table, judge_all

MODES = ("sample", "top_k", "dynamic")


def told(rows, name):
    return {row["result"]: row for row in rows if row["claim"].startswith(name)}


@pytest.mark.parametrize(
    ("gains", "status"),
    [
        ({"beam": 0.05, "sample": 0.0, "top_k": 0.01, "dynamic": 0.0}, REPRODUCED),
        ({"beam": 0.05, "sample": 0.0, "top_k": 0.05, "dynamic": 0.0}, NOT),
        ({"beam": 0.0, "sample": 0.05, "top_k": 0.05, "dynamic": 0.05}, NOT),
        ({"beam": 0.05}, UNTESTABLE),
    ],
)
def test_beams_must_beat_every_way_of_sampling(gains, status):
    outcome = claims.beam_beats_sampling(arms("sampling", gains))
    assert outcome.status == status
    if status == REPRODUCED:
        assert outcome.interval[0] < 0.04 < outcome.interval[1]  # of the smallest lead, over top_k


@pytest.mark.parametrize(("both", "status"), [(0.03, REPRODUCED), (0.0, NOT), (-0.03, NOT)])
def test_rule_and_rank_must_be_above_rule(both, status):
    assert claims.both_beat_rule(arms("rewards", {"rule": 0.0, "rule_rank": both})).status == status


@pytest.mark.parametrize(
    ("gain", "reward", "status"), [(-0.05, 0.3, REPRODUCED), (-0.05, -0.3, NOT), (0.0, 0.3, NOT), (0.05, 0.3, NOT)]
)
def test_a_reward_is_gamed_where_it_rises_while_accuracy_falls(gain, reward, status):
    summary = arms("rewards", {"collaborative": gain}, rewards={"collaborative": reward})
    assert claims.collaborative_is_gamed(summary).status == status


@pytest.mark.parametrize(
    ("gated", "ungated", "status"),
    [(0.0, -0.05, REPRODUCED), (-0.05, -0.05, NOT), (-0.02, -0.05, NOT), (0.05, 0.0, NOT)],
)
def test_a_gate_stops_only_what_is_there_without_it(gated, ungated, status):
    summary = arms("rewards", {"gated": gated, "ungated": ungated}, rewards={"gated": 0.2, "ungated": 0.3})
    outcome = claims.gate_stops_gaming(summary)
    assert outcome.status == status
    assert ("nothing to stop" in outcome.figure) == (ungated == 0.0)


@pytest.mark.parametrize(("har", "status"), [(0.01, REPRODUCED), (0.05, NOT), (0.2, NOT)])
def test_legality_of_grpo_sr(har, status):
    summary = arms("variants", {"grpo": 0.0, "grpo_sr": 0.0}, har={"grpo": 0.05, "grpo_sr": har})
    assert claims.grpo_sr_stays_legal(summary).status == status


def test_one_seed_tests_nothing_that_has_no_interval_over_users():
    summary = arms("variants", {"grpo": 0.0, "grpo_sr": 0.0, "gbpo": 0.0}, seeds=(3,), har={"grpo_sr": 0.0})
    assert claims.grpo_sr_stays_legal(summary).status == UNTESTABLE
    assert claims.gbpo_is_steadiest(summary).status == UNTESTABLE
    summary = arms("rewards", {"collaborative": -0.1}, seeds=(3,), rewards={"collaborative": 0.3})
    assert claims.collaborative_is_gamed(summary).status == UNTESTABLE


@pytest.mark.parametrize(("ecpo", "status"), [(0.5, REPRODUCED), (0.05, NOT)])
def test_gbpo_must_be_steadier_than_every_other_objective(ecpo, status):
    spread = {"gbpo": 0.1, "grpo": 0.5, "ecpo": ecpo, "nll_only": 0.01}
    summary = arms("variants", {"gbpo": 0.0, "grpo": 0.0, "ecpo": 0.0}, spread=spread)
    assert claims.gbpo_is_steadiest(summary).status == status


@pytest.mark.parametrize(
    ("losses", "status"), [((3.0, 2.6, 2.3, 2.1), REPRODUCED), ((3.0, 3.0, 3.0, 3.0), NOT), ((2.0, 2.2, 2.3, 2.4), NOT)]
)
def test_loss_must_fall_with_size(losses, status):
    outcome = claims.larger_have_lower_loss(sizes(losses))
    assert outcome.status == status
    assert "exponent" in outcome.figure


@pytest.mark.parametrize(("rl", "status"), [(0.2, REPRODUCED), (0.1, NOT), (0.05, NOT)])
def test_rl_alone_must_be_above_its_start_on_the_new_catalogue(rl, status):
    summary, _ = systems("transfer", {"untrained": 0.1, "rl_only": rl, "sft": 0.3})
    outcome = claims.rl_alone_transfers(summary)
    assert outcome.status == status
    assert "rl_only − sft" in outcome.figure


def test_every_claim_has_a_row_for_each_result_and_one_without_any():
    stored = {
        "rewards": arms("rewards", {"rule": 0.0, "rule_rank": 0.05}),
        "rewards_scientific": arms("rewards", {"rule": 0.0, "rule_rank": 0.0}),
        "scaling": {"benchmark": "scaling", "rllib_overhead_share": 0.1},  # another benchmark of that name
    }
    rows = judge_all(stored)
    assert {row["claim"] for row in rows} == {claim.name for claim in CLAIMS}
    assert {name: row["status"] for name, row in told(rows, "rule").items()} == {
        "rewards": REPRODUCED, "rewards_scientific": NOT,
    }  # fmt: skip
    assert told(rows, "larger")[""]["status"] == UNTESTABLE
    assert "`sidgym bench scaling`" in told(rows, "larger")[""]["figure"]
    text = claims_table(json.loads(json.dumps(rows)))
    assert text.count("\n") == 1 + len(rows)
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_differences_are_over_the_seeds_that_both_have():
    found = {"a": {"x": {"0": 1.0, "1": 3.0}}, "b": {"x": {"1": 1.0, "2": 9.0}}}
    assert difference(found, "a", "b", "x") == {"mean": 2.0, "low": 2.0, "high": 2.0, "seeds": 1}
    assert difference(found, "a", "c", "x") is None
    assert alone(found, "a", "x")["mean"] == 2.0
    assert alone(found, "a", "x")["low"] == pytest.approx(2 - 12.706 * np.sqrt(2) / np.sqrt(2), rel=1e-3)
