"""Data sets by name: catalogue, log and notes on what the log cannot support.

A reader only yields ``Catalogue`` and ``Interactions``; k-core and time window are shared functions here, splits stand
in ``splits``. Left out: downloading, and any feature engineering beyond what a reader finds in the files.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sidgym.envs.config import DataConfig
from sidgym.envs.loaders_amazon import read_amazon
from sidgym.envs.loaders_minionerec import read_minionerec
from sidgym.envs.records import Catalogue, Interactions
from sidgym.sid.registry import resolve

if TYPE_CHECKING:
    from sidgym.envs.simulator import Truth

SCHEMA_VERSION = 1
MANIFEST = "dataset.json"


@contextlib.contextmanager
def staged(directory: str | Path, manifest: str) -> Iterator[Path]:
    """A scratch folder whose entries move into ``directory`` only if the block succeeds, ``manifest`` last.

    While entries are being moved there is no manifest, so a reader never takes a mixture for a finished folder; other
    files of ``directory`` stay. After an exception ``directory`` is as it was before.
    """
    directory = Path(directory)
    existed = directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=directory))
    try:
        yield staging
        (directory / manifest).unlink(missing_ok=True)
        for entry in sorted(staging.iterdir(), key=lambda path: path.name == manifest):
            target = directory / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(entry, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed:
            with contextlib.suppress(OSError):
                directory.rmdir()  # succeeds only when nothing was written


def read_manifest(directory: str | Path, manifest: str, what: str) -> dict[str, Any]:
    """The manifest of a saved folder, its ``schema_version`` checked.

    Raises ``FileNotFoundError`` where there is none and ``ValueError`` for another version.
    """
    path = Path(directory) / manifest
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no saved {what}: {manifest} is missing; save it there first")
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema_version {values.get('schema_version')!r}, this version reads {SCHEMA_VERSION}; "
            f"save the {what} again"
        )
    return values


@dataclass(frozen=True)
class DataSet:
    """A catalogue and the log of its users; ``truth`` only where a simulator made the log."""

    name: str
    catalogue: Catalogue
    interactions: Interactions
    truth: "Truth | None" = None
    notes: tuple[str, ...] = ()  # what the data lacks and what was done to it

    def save(self, directory: str | Path) -> None:
        """Write Parquet files and a JSON manifest into ``directory``, all or nothing; an older save is replaced."""
        with staged(directory, MANIFEST) as folder:
            for part, record in (("catalogue", self.catalogue), ("interactions", self.interactions)):
                columns = {field.name: getattr(record, field.name) for field in fields(record)}
                table = pd.DataFrame({name: list(v) if isinstance(v, tuple) else v for name, v in columns.items()
                                      if v is not None})  # fmt: skip
                table.to_parquet(folder / f"{part}.parquet", index=False)
            if self.truth is not None:
                (folder / "truth").mkdir()
                self.truth.save(folder / "truth")
            manifest = {"schema_version": SCHEMA_VERSION, "name": self.name, "notes": list(self.notes)}
            manifest["truth"] = self.truth is not None
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> "DataSet":
        """Read what ``save`` wrote. Raises ``FileNotFoundError`` or ``ValueError`` for anything else."""
        manifest = read_manifest(directory, MANIFEST, "data set")
        log = pd.read_parquet(Path(directory) / "interactions.parquet")
        truth = None
        if manifest["truth"]:
            from sidgym.envs.simulator import Truth

            truth = Truth.load(Path(directory) / "truth")
        interactions = Interactions(**{str(name): log[name].to_numpy() for name in log.columns})
        return cls(manifest["name"], load_catalogue(directory), interactions, truth, tuple(manifest["notes"]))


def load_catalogue(directory: str | Path) -> Catalogue:
    """The catalogue alone of what ``DataSet.save`` wrote."""
    items = pd.read_parquet(Path(directory) / "catalogue.parquet")
    return Catalogue(
        ids=items["ids"].to_numpy(dtype=str),
        titles=tuple(items["titles"]),
        descriptions=tuple(items["descriptions"]),
        categories=tuple(tuple(path) for path in items["categories"]),
        price=items["price"].to_numpy() if "price" in items else None,
        duration=items["duration"].to_numpy() if "duration" in items else None,
    )


def select_items(catalogue: Catalogue, rows: np.ndarray) -> Catalogue:
    """The given rows of a catalogue, (n,) indices, every optional field carried along."""
    return Catalogue(
        ids=catalogue.ids[rows],
        titles=tuple(catalogue.titles[i] for i in rows),
        descriptions=tuple(catalogue.descriptions[i] for i in rows),
        categories=tuple(catalogue.categories[i] for i in rows),
        price=None if catalogue.price is None else catalogue.price[rows],
        duration=None if catalogue.duration is None else catalogue.duration[rows],
    )


def renumbered(interactions: Interactions) -> Interactions:
    """The same events with ``order`` counted from 0 in each user's log; rows must be sorted by user and order."""
    _, first, inverse = np.unique(interactions.user, return_index=True, return_inverse=True)
    return replace(interactions, order=np.arange(len(interactions)) - first[inverse])


def k_core(catalogue: Catalogue, interactions: Interactions, min_events: int) -> tuple[Catalogue, Interactions]:
    """Drop users and items with fewer than ``min_events`` positive events, repeatedly, until none is left to drop.

    Users and items are numbered anew without gaps, in the old order; ``min_events`` 0 keeps everything as it is. Raises
    ``ValueError`` when nothing remains.
    """
    if min_events <= 0:
        return catalogue, interactions
    users = int(interactions.user.max(initial=-1)) + 1
    log = interactions
    while True:
        good = log.positives()
        by_user = np.bincount(good.user, minlength=users) >= min_events
        by_item = np.bincount(good.item, minlength=len(catalogue)) >= min_events
        keep = by_user[log.user] & by_item[log.item]
        if keep.all():
            break
        log = log.select(keep)
    if len(log) == 0:
        raise ValueError(
            f"no event is left of {len(interactions)}: no user and item with {min_events} positive events each remain; "
            "lower min_events, or set it to 0 to keep all"
        )
    kept = np.flatnonzero(by_item)
    new_item = np.cumsum(by_item) - 1
    log = replace(log, user=np.unique(log.user, return_inverse=True)[1], item=new_item[log.item])
    return select_items(catalogue, kept), renumbered(log)


def time_window(interactions: Interactions, start: float, end: float) -> Interactions:
    """Events with ``start <= time < end``, seconds. Raises ``ValueError`` where the log holds no times."""
    if interactions.time is None:
        raise ValueError("this data set has order only, no timestamps: a time window cannot be cut; use the whole log")
    return renumbered(interactions.select((interactions.time >= start) & (interactions.time < end)))


def _simulator(config: DataConfig, seed: int) -> DataSet:
    from sidgym.envs.simulator import SimulatorConfig, simulate

    store = simulate(SimulatorConfig(users=config.users, items=config.items, seed=seed))
    return DataSet("simulator", store.catalogue, store.interactions, store.truth)


def _from_folder(
    name: str, read: Callable[[Path], tuple[Catalogue, Interactions, tuple[str, ...]]], config: DataConfig
) -> DataSet:
    if not config.path:
        raise ValueError(f"data set {name!r} is read from files: set data.path to its folder")
    catalogue, interactions, notes = read(Path(config.path))
    return DataSet(name, catalogue, interactions, notes=notes)


def _amazon(config: DataConfig, seed: int) -> DataSet:
    return _from_folder("amazon", read_amazon, config)


def _minionerec(config: DataConfig, seed: int) -> DataSet:
    return _from_folder("minionerec", read_minionerec, config)


DATASETS: dict[str, Callable[[DataConfig, int], DataSet]] = {
    "simulator": _simulator,
    "amazon": _amazon,
    "minionerec": _minionerec,
}


def check_log(dataset: DataSet) -> None:
    """Raises ``ValueError`` unless the log is not empty, sorted by user and order, and names items of the catalogue."""
    log = dataset.interactions
    if len(log) == 0:
        raise ValueError(f"data set {dataset.name!r}: the log is empty; expected at least one event")
    if log.user.min() < 0:
        raise ValueError(f"data set {dataset.name!r}: user numbers start at 0, got {log.user.min()}")
    step, ahead = np.diff(log.user), np.diff(log.order)
    wrong = (step < 0) | ((step == 0) & (ahead <= 0))
    if wrong.any():
        row = int(np.argmax(wrong)) + 1
        raise ValueError(f"data set {dataset.name!r}: log rows must be sorted by user, then order; row {row} is not")
    outside = (log.item < 0) | (log.item >= len(dataset.catalogue))
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(
            f"data set {dataset.name!r}: user {log.user[row]} has item {log.item[row]}, but the catalogue has "
            f"{len(dataset.catalogue)} items"
        )


def load_dataset(config: DataConfig, seed: int) -> DataSet:
    """The data set that ``config`` names, after the k-core of ``config.min_events``.

    A data set with ground truth is left whole: its truth is indexed by user and item, and the ``by_user`` split applies
    ``min_events`` to its users. Raises what the loader raises; ``seed`` only matters to simulators.
    """
    dataset = resolve("data set", config.name, DATASETS)(config, seed)
    check_log(dataset)
    if dataset.truth is not None:
        return dataset
    catalogue, log = k_core(dataset.catalogue, dataset.interactions, config.min_events)
    if len(log) == len(dataset.interactions) and len(catalogue) == len(dataset.catalogue):
        return dataset
    before = (len(np.unique(dataset.interactions.user)), len(dataset.catalogue), len(dataset.interactions))
    after = (len(np.unique(log.user)), len(catalogue), len(log))
    counts = ", ".join(f"{old} -> {new} {what}" for old, new, what in zip(before, after, ("users", "items", "events")))
    return replace(dataset, catalogue=catalogue, interactions=log,
                   notes=(*dataset.notes, f"{config.min_events}-core: {counts}"))  # fmt: skip
