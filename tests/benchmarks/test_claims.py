"""Claims of the papers: each is reproduced where the figures show it, and not where they only point there."""

import json

import numpy as np
import pytest
from claim_cases import arms, sizes, systems

from sidgym.benchmarks import claims
from sidgym.benchmarks.arms_seeds import alone, difference
from sidgym.benchmarks.arms_summary import Trial, summarise_arms
from sidgym.benchmarks.claims import CLAIMS, NOT, REPRODUCED, UNTESTABLE, claims_table, judge_all
from sidgym.benchmarks.systems_summary import summarise_systems

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


def test_a_claim_answers_for_its_own_comparisons_and_for_every_look():
    leads = (0.01, 0.03, 0.02, 0.015, 0.035)  # p about .01 for each pair
    gains = {"beam": leads, "sample": 0.0, "top_k": 0.0, "dynamic": 0.0}
    summary = arms("sampling", gains | {f"other{n}": 0.0 for n in range(20)}, noise=0.01)
    pairs = [pair for pair in summary["pairs"] if pair["a"] == "beam" and pair["b"] in MODES]
    worst = max(pair["p"] for pair in pairs if pair["metric"] == "ndcg@10")
    assert 0.004 < worst < 0.025
    assert max(pair["p_holm"] for pair in pairs) > 0.05
    assert claims.beam_beats_sampling(summary).status == REPRODUCED
    many = list(range(1, 2 + int(0.05 / worst)))
    assert claims.beam_beats_sampling(summary | {"looks": many}).status == NOT
    har = {"vocab": 0.05, "vocab_sr": 0.03, "sft": 0.03}
    summary = arms("normalise", {"vocab": 0.0, "vocab_sr": 0.0}, har=har)
    summary["by_seed"]["vocab_sr"]["har"] = dict(zip("01234", (0.03, 0.05, 0.04, 0.035, 0.02)))
    p = difference(summary["by_seed"], "vocab_sr", "vocab", "har")["p"]
    assert 0.02 < p < 0.05
    assert claims.grpo_sr_stays_legal(summary | {"looks": [5]}).status == REPRODUCED
    assert claims.grpo_sr_stays_legal(summary | {"looks": [2, 3, 5]}).status == NOT


def test_one_seed_tests_no_claim():
    stored = {"sampling": arms("sampling", {"beam": 0.05, "sample": 0.0}, seeds=(3,))}
    (row,) = told(judge_all(stored), "beam").values()
    assert row["status"] == UNTESTABLE
    assert "one seed says nothing of another training: NDCG@10 of beam − sample" in row["figure"]


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


@pytest.mark.parametrize(("truth", "status"), [(-0.05, REPRODUCED), (0.0, NOT), (0.05, NOT)])
def test_a_reward_is_not_gamed_where_what_users_prefer_does_not_fall(truth, status):
    summary = arms("rewards", {"collaborative": -0.05}, rewards={"collaborative": 0.3}, truth={"collaborative": truth})
    outcome = claims.collaborative_is_gamed(summary)
    assert outcome.status == status
    assert "true preference of the top 10 of collaborative − sft" in outcome.figure
    assert ("what users truly prefer is not shown to have fallen" in outcome.figure) == (status == NOT)
    gains, rewards = {"gated": 0.0, "ungated": -0.05}, {"gated": 0.2, "ungated": 0.3}
    summary = arms("rewards", gains, rewards=rewards, truth={"gated": 0.0, "ungated": truth})
    outcome = claims.gate_stops_gaming(summary)
    assert outcome.status == status
    assert ("nothing to stop" in outcome.figure) == (status == NOT)


def test_a_gate_must_hold_up_what_users_prefer_too():
    gains, rewards = {"gated": 0.0, "ungated": -0.05}, {"gated": 0.2, "ungated": 0.3}
    summary = arms("rewards", gains, rewards=rewards, truth={"gated": -0.05, "ungated": -0.05})
    assert claims.gate_stops_gaming(summary).status == NOT


def test_harm_that_is_only_not_shown_is_not_stopped():
    gated, ungated = (-0.01, -0.05, -0.03), -0.2  # well above the open gate, and nobody knows how far below SFT
    summary = arms("rewards", {"gated": gated, "ungated": ungated}, (0, 1, 2), rewards={"gated": 0.2, "ungated": 0.3})
    kept = next(p for p in summary["pairs"] if (p["a"], p["b"], p["metric"]) == ("gated", "sft", "ndcg@10"))
    assert kept["p_holm"] > 0.05
    assert kept["low"] < -0.02
    outcome = claims.gate_stops_gaming(summary)
    assert outcome.status == NOT
    assert "stopped if above −0.02" in outcome.figure


@pytest.mark.parametrize(("har", "status"), [(0.01, REPRODUCED), (0.05, NOT), (0.2, NOT)])
def test_legality_of_grpo_sr_where_the_policy_is_over_the_whole_vocabulary(har, status):
    levels = {"vocab": 0.05, "vocab_sr": har, "trie": 0.1, "trie_sr": 0.001, "sft": 0.03}
    summary = arms("normalise", {"trie": 0.0, "vocab": 0.0, "trie_sr": 0.0, "vocab_sr": 0.0}, har=levels)
    outcome = claims.grpo_sr_stays_legal(summary)
    assert outcome.status == status
    assert "vocab_sr − sft" in outcome.figure
    above = arms("normalise", {"vocab": 0.0, "vocab_sr": 0.0}, har=levels | {"vocab": 0.9, "sft": 0.001})
    assert claims.grpo_sr_stays_legal(above).but == "not shown to be below SFT's"
    assert outcome.but == ""
    over_trie = arms("normalise", {"trie": 0.0, "trie_sr": 0.0}, har=levels)
    assert claims.grpo_sr_stays_legal(over_trie).status == UNTESTABLE


def test_one_seed_tests_nothing_that_has_no_interval_over_users():
    summary = arms("normalise", {"vocab": 0.0, "vocab_sr": 0.0}, seeds=(3,), har={"vocab_sr": 0.0})
    assert claims.grpo_sr_stays_legal(summary).status == UNTESTABLE
    summary = arms("variants", {"grpo": 0.0, "gbpo": 0.0}, seeds=(3,))
    assert claims.gbpo_is_steadiest(summary).status == UNTESTABLE
    summary = arms("rewards", {"collaborative": -0.1}, seeds=(3,), rewards={"collaborative": 0.3})
    assert claims.collaborative_is_gamed(summary).status == UNTESTABLE


@pytest.mark.parametrize(("ecpo", "status"), [(0.5, REPRODUCED), (0.05, NOT)])
def test_gbpo_must_be_steadier_than_every_other_objective(ecpo, status):
    spread = {"gbpo": 0.1, "grpo": 0.5, "ecpo": ecpo, "nll_only": 0.01}
    summary = arms("variants", {"gbpo": 0.0, "grpo": 0.0, "ecpo": 0.0}, spread=spread)
    assert claims.gbpo_is_steadiest(summary).status == status


def test_one_pair_with_a_single_seed_leaves_gbpo_untested():
    spread = {"gbpo": 0.1, "grpo": 0.3, "ecpo": 0.8}  # the closest pair, grpo's, has all seeds
    gains = {"gbpo": 0.0, "grpo": 0.0, "ecpo": 0.0}
    summary = arms("variants", gains, spread=spread, missing=[("ecpo", seed) for seed in (1, 2, 3, 4)])
    assert claims.gbpo_is_steadiest(summary).status == UNTESTABLE


def test_gbpo_is_compared_with_objectives_that_have_a_ratio():
    spread = {"gbpo": 0.1, "grpo": 0.5, "s_dpo": 0.01, "mine": 0.01, "slow": 0.01}
    summary = arms("variants", dict.fromkeys(spread, 0.0), spread=spread)
    assert claims.gbpo_is_steadiest(summary).status == REPRODUCED
    settings = {"slow": {"objective": "ecpo"}}  # an arm of another name is known by its objective
    assert claims.gbpo_is_steadiest(summary | {"settings": settings}).status == NOT


@pytest.mark.parametrize(
    ("losses", "status"), [((3.0, 2.6, 2.3, 2.1), REPRODUCED), ((3.0, 3.0, 3.0, 3.0), NOT), ((2.0, 2.2, 2.3, 2.4), NOT)]
)
def test_loss_must_fall_with_size(losses, status):
    outcome = claims.larger_have_lower_loss(sizes(losses))
    assert outcome.status == status
    assert "exponent" in outcome.figure
    assert outcome.but == ""


def test_a_loss_that_falls_among_small_models_alone_is_told_so():
    summary = sizes((3.0, 2.1, 2.1, 2.1, 2.1), noise=0.01)
    rows = judge_all({"sizes": summary})
    row = told(rows, "larger")["sizes"]
    assert row["status"] == REPRODUCED
    assert row["but"] == "no fall is shown from 100,000 parameters on"
    assert "**reproduced, but no fall is shown from 100,000 parameters on**" in claims_table(rows)


@pytest.mark.parametrize(("rl", "status"), [(0.2, REPRODUCED), (0.1, NOT), (0.05, NOT)])
def test_rl_alone_must_be_above_its_start_on_the_new_catalogue(rl, status):
    summary, _ = systems("transfer", {"untrained": 0.1, "rl_only": rl, "sft": 0.3, "inside": 0.4})
    outcome = claims.rl_alone_transfers(summary)
    assert outcome.status == status
    assert "rl_only − sft" in outcome.figure
    assert "rl_only − inside" in outcome.figure


@pytest.mark.parametrize("same", [False, True])
def test_users_that_all_seeds_share_are_counted_once(same):
    trials = [Trial(name, seed, {"ndcg@10": np.arange(9.0) / 10 + seed / 100}) for name in ("sft", "a")
              for seed in range(3)]  # fmt: skip
    assert summarise_arms(trials, same_users=same, bootstrap=9)["n_users"] == (9 if same else 27)
    found = summarise_systems(trials, ("ndcg@10",), ("ndcg@10",), same_users=same, bootstrap=9)
    assert found["n_users"] == (9 if same else 27)


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


def test_a_contest_without_a_claims_arms_is_told_only_where_no_other_has_them():
    without, whole = arms("rewards", {"rule": 0.0}), arms("rewards", {"rule": 0.0, "rule_rank": 0.05})
    assert set(told(judge_all({"rewards": whole, "rewards_beauty": without}), "rule")) == {"rewards"}
    alone_there = told(judge_all({"rewards_beauty": without}), "rule")
    assert {name: row["status"] for name, row in alone_there.items()} == {"rewards_beauty": UNTESTABLE}


def test_differences_are_over_the_seeds_that_both_have():
    found = {"a": {"x": {"0": 1.0, "1": 3.0}}, "b": {"x": {"1": 1.0, "2": 9.0}}}
    assert difference(found, "a", "b", "x") == {"mean": 2.0, "low": 2.0, "high": 2.0, "seeds": 1}
    assert difference(found, "a", "c", "x") is None
    assert alone(found, "a", "x")["mean"] == 2.0
    assert alone(found, "a", "x")["low"] == pytest.approx(2 - 12.706 * np.sqrt(2) / np.sqrt(2), rel=1e-3)
