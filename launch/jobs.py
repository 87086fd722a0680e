"""Running independent stages side by side, each in its own process, with one progress bar each.

Processes are spawned, never forked: torch and Ray do not survive a fork. Left out: dependencies (the caller runs one
group of jobs after the other) and machines other than this one.
"""

import multiprocessing
import multiprocessing.connection
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.managers import SyncManager
from queue import Empty
from typing import Any, Protocol

from sidgym.launch.progress import OnProgress, progress

CHILD_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Job:
    """A call that can travel to another process: ``function(*args, on_progress=...)``."""

    description: str
    function: Callable[..., None]
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Failure:
    """What went wrong in a job, as text that crosses processes; empty when nothing did."""

    text: str = ""
    users_matter: bool = False


class JobError(RuntimeError):
    """A job failed in its own process; the message says why: its traceback, or what the user has to change."""

    users_matter = False
    """Whether every job failed for a reason that the user can mend, so that there is no traceback to show."""


class Display(Protocol):
    """What shows jobs; a job is known by its number."""

    def update(self, number: int, done: int, total: int | None = None, text: str = "") -> None:
        """A job has begun, or come so far."""

    def end(self, number: int, failed: bool) -> None:
        """A job has ended."""


class Bars:
    """A progress bar for each job that runs."""

    def __init__(self, jobs: Sequence[Job]):
        self.descriptions = [job.description for job in jobs]
        self.shown: dict[int, tuple[ExitStack, OnProgress]] = {}

    def update(self, number: int, done: int, total: int | None = None, text: str = "") -> None:
        if number not in self.shown:
            stack = ExitStack()
            self.shown[number] = (stack, stack.enter_context(progress(self.descriptions[number], total)))
        self.shown[number][1](done, total, text)

    def end(self, number: int, failed: bool) -> None:
        if number in self.shown:
            self.shown.pop(number)[0].close()


def run_jobs(jobs: Sequence[Job], workers: int, display: Display | None = None) -> None:
    """Runs all jobs, at most ``workers`` at a time; with one worker or one job, in this process.

    ``display`` shows them; by default each has a progress bar. A job that fails keeps none of the others from running.
    Raises after all have ended: the first job's own exception, the others added to it as notes, when they ran here,
    ``JobError`` when they ran elsewhere.
    """
    if workers <= 1 or len(jobs) <= 1:
        failed: list[Exception] = []
        for number, job in enumerate(jobs):
            try:
                _run_here(number, job, display)
            except Exception as error:
                failed.append(error)
                if len(failed) > 1:
                    failed[0].add_note(f"{job.description} failed, too: {type(error).__name__}: {error}")
        if failed:
            raise failed[0]
        return
    for name, value in CHILD_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    context = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=context)
    manager.start(_end_with_parent)
    with manager, ProcessPoolExecutor(workers, context, _end_with_parent) as pool:
        queue = manager.Queue()
        waiting = [(number, job, pool.submit(run_reporting, number, job, queue)) for number, job in enumerate(jobs)]
        watch(waiting, queue, display or Bars(jobs))


def _run_here(number: int, job: Job, display: Display | None) -> None:
    if display is None:
        with progress(job.description) as advance:
            job.function(*job.args, on_progress=advance)
        return
    display.update(number, 0)
    try:
        job.function(*job.args, on_progress=partial(display.update, number))
    except BaseException:
        display.end(number, failed=True)
        raise
    display.end(number, failed=False)


def _end_with_parent() -> None:
    """In a worker, or the process that holds the queue: ends it when the parent is gone, however that died.

    An orphan would go on writing into the folder that a resumed run works in.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def watch(waiting: Sequence[tuple[int, Job, "Future[Failure]"]], queue: Any, display: Display) -> None:
    """Shows what jobs report through ``queue`` until all have ended, then raises for those that failed."""
    failures: list[Failure] = []
    open_jobs = {future: (number, job) for number, job, future in waiting}
    while open_jobs:
        done, _ = wait(open_jobs, timeout=0.2, return_when=FIRST_COMPLETED)
        _drain(queue, display)
        for future in done:
            number, job = open_jobs.pop(future)
            died = future.exception()  # of the process itself: what a job raises comes back as text
            failure = Failure(f"{type(died).__name__}: {died}") if died is not None else future.result()
            display.end(number, failed=bool(failure.text))
            if failure.text:
                failures.append(replace(failure, text=f"{job.description} failed:\n{failure.text}"))
    if failures:
        error = JobError("\n".join(failure.text for failure in failures))
        error.users_matter = all(failure.users_matter for failure in failures)
        raise error


def _drain(queue: Any, display: Display) -> None:
    while True:
        try:
            number, done, total, text = queue.get_nowait()
        except Empty:
            return
        display.update(number, done, total, text)


def run_reporting(number: int, job: Job, queue: Any) -> Failure:
    """In the child: runs a job that reports through ``queue``; the empty failure, or what went wrong."""

    def report(done: int, total: int | None = None, text: str = "") -> None:
        queue.put((number, done, total, text))

    report(0)
    try:
        job.function(*job.args, on_progress=report)
    except Exception as error:
        from sidgym.launch.errors import is_user_error

        users_matter = is_user_error(error)
        return Failure(str(error) if users_matter else traceback.format_exc(), users_matter)
    return Failure()
