"""docs/rewards.md quotes the stored results and nothing else, and they are what the page says they are."""

from pathlib import Path

import pytest

from sidgym.benchmarks.preference_tables import PARTS, stored
from sidgym.benchmarks.tables import RESULTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rewards.md"

pytestmark = pytest.mark.skipif(not PAGE.exists() or not RESULTS.exists(), reason="only in a checkout")


@pytest.mark.parametrize("part", PARTS)
def test_the_page_quotes_the_stored_results(part):
    assert PARTS[part]() in PAGE.read_text(), f"regenerate '{part}' with sidgym.benchmarks.preference_tables.PARTS"


def test_rl_on_a_learned_gated_preference_raises_the_true_one():
    result = stored()
    assert len(result["seeds"]) >= 3
    assert result["users"] == "test"
    gained = result["arms"]["gated"]["minus_start"]["true@10"]
    assert gained["low"] > 0
    assert min(gained["seeds"]) > 0


def test_scoring_takes_a_small_share_of_an_iteration():
    assert all(one["mean"] <= 0.15 for one in stored()["share_of_iteration"].values())
