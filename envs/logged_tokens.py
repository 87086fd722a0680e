"""The dynamics of logged contexts, one code after another: what ``SIDGym/NextToken-v0`` is a view of. No Gymnasium.

Left out: whole SIDs, groups and pages (``logged``).

Symbols: n slots, T history length, L levels, K codes on the widest level.
"""

from typing import Any

import numpy as np
import torch

from sidgym.envs.dynamics import Transition
from sidgym.envs.logged import NO_CODE, LoggedContexts, answer
from sidgym.envs.records import PAD_ITEM, Catalogue, Episodes
from sidgym.envs.render import path_text
from sidgym.envs.rewards import RewardSum
from sidgym.sid.table import SidTable

FEATURES = ("one_hot", "codes")
"""How an observation is written."""


class TokenDynamics(LoggedContexts):
    """L steps: a context is answered code by code; see ``NextTokenEnv``.

    ``features`` is ``"one_hot"`` or ``"codes"``.
    """

    def __init__(
        self,
        size: int,
        episodes: Episodes,
        table: SidTable,
        reward: RewardSum,
        features: str = "one_hot",
        catalogue: Catalogue | None = None,
    ) -> None:
        super().__init__(size, episodes, table, catalogue)
        if features not in FEATURES:
            raise ValueError(f"features must be one of {FEATURES}, got {features!r}")
        self.reward, self.features, self.width = reward, features, max(table.sizes)
        self._codes = np.full((size, table.levels), NO_CODE)  # the legal ones chosen so far
        self._refused = np.full(size, NO_CODE)
        self._level = np.zeros(size, dtype=np.int64)
        self._node = np.zeros(size, dtype=np.int64)
        self._ended = np.zeros(size, dtype=bool)

    def begin(self, slots: np.ndarray, rng: np.random.Generator, options: dict[str, Any]) -> dict[str, np.ndarray]:
        """See ``LoggedContexts.begin``."""
        info = super().begin(slots, rng, options)
        self._codes[slots] = NO_CODE
        self._level[slots] = self._node[slots] = 0
        self._ended[slots] = False
        return info

    def step(self, slots: np.ndarray, actions: np.ndarray, rng: np.random.Generator) -> Transition:
        """Actions (n,), the next code of each slot; the reward comes with the last one."""
        actions = actions.astype(np.int64)
        node = self.table.trie.step(torch.from_numpy(self._node[slots]), torch.from_numpy(actions)).numpy()
        legal = node >= 0
        going = slots[legal]
        self._codes[going, self._level[going]] = actions[legal]
        self._node[going] = node[legal]
        self._level[going] += 1
        self._refused[slots] = actions
        complete = legal & (self._level[slots] == self.table.levels)
        ended = complete | ~legal
        self._ended[slots] = ended
        reward, item = np.zeros(len(slots)), np.full(len(slots), PAD_ITEM)
        if complete.any():
            done = slots[complete]
            values, _, rollouts = answer(self.contexts(done), self._codes[done][:, None], self.table, self.reward)
            reward[complete], item[complete] = values[:, 0], rollouts.item[:, 0]
        target = np.where(ended, self.episodes.target[self._row[slots]], PAD_ITEM)
        return Transition(reward, ended, np.zeros_like(ended), {"legal": legal, "item": item, "target": target})

    def masks(self, slots: np.ndarray) -> np.ndarray:
        """Codes that continue a SID, (n, K) bool; those of the root where the episode is over."""
        mask = np.zeros((len(slots), self.width), dtype=bool)
        level = np.where(self._ended[slots], 0, self._level[slots])
        node = torch.from_numpy(np.where(self._ended[slots], 0, self._node[slots]))
        for here in np.unique(level):
            rows = np.flatnonzero(level == here)
            mask[rows, : self.table.sizes[here]] = self.table.trie.children_mask(node[rows], int(here)).numpy()
        return mask

    def observe(self, slots: np.ndarray) -> dict[str, np.ndarray]:
        """``observations`` (n, D) and ``action_mask`` (n, K), both float32."""
        history, _ = self.histories(slots)
        codes = np.concatenate([history, self._codes[slots][:, None]], axis=1)
        flat = _one_hot(codes, self.table.sizes) if self.features == "one_hot" else codes.reshape(len(slots), -1)
        level = self._level[slots, None]
        if self.features == "one_hot":
            level = level == np.arange(self.table.levels)
        observations = np.concatenate([flat, level], axis=1, dtype=np.float32)
        return {"observations": observations, "action_mask": self.masks(slots).astype(np.float32)}

    def render(self, slot: int) -> str:
        """The history by title, the codes chosen so far and the choices that each had; at the end the reward."""
        level = int(self._level[slot])
        codes = self._codes[slot]
        lines = [self.context_line(slot)]
        if level == self.table.levels:
            lines += self.answer_lines(slot, codes[None], self.reward)
        elif self._ended[slot]:
            lines.append(f"  path     {path_text(np.append(codes[:level], self._refused[slot]), self.table)}")
        else:
            choices = int(self.masks(np.array([slot])).sum())
            words = [path_text(codes[:level], self.table), f"next: {choices} code{'s' * (choices > 1)}"]
            lines.append(f"  path     {' '.join(filter(None, words))}")
        if self._ended[slot]:
            lines.append(self.target_line(slot))
        return "\n".join(lines)


def _one_hot(codes: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Codes (n, R, L), -1 allowed, to (n, R * sum(sizes)) float32."""
    count, rows, _ = codes.shape
    width = sum(sizes)
    place = codes + np.append(0, np.cumsum(sizes)[:-1]) + width * np.arange(rows)[:, None]
    flat = np.zeros((count, rows * width), dtype=np.float32)
    real = codes != NO_CODE
    flat[np.nonzero(real)[0], place[real]] = 1
    return flat
