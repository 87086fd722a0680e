"""Where the tokens of an update stand: the candidates of a group as a tree, groups in rows, rows in micro-batches.

Candidates that begin with the same codes share the tokens of that prefix: a node of the tree is a distinct prefix, and
sees its group's prompt and its own ancestors. All of this is a plan, in numpy; ``packed`` carries it out.

Symbols: B groups, C candidates a group, L levels; U_l distinct prefixes of l codes in all groups together.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PrefixTree:
    """Distinct prefixes of the candidates of B groups, level by level, each level's group by group.

    Level 0 holds the B empty prefixes. They stand for the prompts' last tokens; all others are tokens behind them.
    """

    first: tuple[np.ndarray, ...]  # L arrays (U_l,): one of the B * C candidates that begin with the prefix
    of: tuple[np.ndarray, ...]  # L arrays (B * C,): number of each candidate's prefix; 0 where it is left out
    group: tuple[np.ndarray, ...]  # L arrays (U_l,): group of the prefix
    ancestors: tuple[np.ndarray, ...]  # L arrays (U_l, l): place behind the prompt of the prefixes of 1 to l codes
    nodes: np.ndarray  # (B,) tokens behind each group's prompt

    @classmethod
    def build(cls, codes: np.ndarray, exists: np.ndarray) -> "PrefixTree":
        """The tree of candidates ``codes`` (B, C, L).

        ``exists`` (B, C, L) says of each code whether the prefix before it is one that can be read; where it is not,
        nothing is fed for it.
        """
        batch, count, levels = codes.shape
        row, flat, exists = np.repeat(np.arange(batch), count), codes.reshape(-1, levels), exists.reshape(-1, levels)
        width = int(codes.max(initial=0)) + 1
        first, of, group = [np.arange(batch) * count], [row], [np.arange(batch)]
        ancestors, nodes = [np.zeros((batch, 0), dtype=np.int64)], np.zeros(batch, dtype=np.int64)
        for level in range(1, levels):
            rows = np.flatnonzero(exists[:, level])
            key = of[-1][rows] * width + flat[rows, level - 1]
            _, where, inverse = np.unique(key, return_index=True, return_inverse=True)
            one = rows[where]
            size = np.bincount(row[one], minlength=batch)
            # Numbers ascend with the groups, so what is left of a group's first number is its place among its own.
            place = np.arange(len(one)) + (nodes - np.cumsum(size) + size)[row[one]]
            ancestors.append(np.concatenate([ancestors[-1][of[-1][one]], place[:, None]], axis=1))
            number = np.zeros_like(row)
            number[rows] = inverse
            for levels_of, values in ((first, one), (of, number), (group, row[one])):
                levels_of.append(values)
            nodes = nodes + size
        return cls(tuple(first), tuple(of), tuple(group), tuple(ancestors), nodes)


@dataclass(frozen=True)
class Rows:
    """B groups in R rows of ``width`` tokens, one after another."""

    row: np.ndarray  # (B,)
    start: np.ndarray  # (B,) first token in the row
    count: int  # R
    width: int


def fill_rows(sizes: np.ndarray) -> Rows:
    """Groups of ``sizes`` (B,) tokens in few rows no wider than the largest: first fit, largest first."""
    width = int(sizes.max())
    used = np.zeros(len(sizes), dtype=np.int64)
    row, start = np.zeros_like(used), np.zeros_like(used)
    # Each group's place depends on those before it: the one loop over groups, and a short one.
    for number in np.argsort(-sizes, kind="stable"):
        here = int(np.argmax(used + sizes[number] <= width))
        row[number], start[number] = here, used[here]
        used[here] += sizes[number]
    return Rows(row, start, int(np.count_nonzero(used)), width)


def rows_pay(rows: Rows, prompts: np.ndarray, nodes: np.ndarray, hidden: int) -> bool:
    """Whether one pass over ``rows`` costs less than prompts first, each group alone, and then the trees.

    A token costs 12 H^2 multiplications a layer of hidden size H, and 2 H for each token that attention looks at:
    all of the row's in rows, half of the prompt's (on average, without a mask) where prompts stand alone.
    """
    batch, prompt, tree = len(prompts), int(prompts.max()), int(nodes.max())
    together = rows.count * rows.width * (6 * hidden + rows.width)
    apart = batch * (prompt * (6 * hidden + prompt / 2) + tree * (6 * hidden + prompt + tree))
    return together < apart


def token_batches(prompts: np.ndarray, nodes: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Groups in batches of at most ``tokens`` tokens, padding included; a larger group makes a batch of its own.

    ``prompts`` and ``nodes`` (B,) count the tokens of each group. Groups of like length come together.
    """
    order = np.argsort(prompts + nodes, kind="stable")
    batches = []
    while len(order):
        width = np.maximum.accumulate(prompts[order]) + np.maximum.accumulate(nodes[order])
        fit = int(np.searchsorted(width * np.arange(1, len(order) + 1), tokens, side="right"))
        batches.append(order[: max(fit, 1)])
        order = order[max(fit, 1) :]
    return batches
