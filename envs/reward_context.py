"""What rewards are built from and share: the context, the protocols of models, and sums over the items of a SID.

Left out: the rewards themselves (``reward_terms``, ``reward_preference``, ``reward_adapters``) and their registry and
sum (``rewards``).

Symbols as in ``records``: N items, B contexts, G candidates a group, C items a SID, L levels, M targets.
"""

import functools
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sidgym.envs.records import PAD_ITEM, Catalogue, Episodes, Rollouts
from sidgym.sid.table import SidTable

Reward = Callable[[Episodes, Rollouts], np.ndarray | dict[str, np.ndarray]]
"""Whole groups to values (B, G), or to components {name: (B, G)} whose sum is the value."""


class PreferenceModel(Protocol):
    """A fitted model of engagement, such as ``preference.LoggedPreference``."""

    def score(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(B, T) and (B, K) item ids, PAD_ITEM allowed, to (B, K) in [0, 1]; 0 at padding."""
        ...


class TruePreference(Protocol):
    """The simulator's ground truth."""

    def preference(self, event_rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Rows (B,) of the log and item ids (B, K) to the probability of engagement (B, K)."""
        ...

    def preference_of_states(self, states: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Latent tastes (B, 3) and item ids (B, K) to the probability of engagement (B, K)."""
        ...


class GateChoice(Protocol):
    """What was chosen for the gate when the preference model was fitted, such as ``gate.Gate``."""

    @property
    def relevance(self) -> str: ...
    @property
    def classifier(self) -> Any: ...

    def threshold(self, relevance: Any) -> float:
        """The threshold for a relevance by name. Raises ``ValueError`` where none was chosen for it."""
        ...


@dataclass(frozen=True)
class RewardContext:
    """What rewards may be built from; a field that a run lacks is None, and a reward that needs it says so."""

    table: SidTable | None = None
    embeddings: np.ndarray | None = None  # (N, D) float, text embeddings of the items
    preference: PreferenceModel | None = None
    truth: TruePreference | None = None
    popularity: np.ndarray | None = None  # (N,) float, how often each item was engaged with in the training log
    catalogue: Catalogue | None = None
    gate: GateChoice | None = None

    def require(self, field: str, reward: str) -> Any:
        """The field, or ``ValueError`` naming the reward that lacks it."""
        value = getattr(self, field)
        if value is None:
            raise ValueError(f"reward {reward!r} needs RewardContext.{field}, which this run does not have")
        return value

    def unit_embeddings(self, reward: str) -> np.ndarray:
        """``unit_rows`` of the embeddings, (N, D) float32, read-only: one array for all rewards.

        Raises ``ValueError`` as ``require`` does.
        """
        self.require("embeddings", reward)
        return self._unit_embeddings

    @functools.cached_property
    def _unit_embeddings(self) -> np.ndarray:
        assert self.embeddings is not None
        vectors = unit_rows(self.embeddings)
        vectors.flags.writeable = False
        return vectors


def is_member(items: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Whether each item (B, G, C) is one of its row's members (B, M); padding never is. (B, G, C) bool."""
    return (items[..., None] == members[:, None, None, :]).any(axis=-1) & (items != PAD_ITEM)


def mean_over_items(values: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Expectation of per-item values (B, G, C) over the items of each candidate's SID; 0 where it has none. (B, G)."""
    real = items != PAD_ITEM
    return np.where(real, values, 0.0).sum(axis=-1) / np.maximum(real.sum(axis=-1), 1)


def wanted_items(episodes: Episodes, any_positive: bool) -> np.ndarray:
    """The items that count as the answer: all of D+ (B, M), or the target alone (B, 1)."""
    return episodes.targets if any_positive else episodes.targets[:, :1]


def common_prefix(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Levels that two SIDs share from the root on, (..., L) and (..., L), broadcast, to (...) int64."""
    # Level by level: the (..., L) comparison of a whole group with a whole history would be L times larger.
    shape = np.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    same, depth = np.ones(shape, dtype=bool), np.zeros(shape, dtype=np.int64)
    for level in range(first.shape[-1]):
        same &= first[..., level] == second[..., level]
        depth += same
    return depth


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows (N, D) at length 1, float32; an item without text has a zero vector (or NaN) and gets a zero one:
    similar to nothing."""
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def check_choice(reward: str, argument: str, value: str, choices: tuple[str, ...]) -> None:
    """``ValueError`` that lists the choices for an argument which is none of them."""
    if value not in choices:
        raise ValueError(f"reward {reward!r}: {argument} must be one of {choices}, got {value!r}")


def check_flag(reward: str, argument: str, value: object) -> None:
    """``ValueError`` for an argument that is neither true nor false."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"reward {reward!r}: {argument} must be true or false, got {value!r}")


def check_number(reward: str, argument: str, value: object, hint: str = "") -> None:
    """``ValueError``, with a hint behind it, for an argument that is no finite number; a bool is none."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"reward {reward!r}: {argument} must be a finite number, got {value!r}{hint}")
