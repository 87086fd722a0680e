"""What tasks answer and read beside a data set: profiles of users, given or counted, and documents.

Left out: what the tasks make of them (``tasks``).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.envs.records import Catalogue, Sequences


def read_labels(source: str, sequences: Sequences) -> tuple[dict[int, str], str]:
    """Profiles by user number, of a file of JSON lines with ``user`` and ``text``; and a note on how many rows belong
    to users of ``sequences``.

    ``user`` is the number in ``sequences.user``, which data sets count anew behind every filter. Raises
    ``FileNotFoundError``, and ``ValueError`` that names a line which holds something else or says that none belongs to
    anybody.
    """
    if not Path(source).is_file():
        raise FileNotFoundError(f"sft.labels {source!r} is no file; give one of JSON lines, or 'categories'")
    found: dict[int, str] = {}
    users, rows, known = set(sequences.user.tolist()), 0, 0
    with Path(source).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row: Any = json.loads(line)
                user, text = int(row["user"]), str(row["text"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f'{source}, line {number}: expected {{"user": number, "text": profile}}, got {line.strip()[:80]!r}'
                ) from error
            # JSON can spell half a pair of surrogates, which has no tokens.
            found[user] = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            rows, known = rows + 1, known + (user in users)
    note = f"labels: {known} of {rows} rows belong to users of SFT"
    if not known:
        raise ValueError(
            f"{source}: {note}; `user` must be the run's own number, column user of data/interactions.parquet in the "
            "run's folder, and not the data set's"
        )
    return found, note


def category_profiles(sequences: Sequences, catalogue: Catalogue | None, most: int = 3) -> dict[int, str]:
    """Pseudo labels: the ``most`` categories that each user chose most often in these sequences, in words."""
    if catalogue is None or not any(catalogue.categories):
        raise ValueError("sft.labels = 'categories' needs a catalogue with categories; give a file of profiles instead")
    names = [path[-1] if path else "" for path in catalogue.categories]
    kinds, of = np.unique(names, return_inverse=True)
    owner = np.repeat(np.arange(len(sequences)), np.diff(sequences.offsets))
    pairs, times = np.unique(owner * len(kinds) + of[sequences.items], return_counts=True)
    named = kinds[pairs % len(kinds)] != ""
    pairs, times = pairs[named], times[named]
    order = np.lexsort((pairs, -times, pairs // len(kinds)))
    row, kind = pairs[order] // len(kinds), pairs[order] % len(kinds)
    begin = np.append(0, np.flatnonzero(np.diff(row)) + 1) if len(row) else np.zeros(0, dtype=np.int64)
    top: dict[int, str] = {}
    for start, end in zip(begin.tolist(), [*begin[1:].tolist(), len(row)]):  # one turn a user
        chosen = kinds[kind[start : min(end, start + most)]].tolist()
        top[int(sequences.user[row[start]])] = "Likes " + ", ".join(chosen) + "."
    return top


def read_documents(path: str) -> tuple[str, ...]:
    """The documents of a text file, separated by lines that are empty or blank. ``FileNotFoundError`` where there is
    none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"sft.text {path!r} is no file; give a text file, documents separated by empty lines")
    documents: list[str] = []
    block: list[str] = []
    with Path(path).open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                block.append(line)
            elif block:
                documents.append("".join(block).strip())
                block = []
    return (*documents, "".join(block).strip()) if block else tuple(documents)


def cut_documents(
    documents: Sequence[str], cut: Callable[[str], list[str]] | None
) -> tuple[tuple[str, ...], frozenset[int]]:
    """Documents in the pieces that ``cut`` makes of each (None: whole), and the numbers of those that go on."""
    if cut is None:
        return tuple(documents), frozenset()
    pieces = [cut(text) for text in documents]
    ends = np.cumsum([len(parts) for parts in pieces]) - 1
    flat = tuple(piece for parts in pieces for piece in parts)
    return flat, frozenset(range(len(flat))) - frozenset(ends.tolist())
