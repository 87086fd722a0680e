"""Two views of a ``Dynamics``: a Gymnasium environment with one episode, and a vector environment with all of them.

Both call the same functions; the scalar view is the batch of one. Left out: what is observed, done and rewarded, which
stands in the dynamics and in the class of each environment.
"""

from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from sidgym.envs.dynamics import Dynamics

RENDER_MODES = ["ansi"]

_FIRST = np.zeros(1, dtype=np.int64)


class ScalarView(gymnasium.Env[dict[str, Any], Any]):
    """One episode at a time of dynamics with one slot."""

    metadata = {"render_modes": RENDER_MODES, "render_fps": 1}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(
        self,
        dynamics: Dynamics,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        render_mode: str | None = None,
    ) -> None:
        check_render_mode(render_mode)
        self.dynamics = dynamics
        self.observation_space, self.action_space = observation_space, action_space
        self.render_mode = render_mode
        self._begun = self._open = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode; the class's page says which options there are."""
        super().reset(seed=seed)
        info = self.dynamics.begin(_FIRST, self.np_random, dict(options or {}))
        self._begun = self._open = True
        return _first_row(self.dynamics.observe(_FIRST)), _plain(info)

    def step(self, action: Any) -> tuple[dict[str, Any], SupportsFloat, bool, bool, dict[str, Any]]:
        """One step. Raises ``ResetNeeded`` outside an episode and ``ValueError`` for an action of the wrong shape."""
        if not self._open:
            raise gymnasium.error.ResetNeeded("call reset() before step(): there is no episode, or it is over")
        actions = check_action(np.asarray(action), self.action_space)[None]
        moved = self.dynamics.step(_FIRST, actions, self.np_random)
        terminated, truncated = bool(moved.terminated[0]), bool(moved.truncated[0])
        self._open = not (terminated or truncated)
        observation = _first_row(self.dynamics.observe(_FIRST))
        return observation, float(moved.reward[0]), terminated, truncated, _plain(moved.info)

    def render(self) -> str | None:  # type: ignore[override]
        """The episode as text; None without a render mode."""
        if self.render_mode is None:
            return None
        return self.dynamics.render(0) if self._begun else "no episode yet: call reset()"


class VectorView(VectorEnv[dict[str, Any], Any, np.ndarray]):
    """All slots at once, arrays end to end.

    ``reset(options={"reset_mask": (B,) bool})`` begins the marked episodes only. Infos are dictionaries of arrays with
    a boolean ``_key`` beside each ``key``, as Gymnasium's own vector environments give them. Where ``autoreset_mode``
    is ``SAME_STEP``, ``final_obs`` and ``final_info`` hold the last ones of the episodes that ended. ``final_obs`` is a
    dictionary of arrays (B, ...) like every observation, where Gymnasium has an array of B dictionaries.

    Under ``SAME_STEP`` ``render`` shows the episodes that have just begun; the others show how one ended.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
    ) -> None:
        check_render_mode(render_mode)
        self.dynamics, self.num_envs = dynamics, dynamics.size
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, self.num_envs)
        self.action_space = batch_space(action_space, self.num_envs)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {
            "render_modes": RENDER_MODES,
            "render_fps": 1,
            "autoreset_mode": self.autoreset_mode,
        }
        self.render_mode = render_mode
        self._all = np.arange(self.num_envs)
        self._ended = np.ones(self.num_envs, dtype=bool)
        self._begun = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode in every slot, or in those of ``options["reset_mask"]``."""
        super().reset(seed=seed)
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        slots = self._all if mask is None else self._all[_check_mask(mask, self.num_envs)]
        if len(slots) < self.num_envs and not self._begun:
            raise gymnasium.error.ResetNeeded("call reset() without reset_mask first: no slot has an episode yet")
        info = self.dynamics.begin(slots, self.np_random, options)
        self._ended[slots], self._begun = False, True
        return self.dynamics.observe(self._all), _spread(info, slots, self.num_envs)

    def step(self, actions: Any) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every slot; what happens where an episode has ended is the business of ``autoreset_mode``."""
        if not self._begun:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        actions = check_action(np.asarray(actions), self.action_space)
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            raise gymnasium.error.ResetNeeded(
                f"the episodes of slots {np.flatnonzero(self._ended)[:5].tolist()} are over and autoreset_mode is "
                'DISABLED: call reset(options={"reset_mask": ...}) first'
            )
        due = self._all[self._ended]
        going = self._all[~self._ended] if len(due) else self._all
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)
        info: dict[str, Any] = {}
        if len(due):
            info = _spread(self.dynamics.begin(due, self.np_random, {}), due, self.num_envs)
        if len(going):
            moved = self.dynamics.step(going, actions[going] if len(due) else actions, self.np_random)
            reward[going], terminated[going], truncated[going] = moved.reward, moved.terminated, moved.truncated
            info = _merge(info, _spread(moved.info, going, self.num_envs))
        self._ended = terminated | truncated
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any():
            info = self._begin_in_same_step(info)
        return self.dynamics.observe(self._all), reward, terminated, truncated, info

    def _begin_in_same_step(self, info: dict[str, Any]) -> dict[str, Any]:
        """Begins the ended episodes anew; their last observation and info move to ``final_obs`` and ``final_info``."""
        ended = self._all[self._ended]
        still = ~self._ended
        final = {"final_obs": _spread(self.dynamics.observe(ended), ended, self.num_envs)}
        final["final_info"] = _only(info, self._ended)
        kept = _only(info, still) if still.any() else {}
        begun = _spread(self.dynamics.begin(ended, self.np_random, {}), ended, self.num_envs)
        self._ended = np.zeros(self.num_envs, dtype=bool)
        marked = {f"_{key}": ~still for key in final}
        return {**_merge(kept, begun), **final, **marked}

    def render(self) -> tuple[str, ...] | None:  # type: ignore[override]
        """Every episode as text; None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(self.dynamics.render(slot) for slot in range(self.num_envs))


def check_render_mode(render_mode: str | None) -> None:
    """Raises ``ValueError`` for a render mode that there is not."""
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode must be 'ansi' or None, got {render_mode!r}")


def check_action(action: np.ndarray, space: spaces.Space[Any]) -> np.ndarray:
    """The action, if it holds integers of the space's shape. Whether it is a member is the business of the dynamics."""
    if action.shape != space.shape or not np.issubdtype(action.dtype, np.integer):
        raise ValueError(f"step: expected integers of shape {space.shape}, got {action.dtype} {action.shape}")
    return action


def _first_row(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {key: value[0] for key, value in arrays.items()}


def _plain(info: dict[str, np.ndarray]) -> dict[str, Any]:
    """The first row, numbers as Python's own."""
    return {key: value[0].item() if value.ndim == 1 else value[0] for key, value in info.items()}


def _check_mask(mask: Any, size: int) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.shape != (size,) or mask.dtype != np.bool_ or not mask.any():
        raise ValueError(
            f"reset: expected a boolean reset_mask ({size},) with at least one True, got {mask.dtype} {mask}"
        )
    return mask


def _spread(arrays: dict[str, np.ndarray], slots: np.ndarray, size: int) -> dict[str, Any]:
    """Rows of some slots as rows of all, zeros elsewhere, with a mask ``_key`` beside each ``key``."""
    if len(slots) == size:
        present = np.ones(size, dtype=bool)
        return {name: value for key, rows in arrays.items() for name, value in ((key, rows), (f"_{key}", present))}
    out: dict[str, Any] = {}
    for key, rows in arrays.items():
        out[key] = np.zeros((size, *rows.shape[1:]), dtype=rows.dtype)
        out[key][slots] = rows
        out[f"_{key}"] = np.zeros(size, dtype=bool)
        out[f"_{key}"][slots] = True
    return out


def _only(info: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """A spread info of the given rows (bool, one a slot), zeros and False masks elsewhere, as ``_spread`` has them."""
    if rows.all():
        return info
    out = {}
    for key, value in info.items():
        out[key] = value.copy()
        out[key][~rows] = 0
    return out


def _merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two spread infos as one; where a key stands in both, each row comes from the one that has it."""
    out = {**first, **second}
    for key in first.keys() & second.keys():
        if key[0] != "_":
            mask = second[f"_{key}"]
            out[key] = np.where(mask.reshape(-1, *[1] * (second[key].ndim - 1)), second[key], first[key])
            out[f"_{key}"] = first[f"_{key}"] | mask
    return out
