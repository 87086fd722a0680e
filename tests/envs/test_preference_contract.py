"""What every preference model promises, whatever its kind: scores, seeds, storage, and what it refuses."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from preference_cases import (
    EMBEDDINGS,
    ITEMS,
    SHELF,
    SHELVES,
    SMALL,
    positives_only,
    same_weights,
    shelf_data,
    shelf_log,
)

from sidgym.envs.preference import PREFERENCES, Preference, fit_preference, known_settings, load_preference
from sidgym.envs.records import PAD_ITEM

KINDS = list(PREFERENCES)
IMPLICIT = ["din", "sim", "sasrec"]
"""Kinds that can do with positive events alone."""


@cache
def fitted(kind: str) -> Any:
    return fit_preference(kind, shelf_data(), seed=3, **SMALL[kind])


@cache
def uneven(kind: str) -> Any:
    """A model of the usual width with vectors that no sum of a few terms meets exactly."""
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 32))
    more = {"search": "soft"} if kind == "sim" else {}
    return fit_preference(kind, shelf_data(shelf_log(users=24), embeddings=vectors), seed=3, epochs=1, **more)


def loved_histories() -> np.ndarray:
    """Three items of each shelf, (4, 5)."""
    history = np.full((SHELVES, 5), PAD_ITEM)
    for shelf in range(SHELVES):
        history[shelf, 2:] = np.flatnonzero(shelf == SHELF)[:3]
    return history


def everything() -> np.ndarray:
    return np.broadcast_to(np.arange(ITEMS), (SHELVES, ITEMS))


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_which_shelf_a_history_loves(kind: str) -> None:
    scores = fitted(kind).score(loved_histories(), everything())
    loved = np.arange(SHELVES)[:, None] == SHELF
    # No item of the loved shelf is below any other.
    assert scores[loved].min() > 1.5 * scores[~loved].max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_says_what_was_learned_from_what(kind: str) -> None:
    model = fitted(kind)
    assert isinstance(model, Preference)
    report = json.loads(json.dumps(model.report, allow_nan=False))
    assert report == model.report
    assert report["kind"] == kind
    # First pages have no history to tell a shelf by.
    assert report["auc"] > 0.7
    assert report["log_loss"] < report["base_log_loss"]
    assert sum(part["count"] for part in report["reliability"]) == report["valid_rows"]
    gaps = [abs(part["predicted"] - part["observed"]) * part["count"] for part in report["reliability"]]
    if kind != "din":  # whose own figure has ten bins
        assert report["ece"] == pytest.approx(sum(gaps) / report["valid_rows"])
    assert {"ece_before", "base_rate", "epochs", "negatives", "calibration"} <= report.keys()
    assert ("sampled" in report["negatives"]) == (kind == "sasrec")


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_probabilities_and_zero_at_padding(kind: str) -> None:
    history = np.array([[PAD_ITEM, 0, 4, 8], [PAD_ITEM] * 4])
    items = np.array([[0, PAD_ITEM, 5], [PAD_ITEM, 7, 7]])
    history.setflags(write=False)
    items.setflags(write=False)
    scores = fitted(kind).score(history, items)
    assert scores.dtype == np.float32
    assert scores.shape == items.shape
    assert (scores[items == PAD_ITEM] == 0).all()
    assert ((scores[items != PAD_ITEM] > 0) & (scores <= 1).all()).all()
    assert scores[1, 1] == scores[1, 2]
    np.testing.assert_array_equal(scores, fitted(kind).score(history, items))


@pytest.mark.parametrize("kind", KINDS)
def test_no_history_no_candidates_and_no_contexts_are_fine(kind: str) -> None:
    model = fitted(kind)
    empty, padding = np.zeros((2, 0), dtype=np.int64), np.full((2, 3), PAD_ITEM)
    items = np.array([[1, 2], [3, 4]])
    np.testing.assert_allclose(model.score(empty, items), model.score(padding, items), atol=1e-6)
    assert model.score(padding, items[:, :0]).shape == (2, 0)
    assert model.score(padding[:0], items[:0]).shape == (0, 2)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_score_does_not_hang_on_its_neighbours(kind: str, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    rows, length, count = rng.integers(1, 5), rng.integers(1, 12), rng.integers(1, 6)
    history = rng.integers(0, ITEMS, (rows, length))
    history[np.arange(length) < rng.integers(0, length + 1, rows)[:, None]] = PAD_ITEM
    items = rng.integers(-1, ITEMS, (rows, count))
    model = fitted(kind)
    together = model.score(history, items)
    alone = np.concatenate([model.score(history[i : i + 1], items[i : i + 1]) for i in range(rows)])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    order = rng.permutation(count)
    np.testing.assert_allclose(model.score(history, items[:, order]), together[:, order], atol=2e-6)
    wider = np.pad(history, ((0, 0), (3, 0)), constant_values=PAD_ITEM)
    np.testing.assert_allclose(model.score(wider, items), together, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 3, 5, 6, 7, 9, 11, 12, 20])
def test_in_blocks_of_one_shape_neither_place_nor_neighbours_change_a_bit(kind: str, length: int) -> None:
    rng, model = np.random.default_rng(length), uneven(kind)
    logits = getattr(model, "logits", model.score)
    for _ in range(4):
        history, items = rng.integers(0, ITEMS, (16, length)), rng.integers(0, ITEMS, (16, 16))
        history[::2, : length // 2] = PAD_ITEM
        told = logits(history, items)
        rows, columns = rng.permutation(16), rng.permutation(16)
        np.testing.assert_array_equal(logits(history[rows], items[rows][:, columns]), told[rows][:, columns])
        # The first row has a history of half the length; now nothing else is asked.
        history[1:], items[1:], items[0, 8:] = PAD_ITEM, PAD_ITEM, PAD_ITEM
        np.testing.assert_array_equal(logits(history, items)[0, :8], told[0, :8])


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_decide_the_weights(kind: str) -> None:
    short = SMALL[kind] | {"epochs": 1}
    data = shelf_data(shelf_log(1, users=24))
    first, again, other = (fit_preference(kind, data, seed, **short) for seed in (5, 5, 6))
    assert same_weights(first, again)
    assert first.report == again.report
    assert not same_weights(first, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_scores_the_same_bits(kind: str, tmp_path: Path) -> None:
    model = fitted(kind)
    model.save(tmp_path / "model")
    loaded: Any = load_preference(tmp_path / "model")
    assert type(loaded) is type(model)
    assert loaded.report == model.report
    assert json.loads((tmp_path / "model" / "preference.json").read_text())["kind"] == kind
    np.testing.assert_array_equal(
        loaded.score(loved_histories(), everything()), model.score(loved_histories(), everything())
    )
    header = tmp_path / "model" / "preference.json"
    header.write_text(header.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(ValueError, match=r"schema_version 1.* got 99"):
        load_preference(tmp_path / "model")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_weights_are_refused_by_the_name_of_the_item(kind: str, tmp_path: Path) -> None:
    fitted(kind).save(tmp_path / "model")
    model: Any = load_preference(tmp_path / "model")
    with torch.no_grad():
        for value in model.network.parameters():
            value.fill_(torch.nan)
    with pytest.raises(ValueError, match=rf"'{kind}': the score of item 7 after history \[1, 5\] is nan"):
        model.score(np.array([[PAD_ITEM, 1, 5]]), np.array([[7]]))


@pytest.mark.parametrize("kind", KINDS)
def test_items_that_do_not_exist_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"items row 1 holds item {ITEMS}, but the model knows {ITEMS} items"):
        fitted(kind).score(np.array([[1], [1]]), np.array([[2], [ITEMS]]))
    with pytest.raises(ValueError, match="history row 0 holds item -2"):
        fitted(kind).score(np.array([[-2]]), np.array([[2]]))


@pytest.mark.parametrize("kind", ["din", "sim", "pscore", "duration_aware"])
def test_embeddings_that_are_no_numbers_are_refused(kind: str) -> None:
    broken = EMBEDDINGS.copy()
    broken[11, 1] = np.nan
    with pytest.raises(ValueError, match="1 items have others, the first of them item 11"):
        fit_preference(kind, shelf_data(embeddings=broken))
    with pytest.raises(ValueError, match=rf"{kind}' needs PreferenceData\.embeddings"):
        fit_preference(kind, shelf_data(embeddings=None))


@pytest.mark.parametrize("kind", IMPLICIT)
def test_positive_events_alone_are_enough_and_the_report_says_so(kind: str) -> None:
    short = SMALL[kind] | {"epochs": 8 if kind == "sim" else 12}
    model = fit_preference(kind, shelf_data(positives_only(shelf_log())), seed=1, **short)
    assert "sampled (uniform)" in model.report["negatives"]
    assert ("in-batch (logQ-corrected)" in model.report["negatives"]) == (kind == "sim")
    assert model.report["auc"] > 0.7
    scores = model.score(loved_histories(), everything())
    loved = np.arange(SHELVES)[:, None] == SHELF
    assert scores[loved].mean() > 1.5 * scores[~loved].mean()


@pytest.mark.parametrize("kind", ["pscore", "duration_aware"])
def test_kinds_that_need_refusals_say_what_to_use_instead(kind: str) -> None:
    with pytest.raises(ValueError, match=r"for a log of positive events use 'sim'|this log has no feedback"):
        fit_preference(kind, shelf_data(positives_only(shelf_log())), **SMALL[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_settings_that_do_not_exist_are_refused_before_any_work(kind: str) -> None:
    assert set(SMALL[kind]) <= set(known_settings(kind) or ())
    with pytest.raises(ValueError, match=rf"'{kind}' has no setting 'epoch'; .* Did you mean 'epochs'\?"):
        fit_preference(kind, shelf_data(), epoch=3)


@pytest.mark.parametrize("kind", ["sim", "sasrec"])
def test_settings_out_of_range_are_refused_by_name(kind: str) -> None:
    data = shelf_data(shelf_log(users=8))
    with pytest.raises(ValueError, match=r"calibration: expected one of platt, .* got 'plat'"):
        fit_preference(kind, data, calibration="plat")
    with pytest.raises(ValueError, match=r"valid_share: expected a share between 0 and 1, got 1\.5"):
        fit_preference(kind, data, valid_share=1.5)
    with pytest.raises(ValueError, match="at least 1"):
        fit_preference(kind, data, patience=0)
    with pytest.raises(ValueError, match="multiple of heads"):
        fit_preference(kind, data, heads=0)
    with pytest.raises(ValueError, match="at least 3 users"):
        fit_preference(kind, shelf_data(shelf_log(users=2)))


class Everybody:
    """A kind of somebody else's: everything is wanted alike."""

    def __init__(self, rate: float) -> None:
        self.report: dict[str, Any] = {"kind": f"{__name__}:Everybody", "rate": rate}

    @classmethod
    def fit(cls, data: Any, seed: int = 0, *, rate: float = 0.5) -> "Everybody":
        return cls(rate)

    def score(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        return np.where(items == PAD_ITEM, 0.0, self.report["rate"]).astype(np.float32)

    def save(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "preference.json").write_text(json.dumps(self.report))

    @classmethod
    def load(cls, directory: Path) -> "Everybody":
        return cls(json.loads((directory / "preference.json").read_text())["rate"])


def test_kinds_of_ones_own_and_kinds_that_are_not_there(tmp_path: Path) -> None:
    kind = f"{__name__}:Everybody"
    model: Any = fit_preference(kind, shelf_data(), rate=0.25)
    model.save(tmp_path / "own")
    loaded = load_preference(tmp_path / "own")
    assert isinstance(loaded, Preference)
    assert loaded.score(np.array([[1]]), np.array([[2, PAD_ITEM]])).tolist() == [[0.25, 0.0]]
    with pytest.raises(ValueError, match="sasrex"):
        fit_preference("sasrex", shelf_data())
    with pytest.raises(FileNotFoundError, match=r"preference\.json is missing"):
        load_preference(tmp_path)
