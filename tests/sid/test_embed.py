"""Text embeddings."""

import numpy as np
import pytest

from sidgym.sid.embed import EMBEDDERS, tfidf_svd

TEXTS = [
    "red running shoe",
    "blue running shoe",
    "cordless drill battery",
    "drill battery charger",
    "red cotton shirt",
    "blue cotton shirt",
]


@pytest.mark.parametrize("name", sorted(EMBEDDERS))
@pytest.mark.parametrize("dim", [1, 3, 64])
def test_contract(name: str, dim: int) -> None:
    embed = EMBEDDERS[name]
    first = embed(TEXTS, dim, 7)
    assert first.shape == (len(TEXTS), dim)
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert np.array_equal(first, embed(TEXTS, dim, 7))


def test_rows_have_unit_length_and_shared_words_mean_near() -> None:
    rows = tfidf_svd(TEXTS, 4, 0)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    similar = rows @ rows.T
    assert similar[2, 3] > 0.5 > similar[2, 0]


def test_width_stays_when_there_is_little_text() -> None:
    rows = tfidf_svd(TEXTS, 50, 0)
    assert np.abs(rows[:, len(TEXTS) :]).max() == 0
    assert tfidf_svd(["same", "same"], 3, 0).tolist() == [[1, 0, 0], [1, 0, 0]]


def test_texts_without_words_are_named() -> None:
    with pytest.raises(ValueError, match=r"2 of 4 items.*rows \[1, 3\]"):
        tfidf_svd(["a", "", "red", " - "], 2, 0)
    with pytest.raises(ValueError, match="got none"):
        tfidf_svd([], 2, 0)
    with pytest.raises(ValueError, match="dim of at least 1"):
        tfidf_svd(TEXTS, 0, 0)
