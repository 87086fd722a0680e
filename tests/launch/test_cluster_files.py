"""The files that start a run on a cluster: they parse, fit together, and their command line works on a cluster."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_pipeline import TINY, write_config

import sidgym.launch
from sidgym.launch.cli import main

FOLDER = Path(str(sidgym.launch.__file__)).parent / "cluster"
GUIDE = Path(__file__).parents[2] / "docs" / "cluster.md"
FILES = {"ray-cluster.yaml", "rayjob.yaml", "slurm.sh"}

ray = pytest.importorskip("ray")


def command_of(text: str) -> list[str]:
    """Words of the first sidgym command line in a file; a line may go on after a backslash."""
    found = re.search(r"\bsidgym (?:run|rl) [^'\n]*", text.replace("\\\n", " "))
    assert found, "no command line"
    return shlex.split(found.group())


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def test_these_are_the_files():
    assert {path.name for path in FOLDER.iterdir()} == FILES


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_command_goes_on_by_itself_when_it_is_started_again(name):
    command = command_of((FOLDER / name).read_text())
    assert command[1] == "run" or "--resume" in command
    assert option(command, "--address")


def test_ray_reads_its_cluster_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read("ray-cluster.yaml"))
    validate_config(config)
    assert any("ray start --head" in line for line in config["head_start_ray_commands"])
    assert any("$RAY_HEAD_IP" in line for line in config["worker_start_ray_commands"])
    command = command_of((FOLDER / "ray-cluster.yaml").read_text())
    assert f"'{' '.join(command)}'" in (FOLDER / "ray-cluster.yaml").read_text(), "ray exec takes one argument"


def test_the_kubernetes_job_has_room_for_its_workers_and_mounts_what_it_names():
    spec = read("rayjob.yaml")["spec"]
    assert (read("rayjob.yaml")["apiVersion"], read("rayjob.yaml")["kind"]) == ("ray.io/v1", "RayJob")
    command = shlex.split(spec["entrypoint"])
    assert command == command_of((FOLDER / "rayjob.yaml").read_text())
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        places = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert all(any(path.startswith(place) for place in places) for path in (command[2], option(command, "--out")))
    requests = [(g["replicas"], g["template"]["spec"]["containers"][0]["resources"]["requests"]) for g in groups[1:]]
    cpus = sum(replicas * int(request["cpu"]) for replicas, request in requests)
    assert int(option(command, "--rl.env-runners")) + int(option(command, "--rl.learners")) <= cpus


STUBS = {
    "scontrol": 'printf "node1\\nnode2\\nnode3\\n"',
    "srun": """for word; do
    [[ $word == --* ]] || break
    [[ $word == --nodelist=* ]] && export NODE="${word#*=}"
    [[ $word == --cpus-per-task=* ]] && export CPUS_OF_STEP="${word#*=}"
    shift
done
exec "$@" """,
    "hostname": 'echo "127.0.0.1 10.0.0.1"',
    "ray": """echo "$NODE $CPUS_OF_STEP: ray $*" >> "$SAID"
[[ $2 == --head ]] && exec python3 -c "$LISTEN"
read -r < "$END" """,
    "sidgym": """while (( $(wc -l < "$SAID") < 3 )); do sleep 0.05; done
echo "$NODE $CPUS_OF_STEP: sidgym $*" >> "$SAID" """,
}
"""What stands for the programs of a SLURM cluster: they say on which node and with how many CPUs they were asked for
what. The run begins once the nodes have said so; Ray stays until the script ends it."""


def test_the_slurm_script_starts_the_head_then_the_others_then_the_run(tmp_path):
    subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], check=True)
    for name, text in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.mkfifo(tmp_path / "end")  # nobody writes to it
    listen = f"import socket; s = socket.create_server(('127.0.0.1', {port})); open({str(tmp_path / 'end')!r}).read()"
    own = {"SAID": str(tmp_path / "said"), "LISTEN": listen, "PORT": str(port), "SLURM_JOB_NODELIST": "node[1-3]"}
    own |= {"END": str(tmp_path / "end"), "SLURM_CPUS_PER_TASK": "8"}
    variables = {**os.environ, **own, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(FOLDER / "slurm.sh")], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    head, *others, run = (tmp_path / "said").read_text().splitlines()
    assert head == f"node1 8: ray start --head --node-ip-address=127.0.0.1 --port={port} --num-cpus=8 --block"
    start = f"ray start --address=127.0.0.1:{port} --num-cpus=8 --block"
    assert sorted(others) == [f"node2 8: {start}", f"node3 8: {start}"]
    assert run.startswith(
        f"node1 8: sidgym rl /shared/demo.toml --out /shared/runs --address 127.0.0.1:{port} --resume "
    )
    command = shlex.split(run.partition(": ")[2])
    assert int(option(command, "--rl.env-runners")) + int(option(command, "--rl.learners")) <= 3 * 8


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A run whose stages before RL are built."""
    folder = tmp_path_factory.mktemp("prepared")
    # As in the shipped configurations, only the main arm is spread over the cluster.
    text = TINY.replace('backend = "torch"', 'backend = "rllib"').replace(
        "[arms.nll_only]", '[arms.nll_only]\nbackend = "torch"'
    )
    main(["sft", write_config(folder, text), "--out", str(folder)])
    main(["rl", str(folder / "tiny.toml"), "--out", str(folder / "torch"), "--rl.backend", "torch"])
    return folder


@pytest.fixture(scope="module")
def cluster() -> Any:
    from sidgym.benchmarks.soak import ray_cluster

    with ray_cluster({"num_cpus": 1, "object_store_memory": 80 * 2**20}) as made:
        yield made


def commands() -> dict[str, list[str]]:
    """Every command line of the files, and those of the guide where there is one."""
    found = {name: command_of((FOLDER / name).read_text()) for name in sorted(FILES)}
    if GUIDE.exists():
        lines = re.findall(r"\bsidgym (?:run|rl) (?:/|CONFIG)[^`\n]*", GUIDE.read_text())
        found |= {f"cluster.md {n}": shlex.split(line) for n, line in enumerate(lines)}
    return {
        name: words for number, (name, words) in enumerate(found.items()) if words not in [*found.values()][:number]
    }


def run_ones() -> list[str]:
    """A name of a command line for each verb: the others differ in what is read, not in what is done."""
    named = {words[1]: name for name, words in reversed(commands().items()) if "--rl.backend" not in words}
    return sorted(named.values())


@pytest.mark.parametrize("name", commands())
def test_the_command_line_is_read(tmp_path, capsys, name):
    """All of them: with the settings that they name, and nothing that is not known."""
    _, verb, _, *options = ["10.0.0.1:6379" if "$" in word else word for word in commands()[name]]
    main([verb, write_config(tmp_path, TINY), *options, "--print-config"])
    read = tomllib.loads(capsys.readouterr().out)
    for key in ("env_runners", "learners"):
        flag = f"--rl.{key.replace('_', '-')}"
        if flag in options:
            assert read["rl"][key] == int(option(options, flag))
    assert read["address"] == option(options, "--address")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(280)
@pytest.mark.parametrize("name", run_ones())
def test_the_command_line_runs_on_a_cluster(prepared, cluster, tmp_path, name):
    """On a small store, with as many workers as there are CPUs, and with the cluster's own address."""
    assert not ray.is_initialized()
    shutil.copytree(prepared / "tiny", tmp_path / "tiny")
    _, verb, _, *options = commands()[name]
    changed = {
        "--out": str(tmp_path),
        "--address": cluster.address,
        "--rl.env-runners": "1",
        "--rl.learners": "1",
        "--eval.bootstrap": "10",
    }
    for key, value in changed.items():
        if key in options:
            options[options.index(key) + 1] = value
    main([verb, str(prepared / "tiny.toml"), *options, "--rl.backend", "rllib"])
    assert not ray.is_initialized()
    for file in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "tiny/rl" / file).read_bytes() == (prepared / "torch/tiny/rl" / file).read_bytes(), file
