"""Item embeddings from text: what the tokenisers quantise.

``EMBEDDERS`` maps a name to ``(texts, dim, seed) -> float32 (N, dim)``. Left out: neural text encoders and
collaborative alignment; bring one along as ``package.module:name``.
"""

from collections.abc import Callable, Sequence

import numpy as np

Embedder = Callable[[Sequence[str], int, int], np.ndarray]
"""Takes N texts, the width and a seed; gives float32 (N, dim)."""


def tfidf_svd(texts: Sequence[str], dim: int, seed: int) -> np.ndarray:
    """TF-IDF of the words, reduced by truncated SVD (latent semantic analysis), rows of unit length.

    Args:
        texts: N texts, none of them empty.
        dim: width of the embeddings. Where the words or items are too few for so many directions, the rest is zero.
        seed: of the randomised SVD.

    Returns (N, dim) float32. ``ValueError`` for texts without a word, with the first row numbers, and for ``dim`` < 1.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    if dim < 1:
        raise ValueError(f"tfidf_svd: expected dim of at least 1, got {dim}")
    if len(texts) == 0:
        raise ValueError("tfidf_svd: expected at least one text, got none")
    # One-character words count too, so that a text is refused only if it has no word at all.
    vectoriser = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float64)
    empty = [row for row, text in enumerate(texts) if not vectoriser.build_tokenizer()(text)]
    if empty:
        raise ValueError(
            f"tfidf_svd: {len(empty)} of {len(texts)} items have no word in their text, first rows {empty[:5]}; "
            "drop these items or give them a title"
        )
    matrix = vectoriser.fit_transform(texts)
    # TruncatedSVD needs at least 2 features and no more components than either side has.
    width = min(dim, *matrix.shape)
    if matrix.shape[1] < 2:
        reduced = matrix.toarray()[:, :width]
    else:
        reduced = TruncatedSVD(n_components=width, random_state=seed).fit_transform(matrix)
    embeddings = np.zeros((len(texts), dim), np.float32)
    norm = np.linalg.norm(reduced, axis=1, keepdims=True)
    # A text that shares nothing with the kept directions has norm 0 and stays the zero vector.
    embeddings[:, :width] = np.divide(reduced, norm, out=np.zeros_like(reduced), where=norm > 1e-12)
    return embeddings


EMBEDDERS: dict[str, Embedder] = {"tfidf_svd": tfidf_svd}
