"""Baselines on Amazon's logs, each tuned on validation with the same number of trials, beside published figures.

    python -m sidgym.benchmarks.baselines_table --data-path FOLDER [FOLDER ...] --parts FOLDER [--seeds 0 1 2]
        [--only sasrec hstu] [--trials 4] [--device cuda] --out FILE
    python -m sidgym.benchmarks.baselines_table --quick           # a smoke run, needs no data

A FOLDER holds ``<Name>.inter.json`` and, for TIGER, ``<Name>.<codes>.index.json``. Leave-one-out: each user's last item
is test, the one before validation, everything before is learned from. First the trials with the first seed (validation
only), then the best one with every seed; test users are judged once, after the choice. ``r@k`` and ``n@k`` are by item
over the whole catalogue, items of the history allowed; ``unseen`` leaves them out, as some of the field do.

``--parts`` keeps what is done: trials, one value a test user of each seed (``per_user``, for comparisons with other
systems), and checkpoints of what is in training, so a run that was stopped goes on and another with more baselines adds
to it. The last line printed is one JSON object. Left out: language models, and figures without a public log.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.benchmarks.baseline_settings import DIFFERS, FIXED, PUBLISHED, QUICK, TRIALS, Settings
from sidgym.benchmarks.baselines.protocol import BaselineData
from sidgym.benchmarks.baselines.registry import fit_baseline
from sidgym.benchmarks.baselines.sequential import judged
from sidgym.benchmarks.beauty import made_up, without_history
from sidgym.benchmarks.parts import in_parts
from sidgym.benchmarks.script import main
from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.metrics import coverage, rank_metrics
from sidgym.envs.records import Episodes, Splits
from sidgym.envs.segments import by_segment, exposure, training_counts
from sidgym.envs.splits import split
from sidgym.envs.statistics import bootstrap_mean
from sidgym.sid.index_formats import read_index

DEPTH = 50
"""Places of a list."""
KS = (5, 10, 50)
METRICS = {f"{ours}@{k}": f"{theirs}@{k}" for ours, theirs in (("r", "hr"), ("n", "ndcg")) for k in KS}
"""Recall and NDCG as the papers name them; with one target recall is the hit rate."""
ROW = ("r@5", "r@10", "n@5", "n@10")
"""Metrics of a row of ``PUBLISHED``."""
RESAMPLES = 2000
DATA = DataConfig(name="amazon", split="leave_one_out", history=50)

Job = dict[str, Any]


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


def attempt(data: DataConfig, codes: str, job: Job, training: Path | None, test: bool) -> dict[str, Any]:
    """Fits a baseline, from its checkpoint where there is one; validation figures, or with ``test`` those of test."""
    torch.set_num_threads(1)
    known, splits = load(data, codes, job["name"] == "tiger")

    def note(row: Mapping[str, float]) -> None:
        told = f"loss {row['loss']:.3f}, validation NDCG@10 {row['ndcg@10']:.4f}, {row['cpu_seconds']:.0f} s"
        print(f"{job['name']} {job['settings']}, seed {job['seed']}, epoch {row['epoch']}: {told}", flush=True)

    begin = time.process_time()
    model = fit_baseline(job["name"], known, job["seed"], training, note, **job["settings"])
    report = {name: value for name, value in model.report.items() if name != "history"}
    report = {"cpu_seconds": round(time.process_time() - begin, 1)} | report
    if not test:
        own = report.get("valid_ndcg@10")
        value = judged(model.rank, splits.valid, known.num_items) if own is None else own
        return {**report, "valid_ndcg@10": value}
    begin = time.process_time()
    lists = model.rank(splits.test.history, min(DEPTH, known.num_items))
    return {
        **figures(lists, splits.test, training_counts(splits.sft_all, known.num_items)),
        "fit": report,
        "rank_cpu_seconds": round(time.process_time() - begin, 1),
    }


def figures(lists: np.ndarray, test: Episodes, counts: np.ndarray) -> dict[str, Any]:
    """Test figures of ranked items (B, K), and one value a user of each metric."""
    found = rank_metrics(lists, test.target, KS)
    unseen = rank_metrics(without_history(lists[:, :, None], test), test.target, KS[:2])
    values = {name: found[key] for name, key in METRICS.items()}
    return {
        **{name: float(value.mean()) for name, value in values.items()},
        "unseen": {name: float(unseen[METRICS[name]].mean()) for name in ROW},
        "segments": by_segment({name: values[name] for name in ("r@10", "n@10")}, test, counts),
        "exposure@10": exposure(lists, counts, 10),
        "coverage@10": float(coverage(lists, len(counts), 10)),
        "per_user": {name: value.tolist() for name, value in values.items()},
    }


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, intervals over users of their mean, and the spread over seeds."""
    users = {name: np.mean([seed["per_user"][name] for seed in seeds], axis=0) for name in METRICS}
    means = np.array([[seed[name] for name in METRICS] for seed in seeds])
    return {
        **{name: bootstrap_mean(values, RESAMPLES, 0) for name, values in users.items()},
        "sd_over_seeds": dict(zip(METRICS, means.std(axis=0, ddof=1).tolist())) if len(seeds) > 1 else None,
        "per_seed": [{name: value for name, value in seed.items() if name != "per_user"} for seed in seeds],
    }


def beside_published(store: str, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Published rows of Beauty, ours over theirs, and whether R@10 and N@10 lie within 10 % of each."""
    rows = {source: table[name] for source, table in PUBLISHED.items() if name in table and store == "beauty"}
    out: dict[str, Any] = {}
    for source, row in rows.items():
        ratio = {metric: found[metric]["mean"] / value for metric, value in zip(ROW, row)}
        near = all(abs(ratio[metric] - 1) <= 0.1 for metric in ("r@10", "n@10"))
        out[source] = {"figures": dict(zip(ROW, row)), "ratio": ratio, "within_10_percent": near}
    return out


class Contest:
    """All trials and seeds of some baselines on some logs."""

    def __init__(self, options: argparse.Namespace, stores: Mapping[str, DataConfig]) -> None:
        self.options, self.stores = options, stores
        self.trials = {name: TRIALS[name][: 2 if options.quick else options.trials] for name in options.only}

    def run(self) -> dict[str, Any]:
        """Figures by store and baseline."""
        first = self.options.seeds[0]
        trials = [
            (store, name, number, first)
            for store in self.stores for name in self.options.only for number in range(len(self.trials[name]))
        ]  # fmt: skip
        tried = self._parts(trials, test=False)
        best: dict[tuple[str, str], tuple[int, float]] = {}
        for store, name, number, seed in trials:
            value = tried[store, name, number, seed]["valid_ndcg@10"]
            if (store, name) not in best or value > best[store, name][1]:
                best[store, name] = number, value
        if self.options.no_test:
            return {"tried": {f"{store} {name}": number for (store, name), (number, _) in best.items()}}
        chosen = [(*key, number, seed) for key, (number, _) in best.items() for seed in self.options.seeds]
        judged_parts = self._parts(chosen, test=True)
        return {store: {name: self._one(store, name, best, tried, judged_parts) for name in self.options.only}
                for store in self.stores}  # fmt: skip

    def _one(self, store: str, name: str, best: Any, tried: Any, parts: Any) -> dict[str, Any]:
        number, first = best[store, name][0], self.options.seeds[0]
        found = summary([parts[store, name, number, seed] for seed in self.options.seeds])
        attempts = [
            {"settings": settings, **{k: v for k, v in tried[store, name, n, first].items() if k != "settings"}}
            for n, settings in enumerate(self.trials[name])
        ]
        return {
            **found,
            "settings": self.trials[name][number],
            "tried": attempts,
            "published": beside_published(store, name, found),
            "differs": DIFFERS.get(name, ""),
        }

    def _parts(self, keys: list[tuple[str, str, int, int]], test: bool) -> dict[tuple[str, str, int, int], Any]:
        """One part each, in order of the list as far as there are workers."""
        jobs, names = {}, {}
        for store, name, number, seed in keys:
            job = {"name": name, "seed": seed, "settings": self._settings(name, number)}
            stem = f"{store}-{name}-{self._digest(job)}-{seed}"
            training = self.options.parts / f"{stem}.training" if self.options.parts else None
            jobs[f"{stem}-{'test' if test else 'valid'}"] = (
                self.stores[store], self.options.codes, job, training, test,
            )  # fmt: skip
            names[f"{stem}-{'test' if test else 'valid'}"] = store, name, number, seed
        return {names[name]: part for name, part in in_parts(attempt, jobs, self.options.workers, self.options.parts)}

    def _digest(self, job: Job) -> str:
        """Of settings and SIDs: a part that was made with others has another name. The device changes no result."""
        settings = {name: value for name, value in job["settings"].items() if name != "device"}
        told = json.dumps([settings, self.options.codes if job["name"] == "tiger" else ""], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:8]

    def _settings(self, name: str, number: int) -> Settings:
        settings = {**FIXED.get(name, {}), **self.trials[name][number]}
        if self.options.quick:
            settings |= QUICK.get(name, {})
        elif name in QUICK and self.options.device != "cpu":
            settings["device"] = self.options.device
        return settings


def stores_of(options: argparse.Namespace, own: Path) -> dict[str, DataConfig]:
    """The logs, by the name of their file in lower case."""
    if options.quick:
        return {"made_up": replace(DATA, path=made_up(own), min_events=0)}
    if not options.data_path:
        raise SystemExit("--data-path: expected folders with <Name>.inter.json; or give --quick, which needs none")
    found = {}
    for folder in options.data_path:
        file = next(Path(folder).glob("*.inter.json"), None)
        if file is None:
            raise SystemExit(f"--data-path: {folder} has no <Name>.inter.json")
        found[file.name.partition(".")[0].lower()] = replace(DATA, path=str(folder))
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
    best = {store: max(rows, key=lambda name: rows[name]["n@10"]["mean"]) for store, rows in found.items()}
    return {
        "stores": found,
        "best": best,
        "trials": options.trials,
        "codes": options.codes,
        "resamples": RESAMPLES,
        "command": "python -m sidgym.benchmarks.baselines_table --data-path"
        + f"{' DATA' * len(stores)} --trials {options.trials} --seeds {' '.join(map(str, options.seeds))}",
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-path", nargs="+", default=[], help="folders with <Name>.inter.json and SIDs for TIGER")
    parser.add_argument("--only", nargs="+", choices=list(TRIALS), default=list(TRIALS), help="these baselines alone")
    parser.add_argument("--trials", type=int, default=4, help="settings that each baseline may try")
    parser.add_argument("--codes", default="rkmeans_zcr", help="which SIDs TIGER generates: <Name>.<codes>.index.json")
    parser.add_argument("--device", default="cpu", help="cuda trains on a GPU")
    parser.add_argument("--no-test", action="store_true", help="stop behind the trials: validation only")
    parser.add_argument("--parts", type=Path, help="folder of what is done and of checkpoints")
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")


if __name__ == "__main__":
    main("baselines_table", __doc__ or "", measure, seeds=(0, 1, 2), add_options=add_options)
