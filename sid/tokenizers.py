"""From item embeddings to the item-code table: the registry of tokenisers and the steps around them.

A tokeniser is built as ``cls(levels, codes, seed)``; ``TOKENIZERS`` maps names to such classes. Left out: the
embeddings themselves (``embed``), RQ-VAE, and collaborative alignment of embeddings.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from sidgym.sid.collisions import resolve_collisions
from sidgym.sid.config import SidConfig
from sidgym.sid.registry import resolve
from sidgym.sid.rq_kmeans import RQKMeans
from sidgym.sid.table import SidTable


class Tokenizer(Protocol):
    """What gives items their codes; equal seeds and embeddings give equal codes."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes on each level, (L,), known after ``fit``."""

    def fit(self, x: np.ndarray) -> "Tokenizer":
        """Learn from embeddings (N, D) and return the tokeniser itself."""

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes (N, L) int64 of embeddings (N, D), level l in ``[0, sizes[l])``."""

    def describe(self, x: np.ndarray) -> dict[str, Any]:
        """JSON values for the table's metadata, measured on embeddings (N, D)."""


class RandomCodes:
    """Control: uniformly random codes that know nothing of the items.

    The codes of row i depend on the seed and on i alone. What a policy reaches with them is the worth of SIDs as mere
    names; the distance to other tokenisers is the worth of their structure.
    """

    def __init__(self, levels: int, codes: int, seed: int) -> None:
        if levels < 1 or codes < 1:
            raise ValueError(f"RandomCodes: expected at least 1 level and 1 code, got levels={levels}, codes={codes}")
        self.sizes = (codes,) * levels
        self.seed = seed

    def fit(self, x: np.ndarray) -> "RandomCodes":
        """Nothing to learn."""
        return self

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes (N, L) int64; only the number of rows of ``x`` counts."""
        return np.random.default_rng(self.seed).integers(0, self.sizes[0], (len(x), len(self.sizes)))

    def describe(self, x: np.ndarray) -> dict[str, Any]:
        """Nothing to tell."""
        return {}


TOKENIZERS: dict[str, Callable[[int, int, int], Tokenizer]] = {"rq_kmeans": RQKMeans, "random": RandomCodes}


def build_table(
    embeddings: np.ndarray | None, item_ids: Sequence[str] | np.ndarray, config: SidConfig, seed: int
) -> SidTable:
    """The item-code table of a catalogue: fit the tokeniser, encode, resolve collisions.

    Args:
        embeddings: (N, D) floats; may be None when ``config.index`` names a ready-made index.
        item_ids: (N,) names of the items.
        config: tokeniser, levels, codes, collision policy, or an index to read instead of fitting.
        seed: of the tokeniser.

    The metadata holds ``tokenizer``, ``seed``, ``config``, ``collisions`` (the report of ``resolve_collisions``) and
    what the tokeniser tells of itself. ``ValueError`` for unknown names, and for shapes that do not fit.
    """
    ids = np.asarray(item_ids, dtype=str)
    if config.index:
        index = SidTable.from_index_json(config.index, ids)
        codes, sizes, told = index.codes, index.sizes, index.metadata
    else:
        if embeddings is None or len(embeddings) != len(ids):
            got = "none" if embeddings is None else f"{len(embeddings)} rows"
            raise ValueError(f"build_table: expected one embedding for each of {len(ids)} items, got {got}")
        make = resolve("tokenizer", config.tokenizer, TOKENIZERS)
        tokenizer: Tokenizer = make(config.levels, config.codes, seed).fit(embeddings)
        codes, sizes = tokenizer.encode(embeddings), tokenizer.sizes
        told = {"tokenizer": config.tokenizer, **tokenizer.describe(embeddings)}
    codes, sizes, report = resolve_collisions(codes, sizes, config.collisions)
    return SidTable(codes, sizes, ids, {**told, "seed": seed, "config": asdict(config), "collisions": report})
