"""What every environment of this package is made of: many episodes side by side, as arrays.

A ``Dynamics`` holds ``size`` slots with an episode each and moves any of them at once. The vector environments step all
slots, the scalar environments are the view of one slot (``views``). Left out: spaces and everything else of Gymnasium,
so that learners on machines without it can use the same dynamics.
"""

import numbers
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Transition:
    """What one step of n slots returns."""

    reward: np.ndarray  # (n,) float64
    terminated: np.ndarray  # (n,) bool
    truncated: np.ndarray  # (n,) bool
    info: dict[str, np.ndarray]  # (n, ...) each


class Dynamics(Protocol):
    """``size`` episodes side by side; ``slots`` (n,) int64 are the ones that a call is about."""

    size: int

    def begin(self, slots: np.ndarray, rng: np.random.Generator, options: dict[str, Any]) -> dict[str, np.ndarray]:
        """Starts new episodes in the slots; info (n, ...). Raises ``ValueError`` for options that cannot be."""
        ...

    def step(self, slots: np.ndarray, actions: np.ndarray, rng: np.random.Generator) -> Transition:
        """Moves the slots by an action each, (n, ...). The caller begins a slot anew after its episode has ended."""
        ...

    def observe(self, slots: np.ndarray) -> dict[str, np.ndarray]:
        """What the agents in the slots see, (n, ...) each, freshly made: a later step changes no array given out."""
        ...

    def render(self, slot: int) -> str:
        """The episode of one slot as text."""
        ...


def check_count(name: str, value: Any, least: int = 1) -> int:
    """The value as an int. Raises ``ValueError`` for what is no integer of at least ``least``; a bool is none."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return int(value)


def repeats(values: np.ndarray) -> np.ndarray:
    """Whether an earlier entry of the same row is equal, (n, S) integers to (n, S) bool."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    again = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return again
