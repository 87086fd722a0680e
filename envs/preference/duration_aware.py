"""``duration_aware``: did the user play the item longer than their own plays of items of about that length (OneRec-V2).

Play time alone favours long items. So items are bucketed by the logarithm of their duration; ``q`` is the percentile of
a play among the user's own plays in its bucket; the label is +1 where ``q > tau`` and the user did not dislike the
item, -1 where they did, 0 otherwise. Two towers over the shared body learn P(+1) and P(-1), and the score is ``P(+1) (1
- P(-1))``, calibrated as the probability of +1. ``duration_labels`` gives the labels themselves, which OneRec-V2 uses
as advantages. Left out: time of day, and the device.

Symbols: E events of the part of the log that may be read, B contexts, T history length, K candidates.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidgym.envs.preference.base import NetworkPreference
from sidgym.envs.preference.body import InterestBody, Shape, fill_body, shape_of
from sidgym.envs.preference.data import PreferenceData
from sidgym.envs.preference.examples import Examples, grouped, impression_examples
from sidgym.envs.preference.plan import Plan
from sidgym.envs.preference.pscore import Towers, places, towers_loss
from sidgym.envs.preference.signals import check_play_time
from sidgym.envs.preference.training import Batch, base_logit, fit_pages
from sidgym.envs.records import NEGATIVE


@dataclass(frozen=True)
class DurationLabels:
    """What ``duration_labels`` returns."""

    label: np.ndarray  # (E,) int8: +1, 0 or -1
    percentile: np.ndarray  # (E,) float64 in (0, 1), NaN where nothing was played or the duration is not known
    known: np.ndarray  # (E,) bool: the label can be told, for the duration is known or the item was disliked


def duration_labels(data: PreferenceData, tau: float = 0.75, buckets: float = 1.0) -> DurationLabels:
    """Labels of the events of ``data.log``.

    Args:
        data: with ``feedback``, ``play_time`` and ``duration``.
        tau: the percentile that a play must exceed, in (0, 1); 0.75 rewards a quarter of the plays.
        buckets: buckets an octave of duration.

    Only plays of more than 0 s have a percentile: the mean rank (from 0, ties share theirs) plus one half, divided by
    the number of plays; so a play that is alone in its bucket has 0.5. Raises ``ValueError`` for a log without one of
    the three, naming it, and for a play time that is not a number.
    """
    log = data.log
    missing = [name for name, value in (("feedback", log.feedback), ("play_time", log.play_time),
                                        ("duration", data.duration)) if value is None]  # fmt: skip
    if missing or log.feedback is None or data.duration is None:
        raise ValueError(
            f"preference 'duration_aware' needs feedback, play_time and duration, but this log has no "
            f"{' and no '.join(missing)}; use 'sim' or 'pscore'"
        )
    if not 0 < tau < 1 or not buckets > 0:
        raise ValueError(f"duration_aware: expected tau in (0, 1) and buckets above 0, got {tau} and {buckets}")
    play, duration = check_play_time(data), data.duration[log.item]
    timed = np.isfinite(duration) & (duration > 0)
    rows = np.flatnonzero(timed & (play > 0))
    bucket = np.floor(np.log2(duration[rows]) * buckets).astype(np.int64)
    percentile = np.full(len(log), np.nan)
    percentile[rows] = _percentiles(grouped(log.user[rows], bucket)[1], play[rows])
    negative = log.feedback == NEGATIVE
    label = np.where(percentile > tau, 1, 0)  # NaN is not above tau
    return DurationLabels(np.where(negative, -1, label).astype(np.int8), percentile, timed | negative)


def _percentiles(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Percentile of each value (n,) among those of its group (n,)."""
    if not len(values):
        return np.zeros(0)
    order = np.lexsort((values, group))
    sorted_group, sorted_values = group[order], values[order]
    new_group = np.append(True, np.diff(sorted_group) != 0)
    new_value = new_group | np.append(True, np.diff(sorted_values) != 0)
    tie = np.cumsum(new_value) - 1
    first = np.flatnonzero(new_value)
    last = np.append(first[1:], len(values)) - 1
    start = np.flatnonzero(new_group)
    size = np.diff(np.append(start, len(values)))
    rank = (first[tie] + last[tie]) / 2 - np.repeat(start, size)
    out = np.empty(len(values))
    out[order] = (rank + 0.5) / np.repeat(size, size)
    return out


class DurationNetwork(nn.Module):
    """Logit of ``P(+1) (1 - P(-1))``."""

    target = "plus"

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.body = InterestBody(shape)
        self.towers = Towers(shape)

    def parts(self, history: Tensor, items: Tensor, position: Tensor | None = None) -> Tensor:
        """Logits of P(+1) and P(-1), (B, K, 2)."""
        hidden = self.towers.hidden(self.body(history, items))
        return self.towers(hidden, items, places(items, position, self.shape))

    def forward(self, history: Tensor, items: Tensor, position: Tensor | None = None) -> Tensor:
        """(B, T) and (B, K) item ids, PAD_ITEM allowed, and places (B, K) to logits (B, K)."""
        plus, minus = self.parts(history, items, position).unbind(dim=-1)
        log_p = F.logsigmoid(plus) + F.logsigmoid(-minus)
        # 1 - p is above 0 in exact numbers, but may round to 0.
        return log_p - torch.log(-torch.expm1(log_p.clamp(max=-1e-7)))

    def loss(self, batch: Batch, pointwise: bool = True) -> Tensor:
        """Cross-entropies of the two towers."""
        logits = self.parts(batch.history, batch.items, batch.position)
        return towers_loss(logits, batch, self.shape.towers, torch.ones(2))


class DurationPreference(NetworkPreference):
    """Duration-aware feedback; make it with ``fit`` or ``load``. Its score is the calibrated probability that the user
    plays the item longer than three quarters (``tau``) of their plays of such lengths, and does not dislike it."""

    kind = "duration_aware"
    network_type = DurationNetwork

    @classmethod
    def fit(
        cls,
        data: PreferenceData,
        seed: int = 0,
        *,
        tau: float = 0.75,
        buckets: float = 1.0,
        search: str = "none",
        found: int = 32,
        recent: int = 20,
        hidden: int = 32,
        heads: int = 4,
        **plan: Any,
    ) -> "DurationPreference":
        """Fit on impressions. Events of items whose duration is not known are left out and counted in the report.

        ``tau`` and ``buckets`` are of ``duration_labels``, the rest as of ``SimPreference.fit``. Raises ``ValueError``
        for what the data lack and for settings that do not fit.
        """
        settings = Plan(**plan)
        found_labels = duration_labels(data, tau, buckets)
        if settings.negatives not in ("auto", "impressions"):
            raise ValueError(
                f"preference 'duration_aware': negatives must be 'impressions', got {settings.negatives!r}"
            )
        labels = {"plus": found_labels.label > 0, "minus": found_labels.label < 0}
        if not labels["plus"].any():
            raise ValueError(
                f"preference 'duration_aware': no play exceeds the percentile tau = {tau} of its user and bucket; "
                "lower tau or buckets"
            )
        examples = impression_examples(data, labels, found_labels.known)
        shape, groups = shape_of(data, examples, cls.kind, history=settings.history, recent=recent, found=found,
                                 hidden=hidden, heads=heads, search=search, towers=tuple(labels))  # fmt: skip

        def build(train: Examples) -> DurationNetwork:
            network = DurationNetwork(shape)
            fill_body(network.body, data.require("embeddings", cls.kind), groups)
            network.towers.start_at([base_logit(train, name) for name in shape.towers])
            return network

        fitted = fit_pages(examples, "impressions", build, settings, seed, data.num_items)
        shares = {name: float(value[found_labels.known].mean()) for name, value in labels.items()}
        report = {
            "kind": cls.kind,
            "search": shape.search,
            "tau": tau,
            "shares": shares,
            "rows_without_duration": int((~found_labels.known).sum()),
            **fitted.report,
        }
        return cls(fitted.network, fitted.calibrator, report)
