"""A cluster of three nodes on one machine, each a raylet of its own: a node goes, another comes, and no bit changes."""

import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents import ray_start
from sidgym.agents.checkpoint import save_policy
from sidgym.agents.config import RlConfig
from sidgym.agents.rl import RlTask, TorchTrainer, save_episodes
from sidgym.benchmarks.soak import ray_cluster

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.ray]

CONFIG = RlConfig(
    group_size=6, contexts_per_step=16, chunk=4, epochs=2, minibatch=8, lr=1e-3, warmup_steps=3, kl_weight=0.1
)
ONE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
"""A node with room for one env runner."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs and two worker nodes with one each."""
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [path, str(Path(__file__).parent)]))
    with ray_cluster(ONE) as made:
        yield made
    os.environ["PYTHONPATH"] = path


@pytest.fixture
def task(tmp_path: Path, cluster: Any) -> RlTask:
    table = toy_table()
    save_policy(tmp_path / "policy", toy_policy(table))
    save_episodes(tmp_path / "contexts.npz", toy_episodes(40, len(table.codes)))
    paths = {"policy": str(tmp_path / "policy"), "contexts": str(tmp_path / "contexts.npz")}
    config = dataclasses.replace(CONFIG, env_runners=2)
    return RlTask(**paths, seed=3, config=config, address=cluster.address)


def nodes_of_env_runners(trainer: Any) -> list[str]:
    """Node ids of the env runners that answer."""
    return trainer.algorithm.env_runner_group.foreach_env_runner(
        lambda runner: ray.get_runtime_context().get_node_id(), local_env_runner=False, timeout_seconds=30.0
    )


def test_a_node_is_lost_and_another_added_in_the_middle_of_a_run(task, cluster):
    from sidgym.agents.rllib import RllibTrainer

    undisturbed = TorchTrainer(dataclasses.replace(task, config=CONFIG))
    trainer = RllibTrainer(task)
    try:
        numbers = iter(range(200))

        def step() -> None:
            number = next(numbers)
            assert trainer.step(number) == undisturbed.step(number)

        step()
        nodes = {node.node_id: node for node in cluster.worker_nodes}
        assert set(nodes_of_env_runners(trainer)) == set(nodes), "one env runner on each worker node"
        assert ray.get_runtime_context().get_node_id() not in nodes, "the driver is on the head"
        lost = sorted(nodes)[0]
        cluster.remove_node(nodes[lost], allow_graceful=False)
        step()  # with the one that is left
        assert set(nodes_of_env_runners(trainer)) == set(nodes) - {lost}
        added = cluster.add_node(**ONE)
        expected = set(nodes) - {lost} | {added.node_id}
        end = time.monotonic() + 120.0
        while set(nodes_of_env_runners(trainer)) != expected:
            assert time.monotonic() < end, "the lost env runner did not come back on the new node"
            step()
            time.sleep(0.2)
        step()
        assert trainer.updates == undisturbed.updates
        mine, theirs = trainer.weights(), undisturbed.weights()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    finally:
        trainer.close()
    assert not ray.is_initialized(), "the trainer is still connected"


def test_more_workers_than_the_cluster_has_cpus_are_refused_after_a_while(task, monkeypatch):
    monkeypatch.setattr(ray_start, "PATIENCE", 1.0)
    with pytest.raises(ValueError, match="too few CPUs: the run wants 5"):
        ray_start.start_ray(dataclasses.replace(task, config=dataclasses.replace(CONFIG, env_runners=5)))
    assert not ray.is_initialized()


def test_no_cluster_at_the_address_is_said(task):
    with pytest.raises(ValueError, match=r"no Ray cluster answers at address '127.0.0.1:1': start one"):
        ray_start.start_ray(dataclasses.replace(task, address="127.0.0.1:1"))
    assert not ray.is_initialized()
