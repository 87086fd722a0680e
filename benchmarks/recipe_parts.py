"""The parts of the search for a recipe: a supervised start, and one arm trained from it and judged.

``train_start`` and ``train_arm`` run in processes of their own (``parts``). Test users are cut out of what a part sees
unless it was told to judge them: ``prepared``. Left out: which arms there are (``recipe_settings``) and what becomes of
the figures (``recipe``).
"""

import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.agents.checkpoint import load_policy, save_policy
from sidgym.agents.config import PolicyConfig, SftConfig
from sidgym.agents.evaluate import rank_contexts
from sidgym.agents.policy import Policy, build_policy
from sidgym.agents.rl import RlTask, TorchTrainer, save_episodes
from sidgym.agents.sft import train_sft
from sidgym.benchmarks.recipe_settings import Candidate
from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.metrics import rank_metrics
from sidgym.envs.records import Episodes, Sequences
from sidgym.envs.splits import Splits, split
from sidgym.sid.index_formats import read_index
from sidgym.sid.table import SidTable, write_atomically

METRICS = {"n@10": "ndcg@10", "r@50": "hr@50"}
BEAM = 50
LOGGED = ("reward", "rollout/hit", "entropy", "grad_norm", "loss")
"""Figures of training that are kept, the mean over its first and over its last ten iterations."""


@dataclass(frozen=True)
class Store:
    """A data set and how its supervised start is trained."""

    name: str
    data: DataConfig
    policy: PolicyConfig
    sft: SftConfig
    codes: str = "rkmeans_zcr"


def prepared(store: Store, seed: int, test: bool) -> tuple[Splits, SidTable]:
    """Splits and SIDs; without ``test`` there are no test users in them."""
    dataset = load_dataset(store.data, seed)
    splits = split(dataset, store.data, seed)
    index = next(Path(store.data.path).glob(f"*.{store.codes}.index.json"), None)
    if index is None:
        raise FileNotFoundError(f"expected SIDs in {store.data.path}/*.{store.codes}.index.json, and there are none")
    if not test:
        splits = replace(splits, test=splits.test.take(slice(0, 0)))
    return splits, read_index(index, dataset.catalogue.ids, unknown="drop")


def judged(policy: Policy, users: Episodes) -> dict[str, list[float]]:
    """Each user's figures, by item."""
    ranked = rank_contexts(policy, users, BEAM, batch=128)
    found = rank_metrics(ranked.items, users.target, (10, 50))
    return {name: np.round(found[key], 6).tolist() for name, key in METRICS.items()}


def users_of(splits: Splits, users: int, test: bool) -> Episodes:
    """Users to judge, evenly spread; 0 takes all."""
    return (splits.test if test else splits.valid).spread(users)


def train_start(store: Store, seed: int, folder: Path) -> dict[str, Any]:
    """Trains the supervised start, without RL's contexts, and writes it to ``folder``; goes on where it stopped."""
    torch.set_num_threads(1)
    clock = folder.with_suffix(".seconds")  # of earlier calls, which stopped on the way
    begin = time.process_time() - (float(clock.read_text()) if clock.exists() else 0.0)

    def note(figures: dict[str, float]) -> None:
        clock.write_text(str(time.process_time() - begin))
        print(f"{store.name}, seed {seed}, epoch {figures['epoch']}: {figures['eval/ndcg@10']:.4f}", flush=True)

    splits, table = prepared(store, seed, test=False)
    policy = build_policy(store.policy, table, seed)
    result = train_sft(
        policy, splits.sft, splits.valid, store.sft, store.data.history, seed, None, note,
        directory=folder.with_suffix(".training"),
    )  # fmt: skip
    save_policy(folder, policy)
    return {"best_epoch": result.best_epoch, "cpu_s": round(time.process_time() - begin, 1)}


def judge_start(store: Store, seed: int, start: Path, users: int, test: bool) -> dict[str, Any]:
    """The supervised start as it is."""
    torch.set_num_threads(1)
    begin = time.process_time()
    splits, _ = prepared(store, seed, test)
    per_user = judged(load_policy(start), users_of(splits, users, test))
    return {"per_user": per_user, "cpu_s": round(time.process_time() - begin, 1)}


def train_arm(
    store: Store, seed: int, start: Path, arm: Candidate, steps: int, users: int, test: bool
) -> dict[str, Any]:
    """One arm from the start ``start``, judged after ``steps`` iterations. A run that breaks is told, not raised: NaN
    or a refused setting loses."""
    torch.set_num_threads(1)
    begin = time.process_time()
    splits, _ = prepared(store, seed, test)
    told: list[dict[str, float]] = []
    try:
        with tempfile.TemporaryDirectory() as own:
            policy = trained(splits, seed, start, replace(arm, rl=replace(arm.rl, steps=steps)), Path(own), told)
        spent = time.process_time() - begin
        per_user = judged(policy, users_of(splits, users, test))
    except (FloatingPointError, ValueError, RuntimeError) as error:
        why = f"{type(error).__name__}: {error}"
        return {"broken": why, "iterations": len(told), "cpu_s": round(time.process_time() - begin, 1)}
    ends = {"first": told[:10], "last": told[-10:]}
    figures = {
        when: {name: float(np.mean([entry[name] for entry in part])) for name in LOGGED if name in part[0]}
        for when, part in ends.items()
        if part
    }
    total = time.process_time() - begin
    return {"per_user": per_user, "training": figures, "train_cpu_s": round(spent, 1), "cpu_s": round(total, 1)}


def trained(
    splits: Splits, seed: int, start: Path, arm: Candidate, folder: Path, told: list[dict[str, float]]
) -> Policy:
    """The policy after all iterations of an arm, whose figures are appended to ``told``."""
    trainer = TorchTrainer(task_of(splits, seed, start, arm, folder))
    try:
        for number in range(arm.rl.steps):
            told.append(trainer.step(number))
        return trainer.policy
    finally:
        trainer.close()


def task_of(splits: Splits, seed: int, start: Path, arm: Candidate, folder: Path) -> RlTask:
    """What the trainer learns from, its files in ``folder``."""
    save_episodes(folder / "contexts.npz", splits.rl)
    embeddings = ""
    if any(term.name == "semantic" for term in arm.rl.rewards):
        table = SidTable.load(start / "sid")
        np.save(folder / "neighbours.npy", neighbour_vectors(splits.sft_all, table.num_items))
        embeddings = str(folder / "neighbours.npy")
    return RlTask(str(start), str(folder / "contexts.npz"), seed, arm.rl, embeddings=embeddings)


def neighbour_vectors(sequences: Sequences, items: int, window: int = 3, width: int = 64) -> np.ndarray:
    """Embeddings (N, width) of items by what stands within ``window`` places of them: the largest singular vectors of
    the positive pointwise mutual information (Levy and Goldberg 2014). Items that were never seen are zero."""
    from scipy.sparse import coo_matrix, diags
    from scipy.sparse.linalg import svds

    owner = np.repeat(np.arange(len(sequences)), np.diff(sequences.offsets))
    pairs = []
    for gap in range(1, window + 1):
        near = owner[gap:] == owner[:-gap]
        pairs.append(np.stack([sequences.items[:-gap][near], sequences.items[gap:][near]]))
    one, other = np.concatenate(pairs, axis=1)
    counts = coo_matrix((np.ones(2 * len(one)), (np.r_[one, other], np.r_[other, one])), (items, items)).tocsr()
    seen = np.asarray(counts.sum(1)).ravel()
    scale = diags(np.divide(1.0, seen, out=np.zeros(items), where=seen > 0))
    lift = (scale @ counts @ scale * seen.sum()).tocsr()
    lift.data = np.maximum(np.log(np.maximum(lift.data, 1e-12)), 0.0)
    left, values, _ = svds(lift, k=min(width, items - 1), v0=np.ones(items), random_state=0)
    return np.ascontiguousarray(left * np.sqrt(values)).astype(np.float32)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """All or nothing."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())
