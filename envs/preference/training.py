"""Training of page-wise preference models: batches, losses, early stopping, and calibration on users held out.

``fit_pages`` is the one path of ``sim``, ``pscore`` and ``duration_aware``: split the users, train, keep the epoch of
least held-out loss, calibrate, judge. Left out: the networks, and ``din`` and ``sasrec``, whose losses are of their
own; and the settings (``plan``).

Symbols: P pages, B pages of a batch, S places a page, T history length, R items from other pages of the batch, N items.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sidgym.envs.preference.calibration import Calibrator, fit_calibrator, judge_calibrator
from sidgym.envs.preference.data import PreferenceData
from sidgym.envs.preference.examples import (
    Examples,
    hold_out,
    implicit_examples,
    impression_examples,
    tells_refusals,
)
from sidgym.envs.preference.plan import Plan
from sidgym.envs.records import PAD_ITEM

BIAS_SPEED = 3.0
"""Learning rate of biases and other vectors, in units of ``lr``."""


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one thread, so that sums have one order; the caller's setting returns afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Batch:
    """Pages as tensors."""

    history: Tensor  # (B, T) int64
    items: Tensor  # (B, S + R) int64; the last R are other pages' positives
    position: Tensor  # (B, S + R) int64
    labels: dict[str, Tensor]  # (B, S) float32
    shown: Tensor  # (B, S) bool: not padding
    log_q: Tensor | None = None  # (B, 1 + R) float32 log-probability of being drawn: the page's own, then the R


Network = Any
"""A module: ``forward(history, items, position=None)`` gives logits (B, K) of the label ``target``, ``loss(batch)`` a
scalar; parameters whose name holds ``item_bias`` are under ``bias_penalty``."""


def page_loss(logits: Tensor, batch: Batch, target: str, pointwise: bool) -> Tensor:
    """Binary cross-entropy over the page's own items, and softmax cross-entropy of its positive against the R items.

    The second takes ``log q`` off every logit (Bengio & Senecal 2003), so that an item is not punished for being liked
    often. Both are least where the logit is ``log p(i | u)`` plus a constant of the page, if negatives are uniform.
    """
    count = batch.shown.shape[1]
    own, wanted = logits[:, :count][batch.shown], batch.labels[target][batch.shown]
    loss = F.binary_cross_entropy_with_logits(own, wanted) if pointwise else logits.new_zeros(())
    if batch.log_q is not None:
        choice = torch.cat([logits[:, :1], logits[:, count:]], dim=1) - batch.log_q
        loss = loss - choice.log_softmax(dim=1)[:, 0].mean()
    return loss


class Feed:
    """Batches of examples for one mode of negatives."""

    def __init__(self, mode: str, plan: Plan, examples: Examples, items: int) -> None:
        self.mode, self.plan = mode, plan
        self.columns = min(plan.in_batch, plan.batch - 1) if mode in ("in_batch", "mixed") else 0
        count = np.bincount(examples.items[:, 0], minlength=items) if self.columns else np.zeros(items)
        # Held-out pages may hold an item that no training page has.
        self.log_q = np.log(np.maximum(count, 0.5) / max(1, len(examples))).astype(np.float32)
        self.sampler = examples.sampler

    def batches(
        self, examples: Examples, rng: np.random.Generator, shuffle: bool
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """All pages once, with the rows of each batch; negatives are drawn anew."""
        drawn = examples.drawn(rng)
        order = rng.permutation(len(drawn)) if shuffle else np.arange(len(drawn))
        for start in range(0, len(order), self.plan.batch):
            rows = order[start : start + self.plan.batch]
            yield self._batch(drawn, rows, rng), rows

    def _batch(self, pages: Examples, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        items, position = pages.items[rows], pages.position[rows]
        labels = {name: torch.from_numpy(value[rows]) for name, value in pages.labels.items()}
        shown, log_q = torch.from_numpy(items != PAD_ITEM), None
        if self.columns and len(rows) > 1 and self.sampler is not None:
            others, log_q = self._others(items[:, 0], pages.user[rows], rng)
            items = np.concatenate([items, others], axis=1)
            position = np.concatenate([position, np.zeros_like(others)], axis=1)
        history = torch.from_numpy(pages.history(rows, self.plan.history))
        return Batch(history, torch.from_numpy(items), torch.from_numpy(position), labels, shown, log_q)

    def _others(self, positive: np.ndarray, user: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Tensor]:
        """R positives of other pages a page, and log q of its own and of these; infinite (never chosen) where the
        page's user likes the item, too."""
        assert self.sampler is not None
        count = len(positive)
        # A random shift: every page meets R others, all of them different pages.
        shift = np.sort(rng.choice(count - 1, size=min(self.columns, count - 1), replace=False)) + 1
        others = positive[(np.arange(count)[:, None] + shift) % count]
        hit = self.sampler.likes(user[:, None], others)
        log_q = np.where(hit, np.float32(np.inf), self.log_q[others])
        own = self.log_q[positive][:, None]
        return others, torch.from_numpy(np.concatenate([own, log_q], axis=1))

    def describe(self) -> str:
        """What counts as a refusal, for the report."""
        if self.mode == "impressions":
            return "impressions: items that were shown and ignored"
        sampled = f"{self.plan.sampled} sampled ({self.sampler.name if self.sampler else ''})"
        others = f"{self.columns} in-batch (logQ-corrected)"
        parts = {"in_batch": [others], "mixed": [sampled, others]}.get(self.mode, [sampled])
        return f"none in the log; for each positive {' and '.join(parts)}"


def page_examples(
    data: PreferenceData, plan: Plan, labels: dict[str, np.ndarray] | None = None
) -> tuple[str, Examples]:
    """The mode of negatives that ``plan`` means for this log, and the examples."""
    mode = plan.negatives
    if mode == "auto":
        mode = "impressions" if tells_refusals(data.log) else "mixed"
    if mode == "impressions":
        return mode, impression_examples(data, labels)
    return mode, implicit_examples(data, plan.sampled, "popularity" if mode == "popularity" else "uniform")


@dataclass(frozen=True)
class Fitted:
    """What ``fit_pages`` returns."""

    network: Any
    calibrator: Calibrator
    report: dict[str, Any]
    judge: Examples  # pages of the users that the report is about, negatives drawn


def fit_pages(
    examples: Examples, mode: str, build: Callable[[Examples], Network], plan: Plan, seed: int, items: int
) -> Fitted:
    """Train a network on pages; see the module's docstring.

    ``build`` makes the network from the training pages, with torch's generator seeded. Raises ``ValueError`` for too
    few users and for a loss that is not finite, naming the first user of the batch.
    """
    rng = np.random.default_rng(seed)
    train, stop, judge = hold_out(examples, plan.valid_share, rng)
    feed = Feed(mode, plan, train, items)
    with single_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        network = build(train)
        kept = Trainer(network, feed, plan, train, rng).run(stop, int(rng.integers(2**31)))
        stop, judge = stop.drawn(rng), judge.drawn(rng)
        target = network.target
        calibrator = fit_calibrator(*predict(network, stop, plan, target), plan.calibration)
        told = judge_calibrator(calibrator, *predict(network, judge, plan, target))
    report = {
        "negatives": feed.describe(),
        "rows": int((train.items != PAD_ITEM).sum()),
        "pages": len(train),
        "users": len(np.unique(train.user)),
        "epochs": kept,
        "calibration_rows": int((stop.items != PAD_ITEM).sum()),
        **told,
    }
    return Fitted(network, calibrator, report, judge)


def predict(
    network: Any, pages: Examples, plan: Plan, target: str, forward: Callable[..., Tensor] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Logits and outcomes of all items on the pages, both (E,); ``forward`` in place of the network's own."""
    network.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pages), plan.batch):
            rows = np.arange(start, min(start + plan.batch, len(pages)))
            inputs = pages.history(rows, plan.history), pages.items[rows], pages.position[rows]
            parts.append((forward or network)(*(torch.from_numpy(array) for array in inputs)).numpy())
    shown = pages.items != PAD_ITEM
    return np.concatenate(parts)[shown], pages.labels[target][shown]


class Trainer:
    """AdamW over batches with early stopping."""

    def __init__(self, network: Any, feed: Feed, plan: Plan, train: Examples, rng: np.random.Generator) -> None:
        self.network, self.feed, self.plan, self.train, self.rng = network, feed, plan, train, rng
        # The loss is a mean over examples, so the prior counts once over all of them.
        self.bias_penalty = plan.bias_penalty / max(1, int((train.items != PAD_ITEM).sum()))
        named = list(network.named_parameters())
        # Adam moves a parameter by about lr a step; biases, in logits, have further to go than weights.
        fast = [p for name, p in named if p.ndim < 2 or "item_bias" in name or "position_bias" in name]
        slow = [p for _, p in named if all(p is not other for other in fast)]
        self.item_biases = [p for name, p in named if "item_bias" in name]
        groups = [
            {"params": slow, "weight_decay": plan.weight_decay},
            {"params": fast, "weight_decay": 0.0, "lr": BIAS_SPEED * plan.lr},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=plan.lr)

    def run(self, stop: Examples, seed: int) -> int:
        """Train and leave the best weights in the network; the number of passes they took."""
        best, kept, weights = np.inf, 0, None
        for epoch in range(1, self.plan.epochs + 1):
            self._epoch()
            loss = self._held_out(stop, np.random.default_rng(seed))
            if loss < best:
                best, kept = loss, epoch
                weights = {name: value.detach().clone() for name, value in self.network.named_parameters()}
            elif epoch - kept >= self.plan.patience:
                break
        if weights is None:
            raise ValueError("fit: the held-out loss was never finite; lower lr or check the embeddings")
        self.network.load_state_dict(weights, strict=False)  # buffers never change
        return kept

    def _loss(self, batch: Batch, rows: np.ndarray, pages: Examples) -> Tensor:
        loss = self.network.loss(batch, pointwise=self.feed.mode != "in_batch")
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"fit: the loss of the batch with user {pages.user[rows[0]]} and item {pages.items[rows[0], 0]} is "
                f"{float(loss)}; lower lr, or look for extreme values in the embeddings"
            )
        return loss

    def _epoch(self) -> None:
        self.network.train()
        for batch, rows in self.feed.batches(self.train, self.rng, shuffle=True):
            loss = self._loss(batch, rows, self.train)
            for bias in self.item_biases:
                loss = loss + self.bias_penalty * bias.square().sum()
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()

    def _held_out(self, pages: Examples, rng: np.random.Generator) -> float:
        """Mean loss of the pages; the same negatives every time."""
        self.network.eval()
        total = 0.0
        with torch.inference_mode():
            for batch, rows in self.feed.batches(pages, rng, shuffle=False):
                total += float(self._loss(batch, rows, pages)) * len(rows)
        return total / len(pages)


def base_logit(pages: Examples, target: str = "engaged") -> float:
    """Logit of the base rate of a label: starting there saves the first epochs. Sampled negatives count."""
    shown = pages.items != PAD_ITEM
    rate = float(pages.labels[target][shown].mean())
    if pages.sampler is not None:
        rate /= 1 + pages.sampler.count
    rate = min(max(rate, 1e-4), 1 - 1e-4)
    return float(np.log(rate / (1 - rate)))
