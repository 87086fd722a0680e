"""The schema of a summary: names of its fields, the check of every one of them, and its file.

One version for every run and every benchmark. Left out: how the figures come about, which is ``summary``'s part.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1

MAIN = "rl"
REQUIRED = ("popularity", "sft", "rl", "oracle")
"""Systems whose figures also stand at the top level; null where a run has no such system."""

BASELINES = ("random", "popularity", "cooccurrence")
CEILINGS = ("oracle", "bound")
RERANKED = "sft_reranked"

DIFFERENCES = ("ndcg@10", "preference@1", "preference@10")
"""Metrics whose paired differences are reported."""

PERCENT = ("preference@1", "preference@10")
"""Metrics that are also given as a percentage of the way from random to the oracle."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_seeds(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_int, value))


_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "schema_version": (f"{SCHEMA_VERSION}", lambda v: _is_int(v) and v == SCHEMA_VERSION),
    "name": ("a string", lambda v: isinstance(v, str)),
    "config_hash": ("a string", lambda v: isinstance(v, str)),
    "seeds": ("a list of at least one integer", _is_seeds),
    "n_users": ("an integer of at least 0", lambda v: _is_int(v) and v >= 0),
    "bootstrap_resamples": ("an integer of at least 1", lambda v: _is_int(v) and v >= 1),
    **{system: ("a table of figures or null", lambda v: v is None or isinstance(v, dict)) for system in REQUIRED},
    f"{MAIN}_minus_sft": ("a table of intervals", lambda v: isinstance(v, dict)),
    "percent_of_oracle": ("a table of systems", lambda v: isinstance(v, dict)),
    "systems": ("a table of systems", lambda v: isinstance(v, dict)),
    "over_seeds": ("a table", lambda v: isinstance(v, dict)),
    "per_seed": ("a list of tables", lambda v: isinstance(v, list) and all(isinstance(x, dict) for x in v)),
    "notes": ("a list of strings", lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v)),
    "oracle_report": ("a table or null", lambda v: v is None or isinstance(v, dict)),
    "environment": ("a table", lambda v: isinstance(v, dict)),
}


def validate_summary(summary: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` that names the first field that is missing, of the wrong type, or not finite."""
    if not isinstance(summary, dict):
        raise ValueError(f"summary: expected a table, got {type(summary).__name__}")
    for where, expected, value, passes in _fields(summary):
        if value is _MISSING:
            raise ValueError(f"summary: field {where!r} is missing; expected {expected}")
        if not passes(value):
            raise ValueError(f"summary: field {where!r}: expected {expected}, got {value!r}")
    _check_finite(summary, "")


_MISSING: Any = object()


def _fields(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, Callable[[Any], bool]]]:
    """Every field to check, the tables before what is in them: dotted name, what is expected, value, test."""
    for name, (expected, passes) in _CHECKS.items():
        yield name, expected, summary.get(name, _MISSING), passes
    systems = {f"systems.{name}": block for name, block in summary["systems"].items()}
    blocks = {**{name: summary[name] for name in REQUIRED if summary[name] is not None}, **systems}
    for where, block in blocks.items():
        yield where, "a table of figures", block, lambda v: isinstance(v, dict)
        yield f"{where}.n_users", "an integer", block.get("n_users", _MISSING), _is_int
        yield f"{where}.seeds", "a list of at least one integer", block.get("seeds", _MISSING), _is_seeds
        for metric in [key for key in block if key not in ("n_users", "seeds")]:
            yield f"{where}.{metric}", "a finite number or null", block[metric], lambda v: v is None or _is_number(v)
    for pair in [key for key in summary if key.startswith(f"{MAIN}_minus_")]:
        yield pair, "a table of intervals", summary[pair], lambda v: isinstance(v, dict)
        for metric in DIFFERENCES:
            interval = summary[pair].get(metric, _MISSING)
            yield f"{pair}.{metric}", "a table or null", interval, lambda v: v is None or isinstance(v, dict)
            for bound in ("mean", "low", "high") if interval else ():
                yield f"{pair}.{metric}.{bound}", "a finite number", interval.get(bound, _MISSING), _is_number
    for system, percents in summary["percent_of_oracle"].items():
        for metric in PERCENT:
            value = percents.get(metric, _MISSING) if isinstance(percents, dict) else _MISSING
            yield (
                f"percent_of_oracle.{system}.{metric}",
                "a number or null",
                value,
                lambda v: v is None or _is_number(v),
            )


def _check_finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"summary: field {where!r}: expected a finite number or null, got {value!r}")
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_finite(item, f"{where}.{key}" if where else str(key))


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Writes ``summary`` as JSON through a temporary name, so that a reader never sees a part of it.

    Raises ``ValueError`` as ``validate_summary`` does; then nothing is written.
    """
    from sidgym.sid.table import write_atomically  # brings torch along, which a summary is read without

    validate_summary(summary)
    text = json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(Path(path), text.encode())


def load_summary(path: Path) -> dict[str, Any]:
    """A summary that was written by ``write_summary``.

    Raises ``ValueError`` that names the file, for one that is no JSON or not valid.
    """
    try:
        summary = json.loads(Path(path).read_text(encoding="utf-8"))
        validate_summary(summary)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return summary
