"""Collaborative alignment: item embeddings moved so that items which the same users engage with lie nearer.

OneRec-V1 (arXiv:2506.13695) aligns its items' representation on pairs before quantising it: a user's target item with
the most similar earlier positive, and items of high Swing similarity (``swing``), under

    L_I2I = -1/|B| sum over (i, j) in B of log( e(i, j) / sum over (i', j') in B of e(i, j') )
    e(i, j) = exp(sim(z_i, z_j) / tau)

with sim the cosine. Its caption loss, which keeps what the texts say, needs a language model; in its place the
projection is small, begins as the identity, and is kept only as long as the loss falls on users it was not fitted on.
Left out: the choice of what may be read, which is up to whoever calls ``fit``.

Symbols: N items, D width, E events, B pairs of a batch.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sidgym.sid.embedding_files import SCHEMA_VERSION, read_header
from sidgym.sid.registry import resolve
from sidgym.sid.residual import check_embeddings, one_thread
from sidgym.sid.swing import swing_similarity, top_neighbours, user_to_item_pairs
from sidgym.sid.table import write_atomically
from sidgym.sid.tokenizer_files import damaged

FOLDER, HEADER = "alignment", "alignment.json"
REMEDY = "lower learning_rate, or scale embeddings of extreme length"


class Alignment(Protocol):
    """Moves embeddings; built as ``cls(seed, on_progress)``."""

    report: dict[str, Any]  # JSON values: what ``fit`` did

    def fit(self, x: np.ndarray, user: np.ndarray, item: np.ndarray) -> "Alignment":
        """Learn from embeddings (N, D) and a log (E,), (E,) sorted by user, oldest event first."""

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Embeddings (M, D) of any items, moved: (M, D) float32."""

    def save(self, directory: Path) -> None:
        """Write what ``load`` needs."""

    @classmethod
    def load(cls, directory: Path) -> "Alignment":
        """Read what ``save`` wrote."""


def i2i_loss(left: Tensor, right: Tensor, temperature: float, same: Tensor | None = None) -> Tensor:
    """L_I2I of B pairs, a scalar; row b of ``left`` (B, D) belongs to row b of ``right`` (B, D).

    ``same`` (B, B) bool leaves terms out of the denominator: ``same[b, c]`` where item c on the right is no negative of
    pair b, as ``not_negative`` tells. Without it, the paper's sum over the whole batch.
    """
    score = nn.functional.normalize(left, dim=1) @ nn.functional.normalize(right, dim=1).T / temperature
    if same is not None:
        score = score.masked_fill(same, -torch.inf)
    return nn.functional.cross_entropy(score, torch.arange(len(left), device=left.device))


def not_negative(pairs: np.ndarray) -> np.ndarray:
    """(B, B) bool for pairs (B, 2): the right item of pair c is the left or the right one of pair b, and c is not b."""
    left, right = pairs[:, 0], pairs[:, 1]
    same = (left[:, None] == right[None, :]) | (right[:, None] == right[None, :])
    np.fill_diagonal(same, False)
    return same


class Projection(nn.Module):
    """z = x + W_2 gelu(W_1 x), rows scaled back to the length they had; W_2 = 0 at the start, so z = x bit for bit."""

    def __init__(self, width: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.enter = nn.Parameter(torch.randn(width, hidden, generator=generator) / width**0.5)
        self.leave = nn.Parameter(torch.zeros(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D); without biases, so that zero stays zero."""
        moved = x + nn.functional.gelu(x @ self.enter) @ self.leave
        length, new = x.norm(dim=1, keepdim=True), moved.norm(dim=1, keepdim=True)
        return moved * torch.where(new > 0, length / new, 1.0)


class I2IContrastive:
    """A projection of the embeddings trained with ``i2i_loss`` on Swing and user-to-item pairs.

    Args:
        seed: of the weights, the order of pairs, and which users are held out.
        on_progress: called as ``(epoch, epochs, text)``.
        temperature: tau.
        hidden: width of the projection's hidden layer.
        epochs: passes over the pairs at most; 0 leaves embeddings as they are.
        patience: passes without a lower loss on the held-out users after which training ends.
        batch: pairs a batch, B.
        learning_rate: of Adam.
        per_item: Swing neighbours an item is paired with at most.
        history: events back among which a target's most similar earlier positive is sought.
        held_out: share of users whose events choose the epoch and are not trained on.
    """

    def __init__(
        self,
        seed: int,
        on_progress: Callable[[int, int, str], None] | None = None,
        *,
        temperature: float = 0.1,
        hidden: int = 256,
        epochs: int = 40,
        patience: int = 5,
        batch: int = 256,
        learning_rate: float = 1e-3,
        per_item: int = 20,
        history: int = 20,
        held_out: float = 0.1,
    ) -> None:
        if not (temperature > 0 and learning_rate > 0 and 0 < held_out < 1) or min(hidden, batch - 1, patience) < 1:
            raise ValueError(
                "I2IContrastive: expected temperature, learning_rate, hidden and patience above 0, batch of at least 2 "
                f"and held_out in (0, 1), got {temperature}, {learning_rate}, {hidden}, {patience}, {batch}, {held_out}"
            )
        self.seed, self.on_progress = seed, on_progress
        self.temperature, self.hidden, self.epochs, self.patience = temperature, hidden, epochs, patience
        self.batch, self.learning_rate, self.held_out = batch, learning_rate, held_out
        self.per_item, self.history = per_item, history
        self.projection: Projection | None = None
        self.report: dict[str, Any] = {}

    def fit(self, x: np.ndarray, user: np.ndarray, item: np.ndarray) -> "I2IContrastive":
        """Train the projection; the epoch that suits the held-out users best is kept, be it the identity.

        Args:
            x: (N, D) embeddings.
            user: (E,) of the part of the log that training may read, the events of one user together.
            item: (E,) oldest first for each user.

        ``ValueError`` for NaN, items out of range, a log in which too few users share items, or a loss not finite.
        """
        x = check_embeddings(x)
        pairs, held = self._pairs(x, np.asarray(user), np.asarray(item, dtype=np.int64))
        generator = torch.Generator().manual_seed(self.seed % 2**63)
        with one_thread():
            self.projection = Projection(x.shape[1], self.hidden, generator)
            self._train(torch.from_numpy(x), pairs, held)
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        """(M, D) -> (M, D) float32, rows as long as they were. ``ValueError`` before ``fit``, for NaN or another D."""
        if self.projection is None:
            raise ValueError("I2IContrastive: not fitted; call fit or load first")
        x = check_embeddings(x, width=self.projection.enter.shape[0])
        with one_thread(), torch.inference_mode():
            moved = self.projection(torch.from_numpy(np.ascontiguousarray(x))).numpy()
        return check_embeddings(moved)

    def save(self, directory: str | Path) -> None:
        """Write ``i2i_contrastive.safetensors`` and ``i2i_contrastive.json``, which holds the report too."""
        from safetensors.torch import save

        if self.projection is None:
            raise ValueError("I2IContrastive: nothing to save; call fit first")
        header = {"schema_version": SCHEMA_VERSION, "seed": self.seed, "report": self.report}
        content = save({name: value.contiguous() for name, value in self.projection.state_dict().items()})
        write_atomically(Path(directory) / "i2i_contrastive.safetensors", content)
        write_atomically(Path(directory) / "i2i_contrastive.json", json.dumps(header, allow_nan=False).encode())

    @classmethod
    def load(cls, directory: str | Path) -> "I2IContrastive":
        """Read what ``save`` wrote; ``ValueError`` for another schema version or damaged files."""
        from safetensors.torch import load

        header = read_header(Path(directory) / "i2i_contrastive.json")
        with damaged(directory, "alignment"):
            state = load((Path(directory) / "i2i_contrastive.safetensors").read_bytes())
            aligned = cls(header["seed"])
            width, hidden = state["enter"].shape
            aligned.projection = Projection(width, hidden, torch.Generator())
            aligned.projection.load_state_dict(state)
            aligned.report = dict(header["report"])
            if not all(bool(torch.isfinite(value).all()) for value in state.values()):
                raise ValueError("weights that are not finite")
        return aligned

    def _pairs(self, x: np.ndarray, user: np.ndarray, item: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs to train on (P, 2), and of the held-out users each event with the one before it (Q, 2)."""
        users = np.unique(user)
        rng = np.random.default_rng(self.seed)
        apart = np.isin(user, rng.permutation(users)[: max(1, round(self.held_out * len(users)))])
        learnt = user[~apart], item[~apart]
        similarity = swing_similarity(*learnt, len(x), seed=self.seed, on_progress=self.on_progress)
        item_to_item = top_neighbours(similarity, self.per_item)
        user_to_item = user_to_item_pairs(*learnt, similarity, self.history)
        consecutive = np.stack([item[apart][1:], item[apart][:-1]], axis=1)[np.diff(user[apart]) == 0]
        place = np.any(x != 0, axis=1)  # an embedding of zero has no direction to turn

        def usable(pairs: np.ndarray) -> np.ndarray:
            return pairs[(pairs[:, 0] != pairs[:, 1]) & place[pairs].all(axis=1)]

        pairs, held = usable(np.concatenate([item_to_item, user_to_item])), rng.permutation(usable(consecutive))
        if len(pairs) < 2 or len(held) < 2:
            raise ValueError(
                f"I2IContrastive: {len(users)} users give {len(pairs)} pairs of items to learn from and {len(held)} to "
                "judge by; expected at least 2 of each. Alignment needs users that share two items or more: use a "
                "larger log, or sid.alignment = ''"
            )
        self.report = {
            "users": len(users),
            "held_out_users": len(np.unique(user[apart])),
            "item_to_item_pairs": len(item_to_item),
            "user_to_item_pairs": len(user_to_item),
            "items_with_pairs": len(np.unique(pairs)),
            "items": len(x),
        }
        return pairs, held

    def _train(self, x: Tensor, pairs: np.ndarray, held: np.ndarray) -> None:
        assert self.projection is not None
        optimiser = torch.optim.Adam(self.projection.parameters(), lr=self.learning_rate)
        rng = np.random.default_rng([self.seed % 2**63, 1])
        curve = [self._held_out_loss(x, held)]
        best = copy.deepcopy(self.projection.state_dict())
        for epoch in range(1, self.epochs + 1):
            order = rng.permutation(len(pairs))
            for start in range(0, len(order) - 1, self.batch):
                loss = self._loss(x, pairs[order[start : start + self.batch]])
                if not torch.isfinite(loss):
                    raise ValueError(f"I2IContrastive: the loss is not finite in epoch {epoch}; {REMEDY}")
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            curve.append(self._held_out_loss(x, held))
            if curve[-1] < min(curve[:-1]):
                best = copy.deepcopy(self.projection.state_dict())
            if self.on_progress:
                self.on_progress(epoch, self.epochs, f"alignment: loss {curve[-1]:.3f} on held-out users")
            if epoch - int(np.argmin(curve)) >= self.patience:
                break
        self.projection.load_state_dict(best)
        self.report |= {"best_epoch": int(np.argmin(curve)), "held_out_loss": curve}

    def _loss(self, x: Tensor, pairs: np.ndarray) -> Tensor:
        assert self.projection is not None
        left, right = self.projection(x[pairs[:, 0]]), self.projection(x[pairs[:, 1]])
        return i2i_loss(left, right, self.temperature, torch.from_numpy(not_negative(pairs)))

    @torch.no_grad()
    def _held_out_loss(self, x: Tensor, held: np.ndarray) -> float:
        """Mean over the pairs in batches of about equal size, since the loss grows with the size."""
        parts = np.array_split(held, max(1, round(len(held) / self.batch)))
        total = sum(float(self._loss(x, part)) * len(part) for part in parts)
        if not np.isfinite(total):
            raise ValueError(f"I2IContrastive: the loss of the held-out users is not finite; {REMEDY}")
        return total / len(held)


ALIGNMENTS: dict[str, Callable[..., Any]] = {"i2i_contrastive": I2IContrastive}


class AlignedEmbedder:
    """An embedder and the alignment of what it gives, so that a new item's text lands where its like were moved to."""

    def __init__(self, embedder: Any, alignment: Alignment) -> None:
        self.embedder, self.alignment = embedder, alignment

    def embed(self, texts: Any) -> np.ndarray:
        """(M, D) float32 of M texts, moved."""
        return self.alignment.transform(self.embedder.embed(texts))


def save_alignment(alignment: Alignment, directory: str | Path, name: str) -> None:
    """Write an alignment below the directory of a saved embedder, with the name (``sid.alignment``) it is found by."""
    folder = Path(directory) / FOLDER
    alignment.save(folder)
    header = {"schema_version": SCHEMA_VERSION, "alignment": name}
    write_atomically(folder / HEADER, json.dumps(header).encode())


def holds_alignment(directory: str | Path) -> bool:
    """Whether ``save_alignment`` wrote below ``directory``."""
    return (Path(directory) / FOLDER).is_dir()


def load_alignment(directory: str | Path) -> Any:
    """What ``save_alignment`` wrote below ``directory``; ``ValueError`` for anything else."""
    folder = Path(directory) / FOLDER
    name = str(read_header(folder / HEADER).get("alignment"))
    return resolve("alignment", name, ALIGNMENTS).load(folder)
