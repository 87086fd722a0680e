"""What page-wise preference networks share: how a candidate matches the recent history and, if searched, the long one.

The match of candidate i with item t of the history is ``m_hit = sigmoid(scale_h cos_h(i, t) - shift_h)``, one
projection of the embeddings a head h, as in DIN not normalised over the history (three matches say more than one). Each
unit tells the share of its items that matches, ``sum_t softmax(recency_h(age_t))_t m_hit``, and the amount ``log(1 +
sum_t m_hit)``. The short-term unit reads the last items; the exact search unit (SIM) the M items that ``search`` found
in all of the history, and how many there were. Left out: learned item vectors; what an item is comes from its
embedding, and what that does not show from a bias an item in the heads.

Symbols: B contexts, T history length, K candidates, M items a candidate is matched with, H hidden width, D embedding
width, N items, F features.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidgym.envs.preference.data import PreferenceData
from sidgym.envs.preference.examples import Examples
from sidgym.envs.preference.network import products
from sidgym.envs.preference.search import choose_search, hard_search, soft_search
from sidgym.envs.records import PAD_ITEM

AGES = 20
"""Buckets of age: bucket b holds ages 2^b - 1 to 2^(b+1) - 2; the last one all above."""

SHORT = 4
"""A history of up to so many times M items is compared whole with the candidates, which then costs less than reading
the keys of what was found for each."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a network, and how it searches."""

    items: int
    embedding: int
    positions: int
    history: int  # T, longest history that is searched
    recent: int  # items of the short-term unit
    found: int  # M
    hidden: int
    heads: int
    search: str
    levels: int  # of groups for hard search
    towers: tuple[str, ...] = ()

    @property
    def features(self) -> int:
        """Width F of what ``InterestBody`` returns."""
        units = 1 if self.search == "none" else 2
        return self.hidden + units * (2 * self.heads + 1)


def shape_of(
    data: PreferenceData, examples: Examples, kind: str, *, history: int, recent: int, found: int,
    hidden: int, heads: int, search: str, towers: tuple[str, ...] = (),
) -> tuple[Shape, np.ndarray]:  # fmt: skip
    """Sizes that fit the data, and groups (N, V) for the search. ``ValueError`` for sizes that do not fit together."""
    if min(hidden, heads, recent, found) < 1 or hidden % heads:
        raise ValueError(
            f"preference {kind!r}: hidden ({hidden}) must be a multiple of heads ({heads}); both, recent "
            f"({recent}) and found ({found}) must be at least 1"
        )
    width = data.require("embeddings", kind).shape[1]
    search, groups = choose_search(data, search, kind)
    history = min(history, recent) if search == "none" else history
    positions = int(examples.position.max(initial=0)) + 1
    levels = groups.shape[1]
    shape = Shape(data.num_items, width, positions, history, recent, found, hidden, heads, search, levels, towers)
    return shape, groups


class MatchUnit(nn.Module):
    """Target attention over items whose cosine with the candidate is given."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        # A match starts at one half where the cosine is one half.
        self.scale = nn.Parameter(torch.full((heads,), 4.0))
        self.shift = nn.Parameter(torch.full((heads,), 2.0))
        self.recency = nn.Parameter(torch.zeros(AGES, heads))

    def forward(self, cosine: Tensor, age: Tensor, real: Tensor) -> Tensor:
        """Cosine (B, K, heads, M), age and whether there is an item (B, K or 1, M) to features (B, K, 2 heads)."""
        match = torch.sigmoid(self.scale[:, None] * cosine - self.shift[:, None]).masked_fill(~real[:, :, None], 0.0)
        bucket = torch.log2((age + 1).to(cosine.dtype)).to(torch.int64).clamp(max=AGES - 1)
        # F.embedding, here and below: its gradient is several times faster on a CPU than that of indexing.
        recency = F.embedding(bucket, self.recency).transpose(2, 3)
        # Not -inf: a row without history would be NaN. Its shares are zero anyway, since its matches are.
        weight = recency.masked_fill(~real[:, :, None], -1e9).softmax(dim=-1)
        return torch.cat([(match * weight).sum(dim=-1), torch.log1p(match.sum(dim=-1))], dim=-1)


class InterestBody(nn.Module):
    """Features of candidates given a history."""

    embeddings: Tensor
    groups: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("embeddings", torch.zeros(shape.items, shape.embedding))
        self.register_buffer("groups", torch.zeros(shape.items, shape.levels, dtype=torch.int64))
        self.candidate = nn.Linear(shape.embedding, shape.hidden)
        self.match = nn.Linear(shape.embedding, shape.hidden, bias=False)
        self.recent = MatchUnit(shape.heads)
        self.long = None if shape.search == "none" else MatchUnit(shape.heads)

    def forward(self, history: Tensor, items: Tensor) -> Tensor:
        """(B, T) and (B, K) item ids, PAD_ITEM allowed, to (B, K, F)."""
        history = history[:, max(0, history.shape[1] - self.shape.history) :]
        recent = history[:, max(0, history.shape[1] - self.shape.recent) :]
        shown = items.clamp(min=0)
        parts = [self.candidate(self.embeddings[shown]), self._recent_features(recent, shown)]
        if self.long is not None:
            parts.append(self._found_features(history, shown))
        return torch.cat(parts, dim=-1)

    def _recent_features(self, recent: Tensor, shown: Tensor) -> Tensor:
        """(B, K, 2 heads + 1), zero where there is no history."""
        real = recent != PAD_ITEM
        cosine = self._cosine(recent, shown)
        age = torch.arange(recent.shape[1] - 1, -1, -1, device=recent.device).expand(len(recent), 1, -1)
        length = torch.log1p(real.sum(dim=1).to(cosine.dtype))
        return torch.cat(
            [self.recent(cosine, age, real[:, None]), length[:, None, None].expand(*shown.shape, 1)], dim=-1
        )

    def _found_features(self, history: Tensor, shown: Tensor) -> Tensor:
        """(B, K, 2 heads + 1) of the items that the search found, zero where it found none."""
        assert self.long is not None
        with torch.no_grad():
            found, age, count = self.search(history, shown)
        if history.shape[1] <= SHORT * self.shape.found:
            place = (history.shape[1] - 1 - age)[:, :, None].expand(-1, -1, self.shape.heads, -1)
            cosine = self._cosine(history, shown).gather(3, place)
        else:
            cosine = self._cosine_of_found(found, shown)
        amount = torch.log1p(count.to(cosine.dtype))[..., None]
        return torch.cat([self.long(cosine, age, found != PAD_ITEM), amount], dim=-1)

    def _cosine(self, history: Tensor, shown: Tensor) -> Tensor:
        """Cosines of all candidates (B, K) with all of a history (B, T): (B, K, heads, T)."""
        own, theirs = self._keys(shown).transpose(1, 2), self._keys(history.clamp(min=0)).transpose(1, 2)
        return products(own, theirs).transpose(1, 2)

    def _cosine_of_found(self, found: Tensor, shown: Tensor) -> Tensor:
        """Cosines of candidates (B, K) with what was found for each (B, K, M): (B, K, heads, M)."""
        # The network reads each item that was found anywhere once.
        unique, inverse = torch.unique(torch.cat([found.clamp(min=0).flatten(), shown.flatten()]), return_inverse=True)
        keys = F.embedding(inverse, self._keys(unique).flatten(1)).unflatten(1, (self.shape.heads, -1))
        theirs, own = keys[: found.numel()].unflatten(0, found.shape), keys[found.numel() :].unflatten(0, shown.shape)
        return torch.einsum("bkhw,bkmhw->bkhm", own, theirs)

    def search(self, history: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What of the history (B, T) has to do with each item (B, K); see ``search.find_matches``."""
        if self.shape.search == "soft":
            return soft_search(self.embeddings, history, items, self.shape.found)
        return hard_search(self.groups, history, items, self.shape.found)

    def _keys(self, items: Tensor) -> Tensor:
        """Unit vectors of items (...,) by head: (..., heads, H / heads)."""
        width = self.shape.hidden // self.shape.heads
        return F.normalize(self.match(self.embeddings[items]).unflatten(-1, (self.shape.heads, width)), dim=-1)


def fill_body(body: InterestBody, embeddings: np.ndarray, groups: np.ndarray) -> None:
    """Give the body what is known of the items."""
    body.embeddings.copy_(torch.from_numpy(np.asarray(embeddings, dtype=np.float32)))
    body.groups.copy_(torch.from_numpy(groups))
