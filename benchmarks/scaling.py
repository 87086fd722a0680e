"""What RLlib costs, what a second runner brings, and whether two learners learn what one does.

    python benchmarks/scaling.py [--quick] [--write docs/scaling.md] [--out FILE]

At the demonstration's size: its data, codes, reward, model shape and RL settings, with random weights (only time and
equality are measured). The share of an iteration that is neither rollout, reward, forward, backward nor optimiser step,
beside the same share of the trainer without Ray; rollouts by two runners against one, each on a core of its own; the
weights of two learners against one's; seconds of the driver's calls and of sending weights; and operations and bytes of
an iteration, which ``projection`` rests on. The last line printed is one JSON object.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.agents.config import PolicyConfig
from sidgym.agents.rl import RlTask, TorchTrainer, Trainer
from sidgym.agents.update import GroupBatch, Groups
from sidgym.benchmarks.projection import write_marked
from sidgym.benchmarks.scaling_parts import (
    INSIDE,
    Stopwatch,
    demo_counts,
    inside_places,
    paper_counts,
    share_outside,
    with_policy,
    write_task,
)
from sidgym.benchmarks.script import machine, main

NAME = "scaling"
LEARNED = 10
"""Iterations after which the learners' weights are compared."""
TIMEOUT = 120.0
"""Seconds after which a runner that does not answer ends the benchmark."""
GROUPS_PUT = 8192
"""Groups that are put into the object store at once, about as many as in the projection."""
HEAVY = PolicyConfig(hidden_size=1024, intermediate_size=3072, layers=4, heads=16, kv_heads=8)
"""Large enough for the seconds of sending weights to be those of bytes, not of calls."""


@contextmanager
def opened(task: RlTask, **changes: Any) -> Iterator[Any]:
    """An ``RllibTrainer`` on ``task`` with a changed config."""
    from sidgym.agents.rllib import RllibTrainer

    trainer = RllibTrainer(replace(task, config=replace(task.config, **changes)))
    try:
        yield trainer
    finally:
        trainer.close()


def overhead(task: RlTask, iterations: int, warm: int) -> dict[str, Any]:
    """Iterations inside RLlib (no workers) and without Ray, in turns, on the same groups."""
    rows: dict[str, list[dict[str, float]]] = {"rllib": [], "torch": []}
    with opened(task, env_runners=0, learners=0) as inside:
        trainers: dict[str, Trainer] = {"rllib": inside, "torch": TorchTrainer(task)}
        places = inside_places()
        for number in range(warm + iterations):
            for name, trainer in trainers.items():
                with Stopwatch(places) as watch:
                    start = time.perf_counter()
                    trainer.step(number)
                    whole = time.perf_counter() - start
                if number >= warm:
                    rows[name].append({**watch.seconds, "iteration": whole})
        weights = [trainer.weights() for trainer in trainers.values()]
    figures = {name: share_outside(part) for name, part in rows.items()}
    for name, part in figures.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in part.items()), flush=True)
    return {
        "rllib_overhead_share": figures["rllib"]["share"],
        "torch_overhead_share": figures["torch"]["share"],
        "iterations": iterations,
        "workers": {"env_runners": 0, "learners": 0},
        "rllib": figures["rllib"],
        "torch": figures["torch"],
        "rllib_max_weight_diff": difference(*weights),
    }


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference of any two weights of the same name and place. ``ValueError`` where one is not finite."""
    worst = float(torch.stack([(value - other[name]).abs().max() for name, value in one.items()]).max())
    if not np.isfinite(worst):
        raise ValueError("the weights are not all finite, so they cannot be compared; the training has gone wrong")
    return worst


def pin(runner: Any, core: int) -> int:
    """Keeps every thread of a runner's process on one core; its process id."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})
    return os.getpid()


def timed_sample(runner: Any, requests: list[dict[str, Any]]) -> float:
    """Seconds that a runner itself counts for its answers to some requests."""
    start = time.perf_counter()
    for request in requests:
        runner.sample(**request).check()
    return time.perf_counter() - start


class Remote:
    """Two pinned runners of a trainer, asked as a training step asks them, and a driver that rolls out nothing."""

    def __init__(self, trainer: Any, cores: list[int]):
        self.algorithm, self.task = trainer.algorithm, trainer.task
        self.group = self.algorithm.env_runner_group
        self.ids: list[int] = list(self.group.healthy_env_runner_ids())
        self.chosen = self.ids
        self.local = self.algorithm.env_runner.sampler
        self.local.sample = _refuse
        self.algorithm.patience = TIMEOUT
        for runner, core in zip(self.ids, cores):
            self.apply([runner], partial(pin, core=core))

    def apply(self, runners: list[int], function: Any) -> list[Any]:
        """What ``function`` returns in each of ``runners``."""
        return self.group.foreach_env_runner(
            function, remote_worker_ids=runners, local_env_runner=False, timeout_seconds=TIMEOUT
        )

    def rollout(self, runners: list[int], number: int) -> Groups:
        """The groups of iteration ``number``, by ``runners`` alone."""
        self.chosen = runners
        return self.algorithm._draw(number, 0, self.algorithm._weights()).gather(self, self.local)

    def healthy(self) -> list[int]:
        """As ``rllib_parts.Workers``: those that are measured."""
        return self.chosen

    def send(self, tag: str, requests: dict[int, dict[str, Any]]) -> None:
        """As ``rllib_parts.Workers``: by the algorithm."""
        self.algorithm.send(tag, requests)

    def answers(self, tag: str) -> list[Any]:
        """As ``rllib_parts.Workers``: by the algorithm."""
        return self.algorithm.answers(tag)

    def requests(self, runner: int, numbers: range) -> list[dict[str, Any]]:
        """All chunks of iterations ``numbers`` as requests to one runner, with the weights that it has."""
        draws = [self.algorithm._draw(number, 0, {"version": 0}) for number in numbers]
        return [{"chunks": draw.chunks, "worker": runner, **draw.request} for draw in draws]


def _refuse(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a runner did not answer, or had other weights: what is measured would be the driver's work")


def runners(task: RlTask, repeats: int, iterations: int) -> dict[str, Any]:
    """Rollouts of whole iterations by one runner and by two, in turns; the learner does nothing.

    One runner's seconds are the mean of either alone, since cores may differ. ``limit``: how many times two processes
    at once do the work of one when nothing is collected, by the runners' own clocks. All null where processes cannot be
    pinned or there is one core only.
    """
    cores = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_setaffinity") else []
    if len(cores) < 2:
        print("fewer than two cores, or no way to pin a process: runners_2_vs_1 is null")
        return {"runners_2_vs_1": None, "runners": None}
    with opened(task, env_runners=2, learners=0) as trainer:
        remote = Remote(trainer, cores)
        first, second = remote.ids
        arms = {"first": [first], "second": [second], "both": remote.ids}
        found = {name: remote.rollout(ids, 0)[0] for name, ids in arms.items()}  # also warms the processes
        times: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(repeats):
            for name, ids in arms.items():
                start = time.perf_counter()
                for number in range(iterations):
                    remote.rollout(ids, number)
                times[name].append(time.perf_counter() - start)
        limits = _limits(remote, repeats, iterations)
        calls = [_seconds(lambda: remote.apply(remote.ids, _nothing)) for _ in range(100)]
        put = putting(found["both"])
    one = (np.array(times["first"]) + np.array(times["second"])) / 2
    ratios = sorted(one / np.array(times["both"]))
    contexts = iterations * task.config.contexts_per_step
    figures = {
        "ratios": [float(ratio) for ratio in ratios],
        "contexts_per_s": {name: contexts / float(np.median(values)) for name, values in times.items()},
        "same_groups": all(
            np.array_equal(getattr(groups, name), getattr(found["both"], name))
            for groups in found.values()
            for name in vars(groups)
        ),
        "limits": limits,
        "limit": float(np.median(limits)),
        "call_s": float(np.median(calls)) / len(remote.ids),
        "put_bytes_per_s": put,
        "cores": cores,
        "iterations": iterations,
    }
    ratio = float(np.median(ratios))
    print(f"runners: {ratio:.2f} times [{ratios[0]:.2f}, {ratios[-1]:.2f}], limit {figures['limit']:.2f}", flush=True)
    return {"runners_2_vs_1": ratio, "runners": figures}


def putting(groups: GroupBatch, times: int = 20) -> float:
    """Bytes a second at which the driver puts groups into Ray's object store."""
    import ray

    many = groups.take(np.resize(np.arange(len(groups)), GROUPS_PUT))
    size = sum(values.nbytes for values in vars(many).values())
    return size / float(np.median([_seconds(lambda: ray.put(vars(many))) for _ in range(times)]))


def _nothing(runner: Any) -> None:
    return None


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _limits(remote: Remote, repeats: int, iterations: int) -> list[float]:
    """Twice the seconds of either runner alone over those of the same work while the other does it, too."""
    asked = {
        runner: partial(timed_sample, requests=remote.requests(runner, range(iterations))) for runner in remote.ids
    }
    out = []
    for _ in range(repeats):
        alone = [remote.apply([runner], function)[0] for runner, function in asked.items()]
        together = remote.apply(remote.ids, asked[remote.ids[0]])
        out.append(2 * float(np.mean(alone)) / float(np.mean(together)))
    return sorted(out)


def learners(task: RlTask) -> dict[str, Any]:
    """Weights after ``LEARNED`` iterations by one learner and by two processes that share every minibatch."""
    weights, seconds = {}, {}
    for count in (0, 2):
        with opened(task, env_runners=0, learners=count) as trainer:
            start = trainer.weights()
            times = [_seconds(partial(trainer.step, number)) for number in range(LEARNED)]
            weights[count], seconds[str(count)] = trainer.weights(), float(np.median(times))
    worst = difference(weights[0], weights[2])
    print(f"learners: after {LEARNED} iterations two differ from one by {worst:.3g}", flush=True)
    return {
        "learners_2_max_weight_diff": worst,
        "learners": {
            "iterations": LEARNED,
            "weights_moved": difference(weights[0], start),
            "iteration_s_by_remote_learners": seconds,
        },
    }


def sending(task: RlTask, layers: int, repeats: int) -> dict[str, Any]:
    """Seconds of weights from a remote learner to the object store, and from there to two runners at once."""
    with tempfile.TemporaryDirectory() as folder:
        heavy = with_policy(task, Path(folder), replace(HEAVY, layers=layers))
        with opened(heavy, env_runners=2, learners=1) as trainer:
            size = sum(value.nbytes for value in trainer.weights().values())
            remote, algorithm = Remote(trainer, []), trainer.algorithm
            handed, taken = [], []
            for _ in range(repeats + 1):
                algorithm._newest = None
                start = time.perf_counter()
                weights = algorithm._weights()
                middle = time.perf_counter()
                asked = {runner: {"chunks": {}, "seed": 0, "worker": runner, **weights} for runner in remote.ids}
                remote.send("weights", asked)
                replies = remote.answers("weights")
                if len(replies) < len(asked):
                    _refuse()
                for reply in replies:
                    reply.check()
                handed.append(middle - start)
                taken.append(time.perf_counter() - middle)
    hand, take = (float(np.median(values[1:])) for values in (handed, taken))
    print(f"weights, {size / 1e6:.0f} MB: {hand:.3f} s to the object store, {take:.3f} s to two runners", flush=True)
    return {
        "bytes": size,
        "hand_s": hand,
        "take_s": take,
        "hand_bytes_per_s": size / hand,
        "take_bytes_per_s": size / take,
    }


def counted(task: RlTask, quick: bool) -> dict[str, Any]:
    """Operations and bytes of the demonstration's iteration and, unless ``quick``, of one context of the projection."""
    out = {"demo": demo_counts(task)} | ({} if quick else {"0.5B": paper_counts(task.seed)})
    for name, figures in out.items():
        ratios = {key: round(value, 3) for key, value in figures.items() if key.endswith("over_formula")}
        print(f"counted over formula, {name}: {ratios}", flush=True)
    return out


def report(result: dict[str, Any]) -> str:
    """What was measured, as the table of docs/scaling.md."""
    rllib, plain, workers = result["rllib"], result["torch"], result["workers"]
    lines = [
        f"`python benchmarks/scaling.py`, {result['machine']}; medians.",
        "",
        "| an iteration, ms | " + " | ".join(INSIDE) + " | all else | whole | share of all else |",
        "|---|" + "---|" * (len(INSIDE) + 3),
    ]
    inside = f"inside RLlib, {workers['env_runners']} env runners, {workers['learners']} learners"
    for name, row in ((inside, rllib), ("without Ray", plain)):
        cells = [f"{row[f'{kind}_ms']:.1f}" for kind in (*INSIDE, "outside", "iteration")]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {100 * row['share']:.1f} % |")
    lines.append("")
    pair = result["runners"]
    if pair:
        ratios = pair["ratios"]
        lines.append(
            f"Two runners roll out {result['runners_2_vs_1']:.2f} times as many contexts a second as one "
            f"[{ratios[0]:.2f}, {ratios[-1]:.2f}]; two processes on this machine do at most {pair['limit']:.2f} times "
            f"the work of one. A call of a runner costs the driver {1e3 * pair['call_s']:.2f} ms."
        )
    learned, sent = result["learners"], result["sending"]
    lines.append(
        f"After {learned['iterations']} iterations the weights of two learners differ from one's by "
        f"{result['learners_2_max_weight_diff']:.1e} at most, while training moved them by up to "
        f"{learned['weights_moved']:.1e}. {sent['bytes'] / 1e6:.0f} MB of weights go from a learner to the object "
        f"store in {sent['hand_s']:.2f} s and from there to two runners in {sent['take_s']:.2f} s."
    )
    lines += [
        "",
        "| counted over the formula's | rollout | forward | backward | kept activations |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["counted"].items():
        cells = [f"{row[f'{part}_over_formula']:.2f}" for part in ("rollout_flops", "forward_flops", "backward_flops")]
        title = f"{name}, {row['contexts']} contexts of {row['mean_prompt_tokens']:.0f} tokens"
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {row['kept_bytes_over_formula']:.2f} |")
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements, for the first seed."""
    torch.set_num_threads(1)
    quick = options.quick
    with tempfile.TemporaryDirectory() as scratch:
        task = write_task(Path(scratch), options.seeds[0])
        result = {
            **overhead(task, *((10, 3) if quick else (100, 10))),
            **runners(task, 5, 4 if quick else 20),
            **learners(task),
            "sending": sending(task, 1 if quick else HEAVY.layers, 3 if quick else 7),
            "counted": counted(task, quick),
        }
    text = report({**result, "machine": machine()})
    print(text)
    if options.write:
        write_marked(options.write, NAME, text)
    return result


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--write", type=Path, help="also put the figures in the marked part of this page")


if __name__ == "__main__":
    main(NAME, __doc__ or "", measure, packages=("ray", "transformers"), add_options=add_options)
