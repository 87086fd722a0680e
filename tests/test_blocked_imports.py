"""What must run on a machine that has only torch and transformers, and what the front door must not load."""

import os
import subprocess
import sys
from pathlib import Path

import sidgym

BLOCKED = ("ray", "vllm", "gymnasium")
MAY_NEED_THEM = {
    "sidgym.agents.rllib",
    "sidgym.agents.rllib_algorithm",
    "sidgym.agents.rllib_config",
    "sidgym.agents.rllib_learner",
    "sidgym.envs.spaces",
    "sidgym.envs.views",
    "sidgym.envs.next_item",
    "sidgym.envs.next_token",
    "sidgym.envs.page",
    "sidgym.envs.session",
    "sidgym.envs.registration",
    "sidgym.benchmarks.environments",
    "sidgym.benchmarks.next_token_store",
    "sidgym.benchmarks.next_token_sb3",
    "sidgym.benchmarks.next_token_rllib",
}
"""Modules that import a blocked package when they are imported; every other module must do without."""

IMPORT_ALL = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked in this test", name=name)

blocked, names = sys.argv[1].split(","), sys.argv[2].split(",")
for name in blocked:
    sys.modules[name] = None  # importlib.util.find_spec now reports it as not installed, as it would be
sys.meta_path.insert(0, Blocker())
failed = []
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed.append(f"{name}: {type(error).__name__}: {error}")
print("\\n".join(failed))
absent = sum(sys.modules.get(name) is None for name in blocked)
print(f"imported {len(names) - len(failed)} of {len(names)}; blocked {absent}")
"""


def modules() -> list[str]:
    """Every module of the package, by walking its folders; the links in a checkout are followed."""
    assert sidgym.__file__ is not None
    root = Path(sidgym.__file__).parent
    names = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        place = ".".join(["sidgym", *Path(folder).relative_to(root).parts])
        names += [place if f == "__init__.py" else f"{place}.{f[:-3]}" for f in files if f.endswith(".py")]
    return sorted(name for name in names if not name.endswith("__main__"))


def run(*arguments: str) -> str:
    """Standard output of a fresh interpreter that sees the same sidgym as this one."""
    assert sidgym.__file__ is not None
    environment = {**os.environ, "PYTHONPATH": str(Path(sidgym.__file__).parents[1])}
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_everything_else_imports_without_ray_vllm_and_gymnasium():
    names = [name for name in modules() if name not in MAY_NEED_THEM]
    assert {"sidgym", "sidgym.envs.records", "sidgym.launch.config"} <= set(names)
    out = run("-c", IMPORT_ALL, ",".join(BLOCKED), ",".join(names))
    assert out == f"imported {len(names)} of {len(names)}; blocked {len(BLOCKED)}", out


def test_front_door_loads_nothing_heavy():
    out = run("-c", "import sidgym, sys; print(*sorted({'torch', 'transformers', 'ray', 'pandas'} & set(sys.modules)))")
    assert out == ""
