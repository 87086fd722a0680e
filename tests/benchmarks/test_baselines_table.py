"""The contest of baselines: the choice sees validation only, test is judged for the choice alone, figures by hand."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidgym.benchmarks import baselines_table
from sidgym.benchmarks.baseline_settings import DIFFERS, FIXED, PUBLISHED, QUICK, TRIALS
from sidgym.benchmarks.baselines.registry import BASELINES
from sidgym.envs.config import DataConfig
from sidgym.envs.records import Episodes

DATA = {"beauty": DataConfig(path="A"), "scientific": DataConfig(path="B")}
VALID = {0.2: 0.03, 0.5: 0.05}


def options(**given: Any) -> argparse.Namespace:
    asked = {"only": ["sasrec"], "trials": 2, "seeds": [7, 8], "quick": False, "no_test": False, "device": "cpu"}
    return argparse.Namespace(**{**asked, "codes": "zcr", "workers": 1, "parts": None, **given})


def figures(values: list[float]) -> dict[str, Any]:
    per_user = {name: values for name in baselines_table.METRICS}
    return {**{name: float(np.mean(values)) for name in baselines_table.METRICS}, "per_user": per_user}


def test_every_baseline_has_trials_and_the_same_number_of_them() -> None:
    assert set(TRIALS) == set(BASELINES)
    assert {len(trials) for name, trials in TRIALS.items() if name != "popularity"} == {4}
    assert set(QUICK) == set(BASELINES) - {"popularity", "cooccurrence", "item_knn"}
    known = set(BASELINES)
    assert set(FIXED) <= known
    assert set(DIFFERS) <= known
    for rows in PUBLISHED.values():
        assert set(rows) <= known
        assert all(r5 <= r10 and n5 <= n10 for r5, r10, n5, n10 in rows.values())


def test_validation_chooses_and_only_the_choice_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any], bool]] = []

    def inline(judge: Any, jobs: Mapping[str, Any], workers: int, folder: Path | None) -> Iterator[tuple[str, Any]]:
        for name, (data, _, job, _, test) in jobs.items():
            asked.append((data.path, job, test))
            score = VALID[job["settings"]["dropout"]]
            yield name, figures([score, 2 * score]) if test else {"valid_ndcg@10": score}

    monkeypatch.setattr(baselines_table, "in_parts", inline)
    found = baselines_table.Contest(options(), DATA).run()
    trials, tests = ([(path, job["settings"]["dropout"], job["seed"]) for path, job, test in asked if test == which]
                     for which in (False, True))  # fmt: skip
    assert trials == [(path, dropout, 7) for path in "AB" for dropout in (0.2, 0.5)]
    assert tests == [(path, 0.5, seed) for path in "AB" for seed in (7, 8)]
    row = found["beauty"]["sasrec"]
    assert row["settings"] == {"dropout": 0.5}
    assert [trial["valid_ndcg@10"] for trial in row["tried"]] == [0.03, 0.05]
    assert row["n@10"]["mean"] == pytest.approx(0.075)
    assert row["n@10"]["low"] <= row["n@10"]["mean"] <= row["n@10"]["high"]
    assert row["sd_over_seeds"]["n@10"] == 0
    assert all("per_user" not in seed for seed in row["per_seed"])
    asked.clear()
    assert baselines_table.Contest(options(no_test=True), DATA).run()["tried"] == {
        "beauty sasrec": 1, "scientific sasrec": 1,
    }  # fmt: skip
    assert not any(test for _, _, test in asked)


def test_parts_of_other_settings_have_other_names_and_the_device_does_not_matter() -> None:
    def name(kind: str, settings: dict[str, Any], **given: Any) -> str:
        return baselines_table.Contest(options(**given), DATA)._digest({"name": kind, "settings": settings})

    own = name("tiger", {"width": 8})
    assert own == name("tiger", {"width": 8, "device": "cuda"})
    assert len({own, name("tiger", {"width": 9}), name("tiger", {"width": 8}, codes="rqvae")}) == 3
    assert name("hstu", {}) == name("hstu", {}, codes="rqvae")


def test_published_rows_are_compared_on_beauty_alone() -> None:
    means = dict(zip(baselines_table.ROW, (0.0402, 0.0607, 0.0254, 0.0320)))
    found = {name: {"mean": mean} for name, mean in means.items()}
    rows = baselines_table.beside_published("beauty", "sasrec_sampled", found)
    assert rows["OneRec-Think, table 1"]["ratio"] == pytest.approx(dict.fromkeys(means, 1.0))
    assert all(row["within_10_percent"] for row in rows.values())
    found["n@10"] = {"mean": 0.04}
    assert not any(
        row["within_10_percent"] for row in baselines_table.beside_published("beauty", "sasrec_sampled", found).values()
    )
    assert baselines_table.beside_published("scientific", "sasrec_sampled", found) == {}


def test_figures_by_hand() -> None:
    """The second user's target stands third, behind an item of the history."""
    rows = np.arange(2)
    test = Episodes(rows, rows, np.array([[9], [4]]), np.array([[5], [6]]))
    lists = np.array([[0, 1, 2, 3, 4], [1, 4, 6, 2, 3]])
    found = baselines_table.figures(lists, test, np.arange(10))
    assert found["r@5"] == 0.5
    assert found["per_user"]["n@5"] == pytest.approx([0, 0.5])
    assert found["unseen"]["n@5"] == pytest.approx(1 / np.log2(3) / 2)
    assert found["coverage@10"] == 0.6
    assert sum(found["exposure@10"].values()) == pytest.approx(1)
    assert found["segments"]["history"]["short (<5)"]["users"] == 2
