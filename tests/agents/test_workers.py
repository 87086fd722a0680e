"""One worker and four workers, each a process of its own, give the same bits for every registered reward."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from toy import toy_policy

from sidgym.agents.checkpoint import save_policy
from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.agents.rl import RlTask, save_episodes
from sidgym.agents.rllib_parts import ChunkSampler, collect
from sidgym.agents.update import GroupBatch
from sidgym.envs.logged import demonstration_store
from sidgym.envs.preference import LoggedPreference
from sidgym.envs.rewards import REWARDS, Term, find_reward, required_mode
from sidgym.envs.simulator import SimulatorConfig, simulate

WORKERS = 4
ARGS = {"trl": {"function": "toy:trl_length"}, "verl": {"function": "toy:verl_match"}}
"""What a reward cannot do without."""

_samplers: dict[str, ChunkSampler] = {}


def answer(task: RlTask, request: dict):
    """What a worker does with a request; its sampler stays in the process."""
    if repr(task) not in _samplers:
        _samplers.clear()
        _samplers[repr(task)] = ChunkSampler(task)
    return _samplers[repr(task)].sample_remotely(**request)


@pytest.fixture(scope="module")
def pool() -> Iterator[list[ProcessPoolExecutor]]:
    context = multiprocessing.get_context("spawn")
    workers = [ProcessPoolExecutor(1, mp_context=context) for _ in range(WORKERS)]
    yield workers
    for worker in workers:
        worker.shutdown()


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> RlTask:
    """A run on a small simulated store that has everything that rewards may ask for."""
    folder = tmp_path_factory.mktemp("run")
    store = demonstration_store(users=40, items=60, history=6, seed=0)
    log = simulate(SimulatorConfig(users=40, items=60, seed=0))
    save_policy(folder / "sft", toy_policy(store.table, scale=4.0), {"history": 6})
    save_episodes(folder / "contexts.npz", store.episodes.take(slice(0, 20)))
    np.save(folder / "embeddings.npy", store.context.embeddings)
    np.save(folder / "popularity.npy", np.bincount(log.interactions.positives().item, minlength=60))
    log.truth.save(folder / "truth")
    model = LoggedPreference.fit(log.interactions, np.arange(40), store.context.embeddings, history=6, epochs=1)
    model.save(folder / "preference")
    paths = {name: str(folder / name) for name in ("preference", "truth")}
    arrays = {name: str(folder / f"{name}.npy") for name in ("embeddings", "popularity")}
    config = RlConfig(group_size=4, chunk=3, page_size=3, horizon=2)
    return RlTask(str(folder / "sft"), str(folder / "contexts.npz"), 0, config, **paths, **arrays)


def sampled(task: RlTask, pool: list[ProcessPoolExecutor]):
    """All contexts, 7 chunks, rolled out by the workers of ``pool``, or by this process if there are none."""
    local = ChunkSampler(task)

    def ask(chosen, requests):
        waiting = [pool[worker].submit(answer, task, request) for worker, request in zip(chosen, requests)]
        return [future.result() for future in waiting]

    return collect(np.arange(20), 7, local, lambda: list(range(len(pool))), ask, lambda: None)


def same(one, many) -> None:
    for field in fields(GroupBatch):
        np.testing.assert_array_equal(getattr(one[0], field.name), getattr(many[0], field.name), err_msg=field.name)
    assert one[1].keys() == many[1].keys()
    for name, values in one[1].items():
        np.testing.assert_array_equal(values, many[1][name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(REWARDS))
def test_four_workers_give_the_bits_of_one(task, pool, name):
    term = RewardConfig(name, 1.0, ARGS.get(name, {}))
    mode = required_mode(find_reward(Term(term.name, args=term.args))) or "sample"
    here = replace(task, config=replace(task.config, rewards=(term,), mode=mode))
    one, many = sampled(here, []), sampled(here, pool)
    same(one, many)
    assert f"rewards/{name}/mean" in one[1]


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["page", "session"])
def test_four_workers_give_the_bits_of_one_for_pages(task, pool, environment):
    terms = (RewardConfig("engagement"), RewardConfig("diversity", 0.1))
    config = replace(task.config, rewards=terms, environment=environment, combine="each")
    here = replace(task, config=config)
    one = sampled(here, [])
    same(one, sampled(here, pool))
    assert np.abs(one[0].advantage).max() > 0


def test_the_pool_is_what_answers(task, pool):
    """The four workers are other processes, and a lost answer is not made up for by them silently."""
    here = replace(task, config=replace(task.config, rewards=(RewardConfig("rule"),)))
    reply = pool[0].submit(answer, here, {"chunks": {0: np.arange(3)}, "seed": 1, "version": 0, "worker": 5}).result()
    assert reply.worker == 5
    assert list(reply.groups) == [0]
    assert not reply.error
    assert Path(here.policy).is_dir()
