"""Supervised warm-up: the loop around steps, validation by NDCG@10, early stopping, and resumable checkpoints.

By default it learns next-SID prediction, every position of a history supervised, by next-token cross-entropy over the
whole vocabulary (the papers' choice), so that the policy also learns what a legal SID looks like when nothing
constrains it. ``SftConfig`` adds tasks over text and ways to train. Left out: what is learned from (``sft_feeds``,
``tasks``) and what of the policy learns (``sft_learner``).
"""

import contextlib
import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.agents.audit import HackingMonitor
from sidgym.agents.checkpoint import CheckpointError, load_training, read_position, save_training
from sidgym.agents.config import PolicyConfig, SftConfig
from sidgym.agents.evaluate import rank_contexts
from sidgym.agents.literal import text_pieces
from sidgym.agents.mixture import Mixture, check_sft, is_packed, seen_table
from sidgym.agents.policy import Policy, position_limit
from sidgym.agents.recovery import best_path, checkpoints, resume, save_checkpoint, tidy
from sidgym.agents.sft_feeds import ExampleFeed, Feed, HistoryFeed, history_loss
from sidgym.agents.sft_learner import Learner, Tensors
from sidgym.agents.tasks import windows
from sidgym.agents.templates import Renderer, make_template
from sidgym.envs.logged_pages import LoggedPages
from sidgym.envs.metrics import rank_metrics
from sidgym.envs.records import Catalogue, Episodes, Sequences

__all__ = ["SftResult", "resumed_step", "sft_loss", "train_sft", "validate", "windows"]

Progress = Callable[[int, int, str], None]
Figures = dict[str, float]

sft_loss = history_loss


@dataclass
class SftResult:
    """What training did: one entry a validation, which is an epoch unless ``eval_every`` says otherwise."""

    history: list[Figures] = field(default_factory=list)
    best_epoch: int = 0
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)  # task -> examples, supervised tokens

    def table(self) -> str:
        """How much of each task was really learned from, as text."""
        counts = np.array(list(self.seen.values())).reshape(-1, 2)
        return seen_table(list(self.seen), counts[:, 0], counts[:, 1])


def train_sft(
    policy: Policy,
    sequences: Sequences,
    valid: Episodes,
    config: SftConfig,
    history: int,
    seed: int,
    on_progress: Progress | None = None,
    on_metrics: Callable[[Figures], None] | None = None,
    catalogue: Catalogue | None = None,
    directory: Path | None = None,
    pages: LoggedPages | None = None,
) -> SftResult:
    """Trains ``policy`` in place and leaves it with the weights of the best validation by NDCG@10.

    Cosine schedule with linear warm-up over ``config.epochs``; stops after ``config.patience`` validations without a
    better one. ``history`` is the number of items T that a prompt may hold; ``catalogue`` is what tasks over text read.
    ``pages`` are those of ``sequences``, for tasks that read them; in packed passes of a user's choices those on
    them alone are learned, so fewer than all restrict training to these (``rsft``).
    With ``config.checkpoint_every`` the run goes on from the newest checkpoint in ``directory`` and ends as if it had
    never stopped; figures that were reported before are not reported again.

    Wherever the policy is, it is moved to ``config.device``, which is the CPU by default, trained there, and moved
    back; it keeps the template ``config.template``, whichever it had. Raises ``FloatingPointError`` on a loss that is
    not finite.
    """
    home, away = policy.device, torch.device(config.device)
    if home.type != away.type:
        policy.to(away)
    if policy.template != config.template:
        policy.use_template(config.template)
    feed = make_feed(policy, sequences, config, history, seed, catalogue, pages)
    run = _Run(policy, feed, valid, config, seed, directory if config.checkpoint_every else None)
    devices = [policy.device.index or 0] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        run.train(on_progress, on_metrics)
    if home.type != away.type:
        policy.to(home)
    policy.eval()
    return run.result


def check_training(config: SftConfig, policy: PolicyConfig) -> None:
    """Refuses by ``ValueError`` what this machine or the policy's checkpoint lacks, before anything is built for it."""
    if config.template == "chat" and not policy.path:
        raise ValueError(
            "sft.template = 'chat' needs a checkpoint with a chat template, which a fresh model cannot have: set "
            "policy.path to an instruct checkpoint, or sft.template = 'plain'"
        )
    if config.template == "chat" and Path(policy.path).is_dir():
        from transformers import AutoTokenizer

        make_template(AutoTokenizer.from_pretrained(policy.path, local_files_only=True), "chat")
    if config.lora_rank and importlib.util.find_spec("peft") is None:
        raise ValueError("sft.lora_rank needs peft: pip install 'sidgym[lora]', or set it to 0")
    if torch.device(config.device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"sft.device = {config.device!r}, and torch finds no GPU here: use cpu")


def make_feed(
    policy: Policy,
    sequences: Sequences,
    config: SftConfig,
    history: int,
    seed: int,
    catalogue: Catalogue | None = None,
    pages: LoggedPages | None = None,
) -> Feed:
    """What ``config`` says is learned from; notes on the files that were read go to stderr. Raises what ``check_sft``
    does."""
    check_sft(config, policy.merges)
    if is_packed(config, policy.merges):
        most = config.max_text_tokens
        mixture = Mixture.of(
            config, sequences, catalogue, history, seed, pages, lambda text: text_pieces(policy.tokenizer, text, most)
        )
        for note in mixture.notes:
            print(note, file=sys.stderr, flush=True)
        return ExampleFeed(mixture, Renderer.of(policy, most), config, seed, position_limit(policy.model))
    return HistoryFeed(sequences, config, history, seed, policy.levels)


def resumed_step(directory: Path) -> int | None:
    """The figures that a run would go on behind, by their number in the log; None where it begins."""
    tidy(directory)
    for path in reversed(checkpoints(directory)):
        with contextlib.suppress(CheckpointError):  # ``resume`` says what is wrong with it, and takes the one before
            history = read_position(path)["best"]["history"]
            return log_step(history[-1]) if history else 0
    return None


def log_step(figures: Figures) -> int:
    """The number under which figures are logged."""
    return int(figures.get("step", figures["epoch"]))


class _Run:
    """One training: where it stands, and what it needs to go on. What ``recovery`` calls a trainer."""

    def __init__(
        self, policy: Policy, feed: Feed, valid: Episodes, config: SftConfig, seed: int, directory: Path | None
    ):
        self.policy, self.feed, self.valid, self.config = policy, feed, valid, config
        self.seed, self.directory = seed, directory
        self.learner = Learner(policy, config, seed)
        self.result = SftResult()
        self.best: dict[str, Any] = {"value": None}
        self.best_weights: Tensors | None = None
        self.updates, self.epoch, self.place = 0, 0, 0  # optimiser steps; the epoch and how many of them were in it
        self.loss_sum, self.tokens = 0.0, 0  # since the last validation
        self.seen = np.zeros((len(feed.names), 2), dtype=np.int64)
        self.streams: Tensors = {}  # random streams to go on with
        self.stopped = False

    def train(self, on_progress: Progress | None, on_metrics: Callable[[Figures], None] | None) -> None:
        if self.directory is not None:
            self._resume(self.directory)
        for epoch in range(self.epoch, self.config.epochs):
            batches, self.epoch = self.feed.epoch(epoch), epoch
            self._seed_dropout()
            for batch in batches[self.place :]:
                if on_progress:
                    on_progress(self.updates, self.feed.steps, f"epoch {epoch + 1}")
                self._step(batch)
                if self.config.eval_every and self.updates % self.config.eval_every == 0:
                    self._judge(on_metrics)
                if self.stopped:
                    break
                if self.directory is not None and self.updates % self.config.checkpoint_every == 0:
                    self._save(self.directory)
            if not self.config.eval_every:
                self._judge(on_metrics)
            if self.stopped:
                break
            self.place = 0
        if self.config.eval_every and self.tokens and not self.stopped:
            self._judge(on_metrics)
        self._keep_best()

    def _seed_dropout(self) -> None:
        """Dropout's stream is the epoch's own; a run that goes on inside an epoch goes on with what was left of it."""
        torch.manual_seed(int(np.random.SeedSequence([self.seed, self.epoch, 1]).generate_state(1)[0]))
        if self.streams:
            torch.set_rng_state(self.streams.pop("rng/cpu"))
            if "rng/cuda" in self.streams:
                torch.cuda.set_rng_state(self.streams.pop("rng/cuda"), self.policy.device)

    def _step(self, batch: Any) -> None:
        self.learner.begin(self.updates)
        student, feed = self.learner.student, self.feed
        student.train()
        examples, tokens = feed.counts(batch)
        losses = [lambda part=part: feed.loss(student, part) for part in feed.parts(batch)]
        rate = self.config.lr * _schedule(self.updates, feed.steps, self.config.warmup_steps)
        since = self.updates - self.config.token_warmup_steps
        if self.config.token_warmup_steps and since >= 0 and not self.config.frozen:  # a new optimiser warms up anew
            rate = min(rate, self.config.lr * (since + 1) / max(self.config.warmup_steps, 1))
        try:
            self.loss_sum += self.learner.step(losses, int(tokens.sum()), rate)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} at step {self.place} of epoch {self.epoch + 1}") from None
        self.tokens += int(tokens.sum())
        self.seen += np.stack([examples, tokens], axis=1)
        self.updates, self.place = self.updates + 1, self.place + 1

    def _judge(self, on_metrics: Callable[[Figures], None] | None) -> None:
        """Validates; keeps the weights if they are the best, and says when to stop."""
        policy = self.learner.settle()
        loss = self.loss_sum / max(self.tokens, 1)
        figures = {"epoch": self.epoch + 1, "train_loss": loss, **validate(policy, self.valid, self.config)}
        if self.config.eval_every:
            figures["step"] = self.updates
        if isinstance(self.feed, ExampleFeed):
            for name, (examples, tokens) in zip(self.feed.names, self.seen.tolist()):
                figures |= {f"examples/{name}": examples, f"tokens/{name}": tokens}
        self.loss_sum, self.tokens = 0.0, 0
        history = self.result.history
        history.append(figures)
        if on_metrics:
            on_metrics(figures)
        if self.best["value"] is None or figures["eval/ndcg@10"] > self.best["value"]:
            self.best = {"value": figures["eval/ndcg@10"], "step": self.updates, "validation": len(history)}
            self.result.best_epoch = self.epoch + 1
            weights = {name: value.detach().clone() for name, value in policy.model.state_dict().items()}
            if self.directory is None:
                self.best_weights = weights
            else:
                save_training(best_path(self.directory, self.best), _on_cpu(weights), {"step": self.updates})
        self.stopped = len(history) - self.best["validation"] >= self.config.patience

    def _keep_best(self) -> None:
        """Leaves the policy with the best weights."""
        if self.directory is not None and self.best["value"] is not None:
            self.best_weights = load_training(best_path(self.directory, self.best))[0]
        if self.best_weights is not None:
            self.policy.model.load_state_dict(self.best_weights)
        self.learner.end()
        self.result.seen = dict(zip(self.feed.names, map(tuple, self.seen.tolist())))  # type: ignore[arg-type]

    def _save(self, directory: Path) -> None:
        at = {"epoch": self.epoch, "place": self.place, "loss_sum": self.loss_sum, "tokens": self.tokens}
        known: dict[str, Any] = {**self.best, "at": {**at, "seen": self.seen.tolist()}, "history": self.result.history}
        known["best_epoch"] = self.result.best_epoch
        save_checkpoint(self, directory, self.updates, known, HackingMonitor(), self.policy.table.content_hash())

    def _resume(self, directory: Path) -> None:
        _, known, _ = resume(self, directory, self.policy.table.content_hash())
        if not self.updates:
            return
        at, self.result.history = known["at"], known["history"]
        self.epoch, self.place, self.loss_sum = at["epoch"], at["place"], at["loss_sum"]
        self.tokens, self.seen = at["tokens"], np.array(at["seen"])
        self.result.best_epoch = known["best_epoch"]
        self.best = {name: known[name] for name in ("value", "step", "validation") if name in known}

    def weights(self) -> Tensors:
        return self.learner.weights()

    def state(self) -> Tensors:
        streams = {"rng/cpu": torch.get_rng_state()}
        if self.policy.device.type == "cuda":
            streams["rng/cuda"] = torch.cuda.get_rng_state(self.policy.device)
        return {**self.learner.state(), **streams}

    def restore(self, weights: Tensors, state: Tensors, updates: int) -> None:
        self.streams = {name: value for name, value in state.items() if name.startswith("rng/")}
        self.updates = updates
        self.learner.restore(weights, {n: v for n, v in state.items() if n not in self.streams}, updates)


def _on_cpu(weights: Tensors) -> Tensors:
    return {name: value.cpu() for name, value in weights.items()}


def validate(policy: Policy, valid: Episodes, config: SftConfig) -> Figures:
    """HR@10 and NDCG@10 of ``config.eval_users`` validation contexts, beam of 10."""
    contexts = valid.spread(config.eval_users)
    ranked = rank_contexts(policy, contexts, beam=10, batch=64)
    figures = rank_metrics(ranked.items, contexts.target, (10,))
    return {f"eval/{name}": float(values.mean()) for name, values in figures.items()}


def _schedule(step: int, total: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(total - warmup, 1))))
