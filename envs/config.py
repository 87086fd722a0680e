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
    every_label: bool = False
    """chronological only: every label of a period is a context, and the shares are of labels with a history, as in
    MiniOneRec; else only each user's first label in a period, and the shares are of positive events."""
    start: str = ""
    """Events before this moment are left out: 2016-10, 2016-10-01 (UTC), or seconds since the log's origin."""
    end: str = ""
    """Events from this moment on are left out, given in the same way."""
    max_events: int = 0
    """Of each user only so many latest positive events are kept, after the k-core; 0 keeps all."""
    title_words: int = 0
    """Items without a title, or with one of more words, are dropped before the k-core (MiniOneRec: 20); 0 keeps all.
    Not for openonerec, whose items have no titles."""
    min_rating: float = 0.0
    """amazon_reviews and movielens only: events with a lower rating are left out; 0 keeps all."""
    repeats: str = "keep"
    """A user's events with one item: keep all, drop copies at the same time (exact), or keep the first only (first)."""
    clicks: tuple[str, ...] = ()
    """kuairand and openonerec only: feedback columns of which one set makes an event a click; empty takes the reader's
    own, which its notes name. kuairand takes thresholds, too: watch_ratio>=0.8."""
    orders: tuple[str, ...] = ()
    """kuairand and openonerec only: feedback columns of which one set makes an event as good as an order."""
    domain: str = "video"
    """openonerec only: video, goods or ad."""
    max_malformed: float = 0.01
    """Share of malformed rows beyond which a file is refused; up to it they are counted, shown and left out."""


@dataclass(frozen=True)
class EvalConfig:
    """How a policy is judged."""

    beam: int = 50
    """Beam width of the evaluation; at least the largest k."""
    ks: tuple[int, ...] = (1, 5, 10, 50)
    """Cut-offs of HR and NDCG, and of further metrics."""
    metrics: tuple[str, ...] = ()
    """Metrics beside HR and NDCG: names in METRICS such as mrr, or package.module:name."""
    max_users: int = 0
    """Evaluate on the first so many test contexts; 0 takes all."""
    bootstrap: int = 2000
    """Resamples of the paired bootstrap over users."""
    batch: int = 64
    """Contexts a batch."""
