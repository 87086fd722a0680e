"""The way out: item ids in, recommended item ids out.

    Recommender.load("runs/demo/rl").recommend([["i0007", "i0123"]], k=10)

Left out: serving over a network, and policies that are not sidgym checkpoints.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sidgym.agents.checkpoint import load_policy, read_info
from sidgym.agents.evaluate import first_places, rank_contexts
from sidgym.agents.policy import Policy
from sidgym.envs.records import PAD_ITEM, Episodes

BEAM = 50
"""Least width of the search."""


class Recommender:
    """A policy with the names of its items. ``history`` is how many of the latest items it reads."""

    def __init__(self, policy: Policy, history: int):
        self.policy = policy
        self.history = history
        self._rows = {str(name): row for row, name in enumerate(policy.table.item_ids)}

    @classmethod
    def load(cls, directory: str | Path) -> "Recommender":
        """Opens a checkpoint such as ``runs/demo/rl``. Raises ``CheckpointError`` for anything else."""
        return cls(load_policy(directory), int(read_info(directory).get("history", 20)))

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        allowed: Iterable[str] | None = None,
        batch: int = 64,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` best items for each history (oldest item first).

        ``allowed`` restricts the answer to these items (stock, a category) at run time, inside the trie. Returns item
        ids (B, k) and their log-probabilities (B, k) under the policy of the (restricted) trie, best first; where
        fewer than ``k`` SIDs exist, the ids end in "" and the scores in -inf. Items that share a SID stand together, in
        catalogue order, with one score. Raises ``ValueError`` for an item that is not in the catalogue.
        """
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be a whole number of at least 1, got {k!r}")
        if isinstance(allowed, str):
            raise ValueError("allowed: expected item ids, got one string; wrap it in a list")
        self.check(histories)
        if not len(histories):
            return np.empty((0, k), dtype=self.policy.table.item_ids.dtype), np.empty((0, k), dtype=np.float32)
        trie = None
        if allowed is not None:
            trie = self.policy.trie.restrict(np.array([self._row(name, "allowed") for name in allowed], dtype=np.int64))
        # A beam as wide as the list would answer k = 1 greedily; at this width lists are those that were evaluated.
        width = max(k, BEAM)
        found = rank_contexts(self.policy, self._episodes(histories), beam=width, batch=batch, trie=trie)
        items, group = first_places(found.items, k)
        scores = np.take_along_axis(found.score, group, axis=1)
        names = np.where(items == PAD_ITEM, "", self.policy.table.item_ids[items])
        return names, np.where(items == PAD_ITEM, -np.inf, scores).astype(np.float32)

    def check(self, histories: Sequence[Sequence[str]]) -> None:
        """Raises ``ValueError`` for a history that is no list and for an item that is not in the catalogue."""
        for number, history in enumerate(histories):
            if isinstance(history, str):
                raise ValueError(f"history {number}: expected a list of item ids, got the string {history!r}")
            for name in history:
                self._row(name, f"history {number}")

    def _row(self, name: str, where: str) -> int:
        row = self._rows.get(str(name))
        if row is None:
            example = ", ".join(list(self._rows)[:3])
            raise ValueError(
                f"{where}: unknown item {str(name)!r}; the catalogue has {len(self._rows)} items such as {example}"
            )
        return row

    def _episodes(self, histories: Sequence[Sequence[str]]) -> Episodes:
        rows = np.full((len(histories), self.history), PAD_ITEM, dtype=np.int64)
        for number, history in enumerate(histories):
            known = [self._row(name, f"history {number}") for name in list(history)[-self.history :]]
            if known:
                rows[number, -len(known) :] = known
        index = np.arange(len(histories))
        return Episodes(index, index, rows, np.zeros((len(histories), 1), dtype=np.int64))
