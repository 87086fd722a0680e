"""Residual quantisation: what every tokeniser with codebooks shares (docs/semantic_ids.md).

With ``r_0`` the item's embedding or a network's latent of it: ``c_l = argmin_k |r_l - e_k^(l)|^2`` and
``r_(l+1) = r_l - e_(c_l)^(l)``. Left out: how codebooks are learnt (``rq_kmeans``, ``balanced_kmeans``, ``rq_vae``).

Symbols: N items, D width of the embeddings, W width of what is quantised, L levels, K codes on a level.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from sidgym.sid.tokenizer_files import damaged, read_tokenizer, write_tokenizer

Progress = Callable[[int, int, str], None]
"""Told of work that goes on: units done, units in all, what is being done."""

ENCODE_ROWS = 65_536
"""Rows whose residuals and distances are held at once."""

MOST_SQUARE = float(np.finfo(np.float32).max) / 16
"""Of a row's squared length: squared distances of longer rows may be infinite in single precision."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Numerical libraries on one thread: sums in a fixed order, so equal seeds give equal bits on any machine load."""
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()  # torch keeps a number of its own, which threadpoolctl does not know
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)


class ResidualQuantizer:
    """Codes by residual quantisation with fitted codebooks; ``fit`` is the subclass's.

    Args:
        levels: levels L, at least 1.
        codes: codes K asked for on each level; a level with fewer distinct residuals gets one code for each of them.
        seed: of all that is random in ``fit``.

    Attributes: ``codebooks``, L arrays (K_l, W) float32, empty before ``fit``; ``width``, D.

    A subclass that quantises something else than the embedding itself gives ``latent`` and ``rebuild``.
    """

    reads = "embeddings"

    def __init__(self, levels: int, codes: int, seed: int) -> None:
        check_levels(type(self).__name__, levels, codes, seed)
        self.levels, self.codes, self.seed = levels, codes, seed
        self.codebooks: list[np.ndarray] = []
        self.width = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes on each level, (L,); ``ValueError`` before ``fit``."""
        self._require_fitted()
        return tuple(len(book) for book in self.codebooks)

    @property
    def latent_width(self) -> int:
        """Width W of what is quantised."""
        return self.width

    def fit(self, x: np.ndarray, on_progress: Progress | None = None) -> Self:
        """Learn from embeddings (N, D). ``ValueError`` for a wrong shape, no rows, NaN, or rows too long to square."""
        raise NotImplementedError

    def latent(self, x: np.ndarray) -> np.ndarray:
        """What is quantised, (N, W) float32, of checked embeddings (N, D)."""
        return x

    def rebuild(self, quantised: np.ndarray) -> np.ndarray:
        """Embeddings (N, D) float32 from sums of code vectors (N, W)."""
        return quantised

    def choose(self, residual: np.ndarray, level: int) -> np.ndarray:
        """Code of each residual (N, W) on a level: (N,) int64."""
        return nearest(residual, self.codebooks[level])

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes of embeddings: (N, D) -> (N, L) int64.

        ``ValueError`` before ``fit``, for a wrong shape or NaN, and where what is quantised is not finite.
        """
        self._require_fitted()
        x = check_embeddings(x, self.width)
        codes = np.empty((len(x), self.levels), np.int64)
        with one_thread():
            for part in blocks(len(x)):
                residual = self._checked_latent(x, part)
                for level, book in enumerate(self.codebooks):
                    codes[part, level] = self.choose(residual, level)
                    residual = residual - book[codes[part, level]]
        return codes

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """The embeddings that codes (N, L) stand for: (N, D) float32."""
        self._require_fitted()
        with one_thread():
            return self.rebuild(self._partial_sum(np.asarray(codes), self.levels))

    def distances(self, x: np.ndarray) -> np.ndarray:
        """Distance of each embedding to what its codes stand for, (N,) float64: large for what ``fit`` has not seen."""
        return np.sqrt(self._squared_errors(x, self.encode(x)))

    def distortion(self, x: np.ndarray) -> float:
        """Mean over rows of the squared ``distances``; for quantised embeddings mean |x - sum_l e_(c_l)|^2."""
        return float(self._squared_errors(x, self.encode(x)).mean())

    def costs(self, x: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
        """What each code of a level would leave of each row.

        Args:
            x: (N, D) embeddings.
            codes: (N, L') codes with L' >= level; those before ``level`` are taken as given.
            level: in [0, L).

        Returns (N, K_level) float64, the squared distances |r_level - e_k|^2, in the space that is quantised.
        """
        self._require_fitted()
        with one_thread():
            residual = self._checked_latent(check_embeddings(x, self.width), slice(None)).astype(np.float64)
            residual -= self._partial_sum(np.asarray(codes), level)
            return squared_distances(residual, self.codebooks[level].astype(np.float64))

    def describe(self, x: np.ndarray) -> dict[str, Any]:
        """What the table's metadata keeps, measured on embeddings (N, D).

        ``distortion``, also as a share of mean |x|^2; ``residual_shares``, what each level leaves of what is quantised,
        as a share of its mean square; ``codes_asked``, ``reduced_levels`` (with fewer codes), ``codes_used`` and
        ``perplexity`` by level, and ``collapsed_levels``.
        """
        return self._describe(check_embeddings(x, self.width), self.encode(x))

    def _describe(self, x: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
        """``describe`` of checked embeddings (N, D) and their codes (N, L)."""
        energies = np.zeros(self.levels + 1)
        with one_thread():
            for part in blocks(len(x)):
                residual = self._checked_latent(x, part)
                energies[0] += square_lengths(residual).sum()
                for level, book in enumerate(self.codebooks):
                    residual = residual - book[codes[part, level]]
                    energies[level + 1] += square_lengths(residual).sum()
        distortion, energy = float(self._squared_errors(x, codes).mean()), mean_square(x)
        whole, *left = energies.tolist()
        used, perplexity = code_usage(codes, self.sizes)
        return {
            "distortion": distortion,
            "distortion_share": distortion / energy if energy else 0.0,
            "residual_shares": [rest / whole if whole else 0.0 for rest in left],
            "codes_asked": self.codes,
            "reduced_levels": {str(level): size for level, size in enumerate(self.sizes) if size < self.codes},
            "codes_used": used,
            "perplexity": perplexity,
            "collapsed_levels": collapsed_levels(codes, self.sizes),
        }

    def save(self, directory: str | Path) -> None:
        """Write ``tokenizer.safetensors`` and ``tokenizer.json``."""
        self._require_fitted()
        header = {"levels": self.levels, "codes": self.codes, "seed": self.seed, "width": self.width}
        write_tokenizer(directory, type(self), {**header, **self._settings()}, self._arrays())

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read what ``save`` wrote; ``ValueError`` for another schema version or class, and for damaged files."""
        header, arrays = read_tokenizer(directory, cls)
        with damaged(directory):
            quantiser = cls(header["levels"], header["codes"], header["seed"])
            quantiser.width = header["width"]
            quantiser._restore(header, arrays)
            quantiser._check_restored(arrays)
        return quantiser

    def _settings(self) -> dict[str, Any]:
        """JSON values for the header beyond levels, codes, seed and width."""
        return {}

    def _arrays(self) -> dict[str, np.ndarray]:
        """What the safetensors file holds."""
        return {f"codebook.{level}": book for level, book in enumerate(self.codebooks)}

    def _restore(self, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """The inverse of ``_settings`` and ``_arrays``; ``KeyError`` for what is missing."""
        self.codebooks = [arrays[f"codebook.{level}"] for level in range(self.levels)]

    def _check_restored(self, arrays: dict[str, np.ndarray]) -> None:
        """``ValueError`` unless the arrays are those that header and settings call for, all of them finite."""
        expected = set(self._arrays())
        if set(arrays) != expected:
            raise ValueError(f"expected the arrays {sorted(expected)}, got {sorted(arrays)}")
        for level, book in enumerate(self.codebooks):
            if not 1 <= len(book) <= self.codes or book.shape[1:] != (self.latent_width,) or book.dtype != np.float32:
                raise ValueError(
                    f"codebook {level}: expected at most {self.codes} codes of width {self.latent_width} in float32, "
                    f"got {book.shape} of {book.dtype}"
                )
        self._require_finite(arrays)

    def _require_finite(self, arrays: dict[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds values that are not finite")

    def _checked_latent(self, x: np.ndarray, part: slice) -> np.ndarray:
        """``latent`` of a part of checked embeddings (N, D); ``ValueError`` where its squares are not finite."""
        found = self.latent(x[part])
        check_squares(type(self).__name__, found, part.start or 0)
        return found

    def _squared_errors(self, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """|x - what codes (N, L) stand for|^2, (N,) float64."""
        x, errors = check_embeddings(x, self.width), np.empty(len(x))
        with one_thread():
            for part in blocks(len(x)):
                errors[part] = square_lengths(x[part] - self.rebuild(self._partial_sum(codes[part], self.levels)))
        return errors

    def _partial_sum(self, codes: np.ndarray, level: int) -> np.ndarray:
        """Sum of the code vectors of the first ``level`` levels, (N, W) float32."""
        total = np.zeros((len(codes), self.codebooks[0].shape[1]), np.float32)
        for before in range(level):
            total += self.codebooks[before][codes[:, before]]
        return total

    def _require_fitted(self) -> None:
        if not self.codebooks:
            raise ValueError(f"{type(self).__name__} has no codebooks yet; call fit or load first")


def check_levels(name: str, levels: int, codes: int, seed: int = 0) -> None:
    """``ValueError`` unless all are integers and there is at least one level and one code."""
    wrong = [
        value for value in (levels, codes, seed) if not isinstance(value, (int, np.integer)) or isinstance(value, bool)
    ]
    if wrong or levels < 1 or codes < 1:
        what = f"got levels={levels!r}, codes={codes!r}" + (f" and seed={seed!r}" if seed in wrong else "")
        raise ValueError(f"{name}: expected at least 1 level and 1 code, and integers, {what}")


def check_embeddings(x: np.ndarray, width: int | None = None) -> np.ndarray:
    """Embeddings as float32 (N, D); ``ValueError`` for a wrong shape or width, no rows, or values not finite."""
    x = np.asarray(x, dtype=np.float32)
    if x.ndim != 2 or 0 in x.shape or width not in (None, x.shape[1]):
        raise ValueError(f"embeddings: expected shape (N, {width or 'D'}) and at least one row, got {x.shape}")
    wrong = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(wrong):
        raise ValueError(f"embeddings: {len(wrong)} rows are not finite, first {wrong[:5].tolist()}")
    return x


def check_fit(name: str, x: np.ndarray) -> np.ndarray:
    """``check_embeddings`` of rows that k-means is to learn from, whose squares must not overflow in sum either."""
    x = check_embeddings(x)
    check_squares(name, x, most=MOST_SQUARE / len(x))
    return x


def check_squares(name: str, rows: np.ndarray, first: int = 0, most: float = MOST_SQUARE) -> None:
    """``ValueError`` for rows (N, W), numbered from ``first``, that are not finite or longer than the root of ``most``.

    Squared distances of others are finite in single precision.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("nw,nw->n", rows, rows)
    wrong = np.flatnonzero(~(squares <= most)) + first
    if len(wrong):
        raise ValueError(
            f"{name}: {len(wrong)} rows of what is quantised are not finite or longer than {most**0.5:.1g}, first "
            f"{wrong[:5].tolist()}; scale the embeddings down, or fit again where the tokeniser is damaged"
        )


def blocks(rows: int) -> list[slice]:
    """All rows in parts of at most ``ENCODE_ROWS``."""
    return [slice(start, min(start + ENCODE_ROWS, rows)) for start in range(0, rows, ENCODE_ROWS)]


def count_distinct(rows: np.ndarray, enough: int) -> int:
    """Distinct rows of (N, D) to six decimals; a lower bound of at least ``enough`` where there are that many."""
    # Mostly the first rows settle it, and sorting all of them would cost more than the k-means.
    for upto in (4 * enough, len(rows)):
        distinct = len(np.unique(np.round(rows[:upto], 6) + 0.0, axis=0))
        if distinct >= enough:
            break
    return distinct


def nearest(rows: np.ndarray, book: np.ndarray, prices: np.ndarray | None = None) -> np.ndarray:
    """Number of the nearest centre of ``book`` (K, D) for each of rows (N, D): (N,) int64, the first of equals.

    ``prices`` (K,) are added to the squared distances.
    """
    # Around the centres' mean, since far from it the norms would drown the differences in float32.
    middle = book.mean(axis=0)
    book = book - middle
    half_norms = 0.5 * (book**2).sum(axis=1)
    if prices is not None:
        half_norms = half_norms + 0.5 * prices.astype(book.dtype)
    codes = np.empty(len(rows), np.int64)
    for part in blocks(len(rows)):
        codes[part] = np.argmax((rows[part] - middle) @ book.T - half_norms, axis=1)
    return codes


def squared_distances(rows: np.ndarray, book: np.ndarray) -> np.ndarray:
    """|rows_i - book_k|^2 of (N, D) and (K, D): (N, K), never negative."""
    found = rows @ book.T
    found *= -2
    found += (rows**2).sum(axis=1)[:, None]
    found += (book**2).sum(axis=1)
    return np.maximum(found, 0, out=found)


def mean_square(rows: np.ndarray) -> float:
    """Mean over rows of the squared length, in float64."""
    return float(square_lengths(rows).mean())


def square_lengths(rows: np.ndarray) -> np.ndarray:
    """Squared length of each of rows (N, D): (N,) float64."""
    found = np.empty(len(rows))
    for part in blocks(len(rows)):  # in double precision a copy of all rows would take twice their memory
        found[part] = np.square(rows[part], dtype=np.float64).sum(axis=1)
    return found


def root_mean_square(x: np.ndarray) -> float:
    """Of all numbers of (N, D), in float64; 1.0 where all are zero."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) or 1.0


def code_usage(codes: np.ndarray, sizes: Sequence[int]) -> tuple[list[int], list[float]]:
    """Codes used, and the perplexity (exponential of the entropy) of their use, by level of codes (N, L)."""
    used, perplexity = [], []
    for level, size in enumerate(sizes):
        share = np.bincount(codes[:, level], minlength=size) / len(codes)
        share = share[share > 0]
        used.append(len(share))
        perplexity.append(float(np.exp(-(share * np.log(share)).sum())))
    return used, perplexity


def collapsed_levels(codes: np.ndarray, sizes: Sequence[int]) -> list[int]:
    """Levels of codes (N, L) of which less than half is used, or whose perplexity is under a quarter of what it may be.

    What a level may use at most is its size, or the number of rows where that is less.
    """
    used, perplexity = code_usage(codes, sizes)
    most = [min(size, len(codes)) for size in sizes]
    return [level for level, size in enumerate(most) if used[level] < size / 2 or perplexity[level] < size / 4]
