"""Updates that were refused because a loss or a gradient was not finite: what they were to learn from is kept.

    training/refused/00000017.npz   one update's groups, and why it was refused; opened without unpickling anything

Left out: the refusal itself (``microbatches``).
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from sidgym.agents.update import GroupBatch

IN_A_ROW = "refused_in_a_row"


class Refusals:
    """Counts updates that were refused one after another, and writes their batches down."""

    def __init__(self, limit: int, directory: str):
        self.limit, self.directory = limit, directory
        self.in_a_row = 0

    def record(self, batch: GroupBatch, parts: Sequence[np.ndarray], first: int, refused: Mapping[int, str]) -> None:
        """Looks at the updates of one iteration, the first of them number ``first``.

        ``parts`` are the rows of ``batch`` that each was to learn from; ``refused`` says of some why nothing was
        changed. Raises ``FloatingPointError`` with the last reason when ``limit`` in a row were refused.
        """
        for update, rows in enumerate(parts, first):
            if update not in refused:
                self.in_a_row = 0
                continue
            self.in_a_row += 1
            where = self._keep(batch.take(rows), update, refused[update])
            line = f"update {update} was refused: {refused[update]}; weights and optimiser are as before. {where}"
            print(line, file=sys.stderr, flush=True)
            if self.in_a_row >= self.limit:
                raise FloatingPointError(
                    f"{self.in_a_row} updates in a row were refused (rl.refusals = {self.limit}), the last, number "
                    f"{update}, because {refused[update]}. {where} A smaller rl.lr, rl.clip or rl.max_grad_norm may "
                    "help; an objective or reward of one's own may divide by zero"
                )

    def tensors(self) -> dict[str, torch.Tensor]:
        """What must be kept to go on counting."""
        return {IN_A_ROW: torch.tensor(self.in_a_row)} if self.in_a_row else {}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Inverse of ``tensors``; other names are passed over."""
        self.in_a_row = int(tensors.get(IN_A_ROW, 0))

    def _keep(self, batch: GroupBatch, update: int, why: str) -> str:
        """Writes the groups; where they are, in words."""
        if not self.directory:
            return "Its groups were not kept: the task names no folder for them."
        path = Path(self.directory) / f"{update:08d}.npz"
        fresh = path.with_suffix(".writing")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                np.savez(file, **vars(batch), why=np.array(why), update=np.array(update))
            os.replace(fresh, path)
        except OSError as error:
            return f"Its groups could not be kept in {path}: {error}."
        return f"Its groups are in {path}."
