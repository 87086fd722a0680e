"""The README quotes the stored results and nothing else."""

import json
from pathlib import Path

import pytest

from sidgym.benchmarks.summary import validate_summary
from sidgym.benchmarks.tables import RESULTS, readme

README = Path(__file__).resolve().parents[2] / "README.md"

pytestmark = pytest.mark.skipif(not README.exists() or not RESULTS.exists(), reason="only in a checkout")


def test_readme_quotes_the_stored_results():
    assert readme() in README.read_text(), "regenerate that part with sidgym.benchmarks.tables.readme()"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_stored_results_follow_the_schema(path):
    result = json.loads(path.read_text())
    validate_summary(result)
    assert result["command"].startswith("sidgym ")


def test_the_demonstration_holds_in_each_seed():
    """What the demonstration is for: RL raises true preference over SFT and over the NLL-only control."""
    result = json.loads((RESULTS / "demo.json").read_text())
    assert len(result["seeds"]) >= 3
    for seed in result["per_seed"]:
        for other in ("sft", "nll_only"):
            for metric in ("preference@1", "preference@10"):
                assert seed["differences"][f"rl_minus_{other}"][metric]["low"] > 0
        percent = seed["percent_of_oracle"]
        for metric in ("preference@1", "preference@10"):
            assert percent["rl"][metric] - percent["sft"][metric] >= 10
