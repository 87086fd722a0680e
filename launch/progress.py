"""What is being done and how long is left.

On a terminal a bar with the time that remains; elsewhere one plain line per finished step, without control codes, so
that logs stay readable. Lower layers know nothing of this module: they take a plain callable
``on_progress(done, total, text)``, and what ``progress`` yields is one. Left out: logging and figures of training.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

OnProgress = Callable[[int, int | None, str], None]
"""``(done, total, text)``: units done so far, not since the last call; units in all, None if unknown; a short note."""

_bars: ContextVar[Progress | None] = ContextVar("sidgym_progress", default=None)


class _Step:
    """The latest report of a step; a callable ``OnProgress`` whose last two arguments may be left out."""

    def __init__(self, total: int | None, show: Callable[["_Step"], None]) -> None:
        self.done, self.total, self.text = 0, total, ""
        self._show = show

    def __call__(self, done: int, total: int | None = None, text: str = "") -> None:
        self.done = done
        self.total = self.total if total is None else total
        self.text = text or self.text
        self._show(self)

    def line(self, description: str, seconds: float, finished: bool) -> str:
        """The one line that stands for the whole step in a log."""
        note = f": {self.text}" if self.text else ""
        if finished:
            return f"{description}: done in {seconds:.1f} s{note}"
        of_total = "" if self.total is None else f" of {self.total}"
        return f"{description}: stopped after {self.done}{of_total}, {seconds:.1f} s{note}"


@contextmanager
def _terminal_step(description: str, total: int | None, stream: TextIO) -> Iterator[_Step]:
    outer = _bars.get()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.fields[of]}"),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # A terminal holds one live display: steps within steps are more rows of the outermost one.
    bars = outer or Progress(*columns, console=Console(file=stream), transient=True)
    task = bars.add_task(description, total=total, of="?" if total is None else str(total), note="")

    def show(step: _Step) -> None:
        of = "?" if step.total is None else str(step.total)
        bars.update(task, completed=step.done, total=step.total, of=of, note=step.text)

    if outer is not None:
        try:
            yield _Step(total, show)
        finally:
            bars.remove_task(task)
        return
    token = _bars.set(bars)
    try:
        with bars:
            yield _Step(total, show)
    finally:
        _bars.reset(token)


@contextmanager
def progress(description: str, total: int | None = None, stream: TextIO | None = None) -> Iterator[OnProgress]:
    """Show a step of ``total`` units (None if unknown) while the block runs; yields the callable to report with.

    ``stream`` defaults to standard error. When the block ends, one plain line says how long it took, and the last text
    reported; when it raises, how far it came.
    """
    stream = sys.stderr if stream is None else stream
    start = time.monotonic()
    step, finished = _Step(total, lambda step: None), False
    try:
        if stream.isatty():
            with _terminal_step(description, total, stream) as step:
                yield step
        else:
            yield step
        finished = True
    finally:
        line = step.line(description, time.monotonic() - start, finished)
        bars = _bars.get()
        if bars is not None:
            bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=stream, flush=True)
