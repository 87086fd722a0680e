"""What merging the items of a prompt costs and saves: length of prompts, quality, seconds of rollouts and updates.

    python -m sidgym.benchmarks.token_merger [--quick] [--seeds 0 1 2] [--out FILE]

Simulated stores of the demonstration's size. Two arms with the same model, codes, steps and batches of retrieval,
every position supervised: ``codes`` reads each item as its L codes, ``merged`` as one embedding (Token Merger, GenRec
eq. 5; L * H * H + H parameters more). The weights of the best validation by NDCG@10 are judged on test users: NDCG@10,
HR@10 and HaR. Differences are merged over codes, user by user, all seeds together: their intervals are over test users
and not over seeds, of which each is a store of its own, and whose own differences stand beside them. Lengths are tokens
of test prompts. Supervised training is not cheaper merged: it predicts every item's codes and reads one token more.

Then the two trained policies of the first seed roll groups of 16 out and learn from them, in turns, one thread, behind
histories of random items: as many as the data's own hold at most, which the headline is of, and longer ones. Both learn
from the same groups. Ratios are medians over rounds of the seconds with codes over the seconds merged. The last line
printed is one JSON object.
"""

import argparse
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from sidgym.agents.config import PolicyConfig, RlConfig, SftConfig
from sidgym.agents.engine import TorchEngine
from sidgym.agents.evaluate import evaluate_policy
from sidgym.agents.policy import Policy, build_policy, parameter_count, prompt_arrays
from sidgym.agents.sft import train_sft
from sidgym.agents.update import GroupBatch, group_loss
from sidgym.benchmarks.script import main
from sidgym.envs.config import DataConfig, EvalConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.records import Episodes, Rollouts
from sidgym.envs.splits import split
from sidgym.envs.statistics import paired_bootstrap
from sidgym.sid.config import SidConfig
from sidgym.sid.embed import make_embedder
from sidgym.sid.tokenizers import build_table

RESAMPLES = 2000
METRICS = ("ndcg@10", "hr@10")
ARMS = {"codes": False, "merged": True}
GROUP = 16


@dataclass(frozen=True)
class Setting:
    """What both arms of a run share."""

    data: DataConfig
    codes: int
    policy: PolicyConfig
    sft: SftConfig
    judged: EvalConfig
    longer: tuple[int, ...]  # items of the histories that seconds are taken behind, beside the data's own
    contexts: int  # of these
    rounds: int


FULL = Setting(
    DataConfig(),
    32,
    PolicyConfig(),
    SftConfig(packed=True, epochs=12, patience=12),
    EvalConfig(beam=20, ks=(1, 5, 10)),
    (100, 400),
    32,
    7,
)
QUICK = Setting(
    DataConfig(users=200, items=150),
    8,
    PolicyConfig(hidden_size=32, intermediate_size=64, layers=1, heads=2, kv_heads=1),
    SftConfig(packed=True, epochs=1, eval_users=20),
    EvalConfig(beam=10, ks=(1, 5, 10), max_users=60),
    (100,),
    8,
    2,
)


def judge(setting: Setting, seed: int) -> tuple[dict[str, dict[str, Any]], dict[str, Policy]]:
    """Figures of both arms at one seed, each with one value a test user beside them, and the trained policies."""
    data = setting.data
    dataset = load_dataset(data, seed)
    splits = split(dataset, data, seed)
    sid = SidConfig(codes=setting.codes)
    texts = dataset.catalogue.texts()
    table = build_table(make_embedder(sid, seed).fit(texts).embed(texts), dataset.catalogue.ids, sid, seed)
    test = splits.test.take(slice(0, setting.judged.max_users or None))
    found: dict[str, dict[str, Any]] = {}
    policies = {}
    for name, merge in ARMS.items():
        policy = policies[name] = build_policy(replace(setting.policy, merge_items=merge), table, seed)
        begin = time.process_time()
        result = train_sft(policy, splits.sft, splits.valid, setting.sft, data.history, seed)
        spent = time.process_time() - begin
        per_user, whole, _ = evaluate_policy(policy, test, setting.judged)
        lengths = prompt_arrays(policy, test)[1].sum(axis=1)
        found[name] = {
            "prompt_tokens_mean": float(lengths.mean()),
            "prompt_tokens_max": int(lengths.max()),
            "parameters": parameter_count(policy.model),
            "sft_cpu_s": spent,
            "best_epoch": result.best_epoch,
            "valid_ndcg@10": [figures["eval/ndcg@10"] for figures in result.history],
            "har": whole["har"],
            "legal_mass": whole["trie/legal_mass"],
            **{metric: float(per_user[metric].mean()) for metric in METRICS},
            "per_user": {metric: per_user[metric] for metric in METRICS},
        }
        line = ", ".join(f"{key} {found[name][key]:.4f}" for key in (*METRICS, "har", "prompt_tokens_mean"))
        print(f"seed {seed}, {name}: {line}", flush=True)
    return found, policies


def random_contexts(items: int, history: int, count: int, seed: int) -> Episodes:
    """Contexts with full histories."""
    rng, index = np.random.default_rng(seed), np.arange(count)
    return Episodes(index, index, rng.integers(0, items, (count, history)), rng.integers(0, items, (count, 1)))


def as_groups(contexts: Episodes, found: Rollouts, seed: int) -> GroupBatch:
    """Groups with random advantages: what is timed does not hang on them."""
    count = len(contexts)
    advantage = np.random.default_rng(seed).normal(size=found.valid.shape).astype(np.float32)
    return GroupBatch(
        contexts.history,
        contexts.targets,
        found.codes,
        found.valid,
        found.logp,
        advantage,
        np.ones_like(advantage),
        np.arange(count),
        np.zeros(count, dtype=np.int64),
    )


def rollout_seconds(policy: Policy, contexts: Episodes, seed: int) -> tuple[float, Rollouts]:
    """Processor seconds of one rollout, and what it gave."""
    engine = TorchEngine(policy, chunk=len(contexts))
    begin = time.process_time()
    found = engine.rollout(contexts, GROUP, "sample", seed=seed)
    return time.process_time() - begin, found


def update_seconds(policy: Policy, batch: GroupBatch) -> float:
    """Processor seconds of one pass forward and backward."""
    policy.model.zero_grad(set_to_none=True)
    begin = time.process_time()
    group_loss(policy, batch, RlConfig())[0].backward()
    return time.process_time() - begin


def compare_speed(policies: dict[str, Policy], setting: Setting, history: int, seed: int) -> dict[str, Any]:
    """Seconds of both arms in turns, behind histories of ``history`` items."""
    contexts = random_contexts(policies["codes"].table.num_items, history, setting.contexts, seed)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in policies}
    for number in range(setting.rounds + 1):
        drawn = {name: rollout_seconds(policy, contexts, number) for name, policy in policies.items()}
        # One arm's draws for both: how many prefixes a group shares depends on how sharp its policy is.
        batch = as_groups(contexts, drawn["codes"][1], number)
        for name, policy in policies.items():
            spent = drawn[name][0], update_seconds(policy, batch)
            if number:  # the first round warms up
                times[name].append(spent)
    ratios = np.median(np.array(times["codes"]) / np.array(times["merged"]), axis=0)
    tokens = {name: int(prompt_arrays(policy, contexts)[1].sum(axis=1).max()) for name, policy in policies.items()}
    out = {
        "items": history,
        "prompt_tokens": tokens,
        "rollout_s": {name: float(np.median(values, axis=0)[0]) for name, values in times.items()},
        "update_s": {name: float(np.median(values, axis=0)[1]) for name, values in times.items()},
        "rollout_codes_vs_merged": float(ratios[0]),
        "update_codes_vs_merged": float(ratios[1]),
    }
    print(f"{history} items: rollout {ratios[0]:.2f} times as fast, update {ratios[1]:.2f}", flush=True)
    return out


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of both arms, one a seed, their differences, and the seconds."""
    torch.set_num_threads(1)
    setting = QUICK if options.quick else FULL
    seeds: dict[int, dict[str, dict[str, Any]]] = {}
    speed: dict[str, dict[str, Any]] = {}
    own = setting.data.history
    for number, seed in enumerate(options.seeds):
        seeds[seed], policies = judge(setting, seed)
        if number == 0:
            speed = {str(items): compare_speed(policies, setting, items, seed) for items in (own, *setting.longer)}
    told = {
        name: [{k: v for k, v in found[name].items() if k != "per_user"} for found in seeds.values()] for name in ARMS
    }
    differences = {metric: difference(seeds, metric) for metric in METRICS}
    means = {name: float(np.mean([one["prompt_tokens_mean"] for one in found])) for name, found in told.items()}
    settings = {"data": asdict(setting.data), "codes": setting.codes, "policy": asdict(setting.policy)}
    settings |= {"sft": asdict(setting.sft), "eval": asdict(setting.judged), "group": GROUP, "rounds": setting.rounds}
    return {
        "prompt_codes_vs_merged": means["codes"] / means["merged"],
        "ndcg@10_merged_minus_codes": differences["ndcg@10"],
        "rollout_codes_vs_merged": speed[str(own)]["rollout_codes_vs_merged"],
        "update_codes_vs_merged": speed[str(own)]["update_codes_vs_merged"],
        "differences": differences,
        "arms": told,
        "speed_by_items": speed,
        "resamples": RESAMPLES,
        "settings": settings,
    }


def difference(seeds: dict[int, dict[str, dict[str, Any]]], metric: str) -> dict[str, Any]:
    """Paired difference of a metric over the users of all seeds, and its mean in each seed (``seeds``)."""
    pairs = [[found[name]["per_user"][metric] for name in ("merged", "codes")] for found in seeds.values()]
    merged, codes = (np.concatenate(values) for values in zip(*pairs))
    means = [float((a - b).mean()) for a, b in pairs]
    return {**paired_bootstrap(merged, codes, RESAMPLES, 0), "seeds": means}


if __name__ == "__main__":
    main("token_merger", __doc__ or "", measure, seeds=(0, 1, 2))
