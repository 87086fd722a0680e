"""Settings of the training of page-wise preference models. Left out: what a model sets for itself."""

from dataclasses import dataclass

from sidgym.envs.preference.calibration import CALIBRATIONS

NEGATIVES = ("auto", "impressions", "uniform", "popularity", "in_batch", "mixed")


@dataclass(frozen=True)
class Plan:
    """How a page-wise model is trained; the defaults fit on one CPU thread."""

    history: int = 10_000
    """Positives before a page that the model reads at most, T."""
    negatives: str = "auto"
    """What a refusal is: ``impressions`` (shown and ignored), ``uniform`` or ``popularity`` (sampled), ``in_batch``
    (items liked on the batch's other pages, with the logQ correction), ``mixed`` (uniform and in-batch); ``auto`` is
    ``impressions`` where the log has refusals, else ``mixed``."""
    sampled: int = 4
    """Sampled negatives a positive."""
    in_batch: int = 32
    """Items from other pages of the batch, R."""
    epochs: int = 30
    patience: int = 2
    """Passes without a lower held-out loss before training stops."""
    batch: int = 256
    """Pages a step."""
    lr: float = 3e-3
    weight_decay: float = 0.01
    """Of AdamW; biases and other vectors learn at ``BIAS_SPEED * lr`` and do not decay."""
    bias_penalty: float = 0.5
    """L2 shrinkage of item biases, in units of one example's log loss."""
    valid_share: float = 0.1
    """Share of the users held out, one half for early stopping and calibration and one for the report."""
    calibration: str = "platt"

    def __post_init__(self) -> None:
        if self.negatives not in NEGATIVES:
            raise ValueError(f"negatives: expected one of {', '.join(NEGATIVES)}, got {self.negatives!r}")
        check_held_out(self.valid_share, self.calibration)
        for name in ("history", "sampled", "in_batch", "epochs", "patience", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


def check_held_out(share: float, calibration: str) -> None:
    """Raises ``ValueError`` for a share or a calibration that does not exist, before any time is spent on training."""
    if not 0 < share < 1:
        raise ValueError(f"valid_share: expected a share between 0 and 1, got {share}")
    if calibration not in CALIBRATIONS:
        raise ValueError(f"calibration: expected one of {', '.join(CALIBRATIONS)}, got {calibration!r}")
