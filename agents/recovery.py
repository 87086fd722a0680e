"""What a run leaves on disk to go on from, and going on after a trainer lost a process that it cannot do without.

    training/checkpoint-000010/   weights, optimiser and position; the two newest are kept
    training/best-000008/         the weights that validated best, as far as a kept checkpoint knows

A checkpoint that was cut off is put aside as ``unreadable-...`` and the one before it is used. Left out: the loop
(``rl``), the format of the files (``checkpoint``), and lost env runners, which a trainer replaces by itself.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from sidgym.agents.audit import HackingMonitor
from sidgym.agents.checkpoint import POSITION, CheckpointError, load_training, read_position, save_training

T = TypeVar("T")
Tensors = dict[str, torch.Tensor]

KEPT = 2
"""Checkpoints that are kept: should the newest turn out to be cut off, there is another."""
RECOVERIES = 3
"""Times in a row that a run goes on from one and the same checkpoint before it gives up."""


class Resumable(Protocol):
    """What can be written down and gone on from; a ``Trainer`` is one."""

    updates: int

    def weights(self) -> Tensors: ...

    def state(self) -> Tensors: ...

    def restore(self, weights: Tensors, state: Tensors, updates: int) -> None: ...


class WorkersLost(RuntimeError):
    """A trainer lost a process that it cannot do without, such as a learner; a new trainer can go on."""


def until_done(attempt: Callable[[], T], directory: Path) -> T:
    """The result of ``attempt``, which resumes from ``directory`` and is called again whenever it loses workers.

    Raises the last ``WorkersLost`` after ``RECOVERIES`` attempts that brought no new checkpoint.
    """
    stand, lost = "", 0
    while True:
        try:
            return attempt()
        except WorkersLost as error:
            found = checkpoints(directory)
            newest = found[-1].name if found else "the start"
            stand, lost = newest, lost + 1 if newest == stand else 1
            if lost > RECOVERIES:
                raise
            warn(f"{error}; going on from {newest}")


def save_checkpoint(
    trainer: Resumable, directory: Path, step: int, best: dict[str, Any], monitor: HackingMonitor, catalogue: str
) -> None:
    """Writes checkpoint ``step``, then removes what it supersedes: a kill at any point leaves a usable one."""
    weights = {f"model/{name}": value for name, value in trainer.weights().items()}
    state = {f"state/{name}": value for name, value in trainer.state().items()}
    position = {
        "step": step,
        "updates": trainer.updates,
        "best": best,
        "audit": monitor.state(),
        "catalogue": catalogue,
    }
    save_training(directory / f"checkpoint-{step:06d}", {**weights, **state}, position)
    *old, _ = checkpoints(directory)
    for path in old[: 1 - KEPT]:
        shutil.rmtree(path)
    needed = {best_path(directory, best).name}
    needed |= {best_path(directory, read_position(path)["best"]).name for path in old[1 - KEPT :]}
    for path in directory.glob("best-??????"):
        if path.name not in needed:
            shutil.rmtree(path)
    for path in directory.glob("unreadable-??????"):
        if int(path.name[-6:]) <= step:
            shutil.rmtree(path)


def best_path(directory: Path, best: dict[str, Any]) -> Path:
    """Where the weights of ``best`` lie; a path that does not exist while nothing is known of any."""
    return directory / ("best-none" if best.get("step") is None else f"best-{best['step']:06d}")


def checkpoints(directory: Path) -> list[Path]:
    """Checkpoints of a run that were written to their end, oldest first."""
    return sorted(path for path in directory.glob("checkpoint-??????") if (path / POSITION).is_file())


def resume(trainer: Resumable, directory: Path, catalogue: str) -> tuple[int, dict[str, Any], HackingMonitor]:
    """Puts the trainer where the newest whole checkpoint stands: iterations done, best so far, what the audit knows.

    Nothing is done where there is none. Raises ``CheckpointError`` for a checkpoint of another ``catalogue`` (hash of a
    SID table), and where there are checkpoints but none can be read.
    """
    tidy(directory)
    found = _newest_whole(directory)
    if found is None:
        return 0, {"value": None}, HackingMonitor()
    path, tensors, position = found
    if position.get("catalogue", catalogue) != catalogue:
        raise CheckpointError(
            f"{path} was written while training on another catalogue: its SID table has hash "
            f"{position['catalogue'][:12]}, the one at hand {catalogue[:12]}. Bring the old table back, or begin anew "
            "with --restart"
        )
    weights, state = (
        {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}
        for kind in ("model/", "state/")
    )
    trainer.restore(weights, state, position["updates"])
    return int(position["step"]), position["best"], HackingMonitor.restored(position.get("audit"))


def _newest_whole(directory: Path) -> tuple[Path, Tensors, dict[str, Any]] | None:
    broken: list[tuple[Path, CheckpointError]] = []
    for path in reversed(checkpoints(directory)):
        try:
            tensors, position = load_training(path)
            best = position["best"]
            if best.get("step") is not None:
                read_position(best_path(directory, best))
        except CheckpointError as error:
            broken.append((path, error))
            continue
        for other, why in broken:
            aside = other.with_name(other.name.replace("checkpoint", "unreadable"))
            shutil.rmtree(aside, ignore_errors=True)
            other.rename(aside)
            warn(f"{why}. It is put aside as {aside.name}; going on from {path.name}")
        return path, tensors, position
    if broken:
        raise CheckpointError(
            f"none of the checkpoints in {directory} can be read; begin anew with --restart. The newest: {broken[0][1]}"
        )
    return None


def tidy(directory: Path) -> None:
    """Removes what a kill in the middle of writing left behind, and gives back a name that was being replaced."""
    for path in directory.glob("*.old"):
        if path.with_suffix("").exists():
            shutil.rmtree(path)
        else:
            path.rename(path.with_suffix(""))
    for path in directory.glob("*.writing"):
        shutil.rmtree(path)


def warn(text: str) -> None:
    """One line for whoever watches the run."""
    print(text, file=sys.stderr, flush=True)
