"""Calibration: how far probabilities can be believed, and a map from logits to probabilities that can be.

A map is fitted on users whom no gradient saw and judged on users who saw neither. Platt's map rises strictly, so it
keeps the order of scores, which an isotonic one does not (it has flat steps, where a reward tells candidates no longer
apart). Left out: calibration by group of items or users.

Symbols: E examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 15
"""Of a reliability curve."""

LEAST_SLOPE = 1e-3
"""Of Platt's map: scores may turn out worthless on held-out users, but their order is never turned round."""


@dataclass(frozen=True)
class Calibrator:
    """Logits (E,) to probabilities (E,) float64; made by ``fit_calibrator``.

    ``points`` of ``platt`` and ``temperature`` are one pair (slope, offset) of ``sigmoid(slope logit + offset)``, those
    of ``isotonic`` the corners (logit, probability) of a rising line that is level beyond its ends; ``none`` has none.
    """

    kind: str
    points: tuple[tuple[float, float], ...] = ()

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        logits = np.asarray(logits, dtype=np.float64)
        if self.kind == "isotonic":
            corners = np.array(self.points)
            return np.interp(logits, corners[:, 0], corners[:, 1])
        slope, offset = self.points[0] if self.points else (1.0, 0.0)
        return sigmoid(slope * logits + offset)

    def to_json(self) -> dict[str, Any]:
        """Plain values that ``from_json`` reads."""
        return {"kind": self.kind, "points": [list(point) for point in self.points]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Calibrator":
        """What ``to_json`` wrote."""
        return cls(values["kind"], tuple((float(x), float(y)) for x, y in values["points"]))


CALIBRATIONS = ("platt", "temperature", "isotonic", "none")


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Logistic function in float64, without overflow."""
    small = np.exp(-np.abs(np.asarray(logits, dtype=np.float64)))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


def fit_calibrator(logits: np.ndarray, outcomes: np.ndarray, kind: str = "platt") -> Calibrator:
    """The map of this kind with the lowest log loss (``isotonic``: squared error) on held-out examples.

    Args:
        logits, outcomes: (E,) finite logits, and what happened: bool, or a number in [0, 1].
        kind: one of ``CALIBRATIONS``. ``platt`` learns slope and offset, ``temperature`` the slope alone. Outcomes are
            smoothed as Platt (1999) does, so that a perfect order does not ask for an infinite slope.

    Raises ``ValueError`` for another kind, for no example and for a logit or outcome that is not finite.
    """
    if kind not in CALIBRATIONS:
        raise ValueError(f"calibration: expected one of {', '.join(CALIBRATIONS)}, got {kind!r}")
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    wrong = np.flatnonzero(~(np.isfinite(z) & np.isfinite(y)))
    if len(z) == 0 or len(wrong):
        what = f"example {wrong[0]} is {z[wrong[0]]} with outcome {y[wrong[0]]}" if len(wrong) else "there are none"
        raise ValueError(f"calibration: expected held-out examples with finite logits and outcomes, but {what}")
    if kind == "none":
        return Calibrator(kind)
    if kind == "isotonic":
        return Calibrator(kind, _isotonic(z, y))
    return Calibrator(kind, (_logistic(z, y, offset=kind == "platt"),))


def _isotonic(z: np.ndarray, y: np.ndarray) -> tuple[tuple[float, float], ...]:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(out_of_bounds="clip").fit(z, y)
    # A step that saw n examples, all of one kind, does not prove a probability of exactly 0 or 1.
    edge = 0.5 / (len(z) + 1)
    values = np.clip(model.y_thresholds_, edge, 1 - edge)
    return tuple(zip(model.X_thresholds_.tolist(), values.tolist()))


def _logistic(z: np.ndarray, y: np.ndarray, offset: bool) -> tuple[float, float]:
    """Slope and offset of least log loss."""
    from scipy.optimize import minimize

    positive = y.sum()
    low, high = 1 / (len(y) - positive + 2), (positive + 1) / (positive + 2)
    target = low + (high - low) * y
    # A common scale, whatever the logits' own.
    scale = max(float(z.std()), 1e-6)
    unit = z / scale

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        logit = values[0] * unit + values[1]
        error = sigmoid(logit) - target
        gradient = np.array([(error * unit).mean(), error.mean()])
        return float((np.logaddexp(0, logit) - target * logit).mean()), gradient

    level = (None, None) if offset else (0.0, 0.0)
    # 1000: beyond that a slope on standardised logits says no more than a step.
    found = minimize(loss, np.array([scale, 0.0]), jac=True, method="L-BFGS-B",
                     bounds=[(LEAST_SLOPE * scale, 1e3), level])  # fmt: skip
    return float(found.x[0] / scale), float(found.x[1])


def evaluate_probabilities(probability: np.ndarray, engaged: np.ndarray, bins: int = 10) -> dict[str, float]:
    """How well probabilities (E,) predict outcomes (E,) bool.

    ``auc`` counts ties half and is 0.5 where one class is missing; ``ece`` is the expected calibration error over bins
    of equal size; ``base_log_loss`` is that of the base rate, what a model that knows nothing reaches.
    """
    from scipy.stats import rankdata

    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    positive, count = int(engaged.sum()), len(engaged)
    negative = count - positive
    area = 0.5
    if positive and negative:
        area = (rankdata(p)[engaged].sum() - positive * (positive + 1) / 2) / (positive * negative)
    order = np.argsort(p, kind="stable")
    gaps = [abs(p[part].sum() - engaged[part].sum()) for part in np.array_split(order, bins)]
    base = np.clip(positive / count, 1e-7, 1 - 1e-7)
    return {
        "valid_rows": count,
        "auc": float(area),
        "log_loss": float(-np.where(engaged, np.log(p), np.log1p(-p)).mean()),
        "base_rate": positive / count,
        "base_log_loss": float(-(base * np.log(base) + (1 - base) * np.log1p(-base))),
        "ece": float(sum(gaps) / count),
    }


def reliability(probability: np.ndarray, outcomes: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """Reliability curve: what was predicted and what happened, by bins with about equally many examples.

    Equal predictions share a bin, so there may be fewer than ``bins``. Each has ``low`` and ``high`` (of the
    predictions in it), ``predicted`` and ``observed`` (means) and ``count``.
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if not len(p):
        return []
    order = np.argsort(p, kind="stable")
    p, y = p[order], y[order]
    # A bin begins at its quantile, moved back to the first example with the same prediction.
    begin = np.unique(np.searchsorted(p, p[np.arange(bins) * len(p) // bins]))
    end = np.append(begin[1:], len(p))
    count = (end - begin).tolist()
    rows = zip(p[begin].tolist(), p[end - 1].tolist(), np.add.reduceat(p, begin), np.add.reduceat(y, begin), count)
    return [
        {"low": low, "high": high, "predicted": float(s / n), "observed": float(t / n), "count": n}
        for low, high, s, t, n in rows
    ]


def expected_calibration_error(curve: list[dict[str, float]]) -> float:
    """Mean gap between predicted and observed of a reliability curve, weighted by count; 0 where it is empty."""
    count = sum(part["count"] for part in curve)
    return float(sum(abs(b["predicted"] - b["observed"]) * b["count"] for b in curve) / count) if count else 0.0


def judge_calibrator(
    calibrator: Calibrator, logits: np.ndarray, outcomes: np.ndarray, prior: float = 0.0
) -> dict[str, Any]:
    """Figures of calibrated scores on examples (E,) that had no part in the fit.

    Those of ``evaluate_probabilities`` with ``ece`` over the ``BINS`` bins of ``reliability``; ``ece_before`` and
    ``log_loss_before`` are of the plain sigmoid of the logits less ``prior``, the known log odds of a negative;
    ``calibration`` is the map. Outcomes may be numbers in [0, 1] (a weighted sum of signals): ``auc`` then tells those
    above 0 from the others.
    """
    y = np.asarray(outcomes, dtype=np.float64)
    before, after = sigmoid(logits - prior), calibrator(logits)
    curve = reliability(after, y)
    told: dict[str, Any] = dict(evaluate_probabilities(after, y > 0))
    return told | {
        "log_loss": _cross_entropy(after, y),
        "base_rate": float(y.mean()),
        "base_log_loss": _cross_entropy(np.full(len(y), y.mean()), y),
        "ece": expected_calibration_error(curve),
        "ece_before": expected_calibration_error(reliability(before, y)),
        "log_loss_before": _cross_entropy(before, y),
        "calibration": calibrator.to_json(),
        "reliability": curve,
    }


def _cross_entropy(probability: np.ndarray, outcomes: np.ndarray) -> float:
    p = np.clip(probability, 1e-7, 1 - 1e-7)
    return float(-(outcomes * np.log(p) + (1 - outcomes) * np.log1p(-p)).mean())
