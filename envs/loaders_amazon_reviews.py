"""Reader of the raw Amazon review files of 2014, 2018 and 2023: reviews and metadata as JSON lines, plain or gzipped.

The reviews tell the year by their fields: ``reviewerID``, ``asin``, ``unixReviewTime`` (2014, 2018) or ``user_id``,
``parent_asin``, ``timestamp`` in milliseconds (2023, whose items are the parents of their variants). Every review is an
event; ``min_rating`` leaves the low ones out.

MiniOneRec's released "Industrial and Scientific" (``..._5_2016-10-2018-11``) is ``name = "amazon_reviews"``,
``title_words = 20``, ``start = "2016-10"``, ``end = "2018-11"``, ``min_events = 5``, ``history = 10``,
``split = "chronological"``, ``every_label = true``, ``valid_share = test_share = 0.1``; ``rl_share`` is then cut off
the end of its training part. What is known to differ from the code behind its files:

- Times. The start 1996-10 stands in the paper's text and in one of its scripts (which ends at 2018-10); the script that
  names the released files begins at 2017-10 and goes back a year at a time until 3 000 items are left. Its window is
  in the clock of the machine that ran it and takes in the moment of its end, which is left out here.
- Cuts. Parts are floor(0.8 n) and floor(0.9 n) of the n windows in both, but equal times are divided there by their
  place in the file, and kept together here: parts differ by the windows of the days at the cuts.
- Titles. It counts what is between single spaces in a title in which only ``&quot;`` and ``&amp;`` are replaced, asks
  for two characters, takes "<span id" alone for junk, and drops an item if one of its lines in the metadata fails. Here
  markup goes first, words are counted, ``JUNK`` is dropped, and an item stays if one of its lines passes.

Left out: review texts, and the files that hold ratings alone.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.envs.config import DataConfig
from sidgym.envs.filters import Ledger, keeps_title
from sidgym.envs.loaders_amazon import plain_text
from sidgym.envs.raw_columns import json_blocks
from sidgym.envs.raw_files import Reading, find_files, json_objects, total_size
from sidgym.envs.records import Catalogue, Interactions
from sidgym.envs.streaming import Events, keys_of_text, keys_of_titled, read_log

PATTERNS = ("*.json", "*.jsonl", "*.json.gz", "*.jsonl.gz")
EXPECTED = "one file of reviews and, where there is text, one meta_* file, as JSON lines (.json, .jsonl, also .gz)"
YEARS = (
    ("reviewerID", "asin", "unixReviewTime", "overall", 1.0),
    ("user_id", "parent_asin", "timestamp", "rating", 1e3),
)
"""Fields of user, item, time and rating, and how many units of time are a second."""

TRIED = 1000
"""Readable lines that are looked at for one that tells the year."""

TAG = re.compile(r"</?[a-zA-Z][^>]*>")
JUNK = re.compile(r"<span|getTime")
"""Titles of 2018 that hold a piece of the shop's page instead of a title."""


def _one(folder: Path, meta: bool) -> Path | None:
    paths = [p for p in find_files(folder, PATTERNS, EXPECTED) if p.name.startswith("meta_") is meta]
    if len(paths) > 1:
        kind = "metadata" if meta else "reviews"
        raise ValueError(f"{folder}: expected one file of {kind}, found {', '.join(p.name for p in paths)}; keep one")
    return paths[0] if paths else None


def _fields(path: Path) -> tuple[str, str, str, str, float]:
    """Which of ``YEARS`` the file has, by the first readable lines."""
    seen: list[str] = []
    for _, entry in islice(json_objects(path, Reading()), TRIED):
        seen = seen or list(entry)
        found = next((year for year in YEARS if all(name in entry for name in year[:3])), None)
        if found:
            return found
    wanted = " or ".join(", ".join(year[:3]) for year in YEARS)
    raise ValueError(
        f"{path}: expected reviews with {wanted}; none of the first {TRIED} readable lines has them; the first has "
        f"{', '.join(seen) or 'none'}"
    )


def _events(path: Path, config: DataConfig, reading: Reading) -> Iterator[Events]:
    user, item, time, rating, unit = _fields(path)
    numbers = [time, rating] if config.min_rating > 0 else [time]
    for columns in json_blocks(path, [user, item], numbers, reading):
        who, user_keys, _ = keys_of_text(columns[user])
        code, items, names = keys_of_text(columns[item])
        rated = columns[rating] if config.min_rating > 0 else None
        yield Events(user_keys[who], code, items, names, time=columns[time] / unit, rating=rated)


def clean_text(value: Any) -> str:
    """A text of the metadata, or a list of them, as one line: tags go first, then entities become characters."""
    parts = value if isinstance(value, list | tuple) else [value]
    text = html.unescape(TAG.sub(" ", " ".join(str(part) for part in parts if part)))
    # Pairs of surrogates become one character, half a pair the sign for what cannot be read.
    return " ".join(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").split())


def title_of(entry: dict[str, Any]) -> str:
    """The title, "" for a piece of the shop's page."""
    title = entry.get("title")
    return "" if not isinstance(title, str) or JUNK.search(title) else clean_text(title)


def description_of(entry: dict[str, Any]) -> str:
    """The description, else the list of features; either may be the string of a Python list."""
    return clean_text(plain_text(entry.get("description"))) or clean_text(
        plain_text(entry.get("features") or entry.get("feature"))
    )


def path_of(entry: dict[str, Any]) -> tuple[str, ...]:
    """The first category path: ``categories`` (2014: a list of paths), ``category`` (2018) or the main category."""
    main = entry.get("main_category") or entry.get("main_cat")
    parts = entry.get("categories") or entry.get("category") or [main]
    parts = parts if isinstance(parts, list) else [parts]
    parts = parts[0] if parts and isinstance(parts[0], list) else parts
    return tuple(text for part in parts if "</" not in str(part) and (text := clean_text(part)))


def price_of(entry: dict[str, Any]) -> float:
    """The price, NaN where there is none or a range."""
    text = str(entry.get("price", "")).strip().lstrip("$").replace(",", "")
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else float("nan")


def _name_of(entry: dict[str, Any]) -> str:
    name = str(entry.get("parent_asin") or entry.get("asin") or "")
    return "" if any("\ud800" <= letter <= "\udfff" for letter in name) else name


def _entries(path: Path, reading: Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and entry of every item of the metadata that has a name."""
    for number, entry in json_objects(path, reading):
        name = _name_of(entry)
        if name:
            yield name, entry
        else:
            reading.bad(f"{path.name} line {number}", "no 'asin' or 'parent_asin'", entry)


def _allowed(path: Path | None, config: DataConfig) -> np.ndarray | None:
    """Keys of the items of which a line has a title that ``title_words`` lets through, sorted."""
    if not config.title_words:
        return None
    if path is None:
        raise ValueError(f"data.title_words reads titles, and {config.path} holds no meta_* file; set it to 0")
    reading = Reading()
    entries = _entries(path, reading)
    keys = keys_of_titled(name for name, entry in entries if keeps_title(title_of(entry), config.title_words))
    reading.check(path.name, config.max_malformed)
    return keys


def _described(path: Path, catalogue: Catalogue, config: DataConfig, ledger: Ledger) -> Catalogue:
    """The catalogue with what the metadata say of its items: on each its first line, or the first whose title stays."""
    row_of = {name: row for row, name in enumerate(catalogue.ids.tolist())}
    titles, texts = [""] * len(catalogue), [""] * len(catalogue)
    categories: list[tuple[str, ...]] = [()] * len(catalogue)
    price, known = np.full(len(catalogue), np.nan, dtype=np.float32), np.zeros(len(catalogue), dtype=bool)
    reading = Reading()
    for name, entry in _entries(path, reading):
        row = row_of.get(name)
        if row is None or (known[row] and keeps_title(titles[row], config.title_words)):
            continue
        title = title_of(entry)
        if known[row] and not keeps_title(title, config.title_words):
            continue
        known[row] = True
        titles[row], texts[row], categories[row] = title, description_of(entry), path_of(entry)
        price[row] = price_of(entry)
    reading.check(path.name, config.max_malformed)
    ledger.note(reading.described(path.name))
    blank = sum(not title and not text for title, text in zip(titles, texts))
    ledger.note(
        f"{blank} of {len(catalogue)} items have neither title nor description; {(~known).sum()} are not listed"
    )
    return replace(
        catalogue,
        titles=tuple(titles),
        descriptions=tuple(texts),
        categories=tuple(categories),
        price=price if np.isfinite(price).any() else None,
    )


def read_amazon_reviews(folder: Path, config: DataConfig, ledger: Ledger) -> tuple[Catalogue, Interactions]:
    """Catalogue and filtered log of a folder with one file of reviews and at most one ``meta_*`` file.

    Raises ``FileNotFoundError`` or ``ValueError`` that names the file and what is wrong with it.
    """
    reviews, meta = _one(folder, meta=False), _one(folder, meta=True)
    if reviews is None:
        raise FileNotFoundError(f"{folder}: no file of reviews; expected a folder with {EXPECTED}")
    allowed = _allowed(meta, config)
    catalogue, log = read_log(
        lambda reading: _events(reviews, config, reading), reviews.name, total_size([reviews]), config, ledger, allowed
    )
    if meta is None:
        ledger.note("no item text: text embedders and text tasks cannot be used; give a ready-made index of SIDs")
        return catalogue, log
    return _described(meta, catalogue, config, ledger), log
