"""The contenders of the trie benchmark answer as brute force does; one that does not is found out."""

import argparse
import json

import numpy as np
import pytest
import torch

from sidgym.benchmarks import trie as benchmark
from sidgym.benchmarks.trie_contenders import DenseMask, Ours, SearchEveryCode, SearchRange, StaticIndex
from sidgym.sid.trie import Trie

K = 12


@pytest.fixture
def codes() -> np.ndarray:
    rng = np.random.default_rng(0)
    spread = rng.integers(0, K, (150, 3))
    return np.concatenate([spread, [[0, 0, c] for c in range(K)], [[K - 1, c, K - 1] for c in range(K)]])


@pytest.mark.parametrize("name", ["Ours", "DenseMask", "SearchEveryCode", "SearchRange", "StaticIndex"])
def test_masks_are_those_of_brute_force(codes: np.ndarray, name: str) -> None:
    trie = Trie.from_codes(codes, (K,) * 3)
    asked = trie.path(torch.from_numpy(codes))[:, 2]
    contender = {
        "Ours": lambda: Ours(trie),
        "DenseMask": lambda: DenseMask(trie, asked),
        "SearchEveryCode": lambda: SearchEveryCode(trie),
        "SearchRange": lambda: SearchRange(trie),
        "StaticIndex": lambda: StaticIndex(trie),
    }[name]()
    logits = torch.randn(len(codes), K)
    state = contender.start(len(codes))
    for level in range(3):
        masked = contender.masked(logits, state, level)
        for row, prefix in enumerate(codes[:, :level].tolist()):
            follow = {int(c[level]) for c in codes if c[:level].tolist() == prefix}
            assert torch.isfinite(masked[row]).nonzero()[:, 0].tolist() == sorted(follow)
            kept = torch.isfinite(masked[row])
            assert torch.equal(masked[row][kept], logits[row][kept])
        state = contender.step(state, torch.from_numpy(codes[:, level]), level)
    assert contender.nbytes > 0


def test_a_contender_that_masks_otherwise_is_refused(codes: np.ndarray) -> None:
    trie, other = Trie.from_codes(codes, (K,) * 3), Trie.from_codes(codes[:100], (K,) * 3)
    rows = torch.from_numpy(codes[:20])
    contenders = {"trie": Ours(trie), "search": SearchRange(trie)}
    states = benchmark._states(contenders, rows, torch.randn(20, K))
    assert torch.equal(states["trie"][-1] - int(trie.level_start[-2]), trie.leaf_of(rows))
    with pytest.raises(ValueError, match="other masks other codes of level"):
        benchmark._states({**contenders, "other": SearchEveryCode(other)}, rows, torch.randn(20, K))


def test_the_script_gives_the_figures_that_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole script on a small table: the figures that are quoted are there, and mean what they say."""
    monkeypatch.setattr(benchmark, "SIZES", (32, 32, 32))
    monkeypatch.setattr(benchmark, "BEAMS", 16)
    figures = benchmark.measure(argparse.Namespace(items=2000, quick=True, seeds=[0]))
    json.dumps(figures)
    quoted = ("build", "restrict", "toggle_10k")
    assert {f"{name}_vs_lexsort" for name in quoted} | {"bytes_per_item", "mmap_open_s", "beam_step"} <= set(figures)
    assert figures["mmap_open_page_cache"] == "warm"
    assert figures["figures"]["lexsort_strided_s"] > 0
    assert set(figures["beam_step"]["restricted"]["ms_by_level"]) == {"alive", "half_dead"}
    assert figures["bytes_per_item_restricted"] < figures["colliding"]["bytes_per_item_restricted"]
    assert 1.1 < figures["colliding"]["items_a_leaf"] < 1.2


@pytest.mark.parametrize("text", ["5", "-1", "0", "99", "many", "1e6"])
def test_too_few_items_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    benchmark.add_options(parser)
    assert parser.parse_args(["--items", "100"]).items == 100
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--items", text])
    assert stop.value.code == 2
    assert "--items: expected a whole number of at least 100" in capsys.readouterr().err


def test_turns_leave_the_first_round_out() -> None:
    done: list[str] = []
    times = benchmark.take_turns({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, 2)
    assert done == ["a", "b"] * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}
