"""A small ``NextToken-v0`` whose best possible agent is known, for agents that were written elsewhere.

The reward is the simulator's own preference, and every context's items are few enough to try them all, so random play,
the best single item and the oracle are exact numbers, and an agent's value is computed over all contexts without noise.
Left out: the agents (``next_token_sb3``, ``next_token_rllib``) and held-out users: what is tested is whether an agent
can learn in the environment.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np
import torch

import sidgym.envs  # noqa: F401 - registers the environments
from sidgym.benchmarks.script import main
from sidgym.envs.logged import Store, demonstration_store
from sidgym.envs.oracle import percent_of_oracle

ENVIRONMENT_ID = "SIDGym/NextToken-v0"
CONTEXTS, ITEMS, HISTORY = 64, 60, 4
Act = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Observations of many contexts (B, ...) to one code each, (B,)."""


@dataclass(frozen=True)
class Scale:
    """Mean preference over all contexts of ..."""

    random: float  # an item at random
    constant: float  # the one item that is best on average
    oracle: float  # the best item of each context


@functools.lru_cache(maxsize=8)
def small_store(seed: int = 0) -> Store:
    """A simulated store of 60 items and 64 contexts with different histories; a function of the seed."""
    store = demonstration_store(users=100, items=ITEMS, history=HISTORY, seed=seed)
    _, first = np.unique(store.episodes.history, axis=0, return_index=True)
    rows = np.random.default_rng(seed).choice(np.sort(first), CONTEXTS, replace=False)
    return Store(store.episodes.take(rows), store.table, store.context)


def make_env(seed: int = 0, num_envs: int = 0) -> Any:
    """The environment on ``small_store(seed)``: a scalar one, or a vector of ``num_envs``."""
    store = small_store(seed)
    arguments: dict[str, Any] = {"episodes": store.episodes, "table": store.table, "context": store.context}
    arguments["reward"] = "true_preference"
    if num_envs:
        return gymnasium.make_vec(ENVIRONMENT_ID, num_envs=num_envs, **arguments)
    return gymnasium.make(ENVIRONMENT_ID, **arguments)


def scale(seed: int = 0) -> Scale:
    """Random play, the best constant item and the oracle on ``small_store(seed)``."""
    store = small_store(seed)
    assert store.context.truth is not None
    assert store.episodes.event is not None
    every = np.tile(np.arange(store.table.num_items), (len(store.episodes), 1))
    values = store.context.truth.preference(store.episodes.event, every)
    return Scale(float(values.mean()), float(values.mean(axis=0).max()), float(values.max(axis=1).mean()))


def play(act: Act, seed: int = 0) -> dict[str, float]:
    """An agent's exact mean reward over all contexts, and how far that is on the way from random to the oracle."""
    env = make_env(seed, CONTEXTS)
    observations, _ = env.reset(options={"row": np.arange(CONTEXTS)})
    for _ in range(small_store(seed).table.levels):
        observations, rewards, *_ = env.step(act(observations))
    marks = scale(seed)
    value = float(rewards.mean())
    return {"value": value, "percent_of_oracle": percent_of_oracle(value, marks.random, marks.oracle)}


def report(
    script: str,
    agent: str,
    train: Callable[[int, int], dict[str, float]],
    steps: int,
    quick_steps: int,
    packages: Sequence[str],
) -> None:
    """The command line of an agent's script: ``train(seed, steps)`` for each seed, beside the marks of its scale."""

    def measure(options: Any) -> dict[str, Any]:
        torch.set_num_threads(1)
        runs = []
        for seed in options.seeds:
            count = quick_steps if options.quick else steps
            runs.append({"seed": seed, "steps": count, **train(seed, count), **asdict(scale(seed))})
            print(f"{agent}, seed {seed}: {runs[-1]['percent_of_oracle']:.1f} % of the way from random to the oracle")
        return {
            "agent": agent,
            "script": script,
            "runs": runs,
            "percent_of_oracle": min(run["percent_of_oracle"] for run in runs),
        }

    main(script, f"{agent} in {ENVIRONMENT_ID}", measure, (0, 1, 2), packages)
