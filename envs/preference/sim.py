"""``sim``: the probability of engagement from the part of a long history that has to do with the item.

Search-based interest model (Pi et al. 2020), the kind of model that GenRec rewards with: a general search unit finds
what of a history of up to 10 000 items is related to the candidate (``search``), an exact search unit attends to that,
and a short-term unit to the last items (``body``). Left out: SIM's auxiliary task for learning the embeddings of soft
search, which here are the items' given ones, and time stamps: age is counted in items.

Symbols: B contexts, T history length, K candidates, H hidden width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidgym.envs.preference.base import NetworkPreference
from sidgym.envs.preference.body import InterestBody, Shape, fill_body, shape_of
from sidgym.envs.preference.data import PreferenceData
from sidgym.envs.preference.examples import Examples
from sidgym.envs.preference.plan import Plan
from sidgym.envs.preference.training import Batch, base_logit, fit_pages, page_examples, page_loss


class SimNetwork(nn.Module):
    """Logit of engagement: an MLP over the body's features, and a bias an item and a place."""

    target = "engaged"

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.body = InterestBody(shape)
        self.inner = nn.Linear(shape.features, shape.hidden)
        self.outer = nn.Linear(shape.hidden, 1)
        self.item_bias = nn.Parameter(torch.zeros(shape.items))
        self.position_bias = nn.Parameter(torch.zeros(shape.positions))

    def forward(self, history: Tensor, items: Tensor, position: Tensor | None = None) -> Tensor:
        """(B, T) and (B, K) item ids, PAD_ITEM allowed, and places (B, K) to logits (B, K); no place is the first."""
        hidden = F.gelu(self.inner(self.body(history, items)))
        place = torch.zeros_like(items) if position is None else position.clamp(max=self.shape.positions - 1)
        return self.outer(hidden).squeeze(-1) + self.item_bias[items.clamp(min=0)] + self.position_bias[place]

    def loss(self, batch: Batch, pointwise: bool = True) -> Tensor:
        """``training.page_loss`` of the batch."""
        return page_loss(self(batch.history, batch.items, batch.position), batch, self.target, pointwise)


class SimPreference(NetworkPreference):
    """Search-based interest; make it with ``fit`` or ``load``. Its score is the probability of engagement, if the item
    stood first on the page where the log had pages, else of being the next positive rather than a sampled negative."""

    kind = "sim"
    network_type = SimNetwork

    @classmethod
    def fit(
        cls,
        data: PreferenceData,
        seed: int = 0,
        *,
        search: str = "auto",
        found: int = 32,
        recent: int = 20,
        hidden: int = 32,
        heads: int = 4,
        **plan: Any,
    ) -> "SimPreference":
        """Fit on impressions, or on positive events with sampled and in-batch negatives; see ``plan.Plan``.

        Args:
            data: with ``embeddings``, and ``categories`` or ``table`` for a hard search.
            seed: the same seed, the same weights.
            search: ``category``, ``prefix`` (SID), ``soft`` (embeddings), ``none``, or ``auto``: the first of category,
                prefix and soft that the data allow.
            found, recent: items that the exact search unit and the short-term unit attend to.
            hidden, heads: width H, and the heads that share it.
            plan: fields of ``plan.Plan``.

        Raises ``ValueError`` for what the data lack and for settings that do not fit.
        """
        settings = Plan(**plan)
        mode, examples = page_examples(data, settings)
        shape, groups = shape_of(data, examples, cls.kind, history=settings.history, recent=recent, found=found,
                                 hidden=hidden, heads=heads, search=search)  # fmt: skip

        def build(train: Examples) -> SimNetwork:
            network = SimNetwork(shape)
            fill_body(network.body, data.require("embeddings", cls.kind), groups)
            nn.init.constant_(network.outer.bias, base_logit(train))
            return network

        fitted = fit_pages(examples, mode, build, settings, seed, data.num_items)
        report = {"kind": cls.kind, "search": shape.search, **fitted.report}
        return cls(fitted.network, fitted.calibrator, report)
