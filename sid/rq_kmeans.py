"""RQ-KMeans: Semantic IDs by k-means of the residuals, level by level (OneRec-V1, arXiv:2506.13695; GenRec).

With ``r_0 = x``: ``c_l = argmin_k |r_l - e_k^(l)|^2`` and ``r_(l+1) = r_l - e_(c_l)^(l)``, where the codebook ``e^(l)``
is the k-means of all items' ``r_l``. Left out: balanced (constrained) k-means and RQ-KMeans+'s residual encoder.

Symbols: N items, D width of the embeddings, L levels, K codes on a level.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.sid.table import read_json_object, write_atomically

SCHEMA_VERSION = 1
"""Of the directory that ``RQKMeans.save`` writes."""

MINIBATCH_ROWS = 200_000
"""With more rows than this, codebooks come from mini-batch k-means."""

ENCODE_ROWS = 65_536
"""Rows whose distances are held at once."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Numerical libraries on one thread: sums in a fixed order, so equal seeds give equal bits on any machine load."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield


class RQKMeans:
    """Residual k-means quantiser.

    Args:
        levels: levels L, at least 1.
        codes: codes K asked for on each level; a level with fewer distinct residuals gets one code for each of them.
        seed: of the k-means initialisation; level l uses ``seed + l``.

    Attributes: ``codebooks``, L arrays (K_l, D) float32, empty before ``fit``.
    """

    def __init__(self, levels: int, codes: int, seed: int) -> None:
        if levels < 1 or codes < 1:
            raise ValueError(f"RQKMeans: expected at least 1 level and 1 code, got levels={levels}, codes={codes}")
        self.levels, self.codes, self.seed = levels, codes, seed
        self.codebooks: list[np.ndarray] = []

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes on each level, (L,); ``ValueError`` before ``fit``."""
        self._require_fitted()
        return tuple(len(book) for book in self.codebooks)

    def fit(self, x: np.ndarray) -> "RQKMeans":
        """Learn the codebooks from embeddings (N, D). ``ValueError`` for a wrong shape, no rows, or NaN."""
        residual = check_embeddings(x)
        scale = float(np.sqrt(np.mean(residual.astype(np.float64) ** 2))) or 1.0
        self.codebooks = []
        with one_thread():
            for level in range(self.levels):
                codes = min(self.codes, count_distinct(residual / scale, self.codes))
                book = fit_codebook(residual, codes, (self.seed + level) % 2**32)
                self.codebooks.append(book)
                residual = residual - book[nearest(residual, book)]
        return self

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes of embeddings: (N, D) -> (N, L) int64. ``ValueError`` before ``fit``, or for a wrong shape or NaN."""
        return self._quantise(x)[0]

    def distortion(self, x: np.ndarray) -> float:
        """Mean over rows of the squared length of what the codes do not explain: mean |x - sum_l e_(c_l)|^2."""
        residual = self._quantise(x)[1].astype(np.float64)
        return float((residual**2).sum(axis=1).mean())

    def describe(self, x: np.ndarray) -> dict[str, Any]:
        """What the table's metadata keeps: distortion (also as a share of mean |x|^2) and levels with fewer codes."""
        distortion = self.distortion(x)
        energy = float((check_embeddings(x).astype(np.float64) ** 2).sum(axis=1).mean())
        return {
            "distortion": distortion,
            "distortion_share": distortion / energy if energy else 0.0,
            "codes_asked": self.codes,
            "reduced_levels": {str(level): size for level, size in enumerate(self.sizes) if size < self.codes},
        }

    def save(self, directory: str | Path) -> None:
        """Write ``codebooks.safetensors`` and ``rq_kmeans.json``."""
        from safetensors.numpy import save

        self._require_fitted()
        directory = Path(directory)
        header = {"schema_version": SCHEMA_VERSION, "levels": self.levels, "codes": self.codes, "seed": self.seed}
        books = {f"level_{level}": np.ascontiguousarray(book) for level, book in enumerate(self.codebooks)}
        write_atomically(directory / "codebooks.safetensors", save(books))
        write_atomically(directory / "rq_kmeans.json", json.dumps(header).encode())

    @classmethod
    def load(cls, directory: str | Path) -> "RQKMeans":
        """Read what ``save`` wrote; ``ValueError`` for another schema version or damaged files."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        directory = Path(directory)
        header = read_json_object(directory / "rq_kmeans.json")
        if header.get("schema_version") != SCHEMA_VERSION:
            found = header.get("schema_version")
            raise ValueError(f"{directory}: expected schema_version {SCHEMA_VERSION}, got {found}; fit it again")
        try:
            quantiser = cls(header["levels"], header["codes"], header["seed"])
            books = load((directory / "codebooks.safetensors").read_bytes())
            quantiser.codebooks = [books[f"level_{level}"] for level in range(quantiser.levels)]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{directory}: damaged or incomplete codebooks ({error}); fit it again") from error
        return quantiser

    def _quantise(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes (N, L) int64 and the last residual (N, D) float32."""
        self._require_fitted()
        residual = check_embeddings(x, width=self.codebooks[0].shape[1])
        codes = np.empty((len(residual), self.levels), np.int64)
        with one_thread():
            for level, book in enumerate(self.codebooks):
                codes[:, level] = nearest(residual, book)
                residual = residual - book[codes[:, level]]
        return codes, residual

    def _require_fitted(self) -> None:
        if not self.codebooks:
            raise ValueError("RQKMeans has no codebooks yet; call fit or load first")


def check_embeddings(x: np.ndarray, width: int | None = None) -> np.ndarray:
    """Embeddings as float32 (N, D); ``ValueError`` for a wrong shape or width, no rows, or values not finite."""
    x = np.asarray(x, dtype=np.float32)
    if x.ndim != 2 or 0 in x.shape or width not in (None, x.shape[1]):
        raise ValueError(f"embeddings: expected shape (N, {width or 'D'}) and at least one row, got {x.shape}")
    wrong = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(wrong):
        raise ValueError(f"embeddings: {len(wrong)} rows are not finite, first {wrong[:5].tolist()}")
    return x


def count_distinct(rows: np.ndarray, enough: int) -> int:
    """Distinct rows of (N, D) to six decimals; a lower bound of at least ``enough`` where there are that many."""
    # Mostly the first rows settle it, and sorting all of them would cost more than the k-means.
    for upto in (4 * enough, len(rows)):
        distinct = len(np.unique(np.round(rows[:upto], 6) + 0.0, axis=0))
        if distinct >= enough:
            break
    return distinct


def fit_codebook(rows: np.ndarray, codes: int, seed: int) -> np.ndarray:
    """k-means centres of rows (N, D): (codes, D) float32."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    if len(rows) > MINIBATCH_ROWS:
        means = MiniBatchKMeans(n_clusters=codes, batch_size=max(4096, 4 * codes), n_init=1, random_state=seed)
    else:
        means = KMeans(n_clusters=codes, n_init=1, random_state=seed)
    return means.fit(rows).cluster_centers_.astype(np.float32)


def nearest(rows: np.ndarray, book: np.ndarray) -> np.ndarray:
    """Number of the nearest centre of ``book`` (K, D) for each of rows (N, D): (N,) int64, the first of equals."""
    half_norms = 0.5 * (book**2).sum(axis=1)
    codes = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), ENCODE_ROWS):
        part = slice(start, start + ENCODE_ROWS)
        codes[part] = np.argmax(rows[part] @ book.T - half_norms, axis=1)
    return codes
