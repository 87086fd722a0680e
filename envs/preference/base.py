"""A preference model that is a torch network and a calibration: scoring in bounded memory, saving and loading.

Left out: fitting, which is up to each model.

Symbols: B contexts, T history length, K candidates.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from sidgym.envs.preference.body import SHORT, Shape
from sidgym.envs.preference.calibration import Calibrator
from sidgym.envs.preference.search import CHUNK
from sidgym.envs.preference.training import single_thread
from sidgym.envs.records import PAD_ITEM
from sidgym.sid.table import write_atomically

SCHEMA_VERSION = 1
"""Of the directory that ``save`` writes."""

CELLS = 1 << 23
"""Numbers of one intermediate result while scoring."""


class NetworkPreference:
    """Logits of a network, calibrated. A subclass names its ``kind``, ``network_type`` and ``shape_type``.

    ``network.shape`` is a dataclass of plain values from which ``network_type`` builds an empty network.
    """

    kind: ClassVar[str]
    network_type: ClassVar[Any]
    shape_type: ClassVar[Any] = Shape

    def __init__(self, network: Any, calibrator: Calibrator, report: dict[str, Any]) -> None:
        self.network = network.eval()
        self.calibrator = calibrator
        self.report = report

    def to(self, device: str | torch.device) -> Self:
        """Score on another device from now on; fitting is on the CPU."""
        self.network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def score(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Calibrated probability of the model's label; see ``protocol.Preference.score``.

        Raises ``ValueError`` for an item that does not exist and for a score that is not a number.
        """
        probability = self.calibrator(self.logits(history, items)).astype(np.float32)
        return np.where(items == PAD_ITEM, np.float32(0.0), probability)

    def logits(
        self, history: np.ndarray, items: np.ndarray, forward: Callable[..., Tensor] | None = None
    ) -> np.ndarray:
        """Logits before calibration, (B, K) float32; without meaning at PAD_ITEM. ``forward`` in place of the
        network's own may give more than one logit an item, (B, K, X)."""
        count = self.network.shape.items
        check_items(history, count, "history")
        check_items(items, count, "items")
        columns, rows = self._at_once(history.shape[1], items.shape[1])
        # Copies: what a reward is given may be read-only, which torch does not know.
        past, shown = (
            torch.from_numpy(np.array(array, dtype=np.int64, order="C")).to(self.device) for array in (history, items)
        )
        forward = forward or self.network
        with torch.inference_mode(), single_thread():
            blocks = [
                torch.cat([forward(h, part) for part in i.split(columns, dim=1)], dim=1)
                for h, i in zip(past.split(rows), shown.split(rows))
            ]
            out = torch.cat(blocks).cpu().numpy() if len(past) else np.zeros(items.shape, dtype=np.float32)
        check_scores(out, history, items, self.kind)
        return out

    def _at_once(self, length: int, count: int) -> tuple[int, int]:
        """Candidates and contexts that are worked on together."""
        shape = self.network.shape
        one = shape.hidden * (shape.found if shape.search != "none" else 0) + min(length, CHUNK)
        one = max(one, shape.embedding, shape.heads * max(shape.recent, min(length, SHORT * shape.found)))
        columns = max(1, min(count, CELLS // one))
        vectors = min(length, CHUNK) * (shape.embedding if shape.search == "soft" else 1)
        return columns, max(1, CELLS // max(one * columns, vectors))

    def save(self, directory: str | Path) -> None:
        """Write ``preference.safetensors`` (weights, and what is known of the items) and ``preference.json``."""
        from safetensors.torch import save

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        header = {"schema_version": SCHEMA_VERSION, "kind": self.kind, "shape": asdict(self.network.shape)}
        header |= {"calibration": self.calibrator.to_json(), "report": self.report}
        text = json.dumps(header, allow_nan=False)  # fails before anything is written
        write_atomically(directory / "preference.safetensors", save(self.network.state_dict()))
        write_atomically(directory / "preference.json", text.encode())

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read what ``save`` wrote; ``ValueError`` for another kind or schema version."""
        from safetensors.torch import load

        directory = Path(directory)
        header: dict[str, Any] = json.loads((directory / "preference.json").read_text())
        found = header.get("schema_version"), header.get("kind", "din")
        if found != (SCHEMA_VERSION, cls.kind):
            raise ValueError(
                f"{directory}: expected schema_version {SCHEMA_VERSION} of kind {cls.kind!r}, got {found[0]} of "
                f"{found[1]!r}; load it with load_preference, or fit it again"
            )
        network = cls.network_type(cls.shape_type(**header["shape"]))
        network.load_state_dict(load((directory / "preference.safetensors").read_bytes()))
        return cls(network, Calibrator.from_json(header["calibration"]), header["report"])


def check_scores(scores: np.ndarray, history: np.ndarray, items: np.ndarray, kind: str) -> None:
    """Raises ``ValueError`` for a score (B, K, ...) that is not a number, naming its item and its history."""
    wrong = np.argwhere(np.isnan(scores))
    if len(wrong):
        row, column = wrong[0][:2].tolist()
        raise ValueError(
            f"preference {kind!r}: the score of item {items[row, column]} after history "
            f"{history[row][history[row] != PAD_ITEM][-5:].tolist()} is nan; the weights are damaged, fit it again"
        )


def check_items(items: np.ndarray, count: int, what: str) -> None:
    """Raises ``ValueError`` for an id that is neither PAD_ITEM nor one of ``count`` items, naming its row."""
    wrong = np.argwhere((items < PAD_ITEM) | (items >= count))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise ValueError(f"score: {what} row {row} holds item {items[row, column]}, but the model knows {count} items")
