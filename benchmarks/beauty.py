"""Supervised training alone on Amazon "Beauty" (2014, 5-core, leave-one-out), beside the figures that are published.

    python -m sidgym.benchmarks.beauty --data-path FOLDER [--seeds 10 11] --parts FOLDER --out FILE
    python -m sidgym.benchmarks.beauty --quick           # a smoke run, needs no data

FOLDER holds ``Beauty.inter.json`` and the SIDs ``Beauty.<codes>.index.json``. A model without any pretraining learns
from SIDs alone; each user's last item is test, the one before validation. Two arms of the same settings:

    full        learns from everything before the validation item
    withheld    each user's third-last item is kept apart for RL: what contexts for RL cost a warm-up

Settings and the weights that are judged were chosen by validation NDCG@10; test users are judged once, by item: the
beam ranks SIDs of the trie, and items of the history may be recommended again (``unseen`` leaves them out, as some of
the field do). ``r@5 r@10 n@5 n@10`` are those of ``full``, the mean over seeds. ``--parts`` keeps trained arms and the
checkpoints of those in training, so a run that was stopped goes on. The last line printed is one JSON object. Left out:
RL, and text (the data has none).
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.agents.config import PolicyConfig, SftConfig
from sidgym.agents.evaluate import evaluate_policy
from sidgym.agents.policy import build_policy, parameter_count
from sidgym.agents.sft import train_sft
from sidgym.benchmarks.baselines.cooccurrence import LastItemCooccurrence
from sidgym.benchmarks.baselines.lists import without_history
from sidgym.benchmarks.baselines.popularity import Popularity
from sidgym.benchmarks.parts import in_parts
from sidgym.benchmarks.script import at_least_one, main, random_codes
from sidgym.envs.config import DataConfig, EvalConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.metrics import rank_metrics
from sidgym.envs.splits import Splits, split
from sidgym.envs.statistics import paired_bootstrap
from sidgym.sid.index_formats import read_index

RESAMPLES = 2000
METRICS = {"r@5": "hr@5", "r@10": "hr@10", "n@5": "ndcg@5", "n@10": "ndcg@10"}
"""Recall and NDCG as the papers name them; with one target recall is the hit rate."""
ARMS = {"full": "sft_all", "withheld": "sft"}
PUBLISHED = {
    "SASRec": (0.0402, 0.0607, 0.0254, 0.0320),
    "TIGER": (0.0405, 0.0623, 0.0267, 0.0337),
    "HSTU": (0.0424, 0.0652, 0.0280, 0.0353),
    "OneRec-Think, Base": (0.0460, 0.0654, 0.0314, 0.0377),
}
"""R@5, R@10, N@5, N@10 as OneRec-Think's table 1 reports them; its models are pretrained language models."""


@dataclass(frozen=True)
class Setting:
    """The data and the training of both arms."""

    data: DataConfig
    policy: PolicyConfig
    sft: SftConfig
    judged: EvalConfig


FULL = Setting(
    DataConfig(name="amazon", split="leave_one_out", rl_share=1.0),
    PolicyConfig(hidden_size=256, intermediate_size=1024, layers=2, dropout=0.2, merge_items=True),
    SftConfig(
        packed=True, precision="bfloat16", epochs=12, batch=64, lr=1e-3, weight_decay=0.1, warmup_steps=200,
        patience=1000, eval_users=4000, checkpoint_every=370,
    ),
    EvalConfig(beam=20, ks=(1, 5, 10)),
)  # fmt: skip
QUICK = Setting(
    replace(FULL.data, min_events=0),
    PolicyConfig(hidden_size=32, intermediate_size=64, layers=1, heads=2, kv_heads=1),
    SftConfig(epochs=1, eval_users=20, checkpoint_every=5),
    EvalConfig(beam=10, ks=(1, 5, 10), max_users=60),
)


def made_up(folder: Path, users: int = 150, items: int = 80) -> str:
    """A small log in Beauty's format, of no meaning; its folder."""
    rng = np.random.default_rng(0)
    log = {str(user): rng.integers(0, items, rng.integers(5, 15)).tolist() for user in range(users)}
    codes = random_codes(items, (8,) * 4, rng)
    index = {str(n): [f"<{level}_{code}>" for level, code in zip("abcd", row)] for n, row in enumerate(codes.tolist())}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Beauty.inter.json").write_text(json.dumps(log))
    (folder / "Beauty.rkmeans_zcr.index.json").write_text(json.dumps(index))
    return str(folder)


def judge(
    setting: Setting, codes: str, arm: str, seed: int, training: Path | None = None, test: bool = True
) -> dict[str, Any]:
    """Trains one arm, with its checkpoints in ``training``, and judges it on test users; ``per_user`` holds one value
    each. Without ``test`` it stops behind the training, with no figures."""
    torch.set_num_threads(1)
    dataset = load_dataset(setting.data, seed)
    splits = split(dataset, setting.data, seed)
    index = next(Path(setting.data.path).glob(f"*.{codes}.index.json"), None)
    if index is None:
        raise FileNotFoundError(f"expected SIDs in {setting.data.path}/*.{codes}.index.json, and there are none")
    table = read_index(index, dataset.catalogue.ids, unknown="drop")
    policy = build_policy(setting.policy, table, seed)
    clock = training.with_suffix(".seconds") if training else None
    begin = time.process_time() - (float(clock.read_text()) if clock and clock.exists() else 0.0)

    def note(figures: dict[str, float]) -> None:
        if clock:
            clock.write_text(str(time.process_time() - begin))
        told = f"loss {figures['train_loss']:.3f}, validation NDCG@10 {figures['eval/ndcg@10']:.4f}"
        print(f"{arm}, seed {seed}, epoch {figures['epoch']}: {told}", flush=True)

    sequences = getattr(splits, ARMS[arm])
    result = train_sft(policy, sequences, splits.valid, setting.sft, setting.data.history, seed, None, note,
                       directory=training)  # fmt: skip
    if not test:
        return {}
    seconds = time.process_time() - begin
    users = splits.test.take(slice(0, setting.judged.max_users or None))
    per_user, whole, ranked = evaluate_policy(policy, users, setting.judged)
    unseen = rank_metrics(without_history(ranked.items, users.history), users.target, setting.judged.ks)
    figures = {
        "seed": seed,
        **{name: float(per_user[key].mean()) for name, key in METRICS.items()},
        "unseen": {name: float(unseen[key].mean()) for name, key in METRICS.items()},
        "har": whole["har"],
        "training_cpu_s": round(seconds),
        "items_learned": len(sequences.items),
        "parameters": parameter_count(policy.model),
        "best_epoch": result.best_epoch,
        "validation": [entry["eval/ndcg@10"] for entry in result.history],
        "per_user": {name: per_user[key].tolist() for name, key in METRICS.items()},
    }
    return figures


def floors(splits: Splits, num_items: int, judged: EvalConfig) -> dict[str, dict[str, float]]:
    """What counting alone reaches on the same users."""
    test = splits.test.take(slice(0, judged.max_users or None))
    found = {}
    counted: dict[str, Popularity | LastItemCooccurrence] = {
        "popularity": Popularity.fit(splits.sft_all, num_items),
        "last-item co-occurrence": LastItemCooccurrence.fit(splits.sft_all, num_items),
    }
    for name, baseline in counted.items():
        items, _ = baseline.recommend(test, max(judged.ks))
        ranks = rank_metrics(items, test.target, judged.ks)
        found[name] = {metric: float(ranks[key].mean()) for metric, key in METRICS.items()}
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of both arms at every seed, what withholding costs, and the floors."""
    if not options.quick and not options.data_path:
        raise SystemExit("--data-path: expected the folder of Beauty.inter.json; or give --quick, which needs none")
    with tempfile.TemporaryDirectory() as own:
        setting = QUICK if options.quick else FULL
        path = made_up(Path(own)) if options.quick else options.data_path
        setting = replace(setting, data=replace(setting.data, path=path))
        jobs, places = {}, {}
        for arm, seed in ((arm, seed) for seed in options.seeds for arm in options.arms):
            name = f"{options.codes}-{arm}-{seed}"
            training = options.parts / f"{name}.training" if options.parts else None
            jobs[name] = (setting, options.codes, arm, seed, training, not options.no_test)
            places[name] = arm, seed
        done = dict(in_parts(judge, jobs, options.workers, options.parts))
        if options.no_test or set(options.arms) != set(ARMS):
            return {"trained": list(done)}
        found = {places[name]: figures for name, figures in done.items()}
        dataset = load_dataset(setting.data, options.seeds[0])
        counted = floors(split(dataset, setting.data, options.seeds[0]), len(dataset.catalogue), setting.judged)
    told = asdict(setting) | {"codes": options.codes}
    told["data"]["path"] = "DATA"
    return {**summary(found, options.seeds), "baselines": counted, "published": PUBLISHED, "settings": told,
            "users": len(next(iter(found.values()))["per_user"]["n@10"]), "resamples": RESAMPLES,
            "command": "python -m sidgym.benchmarks.beauty --data-path DATA --seeds "
            + " ".join(map(str, options.seeds))}  # fmt: skip


def summary(found: dict[tuple[str, int], dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    """The headline of arm ``full``, every arm's figures by seed, and their paired differences over users."""
    arms = {
        arm: {
            **{name: float(np.mean([found[arm, seed][name] for seed in seeds])) for name in METRICS},
            "per_seed": [{k: v for k, v in found[arm, seed].items() if k != "per_user"} for seed in seeds],
        }
        for arm in ARMS
    }
    cost = {}
    for name in METRICS:
        a, b = (np.mean([found[arm, seed]["per_user"][name] for seed in seeds], axis=0) for arm in ("withheld", "full"))
        cost[name] = paired_bootstrap(a, b, RESAMPLES, 0)  # all seeds judge the same users, each counted once
    return {**{name: arms["full"][name] for name in METRICS}, "arms": arms, "withheld_minus_full": cost}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-path", default="", help="folder with Beauty.inter.json and its SIDs")
    parser.add_argument("--codes", default="rkmeans_zcr", help="which SIDs: Beauty.<codes>.index.json")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--no-test", action="store_true", help="stop behind the trainings: validation only, for tuning")
    parser.add_argument("--parts", type=Path, help="folder of finished arms and of checkpoints")
    parser.add_argument("--workers", type=at_least_one, default=2, help="processes side by side")


if __name__ == "__main__":
    main("beauty", __doc__ or "", measure, seeds=(10, 11), packages=("transformers",), add_options=add_options)
