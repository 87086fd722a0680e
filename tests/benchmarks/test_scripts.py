"""Every benchmark script has a quick mode whose last line is one JSON object."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sidgym.benchmarks

FOLDER = Path(sidgym.benchmarks.__file__).parent
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text())


def test_there_are_scripts():
    assert {"demo", "amazon_scientific"} <= set(SCRIPTS)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.parametrize("script", SCRIPTS)
def test_quick_prints_one_json_object_last(script, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", f"sidgym.benchmarks.{script}", "--quick"],
        capture_output=True,
        text=True,
        cwd=Path(sidgym.__file__).resolve().parents[1],
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["schema_version"] == 1
    assert figures["wall_seconds"] > 0
    assert figures["rl_minus_sft"]["ndcg@10"]["low"] <= figures["rl_minus_sft"]["ndcg@10"]["high"]
