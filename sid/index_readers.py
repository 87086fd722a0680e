"""Readers of the index formats: a file to ids and codes, with an error that says what is wrong where.

What the formats are stands in ``index_formats``, which also compares an index with a catalogue. Left out: writing.
"""

import io
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np

from sidgym.sid.table import SidTable, read_json_object

TOKEN = re.compile(r"<([a-z])_(0|[1-9][0-9]{0,8})>")
"""A code as a token: level letter, code."""

SPAN = re.compile(r"<\|sid_begin\|>((?:<s_[a-z]_[0-9]+>)+)<\|sid_end\|>")
SPAN_TOKEN = re.compile(r"<s_([a-z]_[0-9]+)>")
"""OpenOneRec's SID in text, and one token of it."""

Rows = tuple[list[str], np.ndarray]
"""Item ids (N,) and codes (N, L) int64."""


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


def parse_span(text: Any, where: str) -> list[int]:
    """Codes of ``<|sid_begin|><s_a_12><s_b_3><|sid_end|>``; ``ValueError`` that starts with ``where``."""
    match = SPAN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{where}: expected a form such as <|sid_begin|><s_a_12><s_b_3><|sid_end|>, got {text!r}")
    return parse_tokens([f"<{token}>" for token in SPAN_TOKEN.findall(match[1])], where)


# Readers: path -> rows, and the sizes that the file states -----------------------------------------------------------


def read_index_json(path: Path) -> tuple[Rows, None]:
    return _read_rows(path, _json_rows(path), parse_tokens), None


def read_openonerec(path: Path) -> tuple[Rows, None]:
    if path.suffix != ".parquet":
        return _read_rows(path, _json_rows(path), parse_span), None
    table = open_parquet(path)
    column = next((name for name in ("sid", "codes") if name in table.column_names), "")
    if "pid" not in table.column_names or not column:
        raise ValueError(f"{path}: expected columns 'pid' and 'sid' or 'codes', got {', '.join(table.column_names)}")
    names = _names(path, table["pid"].to_pylist(), "pid")
    if str(table[column].type) in ("string", "large_string"):
        return _read_rows(path, dict(zip(names, table[column].to_pylist())), parse_span), None
    return (names, _list_codes(path, names, table[column])), None


def read_csv(path: Path) -> tuple[Rows, None]:
    import pandas as pd

    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        raise ValueError(f"{path}: the last line has no end, so the file may be cut off; if it is whole, end the line")
    try:
        with warnings.catch_warnings():
            # Where every row has more fields than the header, pandas cuts them off and warns.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, index_col=False)
    except pd.errors.ParserWarning as error:
        raise ValueError(
            f"{path}: the rows have more fields than the header; expected a column name for each field"
        ) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable CSV: {error}; the file may be cut off") from error
    levels = _level_columns(path, list(frame.columns))
    names = _names(path, frame["item_id"].tolist(), "item_id")
    cells = frame[levels]
    good = cells.apply(lambda column: column.str.fullmatch("0|[1-9][0-9]{0,8}").fillna(False).astype(bool)).to_numpy()
    if not good.all():
        row, level = np.argwhere(~good)[0]
        found = cells.iloc[row, level]
        problem = (
            f"no code on level {level}" if found in ("", None) or found != found else f"{found!r} on level {level}"
        )
        raise ValueError(f"{path}: item {names[row]!r} has {problem}; expected an integer from 0 on")
    return (names, cells.to_numpy().astype(np.int64)), None


def read_parquet(path: Path) -> tuple[Rows, tuple[int, ...] | None]:
    table = open_parquet(path)
    levels = _level_columns(path, table.column_names)
    names = _names(path, table["item_id"].to_pylist(), "item_id")
    columns = []
    for level in levels:
        column = table[level]
        if column.null_count or not str(column.type).lstrip("u").startswith("int"):
            what = f"{column.null_count} missing codes" if column.null_count else f"type {column.type}"
            raise ValueError(f"{path}: column {level!r} has {what}; expected an integer for every item")
        columns.append(column.to_numpy().astype(np.int64))
    codes = np.stack(columns, axis=1)
    own = (table.schema.metadata or {}).get(b"sidgym")
    if own is None:
        return (names, codes), None
    try:
        stated = json.loads(own)
        sizes, wanted = tuple(int(size) for size in stated["sizes"]), stated["content_hash"]
        found = SidTable(codes, sizes, np.array(names, dtype=str)).content_hash()
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: what the file says of itself is damaged ({error}); write it again") from error
    if found != wanted:
        raise ValueError(f"{path}: the codes are not those that the file was written with; write or fetch it again")
    return (names, codes), sizes


def _json_rows(path: Path) -> dict[str, Any]:
    """``item -> entry`` of a JSON object, each item with an id."""
    rows = read_json_object(path)
    _names(path, list(rows), "id")
    return rows


def _read_rows(path: Path, rows: dict[str, Any], parse: Callable[[Any, str], list[int]]) -> Rows:
    """Ids and codes of ``item -> entry``; every item must have as many levels as the first."""
    if not rows:
        raise ValueError(f"{path}: expected at least one item, got an empty index")
    parsed = {name: parse(entry, f"{path}: item {name!r}") for name, entry in rows.items()}
    levels = len(next(iter(parsed.values())))
    unequal = [name for name, row in parsed.items() if len(row) != levels]
    if unequal:
        raise ValueError(
            f"{path}: expected {levels} levels for every item as for the first, but {len(unequal)} items differ, "
            f"first {unequal[0]!r} with {len(parsed[unequal[0]])}"
        )
    return list(parsed), np.array(list(parsed.values()), dtype=np.int64)


def _list_codes(path: Path, names: list[str], column: Any) -> np.ndarray:
    """Codes (N, L) int64 of a column of lists of integers, all of one length."""
    import pyarrow.compute

    if "list" not in str(column.type) or "int" not in str(column.type):
        raise ValueError(f"{path}: expected lists of codes such as [12, 3, 201], got a column of {column.type}")
    lengths = pyarrow.compute.list_value_length(column).to_numpy().astype(np.float64)
    wrong = np.flatnonzero(~(lengths == lengths[0]) | (lengths == 0))
    if len(wrong):
        found = "none" if not lengths[wrong[0]] > 0 else f"{lengths[wrong[0]]:.0f}"
        raise ValueError(
            f"{path}: expected {lengths[0]:.0f} levels for every item as for the first, but {len(wrong)} items differ, "
            f"first {names[wrong[0]]!r} with {found}"
        )
    flat = pyarrow.compute.list_flatten(column)
    if flat.null_count:
        raise ValueError(f"{path}: {flat.null_count} codes are missing; expected an integer on every level of an item")
    return flat.to_numpy().astype(np.int64).reshape(len(names), -1)


def open_parquet(path: Path, columns: list[str] | None = None) -> Any:
    """A Parquet file as an Arrow table, of all columns or the given ones. ``ValueError`` for a file that is none."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path).read(columns)
    except (pyarrow.ArrowException, OSError) as error:  # both, depending on which part is damaged
        raise ValueError(f"{path}: not a readable Parquet file, perhaps truncated ({error}); fetch it again") from error


def _level_columns(path: Path, found: list[str]) -> list[str]:
    """``level_0`` to ``level_(L-1)``, all of them there and nothing else beside ``item_id``."""
    count = sum(name.startswith("level_") for name in found)
    levels = [f"level_{level}" for level in range(count)]
    if not count or sorted(found) != sorted(["item_id", *levels]):
        raise ValueError(
            f"{path}: expected columns item_id, level_0, level_1 ... without a gap, got {', '.join(found)}"
        )
    return levels


def _names(path: Path, values: list[Any], column: str) -> list[str]:
    """Ids as text, none of them missing or repeated."""
    if not values:
        raise ValueError(f"{path}: expected at least one item, got an empty index")
    names = ["" if value is None or value != value else str(value) for value in values]
    seen: set[str] = set()
    for number, name in enumerate(names):
        if not name:
            raise ValueError(f"{path}: row {number + 1} has no {column}; the file may be cut off")
        if name in seen:
            raise ValueError(f"{path}: item {name!r} stands there more than once; keep one of its rows")
        seen.add(name)
    return names
