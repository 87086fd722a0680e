"""RQ-VAE: its loss, its gradients, what it learns, collapse and revival."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sidgym.sid.residual import Progress
from sidgym.sid.rq_kmeans import RQKMeans
from sidgym.sid.rq_vae import RQVAE, CollapseWarning, VaeSettings, quantise, revive, rq_vae_loss, train

SMALL = VaeSettings(latent=4, hidden=(32,), steps=400, batch=128, rate=3e-3, revive_every=20)


def clouds(items: int = 400, width: int = 8) -> np.ndarray:
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(12, width))
    return (centres[rng.integers(0, 12, items)] + 0.2 * rng.normal(size=(items, width))).astype(np.float32)


def test_loss_by_hand() -> None:
    x, rebuilt = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])  # squares 1 and 4, mean 2.5
    residuals = [torch.tensor([[2.0]]), torch.tensor([[-1.0]])]
    chosen = [torch.tensor([[3.0]]), torch.tensor([[-4.0]])]  # squares 1 and 9, twice, the second time times beta
    assert rq_vae_loss(x, rebuilt, residuals, chosen, beta=0.25).item() == pytest.approx(2.5 + 10 * 1.25)


def test_gradients_by_hand() -> None:
    """One coordinate, two levels, decoder x' = 3 z: z = 2, codes 1.5 and 0.25, so z_q = 1.75."""
    latent = torch.tensor([[2.0]], requires_grad=True)
    books = [nn.Parameter(torch.tensor([[1.5], [-9.0]])), nn.Parameter(torch.tensor([[9.0], [0.25]]))]
    residuals, chosen, codes = quantise(latent, books)
    assert [code.item() for code in codes] == [0, 1]
    assert [rest.item() for rest in residuals] == pytest.approx([2.0, 0.5, 0.25])
    rebuilt = 3 * (latent - residuals[-1].detach())
    assert rebuilt.item() == pytest.approx(3 * 1.75)
    rq_vae_loss(torch.tensor([[6.0]]), rebuilt, residuals, chosen, beta=0.5).backward()
    # Straight through: 2 (x' - x) 3; commitment: beta 2 (r_0 - e_0) + beta 2 (r_1 - e_1).
    assert latent.grad is not None
    assert latent.grad.item() == pytest.approx(6 * (5.25 - 6) + 0.5 * 2 * (0.5 + 0.25))
    for book, grad in zip(books, ([[-1.0], [0.0]], [[0.0], [-0.5]])):  # 2 (e_l - r_l) of the chosen code alone
        assert book.grad is not None
        assert book.grad.tolist() == grad


def test_encode_is_what_training_quantises() -> None:
    x = clouds()
    quantiser = RQVAE(3, 8, 0, replace(SMALL, steps=20)).fit(x)
    books = [torch.from_numpy(book) for book in quantiser.codebooks]
    _, _, codes = quantise(torch.from_numpy(quantiser.latent(x)), books)
    assert np.array_equal(quantiser.encode(x), torch.stack(codes, dim=1).numpy())
    assert quantiser.distances(x) == pytest.approx(
        np.linalg.norm(x - quantiser.reconstruct(quantiser.encode(x)), axis=1), abs=1e-5
    )


def test_learns_to_rebuild_almost_as_well_as_k_means() -> None:
    x = clouds()
    chance = ((x - x.mean(axis=0)) ** 2).sum(axis=1).mean()
    k_means = RQKMeans(2, 8, 0).fit(x).distortion(x)
    quantiser = RQVAE(2, 8, 0, SMALL).fit(x)
    told = quantiser.describe(x)
    assert told["distortion"] < 0.35 * chance
    assert told["distortion"] < 2 * k_means
    assert told["losses"][-1] < 0.5 * told["losses"][0]
    assert 1 > told["residual_shares"][0] > told["residual_shares"][1] > 0
    assert told["codes_used"] == [8, 8]
    assert told["collapsed_levels"] == []


def test_product_of_separate_clusters_is_told_apart() -> None:
    rng = np.random.default_rng(0)
    coarse, fine = 3 * rng.normal(size=(4, 8)), rng.normal(size=(4, 8))
    truth = np.arange(320) % 16
    x = (coarse[truth // 4] + fine[truth % 4] + 0.02 * rng.normal(size=(320, 8))).astype(np.float32)
    codes = RQVAE(2, 8, 0, SMALL).fit(x).encode(x)
    for cluster in range(16):
        assert len(np.unique(codes[truth == cluster], axis=0)) == 1
    assert len(np.unique(codes, axis=0)) == 16


def test_one_seed_one_result_and_the_global_stream_is_left_alone() -> None:
    x, settings = clouds(), replace(SMALL, steps=30)
    before = torch.get_rng_state()
    first, again, other = (RQVAE(2, 8, seed, settings).fit(x) for seed in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state())
    assert all(one.tobytes() == two.tobytes() for one, two in zip(first.codebooks, again.codebooks))
    assert first.latent(x).tobytes() == again.latent(x).tobytes()
    assert first.latent(x).tobytes() != other.latent(x).tobytes()


class FarStart(RQVAE):
    """All codes but the first begin where no latent comes."""

    def start(self, x: torch.Tensor, on_progress: Progress | None = None) -> list[np.ndarray]:
        books = super().start(x, on_progress)
        for book in books:
            book[1:] += 100
        return books


def test_collapse_is_reported_and_revival_cures_it() -> None:
    x = clouds()
    with pytest.warns(CollapseWarning, match=r"levels \[0, 1\] collapsed: \[1, 1\] of \[8, 8\] codes"):
        dead = FarStart(2, 8, 0, replace(SMALL, steps=60, revive_every=0)).fit(x)
    assert dead.describe(x)["collapsed_levels"] == [0, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alive = FarStart(2, 8, 0, SMALL).fit(x)
    assert alive.describe(x)["codes_used"] == [8, 8]
    assert alive.distortion(x) < 0.5 * dead.distortion(x)


def test_revival_moves_dead_codes_to_rows_that_are_badly_explained() -> None:
    book = nn.Parameter(torch.tensor([[0.0], [5.0], [6.0]]))
    adam = torch.optim.Adam([book])
    book.sum().backward()
    adam.step()
    kept = book[0].item()
    residuals = [torch.tensor([[0.0], [0.0], [7.0]]), torch.tensor([[0.0], [0.0], [7.0]])]
    revive([book], [torch.tensor([3, 0, 0])], residuals, adam, np.random.default_rng(0))
    # Only one row has anything left, so only one code can start anew.
    assert book[:, 0].tolist() == [kept, 7.0, pytest.approx(6.0, abs=0.01)]
    assert (adam.state[book]["exp_avg"][:, 0] == 0).tolist() == [False, True, False]


def test_a_loss_that_is_not_finite_is_refused() -> None:
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        RQVAE(2, 8, 0, replace(SMALL, rate=1e30)).fit(clouds())


def test_weights_that_are_not_finite_at_the_end_are_refused() -> None:
    quantiser = RQVAE(2, 8, 0, replace(SMALL, steps=2)).fit(clouds())
    assert quantiser.networks is not None
    books = [nn.Parameter(torch.from_numpy(book)) for book in quantiser.codebooks]
    rows, ended = torch.from_numpy(clouds()), replace(SMALL, steps=0)
    assert train(quantiser.networks, books, rows, ended, 0) == []
    with torch.no_grad():
        books[1][0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="the last step made weights that are not finite"):
        train(quantiser.networks, books, rows, ended, 0)


def test_the_k_means_that_it_starts_from_is_told_of() -> None:
    told: list[tuple[int, int, str]] = []
    RQVAE(2, 8, 0, replace(SMALL, steps=1)).fit(clouds(), lambda *report: told.append(report))
    assert [report[:2] for report in told] == [(0, 2), (1, 2), (1, 2), (2, 2), (1, 1)]
    assert [report[2].partition(" ")[0] for report in told] == ["k-means"] * 4 + ["RQ-VAE,"]
