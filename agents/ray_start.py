"""Starting Ray, connecting to a cluster, and whether there is room for what is to run on it.

The one place that starts Ray, for trainers and for engines. Left out: what runs on it (``rllib``, ``ray_train``,
``vllm_runners``).
"""

import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

import torch

from sidgym.agents.config import RlConfig
from sidgym.agents.scoring import gpus_of_scoring
from sidgym.agents.task import RlTask

OBJECT_STORE = 150 * 2**20
"""Bytes of Ray's object store beside room for the weights."""
WEIGHTS_AT_ONCE = 6
"""Copies of the weights that the object store has room for, beside one for each iteration of ``rl.staleness``."""
REACHED = 10.0
"""Seconds in which a cluster's head takes a connection."""
PATIENCE = 600.0
"""Seconds that a cluster is given to have what the workers need: nodes may be on their way."""
FREED = 60.0
"""Seconds in which GPUs of a process that has just ended become free."""


def processors_of(config: RlConfig) -> int:
    """CPUs that the workers of a trainer reserve, one each."""
    return max(config.learners, 1) if config.backend == "fsdp" else config.env_runners + config.learners


def gpus_of(config: RlConfig, any_gpu: bool) -> int:
    """GPUs that the workers of a trainer reserve; ``any_gpu`` says whether there are any for vLLM, which runs without.

    What learns or rolls out in the driver reserves none. With engine vllm the engines have GPUs, the env runners that
    ask them have none.
    """
    cuda, vllm = config.device == "cuda", config.engine == "vllm"
    if config.backend == "fsdp":
        return max(config.learners, 1) if cuda else 0
    engines = config.engines * config.tensor_parallel * max(config.env_runners, 1) if vllm and (cuda or any_gpu) else 0
    return engines + (config.learners + (0 if vllm else config.env_runners) if cuda else 0)


def start_ray(task: RlTask) -> bool:
    """Connects to the cluster at ``task.address``, or starts Ray on this machine: small, no dashboard, no reports to
    anybody. Does neither where Ray runs already. Whether it did.

    Raises ``ValueError`` where there are fewer CPUs or GPUs than the workers reserve: they would wait for ever.
    """
    _say_nothing()
    import ray

    cpus, scoring = processors_of(task.config), gpus_of_scoring(task.scoring)
    if ray.is_initialized():
        await_resources(cpus, gpus_of(task.config, _gpus() > 0) + scoring, 0.0)
        return False
    if task.address:
        connect(task.address)
        try:
            await_resources(cpus, gpus_of(task.config, _gpus() > 0) + scoring, PATIENCE)
        except ValueError:
            ray.shutdown()
            raise
        return True
    here = torch.cuda.device_count()
    wanted = gpus_of(task.config, here > 0) + scoring
    if wanted > here:
        raise ValueError(f"{_asked(cpus, wanted)}; this machine has {here} GPUs. Use fewer, or --address a cluster")
    weights = sum(path.stat().st_size for path in Path(task.policy).glob("*.safetensors"))
    _start_here(cpus, here if wanted else 0, OBJECT_STORE + (WEIGHTS_AT_ONCE + task.config.staleness) * weights)
    return True


def start_ray_for_engines(engines: int, each: int) -> tuple[int, bool]:
    """Starts Ray on this machine unless it runs. GPUs of each engine (0 without any), and whether it had to start.

    Raises ``ValueError`` where this machine has fewer than ``engines`` times ``each`` GPUs that are free, or become so
    within ``FREED`` seconds: the engines would wait for ever.
    """
    _say_nothing()
    import ray

    started = not ray.is_initialized()
    if started:
        _start_here(1, torch.cuda.device_count(), OBJECT_STORE)
    if not _gpus() and not torch.cuda.is_available():
        return 0, started
    end = time.monotonic() + FREED
    while (free := _free_here()) < engines * each:
        known = _here()
        if known < engines * each or time.monotonic() >= end:
            if started:
                ray.shutdown()
            raise ValueError(
                f"{engines} vLLM engines on {each} GPUs each need {engines * each} on the machine of who asks them, "
                f"which has {known}, {free} of them free: use fewer (rl.engines, rl.tensor_parallel, rl.learners)"
            )
        time.sleep(0.5)
    return each, started


def _say_nothing() -> None:
    """Before Ray is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _start_here(cpus: int, gpus: int, store: int) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=max(1, cpus),
        num_gpus=gpus,
        include_dashboard=False,
        dashboard_host="127.0.0.1",
        object_store_memory=store,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def connect(address: str) -> None:
    """Connects to a Ray cluster; its workers look for modules where this process does.

    Raises ``ValueError`` where no cluster answers.
    """
    import ray

    if address != "auto":
        _check_reachable(address)
    # A job that was submitted has an environment already, which may not be contradicted.
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    wanted = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "OMP_NUM_THREADS": "1"}
    own = {name: value for name, value in wanted.items() if value and name not in submitted.get("env_vars", {})}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": own})
    except ConnectionError as error:
        raise _no_cluster(address) from error


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED).close()
    except OSError as error:
        raise _no_cluster(address) from error


def _no_cluster(address: str) -> ValueError:
    return ValueError(
        f"no Ray cluster answers at address {address!r}: start one with 'ray start --head' and run this on one of its "
        "nodes, or leave the address out"
    )


def await_resources(cpus: int, gpus: int, patience: float) -> None:
    """Until the Ray that runs has so many CPUs and GPUs; asks for more nodes where they come and go.

    Raises ``ValueError`` after ``patience`` seconds.
    """
    from ray.autoscaler.sdk import request_resources

    end = time.monotonic() + patience
    asked = False
    try:
        while _known("CPU") < cpus or _known("GPU") < gpus:
            if time.monotonic() >= end:
                few = "CPUs" if _known("CPU") < cpus else "GPUs"
                raise ValueError(f"the Ray that runs has too few {few}: {_asked(cpus, gpus)}; use fewer of them")
            if not asked:
                request_resources(num_cpus=cpus, bundles=[{"GPU": 1}] * gpus)
                asked = True
            time.sleep(0.5)
    finally:
        if asked:  # from here on the workers themselves keep the nodes
            request_resources(num_cpus=0, bundles=[])


def _asked(cpus: int, gpus: int) -> str:
    on_gpus = f", {gpus} GPUs for them and for vLLM's engines" if gpus else ""
    return f"the run wants {cpus} CPUs for as many env runners and learners{on_gpus}"


def _known(kind: str) -> float:
    import ray

    return ray.cluster_resources().get(kind, 0)


def _gpus() -> int:
    return int(_known("GPU"))


def node_here() -> str:
    """Ray's id of the node that this process is on."""
    import ray

    return ray.get_runtime_context().get_node_id()


def stay_here() -> Any:
    """A scheduling strategy: on the node that this process is on, or not at all."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_here(), soft=False)


def _here() -> int:
    """GPUs of this node."""
    import ray

    return int(sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["NodeID"] == node_here()))


def _free_here() -> int:
    """GPUs of this node that nobody has reserved."""
    from ray._private.state import available_resources_per_node

    return int(available_resources_per_node().get(node_here(), {}).get("GPU", 0))
