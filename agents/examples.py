"""Training examples as segments: pieces of text and items, part of them a question and part of them an answer.

A task (``tasks``) says what an example consists of; what its pieces look like to a model is a template's business
(``templates``). Everything is ragged arrays, so that an epoch of examples is made and cut without a Python loop over
events. Left out: tokens.

Symbols: R examples, S segments of all of them together, n segments of one part.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

TEXT, ITEM, MARK, STEP = 0, 1, 2, 3
"""Kinds of segments: a text, an item's SID, the token that opens a history, and an item of a history that is predicted
where it stands: its SID where items are read code by code; where they are merged, its SID for whoever predicts it, and
one embedding for what follows."""


@dataclass(frozen=True)
class Part:
    """One part of each of R examples: a run of segments, possibly empty."""

    kind: np.ndarray  # (n,) int8, example after example
    ref: np.ndarray  # (n,) int64: number of the text, or the item; 0 for a mark
    counts: np.ndarray  # (R,) int64 segments of each example
    texts: tuple[str, ...] = ()  # what the numbers of texts refer to
    whole: bool = False  # these texts are never cut

    def __post_init__(self) -> None:
        if len(self.kind) != len(self.ref) or int(self.counts.sum()) != len(self.ref):
            raise ValueError(
                f"a part needs a kind and a reference for each of its {int(self.counts.sum())} segments; got "
                f"{len(self.kind)} kinds and {len(self.ref)} references"
            )


def words(text: str, count: int) -> Part:
    """The same text in each of ``count`` examples: a task's own words, which are never cut."""
    return Part(np.zeros(count, np.int8), np.zeros(count, np.int64), np.ones(count, np.int64), (text,), whole=True)


def text_of(texts: Sequence[str], rows: np.ndarray) -> Part:
    """One text an example, ``texts[rows]`` with ``rows`` (R,)."""
    return Part(np.full(len(rows), TEXT, np.int8), rows.astype(np.int64), np.ones(len(rows), np.int64), tuple(texts))


def items_of(items: np.ndarray, counts: np.ndarray) -> Part:
    """Runs of items, ``counts`` (R,) of them in each example, one after another in ``items`` (n,)."""
    return Part(np.full(len(items), ITEM, np.int8), items.astype(np.int64), counts.astype(np.int64))


def steps_of(items: np.ndarray, counts: np.ndarray) -> Part:
    """``items_of`` for histories that are predicted item by item."""
    return Part(np.full(len(items), STEP, np.int8), items.astype(np.int64), counts.astype(np.int64))


def texts_of(texts: Sequence[str], rows: np.ndarray, counts: np.ndarray) -> Part:
    """Runs of texts ``texts[rows]``, ``counts`` (R,) of them in each example."""
    return Part(np.full(len(rows), TEXT, np.int8), rows.astype(np.int64), counts.astype(np.int64), tuple(texts))


def described(texts: Sequence[str], items: np.ndarray, counts: np.ndarray) -> Part:
    """Runs of items, each followed by its text ``texts[item]``."""
    pairs = np.stack([items, items], axis=1).reshape(-1).astype(np.int64)
    kind = np.tile(np.array([ITEM, TEXT], np.int8), len(items))
    return Part(kind, pairs, 2 * counts.astype(np.int64), tuple(texts))


def marks(count: int) -> Part:
    """The token that opens a history, in each of ``count`` examples."""
    return Part(np.full(count, MARK, np.int8), np.zeros(count, np.int64), np.ones(count, np.int64))


@dataclass(frozen=True)
class Examples:
    """R examples. Without a question an example is plain text, in which any segment may be supervised."""

    kind: np.ndarray  # (S,) int8
    ref: np.ndarray  # (S,) int64
    answer: np.ndarray  # (S,) bool: not in the question
    loss: np.ndarray  # (S,) bool: the model learns to say it
    offsets: np.ndarray  # (R + 1,) int64; example r has the segments offsets[r]:offsets[r + 1]
    texts: tuple[str, ...]
    whole: frozenset[str] = frozenset()  # texts that are never cut

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def row(self) -> np.ndarray:
        """Number of the example of each segment, (S,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def take(self, rows: np.ndarray) -> "Examples":
        """The given examples, in the given order, possibly more than once."""
        counts = np.diff(self.offsets)[rows]
        offsets = np.append(0, np.cumsum(counts))
        where = ragged_places(self.offsets[:-1][rows], counts)
        return replace(self, **{n: getattr(self, n)[where] for n in SEGMENTS}, offsets=offsets)

    def questions(self) -> "Examples":
        """The same examples without their answers."""
        keep = ~self.answer
        counts = np.bincount(self.row[keep], minlength=len(self))
        return replace(self, **{n: getattr(self, n)[keep] for n in SEGMENTS}, offsets=np.append(0, np.cumsum(counts)))


SEGMENTS = ("kind", "ref", "answer", "loss")


def ragged_places(begin: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Positions ``begin[r], begin[r] + 1, ... `` (``counts[r]`` of them) of all rows, one row after another."""
    first = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(begin - first, counts)


def compose(question: Sequence[Part], answer: Sequence[Part], supervised: Sequence[Part] = ()) -> Examples:
    """Examples from the parts of their questions and answers, in order.

    Answers are supervised; of questions the parts that stand in ``supervised``, too. Parts that are marks never are.
    Raises ``ValueError`` for parts of different numbers of examples.
    """
    parts = [*question, *answer]
    sizes = {len(part.counts) for part in parts}
    if len(sizes) != 1:
        raise ValueError(f"all parts must be of the same examples; got parts of {sorted(sizes)} examples")
    counts = np.stack([part.counts for part in parts])  # (parts, R)
    total = counts.sum(axis=0)
    offsets = np.append(0, np.cumsum(total))
    size = int(offsets[-1])
    kind, ref = np.zeros(size, np.int8), np.zeros(size, np.int64)
    is_answer, loss = np.zeros(size, bool), np.zeros(size, bool)
    begin = offsets[:-1].copy()
    texts: list[str] = []
    for number, part in enumerate(parts):
        where = ragged_places(begin, part.counts)
        kind[where] = part.kind
        ref[where] = part.ref + np.where(part.kind == TEXT, len(texts), 0)
        is_answer[where] = number >= len(question)
        loss[where] = (number >= len(question) or any(part is one for one in supervised)) & (part.kind != MARK)
        texts += part.texts
        begin += part.counts
    whole = frozenset(text for part in parts if part.whole for text in part.texts)
    return Examples(kind, ref, is_answer, loss, offsets, tuple(texts), whole)


def joined(parts: Sequence[Examples]) -> Examples:
    """Examples one after another."""
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in SEGMENTS if name != "ref"}
    before = np.cumsum([0, *(len(part.texts) for part in parts)])
    refs = [part.ref + np.where(part.kind == TEXT, shift, 0) for part, shift in zip(parts, before)]
    sizes = np.concatenate([np.diff(part.offsets) for part in parts])
    texts = tuple(text for part in parts for text in part.texts)
    whole = frozenset[str]().union(*(part.whole for part in parts))
    offsets = np.append(0, np.cumsum(sizes))
    return Examples(**arrays, ref=np.concatenate(refs), offsets=offsets, texts=texts, whole=whole)
