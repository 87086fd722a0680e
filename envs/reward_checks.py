"""Checks of one reward: how it can be called and what it says of itself, before anything runs; then what it returns.

A fault names the reward and shows the example it stumbled over. Left out: what rewards are and how they are summed
(``rewards``).

Symbols as in ``records``: B contexts, G candidates a group.
"""

import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np

from sidgym.envs.records import PAD_ITEM, Episodes, Rollouts
from sidgym.envs.reward_context import Reward, RewardContext

Names = Callable[[np.ndarray], list[str]]
"""Item ids (n,), PAD_ITEM left out, to what a message calls them."""


Record = TypeVar("Record", Episodes, Rollouts)

_FOREIGN = {"completions": ("TRL", "trl"), "solution_str": ("verl", "verl")}
"""Parameters that tell functions written for other libraries, and the rewards that run these."""


class RewardError(ValueError):
    """A reward that raised, or returned something else than finite numbers (B, G).

    ``reward`` is the term's name. ``example`` holds the context at fault: ``row`` (in the batch), ``context``
    (``Episodes.index``), ``user``, ``history`` and ``target`` (item names) and ``group`` (each candidate's items), and
    where one candidate is at fault ``candidate``, ``codes``, ``items`` and ``value``; it is empty where no single
    context fails. What the reward itself raised is the cause; in another process its traceback is a note.
    """

    def __init__(self, message: str, reward: str = "", example: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.reward = reward
        self.example = dict(example or {})
        self.original = ""

    def __reduce__(self) -> tuple[Any, ...]:
        # A cause does not travel between processes, its text does.
        cause = self.__cause__
        original = "".join(traceback.format_exception(cause)) if cause is not None else self.original
        return _rebuild, (str(self), self.reward, self.example, original)


def _rebuild(message: str, reward: str, example: dict[str, Any], original: str) -> RewardError:
    error = RewardError(message, reward, example)
    error.original = original
    if original:
        error.add_note(f"The traceback of reward {reward!r} in the process where it was called:\n{original}")
    return error


class _Fault(Exception):
    """What is wrong with an output, and at which row and candidate if that is known."""

    def __init__(self, message: str, row: int | None = None, candidate: int | None = None, value: Any = None) -> None:
        super().__init__(message)
        self.row, self.candidate, self.value = row, candidate, value


@dataclass(frozen=True)
class Evaluated:
    """One reward's checked output, 0 at invalid candidates."""

    value: np.ndarray  # (B, G) float32
    components: dict[str, np.ndarray] = field(default_factory=dict)  # (B, G) float32 each; their sum is the value
    diagnostics: dict[str, np.ndarray] = field(default_factory=dict)  # (B, G) float32 each; may be NaN


def check_entry(name: str, entry: Any, args: Mapping[str, Any]) -> None:
    """Whether a function, class or other callable can be a reward with these arguments.

    Raises ``ValueError`` for one that cannot be called so, for a class whose instances cannot be called, and for
    arguments that its ``check`` refuses.
    """
    built = isinstance(entry, type)
    if built and not any("__call__" in vars(kind) for kind in entry.__mro__):
        raise ValueError(
            f"reward {name!r}: the class needs a method __call__(self, episodes, rollouts) -> (contexts, group); its "
            "instances cannot be called"
        )
    hint = "" if built else _foreign(entry)
    try:
        inspect.signature(entry).bind(*((None,) if built else (None, None)), **args)
        fault = hint
    except TypeError as error:
        fault = f"{error}{'; ' * bool(hint)}{hint}"
    except ValueError:  # some callables that are written in C tell no signature
        fault = ""
    if fault:
        expected = "(context, **args)" if built else "(episodes, rollouts, **args)"
        raise ValueError(
            f"reward {name!r} must take {expected} with args {dict(args)} (args are set in the TOML file or by "
            f"--reward-args): {fault}"
        )
    # An instance has had its arguments when it was built.
    if (built or inspect.isroutine(entry)) and callable(getattr(entry, "check", None)):
        entry.check(**args)


def _foreign(entry: Any) -> str:
    """A hint for a function written for another library, else ""."""
    try:
        parameters = inspect.signature(entry).parameters
    except (TypeError, ValueError):
        return ""
    for parameter, (library, adapter) in _FOREIGN.items():
        if parameter in parameters:
            return (
                f"a function written for {library} goes into the reward {adapter!r}: name = {adapter!r}, "
                "args = { function = 'package.module:name' }"
            )
    return ""


def needed_fields(name: str, entry: Any, args: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields of ``RewardContext`` that ``requires`` tells. Raises ``ValueError`` for anything but a tuple of them."""
    said = getattr(entry, "requires", ())
    if callable(said):
        if not (isinstance(entry, type) or inspect.isroutine(entry)):
            return ()  # an instance has what it needs
        said = said(**args)
    known = [field.name for field in fields(RewardContext)]
    if not isinstance(said, tuple | list) or not all(isinstance(field, str) and field in known for field in said):
        raise ValueError(f"reward {name!r}: requires must be a tuple of names among {', '.join(known)}; got {said!r}")
    return tuple(said)


def read_only(record: Record) -> Record:
    """The same record over views of its arrays that cannot be written."""
    views = {}
    for name, value in vars(record).items():
        if isinstance(value, np.ndarray):
            views[name] = value.view()
            views[name].flags.writeable = False
    return replace(record, **views)  # type: ignore[arg-type]


def evaluate(
    name: str, reward: Reward, episodes: Episodes, rollouts: Rollouts, names: Names | None = None
) -> Evaluated:
    """Calls a reward once and checks its output. Raises ``RewardError``.

    Where it raises or returns a wrong shape, its contexts are tried one by one to find the first that fails alone.
    ``names`` says what a message calls an item, by default its number. The records should be ``read_only``.
    """
    names, said = names or _numbers, getattr(reward, "about", "")
    said = f"reward {name!r}" + f" ({said})" * (isinstance(said, str) and said != "")
    try:
        return _called(reward, episodes, rollouts)
    except _Fault as fault:
        row = fault.row if fault.row is not None else _first_failing(reward, episodes, rollouts)
        example = _example(episodes, rollouts, row, fault, names)
        raise RewardError(_message(said, str(fault), example), name, example) from fault.__cause__
    except Exception as error:
        row = _first_failing(reward, episodes, rollouts)
        example = _example(episodes, rollouts, row, _Fault(""), names)
        text = f"raised {type(error).__name__}: {error}"
        if isinstance(error, ValueError) and "read-only" in str(error):
            text += "; a reward may not change the arrays it is given, which training reads too: change a copy"
        raise RewardError(_message(said, text, example), name, example) from error


def check_total(
    total: np.ndarray, weights: Mapping[str, float], episodes: Episodes, rollouts: Rollouts, names: Names | None = None
) -> None:
    """Raises ``RewardError`` where the weighted sum (B, G) of finite terms is too large to be a finite float32."""
    try:
        _finite(total, rollouts.valid)
    except _Fault as fault:
        name = " + ".join(weights)
        said = " + ".join(f"{weight:g} x {term}" for term, weight in weights.items())
        example = _example(episodes, rollouts, fault.row, fault, names or _numbers)
        text = f"the weighted sum {said} of finite values is {fault}; use smaller weights"
        raise RewardError(_message(f"reward {name!r}", text, example), name, example) from None


def explains(reward: Reward) -> bool:
    """Whether a reward's ``explain`` gives its value, too.

    A subclass that overrides ``__call__`` alone is asked by ``__call__``.
    """
    if not callable(getattr(reward, "explain", None)):
        return False
    order = [vars(kind) for kind in type(reward).__mro__]
    called, explained = (next((i for i, own in enumerate(order) if n in own), -1) for n in ("__call__", "explain"))
    return explained <= called


def _called(reward: Reward, episodes: Episodes, rollouts: Rollouts) -> Evaluated:
    diagnostics: dict[str, np.ndarray] = {}
    if explains(reward):
        told = dict(reward.explain(episodes, rollouts))  # type: ignore[attr-defined]
        if "reward" not in told:
            raise _Fault(f"explain() must return the key 'reward', got {sorted(told)}")
        output: Any = told.pop("reward")
        diagnostics = {key: _numeric(values, rollouts.valid, key) for key, values in told.items()}
    else:
        output = reward(episodes, rollouts)
    if not isinstance(output, Mapping):
        return Evaluated(_finite(output, rollouts.valid), {}, diagnostics)
    if not output or not all(isinstance(key, str) for key in output):
        raise _Fault(f"expected components {{name: (contexts, group)}}, got the keys {list(output)}")
    components = {key: _finite(values, rollouts.valid, key) for key, values in output.items()}
    total = np.sum([part.astype(np.float64) for part in components.values()], axis=0)
    return Evaluated(_finite(total, rollouts.valid), components, diagnostics)


def _numeric(output: Any, valid: np.ndarray, component: str = "") -> np.ndarray:
    """An output as (B, G) float32 with 0 at invalid candidates; NaN is let through."""
    where = f"component {component!r}: " if component else ""
    try:
        values = np.asarray(output)
    except Exception as error:
        raise _Fault(f"{where}expected an array (contexts, group), got {type(output).__name__}: {error}") from error
    if values.dtype.kind not in "biuf":
        raise _Fault(f"{where}expected numbers (contexts, group), got {type(output).__name__} of dtype {values.dtype}")
    if values.shape != valid.shape:
        raise _Fault(f"{where}expected shape (contexts, group) = {valid.shape}, got {values.shape}")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is refused
        return np.where(valid, values, 0.0).astype(np.float32)


def _finite(output: Any, valid: np.ndarray, component: str = "") -> np.ndarray:
    values = _numeric(output, valid, component)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = (int(place) for place in wrong[0])
        where = f"component {component!r}: " if component else ""
        raise _Fault(
            f"{where}{values[row, column]} at row {row}, candidate {column}, and at {len(wrong)} of "
            f"{int(valid.sum())} valid candidates in all; a reward must be finite for every valid candidate",
            row,
            column,
            float(values[row, column]),
        )
    return values


def _first_failing(reward: Reward, episodes: Episodes, rollouts: Rollouts) -> int | None:
    """The first context for which the reward fails alone, if there is one."""
    for row in range(len(episodes)):
        try:
            _called(reward, read_only(episodes.take([row])), read_only(rollouts.take([row])))
        except Exception:
            return row
    return None


def _example(episodes: Episodes, rollouts: Rollouts, row: int | None, fault: _Fault, names: Names) -> dict[str, Any]:
    """The context at fault in plain Python values."""
    if row is None:
        return {}
    example: dict[str, Any] = {
        "row": row,
        "context": int(episodes.index[row]),
        "user": int(episodes.user[row]),
        "history": names(_real(episodes.history[row])),
        "target": next(iter(names(_real(episodes.targets[row, :1]))), None),
        "group": [names(_real(items)) for items in rollouts.items[row]],
    }
    if fault.candidate is not None:
        example["candidate"] = fault.candidate
        example["codes"] = rollouts.codes[row, fault.candidate].tolist()
        example["items"] = example["group"][fault.candidate]
        example["value"] = fault.value
    return example


def _message(said: str, text: str, example: dict[str, Any]) -> str:
    lines = [f"{said}: {text}"]
    if not example:
        return f"{lines[0]}\n  no context fails alone: it is something in the batch as a whole"
    about = {key: example[key] for key in ("user", "history", "target")}
    lines.append(f"  at context {example['context']} (row {example['row']} of the batch): " + _listed(about))
    if "candidate" in example:
        lines.append(
            f"  candidate {example['candidate']}: " + _listed({k: example[k] for k in ("codes", "items", "value")})
        )
    else:
        lines.append("  " + _listed({"items of the group": example["group"]}))
    return "\n".join(lines)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _real(items: np.ndarray) -> np.ndarray:
    return items[items != PAD_ITEM]


def _numbers(items: np.ndarray) -> list[str]:
    return [str(item) for item in items.tolist()]
