"""Item-code tables in the formats of other projects, both ways: ``read_index`` and ``write_index``.

    index_json   MiniOneRec, LC-Rec, LETTER   {"item": ["<a_12>", "<b_3>", "<c_201>"], ...}
    openonerec   OpenOneRec   .json           {"item": "<|sid_begin|><s_a_12><s_b_3><s_c_201><|sid_end|>", ...}
                              .parquet        columns ``pid`` and ``sid`` (or ``codes``): a list of codes, or that text
    csv, parquet              columns ``item_id``, ``level_0``, ``level_1`` ...: one row an item, codes as integers
    folder                    what ``SidTable.save`` writes (read only)

OpenOneRec (github.com/Kuaishou-OneRec/OpenOneRec) keeps codes in Parquet files, ``pid`` and ``codes`` from its
tokeniser, ``pid`` and ``sid`` in its releases, and writes a SID into text between ``<|sid_begin|>`` and
``<|sid_end|>``. The format ``parquet`` as written here also says how many codes each level has and is checked against a
hash; the others hold neither, so there the largest code of a level says it unless ``sizes`` is given. Left out:
MiniOneRec's ``info.txt`` and OpenOneRec's packed ``sid2pid.json``, which say the same again. Metadata other than the
sizes stays in ``SidTable.save``'s folder.
"""

import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np

from sidgym.sid.index_readers import Rows, open_parquet, read_csv, read_index_json, read_openonerec, read_parquet
from sidgym.sid.table import SidTable, write_atomically

MAX_CODES = 2**16
"""Codes on a level beyond which an index that does not say its sizes is taken for damaged."""

FORMATS: dict[str, Callable[[Path], tuple[Rows, tuple[int, ...] | None]]] = {
    "index_json": read_index_json,
    "openonerec": read_openonerec,
    "csv": read_csv,
    "parquet": read_parquet,
}


def read_index(
    path: str | Path,
    item_ids: Sequence[str] | np.ndarray | None = None,
    sizes: Sequence[int] | int | None = None,
    format: str = "",
    unknown: str = "refuse",
) -> SidTable:
    """An item-code table from a file of any format above.

    Args:
        path: a file, or a folder of ``SidTable.save``.
        item_ids: (N,) ids of the catalogue, whose order the rows take; without it the file's ids in numerical order if
            all are integers, else in the file's order; a saved table keeps its own.
        sizes: codes on each level, or one number for all levels; codes beyond it are refused. Without it what the file
            says, or the largest code of the whole file + 1 on each level.
        format: one of ``FORMATS``; empty to tell it from the file.
        unknown: "refuse" or "drop" items of the file that are not in ``item_ids``.

    The metadata says where the table came from; a folder's own is kept. Raises ``FileNotFoundError``, and
    ``ValueError`` that names file, item and what to do, for a file that is cut off, a missing level, a malformed or
    repeated entry, a code out of range, catalogue ids that the index lacks and ids that the catalogue lacks.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give an index file ({', '.join(FORMATS)}) or a saved table")
    if unknown not in ("refuse", "drop"):
        raise ValueError(f"unknown: expected 'refuse' or 'drop', got {unknown!r}")
    kind = format or guess_format(path)
    stated: tuple[int, ...] | None
    if kind == "folder":
        whole = SidTable.load(path)
        names, codes, stated, metadata = whole.item_ids.tolist(), whole.codes, whole.sizes, whole.metadata
    else:
        if kind not in FORMATS:
            raise ValueError(f"unknown index format {kind!r}; known: {', '.join(FORMATS)}")
        (names, codes), stated = FORMATS[kind](path)
        metadata = {"tokenizer": "index", "index": path.name, "format": kind, "items_in_index": len(names)}
    sizes = _sizes(path, names, codes, stated, sizes)
    if item_ids is None:
        wanted = names if kind == "folder" else index_order(names)
    else:
        wanted = [str(name) for name in item_ids]
        _check_catalogue(path, names, wanted, unknown)
    row = {name: number for number, name in enumerate(names)}
    rows = np.array([row[name] for name in wanted], np.int64)
    return SidTable(codes[rows], sizes, np.array(wanted, dtype=str), metadata)


def write_index(table: SidTable, path: str | Path, format: str = "") -> None:
    """Write ``table`` in one of ``FORMATS``, through a temporary file that is then renamed.

    An empty ``format`` follows the file's name: ``.json``, ``.csv`` or ``.parquet``. ``ValueError`` for other names.
    """
    path = Path(path)
    kind = format or {".json": "index_json", ".csv": "csv", ".parquet": "parquet"}.get(path.suffix, "")
    if kind not in FORMATS:
        raise ValueError(
            f"{path}: expected a name that ends in .json, .csv or .parquet, or format: {', '.join(FORMATS)}"
        )
    if kind == "index_json":
        content = _json_bytes(table, table.tokens(), list)
    elif kind == "openonerec" and path.suffix == ".parquet":
        content = _parquet_bytes({"pid": _pids(table), "sid": list(table.codes)}, {})
    elif kind == "openonerec":
        tokens = [
            [f"<s_{letter}_{code}>" for code in range(size)] for letter, size in zip(ascii_lowercase, table.sizes)
        ]
        content = _json_bytes(table, tokens, lambda row: f"<|sid_begin|>{''.join(row)}<|sid_end|>")
    else:
        columns = {"item_id": table.item_ids.tolist()}
        columns |= {f"level_{level}": table.codes[:, level] for level in range(table.levels)}
        stated = {"sizes": list(table.sizes), "content_hash": table.content_hash()}
        content = _parquet_bytes(columns, stated) if kind == "parquet" else _csv_bytes(columns)
    write_atomically(path, content)


def guess_format(path: Path) -> str:
    """The format of a file by its name and, where several share it, its first entry. ``ValueError`` for other names."""
    if path.is_dir():
        return "folder"
    if path.suffix == ".csv":
        return "csv"
    if path.suffix == ".parquet":
        return "openonerec" if open_parquet(path, ["pid"]).num_columns else "parquet"
    if path.suffix == ".json":
        return (
            "openonerec"
            if "<|sid_begin|>" in path.read_text(encoding="utf-8", errors="replace")[:4096]
            else "index_json"
        )
    raise ValueError(f"{path}: expected a name that ends in .json, .csv or .parquet, or format: {', '.join(FORMATS)}")


def index_order(names: list[str]) -> list[str]:
    """Names in numerical order if all are integers, else as given."""
    integers = all(re.fullmatch(r"-?[0-9]+", name) for name in names)
    return sorted(names, key=int) if integers else names


def _sizes(
    path: Path,
    names: list[str],
    codes: np.ndarray,
    stated: tuple[int, ...] | None,
    asked: Sequence[int] | int | None,
) -> tuple[int, ...]:
    """Codes on each level, at least as many as the codes need; see ``read_index``."""
    levels, largest = codes.shape[1], codes.max(axis=0)
    if asked is None:
        limit = stated or (MAX_CODES,) * levels
    else:
        limit = (int(asked),) * levels if isinstance(asked, (int, np.integer)) else tuple(int(size) for size in asked)
    if len(limit) != levels:
        raise ValueError(f"{path}: expected {len(limit)} levels, as sizes {limit} say, got {levels}")
    for level in range(levels):
        outside = np.flatnonzero((codes[:, level] >= limit[level]) | (codes[:, level] < 0))
        if len(outside):
            raise ValueError(
                f"{path}: item {names[outside[0]]!r} has code {codes[outside[0], level]} on level {level}, expected "
                f"one in [0, {limit[level]}); {len(outside)} items are out of range. Fetch the index again, or give "
                "its sizes"
            )
    return limit if asked is not None or stated else tuple(int(code) + 1 for code in largest)


def _check_catalogue(path: Path, names: list[str], wanted: list[str], unknown: str) -> None:
    """Raises ``ValueError`` where index and catalogue do not hold the same items."""
    held, asked = set(names), set(wanted)
    missing = [name for name in wanted if name not in held]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(wanted)} catalogue ids are not in the index, first {missing[:5]}; "
            "expected the index of this very catalogue"
        )
    extra = [name for name in names if name not in asked] if unknown == "refuse" else []
    if extra:
        raise ValueError(
            f"{path}: {len(extra)} of {len(names)} items are not in the catalogue, first {extra[:5]}; expected the "
            "index of this very catalogue, or unknown='drop' to leave them out"
        )


# Writing -------------------------------------------------------------------------------------------------------------


def _json_bytes(table: SidTable, tokens: list[list[str]], form: Callable[[list[str]], Any]) -> bytes:
    rows = {
        name: form([tokens[level][code] for level, code in enumerate(row)])
        for name, row in zip(table.item_ids.tolist(), table.codes.tolist())
    }
    return json.dumps(rows).encode()


def _pids(table: SidTable) -> list[Any]:
    """Ids as integers, as OpenOneRec has them, where nothing is lost by it."""
    names = table.item_ids.tolist()
    plain = all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", name) for name in names)
    return [int(name) for name in names] if plain else names


def _csv_bytes(columns: dict[str, Any]) -> bytes:
    import pandas as pd

    return pd.DataFrame(columns).to_csv(index=False, lineterminator="\n").encode()


def _parquet_bytes(columns: dict[str, Any], stated: dict[str, Any]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(columns)
    if stated:
        table = table.replace_schema_metadata({b"sidgym": json.dumps(stated).encode()})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()
