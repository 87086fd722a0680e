"""What ``scaling`` measures with: the demonstration's task untrained, a stopwatch, and counts of a real iteration.

The task has the demonstration's data, codes, reward, model shape and RL settings, but random weights and a preference
model of one epoch: what is measured is time and equality, never quality. Left out: processes and clocks (``scaling``).
"""

import math
import pickle
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from sidgym.agents.checkpoint import save_policy
from sidgym.agents.config import PolicyConfig, RewardConfig, RlConfig
from sidgym.agents.engine import make_engine
from sidgym.agents.engine_torch import TorchEngine
from sidgym.agents.policy import Policy, build_policy
from sidgym.agents.rl import RlTask, TorchTrainer, frozen_copy, model_weights, save_episodes
from sidgym.agents.update import GroupBatch, apply_gradients, contexts_of_step, group_forward, rollout_groups, step_seed
from sidgym.benchmarks.contenders import random_codes
from sidgym.benchmarks.cost_model import SMALL, Decoder, Workload, activation_bytes, forward_flops
from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.preference import LoggedPreference
from sidgym.envs.records import Episodes
from sidgym.envs.rewards import RewardContext, RewardSum
from sidgym.envs.splits import split, training_log
from sidgym.sid.config import SidConfig
from sidgym.sid.embed import make_embedder
from sidgym.sid.table import SidTable
from sidgym.sid.tokenizers import build_table

INSIDE = ("rollout", "reward", "forward", "backward", "step")
"""What an iteration is for; all else is overhead."""
PAPER = PolicyConfig(
    architecture="qwen2", hidden_size=SMALL.hidden, intermediate_size=SMALL.inner, layers=SMALL.layers,
    heads=SMALL.heads, kv_heads=SMALL.kv_heads,
)  # fmt: skip
"""Qwen2.5-0.5B's shape, but for the vocabulary, of which an iteration reads only the codes."""

Place = tuple[Any, str]
"""A module or class, and the name under which it holds a function."""


def demo_settings() -> dict[str, Any]:
    """The demonstration's configuration, as it stands in the file."""
    path = Path(__file__).resolve().parents[1] / "launch" / "configs" / "demo.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def demo_rl(**changes: Any) -> RlConfig:
    """The demonstration's main arm, with ``changes``."""
    section = demo_settings()["rl"]
    rewards = tuple(RewardConfig(**term) for term in section["rewards"])
    return replace(RlConfig(**{**section, "rewards": rewards}), **changes)


def write_task(folder: Path, seed: int) -> RlTask:
    """The task, with everything that it reads in ``folder``."""
    settings = demo_settings()
    data, sid = DataConfig(**settings["data"]), SidConfig(**settings["sid"])
    dataset = load_dataset(data, seed)
    splits = split(dataset, data, seed)
    log = training_log(dataset.interactions, splits)
    texts = dataset.catalogue.texts()
    embeddings = make_embedder(sid, seed).fit(texts).embed(texts)
    np.save(folder / "embeddings.npy", embeddings)
    np.save(folder / "popularity.npy", np.bincount(log.positives().item, minlength=len(dataset.catalogue)))
    save_episodes(folder / "contexts.npz", splits.rl)
    table = build_table(embeddings, dataset.catalogue.ids, sid, seed)
    save_policy(folder / "policy", build_policy(PolicyConfig(**settings.get("policy", {})), table, seed))
    users, history = splits.train_users, data.history
    LoggedPreference.fit(log, users, embeddings, history=history, seed=seed, epochs=1).save(folder / "preference")
    return RlTask(
        policy=str(folder / "policy"),
        contexts=str(folder / "contexts.npz"),
        seed=seed,
        config=demo_rl(),
        embeddings=str(folder / "embeddings.npy"),
        preference=str(folder / "preference"),
        popularity=str(folder / "popularity.npy"),
    )


def with_policy(task: RlTask, folder: Path, config: PolicyConfig) -> RlTask:
    """The same task from a policy of another shape, with random weights."""
    save_policy(folder, build_policy(config, SidTable.load(Path(task.policy) / "sid"), task.seed))
    return replace(task, policy=str(folder))


def places_of(function: Callable[..., Any]) -> list[Place]:
    """Every name under which a loaded module of this package holds ``function``."""
    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "sidgym"]
    return [(module, name) for module in modules for name, value in list(vars(module).items()) if value is function]


def inside_places() -> dict[str, Sequence[Place]]:
    """Where the functions of ``INSIDE`` are called from, in the modules that are loaded by now."""
    return {
        "rollout": [(TorchEngine, "rollout")],
        "reward": [(RewardSum, "score")],
        "forward": places_of(group_forward),
        "backward": [(torch.Tensor, "backward")],
        "step": places_of(apply_gradients),
    }


class Stopwatch:
    """Seconds spent in functions while it is entered; what one of them calls of the others is part of its own time."""

    def __init__(self, places: Mapping[str, Sequence[Place]], clock: Callable[[], float] = time.perf_counter):
        self.places, self.clock, self.inside = places, clock, False
        self.seconds = dict.fromkeys(places, 0.0)

    def __enter__(self) -> "Stopwatch":
        self.saved = [(owner, name, getattr(owner, name)) for places in self.places.values() for owner, name in places]
        for kind, places in self.places.items():
            for owner, name in places:
                setattr(owner, name, self._timed(kind, getattr(owner, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, function in self.saved:
            setattr(owner, name, function)

    def _timed(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.inside:
                return function(*arguments, **named)
            self.inside, start = True, self.clock()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[kind] += self.clock() - start
                self.inside = False

        return call


def share_outside(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Medians over iterations: ``share`` of an iteration that is none of ``INSIDE``, and milliseconds of each part.

    A row holds the seconds of every part and of the whole ``iteration``. ``RuntimeError`` where a part took no time:
    then it was not seen, and all of it would count as overhead.
    """
    unseen = [kind for kind in INSIDE if not all(row[kind] > 0 for row in rows)]
    if unseen:
        raise RuntimeError(f"nothing was timed as {', '.join(unseen)}: the function has moved; see inside_places")
    outside = np.array([row["iteration"] - sum(row[kind] for kind in INSIDE) for row in rows])
    whole = np.array([row["iteration"] for row in rows])
    figures = {f"{kind}_ms": 1e3 * float(np.median([row[kind] for row in rows])) for kind in ("iteration", *INSIDE)}
    return {"share": float(np.median(outside / whole)), **figures, "outside_ms": 1e3 * float(np.median(outside))}


def decoder_of(policy: Policy) -> Decoder:
    """The shape of a policy's model."""
    config = policy.model.config.get_text_config()
    return Decoder(
        config.model_type,
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        config.vocab_size,
        bool(config.tie_word_embeddings),
    )


def counted_flops(work: Callable[[], Any]) -> tuple[int, Any]:
    """Operations of the matrix products and attention in ``work``, and what it returns."""
    aten: Any = torch.ops.aten
    # The processor's own attention kernels, which the counter does not know.
    known = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        result = work()
    return counter.get_total_flops(), result


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


class Kept:
    """Bytes that forward passes keep for their backward pass while it is entered, weights excepted."""

    def __init__(self, policy: Policy):
        own = {weight.untyped_storage().data_ptr() for weight in policy.model.parameters()}
        self.sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                self.sizes[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        self.hooks: AbstractContextManager[Any] = torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept)

    def __enter__(self) -> "Kept":
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)

    @property
    def bytes(self) -> int:
        """All that is kept, each storage once."""
        return sum(self.sizes.values())


def demo_counts(task: RlTask) -> dict[str, Any]:
    """``counts`` of the first iteration of ``task``."""
    config = replace(task.config, kl_weight=0.0)  # or the trainer would hold a reference of its own
    trainer = TorchTrainer(replace(task, config=config))
    rows = contexts_of_step(len(trainer.contexts), config, task.seed, 0)
    return counts(trainer.policy, trainer.contexts.take(rows), trainer.reward, config, step_seed(task.seed, 0))


def paper_counts(seed: int) -> dict[str, Any]:
    """``counts`` of one of the contexts of the projection: 0.5B's shape, random histories, no code that is certain."""
    work, items = Workload(), 10_000
    sizes, rng = (math.ceil(items ** (1 / work.levels)),) * work.levels, np.random.default_rng(seed)
    table = SidTable(random_codes(items, sizes, rng), sizes, np.arange(items).astype(str))
    history = rng.integers(items, size=(1, (work.prompt - 1) // work.levels))
    episodes = Episodes(
        np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), history, rng.integers(items, size=(1, 1))
    )
    config = RlConfig(group_size=work.group)
    reward = RewardSum(config.rewards, RewardContext(table), work.group)
    return counts(build_policy(PAPER, table, seed), episodes, reward, config, seed)


def counts(policy: Policy, episodes: Episodes, reward: RewardSum, config: RlConfig, seed: int) -> dict[str, Any]:
    """Operations and bytes of one iteration on ``episodes``, counted while it runs, beside what ``cost_model`` says.

    A reference is read whatever the config says. The model counts every token as fed and every word's projections as
    computed: codes that are certain, shared prefixes and repeated words make the ratios smaller than 1.
    """
    reference = frozen_copy(policy)
    engine = make_engine(config.engine, policy, config.chunk, config.normalise)
    rollout_groups(episodes.take(slice(0, 1)), engine, reward, config, seed)  # the first pass checks itself
    rollout, (batch, figures) = counted_flops(lambda: rollout_groups(episodes, engine, reward, config, seed))
    prompts = 1 + policy.levels * (episodes.history >= 0).sum(axis=1)
    model, codes = decoder_of(policy), max(len(ids) for ids in policy.tokens.levels)
    with Kept(policy) as kept:
        forward, found = counted_flops(lambda: group_forward(policy, batch, config, reference))
    backward, _ = counted_flops(found.loss.backward)

    def formula(candidates: int) -> float:
        branches = candidates * (policy.levels - 1)
        return sum(forward_flops(model, int(prompt), branches, codes) for prompt in prompts)

    scored = config.group_size + (batch.targets.shape[1] if config.nll_weight > 0 else 0)
    once, again = formula(scored), formula(config.group_size)
    tokens = int(prompts.sum()) + len(batch) * scored * (policy.levels - 1)
    return {
        "contexts": len(batch),
        "mean_prompt_tokens": float(prompts.mean()),
        "levels": policy.levels,
        "weights": model.weights,
        "rollout_flops": rollout,
        "forward_flops": forward,
        "backward_flops": backward,
        "rollout_flops_over_formula": rollout / again,
        "forward_flops_over_formula": forward / (once + again),
        "backward_flops_over_formula": backward / (2 * once),
        "kept_bytes": kept.bytes,
        "kept_bytes_over_formula": kept.bytes / (tokens * activation_bytes(model, 4, False)),
        "weight_bytes": sum(value.nbytes for value in model_weights(policy).values()),
        "group_bytes": sum(getattr(batch, one.name).nbytes for one in fields(GroupBatch)) / len(batch),
        "reply_bytes": len(pickle.dumps((batch, figures), protocol=5)) / len(batch),
    }
