"""HSTU: sequences by pointwise aggregated attention (Zhai et al., "Actions Speak Louder than Words", 2024).

A layer has one projection in, one out, and no softmax and no feed-forward between them (equations 1 to 3 there):

    U, V, Q, K = split(SiLU(f_1(norm(X))))
    A V = SiLU(Q K^T + rab) V / T            causal; rab: a bias for each distance
    Y = f_2(norm(A V) * U) + X

so that an item which occurs often in the history weighs more, as no softmax over the history divides it out. Settings
are those of the authors' code on Amazon Books: width 64, 4 blocks of 4 heads of 16, dropout 0.5, histories of 50,
batches of 128, lr 1e-3, item and user vectors of length one and a temperature of 0.05. The loss is cross-entropy over
all items, there over 512 sampled ones. Left out: the bias by time (the logs here have none), actions as tokens, and
what makes it fast on long sequences.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidgym.benchmarks.baselines.sequential import ItemNetwork, SequentialBaseline, embedding
from sidgym.benchmarks.baselines.training import Plan
from sidgym.envs.records import PAD_ITEM


@dataclass(frozen=True)
class HstuSettings(Plan):
    """Settings of HSTU."""

    width: int = 64
    layers: int = 4
    heads: int = 4
    head_width: int = 16
    dropout: float = 0.5
    temperature: float = 0.05


class HstuLayer(nn.Module):
    """One layer; see the module."""

    def __init__(self, plan: HstuSettings) -> None:
        super().__init__()
        self.heads, self.length, self.dropout = plan.heads, plan.history, plan.dropout
        inner = plan.heads * plan.head_width
        self.norm = nn.LayerNorm(plan.width, eps=1e-6)
        self.project_in = nn.Linear(plan.width, 4 * inner, bias=False)
        self.inner_norm = nn.LayerNorm(inner, eps=1e-6)
        self.project_out = nn.Linear(inner, plan.width)
        self.distance = nn.Parameter(torch.zeros(plan.heads, plan.history))
        nn.init.normal_(self.distance, std=0.02)

    def forward(self, x: Tensor, allowed: Tensor, distance: Tensor) -> Tensor:
        """(B, t, W), (B, 1, t, t) which places each one may read, and (t, t) how far they are, to (B, t, W)."""
        gate, value, query, key = F.silu(self.project_in(self.norm(x))).chunk(4, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        weight = F.silu(query @ key.transpose(-1, -2) + self.distance[:, distance]) * allowed / self.length
        mixed = (weight @ value).transpose(1, 2).flatten(2)
        return x + self.project_out(F.dropout(self.inner_norm(mixed) * gate, self.dropout, self.training))


class HstuNetwork(ItemNetwork):
    """States of a stack of HSTU layers; scores are cosines over the temperature."""

    def __init__(self, items: int, plan: HstuSettings) -> None:
        super().__init__(items, plan)
        self.item = embedding(items, plan.width)
        self.place = embedding(plan.history, plan.width)
        self.layers = nn.ModuleList(HstuLayer(plan) for _ in range(plan.layers))
        self.dropout, self.temperature, self.length = plan.dropout, plan.temperature, plan.history

    def forward(self, items: Tensor) -> Tensor:
        length = items.shape[1]
        real = items != PAD_ITEM
        x = self.item(items.clamp(min=0)) * self.item.embedding_dim**0.5 + self.place.weight[self.length - length :]
        x = F.dropout(x * real[..., None], self.dropout, self.training)
        places = torch.arange(length, device=items.device)
        distance = (places[:, None] - places).clamp(min=0)
        allowed = ((places[:, None] >= places) & real[:, None, :])[:, None]
        for layer in self.layers:
            x = layer(x, allowed, distance)
        return x

    def factors(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        items = F.normalize(self.item.weight, dim=-1, eps=1e-6)
        return F.normalize(states, dim=-1, eps=1e-6) / self.temperature, items, None


class Hstu(SequentialBaseline):
    """HSTU, fitted."""

    network_type = HstuNetwork
    settings_type = HstuSettings
