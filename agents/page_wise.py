"""Page-wise next-token prediction (GenRec eq. 3 and 4): all that a user wanted of one page, learned in one pass.

    page_wise     history -> the page's items one after another, -sum_t log P(y_t | S_u, y_<t) over their tokens
    point_wise    history -> one of them: the same question in as many passes, which page-wise is measured against

What of a page is wanted, and in which order, say ``sft.page_exposed`` and ``sft.page_order``; ``page_targets`` says
how. The history is as it was before the page, in the order of the log, and is not supervised. Inference is point-wise
whatever was trained: the prompt is retrieval's, and the first SID is the answer. Pages before which nothing happened
ask nothing and are left out.

Where the policy merges items (``merger``, GenRec eq. 5) the history is merged and the page is said code by code: y_2 is
learned behind the codes of y_1, never behind h_(y_1). Inference asks for one item behind a merged history, so only y_1
is learned in the form in which it is asked.

Retrieval, which supervises every item of a window, predicts a page's later items from its earlier ones too, as they
stand in the log: it differs from page-wise in that it supervises the history and asks many pages in one pass.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sidgym.agents.examples import ITEM, Examples, compose, items_of, marks, words
from sidgym.agents.templates import HISTORY_HEAD, HISTORY_TAIL
from sidgym.envs.logged_pages import LoggedPages, page_targets
from sidgym.envs.records import PAD_ITEM

if TYPE_CHECKING:
    from sidgym.agents.tasks import TaskContext

PAGE_TASKS = frozenset({"page_wise", "point_wise"})
"""Tasks that read pages."""


def page_wise(context: "TaskContext") -> Examples:
    """SID history -> the SIDs of all that was wanted of the next page, one after another, all of them supervised: what
    was ordered, clicked and (`sft.page_exposed`) shown, in the order of `sft.page_order`, by default the strongest
    interaction first. Inference is point-wise."""
    return _examples(context, "page_wise", None)


def point_wise(context: "TaskContext") -> Examples:
    """SID history -> the SID of one item that was wanted of the next page, the first by `sft.page_order`."""
    return _examples(context, "point_wise", 1)


def _examples(context: "TaskContext", task: str, most: int | None) -> Examples:
    """One example a page that has a history, of its first ``most`` wanted items. ``ValueError`` without pages."""
    pages = _pages(context, task)
    items, counts = page_targets(pages, context.page_order, context.page_exposed, context.rng(task))
    history = pages.contexts.history[:, -context.history :]
    used = (history != PAD_ITEM).any(axis=1) & (counts > 0)
    history, items, counts = history[used], items[used, :most], counts[used]
    counts = counts if most is None else np.minimum(counts, most)
    past = items_of(history[history != PAD_ITEM], (history != PAD_ITEM).sum(axis=1))
    answer = items_of(items[items != PAD_ITEM], counts)
    size = len(counts)
    if context.chat:
        return compose([words(HISTORY_HEAD, size), marks(size), past, words(HISTORY_TAIL, size)], [answer])
    # In the plain template nothing stands between the history and what follows it, as in a rollout.
    examples = compose([], [marks(size), past, answer])
    begin = np.repeat(examples.offsets[1:] - counts, np.diff(examples.offsets))
    behind = np.arange(len(examples.kind)) >= begin
    return replace(examples, loss=behind & (examples.kind == ITEM))


def _pages(context: "TaskContext", task: str) -> LoggedPages:
    if context.pages is None:
        raise ValueError(
            f"task {task!r} reads the pages of the log, and none are given: pass pages=logged_pages(log, sequences, "
            "history), or use retrieval"
        )
    pages = context.pages
    if pages.contexts.page is None:
        raise ValueError(
            f"task {task!r} needs a log that records which items were shown together (Interactions.page), which this "
            "one does not: use retrieval"
        )
    return pages
