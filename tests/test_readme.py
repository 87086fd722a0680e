"""The README's Python is run as it is written, and what it names exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="the wheel carries no README")


def test_the_python_loop_runs_as_written(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert blocks, "the README shows how to step the environment"
    assert len(blocks[0].strip().splitlines()) <= 18
    result = subprocess.run(
        [sys.executable, "-c", blocks[0]], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "reward" in result.stdout


def test_the_map_names_every_module():
    text = README.read_text()
    for folder in ("sid", "envs", "agents", "benchmarks", "launch"):
        for path in sorted((ROOT / folder).glob("*.py")):
            if path.name != "__init__.py":
                assert re.search(rf"\b{re.escape(path.name)}\b", text), f"{folder}/{path.name} is missing in the map"


def test_files_that_the_readme_names_exist():
    for name in re.findall(r"`((?:docs|benchmarks|launch|tests)/[\w./-]+)`", README.read_text()):
        assert (ROOT / name).exists(), name
