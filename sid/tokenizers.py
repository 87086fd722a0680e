"""From items to the item-code table: the registry of tokenisers and the steps around them.

A tokeniser is built as ``cls(levels, codes, seed)``; ``TOKENIZERS`` maps names to such classes. Left out: the
embeddings themselves (``embed``, ``alignment``), collision policies (``collisions``) and files of codes
(``index_formats``).
"""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sidgym.sid.balanced_kmeans import BalancedRQKMeans
from sidgym.sid.category import CategoryCodes
from sidgym.sid.collisions import leaf_counts, resolve_collisions
from sidgym.sid.config import SidConfig
from sidgym.sid.random_codes import RandomCodes
from sidgym.sid.reassign import Costs
from sidgym.sid.registry import resolve
from sidgym.sid.residual import Progress
from sidgym.sid.rq_kmeans import RQKMeans
from sidgym.sid.rq_kmeans_plus import RQKMeansPlus
from sidgym.sid.rq_vae import RQVAE
from sidgym.sid.table import SidTable, write_atomically
from sidgym.sid.tokenizer_files import HEADER, SCHEMA_VERSION, name_of, read_header


class Tokenizer(Protocol):
    """What gives items their codes; equal seeds and items give equal codes.

    ``reads``, a class attribute, says what ``x`` is: "embeddings", which is also meant where there is none, are (N, D)
    floats; "categories" are N paths of names. A tokeniser from outside the tree needs no more than ``sizes``, ``fit``
    (of ``x`` alone, if it likes), ``encode`` and ``describe``; without ``save`` and ``load`` it cannot code new items
    later. One with codebooks also has ``costs``, as ``residual.ResidualQuantizer`` does, by which ``reassign`` weighs
    codes.
    """

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes on each level, (L,), known after ``fit``."""

    def fit(self, x: Any, on_progress: Progress | None = None) -> "Tokenizer":
        """Learn from N items and return the tokeniser itself; tells ``on_progress(done, total, text)``."""

    def encode(self, x: Any) -> np.ndarray:
        """Codes (N, L) int64 of items, which need not be those of ``fit``, level l in ``[0, sizes[l])``."""

    def describe(self, x: Any) -> dict[str, Any]:
        """JSON values for the table's metadata, measured on N items."""

    def distances(self, x: Any) -> np.ndarray:
        """How far each item is from what its codes stand for, (N,): large for items unlike those of ``fit``."""

    def save(self, directory: str | Path) -> None:
        """Write the fitted tokeniser as safetensors and JSON."""

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Read what ``save`` wrote; it encodes as it did, to the bit."""


TOKENIZERS: dict[str, Callable[[int, int, int], Tokenizer]] = {
    "rq_kmeans": RQKMeans,
    "balanced_rq_kmeans": BalancedRQKMeans,
    "rq_vae": RQVAE,
    "rq_kmeans_plus": RQKMeansPlus,
    "random": RandomCodes,
    "category": CategoryCodes,
}


def save_tokenizer(tokenizer: Tokenizer, directory: str | Path) -> None:
    """Save a fitted tokeniser so that ``load_tokenizer`` finds its class, also where its ``save`` does not name it."""
    tokenizer.save(directory)
    path = Path(directory) / HEADER
    if not path.exists():
        header = {"schema_version": SCHEMA_VERSION, "tokenizer": name_of(type(tokenizer))}
        write_atomically(path, json.dumps(header).encode())


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokeniser that was saved in a directory, whatever its class.

    Raises ``ValueError`` for a directory without one, a class that cannot be found, and damaged files.
    """
    name = read_header(directory).get("tokenizer")
    kind = resolve("tokenizer", str(name), TOKENIZERS)
    if not hasattr(kind, "load"):
        raise ValueError(f"{directory}: expected a class with load, got {name!r}; fit the tokeniser again")
    return kind.load(directory)


def fit_tokenizer(tokenizer: Tokenizer, x: Any, on_progress: Progress | None = None) -> Tokenizer:
    """``tokenizer.fit(x)``, with progress where its ``fit`` takes ``on_progress``."""
    if "on_progress" in inspect.signature(tokenizer.fit).parameters:
        return tokenizer.fit(x, on_progress=on_progress)
    return tokenizer.fit(x)


def build_table(
    embeddings: np.ndarray | None,
    item_ids: Sequence[str] | np.ndarray,
    config: SidConfig,
    seed: int,
    categories: Sequence[Sequence[str]] | None = None,
    on_progress: Progress | None = None,
    save_to: str | Path | None = None,
) -> SidTable:
    """The item-code table of a catalogue: fit the tokeniser, encode, resolve collisions.

    Args:
        embeddings: (N, D) floats; may be None when ``config.index`` names a ready-made index, or for a tokeniser that
            reads categories.
        item_ids: (N,) names of the items.
        config: tokeniser, levels, codes, collision policy, or an index to read instead of fitting. An index in which
            no items share a SID stays as it is; ``extra_level`` would only add a level of one code.
        seed: of the tokeniser.
        categories: N paths of names, for a tokeniser that reads them.
        on_progress: told of the tokeniser's fit.
        save_to: directory for the fitted tokeniser; one without ``save`` is not saved, a ready-made index has none.

    The metadata holds ``tokenizer``, ``seed``, ``config``, ``collisions`` (the report of ``resolve_collisions``) and
    what the tokeniser tells of itself. ``ValueError`` for unknown names, and for shapes that do not fit.
    """
    ids = np.asarray(item_ids, dtype=str)
    costs: Costs | None = None
    if config.index:
        from sidgym.sid.index_formats import read_index

        index = read_index(config.index, ids, unknown="drop")
        codes, sizes, told = index.codes, index.sizes, index.metadata
    else:
        make = resolve("tokenizer", config.tokenizer, TOKENIZERS)
        items = _items(make, config.tokenizer, embeddings, categories, len(ids))
        tokenizer = fit_tokenizer(make(config.levels, config.codes, seed), items, on_progress)
        codes, sizes = tokenizer.encode(items), tokenizer.sizes
        told = {"tokenizer": config.tokenizer, **tokenizer.describe(items)}
        costs = code_costs(tokenizer, items)
        if save_to is not None and hasattr(tokenizer, "save"):
            save_tokenizer(tokenizer, save_to)
    # An index without a shared SID is what policies were trained on; one more level would change it.
    resolved = bool(config.index) and leaf_counts(codes, sizes)[1].max() == 1
    counting = resolved and config.collisions == "extra_level"
    codes, sizes, report = resolve_collisions(codes, sizes, "forbid" if counting else config.collisions, costs)
    if counting:
        report |= {"asked": "extra_level", "note": "no items of the index share a SID, so that no level was added"}
    if resolved and "collisions" in told:
        report = told["collisions"]
    return SidTable(codes, sizes, ids, {**told, "seed": seed, "config": asdict(config), "collisions": report})


def code_costs(tokenizer: Tokenizer, items: Any) -> Costs | None:
    """What each code of a level costs items by their row, as ``reassign`` asks; None for a tokeniser without costs."""
    costs = getattr(tokenizer, "costs", None)
    if costs is None:
        return None
    return lambda rows, codes, level: costs(items[rows], codes, level)


def _items(
    make: Any,
    name: str,
    embeddings: np.ndarray | None,
    categories: Sequence[Sequence[str]] | None,
    count: int,
) -> Any:
    """What the tokeniser reads, checked for one row an item."""
    reads = getattr(make, "reads", "embeddings")
    if reads not in ("embeddings", "categories"):
        raise ValueError(f"tokenizer {name!r}: reads must be 'embeddings' or 'categories', got {reads!r}")
    items, one = (categories, "path of categories") if reads == "categories" else (embeddings, "embedding")
    if items is None or len(items) != count:
        got = "none" if items is None else f"{len(items)} rows"
        raise ValueError(f"build_table: expected one {one} for each of {count} items, got {got}")
    return items
