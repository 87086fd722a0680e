"""The page of the recipe quotes what is stored."""

from pathlib import Path

import pytest

from sidgym.benchmarks.recipe_parts import METRICS
from sidgym.benchmarks.recipe_tables import FILE, STORES, final, search, stored

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipe.md"

pytestmark = pytest.mark.skipif(not PAGE.exists() or not FILE.exists(), reason="only in a checkout")


def test_the_page_quotes_the_stored_results():
    assert final(stored()) in PAGE.read_text(), "regenerate it with sidgym.benchmarks.recipe_tables.final"


def test_every_rung_has_a_line_for_each_of_its_arms():
    result = stored()
    tables = [part for part in search(result) if "score" in part.partition("\n")[0]]
    for rung, table in zip(result["search"]["rungs"], tables, strict=True):
        assert len(table.splitlines()) == 2 + len(rung["arms"])


def test_the_final_test_is_of_what_the_search_chose_and_its_outcome_of_its_intervals():
    result = stored()
    if "final" not in result:
        pytest.skip("test users have not been judged yet")
    judged = result["final"]
    assert judged["recipe"] == result["search"]["chosen"] == result["search"]["rungs"][-1]["kept"][0]
    assert judged["control"] == result["search"]["control"]
    lows = [judged["stores"][store][f"recipe_minus_{other}"][metric]["low"]
            for store in STORES for other in ("sft", "nll") for metric in METRICS]  # fmt: skip
    assert len(lows) == 8
    assert judged["criterion_met"] == all(low > 0 for low in lows)
