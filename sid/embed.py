"""Item embeddings: what the tokenisers quantise. The registry of embedders, and embeddings from a file.

An embedder learns from the catalogue's texts and then embeds any text, so a new item gets an embedding without a new
fit. ``EMBEDDERS`` maps names to classes; an own one may also be a plain function ``(texts, dim, seed) -> (N, dim)``,
which knows its catalogue only. Left out: TF-IDF with SVD (``tfidf``), neural text encoders (``encoders``), alignment
(``alignment``).

Symbols: N items, D width of the embeddings.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sidgym.sid.config import SidConfig
from sidgym.sid.embedding_files import SCHEMA_VERSION, read_header, text_keys
from sidgym.sid.encoders import Encoder
from sidgym.sid.registry import resolve
from sidgym.sid.residual import check_embeddings
from sidgym.sid.table import write_atomically
from sidgym.sid.tfidf import TfidfSvd
from sidgym.sid.tfidf import tfidf_svd as tfidf_svd

HEADER = "embedder.json"


class TextEmbedder(Protocol):
    """Embeds any text."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of M texts, known or new: (M, D) float32, equal for equal texts."""


class Embedder(TextEmbedder, Protocol):
    """Gives texts their embeddings; built as ``cls(dim, seed, **extras)``.

    A class may name in ``takes`` which extras it wants: ``source`` (``sid.encoder``), ``cache`` (a folder that outlives
    the run's stages) and ``on_progress`` (called with how many of how many are done, and a word on it). One whose
    ``reads_texts`` is False works on a data set without any text.
    """

    def fit(self, texts: Sequence[str]) -> "Embedder":
        """Learn from the catalogue's N texts and return the embedder itself."""

    def save(self, directory: Path) -> None:
        """Write what ``load`` needs."""

    @classmethod
    def load(cls, directory: Path) -> "Embedder":
        """Read what ``save`` wrote."""


class EmbeddingFile:
    """Embeddings that somebody else made: a ``.npy`` file (N, D), row i for item i of the catalogue.

    Args:
        dim: not used; the width is the file's own.
        seed: not used.
        source: the file.

    New items need a file of their own, whose rows are theirs: ``load`` takes it.
    """

    takes = ("source",)
    reads_texts = False

    def __init__(self, dim: int, seed: int, source: str = "") -> None:
        if not source:
            raise ValueError("embedder 'file' needs sid.encoder: the .npy file with one row for each item")
        if not Path(source).is_file():
            raise ValueError(f"sid.encoder = {source!r} is not a file; give the .npy file with one row for each item")
        self.source = source
        self.keys: list[bytes] = []
        self.rows: np.ndarray | None = None

    def fit(self, texts: Sequence[str]) -> "EmbeddingFile":
        """Read the rows of N items. ``ValueError`` for another kind of file, number of rows, or values not finite."""
        self.rows = read_rows(self.source, len(texts))
        self.keys = text_keys(texts)
        return self

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The rows of the very items that ``fit`` saw, (N, D) float32; ``ValueError`` for any others.

        After ``load`` nothing has been seen, and the first texts are those of the file.
        """
        if self.rows is None:
            self.fit(texts)
        if self.rows is None or text_keys(texts) != self.keys:
            raise ValueError(
                f"embedder 'file' has rows for the {len(self.keys)} items it was read for and cannot embed other "
                "texts; give the embeddings of new items as a .npy file of their own"
            )
        return self.rows.copy()

    def save(self, directory: str | Path) -> None:
        """Write ``embedding_file.json``, which names the file; the rows stay where they are."""
        header = {"schema_version": SCHEMA_VERSION, "source": self.source, "items": len(self.keys)}
        write_atomically(Path(directory) / "embedding_file.json", json.dumps(header).encode())

    @classmethod
    def load(cls, directory: str | Path, source: str = "") -> "EmbeddingFile":
        """The embedder of new items, whose rows stand in ``source``. ``ValueError`` without it, or for no saved one."""
        header = read_header(Path(directory) / "embedding_file.json")
        if not source:
            raise ValueError(
                f"the items' embeddings were given as the file {header.get('source')}, which says nothing of new "
                "items; give a .npy file with one row for each new item"
            )
        return cls(0, 0, source=source)


def read_rows(path: str | Path, count: int) -> np.ndarray:
    """The rows (count, D) float32 of a ``.npy`` file. ``ValueError`` for another file or shape, or values not finite.

    Rows are compared with nothing but their number; ``FileNotFoundError`` where there is no file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file; give a .npy file with one row for each item")
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a .npy file of numbers ({error}); write it with numpy.save") from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind not in "fiu":
        got = f"{rows.shape} of {rows.dtype}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise ValueError(f"{path}: expected numbers of shape ({count}, D) in a .npy file, got {got}")
    if len(rows) != count:
        raise ValueError(f"{path}: expected {count} rows, one for each item in their order, got {len(rows)}")
    try:
        with np.errstate(over="ignore"):  # what single precision cannot hold is named below
            return check_embeddings(rows)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class OfFunction:
    """A plain function ``(texts, dim, seed) -> (N, dim)`` as an embedder of its catalogue alone."""

    def __init__(self, function: Callable[[Sequence[str], int, int], np.ndarray], dim: int, seed: int) -> None:
        self.function, self.dim, self.seed = function, dim, seed
        self.keys: list[bytes] = []
        self.rows = np.zeros((0, dim), np.float32)

    def fit(self, texts: Sequence[str]) -> "OfFunction":
        """Call the function. ``ValueError`` unless it gives (N, dim) finite numbers."""
        self.rows = check_embeddings(self.function(texts, self.dim, self.seed))
        self.keys = text_keys(texts)
        return self

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The rows of the very texts that ``fit`` saw; ``ValueError`` for any others."""
        # Such a function may well learn from the texts it is given, so rows of two calls need not lie in one space.
        if text_keys(texts) != self.keys:
            raise ValueError(
                "an embedder that is a plain function knows the catalogue alone; to embed new items, bring a class "
                "with fit, embed, save and load"
            )
        return self.rows.copy()

    def save(self, directory: str | Path) -> None:
        """Nothing that could be used again."""

    @classmethod
    def load(cls, directory: str | Path) -> "OfFunction":
        """``ValueError``: there is nothing to load."""
        raise ValueError(
            "an embedder that is a plain function cannot embed new items; bring a class with fit, embed, save and load"
        )


EMBEDDERS: dict[str, Callable[..., Any]] = {"tfidf_svd": TfidfSvd, "encoder": Encoder, "file": EmbeddingFile}


def make_embedder(config: SidConfig, seed: int, cache: str | Path | None = None, on_progress: Any = None) -> Embedder:
    """The embedder that ``config`` names, not fitted. ``ValueError`` for an unknown one, or one that lacks its source.

    Args:
        config: ``embedder``, ``embedding_dim`` and ``encoder``.
        seed: of whatever it draws.
        cache: folder for results that can be used again, for embedders that take one.
        on_progress: called as ``(done, total, text)``.
    """
    made = resolve("embedder", config.embedder, EMBEDDERS)
    if not isinstance(made, type):
        return OfFunction(made, config.embedding_dim, seed)
    extras = {"source": config.encoder, "cache": cache, "on_progress": on_progress}
    wanted = {name: extras[name] for name in getattr(made, "takes", ())}
    return made(config.embedding_dim, seed, **wanted)


def reads_texts(config: SidConfig) -> bool:
    """Whether the embedder of ``config`` needs item texts."""
    return getattr(resolve("embedder", config.embedder, EMBEDDERS), "reads_texts", True)


def save_embedder(embedder: Embedder, directory: str | Path, name: str) -> None:
    """Write an embedder and, in ``embedder.json``, the name (``sid.embedder``) by which ``load_embedder`` finds it."""
    directory = Path(directory)
    embedder.save(directory)
    write_atomically(directory / HEADER, json.dumps({"schema_version": SCHEMA_VERSION, "embedder": name}).encode())


def load_embedder(directory: str | Path, source: str = "") -> TextEmbedder:
    """The embedder of new items: that of a saved directory, with the alignment that was saved below it.

    Args:
        directory: of ``save_embedder`` (and ``alignment.save_alignment``).
        source: for the embedder "file" the .npy file of the new items' rows; for "encoder" the encoder's directory
            where it has moved; else empty.

    ``ValueError`` for a directory of another kind, for an embedder that cannot embed new items, and for a source where
    the embedder takes none.
    """
    from sidgym.sid.alignment import AlignedEmbedder, holds_alignment, load_alignment

    directory = Path(directory)
    name = read_header(directory / HEADER).get("embedder")
    made = resolve("embedder", str(name), EMBEDDERS)
    kind: Any = made if isinstance(made, type) else OfFunction
    takes_source = "source" in getattr(kind, "takes", ())
    if source and not takes_source:
        raise ValueError(f"{directory}: the embedder {name!r} needs no source, got {source!r}; leave it out")
    embedder = kind.load(directory, source=source) if takes_source else kind.load(directory)
    return AlignedEmbedder(embedder, load_alignment(directory)) if holds_alignment(directory) else embedder
