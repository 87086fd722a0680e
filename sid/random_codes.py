"""Control: uniformly random codes that know nothing of the items. Left out: anything that reads the embeddings."""

from pathlib import Path
from typing import Any, Self

import numpy as np

from sidgym.sid.residual import Progress, check_embeddings, check_levels
from sidgym.sid.tokenizer_files import damaged, read_tokenizer, write_tokenizer


class RandomCodes:
    """Uniformly random codes.

    The codes of row i depend on the seed and on i alone, so new items begin with the codes of row 0 again, which is the
    collision policy's to settle. What a policy reaches with them is the worth of SIDs as mere names; the distance to
    other tokenisers is the worth of their structure.
    """

    name = "random"
    reads = "embeddings"

    def __init__(self, levels: int, codes: int, seed: int) -> None:
        check_levels("RandomCodes", levels, codes, seed)
        self.sizes = (codes,) * levels
        self.seed = seed
        self.mean: np.ndarray | None = None

    def fit(self, x: np.ndarray, on_progress: Progress | None = None) -> Self:
        """Learn nothing but the mean of embeddings (N, D). ``ValueError`` for a wrong shape, no rows, or NaN."""
        self.mean = check_embeddings(x).mean(axis=0, dtype=np.float64)
        return self

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes (N, L) int64; only the number of rows of ``x`` counts."""
        rows = check_embeddings(x, None if self.mean is None else len(self.mean))
        return np.random.default_rng(self.seed).integers(0, self.sizes[0], (len(rows), len(self.sizes)))

    def distances(self, x: np.ndarray) -> np.ndarray:
        """Distance of embeddings (N, D) to the mean of the fitted ones, (N,): codes that say nothing leave that."""
        if self.mean is None:
            raise ValueError("RandomCodes has seen no items yet; call fit or load first")
        return np.sqrt(((check_embeddings(x, len(self.mean)) - self.mean) ** 2).sum(axis=1))

    def describe(self, x: np.ndarray) -> dict[str, Any]:
        """Nothing to tell."""
        return {}

    def save(self, directory: str | Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer.safetensors``."""
        if self.mean is None:
            raise ValueError("RandomCodes has seen no items yet; call fit or load first")
        header = {"levels": len(self.sizes), "codes": self.sizes[0], "seed": self.seed}
        write_tokenizer(directory, type(self), header, {"mean": self.mean})

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read what ``save`` wrote; ``ValueError`` for another schema version or class, and for damaged files."""
        header, arrays = read_tokenizer(directory, cls)
        with damaged(directory):
            tokenizer = cls(header["levels"], header["codes"], header["seed"])
            tokenizer.mean = arrays["mean"]
            check_embeddings(tokenizer.mean[None])
        return tokenizer
