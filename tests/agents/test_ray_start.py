"""What a run reserves of a machine or cluster; a start that cannot succeed is refused, and what was lost is told."""

import asyncio
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from trainers import local_ray, toy_task

from sidgym.agents import ray_start
from sidgym.agents.config import RlConfig
from sidgym.agents.ray_start import await_resources, gpus_of, processors_of, start_ray, start_ray_for_engines
from sidgym.agents.ray_train import FsdpTrainer, Mailbox, broke_off
from sidgym.agents.recovery import WorkersLost
from sidgym.agents.rllib_parts import losing_learners
from sidgym.agents.vllm_runners import ON_CPU, environment

ray = pytest.importorskip("ray")


@pytest.mark.parametrize(
    ("settings", "any_gpu", "cpus", "gpus"),
    [
        ({"env_runners": 2, "learners": 1}, True, 3, 0),
        ({"env_runners": 2, "learners": 1, "device": "cuda"}, True, 3, 3),
        ({"env_runners": 2, "learners": 1, "device": "cuda", "engine": "vllm"}, True, 3, 3),
        ({"env_runners": 2, "device": "cuda", "engine": "vllm", "engines": 2, "tensor_parallel": 4}, True, 2, 16),
        ({"device": "cuda", "engine": "vllm", "engines": 2}, True, 0, 2),
        ({"env_runners": 2, "engine": "vllm"}, True, 2, 2),
        ({"env_runners": 2, "engine": "vllm"}, False, 2, 0),
        ({"backend": "fsdp", "device": "cuda"}, True, 1, 1),
        ({"backend": "fsdp", "device": "cuda", "learners": 8}, True, 8, 8),
    ],
)
def test_what_a_run_reserves(settings, any_gpu, cpus, gpus):
    config = RlConfig(**settings)
    assert (processors_of(config), gpus_of(config, any_gpu)) == (cpus, gpus)


def test_more_gpus_than_the_machine_has_are_refused_before_ray_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    task = toy_task(tmp_path, device="cuda", learners=1, env_runners=1)
    with pytest.raises(ValueError, match=r"2 GPUs .*this machine has 1 GPUs"):
        start_ray(task)
    assert not ray.is_initialized()


def test_the_store_has_room_for_rollouts_that_wait(tmp_path, monkeypatch):
    stores = []
    monkeypatch.setattr(ray_start, "_start_here", lambda cpus, gpus, store: stores.append(store))
    task = toy_task(tmp_path)
    for staleness in (0, 3):
        start_ray(dataclasses.replace(task, config=dataclasses.replace(task.config, staleness=staleness)))
    weights = sum(path.stat().st_size for path in Path(task.policy).glob("*.safetensors"))
    assert stores[1] - stores[0] == 3 * weights


def test_vllm_is_told_of_a_cpu_by_the_gpus_of_the_engine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert set(ON_CPU) <= set(environment(0))
    assert not set(ON_CPU) & set(environment(1))


@pytest.fixture(scope="module")
def small():
    """Ray with two CPUs, and a GPU that is one by name alone."""
    with local_ray(2, gpus=1):
        yield


@pytest.mark.ray
@pytest.mark.usefixtures("small")
def test_what_ray_does_not_have_is_refused_and_asked_for_no_longer(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "ray.autoscaler.sdk.request_resources", lambda num_cpus=None, bundles=None: asked.append((num_cpus, bundles))
    )
    with pytest.raises(ValueError, match=r"too few GPUs: the run wants 1 CPUs .*, 2 GPUs"):
        await_resources(1, 2, 0.1)
    assert asked == [(1, [{"GPU": 1}] * 2), (0, [])]
    with pytest.raises(ValueError, match="too few CPUs"):
        await_resources(3, 0, 0.1)
    await_resources(1, 1, 0.0)
    with pytest.raises(ValueError, match="too few GPUs"):
        start_ray(toy_task(tmp_path, device="cuda", learners=2, backend="fsdp", contexts_per_step=4, env_runners=0))


@pytest.mark.ray
@pytest.mark.usefixtures("small")
def test_gpus_that_others_hold_are_not_counted_for_an_engine(monkeypatch):
    monkeypatch.setattr(ray_start, "FREED", 1.0)
    assert start_ray_for_engines(1, 1) == (1, False)
    with pytest.raises(ValueError, match=r"need 2 .* which has 1, 1 of them free"):
        start_ray_for_engines(2, 1)
    holder = ray.remote(num_cpus=0, num_gpus=1)(SimpleNamespace).remote()
    ray.get(holder.__ray_ready__.remote())
    with pytest.raises(ValueError, match="which has 1, 0 of them free"):
        start_ray_for_engines(1, 1)
    ray.kill(holder)
    monkeypatch.setattr(ray_start, "FREED", 30.0)
    assert start_ray_for_engines(1, 1) == (1, False)


@pytest.mark.ray
@pytest.mark.usefixtures("small")
def test_an_env_runner_whose_gpu_does_not_exist_says_so(tmp_path):
    from sidgym.agents.rllib_algorithm import GroupEnvRunner
    from sidgym.agents.rllib_config import GRPOConfig

    config = GRPOConfig().for_task(toy_task(tmp_path, device="cuda", env_runners=1))
    with pytest.raises(ValueError, match="env runner 1 was given a GPU and cannot use it"):
        GroupEnvRunner(config=config, worker_index=1)


def test_nothing_stays_in_the_mailbox():
    async def use() -> None:
        box = Mailbox(2)
        await box.put("command", 0, "restore")
        assert [await box.take("command", 0) for _ in range(2)] == ["restore"] * 2
        await box.put("answer", 0, "done")
        assert await box.take("answer", 0) == "done"
        assert (box.box, box.taken) == ({}, {})

    asyncio.run(use())


@pytest.mark.ray
def test_without_ray_train_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray.train", None)
    task = toy_task(tmp_path, backend="fsdp")
    with pytest.raises(ValueError, match=r"pip install 'ray\[train\]'"):
        FsdpTrainer(task)


def test_what_ray_train_ended_with_is_told():
    trainer = FsdpTrainer.__new__(FsdpTrainer)
    trainer._ray, trainer._failure = ray, None
    assert isinstance(trainer._ended(), WorkersLost)
    trainer._failure = ValueError("cannot be pickled")
    assert not isinstance(trainer._ended(), WorkersLost)
    assert "cannot be pickled" in str(trainer._ended())
    trainer._failure = ray.exceptions.ActorDiedError()
    assert isinstance(trainer._ended(), WorkersLost)


def test_a_rank_that_another_one_has_left_is_told_from_one_that_failed():
    assert broke_off(
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    )
    assert broke_off(torch.distributed.DistNetworkError("Connection was likely closed"))
    assert not broke_off(RuntimeError("log-probabilities differ"))


def test_what_is_lost_while_building_is_lost_and_what_cannot_be_built_is_not():
    with pytest.raises(WorkersLost, match="NodeDiedError: node 7 is gone"), losing_learners(lambda: None):
        raise ray.exceptions.NodeDiedError("node 7 is gone\nand more")
    unfit = ray.exceptions.RayActorError(error_msg="no such reward", actor_init_failed=True)
    with pytest.raises(ray.exceptions.RayActorError, match="no such reward"), losing_learners(lambda: None):
        raise unfit
    with pytest.raises(ValueError, match="own"), losing_learners(lambda: None):
        raise ValueError("own")


@pytest.mark.ray
@pytest.mark.usefixtures("small")
def test_a_learner_that_is_lost_while_building_can_be_made_good(tmp_path, monkeypatch):
    from sidgym.agents.rllib import RllibTrainer
    from sidgym.agents.rllib_config import GRPOConfig

    def dies(config: GRPOConfig) -> None:
        raise ray.exceptions.ActorDiedError()

    monkeypatch.setattr(GRPOConfig, "build_algo", dies)
    with pytest.raises(WorkersLost):
        RllibTrainer(toy_task(tmp_path))
