"""What every baseline keeps: it is fitted on sequences and validation contexts, and ranks items for histories.

A baseline is a function ``fit(data, seed, directory=None, on_epoch=None, **settings)`` that returns something with
``rank`` and a ``report``; ``registry`` knows them by name. Left out: judging, which is the same for every system.

Symbols: B contexts, T history length, N items.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sidgym.envs.records import Episodes, Sequences
from sidgym.sid.table import SidTable

OnEpoch = Callable[[dict[str, Any]], None]
"""Called with the figures of each validation."""


@dataclass(frozen=True)
class BaselineData:
    """What a baseline may read."""

    sequences: Sequences  # training sequences, one a user
    valid: Episodes  # contexts on which training is stopped; no weight ever learns from them
    num_items: int  # N
    table: SidTable | None = None  # of the items; for baselines that generate SIDs

    def __post_init__(self) -> None:
        if self.table is not None and self.table.num_items != self.num_items:
            raise ValueError(f"the SID table has {self.table.num_items} items, the data {self.num_items}")
        if len(self.sequences.items) and int(self.sequences.items.max()) >= self.num_items:
            raise ValueError(f"item {int(self.sequences.items.max())} is beyond the {self.num_items} items of the data")


class Baseline(Protocol):
    """A fitted baseline."""

    @property
    def report(self) -> dict[str, Any]:
        """How it was fitted: settings, and for what is trained epochs, validations, parameters and seconds."""

    def rank(self, history: np.ndarray, k: int) -> np.ndarray:
        """The ``k`` best next items (B, k) int64, best first, after histories (B, T), PAD_ITEM on the left.

        Items of the history may stand in the list. What generates SIDs may find fewer; PAD_ITEM fills the end.
        Raises ``ValueError`` for ``k`` above the number of items.
        """


Fit = Callable[..., Baseline]
"""``(data, seed, directory=None, on_epoch=None, **settings) -> Baseline``; training goes on from ``directory``."""


def check_k(k: int, num_items: int) -> None:
    """Raises ``ValueError`` for a list that is longer than the catalogue or empty."""
    if not 1 <= k <= num_items:
        raise ValueError(f"k should be between 1 and the {num_items} items, got {k}")
