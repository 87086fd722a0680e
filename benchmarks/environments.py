"""How fast the environments step, alone and against Gymnasium's SyncVectorEnv, and what a larger catalogue costs.

    python benchmarks/environments.py [--quick] [--seeds 0] [--out FILE]

Every vector environment is compared with 1,024 scalar environments of the same id in a ``SyncVectorEnv``: the same
dynamics at a batch of one, in the same run, with actions drawn beforehand. Then ``NextItem-v0`` at 10 thousand, 1
million and 10 million items with the same contexts and SIDs of three levels of 256 codes. Medians over rounds in which
the contestants take turns. The last line printed is one JSON object with ``next_item_vs_sync``, ``session_vs_sync``
(ratios of steps a second) and ``step_10m_vs_10k`` (ratio of seconds a step).
"""

import argparse
import time
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from sidgym.benchmarks.script import main, random_codes
from sidgym.envs.records import Episodes
from sidgym.envs.registration import ENVIRONMENTS
from sidgym.sid.table import SidTable

NUM_ENVS, QUICK_ENVS = 1024, 128
CATALOGUES = {"10k": 10_000, "1m": 1_000_000, "10m": 10_000_000}
SIZES = (256, 256, 256)
CONTEXTS, HISTORY = 4096, 10
ACTIONS = 8
"""Batches of actions drawn before the clock starts."""


def random_actions(envs: Any, seed: int) -> list[np.ndarray]:
    """Batches of random actions."""
    envs.action_space.seed(seed)
    return [envs.action_space.sample() for _ in range(ACTIONS)]


def seconds(envs: Any, actions: list[np.ndarray], steps: int) -> float:
    """Seconds of one batched step, the mean over ``steps`` from a fresh start; where there is a mask, its first
    code."""
    observations, _ = envs.reset()
    start = time.perf_counter()
    for step in range(steps):
        masks = observations.get("action_mask")
        observations, *_ = envs.step(actions[step % len(actions)] if masks is None else masks.argmax(axis=1))
    return (time.perf_counter() - start) / steps


def against_sync(name: str, rounds: int, steps: int, seed: int, count: int) -> dict[str, float]:
    """Milliseconds of a step of ``count`` environments, native and in a ``SyncVectorEnv``, and their ratio."""
    native = gymnasium.make_vec(name, num_envs=count)
    scalar = [lambda: gymnasium.make(name, disable_env_checker=True).unwrapped] * count
    sync = SyncVectorEnv(scalar, autoreset_mode=AutoresetMode.SAME_STEP)
    actions = random_actions(native, seed)
    for envs in (native, sync):
        envs.reset(seed=seed)
        seconds(envs, actions, 2)
    pairs = np.array([(seconds(native, actions, steps), seconds(sync, actions, 3)) for _ in range(rounds)])
    fast, slow = np.median(pairs, axis=0)
    ratio = float(np.median(pairs[:, 1] / pairs[:, 0]))
    print(
        f"{name}: {1e3 * fast:.2f} ms a step of {count} environments ({count / fast:,.0f} steps a second), "
        f"SyncVectorEnv {1e3 * slow:.0f} ms ({count / slow:,.0f}): {ratio:.0f} times"
    )
    return {"native_ms": 1e3 * float(fast), "sync_ms": 1e3 * float(slow), "ratio": ratio}


def catalogue_env(items: int, seed: int, count: int) -> Any:
    """``count`` vectorised ``NextItem-v0`` over random distinct SIDs; the number of contexts does not grow."""
    rng = np.random.default_rng(seed)
    table = SidTable(random_codes(items, SIZES, rng), SIZES, np.arange(items).astype(str))
    numbers = np.arange(CONTEXTS)
    history = rng.integers(items, size=(CONTEXTS, HISTORY))
    episodes = Episodes(numbers, numbers, history, rng.integers(items, size=(CONTEXTS, 1)))
    return gymnasium.make_vec("SIDGym/NextItem-v0", num_envs=count, episodes=episodes, table=table)


def by_catalogue(rounds: int, steps: int, seed: int, count: int) -> dict[str, float]:
    """Milliseconds of a step at each size of the catalogue."""
    envs = {name: catalogue_env(items, seed, count) for name, items in CATALOGUES.items()}
    actions = {name: random_actions(env, seed) for name, env in envs.items()}
    for name, env in envs.items():
        env.reset(seed=seed)
        seconds(env, actions[name], steps)
    times = np.array([[seconds(env, actions[name], steps) for name, env in envs.items()] for _ in range(rounds)])
    for name, value in zip(envs, np.median(times, axis=0)):
        print(f"NextItem-v0 with {name} items: {1e3 * value:.2f} ms a step of {count} environments")
    figures = {f"step_ms_{name}": 1e3 * float(value) for name, value in zip(envs, np.median(times, axis=0))}
    return {**figures, "step_10m_vs_10k": float(np.median(times[:, -1] / times[:, 0]))}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All comparisons, for the first seed."""
    torch.set_num_threads(1)
    rounds, steps, count = (1, 20, QUICK_ENVS) if options.quick else (15, 50, NUM_ENVS)
    seed = options.seeds[0]
    names = {name: name.removeprefix("SIDGym/").removesuffix("-v0") for name in ENVIRONMENTS}
    figures = {short: against_sync(name, rounds, steps, seed, count) for name, short in names.items()}
    return {
        "num_envs": count,
        "rounds": rounds,
        "next_item_vs_sync": figures["NextItem"]["ratio"],
        "session_vs_sync": figures["Session"]["ratio"],
        "by_environment": figures,
        **by_catalogue(rounds, steps, seed, count),
    }


if __name__ == "__main__":
    main("environments", __doc__ or "", measure)
