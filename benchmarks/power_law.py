"""A power law of loss by model size, ``L(N) = floor + scale * (N / N_min) ** -exponent``, and how sure its exponent is.

The exponent is found on ever finer grids, scale and floor (neither below 0) by least squares beside it, so that the fit
has one best answer and needs no start. Intervals are by bootstrap over seeds and users. Sources: Kaplan et al. 2020 (no
floor); Hoffmann et al. 2022 (with one). Left out: laws in data and in operations.

Symbols: M sizes, S seeds, U users.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

EXPONENTS = np.geomspace(0.01, 3.0, 121)
"""Exponents that are tried first; the best at an end of the grid says that the sizes do not tell."""
FINER, ROUNDS = 21, 3
"""Exponents tried between the neighbours of the best one, and how often that is done."""
LEAST_SIZES = 4
ESTIMATED = ("exponent", "floor", "slope")
"""Figures that have an interval."""


def fit_law(sizes: Sequence[float], losses: Sequence[float] | np.ndarray, floor: bool = True) -> dict[str, float]:
    """``{"exponent", "scale", "floor", "r2"}`` of the law through losses (M,) at sizes (M,), all above 0.

    ``scale`` is the share of the loss above the floor at the smallest size: ``L(N) = floor + scale * (N / N_min) **
    -exponent``. ``floor=False`` holds the floor at 0. ``r2`` is the share of the losses' variance that the law
    explains, 0 where losses do not differ. Raises ``ValueError`` for fewer than four sizes and for values
    that are not above 0.
    """
    n, loss = np.asarray(sizes, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if n.ndim != 1 or n.shape != loss.shape or len(np.unique(n)) < LEAST_SIZES:
        raise ValueError(f"a power law needs at least {LEAST_SIZES} sizes with one loss each, got {n.tolist()}")
    if not (np.isfinite(n) & np.isfinite(loss) & (n > 0) & (loss > 0)).all():
        raise ValueError(f"expected sizes and losses above 0, got {n.tolist()} and {loss.tolist()}")
    tried, best = EXPONENTS, 0
    for round_ in range(1 + ROUNDS):
        if round_:
            tried = np.geomspace(tried[max(best - 1, 0)], tried[min(best + 1, len(tried) - 1)], FINER)
        basis = (n / n.min())[None] ** -tried[:, None]  # (E, M)
        scale, base = _line(basis, loss) if floor else (basis @ loss / (basis**2).sum(1), np.zeros(len(basis)))
        error = ((base[:, None] + scale[:, None] * basis - loss) ** 2).sum(axis=1)
        best = int(error.argmin())
    spread = float(((loss - loss.mean()) ** 2).sum())
    return {
        "exponent": float(tried[best]),
        "scale": float(scale[best]),
        "floor": float(base[best]),
        "r2": 1.0 - float(error[best]) / spread if spread > 0 else 0.0,
    }


def _line(basis: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and intercepts (E,) of ``loss`` (M,) on each row of ``basis`` (E, M), by least squares, none below 0."""
    centred = basis - basis.mean(axis=1, keepdims=True)
    slope = centred @ (loss - loss.mean()) / (centred**2).sum(axis=1)
    base = loss.mean() - slope * basis.mean(axis=1)
    through_zero = basis @ loss / (basis**2).sum(axis=1)
    slope, base = np.where(base < 0, through_zero, slope), np.where(base < 0, 0.0, base)
    return np.where(slope < 0, 0.0, slope), np.where(slope < 0, loss.mean(), base)


def slope(sizes: Sequence[float], losses: Sequence[float] | np.ndarray) -> float:
    """Slope of log loss on log size: the exponent of a law without a floor, with its sign."""
    x, y = np.log(np.asarray(sizes, dtype=np.float64)), np.log(np.asarray(losses, dtype=np.float64))
    x = x - x.mean()
    return float(x @ (y - y.mean()) / (x @ x))


def law_with_interval(
    sizes: Sequence[float],
    losses: Sequence[Sequence[np.ndarray]],
    resamples: int = 500,
    seed: int = 0,
    same_users: bool = False,
) -> dict[str, Any]:
    """The law of the mean losses, and 95 % intervals of exponent, floor and log-log slope.

    ``losses[m][s]`` are the losses (U,) of size m's users in seed s; every size has the same seeds and users.
    ``same_users``: so has every seed. Returns ``fit_law``'s figures, ``slope``, and for ``exponent``, ``floor`` and
    ``slope`` an entry ``<name>_interval: {"low", "high"}``; the ``smallest`` size, the number of ``seeds`` and of
    ``users``. Raises ``ValueError`` for seeds or users that differ.
    """
    seeds = {len(row) for row in losses}
    if len(seeds) != 1 or len(losses) != len(sizes):
        raise ValueError(f"expected the same seeds of {len(sizes)} sizes, got {[len(row) for row in losses]}")
    by_seed = [np.stack([row[s] for row in losses]).astype(np.float64) for s in range(seeds.pop())]  # (M, U) each
    users = [part.shape[1] for part in by_seed]
    if same_users and len(set(users)) > 1:
        raise ValueError(f"same_users: the seeds judged {users} users, not the same ones")
    mean = np.mean([part.mean(axis=1) for part in by_seed], axis=0)
    told = _estimates(sizes, mean)
    low, high = _ends(sizes, by_seed, told, resamples, np.random.default_rng(seed), same_users)
    highest = max(mean.min(), told[ESTIMATED.index("floor")])  # the law's own may lie above the lowest mean
    most = {"exponent": (EXPONENTS[0], EXPONENTS[-1]), "floor": (0.0, highest), "slope": (-np.inf, np.inf)}
    ends = {name: np.clip([low[n], high[n]], *most[name]) for n, name in enumerate(ESTIMATED)}
    return {
        **fit_law(sizes, mean),
        "slope": float(told[ESTIMATED.index("slope")]),
        **{f"{name}_interval": {"low": float(one[0]), "high": float(one[1])} for name, one in ends.items()},
        "smallest": float(min(sizes)),
        "seeds": len(by_seed),
        "users": users[0] if same_users else sum(users),
    }


def _ends(
    sizes: Sequence[float],
    by_seed: Sequence[np.ndarray],
    told: np.ndarray,
    resamples: int,
    rng: np.random.Generator,
    same_users: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends (3,) around the figures ``told``.

    With one seed users alone are drawn, the same ones for all sizes, and nothing is said of other trainings. With more,
    the squared standard error is that of the seeds' own figures, and with ``same_users`` also that over users, drawn
    for all seeds at once; Student's with seeds - 1 degrees of freedom, as in ``comparisons.interval``.
    """
    if len(by_seed) == 1:
        low, high = np.quantile(_redrawn(sizes, by_seed[0], resamples, rng), [0.025, 0.975], axis=0)
        return low, high
    from scipy.stats import t  # late: it takes as long as everything else here

    each = np.array([_estimates(sizes, part.mean(axis=1)) for part in by_seed])
    variance = each.var(axis=0, ddof=1) / len(by_seed)
    if same_users:
        variance += _redrawn(sizes, np.mean(by_seed, axis=0), resamples, rng).var(axis=0, ddof=1)
    half = float(t.ppf(0.975, len(by_seed) - 1)) * np.sqrt(variance)
    return told - half, told + half


def _estimates(sizes: Sequence[float], losses: np.ndarray) -> np.ndarray:
    """The figures ESTIMATED (3,) of losses (M,)."""
    law = fit_law(sizes, losses)
    return np.array([law["exponent"], law["floor"], slope(sizes, losses)])


def _redrawn(sizes: Sequence[float], losses: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """The figures (resamples, 3) of losses (M, U) whose users are drawn with replacement."""
    count = losses.shape[1]
    return np.array(
        [_estimates(sizes, losses[:, rng.integers(count, size=count)].mean(axis=1)) for _ in range(resamples)]
    )
