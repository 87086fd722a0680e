"""``sidgym sid export`` and ``sidgym sid import``: item-code tables to and from the formats of other projects.

Left out: the formats themselves (``sid.index_formats``).
"""

import argparse
from pathlib import Path

import numpy as np

from sidgym.launch.sid_source import read_table
from sidgym.sid.collisions import COLLISIONS, resolve_collisions
from sidgym.sid.index_formats import FORMATS, read_index, write_index
from sidgym.sid.table import SidTable


def export_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sidgym sid export``."""
    parser.add_argument("source", type=Path, help="a run, a checkpoint, a saved table or an index file")
    parser.add_argument("out", type=Path, help="file to write: .json, .csv or .parquet")
    parser.add_argument("--format", default="", choices=["", *FORMATS], help="by default what the file's name says")


def export_command(options: argparse.Namespace) -> None:
    """``sidgym sid export``."""
    table, _ = read_table(options.source)
    if options.out.is_dir():
        raise ValueError(f"{options.out} is a folder; give a file that ends in .json, .csv or .parquet")
    write_index(table, options.out, options.format)
    print(f"{options.out}: {describe(table)}")


def import_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sidgym sid import``."""
    parser.add_argument(
        "index", type=Path, help="index file of MiniOneRec, LC-Rec, LETTER or OpenOneRec, CSV or Parquet"
    )
    parser.add_argument("out", type=Path, help="folder to write the table into, for sid.index; must not exist")
    parser.add_argument("--format", default="", choices=["", *FORMATS], help="by default told from the file")
    parser.add_argument("--codes", type=int, nargs="+", default=[], help="codes on each level, or one number for all")
    parser.add_argument("--data", type=Path, help="run or saved data set whose items the index must hold, in its order")
    parser.add_argument(
        "--collisions", default="", choices=["", *sorted(COLLISIONS)], help="resolve them; by default as they are"
    )


def import_command(options: argparse.Namespace) -> None:
    """``sidgym sid import``."""
    if options.out.exists():
        raise ValueError(f"{options.out} exists already; give a folder that does not, or remove it")
    sizes = None if not options.codes else options.codes[0] if len(options.codes) == 1 else options.codes
    table = read_index(options.index, catalogue_ids(options.data), sizes, options.format)
    if options.collisions or "collisions" not in table.metadata:  # else a saved table, which says how it was made
        codes, new_sizes, report = resolve_collisions(table.codes, table.sizes, options.collisions or "keep")
        table = SidTable(codes, new_sizes, table.item_ids, {**table.metadata, "collisions": report})
    table.save(options.out)
    print(f"{options.out}: {describe(table)}")


def catalogue_ids(path: Path | None) -> np.ndarray | None:
    """Item ids (N,) of a run or saved data set; None for no path."""
    if path is None:
        return None
    from sidgym.envs.datasets import load_catalogue

    folder = path / "data" if (path / "data" / "dataset.json").is_file() else path
    if not (folder / "dataset.json").is_file():
        raise FileNotFoundError(f"--data {path}: no saved data set (dataset.json) in it or in its folder 'data'")
    return load_catalogue(folder).ids


def describe(table: SidTable) -> str:
    """Items, sizes and collisions in words."""
    sizes = " x ".join(str(size) for size in table.sizes)
    return f"{table.num_items:,} items, {sizes} codes, {table.collision_count():,} items in collision"
