"""Settings of every test session: one thread, no network, no telemetry, reproducible property tests."""

import os
from pathlib import Path

# Before anything imports torch, Ray, transformers or W&B: they read these once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray's workers are polite by default, and beside a second test process polite ones hardly ever get a turn.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own spelling
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import settings

import sidgym

settings.register_profile("sidgym", deadline=None, derandomize=True, max_examples=25, database=None)
# Against the wheel: what is there and where it is found, which a few examples show as well as many.
settings.register_profile("wheel", settings.get_profile("sidgym"), max_examples=3)
settings.load_profile("wheel" if os.environ.get("SIDGYM_WHEEL") else "sidgym")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


LONGEST = ("test_scripts.py", "test_rllib.py", "test_engine_vllm.py", "test_wheel.py")
"""Files that go first: with several processes, a long one that begins last leaves the others without work."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, everything else in its order."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_sessionstart() -> None:
    """In the run against the built wheel, refuse to test the checkout by mistake."""
    wheel = os.environ.get("SIDGYM_WHEEL")
    if wheel and not Path(str(sidgym.__file__)).is_relative_to(wheel):
        raise pytest.UsageError(f"expected sidgym from the unpacked wheel in {wheel}, got {sidgym.__file__}")
