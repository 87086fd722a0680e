"""A trie as one safetensors file whose arrays are used where they lie: mapped, not read.

The kernel keeps one copy of the file's pages for all processes of a machine. A process that writes to an array gets a
page of its own; the file never changes. An open trie, restricted or not, is pickled as the name of its file. Left out:
saving restricted tries, which are made from the open one.
"""

import hashlib
import json
import mmap
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidgym.sid.trie import Trie
from sidgym.sid.trie_arrays import Ascending
from sidgym.sid.trie_view import Allowed

SCHEMA_VERSION = 1
"""Of the file; raised when its parts change their meaning."""

ARRAYS = ("edge_code", "item_at", "place_of", "extra_leaf")
DTYPES = {"U8": np.uint8, "I16": np.int16, "I32": np.int32}
MOST_HEADER = 2**20
"""A header longer than this is none."""


@dataclass(frozen=True)
class Source:
    """The file that a trie was opened from."""

    path: Path  # absolute
    content_hash: str  # of the whole trie
    device: int  # with ``inode`` what the file was when it was opened, whatever its name means now
    inode: int

    def is_there(self) -> bool:
        """Whether the path still names the very same file."""
        try:
            found = self.path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (self.device, self.inode)


def save_trie(trie: Trie, path: str | Path) -> None:
    """See ``Trie.save``."""
    from safetensors.numpy import save_file

    path = Path(path)
    if trie.view is not None:
        raise ValueError("save: expected a trie that is not restricted; save the whole one and restrict it once open")
    arrays = {name: _numpy(getattr(trie, name)) for name in ARRAYS}
    for level, start in enumerate(trie.starts):
        arrays |= {f"starts.{level}.base": _numpy(start.base), f"starts.{level}.offset": _numpy(start.offset)}
    header = {
        "schema_version": SCHEMA_VERSION,
        "sizes": trie.sizes,
        "level_start": trie.level_start.tolist(),
        "num_items": trie.num_items,
        "widest": trie.widest,
        "most_items": trie.most_items,
        "content_hash": trie.content_hash(),
    }
    header["sha256"] = _digest(header, arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(arrays, temporary, {"trie": json.dumps(header)})
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def open_trie(path: str | Path, verify: bool = True) -> Trie:
    """See ``Trie.open``."""
    path = Path(path)
    try:
        header, arrays, status = _mapped(path)
        if header["schema_version"] != SCHEMA_VERSION:
            found = header["schema_version"]
            raise ValueError(f"{path}: expected schema_version {SCHEMA_VERSION}, got {found}; save the trie again")
        starts = tuple(
            Ascending(
                torch.from_numpy(arrays[f"starts.{level}.base"]),
                torch.from_numpy(arrays[f"starts.{level}.offset"]),
                header["level_start"][level + 1] - header["level_start"][level] + 1,
            )
            for level in range(len(header["sizes"]))
        )
        if verify and _digest({k: v for k, v in header.items() if k != "sha256"}, arrays) != header["sha256"]:
            raise ValueError(f"{path}: damaged: its content does not have the hash of its header; save the trie again")
        trie = Trie(
            sizes=tuple(header["sizes"]),
            level_start=torch.tensor(header["level_start"]),
            starts=starts,
            num_items=header["num_items"],
            widest=tuple(header["widest"]),
            most_items=header["most_items"],
            edge_code=torch.from_numpy(arrays["edge_code"]),
            item_at=torch.from_numpy(arrays["item_at"]),
            place_of=torch.from_numpy(arrays["place_of"]),
            extra_leaf=torch.from_numpy(arrays["extra_leaf"]),
        )
        trie.__dict__["_hash"] = header["content_hash"]
        trie.__dict__["_source"] = Source(path.resolve(), header["content_hash"], status.st_dev, status.st_ino)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path}: not a trie, or a damaged one ({error!r}); save the trie again") from error
    return trie


def open_belonging(path: Path, content_hash: str) -> Trie | None:
    """The trie of a file if it has this content; None, with a warning where there is a file, if it has not."""
    try:
        trie = open_trie(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} cannot be used, so the trie is built again: {error}", stacklevel=2)
        return None
    if trie.content_hash() != content_hash:
        warnings.warn(f"{path} is the trie of another table, so it is built again", stacklevel=2)
        return None
    return trie


def reopen(path: Path, content_hash: str, view: Allowed | None) -> Trie:
    """What a pickled trie becomes. ``ValueError`` where the file is not there or holds another trie by now."""
    try:
        trie = open_trie(path, verify=False)
    except OSError as error:
        raise ValueError(
            f"{path}: the trie was sent as the name of its file, which cannot be read here ({error}); every machine "
            "must see the run's folder under the same path"
        ) from error
    if trie.content_hash() != content_hash:
        raise ValueError(f"{path}: another trie took its place while one was being sent; start again")
    return trie if view is None else trie.seen_through(view)


def _mapped(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], os.stat_result]:
    """Our header, the arrays by name on the mapped file, and its status; ``ValueError`` if the file is not whole."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        size = status.st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > MOST_HEADER:
            raise ValueError(f"{path}: expected a safetensors file, got {size} bytes that start otherwise")
        text = file.read(length)
        try:
            entries = json.loads(text)
            header = json.loads(entries.pop("__metadata__")["trie"])
        except ValueError as error:
            raise ValueError(f"{path}: its header is damaged or cut off ({error}); save the trie again") from error
        expected = 8 + length + max(entry["data_offsets"][1] for entry in entries.values())
        if size != expected:
            raise ValueError(f"{path}: cut off or damaged: expected {expected} bytes, got {size}; save the trie again")
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    arrays = {}
    for name, entry in entries.items():
        first, end = entry["data_offsets"]
        dtype = np.dtype(DTYPES[entry["dtype"]])
        if not 0 <= first <= end <= size - 8 - length:
            raise ValueError(f"{path}: damaged: {name} is said to lie at {first} to {end}; save the trie again")
        arrays[name] = np.frombuffer(whole, dtype, (end - first) // dtype.itemsize, 8 + length + first)
    return header, arrays, status


def _digest(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 (hex) of the header and of all arrays in the order of their names."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].data)
    return digest.hexdigest()


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.cpu().numpy())
