"""TIGER: the next item's Semantic ID, generated (Rajput et al., "Recommender Systems with Generative Retrieval", 2023).

Every prefix of a training sequence is an example: an encoder reads the SID tokens of its last 20 items, a decoder says
the next item's SID. Lists come from beam search in the trie, so that every beam is an item, to which the paper's are
not held; beams are ranked by probabilities over all codes of a level, where the paper's softmax is over the whole
vocabulary, or over the valid ones (``normalise``). The paper's network has 4 + 4 layers of width 128, 6 heads of 64,
feed-forward 1024 and dropout 0.1, and learns for 200,000 steps of 256 examples with a learning rate of 0.01 that falls
with the inverse square root after 10,000 steps (of T5X's Adafactor; for AdamW 1e-3 stands here). That is some 390
passes over Beauty, of half an hour each on one CPU thread by arithmetic: the defaults are a network for a CPU,
``PUBLISHED`` is the paper's, which is in no trial. Left out: the token of the user, and the RQ-VAE, since SIDs are
given.

Symbols: B contexts, T history length, L levels, W beams.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sidgym.agents.evaluate import first_places
from sidgym.benchmarks.baselines.lists import judged
from sidgym.benchmarks.baselines.protocol import BaselineData, OnEpoch, check_k
from sidgym.benchmarks.baselines.sequential import alike, recent
from sidgym.benchmarks.baselines.tiger_network import TigerNetwork, TigerShape
from sidgym.benchmarks.baselines.training import Plan, Training
from sidgym.envs.records import PAD_ITEM, Sequences
from sidgym.sid.trie import Trie

AT_ONCE = 64
"""Contexts that are decoded together."""

PUBLISHED = {
    "width": 128, "layers": 4, "heads": 6, "head_width": 64, "inner": 1024, "warmup": 10_000, "epochs": 390,
}  # fmt: skip


@dataclass(frozen=True)
class TigerSettings(Plan):
    """Settings of TIGER."""

    history: int = 20
    batch: int = 256
    warmup: int = 1000
    inverse_sqrt: bool = True
    weight_decay: float = 0.01
    clip: float = 1.0
    eval_users: int = 1000
    width: int = 96
    layers: int = 2
    heads: int = 4
    head_width: int = 24
    inner: int = 384
    dropout: float = 0.1
    beam: int = 20
    """Beams; more where a longer list is asked for."""
    normalise: str = "vocab"
    """``vocab``: probabilities over all codes of a level, invalid ones left out; ``trie``: over the valid ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalise not in ("vocab", "trie"):
            raise ValueError(f"expected normalise vocab or trie, got {self.normalise!r}")


class Tiger:
    """TIGER, fitted."""

    def __init__(self, network: TigerNetwork, trie: Trie, plan: TigerSettings) -> None:
        self.network, self.trie, self.plan = network.eval(), trie, plan
        self.report: dict[str, Any] = {}

    @classmethod
    def fit(
        cls, data: BaselineData, seed: int = 0, directory: Path | None = None, on_epoch: OnEpoch | None = None,
        **settings: Any,
    ) -> "Tiger":  # fmt: skip
        """Fit on every prefix of the training sequences; ``settings`` are fields of ``TigerSettings``.

        With ``directory`` the training leaves checkpoints there and goes on from them. Raises ``ValueError`` for data
        without a SID table or without pairs, settings that do not fit, and a loss that is not finite.
        """
        if data.table is None:
            raise ValueError("tiger generates SIDs: give the data a SID table")
        plan = TigerSettings(**settings)
        examples = Prefixes(data.sequences, plan.history)
        if not len(examples.target):
            raise ValueError("no training sequence has two items; there is nothing to learn the next one from")
        shape = TigerShape(
            data.table.sizes, plan.width, plan.layers, plan.heads, plan.head_width, plan.inner, plan.dropout
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = TigerNetwork(shape, torch.from_numpy(data.table.codes)).to(plan.device)
        model = cls(network, data.table.trie.to(plan.device), plan)
        valid = data.valid.spread(plan.eval_users)

        def batches(rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
            for chosen in alike(examples.length, plan.batch, rng):
                history, target = examples[chosen]
                yield history.to(plan.device), target.to(plan.device)

        def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
            return sid_loss(network, *batch)

        def judge() -> float:  # the epoch is chosen with no more beams than these; trials are compared with all
            return judged(model.rank, valid, data, spare=max(plan.beam - 10, 0))

        training = Training(network, plan, seed, batches, loss, judge, data.fingerprint)
        model.report = training.run(directory, on_epoch) | {"settings": asdict(plan)}
        return model

    def rank(self, history: np.ndarray, k: int) -> np.ndarray:
        """The ``k`` best next items (B, k), PAD_ITEM where beam search found fewer; see ``Baseline.rank``."""
        check_k(k, self.trie.num_items)
        order = np.argsort((history != PAD_ITEM).sum(axis=1), kind="stable")
        best = np.full((len(history), k), PAD_ITEM)
        with torch.inference_mode():
            for rows in np.split(order, range(AT_ONCE, len(order), AT_ONCE)):
                past = recent(history[rows], self.plan.history).to(self.trie.device)
                leaves = self._beams(past, max(k, self.plan.beam))
                found, _ = first_places(self.trie.items_of(leaves).cpu().numpy(), k)
                best[rows, : found.shape[1]] = found
        return best

    def _beams(self, history: Tensor, width: int) -> Tensor:
        """Leaves (B, W) of the most probable SIDs, best first; -1 behind the last one."""
        memory = self.network.encode(history)
        codes = history.new_zeros(len(history), 1, 0)
        nodes, score = history.new_zeros(len(history), 1), torch.zeros(len(history), 1, device=history.device)
        for level in range(self.network.levels):
            logits = self.network.logits(self.network.decode(memory, codes)[:, :, -1], level)
            if bool(torch.isnan(logits).any()):
                raise ValueError("tiger: scores are not numbers; the weights are damaged, fit again")
            step = self._log_probabilities(logits, nodes, level)
            total = (score[..., None] + step).flatten(1)
            score, chosen = total.topk(min(width, total.shape[1]), dim=1)
            branch, code = chosen // step.shape[2], chosen % step.shape[2]
            codes = torch.cat([codes.gather(1, branch[..., None].expand(-1, -1, level)), code[..., None]], dim=2)
            nodes = self.trie.step(nodes.gather(1, branch), code, level).masked_fill(score == float("-inf"), -1)
        return self.trie.leaf_of_node(nodes)

    def _log_probabilities(self, logits: Tensor, nodes: Tensor, level: int) -> Tensor:
        """Of the codes below ``nodes`` (B, W), from logits (B, W, K); -inf where there is no such SID."""
        if self.plan.normalise == "vocab":
            return self.trie.masked(logits.log_softmax(dim=-1), nodes, level)
        # Beams that left the trie have no code at all; without the guard theirs would be NaN.
        inside = self.trie.masked(logits, nodes, level)
        return torch.where(nodes[..., None] >= 0, inside.log_softmax(dim=-1), float("-inf"))


class Prefixes:
    """Every event but a user's first one as an example, without holding all histories at once."""

    def __init__(self, sequences: Sequences, history: int) -> None:
        self.items = sequences.items
        count = np.diff(sequences.offsets)
        place = np.arange(len(self.items)) - np.repeat(sequences.offsets[:-1], count)
        self.target = np.flatnonzero(place > 0)
        self.length = np.minimum(place[self.target], history)

    def __getitem__(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Histories (B, longest of these) and targets (B,)."""
        target, length = self.target[rows], self.length[rows]
        back = np.arange(-int(length.max()), 0)
        history = np.where(-back <= length[:, None], self.items[np.maximum(target[:, None] + back, 0)], PAD_ITEM)
        return torch.from_numpy(history), torch.from_numpy(self.items[target])


def sid_loss(network: TigerNetwork, history: Tensor, target: Tensor) -> Tensor:
    """Mean over examples of the mean cross-entropy of the target's codes, each over all codes of its level."""
    codes = network.codes[target]
    states = network.decode(network.encode(history), codes[:, None, :-1])[:, 0]
    losses = [F.cross_entropy(network.logits(states[:, n], n), codes[:, n]) for n in range(network.levels)]
    return torch.stack(losses).mean()
