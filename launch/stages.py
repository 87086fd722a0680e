"""A stage of the pipeline: (hash of its inputs) -> directory.

A finished directory holds ``stage.json`` with the hash of the inputs that it was made from. The same hash is not built
again; another hash is built beside the old result, which is replaced only when the new one is complete. So a failure or
a kill leaves either the old result or none, never half of one. A file lock lets one process at a time build a stage.
Left out on purpose: a dependency graph and remote storage. A stage that reads another names its hash in its inputs.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import sidgym

try:
    import fcntl
except ImportError:  # no such thing on Windows
    fcntl = None  # type: ignore[assignment]

RECORD = "stage.json"
"""The file that says what a directory was built from and whether it is complete."""

PACKAGES = ("numpy", "torch", "transformers", "ray", "gymnasium")
"""Packages whose versions go into the environment record."""


class StageError(RuntimeError):
    """A stage cannot be built where it was asked to be."""


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"stage inputs must be JSON values or dataclasses of them; got {type(value).__name__}: {value!r}")


def content_hash(value: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of ``value`` as JSON, keys sorted; dataclasses count as their fields.

    Raises ``TypeError`` for what JSON cannot hold and ``ValueError`` for NaN and infinities.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def environment_record() -> dict[str, Any]:
    """Versions of Python and the packages (None where not installed), platform and processor count."""
    versions: dict[str, str | None] = {"sidgym": sidgym.__version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
    }


def read_record(directory: Path) -> dict[str, Any]:
    """The stage record of a directory; empty where there is none or where it cannot be read."""
    try:
        record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def is_complete(directory: Path, inputs_hash: str) -> bool:
    """Whether ``directory`` holds the finished result of these inputs."""
    record = read_record(directory)
    return record.get("complete") is True and record.get("inputs_hash") == inputs_hash


def _write_record(directory: Path, record: Mapping[str, Any]) -> None:
    """Write through a temporary name, so that a reader never sees a part of the record."""
    temporary = directory / (RECORD + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=1, sort_keys=True, default=_plain)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / RECORD)


def partial_of(directory: Path) -> Path:
    """The folder that a resumable stage works in, beside its result."""
    return directory.with_name(directory.name + ".partial")


def set_aside(directory: Path) -> list[Path]:
    """Folders of a resumable stage that were begun with other inputs and moved out of the way."""
    name = partial_of(directory).name
    return sorted(path for path in directory.parent.glob(f"{name}-*") if path.is_dir())


def holds_work(work: Path) -> bool:
    """Whether a resumable stage came further in ``work`` than its first checkpoint, which is what it began with."""
    return any(path.parent.name > "checkpoint-000000" for path in work.glob("training/checkpoint-??????/training.json"))


def _prepare(work: Path, inputs_hash: str, resumable: bool) -> None:
    """An empty work directory, or the kept one of the same inputs where the stage can continue in it.

    What a resumable stage had begun with other inputs may be hours of work: it is moved aside instead of removed,
    unless it failed before there was any.
    """
    begun = read_record(work).get("inputs_hash")
    if work.exists() and not (resumable and begun == inputs_hash):
        aside = work.with_name(f"{work.name}-{begun}")
        if resumable and holds_work(work) and not aside.exists():
            work.rename(aside)
        else:
            shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the stage's folder for this process; the lock goes with the process, however that ends.

    Raises ``StageError`` when another process builds the stage. Where the system has no file locks, nothing is held.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    path = directory.with_name(directory.name + ".lock")
    with path.open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A holder that has just ended takes the file away: a lock on the removed one would guard nothing.
                free = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
            except BlockingIOError:
                free = False
            if not free:
                raise StageError(
                    f"{directory} is being built by another process; wait for it, or choose another 'out' or 'name'"
                )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _publish(work: Path, directory: Path) -> None:
    """Give ``work`` its final name. The old result is moved aside first and removed last."""
    old = directory.with_name(directory.name + ".old")
    if old.exists():
        shutil.rmtree(old)
    if directory.exists():
        directory.rename(old)
    work.rename(directory)
    if old.exists():
        shutil.rmtree(old)


def run_stage(
    directory: Path,
    name: str,
    inputs_hash: str,
    build: Callable[[Path], None],
    *,
    inputs: Mapping[str, Any] | None = None,
    resumable: bool = False,
) -> bool:
    """Bring ``directory`` to the finished result of ``build``; True if anything had to be built.

    ``build`` gets the directory to write into: ``directory`` with ``.building`` appended, emptied before and removed
    after a failure. With ``resumable`` it is ``.partial`` instead, which outlives failures and kills and is handed to
    ``build`` again as long as the hash is the same. ``inputs`` is only recorded, for whoever reads ``stage.json``.
    Raises ``StageError`` if ``directory`` exists, is not empty and was not made by a stage; what ``build`` raises
    passes through.
    """
    directory = Path(directory)
    if is_complete(directory, inputs_hash):
        # A kill between the two renames of an earlier build can leave the result that was replaced.
        shutil.rmtree(directory.with_name(directory.name + ".old"), ignore_errors=True)
        return False
    if directory.exists() and not read_record(directory) and (not directory.is_dir() or any(directory.iterdir())):
        raise StageError(
            f"stage {name!r}: {directory} exists and holds no readable {RECORD}, so it may not be a result of sidgym "
            "and is not replaced; move it away, or choose another 'out' or 'name'"
        )
    work = partial_of(directory) if resumable else directory.with_name(directory.name + ".building")
    with locked(directory):
        return _build_locked(directory, work, name, inputs_hash, build, inputs, resumable)


def _build_locked(
    directory: Path,
    work: Path,
    name: str,
    inputs_hash: str,
    build: Callable[[Path], None],
    inputs: Mapping[str, Any] | None,
    resumable: bool,
) -> bool:
    """``run_stage`` once the folder is this process's own."""
    from sidgym.agents.checkpoint import flush, flush_one  # late: it brings the whole of transformers

    if is_complete(directory, inputs_hash):  # another process has just finished it
        return False
    for path in set_aside(directory):
        if not holds_work(path):
            shutil.rmtree(path)
    _prepare(work, inputs_hash, resumable)
    if not is_complete(work, inputs_hash):  # a kill between the last record and the rename leaves a complete one
        record = {"name": name, "inputs_hash": inputs_hash, "inputs": inputs, "complete": False}
        _write_record(work, record)
        start = time.monotonic()
        try:
            build(work)
            if not work.is_dir():
                raise StageError(f"stage {name!r}: build removed the directory it was given, {work}")
            seconds = round(time.monotonic() - start, 3)  # of this call: a resumed stage counts from its resumption
            environment = environment_record()
            flush(work)  # a record that says complete must not reach the disk before what it speaks of
            _write_record(work, {**record, "complete": True, "seconds": seconds, "environment": environment})
        except BaseException:
            if not resumable:
                shutil.rmtree(work, ignore_errors=True)
            raise
    _publish(work, directory)
    flush_one(directory.parent)
    return True


@dataclass(frozen=True)
class Stage:
    """What is built, from which inputs, and where."""

    name: str
    inputs: Mapping[str, Any]
    """JSON values or dataclasses of them: settings, seeds, and the hashes of the stages that this one reads."""
    directory: Path

    @property
    def hash(self) -> str:
        """Hash of the name and the inputs; a stage that reads this one puts it among its own inputs."""
        return content_hash({"name": self.name, "inputs": self.inputs})

    @property
    def partial(self) -> Path:
        """Where a resumable stage works until it is complete."""
        return partial_of(self.directory)

    @property
    def complete(self) -> bool:
        """Whether the directory holds the finished result of these inputs."""
        return is_complete(self.directory, self.hash)

    def run(self, build: Callable[[Path], None], resumable: bool = False) -> bool:
        """``run_stage`` on this stage."""
        return run_stage(self.directory, self.name, self.hash, build, inputs=self.inputs, resumable=resumable)
