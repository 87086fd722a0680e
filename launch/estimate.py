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

import numpy as np

from sidgym.agents.config import RlConfig
from sidgym.agents.engine import TorchEngine
from sidgym.agents.evaluate import rank_contexts
from sidgym.agents.policy import Policy, build_policy, parameter_count
from sidgym.agents.recipes import FORMAT, completed, recipe_of
from sidgym.agents.sft import sft_loss, windows
from sidgym.agents.update import group_loss, rollout_groups
from sidgym.envs.datasets import load_dataset
from sidgym.envs.records import Episodes, Rollouts, Splits
from sidgym.envs.rewards import RewardContext, RewardSum
from sidgym.envs.splits import split
from sidgym.launch.builders import prepare_process
from sidgym.launch.schema import RunConfig, arms_of
from sidgym.sid.config import SidConfig
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
    policy = build_policy(config.policy, table, config.seed)
    for name, sequences in (("sft", splits.sft), ("sft_all", splits.sft_all)):
        rows = windows(sequences, config.data.history + 1, None)
        step = _seconds(functools.partial(_sft_step, policy, rows[: config.sft.batch]))
        steps = -(-len(rows) // config.sft.batch) * config.sft.epochs
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


def _sft_step(policy: Policy, rows: np.ndarray) -> None:
    sft_loss(policy, rows)[0].backward()


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
