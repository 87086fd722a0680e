"""Trials as tasks on Ray: on this machine, or on a cluster that sees the same folder. A CPU each, a GPU with cuda.

Left out: starting clusters (``launch/cluster``); a trial's own use of Ray, which stays what its settings say.
"""

import os
from collections.abc import Sequence

from sidgym.launch.jobs import Display, Job, run_reporting, watch
from sidgym.launch.schema import RunConfig


def run_on_ray(jobs: Sequence[Job], config: RunConfig, display: Display) -> None:
    """Runs all jobs as Ray tasks; Ray starts as many at once as it has CPUs (here ``config.workers``).

    Raises ``JobError`` after all have ended where some failed, ``ValueError`` where no cluster answers at
    ``config.address``.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.util.queue import Queue

    from sidgym.agents.ray_start import connect

    begun = not ray.is_initialized()
    if begun and config.address:
        connect(config.address)
    elif begun:
        ray.init(address="local", num_cpus=config.workers, include_dashboard=False, log_to_driver=False)
    # What a job prints of its progress needs an actor of its own, which takes no CPU from the trials.
    queue = Queue(actor_options={"num_cpus": 0})
    try:
        gpus = int("cuda" in (config.rl.device, config.sft.device))
        task = ray.remote(num_cpus=config.threads, num_gpus=gpus, max_retries=0)(run_reporting)
        watch([(n, job, task.remote(n, job, queue).future()) for n, job in enumerate(jobs)], queue, display)
    finally:
        queue.shutdown()
        if begun:
            ray.shutdown()
