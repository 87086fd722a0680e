"""Which task is shown how often: an epoch's examples by share, what they were drawn from, and a table of both.

An epoch shows every example of the first task once. Shares are of examples: a task with half the first one's share adds
half as many, one at least. Of a task that has more the epochs show one stretch after another of its own permutations:
of fixed examples all are seen in the end, of those that are drawn anew each epoch a random part. A task that has fewer
repeats itself. Left out: what the tasks are (``tasks``), and the files they read (``task_files``).
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sidgym.agents.config import SftConfig
from sidgym.agents.examples import TEXT, Examples, joined
from sidgym.agents.page_wise import PAGE_TASKS
from sidgym.agents.rsft import check_rsft
from sidgym.agents.task_files import category_profiles, cut_documents, read_documents, read_labels
from sidgym.agents.tasks import ONLY_SIDS, TASKS, Task, TaskContext
from sidgym.agents.templates import TEMPLATES
from sidgym.envs.logged_pages import LoggedPages
from sidgym.envs.records import Catalogue, Sequences
from sidgym.sid.registry import resolve


@dataclass(frozen=True)
class Share:
    """One task and its share of the examples; None for as many as it has."""

    name: str
    share: float | None

    @property
    def task(self) -> Task:
        """The function, or ``ValueError`` that lists what is known."""
        return resolve("task", self.name, TASKS)


def parse_tasks(tasks: Sequence[str]) -> tuple[Share, ...]:
    """``("retrieval:0.66", "caption:0.05")`` as shares. ``ValueError`` for what cannot be read: no task, one named
    twice, a share that is not above 0, or shares of some but not of all."""
    out = []
    for entry in tasks:
        name, _, number = entry.rpartition(":")
        try:
            out.append(Share(name, float(number)) if name else Share(entry, None))
        except ValueError:  # package.module:name
            if name in TASKS:
                raise ValueError(f"tasks: expected a number behind {name}:, got {number!r} in {entry!r}") from None
            out.append(Share(entry, None))
    names = [share.name for share in out]
    if not out or len(set(names)) < len(names):
        raise ValueError(f"tasks: expected one or more, each named once, got {' '.join(tasks) or 'none'}")
    shares = [share.share for share in out]
    if any(share is None for share in shares) != all(share is None for share in shares):
        raise ValueError(f"tasks: expected a share for each task or for none, such as caption:0.05; got {list(tasks)}")
    if any(share is not None and not 0 < share < float("inf") for share in shares):
        raise ValueError(f"tasks: expected shares above 0, got {list(tasks)}; leave a task out that is not to be shown")
    return tuple(out)


def reads_text(config: SftConfig) -> bool:
    """Whether any token but SIDs is read or written."""
    return config.template != "plain" or any(share.name not in ONLY_SIDS for share in parse_tasks(config.tasks))


def is_packed(config: SftConfig, merges: bool = False) -> bool:
    """Whether examples are learned from without padding, and not padded histories alone, which a policy that ``merges``
    items could not read."""
    only = all(share.name == "retrieval" for share in parse_tasks(config.tasks))
    return config.packed or merges or reads_text(config) or not only


def reads_pages(config: SftConfig) -> bool:
    """Whether training needs the log's pages: for a task, or to tell good ones from bad ones."""
    return config.rsft.drop > 0 or any(share.name in PAGE_TASKS for share in parse_tasks(config.tasks))


def check_sft(config: SftConfig, merges: bool = False) -> None:
    """Refuses by ``ValueError`` or ``FileNotFoundError`` settings that cannot work, before anything is read; ``merges``
    says whether the policy merges items."""
    names = []
    for share in parse_tasks(config.tasks):
        resolve("task", share.name, TASKS)
        names.append(share.name)
    check_rsft(config.rsft)
    if config.page_order not in ("strongest", "logged", "random"):
        raise ValueError(f"sft.page_order: expected strongest, logged or random, got {config.page_order!r}")
    for key, value, known in (
        ("template", config.template, TEMPLATES),
        ("normalise", config.normalise, ("vocab", "sid")),
        ("precision", config.precision, ("float32", "bfloat16")),
    ):
        if value not in known:
            raise ValueError(f"unknown sft.{key} {value!r}; known: {', '.join(known)}")
    if config.frozen and config.lora_rank:
        raise ValueError("sft.frozen trains SID rows alone and sft.lora_rank adapters, too: set one of them")
    if not is_packed(config, merges) and (config.normalise != "vocab" or config.tokens_per_batch):
        raise ValueError("sft.normalise = 'sid' and sft.tokens_per_batch are for packed passes: set sft.packed = true")
    for name, key, value in (("summary", "labels", config.labels), ("text", "text", config.text)):
        if name in names and not value:
            raise ValueError(f"task {name!r} of sft.tasks needs sft.{key}: name a file")
        if name in names and not Path(value).is_file() and (key, value) != ("labels", "categories"):
            raise FileNotFoundError(f"sft.{key} {value!r} is no file")


@dataclass(frozen=True)
class Mixture:
    """The tasks of a run."""

    shares: tuple[Share, ...]
    context: TaskContext
    notes: tuple[str, ...] = ()  # what is to be known of the files that were read

    @classmethod
    def of(
        cls,
        config: SftConfig,
        sequences: Sequences,
        catalogue: Catalogue | None,
        history: int,
        seed: int,
        pages: LoggedPages | None = None,
        cut: Callable[[str], list[str]] | None = None,
    ) -> "Mixture":
        """As ``config`` says; reads the files that it names. ``cut`` divides a document into what one example holds."""
        names = [share.name for share in parse_tasks(config.tasks)]
        labels: Mapping[int, str] = {}
        notes: tuple[str, ...] = ()
        if "summary" in names and config.labels == "categories":
            labels = category_profiles(sequences, catalogue)
        elif "summary" in names and config.labels:
            labels, note = read_labels(config.labels, sequences)
            notes = (note,)
        documents = read_documents(config.text) if "text" in names and config.text else ()
        documents, unfinished = cut_documents(documents, cut)
        chat = config.template == "chat"
        context = TaskContext(
            sequences,
            catalogue,
            history,
            labels,
            documents,
            chat,
            seed,
            pages=pages,
            page_order=config.page_order,
            page_exposed=config.page_exposed,
            unfinished=unfinished,
        )
        return cls(parse_tasks(config.tasks), context, notes)

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks in their order."""
        return tuple(share.name for share in self.shares)

    def epoch(self, number: int) -> tuple[Examples, np.ndarray]:
        """The examples of an epoch, task after task, and the task's number of each, (R,)."""
        context = replace(self.context, epoch=number)
        parts, anchor = [], 0
        for place, share in enumerate(self.shares):
            found = share.task(context)
            if len(found) == 0:
                other = "" if context.pages is None else ", or lower sft.rsft.drop where pages are dropped"
                raise ValueError(f"task {share.name!r} has no example in these data; leave it out of sft.tasks{other}")
            if place == 0:
                anchor = len(found)
            elif share.share is not None:
                count = max(round(anchor * share.share / self.shares[0].share), 1)  # type: ignore[operator]
                found = found.take(self._rows(share.name, len(found), count, number))
            parts.append(found)
        return joined(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])

    def words(self) -> list[str]:
        """Every text of the first epoch, as often as it stands there: what a fresh vocabulary is learned from."""
        examples, _ = self.epoch(0)
        return [examples.texts[number] for number in examples.ref[examples.kind == TEXT].tolist()]

    def _rows(self, name: str, have: int, count: int, epoch: int) -> np.ndarray:
        """``count`` of ``have`` examples: the epoch's stretch of permutations that follow one another."""
        wanted = np.arange(epoch * count, (epoch + 1) * count)
        laps = np.unique(wanted // have)
        stream = [self.context.seed, zlib.crc32(name.encode())]
        order = {lap: np.random.default_rng([*stream, int(lap)]).permutation(have) for lap in laps}
        return np.concatenate([order[lap][wanted[wanted // have == lap] % have] for lap in laps] or [wanted])


def seen_table(names: Sequence[str], examples: np.ndarray, tokens: np.ndarray) -> str:
    """How many examples and supervised tokens of each task were really learned from, with their shares, as text."""
    rows = [("task", "examples", "share", "supervised tokens", "share")]
    for name, count, size in zip(names, examples.tolist(), tokens.tolist()):
        by_example, by_token = count / max(int(examples.sum()), 1), size / max(int(tokens.sum()), 1)
        rows.append((name, f"{count:,}", f"{by_example:.2%}", f"{size:,}", f"{by_token:.2%}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    cells = [[row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))] for row in rows]
    return "\n".join("  ".join(row) for row in cells)
