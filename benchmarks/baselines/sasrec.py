"""SASRec: causal self-attention over the history (Kang and McAuley, "Self-Attentive Sequential Recommendation", 2018).

The network is that of the preference model ``sasrec`` (``envs.preference.sasrec_network``): width 64 for the paper's
50, 2 blocks, 1 head, dropout 0.5 on sparse data (Beauty) and 0.2 on dense, histories of 50, batches of 128, Adam with
1e-3. It normalises before attention and feed-forward. ``loss`` says what is learned from:

    softmax   cross-entropy over all items, the strong form (Klenitskiy and Vasilev, RecSys 2023)
    sampled   binary cross-entropy against one uniform negative, as published: the row of papers' tables

Left out: the paper draws negatives from what the user has not; here they come from all items, of which about one in a
thousand is the user's own.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sidgym.benchmarks.baselines.sequential import ItemNetwork, SequentialBaseline
from sidgym.benchmarks.baselines.training import Plan
from sidgym.envs.preference.sasrec_network import SasRecNetwork, SasRecShape, sampled_loss
from sidgym.envs.records import PAD_ITEM


@dataclass(frozen=True)
class SasRecSettings(Plan):
    """Settings of SASRec."""

    width: int = 64
    layers: int = 2
    heads: int = 1
    dropout: float = 0.5
    loss: str = "softmax"
    negatives: int = 1
    """Of the sampled loss, for each target."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in ("softmax", "sampled") or self.width % self.heads:
            raise ValueError(
                f"expected loss softmax or sampled and a width that is a multiple of heads; got {self.loss!r}, "
                f"{self.width} and {self.heads}"
            )


class SasRecItems(ItemNetwork):
    """``SasRecNetwork`` as an ``ItemNetwork``."""

    def __init__(self, items: int, plan: SasRecSettings) -> None:
        super().__init__(items, plan)
        shape = SasRecShape(items, plan.history, plan.width, plan.layers, plan.heads, plan.dropout)
        self.body = SasRecNetwork(shape)
        self.item = self.body.item
        self.sampled = plan.negatives if plan.loss == "sampled" else 0

    def forward(self, items: Tensor) -> Tensor:
        return self.body(items)

    def loss(self, rows: Tensor) -> Tensor:
        if not self.sampled:
            return super().loss(rows)
        before, target = rows[:, :-1], rows[:, 1:]
        wanted = (before != PAD_ITEM) & (target != PAD_ITEM)
        drawn = torch.randint(self.items, (int(wanted.sum()), self.sampled)).to(rows.device)
        return sampled_loss(self.body, self(before)[wanted], target[wanted], drawn)


class SasRec(SequentialBaseline):
    """SASRec, fitted."""

    network_type = SasRecItems
    settings_type = SasRecSettings


fit_as_published = partial(SasRec.fit, loss="sampled")
"""SASRec with the loss of its paper."""
