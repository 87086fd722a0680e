"""What supervised training can ask of a model: each task makes examples out of items, histories and texts.

    retrieval            SID history -> next SID, every position supervised      MiniOneRec A.2, OneRec-Think
    titles_to_sid        title history -> next SID: asymmetric (a)               MiniOneRec A.2
    history_to_title     SID history -> next title: asymmetric (b)               MiniOneRec A.2
    sid_to_title, title_to_sid                                                   MiniOneRec A.3
    sid_to_description, description_to_sid                                       MiniOneRec A.3
    summary              SID history -> a profile of the user that is given      MiniOneRec A.3
    persona              a user in words with SIDs among them                    OneRec-Think
    caption              SID -> all that is known of the item in words           OneRec-Think
    text                 general text                                            OneRec-Think
    page_wise            SID history -> all that was wanted of the next page     GenRec
    point_wise           SID history -> one item of it                           GenRec

A task is a function ``TaskContext -> Examples``; what it draws, it draws from the context's seed and epoch. Items stand
for themselves: only histories say anything of users, and those are SFT's own, so no task sees a target of RL,
validation or test. Left out: which task is shown how often (``mixture``), and tokens (``templates``).

Symbols: N items, U users, R examples.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from sidgym.agents.examples import (
    ITEM,
    STEP,
    Examples,
    compose,
    described,
    items_of,
    marks,
    ragged_places,
    steps_of,
    text_of,
    texts_of,
    words,
)
from sidgym.agents.page_wise import PAGE_TASKS, page_wise, point_wise
from sidgym.agents.templates import HISTORY_HEAD, HISTORY_TAIL
from sidgym.envs.logged_pages import LoggedPages
from sidgym.envs.records import PAD_ITEM, Catalogue, Sequences

PERSONA_ITEMS = 5
"""Latest items that a persona names."""


@dataclass(frozen=True)
class TaskContext:
    """What tasks may read."""

    sequences: Sequences  # SFT's histories
    catalogue: Catalogue | None = None  # None where only SIDs are known
    history: int = 20  # items that a question holds at most
    labels: Mapping[int, str] = field(default_factory=dict)  # user -> profile
    documents: tuple[str, ...] = ()  # general text, an example each
    chat: bool = False  # questions are put into a chat, so that a bare history needs words around it
    seed: int = 0
    epoch: int = 0
    pages: LoggedPages | None = None  # of the sequences; only what was chosen on these is learned from histories
    page_order: str = "strongest"  # strongest, logged or random
    page_exposed: bool = False  # what was shown and ignored is a target too
    unfinished: frozenset[int] = frozenset()  # numbers of documents that go on in the next one

    def learned(self) -> np.ndarray:
        """Which of the sequences' items (n,) are to be learned, bool: all, or those of ``pages``."""
        size = len(self.sequences.items)
        return np.ones(size, dtype=bool) if self.pages is None else self.pages.covers(size)

    def rng(self, task: str) -> np.random.Generator:
        """The random stream of one task in this epoch."""
        return np.random.default_rng([self.seed, self.epoch, zlib.crc32(task.encode())])

    def texts(self, what: str) -> tuple[str, ...]:
        """N texts: ``titles``, ``descriptions`` or ``captions``. ``ValueError`` where no item has one."""
        if self.catalogue is None:
            raise ValueError(f"tasks over {what} need a catalogue, and there is none: use retrieval alone")
        found = tuple(self.catalogue.texts()) if what == "captions" else getattr(self.catalogue, what)
        if not any(found):
            raise ValueError(f"no item of this catalogue has {what}: leave the tasks over {what} out of sft.tasks")
        return found


def windows(sequences: Sequences, length: int, rng: np.random.Generator | None) -> np.ndarray:
    """Cuts every sequence into windows of at most ``length`` items: (R, length) items, PAD_ITEM on the right.

    Each item of each sequence stands in exactly one window. With ``rng`` the first window of a sequence has a random
    size, so that over the epochs an item is seen behind contexts of different lengths.
    """
    sizes = np.diff(sequences.offsets)
    phase = np.zeros(len(sizes), dtype=np.int64) if rng is None else rng.integers(0, length, len(sizes))
    # A sequence that fits whole is never cut: short histories keep all the context that they have.
    phase = np.where(sizes <= length, 0, phase)
    place = np.arange(len(sequences.items)) - np.repeat(sequences.offsets[:-1], sizes)
    shifted = place + np.repeat(np.where(phase > 0, length - phase, 0), sizes)
    window = shifted // length
    owner = np.repeat(np.arange(len(sizes)), sizes)
    _, row = np.unique(owner * (window.max(initial=0) + 1) + window, return_inverse=True)
    first = np.r_[True, row[1:] != row[:-1]]
    column = np.arange(len(row)) - np.flatnonzero(first)[row]
    out = np.full((row.max(initial=-1) + 1, length), PAD_ITEM, dtype=np.int64)
    out[row, column] = sequences.items
    return out


def retrieval(context: TaskContext) -> Examples:
    """SID history -> next SID. Plain: a whole window, every item of it supervised. In a chat the window's last item is
    the answer, and the items of the question are supervised where they stand."""
    log = context.sequences
    places = Sequences(log.user, np.arange(len(log.items)), log.offsets)
    where = windows(places, context.history + 1, context.rng("retrieval"))
    present = where != PAD_ITEM
    rows = np.where(present, log.items[where], PAD_ITEM)
    if context.pages is not None:
        return _of_learned(context, where, rows)
    sizes, count = present.sum(axis=1), len(rows)
    if not context.chat:
        return compose([], [marks(count), steps_of(rows[present], sizes)])
    last = rows[np.arange(count), sizes - 1]
    present[np.arange(count), sizes - 1] = False
    past = steps_of(rows[present], sizes - 1)
    question = [words(HISTORY_HEAD, count), marks(count), past, words(HISTORY_TAIL, count)]
    return compose(question, [items_of(last, np.ones(count))], supervised=[past])


def _of_learned(context: TaskContext, where: np.ndarray, rows: np.ndarray) -> Examples:
    """Retrieval's windows, of which only what is ``learned`` is supervised; windows without any are left out."""
    plain = retrieval(replace(context, pages=None))
    loss = plain.loss.copy()
    present = where != PAD_ITEM
    loss[(plain.kind == ITEM) | (plain.kind == STEP)] &= context.learned()[where[present]]
    kept = np.flatnonzero(np.bincount(plain.row, weights=loss, minlength=len(rows)) > 0)
    return replace(plain, loss=loss).take(kept)


@dataclass(frozen=True)
class Cuts:
    """One place in each of R users' sequences: what came before it, and the item there."""

    user: np.ndarray  # (R,)
    items: np.ndarray  # past items, user after user, oldest first
    sizes: np.ndarray  # (R,) how many of them
    target: np.ndarray  # (R,)
    places: np.ndarray  # (n,) where ``items`` stand in the sequences


def cuts(context: TaskContext, task: str, wanted: np.ndarray | None = None) -> Cuts:
    """A random place, another one each epoch, in every sequence of two items or more that has a target ``wanted``
    (N,) bool there which is to be learned; at most ``context.history`` items before it."""
    log = context.sequences
    length = np.diff(log.offsets)
    rows = np.flatnonzero(length >= 2)
    place = 1 + (context.rng(task).random(len(rows)) * (length[rows] - 1)).astype(np.int64)
    where = log.offsets[:-1][rows] + place
    if wanted is not None or context.pages is not None:
        good = context.learned()[where]
        if wanted is not None:
            good &= wanted[log.items[where]]
        rows, place, where = rows[good], place[good], where[good]
    sizes = np.minimum(place, context.history)
    places = ragged_places(where - sizes, sizes)
    return Cuts(log.user[rows], log.items[places], sizes, log.items[where], places)


def _titled(titles: tuple[str, ...], items: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of ``items`` (n,) have a title, and how many of each history do, (R,)."""
    known = _has(titles)[items]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return known, np.bincount(owner[known], minlength=len(sizes))


def title_question(titles: tuple[str, ...], items: np.ndarray, sizes: np.ndarray) -> list:
    """A history in words; ``items`` without a title are left out of it."""
    known, left = _titled(titles, items, sizes)
    head = words("Titles of what a user chose, oldest first: ", len(sizes))
    return [head, texts_of([f"{t}; " for t in titles], items[known], left), words(HISTORY_TAIL[1:], len(sizes))]


def titles_to_sid(context: TaskContext) -> Examples:
    """Title history -> next SID; histories without one title ask nothing and are left out."""
    titles, past = context.texts("titles"), cuts(context, "titles_to_sid")
    question = title_question(titles, past.items, past.sizes)
    asked = np.flatnonzero(_titled(titles, past.items, past.sizes)[1])
    return compose(question, [items_of(past.target, np.ones(len(past.target)))]).take(asked)


def history_to_title(context: TaskContext) -> Examples:
    """SID history -> title of the next item."""
    titles = context.texts("titles")
    past = cuts(context, "history_to_title", _has(titles))
    count = len(past.target)
    question = [words(HISTORY_HEAD, count), marks(count), items_of(past.items, past.sizes)]
    question.append(words("\nWhat is the title of the next item?", count))
    return compose(question, [text_of(titles, past.target)])


def item_question(task: str, texts: tuple[str, ...], items: np.ndarray) -> list:
    """The question of a task that answers with an item's SID."""
    what = {"title_to_sid": "is called", "description_to_sid": "is described so"}[task]
    head = words(f"Which item {what}: ", len(items))
    return [head, text_of(texts, items), words("?", len(items))]


def _from_text(task: str, what: str, context: TaskContext) -> Examples:
    texts = context.texts(what)
    items = np.flatnonzero(_has(texts))
    return compose(item_question(task, texts, items), [items_of(items, np.ones(len(items)))])


def _to_text(question: tuple[str, str], what: str, context: TaskContext) -> Examples:
    texts = context.texts(what)
    items = np.flatnonzero(_has(texts))
    before, after = (words(text, len(items)) for text in question)
    return compose([before, items_of(items, np.ones(len(items))), after], [text_of(texts, items)])


def sid_to_title(context: TaskContext) -> Examples:
    """SID -> title."""
    return _to_text(("What is the title of item ", "?"), "titles", context)


def title_to_sid(context: TaskContext) -> Examples:
    """Title -> SID."""
    return _from_text("title_to_sid", "titles", context)


def sid_to_description(context: TaskContext) -> Examples:
    """SID -> description."""
    return _to_text(("What is the description of item ", "?"), "descriptions", context)


def description_to_sid(context: TaskContext) -> Examples:
    """Description -> SID."""
    return _from_text("description_to_sid", "descriptions", context)


def caption(context: TaskContext) -> Examples:
    """SID -> title, categories and description."""
    return _to_text(("Tell all that is known of item ", "."), "captions", context)


def summary(context: TaskContext) -> Examples:
    """SID history -> a profile of the user; of users with a label only.

    Raises ``ValueError`` where nobody has one.
    """
    log = context.sequences
    rows = np.array([row for row, user in enumerate(log.user.tolist()) if context.labels.get(user)], dtype=np.int64)
    if not len(rows):
        raise ValueError(
            "task summary: no user of SFT has a profile; name a file of JSON lines such as "
            '{"user": 7, "text": "likes ..."} in sft.labels, or set it to \'categories\''
        )
    sizes = np.minimum(np.diff(log.offsets)[rows], context.history)
    past = items_of(log.items[ragged_places(log.offsets[1:][rows] - sizes, sizes)], sizes)
    profiles = [context.labels[user] for user in log.user[rows].tolist()]
    tail = words("\nWhat does this user like?", len(rows))
    question = [words(HISTORY_HEAD, len(rows)), marks(len(rows)), past, tail]
    return compose(question, [text_of(profiles, np.arange(len(rows)))])


def persona(context: TaskContext) -> Examples:
    """A user in words: the category chosen most often, and the latest items before a random place, SIDs with their
    titles, of which the last one has none. Plain text, all of it supervised but for SIDs from pages that RSFT drops."""
    titles = context.texts("titles")
    names = [path[-1] if path else "" for path in context.catalogue.categories]  # type: ignore[union-attr]
    past = cuts(context, "persona")
    count = len(past.target)
    kinds, of = np.unique(names, return_inverse=True)
    favourite = _favourite(of[past.items], np.repeat(np.arange(count), past.sizes), count)
    likes = [f"This user mostly chooses {kind}" if kind else "This user chooses many things" for kind in kinds.tolist()]
    shown = np.minimum(past.sizes, PERSONA_ITEMS)
    ends = np.cumsum(past.sizes)
    lately = ragged_places(ends - shown, shown)
    latest = past.items[lately]
    labels = [f" ({title}), " if title else ", " for title in titles]
    answer = [text_of(likes, favourite), words(". Chosen lately: ", count), described(labels, latest, shown)]
    examples = compose([], [*answer, words("and then ", count), items_of(past.target, np.ones(count))])
    named = examples.kind == ITEM
    named[examples.offsets[1:] - 1] = False  # the target, which is to be learned
    loss = examples.loss.copy()
    loss[named] = context.learned()[past.places[lately]]
    return replace(examples, loss=loss)


def general_text(context: TaskContext) -> Examples:
    """Documents, all of them supervised; a long one is several examples, of which only the last one ends.

    Raises ``ValueError`` where there are none.
    """
    if not context.documents:
        raise ValueError("task text needs documents: name a text file in sft.text, documents separated by empty lines")
    numbers = np.arange(len(context.documents))
    open_ended = np.isin(numbers, list(context.unfinished))
    pieces = replace(text_of(context.documents, numbers), whole=True)  # cut they were already
    # Behind a last segment that is not supervised, empty as it may be, stands no end.
    examples = compose([], [pieces, texts_of(("",), np.zeros(open_ended.sum()), open_ended)])
    examples.loss[examples.offsets[1:][open_ended] - 1] = False
    return examples


def _has(texts: tuple[str, ...]) -> np.ndarray:
    """Which texts are not empty, (N,) bool."""
    return np.array([bool(text) for text in texts])


def _favourite(kind: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    """The most frequent ``kind`` (n,) of each of ``count`` owners (n,), the smallest number of equals: (count,)."""
    width = int(kind.max(initial=0)) + 1
    pairs, times = np.unique(owner * width + kind, return_counts=True)
    order = np.lexsort((-(pairs % width), times, pairs // width))
    last = np.flatnonzero(np.append(np.diff(pairs[order] // width) > 0, True))
    out = np.zeros(count, dtype=np.int64)
    out[pairs[order][last] // width] = pairs[order][last] % width
    return out


Task = Callable[[TaskContext], Examples]

TASKS: dict[str, Task] = {
    "retrieval": retrieval,
    "titles_to_sid": titles_to_sid,
    "history_to_title": history_to_title,
    "sid_to_title": sid_to_title,
    "title_to_sid": title_to_sid,
    "sid_to_description": sid_to_description,
    "description_to_sid": description_to_sid,
    "summary": summary,
    "persona": persona,
    "caption": caption,
    "text": general_text,
    "page_wise": page_wise,
    "point_wise": point_wise,
}
"""Name -> what makes its examples."""

ONLY_SIDS = PAGE_TASKS | {"retrieval"}
"""Tasks in which, in the plain template, no text stands: they need no words in the vocabulary."""
