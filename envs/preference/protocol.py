"""What every preference model offers, so that rewards, the command line and reports need not know which one it is.

Left out: the models and their registry (``registry``).

Symbols: B contexts, T history length, K candidates.
"""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sidgym.envs.preference.data import PreferenceData


@runtime_checkable
class Preference(Protocol):
    """A fitted model of what a user wants.

    ``report`` holds JSON values: ``kind``, ``negatives`` (what the model took for a refusal, in words), ``epochs``, and
    figures of training users whom neither a gradient nor the calibration saw: ``auc``, ``log_loss``, ``base_log_loss``,
    ``base_rate``, ``ece``, ``ece_before`` calibration, ``reliability`` (see ``calibration.reliability``).
    """

    report: dict[str, Any]

    def score(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        """How much the users want the items, as a probability.

        Args:
            history: (B, T) item ids the user engaged with, oldest first, PAD_ITEM on the left.
            items: (B, K) item ids, or PAD_ITEM.

        Returns (B, K) float32 in [0, 1], 0 at PAD_ITEM. The same row gives the same scores (up to rounding), whatever
        stands in the other rows.
        """
        ...

    def save(self, directory: str | Path) -> None:
        """Write the model; ``preference.json`` holds ``kind``, the name under which ``load_preference`` finds it."""
        ...

    @classmethod
    def load(cls, directory: str | Path) -> "Preference":
        """Read what ``save`` wrote."""
        ...

    @classmethod
    def fit(cls, data: PreferenceData, seed: int = 0) -> "Preference":
        """Fit on the rows that ``data`` lets be read. The same seed gives the same weights. Models have further
        arguments, all by keyword and with defaults."""
        ...
