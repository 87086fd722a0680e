"""The page of the recipe quotes what is stored."""

import re
from pathlib import Path

import pytest

from sidgym.benchmarks.recipe_parts import METRICS
from sidgym.benchmarks.recipe_tables import STORES, final, search, told
from sidgym.benchmarks.results_page import RESULTS, read_results

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipe.md"

checkout = pytest.mark.skipif(not PAGE.exists() or not RESULTS.exists(), reason="only in a checkout")


@pytest.fixture(scope="module")
def result():
    return read_results()["recipe"]


@checkout
def test_the_page_quotes_the_stored_results(result):
    assert len(final(result).splitlines()) > 6
    assert final(result) in PAGE.read_text(), "regenerate it with sidgym.benchmarks.recipe_tables.final"


@checkout
def test_figures_in_the_text_stand_in_the_tables(result):
    text = PAGE.read_text()
    quoted = re.findall(r"\.\d{4}\b", text[text.index("## What mattered") : text.index("## How it was asked")])
    known = set(re.findall(r"0(\.\d{4})\b", "\n".join(search(result))))
    assert len(quoted) > 15
    assert set(quoted) <= known


def test_a_rung_tells_each_arm_over_the_start_and_over_the_control_of_its_store():
    def of(gain):
        stores = {"scientific": ("nll", gain), "beauty": ("refills", 2 * gain)}
        return {store: {f"{metric} minus {other}": value + (other != "sft") for metric in METRICS
                        for other in ("sft", control)} for store, (control, value) in stores.items()}  # fmt: skip

    interval = {"mean": -0.1, "low": -0.2, "high": 0.3}
    like = {"control": "nll", **{store: dict.fromkeys(METRICS, interval) for store in STORES}}
    top = {"score": 2.0, **of(0.5), "like": like}
    rung = {
        "steps": 7, "users": 1000, "seeds": 1, "kept": ["top"],
        "control": {"scientific": "nll", "beauty": "refills"},
        "arms": {"bad": {"broken": True}, "low": {"score": -1.0, **of(-0.25)}, "top": top},
    }  # fmt: skip
    said, table, _, alike = told(0, rung)
    assert "1,000 validation users a store, 1 seed. " in said
    assert table.splitlines()[2:] == [
        "| top | +2.00 | +0.5000 | +1.5000 | +0.5000 | +1.5000 | +1.0000 | +2.0000 | +1.0000 | +2.0000 |",
        "| low | −1.00 | −0.2500 | +0.7500 | −0.2500 | +0.7500 | −0.5000 | +0.5000 | −0.5000 | +0.5000 |",
        "| bad | broke |" + " – |" * 8,
    ]
    assert alike.splitlines()[2:] == ["| top | nll |" + " −0.1000 [−0.2000, +0.3000] |" * 4]


@checkout
def test_every_rung_has_a_line_for_each_of_its_arms(result):
    tables = [part for part in search(result) if "score" in part.partition("\n")[0]]
    for rung, table in zip(result["search"]["rungs"], tables, strict=True):
        assert len(table.splitlines()) == 2 + len(rung["arms"])


@checkout
def test_the_final_test_is_of_what_the_search_chose_and_its_outcome_of_its_intervals(result):
    judged = result["final"]
    assert judged["recipe"] == result["search"]["chosen"] == result["search"]["rungs"][-1]["kept"][0]
    assert judged["control"] == result["search"]["control"]
    lows = [judged["stores"][store][f"recipe_minus_{other}"][metric]["low"]
            for store in STORES for other in ("sft", "nll") for metric in METRICS]  # fmt: skip
    assert len(lows) == 8
    assert judged["criterion_met"] == all(low > 0 for low in lows)
