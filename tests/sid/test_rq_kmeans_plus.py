"""RQ-KMeans+ starts as RQ-KMeans and goes on from there."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sidgym.sid.rq_kmeans import RQKMeans
from sidgym.sid.rq_kmeans_plus import Residual, RQKMeansPlus
from sidgym.sid.rq_vae import VaeSettings

SMALL = VaeSettings(hidden=(32,), steps=300, batch=128, revive_every=20)


def clouds(items: int = 400, width: int = 8) -> np.ndarray:
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(12, width))
    return (centres[rng.integers(0, 12, items)] + 0.2 * rng.normal(size=(items, width))).astype(np.float32)


def test_new_networks_are_the_identity() -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    network = Residual(4, (6, 3))
    assert torch.equal(network(x), x)
    network(x).square().sum().backward()
    last = network.mlp[-1]
    assert last.weight.grad is not None
    assert last.weight.grad.abs().sum() > 0  # it learns although it begins at zero


def test_untrained_it_is_rq_kmeans() -> None:
    x = clouds()
    plain, plus = RQKMeans(3, 8, 0).fit(x), RQKMeansPlus(3, 8, 0, replace(SMALL, steps=0)).fit(x)
    assert np.array_equal(plain.encode(x), plus.encode(x))
    assert plus.distortion(x) == pytest.approx(plain.distortion(x), rel=1e-4)
    assert plus.distances(x) == pytest.approx(plain.distances(x), abs=1e-4)
    for one, two in zip(plain.codebooks, plus.codebooks):
        assert two * plus.scale == pytest.approx(one, abs=1e-4)


def test_training_lowers_the_distortion() -> None:
    x = clouds()
    plain, plus = RQKMeans(2, 8, 0).fit(x), RQKMeansPlus(2, 8, 0, SMALL).fit(x)
    assert plus.distortion(x) < 0.95 * plain.distortion(x)
    assert plus.describe(x)["codes_used"] == [8, 8]
