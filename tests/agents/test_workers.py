"""One worker and four workers, each a process of its own, give the same bits for every registered reward.

The bits are those of what is learned from and of what the candidates earned, in all and term by term; where everybody
earned the same there would be nothing to compare, so every reward has a group that teaches.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pytest
from toy import toy_policy

from sidgym.agents.candidates import ANSWERS, Candidates
from sidgym.agents.checkpoint import save_policy
from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.agents.engine import TorchEngine
from sidgym.agents.policy import Policy
from sidgym.agents.rl import RlTask, save_episodes
from sidgym.agents.rllib_parts import ChunkSampler, Draw, Reply
from sidgym.agents.update import GroupBatch, apply_gradients, group_loss, make_optimizer, rollout_groups
from sidgym.envs.logged import demonstration_store
from sidgym.envs.preference import LoggedPreference
from sidgym.envs.records import Episodes
from sidgym.envs.rewards import REWARDS, RewardContext, RewardSum, Term, find_reward, required_mode
from sidgym.envs.simulator import SimulatorConfig, simulate
from sidgym.sid.table import SidTable

WORKERS, SEED = 4, 7
ARGS = {"trl": {"function": "toy:trl_length"}, "verl": {"function": "toy:verl_match"}}
"""What a reward cannot do without."""

_samplers: dict[str, ChunkSampler] = {}


def sampler(task: RlTask) -> ChunkSampler:
    """The sampler of this process; it stays, as in a worker."""
    if repr(task) not in _samplers:
        _samplers.clear()
        _samplers[repr(task)] = ChunkSampler(task)
    return _samplers[repr(task)]


def answer(task: RlTask, request: dict):
    """What a worker does with a request."""
    return sampler(task).sample_remotely(**request)


def candidates(task: RlTask, rows: np.ndarray) -> Candidates:
    """What is drawn for a chunk of contexts and what it earns."""
    own = sampler(task)
    return ANSWERS[task.config.environment](own.contexts.take(rows), own.engine, own.reward, task.config, SEED)


def warmed_up(table: SidTable, episodes: Episodes) -> Policy:
    """A policy that writes some SIDs that exist and some that do not when it writes freely, and hits at times."""
    policy = toy_policy(table, scale=2.0)
    config = RlConfig(
        rewards=(), objective="nll", nll_weight=1.0, normalise="vocab", lr=1e-2, warmup_steps=0, chunk=20, group_size=2
    )
    engine, reward = TorchEngine(policy, 20, "vocab"), RewardSum((), RewardContext(table), 2)
    optimizer = make_optimizer(policy, config)
    for step in range(20):
        batch, _ = rollout_groups(episodes, engine, reward, config, step)
        optimizer.zero_grad()
        group_loss(policy, batch, config)[0].backward()
        apply_gradients(policy, optimizer, config, step)
    return policy


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
    contexts = store.episodes.take(slice(0, 20))
    save_policy(folder / "sft", warmed_up(store.table, contexts), {"history": 6})
    save_episodes(folder / "contexts.npz", contexts)
    np.save(folder / "embeddings.npy", store.context.embeddings)
    np.save(folder / "popularity.npy", np.bincount(log.interactions.positives().item, minlength=60))
    log.truth.save(folder / "truth")
    model = LoggedPreference.fit(log.interactions, np.arange(40), store.context.embeddings, history=6, epochs=1)
    model.save(folder / "preference")
    paths = {name: str(folder / name) for name in ("preference", "truth")}
    arrays = {name: str(folder / f"{name}.npy") for name in ("embeddings", "popularity")}
    config = RlConfig(group_size=4, chunk=3, page_size=3, horizon=2)
    return RlTask(str(folder / "sft"), str(folder / "contexts.npz"), 0, config, **paths, **arrays)


@dataclass
class Pool:
    """The workers of ``pool`` as those of a ``Draw``."""

    task: RlTask
    pool: list[ProcessPoolExecutor]
    waiting: list[Future] = field(default_factory=list)

    def healthy(self) -> list[int]:
        return list(range(len(self.pool)))

    def send(self, tag: str, requests: dict[int, dict]) -> None:
        self.waiting = [self.pool[worker].submit(answer, self.task, asked) for worker, asked in requests.items()]

    def answers(self, tag: str) -> list[Reply]:
        return [future.result() for future in self.waiting]


def sampled(task: RlTask, pool: list[ProcessPoolExecutor]):
    """All contexts, 7 chunks, rolled out by the workers of ``pool``, or by this process if there are none."""
    draw = Draw.of("tag", np.arange(20), task.config.chunk, {"seed": SEED, "version": 0})
    return draw.gather(Pool(task, pool), ChunkSampler(task))


def earned(task: RlTask, pool: list[ProcessPoolExecutor]) -> list[Candidates]:
    """The candidates of every chunk, chunk k by worker k mod 4, or by this process if there are none."""
    width = task.config.chunk
    chunks = [np.arange(start, min(start + width, 20)) for start in range(0, 20, width)]
    if not pool:
        return [candidates(task, rows) for rows in chunks]
    waiting = [pool[k % len(pool)].submit(candidates, task, rows) for k, rows in enumerate(chunks)]
    return [future.result() for future in waiting]


def same_candidates(one: list[Candidates], many: list[Candidates], terms: Sequence[str]) -> None:
    for mine, other in zip(one, many, strict=True):
        assert list(mine.terms) == list(other.terms) == list(terms)
        for name in ("codes", "valid", "logp", "total"):
            same_bits(getattr(mine, name), getattr(other, name), name)
        for kind in ("terms", "figures"):
            ours, theirs = getattr(mine, kind), getattr(other, kind)
            assert ours.keys() == theirs.keys()
            for name, values in ours.items():
                same_bits(values, theirs[name], name)
    for name in terms:
        values = np.concatenate([found.terms[name] for found in one])
        assert np.ptp(values, axis=1).max() > 0, f"{name} tells no two candidates of a group apart"


def same_bits(one: np.ndarray, other: np.ndarray, name: str) -> None:
    assert (one.dtype, one.shape) == (other.dtype, other.shape), name
    assert one.tobytes() == other.tobytes(), name


def same(one, many) -> None:
    for own in fields(GroupBatch):
        np.testing.assert_array_equal(getattr(one[0], own.name), getattr(many[0], own.name), err_msg=own.name)
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
    assert np.abs(one[0].advantage).max() > 0, "there is nothing to compare where no group teaches"
    same_candidates(earned(here, []), earned(here, pool), [name])


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["page", "session"])
def test_four_workers_give_the_bits_of_one_for_pages(task, pool, environment):
    terms = (RewardConfig("engagement"), RewardConfig("diversity", 0.1))
    config = replace(task.config, rewards=terms, environment=environment, combine="each")
    here = replace(task, config=config)
    one = sampled(here, [])
    same(one, sampled(here, pool))
    assert np.abs(one[0].advantage).max() > 0
    same_candidates(earned(here, []), earned(here, pool), ["engagement", "diversity"])


def test_the_pool_is_what_answers(task, pool):
    """The four workers are other processes, and a lost answer is not made up for by them silently."""
    here = replace(task, config=replace(task.config, rewards=(RewardConfig("rule"),)))
    reply = pool[0].submit(answer, here, {"chunks": {0: np.arange(3)}, "seed": 1, "version": 0, "worker": 5}).result()
    assert reply.worker == 5
    assert list(reply.groups) == [0]
    assert not reply.error
    assert Path(here.policy).is_dir()
