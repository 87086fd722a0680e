"""Is it worth learning all that was wanted of a page in one pass? Page-wise against point-wise, at equal passes.

    python -m sidgym.benchmarks.page_wise [--quick] [--seeds 0 1 2] [--epochs 1 2 6] [--out FILE]

Simulated stores of the demonstration's size, where what users like is known, with more test users. Every arm passes
over each page of SFT's users once an epoch, behind the same history, with the same model, schedule and number of steps,
in trainings of one, two and six epochs; they differ in what is learned of the page:

    point, strongest / logged / random     one of its positives
    page, strongest / logged / random      all of its positives, in this order (GenRec eq. 4 with D+)
    page, exposed                          what was shown and ignored behind them, too (D)
    retrieval                              windows of histories, every position learned, in as many passes

At equal passes page-wise learns about twice the tokens of point-wise, and retrieval, SFT's default, more than either:
its difference to the first is told beside that to the second.

The weights of the best validation by NDCG@10 are judged on test users, point-wise: NDCG@10 and HR@10 of the first
positive of the next page, the true preference of the first and of the first ten items, and HaR: the share of ten freely
decoded SIDs that do not exist. Differences are page-wise over point-wise of the same order, user by user, all seeds
together: their intervals are over test users and not over seeds, of which each is a store of its own, and whose own
differences stand beside them. The last line printed is one JSON object.
"""

import argparse
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from sidgym.agents.config import PolicyConfig, SftConfig
from sidgym.agents.evaluate import Preference, evaluate_policy
from sidgym.agents.policy import Policy, build_policy
from sidgym.agents.sft import make_feed, train_sft
from sidgym.benchmarks.script import main
from sidgym.envs.config import DataConfig, EvalConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.logged_pages import logged_pages
from sidgym.envs.records import Episodes, Sequences
from sidgym.envs.splits import split
from sidgym.envs.statistics import paired_bootstrap
from sidgym.sid.config import SidConfig
from sidgym.sid.embed import make_embedder
from sidgym.sid.tokenizers import build_table

RESAMPLES = 2000
METRICS = ("ndcg@10", "hr@10", "preference@1", "preference@10")
ORDERS = ("strongest", "logged", "random")


@dataclass(frozen=True)
class Setting:
    """What all arms of a run share."""

    data: DataConfig
    codes: int
    policy: PolicyConfig
    sft: SftConfig
    judged: EvalConfig


FULL = Setting(
    DataConfig(rl_share=0.05, test_share=0.4),
    32,
    PolicyConfig(),
    SftConfig(packed=True, batch=64, patience=1000),
    EvalConfig(beam=20, ks=(1, 5, 10)),
)
QUICK = Setting(
    DataConfig(users=200, items=150),
    8,
    PolicyConfig(hidden_size=32, intermediate_size=64, layers=1, heads=2, kv_heads=1),
    SftConfig(packed=True, epochs=1, eval_users=20, patience=1000),
    EvalConfig(beam=10, ks=(1, 5, 10), max_users=60),
)


def arms(sft: SftConfig) -> dict[str, SftConfig]:
    """The training of each arm."""
    kinds = {"point": "point_wise", "page": "page_wise"}
    found = {
        f"{kind}, {order}": replace(sft, tasks=(task,), page_order=order)
        for kind, task in kinds.items()
        for order in ORDERS
    }
    found["page, exposed"] = replace(sft, tasks=("page_wise",), page_exposed=True)
    found["retrieval"] = replace(sft, tasks=("retrieval",))
    return found


def in_passes(sft: SftConfig, passes: int, policy: Policy, sequences: Sequences, history: int, seed: int) -> SftConfig:
    """``sft`` with as many epochs as come nearest to ``passes``, validated as often as by the page."""
    feed = make_feed(policy, sequences, replace(sft, epochs=1), history, seed)
    epoch = feed.epoch(0)
    size = sum(int(feed.counts(batch)[0].sum()) for batch in epoch)
    epochs = max(round(passes / size), 1)
    return replace(sft, epochs=epochs, eval_every=max(epochs * len(epoch) // sft.epochs, 1))


def judge(setting: Setting, seed: int) -> dict[str, dict[str, Any]]:
    """Figures of every arm at one seed, each with one value a test user beside them."""
    data = setting.data
    dataset = load_dataset(data, seed)
    splits = split(dataset, data, seed)
    pages = logged_pages(dataset.interactions, splits.sft, data.history)
    sid = SidConfig(codes=setting.codes)
    texts = dataset.catalogue.texts()
    table = build_table(make_embedder(sid, seed).fit(texts).embed(texts), dataset.catalogue.ids, sid, seed)
    test = splits.test.take(slice(0, setting.judged.max_users or None))
    found: dict[str, dict[str, Any]] = {}
    for name, sft in arms(setting.sft).items():
        policy = build_policy(setting.policy, table, seed)
        if name == "retrieval":
            passes = next(iter(found.values()))["passes"]
            sft = in_passes(sft, passes, policy, splits.sft, data.history, seed)
        curve: list[float] = []

        def note(figures: dict[str, float], curve: list[float] = curve) -> None:
            curve.append(figures["eval/ndcg@10"])

        result = train_sft(policy, splits.sft, splits.valid, sft, data.history, seed, None, note, pages=pages)
        per_user, whole, _ = evaluate_policy(policy, test, setting.judged, true_preference(dataset.truth))
        passes, tokens = next(iter(result.seen.values()))
        found[name] = {
            "passes": passes,
            "supervised_tokens": tokens,
            "epochs": sft.epochs,
            "best_epoch": result.best_epoch,
            "valid_ndcg@10": curve,
            "har": whole["har"],
            "legal_mass": whole["trie/legal_mass"],
            **{metric: float(per_user[metric].mean()) for metric in METRICS},
            "per_user": {metric: per_user[metric] for metric in METRICS},
        }
        line = ", ".join(f"{metric} {found[name][metric]:.4f}" for metric in (*METRICS, "har"))
        print(f"{setting.sft.epochs} epochs, seed {seed}, {name}: {line}", flush=True)
    return found


def true_preference(truth: Any) -> Preference:
    """What the shoppers of the test contexts really like."""

    def preference(episodes: Episodes, items: np.ndarray) -> np.ndarray:
        return truth.preference(episodes.event, items)

    return preference


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Of each number of epochs the figures of every arm, one a seed, and what page-wise gains over point-wise of the
    same order."""
    torch.set_num_threads(1)
    setting = QUICK if options.quick else FULL
    budgets: dict[str, dict[str, Any]] = {}
    for epochs in options.epochs[:1] if options.quick else options.epochs:
        here = replace(setting, sft=replace(setting.sft, epochs=epochs))
        seeds = {seed: judge(here, seed) for seed in options.seeds}
        told = {
            name: [{k: v for k, v in found[name].items() if k != "per_user"} for found in seeds.values()]
            for name in arms(here.sft)
        }
        gains = {order: gain(seeds, f"page, {order}", f"point, {order}") for order in ORDERS}
        gains["exposed"] = gain(seeds, "page, exposed", "page, strongest")
        gains["retrieval"] = gain(seeds, "page, strongest", "retrieval")
        budgets[str(epochs)] = {"gains": gains, "arms": told}
        line = ", ".join(f"{order} {gains[order]['ndcg@10']['mean']:+.4f}" for order in (*ORDERS, "retrieval"))
        print(f"{epochs} epochs, page-wise over point-wise by order, and over retrieval, NDCG@10: {line}", flush=True)
    point, retrieval = (
        {epochs: budget["gains"][name]["ndcg@10"] for epochs, budget in budgets.items()}
        for name in ("strongest", "retrieval")
    )
    settings = {"data": asdict(setting.data), "codes": setting.codes, "policy": asdict(setting.policy)}
    settings |= {"sft": asdict(setting.sft), "eval": asdict(setting.judged)}
    return {
        "page_minus_point": point,
        "page_minus_retrieval": retrieval,
        "epochs": budgets,
        "resamples": RESAMPLES,
        "settings": settings,
    }


def gain(seeds: dict[int, dict[str, dict[str, Any]]], mine: str, other: str) -> dict[str, Any]:
    """Paired differences of every metric over the users of all seeds, with the mean of each seed (``seeds``), and of
    HaR, one a seed."""
    out: dict[str, Any] = {"of": mine, "over": other}
    for metric in METRICS:
        pairs = [[found[name]["per_user"][metric] for name in (mine, other)] for found in seeds.values()]
        a, b = (np.concatenate(values) for values in zip(*pairs))
        out[metric] = {**paired_bootstrap(a, b, RESAMPLES, 0), "seeds": [float((x - y).mean()) for x, y in pairs]}
    out["har"] = [found[mine]["har"] - found[other]["har"] for found in seeds.values()]
    return out


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--epochs", type=int, nargs="+", default=[1, 2, 6], help="passes over each page, a training each"
    )


if __name__ == "__main__":
    main("page_wise", __doc__ or "", measure, seeds=(0, 1, 2), add_options=add_options)
