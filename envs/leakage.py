"""The leakage check: verifies finished splits from the log alone, sharing no code with how they were made.

What a record says is compared with the events of its user: a training sequence must be the beginning of the user's
positive events, a history must be exactly the positive events before the target's page, and along each user's log
training must come before validation and validation before test.
"""

import numpy as np
import pandas as pd

from sidgym.envs.records import CLICK, PAD_ITEM, Episodes, Interactions, Sequences, Splits


class _Log:
    """The positive events of a log and the pages they were on, as pandas computes them."""

    def __init__(self, log: Interactions) -> None:
        frame = pd.DataFrame({"user": log.user, "item": log.item, "row": np.arange(len(log))})
        frame["page"] = frame["row"] if log.page is None else frame.groupby(["user", log.page]).ngroup()
        rows = frame.groupby("page")["row"]
        frame["page_start"], frame["page_end"] = rows.transform("min"), rows.transform("max")
        frame["positive"] = True if log.feedback is None else log.feedback >= CLICK
        self.frame = frame
        self.good = frame[frame["positive"]].reset_index(drop=True)
        self.users, first, count = np.unique(self.good["user"], return_index=True, return_counts=True)
        self.first, self.count = first, count

    def find(self, users: np.ndarray) -> np.ndarray:
        """Place of each user in ``self.users``, -1 for a user without positive events."""
        return pd.Index(self.users).get_indexer(pd.Index(users))


def _fail(part: str, what: str) -> None:
    raise ValueError(f"leakage check: {part}: {what}")


def _sequence_ends(log: _Log, part: str, sequences: Sequences) -> pd.Series:
    """Log row of the last event of each sequence, by user; sequences must be the beginnings of their users' logs."""
    if not len(sequences):
        return pd.Series(dtype=np.int64)
    place = log.find(sequences.user)
    length = np.diff(sequences.offsets)
    if len(np.unique(sequences.user)) != len(sequences.user) or (length < 1).any():
        _fail(part, "expected one sequence with at least one item for each user")
    too_long = (place < 0) | (length > log.count[place])
    if too_long.any():
        user = sequences.user[np.argmax(too_long)]
        _fail(part, f"the sequence of user {user} is longer than the user's positive events")
    inside = np.arange(len(sequences.items)) - np.repeat(sequences.offsets[:-1], length)
    expected = log.good["item"].to_numpy()[np.repeat(log.first[place], length) + inside]
    if (expected != sequences.items).any():
        user = np.repeat(sequences.user, length)[np.argmax(expected != sequences.items)]
        _fail(part, f"the sequence of user {user} is not the beginning of the user's positive events")
    last = log.good["row"].to_numpy()[log.first[place] + length - 1]
    return pd.Series(last, index=sequences.user)


def _check_episodes(log: _Log, part: str, episodes: Episodes) -> pd.DataFrame:
    """Start and end row of each context's label page; targets and histories must be what the log says."""
    if episodes.event is None:
        raise ValueError(
            f"leakage check: {part}: Episodes.event is missing; it is needed to find the targets in the log"
        )
    if len(episodes) and not (episodes.event.min() >= 0 and episodes.event.max() < len(log.frame)):
        _fail(part, f"events should be rows of the log, 0 to {len(log.frame) - 1}; the splits belong to another log")
    label = log.frame.iloc[episodes.event].reset_index(drop=True)
    wrong = (label["user"] != episodes.user) | (label["item"] != episodes.target) | ~label["positive"]
    if wrong.any():
        row = int(np.argmax(wrong))
        _fail(part, f"context {row}: its event {episodes.event[row]} is not a positive event of its user on its target")
    page = np.repeat(label["page"].to_numpy(), episodes.targets.shape[1])
    pairs = pd.MultiIndex.from_arrays([page, episodes.targets.ravel()])
    known = pairs.isin(pd.MultiIndex.from_frame(log.good[["page", "item"]])).reshape(episodes.targets.shape)
    if not (known | (episodes.targets == PAD_ITEM)).all():
        row = int(np.argmax(~(known | (episodes.targets == PAD_ITEM)).all(axis=1)))
        _fail(part, f"context {row}: a target was not engaged with on the page of its event")
    _check_histories(log, part, episodes, label)
    return label[["user", "page_start", "page_end"]]


def _check_histories(log: _Log, part: str, episodes: Episodes, label: pd.DataFrame) -> None:
    """Each history must be the user's latest positive events before the page of the label, oldest first."""
    stop = np.searchsorted(log.good["row"].to_numpy(), label["page_start"].to_numpy())
    start = log.first[log.find(episodes.user)]
    place = stop[:, None] - np.arange(episodes.history.shape[1], 0, -1)[None]
    items = log.good["item"].to_numpy()
    expected = np.where(place >= start[:, None], items[np.maximum(place, 0)], PAD_ITEM)
    wrong = (expected != episodes.history).any(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        who = f"context {row}: the history of user {episodes.user[row]}"
        _fail(part, f"{who} is not what the user did before the target's page")


def _before(earlier: pd.Series, later: pd.Series, first: str, second: str) -> None:
    """Each user's last row in ``earlier`` must come before the user's first row in ``later``."""
    limit = later.groupby(level=0).min()
    rows = earlier.groupby(level=0).max()
    both = rows.index.intersection(limit.index)
    wrong = rows[both] >= limit[both]
    if wrong.any():
        user = wrong.index[np.argmax(wrong)]
        _fail(
            first,
            f"user {user} has event {rows[user]}, which is not before the {second} target's page at {limit[user]}",
        )


def check_leakage(splits: Splits, interactions: Interactions, disjoint_users: bool = False) -> None:
    """Raises ``ValueError`` where any part of ``splits`` holds what it should not have seen, by order of events.

    Checked for every user: SFT sequences end before the first RL, validation or test target; ``sft_all`` and the RL
    targets end before the validation and test targets; validation comes before test; histories end before their
    target's page. Trained users must be ``train_users``; with ``disjoint_users`` no validation or test user may be
    among them.
    """
    log = _Log(interactions)
    ends = {part: _sequence_ends(log, part, getattr(splits, part)) for part in ("sft", "sft_all")}
    labels = {part: _check_episodes(log, part, getattr(splits, part)) for part in ("rl", "valid", "test")}
    start = {part: label.set_index("user")["page_start"] for part, label in labels.items()}
    end = {part: label.set_index("user")["page_end"] for part, label in labels.items()}
    for part in ("rl", "valid", "test"):
        _before(ends["sft"], start[part], "sft", part)
    for part in ("valid", "test"):
        _before(ends["sft_all"], start[part], "sft_all", part)
        _before(end["rl"], start[part], "rl", part)
    _before(end["valid"], start["test"], "valid", "test")
    for part in ("sft", "sft_all", "rl"):
        strange = np.setdiff1d(getattr(splits, part).user, splits.train_users)
        if len(strange):
            _fail(part, f"user {strange[0]} is not among train_users")
    for part in ("valid", "test") if disjoint_users else ():
        shared = np.intersect1d(getattr(splits, part).user, splits.train_users)
        if len(shared):
            _fail(part, f"user {shared[0]} is among train_users, but this split keeps its users out of training")
