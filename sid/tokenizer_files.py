"""How a fitted tokeniser lies on disk: ``tokenizer.json`` beside ``tokenizer.safetensors``.

The JSON names the class, so that ``tokenizers.load_tokenizer`` finds it, and holds the settings; the safetensors file
holds the arrays. Left out: what the arrays mean, which each tokeniser knows.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.sid.table import read_json_object, write_atomically

SCHEMA_VERSION = 1
"""Of the directory that a tokeniser's ``save`` writes."""

HEADER, ARRAYS = "tokenizer.json", "tokenizer.safetensors"


def name_of(cls: type) -> str:
    """How a saved tokeniser names its class: its own ``name`` in the registry, else ``package.module:Class``."""
    return cls.__dict__.get("name") or f"{cls.__module__}:{cls.__qualname__}"


def write_tokenizer(
    directory: str | Path, cls: type, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write arrays and header, each through a temporary file that is then renamed; the header comes last."""
    from safetensors.numpy import save

    directory = Path(directory)
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    digest = hashlib.sha256(content).hexdigest()
    full = {"schema_version": SCHEMA_VERSION, "tokenizer": name_of(cls), "content_hash": digest, **header}
    text = json.dumps(full, allow_nan=False)  # fails before anything is written
    write_atomically(directory / ARRAYS, content)
    write_atomically(directory / HEADER, text.encode())


@contextmanager
def damaged(directory: str | Path, what: str = "tokeniser") -> Iterator[None]:
    """Whatever goes wrong inside, when saved values are put to use, as a ``ValueError`` that names the directory."""
    from safetensors import SafetensorError

    try:
        yield
    except (
        SafetensorError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        AttributeError,
        IndexError,
        OSError,
    ) as error:
        raise ValueError(f"{directory}: damaged or incomplete {what} ({error}); fit it again") from error


def read_header(directory: str | Path) -> dict[str, Any]:
    """The header of a saved tokeniser; ``ValueError`` where there is none, or for another schema version."""
    directory = Path(directory)
    if not (directory / HEADER).exists():
        raise ValueError(f"{directory}: expected a saved tokeniser, but there is no {HEADER}; fit one and save it")
    header = read_json_object(directory / HEADER)
    if header.get("schema_version") != SCHEMA_VERSION:
        found = header.get("schema_version")
        raise ValueError(f"{directory}: expected schema_version {SCHEMA_VERSION}, got {found}; fit it again")
    return header


def read_tokenizer(directory: str | Path, cls: type) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays that ``write_tokenizer`` wrote for ``cls``.

    ``ValueError`` for a tokeniser of another class, damaged files, and files that do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    directory = Path(directory)
    header = read_header(directory)
    if header.get("tokenizer") != name_of(cls):
        raise ValueError(f"{directory}: expected a {name_of(cls)!r} tokeniser, got {header.get('tokenizer')!r}")
    try:
        content = (directory / ARRAYS).read_bytes()
        arrays = load(content)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{directory}: damaged or incomplete tokeniser ({error}); fit it again") from error
    if hashlib.sha256(content).hexdigest() != header.get("content_hash"):
        raise ValueError(
            f"{directory}: {ARRAYS} does not have the content hash that {HEADER} gives; the two do not belong together "
            "or were changed; fit it again"
        )
    return header, arrays
