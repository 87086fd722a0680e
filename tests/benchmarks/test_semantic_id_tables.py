"""``docs/semantic_ids.md`` quotes the stored results and nothing else; they are what the page says they are."""

import json
from pathlib import Path

import numpy as np
import pytest

from sidgym.benchmarks import semantic_ids
from sidgym.benchmarks.semantic_id_arms import BASE, Arm, bought_together, together
from sidgym.benchmarks.semantic_id_tables import results, trie
from sidgym.benchmarks.tables import RESULTS
from sidgym.envs.records import Episodes, Sequences, Splits
from sidgym.sid.tokenizers import TOKENIZERS

DOCS = Path(__file__).resolve().parents[2] / "docs"

in_a_checkout = pytest.mark.skipif(not DOCS.exists() or not RESULTS.exists(), reason="only in a checkout")


@in_a_checkout
def test_the_page_quotes_the_stored_results():
    text = (DOCS / "semantic_ids.md").read_text()
    assert results() in text, "regenerate that part with sidgym.benchmarks.semantic_id_tables.results()"
    assert trie() in text, "regenerate that part with sidgym.benchmarks.semantic_id_tables.trie()"


@in_a_checkout
def test_every_tokeniser_was_judged_on_both_stores_with_three_seeds():
    result = json.loads((RESULTS / "semantic_ids.json").read_text())
    assert len(set(result["seeds"])) == 3
    for store in result["stores"].values():
        assert {arm["tokenizer"] for arm in store["arms"].values()} == set(TOKENIZERS)
        for arm in store["arms"].values():
            assert len(arm["per_seed"]) == 3
            assert {seed["test_users"] for seed in arm["per_seed"]} == {
                seed["test_users"] for seed in store["arms"]["rq_kmeans"]["per_seed"]
            }


@in_a_checkout
def test_codebooks_are_used_and_fitted_in_time():
    arms = json.loads((RESULTS / "semantic_ids.json").read_text())["stores"]["scientific"]["arms"]
    for seed in arms["rq_vae"]["per_seed"]:
        assert min(seed["codes_used"]) >= 0.9 * 256
        assert seed["fit_cpu_s"] < 600
    assert all(seed["fit_cpu_s"] < 60 for seed in arms["rq_kmeans"]["per_seed"])


@in_a_checkout
def test_the_trie_keeps_its_promises_at_ten_million_items():
    result = json.loads((RESULTS / "trie.json").read_text())
    assert result["items"] == 10_000_000
    assert result["build_vs_lexsort"] <= 2
    assert result["bytes_per_item"] <= 16
    assert result["restrict_vs_lexsort"] <= 0.2
    assert result["toggle_10k_vs_lexsort"] <= 0.01
    assert result["mmap_open_s"] < 1


@pytest.mark.parametrize(("store", "wide"), [("scientific", True), ("simulator", False)])
def test_users_that_all_seeds_share_are_counted_once(store, wide):
    rng, seeds = np.random.default_rng(0), [0, 1, 2, 3]
    gain = rng.normal(0.1, 1, 400)  # the same users gain the same with every seed
    arm = Arm("other", "rq_kmeans")
    found = {(store, arm.name, seed): {"per_user": {"ndcg@10": gain.tolist()}} for seed in seeds}
    found |= {(store, BASE, seed): {"per_user": {"ndcg@10": np.zeros(400).tolist()}} for seed in seeds}
    told = semantic_ids._over_seeds(found, store, arm, seeds)[f"ndcg@10_vs_{BASE}"]
    half = 1.96 * gain.std() / np.sqrt(len(gain) * (1 if wide else len(seeds)))
    assert (told["high"] - told["low"]) / 2 == pytest.approx(half, rel=0.1)
    assert told["mean"] == pytest.approx(gain.mean())


def test_pairs_of_test_users_against_chance():
    history = np.array([[-1, 0, 1], [2, 2, 3]])
    contexts = Episodes(index=np.arange(2), user=np.arange(2), history=history, targets=np.array([[1], [0]]))
    # Pairs (target, earlier): (1, 0), then (0, 2), (0, 2), (0, 3); (1, 1) is the item itself.
    first = np.array([0, 0, 0, 1])
    known = np.array([[0, 1]])
    found = together(first, contexts, known)["together"]
    assert (found["pairs"], found["new_pairs"]) == (4, 3)
    assert found["share"] == 3 / 4
    assert found["chance"] == 3 / 4  # all targets have code 0, and so have three of four earlier items
    assert found["new_share"] == 2 / 3


def test_pairs_that_training_users_took_together():
    log = Sequences(user=np.array([0, 1]), items=np.array([3, 1, 1, 2]), offsets=np.array([0, 3, 4]))
    fields = {name: None for name in Splits.__dataclass_fields__} | {"sft": log}
    assert bought_together(Splits(**fields)).tolist() == [[1, 3]]
