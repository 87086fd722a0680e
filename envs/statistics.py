"""Bootstrap intervals over users: how far a difference between two policies may be due to the users at hand.

Users are the unit of resampling, since the contexts of one user are not independent. The interval covers the draw of
test users only; it says nothing about the spread over training seeds. Left out: tests, and corrections for many
comparisons.
"""

import numpy as np

_DRAWS_AT_ONCE = 1 << 22  # bounds the memory of a chunk to about 64 MiB


def _checked(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name}: expected one value a user, shape (U,) with U >= 1, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: {int((~np.isfinite(values)).sum())} of {len(values)} values are not finite")
    return values


def bootstrap_mean(values: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    """Mean of ``values`` (U,) and its 95 % percentile bootstrap interval over users.

    Returns ``{"mean", "low", "high"}``. The same seed gives the same interval. Raises ``ValueError`` for values that
    are not finite, no users, or fewer than one resample. Source: Efron and Tibshirani, "An Introduction to the
    Bootstrap", 1993, chapter 13.
    """
    values = _checked(values, "bootstrap_mean")
    if resamples < 1:
        raise ValueError(f"bootstrap_mean: expected at least one resample, got {resamples}")
    rng = np.random.default_rng(seed)
    users = len(values)
    step = max(1, _DRAWS_AT_ONCE // users)
    means = np.concatenate([
        values[rng.integers(0, users, size=(min(step, resamples - start), users))].mean(axis=1)
        for start in range(0, resamples, step)
    ])  # fmt: skip
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def paired_bootstrap(a: np.ndarray, b: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    """Mean of ``a - b`` and its 95 % percentile interval, the pair of each user drawn together.

    ``a``, ``b`` (U,): one metric of two policies on the same users in the same order. Returns
    ``{"mean", "low", "high"}``; raises ``ValueError`` as ``bootstrap_mean`` does, and for different lengths.
    """
    a, b = _checked(a, "paired_bootstrap: a"), _checked(b, "paired_bootstrap: b")
    if a.shape != b.shape:
        raise ValueError(f"paired_bootstrap: expected the same users in both, got {len(a)} and {len(b)} values")
    return bootstrap_mean(a - b, resamples, seed)
