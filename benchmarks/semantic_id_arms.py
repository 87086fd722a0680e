"""What one way of giving items their codes leads to: figures on the codes, and a policy that is trained on them.

Left out: which arms there are, and how they are compared (``semantic_ids``).
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sidgym.agents.config import PolicyConfig, SftConfig
from sidgym.agents.evaluate import evaluate_policy
from sidgym.agents.policy import build_policy
from sidgym.agents.sft import train_sft
from sidgym.envs.config import DataConfig, EvalConfig
from sidgym.envs.datasets import DataSet, load_dataset
from sidgym.envs.records import Episodes
from sidgym.envs.splits import Splits, split
from sidgym.sid.alignment import ALIGNMENTS
from sidgym.sid.config import SidConfig
from sidgym.sid.embed import make_embedder
from sidgym.sid.inspection import category_agreement, category_labels, prefix_numbers
from sidgym.sid.registry import resolve
from sidgym.sid.residual import code_usage, mean_square
from sidgym.sid.table import SidTable
from sidgym.sid.tokenizers import TOKENIZERS, build_table, fit_tokenizer

BASE = "rq_kmeans"
"""The arm that the others are compared with."""


@dataclass(frozen=True)
class Arm:
    """A way to give items their codes."""

    name: str
    tokenizer: str = "rq_kmeans"
    embedder: str = "tfidf_svd"
    alignment: str = ""
    collisions: str = "extra_level"


@dataclass(frozen=True)
class Store:
    """Items, log and users, and the model that is trained on each arm's codes."""

    name: str
    data: DataConfig
    levels: int
    codes: int
    policy: PolicyConfig
    sft: SftConfig
    judged: EvalConfig
    encoder: str = ""
    cache: str = ""  # folder for what an encoder has encoded


def judge_arm(store: Store, arm: Arm, seed: int) -> dict[str, Any]:
    """Everything on one arm at one seed, as JSON values; ``per_user`` holds one value a test user."""
    torch.set_num_threads(1)
    dataset = load_dataset(store.data, seed)
    splits = split(dataset, store.data, seed)
    config = SidConfig(
        tokenizer=arm.tokenizer,
        embedder=arm.embedder,
        encoder=store.encoder if arm.embedder == "encoder" else "",
        alignment=arm.alignment,
        levels=store.levels,
        codes=store.codes,
        collisions=arm.collisions,
    )
    x, aligned = embed(store, config, dataset, splits, seed)
    begin = time.process_time()
    table = build_table(x, dataset.catalogue.ids, config, seed, categories=dataset.catalogue.categories)
    fitted = time.process_time() - begin
    figures = {"fit_cpu_s": fitted, **aligned, **code_figures(table, config, x, dataset, splits.test, seed)}
    figures |= together(table.codes[:, 0], splits.test, bought_together(splits))
    return {**figures, **sft_figures(store, table, splits, seed)}


def embed(
    store: Store, config: SidConfig, dataset: DataSet, splits: Splits, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """The embeddings that are quantised (N, D), and what aligning them took; it reads what SFT trains on alone."""
    texts = dataset.catalogue.texts()
    x = make_embedder(config, seed, store.cache or None).fit(texts).embed(texts)
    if not config.alignment:
        return x, {}
    begin = time.process_time()
    alignment = resolve("alignment", config.alignment, ALIGNMENTS)(seed)
    alignment.fit(x, np.repeat(splits.sft.user, np.diff(splits.sft.offsets)), splits.sft.items)
    moved = alignment.transform(x)
    return moved, {"align_cpu_s": time.process_time() - begin, "alignment": alignment.report}


def code_figures(
    table: SidTable, config: SidConfig, x: np.ndarray, dataset: DataSet, test: Episodes, seed: int
) -> dict[str, Any]:
    """Reconstruction, collisions, use of the codes, and how often a shared first code means a shared category.

    ``distortion`` is the mean squared distance of an embedding to what its codes stand for, as a share of the mean
    square; None for codes that stand for nothing. Perplexities are those of the tokeniser's own levels.
    """
    report, own = table.metadata["collisions"], table.codes[:, : config.levels]
    numbers = prefix_numbers(table.codes, table.sizes)
    used, perplexity = code_usage(own, table.sizes[: config.levels])
    labels = category_labels(dataset.catalogue.categories)
    agreement = category_agreement(numbers[:1], labels["broad"])[0] if labels else None
    return {
        "items": table.num_items,
        "sizes": list(table.sizes),
        "distortion": distortion(table, config, x, seed),
        "colliding_items": report["colliding_items"],
        "colliding_items_after": report["colliding_items_after"],
        "changed_items": report.get("changed_items"),
        "codes_used": used,
        "perplexity": perplexity,
        "category": agreement,
    }


def distortion(table: SidTable, config: SidConfig, x: np.ndarray, seed: int) -> float | None:
    """What the codes that the items really have leave of the embeddings; a tokeniser is fitted as the table's was."""
    kind = resolve("tokenizer", config.tokenizer, TOKENIZERS)
    if not hasattr(kind, "reconstruct"):
        return None
    if config.collisions != "reassign":
        return float(table.metadata["distortion_share"])
    tokenizer: Any = fit_tokenizer(kind(config.levels, config.codes, seed), x)
    return mean_square(x - tokenizer.reconstruct(table.codes)) / mean_square(x)


def bought_together(splits: Splits) -> np.ndarray:
    """Pairs (P, 2) of different items that some user's SFT sequence holds, smaller number first, each once."""
    from scipy.sparse import csr_matrix

    items, offsets = splits.sft.items, splits.sft.offsets
    users = csr_matrix((np.ones(len(items)), items, offsets))
    pairs = (users.T @ users).tocoo()
    kept = pairs.row < pairs.col
    return np.stack([pairs.row[kept], pairs.col[kept]], axis=1).astype(np.int64)


def together(first: np.ndarray, test: Episodes, known: np.ndarray) -> dict[str, Any]:
    """Do items that test users take together share their first code?

    Pairs are a test user's target and each item of the history, different ones. ``chance`` is the share for targets
    and history items paired at random. ``new`` are those pairs that no training user took together.

    Args:
        first: (N,) first codes.
        test: contexts that no training stage has seen.
        known: (P, 2) of ``bought_together``.
    """
    row, column = np.nonzero(test.history >= 0)
    target, earlier = test.target[row], test.history[row, column]
    kept = target != earlier
    target, earlier = target[kept], earlier[kept]
    same = first[target] == first[earlier]
    shares = [np.bincount(first[side], minlength=first.max() + 1) / len(side) for side in (target, earlier)]
    chance = float((shares[0] * shares[1]).sum())
    width = len(first)
    keys = np.minimum(target, earlier) * width + np.maximum(target, earlier)
    new = ~np.isin(keys, known[:, 0] * width + known[:, 1])
    return {
        "together": {
            "pairs": len(same),
            "share": float(same.mean()),
            "chance": chance,
            "lift": float(same.mean()) / chance,
            "new_pairs": int(new.sum()),
            "new_share": float(same[new].mean()) if new.any() else None,
        }
    }


def sft_figures(store: Store, table: SidTable, splits: Splits, seed: int) -> dict[str, Any]:
    """Test figures of a policy trained on the codes, its validation curve, and the processor's seconds."""
    policy = build_policy(store.policy, table, seed)
    begin = time.process_time()
    result = train_sft(policy, splits.sft, splits.valid, store.sft, store.data.history, seed)
    spent = time.process_time() - begin
    test = splits.test.take(slice(0, store.judged.max_users or None))
    per_user, whole, _ = evaluate_policy(policy, test, store.judged)
    return {
        "sft_cpu_s": spent,
        "best_epoch": result.best_epoch,
        "test_users": len(test),
        "har": whole["har"],
        "coverage@10": whole["coverage@10"],
        **{name: float(per_user[name].mean()) for name in ("ndcg@10", "hr@10")},
        "per_user": {"ndcg@10": per_user["ndcg@10"].tolist()},
    }
