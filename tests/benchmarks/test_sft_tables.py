"""docs/supervised.md quotes the stored results and nothing else."""

import json
from pathlib import Path

import pytest

from sidgym.benchmarks.sft_tables import PARTS
from sidgym.benchmarks.tables import RESULTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "supervised.md"

pytestmark = pytest.mark.skipif(not PAGE.exists() or not RESULTS.exists(), reason="only in a checkout")


@pytest.mark.parametrize("part", PARTS)
def test_the_page_quotes_the_stored_results(part):
    assert PARTS[part]() in PAGE.read_text(), f"regenerate '{part}' with sidgym.benchmarks.sft_tables.PARTS"


def test_training_without_padding_is_as_fast_as_promised():
    result = json.loads((RESULTS / "sft.json").read_text())
    assert result["packed_vs_trainer"] >= 3
    assert result["mixture"]["loss_difference"] < 1e-4


def test_the_beauty_figures_are_of_one_setting():
    result = json.loads((RESULTS / "beauty.json").read_text())
    assert {"r@5", "r@10", "n@5", "n@10", "seeds", "command"} <= set(result)
    seeds = [part["seed"] for part in result["arms"]["full"]["per_seed"]]
    assert seeds == result["seeds"]
    assert result["n@10"] == pytest.approx(sum(p["n@10"] for p in result["arms"]["full"]["per_seed"]) / len(seeds))
