"""Alignment of embeddings with who engages with what: loss, projection, and what it does to a known catalogue."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidgym.sid import alignment as module
from sidgym.sid.alignment import (
    ALIGNMENTS,
    AlignedEmbedder,
    I2IContrastive,
    Projection,
    i2i_loss,
    load_alignment,
    not_negative,
    save_alignment,
)
from sidgym.sid.embed import load_embedder, save_embedder, tfidf_svd
from sidgym.sid.rq_kmeans import RQKMeans
from sidgym.sid.tfidf import TfidfSvd

GROUPS, SIZE, WIDTH = 6, 12, 16


def catalogue(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings (72, 16), users and items of a log, and the hidden group that each item is engaged with by.

    A direction common to all groups is loud and says nothing; a faint one tells the groups apart.
    """
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(GROUPS), SIZE)
    loud = rng.normal(size=(4, WIDTH))
    x = loud[rng.integers(0, 4, GROUPS * SIZE)] + 0.45 * rng.normal(size=(GROUPS, WIDTH))[group]
    x += 0.1 * rng.normal(size=x.shape)
    taste = rng.integers(0, GROUPS, 300)
    item = np.concatenate([rng.permutation(SIZE)[:5] + SIZE * own for own in taste])
    return x.astype(np.float32), np.repeat(np.arange(300), 5), item, group


def agreement(x: np.ndarray, group: np.ndarray) -> float:
    """Of the pairs of items with one first-level code, the share that the same users engage with."""
    code = RQKMeans(1, GROUPS, 0).fit(x).encode(x)[:, 0]
    same = (code[:, None] == code[None, :]) & ~np.eye(len(x), dtype=bool)
    return float((group[:, None] == group[None, :])[same].mean())


def test_loss_by_hand() -> None:
    left = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    right = torch.tensor([[5.0, 0.0], [1.0, 1.0]])
    # Cosines: pair 0 with (1, 0) and (1, 1)/sqrt 2: 1 and .7071; pair 1: 0 and .7071. Temperature 1/2 doubles them.
    half = 2 * 0.5**0.5
    expected = -(np.log(np.exp(2) / (np.exp(2) + np.exp(half))) + np.log(np.exp(half) / (1 + np.exp(half)))) / 2
    assert float(i2i_loss(left, right, 0.5)) == pytest.approx(expected, rel=1e-6)
    alone = torch.tensor([[False, True], [False, False]])
    expected = -(0 + np.log(np.exp(half) / (1 + np.exp(half)))) / 2
    assert float(i2i_loss(left, right, 0.5, alone)) == pytest.approx(expected, rel=1e-6)


def test_own_items_are_no_negatives() -> None:
    # Pair 0 is (1, 2), pair 1 (1, 3), pair 2 (3, 2), pair 3 (4, 1).
    pairs = np.array([[1, 2], [1, 3], [3, 2], [4, 1]])
    assert not_negative(pairs).tolist() == [
        [False, False, True, True],  # 2 again, and 1 itself
        [False, False, False, True],
        [True, True, False, False],
        [False, False, False, False],
    ]


def test_it_begins_as_the_identity() -> None:
    x, user, item, _ = catalogue()
    x[3] = 0
    untrained = I2IContrastive(0, epochs=0).fit(x, user, item)
    assert np.array_equal(untrained.transform(x), x)
    assert untrained.report["best_epoch"] == 0


def test_what_makes_held_out_users_worse_is_not_kept() -> None:
    _, user, item, group = catalogue()
    # Embeddings that are right already, and steps far too large.
    x = np.eye(GROUPS, WIDTH, dtype=np.float32)[group]
    wild = I2IContrastive(0, epochs=5, patience=2, learning_rate=1e3).fit(x, user, item)
    assert wild.report["best_epoch"] == 0
    assert len(wild.report["held_out_loss"]) == 3
    assert np.array_equal(wild.transform(x), x)


def test_rows_keep_their_length() -> None:
    x, user, item, _ = catalogue()
    x[5] = 0
    moved = I2IContrastive(0, epochs=3).fit(x, user, item).transform(x)
    assert not np.allclose(moved, x)
    assert moved.dtype == np.float32
    assert np.allclose(np.linalg.norm(moved, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)
    assert not moved[5].any()
    projection = Projection(WIDTH, 8, torch.Generator().manual_seed(0))
    assert torch.equal(projection(torch.from_numpy(x)), torch.from_numpy(x))


def test_items_of_one_group_come_to_share_codes() -> None:
    x, user, item, group = catalogue()
    aligned = I2IContrastive(0).fit(x, user, item)
    before, after = agreement(x, group), agreement(aligned.transform(x), group)
    assert before < 0.6
    assert after > before + 0.3
    curve = aligned.report["held_out_loss"]
    assert min(curve) == curve[aligned.report["best_epoch"]] < curve[0]


def test_a_log_without_structure_does_not_find_the_groups() -> None:
    # It still pushes all items apart, which quiets the loud direction a little.
    x, user, item, group = catalogue()
    drawn = np.random.default_rng(5).integers(0, len(x), len(user))
    found, not_found = (agreement(I2IContrastive(0).fit(x, user, log).transform(x), group) for log in (item, drawn))
    assert found > not_found + 0.3


def test_new_items_move_with_their_like() -> None:
    x, user, item, group = catalogue()
    new = np.arange(len(x)) % SIZE == 0
    # The log knows nothing of one item in each group.
    known = ~new[item]
    aligned = I2IContrastive(0).fit(x, user[known], item[known])

    def nearest_is_of_its_group(rows: np.ndarray) -> float:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        near = np.argmax(unit[new] @ unit[~new].T, axis=1)
        return float(np.mean(group[~new][near] == group[new]))

    # Many catalogues would be needed for a tight figure; this one item in six says the direction.
    assert nearest_is_of_its_group(aligned.transform(x)) >= nearest_is_of_its_group(x)
    assert aligned.report["items_with_pairs"] <= len(x) - GROUPS


def test_equal_seeds_give_equal_bits() -> None:
    x, user, item, _ = catalogue()
    torch.manual_seed(1)
    first = I2IContrastive(4, epochs=2).fit(x, user, item).transform(x)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert np.array_equal(I2IContrastive(4, epochs=2).fit(x, user, item).transform(x), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not np.array_equal(I2IContrastive(5, epochs=2).fit(x, user, item).transform(x), first)


def test_held_out_users_are_not_learnt_from() -> None:
    x, user, item, _ = catalogue()
    aligned = I2IContrastive(0, epochs=2).fit(x, user, item)
    held = np.random.default_rng(0).permutation(np.arange(300))[:30]
    assert aligned.report["held_out_users"] == 30
    # What they did decides the epoch alone: with the epoch fixed, other items of theirs change nothing.
    other = np.where(np.isin(user, held), (item + SIZE) % len(x), item)
    again = I2IContrastive(0, epochs=2).fit(x, user, other)
    assert again.report["held_out_loss"] != aligned.report["held_out_loss"]
    assert again.report["best_epoch"] == aligned.report["best_epoch"] == 2
    assert np.array_equal(again.transform(x), aligned.transform(x))
    # The other way about, what the others did is learnt from.
    other = np.where(np.isin(user, held), item, (item + SIZE) % len(x))
    assert not np.array_equal(I2IContrastive(0, epochs=2).fit(x, user, other).transform(x), aligned.transform(x))


def test_no_pair_is_made_of_held_out_users(monkeypatch: pytest.MonkeyPatch) -> None:
    x, user, item, _ = catalogue()
    held = np.random.default_rng(0).permutation(np.arange(300))[:30]
    given: list[np.ndarray] = []
    told: list[tuple[int, int, str]] = []

    def watching(name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: Any, **named: Any) -> Any:
            given.append(arguments[0])
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, call)

    watching("swing_similarity")
    watching("user_to_item_pairs")
    I2IContrastive(0, lambda *report: told.append(report), epochs=1).fit(x, user, item)
    assert len(given) == 2
    for users in given:
        assert np.array_equal(np.unique(users), np.setdiff1d(user, held))
    assert told[0] == (270, 270, "users compared with each other")


def test_what_cannot_work_is_refused() -> None:
    x, user, item, _ = catalogue()
    broken = x.copy()
    broken[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"1 rows are not finite, first \[2\]"):
        I2IContrastive(0).fit(broken, user, item)
    fitted = I2IContrastive(0, epochs=1).fit(x, user, item)
    with pytest.raises(ValueError, match="not finite"):
        fitted.transform(broken)
    with pytest.raises(ValueError, match=r"shape \(N, 16\)"):
        fitted.transform(x[:, :5])
    with pytest.raises(ValueError, match="not fitted"):
        I2IContrastive(0).transform(x)
    with pytest.raises(ValueError, match=r"items in \[0, 10\)"):
        I2IContrastive(0).fit(x[:10], user, item)
    with pytest.raises(ValueError, match="at least 2 of each"):
        I2IContrastive(0).fit(x, np.arange(len(item)), item)
    with pytest.raises(ValueError, match="held_out in"):
        I2IContrastive(0, held_out=0.0)
    with pytest.raises(ValueError, match="held-out users is not finite"):
        I2IContrastive(0).fit(x * np.float32(1e30), user, item)  # finite, but their lengths are not


@pytest.mark.parametrize("name", sorted(ALIGNMENTS))
def test_saved_with_the_embedder_it_moves_new_texts(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = np.array(["red", "blue", "drill", "shirt", "shoe", "cable", "lamp", "glove", "tape", "valve"])
    texts = [" ".join(words[rng.permutation(10)[:3]]) for _ in range(40)]
    user, item = np.repeat(np.arange(60), 4), rng.integers(0, 40, 240)
    embedder = TfidfSvd(6, 0).fit(texts)
    x = embedder.embed(texts)
    assert np.array_equal(x, tfidf_svd(texts, 6, 0))
    alignment = ALIGNMENTS[name](0, None).fit(x, user, item)
    # However little was learnt, something must move for the test to tell one from the other.
    with torch.no_grad():
        alignment.projection.leave += 0.05
    save_embedder(embedder, tmp_path, "tfidf_svd")
    save_alignment(alignment, tmp_path, name)
    loaded = load_embedder(tmp_path)
    assert isinstance(loaded, AlignedEmbedder)
    moved = alignment.transform(x)
    assert not np.allclose(moved, x)
    assert np.array_equal(loaded.embed(texts), moved)
    new = ["red drill cable of another make"]
    assert np.array_equal(loaded.embed(new), alignment.transform(embedder.embed(new)))
    assert load_alignment(tmp_path).report == alignment.report


def test_damaged_files_are_named(tmp_path: Path) -> None:
    x, user, item, _ = catalogue()
    alignment = I2IContrastive(0, epochs=1).fit(x, user, item)
    save_alignment(alignment, tmp_path, "i2i_contrastive")
    header = tmp_path / "alignment" / "i2i_contrastive.json"
    whole = json.loads(header.read_text())
    for changed in ({"report": None}, {"report": [1]}, {"schema_version": 2}):
        header.write_text(json.dumps({**whole, **changed}))
        with pytest.raises(ValueError, match=r"damaged or incomplete alignment|schema_version 1, got 2"):
            load_alignment(tmp_path)
    header.write_text(json.dumps(whole))
    path = tmp_path / "alignment" / "i2i_contrastive.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged or incomplete alignment"):
        load_alignment(tmp_path)
    assert alignment.projection is not None
    with torch.no_grad():
        alignment.projection.leave[0, 0] = float("inf")
    alignment.save(tmp_path / "alignment")
    with pytest.raises(ValueError, match="weights that are not finite"):
        load_alignment(tmp_path)
    with pytest.raises(ValueError, match=r"no alignment\.json"):
        load_alignment(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="nothing to save"):
        I2IContrastive(0).save(tmp_path)
