"""What every baseline keeps: it is fitted on sequences and validation contexts, and ranks items for histories.

A baseline is a function ``fit(data, seed, directory=None, on_epoch=None, **settings)`` that returns something with
``rank`` and a ``report``; ``registry`` knows them by name. Left out: judging, which is the same for every system.

Symbols: B contexts, T history length, N items.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from sidgym.envs.records import Episodes, Sequences
from sidgym.sid.table import SidTable

OnEpoch = Callable[[dict[str, Any]], None]
"""Called with the figures of each validation."""


@dataclass(frozen=True)
class BaselineData:
    """What a baseline may read. ``ValueError`` where it does not fit together, and for items that share a SID.

    Lists are judged item by item, so a SID has to say which one; ``envs.metrics`` knows groups of items.
    """

    sequences: Sequences  # training sequences, one a user
    valid: Episodes  # contexts on which training is stopped; no weight ever learns from them
    num_items: int  # N
    table: SidTable | None = None  # of the items; for baselines that generate SIDs

    def __post_init__(self) -> None:
        if self.table is not None and self.table.num_items != self.num_items:
            raise ValueError(f"the SID table has {self.table.num_items} items, the data {self.num_items}")
        if self.table is not None and self.table.collision_count():
            raise ValueError(
                f"expected a SID of its own for every item, and {self.table.collision_count()} of {self.num_items} "
                "share theirs with others; take SIDs without collisions, such as rkmeans_zcr"
            )
        if len(self.sequences.items) and int(self.sequences.items.max()) >= self.num_items:
            raise ValueError(f"item {int(self.sequences.items.max())} is beyond the {self.num_items} items of the data")

    @cached_property
    def repeats(self) -> bool:
        """Whether any user of the training sequences takes an item twice."""
        user = np.repeat(np.arange(len(self.sequences)), np.diff(self.sequences.offsets))
        return len(np.unique(user * self.num_items + self.sequences.items)) < len(user)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that may be read: a training belongs to its data, wherever they stand."""
        digest = hashlib.sha256(f"{self.num_items} {self.table.content_hash() if self.table else ''}".encode())
        add_arrays(digest, self.sequences.items, self.sequences.offsets, self.valid.history, self.valid.target)
        return digest.hexdigest()


class Baseline(Protocol):
    """A fitted baseline."""

    @property
    def report(self) -> dict[str, Any]:
        """How it was fitted: settings, and for what is trained epochs, validations, parameters and seconds."""

    def rank(self, history: np.ndarray, k: int) -> np.ndarray:
        """The ``k`` best next items (B, k) int64, best first, after histories (B, T), PAD_ITEM on the left.

        Items of the history may stand in the list (``lists`` takes them out). What generates SIDs may find fewer;
        PAD_ITEM fills the end. Raises ``ValueError`` for ``k`` above the number of items.
        """


def add_arrays(digest: Any, *arrays: np.ndarray) -> None:
    """Adds whole numbers and their shapes to a digest of ``hashlib``."""
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array, dtype="<i8").data)


Fit = Callable[..., Baseline]
"""``(data, seed, directory=None, on_epoch=None, **settings) -> Baseline``; training goes on from ``directory``."""


def check_k(k: int, num_items: int) -> None:
    """Raises ``ValueError`` for a list that is longer than the catalogue or empty."""
    if not 1 <= k <= num_items:
        raise ValueError(f"k should be between 1 and the {num_items} items, got {k}")
