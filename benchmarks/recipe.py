"""The recipe: settings with which RL beats its supervised start and likelihood alone, on held-out users of two stores.

    python -m sidgym.benchmarks.recipe --stage search --scientific FOLDER --beauty FOLDER --parts FOLDER
    python -m sidgym.benchmarks.recipe --stage final  --scientific FOLDER --beauty FOLDER --parts FOLDER --out FILE
    python -m sidgym.benchmarks.recipe --quick                       # a smoke run of both, needs no data

``docs/recipe.md`` holds the plan, the budget and the criterion, written before the search. ``search`` is successive
halving over the arms of ``recipe_settings`` by validation users; test users are cut out of everything it loads. It ends
with ``chosen.json`` in ``--parts``. ``final`` reads that file, trains the arm chosen and the control chosen anew at
every seed and judges test users, once: its parts stay in ``--parts``, a second call prints what the first one found,
and another choice is refused.
Every part (a start, an arm at a seed) is one file there, so a stopped run goes on. FOLDER holds ``*.inter.json`` and
``*.rkmeans_zcr.index.json``. The last line printed is one JSON object.
"""

import argparse
import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.agents.config import PolicyConfig
from sidgym.benchmarks.beauty import FULL as BEAUTY
from sidgym.benchmarks.beauty import QUICK as SMALL
from sidgym.benchmarks.beauty import made_up
from sidgym.benchmarks.parts import Part, in_parts
from sidgym.benchmarks.recipe_parts import METRICS, Store, judge_start, train_arm, train_start, write_json
from sidgym.benchmarks.recipe_settings import Candidate, candidates, like
from sidgym.benchmarks.script import at_least_one, main
from sidgym.envs.statistics import paired_bootstrap

RESAMPLES = 2000
START = "sft"


@dataclass(frozen=True)
class Rung:
    """One round of halving."""

    steps: int
    users: int  # validation users of each store
    seeds: int  # the first so many
    keep: int  # arms that go on
    controls: int  # controls that go on


RUNGS = (Rung(100, 2500, 1, 5, 3), Rung(200, 4000, 1, 2, 2), Rung(300, 8000, 2, 1, 1))
QUICK_RUNGS = (Rung(2, 40, 1, 2, 1), Rung(3, 60, 1, 1, 1))
QUICK_ARMS = ("nll", "nll refills", "hits + nll", "top 2 neighbours + nll")
QUICK_STORES = ("scientific",)

POLICY = PolicyConfig(hidden_size=128, intermediate_size=384, layers=3, heads=4, kv_heads=2, dropout=0.2)
SFT = replace(BEAUTY.sft, precision="float32", epochs=20, batch=32, eval_users=1000)
SCIENTIFIC = Store("scientific", BEAUTY.data, POLICY, replace(SFT, warmup_steps=100, checkpoint_every=250))
STORES = {
    "scientific": SCIENTIFIC,
    "beauty": Store("beauty", BEAUTY.data, replace(POLICY, merge_items=True), replace(SFT, checkpoint_every=750)),
}
"""Of one size, so that both stores can be searched on one processor: Beauty's longer histories are merged."""

Figures = dict[tuple[str, str, int], Part]
"""(arm, store, seed) -> what a part found."""


class Search:
    """The parts of a search: which were asked for, and what they found."""

    def __init__(
        self, stores: dict[str, Store], arms: dict[str, Candidate], seeds: list[int], folder: Path, workers: int
    ):
        self.stores, self.arms, self.seeds, self.folder, self.workers = stores, arms, seeds, folder, workers
        self.cpu_s = 0.0

    def starts(self) -> None:
        """Trains every start that is not there."""
        jobs = {f"{name}-{seed}-start": (store, seed, self.start(name, seed))
                for name, store in self.stores.items() for seed in self.seeds}  # fmt: skip
        self._parts(train_start, jobs)

    def start(self, store: str, seed: int) -> Path:
        """Folder of a start's checkpoint."""
        return self.folder / f"{store}-{seed}.start"

    def judge(self, names: list[str], rung: Rung, label: str, test: bool = False) -> Figures:
        """The start and the arms ``names`` at a rung's steps, users and seeds."""
        starts, arms, places = {}, {}, {}
        for store in self.stores:
            for seed in self.seeds[: rung.seeds]:
                before = (self.stores[store], seed, self.start(store, seed))
                for name in (START, *names):
                    part = f"{label}-{store}-{seed}-{self.slug(name, rung)}"
                    places[part] = name, store, seed
                    if name == START:
                        starts[part] = (*before, rung.users, test)
                    else:
                        arms[part] = (*before, self.arms[name], rung.steps, rung.users, test)
        found = {**self._parts(judge_start, starts), **self._parts(train_arm, arms)}
        return {places[part]: figures for part, figures in found.items()}

    def _parts(self, judge: Any, jobs: dict[str, Any]) -> dict[str, Part]:
        done = {}
        for name, figures in in_parts(judge, jobs, self.workers, self.folder):
            self.cpu_s += figures["cpu_s"]
            broken = f", broken: {figures['broken']}" if "broken" in figures else ""
            print(f"{name}: {figures['cpu_s']:.0f} s{broken}", flush=True)
            done[name] = figures
        return done

    def slug(self, name: str, rung: Rung) -> str:
        """An arm as part of a file's name; other settings, steps or users give another one."""
        arm = self.arms.get(name)
        what = [{"rl": asdict(arm.rl), "control": arm.control} if arm else name, rung.steps, rung.users]
        told = "".join(letter if letter.isalnum() or letter == "." else "_" for letter in name)
        return f"{told}-{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:6]}"


def gain(found: Figures, ours: str, other: str, store: str, metric: str) -> np.ndarray:
    """Each user's difference, the mean over seeds: users are what is drawn anew, seeds of one user are no others."""
    seeds = sorted({seed for name, where, seed in found if (name, where) == (ours, store)})
    values = [[found[name, store, seed]["per_user"][metric] for seed in seeds] for name in (ours, other)]
    return np.mean(np.asarray(values[0]) - np.asarray(values[1]), axis=0)


def standardised(values: np.ndarray) -> float:
    """Mean over its standard error; 0 where nothing differs."""
    error = values.std() / len(values) ** 0.5
    return float(values.mean() / error) if error > 0 else 0.0


def working(found: Figures, names: list[str]) -> list[str]:
    """Arms none of whose runs broke."""
    return [name for name in names if not any("broken" in part for (own, _, _), part in found.items() if own == name)]


def best_controls(found: Figures, controls: list[str], stores: list[str]) -> dict[str, str]:
    """The control of each store: the one furthest above the start, both metrics together."""

    def above(name: str, store: str) -> float:
        return sum(standardised(gain(found, name, START, store, metric)) for metric in METRICS)

    usable = working(found, controls)
    if not usable:
        raise RuntimeError("every control broke: there is nothing to compare with")
    return {store: max(usable, key=lambda name: above(name, store)) for store in stores}


def scored(found: Figures, names: list[str], control: dict[str, str]) -> dict[str, float]:
    """The criterion as one number: the smallest standardised gain over both metrics and both controls, the mean over
    stores. An arm that broke has minus infinity."""
    usable = working(found, names)
    return {
        name: float(np.mean([
            min(standardised(gain(found, name, other, store, m)) for m in METRICS for other in (START, control[store]))
            for store in control
        ]))
        if name in usable else float("-inf")
        for name in names
    }  # fmt: skip


def told(
    found: Figures, arms: dict[str, Candidate], names: list[str], control: dict[str, str], score: dict[str, float]
) -> dict[str, Any]:
    """Every arm's figures and gains, by store, for people to read; intervals over the control that is like it."""
    out: dict[str, Any] = {}
    usable = working(found, names)
    for name in (START, *usable):
        out[name] = {"score": round(score[name], 3)} if name in score else {}
        other = like(arms, name) if name in arms else None
        if other in usable:
            pairs = {store: {m: interval(found, name, other, store, m) for m in METRICS} for store in control}
            out[name]["like"] = {"control": other, **pairs}
        for store in control:
            own = [part for (arm, where, _), part in sorted(found.items()) if (arm, where) == (name, store)]
            out[name][store] = {
                **{m: float(np.mean([np.mean(part["per_user"][m]) for part in own])) for m in METRICS},
                **{f"{m} minus {other}": float(gain(found, name, other, store, m).mean())
                   for m in METRICS for other in {START, control[store]} - {name}},
                **({"training": own[0]["training"]} if "training" in own[0] else {}),
            }  # fmt: skip
    return out | {name: {"broken": True} for name in set(names) - set(out)}


def search(plan: Search, rungs: tuple[Rung, ...]) -> dict[str, Any]:
    """Successive halving; the arm and the controls that are left, and what every rung found."""
    names: list[str] = []
    controls = [name for name, arm in plan.arms.items() if arm.control]
    stores, rounds = list(plan.stores), []
    plan.starts()
    for number, rung in enumerate(rungs):
        names += [name for name, arm in plan.arms.items() if not arm.control and arm.rung == number]
        found = plan.judge([*controls, *names], rung, f"rung{number}")
        control = best_controls(found, controls, stores)
        score = scored(found, [*names], control)
        figures = told(found, plan.arms, [*controls, *names], control, score)
        names = sorted(names, key=lambda name: -score[name])[: rung.keep]
        kept = {control[store] for store in stores}
        worth = {name: min(standardised(gain(found, name, START, store, m)) for store in stores for m in METRICS)
                 for name in working(found, controls)}  # fmt: skip
        more = [name for name in sorted(worth, key=lambda n: -worth[n]) if name not in kept]
        controls = [*kept, *more][: max(rung.controls, len(kept))]
        rounds.append({**asdict(rung), "arms": figures, "control": control, "kept": names})
        print(f"rung {number}: kept {', '.join(names)}; control {control}", flush=True)
    return {"chosen": names[0], "control": control, "score": score[names[0]], "steps": rungs[-1].steps, "rungs": rounds}


def final(plan: Search, chosen: dict[str, Any], users: int) -> dict[str, Any]:
    """The arm chosen against the start and its controls on test users, and whether the criterion holds."""
    arm, control = chosen["chosen"], chosen["control"]
    once, asked = plan.folder / "final.json", {name: chosen[name] for name in ("chosen", "control", "steps")}
    arms = {name: asdict(plan.arms[name]) for name in (arm, *sorted(set(control.values())))}
    asked |= {"seeds": plan.seeds, "arms": json.loads(json.dumps(arms))}
    if once.exists() and json.loads(once.read_text()) != asked:
        raise SystemExit(
            f"test users were judged for another choice, other seeds or settings ({once}); they are not judged twice"
        )
    write_json(once, asked)
    rung = Rung(chosen["steps"], users, len(plan.seeds), 1, 1)
    found = plan.judge([arm, *sorted(set(control.values()))], rung, "final", test=True)
    out: dict[str, Any] = {}
    for store in plan.stores:
        compared = {START: START, "nll": control[store]}
        out[store] = {
            "seeds": {name: [{m: float(np.mean(found[own, store, seed]["per_user"][m])) for m in METRICS}
                             for seed in plan.seeds]
                      for name, own in {"recipe": arm, **compared}.items()},
            **{f"recipe_minus_{name}": {m: interval(found, arm, other, store, m) for m in METRICS}
               for name, other in compared.items()},
            "beside": {other: {m: interval(found, arm, other, store, m) for m in METRICS}
                       for other in sorted(set(control.values()) - {control[store]})},
            "users": len(found[arm, store, plan.seeds[0]]["per_user"]["n@10"]),
        }  # fmt: skip
        lows = [entry["low"] for name in compared for entry in out[store][f"recipe_minus_{name}"].values()]
        out[store]["criterion_met"] = min(lows) > 0
    return {
        "stores": out,
        "recipe": arm,
        "control": control,
        "criterion_met": all(s["criterion_met"] for s in out.values()),
    }


def interval(found: Figures, ours: str, other: str, store: str, metric: str) -> dict[str, float]:
    """Paired bootstrap over users of the mean over seeds."""
    values = gain(found, ours, other, store, metric)
    return paired_bootstrap(values, np.zeros(len(values)), RESAMPLES, 0)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The stage that was asked for; both with ``--quick``."""
    with tempfile.TemporaryDirectory() as own:
        folder = options.parts or Path(own) / "parts"
        arms = candidates()
        if options.quick:
            stores = {name: Store(name, replace(SMALL.data, path=made_up(Path(own) / name)), SMALL.policy, SMALL.sft)
                      for name in QUICK_STORES}  # fmt: skip
            arms = {name: replace(arms[name], rl=quick(arms[name].rl)) for name in QUICK_ARMS}
        else:
            paths = {name: getattr(options, name) for name in STORES}
            if not all(paths.values()) or options.parts is None:
                raise SystemExit("expected --scientific, --beauty and --parts; or --quick, which needs none of them")
            stores = {n: replace(store, data=replace(store.data, path=paths[n])) for n, store in STORES.items()}
        plan = Search(stores, arms, options.seeds, folder, options.workers)
        out: dict[str, Any] = {"stage": options.stage, "command": command(options)}
        chosen = folder / "chosen.json"
        if options.quick or options.stage == "search":
            write_json(chosen, search(plan, QUICK_RUNGS if options.quick else RUNGS))
        elif not chosen.exists():
            raise SystemExit(f"expected {chosen}: run --stage search with the same --parts first")
        out["search"] = json.loads(chosen.read_text())
        if options.quick or options.stage == "final":
            out["final"] = final(plan, out["search"], 60 if options.quick else 0)
        settings = {name: asdict(arm) for name, arm in arms.items()}
        return {**out, "settings": settings, "rungs": [asdict(rung) for rung in RUNGS], "cpu_minutes": plan.cpu_s / 60}


def quick(rl: Any) -> Any:
    """An arm's settings for a smoke run."""
    return replace(rl, contexts_per_step=8, group_size=4, chunk=8, lr=3e-3, warmup_steps=1)


def command(options: argparse.Namespace) -> str:
    """What to type for the same figures."""
    seeds = " ".join(map(str, options.seeds))
    return (
        f"python -m sidgym.benchmarks.recipe --stage {options.stage} --scientific SCIENTIFIC --beauty BEAUTY "
        f"--parts PARTS --seeds {seeds}"
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", choices=("search", "final"), default="search", help="final reads test users")
    parser.add_argument("--scientific", default="", help="folder of Scientific.inter.json and its SIDs")
    parser.add_argument("--beauty", default="", help="folder of Beauty.inter.json and its SIDs")
    parser.add_argument("--parts", type=Path, help="folder of finished parts, starts and the choice")
    parser.add_argument("--workers", type=at_least_one, default=2, help="processes side by side")


if __name__ == "__main__":
    main("recipe", __doc__ or "", measure, seeds=(10, 11, 12), packages=("transformers",), add_options=add_options)
