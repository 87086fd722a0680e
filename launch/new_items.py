"""Reader of new items: JSON lines or CSV with ``id``, ``title``, ``description`` and ``categories``.

Left out: other columns, which are passed over.
"""

import contextlib
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.envs.loaders_amazon import category_path, plain_text
from sidgym.envs.records import Catalogue

COLUMNS = ("id", "title", "description", "categories")


def read_new_items(path: Path) -> Catalogue:
    """The items of a ``.jsonl`` file (one object a line) or a ``.csv`` file (a header and one row an item).

    ``id`` is needed, and a title or a description; ``categories`` is the path from the root, a list or names joined by
    commas (a comma before a space belongs to a name). Raises ``FileNotFoundError``, and ``ValueError`` that names file,
    line and what to do: for what is no JSON or CSV, an empty file, an item without id or text, or an id twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a .jsonl or .csv file with {', '.join(COLUMNS)}")
    readers = {".jsonl": _json_lines, ".csv": _csv_rows}
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected a name that ends in .jsonl or .csv, got {path.name!r}")
    seen: dict[str, int] = {}
    rows = []
    try:
        for line, row in readers[path.suffix](path):
            name = "" if row.get("id") is None else str(row["id"]).strip()
            title, text = plain_text(row.get("title")), plain_text(row.get("description"))
            if not name:
                raise ValueError(f"{path}: line {line} has no id; every item needs one")
            if name in seen:
                raise ValueError(f"{path}: line {line}: item {name!r} stands in line {seen[name]} already; keep one")
            if not title and not text:
                raise ValueError(f"{path}: line {line}: item {name!r} has neither title nor description; give it one")
            seen[name] = line
            rows.append((title, text, _categories(row.get("categories"))))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    if not rows:
        raise ValueError(f"{path}: expected at least one item, got none")
    titles, texts, categories = zip(*rows)
    return Catalogue(np.array(list(seen), dtype=str), titles, texts, categories)


def _categories(value: Any) -> tuple[str, ...]:
    """A category path; a CSV may hold a list as JSON writes it."""
    if isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(json.JSONDecodeError):  # a name may begin so
            value = json.loads(value)
    return category_path(value)


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is not JSON ({error}); expected one object a line") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}: line {number}: expected an object with {', '.join(COLUMNS)}, got {row!r}")
            yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            found = reader.fieldnames or []
            if "id" not in found:
                raise ValueError(f"{path}: no column 'id'; expected {', '.join(COLUMNS)}, got {', '.join(found)}")
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"{path}: line {reader.line_num} has not as many fields as the header; put texts with commas "
                        "between quotes"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(f"{path}: line {reader.line_num}: not a readable CSV ({error})") from error
