"""The item-code table: which item has which Semantic ID, with its provenance, on disk and in MiniOneRec's format.

Left out: how codes are made (``tokenizers``) and how collisions are resolved (``collisions``).

Symbols: N items, L levels.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np

from sidgym.sid.collisions import leaf_counts
from sidgym.sid.trie import Trie, check_codes

SCHEMA_VERSION = 1
"""Of the directory that ``SidTable.save`` writes; raised when its files change their meaning."""

TOKEN = re.compile(r"<([a-z])_(0|[1-9][0-9]{0,8})>")
"""A code as a token: level letter, code."""


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
        """The trie of these SIDs, on the CPU; built on first use."""
        return Trie.from_codes(self.codes, self.sizes)

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
        """Write ``codes.safetensors`` and ``table.json``, each through a temporary file that is then renamed."""
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
        text = json.dumps(header, allow_nan=False)  # fails before anything is written
        write_atomically(directory / "codes.safetensors", save({"codes": np.ascontiguousarray(self.codes)}))
        write_atomically(directory / "table.json", text.encode())

    @classmethod
    def load(cls, directory: str | Path) -> "SidTable":
        """Read what ``save`` wrote; ``ValueError`` for another schema version, damaged files or a wrong hash."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        directory = Path(directory)
        header = read_json_object(directory / "table.json")
        if header.get("schema_version") != SCHEMA_VERSION:
            found = header.get("schema_version")
            raise ValueError(f"{directory}: expected schema_version {SCHEMA_VERSION}, got {found}; build it again")
        try:
            codes = load((directory / "codes.safetensors").read_bytes())["codes"]
            ids = np.array(header["item_ids"], dtype=str)
            table = cls(codes, tuple(header["sizes"]), ids, header["metadata"])
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{directory}: damaged or incomplete item-code table ({error}); build it again") from error
        if table.content_hash() != header.get("content_hash"):
            stored = header.get("content_hash")
            raise ValueError(
                f"{directory}: expected content hash {stored}, got {table.content_hash()}; "
                "codes.safetensors and table.json do not belong together or were changed; build it again"
            )
        return table

    def to_index_json(self, path: str | Path) -> None:
        """Write MiniOneRec's ``*.index.json``: item id -> list of L tokens, in the order of the items."""
        tokens = self.tokens()
        rows = {
            name: [tokens[level][code] for level, code in enumerate(row)]
            for name, row in zip(self.item_ids.tolist(), self.codes.tolist())
        }
        write_atomically(Path(path), json.dumps(rows).encode())

    @classmethod
    def from_index_json(cls, path: str | Path, item_ids: Sequence[str] | np.ndarray | None = None) -> "SidTable":
        """Read a MiniOneRec or LC-Rec ``*.index.json``: item id -> ``["<a_12>", "<b_3>", ...]``.

        Args:
            path: the file.
            item_ids: (N,) ids of the catalogue, whose order the rows take; without it the file's ids in numerical
                order if all are integers, else in the file's order.

        ``sizes`` is the largest code of the whole file + 1 on each level. Raises ``ValueError`` for truncated JSON, an
        entry that is no list, a malformed token, letters out of order, unequal numbers of levels, or catalogue ids that
        the index lacks.
        """
        rows = read_json_object(Path(path))
        if not rows:
            raise ValueError(f"{path}: expected at least one item, got an empty index")
        parsed = {name: parse_tokens(tokens, f"{path}: item {name!r}") for name, tokens in rows.items()}
        levels = len(next(iter(parsed.values())))
        unequal = [name for name, row in parsed.items() if len(row) != levels]
        if unequal:
            raise ValueError(
                f"{path}: expected {levels} levels for every item as for the first, but {len(unequal)} items differ, "
                f"first {unequal[0]!r} with {len(parsed[unequal[0]])}"
            )
        names = index_order(list(parsed)) if item_ids is None else [str(name) for name in item_ids]
        missing = [name for name in names if name not in parsed]
        if missing:
            raise ValueError(
                f"{path}: {len(missing)} of {len(names)} catalogue ids are not in the index, first {missing[:5]}; "
                "expected the index of this very catalogue"
            )
        largest = np.array(list(parsed.values()), dtype=np.int64).max(axis=0)
        codes = np.array([parsed[name] for name in names], dtype=np.int64).reshape(len(names), levels)
        metadata = {"tokenizer": "index", "index": Path(path).name, "items_in_index": len(parsed)}
        return cls(codes, tuple(int(code) + 1 for code in largest), np.array(names, dtype=str), metadata)


def parse_tokens(tokens: Any, where: str) -> list[int]:
    """Codes of one item's tokens ``["<a_12>", "<b_3>", ...]``; ``ValueError`` that starts with ``where``."""
    if not isinstance(tokens, list) or not tokens:
        raise ValueError(f"{where}: expected a list of tokens such as ['<a_12>', '<b_3>'], got {tokens!r}")
    if len(tokens) > len(ascii_lowercase):
        raise ValueError(f"{where}: at most {len(ascii_lowercase)} levels have a letter, got {len(tokens)}")
    codes = []
    for letter, token in zip(ascii_lowercase, tokens):
        match = TOKEN.fullmatch(token) if isinstance(token, str) else None
        if match is None:
            raise ValueError(f"{where}: malformed token {token!r}; expected a form such as <a_12>")
        if match[1] != letter:
            raise ValueError(f"{where}: level letters must run a, b, c ...; expected <{letter}_...>, got {token!r}")
        codes.append(int(match[2]))
    return codes


def index_order(names: list[str]) -> list[str]:
    """Names in numerical order if all are integers, else as given."""
    integers = all(re.fullmatch(r"-?[0-9]+", name) for name in names)
    return sorted(names, key=int) if integers else names


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
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
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
