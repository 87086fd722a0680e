"""BERT4Rec: items hidden in the middle of a sequence are told from both sides (Sun et al., 2019).

A bidirectional transformer: width 64, 2 layers of 2 heads, feed-forward of 4 widths with GELU, histories of 50, a share
``mask`` of the items hidden (0.6 on Beauty, 0.2 on dense data), as published; the logits are the inner product with the
item vectors behind a linear layer with GELU and a norm, plus a bias an item. A history is answered by a hidden place
behind it, and in a tenth of the training sequences the last item alone is hidden, since that is what will be asked.
Norms stand before attention and feed-forward, with one behind the last block and none behind the embeddings, where the
paper has BERT's, behind each; the learning rate is constant, where the paper's falls from 1e-4 to 0 with weight decay
0.01 and gradients cut to 5. Left out: the paper's ten copies of the data with masks of their own, for which every epoch
draws new ones, and hidden places that keep their item or show another one. It needs several times as many epochs as
SASRec.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidgym.benchmarks.baselines.sequential import ItemNetwork, SequentialBaseline, embedding
from sidgym.benchmarks.baselines.training import Plan
from sidgym.envs.records import PAD_ITEM


@dataclass(frozen=True)
class Bert4RecSettings(Plan):
    """Settings of BERT4Rec."""

    width: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.2
    mask: float = 0.6
    last_only: float = 0.1
    """Share of sequences of which the last item alone is hidden."""


class Bert4RecNetwork(ItemNetwork):
    """States of a bidirectional transformer; row N of ``item`` stands for a hidden item."""

    def __init__(self, items: int, plan: Bert4RecSettings) -> None:
        super().__init__(items, plan)
        self.mask, self.last_only, self.length = plan.mask, plan.last_only, plan.history + 1
        self.item = embedding(items + 1, plan.width)
        self.place = embedding(self.length, plan.width)
        self.bias = nn.Parameter(torch.zeros(items))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                plan.width, plan.heads, 4 * plan.width, plan.dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(plan.layers)
        )
        self.norm = nn.LayerNorm(plan.width)
        self.head = nn.Sequential(nn.Linear(plan.width, plan.width), nn.GELU(), nn.LayerNorm(plan.width))
        self.dropout = nn.Dropout(plan.dropout)

    def forward(self, items: Tensor) -> Tensor:
        """(B, t) with hidden places N and t at most T + 1, to states (B, t, W), each from all items of the row."""
        x = self.item(items.clamp(min=0)) + self.place.weight[self.length - items.shape[1] :]
        x = self.dropout(x)
        unread = items == PAD_ITEM
        for block in self.blocks:
            x = block(x, src_key_padding_mask=unread)
        return self.head(self.norm(x))

    def factors(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        queries, vectors, _ = super().factors(states)
        return queries, vectors, self.bias

    def loss(self, rows: Tensor) -> Tensor:
        real = rows != PAD_ITEM
        hidden = (torch.rand(rows.shape) < self.mask).to(rows.device) & real
        last = torch.zeros_like(real)
        last[:, -1] = True  # of every row: rows are padded on the left
        alone = (torch.rand(len(rows)) < self.last_only).to(rows.device) | ~hidden.any(dim=1)
        hidden = torch.where(alone[:, None], last, hidden)
        return self.softmax_loss(self(torch.where(hidden, self.items, rows))[hidden], rows[hidden])

    def last(self, history: Tensor) -> Tensor:
        return self(F.pad(history, (0, 1), value=self.items))[:, -1]


class Bert4Rec(SequentialBaseline):
    """BERT4Rec, fitted."""

    network_type = Bert4RecNetwork
    settings_type = Bert4RecSettings
