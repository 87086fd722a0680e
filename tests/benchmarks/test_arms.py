"""A contest of arms: what the words claim follows the tests, costs and oracle by hand, unequal budgets are told."""

import json

import numpy as np
import pytest

from sidgym.benchmarks.arms_curves import POINTS, curve, targets, values_of
from sidgym.benchmarks.arms_summary import CONTROL, Trial, summarise_arms
from sidgym.benchmarks.arms_tables import NONE, markdown, target_rows, target_words
from sidgym.benchmarks.arms_words import arms_of, failures, pair_of, verdict
from sidgym.envs.segments import Bands

USERS = 40
STEPS = 20


def log_of(seed, gain=0.1, ndcg=-0.02, contexts=5.0, drawn=0.0):
    rng, rows = np.random.default_rng(seed), []
    for step in range(STEPS + 1):
        if step:
            rows.append(
                {
                    "step": step,
                    "grad_norm": 1.0 + 0.1 * rng.random(),
                    "entropy": 3.0,
                    "kl/k2": 0.01 * step,
                    "reward": 0.2,
                }
                | {"contexts/checksum": contexts + step, "refill/rounds": drawn, "ratio_max": 1.1}
            )
        if step % 5 == 0:
            done = step / STEPS
            rows.append({"step": step, "eval/reward": 0.3 + gain * done, "eval/ndcg@10": 0.2 + ndcg * done})
    return rows


def make_trials(gains, seeds=(0, 1, 2), noise=0.001, preference=True, **logs):
    """Trials where each arm's preference is SFT's and its gain, with a little noise a seed and user."""
    trials, names = [], ("random", "oracle") if preference else ()
    for seed in seeds:
        rng = np.random.default_rng(seed)
        base = 0.3 + 0.1 * rng.random(USERS)
        bands = {"history": Bands(("short", "long"), np.arange(USERS) % 2)}
        for name in ("sft", CONTROL, *gains, *names):
            fixed = {"random": -0.2, "oracle": 0.3}
            value = base + {**gains, **fixed, CONTROL: 0.0, "sft": 0.0}.get(name, 0.0)
            if name not in ("sft", *names):
                value = value + rng.normal(0, noise, USERS)
            figures = {"preference@10": value} if preference else {}
            figures |= {"ndcg@10": value / 2, "hr@10": value, "tail@10": 0.2 + 0 * value, "popular@10": 0.3 + 0 * value}
            whole = {"har": 0.0, "trie/legal_mass": 0.9, "coverage@10": 0.3}
            arm = name not in ("sft", *names)
            cost = {"seconds": 10.0, "steps": 20.0, "rollouts": 1000.0, "updates": 40.0, "flops": 1e9} if arm else {}
            if name in logs and "drawn" in logs[name]:
                cost["rollouts"] = 1000.0 * (1 + logs[name]["drawn"])
            log = log_of(seed, **logs.get(name, {})) if arm else ()
            trials.append(Trial(name, seed, figures, whole, bands, log, cost))
    return trials


def told(gains, **settings):
    summary = summarise_arms(make_trials(gains, **settings), bootstrap=100)
    return summary, [text for _, text in verdict(summary)]


def test_a_clear_winner_is_called_best_and_by_how_much():
    summary, said = told({"grpo": 0.1, "ecpo": 0.05})
    assert arms_of(summary) == ["grpo", "ecpo"]
    assert said[0].startswith("grpo is best in true preference of the top 10")
    assert "the nearest is ecpo, by +0.05" in said[0]
    assert any(text.startswith("Shown to be above SFT") and "ecpo" in text for text in said)
    assert any("3 seeds" in text and "fewer than five seeds" in text for text in said)


def test_a_lead_within_chance_is_not_called_best():
    summary, said = told({"grpo": 0.1, "ecpo": 0.1}, noise=0.01)
    assert said[0].startswith("No single best is shown")
    assert "more than chance over" in said[0]
    assert not any("is best" in text for text in said)
    assert pair_of(summary, "grpo", "ecpo", "preference@10")["p_holm"] > 0.05


def test_arms_below_their_start_are_said_to_be():
    _, said = told({"grpo": -0.1, "ecpo": -0.12})
    assert said[0].startswith("No objective is best: SFT and NLL only are shown to be above")
    assert any(text.startswith("Shown to be below SFT") for text in said)


def test_one_seed_says_nothing_of_other_trainings():
    _, said = told({"grpo": 0.1}, seeds=(3,))
    assert any("nothing is known of the spread between trainings" in text for text in said)


def test_without_a_simulator_ndcg_decides():
    summary, said = told({"grpo": 0.1}, preference=False)
    assert summary["metric"] == "ndcg@10"
    assert summary["objectives"]["grpo"]["pct_oracle"] is None
    assert said[0].startswith("grpo is best in NDCG@10")
    assert not any("oracle" in text for text in said)


def test_the_summary_holds_what_readers_rely_on():
    summary, _ = told({"grpo": 0.1})
    figures = summary["objectives"]["grpo"]
    assert set(figures["ndcg@10"]) == {"mean", "low", "high"}
    assert figures["pct_oracle"] == pytest.approx(100 * (0.1 + 0.2) / 0.5, abs=0.1)
    assert figures["seconds"] == 10.0
    assert (figures["entropy"], figures["reward"]) == pytest.approx((3.0, 0.4))
    assert figures["kl"] == pytest.approx(0.01 * np.mean(range(11, 21)))
    assert figures["illegal_mass"] == pytest.approx(0.1)
    assert summary["objectives"]["sft"]["reward"] == pytest.approx(0.3)  # what arms validate before their first step
    pairs = {(p["a"], p["b"], p["metric"]) for p in summary["pairs"]}
    assert pairs == {
        (a, b, metric)
        for a, b in [("grpo", CONTROL), ("grpo", "sft"), (CONTROL, "sft")]
        for metric in ("preference@10", "ndcg@10")
    }
    assert all(0 <= pair["p"] <= pair["p_holm"] <= 1 for pair in summary["pairs"])
    json.dumps(summary, allow_nan=False)


def test_a_pair_turned_round_is_the_same_pair():
    summary, _ = told({"grpo": 0.1})
    ours, theirs = pair_of(summary, "grpo", "sft", "ndcg@10"), pair_of(summary, "sft", "grpo", "ndcg@10")
    assert (theirs["mean"], theirs["low"], theirs["high"]) == (-ours["mean"], -ours["high"], -ours["low"])
    assert theirs["users"]["low"] < theirs["mean"] < theirs["users"]["high"]
    assert pair_of(summary, "grpo", "nobody", "ndcg@10") is None


def test_unequal_budgets_and_contexts_are_told():
    summary, said = told({"grpo": 0.1, "dapo": 0.1}, dapo={"drawn": 0.5, "contexts": 9.0})
    assert summary["contexts_equal"] == {CONTROL: True, "grpo": True, "dapo": False}
    assert any(text.startswith("Not at an equal budget: dapo 1.50 times") for text in said)
    assert any(text.startswith("Not from the same contexts as the others: dapo (") for text in said)


def test_a_reward_that_rises_while_ndcg_falls_is_told_with_worse_segments():
    summary, _ = told({"grpo": -0.1}, grpo={"gain": 0.2, "ndcg": -0.1})
    said = failures(summary)["grpo"]
    assert any("its reward rises by 0.200 while validation NDCG@10 falls by 0.100" in text for text in said)
    assert any("below SFT by 0.1" in text and "history is short (60 users)" in text for text in said)
    calm, _ = told({"grpo": 0.1}, grpo={"gain": 0.1, "ndcg": 0.1})
    assert failures(calm)["grpo"] == ["nothing that these figures show"]


def unequal(lacking):
    """Trials whose seeds lie far apart; ``lacking``: arm -> seeds that it has not."""
    trials = make_trials({"grpo": 0.05, "ecpo": 0.1})
    for trial in trials:
        if trial.system != "random":
            trial.per_user.update({name: values + 0.2 * trial.seed for name, values in trial.per_user.items()})
    return [trial for trial in trials if trial.seed not in lacking.get(trial.system, ())]


def test_arms_are_compared_over_the_seeds_that_all_have():
    summary = summarise_arms(unequal({"grpo": (0,)}), bootstrap=50)  # seed 0 is the lowest of all
    assert arms_of(summary) == ["ecpo", "grpo"]
    assert (summary["seeds"], summary["fewer"]) == ([1, 2], {"grpo": [0]})
    assert {tuple(figures["seeds"]) for figures in summary["objectives"].values()} == {(1, 2)}
    assert summary["n_users"] == 2 * USERS
    said = verdict(summary)
    assert said[0] == (-1, "Only what all have is compared, seeds 1, 2: grpo lacks seed 0.")
    gap = pair_of(summary, "ecpo", "grpo", "preference@10")
    means = [summary["objectives"][arm]["preference@10"]["mean"] for arm in ("ecpo", "grpo")]
    assert means[0] - means[1] == pytest.approx(gap["mean"])
    assert not summarise_arms(unequal({}), bootstrap=50)["fewer"]


def test_an_arm_without_a_seed_in_common_is_left_out_and_named():
    summary = summarise_arms(unequal({"grpo": (0, 1), "ecpo": (2,)}), bootstrap=50)
    assert arms_of(summary) == ["ecpo"]
    assert summary["seeds"] == [0, 1]
    assert "grpo lacks seeds 0, 1 and has none in common with the others, so it is left out" in verdict(summary)[0][1]


def validated(*values):
    return [{"step": 5 * number, "eval/ndcg@10": value} for number, value in enumerate(values)]


def costs_of(logs):
    return {arm: {"steps": 10.0, "rollouts": 1000.0, "seconds": None, "flops": 2.0} for arm in logs}


def test_cost_to_reach_a_target_is_counted_from_each_seeds_own_start():
    logs = {
        "grpo": [validated(0.25, 0.5, 0.75), validated(0.5, 0.5, 1.0)],
        "ecpo": [validated(0.25, 0.25, 0.25), validated(0.5, 0.625, 0.75)],
    }
    found = targets(logs, costs_of(logs))["eval/ndcg@10"]
    assert (found["start"], found["gain"], found["value"]) == (0.375, 0.25, 0.625)
    assert found["reached"]["grpo"] == {
        "seeds": 2, "of": 2, "at_start": 0, "step": 7.5, "rollouts": 750.0, "seconds": None, "flops": 1.5,
    }  # fmt: skip
    assert (found["reached"]["ecpo"]["seeds"], found["reached"]["ecpo"]["step"]) == (1, 10.0)


def test_no_cost_is_told_of_a_gain_that_is_not_shown():
    falling = {"a": [validated(0.5, 0.25)]}
    chance = {"a": [validated(0.5, 0.75, 0.4), validated(0.5, 0.25, 0.4), validated(0.5, 0.625, 0.4)]}
    for logs in (falling, chance):
        found = targets(logs, costs_of(logs))["eval/ndcg@10"]
        assert (found["gain"], found["value"], found["reached"]) == (None, None, {})
        assert "no arm is shown to rise above its start (0.5000)" in target_words("eval/ndcg@10", found)


def test_a_seed_that_starts_at_a_given_target_costs_nothing_and_is_told_apart():
    logs = {"grpo": [validated(0.25, 0.5, 0.75), validated(0.5, 0.25, 0.25)], "ecpo": [validated(0.5, 0.5)]}
    found = targets(logs, costs_of(logs), given=0.5)["eval/ndcg@10"]
    grpo, ecpo = found["reached"]["grpo"], found["reached"]["ecpo"]
    assert (grpo["seeds"], grpo["at_start"], grpo["step"]) == (2, 1, 5.0)
    assert (ecpo["seeds"], ecpo["at_start"], ecpo["step"], ecpo["rollouts"]) == (1, 1, None, None)
    assert dict(target_rows(found))["ecpo"] == ["1 of 1, 1 from the start", *[NONE] * 4]
    assert targets(logs, costs_of(logs), given=0.9)["eval/ndcg@10"]["reached"]["grpo"]["step"] is None


def test_the_largest_ratio_is_that_of_any_iteration_and_seed():
    trials = make_trials({"grpo": 0.1})
    log = next(trial.log for trial in trials if trial.system == "grpo" and trial.seed == 1)
    log[1]["ratio_max"] = 70.0  # early in training, of one seed
    summary = summarise_arms(trials, bootstrap=50)
    assert summary["objectives"]["grpo"]["ratio_max"] == 70.0
    assert "importance ratios of up to 70" in failures(summary)["grpo"]


def test_any_metric_that_was_measured_may_decide():
    trials = make_trials({"grpo": 0.1, "ecpo": 0.05})
    for trial in trials:
        trial.per_user["hr@5"] = 0.5 * trial.per_user["hr@10"]
    summary = summarise_arms(trials, metric="hr@5", bootstrap=50)
    assert verdict(summary)[0][1].startswith("grpo is best in hr@5")
    assert "| | hr@5 | NDCG@10 |" in markdown({**summary, "command": "sidgym bench variants"})


def test_curves_are_over_the_steps_that_all_seeds_have():
    short = [row for row in log_of(1) if row["step"] <= 10]
    rows = curve([log_of(0), short], "eval/reward")
    assert [row[0] for row in rows] == [0, 5, 10]
    assert curve([log_of(0)], "nothing") == []
    long = [{"step": step, "reward": float(step)} for step in range(1000)]
    binned = curve([long], "reward")
    assert len(binned) == POINTS
    assert np.mean([row[1] for row in binned]) == pytest.approx(499.5)
    steps, values = values_of([{"step": 1, "x": None}, {"step": 2, "x": float("nan")}, {"step": 3, "x": 1}], "x")
    assert (steps.tolist(), values.tolist()) == ([3.0], [1.0])


def test_markdown_tells_every_arm():
    summary, said = told({"grpo": 0.1, "ecpo": 0.05})
    told_of = {"command": "sidgym bench variants", "failed": ["rloo, seed 3"], "notes": ["something to know"]}
    text = markdown(summary | told_of)
    for sentence in (said[0], "Missing: rloo, seed 3 is not finished.", "something to know"):
        assert sentence in text
    for head in ("## Results", "## Pairs", "## Behaviour", "## Cost", "## Where each fails"):
        assert head in text
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert any(line.startswith("| ecpo | ") for line in tables)
    assert len({line.count("|") for line in text.split("## Pairs")[0].splitlines() if line.startswith("|")}) == 1


def test_what_cannot_be_summarised_is_refused():
    trials = make_trials({"grpo": 0.1})
    with pytest.raises(ValueError, match="expected trials of 'sft'"):
        summarise_arms([trial for trial in trials if trial.system != "sft"])
    with pytest.raises(ValueError, match="metric 'mrr@3' was not measured; known: hr@10"):
        summarise_arms(trials, metric="mrr@3")
