"""sidgym: generative recommendation by reinforcement learning over Semantic IDs.

The front door. Sub-packages, in the order in which they may import one another: ``sid`` (items <-> codes),
``envs`` (users, logs and reward), ``agents`` (policy and learning), ``benchmarks`` (measurement), ``launch`` (command
line). Nothing heavy is imported here: ``Recommender`` is loaded when it is first asked for.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Recommender", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Recommender":
        from sidgym.agents.recommender import Recommender

        return Recommender
    raise AttributeError(f"module 'sidgym' has no attribute {name!r}")
