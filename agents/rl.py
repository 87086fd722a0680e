"""Reinforcement learning from a checkpoint: the loop around rollout, update, validation and resumable checkpoints.

The loop is the same for every backend; a backend is a ``Trainer``. ``TorchTrainer`` is the plain one and needs no Ray;
``rllib.RllibTrainer`` runs the same two functions inside RLlib. Left out: objectives, rewards and rollouts themselves.
"""

import copy
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from sidgym.agents.audit import HackingMonitor, closing_warnings
from sidgym.agents.candidates import TOTAL, as_pages
from sidgym.agents.checkpoint import load_policy, load_training, optimizer_tensors, restore_optimizer, save_training
from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.agents.engine import close_engine, engine_of
from sidgym.agents.evaluate import PolicyPages, legal_mass, rank_contexts
from sidgym.agents.logging import MetricsLog, read_metrics
from sidgym.agents.microbatches import Accumulated
from sidgym.agents.policy import Policy
from sidgym.agents.update import (
    GroupBatch,
    contexts_of_step,
    group_forward,
    make_optimizer,
    minibatches,
    rollout_groups,
    step_seed,
)
from sidgym.envs.metrics import rank_metrics
from sidgym.envs.records import Episodes, Rollouts
from sidgym.envs.rewards import RewardContext, RewardSum, required_fields
from sidgym.envs.session_oracle import judge_sessions
from sidgym.sid.table import SidTable

Progress = Callable[[int, int, str], None]

VALIDATION_SHOPPERS = 77_000
"""Seed of the shoppers that sessions are validated with."""


@dataclass(frozen=True)
class RlTask:
    """What a trainer learns from. Paths instead of arrays, so that it travels to remote workers as it is."""

    policy: str  # checkpoint directory that training starts from
    contexts: str  # Episodes as .npz: the RL contexts
    seed: int
    config: RlConfig
    embeddings: str = ""  # (N, D) .npy, for rewards that compare items
    preference: str = ""  # directory of a fitted preference model
    truth: str = ""  # directory of the simulator's truth: its shoppers, and the oracle's reward
    popularity: str = ""  # (N,) .npy, positive events of each item in the log that training may read
    data: str = ""  # directory of the data set, for its catalogue

    def load_contexts(self) -> Episodes:
        """The RL contexts."""
        return load_episodes(Path(self.contexts))

    def load_reward(self, table: SidTable) -> RewardSum:
        """The reward function of the config, with everything that its terms ask for."""
        return load_reward(self, table, self.config.rewards)


def load_reward(task: RlTask, table: SidTable, terms: Sequence[RewardConfig]) -> RewardSum:
    """The sum of ``terms`` over the models and arrays that ``task`` points to.

    The catalogue is read only for terms that say they need it, and for those of the user's own, which need not say.
    """
    preference = truth = catalogue = None
    if task.data and any(":" in term.name or "catalogue" in required_fields(term) for term in terms):
        from sidgym.envs.datasets import load_catalogue

        catalogue = load_catalogue(task.data)
    if task.preference:
        from sidgym.envs.preference import LoggedPreference

        preference = LoggedPreference.load(Path(task.preference))
    if task.truth:
        from sidgym.envs.simulator import Truth

        truth = Truth.load(Path(task.truth))
    context = RewardContext(
        table=table,
        embeddings=np.load(task.embeddings) if task.embeddings else None,
        preference=preference,
        truth=truth,
        popularity=np.load(task.popularity) if task.popularity else None,
        catalogue=catalogue,
    )
    config = task.config
    return RewardSum(terms, context, config.group_size if config.environment == "next_item" else config.page_size)


def save_episodes(path: Path, episodes: Episodes) -> None:
    """Episodes as one .npz file without pickled objects."""
    arrays = {name: value for name, value in vars(episodes).items() if value is not None}
    np.savez(path, **arrays)


def load_episodes(path: Path) -> Episodes:
    """Inverse of ``save_episodes``."""
    with np.load(path, allow_pickle=False) as arrays:
        return Episodes(**{name: arrays[name] for name in arrays.files})


class Trainer(Protocol):
    """One backend of the loop. ``updates`` counts the optimiser steps so far."""

    updates: int

    def step(self, number: int) -> dict[str, float]:
        """Iteration ``number``: rollout and update; metrics averaged over its contexts."""

    def weights(self) -> dict[str, torch.Tensor]:
        """The language model's current weights, on the CPU."""

    def state(self) -> dict[str, torch.Tensor]:
        """The optimiser's state as named tensors."""

    def restore(self, weights: dict[str, torch.Tensor], state: dict[str, torch.Tensor], updates: int) -> None:
        """Continues from given weights and optimiser state after ``updates`` optimiser steps."""

    def close(self) -> None:
        """Frees what the trainer holds."""


class TorchTrainer:
    """Rollout and update in this process."""

    def __init__(self, task: RlTask):
        self.task, self.config = task, task.config
        self.policy = load_policy(task.policy)
        self.reference = frozen_copy(self.policy) if self.config.kl_weight > 0 else None
        self.contexts = task.load_contexts()
        self.reward = task.load_reward(self.policy.table)
        self.engine = engine_of(self.config, self.policy)
        self.optimizer = make_optimizer(self.policy, self.config)
        self.updates = 0

    def step(self, number: int) -> dict[str, float]:
        if self.engine.version != self.updates:  # an engine may hold a copy of the weights
            self.engine.load_weights(self.policy.model.state_dict(), self.updates)
        rows = contexts_of_step(len(self.contexts), self.config, self.task.seed, number)
        episodes = self.contexts.take(rows)
        batch, stats = rollout_groups(
            episodes, self.engine, self.reward, self.config, step_seed(self.task.seed, number)
        )
        return {**{name: float(values.mean()) for name, values in stats.items()}, **self._update(batch)}

    def _update(self, batch: GroupBatch) -> dict[str, float]:
        """All optimiser steps of one rollout. Metrics are means over the steps."""
        rows: list[dict[str, float]] = []
        for part in minibatches(len(batch), self.config, self.task.seed, self.updates):
            step = Accumulated(self.policy, batch.take(part), self.config)
            for piece in step.passes():
                step.add(group_forward(self.policy, piece, self.config, self.reference)).backward()
            metrics = step.apply(self.optimizer, self.updates, first=not rows)
            self.updates += 1
            rows.append(metrics)
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def weights(self) -> dict[str, torch.Tensor]:
        return model_weights(self.policy)

    def state(self) -> dict[str, torch.Tensor]:
        return optimizer_tensors(self.optimizer)

    def restore(self, weights: dict[str, torch.Tensor], state: dict[str, torch.Tensor], updates: int) -> None:
        self.policy.model.load_state_dict(weights, strict=False)
        restore_optimizer(self.optimizer, state)
        self.updates = updates
        self.engine.version = -1  # the next rollout pushes these weights, whatever the engine had

    def close(self) -> None:
        close_engine(self.engine)


def frozen_copy(policy: Policy) -> Policy:
    """The same policy without gradients: the reference of a KL term."""
    twin = copy.deepcopy(policy)
    twin.requires_grad_(False)
    return twin.eval()


def model_weights(policy: Policy) -> dict[str, torch.Tensor]:
    """State dict on the CPU, tied weights once (under their first name)."""
    seen: dict[int, str] = {}
    out = {}
    for name, value in policy.model.state_dict().items():
        if value.data_ptr() in seen and value.numel():
            continue
        seen[value.data_ptr()] = name
        out[name] = value.detach().cpu().clone()
    return out


def make_trainer(task: RlTask) -> Trainer:
    """The backend that the config names."""
    if task.config.backend == "torch":
        return TorchTrainer(task)
    if task.config.backend == "rllib":
        from sidgym.agents.rllib import RllibTrainer

        return RllibTrainer(task)
    raise ValueError(f"unknown rl.backend {task.config.backend!r}; known: rllib, torch")


def train_rl(
    task: RlTask,
    valid: Episodes,
    directory: Path,
    log: Callable[[int | None], MetricsLog],
    on_progress: Progress | None = None,
) -> Policy:
    """Runs the whole stage in ``directory``, going on from its newest checkpoint if it holds one; the kept policy.

    The weights that validate best by ``config.select_by`` are kept ("last" keeps the final ones). ``log(step)`` opens
    the metrics log, told from which step a resumed run goes on (None for a fresh one).
    """
    config = task.config
    judge = load_policy(task.policy)
    reward = load_reward(task, judge.table, config.rewards)
    trainer = make_trainer(task)
    try:
        start, best, monitor = _resume(trainer, directory)
        with log(start or None) as metrics:
            if start == 0:
                best = _judge(trainer, judge, valid, reward, config, 0, best, monitor, directory, metrics)
                _checkpoint(trainer, directory, 0, best, monitor)
            for number in range(start, config.steps):
                figures = trainer.step(number)
                done = number + 1
                metrics.log(figures, done)
                if done % config.eval_every == 0 or done == config.steps:
                    best = _judge(trainer, judge, valid, reward, config, done, best, monitor, directory, metrics)
                if done % config.checkpoint_every == 0 or done == config.steps:
                    _checkpoint(trainer, directory, done, best, monitor)
                if on_progress:
                    on_progress(
                        done,
                        config.steps,
                        f"reward {round(figures['reward'], 3) + 0.0:.3f}, hits {figures['rollout/hit']:.2f}",
                    )
        for warning in closing_warnings(read_metrics(metrics.path)):
            warn(warning)
        kept = trainer.weights() if config.select_by == "last" else load_training(_best(directory, best))[0]
    finally:
        trainer.close()
    judge.model.load_state_dict(kept, strict=False)
    return judge.eval()


def validate(
    policy: Policy, valid: Episodes, reward: RewardSum, config: RlConfig
) -> tuple[dict[str, float], np.ndarray]:
    """Figures on the validation contexts, and the NDCG@10 (B,) of each.

    The figures are HR@10, NDCG@10, legal mass and the reward as ``validation_reward`` defines it.
    """
    contexts = valid.take(slice(0, config.eval_users or None))
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
        save_training(_best(directory, best), weights, best)
    return best


def _best(directory: Path, best: dict[str, Any]) -> Path:
    return directory / f"best-{best['step']:06d}"


def warn(text: str) -> None:
    """One line for whoever watches the run; the same stands in its log and report."""
    print(text, file=sys.stderr, flush=True)


def _checkpoint(trainer: Trainer, directory: Path, step: int, best: dict[str, Any], monitor: HackingMonitor) -> None:
    """Writes checkpoint ``step``, then removes what it supersedes: a kill at any point leaves a usable one."""
    weights = {f"model/{name}": value for name, value in trainer.weights().items()}
    state = {f"optimizer/{name}": value for name, value in trainer.state().items()}
    position = {"step": step, "updates": trainer.updates, "best": best, "audit": monitor.state()}
    save_training(directory / f"checkpoint-{step:06d}", {**weights, **state}, position)
    for old in checkpoints(directory)[:-1]:
        shutil.rmtree(old)
    for old in directory.glob("best-*"):
        if best.get("step") is None or old != _best(directory, best):
            shutil.rmtree(old)


def checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = (path for path in directory.glob("checkpoint-*") if path.suffix not in (".writing", ".old"))
    return sorted(path for path in found if (path / "training.json").is_file())


def _resume(trainer: Trainer, directory: Path) -> tuple[int, dict[str, Any], HackingMonitor]:
    """Puts the trainer where the newest checkpoint stands: iterations done, the best so far, what the audit knows."""
    found = checkpoints(directory)
    if not found:
        return 0, {"value": None}, HackingMonitor()
    tensors, position = load_training(found[-1])
    pick = {
        kind: {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}
        for kind in ("model/", "optimizer/")
    }
    trainer.restore(pick["model/"], pick["optimizer/"], position["updates"])
    return int(position["step"]), position["best"], HackingMonitor.restored(position.get("audit"))
