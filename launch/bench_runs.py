"""A contest of arms through the pipeline: the same start, the same contexts, many seeds, in one folder that can grow.

    OUT/results.jsonl     a line a finished trial, appended
    OUT/summary.json      what all trials of the newest setting came to; report.md and report.html tell it
    OUT/seed-0/...        the stages of a seed, as ``sidgym run`` leaves them, without those that no trial needs

Stages are the pipeline's own, so finished ones are not run again and a killed one goes on. The same command with more
objectives or seeds adds to the folder. Left out: which arms there are (``bench_arms``), their lines (``bench_trials``),
showing progress (``bench_table``), Ray (``bench_ray``), telling the outcome (``benchmarks.arms_*``, ``bench_report``).
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import sidgym
from sidgym.benchmarks.arms_seeds import by_seed
from sidgym.benchmarks.arms_summary import START, TESTED, summarise_arms
from sidgym.benchmarks.arms_tables import markdown
from sidgym.benchmarks.arms_words import failures, verdict
from sidgym.launch.bench_arms import differences
from sidgym.launch.bench_report import write_report
from sidgym.launch.bench_table import TrialTable
from sidgym.launch.bench_trials import (
    RESULTS,
    bands_of,
    keep_line,
    line_of,
    looks,
    looks_note,
    newest,
    read_lines,
    read_trial,
    settings_in,
    systems_in,
)
from sidgym.launch.config import to_toml
from sidgym.launch.evaluation import test_contexts
from sidgym.launch.jobs import Job, run_jobs
from sidgym.launch.pipeline import Plan, build_stage, check_names, code_fingerprint, make_plan, trained_settings
from sidgym.launch.schema import ConfigError, PreferenceConfig, RunConfig
from sidgym.launch.stages import Stage, content_hash, environment_record, is_complete, locked
from sidgym.sid.table import write_atomically

DATA, WARM, PREFERENCE = "data and codes", "supervised warm-up", "preference model"
"""What is built before the trials."""


@dataclass(frozen=True)
class Bench:
    """What is compared, and how it is told."""

    config: RunConfig  # its arms are what is trained, its directory the contest's folder
    seeds: int
    title: str = "Policy-gradient variants"
    command: str = ""
    metric: str = ""  # what decides which is best; "" as ``summarise_arms`` chooses
    target: float | None = None
    ray: bool = False
    notes: tuple[str, ...] = ()
    told: dict[str, Any] = field(default_factory=dict)  # what else the summary says of the command
    name: str = "variants"
    apart: Mapping[str, PreferenceConfig] = field(default_factory=dict)  # arms with a preference model of their own
    start_of: Path | None = None  # another contest's folder, for what is built before the trials

    def run_of(self, run: RunConfig, arm: str) -> RunConfig:
        """The run of a seed that an arm is trained in: ``run``, or one beside it with another preference model."""
        if arm not in self.apart:
            return run
        return replace(run, name=f"{run.name}-{arm}", preference=self.apart[arm])

    def runs(self) -> list[RunConfig]:
        """A configuration a seed, each in a folder of its own."""
        first, out = self.config.seed, str(self.config.directory)
        return [replace(self.config, seed=k, out=out, name=f"seed-{k}") for k in range(first, first + self.seeds)]


@dataclass(frozen=True)
class Step:
    """Stages of one seed that are built one after the other in one process."""

    seed: int
    system: str  # whose trial it is, or what it prepares
    config: RunConfig
    stages: tuple[Stage, ...]

    @property
    def done(self) -> bool:
        """Whether there is nothing to build."""
        return all(stage.complete for stage in self.stages)


def rounds(bench: Bench) -> list[list[Step]]:
    """What is to be built; the steps of a round need only those of the rounds before it."""
    runs = [(run, make_plan(run)) for run in bench.runs()]
    warm = {WARM: "sft", **({PREFERENCE: "preference"} if bench.config.preference.enabled else {})}
    first = [_step(run, plan, DATA, "data", "sid", "evaluate/baselines") for run, plan in runs]
    second = [_step(run, plan, what, name) for what, name in warm.items() for run, plan in runs]
    trials = [_step(run, plan, START, "evaluate/sft") for run, plan in runs]
    plans = {(run.name, arm): make_plan(bench.run_of(run, arm)) for run, _ in runs for arm in bench.apart}
    second += [
        _step(plans[run.name, arm].config, plans[run.name, arm], PREFERENCE, "preference")
        for arm in bench.apart
        for run, _ in runs
    ]
    arms = []
    for run, plan in runs:
        for arm in bench.config.arms:
            own = plans.get((run.name, arm), plan)
            arms.append(_step(own.config, own, arm, f"rl_{arm}", f"evaluate/rl_{arm}"))
    return [first, second, [*trials, *arms]]


SHARED = ("data", "sid", "sft")
"""Stages that a run beside another one has from it."""


def share_stages(bench: Bench) -> None:
    """Links what arms with a preference model of their own have in common with the others, built or not yet."""
    for run in bench.runs():
        for arm in bench.apart:
            folder = bench.run_of(run, arm).directory
            folder.mkdir(parents=True, exist_ok=True)
            for stage in SHARED:
                if not (folder / stage).is_symlink():
                    (folder / stage).symlink_to(Path("..") / run.name / stage)


def take_stages(bench: Bench, source: Path) -> None:
    """Copies what is built before the trials from the contest in ``source``, as far as it was made from the same
    settings, data and code; the rest is built. Raises ``ConfigError`` for a folder without any seed of a contest."""
    if not any(source.glob("seed-*")):
        raise ConfigError(f"--start-of: expected the folder of a contest, with seed-0 and so on; {source} has none")
    for run in bench.runs():
        stages = make_plan(run).stages
        for name in (name for name in (*SHARED, "preference") if name in stages):
            stage, there = stages[name], source / run.name / name
            if stage.complete or not is_complete(there, stage.hash):
                continue
            with locked(stage.directory):
                copy = stage.directory.with_name(f"{name}.copy")
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(there, copy)
                shutil.rmtree(stage.directory, ignore_errors=True)
                copy.rename(stage.directory)


def _step(run: RunConfig, plan: Plan, system: str, *names: str) -> Step:
    return Step(run.seed, system, run, tuple(plan.stages[name] for name in names))


def build(config: RunConfig, stages: Sequence[Stage], on_progress: Any = None) -> None:
    """Builds what is not complete, one stage after the other."""
    for stage in stages:
        if not stage.complete:
            build_stage(config, stage, on_progress)


def setting_of(config: RunConfig) -> str:
    """Hash of all that trials must have in common to be compared: data, codes, start, judges, and ``rl``'s settings
    with the code of components of one's own that these name; neither seed nor arms."""
    stages = make_plan(config).stages
    shared: dict[str, Any] = {
        name: {key: value for key, value in stages[name].inputs.items() if key not in ("seed", "needs")}
        for name in ("data", "sid", "sft", "preference")
        if name in stages
    }
    if code := code_fingerprint(asdict(config.rl)):
        shared["code"] = code
    return content_hash({**shared, "eval": asdict(config.eval), "rl": trained_settings(config.rl)})


def others_here(bench: Bench) -> list[str]:
    """What to know before a contest of another setting goes on in the same folder: at most one line."""
    folder = bench.config.directory
    setting = setting_of(bench.config)
    others = sum(line["setting"] != setting for line in read_lines(folder))
    if not others:
        return []
    return [
        f"{folder / RESULTS} has {others} line(s) of other settings: they are left out, and trainings of the same arms "
        "and seeds are replaced. Give another --out to keep them."
    ]


def run_bench(bench: Bench) -> dict[str, Any]:
    """Trains and judges what is missing, then writes summary and reports; the summary.

    A trial that fails keeps none beside it from ending: what there is is told, then its error is raised (``JobError``
    where it ran in a process of its own).
    """
    check_names(bench.config)
    bench.config.directory.mkdir(parents=True, exist_ok=True)
    share_stages(bench)
    if bench.start_of:
        take_stages(bench, bench.start_of)
    setting = setting_of(bench.config)
    failed: Exception | None = None
    # Ray's nodes work in folders of their own.
    there = replace(bench.config, out=str(Path(bench.config.out).resolve()))
    plan = rounds(replace(bench, config=there) if bench.ray else bench)
    with TrialTable(plan[-1], bench.title) as table:
        for number, steps in enumerate(plan):
            try:
                _run_round(bench, setting, steps, table, last=number == len(plan) - 1)
            except Exception as error:
                if not any(step.done for step in plan[-1] if step.system == START):
                    raise
                failed = error
    summary = write_results(bench, setting, [step for step in plan[-1] if not step.done])
    if failed is not None:
        raise failed
    return summary


def _run_round(bench: Bench, setting: str, steps: Sequence[Step], table: TrialTable, last: bool) -> None:
    """Builds a round's steps side by side. In the last one a trial's line is written as soon as it is evaluated."""

    def ended(step: Step) -> str:
        """Writes the lines of a trial; its main figures in words."""
        told = ""
        for system in (step.system, *(systems_in(step.config.directory) if step.system == START else ())):
            line = line_of(step.config.directory, system, step.seed, setting, bench.config.arms.get(system))
            keep_line(bench.config.directory, line)
            if system == step.system:
                known = [name for name in TESTED if name in line["figures"]]
                told = ", ".join(f"{name} {line['figures'][name]:.4f}" for name in known)
        return told

    missing = [step for step in steps if not step.done]
    for step in steps if last else ():
        if step.done:
            table.finished(step)
            ended(step)
    jobs = [Job(f"Seed {step.seed}: {step.system}", build, (step.config, step.stages)) for step in missing]
    display = table.showing(missing, ended if last else None)
    if bench.ray and jobs:
        from sidgym.launch.bench_ray import run_on_ray

        run_on_ray(jobs, bench.config, display)
    elif jobs:
        run_jobs(jobs, bench.config.workers, display)


def write_results(bench: Bench, setting: str, unfinished: Sequence[Step] = ()) -> dict[str, Any]:
    """``summary.json``, ``report.md`` and ``report.html`` from all trials of the setting that stand in the folder."""
    folder = bench.config.directory
    lines, notes = newest(read_lines(folder), folder, setting)
    runs = {line["seed"]: folder / line["run"] for line in lines}
    bands, users, simulated = {}, [], False
    about: tuple[str, ...] = ()
    for seed, run in runs.items():
        dataset, episodes = test_contexts(replace(bench.config, out=str(folder), name=run.name))
        bands[seed] = bands_of(episodes, run)
        users.append(episodes.user)
        simulated, about = dataset.truth is not None, dataset.notes
    # A simulated store is another one with each seed, also where its users have the same numbers.
    same_users = not simulated and all(np.array_equal(one, users[0]) for one in users)
    trials = [read_trial(folder, line, bands[line["seed"]]) for line in lines]
    found = summarise_arms(trials, bench.metric, bench.target, same_users, bench.config.eval.bootstrap)
    settings = {line["system"]: settings_in(folder, line) for line in lines if line["settings"]}
    if own_rewards := len({told["rewards"] for told in settings.values() if told["rewards"]}) > 1:
        # On scales of their own: no reward is a target for all, and the start has none.
        found["targets"].pop("eval/reward", None)
        found["objectives"][START]["reward"] = None
        notes.append("Rewards differ between arms: each is validated by its own, and these are not on one scale.")
    read_at = looks(folder, setting, len(found["seeds"]))
    summary = {
        "benchmark": bench.name,
        "title": bench.title,
        "command": bench.command,
        **bench.told,
        **found,
        "looks": read_at,
        "by_seed": by_seed(trials),
        "failed": [f"{step.system}, seed {step.seed}" for step in unfinished],
        "settings": differences(settings),
        "own_rewards": own_rewards,
        "setting": setting,
        "notes": [*bench.notes, *notes, *looks_note(read_at), *about],
        "environment": environment_record(),
        "commit": commit(),
        "config": to_toml(bench.config),
    }
    summary["verdict"], summary["failures"] = [list(said) for said in verdict(summary)], failures(summary)
    write_results_files(folder, summary, markdown)
    write_report(folder / "report.html", summary)
    return summary


def write_results_files(folder: Path, summary: dict[str, Any], tell: Callable[[dict[str, Any]], str]) -> None:
    """``summary.json``, and ``report.md`` as ``tell`` puts it; figures that cannot be told are written all the same."""
    text = json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(folder / "summary.json", text.encode())
    write_atomically(folder / "report.md", tell(summary).encode())


def commit() -> str | None:
    """The commit of the checkout that this package runs from; None where it is installed."""
    root = Path(str(sidgym.__file__)).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
