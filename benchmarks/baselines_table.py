"""Baselines and our policy on Amazon's logs, each tuned on validation with as many trials, beside published figures.

    python -m sidgym.benchmarks.baselines_table --data-path FOLDER [FOLDER ...] --parts FOLDER [--seeds 0 1 2]
        [--only sasrec hstu] [--trials 4] [--settings-of NAME] [--device cuda] --out FILE
    python -m sidgym.benchmarks.baselines_table --quick           # a smoke run, needs no data

A FOLDER holds ``<Name>.inter.json`` and, for TIGER and our policy, ``<Name>.<codes>.index.json``. Leave-one-out: each
user's last item is test, the one before validation, everything before is learned from. First the trials with the first
seed, then the best one with every seed; test users are judged once, after the choice. The choice is by NDCG@10 of all
validation users, with the lists of test. ``--settings-of NAME`` makes trials on that log alone, and every other log
takes, for every system alike, the setting that validated best there; the epoch is still chosen on its own validation.

``r@k`` and ``n@k`` are by item over the whole catalogue. Items of the history are left out of the lists unless the
training sequences have repeats (``baselines.lists``); ``allowed`` are the figures with them, the other rule of the
field. ``--parts`` keeps what is done: trials, one value a test user of each seed (``per_user``, for comparisons with
other systems), and checkpoints of what is in training, so a run that was stopped goes on and another with more
baselines, or other devices and places of the data, takes over what is done. ``--out`` holds this command's rows alone.
The last line printed is one JSON object. Left out: language models, and figures without a public log.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.benchmarks import baselines
from sidgym.benchmarks.baseline_settings import DIFFERS, FIXED, QUICK, TRIALS, Settings
from sidgym.benchmarks.baselines.figures import DEPTH, RESAMPLES, beside_published, figures, margins_of, summary
from sidgym.benchmarks.baselines.lists import asked, judged
from sidgym.benchmarks.baselines.protocol import BaselineData, add_arrays
from sidgym.benchmarks.baselines.registry import fit_baseline
from sidgym.benchmarks.beauty import made_up
from sidgym.benchmarks.own_models import OWN
from sidgym.benchmarks.parts import Aside, in_parts
from sidgym.benchmarks.script import at_least_one, main
from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.records import Splits
from sidgym.envs.segments import training_counts
from sidgym.envs.splits import split
from sidgym.sid.index_formats import read_index

WITH_CODES = {"tiger", *OWN}
DATA = DataConfig(name="amazon", split="leave_one_out", history=50)

Job = dict[str, Any]
Key = tuple[str, str, int, int]
"""Log, system, number of the trial, seed."""


@dataclass(frozen=True)
class Place:
    """Where a part is done; of no account for its figures."""

    data: DataConfig
    codes: str
    training: Path | None
    device: str


def load(data: DataConfig, codes: str, needs_codes: bool) -> tuple[BaselineData, Splits]:
    """What a baseline may read, and the splits. ``FileNotFoundError`` where SIDs are needed and there are none."""
    dataset = load_dataset(data, 0)
    splits = split(dataset, data, 0)
    table = None
    if needs_codes:
        index = next(Path(data.path).glob(f"*.{codes}.index.json"), None)
        if index is None:
            raise FileNotFoundError(f"expected SIDs in {data.path}/*.{codes}.index.json, and there are none")
        table = read_index(index, dataset.catalogue.ids, unknown="drop")
    return BaselineData(splits.sft_all, splits.valid, len(dataset.catalogue), table), splits


def content(known: BaselineData, splits: Splits) -> str:
    """A hash of all that is learned from and judged on."""
    digest = hashlib.sha256(known.fingerprint.encode())
    add_arrays(digest, splits.test.history, splits.test.target)
    return digest.hexdigest()


def attempt(job: Job, test: bool, aside: Aside) -> dict[str, Any]:
    """Fits a baseline, from its checkpoint where there is one; validation figures, or with ``test`` those of test."""
    torch.set_num_threads(1)
    name: str = job["name"]
    place: Place = aside.value
    known, splits = load(place.data, place.codes, name in WITH_CODES)
    on_device = {"device": place.device} if name in QUICK and name not in OWN and place.device != "cpu" else {}

    def note(row: Mapping[str, float]) -> None:
        told = f"loss {row['loss']:.3f}, validation NDCG@10 {row['ndcg@10']:.4f}, {row['cpu_seconds']:.0f} s"
        print(f"{name} {job['settings']}, seed {job['seed']}, epoch {row['epoch']}: {told}", flush=True)

    begin = time.process_time()
    settings = job["settings"] | on_device
    model = fit_baseline(OWN.get(name, name), known, job["seed"], place.training, note, **settings)
    report = {name: value for name, value in model.report.items() if name != "history"}
    report = {"cpu_seconds": round(time.process_time() - begin, 1), "device": device_name(on_device)} | report
    begin = time.process_time()
    if not test:
        report["valid_ndcg@10"] = judged(model.rank, splits.valid, known, DEPTH)
        return {**report, "rank_cpu_seconds": round(time.process_time() - begin, 1)}
    lists = model.rank(splits.test.history, asked(DEPTH, known.num_items))
    return {
        **figures(lists, splits.test, training_counts(splits.sft_all, known.num_items), known.repeats),
        "fit": report,
        "rank_cpu_seconds": round(time.process_time() - begin, 1),
    }


def device_name(settings: Mapping[str, str]) -> str:
    """What a baseline was trained on, in words."""
    if not settings:
        return "cpu"
    kind = torch.device(settings["device"])
    return torch.cuda.get_device_name(kind) if kind.type == "cuda" else str(kind)


class Contest:
    """All trials and seeds of some baselines on some logs."""

    def __init__(self, options: argparse.Namespace, stores: Mapping[str, DataConfig]) -> None:
        self.options, self.stores, self.contents = options, stores, dict[tuple[str, bool], str]()
        self.trials = {name: TRIALS[name][: 2 if options.quick else options.trials] for name in options.only}
        if options.settings_of and options.settings_of not in stores:
            raise SystemExit(f"--settings-of: expected one of the logs {sorted(stores)}, got {options.settings_of!r}")
        self.tuned = {store: options.settings_of or store for store in stores}

    def run(self) -> dict[str, Any]:
        """Figures by store and baseline."""
        tried, best = self._choose()
        if self.options.no_test:
            return {"tried": {f"{store} {name}": number for (store, name), number in best.items()}}
        chosen = [(*key, number, seed) for key, number in best.items() for seed in self.options.seeds]
        parts = self._parts(chosen, test=True)
        rows, margins = {}, {}
        for store in self.stores:
            rows[store] = {name: self._one(store, name, best[store, name], tried, parts) for name in self.options.only}
            per_user = {
                name: {seed: parts[store, name, best[store, name], seed]["per_user"] for seed in self.options.seeds}
                for name in self.options.only
            }
            margins[store] = margins_of(per_user, {name: row["valid_ndcg@10"] for name, row in rows[store].items()})
        return {"stores": rows, "margins": margins}

    def _choose(self) -> tuple[dict[Key, Any], dict[tuple[str, str], int]]:
        """Validation figures of all trials, and the number of the one that each system takes on each log."""
        first, only = self.options.seeds[0], self.options.only
        tuned = [store for store in self.stores if self.tuned[store] == store]
        tried = self._parts(
            [
                (store, name, number, first)
                for store in tuned
                for name in only
                for number in range(len(self.trials[name]))
            ],
            test=False,
        )
        best = {}
        for store, name in ((store, name) for store in tuned for name in only):
            values = [tried[store, name, number, first]["valid_ndcg@10"] for number in range(len(self.trials[name]))]
            best[store, name] = int(np.argmax(values))
        other = [store for store in self.stores if store not in tuned]
        taken = {(store, name): best[self.tuned[store], name] for store in other for name in only}
        tried |= self._parts([(*key, number, first) for key, number in taken.items()], test=False)
        return tried, best | taken

    def _one(self, store: str, name: str, number: int, tried: Mapping[Key, Any], parts: Any) -> dict[str, Any]:
        first = self.options.seeds[0]
        found = summary([parts[store, name, number, seed] for seed in self.options.seeds])
        attempts = [
            {"settings": settings, **{k: v for k, v in tried[store, name, n, first].items() if k != "settings"}}
            for n, settings in enumerate(self.trials[name])
            if (store, name, n, first) in tried
        ]
        return {
            **found,
            "settings": self.trials[name][number],
            "settings_from": self.tuned[store],
            "valid_ndcg@10": tried[store, name, number, first]["valid_ndcg@10"],
            "tried": attempts,
            "published": beside_published(store, name, found),
            "differs": DIFFERS.get(name, ""),
        }

    def _parts(self, keys: list[Key], test: bool) -> dict[Key, Any]:
        """One part each, in order of the list as far as there are workers."""
        jobs, names = {}, {}
        for store, name, number, seed in keys:
            job = {"name": name, "seed": seed, "settings": self._settings(name, number)}
            job["data"] = self._content(store, name in WITH_CODES)
            stem = f"{store}-{name}-{digest(job)}-{seed}"
            training = self.options.parts / f"{stem}.training" if self.options.parts else None
            place = Place(self.stores[store], self.options.codes, training, self.options.device)
            jobs[f"{stem}-{'test' if test else 'valid'}"] = job, test, Aside(place)
            names[f"{stem}-{'test' if test else 'valid'}"] = store, name, number, seed
        return {names[name]: part for name, part in in_parts(attempt, jobs, self.options.workers, self.options.parts)}

    def _content(self, store: str, needs_codes: bool) -> str:
        if (store, needs_codes) not in self.contents:
            self.contents[store, needs_codes] = content(*load(self.stores[store], self.options.codes, needs_codes))
        return self.contents[store, needs_codes]

    def _settings(self, name: str, number: int) -> Settings:
        settings = {**FIXED.get(name, {}), **self.trials[name][number]}
        if self.options.quick:
            for key, value in QUICK.get(name, {}).items():
                settings[key] = {**settings[key], **value} if isinstance(value, dict) else value
        return settings


def digest(job: Job) -> str:
    """Of settings, data and the baselines' code: a part that was made with others has another name."""
    told = hashlib.sha256(json.dumps([job["settings"], job["data"]], sort_keys=True).encode())
    for path in sorted(Path(baselines.__file__).parent.glob("*.py")):
        told.update(path.read_bytes())
    return told.hexdigest()[:8]


def stores_of(options: argparse.Namespace, own: Path) -> dict[str, DataConfig]:
    """The logs, by the name of their file in lower case."""
    if options.quick:
        return {"made_up": replace(DATA, path=made_up(own), min_events=0)}
    if not options.data_path:
        raise SystemExit("--data-path: expected folders with <Name>.inter.json; or give --quick, which needs none")
    found: dict[str, DataConfig] = {}
    for folder in options.data_path:
        file = next(Path(folder).glob("*.inter.json"), None)
        if file is None:
            raise SystemExit(f"--data-path: {folder} has no <Name>.inter.json")
        name = file.name.partition(".")[0].lower()
        if name in found:
            raise SystemExit(f"--data-path: {folder} and {found[name].path} both hold a log called {name!r}; give one")
        found[name] = replace(DATA, path=str(folder))
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every baseline on every log."""
    with tempfile.TemporaryDirectory() as own:
        stores = stores_of(options, Path(own))
        if options.parts is None:
            options.parts = Path(own) / "parts"
        found = Contest(options, stores).run()
    if options.no_test:
        return found
    best = {store: max(rows, key=lambda name: rows[name]["n@10"]["mean"]) for store, rows in found["stores"].items()}
    fits = [seed["fit"] for rows in found["stores"].values() for row in rows.values() for seed in row["per_seed"]]
    return {
        **found,
        "best": best,
        "trials": options.trials,
        "settings_of": options.settings_of,
        "codes": options.codes,
        "resamples": RESAMPLES,
        "devices": sorted({fit["device"] for fit in fits}),
        "command": command(options, len(stores)),
    }


def command(options: argparse.Namespace, logs: int) -> str:
    """What was asked for, as far as figures hang on it; the paths of the data are DATA, DATA2 and so on."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    paths = "".join(f" DATA{number if number > 1 else ''}" for number in range(1, logs + 1))
    told = ["python -m sidgym.benchmarks.baselines_table", "--quick" if options.quick else f"--data-path{paths}"]
    told.append(f"--seeds {' '.join(map(str, options.seeds))}")
    for name in ("only", "trials", "settings_of", "codes", "device"):
        value = getattr(options, name)
        if value != parser.get_default(name):
            words = value if isinstance(value, list) else [value]
            told.append(f"--{name.replace('_', '-')} {' '.join(map(str, words))}")
    return " ".join(told)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-path", nargs="+", default=[], help="folders with <Name>.inter.json and SIDs")
    parser.add_argument("--only", nargs="+", choices=list(TRIALS), default=list(TRIALS), help="these baselines alone")
    parser.add_argument("--trials", type=at_least_one, default=4, help="settings that each baseline may try")
    parser.add_argument("--settings-of", default="", help="log whose trials choose for every log, such as scientific")
    parser.add_argument("--codes", default="rkmeans_zcr", help="which SIDs are generated: <Name>.<codes>.index.json")
    parser.add_argument("--device", default="cpu", help="cuda trains on a GPU")
    parser.add_argument("--no-test", action="store_true", help="stop behind the trials: validation only")
    parser.add_argument("--parts", type=Path, help="folder of what is done and of checkpoints")
    parser.add_argument("--workers", type=at_least_one, default=1, help="processes side by side")


if __name__ == "__main__":
    main("baselines_table", __doc__ or "", measure, seeds=(0, 1, 2), add_options=add_options)
