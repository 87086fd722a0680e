"""The pages behind the sequences of supervised training: what was shown after which history, and what came of it.

Read from the log that the sequences were cut from, for the pages whose positives stand in them and for no other, so
that nothing of validation, test or RL is seen. Left out: pages without a positive, which no sequence knows of; and
reading them in parts: all pages are held at once, about 8 (T + M + 2 S) bytes each.

Symbols: Q pages, T items of a history, M positives a page, S places a page, n items of all sequences together.
"""

from dataclasses import dataclass

import numpy as np

from sidgym.envs.dynamics import repeats
from sidgym.envs.records import CLICK, NEGATIVE, PAD_ITEM, SHOWN, Episodes, Interactions, Sequences
from sidgym.envs.splits import find_labels, make_episodes


@dataclass(frozen=True)
class LoggedPages:
    """Q pages of the log, in the order of users and time."""

    # What came before each of Q pages, its positives as ``targets``, and the page where the log has any.
    contexts: Episodes
    begin: np.ndarray  # (Q,) int64, place of the page's first positive in ``Sequences.items``

    def __len__(self) -> int:
        return len(self.begin)

    def take(self, rows: np.ndarray) -> "LoggedPages":
        """The given pages (boolean mask or indices)."""
        return LoggedPages(self.contexts.take(rows), self.begin[rows])

    @property
    def shown(self) -> tuple[np.ndarray, np.ndarray]:
        """Items (Q, S) of each page as logged, PAD_ITEM on the right, and what the user did with each, (Q, S) int8.

        Where the log has no pages or no feedback these are the positives, which count as clicks.
        """
        contexts = self.contexts
        if contexts.page is not None and contexts.feedback is not None:
            return contexts.page, contexts.feedback
        return contexts.targets, np.where(contexts.targets != PAD_ITEM, CLICK, SHOWN).astype(np.int8)

    def covers(self, size: int) -> np.ndarray:
        """Which of the ``size`` items of the sequences are positives of these pages, (size,) bool."""
        edges = np.zeros(size + 1, dtype=np.int64)
        np.add.at(edges, self.begin, 1)
        np.add.at(edges, self.begin + (self.contexts.targets != PAD_ITEM).sum(axis=1), -1)
        return np.cumsum(edges[:-1]) > 0


def logged_pages(log: Interactions, sequences: Sequences, history: int) -> LoggedPages:
    """The pages of ``sequences``, with at most ``history`` items before each; events where the log has no pages.

    Raises ``ValueError`` where a sequence is not how its user's positives in the log begin, as every split cuts them.
    """
    labels = find_labels(log)
    order = np.argsort(sequences.user, kind="stable")
    row = np.searchsorted(sequences.user, labels.user, sorter=order)
    row = order[np.minimum(row, len(order) - 1)] if len(order) else np.zeros_like(labels.user)
    known = sequences.user[row] == labels.user if len(order) else np.zeros(len(labels.user), dtype=bool)
    place = labels.begin - labels.user_begin
    count = labels.end - labels.begin
    length = np.diff(sequences.offsets)
    kept = np.flatnonzero(known & (place + count <= length[row])) if len(order) else np.flatnonzero(known)
    pages = LoggedPages(make_episodes(labels, kept, history), sequences.offsets[:-1][row[kept]] + place[kept])
    targets = pages.contexts.targets
    real = targets != PAD_ITEM
    where = pages.begin[:, None] + np.arange(targets.shape[1])
    whole = int(count[kept].sum()) == len(sequences.items)
    if not whole or not np.array_equal(sequences.items[where[real]], targets[real]):
        raise ValueError(
            f"logged_pages: {len(kept)} pages of this log hold {int(count[kept].sum())} positives, and the sequences "
            f"{len(sequences.items)}, or others: give the log that the sequences were cut from"
        )
    return pages


def page_targets(
    pages: LoggedPages, order: str, exposed: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What a page asks for, in order: items (Q, S), PAD_ITEM on the right, and how many of each page, (Q,).

    Ordered and clicked items, with ``exposed`` those that were shown and ignored too (GenRec eq. 3: D, else D+); each
    once, and never one that was disliked. ``order``: ``strongest`` (orders, clicks, the rest; each as logged),
    ``logged`` (the places on the page) or ``random``. Raises ``ValueError`` for another order.
    """
    items, feedback = pages.shown
    wanted = (items != PAD_ITEM) & (feedback >= (SHOWN if exposed else CLICK))
    if order == "strongest":
        key = -np.where(wanted, feedback, NEGATIVE).astype(np.float64)
    elif order == "logged":
        key = np.zeros(items.shape)
    elif order == "random":
        key = rng.random(items.shape)
    else:
        raise ValueError(f"unknown order of a page {order!r}; known: strongest, logged, random")
    place = np.argsort(np.where(wanted, key, np.inf), axis=1, kind="stable")
    items = np.take_along_axis(np.where(wanted, items, PAD_ITEM), place, axis=1)
    left = (items != PAD_ITEM) & ~repeats(items)
    place = np.argsort(~left, axis=1, kind="stable")
    return np.take_along_axis(np.where(left, items, PAD_ITEM), place, axis=1), left.sum(axis=1)
