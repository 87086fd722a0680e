"""The records that cross a boundary: catalogue, log, episodes and rollouts.

Frozen dataclasses over numpy arrays, with the shape in each field's comment. Nothing is looked up from strings: the
ground truth travels in the record. An optional field that a data set lacks is ``None``, never faked. Left out: any
behaviour beyond selection and checks; how records are made stands in ``datasets``, ``splits`` and the engines.

Symbols: N items, E events, B contexts, T history length, M targets a context, G candidates a group, L levels of a SID.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

PAD_ITEM = -1
"""Fills histories (on the left), target sets and item lists (on the right)."""

NEGATIVE, SHOWN, CLICK, ORDER = -1, 0, 1, 2
"""Values of ``Interactions.feedback``: disliked, shown and ignored, clicked, ordered (so clicked too)."""

SIGNALS = ("long_view", "like", "follow", "comment", "forward", "cart")
"""Bits of ``Interactions.signals``, the lowest first: what a user did that ``feedback`` does not tell apart."""


@dataclass(frozen=True)
class Catalogue:
    """What is known of the items; item ``i`` is row ``i`` everywhere in the project."""

    ids: np.ndarray  # (N,) str, the names the data set uses
    titles: tuple[str, ...]  # N
    descriptions: tuple[str, ...]  # N, "" where there is none
    categories: tuple[tuple[str, ...], ...]  # N paths from the root of the category tree, () where there is none
    price: np.ndarray | None = None  # (N,) float32, in the data set's currency
    duration: np.ndarray | None = None  # (N,) float32, seconds

    def __len__(self) -> int:
        return len(self.ids)

    def texts(self) -> list[str]:
        """Title, categories and description joined: what a text encoder reads. Length N."""
        rows = zip(self.titles, self.categories, self.descriptions)
        return [". ".join(part for part in (title, " ".join(path), text) if part) for title, path, text in rows]


@dataclass(frozen=True)
class Interactions:
    """The log, one row an event, sorted by user and then by ``order``.

    A log without ``feedback`` holds positive events only. ``item`` indexes a ``Catalogue``.
    """

    user: np.ndarray  # (E,) int64
    item: np.ndarray  # (E,) int64
    order: np.ndarray  # (E,) int64, rank of the event in its user's log
    time: np.ndarray | None = None  # (E,) float64, seconds since any fixed origin
    play_time: np.ndarray | None = None  # (E,) float32, seconds
    page: np.ndarray | None = None  # (E,) int64, events of one user with one page id were shown together
    position: np.ndarray | None = None  # (E,) int64, place on the page from 0
    feedback: np.ndarray | None = None  # (E,) int8, one of NEGATIVE, SHOWN, CLICK, ORDER
    propensity: np.ndarray | None = None  # (E,) float32, probability that the logging policy showed the item there
    signals: np.ndarray | None = None  # (E,) int32, bit k set where SIGNALS[k] happened; see ``pack_signals``

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and len(value) != len(self.user):
                raise ValueError(f"Interactions.{field.name}: expected {len(self.user)} rows, got {len(value)}")

    def __len__(self) -> int:
        return len(self.user)

    def select(self, rows: np.ndarray) -> "Interactions":
        """The given rows (boolean mask or indices), every optional field carried along."""
        present: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value[rows] for name, value in present.items() if value is not None})

    def positives(self) -> "Interactions":
        """Clicks and orders only: what histories and targets are made of."""
        return self if self.feedback is None else self.select(self.feedback >= CLICK)


def pack_signals(flags: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Flags (n,) bool by their names in ``SIGNALS`` as bits, (n,) int32; ``None`` for no flag."""
    parts = [np.asarray(flag, dtype=np.int32) << SIGNALS.index(name) for name, flag in flags.items()]
    return np.bitwise_or.reduce(parts) if parts else None


@dataclass(frozen=True)
class Episodes:
    """Contexts to answer: a history and what the user really did next."""

    index: np.ndarray  # (B,) int64, stable number of the context in its data set; random streams derive from it
    user: np.ndarray  # (B,) int64
    history: np.ndarray  # (B, T) int64 items, oldest first, PAD_ITEM on the left
    targets: np.ndarray  # (B, M) int64 items the user engaged with (D+), the next one first, PAD_ITEM on the right
    page: np.ndarray | None = None  # (B, S) int64 items shown on the page of the label, PAD_ITEM on the right
    event: np.ndarray | None = None  # (B,) int64, row of the first target in the log that the context was cut from
    feedback: np.ndarray | None = None  # (B, S) int8 what the user did with each item of ``page``, SHOWN at padding
    play_time: np.ndarray | None = None  # (B, S) float32 seconds that each item of ``page`` was played
    taste: np.ndarray | None = None  # (B, 3) int16 the simulator's latent taste; only the oracle's reward may read it
    # (B, Q) int64 vocabulary ids that ask in words, PAD_ITEM on the left; none: history.
    prompt: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def question(self) -> np.ndarray:
        """What a policy is asked, (B, T) or with ``prompt`` (B, T + Q): equal rows are one question."""
        return self.history if self.prompt is None else np.concatenate([self.history, self.prompt], axis=1)

    @property
    def target(self) -> np.ndarray:
        """The next item of each context, (B,)."""
        return self.targets[:, 0]

    def take(self, rows: np.ndarray | Sequence[int] | slice) -> "Episodes":
        """The given rows as Episodes."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value[rows] for name, value in values.items() if value is not None})

    def spread(self, count: int) -> "Episodes":
        """At most ``count`` contexts (0: all), evenly spaced: logs are often in an order that means something, so that
        the first ones would be others than the rest."""
        size = len(self)
        return self if not 0 < count < size else self.take(np.arange(count) * size // count)

    def trimmed(self) -> "Episodes":
        """The same contexts without history columns that are padding in every row (at least one column stays), and the
        like of ``prompt``."""
        prompt = None if self.prompt is None else _trimmed(self.prompt)
        return replace(self, history=_trimmed(self.history), prompt=prompt)


def _trimmed(rows: np.ndarray) -> np.ndarray:
    """Rows (B, T) without the columns on the left that are padding in all of them; at least one column stays."""
    used = np.flatnonzero((rows != PAD_ITEM).any(axis=0))
    return rows[:, used[0] if len(used) else rows.shape[1] - 1 :]


@dataclass(frozen=True)
class Rollouts:
    """Groups of candidates for the contexts of an ``Episodes``, row by row."""

    codes: np.ndarray  # (B, G, L) int64
    valid: np.ndarray  # (B, G) bool: the candidate exists and is a SID of the catalogue
    items: np.ndarray  # (B, G, C) int64 items of the SID, PAD_ITEM on the right; C = 1 where SID and item are 1:1
    logp: np.ndarray  # (B, G, L) float32 behaviour log-probabilities of the codes
    mode: str  # how the candidates were drawn: "beam", "sample", "free" ...
    normalise: str  # softmax over "trie" children or over the whole "vocab"
    weight_version: int = 0  # version of the weights that drew them
    tokens: np.ndarray | None = None  # (B, G, L) int64 vocabulary ids, where decoding was free: not all are codes
    importance: np.ndarray | None = None  # (B, G) float32, what a candidate counts for given how it was drawn; None: 1

    @property
    def weight(self) -> np.ndarray:
        """Factor (B, G) of each candidate in a mean over its group that estimates an expectation of the policy."""
        return np.ones(self.valid.shape, dtype=np.float32) if self.importance is None else self.importance

    @property
    def item(self) -> np.ndarray:
        """The first item of each candidate, (B, G); PAD_ITEM where the candidate is not valid."""
        return self.items[:, :, 0]

    @property
    def score(self) -> np.ndarray:
        """Log-probability of the whole SID, (B, G)."""
        return self.logp.sum(axis=-1)

    @property
    def rank(self) -> np.ndarray:
        """Place of each candidate in its group, 1 = most probable; ties keep their order. (B, G) int64."""
        order = np.argsort(np.where(self.valid, -self.score, np.inf), axis=1, kind="stable")
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(1, order.shape[1] + 1)[None], axis=1)
        return ranks

    def take(self, rows: np.ndarray | Sequence[int] | slice) -> "Rollouts":
        """The given rows (whole groups) as Rollouts."""
        names = ("codes", "valid", "items", "logp", "tokens", "importance")
        arrays = {name: getattr(self, name) for name in names}
        return replace(self, **{name: value[rows] for name, value in arrays.items() if value is not None})


def concatenate_rollouts(parts: Sequence[Rollouts]) -> Rollouts:
    """Rollouts of consecutive chunks of contexts, joined in order."""
    width = max(part.items.shape[2] for part in parts)
    items = [np.pad(p.items, ((0, 0), (0, 0), (0, width - p.items.shape[2])), constant_values=PAD_ITEM) for p in parts]
    return replace(
        parts[0],
        codes=np.concatenate([p.codes for p in parts]),
        valid=np.concatenate([p.valid for p in parts]),
        items=np.concatenate(items),
        logp=np.concatenate([p.logp for p in parts]),
        tokens=_joined([part.tokens for part in parts]),
        importance=_joined([part.importance for part in parts]),
    )


def _joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if known else None


@dataclass(frozen=True)
class Sequences:
    """Ragged item sequences, one a user, oldest first: what supervised training reads."""

    user: np.ndarray  # (U,) int64
    items: np.ndarray  # (sum of lengths,) int64
    offsets: np.ndarray  # (U + 1,) int64; sequence u is items[offsets[u]:offsets[u + 1]]

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.items[self.offsets[row] : self.offsets[row + 1]]


@dataclass(frozen=True)
class Splits:
    """One data set cut into what each stage may see."""

    sft: Sequences  # supervised training
    sft_all: Sequences  # the same and the RL contexts too: the control that spends all data on supervision
    rl: Episodes  # contexts whose targets appear in no SFT sequence
    valid: Episodes
    test: Episodes
    train_users: np.ndarray  # users whose log any training stage may read (rewards and baselines included)
    train_before: float | None = None  # seconds; events from this time on are out of bounds for every training stage
    notes: tuple[str, ...] = ()  # what the split can and cannot promise on this data set
