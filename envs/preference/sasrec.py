"""``sasrec``: the collaborative score, what those with such a history took next (Kang & McAuley 2018).

One module for the reward and for the baseline: ``score`` gives calibrated probabilities, ``rank_items`` and ``logits``
give a recommender. Training is next-item prediction with the full softmax (or, as the paper did, with sampled binary
cross-entropy). MiniOneRec found that this score, used alone as a reward, is hacked. Left out: what was shown and
ignored; positives alone are read, so this is a model of what follows, not of what is clicked once shown.

The logit of an item hangs on the length of the state, which differs from context to context. So what is calibrated is
``z = log p(i | history) + log N``: against negatives drawn uniformly, one positive to n negatives, ``z - log n`` is the
exact log odds wherever p is. Symbols: B contexts, T history length, K candidates, N items, C targets, W width.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sidgym.envs.preference.base import CELLS, NetworkPreference, check_items, check_scores
from sidgym.envs.preference.calibration import Calibrator, fit_calibrator, judge_calibrator
from sidgym.envs.preference.data import PreferenceData
from sidgym.envs.preference.examples import Examples, hold_out, implicit_examples
from sidgym.envs.preference.plan import check_held_out
from sidgym.envs.preference.sasrec_network import SasRecNetwork, SasRecShape, sampled_loss, softmax_loss
from sidgym.envs.preference.training import single_thread
from sidgym.envs.records import PAD_ITEM, Interactions, Sequences

MOST_JUDGED = 20_000
"""Held-out events that calibration and report read at most, each; a random part where there are more."""

LOSSES = ("softmax", "sampled")


class SasRecPreference(NetworkPreference):
    """Next-item model; make it with ``fit``, ``fit_sequences`` or ``load``."""

    kind = "sasrec"
    network_type = SasRecNetwork
    shape_type = SasRecShape

    @classmethod
    def fit(
        cls,
        data: PreferenceData,
        seed: int = 0,
        *,
        history: int = 50,
        width: int = 64,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.2,
        loss: str = "softmax",
        sampled: int = 4,
        epochs: int = 40,
        patience: int = 4,
        batch: int = 128,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        valid_share: float = 0.1,
        calibration: str = "platt",
    ) -> "SasRecPreference":
        """Fit on the positive events of the users.

        Args:
            data: needs no more than the log and the number of items.
            seed: the same seed, the same weights.
            history: items that the network reads, T; longer sequences are cut into windows.
            width, layers, heads, dropout: of the network.
            loss: ``softmax`` over all items, or ``sampled``.
            sampled: negatives a positive, of the sampled loss, of calibration and of the report.
            epochs, patience: passes at most, and passes without a lower held-out loss before training stops.
            batch: windows a step.
            lr, weight_decay: of AdamW.
            valid_share, calibration: as of ``plan.Plan``.

        Raises ``ValueError`` for too few users, settings that do not fit and a loss that is not finite.
        """
        if (
            loss not in LOSSES
            or min(history, width, layers, heads, sampled, epochs, patience, batch) < 1
            or width % heads
        ):
            raise ValueError(
                f"preference 'sasrec': loss must be one of {', '.join(LOSSES)}, width a multiple of heads, and sizes "
                f"at least 1; got loss {loss!r}, width {width}, heads {heads}"
            )
        check_held_out(valid_share, calibration)
        rng = np.random.default_rng(seed)
        train, stop, judge = hold_out(implicit_examples(data, sampled), valid_share, rng)
        shape = SasRecShape(data.num_items, history, width, layers, heads, dropout)
        with single_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            network = SasRecNetwork(shape)
            trainer = _Trainer(network, loss, sampled, batch, lr, weight_decay, rng)
            kept, least = trainer.run(windows(train, history), windows(stop, history), epochs, patience)
            model = cls(network, Calibrator("none"), {})
            model.calibrator = fit_calibrator(*model._judged(stop, rng), calibration)
            told = judge_calibrator(model.calibrator, *model._judged(judge, rng), prior=float(np.log(sampled)))
        model.report = {
            "kind": cls.kind,
            "negatives": f"none read; judged against {sampled} sampled (uniform) for each positive",
            "loss": loss,
            "rows": len(train),
            "users": len(np.unique(train.user)),
            "epochs": kept,
            "held_out_loss": least,
            **told,
        }
        return model

    @classmethod
    def fit_sequences(cls, sequences: Sequences, items: int, seed: int = 0, **settings: Any) -> "SasRecPreference":
        """``fit`` on sequences of positive items, for a baseline that shares a policy's training data."""
        lengths = np.diff(sequences.offsets)
        order = np.arange(len(sequences.items)) - np.repeat(sequences.offsets[:-1], lengths)
        by_user = np.argsort(sequences.user, kind="stable")
        log = Interactions(np.repeat(sequences.user, lengths), sequences.items, order)
        if not (np.diff(sequences.user) > 0).all():
            place = np.empty_like(by_user)
            place[by_user] = np.arange(len(by_user))
            log = log.select(np.argsort(np.repeat(place, lengths), kind="stable"))
        data = PreferenceData(log, sequences.user, categories=np.full(items, -1, dtype=np.int64))
        return cls.fit(data, seed, **settings)

    def logits(self, history: np.ndarray, items: np.ndarray | None = None, forward: Any = None) -> np.ndarray:
        """``z = log p(i | history) + log N`` of the items (B, K), or of all: (B, K) or (B, N) float32."""
        count = self.network.shape.items
        check_items(history, count, "history")
        if items is not None:
            check_items(items, count, "items")
        past = torch.from_numpy(np.array(history, dtype=np.int64, order="C")).to(self.device)
        shape, candidates = self.network.shape, 0 if items is None else items.shape[1]
        width = candidates if items is not None else count
        # Attention, the layers, and what the logits are made of.
        length = min(history.shape[1], shape.history)
        one = max(shape.heads * length**2, length * 4 * shape.width, count, candidates * shape.width)
        rows = max(1, CELLS // one)
        out = np.zeros((len(past), width), dtype=np.float32)
        with torch.inference_mode(), single_thread():
            for start in range(0, len(past), rows):
                part = slice(start, start + rows)
                states = self.network.last(past[part])
                if items is None:
                    raw = states @ self.network.item.weight.T
                else:
                    shown = torch.from_numpy(np.maximum(items[part], 0).astype(np.int64)).to(self.device)
                    raw = torch.einsum("bw,bkw->bk", states, self.network.item(shown))
                out[part] = (raw - self.network.normaliser(states)[:, None] + float(np.log(count))).cpu().numpy()
        check_scores(out, history, np.broadcast_to(np.arange(count), out.shape) if items is None else items, self.kind)
        return out

    def rank_items(self, history: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` most probable next items, best first, and ``log p``: (B, k) each. Seen items are allowed.

        Raises ``ValueError`` for ``k`` above the number of items.
        """
        count = self.network.shape.items
        if not 1 <= k <= count:
            raise ValueError(f"k should be between 1 and the {count} items, got {k}")
        items, values = np.empty((len(history), k), dtype=np.int64), np.empty((len(history), k), dtype=np.float32)
        rows = max(1, CELLS // count)
        for start in range(0, len(history), rows):
            part = slice(start, start + rows)
            logits = self.logits(history[part])
            # A stable sort: equal logits stand in the order of the items.
            order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
            items[part] = order
            values[part] = np.take_along_axis(logits, order, axis=1) - np.log(count)
        return items, values

    def _judged(self, pages: Examples, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Logits and outcomes of held-out positives and of sampled negatives, (E,) each."""
        if len(pages) > MOST_JUDGED:
            pages = pages.take(np.sort(rng.choice(len(pages), size=MOST_JUDGED, replace=False)))
        pages = pages.drawn(rng)
        self.network.eval()
        logits = self.logits(pages.history(np.arange(len(pages)), self.network.shape.history), pages.items)
        shown = pages.items != PAD_ITEM
        return logits[shown], pages.labels["engaged"][shown]


def windows(pages: Examples, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (R, at most T) and targets of the same shape, PAD_ITEM on the left and where nothing is to be learned.

    A user's events are cut from the end into windows of ``length`` targets; the input of a target is the item before
    it, which for the user's first event is none.
    """
    users, first, count = np.unique(pages.user, return_index=True, return_counts=True)
    # Pages hold all positives of their users, in order.
    own = pages.items[:, 0]
    parts = -(-count // length)
    user_of = np.repeat(np.arange(len(users)), parts)
    number = np.arange(len(user_of)) - np.repeat(np.cumsum(parts) - parts, parts)
    width = int(min(length, count.max(initial=1)))
    end = count[user_of] - number * length
    place = end[:, None] + np.arange(-width, 0)
    target = np.where(place >= 0, own[first[user_of][:, None] + np.maximum(place, 0)], PAD_ITEM)
    before = np.where(place >= 1, own[first[user_of][:, None] + np.maximum(place - 1, 0)], PAD_ITEM)
    return before, target


class _Trainer:
    """AdamW over windows with early stopping."""

    def __init__(
        self, network: SasRecNetwork, loss: str, sampled: int, batch: int, lr: float, weight_decay: float,
        rng: np.random.Generator,
    ) -> None:  # fmt: skip
        self.network, self.loss, self.sampled, self.batch, self.rng = network, loss, sampled, batch, rng
        matrices = [m.weight for m in network.modules() if isinstance(m, nn.Linear)]
        others = [p for p in network.parameters() if all(p is not m for m in matrices)]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=lr)

    def run(
        self, train: tuple[np.ndarray, np.ndarray], stop: tuple[np.ndarray, np.ndarray], epochs: int, patience: int
    ) -> tuple[int, float]:
        """Train and leave the best weights in the network; the passes they took and their held-out loss."""
        best, kept, weights = np.inf, 0, None
        seed = int(self.rng.integers(2**31))
        for epoch in range(1, epochs + 1):
            self.network.train()
            for rows in np.array_split(self.rng.permutation(len(train[0])), -(-len(train[0]) // self.batch)):
                loss, _ = self._loss(train, rows, self.rng)
                self.optimiser.zero_grad(set_to_none=True)
                loss.backward()
                self.optimiser.step()
            now = self._held_out(stop, np.random.default_rng(seed))
            if now < best:
                best, kept = now, epoch
                weights = {name: value.detach().clone() for name, value in self.network.named_parameters()}
            elif epoch - kept >= patience:
                break
        if weights is None:
            raise ValueError("fit: the held-out loss was never finite; lower lr")
        self.network.load_state_dict(weights)
        return kept, float(best)

    def _held_out(self, stop: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> float:
        self.network.eval()
        total = count = 0.0
        with torch.inference_mode():
            for rows in np.array_split(np.arange(len(stop[0])), -(-len(stop[0]) // self.batch)):
                loss, targets = self._loss(stop, rows, rng)
                total, count = total + float(loss) * targets, count + targets
        return total / count

    def _loss(
        self, data: tuple[np.ndarray, np.ndarray], rows: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, int]:
        """Loss of some windows, and their number of targets."""
        before, target = (torch.from_numpy(part[rows]) for part in data)
        # Columns that hold no target in any of these windows.
        used = (target != PAD_ITEM).any(dim=0)
        first = int(used.to(torch.int64).argmax())
        before, target = before[:, first:], target[:, first:]
        wanted = target != PAD_ITEM
        states, targets = self.network(before)[wanted], target[wanted]
        if self.loss == "softmax":
            loss = softmax_loss(self.network, states, targets)
        else:
            drawn = rng.integers(self.network.shape.items, size=(len(targets), self.sampled))
            loss = sampled_loss(self.network, states, targets, torch.from_numpy(drawn))
        if not bool(torch.isfinite(loss)):
            raise ValueError(f"fit: the loss of the batch with item {int(targets[0])} is {float(loss)}; lower lr")
        return loss, len(targets)
