"""What ``sidgym sid inspect`` and its like are given: a run, a table, a checkpoint or an index file, made one record.

Titles, categories and the log come from the run that the table lies in, or from another one that is named. Left out:
what is done with it (``sid_inspect``, ``sid_tools``).

Symbols: N items of the table, E events.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.launch.findings import counted
from sidgym.sid.index_formats import read_index
from sidgym.sid.inspection import category_labels, telling_depth
from sidgym.sid.table import SidTable

NO_CATEGORY = np.empty(0, np.int64)

ANOTHER = 0.5
"""A catalogue that lacks more than this share of a table's items is not the table's."""


@dataclass(frozen=True)
class SidSource:
    """An item-code table with what is known of its items; what is not known is empty or None."""

    name: str
    table: SidTable
    titles: tuple[str, ...] = ()  # N
    labels: dict[str, np.ndarray] | None = None  # (N,) category numbers, see ``category_labels``
    category_names: tuple[str, ...] = ()  # of ``broad``
    events: tuple[np.ndarray, np.ndarray] | None = None  # users and items (E,) of what training may read
    quantised: tuple[Any, np.ndarray] | None = None  # fitted tokeniser and the embeddings it read
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # why the figures may be of something else than was meant

    def title(self, row: int) -> str:
        """Title of an item, its id where it has none."""
        return (self.titles[row] if self.titles else "") or str(self.table.item_ids[row])

    @property
    def broad(self) -> np.ndarray:
        """Broad category number of each item, (N,)."""
        return (self.labels or {}).get("broad", NO_CATEGORY)

    @property
    def popularity(self) -> np.ndarray | None:
        """Events of each item, (N,)."""
        return None if self.events is None else np.bincount(self.events[1], minlength=self.table.num_items)


def table_folder(path: Path) -> Path:
    """The folder of the saved table that ``path`` names: itself, ``sid`` below a run or a checkpoint, or that of its
    ``table.json``.

    Raises ``FileNotFoundError`` or ``ValueError`` that says what was expected.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give a run such as runs/demo, a checkpoint, a saved table or an index file"
        )
    if path.name == "table.json" and path.is_file():
        return path.parent
    for folder in (path, path / "sid"):
        if (folder / "table.json").is_file():
            return folder
    seeds = sorted(one.name for one in path.glob("seed-*") if one.is_dir())
    if seeds:
        raise ValueError(
            f"{path} holds the runs of {counted(len(seeds), 'seed')}; give one of them, for example {path / seeds[0]}"
        )
    raise ValueError(
        f"{path} holds no item-code table: expected table.json or sid/table.json in it; build one with "
        "'sidgym sid CONFIG'"
    )


def read_table(path: Path, format: str = "") -> tuple[SidTable, Path | None]:
    """The table that ``path`` names, and the folder that it was saved in, None for a file."""
    if path.is_file() and (format or path.name != "table.json"):
        return read_index(path, format=format), None
    folder = table_folder(path)
    return SidTable.load(folder), folder


def data_folder(path: Path) -> Path | None:
    """The saved data set that belongs to a run, to a stage of it or to a folder with one; None where there is none."""
    for folder in (path, path / "data", path.parent / "data", path.parent.parent / "data"):
        if (folder / "dataset.json").is_file():
            return folder
    return None


def load_source(path: Path, data: Path | None = None, format: str = "") -> SidSource:
    """Reads ``path`` and what belongs to it.

    Args:
        path: a run's folder, a checkpoint, a folder of ``SidTable.save``, or an index file of any format.
        data: a run or saved data set with titles, categories and the log; without it the run around ``path``.
        format: of an index file; empty to tell it from the file.

    Raises ``FileNotFoundError`` and ``ValueError`` that say what was expected, also for data of another catalogue.
    """
    table, folder = read_table(path, format)
    notes: list[str] = []
    if any(at_least(table)):
        notes.append(
            "An index does not say how many codes a level has: where its largest code is all that is known, sizes are "
            "at least that, and codes beyond it are not counted as unused."
        )
    found = data_folder(data or (folder or path).resolve()) if data is not None or folder is not None else None
    if data is not None and found is None:
        raise FileNotFoundError(f"--data {data}: no saved data set (dataset.json) in it or in its folder 'data'")
    known = _from_data(found, table, notes) if found is not None else {}
    if found is None:
        notes.append("No data set beside it: no titles, categories and log. Name a run that has them with --data.")
    if (table.metadata.get("config") or {}).get("alignment") and known.get("events") is not None:
        notes.append(
            "The codes were aligned with events of this very log: how often neighbours come together flatters."
        )
    quantised = _quantised(folder, table, notes) if folder is not None else None
    return SidSource(str(path), table, quantised=quantised, notes=tuple(notes), **known)


def at_least(table: SidTable) -> list[bool]:
    """Of which levels (L) no more than the largest code may be known: those of an imported index that it fills up."""
    imported = table.metadata.get("tokenizer") == "index"
    return [imported and int(largest) + 1 == size for largest, size in zip(table.codes.max(axis=0), table.sizes)]


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """While files of a saved data set are read: whatever goes wrong is a ``ValueError`` that says what to do."""
    try:
        yield
    except Exception as error:  # JSON, Parquet and zip files, cut off or of another version, fail each in its own way
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{folder} cannot be read ({type(error).__name__}: {first}); build it again: sidgym data CONFIG"
        ) from error


def _from_data(folder: Path, table: SidTable, notes: list[str]) -> dict[str, Any]:
    """Titles, categories and events of the table's items, in its order, and warnings where it fits the data badly."""
    import pandas as pd

    from sidgym.envs.datasets import load_catalogue

    with readable(folder):
        catalogue = load_catalogue(folder)
        row = pd.Index(catalogue.ids).get_indexer(pd.Index(table.item_ids))  # -1 for an item that the data set lacks
    warnings = _mismatch(folder, row, len(catalogue), table)
    titles = tuple(catalogue.titles[i] if i >= 0 else "" for i in row.tolist())
    categories = [catalogue.categories[i] if i >= 0 else () for i in row.tolist()]
    labels = category_labels(categories)
    out: dict[str, Any] = {"titles": titles, "labels": labels, "category_names": _names(categories, labels)}
    return {**out, "events": _events(folder, row, len(catalogue), notes), "warnings": warnings}


def _mismatch(folder: Path, row: np.ndarray, catalogue: int, table: SidTable) -> tuple[str, ...]:
    """What does not fit between a table and a catalogue; ``row`` (N,) is each item's place in it, -1 without one.

    ``ValueError`` where most items are missing, those aside that were added to the table later.
    """
    grown = table.metadata.get("extensions") or [{"first_row": len(row)}]
    first = row[: grown[0].get("first_row")]
    gone = np.flatnonzero(first < 0)
    if len(gone) > ANOTHER * len(first):
        raise ValueError(
            f"{folder} holds another catalogue: {len(gone):,} of the table's {len(first):,} items are not in it, for "
            f"example {str(table.item_ids[gone[0]])!r}; name the run that the codes were made for with --data"
        )
    missing, codeless = int((row < 0).sum()), catalogue - len(np.unique(row[row >= 0]))
    numbers = " Row numbers as ids fit any catalogue: make sure that both are of one." if _row_numbers(table) else ""
    out = []
    if missing:
        text = f"{missing:,} of {len(row):,} items are not in {folder}: they have no title, category or event."
        out.append(text + numbers)
    if codeless:
        text = f"{codeless:,} of {catalogue:,} items of {folder} have no SID in this table: they cannot be recommended."
        out.append(text + ("" if missing else numbers))
    return tuple(out)


def _row_numbers(table: SidTable) -> bool:
    """Whether the item ids are the numbers from 0 on, in any order."""
    return set(table.item_ids.tolist()) == set(map(str, range(table.num_items)))


def _names(categories: Sequence[Sequence[str]], labels: dict[str, np.ndarray]) -> tuple[str, ...]:
    """Names of the broad categories by number."""
    if not labels:
        return ()
    depth = telling_depth(categories)
    numbers, first = np.unique(labels["broad"], return_index=True)
    return tuple(categories[i][:depth][-1] for i in first[numbers >= 0].tolist())


def _events(folder: Path, row: np.ndarray, catalogue: int, notes: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """The positive events that training may read, items as rows of the table."""
    from sidgym.envs.datasets import DataSet
    from sidgym.envs.splits import load_splits, training_log

    with readable(folder):
        log = DataSet.load(folder).interactions
        if (folder / "splits.json").is_file():
            log = training_log(log, load_splits(folder))
            notes.append("Events are those of the training log: nothing here has seen a test or validation target.")
        else:
            notes.append("Events are those of the whole log: the data set was saved without splits.")
        log = log.positives()
        place = np.full(catalogue, -1)
        place[row[row >= 0]] = np.flatnonzero(row >= 0)
        item = place[log.item]
    return (log.user[item >= 0], item[item >= 0]) if (item >= 0).any() else None


def _quantised(folder: Path, table: SidTable, notes: list[str]) -> tuple[Any, np.ndarray] | None:
    """The saved tokeniser and the embeddings, where both are there and fit the table."""
    if not (folder / "tokenizer" / "tokenizer.json").is_file() or not (folder / "embeddings.npy").is_file():
        notes.append("No fitted tokeniser with embeddings beside the table: no reconstruction error.")
        return None
    try:
        embeddings = np.load(folder / "embeddings.npy", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{folder / 'embeddings.npy'} cannot be read ({error}); build the stage again") from error
    if embeddings.ndim != 2 or len(embeddings) != table.num_items:
        notes.append(
            f"The embeddings (shape {embeddings.shape}) are not those of the table's {table.num_items:,} items: no "
            "reconstruction error."
        )
        return None
    from sidgym.sid.tokenizers import load_tokenizer

    try:
        return load_tokenizer(folder / "tokenizer"), embeddings
    except ValueError as error:  # a class of the user's own that cannot be found or loaded any more
        notes.append(f"No reconstruction error: {error}.")
        return None
