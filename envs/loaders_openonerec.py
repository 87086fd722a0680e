"""Reader of OpenOneRec's release (RecIF): Parquet with one row a user, and the captions of the items.

``uid``, ``hist_<domain>_pid`` and ``target_<domain>_pid`` are lists, oldest first; a user's log is the one, then the
other. Videos carry flags of the same lengths (``hist_video_longview`` ...) and are impressions; goods and ads hold what
was clicked. Order only: there are no times and no pages. A user's second row is malformed, as nothing says which of the
two is the earlier. Users of the published test part (``split`` = 1) are kept with the others: splits are cut here.

Files are known by their columns, whatever their names: captions are ``pid`` and ``dense_caption``. But videos and ads
share one numbering and goods have another, so captions of goods are taken from files with "goods" or "product" in their
names, those of videos and ads from the others. The ready-made SIDs (``*_pid2sid.parquet``) are for ``sid.index``. Left
out: reasoning, profile and search columns, and the longer ``hist_longview_*`` lists.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.envs.config import DataConfig
from sidgym.envs.filters import Ledger
from sidgym.envs.loaders_amazon import ORDER_ONLY
from sidgym.envs.loaders_kuairand import chosen_columns, feedback_of
from sidgym.envs.raw_files import Reading, find_files
from sidgym.envs.records import Catalogue, Interactions, pack_signals
from sidgym.envs.streaming import Events, keys_of_numbers, read_log

EXPECTED = "Parquet files with uid, hist_<domain>_pid and target_<domain>_pid, and optionally pid and dense_caption"
CLICKS, ORDERS, HATES = ("longview",), ("like", "follow", "forward"), ("not_interested",)
SIGNAL_FLAGS = {"longview": "long_view", "like": "like", "follow": "follow", "forward": "forward"}
"""Flags, and the names in ``records.SIGNALS`` under which they travel, if they are read."""
USERS = 512
"""Rows read at a time; a user may have thousands of events."""

GOODS = ("goods", "product")
"""Either stands in the names of files about goods."""


@dataclass(frozen=True)
class _Layout:
    """What is read of the logs."""

    domain: str
    flags: tuple[str, ...]
    roles: tuple[tuple[str, ...], ...]  # flags that make an event negative, an order, a click
    repeated: np.ndarray  # int64, users with several rows


def _columns(path: Path) -> list[str]:
    """Names of the columns. Raises ``ValueError`` naming a file that is no Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}; it may be cut off") from error


def _parts(domain: str) -> tuple[str, str]:
    return f"hist_{domain}_", f"target_{domain}_"


def _whole(values: Any, path: Path, column: str) -> np.ndarray:
    """An Arrow array of whole numbers, flags, or digits, as int64 (n,), 0 for a null.

    Raises ``ValueError`` naming file and column.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        numbers = pc.cast(pc.cast(values, pa.int8()) if pa.types.is_boolean(values.type) else values, pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{path}: column {column}: expected whole numbers, got {values.type}: {error}") from error
    return np.asarray(pc.fill_null(numbers, 0))


def _lists(batch: Any, path: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A column of lists: lengths (n,), 0 for a missing one, all values in a row (E,), and which rows hold a null.

    Raises ``ValueError`` naming file and column of something else.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = batch.column(name)
    if pa.types.is_null(column.type):
        return np.zeros(len(column), np.int64), np.zeros(0, np.int64), np.zeros(len(column), bool)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise ValueError(f"{path}: column {name}: expected lists, got {column.type}")
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = column.flatten()
    holes = np.zeros(len(column), dtype=bool)
    if flat.null_count:
        holes[np.repeat(np.arange(len(column)), lengths)[np.asarray(pc.is_null(flat))]] = True
    return lengths, _whole(flat, path, name), holes


def _repeated(paths: Sequence[Path]) -> np.ndarray:
    """Users with more than one row, int64; for this alone 8 bytes a user are held."""
    import pyarrow.parquet as pq

    parts = [np.zeros(0, np.int64)]
    for path in paths:
        with pq.ParquetFile(path) as file:
            batches = file.iter_batches(columns=["uid"], use_threads=False)
            parts += [_whole(batch.column("uid").drop_null(), path, "uid") for batch in batches]
    users, count = np.unique(np.concatenate(parts), return_counts=True)
    return users[count > 1]


def _aligned(flat: np.ndarray, own: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Values of lists that should have the given lengths; what fills a list of another length is not to be used."""
    if (own == lengths).all():
        return flat
    inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    place = np.repeat(np.cumsum(own) - own, lengths) + inside
    return np.append(flat, 0)[np.minimum(place, len(flat))]


def _events(paths: Sequence[Path], layout: _Layout, reading: Reading) -> Iterator[Events]:
    import pyarrow.parquet as pq

    columns = ["uid", *(f"{part}{name}" for part in _parts(layout.domain) for name in ("pid", *layout.flags))]
    seen: set[int] = set()
    for path in paths:
        with pq.ParquetFile(path) as file:
            more = ["split"] if "split" in file.schema_arrow.names else []
            row = 0
            for batch in file.iter_batches(batch_size=USERS, columns=columns + more, use_threads=False):
                if more:
                    reading.counts["test"] += int((np.asarray(batch.column("split")) == 1).sum())
                yield _chunk(batch, path, row, layout, seen, reading)
                row += len(batch)


def _chunk(batch: Any, path: Path, first: int, layout: _Layout, seen: set[int], reading: Reading) -> Events:
    """The events of some users, in order. Rows with lists of unequal lengths, with nulls inside, without a user or of a
    repeated one that is among ``seen`` are malformed."""
    count = len(batch)
    reading.rows += count
    user, missing = _whole(batch.column("uid"), path, "uid"), np.asarray(batch.column("uid").is_null())
    again = np.isin(user, layout.repeated) & ~missing
    for row in np.flatnonzero(again).tolist():
        again[row] = int(user[row]) in seen
        seen.add(int(user[row]))
    faults = {"no uid": missing, "this user has a row before": again}
    values: dict[str, list[np.ndarray]] = {name: [] for name in ("pid", *layout.flags)}
    rows = []
    for part in _parts(layout.domain):
        lengths = _lists(batch, path, f"{part}pid")[0]
        rows.append(np.repeat(np.arange(count), lengths))
        for name in values:
            own, flat, holes = _lists(batch, path, f"{part}{name}")
            faults[f"{part}{name} is not as long as {part}pid"] = own != lengths
            faults[f"a null in {part}{name}"] = holes
            values[name].append(_aligned(flat, own, lengths))
    faulty = np.logical_or.reduce(list(faults.values()))
    for bad in np.flatnonzero(faulty).tolist():
        reason = next(reason for reason, found in faults.items() if found[bad])
        reading.bad(f"{path.name} row {first + bad + 1}", reason, f"uid {batch.column('uid')[bad].as_py()}")
    owner = np.concatenate(rows)
    keep = np.argsort(owner, kind="stable")  # a user's history, then the targets
    keep = keep[~faulty[owner[keep]]]
    column = {name: np.concatenate(parts)[keep] for name, parts in values.items()}
    code, items = keys_of_numbers(column["pid"])
    feedback = None
    if layout.flags:
        signs = [np.logical_or.reduce([column[name] > 0 for name in names]) if names else np.zeros(len(keep), bool)
                 for names in layout.roles]  # fmt: skip
        feedback = feedback_of(*signs)
    signals = pack_signals({own: column[flag] > 0 for flag, own in SIGNAL_FLAGS.items() if flag in layout.flags})
    return Events(user.view(np.uint64)[owner[keep]], code, items, feedback=feedback, signals=signals)


def _captions(paths: Sequence[Path], ids: Sequence[str], ledger: Ledger, config: DataConfig) -> list[str]:
    """The first caption of each item that says something, "" where none does; only these come into memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row_of = {name: row for row, name in enumerate(ids)}
    texts = [""] * len(ids)
    wanted = np.array([int(name) for name in ids], dtype=np.int64)
    again = 0
    for path in paths:
        reading = Reading()
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=8192, columns=["pid", "dense_caption"], use_threads=False):
                reading.rows += len(batch)
                column = batch.column("dense_caption")
                if column.type not in (pa.string(), pa.large_string(), pa.null()):
                    raise ValueError(f"{path}: column dense_caption: expected text, got {column.type}")
                pid, none = _whole(batch.column("pid"), path, "pid"), np.asarray(batch.column("pid").is_null())
                for row in np.flatnonzero(np.isin(pid, wanted) & ~none).tolist():
                    text = " ".join((column[row].as_py() or "").split())
                    item = row_of[str(pid[row])]
                    again += bool(text and texts[item])
                    texts[item] = texts[item] or text
        reading.check(path.name, config.max_malformed)
        ledger.note(reading.described(path.name))
    if again:
        ledger.note(f"{again} captions are of items that have one already; the first of each is taken")
    return texts


def _caption_files(found: dict[Path, list[str]], domain: str, ledger: Ledger) -> list[Path]:
    """The files with captions of the domain; a note says where there are some of another numbering only."""
    every = [path for path, names in found.items() if {"pid", "dense_caption"} <= set(names)]
    of_goods = [path for path in every if any(word in path.name.lower() for word in GOODS)]
    own = of_goods if domain == "goods" else [path for path in every if path not in of_goods]
    if every and not own:
        ledger.note(
            f"{', '.join(path.name for path in every)}: not taken for {domain}, whose items are numbered otherwise; "
            "captions of goods are in files named *goods* or *product*, those of videos and ads in others"
        )
    return own


def read_openonerec(folder: Path, config: DataConfig, ledger: Ledger) -> tuple[Catalogue, Interactions]:
    """Catalogue and filtered log of ``config.domain``; an item's description is its caption.

    Raises ``FileNotFoundError`` or ``ValueError`` that names the file and what is wrong with it.
    """
    found = {path: _columns(path) for path in find_files(folder, ("*.parquet",), EXPECTED)}
    parts = _parts(config.domain)
    logs = [path for path, names in found.items() if {"uid", *(f"{part}pid" for part in parts)} <= set(names)]
    if not logs:
        columns = sorted({name for names in found.values() for name in names})
        raise ValueError(
            f"{folder}: no file with uid, {parts[0]}pid and {parts[1]}pid; the columns there are {', '.join(columns)}. "
            "Set data.domain to one of video, goods and ad that is there"
        )
    present = [name.removeprefix(parts[0]) for name in found[logs[0]] if name.startswith(parts[0])]
    present = [n for n in present if n != "pid" and all(f"{part}{n}" in found[log] for log in logs for part in parts)]
    roles = (
        tuple(name for name in HATES if name in present),
        chosen_columns("orders", config.orders, ORDERS, present),
        chosen_columns("clicks", config.clicks, CLICKS, present),
    )
    flags = tuple(dict.fromkeys(name for names in roles for name in names))
    layout = _Layout(config.domain, flags, roles, _repeated(logs))
    last = Reading()

    def source(reading: Reading) -> Iterator[Events]:
        nonlocal last
        last = reading
        return _events(logs, layout, reading)

    what = ", ".join(path.name for path in logs)
    # A Parquet file packs many events into few bytes.
    catalogue, log = read_log(source, what, 20 * sum(path.stat().st_size for path in logs), config, ledger)
    ledger.note(ORDER_ONLY)
    if flags:
        hates, orders, clicks = (", ".join(names) or "none" for names in roles)
        ledger.note(f"feedback: orders are {orders}; clicks {clicks}; negative {hates}")
    if last.counts["test"]:
        ledger.note(f"{last.counts['test']} of {last.rows} users are the published test part; they are kept here")
    captions = _caption_files(found, config.domain, ledger)
    if not captions:
        ledger.note("no captions: text embedders and text tasks cannot be used; give a ready-made index of SIDs")
        return catalogue, log
    return replace(catalogue, descriptions=tuple(_captions(captions, catalogue.ids.tolist(), ledger, config))), log
