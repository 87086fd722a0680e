"""Independent parts of a benchmark, side by side in processes of their own, each kept in a file as soon as it is done.

Left out: what a part is, and how parts are put together.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidgym.sid.table import write_atomically

Part = dict[str, Any]


@dataclass(frozen=True)
class Aside:
    """An argument that changes no figure, such as a device or where the data lie."""

    value: Any


def in_parts(
    judge: Callable[..., Part], jobs: Mapping[str, Sequence[Any]], workers: int, folder: Path | None
) -> Iterator[tuple[str, Part]]:
    """``judge(*arguments)`` of every job, under the job's name, as they get ready; with one worker in this process.

    With ``folder`` each is written to ``name.json`` there; what stands there already is read and not done again. Raises
    ``ValueError`` where it was made with other arguments, which ``name.asked`` tells.
    """
    if workers == 1:
        yield from ((name, _part(judge, name, arguments, folder)) for name, arguments in jobs.items())
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(_part, judge, name, arguments, folder): name for name, arguments in jobs.items()}
        for done in as_completed(waiting):
            yield waiting[done], done.result()


def _part(judge: Callable[..., Part], name: str, arguments: Sequence[Any], folder: Path | None) -> Part:
    path = folder / f"{name}.json" if folder else None
    asked = path.with_suffix(".asked") if path else None
    if path and asked and path.exists():
        if asked.exists() and asked.read_text() != fingerprint(arguments):
            raise ValueError(f"{path} was made with other settings; expected a folder of this command, or an empty one")
        return json.loads(path.read_text(encoding="utf-8"))
    figures = judge(*arguments)
    if path and asked and figures:
        path.parent.mkdir(parents=True, exist_ok=True)
        asked.write_text(fingerprint(arguments))
        write_atomically(path, json.dumps(figures).encode())  # a kill leaves a whole part or none
    return figures


def fingerprint(arguments: Sequence[Any]) -> str:
    """A hash of a part's arguments; where files stand and what is ``Aside`` do not count."""
    told = repr([value for value in arguments if not isinstance(value, Path | Aside)])
    return hashlib.sha256(told.encode()).hexdigest()
