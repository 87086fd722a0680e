"""Kills processes and nodes of running training at random moments, and compares what comes out with an undisturbed run.

    python -m sidgym.benchmarks.soak --kills 20 --out benchmarks/results/soak.json

A run is ``sidgym rl --address`` on a Ray cluster of a head and two worker nodes, three raylets on this machine, with
two env runners and a learner on them. Victims take turns within a run: an env runner, the learner, the driver (then
``--resume``) and a worker node (then another one joins); a vLLM engine in a run of its own, where vLLM is installed.
Every kill is SIGKILL, at an iteration and after a pause drawn from the seed. Afterwards the run must have the weights
and the metrics of the undisturbed one bit for bit, every iteration once and each with the same contexts; with vLLM,
whose own bits may differ from run to run, every iteration once.

Left out: loss of the head node, after which nothing goes on by itself.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.benchmarks import script

VICTIMS: tuple[str, ...] = ("env_runner", "learner", "driver", "node")
QUICK_VICTIMS = VICTIMS[:3]
"""Of a quick run; ``tests/agents/test_cluster.py`` takes a node away."""
TITLES = {"env_runner": "ray::GroupEnvRunner", "learner": "ray::_WrappedExecutable", "vllm": "ray::VllmRunner"}
"""How Ray names the processes of actors."""
STEPS, QUICK_STEPS = 60, 24
PATIENCE = 240.0
"""Seconds without a new iteration after which a run counts as stuck."""
PLAIN = ["--rl.backend", "torch", "--rl.env-runners", "0", "--rl.learners", "0"]
"""Options of a run without Ray."""
OBJECT_STORE = 80 * 2**20  # bytes of each node
NODE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": OBJECT_STORE}

CONFIG = f"""
name = "soak"
workers = 1
[data]
users = 150
items = 60
[sid]
levels = 2
codes = 8
embedding_dim = 16
[policy]
hidden_size = 64
intermediate_size = 64
heads = 2
kv_heads = 1
[sft]
epochs = 2
[rl]
backend = "rllib"
env_runners = 2
learners = 1
steps = {STEPS}
contexts_per_step = 16
group_size = 4
chunk = 4
epochs = 2
minibatch = 8
eval_every = 10
eval_users = 50
checkpoint_every = 5
kl_weight = 0.01
[log]
wandb = "disabled"
"""


class Stuck(RuntimeError):
    """A run that does not go on, or ended with an error, or came to another result."""


class Run:
    """One ``sidgym rl`` in a process of its own, in a folder where everything before RL is built."""

    def __init__(self, folder: Path, address: str, options: Sequence[str] = ()):
        self.folder, self.options = folder, ["--out", str(folder), "--address", address, *options]
        self.log = (folder / "stderr.txt").open("ab")
        self.process = self._start()

    def _start(self, *more: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "sidgym.launch.cli", "rl", str(self.folder / "soak.toml")]
        return subprocess.Popen([*command, *self.options, *more], stdout=self.log, stderr=self.log)

    def metrics(self) -> Path:
        """The metrics so far."""
        done = self.folder / "soak/rl/metrics.jsonl"
        return done if done.exists() else self.folder / "soak/rl.partial/metrics.jsonl"

    def step(self) -> int:
        """The newest iteration in the metrics; -1 before there is any."""
        try:
            last = self.metrics().read_text().rstrip("\n").rpartition("\n")[2]
            return int(json.loads(last)["step"])
        except (OSError, ValueError):
            return -1

    def wait_beyond(self, step: int) -> None:
        """Until an iteration from ``step`` on is done. Raises ``Stuck``."""
        end = time.monotonic() + PATIENCE
        while self.step() < step:
            if self.process.poll() is not None or time.monotonic() > end:
                raise Stuck(f"iteration {step} was not reached, the run is at {self.step()}:\n{self.tail()}")
            time.sleep(0.005)

    def wait(self) -> None:
        """Until the run has ended well. Raises ``Stuck``."""
        if self.process.wait(timeout=PATIENCE) != 0:
            raise Stuck(f"the run ended with {self.process.returncode}:\n{self.tail()}")

    def resume(self) -> None:
        """Starts it again after its driver was killed."""
        self.process.wait()
        self.process = self._start("--resume")

    def tail(self) -> str:
        """The end of what it said."""
        return (self.folder / "stderr.txt").read_text(errors="replace")[-3000:]

    def close(self) -> None:
        """Ends the process if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()


@contextmanager
def ray_cluster(node: dict[str, Any] = NODE) -> Iterator[Any]:
    """A head without CPUs of its own and two worker nodes, each a raylet on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(**node)
        yield cluster
    finally:
        cluster.shutdown()


def kill(victim: str, run: Run, cluster: Any, rng: np.random.Generator) -> None:
    """Kills one ``victim`` of the run, and does what whoever watches a cluster would do then."""
    if victim == "driver":
        run.process.send_signal(signal.SIGKILL)
        run.resume()
    elif victim == "node":
        nodes = sorted(cluster.worker_nodes, key=lambda node: node.unique_id)
        cluster.remove_node(nodes[rng.integers(len(nodes))], allow_graceful=False)
        cluster.add_node(**NODE)
    else:
        end = time.monotonic() + PATIENCE
        while not (found := processes(TITLES[victim])):
            if time.monotonic() > end:
                raise Stuck(f"there is no {victim} to kill:\n{run.tail()}")
            time.sleep(0.05)
        os.kill(found[rng.integers(len(found))], signal.SIGKILL)


def processes(title: str) -> list[int]:
    """Processes below this one whose title begins with ``title``; those of other clusters on the machine are not."""
    import psutil  # Ray's own copy, which importing Ray has made visible

    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(title):
                found.append(process.pid)
        except psutil.Error:  # it has just ended
            continue
    return sorted(found)


def disturbed(
    run: Run, cluster: Any, victims: Sequence[str], rng: np.random.Generator, steps: int
) -> list[dict[str, Any]]:
    """Kills ``victims`` one after another at random moments of ``run`` and waits for its end; what was done when."""
    events = []
    for number, victim in enumerate(victims):
        share = steps / (len(victims) + 1)
        run.wait_beyond(int((number + 0.1 + rng.uniform(0.0, 0.9)) * share))
        time.sleep(rng.uniform(0.0, 0.2))
        step, killed = run.step(), time.monotonic()
        kill(victim, run, cluster, rng)
        run.wait_beyond(min(step + 1, steps))
        events.append({"victim": victim, "after_step": step, "seconds_to_next": round(time.monotonic() - killed, 2)})
    run.wait()
    return events


def prepare(folder: Path, config: str = CONFIG) -> None:
    """Everything before RL."""
    folder.mkdir(parents=True)
    (folder / "soak.toml").write_text(config)
    command = [sys.executable, "-m", "sidgym.launch.cli", "sft", str(folder / "soak.toml"), "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Stuck(done.stderr[-3000:])


def one_run(
    prepared: Path,
    folder: Path,
    cluster: Any,
    victims: Sequence[str] = (),
    seed: int = 0,
    options: Sequence[str] = (),
    steps: int = STEPS,
) -> list[dict[str, Any]]:
    """A run in ``folder`` on what is ``prepared``, with ``victims`` killed; what was done when. Raises ``Stuck``."""
    shutil.copytree(prepared, folder)
    run = Run(folder, cluster.address, options)
    try:
        return disturbed(run, cluster, victims, np.random.default_rng(seed), steps)
    finally:
        run.close()


def compare(whole: Path, other: Path, steps: int = STEPS) -> None:
    """Raises ``Stuck`` unless two finished runs have the same weights and metrics, and each iteration once."""
    one, two = whole / "soak/rl", other / "soak/rl"
    for name in ("model.safetensors", "metrics.jsonl"):
        if (one / name).read_bytes() != (two / name).read_bytes():
            raise Stuck(f"{name} differs between {one} and {two}")
    check_accounts(two / "metrics.jsonl", steps)


def check_accounts(metrics: Path, steps: int, groups: int = 16) -> None:
    """Raises ``Stuck`` unless every iteration was learned from once, with as many groups as were asked for."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    learned = [row for row in rows if "contexts/groups" in row]
    if [row["step"] for row in learned] != list(range(1, steps + 1)):
        raise Stuck(f"{metrics}: iterations {[row['step'] for row in learned]}, expected 1 to {steps} once each")
    if {row["contexts/groups"] for row in learned} != {float(groups)}:
        raise Stuck(f"{metrics}: expected {groups} groups in every iteration")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs with kills until there were enough."""
    victims = QUICK_VICTIMS if options.quick else VICTIMS
    kills, steps = (len(victims), QUICK_STEPS) if options.quick else (options.kills, STEPS)
    shorter = ["--rl.steps", str(steps)]
    events: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="sidgym-soak-") as name, ray_cluster() as cluster:
        root = Path(name)
        prepare(root / "prepared")
        # The plain trainer's bits are RLlib's, and there sooner.
        one_run(root / "prepared", root / "whole", cluster, options=PLAIN + shorter if options.quick else shorter)
        vllm = importlib.util.find_spec("vllm") is not None and not options.quick
        while len(events) < kills:
            seed = options.seeds[0] + len(events)
            order = np.random.default_rng(seed).permutation(victims)[: kills - len(events)].tolist()
            folder = root / f"run-{len(events)}"
            done = one_run(root / "prepared", folder, cluster, order, seed, shorter, steps)
            events += [{"seed": seed, **event} for event in done]
            compare(root / "whole", folder, steps)
            shutil.rmtree(folder)
            print(f"{len(events)} of {kills} kills, all made good", file=sys.stderr, flush=True)
        if vllm:
            events += soak_vllm(root, cluster, options.seeds[0])
    waits = {victim: [e["seconds_to_next"] for e in events if e["victim"] == victim] for victim in (*VICTIMS, "vllm")}
    return {
        "kills": len(events),
        # The first difference ends the script. vLLM's own bits differ: of its kills only the iterations count.
        "weights_and_metrics_equal": True,
        "kills_compared_bit_for_bit": sum(event["victim"] != "vllm" for event in events),
        "kills_with_every_iteration_once": len(events),
        "seconds_to_next": {victim: round(float(np.median(times)), 2) for victim, times in waits.items() if times},
        "vllm": vllm,
        "events": events,
    }


def soak_vllm(root: Path, cluster: Any, seed: int) -> list[dict[str, Any]]:
    """One run of engine vllm whose engine is killed twice."""
    steps = 12
    options = ["--rl.engine", "vllm", "--rl.env-runners", "0", "--rl.learners", "0", "--rl.steps", str(steps)]
    events = one_run(root / "prepared", root / "vllm", cluster, ("vllm", "vllm"), seed, options, steps)
    check_accounts(root / "vllm/soak/rl/metrics.jsonl", steps)
    return [{"seed": seed, **event} for event in events]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this script alone."""
    parser.add_argument("--kills", type=int, default=20, help="how many processes and nodes are killed in all")


if __name__ == "__main__":
    script.main("soak", __doc__ or "", measure, packages=("ray",), add_options=add_options)
