"""Contexts for RL that ask in words: title -> SID, description -> SID, title history -> SID (MiniOneRec's RL).

Tasks that answer with a SID are rolled out and rewarded like retrieval; what differs is the question, which travels in
``Episodes.prompt`` as the tokens that supervised training showed for it. A question about an item has no history, and
its target is the item. Left out: tasks that answer with a text.
"""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from sidgym.agents.examples import Examples, compose
from sidgym.agents.mixture import Share, parse_tasks
from sidgym.agents.policy import Policy, position_limit
from sidgym.agents.tasks import item_question, title_question
from sidgym.agents.templates import Renderer
from sidgym.envs.records import PAD_ITEM, Catalogue, Episodes

ASKED = ("retrieval", "titles_to_sid", "title_to_sid", "description_to_sid")
"""Tasks that RL can ask."""


def check_asked(tasks: Sequence[str]) -> tuple[Share, ...]:
    """The shares of ``rl.tasks``. ``ValueError`` for a task that does not answer with a SID."""
    shares = parse_tasks(tasks)
    wrong = [share.name for share in shares if share.name not in ASKED]
    if wrong:
        raise ValueError(f"rl.tasks: {', '.join(wrong)} cannot be rolled out as a SID; known: {', '.join(ASKED)}")
    return shares


def task_contexts(
    policy: Policy, contexts: Episodes, catalogue: Catalogue, tasks: Sequence[str], seed: int, most: int = 0
) -> Episodes:
    """``contexts`` asked as ``tasks`` say: every context of the first task, of the others as many as their shares ask.

    ``most`` is the number of tokens that a text is cut to. Histories without one title are not asked in titles. With
    retrieval alone the contexts come back as they are.
    Fields that contexts about items lack (page, feedback ...) are dropped where there are such. Raises ``ValueError``
    for tasks that RL cannot ask, for a catalogue without the texts, and for a question that the model cannot hold.
    """
    shares = check_asked(tasks)
    if [share.name for share in shares] == ["retrieval"]:
        return contexts
    renderer = Renderer.of(policy, most)
    made = [_of_task(share.name, contexts, catalogue, renderer) for share in shares]
    for share, part in zip(shares, made):
        _check_fits(policy, share.name, part)
    first = shares[0].share
    parts = []
    for number, (share, part) in enumerate(zip(shares, made)):
        if number and share.share is not None and first is not None:
            rng = np.random.default_rng([seed, number, 7])
            count = max(round(len(made[0]) * share.share / first), 1)
            laps = [rng.permutation(len(part)) for _ in range(-(-count // len(part)))]
            part = part.take(np.concatenate([np.zeros(0, dtype=np.int64), *laps])[:count])
        parts.append(part)
    return _joined(parts)


def _of_task(name: str, contexts: Episodes, catalogue: Catalogue, renderer: Renderer) -> Episodes:
    """All contexts of one task; numbers of their own are given when they are joined."""
    if name == "retrieval":
        return contexts
    if name == "titles_to_sid":
        has = np.array([bool(title) for title in _known(catalogue.titles, name)])
        known = contexts.history != PAD_ITEM
        titled = (has[contexts.history] & known).any(axis=1)
        if not titled.any():
            raise ValueError("rl.tasks: titles_to_sid finds no history with a title; leave it out")
        if not titled.all():
            contexts, known = contexts.take(np.flatnonzero(titled)), known[titled]
        asked = title_question(catalogue.titles, contexts.history[known], known.sum(axis=1))
        values = {f.name: getattr(contexts, f.name) for f in fields(contexts)}
        return Episodes(**{**values, "prompt": _left_padded(renderer.questions(_asked(asked)))})
    texts = _known(catalogue.titles if name == "title_to_sid" else catalogue.descriptions, name)
    items = np.flatnonzero([bool(text) for text in texts])
    prompt = _left_padded(renderer.questions(_asked(item_question(name, texts, items))))
    count, length, width = len(items), contexts.history.shape[1], contexts.targets.shape[1]
    targets = np.full((count, width), PAD_ITEM, dtype=np.int64)
    targets[:, 0] = items
    history = np.full((count, length), PAD_ITEM, dtype=np.int64)
    return Episodes(np.arange(count), np.full(count, -1), history, targets, prompt=prompt)


def _known(texts: tuple[str, ...], task: str) -> tuple[str, ...]:
    if not any(texts):
        raise ValueError(f"rl.tasks: no item of this catalogue has the text that {task} asks with; leave it out")
    return texts


def _check_fits(policy: Policy, task: str, contexts: Episodes) -> None:
    """``ValueError`` where a question and its answer have more tokens than the model has positions."""
    most = position_limit(policy.model)
    if most is None or contexts.prompt is None:
        return
    longest = contexts.prompt.shape[1] + policy.levels
    if longest > most:
        raise ValueError(
            f"rl.tasks: a question of {task} has {longest} tokens with its answer, this model reads {most}: lower "
            "sft.max_text_tokens or data.history"
        )


def _asked(question: list) -> Examples:
    return compose(question, [])


def _left_padded(rows: list[np.ndarray]) -> np.ndarray:
    """Ragged token ids as (B, Q), PAD_ITEM on the left."""
    width = max(map(len, rows))
    return np.stack([np.pad(row, (width - len(row), 0), constant_values=PAD_ITEM) for row in rows])


def _joined(parts: list[Episodes]) -> Episodes:
    """Contexts of several tasks, all with a prompt (empty where the history asks) and with a number of their own."""
    width = max(part.prompt.shape[1] for part in parts if part.prompt is not None)
    start, values = 0, {}
    columns: dict[str, list[np.ndarray]] = {field.name: [] for field in fields(Episodes)}
    for number, part in enumerate(parts):
        prompt = np.full((len(part), width), PAD_ITEM, dtype=np.int64)
        if part.prompt is not None:
            prompt[:, width - part.prompt.shape[1] :] = part.prompt
        # The first task keeps its numbers, which random streams derive from; those of the others stand behind them.
        index = part.index if number == 0 else start + np.arange(len(part))
        start = max(start, int(index.max(initial=-1)) + 1)
        for name in columns:
            columns[name].append({"prompt": prompt, "index": index}.get(name, getattr(part, name)))
    for name, column in columns.items():
        if all(value is not None for value in column):
            values[name] = np.concatenate(column)
    return Episodes(**values)
