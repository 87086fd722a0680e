"""The honest test of a reward: does a learned preference agree with what users like, and does RL on it serve them?

    python -m sidgym.benchmarks.preference --parts FOLDER --workers 2 --out FILE    # results/preference.json
    python -m sidgym.benchmarks.preference --quick                                  # a smoke run

On simulated stores of the demonstration's size, whose shoppers' tastes are known. A seed is a store of its own, where
all arms begin with the same supervised policy and see the same contexts. Every kind of model is fitted on training
users alone; all figures are of users who are in no training stage.

Models: how well scores tell clicks from what was ignored (first places, which are always looked at), and how far they
agree with the true preference over logged items and over *generated* ones: the policy's own candidates, before RL and
after it, which is where a reward is used.

Arms: GRPO for the same number of iterations with

    gated           the learned preference behind the gate (text, threshold chosen on validation users), anchored to the
                    positives (GenRec eq. 6 and 7), and the NLL of the contexts' targets
    ungated         the same with the gate open
    prefix gate     the same behind a gate that only lets pass what shares two codes with the history
    ... no nll, no anchor, bare     without the NLL, without eq. 7, without both
    weak ...        with a model that was fitted on few users
    sasrec ...      with the score of a collaborative model, which is what MiniOneRec found to be gamed
    nll only        no reward: the NLL alone, at a learning rate of its own

At checkpoints the first ten items of each held-out context are judged: the true preference, what each model says, the
share that the gate passes, NDCG@10 of the next click, and the divergence from the start: the hacking curve. Differences
are paired by user, all seeds together; their intervals are over users and not over seeds, whose own differences stand
beside them. Settings were chosen on validation users of other seeds (``--users valid``). Finished parts are kept in
``--parts``, so that a run that was stopped goes on. The last line printed is one JSON object.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.agents.config import PolicyConfig, RlConfig, SftConfig
from sidgym.benchmarks.parts import in_parts
from sidgym.benchmarks.preference_parts import Arm, Model, Setting, prepare, train
from sidgym.benchmarks.script import at_least_one, main
from sidgym.envs.config import DataConfig
from sidgym.envs.statistics import paired_bootstrap

RESAMPLES = 2000

WEAK = "weak"
"""A ``din`` of so few users that it can be gamed; ``weak_other`` is the same of as many others."""
FEW = 30

PREFIX = Arm(relevance="prefix", tau=0.375)
"""Behind a gate that wants two leading codes in common with an item of the history, of three or four."""

ARMS = {
    "gated": Arm(),
    "ungated": Arm(gate=False),
    "gated, no nll": Arm(nll=0.0),
    "ungated, no nll": Arm(gate=False, nll=0.0),
    "gated, no anchor": Arm(anchor=False),
    "ungated, bare": Arm(gate=False, anchor=False, nll=0.0),
    "prefix gate": PREFIX,
    "weak gated": Arm(WEAK),
    "weak ungated": Arm(WEAK, gate=False),
    "weak gated, bare": Arm(WEAK, anchor=False, nll=0.0),
    "weak ungated, bare": Arm(WEAK, gate=False, anchor=False, nll=0.0),
    "weak prefix gate, bare": replace(PREFIX, model=WEAK, anchor=False, nll=0.0),
    "sasrec gated": Arm("sasrec"),
    "sasrec ungated": Arm("sasrec", gate=False),
    "nll only": Arm("", nll=1.0, lr=1e-4),
}
PAIRS = (
    ("ungated", "gated"),
    ("ungated, no nll", "gated, no nll"),
    ("gated", "gated, no nll"),
    ("gated", "gated, no anchor"),
    ("ungated, bare", "ungated"),
    ("prefix gate", "ungated"),
    ("weak ungated", "weak gated"),
    ("weak ungated, bare", "weak gated, bare"),
    ("weak ungated, bare", "weak prefix gate, bare"),
    ("weak ungated, bare", "weak ungated"),
    ("sasrec ungated", "sasrec gated"),
    ("gated", "nll only"),
)
"""Whose difference is told besides that to the start."""


def models_of(few: int, settings: Mapping[str, Any]) -> dict[str, Model]:
    """``din`` as a run has it, the other kinds with their defaults, and two of ``few`` users; ``settings`` for all."""
    kinds = {kind: Model(kind, settings) for kind in ("sim", "pscore", "sasrec", "duration_aware")}
    weak = {name: Model("din", settings, few, draw) for draw, name in enumerate((WEAK, f"{WEAK}_other"))}
    return {"din": Model("din", {"epochs": 8, **settings}), **kinds, **weak}


GATES: dict[str, tuple[str, float | str]] = {
    "text": ("text", "auto"),
    "text, 0.2": ("text", 0.2),
    "learned": ("learned", "auto"),
    "prefix, two codes": (PREFIX.relevance, PREFIX.tau),
}
"""Whose price is told."""

FULL = Setting(
    data=DataConfig(),
    codes=32,
    policy=PolicyConfig(),
    sft=SftConfig(epochs=12, patience=12),
    rl=RlConfig(steps=300, backend="torch"),
    checkpoints=(10, 25, 50, 100, 150, 200),
    models=models_of(FEW, {}),
    timed=10,
    gates=GATES,
)
QUICK = Setting(
    data=DataConfig(users=200, items=150),
    codes=8,
    policy=PolicyConfig(hidden_size=32, intermediate_size=64, layers=1, heads=2, kv_heads=1),
    sft=SftConfig(epochs=1, eval_users=20),
    rl=RlConfig(steps=3, backend="torch", contexts_per_step=8, group_size=8),
    checkpoints=(1,),
    models=models_of(20, {"epochs": 2}),
    timed=2,
    gates=GATES,
    most=30,
)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of every model and arm: one value a seed, what RL changed, user by user, and one arm over another."""
    setting = replace(QUICK if options.quick else FULL, users=options.users)
    arms = {name: arm for name, arm in ARMS.items() if not options.arms or name in options.arms}
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.parts or Path(scratch)
        starts = _starts(setting, options, folder)
        done = _arms(setting, arms, options, folder)
    found = {name: [done[name, seed] for seed in options.seeds] for name in arms}
    begun = [starts[seed] for seed in options.seeds]
    told = models(begun, found)
    return {
        "corr_true_logged": {kind: one["logged"] for kind, one in told.items()},
        "corr_true_generated": {kind: one["generated"] for kind, one in told.items()},
        "ece": {kind: one["own"]["ece"] for kind, one in told.items()},
        "share_of_iteration": {kind: one["share_of_iteration"] for kind, one in told.items()},
        "models": told,
        "start": {name: over_seeds([one["point"][name] for one in begun]) for name in begun[0]["point"]},
        "arms": {name: {**asdict(arms[name]), **arm_figures(parts, begun)} for name, parts in found.items()},
        "pairs": {
            f"{mine} - {other}": differences(found[mine], found[other])
            for mine, other in PAIRS
            if mine in found and other in found
        },
        "users": options.users,
        "contexts": sum(len(one["per_user"]["true@10"]) for one in begun),
        "gates": over_seeds([one["gates"] for one in begun]),
        "cpu_seconds": cpu_seconds(begun, found),
        "resamples": RESAMPLES,
        "settings": asdict(setting),
        "command": command(options),
    }


def _starts(setting: Setting, options: argparse.Namespace, folder: Path) -> dict[int, dict[str, Any]]:
    jobs = {f"seed-{seed}-start": (setting, seed, folder / f"seed-{seed}") for seed in options.seeds}
    starts = {}
    for name, figures in in_parts(prepare, jobs, options.workers, folder):
        starts[jobs[name][1]] = figures
        line = ", ".join(f"{kind} {one['logged']['spearman']:.3f}" for kind, one in figures["models"].items())
        print(f"{name}: {_line(figures['point'])}; agreement with the truth on logged pages: {line}", flush=True)
    return starts


def _arms(
    setting: Setting, arms: Mapping[str, Arm], options: argparse.Namespace, folder: Path
) -> dict[tuple[str, int], dict[str, Any]]:
    keys = {f"seed-{seed}-{name.replace(', ', '+').replace(' ', '_')}": (name, seed) for seed in options.seeds
            for name in arms}  # fmt: skip
    jobs = {key: (setting, seed, arms[name], folder / f"seed-{seed}") for key, (name, seed) in keys.items()}
    done = {}
    for key, figures in in_parts(train, jobs, options.workers, folder):
        done[keys[key]] = figures
        model = arms[keys[key][0]].model
        learned = f", learned {figures['curve'][-1][f'learned/{model}']:.3f}" if model else ""
        print(f"{key}: {_line(figures['curve'][-1])}{learned}", flush=True)
    return done


def _line(one: Mapping[str, float]) -> str:
    return f"true@10 {one['true@10']:.3f}, NDCG@10 {one['ndcg@10']:.3f}, passed {one['passed']:.2f}, KL {one['kl']:.2f}"


def over_seeds(values: Sequence[Any]) -> Any:
    """A figure of each seed as mean and list; of mappings key by key; texts as they are, nothing where one lacks it."""
    first = values[0]
    if isinstance(first, Mapping):
        return {name: over_seeds([value.get(name) for value in values]) for name in first}
    if isinstance(first, str):
        return first
    if any(value is None for value in values):
        return None
    return {"mean": float(np.mean(values)), "seeds": [float(value) for value in values]}


def models(begun: Sequence[Mapping[str, Any]], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Figures of every kind of model; ``generated`` by whose candidates they are judged on."""
    told = over_seeds([one["models"] for one in begun])
    for kind, one in told.items():
        one["generated"] = {"start": over_seeds([start["generated"][kind] for start in begun])}
        for name, parts in found.items():
            one["generated"][name] = over_seeds([part["generated"][kind] for part in parts])
    return told


def arm_figures(parts: Sequence[Mapping[str, Any]], begun: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One arm: its curve as means over seeds, the end of each seed, and the difference to the start."""
    steps = [list(part) for part in zip(*(part["curve"] for part in parts), strict=True)]
    return {
        "curve": [{name: float(np.mean([one[name] for one in points])) for name in points[0]} for points in steps],
        "per_seed": [part["curve"][-1] for part in parts],
        "minus_start": differences(parts, begun),
        "share_of_iteration": over_seeds([part["share_of_iteration"] for part in parts]),
        "remembered": over_seeds([part["remembered"] for part in parts]),
    }


def differences(mine: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Paired differences over the users of all seeds in every figure, with the mean of each seed."""
    out = {}
    for name in mine[0]["per_user"]:
        pairs = [[np.array(one["per_user"][name]) for one in pair] for pair in zip(mine, other, strict=True)]
        a, b = (np.concatenate(values) for values in zip(*pairs))
        out[name] = {**paired_bootstrap(a, b, RESAMPLES, 0), "seeds": [float((x - y).mean()) for x, y in pairs]}
    return out


def cpu_seconds(begun: Sequence[Mapping[str, Any]], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Processor seconds of each part, a mean over seeds."""
    told = {name: float(np.mean([one["cpu_s"][name] for one in begun])) for name in begun[0]["cpu_s"]}
    return told | {"arms": {name: float(np.mean([part["cpu_s"] for part in parts])) for name, parts in found.items()}}


def command(options: argparse.Namespace) -> str:
    """What a reader types for these figures."""
    given = ["--quick"] if options.quick else ["--seeds", *map(str, options.seeds)]
    given += ["--users", options.users] if options.users != "test" else []
    given += ["--arms", *(f'"{name}"' for name in options.arms)] if options.arms else []
    return " ".join(["python -m sidgym.benchmarks.preference", *given])


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", type=Path, help="folder in which finished parts are kept")
    parser.add_argument("--workers", type=at_least_one, default=2, help="processes side by side")
    parser.add_argument("--users", choices=("test", "valid"), default="test", help="who is judged")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), metavar="ARM", help="only these arms")


if __name__ == "__main__":
    main("preference", __doc__ or "", measure, seeds=(0, 1, 2), add_options=add_options)
