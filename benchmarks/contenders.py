"""What ``throughput`` compares: the same work done by this package and in the usual order, on the same weights.

Usual is the order of MiniOneRec's released code: beams by ``generate`` under a prefix function, then every prompt
repeated G times for plain forward passes of the policy and of the reference. Here it reads the three codes only (the
released code adds a newline and an end token) and computes logits at those places only, which makes it faster than it
is there, and batches have the sizes that were fastest for it. Its rollout keeps each step's scores, since an engine
must return log-probabilities. Left out: clocks and tables (``throughput``).
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.agents.config import PolicyConfig, RewardConfig, RlConfig
from sidgym.agents.engine import Engine, make_engine
from sidgym.agents.objectives import OBJECTIVES, LossInputs, ObjectiveSpec
from sidgym.agents.policy import Policy, build_policy, prompt_tensors
from sidgym.agents.rl import frozen_copy
from sidgym.agents.update import GroupBatch, apply_gradients, group_loss, make_optimizer, rollout_groups
from sidgym.benchmarks.script import random_codes
from sidgym.envs.records import Episodes
from sidgym.envs.rewards import RewardContext, RewardSum
from sidgym.sid.table import SidTable

LEVELS = 3
MODEL = PolicyConfig(hidden_size=256, intermediate_size=768, layers=4, heads=4, kv_heads=2)
BEAMS = 32
"""Beams of a call of ``generate``: of 16, 32, 64, 128, 256, 512 those that took least time."""
SEQUENCES = 64
"""Sequences of a replicated micro-batch: of 32, 64, 128, 256 the one that took least time."""


@dataclass(frozen=True)
class Case:
    """Sizes of one comparison: B contexts, P prompt tokens (about), G candidates, V words (0: as many as needed).

    ``items`` have SIDs of three codes, each one of ``codes``.
    """

    contexts: int = 32
    prompt: int = 120
    group: int = 16
    vocabulary: int = 0
    items: int = 10_000
    codes: int = 256

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        return (self.codes,) * LEVELS

    @property
    def history(self) -> int:
        """Items of a history: a prompt is one token and three an item."""
        return max(1, round((self.prompt - 1) / LEVELS))

    @property
    def prompt_tokens(self) -> int:
        return 1 + self.history * LEVELS

    @property
    def limit(self) -> float:
        """Tokens that the usual order feeds over those that are needed: G * (P + L - 1) / (P + G * (L - 1))."""
        fed = LEVELS - 1
        return self.group * (self.prompt_tokens + fed) / (self.prompt_tokens + self.group * fed)


class Contest:
    """One case: a policy with random weights, random contexts, and the work to be timed as methods."""

    def __init__(self, case: Case, seed: int = 0):
        self.case, self.seed = case, seed
        rng = np.random.default_rng(seed)
        table = SidTable(random_codes(case.items, case.sizes, rng), case.sizes, np.arange(case.items).astype(str))
        self.policy = build_policy(MODEL, table, seed)
        if case.vocabulary:
            self.policy.model.resize_token_embeddings(case.vocabulary, mean_resizing=False)
        rows = np.arange(case.contexts)
        shape = (case.contexts, case.history)
        self.episodes = Episodes(
            rows, rows, rng.integers(case.items, size=shape), rng.integers(case.items, size=(len(rows), 1))
        )
        self.config = RlConfig(group_size=case.group, chunk=case.contexts, kl_weight=1e-3)
        terms = (RewardConfig("rule"), RewardConfig("rank"))
        self.reward = RewardSum(terms, RewardContext(table), case.group)  # type: ignore[arg-type]

    @cached_property
    def reference(self) -> Policy:
        return frozen_copy(self.policy)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.policy, self.config)

    def engine(self, name: str, normalise: str = "trie", chunk: int = 0) -> Engine:
        """An engine over the policy, all contexts a call unless ``chunk`` says how many."""
        return make_engine(name, self.policy, chunk or self.case.contexts, normalise)

    @property
    def best_chunk(self) -> int:
        """Contexts a call of ``generate`` that take least time."""
        return max(1, BEAMS // self.case.group)

    @cached_property
    def batch(self) -> GroupBatch:
        """Groups of the built-in engine with random advantages, so that every candidate has a gradient."""
        found, _ = rollout_groups(self.episodes, self.engine("torch"), self.reward, self.config, 0)
        noise = np.random.default_rng(self.seed).normal(size=found.advantage.shape).astype(np.float32)
        return replace(found, advantage=noise)

    def packed_update(self, reference: Policy | None = None) -> None:
        """Gradients of one update, every group packed."""
        self.policy.model.zero_grad(set_to_none=True)
        group_loss(self.policy, self.batch, self.config_for(reference), reference)[0].backward()

    def replicated_update(self, normalise: str = "trie", reference: Policy | None = None) -> None:
        """The same gradients (``trie``), or MiniOneRec's (``vocab``), from G copies of every prompt."""
        replicated_backward(self.policy, self.batch, self.config_for(reference), normalise, reference)

    def config_for(self, reference: Policy | None) -> RlConfig:
        return self.config if reference is not None else replace(self.config, kl_weight=0.0)

    def iteration(self, usual: bool) -> Callable[[], None]:
        """One whole iteration: rollout, reward, reference, update, optimiser step."""
        engine = self.engine("hf", "vocab", self.best_chunk) if usual else self.engine("torch")
        engine.rollout(self.episodes.take(slice(0, 1)), 2)  # what it builds once is built
        self.policy.model.zero_grad(set_to_none=True)

        def run() -> None:
            batch, _ = rollout_groups(self.episodes, engine, self.reward, self.config, 0)
            if usual:
                replicated_backward(self.policy, batch, self.config, "vocab", self.reference)
            else:
                self.policy.model.zero_grad(set_to_none=True)
                group_loss(self.policy, batch, self.config, self.reference)[0].backward()
            apply_gradients(self.policy, self.optimizer, replace(self.config, lr=1e-9), 0)

        return run


def replicated_backward(
    policy: Policy, batch: GroupBatch, config: RlConfig, normalise: str, reference: Policy | None
) -> None:
    """Leaves the gradients of the objective in ``policy``; micro-batches of whole groups."""
    policy.model.zero_grad(set_to_none=True)
    rows = max(1, SEQUENCES // batch.codes.shape[1])
    for start in range(0, len(batch), rows):
        part = batch.take(slice(start, start + rows))
        ref_logp = None
        if reference is not None:
            with torch.no_grad():
                ref_logp = replicated_logp(reference, part, normalise)
        logp = replicated_logp(policy, part, normalise)
        old, advantage, valid = (torch.from_numpy(a) for a in (part.old_logp, part.advantage, part.valid))
        # Trained once a rollout, the usual order takes the ratio to itself and needs no old log-probability.
        inputs = LossInputs(
            logp=logp,
            old_logp=logp.detach() if normalise == "vocab" else old,
            advantage=advantage,
            valid=valid,
            ref_logp=ref_logp,
            target_logp=None,
            target_valid=None,
        )
        loss, _ = OBJECTIVES[config.objective](inputs, ObjectiveSpec(config.clip, config.kl_weight, config.nll_weight))
        (loss * (len(part) / len(batch))).backward()


def replicated_logp(policy: Policy, batch: GroupBatch, normalise: str) -> torch.Tensor:
    """Log-probabilities (B, G, L) by a plain forward pass of G copies of every prompt."""
    size, group, levels = batch.codes.shape
    codes = torch.from_numpy(batch.codes).clamp_min(0)
    ids, mask = prompt_tensors(policy, batch.history)
    read = torch.stack([policy.level_ids(level)[codes[..., level]] for level in range(levels - 1)], dim=-1)
    ids = torch.cat([ids.repeat_interleave(group, 0), read.flatten(0, 1)], dim=1)
    mask = torch.cat([mask.repeat_interleave(group, 0), torch.ones(size * group, levels - 1, dtype=torch.bool)], dim=1)
    hidden = policy.hidden(
        input_ids=ids,
        attention_mask=None if bool(mask.all()) else mask.long(),
        position_ids=(mask.long().cumsum(-1) - 1).clamp_min(0),
        use_cache=False,
    )[:, -levels:].unflatten(0, (size, group))
    nodes = policy.trie.path(codes)
    out = []
    for level in range(levels):
        if normalise == "vocab":
            # The released trainer takes the softmax over all words and does not mask.
            table = torch.log_softmax(policy.logits(hidden[:, :, level]), dim=-1)
            chosen = policy.level_ids(level)[codes[..., level]]
        else:
            table, chosen = policy.level_logp(hidden[:, :, level], nodes[..., level], level), codes[..., level]
        out.append(table.gather(-1, chosen[..., None])[..., 0])
    return torch.stack(out, dim=-1)


LOOK_UPS = ("masked", "children_mask", "step", "reaches_one", "leaf_of", "items_of")
"""Methods of a trie that a rollout calls, masking of logits included."""


def peak_bytes(work: Callable[[], object]) -> int | None:
    """Most resident memory above what there was before, in bytes; None where the system does not tell (not Linux)."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts again
    except OSError:
        return None
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


class Timer:
    """Seconds spent in some methods of a class while it is entered."""

    def __init__(self, clock: Callable[[], float], kind: type, names: Sequence[str]):
        self.clock, self.kind, self.names = clock, kind, names
        self.seconds, self.inside = 0.0, False

    def __enter__(self) -> "Timer":
        self.saved = {name: getattr(self.kind, name) for name in self.names}
        for name, method in self.saved.items():
            setattr(self.kind, name, self._timed(method))
        return self

    def __exit__(self, *_: object) -> None:
        for name, method in self.saved.items():
            setattr(self.kind, name, method)

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.inside:  # one look-up may use another
                return method(*arguments, **named)
            self.inside = True
            start = self.clock()
            try:
                return method(*arguments, **named)
            finally:
                self.seconds += self.clock() - start
                self.inside = False

        return call


def in_own_process(function: str, *arguments: Any) -> Any:
    """What ``throughput.function(*arguments)`` returns in a fresh process: the last line that it prints, JSON."""
    code = f"import json, sidgym.benchmarks.throughput as t; print(json.dumps(t.{function}(*{arguments!r})))"
    root = str(Path(__file__).resolve().parents[1])
    paths = [root] if (Path(root) / "sidgym").is_dir() else []
    known = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths + ([known] if known else []))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{function} failed in its own process:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
