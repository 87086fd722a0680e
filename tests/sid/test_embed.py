"""Item embeddings: TF-IDF with SVD, embeddings from a file, own functions and classes."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from sidgym.sid.config import SidConfig
from sidgym.sid.embed import (
    EmbeddingFile,
    load_embedder,
    make_embedder,
    read_rows,
    reads_texts,
    save_embedder,
    tfidf_svd,
)
from sidgym.sid.tfidf import TfidfSvd

TEXTS = [
    "red running shoe",
    "blue running shoe",
    "cordless drill battery",
    "drill battery charger",
    "red cotton shirt",
    "blue cotton shirt",
]
NEW = ["a red shoe for running", "drill charger"]


@pytest.mark.parametrize("dim", [1, 3, 64])
def test_tfidf_contract(dim: int) -> None:
    first = tfidf_svd(TEXTS, dim, 7)
    assert first.shape == (len(TEXTS), dim)
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert np.array_equal(first, tfidf_svd(TEXTS, dim, 7))


def test_rows_have_unit_length_and_shared_words_mean_near() -> None:
    rows = tfidf_svd(TEXTS, 4, 0)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    similar = rows @ rows.T
    assert similar[2, 3] > 0.5 > similar[2, 0]


def test_fitted_rows_are_those_of_fit_transform() -> None:
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(80)]
    texts = [" ".join(rng.choice(words, 12)) for _ in range(150)]
    matrix = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float64).fit_transform(texts)
    reduced = TruncatedSVD(n_components=10, random_state=3).fit_transform(matrix)
    expected = (reduced / np.linalg.norm(reduced, axis=1, keepdims=True)).astype(np.float32)
    assert np.array_equal(TfidfSvd(10, 3).fit(texts).embed(texts), expected)


def test_width_stays_when_there_is_little_text() -> None:
    rows = tfidf_svd(TEXTS, 50, 0)
    assert np.abs(rows[:, len(TEXTS) :]).max() == 0
    assert tfidf_svd(["same", "same"], 3, 0).tolist() == [[1, 0, 0], [1, 0, 0]]
    assert TfidfSvd(3, 0).fit(["same", "same"]).embed(["same same"]).tolist() == [[1, 0, 0]]


def test_new_texts_land_where_their_words_are() -> None:
    embedder = TfidfSvd(4, 0).fit(TEXTS)
    rows, new = embedder.embed(TEXTS), embedder.embed(NEW)
    assert new.shape == (2, 4)
    assert np.allclose(np.linalg.norm(new, axis=1), 1, atol=1e-5)
    assert int(np.argmax(rows @ new[0])) == 0
    assert int(np.argmax(rows @ new[1])) in (2, 3)
    # A fitted text keeps its row in whatever company; a text of unknown words has no direction.
    mixed = embedder.embed([TEXTS[4], "nothing known here", TEXTS[0]])
    assert np.array_equal(mixed, np.stack([rows[4], np.zeros(4, np.float32), rows[0]]))


@pytest.mark.parametrize("dim", [3, 64])
def test_after_load_everything_is_as_it_was(dim: int, tmp_path: Path) -> None:
    config = SidConfig(embedding_dim=dim)
    embedder = make_embedder(config, 5).fit(TEXTS)
    save_embedder(embedder, tmp_path, config.embedder)
    loaded = load_embedder(tmp_path)
    for texts in (TEXTS, NEW, [NEW[0], TEXTS[2]]):
        assert np.array_equal(loaded.embed(texts), embedder.embed(texts))
    damaged = tmp_path / "tfidf_svd.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    with pytest.raises(ValueError, match="damaged or incomplete embedder"):
        load_embedder(tmp_path)
    with pytest.raises(ValueError, match=r"no embedder\.json"):
        load_embedder(tmp_path / "elsewhere")


def test_texts_without_words_are_named() -> None:
    with pytest.raises(ValueError, match=r"2 of 4 items.*rows \[1, 3\]"):
        tfidf_svd(["a", "", "red", " - "], 2, 0)
    with pytest.raises(ValueError, match="got none"):
        tfidf_svd([], 2, 0)
    with pytest.raises(ValueError, match="dim of at least 1"):
        tfidf_svd(TEXTS, 0, 0)
    with pytest.raises(ValueError, match=r"1 of 1 items.*rows \[0\]"):
        TfidfSvd(2, 0).fit(TEXTS).embed(["?"])
    with pytest.raises(ValueError, match="not fitted"):
        TfidfSvd(2, 0).embed(TEXTS)


def test_rows_of_a_file(tmp_path: Path) -> None:
    path, rows = tmp_path / "rows.npy", np.arange(18, dtype=np.float64).reshape(6, 3)
    np.save(path, rows)
    config = SidConfig(embedder="file", encoder=str(path), embedding_dim=99)
    assert not reads_texts(config)
    assert reads_texts(SidConfig())
    embedder = make_embedder(config, 0).fit([""] * 6)
    found = embedder.embed([""] * 6)
    assert found.dtype == np.float32
    assert np.array_equal(found, rows)
    with pytest.raises(ValueError, match="cannot embed other texts"):
        embedder.embed(["new"])
    save_embedder(embedder, tmp_path / "saved", "file")
    with pytest.raises(ValueError, match="one row for each new item"):
        load_embedder(tmp_path / "saved")
    np.save(tmp_path / "new.npy", rows[:2] + 1)
    assert np.array_equal(load_embedder(tmp_path / "saved", str(tmp_path / "new.npy")).embed(NEW), rows[:2] + 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((5, 3)), "expected 6 rows, one for each item .* got 5"),
        (np.zeros(6), r"shape \(6, D\).*got \(6,\)"),
        (np.full((6, 2), "a"), r"expected numbers.*of <U1"),
        (np.full((6, 2), 1j), r"expected numbers.*of complex128"),
        (np.zeros((6, 0)), "at least one row"),
        (np.where(np.arange(12).reshape(6, 2) == 7, np.nan, 1.0), r"1 rows are not finite, first \[3\]"),
        (np.full((6, 2), 1e300), "not finite"),  # beyond float32
        (np.array([None] * 6), "not a .npy file of numbers"),
    ],
)
def test_files_that_do_not_fit_are_refused(rows: np.ndarray, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, rows)
    with pytest.raises(ValueError, match=message):
        EmbeddingFile(0, 0, source=str(path)).fit(TEXTS)
    with pytest.raises(ValueError, match=message):
        read_rows(path, len(TEXTS))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs sid\.encoder"):
        make_embedder(SidConfig(embedder="file"), 0)
    with pytest.raises(ValueError, match="is not a file"):
        make_embedder(SidConfig(embedder="file", encoder=str(tmp_path / "none.npy")), 0)
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(ValueError, match=r"not a \.npy file of numbers"):
        make_embedder(SidConfig(embedder="file", encoder=str(tmp_path / "text.npy")), 0).fit(TEXTS)
    np.savez(tmp_path / "many.npz", np.zeros((6, 2)))
    with pytest.raises(ValueError, match=r"expected numbers of shape \(6, D\) in a \.npy file, got NpzFile"):
        read_rows(tmp_path / "many.npz", 6)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        read_rows(tmp_path / "none.npy", 6)
    with pytest.raises(ValueError, match="unknown embedder 'fil'"):
        make_embedder(SidConfig(embedder="fil"), 0)


@pytest.mark.parametrize("name", ["tfidf_svd", "file"])
def test_a_damaged_header_is_refused_or_does_no_harm(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.eye(6))
    config = SidConfig(embedder=name, encoder=str(tmp_path / "rows.npy"), embedding_dim=3)
    source = str(tmp_path / "rows.npy") if name == "file" else ""
    save_embedder(make_embedder(config, 5).fit(TEXTS), tmp_path / "saved", name)
    rows = load_embedder(tmp_path / "saved", source).embed(TEXTS)
    refused = set()
    for path in sorted((tmp_path / "saved").glob("*.json")):
        header = json.loads(path.read_text())
        for key, value in ((key, value) for key in header for value in (None, "x", [], {}, -1, 2.5, 10**6)):
            path.write_text(json.dumps({**header, key: value}))
            try:
                assert np.array_equal(load_embedder(tmp_path / "saved", source).embed(TEXTS), rows)
            except ValueError:
                refused.add((key, str(value)))
        path.write_text(json.dumps(header))
    expected = {"tfidf_svd": {("words", "None"), ("words", "[]"), ("dim", "x"), ("dim", "None"), ("dim", "2.5")}}
    assert refused >= expected.get(name, set()) | {("embedder", "None"), ("schema_version", "None")}
    (tmp_path / "saved" / {"tfidf_svd": "tfidf_svd.safetensors"}.get(name, "embedding_file.json")).unlink()
    with pytest.raises(ValueError, match=r"fit (it|one)"):
        load_embedder(tmp_path / "saved", source)


def test_a_source_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    save_embedder(TfidfSvd(3, 0).fit(TEXTS), tmp_path, "tfidf_svd")
    with pytest.raises(ValueError, match="'tfidf_svd' needs no source, got 'weights'"):
        load_embedder(tmp_path, "weights")


def lengths(texts: Sequence[str], dim: int, seed: int) -> np.ndarray:
    """An own embedder as a plain function."""
    return np.array([[len(text) + seed] * dim for text in texts], np.float64)


class Lengths:
    """An own embedder as a class."""

    takes = ("source",)

    def __init__(self, dim: int, seed: int, source: str = "") -> None:
        self.dim, self.source = dim, source

    def fit(self, texts: Sequence[str]) -> "Lengths":
        return self

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[len(text)] * self.dim for text in texts], np.float32)

    def save(self, directory: Path) -> None:
        (directory / "dim").parent.mkdir(parents=True, exist_ok=True)
        (directory / "dim").write_text(str(self.dim))

    @classmethod
    def load(cls, directory: Path, source: str = "") -> "Lengths":
        return cls(int((directory / "dim").read_text()), 0, source)


def test_own_functions_and_classes(tmp_path: Path) -> None:
    config = SidConfig(embedder=f"{__name__}:lengths", embedding_dim=2)
    embedder = make_embedder(config, 1).fit(["ab", "c"])
    assert embedder.embed(["ab", "c"]).tolist() == [[3, 3], [2, 2]]
    with pytest.raises(ValueError, match="knows the catalogue alone"):
        embedder.embed(["c"])
    save_embedder(embedder, tmp_path / "function", config.embedder)
    with pytest.raises(ValueError, match="plain function cannot embed new items"):
        load_embedder(tmp_path / "function")
    config = SidConfig(embedder=f"{__name__}:Lengths", embedding_dim=2, encoder="somewhere")
    own = make_embedder(config, 1)
    assert isinstance(own, Lengths)
    assert own.source == "somewhere"
    save_embedder(own, tmp_path / "class", config.embedder)
    assert load_embedder(tmp_path / "class").embed(["abc"]).tolist() == [[3, 3]]
