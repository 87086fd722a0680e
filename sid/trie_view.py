"""Which items a restricted trie allows, and the counters that keep its nodes honest.

A restricted trie shares every array of the whole one and adds one flag an item and one counter a node: about two bytes
an item where every SID is one item, up to three where items share SIDs (their leaves count them besides), and four to
nine where a leaf has more than 255 items or a node of the last inner level more than 255 children (counters then take
two bytes). A change of some items copies all of that and walks from the changed leaves to the root; nothing that exists
is ever changed in place, so whoever holds an older trie keeps what it held. Left out: the look-ups (``trie``).

Symbols: N items, L levels, C items a leaf at most.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sidgym.sid.trie_arrays import smallest_dtype

if TYPE_CHECKING:
    from sidgym.sid.trie_store import TrieStore


@dataclass(frozen=True, eq=False)
class Allowed:
    """The allowed items of a trie. Places are positions in ``Trie.item_at``.

    Where every leaf has a single item, the leaves' part of ``live`` says which are allowed; else ``heaps`` does.
    """

    live: Tensor  # (num_nodes + 1,) SIDs left at or below: exact on levels L - 1 and L, at most 2 above; 0 for node -1
    upper: Tensor  # (nodes of levels 0 to L - 2,) int32 SIDs left below
    tally: Tensor  # (C + 1,) int64 leaves by number of allowed items
    heaps: "Heaps | None"

    @cached_property
    def num_items(self) -> int:
        return int((self.tally * torch.arange(len(self.tally), device=self.tally.device)).sum())

    @cached_property
    def num_leaves(self) -> int:
        return int(self.tally[1:].sum())

    @cached_property
    def most_items(self) -> int:
        """The largest number of allowed items on one leaf."""
        return int(self.tally.nonzero().max())

    def kept(self, inner: int) -> Tensor:
        """(N,) bool by place; ``inner`` is the trie's number of inner nodes."""
        return self.live[inner:-1] > 0 if self.heaps is None else self.heaps.kept

    def kept_at(self, places: Tensor, inner: int) -> Tensor:
        """Whether the items at ``places`` (...) int64 are allowed."""
        return self.live[places + inner] > 0 if self.heaps is None else self.heaps.kept[places]


@dataclass(frozen=True, eq=False)
class Heaps:
    """The allowed items where some leaves have several."""

    kept: Tensor  # (N,) bool by place
    count: Tensor  # (num_leaves,) allowed items of each leaf


def by_mask(trie: "TrieStore", mask: Tensor) -> Allowed:
    """The items of a mask (N,) by item that the trie allows so far; passes over items and nodes."""
    kept = mask.index_select(0, trie.item_at)
    if trie.view is not None:
        kept &= trie.view.kept(trie.bounds[-2])
    return by_place(trie, kept)


def by_place(trie: "TrieStore", kept: Tensor) -> Allowed:
    """The items whose place is marked, (N,) bool."""
    open_leaves, heaps = kept, None
    if not trie.one_to_one:
        count = _between(kept, trie.first_places(), smallest_dtype(trie.most_items))
        open_leaves, heaps = count > 0, Heaps(kept, count)
    below, upper = below_inner(trie, open_leaves)
    if heaps is None:
        leaves = int(upper[0] if len(upper) else below[0])
        tally = torch.tensor([trie.num_leaves - leaves, leaves], device=kept.device)
    else:
        tally = torch.bincount(heaps.count, minlength=trie.most_items + 1)
    return Allowed(torch.cat([below, open_leaves.to(below.dtype), below.new_zeros(1)]), upper, tally, heaps)


def nothing(trie: "TrieStore") -> Allowed:
    """No item at all, to which items are added."""
    device, leaves = trie.device, trie.num_leaves
    heaps = None
    if not trie.one_to_one:
        count = torch.zeros(leaves, dtype=smallest_dtype(trie.most_items), device=device)
        heaps = Heaps(torch.zeros(trie.num_items, dtype=torch.bool, device=device), count)
    return Allowed(
        torch.zeros(trie.num_nodes + 1, dtype=smallest_dtype(trie.widest[-1]), device=device),
        torch.zeros(trie.bounds[-3], dtype=torch.int32, device=device),
        torch.tensor([leaves] + [0] * trie.most_items, device=device),
        heaps,
    )


def everything(trie: "TrieStore") -> Allowed:
    """All items, from which items are taken."""
    return by_place(trie, torch.ones(trie.num_items, dtype=torch.bool, device=trie.device))


def changed(trie: "TrieStore", old: Allowed, places: Tensor, allow: Tensor) -> Allowed:
    """``old`` with the items at ``places`` (n,) allowed or not, as ``allow`` (n,) says; repeats are fine.

    Raises ``ValueError`` with the items for which it says both.
    """
    wanted = _distinct(places * 2 + allow)
    places, allow = wanted >> 1, (wanted & 1).bool()
    twice = places[1:][places[1:] == places[:-1]]
    if len(twice):
        both = trie.item_at[twice[:5]].tolist()
        raise ValueError(f"toggle: expected an item to be added or to be removed, got both for {both}")
    inner = trie.bounds[-2]
    kept = old.live.index_select(0, places + inner) > 0 if old.heaps is None else old.heaps.kept[places]
    differ = kept != allow
    places, allow = places[differ], allow[differ]
    step, heaps = allow.int() * 2 - 1, None
    if old.heaps is None:
        node = places + inner
        tally = old.tally + step.sum() * torch.tensor([-1, 1], device=old.tally.device)
    else:
        heaps, leaf, step, tally = _heaped(trie, old, old.heaps, places, allow)
        node, allow = leaf + inner, step > 0
    live, upper = old.live.clone(), old.upper.clone()
    live.index_copy_(0, node, allow.to(live.dtype))
    for level in reversed(range(trie.depth)):
        node = trie.starts[level].owner(node) + trie.bounds[level]
        if level == trie.depth - 1:
            live.index_add_(0, node, step.to(live.dtype))
        else:
            upper.index_add_(0, node, step)
            live.index_copy_(0, node, upper.index_select(0, node).clamp(max=2).to(live.dtype))
    return Allowed(live, upper, tally, heaps)


def _heaped(
    trie: "TrieStore", old: Allowed, heaps: Heaps, places: Tensor, allow: Tensor
) -> tuple[Heaps, Tensor, Tensor, Tensor]:
    """``changed`` on leaves of several items: their heaps, the leaves that opened or closed, which (1, -1), tally."""
    kept = heaps.kept.clone().index_copy_(0, places, allow)
    leaf = trie.leaf_at(places)
    count = heaps.count.clone().index_add_(0, leaf, (allow.int() * 2 - 1).to(heaps.count.dtype))
    leaf = leaf.unique_consecutive()
    was, now = heaps.count[leaf].long(), count[leaf].long()
    size = len(old.tally)
    tally = old.tally + torch.bincount(now, minlength=size) - torch.bincount(was, minlength=size)
    step = (now > 0).int() - (was > 0).int()
    return Heaps(kept, count), leaf[step != 0], step[step != 0], tally


def _distinct(numbers: Tensor) -> Tensor:
    """The different numbers, ascending."""
    if numbers.device.type == "cpu":  # numpy sorts in a fraction of the time
        numbers = torch.from_numpy(np.sort(numbers.numpy()))
        return numbers if len(numbers) < 2 else numbers[torch.cat([numbers.new_ones(1), numbers.diff()]) > 0]
    return numbers.unique()


def _between(flags: Tensor, starts: Tensor, dtype: torch.dtype) -> Tensor:
    """How many flags (n,) are set from each start up to the next, (m + 1,) -> (m,), in a dtype that holds each.

    The running total may wrap around: differences are right all the same, and the fewer bytes the faster.
    """
    before = torch.zeros(len(flags) + 1, dtype=dtype, device=flags.device)
    torch.cumsum(flags, 0, dtype=dtype, out=before[1:])
    return before.index_select(0, starts).diff()


def _sums(numbers: Tensor, starts: Tensor) -> Tensor:
    """Sums of the numbers from each start up to the next, (m + 1,) -> (m,) int32; none is empty."""
    if numbers.device.type == "cpu":  # numpy sums without a running total
        return torch.from_numpy(np.add.reduceat(numbers.numpy(), starts[:-1].numpy(), dtype=np.int32))
    before = torch.zeros(len(numbers) + 1, dtype=torch.int32, device=numbers.device)
    torch.cumsum(numbers, 0, dtype=torch.int32, out=before[1:])
    return before.index_select(0, starts).diff()


def below_inner(trie: "TrieStore", open_leaves: Tensor | None) -> tuple[Tensor, Tensor]:
    """The inner nodes' part of ``live``, and ``upper``, from the allowed leaves (num_leaves,); None where all are."""
    dtype = smallest_dtype(trie.widest[-1])
    starts = trie.starts[-1].all(since=trie.bounds[-2])
    last = starts.diff().to(dtype) if open_leaves is None else _between(open_leaves, starts, dtype)
    upper: list[Tensor] = []
    for level in reversed(range(trie.depth - 1)):
        upper.insert(0, _sums(upper[0] if upper else last, trie.starts[level].all(since=trie.bounds[level + 1])))
    above = torch.cat([torch.empty(0, dtype=torch.int32, device=trie.device), *upper])
    return torch.cat([above.clamp(max=2).to(dtype), last]), above
