"""The progress of a contest: on a terminal a live table, a row an arm and a column a seed; elsewhere a line a trial.

Left out: running trials (``jobs``, ``bench_ray``).
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sidgym.benchmarks.arms_summary import START
from sidgym.benchmarks.arms_words import name_of

if TYPE_CHECKING:
    from sidgym.launch.bench_runs import Step


class TrialTable:
    """Shows trials while the block runs; ``trials`` are the steps that become its cells."""

    def __init__(self, trials: "Sequence[Step]", title: str, stream: TextIO | None = None):
        self.stream = sys.stderr if stream is None else stream
        self.title, self.start = title, time.monotonic()
        self.systems = list(dict.fromkeys(step.system for step in trials))
        self.seeds = sorted({step.seed for step in trials})
        self.cells: dict[tuple[str, int], str] = {}
        self.below: dict[str, str] = {}  # what runs before the trials
        self.total, self.done = len(trials), 0
        self.live: Live | None = None

    def __enter__(self) -> "TrialTable":
        if self.stream.isatty():
            console = Console(file=self.stream)
            self.live = Live(console=console, get_renderable=self.table, refresh_per_second=2, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def table(self) -> Table:
        """The table as it stands."""
        minutes = (time.monotonic() - self.start) / 60
        shown = Table(
            title=Text(f"{self.title}: {self.done} of {self.total} trials, {minutes:.1f} min"), box=box.SIMPLE
        )
        shown.add_column("")
        for seed in self.seeds:
            shown.add_column(f"seed {seed}")
        for system in self.systems:
            cells = [Text(self.cells.get((system, seed), "–")) for seed in self.seeds]
            shown.add_row(Text(name_of(system)), *cells)
        if self.below:
            shown.caption = Text("; ".join(f"{what} {state}" for what, state in self.below.items()))
        return shown

    def finished(self, step: "Step") -> None:
        """A trial that was there already."""
        self.cells[step.system, step.seed] = "done before"
        self.done += 1

    def showing(self, steps: "Sequence[Step]", on_end: "Callable[[Step], str] | None") -> "_Round":
        """A display (``jobs.Display``) of a round's steps. ``on_end`` is told each that succeeded and says what it
        came to; with it they are trials."""
        return _Round(self, steps, on_end)

    def say(self, text: str) -> None:
        """A plain line for a log, or above the live table."""
        if self.live is not None:
            self.live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)


class _Round:
    """The steps of one round."""

    def __init__(self, table: TrialTable, steps: "Sequence[Step]", on_end: "Callable[[Step], str] | None"):
        self.table, self.steps, self.on_end = table, steps, on_end
        self.start = time.monotonic()
        self.began: dict[int, float] = {}
        self.text: dict[int, str] = {}
        self.ended: list[int] = []

    def update(self, number: int, done: int, total: int | None = None, text: str = "") -> None:
        self.began.setdefault(number, time.monotonic())
        self.text[number] = text or self.text.get(number, "")
        self._show(number, f"{done}/{total}" if total else "running")

    def end(self, number: int, failed: bool) -> None:
        step, seconds = self.steps[number], time.monotonic() - self.began.get(number, time.monotonic())
        if self.on_end is not None:
            self.table.done += 1
            self.text[number] = "" if failed else self.on_end(step)
        state = "FAILED" if failed else f"done, {seconds:.0f} s"
        self._show(number, state)
        if self.on_end is None:
            self.table.below.pop(self._name(step), None)
        self.ended.append(number)
        left = f", about {minutes:.1f} min left" if (minutes := self._left()) else ""
        count = f" ({self.table.done} of {self.table.total} trials{left})" if self.on_end is not None else ""
        note = f": {self.text[number]}" if self.text.get(number) and not failed else ""
        self.table.say(f"{self._name(step)}: {state}{note}{count}")

    def _left(self) -> float:
        """Minutes until the round ends, going by the arms that have ended; 0 where none has, or none is left."""
        arms = [number for number, step in enumerate(self.steps) if step.system != START]
        done = sum(number in arms for number in self.ended)
        return (time.monotonic() - self.start) / 60 * (len(arms) - done) / done if done else 0.0

    def _show(self, number: int, state: str) -> None:
        step = self.steps[number]
        if self.on_end is not None:
            self.table.cells[step.system, step.seed] = state
        else:
            self.table.below[self._name(step)] = state

    def _name(self, step: Any) -> str:
        return f"seed {step.seed}, {name_of(step.system)}"
