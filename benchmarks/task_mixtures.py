"""Do tasks over text help a small model that starts from nothing? SFT on SIDs alone against SFT with alignment tasks.

    python -m sidgym.benchmarks.task_mixtures --data-path FOLDER --parts FOLDER --out FILE
    python -m sidgym.benchmarks.task_mixtures --quick            # a smoke run, needs no data

The stores, codes and model shapes are those of ``semantic_ids``: the simulator, and with ``--data-path`` Amazon
"Industrial & Scientific". Every arm passes over the same histories equally often, packed; what others see of text comes
on top, in more steps, and their model has the vocabulary that it takes (``policy.text_vocabulary`` rows more):

    sids      retrieval alone
    aligned   + title -> SID, SID -> title, titles of a history -> next SID, and SID history -> next title: MiniOneRec's
              tasks of alignment, the asymmetric ones among them

The weights of the best validation by NDCG@10 are judged on test users; differences are over ``sids``, user by user, all
seeds together, and one by one in ``seeds``. Shares were set beforehand and nothing was tuned. The last line printed is
one JSON object. Left out: pretrained checkpoints, which know the words of titles already.
"""

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.agents.evaluate import evaluate_policy
from sidgym.agents.mixture import Mixture, reads_text
from sidgym.agents.policy import build_policy
from sidgym.agents.sft import train_sft
from sidgym.benchmarks.comparisons import over_users
from sidgym.benchmarks.parts import in_parts
from sidgym.benchmarks.script import at_least_one, main
from sidgym.benchmarks.semantic_id_arms import Store
from sidgym.benchmarks.semantic_ids import SCIENTIFIC, SIMULATOR, quick_store
from sidgym.envs.datasets import load_dataset
from sidgym.envs.splits import split
from sidgym.sid.config import SidConfig
from sidgym.sid.embed import make_embedder
from sidgym.sid.tokenizers import build_table

RESAMPLES = 2000
METRICS = ("ndcg@10", "hr@10")
BASE = "sids"
SHARE = 0.25
ALIGNMENT = ("title_to_sid", "sid_to_title", "titles_to_sid", "history_to_title")
ARMS = {BASE: ("retrieval",), "aligned": ("retrieval:1", *(f"{task}:{SHARE}" for task in ALIGNMENT))}


def judge(store: Store, arm: str, seed: int) -> dict[str, Any]:
    """Figures of one arm at one seed; ``per_user`` holds one value a test user."""
    torch.set_num_threads(1)
    dataset = load_dataset(store.data, seed)
    splits = split(dataset, store.data, seed)
    sid, texts = SidConfig(levels=store.levels, codes=store.codes), dataset.catalogue.texts()
    table = build_table(make_embedder(sid, seed).fit(texts).embed(texts), dataset.catalogue.ids, sid, seed)
    sft, history = replace(store.sft, tasks=ARMS[arm], packed=True), store.data.history
    mixture = Mixture.of(sft, splits.sft, dataset.catalogue, history, seed)
    policy = build_policy(store.policy, table, seed, mixture.words() if reads_text(sft) else ())
    begin = time.process_time()
    result = train_sft(policy, splits.sft, splits.valid, sft, history, seed, catalogue=dataset.catalogue)
    seconds = time.process_time() - begin
    test = splits.test.take(slice(0, store.judged.max_users or None))
    per_user, whole, _ = evaluate_policy(policy, test, store.judged)
    return {
        **{metric: float(per_user[metric].mean()) for metric in METRICS},
        "har": whole["har"],
        "sft_cpu_s": seconds,
        "best_epoch": result.best_epoch,
        "valid_ndcg@10": [entry["eval/ndcg@10"] for entry in result.history],
        "seen": {name: list(counts) for name, counts in result.seen.items()},
        "per_user": {metric: per_user[metric].tolist() for metric in METRICS},
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Of each store the figures of every arm, one a seed, and what each gains over ``sids``."""
    stores = [quick_store()] if options.quick else [SIMULATOR]
    if options.data_path and not options.quick:
        data = replace(SCIENTIFIC.data, path=options.data_path)
        stores.append(replace(SCIENTIFIC, data=data, sft=replace(SCIENTIFIC.sft, precision="bfloat16")))
    seeds = options.seeds
    jobs = {f"{s.name}-{arm}-{seed}": (s, arm, seed) for seed in seeds for s in stores for arm in ARMS}
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for name, figures in in_parts(judge, jobs, options.workers, options.parts):
        store, arm, seed = jobs[name]
        found[store.name, arm, seed] = figures
        print(f"{store.name}, {arm}, seed {seed}: NDCG@10 {figures['ndcg@10']:.4f}", flush=True)
    told = {}
    for store in stores:
        settings = asdict(store)
        settings["data"]["path"] = "DATA" if store.data.path else ""
        told[store.name] = {
            "arms": {arm: {"tasks": ARMS[arm], **over_seeds(found, store.name, arm, seeds)} for arm in ARMS},
            "settings": settings,
        }
    return {"stores": told, "resamples": RESAMPLES}


def over_seeds(
    found: dict[tuple[str, str, int], dict[str, Any]], store: str, arm: str, seeds: list[int]
) -> dict[str, Any]:
    """An arm's figures by seed, and its paired differences to ``sids``: over all users, and the mean of each seed."""
    mine, base = ([found[store, name, seed] for seed in seeds] for name in (arm, BASE))
    out: dict[str, Any] = {"per_seed": [{k: v for k, v in part.items() if k != "per_user"} for part in mine]}
    for metric in METRICS if arm != BASE else ():
        a, b = ([np.array(part["per_user"][metric]) for part in parts] for parts in (mine, base))
        gain = {seed: x - y for seed, x, y in zip(seeds, a, b)}
        # A log's seeds judge the same users; a simulated store has others with each seed.
        whole = over_users(gain, store == SCIENTIFIC.name, RESAMPLES, 0)
        out[f"{metric}_minus_{BASE}"] = {**whole, "seeds": [float(part.mean()) for part in gain.values()]}
    return out


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-path", default="", help="folder with the raw files of Industrial & Scientific")
    parser.add_argument("--parts", type=Path, help="folder in which finished parts are kept")
    parser.add_argument("--workers", type=at_least_one, default=2, help="processes side by side")


if __name__ == "__main__":
    main("task_mixtures", __doc__ or "", measure, seeds=(0, 1, 2), add_options=add_options)
