"""What embedders write: headers of saved ones, and a cache of rows that outlives a killed run.

Left out: what the rows are, which each embedder knows.
"""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.sid.table import read_json_object, write_atomically

SCHEMA_VERSION = 1
"""Of everything that embedders and alignments write."""


def text_keys(texts: Sequence[str]) -> list[bytes]:
    """What tells texts apart: a 16-byte hash of each."""
    return [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]


def read_header(path: Path) -> dict[str, Any]:
    """The JSON of a saved embedder; ``ValueError`` where it is missing, damaged, or of another schema version."""
    if not path.is_file():
        raise ValueError(f"{path.parent}: expected a saved embedder, but there is no {path.name}; fit one and save it")
    header = read_json_object(path)
    if header.get("schema_version") != SCHEMA_VERSION:
        found = header.get("schema_version")
        raise ValueError(f"{path}: expected schema_version {SCHEMA_VERSION}, got {found}; fit it again")
    return header


class RowCache:
    """Embeddings by the hash of their text, in a folder; made for many processes that add and none that removes.

    Each call of ``add`` writes one file under the hash of its content, through a temporary name. So a kill loses what
    was not yet added and nothing else, two processes that add the same rows write the same file, and a file that was
    damaged later is known by its name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """The rows (D,) float32 of those ``keys`` that the cache holds. Warns of a damaged file and passes it over."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        wanted, found = set(keys), {}
        for path in sorted(self.folder.glob("*.safetensors")):
            content = path.read_bytes()
            try:
                if _digest(content) != path.stem:
                    raise SafetensorError("its content is not what its name says")
                part = load(content)
            except SafetensorError as error:
                warnings.warn(f"{path} is damaged ({error}); its texts are encoded again", stacklevel=2)
                continue
            names = [key.tobytes() for key in part["keys"]]
            found.update({name: part["rows"][row] for row, name in enumerate(names) if name in wanted})
        return found

    def add(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Keep the rows (M, D) float32 of M texts."""
        from safetensors.numpy import save

        names = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1)
        content = save({"keys": names, "rows": np.ascontiguousarray(rows)})
        write_atomically(self.folder / f"{_digest(content)}.safetensors", content)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
