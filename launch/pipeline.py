"""The pipeline: data -> Semantic IDs -> (preference, SFT) -> RL and its control arms -> evaluation -> report.

A stage is a directory with the hash of its inputs (``stages``); what has been built is not built again. Stages that do
not need each other run side by side (``jobs``). Left out: what a stage does, which stands in ``builders``.
"""

import functools
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import sidgym.agents
import sidgym.envs
import sidgym.sid
from sidgym.agents.advantages import ADVANTAGES
from sidgym.agents.config import RewardConfig, RlConfig, SftConfig
from sidgym.agents.engine import ENGINES
from sidgym.agents.engine_vllm import CPU_HEAD_SIZES, check_vllm
from sidgym.agents.merger import check_path
from sidgym.agents.mixture import check_sft
from sidgym.agents.recipes import check_objective, completed
from sidgym.agents.sft import check_training
from sidgym.agents.task_contexts import check_asked
from sidgym.envs.datasets import DATASETS
from sidgym.envs.relevance import RELEVANCES
from sidgym.envs.rewards import claims, find_reward, required_fields, required_mode
from sidgym.launch import builders
from sidgym.launch.jobs import Job, run_jobs
from sidgym.launch.preference_stage import check_preference, fitted_settings
from sidgym.launch.schema import RunConfig, arms_of
from sidgym.launch.stages import Stage
from sidgym.sid.alignment import ALIGNMENTS
from sidgym.sid.embed import EMBEDDERS, make_embedder
from sidgym.sid.registry import resolve
from sidgym.sid.tokenizers import TOKENIZERS


def resumable(name: str, config: RunConfig) -> bool:
    """Whether a stage goes on inside its own folder after a kill."""
    return name.startswith("rl") or (name in ("sft", "sft_all") and config.sft.checkpoint_every > 0)


LARGE_FILE = 64 << 20  # bytes
COMPONENT = r"([A-Za-z_][\w.]*:[A-Za-z_]\w*)(?::[0-9.+][\w.+-]*)?"
"""A component that is named ``package.module:name``, and the share that may stand behind a task."""


@dataclass(frozen=True)
class Plan:
    """All stages of one run with their directories and hashes, and the stages that each one reads."""

    config: RunConfig
    stages: dict[str, Stage]
    needs: dict[str, tuple[str, ...]]

    def closure(self, name: str) -> set[str]:
        """``name`` and everything that it is built from."""
        return {name}.union(*(self.closure(need) for need in self.needs[name]))

    def levels(self) -> Iterator[list[str]]:
        """Groups of stage names; a group needs only the groups before it."""
        arms = [name for name in self.stages if name.startswith("rl")]
        evaluations = [name for name in self.stages if name.startswith("evaluate/")]
        training: list[str] = [name for name in self.stages if name in ("sft", "sft_all", "preference")]
        yield from (["data"], ["sid"], training, arms, evaluations)


def make_plan(config: RunConfig) -> Plan:
    """The stages of ``config``. Raises ``FileNotFoundError`` when the data's path does not exist."""
    root = config.directory
    stages: dict[str, Stage] = {}
    needed: dict[str, tuple[str, ...]] = {}

    def add(name: str, inputs: dict[str, Any], *needs: str) -> None:
        whole = {**inputs, "seed": config.seed, "threads": config.threads, "sources": own_sources()}
        whole |= {"needs": [stages[n].hash for n in needs], "code": code_fingerprint(inputs)}
        stages[name] = Stage(name, whole, root / name)
        needed[name] = needs

    cut = {} if config.split_seed == "seed" else {"split_seed": config.split_seed}
    add("data", {"data": asdict(config.data), "files": fingerprint(config.data.path), **cut})
    encoder = {"encoder": fingerprint(config.sid.encoder)} if config.sid.encoder else {}
    add("sid", {"sid": asdict(config.sid), "index": fingerprint(config.sid.index), **encoder}, "data")
    supervised: dict[str, Any] = {"policy": asdict(config.policy), "sft": learned_settings(config.sft)}
    supervised["files"] = fingerprint(config.policy.path)
    for key in ("labels", "text"):
        if Path(given := getattr(config.sft, key)).is_file():
            supervised[key] = fingerprint(given)
    add("sft", supervised, "sid")
    add("sft_all", supervised, "sid")
    rl_needs = ["sft"]
    if config.preference.enabled:
        add("preference", fitted_settings(config.preference), "sid")
        rl_needs.append("preference")
    for name, rl in arms_of(config).items():
        add(name, {"rl": trained_settings(rl)}, *rl_needs)
    judged = {"eval": asdict(config.eval)}
    add("evaluate/baselines", judged, "sid")
    for name in ("sft", "sft_all", *arms_of(config)):
        if name == "sft" and config.preference.enabled:
            add("evaluate/sft", {**judged, "rerank": asdict(config.rl)["rewards"]}, "sft", "preference")
        else:
            add(f"evaluate/{name}", judged, name)
    return Plan(config, stages, needed)


def code_fingerprint(inputs: Any) -> dict[str, str]:
    """Hash of the source of every component named ``package.module:name``, with a task's share behind it or not: a
    changed reward is a new run.

    The files of the whole top-level package count, or a lone module's own; what that imports from elsewhere does not.
    A module that cannot be found is left to the stage that needs it, whose message names it.
    """
    if isinstance(inputs, dict):
        inputs = list(inputs.values())
    if isinstance(inputs, (list, tuple)):
        return {name: value for part in inputs for name, value in code_fingerprint(part).items()}
    named = re.fullmatch(COMPONENT, inputs) if isinstance(inputs, str) else None
    if named is None:
        return {}
    name = named[1]
    try:
        spec = importlib.util.find_spec(name.partition(":")[0].partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    return {name: sources_hash(Path(spec.origin))} if spec is not None and spec.origin else {}


def sources_hash(origin: Path) -> str:
    """Hash of a module's file, or of every ``*.py`` below a package, given its ``__init__.py``."""
    files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(origin.parent)}".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def own_sources() -> str:
    """Hash of the code that results come from: ``sid``, ``envs`` and ``agents``."""
    folders = (Path(str(package.__file__)) for package in (sidgym.sid, sidgym.envs, sidgym.agents))
    return hashlib.sha256("".join(sources_hash(path) for path in folders).encode()).hexdigest()[:16]


def learned_settings(sft: SftConfig) -> dict[str, Any]:
    """The settings that SFT's results depend on: not how often a checkpoint is written."""
    values = asdict(sft)
    values.pop("checkpoint_every")
    return values


def trained_settings(rl: Any) -> dict[str, Any]:
    """The settings that results depend on: not the number of workers, nor how often a checkpoint is written."""
    values = asdict(rl)
    for name in ("env_runners", "checkpoint_every"):
        values.pop(name)
    return values


def run_pipeline(config: RunConfig, until: str = "") -> Plan:
    """Builds every stage that is not complete: all of them, or ``until`` and what it is built from."""
    check_names(config)
    plan = make_plan(config)
    wanted = plan.closure(until) if until else set(plan.stages)
    for group in plan.levels():
        missing = [name for name in group if name in wanted and not plan.stages[name].complete]
        for name in missing:
            if plan.stages[name].directory.exists():
                print(f"{name}: settings, code or data have changed, building it again", file=sys.stderr)
        jobs = [Job(builders.describe(name), build_stage, (config, plan.stages[name])) for name in missing]
        run_jobs(jobs, config.workers)
    return plan


def check_names(config: RunConfig) -> None:
    """Resolves every component that the settings name, before the first stage spends any time.

    Raises ``ValueError`` that lists what is known.
    """
    resolve("data set", config.data.name, DATASETS)
    resolve("tokenizer", config.sid.tokenizer, TOKENIZERS)
    if "source" in getattr(resolve("embedder", config.sid.embedder, EMBEDDERS), "takes", ()):
        make_embedder(config.sid, config.seed)  # says what is wrong with the encoder's directory, or the file
    if config.sid.alignment:
        resolve("alignment", config.sid.alignment, ALIGNMENTS)
    check_sft(config.sft, config.policy.merge_items)
    if config.policy.path:
        check_path(config.policy.path, config.policy.merge_items)
    check_training(config.sft, config.policy)
    check_preference(config)
    for term in config.sft.rsft.rewards if config.sft.rsft.drop > 0 else ():
        _check_truth("sft.rsft", config, term)
    for name, rl in arms_of(config).items():
        asked = [share.name for share in check_asked(rl.tasks)]
        if asked != ["retrieval"] and rl.environment != "next_item":
            raise ValueError(f"{name}: rl.tasks but retrieval ask for one item; use rl.environment = 'next_item'")
        if rl.backend != "torch" and importlib.util.find_spec("ray") is None:
            raise ValueError(
                f"{name}: backend {rl.backend!r} needs Ray, which is not installed; use --rl.backend torch"
            )
        resolve("advantage", completed(rl).advantage, ADVANTAGES)
        try:
            check_objective(rl)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        resolve("engine", rl.engine, ENGINES)
        if rl.engine == "vllm":
            # The heads of a model that somebody else made are known once it is opened.
            known = config.policy.hidden_size // config.policy.heads
            check_vllm(CPU_HEAD_SIZES[0] if config.policy.path else known)
        for term in rl.rewards:
            _check_reward(config, name, rl, term)


def _check_reward(config: RunConfig, name: str, rl: RlConfig, term: RewardConfig) -> None:
    """What a reward needs of the arm ``name`` that it is a term of. Raises ``ValueError``."""
    reward = find_reward(term)
    needed = required_fields(term)
    if {"preference", "gate"} & set(needed) and not config.preference.enabled:
        raise ValueError(f"{name}: reward {term.name!r} needs the preference model: set preference.enabled")
    _check_truth(name, config, term)
    _check_threshold(name, config, term)
    mode = required_mode(reward)
    if mode and rl.mode != mode:
        raise ValueError(f"{name}: reward {term.name!r} needs rl.mode = {mode!r}, got {rl.mode!r}")
    if claims(reward, "constant_sum"):
        _check_constant_sum(name, rl, term.name)
    if not claims(reward, "needs_group"):
        return
    field = "group_size" if rl.environment == "next_item" else "page_size"
    if getattr(rl, field) < 2:
        raise ValueError(
            f"{name}: reward {term.name!r} compares candidates with each other; expected {field} of at least 2, got "
            f"{getattr(rl, field)}"
        )


def _check_threshold(name: str, config: RunConfig, term: RewardConfig) -> None:
    """Refuses a gate by a relevance of the user's own for which no threshold will be chosen."""
    if term.name not in ("gated", "gated_preference") or not config.preference.enabled:
        return
    relevance = term.args.get("relevance", "auto")
    chosen = {"auto", config.preference.relevance, *RELEVANCES}
    if term.args.get("gate", True) and term.args.get("tau", "auto") == "auto" and relevance not in chosen:
        raise ValueError(
            f"{name}: reward {term.name!r} has relevance {relevance!r} and no tau; expected a tau among its args, or "
            "preference.relevance set to the same, for which one is chosen"
        )


def _check_truth(name: str, config: RunConfig, term: RewardConfig) -> None:
    """Refuses a reward that reads the simulator's truth on another data set, and says what one is worth."""
    if "truth" in required_fields(term) and config.data.name != "simulator":
        raise ValueError(
            f"{name}: reward {term.name!r} needs the simulator's truth, which data set {config.data.name!r} does not "
            "have; use data.name = 'simulator' or another reward"
        )
    if term.name == "true_preference":
        print(
            f"{name}: reward 'true_preference' is the simulator's own truth: an upper bound, no result", file=sys.stderr
        )


def _check_constant_sum(name: str, rl: RlConfig, term: str) -> None:
    """Refuses a reward that hands out a fixed sum where only the sum would count."""
    if rl.environment != "next_item":
        raise ValueError(
            f"{name}: reward {term!r} shares a fixed sum among the items of a page, so it says nothing of the page; "
            f"use another reward with rl.environment = {rl.environment!r}, for example rule with any_positive"
        )
    if rl.select_by == "reward":
        raise ValueError(
            f"{name}: select_by = 'reward' cannot judge by reward {term!r}, whose mean over a group is the same "
            "for every policy; use ndcg@10 or last"
        )


def build_stage(config: RunConfig, stage: Stage, on_progress: Any = None) -> None:
    """Builds one stage whose inputs are complete. Runs in a process of its own when stages run side by side."""
    builders.prepare_process(config.threads)
    build = builders.builder_of(stage.name)
    stage.run(lambda work: build(config, work, on_progress, stage.name), resumable=resumable(stage.name, config))


def seed_configs(config: RunConfig, seeds: int) -> list[RunConfig]:
    """One configuration a seed, each in a folder of its own below the run's; the configuration itself for one seed."""
    if seeds <= 1:
        return [config]
    return [
        replace(config, seed=config.seed + k, out=str(config.directory), name=f"seed-{config.seed + k}")
        for k in range(seeds)
    ]


def fingerprint(path: str) -> str:
    """Hash of a file, or of every file in a folder by name and content; "" for no path."""
    if not path:
        return ""
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"{path} does not exist; give the folder or file with the raw data (--data.path)")
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        size = file.stat().st_size
        # Weights of many gigabytes are told apart by size and time of change; everything else by content.
        content = f"{size} {file.stat().st_mtime_ns}".encode() if size > LARGE_FILE else file.read_bytes()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]
