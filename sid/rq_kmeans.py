"""RQ-KMeans: Semantic IDs by k-means of the residuals, level by level (OneRec-V1, arXiv:2506.13695; GenRec).

With ``r_0 = x``: ``c_l = argmin_k |r_l - e_k^(l)|^2`` and ``r_(l+1) = r_l - e_(c_l)^(l)``, where the codebook ``e^(l)``
is the k-means of all items' ``r_l``. Left out: balanced k-means (``balanced_kmeans``) and RQ-KMeans+'s residual encoder
(``rq_kmeans_plus``).

Symbols: N items, D width of the embeddings, L levels, K codes on a level.
"""

from typing import Self

import numpy as np

from sidgym.sid.residual import (
    Progress,
    ResidualQuantizer,
    check_fit,
    count_distinct,
    nearest,
    one_thread,
    root_mean_square,
)

MINIBATCH_ROWS = 200_000
"""With more rows than this, codebooks come from mini-batch k-means."""


class RQKMeans(ResidualQuantizer):
    """Residual k-means quantiser; level l's k-means is seeded by ``seed + l``."""

    name = "rq_kmeans"

    def fit(self, x: np.ndarray, on_progress: Progress | None = None) -> Self:
        """Learn the codebooks from embeddings (N, D).

        ``ValueError`` for a wrong shape, no rows, NaN, or rows too long to square.
        """
        residual = check_fit(type(self).__name__, x)
        self.width = residual.shape[1]
        with one_thread():
            self.codebooks = fit_codebooks(residual, self.levels, self.codes, self.seed, on_progress)
        return self


def fit_codebooks(
    residual: np.ndarray, levels: int, codes: int, seed: int, on_progress: Progress | None = None
) -> list[np.ndarray]:
    """Codebooks (K_l, D) float32 of ``levels`` levels: k-means of rows (N, D), then of what each level leaves."""
    scale = root_mean_square(residual)
    books: list[np.ndarray] = []
    for level in range(levels):
        if on_progress:  # before the k-means too, which is a single call
            on_progress(level, levels, f"k-means of level {level + 1} of {levels} begins")
        book = fit_codebook(residual, min(codes, count_distinct(residual / scale, codes)), (seed + level) % 2**32)
        books.append(book)
        residual = residual - book[nearest(residual, book)]
        if on_progress:
            on_progress(level + 1, levels, f"k-means of level {level + 1} of {levels}, {len(book)} codes")
    return books


def fit_codebook(rows: np.ndarray, codes: int, seed: int) -> np.ndarray:
    """k-means centres of rows (N, D): (codes, D) float32."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    if len(rows) > MINIBATCH_ROWS:
        means = MiniBatchKMeans(n_clusters=codes, batch_size=max(4096, 4 * codes), n_init=1, random_state=seed)
    else:
        means = KMeans(n_clusters=codes, n_init=1, random_state=seed)
    return means.fit(rows).cluster_centers_.astype(np.float32)
