"""RQ-KMeans+: RQ-KMeans whose codebooks go on learning together with a residual encoder (GPR).

The encoder is ``z = x + MLP(x)`` with its last layer zeroed, and the codebooks start as those of RQ-KMeans, so that at
the start the codes are RQ-KMeans'. Training is RQ-VAE's (``rq_vae``). The decoder, a choice of ours, is of the same
form: ``x' = z_q + MLP(z_q)`` with its last layer zeroed, so that the start's reconstruction is RQ-KMeans' as well. Left
out: Sinkhorn-balanced assignment, and training on anything but the CPU.
"""

import numpy as np
import torch
from torch import nn

from sidgym.sid.residual import Progress
from sidgym.sid.rq_kmeans import fit_codebooks
from sidgym.sid.rq_vae import RQVAE, VaeSettings, mlp


class Residual(nn.Module):
    """``x + MLP(x)``, the identity when new."""

    def __init__(self, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.mlp = mlp((width, *hidden, width))
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, D) -> (B, D)."""
        return x + self.mlp(x)


class RQKMeansPlus(RQVAE):
    """Residual k-means, then trained as an RQ-VAE with residual networks.

    What is quantised is as wide as the embeddings: ``settings.latent`` is not read.
    """

    name = "rq_kmeans_plus"
    defaults = VaeSettings(hidden=(256,))

    def build(self, width: int) -> nn.ModuleDict:
        """Fresh ``encoder`` and ``decoder``, both the identity on (N, D)."""
        hidden = self.settings.hidden
        return nn.ModuleDict({"encoder": Residual(width, hidden), "decoder": Residual(width, hidden[::-1])})

    @property
    def latent_width(self) -> int:
        """Width of what is quantised, the embeddings'."""
        return self.width

    def start(self, x: torch.Tensor, on_progress: Progress | None = None) -> list[np.ndarray]:
        """RQ-KMeans' codebooks of all scaled rows (N, D)."""
        return fit_codebooks(x.numpy(), self.levels, self.codes, self.seed, on_progress)
