"""Checkpoints: a plain Hugging Face directory plus what sidgym needs to use and to continue it.

    config.json, model.safetensors, tokenizer files, generation_config.json    what transformers reads
    item_merger.safetensors                                                    where prompts hold merged items
    sid/                                                                       the SID table
    sidgym.json                                                                schema, hashes, prompt settings, figures
    training.safetensors, training.json                                        optimiser and position, to resume from

Nothing is pickled: a checkpoint from somebody else can be opened without running their code. Every directory is
written beside its place, brought to the disk and renamed, so a kill, a full disk or a power cut leaves the old one or
the new one, never half of one. Cut off between the two renames of a replacement the old one is called ``.old``, which
``recovery.tidy`` undoes for a run's checkpoints; whoever replaces a policy with ``save_policy`` looks there.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from sidgym.agents.merger import FILE, load_merger, missing, save_merger, without_merger
from sidgym.agents.policy import Policy, clean_generation_config
from sidgym.sid.table import SidTable

SCHEMA_VERSION = 1
WEIGHTS, POSITION = "training.safetensors", "training.json"


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, cannot be written, or is of another schema or of another catalogue."""


def save_policy(
    directory: Path | str,
    policy: Policy,
    info: dict[str, Any] | None = None,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Writes ``policy`` and its SID table; ``info`` (JSON-able) is kept in ``sidgym.json``.

    ``beside`` is called with the folder before it takes its name, to write what else belongs into it.
    """
    with _replacing(Path(directory)) as fresh:
        write_policy(fresh, policy, info)
        if beside is not None:
            beside(fresh)


def write_policy(directory: Path, policy: Policy, info: dict[str, Any] | None = None) -> None:
    """Writes the files of a policy into an existing directory, for callers who rename it themselves."""
    policy.model.generation_config = clean_generation_config(policy.model, policy.tokenizer)
    with _no_bars(), _writing(directory):
        with without_merger(policy.model):
            policy.model.save_pretrained(directory)
        save_merger(policy.model, directory)
        policy.tokenizer.save_pretrained(directory)
        policy.table.save(directory / "sid")
    record = {
        "schema_version": SCHEMA_VERSION,
        "sid_hash": policy.table.content_hash(),
        "trie_hash": policy.trie.content_hash(),
        "template": policy.template,
        **({"merge_items": True} if policy.merges else {}),
        **(info or {}),
    }
    with _writing(directory):
        (directory / "sidgym.json").write_text(json.dumps(record, indent=2) + "\n")


def read_info(directory: Path | str) -> dict[str, Any]:
    """``sidgym.json`` of a checkpoint, checked for its schema. Raises ``CheckpointError``."""
    path = Path(directory) / "sidgym.json"
    if not path.is_file():
        why = "it has no sidgym.json" if Path(directory).is_dir() else "there is no such folder"
        raise CheckpointError(f"{directory} is no sidgym checkpoint: {why}")
    with _whole(Path(directory)):
        record = json.loads(path.read_text())
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(record).__name__}; restore it from a copy")
    if record.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{directory}: schema version {record.get('schema_version')!r}, this sidgym reads {SCHEMA_VERSION}"
        )
    return record


def load_policy(directory: Path | str, table: SidTable | None = None) -> Policy:
    """The policy of a checkpoint. With ``table`` given, a checkpoint of another catalogue is refused."""
    directory = Path(directory)
    record = read_info(directory)
    with _whole(directory):
        own = SidTable.load(directory / "sid")
    if own.content_hash() != record["sid_hash"]:
        raise CheckpointError(f"{directory}: its SID table is not the one that it was saved with")
    if table is not None and table.content_hash() != record["sid_hash"]:
        raise CheckpointError(
            f"{directory} was trained on another catalogue: its SID table has hash {record['sid_hash'][:12]}, the "
            f"table at hand {table.content_hash()[:12]}. Use the table in {directory / 'sid'} or train again."
        )
    with _no_bars(), _whole(directory):
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
        if record.get("merge_items", False):
            if not (directory / FILE).is_file():
                raise CheckpointError(missing(directory))
            load_merger(model, own.codes.shape[1], directory)
    policy = Policy(model, tokenizer, own)
    if record.get("template", "plain") != "plain":
        policy.use_template(record["template"])
    return policy.eval()


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without transformers' own progress bars: a checkpoint is read and written in the middle of other output."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as flat tensors, ``<parameter number>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value).detach().clone().contiguous()
        for number, values in state.items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Puts tensors of ``optimizer_tensors`` back; other names are passed over, hyper-parameters stay its own."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        if number.isdigit():
            state.setdefault(int(number), {})[name] = value
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def save_training(directory: Path, tensors: dict[str, torch.Tensor], position: dict[str, Any]) -> None:
    """Writes what a trainer needs to go on: named tensors and a JSON-able position.

    Atomic; raises ``CheckpointError``, and leaves nothing behind, where the disk is full.
    """
    with _replacing(directory) as fresh:
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, fresh / WEIGHTS)
        record = {"schema_version": SCHEMA_VERSION, **position}
        (fresh / POSITION).write_text(json.dumps(record, indent=2) + "\n")


def load_training(directory: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Inverse of ``save_training``. Raises what ``read_position`` does."""
    position = read_position(directory)
    with _whole(directory):
        return load_file(directory / WEIGHTS), position


def read_position(directory: Path) -> dict[str, Any]:
    """The position of ``save_training``, without the tensors; but their file was looked at.

    Raises ``CheckpointError`` for another schema, for missing files and for files that were cut off.
    """
    if not (directory / POSITION).is_file():
        raise CheckpointError(f"{directory} holds no training state ({POSITION})")
    with _whole(directory):
        position = json.loads((directory / POSITION).read_text())
        with safe_open(directory / WEIGHTS, framework="pt"):
            pass  # compares what the header announces with the file's size
    if position.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{directory}: schema version {position.get('schema_version')!r}, expected {SCHEMA_VERSION}"
        )
    return position


@contextmanager
def _whole(directory: Path) -> Iterator[None]:
    """While files of ``directory`` are read: one that is missing or cut off is a ``CheckpointError``."""
    try:
        yield
    except (OSError, SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{directory} cannot be read, a file of it is missing or cut off: {error}") from error


@contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of ``directory`` once all of it is on the disk."""
    fresh = directory.with_name(directory.name + ".writing")
    try:
        with _writing(directory):
            if fresh.exists():
                shutil.rmtree(fresh)
            fresh.mkdir(parents=True)
            yield fresh
            flush(fresh)
            _swap(fresh, directory)
    except CheckpointError:
        shutil.rmtree(fresh, ignore_errors=True)  # it may be just what the disk has no room for
        raise


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """While files of ``directory`` are written: what the disk refuses is a ``CheckpointError``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{directory} cannot be written: {error}. What was finished before is untouched; make room and go on"
        ) from error


def flush(directory: Path) -> None:
    """Waits until every file and folder below ``directory`` is on the disk, and ``directory`` by its name."""
    for path in [*directory.rglob("*"), directory, directory.parent]:
        flush_one(path)


def flush_one(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(fresh: Path, directory: Path) -> None:
    old = directory.with_name(directory.name + ".old")
    if directory.exists():
        if old.exists():
            shutil.rmtree(old)
        directory.rename(old)
    fresh.rename(directory)
    flush_one(directory.parent)  # or a power cut could still undo the renames
    if old.exists():
        shutil.rmtree(old)
