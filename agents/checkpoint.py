"""Checkpoints: a plain Hugging Face directory plus what sidgym needs to use and to continue it.

    config.json, model.safetensors, tokenizer files, generation_config.json    what transformers reads
    sid/                                                                       the SID table
    sidgym.json                                                                schema, hashes, prompt settings, figures
    training.safetensors, training.json                                        optimiser and position, to resume from

Nothing is pickled: a checkpoint from somebody else can be opened without running their code. Every directory is
written beside its place and renamed, so a kill leaves the old one or the new one, never half of one.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from sidgym.agents.policy import Policy, clean_generation_config
from sidgym.sid.table import SidTable

SCHEMA_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, of another schema, or of another catalogue."""


def save_policy(directory: Path | str, policy: Policy, info: dict[str, Any] | None = None) -> None:
    """Writes ``policy`` and its SID table; ``info`` (JSON-able) is kept in ``sidgym.json``."""
    directory = Path(directory)
    fresh = _beside(directory)
    write_policy(fresh, policy, info)
    _swap(fresh, directory)


def write_policy(directory: Path, policy: Policy, info: dict[str, Any] | None = None) -> None:
    """Writes the files of a policy into an existing directory, for callers who rename it themselves."""
    policy.model.generation_config = clean_generation_config(policy.model, policy.tokenizer)
    with _no_bars():
        policy.model.save_pretrained(directory)
    policy.tokenizer.save_pretrained(directory)
    policy.table.save(directory / "sid")
    record = {
        "schema_version": SCHEMA_VERSION,
        "sid_hash": policy.table.content_hash(),
        "trie_hash": policy.trie.content_hash(),
        **(info or {}),
    }
    (directory / "sidgym.json").write_text(json.dumps(record, indent=2) + "\n")


def read_info(directory: Path | str) -> dict[str, Any]:
    """``sidgym.json`` of a checkpoint, checked for its schema. Raises ``CheckpointError``."""
    path = Path(directory) / "sidgym.json"
    if not path.is_file():
        why = "it has no sidgym.json" if Path(directory).is_dir() else "there is no such folder"
        raise CheckpointError(f"{directory} is no sidgym checkpoint: {why}")
    record = json.loads(path.read_text())
    if record.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{directory}: schema version {record.get('schema_version')!r}, this sidgym reads {SCHEMA_VERSION}"
        )
    return record


def load_policy(directory: Path | str, table: SidTable | None = None) -> Policy:
    """The policy of a checkpoint. With ``table`` given, a checkpoint of another catalogue is refused."""
    directory = Path(directory)
    record = read_info(directory)
    own = SidTable.load(directory / "sid")
    if own.content_hash() != record["sid_hash"]:
        raise CheckpointError(f"{directory}: its SID table is not the one that it was saved with")
    if table is not None and table.content_hash() != record["sid_hash"]:
        raise CheckpointError(
            f"{directory} was trained on another catalogue: its SID table has hash {record['sid_hash'][:12]}, the "
            f"table at hand {table.content_hash()[:12]}. Use the table in {directory / 'sid'} or train again."
        )
    with _no_bars():
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
    return Policy(model, tokenizer, own).eval()


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
    """Puts tensors of ``optimizer_tensors`` back; hyper-parameters stay the optimiser's own."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def save_training(directory: Path, tensors: dict[str, torch.Tensor], position: dict[str, Any]) -> None:
    """Writes what a trainer needs to go on: named tensors and a JSON-able position. Atomic."""
    fresh = _beside(directory)
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, fresh / "training.safetensors")
    record = {"schema_version": SCHEMA_VERSION, **position}
    (fresh / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    _swap(fresh, directory)


def load_training(directory: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Inverse of ``save_training``. Raises ``CheckpointError`` for another schema or missing files."""
    if not (directory / "training.json").is_file():
        raise CheckpointError(f"{directory} holds no training state (training.json)")
    position = json.loads((directory / "training.json").read_text())
    if position.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{directory}: schema version {position.get('schema_version')!r}, expected {SCHEMA_VERSION}"
        )
    return load_file(directory / "training.safetensors"), position


def _beside(directory: Path) -> Path:
    fresh = directory.with_name(directory.name + ".writing")
    if fresh.exists():
        shutil.rmtree(fresh)
    fresh.mkdir(parents=True)
    return fresh


def _swap(fresh: Path, directory: Path) -> None:
    if directory.exists():
        old = directory.with_name(directory.name + ".old")
        if old.exists():
            shutil.rmtree(old)
        directory.rename(old)
        fresh.rename(directory)
        shutil.rmtree(old)
    else:
        fresh.rename(directory)
