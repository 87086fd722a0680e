"""House rules that a reader of the source can check: direction of imports, who may import what, docstrings, length."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("sid", "envs", "agents", "benchmarks", "launch")
"""Each may import those before it, and itself."""

ONLY_IN = {
    # The benchmark runs an algorithm that is not ours; nothing of ours is built on RLlib there.
    "ray.rllib": {
        "agents/rllib.py",
        "agents/rllib_algorithm.py",
        "agents/rllib_config.py",
        "agents/rllib_learner.py",
        "benchmarks/next_token_rllib.py",
    },
    "gymnasium": {
        "envs/spaces.py",
        "envs/views.py",
        "envs/next_item.py",
        "envs/next_token.py",
        "envs/page.py",
        "envs/session.py",
        "envs/registration.py",
        "benchmarks/environments.py",
        "benchmarks/next_token_store.py",
    },
}
"""Packages that a few files may import, at any depth of nesting."""

MOST_LINES = 400

if not (ROOT / "sid" / "registry.py").exists():
    pytest.skip("the source tree is not here", allow_module_level=True)

PACKAGE_FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
FILES = [*PACKAGE_FILES, *sorted((ROOT / "sidgym").glob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that is imported, nested imports too; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def layer_faults(layer: str, tree: ast.AST) -> list[str]:
    """What a file of ``layer`` imports against the direction, by line."""
    above = LAYERS[LAYERS.index(layer) + 1 :]
    faults = []
    for line, name in imports(tree):
        if name.startswith("."):
            faults.append(f"{line}: relative import {name}; write sidgym.{layer}...")
        if any(within(name, other) for other in LAYERS):
            faults.append(f"{line}: {name}; write sidgym.{name}")
        if any(within(name, f"sidgym.{other}") for other in above):
            faults.append(f"{line}: {layer} must not import {name}")
        if name == "sidgym.Recommender" and layer in ("sid", "envs", "agents"):
            faults.append(f"{line}: {layer} must not go through the front door")
    return faults


def importers(package: str) -> set[str]:
    """Files of the package that import ``package`` anywhere."""
    return {relative(p) for p in PACKAGE_FILES if any(within(name, package) for _, name in imports(parse(p)))}


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer):
    files = sorted((ROOT / layer).rglob("*.py"))
    assert files, f"no files in {layer}/"
    faults = [f"{relative(path)}:{fault}" for path in files for fault in layer_faults(layer, parse(path))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "source",
    [
        "import sidgym.agents.policy",
        "def f():\n    from sidgym.launch import config",
        "from sidgym import agents",
        "import envs",
        "from envs.records import Episodes",
        "from .records import Episodes",
        "if x:\n    from sidgym import Recommender",
    ],
)
def test_the_check_itself_sees_wrong_imports(source):
    assert len(layer_faults("envs", ast.parse(source))) == 1


def test_the_check_itself_allows_right_imports():
    source = "from sidgym.sid.trie import Trie\nfrom sidgym.envs import records\nimport numpy\nimport environs"
    assert layer_faults("envs", ast.parse(source)) == []


def test_tests_say_sidgym_too():
    tests = sorted((ROOT / "tests").rglob("*.py"))
    faults = [
        f"{relative(path)}:{line}: {name}"
        for path in tests
        for line, name in imports(parse(path))
        if any(within(name, layer) for layer in LAYERS)
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("package", sorted(ONLY_IN))
def test_only_the_named_files_import(package):
    assert importers(package) <= ONLY_IN[package]


def test_at_most_one_file_imports_vllm():
    assert len(importers("vllm")) <= 1


def test_sid_needs_numpy_and_torch_only():
    """At module level; scikit-learn, scipy and faiss are imported inside functions."""
    optional = {"sklearn", "scipy", "faiss", "pandas", "transformers", "sentence_transformers", "matplotlib"}
    faults = []
    for path in sorted((ROOT / "sid").rglob("*.py")):
        top = [node for node in parse(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = [name for node in top for _, name in imports(node)]
        faults += [f"{relative(path)}: {name}" for name in names if name.split(".")[0] in optional]
    assert not faults, "\n".join(faults)


def test_every_file_has_a_docstring_and_stays_short():
    faults = []
    for path in FILES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            faults.append(f"{relative(path)}: {lines} lines, at most {MOST_LINES}; split it")
        if not ast.get_docstring(parse(path)):
            faults.append(f"{relative(path)}: no module docstring")
    assert not faults, "\n".join(faults)
