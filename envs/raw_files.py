"""Raw files in blocks of whole lines, plain or gzipped, and one pass over them with its malformed rows counted.

A fault in a row never ends the reading by itself: the row is left out, counted, and the first few are shown;
``Reading.check`` refuses a file with too many. A file that is cut off is refused. Memory is that of a block, whatever
the size of the file. Left out: columns of blocks (``raw_columns``).
"""

import ast
import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

BLOCK = 1 << 20
LONGEST_LINE = 1 << 26
SHOWN = 3


class Reading:
    """One pass over raw files: rows seen, malformed rows with the first few in words, and what a reader counts."""

    def __init__(self) -> None:
        self.rows = 0
        self.malformed = 0
        self.shown: list[str] = []
        self.counts: Counter[str] = Counter()

    def bad(self, where: str, reason: str, row: Any, rows: int = 1) -> None:
        """Count a malformed row, or ``rows`` lines that a fault in one of them made unreadable."""
        self.malformed += rows
        if len(self.shown) < SHOWN:
            text = row.decode("utf-8", "replace") if isinstance(row, bytes) else str(row)
            self.shown.append(f"{where}: {reason}: {text if len(text) <= 100 else text[:97] + '...'}")

    def check(self, what: str, limit: float) -> None:
        """Raises ``ValueError`` when more than the share ``limit`` of the rows is malformed, or there is no row."""
        if not self.rows:
            raise ValueError(f"{what} is empty; expected at least one row")
        if self.malformed > limit * self.rows:
            raise ValueError(
                f"{self.described(what)}. That is more than the share data.max_malformed = {limit:g} allows; check "
                "that this is the format expected, or raise the setting"
            )

    def described(self, what: str) -> str:
        """How many rows there were and how many of them were left out, the first few shown."""
        if not self.malformed:
            return f"{what}: {self.rows} rows, 0 malformed"
        return f"{what}: {self.rows} rows, {self.malformed} malformed and left out, such as " + "; ".join(self.shown)


def find_files(folder: Path, patterns: Sequence[str], expected: str, but: str = "") -> list[Path]:
    """Files of ``folder`` that match one of ``patterns``, sorted, without those whose name begins with ``but``.

    Raises ``FileNotFoundError`` where there is none.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected one with {expected}")
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    found = [path for path in found if path.is_file() and not (but and path.name.startswith(but))]
    if not found:
        raise FileNotFoundError(f"{folder}: no {' or '.join(patterns)}; expected a folder with {expected}")
    return found


def total_size(paths: Sequence[Path]) -> int:
    """Bytes of the files as they would be read: a gzipped one counts ten times its size."""
    return sum(path.stat().st_size * (10 if path.suffix == ".gz" else 1) for path in paths)


def open_bytes(path: Path) -> BinaryIO:
    """A plain or gzipped file."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def blocks(path: Path, size: int = BLOCK) -> Iterator[tuple[int, bytes]]:
    """The file in whole lines: number of the first line, from 1, and about ``size`` bytes.

    Raises ``ValueError`` for an archive that is cut off, and for a line that does not end.
    """
    first, rest = 1, b""
    with open_bytes(path) as file:
        while True:
            try:
                part = file.read(size)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(
                    f"{path}: not readable behind line {first - 1}: {error}; the file may be cut off"
                ) from error
            block, end, tail = (rest + part).rpartition(b"\n")
            if not part:
                break
            rest = tail
            if len(rest) > LONGEST_LINE:
                raise ValueError(
                    f"{path}: line {first} has no end within {LONGEST_LINE} bytes; expected one row a line"
                )
            if end:
                yield first, block + end
                first += block.count(b"\n") + 1
    if rest:
        yield first, rest + b"\n"


def parse_object(line: bytes) -> dict[str, Any]:
    """A line as JSON, else as a Python literal (files of 2014 are printed dictionaries). Raises ``ValueError``."""
    text = line.decode("utf-8")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("brackets inside brackets, too deep to read") from None
    except json.JSONDecodeError as error:
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"not valid JSON at column {error.colno}: {error.msg}") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return value


def json_objects(path: Path, reading: Reading) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line, for files with one line an item; malformed lines are counted."""
    for first, block in blocks(path):
        for number, line in enumerate(block.split(b"\n")[:-1], start=first):
            if not line.strip():
                continue
            reading.rows += 1
            try:
                yield number, parse_object(line)
            except ValueError as error:
                reading.bad(f"{path.name} line {number}", reason_of(error), line)


def reason_of(error: Exception) -> str:
    """What was wrong with a line."""
    return "not UTF-8 text" if isinstance(error, UnicodeError) else str(error)


def csv_header(path: Path) -> list[str]:
    """The names in the first line of a comma-separated file."""
    for _, block in blocks(path):
        line = block.partition(b"\n")[0].decode("utf-8-sig", "replace").strip("\r")
        try:
            return [name.strip() for name in next(csv.reader([line]), [])]
        except csv.Error as error:
            raise ValueError(f"{path} line 1: expected names between commas: {error}") from error
    return []


class _Lines:
    """The lines of a file for ``csv.reader``, which takes no more of them than a row needs."""

    def __init__(self, path: Path) -> None:
        self.broken = False  # a line taken since this was last reset is not UTF-8
        self.ended = False
        self.first = b""  # the line taken first since ``begin``
        self._lines = (line for _, block in blocks(path) for line in block.split(b"\n")[:-1])
        self._begun = True

    def __iter__(self) -> Iterator[str]:
        for number, line in enumerate(self._lines):
            if self._begun:
                self.first, self._begun = line, False
            try:
                yield line.decode("utf-8" if number else "utf-8-sig") + "\n"
            except UnicodeDecodeError:
                self.broken = True
                yield line.decode("utf-8", "replace") + "\n"
        self.ended = True

    def begin(self) -> None:
        """A row begins here."""
        self.broken, self._begun = False, True


def csv_items(path: Path, columns: Sequence[str], reading: Reading) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and named columns of every row of a comma-separated file with one row an item.

    Quoted fields may hold line ends; of a malformed row every line is counted. Raises ``ValueError`` where a column is
    missing or the file ends inside quotes: they were opened in the row that is named, and what is behind is lost.
    """
    header = csv_header(path)
    missing = [name for name in columns if name not in header]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}; the columns present are {', '.join(header)}")
    places = [header.index(name) for name in columns]
    lines = _Lines(path)
    rows = csv.reader(lines, strict=True)
    while True:
        lines.begin()
        number, row, reason = rows.line_num + 1, None, ""
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if lines.ended:
                raise ValueError(
                    f"{path}: line {number} opens quotes that do not end before the file does; close them, or take the "
                    "file again if it was cut off"
                ) from error
            reason = str(error)
        if number == 1 or row == []:
            continue
        if lines.broken:
            reason = "not UTF-8 text"
        elif row is not None and len(row) != len(header):
            reason = f"{len(row)} fields instead of {len(header)}"
        if reason or row is None:
            taken = rows.line_num + 1 - number
            reading.rows += taken
            reading.bad(f"{path.name} line {number}", reason, lines.first, taken)
            continue
        reading.rows += 1
        yield number, {name: row[place] for name, place in zip(columns, places)}
