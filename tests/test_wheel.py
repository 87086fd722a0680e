"""The built wheel: complete, free of stray top-level names, and passing the suite outside the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("sidgym", "sid", "envs", "agents", "benchmarks", "launch")
RUN_AGAINST_WHEEL = (
    "tests/launch/test_config.py",
    "tests/launch/test_cluster_files.py",
    "tests/launch/test_pipeline.py",
    "tests/launch/test_report.py",
    "tests/launch/test_bench_sets.py",
    "tests/benchmarks/test_results_page.py",
)
"""Tests that are run once more, against the wheel: of code that reads files that a wheel may lack, and of a whole
pipeline. What is marked slow or starts Ray is run on the checkout only, but for ``ON_RAY``."""

ON_RAY = "tests/agents/test_rllib.py::test_one_env_runner_gives_the_bits_of_none"
"""Whether Ray's workers find the wheel, too."""

IMPORT_ALL = """
import importlib, pkgutil, sidgym
for module in pkgutil.walk_packages(sidgym.__path__, "sidgym."):
    importlib.import_module(module.name)
print("all imported")
"""

pytestmark = pytest.mark.slow

if not (ROOT / "setup.cfg").exists():
    pytest.skip("the source tree is not here", allow_module_level=True)


def run(command: list[str], folder: Path, **environment: str) -> str:
    """Output of a command in ``folder``; this process's own PYTHONPATH and pytest settings do not leak into it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHONPATH", "PYTEST_"))}
    result = subprocess.run(command, cwd=folder, env={**kept, **environment}, capture_output=True, text=True)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-6000:]
    return output


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy so that old build folders of the checkout cannot leak into it."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, copy / path.name)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), "."], copy)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_holds_every_module_and_nothing_else(unpacked):
    expected = {f"sidgym/{path.name}" for path in (ROOT / "sidgym").glob("*.py")} | {"sidgym/py.typed"}
    for layer in SOURCES[1:]:
        expected |= {f"sidgym/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / layer).rglob("*.py")}
    expected |= {f"sidgym/launch/configs/{path.name}" for path in (ROOT / "launch" / "configs").glob("*.toml")}
    expected |= {f"sidgym/launch/cluster/{path.name}" for path in (ROOT / "launch" / "cluster").iterdir()}
    found = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert {name for name in found if ".dist-info/" not in name} == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in found)
    (points,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "sidgym = sidgym.launch.cli:main" in points.read_text()


@pytest.mark.timeout(900)
def test_suite_passes_against_the_wheel_outside_the_checkout(unpacked, tmp_path):
    shutil.copy2(ROOT / "setup.cfg", tmp_path / "setup.cfg")  # markers and options of pytest
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    # conftest.py refuses to start unless sidgym comes from this folder.
    where = {"PYTHONPATH": str(unpacked), "SIDGYM_WHEEL": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1"}
    assert "all imported" in run([sys.executable, "-c", IMPORT_ALL], tmp_path, **where)
    for what in (["-m", "not slow and not ray", *RUN_AGAINST_WHEEL], [ON_RAY]):
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *what]
        assert " passed" in run(command, tmp_path, **where)
