"""What an iteration's log makes of the metrics of its optimiser steps."""

import math

import pytest

from sidgym.agents.microbatches import StepResult, summary


def step(value, parity, refused=""):
    names = {"loss": value, "ratio_max": value, "sampling/logp_difference_max": parity}
    return StepResult({**names, "sampling/logp_difference_mean": parity / 2}, refused)


def test_parity_is_of_the_first_step_and_what_follows_is_drift():
    figures = summary([step(1.0, 1e-6), step(4.0, 0.4), step(1.0, 0.2)])
    assert figures == {
        "loss": 2.0,
        "ratio_max": 4.0,
        "sampling/logp_difference_max": 1e-6,
        "sampling/logp_difference_mean": 5e-7,
        "sampling/drift_max": 0.4,
        "sampling/drift_mean": pytest.approx((0.4 + 0.2 + 1e-6) / 6),
        "updates_refused": 0.0,
    }


def test_a_refused_step_counts_as_such_alone():
    """It changed nothing, so the weights of the next one are still those of the rollout."""
    figures = summary([step(math.nan, math.nan, "not finite"), step(2.0, 1e-6), step(4.0, 0.4)])
    assert figures["loss"] == 3.0
    assert figures["ratio_max"] == 4.0
    assert figures["sampling/logp_difference_max"] == 1e-6
    assert figures["sampling/drift_max"] == 0.4
    assert figures["updates_refused"] == 1.0
    nothing = summary([step(math.nan, 0.1, "not finite")])
    assert math.isnan(nothing["ratio_max"])
    assert nothing["sampling/logp_difference_max"] == 0.1
