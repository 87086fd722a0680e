"""Adapters: reward functions written for TRL or verl, run unchanged on whole groups of SIDs.

Both kinds read text. A SID is written as its tokens, ``<a_12><b_7><c_201>`` (``SidTable.tokens``), a history as
those of its items one after another, oldest first; a code that is no token of its level is written as nothing. What a
function compares is thus the SID: where several items share one, a match is not weighed by how many they are.

Left out: TRL's conversational form (lists of messages), functions that are coroutines, and reward models that TRL or
verl load themselves.

Symbols as in ``records``: B contexts, G candidates a group, L levels.
"""

import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sidgym.envs.records import PAD_ITEM, Episodes, Rollouts
from sidgym.envs.reward_context import RewardContext, check_choice
from sidgym.sid.registry import resolve
from sidgym.sid.table import SidTable

TRL_COLUMNS = ("target", "target_item", "item", "history", "user", "rank")
"""Columns that TRL functions are given beside prompts, completions and completion_ids."""


class TrlReward:
    """A TRL reward function, ``f(prompts, completions, **columns) -> list[float | None]``. (B, G) float32.

    It is called once with all B * G candidates, group after group, by keyword as TRL calls it: ``prompts`` (the
    history's tokens, the same G times), ``completions`` (the candidate's tokens), ``completion_ids`` (its tokens
    numbered level after level, from 0), and the columns, a list with an entry a candidate each: ``target`` (SID text),
    ``target_item``, ``item`` (the data set's ids; ``""`` where there is none), ``history`` (list of ids), ``user``,
    and ``rank`` (1 = most probable of its group). A function without ``**kwargs`` gets those that it names. None means
    "not applicable" and is worth 0, as in TRL's sum. Source: TRL, "Using a custom reward function" of GRPOTrainer.

    function: ``package.module:name``, or in code the function itself.
    columns: more names for columns, such as ``{"solution": "target"}``.

    Raises ``ValueError`` for a function that needs a column which is not there.
    """

    requires = ("table",)

    def __init__(
        self,
        context: RewardContext,
        function: str | Callable[..., Any],
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self.check(function, columns)
        self.function, self.about = _function("trl", function), _spelt(function)
        self.texts = _Texts(context.require("table", "trl"))
        self.columns = dict(columns or {})

    @staticmethod
    def check(function: str | Callable[..., Any], columns: Mapping[str, str] | None = None) -> None:
        """Raises ``ValueError`` for a function that cannot be found, or called with these columns."""
        _check_table("trl", "columns", columns, str)
        for column in (columns or {}).values():
            check_choice("trl", "columns", column, TRL_COLUMNS)
        known = dict.fromkeys(["prompts", "completions", "completion_ids", *TRL_COLUMNS, *(columns or {})])
        found = _function("trl", function)
        try:
            inspect.signature(found).bind(**_accepted(found, known))
        except TypeError as error:
            raise ValueError(
                f"reward 'trl': {function!r} cannot be called with {', '.join(known)}: {error}; name its own "
                'columns in args, such as columns = {solution = "target"}'
            ) from error

    def __call__(self, episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
        """(B, G) float32."""
        shape = rollouts.valid.shape
        rows = np.repeat(np.arange(shape[0]), shape[1])
        contexts = self.texts.contexts(episodes)
        columns: dict[str, list[Any]] = {name: [values[row] for row in rows] for name, values in contexts.items()}
        columns["item"] = self.texts.names(rollouts.item.ravel())
        columns["rank"] = rollouts.rank.ravel().tolist()
        columns |= {name: columns[source] for name, source in self.columns.items()}
        codes = rollouts.codes.reshape(-1, rollouts.codes.shape[-1])
        given = {
            "prompts": columns.pop("prompt"),
            "completions": self.texts.sids(codes),
            "completion_ids": self.texts.token_numbers(codes),
            **columns,
        }
        values = list(self.function(**_accepted(self.function, given)))
        if len(values) != len(rows):
            raise ValueError(
                f"reward 'trl': expected {len(rows)} values, one for each completion, got {len(values)}; a TRL reward "
                "function returns a list as long as completions"
            )
        return np.array([0.0 if value is None else float(value) for value in values], dtype=np.float32).reshape(shape)


class VerlReward:
    """A verl reward function, ``compute_score(data_source, solution_str, ground_truth, extra_info) -> float | dict``.

    It is called once for each valid candidate, by keyword as verl calls it: ``solution_str`` is the candidate's tokens,
    ``ground_truth`` the target's, and ``extra_info`` holds ``index`` (the context's number), ``prompt`` and
    ``history`` (tokens and ids), ``user``, ``target``, ``target_item``, ``item`` and ``rank``. A dictionary's ``score``
    is the reward, its other numbers (True and False too) are told by ``explain``, 0 where a candidate has none.
    (B, G) float32. Source: verl, "Implement Reward Function for Dataset".

    function: ``package.module:name``, or in code the function itself.
    data_source: what is passed under that name. ground_truth: ``target`` (SID text) or ``target_item`` (the data
        set's id). kwargs: passed on, verl's ``reward_kwargs``.
    """

    requires = ("table",)

    def __init__(
        self,
        context: RewardContext,
        function: str | Callable[..., Any],
        data_source: str = "sidgym",
        ground_truth: str = "target",
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.check(function, data_source, ground_truth, kwargs)
        self.function, self.about = _function("verl", function), _spelt(function)
        self.texts = _Texts(context.require("table", "verl"))
        self.data_source, self.ground_truth, self.kwargs = data_source, ground_truth, dict(kwargs or {})

    @staticmethod
    def check(
        function: str | Callable[..., Any],
        data_source: str = "sidgym",
        ground_truth: str = "target",
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises ``ValueError`` for a function that cannot be found, or called as verl calls it."""
        check_choice("verl", "ground_truth", ground_truth, ("target", "target_item"))
        _check_table("verl", "kwargs", kwargs)
        given = dict.fromkeys(["data_source", "solution_str", "ground_truth", "extra_info"])
        try:
            inspect.signature(_function("verl", function)).bind(**given, **(kwargs or {}))
        except TypeError as error:
            raise ValueError(
                f"reward 'verl': {function!r} must take data_source, solution_str, ground_truth and extra_info, and "
                f"kwargs {dict(kwargs or {})}: {error}"
            ) from error

    def explain(self, episodes: Episodes, rollouts: Rollouts) -> dict[str, np.ndarray]:
        """``reward`` (B, G) float32, and the other numbers that the function returned, (B, G) float32 each."""
        contexts = self.texts.contexts(episodes)
        shape, ranks = rollouts.valid.shape, rollouts.rank
        told: dict[str, np.ndarray] = {"reward": np.zeros(shape, dtype=np.float32)}
        for row, candidate in np.argwhere(rollouts.valid).tolist():
            about = {name: values[row] for name, values in contexts.items()}
            about["index"] = int(episodes.index[row])
            about["item"] = self.texts.names(rollouts.item[row, candidate, None])[0]
            about["rank"] = int(ranks[row, candidate])
            result = self.function(
                data_source=self.data_source,
                solution_str=self.texts.sids(rollouts.codes[row, candidate, None])[0],
                ground_truth=about[self.ground_truth],
                extra_info=about,
                **self.kwargs,
            )
            for name, value in _verl_numbers(result).items():
                told.setdefault(name, np.zeros(shape, dtype=np.float32))[row, candidate] = value
        return told

    def __call__(self, episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
        """(B, G) float32."""
        return self.explain(episodes, rollouts)["reward"]


class _Texts:
    """SIDs and contexts as TRL and verl functions read them."""

    def __init__(self, table: SidTable) -> None:
        self.codes, self.ids, self.tokens = table.codes, table.item_ids, table.tokens()
        self.first = np.cumsum([0, *table.sizes[:-1]])

    def sids(self, codes: np.ndarray) -> list[str]:
        """Codes (n, L) as n texts."""
        return [
            "".join(level[c] for level, c in zip(self.tokens, row) if 0 <= c < len(level)) for row in codes.tolist()
        ]

    def token_numbers(self, codes: np.ndarray) -> list[list[int]]:
        """Codes (n, L) as n lists of token numbers, level after level from 0."""
        sizes = [len(level) for level in self.tokens]
        return [
            [int(first) + c for first, size, c in zip(self.first, sizes, row) if 0 <= c < size]
            for row in codes.tolist()
        ]

    def names(self, items: np.ndarray) -> list[str]:
        """The data set's ids of items (n,), "" at padding."""
        return ["" if item == PAD_ITEM else str(self.ids[item]) for item in items.tolist()]

    def contexts(self, episodes: Episodes) -> dict[str, list[Any]]:
        """What there is to say of each context, B entries each."""
        histories = [row[row != PAD_ITEM] for row in episodes.history]
        targets = [row[row != PAD_ITEM] for row in episodes.targets[:, :1]]
        return {
            "prompt": ["".join(self.sids(self.codes[items])) for items in histories],
            "history": [self.names(items) for items in histories],
            "user": episodes.user.tolist(),
            "target": ["".join(self.sids(self.codes[items])) for items in targets],
            "target_item": self.names(episodes.target),
        }


def _function(reward: str, function: str | Callable[..., Any]) -> Callable[..., Any]:
    """The function that an adapter's argument means. Raises ``ValueError`` for what is none, or is a coroutine."""
    if isinstance(function, str) and ":" not in function:
        raise ValueError(f"reward {reward!r}: expected function = 'package.module:name', got {function!r}")
    found = resolve(f"{reward} reward function", function, {}) if isinstance(function, str) else function
    if not callable(found) or inspect.iscoroutinefunction(found):
        raise ValueError(f"reward {reward!r}: expected a plain function, got {found!r}")
    return found


def _spelt(function: str | Callable[..., Any]) -> str:
    """What a message calls the function of an adapter."""
    if isinstance(function, str):
        return function
    return f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', type(function).__name__)}"


def _check_table(reward: str, argument: str, value: Any, values: type = object) -> None:
    """``ValueError`` for an argument that is no table from strings to ``values``; None is an empty one."""
    if value is None:
        return
    table = isinstance(value, Mapping)
    if not table or not all(isinstance(key, str) and isinstance(entry, values) for key, entry in value.items()):
        example = '{ solution = "target" }'
        raise ValueError(f"reward {reward!r}: {argument} must be a table such as {example}, got {value!r}")


def _accepted(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the function names, or all where it takes ``**kwargs``."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(given)
    return {name: value for name, value in given.items() if name in parameters}


def _verl_numbers(result: Any) -> dict[str, float]:
    """The reward and the other numbers of what ``compute_score`` returned."""
    if not isinstance(result, Mapping):
        return {"reward": float(result)}
    if "score" not in result:
        raise ValueError(f"reward 'verl': expected a number or a dictionary with 'score', got the keys {list(result)}")
    others = {str(key): float(v) for key, v in result.items() if key != "score" and _is_number(v)}
    return {
        **{f"extra_{key}" if key == "reward" else key: v for key, v in others.items()},
        "reward": float(result["score"]),
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real | np.bool_)
