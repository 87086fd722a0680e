"""Cross-entropy over all items of a catalogue, with the gradient made along with the loss.

The logits of a batch are the largest thing that a sequential recommender ever holds, and writing them out, reading them
for the softmax and again for the gradient takes longer than the products themselves. Here a few rows at a time stay in
the processor's cache: their logits become their probabilities in place, and those the gradients, before the next rows
are begun. Left out: second derivatives, weights of targets, and sampled losses.

Symbols: C targets, N items, W width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CELLS = 1 << 20
"""Logits that are held at once on a processor, 4 MiB: as much as its caches keep."""
DEVICE_CELLS = 1 << 26
"""The same on an accelerator, where a call costs more than memory does; 256 MiB."""


def item_cross_entropy(states: Tensor, vectors: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
    """Mean of ``-log softmax(states @ vectors.T + bias)`` at ``targets``, a scalar (nats).

    ``states`` (C, W), ``vectors`` (N, W) of all items, ``targets`` (C,) int64, ``bias`` (N,). Computed in float32
    whatever the passes around it are in. Of no target at all the mean is NaN, as in ``torch``.
    """
    inputs = [one for one in (states, vectors, bias) if one is not None]
    learns = torch.is_grad_enabled() and any(one.requires_grad for one in inputs)
    loss: Tensor = _ItemCrossEntropy.apply(states, vectors, bias, targets, learns)
    return loss


class _ItemCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, vectors: Tensor, bias: Tensor | None, targets: Tensor, learns: bool
    ) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            loss, gradients = _loss_and_gradients(states, vectors, bias, targets, learns)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if one is None else grad.to(one.dtype) * one for one in ctx.saved_tensors), None, None


def _loss_and_gradients(
    states: Tensor, vectors: Tensor, bias: Tensor | None, targets: Tensor, learns: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss, and where something learns from it its gradients by states, vectors and bias."""
    wide, items, count = states.float(), vectors.float(), len(targets)
    of_states, of_items, of_bias = torch.empty_like(wide), torch.zeros_like(items), items.new_zeros(len(items))
    step = max(1, (CELLS if wide.device.type == "cpu" else DEVICE_CELLS) // max(1, len(items)))
    held = wide.new_empty(min(step, count), len(items))
    total = wide.new_zeros(())
    for start in range(0, count, step):
        part, wanted = wide[start : start + step], targets[start : start + step, None]
        rows = torch.mm(part, items.T, out=held[: len(part)])
        if bias is not None:
            rows += bias
        most = rows.amax(dim=1, keepdim=True)
        total += (most - rows.gather(1, wanted)).sum()
        sums = rows.sub_(most).exp_().sum(dim=1, keepdim=True)
        total += sums.log().sum()
        if learns:
            rows.div_(sums * count).scatter_add_(1, wanted, rows.new_full((len(part), 1), -1.0 / count))
            torch.mm(rows, items, out=of_states[start : start + step])
            of_items.addmm_(rows.T, part)
            if bias is not None:
                of_bias += rows.sum(dim=0)
    if not learns:
        return total / count, [None, None, None]
    return total / count, [
        of_states.to(states.dtype), of_items.to(vectors.dtype), None if bias is None else of_bias.to(bias.dtype)
    ]  # fmt: skip
