"""Rollout engines: what draws the candidates. One protocol, and the engines that are known by name.

``torch`` is the built-in one, ``hf`` the reference (``generate`` of transformers), ``vllm`` needs the extra of that
name. Left out: how each of them works.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch

from sidgym.agents.config import RlConfig
from sidgym.agents.engine_base import TOP_K
from sidgym.agents.engine_hf import HfEngine
from sidgym.agents.engine_torch import MODES, TorchEngine
from sidgym.agents.engine_vllm import VllmEngine
from sidgym.agents.policy import Policy
from sidgym.envs.records import Episodes, Rollouts
from sidgym.sid.registry import resolve
from sidgym.sid.trie import Trie

__all__ = ["ENGINES", "MODES", "Engine", "HfEngine", "TorchEngine", "close_engine", "engine_of", "make_engine"]


@runtime_checkable
class Closeable(Protocol):
    """An engine that holds processes."""

    def close(self) -> None:
        """Ends them."""


class Engine(Protocol):
    """What draws candidates. ``version`` is the version of the weights in use; every rollout carries it."""

    version: int

    def rollout(
        self,
        episodes: Episodes,
        group_size: int,
        mode: str = "beam",
        trie: Trie | None = None,
        seed: int = 0,
        lanes: int = 1,
        top_k: int = TOP_K,
    ) -> Rollouts:
        """Groups of ``group_size`` candidates for each context, in the order of the contexts.

        ``TorchEngine`` says what the modes are. Targets are read in mode ``dynamic`` only.
        """

    def load_weights(self, state: dict[str, torch.Tensor], version: int) -> None:
        """Rolls out with the weights ``state`` of the policy's model from now on, and calls them ``version``."""


ENGINES: dict[str, Callable[..., Engine]] = {"torch": TorchEngine, "hf": HfEngine, "vllm": VllmEngine}
"""Name -> ``(policy, chunk, normalise) -> Engine``."""


def make_engine(name: str, policy: Policy, chunk: int, normalise: str, **options: int) -> Engine:
    """The engine called ``name`` over ``policy``. Raises ``ValueError`` that lists what is known."""
    return resolve("engine", name, ENGINES)(policy, chunk, normalise, **options)


def engine_of(config: RlConfig, policy: Policy) -> Engine:
    """The engine that ``config`` asks for."""
    options = {"engines": config.engines, "tensor_parallel_size": config.tensor_parallel}
    asked = {name: value for name, value in options.items() if value != 1}
    return make_engine(config.engine, policy, config.chunk, config.normalise, **asked)


def close_engine(engine: Engine) -> None:
    """Ends what an engine runs in other processes, if it does."""
    if isinstance(engine, Closeable):
        engine.close()
