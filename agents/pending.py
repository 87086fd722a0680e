"""Rollouts that were drawn and not yet learned from, and how old the weights may be that drew them.

With ``rl.staleness = s`` the groups of iteration n are drawn with the weights of iteration max(0, n - s): when the
weights of iteration n are there, iteration n + s is drawn, and iteration n is learned from. The lag is fixed, so the
result does not depend on who is how fast. What waits goes into checkpoints as it is, and a resumed run draws nothing
twice. The last s rollouts of a run are drawn for nothing.

Left out: drawing (``update``) and who does it (``trainer``, ``rllib_parts``).
"""

import zlib
from collections.abc import Mapping
from dataclasses import fields

import numpy as np
import torch

from sidgym.agents.config import RlConfig
from sidgym.agents.update import GroupBatch, Groups

PENDING = "pending/"
"""Prefix of what ``pending_tensors`` gives."""


def pending_tensors(pending: Mapping[int, Groups]) -> dict[str, torch.Tensor]:
    """Rollouts by iteration as named tensors; inverse of ``pending_groups``."""
    out: dict[str, torch.Tensor] = {}
    for number, (batch, figures) in pending.items():
        arrays = {f"groups/{f.name}": getattr(batch, f.name) for f in fields(GroupBatch)}
        arrays |= {f"figures/{name}": values for name, values in figures.items()}
        out |= {f"{PENDING}{number}/{name}": torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    return out


def pending_groups(tensors: Mapping[str, torch.Tensor]) -> dict[int, Groups]:
    """Rollouts by iteration from tensors of ``pending_tensors``; other names are passed over."""
    found: dict[int, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
    for key, value in tensors.items():
        if key.startswith(PENDING):
            number, kind, name = key.removeprefix(PENDING).split("/", 2)
            parts = found.setdefault(int(number), ({}, {}))
            parts[kind == "figures"][name] = value.cpu().numpy()
    return {number: (GroupBatch(**groups), figures) for number, (groups, figures) in sorted(found.items())}


def updates_per_iteration(config: RlConfig) -> int:
    """Optimiser steps of one iteration."""
    size = config.contexts_per_step
    return config.epochs * -(-size // (config.minibatch or size))


def check_versions(batch: GroupBatch, updates: int, config: RlConfig) -> None:
    """Refuses groups that older weights drew than ``config.staleness`` allows, or newer ones than there are.

    ``updates`` are the optimiser steps done before the first on ``batch``. Raises ``RuntimeError``.
    """
    oldest = max(0, updates - config.staleness * updates_per_iteration(config))
    wrong = sorted({int(v) for v in batch.version if not oldest <= v <= updates})
    if wrong:
        raise RuntimeError(
            f"groups were drawn with weights of {wrong[0]} optimiser steps; expected {oldest} to {updates} with "
            f"rl.staleness = {config.staleness}: an engine or env runner did not take the weights that it was sent"
        )


def account(batch: GroupBatch, updates: int) -> dict[str, float]:
    """What is learned from in an iteration, to be logged.

    ``sampling/version_lag_max`` and ``_mean``: optimiser steps between the weights that drew a group and those that
    learn from it first. ``contexts/groups`` and ``contexts/checksum``: how many groups, and a checksum (CRC-32) of
    their contexts' numbers in order, so that a log shows whether any was skipped or learned from twice.
    """
    lag = updates - batch.version
    return {
        "sampling/version_lag_max": float(lag.max()),
        "sampling/version_lag_mean": float(lag.mean()),
        "contexts/groups": float(len(batch)),
        "contexts/checksum": checksum(batch.context),
    }


def checksum(contexts: np.ndarray) -> float:
    """CRC-32 of context numbers (B,) in their order."""
    return float(zlib.crc32(np.ascontiguousarray(contexts, dtype="<i8").tobytes()))
