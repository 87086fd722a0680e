"""Blocks of raw files as columns: JSON lines and delimited text.

A block is parsed by Arrow at once. One with a fault is parsed in pieces, these in pieces again, and only the smallest
with a fault are gone through line by line, to say which line it is and why. Where one row of a thousand is malformed, a
file still takes about three (JSON lines) to twelve times (sixteen columns of text) as long as a sound one. Left out:
quoted fields that hold line ends in ``csv_blocks`` (logs have none).
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.envs.raw_files import Reading, blocks, parse_object, reason_of

PIECES = 16
"""Pieces of a block with a fault."""

SMALLEST = 1 << 13
"""Bytes of a piece that is not divided further."""

UNIT = "\x1f"
"""Arrow's fields end in one character; this one stands in for longer delimiters."""

Columns = dict[str, Any]
"""Columns by name: text as Arrow string arrays, numbers as float64 arrays, all of one length."""


def json_blocks(path: Path, text: Sequence[str], numbers: Sequence[str], reading: Reading) -> Iterator[Columns]:
    """The named fields of a file of JSON lines; rows without one of them, or with another kind of value, are malformed.

    Args:
        path: plain or gzipped file.
        text: fields that must hold text that is not empty.
        numbers: fields that must hold a finite number, or text that spells one.
        reading: counts the rows.
    """
    import pyarrow as pa
    from pyarrow import json as arrow_json

    schema = pa.schema([*((name, pa.string()) for name in text), *((name, pa.float64()) for name in numbers)])
    options = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")

    def at_once(block: bytes) -> Columns | None:
        try:
            table = arrow_json.read_json(
                pa.BufferReader(block),
                read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(block) + 1),
                parse_options=options,
            )
            table.validate(full=True)
        except pa.ArrowInvalid:
            return None
        return _sound(table, text, numbers) if table.num_rows == block.count(b"\n") else None

    def by_line(first: int, piece: bytes) -> Columns:
        return _line_by_line(path, first, piece, parse_object, text, numbers, reading)

    for first, block in blocks(path):
        yield _parsed(first, block, at_once, by_line, reading)


def _parsed(
    first: int, block: bytes, at_once: Callable[[bytes], Columns | None], by_line: Callable[[int, bytes], Columns],
    reading: Reading,
) -> Columns:  # fmt: skip
    """The columns of a block: at once where that gives some, else of its pieces, in the same order."""
    columns = at_once(block) if block.strip() else None
    if columns is not None:
        reading.rows += block.count(b"\n")
        return columns
    step = max(len(block) // PIECES, SMALLEST)
    parts, start = [], 0
    while start < len(block):
        stop = block.find(b"\n", min(start + step, len(block)) - 1) + 1
        piece = block[start:stop]
        whole = len(piece) == len(block)
        parts.append(by_line(first, piece) if whole else _parsed(first, piece, at_once, by_line, reading))
        first, start = first + piece.count(b"\n"), stop
    return _joined(parts)


def _joined(parts: Sequence[Columns]) -> Columns:
    import pyarrow as pa

    return {
        name: np.concatenate([part[name] for part in parts])
        if isinstance(value, np.ndarray)
        else pa.concat_arrays([part[name] for part in parts])
        for name, value in parts[0].items()
    }


def _sound(table: Any, text: Sequence[str], numbers: Sequence[str]) -> Columns | None:
    """The columns of a table in which no value is missing, empty or infinite; else ``None``."""
    import pyarrow.compute as pc

    if any(table.column(name).null_count for name in (*text, *numbers)):
        return None
    columns: Columns = {name: table.column(name).combine_chunks() for name in text}
    columns |= {name: table.column(name).to_numpy() for name in numbers}
    if any(len(columns[name]) and pc.min(pc.binary_length(columns[name])).as_py() == 0 for name in text):
        return None
    return columns if all(np.isfinite(columns[name]).all() for name in numbers) else None


def _line_by_line(
    path: Path, first: int, block: bytes, parse: Callable[[bytes], Mapping[str, Any]], text: Sequence[str],
    numbers: Sequence[str], reading: Reading,
) -> Columns:  # fmt: skip
    """A piece with a fault: the lines that ``parse`` and the kinds of value let through; the others are counted."""
    import pyarrow as pa

    values: dict[str, list[Any]] = {name: [] for name in (*text, *numbers)}
    for number, line in enumerate(block.split(b"\n")[:-1], start=first):
        if not line.strip():
            continue
        reading.rows += 1
        try:
            entry = parse(line)
            row = [_text(entry, name) for name in text] + [_number(entry, name) for name in numbers]
        except (ValueError, csv.Error) as error:
            reading.bad(f"{path.name} line {number}", reason_of(error), line)
            continue
        for name, value in zip(values, row):
            values[name].append(value)
    columns: Columns = {name: pa.array(values[name], pa.string()) for name in text}
    return columns | {name: np.array(values[name], dtype=np.float64) for name in numbers}


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"no text in {name!r}" if name in entry else f"no {name!r}")
    text = str(value)
    text.encode("utf-8")  # refuses half a pair of surrogates, which JSON can spell
    return text


def _number(entry: Mapping[str, Any], name: str) -> float:
    value = entry.get(name)
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else np.nan
    except (ValueError, OverflowError):
        number = np.nan
    if not np.isfinite(number):
        raise ValueError(f"no number in {name!r}" if name in entry else f"no {name!r}")
    return number


def csv_blocks(
    path: Path, names: Sequence[str], text: Sequence[str], numbers: Sequence[str], reading: Reading,
    delimiter: str = ",", header: bool = True,
) -> Iterator[Columns]:  # fmt: skip
    """The named columns of a delimited file, as ``json_blocks`` gives them.

    Args:
        path: plain or gzipped file.
        names: all columns of the file in order.
        text: columns that must hold text that is not empty.
        numbers: columns that must hold finite numbers.
        reading: counts the rows; one with another number of fields is malformed too.
        delimiter: what stands between fields; more than one character only where no field holds quotes.
        header: whether the first line holds names.
    """

    def at_once(block: bytes) -> Columns | None:
        return _csv_table(block, names, text, numbers, delimiter)

    def by_line(first: int, piece: bytes) -> Columns:
        return _csv_lines(path, first, piece, names, text, numbers, reading, delimiter)

    for first, block in blocks(path):
        if header and first == 1:
            first, block = 2, block.partition(b"\n")[2]
        if not block.strip():
            continue
        yield _parsed(first, block, at_once, by_line, reading)


def _csv_table(
    block: bytes, names: Sequence[str], text: Sequence[str], numbers: Sequence[str], delimiter: str
) -> Columns | None:
    """A block without a fault, ``None`` for any other: then Arrow's rows may not even be the lines."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    if len(delimiter) == 1 and block.count(b'"') % 2:
        return None  # Arrow would take quotes that are open at the end for closed
    one = delimiter if len(delimiter) == 1 else UNIT
    types = {name: pa.string() for name in text} | {name: pa.float64() for name in numbers}
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(block if one == delimiter else block.replace(delimiter.encode(), one.encode())),
            read_options=arrow_csv.ReadOptions(use_threads=False, column_names=list(names), block_size=len(block) + 1),
            parse_options=arrow_csv.ParseOptions(delimiter=one, quote_char='"' if one == delimiter else False),
            convert_options=arrow_csv.ConvertOptions(
                column_types=types, include_columns=list(types), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    return _sound(table, text, numbers) if table.num_rows == block.count(b"\n") else None


def _csv_lines(
    path: Path, first: int, block: bytes, names: Sequence[str], text: Sequence[str], numbers: Sequence[str],
    reading: Reading, delimiter: str,
) -> Columns:  # fmt: skip
    """A piece with a fault, line by line."""

    def parsed(line: bytes) -> dict[str, str]:
        row = line.decode("utf-8").rstrip("\r")
        parts = next(csv.reader([row], strict=True)) if delimiter == "," else row.split(delimiter)
        if len(parts) != len(names):
            raise ValueError(f"{len(parts)} fields instead of {len(names)}")
        return dict(zip(names, parts))

    return _line_by_line(path, first, block, parsed, text, numbers, reading)
