"""Settings of the data, the split and the evaluation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataConfig:
    """Which log is read and how it is cut."""

    name: str = "simulator"
    """Name in DATASETS, or package.module:name."""
    path: str = ""
    """Folder or file of the raw data; not used by the simulator."""
    users: int = 3000
    """Simulator only: number of shoppers."""
    items: int = 2000
    """Simulator only: number of items."""
    split: str = "by_user"
    """by_user (the simulator's default), leave_one_out, or chronological (needs times)."""
    history: int = 20
    """Items of history a context keeps at most."""
    min_events: int = 5
    """Users and items with fewer positive events are dropped, repeatedly (k-core); 0 keeps all."""
    rl_share: float = 0.25
    """Share kept for RL contexts that SFT never trains on: of users (by_user), of users whose third-last event is used
    (leave_one_out), or of time (chronological)."""
    valid_share: float = 0.05
    """Share of users (by_user) or of time (chronological) for validation."""
    test_share: float = 0.2
    """Share of users (by_user) or of time (chronological) for test; they appear in no training stage."""
    rl_contexts_per_user: int = 4
    """by_user only: RL contexts cut from the end of each RL user's log."""


@dataclass(frozen=True)
class EvalConfig:
    """How a policy is judged."""

    beam: int = 50
    """Beam width of the evaluation; at least the largest k."""
    ks: tuple[int, ...] = (1, 5, 10, 50)
    """Cut-offs of HR and NDCG."""
    max_users: int = 0
    """Evaluate on the first so many test contexts; 0 takes all."""
    bootstrap: int = 2000
    """Resamples of the paired bootstrap over users."""
    batch: int = 64
    """Contexts a batch."""
