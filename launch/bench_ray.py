"""Trials as tasks on Ray: on this machine, or on a cluster that sees the same folder. ``threads`` CPUs each, a GPU with
cuda.

Left out: starting clusters (``launch/cluster``); a trial's own use of Ray, which stays what its settings say.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sidgym.launch.jobs import Display, Job, run_reporting, watch
from sidgym.launch.schema import RunConfig


def run_on_ray(jobs: Sequence[Job], config: RunConfig, display: Display) -> None:
    """Runs all jobs as Ray tasks; Ray starts as many at once as it has room for (here ``config.workers``).

    Raises ``JobError`` after all have ended where some failed, ``ValueError`` where no cluster answers at
    ``config.address`` and where no node can hold a task, which would wait for ever.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.util.queue import Queue

    from sidgym.agents.ray_start import PATIENCE, await_resources, connect

    asked = {"CPU": config.threads, "GPU": int("cuda" in (config.rl.device, config.sft.device))}
    begun = not ray.is_initialized()
    if begun and config.address:
        connect(config.address)
    elif begun:
        cpus = config.workers * config.threads
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        if config.address:  # whose nodes may be on their way
            await_resources(asked["CPU"], asked["GPU"], PATIENCE)
        check_room(asked, ray.nodes())
        # What a job prints of its progress needs an actor of its own, which takes no CPU from the trials.
        queue = Queue(actor_options={"num_cpus": 0})
        try:
            task = ray.remote(num_cpus=asked["CPU"], num_gpus=asked["GPU"], max_retries=0)(run_reporting)
            watch([(n, job, task.remote(n, job, queue).future()) for n, job in enumerate(jobs)], queue, display)
        finally:
            queue.shutdown()
    finally:
        if begun:
            ray.shutdown()


def check_room(asked: Mapping[str, float], nodes: Iterable[Mapping[str, Any]]) -> None:
    """Raises ``ValueError`` unless one of Ray's ``nodes`` has all the resources that a task asks for."""
    known = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(all(one.get(kind, 0) >= count for kind, count in asked.items()) for one in known):
        have = "; ".join(f"{one.get('CPU', 0):g} CPUs, {one.get('GPU', 0):g} GPUs" for one in known)
        raise ValueError(
            f"--ray: a trial asks for {asked['CPU']:g} CPUs (threads) and {asked['GPU']:g} GPUs on one node; the nodes "
            f"have {have}. Use fewer threads, device cpu, or --address a cluster that has them"
        )
