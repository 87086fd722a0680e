"""What a run will cost, before it is started: ``--dry-run``.

The data are read and cut as the run would (in memory, nothing is written); one SFT step, one RL iteration and one
evaluation batch are timed on a fresh policy of the configured shape, and multiplied out. Left out: the time to start
processes and Ray, and early stopping, so the SFT figure is the most that it can take; so is that of an arm that may
refill its groups, each time by a whole rollout.
"""

import functools
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sidgym.agents.config import RlConfig
from sidgym.agents.engine import TorchEngine
from sidgym.agents.evaluate import rank_contexts
from sidgym.agents.mixture import Mixture, reads_pages, reads_text
from sidgym.agents.policy import Policy, build_policy, parameter_count
from sidgym.agents.recipes import FORMAT, completed, recipe_of
from sidgym.agents.rsft import page_reward, page_scores
from sidgym.agents.sft import make_feed
from sidgym.agents.sft_feeds import Feed
from sidgym.agents.update import group_loss, rollout_groups
from sidgym.envs.datasets import DataSet, load_dataset
from sidgym.envs.logged_pages import LoggedPages, logged_pages
from sidgym.envs.records import Episodes, Rollouts, Splits
from sidgym.envs.rewards import RewardContext, RewardSum
from sidgym.envs.splits import split
from sidgym.launch.builders import prepare_process
from sidgym.launch.schema import RunConfig, arms_of
from sidgym.sid.config import SidConfig
from sidgym.sid.table import SidTable
from sidgym.sid.tokenizers import build_table


@dataclass(frozen=True)
class Cost:
    """Seconds of one stage in its own process, and what they are made of."""

    stage: str
    seconds: float
    detail: str


def estimate(config: RunConfig) -> tuple[list[Cost], Policy, Splits]:
    """The cost of every stage of one seed, with the policy and the splits that it was measured on."""
    prepare_process(config.threads)
    start = time.perf_counter()
    dataset = load_dataset(config.data, config.seed)
    splits = split(dataset, config.data, config.seed)
    costs = [
        Cost(
            "data", time.perf_counter() - start, f"{len(dataset.interactions)} events, {len(splits.test)} test contexts"
        )
    ]
    # Random codes of the configured shape: the cost depends on the trie's size and not on who stands where in it.
    shape = SidConfig(tokenizer="random", levels=config.sid.levels, codes=config.sid.codes)
    table = build_table(np.zeros((len(dataset.catalogue), 1)), dataset.catalogue.ids, shape, config.seed)
    words: list[str] = []
    paged = None
    if reads_pages(config.sft):
        paged = logged_pages(dataset.interactions, splits.sft, config.data.history)
        _try_rsft(config, dataset, table, paged)
    if reads_text(config.sft) and not config.policy.path:
        words = Mixture.of(config.sft, splits.sft, dataset.catalogue, config.data.history, config.seed, paged).words()
    policy = build_policy(config.policy, table, config.seed, words)
    policy.use_template(config.sft.template)
    for name, sequences in (("sft", splits.sft), ("sft_all", splits.sft_all)):
        history, pages = config.data.history, paged
        if paged is not None and name != "sft":
            pages = logged_pages(dataset.interactions, sequences, history)
        feed = make_feed(policy, sequences, config.sft, history, config.seed, dataset.catalogue, pages)
        epoch = feed.epoch(0)
        step = _seconds(functools.partial(_sft_step, policy, feed, epoch[len(epoch) // 2]))
        steps = len(epoch) * config.sft.epochs
        if config.sft.rsft.drop > 0:  # as many steps an epoch at most: what is dropped stays in the histories
            steps += len(epoch) * config.sft.rsft.epochs
        costs.append(Cost(name, step * steps, f"at most {steps} steps of {step * 1e3:.0f} ms"))
    for name, rl in arms_of(config).items():
        step = _rl_seconds(policy, splits.rl, rl, RewardContext(table=table, truth=dataset.truth))
        refills = completed(rl).refills
        made_of = f"{rl.steps} iterations of {'at most ' if refills else ''}{step * 1e3:.0f} ms"
        made_of += f" ({refills} refills)" if refills else ""
        costs.append(Cost(name, step * rl.steps, f"{made_of}, reward models not counted"))
    few = splits.test.take(slice(0, config.eval.batch))
    batch = _seconds(lambda: rank_contexts(policy, few, config.eval.beam, config.eval.batch))
    batches = -(-(config.eval.max_users or len(splits.test)) // config.eval.batch)
    policies = 2 + len(arms_of(config))
    costs.append(
        Cost("evaluate", batch * batches * policies, f"{policies} policies, {batches} batches of {batch * 1e3:.0f} ms")
    )
    return costs, policy, splits


def _try_rsft(config: RunConfig, dataset: DataSet, table: SidTable, pages: LoggedPages) -> None:
    """Scores a few pages by RSFT's rewards, with random embeddings where items have texts: what cannot be built or
    reads what these data lack is refused here, too."""
    rsft, count = config.sft.rsft, len(dataset.catalogue)
    if rsft.drop == 0:
        return
    texts = any(dataset.catalogue.texts())
    known = RewardContext(
        table=table,
        embeddings=np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32) if texts else None,
        truth=dataset.truth,
        popularity=np.ones(count, dtype=np.int64),
        catalogue=dataset.catalogue,
    )
    page_scores(pages.take(np.arange(min(len(pages), 64))), page_reward(rsft, known, pages), table)


def _sft_step(policy: Policy, feed: Feed, batch: Any) -> None:
    for part in feed.parts(batch):
        feed.loss(policy, part).backward()


def _rl_seconds(policy: Policy, contexts: Episodes, rl: RlConfig, known: RewardContext) -> float:
    """One iteration with a reward that costs nothing and as many refills as there may be."""
    rl = completed(rl)
    episodes = contexts.take(np.arange(rl.contexts_per_step) % len(contexts))
    engine = TorchEngine(policy, rl.chunk, rl.normalise)
    free = RewardSum((), known, rl.group_size)
    free.add("position", _position, 1.0)
    if recipe_of(rl.objective).format:
        free.add(FORMAT, _position, 1.0)
    reference = policy if rl.kl_weight > 0 else None

    def iteration() -> None:
        for _ in range(1 + rl.refills):
            batch, _ = rollout_groups(episodes, engine, free, rl, 0)
        for _ in range(rl.epochs):
            # NLL rides along as it would; an arm without any loss still pays for the pass.
            group_loss(policy, batch, replace(rl, nll_weight=max(rl.nll_weight, 1e-9)), reference)[0].backward()

    return _seconds(iteration)


def _position(episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
    return rollouts.rank.astype(np.float32)


def _seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Median time of a call after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def print_estimate(config: RunConfig, seeds: int) -> None:
    """Prints the costs, the time with the configured number of workers, and the memory."""
    from rich.console import Console
    from rich.table import Table

    costs, policy, _ = estimate(config)
    table = Table(title=f"{config.name}: estimate for one seed, {config.threads} thread(s) a process")
    for column in ("stage", "minutes", "made of"):
        table.add_column(column)
    for cost in costs:
        table.add_row(cost.stage, f"{cost.seconds / 60:.1f}", cost.detail)
    console = Console()
    console.print(table)
    total = sum(cost.seconds for cost in costs)
    wall = max(total / config.workers, max(cost.seconds for cost in costs))
    parameters = parameter_count(policy.model)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    console.print(
        f"about {wall * seeds / 60:.1f} minutes in all with {config.workers} workers and {seeds} seed(s), and half a "
        f"minute to start processes; this process reached {peak:.1f} GiB, a run holds at most {config.workers + 1} "
        f"such processes and Ray; {parameters / 1e6:.2f} M parameters"
    )
