"""What a trainer learns from: paths and settings that travel to other processes as they are.

Left out: learning (``trainer``) and the loop around it (``rl``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sidgym.agents.config import RewardConfig, RlConfig, ScoringConfig
from sidgym.envs.records import Episodes
from sidgym.envs.rewards import RewardContext, RewardSum, may_read
from sidgym.sid.table import SidTable


@dataclass(frozen=True)
class RlTask:
    """What a trainer learns from. Paths instead of arrays, so that it travels to remote workers as it is."""

    policy: str  # checkpoint directory that training starts from
    contexts: str  # Episodes as .npz: the RL contexts
    seed: int
    config: RlConfig
    embeddings: str = ""  # (N, D) .npy, for rewards that compare items
    preference: str = ""  # directory of a fitted preference model
    truth: str = ""  # directory of the simulator's truth: its shoppers, and the oracle's reward
    popularity: str = ""  # (N,) .npy, positive events of each item in the log that training may read
    data: str = ""  # directory of the data set, for its catalogue
    address: str = ""  # Ray cluster to connect to: "auto" or host:port; none starts Ray on this machine
    refused: str = ""  # folder for the batches of refused updates; none keeps none
    scoring: ScoringConfig = field(default_factory=ScoringConfig)  # how the preference model is asked

    def load_contexts(self) -> Episodes:
        """The RL contexts."""
        return load_episodes(Path(self.contexts))

    def load_reward(self, table: SidTable) -> RewardSum:
        """The reward function of the config, with everything that its terms ask for."""
        return load_reward(self, table, self.config.rewards)


def load_reward(task: RlTask, table: SidTable, terms: Sequence[RewardConfig]) -> RewardSum:
    """The sum of ``terms`` over the models and arrays that ``task`` points to.

    The catalogue and the preference model are read only for terms that say they need them, and for those of the user's
    own, which need not say.
    """
    preference = truth = catalogue = gate = None

    if task.preference:
        from sidgym.agents.scoring import scorer
        from sidgym.envs.gate import Gate

        gate = Gate.load(task.preference)
        preference = scorer(task.preference, task.scoring) if may_read(terms, "preference") else None
    # A relevance of the user's own, which the gate names, need not say either.
    own = gate is not None and ":" in gate.relevance and may_read(terms, "preference")
    if task.data and (own or may_read(terms, "catalogue")):
        from sidgym.envs.datasets import load_catalogue

        catalogue = load_catalogue(task.data)
    if task.truth:
        from sidgym.envs.simulator import Truth

        truth = Truth.load(Path(task.truth))
    context = RewardContext(
        table=table,
        embeddings=np.load(task.embeddings) if task.embeddings else None,
        preference=preference,
        truth=truth,
        popularity=np.load(task.popularity) if task.popularity else None,
        catalogue=catalogue,
        gate=gate,
    )
    config = task.config
    return RewardSum(terms, context, config.group_size if config.environment == "next_item" else config.page_size)


def save_episodes(path: Path, episodes: Episodes) -> None:
    """Episodes as one .npz file without pickled objects."""
    arrays = {name: value for name, value in vars(episodes).items() if value is not None}
    np.savez(path, **arrays)


def load_episodes(path: Path) -> Episodes:
    """Inverse of ``save_episodes``."""
    with np.load(path, allow_pickle=False) as arrays:
        return Episodes(**{name: arrays[name] for name in arrays.files})
