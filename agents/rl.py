"""Reinforcement learning from a checkpoint: the loop around rollout, update, validation and resumable checkpoints.

The loop is the same for every backend; a backend is a ``Trainer``. ``TorchTrainer`` is the plain one and needs no Ray;
``rllib.RllibTrainer`` runs the same two functions inside RLlib. Left out: objectives, rewards and rollouts themselves,
and trainers (``trainer``); what learns from what (``task``, ``student``).
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.agents.audit import HackingMonitor, closing_warnings
from sidgym.agents.candidates import TOTAL, as_pages
from sidgym.agents.checkpoint import load_policy, load_training, save_training
from sidgym.agents.config import RlConfig
from sidgym.agents.evaluate import PolicyPages, legal_mass, rank_contexts
from sidgym.agents.logging import MetricsLog, read_metrics
from sidgym.agents.policy import Policy
from sidgym.agents.recipes import EMPTY, completed, indistinct
from sidgym.agents.recovery import best_path, resume, save_checkpoint, until_done, warn
from sidgym.agents.scoring import scorer_of, split_times
from sidgym.agents.student import frozen_copy, model_weights, reference_kind
from sidgym.agents.task import RlTask, load_episodes, load_reward, save_episodes
from sidgym.agents.trainer import TorchTrainer, Trainer
from sidgym.envs.metrics import rank_metrics
from sidgym.envs.records import Episodes, Rollouts
from sidgym.envs.rewards import RewardSum
from sidgym.envs.session_oracle import judge_sessions

__all__ = [
    "RlTask",
    "TorchTrainer",
    "Trainer",
    "frozen_copy",
    "load_episodes",
    "load_reward",
    "make_trainer",
    "model_weights",
    "save_episodes",
    "session_return",
    "train_rl",
    "validate",
    "validation_reward",
]

Progress = Callable[[int, int, str], None]

VALIDATION_SHOPPERS = 77_000
"""Seed of the shoppers that sessions are validated with."""


def make_trainer(task: RlTask) -> Trainer:
    """The backend that the config names."""
    if task.config.backend == "torch":
        return TorchTrainer(task)
    if task.config.backend == "rllib":
        from sidgym.agents.rllib import RllibTrainer

        return RllibTrainer(task)
    if task.config.backend == "fsdp":
        from sidgym.agents.ray_train import FsdpTrainer

        return FsdpTrainer(task)
    raise ValueError(f"unknown rl.backend {task.config.backend!r}; known: fsdp, rllib, torch")


def train_rl(
    task: RlTask,
    valid: Episodes,
    directory: Path,
    log: Callable[[int | None], MetricsLog],
    on_progress: Progress | None = None,
) -> Policy:
    """Runs the whole stage in ``directory``, going on from its newest checkpoint if it holds one; the kept policy.

    The weights that validate best by ``config.select_by`` are kept ("last" keeps the final ones). ``log(step)`` opens
    the metrics log, told from which step a resumed run goes on (None for a fresh one). A trainer that loses a learner
    is replaced by a new one, which goes on from the newest checkpoint (``recovery.until_done``). Batches of refused
    updates go to the folder ``refused``.
    """
    if not task.refused:
        task = replace(task, refused=str(directory.resolve() / "refused"))
    if warning := indistinct(task.config):
        warn(warning)
    judge = load_policy(task.policy)
    kept = until_done(lambda: _train(task, judge, valid, directory, log, on_progress), directory)
    judge.model.load_state_dict(kept, strict=False)
    return judge.eval()


def _train(
    task: RlTask,
    judge: Policy,
    valid: Episodes,
    directory: Path,
    log: Callable[[int | None], MetricsLog],
    on_progress: Progress | None,
) -> dict[str, torch.Tensor]:
    """``train_rl`` with one trainer: the weights to keep."""
    config, catalogue = task.config, judge.table.content_hash()
    reward = load_reward(task, judge.table, config.rewards)
    trainer = make_trainer(task)
    try:
        if (scorer := scorer_of(reward)) is not None:
            scorer.start()  # before others ask: its actors end with who makes them
        start, best, monitor = resume(trainer, directory, catalogue)
        with log(start or None) as metrics:
            if start == 0:
                metrics.log(_statement(completed(config)), 0)
                best = _judge(trainer, judge, valid, reward, config, 0, best, monitor, directory, metrics)
                save_checkpoint(trainer, directory, 0, best, monitor, catalogue)
            for number in range(start, config.steps):
                begin = time.perf_counter()
                figures = trainer.step(number)
                figures, times = split_times(figures, time.perf_counter() - begin)
                done = number + 1
                metrics.log(figures, done)
                metrics.log_times(times, done)
                if done % config.eval_every == 0 or done == config.steps:
                    best = _judge(trainer, judge, valid, reward, config, done, best, monitor, directory, metrics)
                if done % config.checkpoint_every == 0 or done == config.steps:
                    save_checkpoint(trainer, directory, done, best, monitor, catalogue)
                if on_progress:
                    on_progress(
                        done,
                        config.steps,
                        f"reward {round(figures['reward'], 3) + 0.0:.3f}, hits {figures['rollout/hit']:.2f}",
                    )
        for warning in closing_warnings(read_metrics(metrics.path)):
            warn(f"{warning} ({directory})")
        return trainer.weights() if config.select_by == "last" else load_training(best_path(directory, best))[0]
    finally:
        trainer.close()


def _statement(config: RlConfig) -> dict[str, Any]:
    """What the log says of the run before it begins, empty settings replaced by what they stand for."""
    reference = reference_kind(config)
    estimator = {} if reference == "none" else {"kl_estimator": config.kl_estimator}
    settings = {name: getattr(config, name) for name in ("objective", *EMPTY)}
    return {**settings, "clip_high": config.clip_high or config.clip, "kl_reference": reference, **estimator}


def validate(
    policy: Policy, valid: Episodes, reward: RewardSum, config: RlConfig
) -> tuple[dict[str, float], np.ndarray]:
    """Figures on the validation contexts, and the NDCG@10 (B,) of each.

    The figures are HR@10, NDCG@10, legal mass and the reward as ``validation_reward`` defines it.
    """
    contexts = valid.spread(config.eval_users)
    ranked = rank_contexts(policy, contexts, beam=max(10, config.group_size, config.page_size))
    metrics = rank_metrics(ranked.items, contexts.target, (10,))
    figures = {f"eval/{name}": float(values.mean()) for name, values in metrics.items()}
    figures["trie/legal_mass"] = float(legal_mass(policy, contexts.take(slice(0, 256))).mean())
    if config.rewards:
        figures |= validation_reward(policy, contexts, ranked, reward, config)
    return figures, metrics["ndcg@10"]


def validation_reward(
    policy: Policy, contexts: Episodes, ranked: Rollouts, reward: RewardSum, config: RlConfig
) -> dict[str, float]:
    """``eval/reward`` of the policy's most probable items, and ``eval/rewards/<term>``, unweighted.

    Items: the mean over the top 10 of ``ranked``. Pages: what the top S earn as a page. Sessions: the reward of whole
    sessions with shoppers of their own, without discount.
    """
    if config.environment == "session":
        return {"eval/reward": session_return(policy, contexts, reward, config)}
    if config.environment == "page":
        top = {name: getattr(ranked, name)[:, : config.page_size] for name in ("codes", "valid", "items", "logp")}
        scores = reward.score(contexts, as_pages(replace(ranked, **top), config.page_size))
        means = {name: float(part.sum(axis=1).mean()) for name, part in {TOTAL: scores.total, **scores.parts}.items()}
    else:
        scores = reward.score(contexts, ranked)
        means = {name: float(part[:, :10].mean()) for name, part in {TOTAL: scores.total, **scores.parts}.items()}
    return {"eval/reward": means.pop(TOTAL), **{f"eval/rewards/{name}": value for name, value in means.items()}}


def session_return(policy: Policy, contexts: Episodes, reward: RewardSum, config: RlConfig) -> float:
    """Mean reward in all of the policy with as many new shoppers as there are ``contexts``, the same every time."""
    world = reward.context.require("truth", "rl.environment = 'session'").world
    users, history = np.arange(len(contexts)), contexts.history.shape[1]
    judged = judge_sessions(
        world,
        PolicyPages(policy),
        users,
        config.page_size,
        history,
        config.warm_pages,
        seed=VALIDATION_SHOPPERS,
        reward=reward,
        table=policy.table,
    )
    return float(judged["total"].mean())


def _judge(
    trainer: Trainer,
    judge: Policy,
    valid: Episodes,
    reward: RewardSum,
    config: RlConfig,
    step: int,
    best: dict[str, Any],
    monitor: HackingMonitor,
    directory: Path,
    metrics: MetricsLog,
) -> dict[str, Any]:
    """Validates the current weights; keeps them as the best if they are. Returns what is known of the best.

    Says so when the monitor finds the reward gamed.
    """
    weights = trainer.weights()
    judge.model.load_state_dict(weights, strict=False)
    figures, ndcg = validate(judge, valid, reward, config)
    if config.rewards:
        if warning := monitor.observe(step, figures["eval/reward"], ndcg):
            warn(warning)
        figures |= monitor.figures()
    metrics.log(figures, step)
    if config.select_by == "last":
        return best
    name = f"eval/{config.select_by}"
    if name not in figures:
        raise ValueError(
            f"unknown rl.select_by {config.select_by!r}; known here: last, "
            + ", ".join(key.removeprefix("eval/") for key in figures if key.startswith("eval/"))
        )
    if best["value"] is None or figures[name] > best["value"]:
        best = {"value": figures[name], "step": step}
        save_training(best_path(directory, best), weights, best)
    return best
