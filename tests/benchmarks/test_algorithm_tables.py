"""``docs/algorithms.md`` quotes the stored results and nothing else; they are what the page says they are."""

import json
from pathlib import Path

import numpy as np
import pytest

from sidgym.agents.objectives import OBJECTIVES
from sidgym.benchmarks.algorithm_tables import arms, results, table
from sidgym.benchmarks.tables import RESULTS

DOCS = Path(__file__).resolve().parents[2] / "docs"
STORED = ("objectives", "objectives_scientific")


def stored(name: str):
    return json.loads((RESULTS / f"{name}.json").read_text())


in_a_checkout = pytest.mark.skipif(not DOCS.exists() or not RESULTS.exists(), reason="only in a checkout")


@in_a_checkout
def test_the_page_quotes_the_stored_results():
    text = (DOCS / "algorithms.md").read_text()
    assert results() in text, "regenerate that part with sidgym.benchmarks.algorithm_tables.results()"


@in_a_checkout
@pytest.mark.parametrize("name", STORED)
def test_three_seeds_from_one_checkpoint_each(name):
    result = stored(name)
    assert len(set(result["seeds"])) == 3
    assert 10 not in result["seeds"], "the seed that learning rates were chosen with is not reported"
    lengths = {len(values) for logged in result["training"].values() for values in logged.values()}
    assert lengths == {3}


@in_a_checkout
def test_every_objective_is_compared():
    elsewhere = {"list_ndcg"}  # docs/recipe.md
    assert {"rl" if name == "grpo" else name for name in OBJECTIVES} - elsewhere <= set(arms(stored("objectives")))
    assert {"rl", "ecpo", "gbpo", "grpo_sr"} <= set(arms(stored("objectives_scientific")))


def test_a_line_holds_means_over_seeds_their_range_and_no_figure_that_an_arm_has_not():
    seeds = [
        {"systems": {arm: {"ndcg@10": value} for arm in ("sft", "rl", "nll")}, "percent_of_oracle": {}}
        for value in (0.1, 0.4)
    ]
    result = {
        "per_seed": seeds,
        "training": {"rl": {"kl/k2": [1.0, 2.0], "ratio_max": [3.0, 4.0]}, "rl_nll": {"kl/k2": [0.0, 0.0]}},
    }
    head, _, *lines = table(result, ("ndcg@10",), ()).splitlines()
    places = {name.strip(): place for place, name in enumerate(head.split("|"))}
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")] for line in lines}
    assert list(cells) == ["SFT, where all start", "`grpo`", "`nll`"]
    assert cells["`grpo`"][places["NDCG@10"]] == f"{np.mean([0.1, 0.4]):.4f} [0.1000, 0.4000]"
    assert (cells["`grpo`"][places["KL (k2)"]], cells["`grpo`"][places["largest ratio"]]) == ("1.5", "3.5")
    assert (cells["`nll`"][places["KL (k2)"]], cells["`nll`"][places["largest ratio"]]) == ("0", "–")
    assert set(cells["SFT, where all start"][3:-1]) == {"–"}
