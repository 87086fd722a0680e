"""The network of ``sasrec``: causal self-attention over item embeddings (Kang & McAuley 2018), and its losses.

Blocks normalise before attention and feed-forward, as later work does; positions are learned and counted from the
right, the newest item in the last one. Before the first item stands an empty place, so that an empty history has a
state, too. Left out: time intervals, and text.

Symbols: B rows, T places, N items, W width, C targets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidgym.envs.item_softmax import item_cross_entropy
from sidgym.envs.records import PAD_ITEM

CELLS = 1 << 23
"""Logits that are held at once."""


@dataclass(frozen=True)
class SasRecShape:
    """Sizes of the network."""

    items: int
    history: int  # T
    width: int
    layers: int
    heads: int
    dropout: float


class Block(nn.Module):
    """Self-attention and feed-forward, each with a residual."""

    def __init__(self, shape: SasRecShape) -> None:
        super().__init__()
        self.heads, self.dropout = shape.heads, shape.dropout
        self.before_attention = nn.LayerNorm(shape.width)
        self.before_feed_forward = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.inner = nn.Linear(shape.width, shape.width)
        self.outer = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """(B, T, W), and (B, 1, T, T) which places each one may look at, to (B, T, W)."""
        query, key, value = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=rate)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)
        inner = F.dropout(F.relu(self.inner(self.before_feed_forward(x))), self.dropout, self.training)
        return x + F.dropout(self.outer(inner), self.dropout, self.training)


class SasRecNetwork(nn.Module):
    """States of histories, and logits of items: the inner product of state and item embedding."""

    def __init__(self, shape: SasRecShape) -> None:
        super().__init__()
        self.shape = shape
        self.item = nn.Embedding(shape.items, shape.width)
        self.place = nn.Embedding(shape.history, shape.width)
        for embedding in (self.item, self.place):
            nn.init.normal_(embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, items: Tensor) -> Tensor:
        """(B, t) item ids with t at most T, PAD_ITEM on the left, to the state after each of them, (B, t, W)."""
        length = items.shape[1]
        real = items != PAD_ITEM
        x = self.item(items.clamp(min=0)) * real[..., None] * self.shape.width**0.5
        x = x + self.place.weight[self.shape.history - length :]
        x = F.dropout(x, self.shape.dropout, self.training)
        causal = torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
        # A place always sees itself: padding would otherwise see nothing, which is NaN.
        allowed = (causal & real[:, None, :]) | torch.eye(length, dtype=torch.bool, device=items.device)
        for block in self.blocks:
            x = block(x, allowed[:, None])
        return self.norm(x)

    def last(self, history: Tensor) -> Tensor:
        """State after a history (B, T), of which the last ``shape.history`` items count: (B, W)."""
        kept = history[:, max(0, history.shape[1] - self.shape.history) :]
        if kept.shape[1] == 0:
            kept = torch.full((len(history), 1), PAD_ITEM, device=history.device)
        # Padding stays, even where every row has it: without it the bits of a row would hang on the other rows.
        return self(kept)[:, -1]

    def normaliser(self, states: Tensor) -> Tensor:
        """``log sum_i exp(logit_i)`` over all items of states (C, W), a part of the items at once: (C,)."""
        step = max(1, CELLS // max(1, len(states)))
        return torch.stack([(states @ part.T).logsumexp(dim=1) for part in self.item.weight.split(step)]).logsumexp(
            dim=0
        )


def softmax_loss(network: SasRecNetwork, states: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over all items of states (C, W) at targets (C,)."""
    return item_cross_entropy(states, network.item.weight, targets)


def sampled_loss(network: SasRecNetwork, states: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Binary cross-entropy of each target against sampled items (C, n), a mean over the targets (SASRec's own loss).

    The negatives' share is a mean, not a sum, as in the paper with its one negative.
    """
    positive = (states * network.item(targets)).sum(dim=-1)
    negative = torch.einsum("cw,cnw->cn", states, network.item(negatives))
    return (F.softplus(-positive) + F.softplus(negative).mean(dim=1)).mean()
