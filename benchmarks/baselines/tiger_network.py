"""TIGER's network: an encoder over the SID tokens of a history and a decoder of one SID, in the manner of T5.

As in T5 norms come first and have no mean or bias, linear layers have no bias, attention is not scaled and positions
enter as a bias for each distance, shared by the layers; feed-forward is ReLU. A code has one vector, which the encoder
reads, the decoder reads and the output is compared with. The decoder runs over whole prefixes, which are at most L
long, and its W prefixes of one context share the keys and values of the encoder. Left out: a cache of decoded codes,
and the user's token.

Symbols: B contexts, T items of a history, L levels, S = T L tokens, W prefixes a context, C width, K codes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidgym.benchmarks.baselines.dropout import Dropout, dropped
from sidgym.envs.records import PAD_ITEM

BUCKETS, FARTHEST = 32, 128
"""Of distances in the encoder: half of the buckets for each direction, the last ones growing with the logarithm."""

Memory = tuple[list[tuple[Tensor, Tensor]], Tensor]
"""Keys and values (B, heads, S, head width) for each layer of the decoder, and which tokens are real (B, S)."""


@dataclass(frozen=True)
class TigerShape:
    """Sizes of the network."""

    sizes: tuple[int, ...]  # L, codes on each level
    width: int
    layers: int  # of encoder and decoder each
    heads: int
    head_width: int
    inner: int  # of feed-forward
    dropout: float


class Attention(nn.Module):
    """Multi-head attention without scaling and biases."""

    def __init__(self, shape: TigerShape) -> None:
        super().__init__()
        self.heads, self.dropout = shape.heads, shape.dropout
        inner = shape.heads * shape.head_width
        self.query, self.key, self.value = (nn.Linear(shape.width, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, shape.width, bias=False)
        # T5 starts so instead of dividing scores by the root of the head's width.
        nn.init.normal_(self.query.weight, std=(shape.width * shape.head_width) ** -0.5)
        for layer in (self.key, self.value):
            nn.init.normal_(layer.weight, std=shape.width**-0.5)
        nn.init.normal_(self.out.weight, std=inner**-0.5)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of (B, S, C), (B, heads, S, head width) each."""
        return self._split(self.key(x)), self._split(self.value(x))

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
        """(B, Q, C) with ``memory`` of ``read`` and a bias that broadcasts to (B, heads, Q, S), to (B, Q, C)."""
        key, value = memory
        query = self._split(self.query(x))
        if self.training:  # torch's function has no short cut with dropout on a processor, and its dropout is slow
            weights = (query @ key.transpose(2, 3) + bias.to(query.dtype)).softmax(dim=-1).to(query.dtype)
            mixed = dropped(weights, self.dropout) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype), scale=1.0)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two layers with ReLU."""

    def __init__(self, shape: TigerShape) -> None:
        super().__init__()
        self.inner = nn.Linear(shape.width, shape.inner, bias=False)
        self.outer = nn.Linear(shape.inner, shape.width, bias=False)
        self.dropout = Dropout(shape.dropout)
        nn.init.normal_(self.inner.weight, std=shape.width**-0.5)
        nn.init.normal_(self.outer.weight, std=shape.inner**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(F.relu(self.inner(x))))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual."""

    def __init__(self, shape: TigerShape) -> None:
        super().__init__()
        self.attention, self.feed_forward, self.dropout = (
            Attention(shape),
            FeedForward(shape),
            Dropout(shape.dropout),
        )
        self.norms = nn.ModuleList(nn.RMSNorm(shape.width, eps=1e-6) for _ in range(2))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        normed = self.norms[0](x)
        x = x + self.dropout(self.attention(normed, self.attention.read(normed), bias))
        return x + self.dropout(self.feed_forward(self.norms[1](x)))


class DecoderLayer(nn.Module):
    """The same with attention to the encoder in between."""

    def __init__(self, shape: TigerShape) -> None:
        super().__init__()
        self.attention, self.across, self.feed_forward = Attention(shape), Attention(shape), FeedForward(shape)
        self.norms = nn.ModuleList(nn.RMSNorm(shape.width, eps=1e-6) for _ in range(3))
        self.dropout = Dropout(shape.dropout)

    def forward(self, x: Tensor, bias: Tensor, memory: tuple[Tensor, Tensor], unread: Tensor) -> Tensor:
        """(B, W, t, C); prefixes of a context see each other nowhere, and all of them the same ``memory``."""
        prefixes = self.norms[0](x).flatten(0, 1)
        own = self.attention(prefixes, self.attention.read(prefixes), bias)
        x = x + self.dropout(own.view_as(x))
        queries = self.norms[1](x).flatten(1, 2)
        x = x + self.dropout(self.across(queries, memory, unread).view_as(x))
        return x + self.dropout(self.feed_forward(self.norms[2](x)))


class TigerNetwork(nn.Module):
    """Encoder and decoder; ``codes`` (N, L) are the SIDs of the items."""

    codes: Tensor
    first: Tensor

    def __init__(self, shape: TigerShape, codes: Tensor) -> None:
        super().__init__()
        self.shape, self.levels = shape, len(shape.sizes)
        self.register_buffer("codes", codes, persistent=False)
        first = torch.tensor([0, *shape.sizes[:-1]]).cumsum(0)
        self.register_buffer("first", first, persistent=False)  # number of each level's first token
        self.start = sum(shape.sizes)
        self.token = nn.Embedding(self.start + 1, shape.width)
        nn.init.normal_(self.token.weight, std=1.0)
        self.encoder = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))
        layers = [DecoderLayer(shape) for _ in range(shape.layers)]
        self.decoder = nn.ModuleList(layers)
        self.readers = [layer.across.read for layer in layers]
        self.norms = nn.ModuleList(nn.RMSNorm(shape.width, eps=1e-6) for _ in range(2))
        self.distance = nn.Embedding(BUCKETS, shape.heads)
        self.back = nn.Embedding(self.levels, shape.heads)
        for bias in (self.distance, self.back):
            nn.init.normal_(bias.weight, std=0.02)
        self.dropout = Dropout(shape.dropout)

    def encode(self, history: Tensor) -> Memory:
        """What the decoder reads of histories (B, T), PAD_ITEM on the left."""
        tokens = (self.codes[history.clamp(min=0)] + self.first).flatten(1)
        real = (history != PAD_ITEM).repeat_interleave(self.levels, dim=1)
        bias = self._distances(tokens.shape[1]) + _unread(real)
        x = self.dropout(self.token(tokens))
        for layer in self.encoder:
            x = layer(x, bias)
        x = self.dropout(self.norms[0](x))
        return [read(x) for read in self.readers], real

    def decode(self, memory: Memory, codes: Tensor) -> Tensor:
        """States (B, W, t + 1, C) that tell the code behind each place of prefixes (B, W, t), and the first one."""
        keys, real = memory
        length = codes.shape[2] + 1
        start = codes.new_full((*codes.shape[:2], 1), self.start)
        x = self.dropout(self.token(torch.cat([start, codes + self.first[: length - 1]], dim=-1)))
        places = torch.arange(length, device=codes.device)
        far = places[:, None] - places
        bias = self.back(far.clamp(min=0)).permute(2, 0, 1).masked_fill(far < 0, float("-inf"))
        unread = _unread(real)
        for layer, read in zip(self.decoder, keys):
            x = layer(x, bias, read, unread)
        return self.dropout(self.norms[1](x))

    def logits(self, states: Tensor, level: int) -> Tensor:
        """Scores (..., K) of the codes of a level by states (..., C) before it; always in float32."""
        vectors = self.token.weight[int(self.first[level]) :][: self.shape.sizes[level]]
        with torch.autocast(states.device.type, enabled=False):
            return states.float() @ vectors.T * self.shape.width**-0.5

    def _distances(self, length: int) -> Tensor:
        """Bias (heads, S, S) of the encoder."""
        places = torch.arange(length, device=self.first.device)
        return self.distance(_bucket(places - places[:, None])).permute(2, 0, 1)


def _unread(real: Tensor) -> Tensor:
    """Bias (B, 1, 1, S) that hides what is not real; a context without anything sees its padding alike."""
    # Not -inf: a row of nothing else would be NaN.
    return torch.where(real, 0.0, -1e9)[:, None, None]


def _bucket(distance: Tensor) -> Tensor:
    """T5's bucket of each distance: exact up to a quarter of ``BUCKETS``, then by the logarithm up to ``FARTHEST``."""
    half = BUCKETS // 2
    exact = half // 2
    size = distance.abs()
    grown = exact + (size.clamp(min=1) / exact).log() / math.log(FARTHEST / exact) * (half - exact)
    within = torch.where(size < exact, size, grown.long().clamp(max=half - 1))
    return within + half * (distance > 0)
