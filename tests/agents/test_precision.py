"""Half precision where a processor has no instructions for it."""

import warnings

import pytest
import torch

from sidgym.agents.precision import mixed_precision, warn_of_slow_products


@pytest.fixture(autouse=True)
def _forgotten():
    warn_of_slow_products.cache_clear()
    yield
    warn_of_slow_products.cache_clear()


def product(precision: str) -> torch.Tensor:
    with mixed_precision("cpu", precision):
        return torch.ones(2, 3) @ torch.ones(3, 2)


def test_passes_are_in_what_was_asked_for(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert product("bfloat16").dtype == torch.bfloat16
        assert product("float32").dtype == torch.float32


def test_a_processor_without_bfloat16_is_told_of_once(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.warns(UserWarning, match=r"AVX2.*float32"):
        assert product("bfloat16").dtype == torch.bfloat16, "slow, and what was asked for"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        product("bfloat16")
        product("float32")
