"""What ``sidgym doctor`` checks of what is installed: versions, and packages that only some runs need."""

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sidgym.launch.findings import Finding, bad, fine, odd
from sidgym.launch.stages import environment_record

OPTIONAL = {
    "ray": "rl.backend 'rllib' and 'fsdp'",
    "gymnasium": "the Gymnasium environments",
    "vllm": "rl.engine 'vllm'",
    "peft": "rl.lora_rank",
    "sentence_transformers": "sid.embedder 'encoder' on a sentence-transformers directory",
    "plotly": "the page of 'sidgym sid inspect --html'",
    "wandb": "log.wandb 'offline' and 'online'",
}
"""Packages that a run may do without, and what needs them."""

DECISIVE = ("torch", "transformers", "numpy")
"""Packages whose version decides whether results can be reproduced bit by bit."""


def inputs_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage was built from, as its record says; empty where it does not."""
    inputs = record.get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def check_versions(stages: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """What is installed against what sidgym asks for and against what the stages were built with."""
    now = environment_record()["packages"]
    yield from _check_requirements()
    built: dict[str, set[str]] = {}
    for record in stages.values():
        for package, version in ((record.get("environment") or {}).get("packages") or {}).items():
            if package in DECISIVE and version:
                built.setdefault(package, set()).add(version)
    other = {package: sorted(versions - {now[package]}) for package, versions in built.items()}
    changed = [f"{package} {', '.join(old)} (now {now[package]})" for package, old in sorted(other.items()) if old]
    if changed:
        what = f"stages were built with {'; '.join(changed)}"
        yield odd(
            "versions",
            what,
            "the same seeds may not give the same bits",
            "compare runs of one environment only; constraints.txt has the tested versions",
        )
    else:
        yield fine("versions", ", ".join(f"{package} {now[package]}" for package in DECISIVE))


def _check_requirements() -> Iterator[Finding]:
    """Installed versions against the package's own requirements, where it is installed as one."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = importlib.metadata.requires("sidgym") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for text in wanted:
        try:
            need = Requirement(text)
            have = importlib.metadata.version(need.name)
        except (InvalidRequirement, importlib.metadata.PackageNotFoundError):
            continue  # what is missing is told by ``check_packages``
        if (need.marker is None or need.marker.evaluate()) and not need.specifier.contains(have, prereleases=True):
            yield odd(
                "versions",
                f"{need.name} {have} is installed, sidgym asks for {need.specifier}",
                "it is not tested with that",
                f"pip install '{need.name}{need.specifier}'",
            )


def check_packages(stages: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Optional packages that are missing: an error for those that settings in the stages' records call for.

    These are Ray, vLLM, PEFT and sentence-transformers. Whether the others are needed, no record says: what is logged
    and drawn is no input of a stage.
    """
    missing = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    needed = _needed([inputs_of(record) for record in stages.values()])
    for name in missing:
        if name in needed:
            yield bad(
                "packages", f"{name} is not installed", f"this run needs it: {needed[name]}", f"pip install {name}"
            )
    others = [f"{name} ({OPTIONAL[name]})" for name in missing if name not in needed]
    what = f"not installed, and no stage's settings call for them: {', '.join(others)}" if others else ""
    if what or not needed.keys() & set(missing):
        yield fine("packages", what or "all are installed")


def _needed(inputs: list[dict[str, Any]]) -> dict[str, str]:
    """Packages that the stages' settings call for, of those that a setting of a stage can, and by which setting."""
    out: dict[str, str] = {}
    for one in inputs:
        rl, sid = one.get("rl"), one.get("sid")
        if isinstance(rl, dict):
            if rl.get("backend") in ("rllib", "fsdp"):
                out["ray"] = f"rl.backend = {rl['backend']!r}"
            if rl.get("engine") == "vllm":
                out["vllm"] = "rl.engine = 'vllm'"
            if rl.get("lora_rank"):
                out["peft"] = f"rl.lora_rank = {rl['lora_rank']}"
        directory = sid.get("encoder", "") if isinstance(sid, dict) and sid.get("embedder") == "encoder" else ""
        if directory and (Path(directory) / "modules.json").is_file():
            out["sentence_transformers"] = f"sid.encoder = {directory!r}"
    return out
