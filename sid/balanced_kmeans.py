"""Balanced RQ-KMeans: residual k-means whose codes on a level are used by about equally many items (OneRec-V1).

On each level the assignment step of k-means (Lloyd) is replaced by the cheapest assignment with at most
``ceil(slack * N / K)`` rows a code (``assignment``), as in constrained k-means (Bradley, Bennett and Demiriz 2000). The
assignment's prices stay beside the codebook: a new item takes the code with the least squared distance + price, so that
it is treated as the fitted ones were.

Equal items may have to part, which no function of the embedding alone can do. So the quantiser remembers, by a 64-bit
hash of the row, which codes each fitted row got, and several equal ones in their order. Left out: bounds for items that
are encoded later, and a lower bound of the load.

Symbols: N items, D width of the embeddings, L levels, K codes on a level.
"""

from typing import Any, Self

import numpy as np

from sidgym.sid.assignment import balanced_assignment
from sidgym.sid.collisions import number_in_group
from sidgym.sid.residual import (
    Progress,
    ResidualQuantizer,
    check_embeddings,
    check_fit,
    count_distinct,
    mean_square,
    nearest,
    one_thread,
    root_mean_square,
    squared_distances,
)
from sidgym.sid.rq_kmeans import fit_codebook

MOST_COSTS = 2**28
"""Rows times codes that are held at once, 2 GiB of them; of more rows ``fit`` takes a sample."""

HASHED_NUMBERS = 2**22
"""Numbers of the embeddings that are hashed at once."""

ROW_HASH = 2
"""Version of ``hash_rows``, whose values are saved."""

LEAST_GAIN = 1e-3
"""Rounds on a level end when one lowers the squared distances by less than this share."""


class BalancedRQKMeans(ResidualQuantizer):
    """Residual k-means quantiser with evenly used codes.

    Args:
        levels, codes, seed: as ``ResidualQuantizer``.
        slack: a code may have ``ceil(slack * N / K)`` rows, at least 1.0.
        rounds: rounds of assignment and means on a level, at most.

    Attributes: ``prices``, L arrays (K_l,) float32; ``keys`` (N,) uint64 in order, and ``kept`` (N, L) int32, the
    hashes of the fitted rows and their codes.
    """

    name = "balanced_rq_kmeans"

    def __init__(self, levels: int, codes: int, seed: int, slack: float = 1.0, rounds: int = 10) -> None:
        super().__init__(levels, codes, seed)
        self._set(slack, rounds)
        self.prices: list[np.ndarray] = []
        self.keys, self.kept = np.zeros(0, np.uint64), np.zeros((0, levels), np.int32)

    def _set(self, slack: float, rounds: int) -> None:
        if not 1.0 <= slack < np.inf or rounds < 1:
            raise ValueError(f"BalancedRQKMeans: expected slack >= 1 and rounds >= 1, got {slack} and {rounds}")
        self.slack, self.rounds = float(slack), rounds

    def capacity(self, rows: int, size: int) -> int:
        """Rows that a code of a level of ``size`` codes may have."""
        return int(np.ceil(self.slack * rows / size - 1e-9))

    def fit(self, x: np.ndarray, on_progress: Progress | None = None) -> Self:
        """Learn from embeddings (N, D). ``ValueError`` for a wrong shape, no rows, NaN, or rows too long to square.

        Memory is that of N * K numbers of 8 bytes and a few copies of ``x``; time goes with N * K too, about 7 s on one
        core for a level of 40,000 rows and 256 codes. Of more than ``MOST_COSTS / K`` rows so many are drawn by the
        seed and balanced; ``encode`` gives the others the code of least cost + price, by which the loads are about
        even, but not bounded.
        """
        x = check_fit(type(self).__name__, x)
        most = max(1, MOST_COSTS // self.codes)
        if len(x) > most:
            drawn = np.random.default_rng([self.seed % 2**32, 1]).choice(len(x), most, replace=False)
            x = x[np.sort(drawn)]
        residual, scale = x, root_mean_square(x)
        self.width, self.codebooks, self.prices = x.shape[1], [], []
        codes = np.empty((len(x), self.levels), np.int64)
        with one_thread():
            for level in range(self.levels):
                size = min(self.codes, count_distinct(residual / scale, self.codes))
                start = fit_codebook(residual, size, (self.seed + level) % 2**32)
                codes[:, level] = self._fit_level(residual, start, level, on_progress)
                residual = residual - self.codebooks[level][codes[:, level]]
        keys = hash_rows(x)
        order = np.argsort(keys, kind="stable")
        self.keys, self.kept = keys[order], codes[order].astype(np.int32)
        return self

    def _fit_level(self, rows: np.ndarray, book: np.ndarray, level: int, on_progress: Progress | None) -> np.ndarray:
        """Balanced Lloyd rounds from a codebook (K, D); adds codebook and prices, returns the codes (N,)."""
        best = (np.inf, book, np.zeros(0, np.int64), np.zeros(0))
        capacity, wide = self.capacity(len(rows), len(book)), rows.astype(np.float64)
        for turn in range(self.rounds):
            codes, prices = balanced_assignment(squared_distances(wide, book.astype(np.float64)), capacity)
            left = mean_square(rows - book[codes])
            better = left < best[0] * (1 - LEAST_GAIN)
            if left < best[0]:
                best = (left, book, codes, prices)
            if on_progress:
                done = level * self.rounds + turn + 1
                on_progress(done, self.levels * self.rounds, f"balanced k-means of level {level + 1}, {left:.3g} left")
            if not better:
                break
            book = means_of(rows, codes, book)
        _, book, codes, prices = best
        self.codebooks.append(book)
        self.prices.append(prices.astype(np.float32))
        return codes

    def choose(self, residual: np.ndarray, level: int) -> np.ndarray:
        """The code with the least squared distance + price for each residual (N, D): (N,) int64."""
        return nearest(residual, self.codebooks[level], self.prices[level])

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes (N, L) int64 of embeddings (N, D): fitted rows have the codes of ``fit``, new ones by cost + price."""
        codes = super().encode(x)
        known, place = find_rows(hash_rows(check_embeddings(x)), self.keys)
        codes[known] = self.kept[place[known]]
        return codes

    def _describe(self, x: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
        """With ``largest_loads``, the rows of each level's most used code, and ``fitted_rows``, which were balanced."""
        loads = [int(np.bincount(codes[:, level]).max()) for level in range(self.levels)]
        return {**super()._describe(x, codes), "largest_loads": loads, "fitted_rows": len(self.keys)}

    def _settings(self) -> dict[str, Any]:
        return {"slack": self.slack, "rounds": self.rounds, "row_hash": ROW_HASH}

    def _arrays(self) -> dict[str, np.ndarray]:
        prices = {f"prices.{level}": price for level, price in enumerate(self.prices)}
        return {**super()._arrays(), **prices, "keys": self.keys, "kept": self.kept}

    def _restore(self, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        super()._restore(header, arrays)
        self._set(header["slack"], header["rounds"])
        if header["row_hash"] != ROW_HASH:
            raise ValueError(f"expected row_hash {ROW_HASH}, got {header['row_hash']}")
        self.prices = [arrays[f"prices.{level}"] for level in range(self.levels)]
        self.keys, self.kept = arrays["keys"], arrays["kept"]

    def _check_restored(self, arrays: dict[str, np.ndarray]) -> None:
        super()._check_restored(arrays)
        if [price.shape for price in self.prices] != [(size,) for size in self.sizes]:
            raise ValueError(f"expected a price for each of {self.sizes} codes")
        if self.keys.dtype != np.uint64 or self.kept.shape != (len(self.keys), self.levels):
            raise ValueError(f"expected {self.levels} codes for each fitted row, got {self.kept.shape}")
        if (self.kept < 0).any() or (self.kept >= np.array(self.sizes)).any():
            raise ValueError(f"codes of fitted rows lie outside {self.sizes}")


def means_of(rows: np.ndarray, codes: np.ndarray, book: np.ndarray) -> np.ndarray:
    """Mean of the rows (N, D) of each code, (K, D) float32; a code without rows keeps its centre of ``book``."""
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes, minlength=len(book))
    used = np.flatnonzero(counts)
    starts = (np.cumsum(counts) - counts)[used]
    means = book.copy()
    means[used] = np.add.reduceat(rows[order].astype(np.float64), starts, axis=0) / counts[used, None]
    return means


def hash_rows(x: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each row of (N, D) float32: (N,) uint64; equal rows have equal hashes, -0.0 counts as 0.0."""
    salts = np.random.default_rng(0x51D).integers(0, 2**64, x.shape[1], dtype=np.uint64)
    keys = np.empty(len(x), np.uint64)
    step = max(1, HASHED_NUMBERS // x.shape[1])
    for start in range(0, len(x), step):
        part = np.ascontiguousarray(x[start : start + step] + np.float32(0), dtype=np.float32)
        # Each word is mixed by itself: in a sum of words times constants, rows of a few values such as +-1 would share
        # most of their low bits.
        keys[start : start + step] = mix(part.view(np.uint32) + salts).sum(axis=1, dtype=np.uint64)
    return mix(keys)


def mix(words: np.ndarray) -> np.ndarray:
    """A one-to-one scramble of uint64 in which every bit depends on every other one (SplitMix64's finaliser)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def find_rows(keys: np.ndarray, fitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where hashes (M,) stand among the ordered hashes (N,) of fitted rows.

    Returns known (M,) bool and place (M,); the j-th row with a hash stands at the j-th place of that hash, beginning
    anew when the fitted ones were fewer.
    """
    left, right = np.searchsorted(fitted, keys), np.searchsorted(fitted, keys, side="right")
    known = right > left
    return known, left + number_in_group(keys) % np.maximum(right - left, 1)
