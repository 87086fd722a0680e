"""The item-code table: which item has which Semantic ID, with its provenance, on disk and with new items.

Left out: how codes are made (``tokenizers``), how collisions are resolved (``collisions``, ``extension``), and the
index formats of other projects (``index_formats``).

Symbols: N items, L levels.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np

from sidgym.sid.collisions import leaf_counts
from sidgym.sid.reassign import Costs
from sidgym.sid.trie import Trie, check_codes

SCHEMA_VERSION = 1
"""Of the directory that ``SidTable.save`` writes; raised when its files change their meaning."""

TRIE_FILE = "trie.safetensors"
MAPPED_FROM = 100_000
"""Items from which on a saved table has its trie beside it, in a file that all processes of a machine share."""


@dataclass(frozen=True, eq=False)
class SidTable:
    """The SID of every item; row i is item i of the catalogue. ``ValueError`` when the fields do not fit."""

    codes: np.ndarray  # (N, L) int64
    sizes: tuple[int, ...]  # L, number of codes on each level
    item_ids: np.ndarray  # (N,) str, the catalogue's names
    metadata: dict[str, Any] = field(default_factory=dict)  # JSON values: tokenizer, collision report, distortion ...

    def __post_init__(self) -> None:
        codes, sizes = check_codes(self.codes, self.sizes)
        ids = np.asarray(self.item_ids, dtype=str)
        if len(sizes) > len(ascii_lowercase):
            raise ValueError(f"SidTable: at most {len(ascii_lowercase)} levels have a letter, got {len(sizes)}")
        if ids.shape != (len(codes),):
            raise ValueError(f"SidTable.item_ids: expected shape ({len(codes)},), got {ids.shape}")
        names, counts = np.unique(ids, return_counts=True)
        if counts.max() > 1:
            raise ValueError(f"SidTable.item_ids: repeated ids: {names[counts > 1][:5].tolist()}")
        for name, value in (("codes", codes), ("sizes", sizes), ("item_ids", ids)):
            object.__setattr__(self, name, value)

    @property
    def levels(self) -> int:
        """Levels L, a level that counts collisions included."""
        return len(self.sizes)

    @property
    def num_items(self) -> int:
        """Items N."""
        return len(self.codes)

    @cached_property
    def trie(self) -> Trie:
        """The trie of these SIDs, on the CPU; on first use built, or opened where ``save`` left it beside the table.

        A file that is damaged or of another table is passed over with a warning.
        """
        from sidgym.sid.trie_file import open_belonging

        stored = self.__dict__.get("_stored_trie")  # path and content hash; see ``load``
        opened = open_belonging(*stored) if stored else None
        return Trie.from_codes(self.codes, self.sizes) if opened is None else opened

    def tokens(self) -> list[list[str]]:
        """Token strings by level: ``tokens()[l][c]`` is code ``c`` of level ``l``, such as ``<a_12>`` (MiniOneRec)."""
        return [[f"<{letter}_{code}>" for code in range(size)] for letter, size in zip(ascii_lowercase, self.sizes)]

    def collision_count(self) -> int:
        """Items that share their SID with another item."""
        _, counts = leaf_counts(self.codes, self.sizes)
        return int(counts[counts > 1].sum())

    def content_hash(self) -> str:
        """SHA-256 (hex) of codes, sizes and item ids; the metadata is not part of it."""
        digest = hashlib.sha256(json.dumps([self.sizes, self.item_ids.tolist()]).encode())
        digest.update(np.ascontiguousarray(self.codes, dtype="<i8").data)
        return digest.hexdigest()

    def save(self, directory: str | Path) -> None:
        """Write ``codes.safetensors`` and ``table.json``, each through a temporary file that is then renamed.

        From ``MAPPED_FROM`` items on ``trie.safetensors`` as well, which a loaded table uses instead of building one.
        """
        from safetensors.numpy import save

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        header = {
            "schema_version": SCHEMA_VERSION,
            "content_hash": self.content_hash(),
            "sizes": self.sizes,
            "item_ids": self.item_ids.tolist(),
            "metadata": self.metadata,
        }
        if self.num_items >= MAPPED_FROM:
            header["trie_hash"] = self.trie.content_hash()
        text = json.dumps(header, allow_nan=False)  # fails before anything is written
        write_atomically(directory / "codes.safetensors", save({"codes": np.ascontiguousarray(self.codes)}))
        if self.num_items >= MAPPED_FROM:
            self.trie.save(directory / TRIE_FILE)
        else:
            (directory / TRIE_FILE).unlink(missing_ok=True)  # of a larger table that stood here
        write_atomically(directory / "table.json", text.encode())

    @classmethod
    def load(cls, directory: str | Path) -> "SidTable":
        """Read what ``save`` wrote; ``ValueError`` for another schema version, damaged files or a wrong hash.

        ``FileNotFoundError`` where there is no ``table.json`` at all.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        directory = Path(directory)
        if not (directory / "table.json").exists():
            raise FileNotFoundError(f"{directory}: expected an item-code table, but there is no table.json")
        header = read_json_object(directory / "table.json")
        if header.get("schema_version") != SCHEMA_VERSION:
            found = header.get("schema_version")
            raise ValueError(f"{directory}: expected schema_version {SCHEMA_VERSION}, got {found}; build it again")
        try:
            codes = load((directory / "codes.safetensors").read_bytes())["codes"]
            ids = np.array(header["item_ids"], dtype=str)
            if not isinstance(header["metadata"], dict):
                raise TypeError(f"metadata: expected an object, got {header['metadata']!r}")
            table = cls(codes, tuple(header["sizes"]), ids, header["metadata"])
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"{directory}: damaged or incomplete item-code table ({error}); build it again") from error
        if table.content_hash() != header.get("content_hash"):
            stored = header.get("content_hash")
            raise ValueError(
                f"{directory}: expected content hash {stored}, got {table.content_hash()}; "
                "codes.safetensors and table.json do not belong together or were changed; build it again"
            )
        table.__dict__["_stored_trie"] = (directory.resolve() / TRIE_FILE, str(header.get("trie_hash", "")))
        return table

    def extend(
        self,
        item_ids: Sequence[str] | np.ndarray,
        codes: np.ndarray,
        costs: Costs | None = None,
        collisions: str = "",
        sizes: Sequence[int] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> "SidTable":
        """The table with M new items behind the old ones, whose SIDs never change; the hash does.

        Args:
            item_ids: (M,) names that the table does not hold yet.
            codes: (M, L) integers, as the table's tokeniser encodes the new items; without the level that counts
                collisions where the table has one (``extra_level``). A code at or beyond the table's size of a level
                adds codes to that level.
            costs: what a code costs a new item (rows 0 to M - 1), for ``reassign``.
            collisions: how new items get free SIDs; empty for the table's own policy. ``extra_level`` goes on counting,
                ``reassign`` shares out what is free in a prefix (or beside it) at the least cost, ``keep`` lets items
                share, ``forbid`` raises.
            sizes: codes on each level of the tokeniser, where they are more than the largest new code says.
            provenance: JSON values for the metadata, whose list ``extensions`` gets one entry a call: policy, items,
                first row, hash of the table before, sizes before and after, how many items did not get the codes that
                they were given, and with costs the mean distortion before and after.

        Raises ``ValueError`` for ids or codes that do not fit, for a table whose metadata has no policy where none is
        given, and where no SID is free.
        """
        from sidgym.sid.extension import extended

        return extended(self, item_ids, codes, costs, collisions, sizes, provenance)

    def to_index_json(self, path: str | Path) -> None:
        """Write MiniOneRec's ``*.index.json``; see ``index_formats``, which knows other forms as well."""
        from sidgym.sid.index_formats import write_index

        write_index(self, path, "index_json")


def read_json_object(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object; ``ValueError`` if it is truncated, no object, or has a key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"{path}: key {twice!r} stands there more than once")
        return found

    try:
        # A byte order mark, which some editors write, is no damage.
        value = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON, perhaps truncated ({error}); fetch or write it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
