"""What each stage does: reads the finished directories of the stages before it and writes its own.

Left out: when a stage runs (``pipeline``) and how a run is summed up (``evaluation``, ``report``).
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.agents.checkpoint import load_policy, write_policy
from sidgym.agents.config import RlConfig, ScoringConfig
from sidgym.agents.logging import MetricsLog
from sidgym.agents.mixture import Mixture, is_packed, reads_pages, reads_text
from sidgym.agents.policy import Policy, build_policy
from sidgym.agents.rl import RlTask, save_episodes, train_rl
from sidgym.agents.rsft import best_pages, continued, dropped_table, page_reward, page_scores
from sidgym.agents.sft import SftResult, log_step, resumed_step, train_sft
from sidgym.agents.task_contexts import check_asked, task_contexts
from sidgym.envs.datasets import DataSet, load_catalogue, load_dataset
from sidgym.envs.logged_pages import LoggedPages, logged_pages
from sidgym.envs.records import Episodes, Sequences
from sidgym.envs.rewards import RewardContext, may_read
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
    if name == "preference":
        from sidgym.launch.preference_stage import build_preference

        return build_preference
    if name.startswith("rl"):
        return build_rl
    return {
        "data": build_data,
        "sid": build_sid,
        "sft": build_sft,
        "sft_all": build_sft,
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
    splits = split(dataset, config.data, config.split_seed if isinstance(config.split_seed, int) else config.seed)
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
    """A fresh or loaded policy, trained on the SFT sequences (``sft_all``: on those of the RL contexts too).

    With ``sft.checkpoint_every`` it goes on from the newest checkpoint in ``work``.
    """
    table, splits = SidTable.load(config.directory / "sid"), load_splits(config.directory / "data")
    sequences = splits.sft_all if name == "sft_all" else splits.sft
    catalogue = load_catalogue(config.directory / "data") if reads_text(config.sft) else None
    pages = None
    if reads_pages(config.sft):
        users_log = DataSet.load(config.directory / "data").interactions
        pages = logged_pages(users_log, sequences, config.data.history)
    # Before the warm-up, which may take days: what cannot be scored must not be found out behind it.
    kept = pages_kept(config, table, sequences, pages) if pages is not None and config.sft.rsft.drop > 0 else None
    words: list[str] = []
    if catalogue is not None and not config.policy.path:
        words = Mixture.of(config.sft, sequences, catalogue, config.data.history, config.seed, pages).words()
    policy = build_policy(config.policy, table, config.seed, words)
    training = work / "training"
    with MetricsLog(work, config.log, f"{config.name}-{name}", resume_from=resumed_step(training)) as log:
        result = train_sft(
            policy,
            sequences,
            splits.valid,
            config.sft,
            config.data.history,
            config.seed,
            on_progress,
            lambda figures: log.log(figures, log_step(figures)),
            catalogue,
            training,
            pages,
        )
        extra: dict[str, Any] = {}
        if kept is not None:
            extra = run_rsft(config, policy, sequences, splits.valid, kept, result, log, on_progress)
    packed = is_packed(config.sft, policy.merges)
    if packed:
        print(f"{name}: learned from\n{result.table()}", file=sys.stderr, flush=True)
    info = {"stage": name, "history": config.data.history, "best_epoch": result.best_epoch, "figures": result.history}
    if packed:
        info["seen"] = result.seen
    write_policy(work, policy, info | extra)
    shutil.rmtree(training, ignore_errors=True)  # checkpoints of a stage that is done


def pages_kept(
    config: RunConfig, table: SidTable, sequences: Sequences, pages: LoggedPages
) -> tuple[LoggedPages, dict[str, float]]:
    """The pages that RSFT trains on, and figures of what is dropped. They depend on the log and on no policy.

    Raises what building or reading a reward does, and ``ValueError`` where a task is left without an example.
    """
    rsft, root = config.sft.rsft, config.directory
    scores = page_scores(pages, page_reward(rsft, rsft_context(root, table, sequences), pages), table)
    best = best_pages(pages, scores, rsft.drop, config.seed)
    catalogue = load_catalogue(root / "data") if reads_text(config.sft) else None
    Mixture.of(config.sft, sequences, catalogue, config.data.history, config.seed, best).epoch(0)
    return best, dropped_table(scores, len(best))


def run_rsft(
    config: RunConfig, policy: Policy, sequences: Sequences, valid: Episodes,
    kept: tuple[LoggedPages, dict[str, float]], warm: SftResult, log: MetricsLog, on_progress: Any,
) -> dict[str, Any]:  # fmt: skip
    """Trains ``policy`` on without the worst pages (``sft.rsft``), its figures behind those of the warm-up; what is to
    be remembered of it."""
    best, told = kept
    begin = log_step(warm.history[-1]) if warm.history else 0
    catalogue = load_catalogue(config.directory / "data") if reads_text(config.sft) else None
    result = train_sft(
        policy,
        sequences,
        valid,
        continued(config.sft),
        config.data.history,
        config.seed,
        on_progress,
        lambda figures: log.log(told | {f"rsft/{n}": v for n, v in figures.items()}, begin + log_step(figures)),
        catalogue,
        pages=best,
    )
    before, after = (max((f["eval/ndcg@10"] for f in one.history), default=0.0) for one in (warm, result))
    print(
        f"RSFT: {len(best)} of {told['rsft/pages']:.0f} pages kept; best NDCG@10 on validation {before:.4f} in the "
        f"warm-up, {after:.4f} in RSFT, whose weights are kept\n{result.table()}",
        file=sys.stderr,
        flush=True,
    )
    return {"rsft": {**told, "best_epoch": result.best_epoch, "figures": result.history, "seen": result.seen}}


def rsft_context(root: Path, table: SidTable, sequences: Sequences) -> RewardContext:
    """What RSFT's rewards may be built from: all that stands when SFT begins. Popularity is counted in SFT's own
    sequences, since the run's counts RL's targets, too."""
    truth = None
    if (root / "data" / "truth").exists():
        from sidgym.envs.simulator import Truth

        truth = Truth.load(root / "data" / "truth")
    embeddings = text_embeddings(root)
    return RewardContext(
        table=table,
        embeddings=np.load(embeddings) if embeddings.exists() else None,
        truth=truth,
        popularity=np.bincount(sequences.items, minlength=table.num_items),
        catalogue=load_catalogue(root / "data"),
    )


def rl_task(config: RunConfig, rl: RlConfig, seed: int, contexts: Path | None = None) -> RlTask:
    """What an RL arm learns from, as paths into the run's folder; the run's own contexts unless others are given."""
    root = config.directory.resolve()

    def existing(path: Path) -> str:
        return str(path) if path.exists() else ""

    truth = existing(root / "data" / "truth")
    if rl.environment == "session" and not truth:
        raise ValueError(
            f"rl.environment = 'session' needs shoppers that answer, and {root / 'data'} holds no simulated ones; use "
            "data.name = 'simulator', or the environments 'page' or 'next_item'"
        )
    # An arm that does not score asks for no GPU.
    scores = config.preference.enabled and may_read(rl.rewards, "preference")
    return RlTask(
        policy=str(root / "sft"),
        contexts=str(contexts or root / "data" / "rl_contexts.npz"),
        seed=seed,
        config=rl,
        embeddings=existing(text_embeddings(root)),
        preference=existing(root / "preference" / "model") if config.preference.enabled else "",
        truth=truth,
        popularity=existing(root / "data" / "popularity.npy"),
        data=str(root / "data"),
        address=config.address,
        scoring=config.preference.scoring if scores else ScoringConfig(),
    )


def build_rl(config: RunConfig, work: Path, on_progress: Any, name: str) -> None:
    """One arm: RL from the SFT checkpoint, going on from the newest checkpoint in ``work``."""
    splits = load_splits(config.directory / "data")
    rl = arms_of(config)[name]
    task = rl_task(config, rl, config.seed, asked_contexts(config, rl, splits.rl, work))

    def open_log(step: int | None) -> MetricsLog:
        return MetricsLog(work, config.log, f"{config.name}-{name}", resume_from=step)

    policy = train_rl(task, splits.valid, work / "training", open_log, on_progress)
    info = {"stage": name, "history": config.data.history, "objective": rl.objective, "steps": rl.steps}
    write_policy(work, policy, info)


def asked_contexts(config: RunConfig, rl: RlConfig, contexts: Episodes, work: Path) -> Path | None:
    """The file of the contexts that ``rl.tasks`` ask for; None for the run's own, which retrieval asks about."""
    if [share.name for share in check_asked(rl.tasks)] == ["retrieval"]:
        return None
    policy = load_stage_policy(config, "sft")
    catalogue, path = load_catalogue(config.directory / "data"), work / "contexts.npz"
    found = task_contexts(policy, contexts, catalogue, rl.tasks, config.seed, config.sft.max_text_tokens)
    save_episodes(path, found)
    return path.resolve()


def load_stage_policy(config: RunConfig, name: str) -> Any:
    """The policy of a finished stage, checked against the run's own SID table."""
    return load_policy(config.directory / name, SidTable.load(config.directory / "sid"))
