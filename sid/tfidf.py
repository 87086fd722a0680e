"""TF-IDF with truncated SVD: the default item embeddings, which need no weights.

Left out: stemming, word pairs, and any language model; a neural text encoder stands in ``encoders``.

Symbols: N items of the fitted catalogue, M texts to embed, D width of the embeddings.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.sid.embedding_files import SCHEMA_VERSION, read_header, text_keys
from sidgym.sid.residual import one_thread
from sidgym.sid.table import write_atomically
from sidgym.sid.tokenizer_files import damaged


class TfidfSvd:
    """TF-IDF of the words, reduced by truncated SVD (latent semantic analysis), rows of unit length.

    Args:
        dim: width of the embeddings. Where the words or items are too few for so many directions, the rest is zero.
        seed: of the randomised SVD.

    A text of the fitted catalogue keeps its row bit for bit, also after ``load``; a new text is weighted by the
    catalogue's word frequencies and projected on the same directions. ``ValueError`` for ``dim`` < 1.
    """

    def __init__(self, dim: int, seed: int) -> None:
        if not isinstance(dim, (int, np.integer)) or dim < 1:
            raise ValueError(f"tfidf_svd: expected dim of at least 1, an integer, got {dim!r}")
        self.dim, self.seed = dim, seed
        self.vectoriser: Any = None
        self.components = np.zeros((0, 0))  # (width, words) float64
        self.rows = np.zeros((0, dim), np.float32)  # (N, dim) of the fitted texts
        self.keys: list[bytes] = []  # N, of the fitted texts

    def fit(self, texts: Sequence[str]) -> "TfidfSvd":
        """Learn word weights and directions. ``ValueError`` for no texts, or texts without a word, with their rows."""
        from sklearn.decomposition import TruncatedSVD

        if len(texts) == 0:
            raise ValueError("tfidf_svd: expected at least one text, got none")
        self.vectoriser = _vectoriser()
        self._require_words(texts)
        matrix = self.vectoriser.fit_transform(texts)
        # TruncatedSVD needs at least 2 features and no more components than either side has.
        width = min(self.dim, *matrix.shape)
        if matrix.shape[1] < 2:
            reduced, self.components = matrix.toarray()[:, :width], np.eye(1)
        else:
            svd = TruncatedSVD(n_components=width, random_state=self.seed)
            with one_thread():
                reduced, self.components = svd.fit_transform(matrix), svd.components_
        self.rows = self._unit_rows(reduced)
        self.keys = text_keys(texts)
        return self

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(M, dim) float32. A text that shares no word with the catalogue gives the zero vector.

        ``ValueError`` before ``fit``, for no texts, and for texts without a word.
        """
        if self.vectoriser is None:
            raise ValueError("tfidf_svd: not fitted; call fit or load first")
        if len(texts) == 0:
            raise ValueError("tfidf_svd: expected at least one text, got none")
        self._require_words(texts)
        keys = text_keys(texts)
        if keys == self.keys:  # not row by row: the bits of two items with one text may differ
            return self.rows.copy()
        row_of = {key: row for row, key in enumerate(self.keys)}
        row = np.array([row_of.get(key, -1) for key in keys])
        embeddings = self.rows[row]
        new = row < 0
        if new.any():
            matrix = self.vectoriser.transform([text for text, unknown in zip(texts, new.tolist()) if unknown])
            with one_thread():
                embeddings[new] = self._unit_rows(matrix @ self.components.T)
        return embeddings

    def save(self, directory: str | Path) -> None:
        """Write ``tfidf_svd.safetensors`` and ``tfidf_svd.json``."""
        from safetensors.numpy import save

        if self.vectoriser is None:
            raise ValueError("tfidf_svd: nothing to save; call fit first")
        directory = Path(directory)
        keys = np.frombuffer(b"".join(self.keys), np.uint8).reshape(len(self.keys), -1)
        arrays = {"idf": self.vectoriser.idf_, "components": np.ascontiguousarray(self.components)}
        arrays |= {"rows": self.rows, "keys": keys}
        words = self.vectoriser.get_feature_names_out().tolist()
        header = {"schema_version": SCHEMA_VERSION, "dim": self.dim, "seed": self.seed, "words": words}
        write_atomically(directory / "tfidf_svd.safetensors", save(arrays))
        write_atomically(directory / "tfidf_svd.json", json.dumps(header).encode())

    @classmethod
    def load(cls, directory: str | Path) -> "TfidfSvd":
        """Read what ``save`` wrote; ``ValueError`` for another schema version or damaged files."""
        from safetensors.numpy import load

        directory = Path(directory)
        header = read_header(directory / "tfidf_svd.json")
        with damaged(directory, "embedder"):
            arrays = load((directory / "tfidf_svd.safetensors").read_bytes())
            embedder = cls(header["dim"], header["seed"])
            words = {word: place for place, word in enumerate(header["words"])}
            _check_saved(arrays, words, embedder.dim)
            embedder.vectoriser = _vectoriser(words)
            embedder.vectoriser.idf_ = arrays["idf"]
            embedder.components, embedder.rows = arrays["components"], arrays["rows"]
            embedder.keys = [key.tobytes() for key in arrays["keys"]]
        return embedder

    def _require_words(self, texts: Sequence[str]) -> None:
        tokens = self.vectoriser.build_tokenizer()
        empty = [row for row, text in enumerate(texts) if not tokens(text)]
        if empty:
            raise ValueError(
                f"tfidf_svd: {len(empty)} of {len(texts)} items have no word in their text, first rows {empty[:5]}; "
                "drop these items or give them a title"
            )

    def _unit_rows(self, reduced: np.ndarray) -> np.ndarray:
        """Rows (M, width) at unit length, zeros appended: (M, dim) float32."""
        embeddings = np.zeros((len(reduced), self.dim), np.float32)
        norm = np.linalg.norm(reduced, axis=1, keepdims=True)
        # A text that shares nothing with the kept directions has norm 0 and stays the zero vector.
        unit = np.divide(reduced, norm, out=np.zeros_like(reduced), where=norm > 1e-12)
        embeddings[:, : reduced.shape[1]] = unit
        return embeddings


def _check_saved(arrays: dict[str, np.ndarray], words: dict[str, int], dim: int) -> None:
    """``ValueError`` unless the arrays are finite and of the shapes that words and width call for."""
    shapes = {name: array.shape for name, array in arrays.items()}
    items, width = len(arrays["rows"]), len(arrays["components"])
    expected = {"idf": (len(words),), "components": (width, len(words)), "rows": (items, dim), "keys": (items, 16)}
    if shapes != expected or width > dim or not all(isinstance(word, str) for word in words):
        raise ValueError(f"expected {len(words)} words and arrays of the shapes {expected}, got {shapes}")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("values that are not finite")


def _vectoriser(vocabulary: dict[str, int] | None = None) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    # One-character words count too, so that a text is refused only if it has no word at all.
    pattern = r"(?u)\b\w+\b"
    return TfidfVectorizer(sublinear_tf=True, token_pattern=pattern, dtype=np.float64, vocabulary=vocabulary)


def tfidf_svd(texts: Sequence[str], dim: int, seed: int) -> np.ndarray:
    """``TfidfSvd`` of one catalogue and nothing else: (N, dim) float32."""
    return TfidfSvd(dim, seed).fit(texts).embed(texts)
