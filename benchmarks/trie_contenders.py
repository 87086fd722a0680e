"""Ways to mask a beam step over millions of SIDs, for ``trie`` to compare: same question, same answer, other arrays.

A contender turns prefixes into a state, masks the logits of the codes that may follow, and moves on along chosen codes.
All are written here for the comparison, on plain tensors and for the CPU and accelerators alike. Left out: the clock
and the catalogue (``trie``), beams and models.

Symbols: N items, L = 3 levels of K codes, R rows (beams of all contexts).
"""

from typing import Protocol

import torch
from torch import Tensor

from sidgym.sid.trie import Trie

NEGATIVE_INFINITY = float("-inf")


class Contender(Protocol):
    """What is compared."""

    def start(self, rows: int) -> Tensor:
        """The state (R,) before the first code."""
        ...

    def masked(self, logits: Tensor, state: Tensor, level: int) -> Tensor:
        """Logits (R, K), -inf where no SID goes on."""
        ...

    def step(self, state: Tensor, codes: Tensor, level: int) -> Tensor:
        """The state (R,) after codes (R,) that go on, of whatever kind the next level's ``masked`` reads."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        ...


class Ours:
    """``Trie`` as the engines use it."""

    def __init__(self, trie: Trie) -> None:
        self.trie = trie

    @property
    def nbytes(self) -> int:
        return self.trie.nbytes

    def start(self, rows: int) -> Tensor:
        return torch.zeros(rows, dtype=torch.int64)

    def masked(self, logits: Tensor, state: Tensor, level: int) -> Tensor:
        return self.trie.masked(logits, state, level)

    def step(self, state: Tensor, codes: Tensor, level: int) -> Tensor:
        return self.trie.step(state, codes, level)


class DenseMask:
    """A row of K flags and one of K next nodes for every node: one look-up a row, and no SID catalogue fits it.

    Of the last inner level, which would take ``bytes_in_full``, only the rows of ``asked`` are made, so its times are
    what a machine would need that could hold all of it. Rows of 0 and 1 codes are whole.
    """

    def __init__(self, trie: Trie, asked: Tensor) -> None:
        width, bounds = trie.sizes[0], trie.bounds
        self.width = width
        self.mask, self.next = [], []
        for level, nodes in ((0, torch.zeros(1, dtype=torch.int64)), (1, torch.arange(bounds[1], bounds[2]))):
            mask = torch.zeros(len(nodes), width, dtype=torch.bool)
            following = torch.full((len(nodes), width), -1, dtype=torch.int32)
            below = torch.arange(bounds[level + 1], bounds[level + 2])
            key = (trie.parents(level) - bounds[level]) * width + trie.edge_code[below - 1]
            mask.view(-1)[key] = True
            following.view(-1)[key] = (below - bounds[level + 1]).int()
            self.mask.append(mask)
            self.next.append(following)
        self.asked = asked.unique()
        self.mask.append(trie.children_mask(self.asked, 2))
        leaves = torch.full(self.mask[2].shape, -1, dtype=torch.int32)
        row, code = self.mask[2].nonzero(as_tuple=True)
        leaves[row, code] = trie.step(self.asked[row], code, 2).int()
        self.next.append(leaves)
        self.row = torch.zeros(bounds[3] - bounds[2], dtype=torch.int32)
        self.row[self.asked - bounds[2]] = torch.arange(len(self.asked), dtype=torch.int32)
        self.bytes_in_full = bounds[3] * width * 5

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*self.mask, *self.next, self.row))

    def start(self, rows: int) -> Tensor:
        return torch.zeros(rows, dtype=torch.int64)

    def masked(self, logits: Tensor, state: Tensor, level: int) -> Tensor:
        # All rows are at the root: its one row is enough.
        mask = self.mask[0][:1] if level == 0 else self.mask[level][state]
        return torch.where(mask, logits, NEGATIVE_INFINITY)

    def step(self, state: Tensor, codes: Tensor, level: int) -> Tensor:
        node = self.next[level][state, codes].long()
        return self.row[node].long() if level == 1 else node


class SearchEveryCode:
    """All SIDs as sorted numbers; whether a prefix goes on is asked by a binary search for each of its K codes.

    The published baseline of this kind (parallel verification of prefixes), with nothing left out.
    """

    def __init__(self, trie: Trie) -> None:
        self.width, self.levels = trie.sizes[0], trie.depth
        codes = trie.codes_of(torch.arange(trie.num_leaves))
        self.keys = codes[:, 0]
        for level in range(1, self.levels):
            self.keys = self.keys * self.width + codes[:, level]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes

    def start(self, rows: int) -> Tensor:
        return torch.zeros(rows, dtype=torch.int64)

    def masked(self, logits: Tensor, state: Tensor, level: int) -> Tensor:
        return torch.where(self.follows(state, level), logits, NEGATIVE_INFINITY)

    def follows(self, state: Tensor, level: int) -> Tensor:
        """Which codes go on, (R, K), or (1, K) for the root."""
        prefix = state[:1] if level == 0 else state
        wanted = prefix[:, None] * self.width + torch.arange(self.width)
        span = self.width ** (self.levels - level - 1)  # SIDs that could begin so
        place = torch.searchsorted(self.keys, wanted * span)
        return self.keys[place.clamp(max=len(self.keys) - 1)] // span == wanted

    def step(self, state: Tensor, codes: Tensor, level: int) -> Tensor:
        return state * self.width + codes


class SearchRange(SearchEveryCode):
    """The same numbers, searched for the first and the last SID of every prefix only; the codes between are written."""

    def follows(self, state: Tensor, level: int) -> Tensor:
        if level == 0:  # all SIDs begin with the root
            return super().follows(state, level)
        span = self.width ** (self.levels - level)
        first = torch.searchsorted(self.keys, state * span)
        count = torch.searchsorted(self.keys, (state + 1) * span) - first
        row = torch.repeat_interleave(count)
        place = torch.arange(len(row)) + (first - count.cumsum(0) + count)[row]
        mask = torch.zeros(len(state), self.width, dtype=torch.bool)
        mask[row, self.keys[place] // (span // self.width) % self.width] = True
        return mask


class StaticIndex:
    """The design of STATIC (arXiv:2602.22647): two dense levels, then rows of a sparse matrix read at a fixed width.

    The first two codes have flags and next states in dense tables. Behind them a state is a row of a compressed sparse
    matrix of (code, next state); every row of the batch reads as many entries as the widest one has, so that no shape
    depends on the data, and what lies behind a row's end is left out by comparing places.

    The original is made for accelerators, where whole blocks of equal shape are cheap. This is its layout in torch; its
    times on one CPU thread say nothing of the original on its own machines.
    """

    def __init__(self, trie: Trie) -> None:
        width, bounds = trie.sizes[0], trie.bounds
        self.width = width
        self.first = torch.zeros(width, dtype=torch.bool)
        self.first[trie.edge_code[: bounds[2] - 1].long()] = True
        self.flags = torch.zeros(width * width, dtype=torch.bool)
        self.states = torch.full((width * width,), -1, dtype=torch.int32)
        two = trie.edge_code[trie.parents(1) - 1].long() * width + trie.edge_code[bounds[2] - 1 : bounds[3] - 1]
        self.flags[two] = True
        self.states[two] = torch.arange(bounds[3] - bounds[2], dtype=torch.int32)
        self.row_start = trie.starts[2].all(since=bounds[3]).clone()
        self.entries = torch.stack(
            [trie.edge_code[bounds[3] - 1 :].int(), torch.arange(trie.num_leaves, dtype=torch.int32)], dim=1
        )
        self.reach = torch.arange(trie.widest[2])

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.first, self.flags, self.states, self.row_start, self.entries))

    def start(self, rows: int) -> Tensor:
        return torch.zeros(rows, dtype=torch.int64)

    def masked(self, logits: Tensor, state: Tensor, level: int) -> Tensor:
        if level == 0:
            mask = self.first[None]
        elif level == 1:
            mask = self.flags.view(self.width, self.width)[state]
        else:
            entries, valid = self._read(state)
            codes = torch.where(valid, entries[..., 0], self.width).long()
            mask = torch.zeros(len(state), self.width + 1, dtype=torch.bool)
            mask = mask.scatter_(1, codes, True)[:, : self.width]
        return torch.where(mask, logits, NEGATIVE_INFINITY)

    def step(self, state: Tensor, codes: Tensor, level: int) -> Tensor:
        if level == 0:
            return codes
        if level == 1:
            return self.states[state * self.width + codes].long()
        entries, valid = self._read(state)
        found = (valid & (entries[..., 0] == codes[:, None])).int().argmax(dim=1)
        return entries[torch.arange(len(state)), found, 1].long()

    def _read(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Entries (R, widest, 2) from the start of each row on, and which of them are the row's."""
        place = self.row_start[state].long()[:, None] + self.reach
        valid = place < self.row_start[state + 1][:, None]
        return self.entries[place.clamp(max=len(self.entries) - 1)], valid
