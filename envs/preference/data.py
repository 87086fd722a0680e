"""What preference models are fitted on: the part of a log that may be read, and what is known of the items.

Nothing else of the log is looked at, so a model cannot have seen what it later judges. Left out: how rows become
training examples (``examples``), and what an event's signals are (``signals``).

Symbols: E events of the log, U users, N items, D embedding width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from sidgym.envs.records import Catalogue, Interactions, Splits
from sidgym.sid.table import SidTable


@dataclass(frozen=True, eq=False)
class PreferenceData:
    """The log of some users up to some moment, and the items. ``ValueError`` when the fields do not fit.

    Only rows of ``users`` that lie before ``before`` are read; ``log`` is these rows.
    """

    interactions: Interactions
    users: np.ndarray  # (U,) int64 ids of the users that may be read
    # A time in seconds, or (U,) int64 the first ``order`` out of bounds of each user; None: all rows of the users.
    before: float | np.ndarray | None = None
    embeddings: np.ndarray | None = None  # (N, D) float, finite
    table: SidTable | None = None
    categories: np.ndarray | None = None  # (N,) int64 leaf category, -1 where unknown
    duration: np.ndarray | None = None  # (N,) float seconds, NaN where unknown
    # (E,) bool each: signals of every event of ``interactions`` beside those that it holds itself.
    signals: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {name: len(value) for name, value in self._of_items().items()}
        if not sizes:
            raise ValueError("PreferenceData: nothing tells the number of items; give embeddings, table or categories")
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(f"PreferenceData: expected one number of items, got {told}")
        if self.embeddings is not None:
            _check_embeddings(self.embeddings)
        for name, value in self.signals.items():
            if len(value) != len(self.interactions):
                raise ValueError(
                    f"PreferenceData.signals[{name!r}]: expected {len(self.interactions)} rows, got {len(value)}"
                )
        if isinstance(self.before, np.ndarray) and self.before.shape != np.shape(self.users):
            raise ValueError(
                f"PreferenceData.before: expected a time or one order for each of the {len(self.users)} users, got "
                f"shape {self.before.shape}"
            )
        self._check_log()

    def signal(self, name: str) -> np.ndarray:
        """``signals[name]`` of the events of ``log``, (E,) bool; ``ValueError`` for what is neither yes nor no."""
        values = np.asarray(self.signals[name])[self.rows]
        wrong = np.flatnonzero((values != 0) & (values != 1))  # NaN is neither
        if len(wrong):
            row, log = wrong[0], self.log
            raise ValueError(
                f"PreferenceData.signals[{name!r}] of user {log.user[row]} and item {log.item[row]} (order "
                f"{log.order[row]}) is {values[row]}; expected 0 or 1"
            )
        return values.astype(bool)

    def _of_items(self) -> dict[str, np.ndarray]:
        codes = None if self.table is None else self.table.codes
        known = {"embeddings": self.embeddings, "table": codes, "categories": self.categories}
        known["duration"] = self.duration
        return {name: value for name, value in known.items() if value is not None}

    def _check_log(self) -> None:
        log = self.log
        if not len(log):
            raise ValueError(
                f"PreferenceData: none of the {len(self.users)} users has an event in the log that may be read"
            )
        step = np.diff(log.user)
        if (step < 0).any() or ((step == 0) & (np.diff(log.order) <= 0)).any():
            raise ValueError("PreferenceData: the log must be sorted by user, then order; sort it first")
        wrong = np.flatnonzero((log.item < 0) | (log.item >= self.num_items))
        if len(wrong):
            row = wrong[0]
            raise ValueError(
                f"PreferenceData: user {log.user[row]} has item {log.item[row]}, but there are {self.num_items} items"
            )

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows that may be read, (E,) bool."""
        log = self.interactions
        users, place = np.unique(self.users, return_index=True)
        rows = np.isin(log.user, users)
        if isinstance(self.before, np.ndarray):
            first = self.before[place][np.searchsorted(users, log.user[rows])]
            rows[rows] = log.order[rows] < first
        elif self.before is not None:
            if log.time is None:
                raise ValueError("PreferenceData.before is a time, but the log has no times; give an order a user")
            untimed = np.flatnonzero(rows & ~np.isfinite(log.time))
            if len(untimed):
                row = untimed[0]
                raise ValueError(
                    f"PreferenceData: the time of user {log.user[row]}'s event in row {row} is {log.time[row]}; "
                    "expected seconds"
                )
            rows &= log.time < self.before
        return rows

    @cached_property
    def log(self) -> Interactions:
        """The rows that may be read."""
        return self.interactions.select(self.rows)

    @property
    def num_items(self) -> int:
        """Items N."""
        return len(next(iter(self._of_items().values())))

    def require(self, name: str, kind: str) -> np.ndarray:
        """The field of items called ``name``, or ``ValueError`` naming the model that lacks it."""
        value = self._of_items().get(name)
        if value is None:
            raise ValueError(f"preference {kind!r} needs PreferenceData.{name}, which this run does not have")
        return value

    @classmethod
    def of(
        cls,
        interactions: Interactions,
        splits: Splits,
        catalogue: Catalogue,
        embeddings: np.ndarray | None = None,
        table: SidTable | None = None,
    ) -> "PreferenceData":
        """What ``splits.training_log`` lets reward models read: training users, and of a user who is judged later only
        what comes before the validation target; in a chronological split only what comes before validation begins."""
        from sidgym.envs.splits import training_log

        return cls(
            training_log(interactions, splits),
            splits.train_users,
            embeddings=embeddings,
            table=table,
            categories=leaf_categories(catalogue),
            duration=catalogue.duration,
        )


def leaf_categories(catalogue: Catalogue) -> np.ndarray:
    """Number of each item's category path, -1 for items without one. (N,) int64."""
    paths = np.array(["\0".join(path) for path in catalogue.categories], dtype=str)
    _, leaf = np.unique(paths, return_inverse=True)
    return np.where(paths == "", -1, leaf.reshape(-1)).astype(np.int64)


def _check_embeddings(embeddings: np.ndarray) -> None:
    if embeddings.ndim != 2:
        raise ValueError(f"PreferenceData.embeddings: expected (items, width), got shape {embeddings.shape}")
    wrong = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(wrong):
        raise ValueError(
            f"PreferenceData.embeddings: expected finite numbers, but {len(wrong)} items have others, the first of "
            f"them item {wrong[0]}; embed them again"
        )
