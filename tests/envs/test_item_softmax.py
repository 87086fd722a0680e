"""Cross-entropy over all items, loss and gradient at once, against torch's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sidgym.envs import item_softmax
from sidgym.envs.item_softmax import item_cross_entropy


def made(count: int, items: int, width: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """States, vectors, bias (all to be learned) and targets."""
    stream = torch.Generator().manual_seed(count + 100 * items)
    shapes = ((count, width), (items, width), (items,))
    learned = [(scale * torch.randn(shape, generator=stream)).to(dtype).requires_grad_() for shape in shapes]
    return [*learned, torch.randint(items, (count,), generator=stream)]


@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 5), st.booleans(), st.integers(1, 40))
def test_loss_and_gradients_are_those_of_torch_whatever_is_held_at_once(
    count: int, items: int, width: int, with_bias: bool, cells: int
) -> None:
    states, vectors, bias, targets = made(count, items, width)
    learned = [states, vectors, bias] if with_bias else [states, vectors]
    wanted = F.cross_entropy(F.linear(*learned), targets)
    gradients = torch.autograd.grad(3 * wanted, learned)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_softmax, "CELLS", cells)
        found = item_cross_entropy(states, vectors, targets, bias if with_bias else None)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(torch.autograd.grad(3 * found, learned), gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_large_logits_neither_overflow_nor_lose_the_loss() -> None:
    states, vectors, _, targets = made(4, 6, 3, scale=100.0)
    wanted = F.cross_entropy(states @ vectors.T, targets)
    assert float(wanted.detach()) > 1000
    torch.testing.assert_close(item_cross_entropy(states, vectors, targets), wanted)


def test_what_is_not_a_number_stays_so() -> None:
    states, vectors, _, targets = made(4, 6, 3)
    with torch.no_grad():
        vectors[5] = float("nan")  # of an item that no target is
    targets = targets.clamp(max=4)
    loss = item_cross_entropy(states, vectors, targets)
    assert torch.isnan(loss)
    assert torch.isnan(torch.autograd.grad(loss, states)[0]).all()


def test_without_a_gradient_none_is_made() -> None:
    states, vectors, bias, targets = made(5, 7, 3)
    with torch.no_grad():
        loss = item_cross_entropy(states, vectors, targets, bias)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(states, vectors, bias), targets).detach())
    assert not item_cross_entropy(states.detach(), vectors.detach(), targets).requires_grad


def test_only_what_is_learned_has_a_gradient() -> None:
    states, vectors, _, targets = made(5, 7, 3)
    loss = item_cross_entropy(states, vectors.detach(), targets)
    wanted = F.cross_entropy(states @ vectors.detach().T, targets)
    torch.testing.assert_close(*(torch.autograd.grad(one, states)[0] for one in (loss, wanted)))


def test_in_mixed_precision_it_is_computed_in_float32() -> None:
    states, vectors, _, targets = made(5, 7, 3)
    half = states.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = item_cross_entropy(half, vectors, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(half.float() @ vectors.T, targets))
    by_states, by_vectors = torch.autograd.grad(loss, [half, vectors])
    assert (by_states.dtype, by_vectors.dtype) == (torch.bfloat16, torch.float32)


def test_of_no_target_the_mean_is_nan_as_in_torch() -> None:
    states, vectors, _, targets = made(0, 7, 3)
    assert torch.isnan(F.cross_entropy(states @ vectors.T, targets))
    assert torch.isnan(item_cross_entropy(states, vectors, targets))
