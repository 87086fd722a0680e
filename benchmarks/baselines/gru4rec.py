"""GRU4Rec: a recurrent network over the history (Hidasi et al., "Session-based Recommendations with Recurrent Neural
Networks", 2016; Hidasi and Karatzoglou, 2018).

One layer of 100 units and dropout as published, item vectors of 64 that serve as input and, behind a linear layer, as
output ("constrained embedding" of the 2018 code). Trained on whole sequences with cross-entropy over all items, where
the papers have session-parallel batches and TOP1 or BPR-max losses against the batch's other items: with the full
softmax it gains (Petrov and Macdonald, 2023). Left out: those losses, and Adagrad.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidgym.benchmarks.baselines.sequential import ItemNetwork, SequentialBaseline, embedding
from sidgym.benchmarks.baselines.training import Plan
from sidgym.envs.records import PAD_ITEM


@dataclass(frozen=True)
class Gru4RecSettings(Plan):
    """Settings of GRU4Rec."""

    width: int = 64
    hidden: int = 100
    layers: int = 1
    dropout: float = 0.2


class Gru4RecNetwork(ItemNetwork):
    """States of a GRU."""

    def __init__(self, items: int, plan: Gru4RecSettings) -> None:
        super().__init__(items, plan)
        self.item = embedding(items, plan.width)
        self.gru = nn.GRU(plan.width, plan.hidden, plan.layers, batch_first=True)
        self.out = nn.Linear(plan.hidden, plan.width)
        self.dropout = plan.dropout

    def forward(self, items: Tensor) -> Tensor:
        length = items.shape[1]
        # Padding on the left would change the state that the first item meets, so rows begin with their first item.
        padding = (items == PAD_ITEM).sum(dim=1, keepdim=True)
        places = torch.arange(length, device=items.device)
        begun = items.gather(1, (places + padding) % length)
        vectors = self.vectors(begun)
        states = self.out(self.gru(F.dropout(vectors, self.dropout, self.training))[0])
        back = ((places - padding) % length)[..., None].expand_as(states)
        return F.dropout(states.gather(1, back), self.dropout, self.training)


class Gru4Rec(SequentialBaseline):
    """GRU4Rec, fitted."""

    network_type = Gru4RecNetwork
    settings_type = Gru4RecSettings
