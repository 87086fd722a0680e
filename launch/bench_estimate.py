"""How long a contest will take, told before it starts.

One seed's stages are timed as ``sidgym run --dry-run`` does (``estimate``) and laid out on the workers. Left out:
fitting a preference model and asking it for rewards, early stopping, and whoever else uses the machine.
"""

import heapq
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sidgym.benchmarks.arms_summary import START
from sidgym.launch.bench_runs import DATA, WARM, Bench, Step, rounds
from sidgym.launch.estimate import Cost, estimate

STARTING = 12.0
"""Seconds in which the processes of a round have started."""


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Until the last of some jobs has ended, each given in its turn to the worker that is free first."""
    free = [0.0] * max(1, workers)
    for job in seconds:
        heapq.heapreplace(free, free[0] + job)
    return max(free)


def print_estimate(bench: Bench) -> float:
    """Prints what is missing and how long it will take with the configured workers; seconds, 0 where all is done."""
    console, plan = Console(file=sys.stderr), rounds(bench)
    missing = [[step for step in steps if not step.done] for steps in plan]
    if not any(missing):
        console.print("every trial is finished already")
        return 0.0
    costs = _costs(bench)
    table = Table(title=Text(f"{bench.title}: estimate, {bench.config.workers} worker(s)"))
    for head in ("step", "trials", "minutes each", "made of"):
        table.add_column(head)
    for system in dict.fromkeys(step.system for steps in missing for step in steps):
        count = sum(step.system == system for steps in missing for step in steps)
        cost = costs.get(system)
        told = (f"{cost.seconds / 60:.1f}", Text(cost.detail)) if cost else ("not counted", Text(""))
        table.add_row(Text(system), str(count), *told)
    console.print(table)
    seconds = sum(_round_seconds(steps, costs, bench.config.workers) for steps in missing if steps)
    console.print(
        f"about {seconds / 60:.1f} minutes for {sum(map(len, missing[-1:]))} trials, the rest of the machine being idle"
    )
    return seconds


def _round_seconds(steps: Sequence[Step], costs: dict[str, Cost], workers: int) -> float:
    known = [costs[step.system].seconds if step.system in costs else 0.0 for step in steps]
    return STARTING + makespan(known, workers)


def _costs(bench: Bench) -> dict[str, Cost]:
    """System (or what comes before the trials) -> what its step costs in one seed."""
    names = list(bench.config.arms)
    # ``estimate`` times rl and its controls; here the first arm stands for rl, which is not trained.
    first, rest = bench.config.arms[names[0]], {name: bench.config.arms[name] for name in names[1:]}
    told, _, splits = estimate(replace(bench.config, rl=first, arms=rest))
    found = {cost.stage: cost for cost in told}
    users = bench.config.eval.max_users or len(splits.test)
    judging = found["evaluate"].seconds / (2 + len(names))
    out = {DATA: found["data"], WARM: found["sft"], START: Cost(START, judging, "evaluation")}
    for name in names:
        cost, rl = found["rl" if name == names[0] else f"rl_{name}"], bench.config.arms[name]
        validations = 1 + -(-rl.steps // rl.eval_every)
        validated = min(rl.eval_users or len(splits.valid), len(splits.valid))
        seconds = cost.seconds + judging * (1 + validations * validated / max(users, 1))
        out[name] = Cost(name, seconds, f"{cost.detail}; {validations} validations")
    return out
