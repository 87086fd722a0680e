"""Data sets by name: catalogue, log and notes on what the log cannot support.

A reader yields ``Catalogue`` and ``Interactions``; time window, k-core and truncation stand in ``filters``, splits in
``splits``. Readers of raw files (``streaming``) filter while they read, in bounded memory. Left out: downloading, and
any feature engineering beyond what a reader finds in the files.
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
from sidgym.envs.filters import Ledger, filter_log, k_core, renumbered, select_items, time_window, truncated
from sidgym.envs.loaders_amazon import read_amazon
from sidgym.envs.loaders_amazon_reviews import read_amazon_reviews
from sidgym.envs.loaders_kuairand import read_kuairand
from sidgym.envs.loaders_minionerec import read_minionerec
from sidgym.envs.loaders_movielens import read_movielens
from sidgym.envs.loaders_openonerec import read_openonerec
from sidgym.envs.records import Catalogue, Interactions
from sidgym.sid.registry import resolve

if TYPE_CHECKING:
    from sidgym.envs.simulator import Truth

__all__ = ["DATASETS", "DataSet", "k_core", "load_dataset", "renumbered", "select_items", "time_window"]

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
    notes: tuple[str, ...] = ()  # what the data lacks and what was done to it, with the rows in and out of filters
    filtered: bool = False  # the reader has applied the filters up to the k-core itself

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


Streamed = Callable[[Path, DataConfig, Ledger], tuple[Catalogue, Interactions]]


def _streamed(name: str, read: Streamed, config: DataConfig) -> DataSet:
    ledger = Ledger()
    if not config.path:
        raise ValueError(f"data set {name!r} is read from files: set data.path to its folder")
    catalogue, interactions = read(Path(config.path), config, ledger)
    return DataSet(name, catalogue, interactions, notes=tuple(ledger.notes), filtered=True)


def _amazon_reviews(config: DataConfig, seed: int) -> DataSet:
    return _streamed("amazon_reviews", read_amazon_reviews, config)


def _movielens(config: DataConfig, seed: int) -> DataSet:
    return _streamed("movielens", read_movielens, config)


def _kuairand(config: DataConfig, seed: int) -> DataSet:
    return _streamed("kuairand", read_kuairand, config)


def _openonerec(config: DataConfig, seed: int) -> DataSet:
    return _streamed("openonerec", read_openonerec, config)


DATASETS: dict[str, Callable[[DataConfig, int], DataSet]] = {
    "simulator": _simulator,
    "amazon": _amazon,
    "minionerec": _minionerec,
    "amazon_reviews": _amazon_reviews,
    "movielens": _movielens,
    "kuairand": _kuairand,
    "openonerec": _openonerec,
}

ONLY_FOR = {
    "min_rating": ("amazon_reviews", "movielens"),
    "clicks": ("kuairand", "openonerec"),
    "orders": ("kuairand", "openonerec"),
    "domain": ("openonerec",),
    "title_words": ("amazon", "minionerec", "amazon_reviews", "movielens", "kuairand"),
}
"""Settings that only some of the readers above know."""

LEAST = {"max_events": 0, "title_words": 0, "min_rating": 0, "max_malformed": 0}
"""Settings that are numbers, and the least that each may be."""

FILTERS = ("start", "end", "max_events", "title_words", "repeats")


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


def _check_settings(config: DataConfig) -> None:
    """Raises ``ValueError`` for a number out of range and for a setting that would do nothing to the data set named."""
    default = DataConfig()
    for setting, least in LEAST.items():
        value = getattr(config, setting)
        most = 1 if setting == "max_malformed" else np.inf
        if not (least <= value <= most) or value == np.inf:
            kind = "a share in [0, 1]" if most == 1 else f"a number of at least {least}"
            raise ValueError(f"data.{setting}: expected {kind}, got {value!r}")
    for setting, names in ONLY_FOR.items():
        if getattr(config, setting) != getattr(default, setting) and config.name in DATASETS.keys() - set(names):
            raise ValueError(
                f"data.{setting} = {getattr(config, setting)!r} does nothing for data set {config.name!r}: only "
                f"{', '.join(names)} read it; leave it at {getattr(default, setting)!r}"
            )


def load_dataset(config: DataConfig, seed: int) -> DataSet:
    """The data set that ``config`` names, filtered as it says; see ``filters`` for the order.

    Rows in and out of every filter are shown on standard error and join the notes. A data set with ground truth is
    left whole: its truth is indexed by user and item, and the ``by_user`` split applies ``min_events`` to its users.
    Raises what the loader raises; ``seed`` only matters to simulators.
    """
    _check_settings(config)
    dataset = resolve("data set", config.name, DATASETS)(config, seed)
    check_log(dataset)
    if dataset.truth is not None:
        changed = [name for name in FILTERS if getattr(config, name) != getattr(DataConfig(), name)]
        if changed:
            raise ValueError(
                f"data.{changed[0]}: data set {dataset.name!r} has ground truth, which is indexed by user and item, so "
                f"its log is left whole; leave {', '.join(changed)} at the default"
            )
        return dataset
    ledger = Ledger()
    catalogue, log = dataset.catalogue, dataset.interactions
    if not dataset.filtered:
        catalogue, log = filter_log(catalogue, log, config, ledger)
    log = truncated(log, config, ledger)
    return replace(dataset, catalogue=catalogue, interactions=log, notes=(*dataset.notes, *ledger.notes))
