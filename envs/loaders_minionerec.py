"""Reader of MiniOneRec's release format: one CSV row an event, with the history before it cut at a fixed length.

The release holds prompts, not a log. The log is rebuilt by chaining the rows of each user: a row's history must
continue what is known so far, and its item is the next event. What was before the first row's cut is lost, and so are
users without a row (the training CSV is often not published); the notes say how many.
"""

import json
from pathlib import Path

import pandas as pd

from sidgym.envs.loaders_amazon import (
    ORDER_ONLY,
    catalogue_from_items,
    find_file,
    find_optional,
    log_from_lists,
    read_json,
)
from sidgym.envs.records import Catalogue, Interactions

COLUMNS = ("user_id", "history_item_id", "item_id")
EXPECTED = "*.valid.csv, *.test.csv, *.item.json, *.info.txt and optionally *.train.csv"


def read_rows(path: Path) -> pd.DataFrame:
    """The rows of one CSV: ``user_id`` and ``item_id`` as text, ``history_item_id`` as lists of text.

    Raises ``ValueError`` naming a column that is missing and those present, or the row that cannot be read.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path}: not a readable CSV: {error}; the file may be cut off") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}; the columns present are {', '.join(table.columns)}")
    empty = table[["user_id", "item_id"]].isin([""]) | table[["user_id", "item_id"]].isna()
    if empty.any(axis=None):
        row = int(empty.any(axis=1).to_numpy().argmax())
        raise ValueError(f"{path}: row {row + 1} has no {empty.columns[empty.iloc[row]][0]}; the file may be cut off")
    histories = []
    for row, text in enumerate(table["history_item_id"]):
        try:
            history = json.loads(text)
        except (json.JSONDecodeError, TypeError):  # TypeError: a row that ends early has no text here
            history = None
        if not isinstance(history, list):
            raise ValueError(f"{path}: row {row + 1}: history_item_id should be a list such as [3, 17], got {text!r}")
        histories.append([str(name) for name in history])
    return table.loc[:, list(COLUMNS)].assign(history_item_id=histories)


def read_info(path: Path) -> dict[str, str]:
    """Item id -> title from ``info.txt``, whose lines hold SID, title and item id between tabs."""
    titles = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split("\t")
        if len(fields) != 3:
            raise ValueError(f"{path}: line {number}: expected SID, title and item id between tabs, got {line!r}")
        titles[fields[2].strip()] = fields[1].strip()
    return titles


def overlap(known: list[str], history: list[str]) -> int:
    """Length of the longest beginning of ``history`` that is also an end of ``known``."""
    longest = min(len(known), len(history))
    return next(n for n in range(longest, -1, -1) if known[len(known) - n :] == history[:n])


def chain(rows: pd.DataFrame) -> tuple[dict[str, list[str]], int, int]:
    """Each user's items in order, the number of users whose beginning was cut off, and of rows with a gap before them.

    ``rows`` are in order of time within a user. A history shorter than the longest one of the data was not cut.
    """
    width = rows["history_item_id"].map(len).max()
    logs: dict[str, list[str]] = {}
    cut = gaps = 0
    for user, history, item in zip(rows["user_id"], rows["history_item_id"], rows["item_id"]):
        known = logs.get(user)
        if known is None:
            cut += len(history) == width
            logs[user] = [*history, item]
            continue
        shared = overlap(known, history)
        gaps += shared < len(history)
        known.extend(history[shared:])
        known.append(item)
    return logs, cut, gaps


def read_minionerec(folder: Path) -> tuple[Catalogue, Interactions, tuple[str, ...]]:
    """Catalogue, log and notes of a MiniOneRec release folder.

    Raises ``FileNotFoundError`` or ``ValueError`` that names the file and what is wrong with it.
    """
    item_path = find_file(folder, "*.item.json", EXPECTED)
    info_path = find_file(folder, "*.info.txt", EXPECTED)
    paths = [find_optional(folder, "*.train.csv", EXPECTED)]
    paths += [find_file(folder, f"*.{part}.csv", EXPECTED) for part in ("valid", "test")]
    table, titles = read_json(item_path), read_info(info_path)
    unknown = [name for name in titles if name not in table]
    if unknown:
        raise ValueError(f"{info_path}: item {unknown[0]!r} is not in {item_path.name}; take both from one release")
    catalogue = catalogue_from_items(item_path, table, titles)
    rows = pd.concat([read_rows(path) for path in paths if path is not None], ignore_index=True)
    if rows.empty:
        raise ValueError(f"{folder}: the log is empty; expected rows in the CSV files")
    logs, cut, gaps = chain(rows)
    users = list(logs)
    interactions = log_from_lists(folder, users, [logs[user] for user in users], catalogue.ids)
    width = rows["history_item_id"].map(len).max()
    notes = [ORDER_ONLY, f"rebuilt from {len(rows)} rows whose histories hold at most {width} items"]
    if paths[0] is None:
        notes.append("no train.csv: users without a row in valid.csv or test.csv are missing")
    if cut:
        notes.append(f"{cut} of {len(users)} users: events before the first row's history of {width} items may be lost")
    if gaps:
        notes.append(f"{gaps} rows do not continue their user's earlier rows; events may be missing before them")
    return catalogue, interactions, tuple(notes)
