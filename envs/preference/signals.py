"""Signals of an event: what a user did with an item, as one yes or no each, from whatever a log holds.

Left out: how signals are weighed against each other (``pscore`` learns it).

Symbols: E events of the part of the log that may be read, N items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sidgym.envs.preference.data import PreferenceData
from sidgym.envs.records import CLICK, NEGATIVE, ORDER, SIGNALS


@dataclass(frozen=True)
class Signals:
    """Signals that a log has, and why it has not the others."""

    labels: dict[str, np.ndarray]  # (E,) bool each
    absent: dict[str, str]


def find_signals(data: PreferenceData, names: Sequence[str] = (), long_play: float = 0.5) -> Signals:
    """The signals of ``data.log``: those named, else all it has.

    ``click`` (or order), ``order`` and ``negative`` come from ``feedback``; ``long_play`` says that at least the share
    ``long_play`` of a known duration was played; the log's own (``records.SIGNALS``: like, follow ...) and those of
    ``PreferenceData.signals`` add to these under their own names. A signal that is the same in every event teaches
    nothing and counts as absent.

    Raises ``ValueError`` for a name the log does not have, and for a play time that is not a number.
    """
    labels: dict[str, np.ndarray] = {}
    absent: dict[str, str] = {}
    log = data.log
    if log.feedback is None:
        absent |= dict.fromkeys(("click", "order", "negative"), "the log has no feedback")
    else:
        labels |= {"click": log.feedback >= CLICK, "order": log.feedback == ORDER, "negative": log.feedback == NEGATIVE}
    if log.play_time is None or data.duration is None:
        absent["long_play"] = f"the log has no {'play_time' if log.play_time is None else 'duration'}"
    else:
        check_play_time(data)
        duration = data.duration[log.item]
        labels["long_play"] = (duration > 0) & (log.play_time >= long_play * np.where(duration > 0, duration, np.inf))
    if log.signals is not None:
        labels |= {name: (log.signals >> bit & 1).astype(bool) for bit, name in enumerate(SIGNALS)}
    labels |= {name: data.signal(name) for name in data.signals}
    for name in [name for name, value in labels.items() if value.all() or not value.any()]:
        absent[name] = f"it is {'in every' if labels.pop(name).all() else 'in no'} event"
    wanted = tuple(names) or tuple(labels)
    for name in wanted:
        if name not in labels:
            reason = absent.get(name, "the log has no such column")
            raise ValueError(
                f"signal {name!r}: {reason}; the signals present are {', '.join(labels) or 'none'} (see "
                "PreferenceData.signals for adding one)"
            )
    return Signals({name: labels[name] for name in wanted}, absent)


def check_play_time(data: PreferenceData) -> np.ndarray:
    """The play times of ``data.log`` (E,); ``ValueError`` naming the first that is negative or not a number."""
    log = data.log
    assert log.play_time is not None
    wrong = np.flatnonzero(~(np.isfinite(log.play_time) & (log.play_time >= 0)))
    if len(wrong):
        row = wrong[0]
        raise ValueError(
            f"play_time of user {log.user[row]} and item {log.item[row]} (order {log.order[row]}) is "
            f"{log.play_time[row]}; expected seconds, 0 or more"
        )
    return log.play_time
