"""RQ-VAE: residual quantisation of a learnt latent (TIGER; MiniOneRec, arXiv:2510.24431, section 3.2).

An encoder gives ``r_0 = E(x)``, the levels quantise it to ``z_q = sum_l e_(c_l)^(l)``, a decoder gives ``D(z_q)``:

    L = |x - D(z_q)|^2 + sum_l ( |sg[r_l] - e_(c_l)|^2 + beta |r_l - sg[e_(c_l)]|^2 )

with the straight-through gradient from ``z_q`` to ``r_0``. Squares are means over rows and coordinates (MiniOneRec's
released code), ``x`` is divided by its root mean square, and in ``r_l`` the codes before are constants. Codebooks start
from k-means of the first batch; codes that nothing chose for a while start anew at rows that are badly explained. Left
out: Sinkhorn-balanced assignment, and training on anything but the CPU.

Symbols: N items, B batch, D width of the embeddings, W width of the latent, L levels, K codes on a level.
"""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from sidgym.sid.residual import (
    ENCODE_ROWS,
    Progress,
    ResidualQuantizer,
    check_embeddings,
    code_usage,
    collapsed_levels,
    one_thread,
    root_mean_square,
)
from sidgym.sid.rq_kmeans import fit_codebooks

START_ROWS = 20_480
"""Rows that the codebooks start from, MiniOneRec's batch size; training batches are smaller."""


class CollapseWarning(UserWarning):
    """A level of a fitted quantiser uses few of its codes."""


@dataclass(frozen=True)
class VaeSettings:
    """How an RQ-VAE is built and trained."""

    latent: int = 32
    """Width W of what is quantised."""
    hidden: tuple[int, ...] = (512, 256)
    """Widths of the encoder's hidden layers; the decoder has them in reverse."""
    beta: float = 0.25
    """Weight of the commitment term."""
    steps: int = 4000
    """Batches to train on."""
    batch: int = 1024
    """Rows of a batch, at most N."""
    rate: float = 1e-3
    """Adam's learning rate at the start; it falls to 0 as half a cosine."""
    revive_every: int = 50
    """Steps after which codes that no row chose start anew; 0 never revives."""
    revive_until: float = 0.8
    """Share of the steps after which no code starts anew, so that all settle."""


class RQVAE(ResidualQuantizer):
    """Residual quantiser of a latent, learnt with its encoder and decoder.

    Args:
        levels, codes, seed: as ``ResidualQuantizer``; the codebooks are (K_l, W).
        settings: networks and training; ``defaults`` take a few minutes on one thread, whatever N is.

    Attributes: ``networks``, encoder and decoder; ``scale``, what embeddings are divided by; ``losses``, the loss of
    every hundredth step of ``fit``.
    """

    name = "rq_vae"
    defaults = VaeSettings()

    def __init__(self, levels: int, codes: int, seed: int, settings: VaeSettings | None = None) -> None:
        super().__init__(levels, codes, seed)
        self.settings = settings or self.defaults
        self.networks: nn.ModuleDict | None = None
        self.scale = 1.0
        self.losses: list[float] = []

    def build(self, width: int) -> nn.ModuleDict:
        """Fresh ``encoder`` (D -> W) and ``decoder`` (W -> D) for embeddings of a width, from torch's random state."""
        widths = (width, *self.settings.hidden, self.settings.latent)
        return nn.ModuleDict({"encoder": mlp(widths), "decoder": mlp(widths[::-1])})

    @property
    def latent_width(self) -> int:
        """Width W of what is quantised."""
        return self.settings.latent

    def start(self, x: torch.Tensor, on_progress: Progress | None = None) -> list[np.ndarray]:
        """Codebooks to start from, (K_l, W) float32 each, for scaled rows (N, D)."""
        rows = x[torch.from_numpy(np.random.default_rng(self.seed).permutation(len(x))[:START_ROWS])]
        with torch.no_grad():
            latent = self._networks()["encoder"](rows).numpy()
        return fit_codebooks(latent, self.levels, self.codes, self.seed, on_progress)

    def fit(self, x: np.ndarray, on_progress: Progress | None = None) -> Self:
        """Learn networks and codebooks from embeddings (N, D).

        Warns with ``CollapseWarning`` where a level uses few of its codes. ``ValueError`` for a wrong shape, no rows,
        or NaN; ``FloatingPointError`` when the loss or a weight is not finite.
        """
        x = check_embeddings(x)
        self.width = x.shape[1]
        self.scale = root_mean_square(x)
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.networks = self.build(self.width)
            rows = torch.from_numpy(x / np.float32(self.scale))
            books = [nn.Parameter(torch.from_numpy(book)) for book in self.start(rows, on_progress)]
            self.losses = train(self.networks, books, rows, self.settings, self.seed, on_progress)
            self.codebooks = [book.detach().numpy().copy() for book in books]
        codes = self.encode(x)
        if levels := collapsed_levels(codes, self.sizes):
            used, perplexity = code_usage(codes, self.sizes)
            warnings.warn(
                f"{type(self).__name__}: the codes of levels {levels} collapsed: {used} of {list(self.sizes)} codes "
                f"are used, perplexity {[round(value, 1) for value in perplexity]}; train longer, revive codes more "
                "often, or use fewer codes",
                CollapseWarning,
                stacklevel=2,
            )
        return self

    def latent(self, x: np.ndarray) -> np.ndarray:
        """The encoder's latent (N, W) float32 of embeddings (N, D)."""
        return self._apply("encoder", x / np.float32(self.scale))

    def rebuild(self, quantised: np.ndarray) -> np.ndarray:
        """The decoder's embeddings (N, D) float32 of sums of code vectors (N, W)."""
        return self._apply("decoder", quantised) * np.float32(self.scale)

    def describe(self, x: np.ndarray) -> dict[str, Any]:
        """As ``ResidualQuantizer.describe``; residuals are the latent's, the distortion is the embeddings'."""
        return {**super().describe(x), "losses": self.losses}

    def _apply(self, network: str, rows: np.ndarray) -> np.ndarray:
        """A network's output for numpy rows."""
        with torch.no_grad():
            parts = [self._networks()[network](part) for part in torch.from_numpy(rows).split(ENCODE_ROWS)]
        return torch.cat(parts).numpy()

    def _networks(self) -> nn.ModuleDict:
        if self.networks is None:
            raise ValueError(f"{type(self).__name__} has no networks yet; call fit or load first")
        return self.networks

    def _settings(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "scale": self.scale, "losses": self.losses}

    def _arrays(self) -> dict[str, np.ndarray]:
        weights = {f"networks.{name}": value.numpy() for name, value in self._networks().state_dict().items()}
        return {**super()._arrays(), **weights}

    def _restore(self, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        super()._restore(header, arrays)
        told = header["settings"]
        self.settings = VaeSettings(**{**told, "hidden": tuple(told["hidden"])})
        self.scale, self.losses = float(header["scale"]), [float(loss) for loss in header["losses"]]
        if not 0 < self.scale < np.inf:
            raise ValueError(f"expected a scale above 0, got {self.scale}")
        with torch.random.fork_rng(devices=[]):  # weights are drawn, then replaced
            self.networks = self.build(self.width)
        names = self.networks.state_dict()
        self.networks.load_state_dict({name: torch.from_numpy(arrays[f"networks.{name}"]) for name in names})


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def quantise(
    latent: torch.Tensor, books: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Residuals r_l (B, W), chosen code vectors e_(c_l) (B, W) and codes c_l (B,), one of each a level."""
    residuals, chosen, codes = [latent], [], []
    for book in books:
        with torch.no_grad():
            half_norms = 0.5 * (book**2).sum(dim=1)
            codes.append((residuals[-1] @ book.T - half_norms).argmax(dim=1))
        chosen.append(book[codes[-1]])
        residuals.append(residuals[-1] - chosen[-1].detach())
    return residuals, chosen, codes


def rq_vae_loss(
    x: torch.Tensor,
    rebuilt: torch.Tensor,
    residuals: Sequence[torch.Tensor],
    chosen: Sequence[torch.Tensor],
    beta: float,
) -> torch.Tensor:
    """mean |x - x'|^2 + sum_l ( mean |sg[r_l] - e_l|^2 + beta mean |r_l - sg[e_l]|^2 ), a scalar.

    x and rebuilt are (B, D); residuals and chosen are the L levels' r_l and e_l, (B, W) each.
    """
    loss = (x - rebuilt).square().mean()
    for residual, vector in zip(residuals, chosen):
        loss = loss + (residual.detach() - vector).square().mean() + beta * (residual - vector.detach()).square().mean()
    return loss


def train(
    networks: nn.ModuleDict,
    books: list[nn.Parameter],
    x: torch.Tensor,
    settings: VaeSettings,
    seed: int,
    on_progress: Progress | None = None,
) -> list[float]:
    """Train networks and codebooks on scaled rows (N, D), in place; returns the loss of every hundredth step."""
    rng = np.random.default_rng([seed, 1])
    adam = torch.optim.Adam([*networks.parameters(), *books], lr=settings.rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(settings.steps, 1))
    counts = [torch.zeros(len(book), dtype=torch.int64) for book in books]
    losses, order = [], np.zeros(0, np.int64)
    for step in range(1, settings.steps + 1):
        if len(order) < min(settings.batch, len(x)):
            order = rng.permutation(len(x))
        rows, order = x[torch.from_numpy(order[: settings.batch])], order[settings.batch :]
        latent = networks["encoder"](rows)
        residuals, chosen, codes = quantise(latent, books)
        # Straight through: the decoder reads z_q, the encoder gets the gradient at z_q.
        rebuilt = networks["decoder"](latent - residuals[-1].detach())
        loss = rq_vae_loss(rows, rebuilt, residuals, chosen, settings.beta)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"RQ-VAE: the loss is {loss.item()} at step {step}; lower the learning rate")
        adam.zero_grad()
        loss.backward()
        adam.step()
        falling.step()
        for count, code in zip(counts, codes):
            count += torch.bincount(code, minlength=len(count))
        if settings.revive_every and step % settings.revive_every == 0:
            if step <= settings.revive_until * settings.steps:
                revive(books, counts, residuals, adam, rng)
            for count in counts:
                count.zero_()
        if step % 100 == 0 or step == settings.steps:
            losses.append(loss.item())
            if on_progress:
                on_progress(step, settings.steps, f"RQ-VAE, loss {losses[-1]:.4f}")
    if not all(bool(torch.isfinite(value).all()) for value in [*networks.parameters(), *books]):
        raise FloatingPointError("RQ-VAE: the last step made weights that are not finite; lower the learning rate")
    return losses


def revive(
    books: Sequence[nn.Parameter],
    counts: Sequence[torch.Tensor],
    residuals: Sequence[torch.Tensor],
    adam: torch.optim.Optimizer,
    rng: np.random.Generator,
) -> None:
    """Codes that no row chose (counts (K_l,) of 0) start anew at residuals (B, W) of their level.

    Rows are drawn without replacement, with chances in proportion to the square of what the level leaves of them.
    """
    for level, (book, count) in enumerate(zip(books, counts)):
        left = residuals[level + 1].detach().square().sum(dim=1).double().numpy()
        dead = np.flatnonzero(count.numpy() == 0)[: int((left > 0).sum())]
        if len(dead) == 0:
            continue
        rows = rng.choice(len(left), len(dead), replace=False, p=left / left.sum())
        with torch.no_grad():
            book[dead] = residuals[level][rows].detach()
        for moment in ("exp_avg", "exp_avg_sq"):
            adam.state[book][moment][dead] = 0
