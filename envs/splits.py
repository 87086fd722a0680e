"""Splits: one log cut into what supervised training, RL, validation and test may see.

Every split works on labels. A label is what a context asks for: the positive events of one page where the log has
pages, else one positive event. Its target is its first positive, and its history is what the user did before the page.
``check_leakage`` (in ``leakage``) verifies each result from the log alone. Left out: negative sampling, data
augmentation, and windows over long sequences, which are up to whoever trains.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import SCHEMA_VERSION, DataSet, read_manifest, staged
from sidgym.envs.leakage import check_leakage
from sidgym.envs.records import CLICK, PAD_ITEM, SHOWN, Episodes, Interactions, Sequences, Splits
from sidgym.sid.registry import resolve

MANIFEST = "splits.json"
NEEDS_ORDER_AFTER = "preference models and baselines may read the log only up to each user's validation target"


@dataclass(frozen=True)
class Labels:
    """The labels of a log in order; Q labels over P positive events. Made by ``find_labels``."""

    log: Interactions
    rows: np.ndarray  # (P,) int64, log rows of the positive events
    begin: np.ndarray  # (Q,) int64, first positive of each label, an index into ``rows``
    end: np.ndarray  # (Q,) int64, one past its last positive
    user: np.ndarray  # (Q,) int64
    user_begin: np.ndarray  # (Q,) int64, first positive of the label's user
    back: np.ndarray  # (Q,) int64, how many labels of the same user come after it

    @property
    def usable(self) -> np.ndarray:
        """Labels with at least one event of history, (Q,) bool."""
        return self.begin > self.user_begin

    @property
    def per_user(self) -> np.ndarray:
        """Number of labels of the label's user, (Q,)."""
        _, inverse, count = np.unique(self.user, return_inverse=True, return_counts=True)
        return count[inverse]


def _runs(*keys: np.ndarray) -> np.ndarray:
    """Where a new run of equal keys begins, (n,) bool; the first row always begins one."""
    new = np.ones(len(keys[0]), dtype=bool)
    new[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return new


def find_labels(log: Interactions) -> Labels:
    """The labels of a log sorted by user and order. Raises ``ValueError`` when the rows of a page are not together."""
    rows = np.arange(len(log)) if log.feedback is None else np.flatnonzero(log.feedback >= CLICK)
    user = log.user[rows]
    if log.page is None:
        new = np.ones(len(rows), dtype=bool)
    else:
        starts = np.flatnonzero(_runs(log.user, log.page))
        pages = np.stack([log.user[starts], log.page[starts]])
        if np.unique(pages, axis=1).shape[1] != len(starts):
            raise ValueError("the rows of one page of one user must follow each other in the log; sort the log by page")
        new = _runs(user, log.page[rows])
    begin = np.flatnonzero(new)
    end = np.append(begin[1:], len(rows))
    owner = user[begin]
    _, first, inverse, count = np.unique(owner, return_index=True, return_inverse=True, return_counts=True)
    back = first[inverse] + count[inverse] - 1 - np.arange(len(owner))
    return Labels(log, rows, begin, end, owner, begin[first[inverse]], back)


def _ragged(values: np.ndarray, begin: np.ndarray, end: np.ndarray, padding: int = PAD_ITEM) -> np.ndarray:
    """Slices ``values[begin:end]`` as rows, ``padding`` on the right, (B, longest slice)."""
    place = begin[:, None] + np.arange(int((end - begin).max(initial=1)))
    inside = place < end[:, None]
    return np.where(inside, values[np.where(inside, place, 0)], values.dtype.type(padding))


def make_episodes(labels: Labels, chosen: np.ndarray, history: int) -> Episodes:
    """Contexts of the chosen labels ((B,) indices) with the last ``history`` positives before each."""
    log, begin, end = labels.log, labels.begin[chosen], labels.end[chosen]
    item = log.item[labels.rows]
    place = begin[:, None] + np.arange(-history, 0)
    inside = place >= labels.user_begin[chosen][:, None]
    event = labels.rows[begin]
    page = feedback = play_time = None
    if log.page is not None:
        starts = np.flatnonzero(_runs(log.user, log.page))
        on_page = np.searchsorted(starts, event, side="right") - 1
        shown = starts[on_page], np.append(starts, len(log))[on_page + 1]
        page = _ragged(log.item, *shown)
        feedback = None if log.feedback is None else _ragged(log.feedback, *shown, padding=SHOWN)
        play_time = None if log.play_time is None else _ragged(log.play_time, *shown, padding=0)
    return Episodes(
        index=event,
        user=labels.user[chosen],
        history=np.where(inside, item[np.where(inside, place, 0)], PAD_ITEM),
        targets=_ragged(item, begin, end),
        page=page,
        event=event,
        feedback=feedback,
        play_time=play_time,
    )


def make_sequences(labels: Labels, keep: np.ndarray) -> Sequences:
    """Positives of the kept labels ((Q,) bool), one sequence a user; users without any are left out."""
    kept = np.repeat(keep, labels.end - labels.begin)
    user = labels.log.user[labels.rows[kept]]
    users, first = np.unique(user, return_index=True)
    return Sequences(users, labels.log.item[labels.rows[kept]], np.append(first, len(user)).astype(np.int64))


def _assemble(
    labels: Labels, config: DataConfig, sft: np.ndarray, sft_all: np.ndarray,
    contexts: dict[str, np.ndarray], train_users: np.ndarray, notes: tuple[str, ...],
) -> Splits:  # fmt: skip
    """Splits from masks over the labels (Q,): two for sequences and one for each of rl, valid and test."""
    cut = {name: make_episodes(labels, np.flatnonzero(mask & labels.usable), config.history)
           for name, mask in contexts.items()}  # fmt: skip
    return Splits(
        make_sequences(labels, sft), make_sequences(labels, sft_all), cut["rl"], cut["valid"], cut["test"],
        train_users=train_users, notes=notes,
    )  # fmt: skip


def by_user(dataset: DataSet, config: DataConfig, seed: int) -> Splits:
    """Users dealt at random to test, validation, RL and SFT; contexts come from the end of each user's log.

    Users with fewer than ``min_events`` positives give no context. Test users appear in no training stage.
    """
    log = dataset.interactions
    labels = find_labels(log)
    users = np.unique(log.user)
    order = np.random.default_rng(seed).permutation(users)
    shares = np.cumsum([config.test_share, config.valid_share, config.rl_share])
    test, valid, rl, sft = np.split(order, np.round(shares * len(users)).astype(int))
    enough = np.bincount(log.user[labels.rows], minlength=users.max() + 1) >= config.min_events
    ready = enough[labels.user]
    last = labels.back == 0
    in_rl = np.isin(labels.user, rl)
    in_sft = np.isin(labels.user, sft)
    contexts = {
        "rl": in_rl & ready & (labels.back < config.rl_contexts_per_user),
        "valid": np.isin(labels.user, valid) & ready & last,
        "test": np.isin(labels.user, test) & ready & last,
    }
    notes = ("split by user: test and validation users appear in no training stage",)
    return _assemble(labels, config, in_sft, in_sft | in_rl, contexts, np.sort(np.concatenate([sft, rl])), notes)


def leave_one_out(dataset: DataSet, config: DataConfig, seed: int) -> Splits:
    """Each user's last label is test, the second last validation; for a share of users the third last is for RL.

    Users with fewer than 3 labels (4 for RL) give no context; all they did is left to SFT.
    """
    labels = find_labels(dataset.interactions)
    users = np.unique(dataset.interactions.user)
    picked = np.random.default_rng(seed).permutation(users)[: round(config.rl_share * len(users))]
    count = labels.per_user
    held = count >= 3
    rl_user = np.isin(labels.user, picked) & (count >= 4)
    contexts = {
        "rl": rl_user & (labels.back == 2),
        "valid": held & (labels.back == 1),
        "test": held & (labels.back == 0),
    }
    sft_all = ~held | (labels.back >= 2)
    sft = sft_all & ~contexts["rl"]
    short = len(users) - int(np.count_nonzero(held & (labels.back == 0)))
    notes = [f"leave-one-out: every user trains; {NEEDS_ORDER_AFTER}", "later events of other users are in training"]
    if short:
        notes.append(f"{short} users with fewer than 3 labels give no context")
    return _assemble(labels, config, sft, sft_all, contexts, users, tuple(notes))


def chronological(dataset: DataSet, config: DataConfig, seed: int) -> Splits:
    """Three global times cut the positive events by share into SFT, RL, validation and test, in this order.

    Contexts are each user's first label in a period. A label belongs to the period of its first positive. With
    ``every_label`` every label is a context, and the shares are of labels that have a history (MiniOneRec's windows).
    Raises ``ValueError`` where the log has no times or where they run backwards inside a user's log.
    """
    log = dataset.interactions
    if log.time is None:
        raise ValueError(
            f"data set {dataset.name!r}: this data set has order only, no timestamps, so it cannot be cut by time; "
            "use leave_one_out"
        )
    back_in_time = (np.diff(log.time) < 0) & (np.diff(log.user) == 0)
    if back_in_time.any() or not np.isfinite(log.time).all():
        raise ValueError(
            f"data set {dataset.name!r}: times must be finite and not fall inside a user's log; sort the log"
        )
    labels = find_labels(log)
    moments = log.time[labels.rows[labels.begin[labels.usable]]] if config.every_label else log.time[labels.rows]
    time = np.sort(moments)
    shares = 1 - np.cumsum([config.test_share, config.valid_share, config.rl_share])[::-1]
    # MiniOneRec cuts n windows at floor(share n); a little more keeps 1 - 0.3 from falling below 0.7. A share of 0 at
    # the end puts the cut behind the last event.
    places = np.floor(shares * len(time) + 1e-6) if config.every_label else np.round(shares * len(time))
    cuts = np.append(time, np.inf)[places.astype(int)]
    period = np.searchsorted(cuts, log.time[labels.rows[labels.begin]], side="right")  # 0 sft, 1 rl, 2 valid, 3 test
    first = np.ones(len(period), dtype=bool) if config.every_label else _runs(labels.user, period)
    contexts = {name: first & (period == number) for number, name in ((1, "rl"), (2, "valid"), (3, "test"))}
    notes = (f"chronological cuts at times {', '.join(f'{cut:.6g}' for cut in cuts)}; {NEEDS_ORDER_AFTER}",)
    users = np.unique(labels.user[period <= 1])
    splits = _assemble(labels, config, period == 0, period <= 1, contexts, users, notes)
    return replace(splits, train_before=float(cuts[1]))


SPLITS: dict[str, Callable[[DataSet, DataConfig, int], Splits]] = {
    "by_user": by_user,
    "leave_one_out": leave_one_out,
    "chronological": chronological,
}


def _check_shares(config: DataConfig) -> None:
    shares = {name: getattr(config, name) for name in ("rl_share", "valid_share", "test_share")}
    for name, value in shares.items():
        whole = config.split == "leave_one_out" and name == "rl_share"  # every user may give an RL context there
        if not (0 <= value < 1 or (whole and value == 1)):
            raise ValueError(f"{name}: expected a share in [0, 1{']' if whole else ')'}, got {value}")
    if config.split != "leave_one_out" and sum(shares.values()) >= 1:
        raise ValueError(f"rl_share, valid_share and test_share sum to {sum(shares.values()):g}; leave a share to SFT")
    if config.every_label and config.split in SPLITS.keys() - {"chronological"}:
        raise ValueError(
            f"every_label does nothing in the split {config.split!r}; set it to false, or split to 'chronological'"
        )
    if config.history < 1 or config.rl_contexts_per_user < 1:
        raise ValueError("history and rl_contexts_per_user must be at least 1")


def split(dataset: DataSet, config: DataConfig, seed: int) -> Splits:
    """Cut ``dataset`` as ``config.split`` says and check the result for leakage.

    Raises ``ValueError`` for a part that came out empty, naming the setting to change, and for any leak.
    """
    _check_shares(config)
    result: Splits = resolve("split", config.split, SPLITS)(dataset, config, seed)
    remedy = {"sft": "lower rl_share, valid_share and test_share", "rl": "raise rl_share"}
    for name in ("sft", "valid", "test", "rl"):
        if len(getattr(result, name)) == 0:
            hint = remedy.get(name, f"raise {name}_share")
            if config.split == "leave_one_out" and name != "rl":
                hint = "use a data set whose users have 3 labels or more"
            raise ValueError(
                f"split {config.split!r} of data set {dataset.name!r}: the {name} part is empty; {hint}, add users, or "
                "lower min_events"
            )
    check_leakage(result, dataset.interactions, disjoint_users=config.split == "by_user")
    return result


def training_log(interactions: Interactions, splits: Splits) -> Interactions:
    """The part of the log that reward models and baselines may be fitted on.

    Rows of training users; of a user with a validation or test context only those before the page (else the event) of
    the first such target; in a chronological split only those before validation begins.
    """
    keep = np.isin(interactions.user, splits.train_users)
    if splits.train_before is not None and interactions.time is not None:
        keep &= interactions.time < splits.train_before
    for part in (splits.valid, splits.test):
        if part.event is None:
            raise ValueError("training_log: these splits do not say which log rows their targets are; cut them again")
        first = np.full(int(interactions.user.max(initial=0)) + 1, np.iinfo(np.int64).max)
        np.minimum.at(first, interactions.user[part.event], interactions.order[_page_begin(interactions, part.event)])
        keep &= interactions.order < first[interactions.user]
    return interactions.select(keep)


def _page_begin(log: Interactions, rows: np.ndarray) -> np.ndarray:
    """The first log row of each row's page; the row itself where the log has no pages."""
    if log.page is None:
        return rows
    begins = np.flatnonzero(_runs(log.user, log.page))
    return begins[np.searchsorted(begins, rows, side="right") - 1]


def save_splits(splits: Splits, directory: str | Path) -> None:
    """Write ``splits.npz`` and ``splits.json`` into ``directory``, all or nothing."""
    arrays: dict[str, Any] = {"train_users": splits.train_users}
    for part in ("sft", "sft_all", "rl", "valid", "test"):
        record = getattr(splits, part)
        values = {field.name: getattr(record, field.name) for field in fields(record)}
        arrays.update({f"{part}.{name}": value for name, value in values.items() if value is not None})
    with staged(directory, MANIFEST) as folder:
        np.savez_compressed(folder / "splits.npz", **arrays)
        manifest = {"schema_version": SCHEMA_VERSION, "notes": list(splits.notes)}
        manifest["train_before"] = splits.train_before
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def load_splits(directory: str | Path) -> Splits:
    """Read what ``save_splits`` wrote. Raises ``FileNotFoundError`` or ``ValueError`` for anything else."""
    manifest = read_manifest(directory, MANIFEST, "splits")
    with np.load(Path(directory) / "splits.npz", allow_pickle=False) as stored:
        parts: dict[str, dict[str, np.ndarray]] = {}
        for key in stored.files:
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = stored[key]
    return Splits(
        sft=Sequences(**parts["sft"]),
        sft_all=Sequences(**parts["sft_all"]),
        rl=Episodes(**parts["rl"]),
        valid=Episodes(**parts["valid"]),
        test=Episodes(**parts["test"]),
        train_users=parts["train_users"][""],
        train_before=manifest["train_before"],
        notes=tuple(manifest["notes"]),
    )
