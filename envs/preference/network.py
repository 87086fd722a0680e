"""The network behind ``LoggedPreference``: how well a candidate matches a history, and what it is worth by itself.

Left out: training (``din``).

Symbols: P pages, S places a page, T history length, K items, H hidden width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidgym.envs.records import PAD_ITEM

UNEVEN = range(5, 12)
"""Columns of a product of which BLAS may compute the first rows otherwise than the last."""


def products(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of (..., K, W) with (..., T, W): (..., K, T). An ``UNEVEN`` T is padded for the computation.

    So in blocks of 16 candidates the bits of a score do not depend on the item's place: scores are remembered by
    history and item, and what is remembered must not decide what comes out.
    """
    length = other.shape[-2]
    if length not in UNEVEN:
        return one @ other.transpose(-1, -2)
    return (one @ F.pad(other, (0, 0, 0, UNEVEN.stop - length)).transpose(-1, -2))[..., :length]


@dataclass(frozen=True)
class Shape:
    """Sizes of the network."""

    items: int
    embedding: int
    positions: int
    history: int
    hidden: int
    heads: int


class Network(nn.Module):
    """Logit of engagement.

    Each head h has its own projection of the text embeddings. The match of candidate i with the history's item t is
    ``m_hit = sigmoid(scale_h cos_h(i, t) - shift_h)``. The MLP reads the projected candidate, the share of the history
    that matches, ``sum_t softmax(recency_h)_t m_hit``, the amount ``log(1 + sum_t m_hit)`` and ``log(1 + length)``.
    """

    embeddings: Tensor

    def __init__(self, shape: Shape, embeddings: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("embeddings", embeddings)
        self.candidate = nn.Linear(shape.embedding, shape.hidden)
        self.match = nn.Linear(shape.embedding, shape.hidden, bias=False)
        # A match starts at one half where the cosine is one half.
        self.scale = nn.Parameter(torch.full((shape.heads,), 4.0))
        self.shift = nn.Parameter(torch.full((shape.heads,), 2.0))
        self.recency = nn.Parameter(torch.zeros(shape.heads, shape.history))
        inputs = shape.hidden + 2 * shape.heads + 1
        self.inner = nn.Linear(inputs, shape.hidden)
        self.outer = nn.Linear(shape.hidden, 1)
        self.item_bias = nn.Parameter(torch.zeros(shape.items))
        self.position_bias = nn.Parameter(torch.zeros(shape.positions))

    def forward(self, history: Tensor, items: Tensor, position: Tensor | None = None) -> Tensor:
        """(P, T) and (P, S) item ids, PAD_ITEM allowed, and places (P, S) to logits (P, S); no place is the first."""
        shown = items.clamp(min=0)
        candidate = self.candidate(self.embeddings[shown])
        hidden = self.inner(torch.cat([candidate, self._match_features(shown, history)], dim=-1))
        logit = self.outer(F.gelu(hidden)).squeeze(-1)
        place = torch.zeros_like(items) if position is None else position.clamp(max=self.shape.positions - 1)
        return logit + self.item_bias[shown] + self.position_bias[place]

    def _match_features(self, shown: Tensor, history: Tensor) -> Tensor:
        """How candidates (P, S) match histories (P, T): (P, S, 2 heads + 1), zero where there is no history."""
        padding = history == PAD_ITEM
        cosine = products(self._keys(shown), self._keys(history.clamp(min=0)))
        match = torch.sigmoid(self.scale[:, None, None] * cosine - self.shift[:, None, None])
        match = match.masked_fill(padding[:, None, None, :], 0.0)
        recency = self.recency[:, self.shape.history - history.shape[1] :]
        # Not -inf: a row without history would be NaN. Its shares are zero anyway, since its matches are.
        weight = recency.masked_fill(padding[:, None, :], -1e9).softmax(dim=-1)
        share = (match @ weight[..., None]).squeeze(-1).transpose(1, 2)
        amount = torch.log1p(match.sum(dim=-1)).transpose(1, 2)
        length = torch.log1p((~padding).sum(dim=1).to(share.dtype))
        return torch.cat([share, amount, length[:, None, None].expand(-1, shown.shape[1], 1)], dim=-1)

    def _keys(self, items: Tensor) -> Tensor:
        """Unit vectors of items (P, K) by head: (P, heads, K, H / heads)."""
        width = self.shape.hidden // self.shape.heads
        keys = self.match(self.embeddings[items]).unflatten(-1, (self.shape.heads, width))
        return F.normalize(keys, dim=-1).transpose(1, 2)
