"""What the README says of baselines: every system once, what was not measured as a dash, margins with intervals."""

from sidgym.benchmarks.baseline_settings import TRIALS
from sidgym.benchmarks.contest_tables import SYSTEMS, beside_baselines


def row(value):
    return {metric: {"mean": value} for metric in ("r@10", "n@10", "r@50")}


def pair(metric, b, mean, p):
    return {"metric": metric, "a": "sid_policy", "b": b, "mean": mean, "low": mean - 0.01, "high": mean + 0.01,
            "p_holm": p}  # fmt: skip


def result():
    pairs = [pair("n@10", "sasrec", -0.02, 0.001), pair("r@50", "sasrec", 0.005, 0.6), pair("n@10", "hstu", 0.3, 0.001)]
    return {
        "command": "python -m sidgym.benchmarks.baselines_table",
        "seeds": [10, 11, 12],
        "trials": 2,
        "stores": {
            "scientific": {"sasrec": row(0.1), "hstu": row(0.2), "sid_policy": row(0.3)},
            "beauty": {"sasrec": row(0.4), "sid_policy": row(0.5)},
        },
        "margins": {"scientific": {"ours": "sid_policy", "baseline": "sasrec", "pairs": pairs}, "beauty": None},
    }


def test_all_systems_of_the_table_have_a_name():
    assert set(SYSTEMS) == set(TRIALS)


def test_every_system_stands_once_on_both_logs_and_margins_are_to_the_best_by_validation():
    text = "\n".join(beside_baselines(result()))
    assert "| HSTU | 0.2000 | 0.2000 | 0.2000 | – | – | – |" in text
    assert "| **SFT over SIDs** | 0.3000 | 0.3000 | 0.3000 | 0.5000 | 0.5000 | 0.5000 |" in text
    assert "Caser" not in text
    assert (
        "- Amazon Industrial & Scientific, ours minus SASRec, softmax over all items, the baseline that validates "
        "best: N@10 −0.0200 [−0.0300, −0.0100]; R@50 +0.0050 [−0.0050, +0.0150] (not shown)\nIntervals are 95 %"
    ) in text
    assert "each with 2 trials on validation;" in text
    tuned = "\n".join(beside_baselines(result() | {"settings_of": "scientific"}))
    assert "on validation of Amazon Industrial & Scientific, whose best setting every log takes;" in tuned


def test_without_a_result_nothing_is_said():
    assert beside_baselines(None) == []
