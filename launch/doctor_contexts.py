"""What ``sidgym doctor`` checks in a run's data: files, items against the table's, and histories that contexts share.

Symbols: N items of the catalogue, B and C contexts, T history length.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sidgym.launch.findings import Finding, bad, counted, fine, odd
from sidgym.launch.sid_source import readable
from sidgym.sid.table import SidTable

if TYPE_CHECKING:
    from sidgym.envs.splits import Splits

CONFLICTS = 0.01
"""Share of contexts with an equal history and another target from which on it is remarked on."""


AGAIN = "build it again: sidgym data CONFIG"


def check_data(folder: Path, table: SidTable | None) -> Iterator[Finding]:
    """Catalogue, log and contexts of a run's data folder: whether they can be read, and whether they fit ``table``."""
    if not folder.is_dir():
        return
    from sidgym.envs.datasets import DataSet, check_log
    from sidgym.envs.splits import load_splits

    items = None
    try:
        with readable(folder):
            dataset = DataSet.load(folder)
            check_log(dataset)
        items = len(dataset.catalogue)
        yield check_items(dataset.catalogue.ids, table)
    except ValueError as error:
        yield bad("data", str(error), "no stage can train or be judged on it", AGAIN)
    if not (folder / "splits.npz").is_file() and not (folder / "splits.json").is_file():
        return
    try:
        with readable(folder):
            splits = load_splits(folder)
    except ValueError as error:
        yield bad("contexts", str(error), "no stage can train or be judged on it", AGAIN)
        return
    if items is not None:
        yield from check_range(splits, items)
    yield from check_contexts(splits)


def check_items(ids: np.ndarray, table: SidTable | None) -> Finding:
    """The catalogue's ids (N,) against the table's, whose row i must be item i; items may have been added behind."""
    if table is None:
        return fine("data", f"{counted(len(ids), 'item')} in the catalogue")
    count = min(len(ids), table.num_items)
    differ = np.flatnonzero(ids[:count] != table.item_ids[:count])
    if len(differ) or table.num_items < len(ids):
        row = int(differ[0]) if len(differ) else count
        names = [repr(str(part[row])) if row < len(part) else "nothing" for part in (ids, table.item_ids)]
        return bad(
            "data",
            f"the catalogue ({counted(len(ids), 'item')}) is not that of the table ({table.num_items:,}): item {row} "
            f"is {names[0]} there and {names[1]} in the table",
            "histories and targets are rows of the catalogue, so they would be read as the SIDs of other items",
            "use the table that was built for this data, or run the configuration again",
        )
    added = table.num_items - len(ids)
    more = f", and {counted(added, 'item')} added to the table" if added else ""
    return fine("data", f"the table has the catalogue's {counted(len(ids), 'item')} in its order{more}")


def check_range(splits: "Splits", items: int) -> Iterator[Finding]:
    """Sequences and contexts must name items of the catalogue, or the mark of padding, -1."""
    for name in ("sft", "sft_all", "rl", "valid", "test"):
        part = getattr(splits, name)
        numbers = [getattr(part, field, None) for field in ("items", "history", "targets", "page")]
        held = [one for one in numbers if one is not None and one.size]
        low, high = min((int(one.min()) for one in held), default=0), max((int(one.max()) for one in held), default=0)
        if low < -1 or high >= items:
            yield bad(
                "contexts",
                f"{name} has items from {low} to {high}, the catalogue {counted(items, 'item')}",
                "such an item has no SID: reading the context fails, or gives another item's",
                AGAIN,
            )


def check_contexts(splits: "Splits") -> Iterator[Finding]:
    """Equal histories: inside each split, and between test and RL."""
    for name, part in (("rl", splits.rl), ("valid", splits.valid), ("test", splits.test)):
        if len(part):
            yield _equal_histories(name, *count_equal_histories(part.history, part.target), len(part))
    if len(splits.rl) and len(splits.test):
        shared = count_shared(splits.rl.history, splits.rl.target, splits.test.history, splits.test.target)
        if shared > CONFLICTS * len(splits.test):
            yield odd(
                "contexts",
                f"{shared:,} of {len(splits.test):,} test contexts have history and target of one that RL trains on",
                "what was learned by heart counts as a success there",
                "use longer histories, or drop users with equal logs",
            )


def _equal_histories(name: str, equal: int, conflicting: int, total: int) -> Finding:
    what = (
        f"{equal:,} of {total:,} {name} contexts share their history with another, {conflicting:,} with another target"
    )
    if conflicting <= CONFLICTS * total:
        return fine("contexts", what)
    return odd(
        "contexts",
        what,
        "whoever looks the target up by the prompt's text gets another user's; here it travels with the context, but "
        "the same prompt still asks for several answers, which bounds any metric",
        "keep longer histories (data.history, data.min_events), or count such contexts once",
    )


def count_equal_histories(history: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    """Contexts (B, T) whose history another one has, and those of them whose equals do not all have one target (B,).

    Contexts without any history are not counted: they are new users.
    """
    known = (history >= 0).any(axis=1)
    if not known.any():
        return 0, 0
    _, group, counts = np.unique(history[known], axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    pairs = np.unique(np.column_stack([group, target[known]]), axis=0)
    targets = np.bincount(pairs[:, 0], minlength=len(counts))
    return int((counts[group] > 1).sum()), int((targets[group] > 1).sum())


def count_shared(history: np.ndarray, target: np.ndarray, other: np.ndarray, other_target: np.ndarray) -> int:
    """Contexts of ``other`` (C, T') with a history, and a target, that a context of ``history`` (B, T) has as well."""
    width = max(history.shape[1], other.shape[1])
    rows = [
        np.column_stack([np.pad(part, ((0, 0), (width - part.shape[1], 0)), constant_values=-1), goal])
        for part, goal in ((history, target), (other, other_target))
    ]
    _, key = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
    key = key.reshape(-1)
    return int((np.isin(key[len(history) :], key[: len(history)]) & (other >= 0).any(axis=1)).sum())
