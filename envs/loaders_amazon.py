"""Reader of Amazon reviews in the LC-Rec layout: ``*.inter.json`` (user -> items) and ``*.item.json`` (item -> text).

Yields the catalogue and the log, nothing else: k-core, time windows and splits are shared functions elsewhere. The
small readers of JSON, item text and item lists below also serve the other loaders.
"""

import ast
import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sidgym.envs.records import Catalogue, Interactions

ORDER_ONLY = "order only: the files hold no timestamps, so a chronological split or a time window is not possible"


def find_optional(folder: Path, pattern: str, expected: str) -> Path | None:
    """The one file in ``folder`` that matches ``pattern``, ``None`` where there is none.

    Raises ``FileNotFoundError`` where the folder is missing, ``ValueError`` when several files match.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected one with {expected}")
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        raise ValueError(
            f"{folder}: expected one {pattern}, found {', '.join(p.name for p in found)}; keep one of them"
        )
    return found[0] if found else None


def find_file(folder: Path, pattern: str, expected: str) -> Path:
    """Like ``find_optional``, but a missing file raises ``FileNotFoundError`` that says which files were expected."""
    found = find_optional(folder, pattern, expected)
    if found is None:
        raise FileNotFoundError(f"{folder}: no {pattern}; expected a folder with {expected}")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file whose top level is an object; a broken file is named with the place where reading stopped."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno} (character {error.pos})"
        raise ValueError(f"{path}: not valid JSON at {where}: {error.msg}; the file may be cut off") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object at the top level, got {type(value).__name__}")
    return value


def plain_text(value: Any) -> str:
    """A text field as one line. Lists, also those written as the string of a Python list, are joined. Half a pair of
    surrogates, which JSON can spell, becomes the sign for what cannot be read."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        with contextlib.suppress(ValueError, SyntaxError):  # text may merely look like a list
            value = ast.literal_eval(value)
    parts = value if isinstance(value, list | tuple) else [value]
    text = " ".join(str(part) for part in parts if part)
    return re.sub(r"\s+", " ", text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")).strip()


def category_path(value: Any) -> tuple[str, ...]:
    """The category path, root first: a list, or names joined by commas (a comma before a space belongs to a name)."""
    parts = value if isinstance(value, list | tuple) else re.split(r",(?! )", str(value or ""))
    return tuple(text for text in (plain_text(part) for part in parts) if text)


def by_number(ids: Sequence[str]) -> list[str]:
    """Ids in numeric order where all are numbers, else in text order."""
    return sorted(ids, key=int) if all(re.fullmatch(r"[0-9]+", name) for name in ids) else sorted(ids)


def catalogue_from_items(path: Path, table: Mapping[str, Any], titles: Mapping[str, str] | None = None) -> Catalogue:
    """Catalogue of an ``item.json`` table; ``titles`` stand in where an item has no title of its own.

    Raises ``ValueError`` naming the item that has neither title nor description.
    """
    ids = by_number(list(table))
    rows = []
    for name in ids:
        entry = table[name]
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: item {name!r}: expected an object with a title, got {type(entry).__name__}")
        title = plain_text(entry.get("title")) or (titles or {}).get(name, "")
        text = plain_text(entry.get("description"))
        if not title and not text:
            raise ValueError(f"{path}: item {name!r} has neither title nor description; give it one of them")
        rows.append((title, text, category_path(entry.get("categories"))))
    return Catalogue(
        ids=np.array(ids, dtype=str),
        titles=tuple(row[0] for row in rows),
        descriptions=tuple(row[1] for row in rows),
        categories=tuple(row[2] for row in rows),
    )


def log_from_lists(path: Path, users: Sequence[str], lists: Sequence[Sequence[Any]], ids: np.ndarray) -> Interactions:
    """Item names in order, one list a user, as a log; user ``u`` of the log is ``users[u]``.

    Raises ``ValueError`` for an empty log and for an item that is not among ``ids`` (N,), naming user and item.
    """
    lengths = np.array([len(names) for names in lists], dtype=np.int64)
    if lengths.sum() == 0:
        raise ValueError(f"{path}: the log is empty; expected at least one user with one item")
    names = [str(name) for row in lists for name in row]
    item = pd.Index(ids.astype(object)).get_indexer(pd.Index(names, dtype=object)).astype(np.int64)
    user = np.repeat(np.arange(len(lists), dtype=np.int64), lengths)
    if (item < 0).any():
        row = int(np.argmax(item < 0))
        raise ValueError(
            f"{path}: user {users[user[row]]!r} has item {names[row]!r}, which is not among the catalogue's {len(ids)} "
            "items; add the item to item.json or remove it from the history"
        )
    order = np.arange(len(item)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return Interactions(user=user, item=item, order=order)


def read_amazon(folder: Path) -> tuple[Catalogue, Interactions, tuple[str, ...]]:
    """Catalogue, log and notes of a folder with ``*.inter.json`` and, where there is text, ``*.item.json``.

    ``inter.json`` maps a user to item ids, oldest first; ``item.json`` maps an item id to ``title``, ``description``
    and ``categories``. Raises ``FileNotFoundError`` or ``ValueError`` that names the file and what is wrong with it.
    """
    expected = "*.inter.json (user -> item ids, oldest first) and optionally *.item.json (item -> title, description)"
    log_path = find_file(folder, "*.inter.json", expected)
    item_path = find_optional(folder, "*.item.json", expected)
    log = read_json(log_path)
    for user, names in log.items():
        if not isinstance(names, list):
            raise ValueError(f"{log_path}: user {user!r}: expected a list of item ids, got {type(names).__name__}")
    notes = [ORDER_ONLY]
    if item_path is not None:
        catalogue = catalogue_from_items(item_path, read_json(item_path))
    else:
        ids = by_number(list({str(name) for names in log.values() for name in names}))
        blank = ("",) * len(ids)
        catalogue = Catalogue(np.array(ids, dtype=str), blank, blank, ((),) * len(ids))
        notes.append("no item text: text embedders and text tasks cannot be used; give a ready-made index of SIDs")
    users = [user for user, names in log.items() if names]
    interactions = log_from_lists(log_path, users, [log[user] for user in users], catalogue.ids)
    return catalogue, interactions, tuple(notes)
