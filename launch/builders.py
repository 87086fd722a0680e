"""What each stage does: reads the finished directories of the stages before it and writes its own.

Left out: when a stage runs (``pipeline``) and how a run is summed up (``evaluation``, ``report``).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.agents.checkpoint import load_policy, write_policy
from sidgym.agents.config import RlConfig
from sidgym.agents.logging import MetricsLog
from sidgym.agents.policy import build_policy
from sidgym.agents.rl import RlTask, save_episodes, train_rl
from sidgym.agents.sft import train_sft
from sidgym.envs.datasets import DataSet, load_dataset
from sidgym.envs.splits import load_splits, save_splits, split, training_log
from sidgym.launch.schema import RunConfig, arms_of
from sidgym.sid.alignment import ALIGNMENTS, save_alignment
from sidgym.sid.embed import make_embedder, reads_texts, save_embedder
from sidgym.sid.registry import resolve
from sidgym.sid.residual import check_embeddings
from sidgym.sid.table import SidTable
from sidgym.sid.tokenizers import TOKENIZERS, build_table

Builder = Callable[[RunConfig, Path, Any, str], None]

DESCRIPTIONS = {
    "data": "Reading the data and cutting the splits",
    "sid": "Giving every item its Semantic ID",
    "sft": "Supervised warm-up",
    "sft_all": "Control: SFT on all contexts",
    "preference": "Fitting the preference model",
    "rl": "Reinforcement learning",
    "evaluate/baselines": "Evaluating the baselines",
}


def describe(name: str) -> str:
    """What a stage does, in words."""
    if name in DESCRIPTIONS:
        return DESCRIPTIONS[name]
    if name.startswith("rl_"):
        return f"Control: {name.removeprefix('rl_')}"
    return f"Evaluating {name.removeprefix('evaluate/')}"


def builder_of(name: str) -> Builder:
    """The function that builds stage ``name``."""
    if name.startswith("evaluate/"):
        from sidgym.launch.evaluation import build_evaluation

        return build_evaluation
    if name.startswith("rl"):
        return build_rl
    return {
        "data": build_data,
        "sid": build_sid,
        "sft": build_sft,
        "sft_all": build_sft,
        "preference": build_preference,
    }[name]


def prepare_process(threads: int) -> None:
    """One process, ``threads`` threads, no network, no usage statistics."""
    torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def build_data(config: RunConfig, work: Path, on_progress: Any, name: str) -> None:
    """The data set, its splits, and how popular each item is in the part of the log that training may read."""
    dataset = load_dataset(config.data, config.seed)
    splits = split(dataset, config.data, config.seed)
    dataset.save(work)
    save_splits(splits, work)
    save_episodes(work / "rl_contexts.npz", splits.rl)
    seen = training_log(dataset.interactions, splits).positives()
    np.save(work / "popularity.npy", np.bincount(seen.item, minlength=len(dataset.catalogue)))


def build_sid(config: RunConfig, work: Path, on_progress: Any, name: str) -> None:
    """Item embeddings and the item-code table, with the embedder and the tokeniser that new items are coded by."""
    dataset = DataSet.load(config.directory / "data")
    table = build_table(
        embed_catalogue(config, dataset, work, on_progress),
        dataset.catalogue.ids,
        config.sid,
        config.seed,
        categories=dataset.catalogue.categories,
        on_progress=on_progress,
        save_to=work / "tokenizer",
    )
    table.save(work)
    table.to_index_json(work / "index.json")  # MiniOneRec's form, for other tools
    if on_progress:
        sizes = " x ".join(str(size) for size in table.sizes)
        on_progress(1, 1, f"{table.num_items} items, {sizes} codes, {table.collision_count()} in collision")


def embed_catalogue(config: RunConfig, dataset: DataSet, work: Path, on_progress: Any) -> np.ndarray | None:
    """The embeddings that are quantised, (N, D) float32, None where there is no text and nothing needs them.

    Writes ``embeddings.npy`` and ``embedder``; with an alignment also ``text_embeddings.npy``, as they were before it.
    """
    texts, seed = dataset.catalogue.texts(), config.seed
    # Ready-made and category codes need no embeddings, but rewards that compare items do.
    kind = resolve("tokenizer", config.sid.tokenizer, TOKENIZERS)
    optional = bool(config.sid.index) or getattr(kind, "reads", "embeddings") != "embeddings"
    if reads_texts(config.sid) and not all(texts):
        if optional:
            return None
        if not any(texts):
            raise ValueError(
                f"data set {dataset.name!r} has no item texts to make codes from; give a ready-made sid.index, or "
                "embeddings of your own (sid.embedder = 'file')"
            )
    # Outside the stage's folder, which does not outlive a kill; what has been encoded serves all runs beside this one.
    embedder = make_embedder(config.sid, seed, Path(config.out) / "embedding_cache", on_progress).fit(texts)
    embeddings = check_embeddings(embedder.embed(texts))
    save_embedder(embedder, work / "embedder", config.sid.embedder)
    if config.sid.alignment:
        np.save(work / "text_embeddings.npy", embeddings)
        # Of RL's contexts alignment knows as little as SFT does, so their targets are as new to the codes.
        log = load_splits(config.directory / "data").sft
        user = np.repeat(log.user, np.diff(log.offsets))
        alignment = resolve("alignment", config.sid.alignment, ALIGNMENTS)(seed, on_progress)
        alignment.fit(embeddings, user, log.items)
        save_alignment(alignment, work / "embedder", config.sid.alignment)
        embeddings = check_embeddings(alignment.transform(embeddings))
    np.save(work / "embeddings.npy", embeddings)
    return embeddings


def text_embeddings(root: Path) -> Path:
    """The file of a run's item embeddings by text alone, which rewards compare: alignment must not change them."""
    path = root / "sid" / "text_embeddings.npy"
    return path if path.exists() else root / "sid" / "embeddings.npy"


def build_sft(config: RunConfig, work: Path, on_progress: Any, name: str) -> None:
    """A fresh or loaded policy, trained on the SFT sequences (``sft_all``: on those of the RL contexts too)."""
    table, splits = SidTable.load(config.directory / "sid"), load_splits(config.directory / "data")
    policy = build_policy(config.policy, table, config.seed)
    sequences = splits.sft_all if name == "sft_all" else splits.sft
    with MetricsLog(work, config.log, f"{config.name}-{name}") as log:
        result = train_sft(
            policy,
            sequences,
            splits.valid,
            config.sft,
            config.data.history,
            config.seed,
            on_progress,
            lambda figures: log.log(figures, int(figures["epoch"])),
        )
    info = {"stage": name, "history": config.data.history, "best_epoch": result.best_epoch, "figures": result.history}
    write_policy(work, policy, info)


def build_preference(config: RunConfig, work: Path, on_progress: Any, name: str) -> None:
    """The model of engagement given a history and an item shown, from the training users' impressions alone."""
    from sidgym.envs.preference import LoggedPreference

    dataset, splits = DataSet.load(config.directory / "data"), load_splits(config.directory / "data")
    model = LoggedPreference.fit(
        training_log(dataset.interactions, splits),
        splits.train_users,
        np.load(text_embeddings(config.directory)),
        history=config.data.history,
        seed=config.seed,
        epochs=config.preference.epochs,
    )
    model.save(work / "model")
    (work / "report.json").write_text(json.dumps(model.report, indent=2) + "\n")
    if on_progress:
        on_progress(1, 1, f"AUC {model.report['auc']:.3f}, ECE {model.report['ece']:.3f} on held-out training users")


def rl_task(config: RunConfig, rl: RlConfig, seed: int) -> RlTask:
    """What an RL arm learns from, as paths into the run's folder."""
    root = config.directory.resolve()

    def existing(path: Path) -> str:
        return str(path) if path.exists() else ""

    truth = existing(root / "data" / "truth")
    if rl.environment == "session" and not truth:
        raise ValueError(
            f"rl.environment = 'session' needs shoppers that answer, and {root / 'data'} holds no simulated ones; use "
            "data.name = 'simulator', or the environments 'page' or 'next_item'"
        )
    return RlTask(
        policy=str(root / "sft"),
        contexts=str(root / "data" / "rl_contexts.npz"),
        seed=seed,
        config=rl,
        embeddings=existing(text_embeddings(root)),
        preference=existing(root / "preference" / "model") if config.preference.enabled else "",
        truth=truth,
        popularity=existing(root / "data" / "popularity.npy"),
        data=str(root / "data"),
        address=config.address,
    )


def build_rl(config: RunConfig, work: Path, on_progress: Any, name: str) -> None:
    """One arm: RL from the SFT checkpoint, going on from the newest checkpoint in ``work``."""
    splits = load_splits(config.directory / "data")
    rl = arms_of(config)[name]
    task = rl_task(config, rl, config.seed)

    def open_log(step: int | None) -> MetricsLog:
        return MetricsLog(work, config.log, f"{config.name}-{name}", resume_from=step)

    policy = train_rl(task, splits.valid, work / "training", open_log, on_progress)
    info = {"stage": name, "history": config.data.history, "objective": rl.objective, "steps": rl.steps}
    write_policy(work, policy, info)


def load_stage_policy(config: RunConfig, name: str) -> Any:
    """The policy of a finished stage, checked against the run's own SID table."""
    return load_policy(config.directory / name, SidTable.load(config.directory / "sid"))
