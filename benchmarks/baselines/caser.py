"""Caser: the last items as an image (Tang and Wang, "Personalized Top-N Sequential Recommendation via Convolutional
Sequence Embedding", 2018).

The vectors of the last L = 5 items are a matrix (L, W). Horizontal filters of every height from 1 to L, 16 each, see
which items follow each other, and the largest answer over time counts; 4 vertical filters are weighted sums over
places. A linear layer with ReLU and dropout 0.5 makes the state of both. L, filters and dropout are the paper's, width
64 for its 50. Left out: the vector of the user and so what it adds (histories alone are known here), the T = 3 next
items as targets (the next one is), and the sampled binary cross-entropy (all items are).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidgym.benchmarks.baselines.sequential import ItemNetwork, SequentialBaseline, embedding
from sidgym.benchmarks.baselines.training import Plan


@dataclass(frozen=True)
class CaserSettings(Plan):
    """Settings of Caser."""

    width: int = 64
    length: int = 5
    """Items that are seen, L."""
    horizontal: int = 16
    """Filters of each height."""
    vertical: int = 4
    dropout: float = 0.5


class CaserNetwork(ItemNetwork):
    """States of convolutions over the items up to each place."""

    def __init__(self, items: int, plan: CaserSettings) -> None:
        super().__init__(items, plan)
        self.length, self.dropout = plan.length, plan.dropout
        self.item = embedding(items, plan.width)
        heights = range(1, plan.length + 1)
        self.horizontal = nn.ModuleList(nn.Conv1d(plan.width, plan.horizontal, height) for height in heights)
        self.vertical = nn.Linear(plan.length, plan.vertical)
        features = plan.horizontal * plan.length + plan.vertical * plan.width
        self.hidden = nn.Linear(features, plan.width)
        self.out = nn.Linear(plan.width, plan.width)

    def forward(self, items: Tensor) -> Tensor:
        vectors = self.vectors(items).transpose(1, 2)  # (B, W, t)
        shown = F.pad(vectors, (self.length - 1, 0))  # (B, W, t + L - 1)
        parts = []
        for height, convolution in enumerate(self.horizontal, start=1):
            answers = F.relu(convolution(shown))  # (B, filters, t + L - height)
            seen = answers.unfold(2, self.length - height + 1, 1)  # of the places that lie within the last L items
            parts.append(seen.amax(dim=-1).transpose(1, 2))
        parts.append(self.vertical(shown.unfold(2, self.length, 1)).permute(0, 2, 1, 3).flatten(2))
        features = F.dropout(torch.cat(parts, dim=-1), self.dropout, self.training)
        return self.out(F.relu(self.hidden(features)))


class Caser(SequentialBaseline):
    """Caser, fitted."""

    network_type = CaserNetwork
    settings_type = CaserSettings
