"""Independent parts of a benchmark, side by side in processes of their own, each kept in a file as soon as it is done.

Left out: what a part is, and how parts are put together.
"""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

Part = dict[str, Any]


def in_parts(
    judge: Callable[..., Part], jobs: Mapping[str, Sequence[Any]], workers: int, folder: Path | None
) -> Iterator[tuple[str, Part]]:
    """``judge(*arguments)`` of every job, under the job's name, as they get ready.

    With ``folder`` each is written to ``name.json`` there; what stands there already is read and not done again.
    """
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(_part, judge, name, arguments, folder): name for name, arguments in jobs.items()}
        for done in as_completed(waiting):
            yield waiting[done], done.result()


def _part(judge: Callable[..., Part], name: str, arguments: Sequence[Any], folder: Path | None) -> Part:
    path = folder / f"{name}.json" if folder else None
    if path and path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    figures = judge(*arguments)
    if path and figures:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures), encoding="utf-8")
    return figures
