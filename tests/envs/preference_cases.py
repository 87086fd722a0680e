"""A log with a known truth, and small settings of every kind of model, that the tests of preference models share."""

from typing import Any

import numpy as np

from sidgym.envs.preference import PreferenceData
from sidgym.envs.records import CLICK, NEGATIVE, ORDER, SHOWN, Interactions, pack_signals
from sidgym.sid.table import SidTable

USERS, PAGES, PLACES, ITEMS, SHELVES = 120, 6, 5, 24, 4
SHELF = np.arange(ITEMS) % SHELVES
"""Item i stands on shelf i % 4, and its text says so."""
EMBEDDINGS = np.eye(SHELVES, dtype=np.float32)[SHELF]
DURATION = np.where(np.arange(ITEMS) % 3, 12.0, 90.0).astype(np.float32)
TABLE = SidTable(
    np.stack([SHELF, np.arange(ITEMS) // SHELVES], axis=1), (SHELVES, ITEMS // SHELVES), np.arange(ITEMS).astype(str)
)

SMALL: dict[str, dict[str, Any]] = {
    "din": {"history": 8, "hidden": 16, "epochs": 8, "batch": 50},
    "sim": {"hidden": 16, "epochs": 8, "batch": 50, "found": 8},
    "pscore": {"hidden": 16, "epochs": 8, "batch": 50},
    "duration_aware": {"hidden": 16, "epochs": 12, "batch": 50},
    "sasrec": {"history": 16, "width": 16, "layers": 1, "epochs": 40, "batch": 16, "lr": 1e-2, "dropout": 0.0},
}
"""Settings that fit within a second on the log below, by kind."""


def shelf_log(seed: int = 0, users: int = USERS) -> Interactions:
    """User u loves shelf u % 4 (clicks 0.8 of it), dislikes the next one at times, and ignores the rest.

    Loved items are played nearly to the end, others hardly. Every second click of an even user is an order.
    """
    rng = np.random.default_rng(seed)
    shape = (users, PAGES, PLACES)
    user = np.broadcast_to(np.arange(users)[:, None, None], shape)
    item = rng.permuted(np.broadcast_to(np.arange(ITEMS), (users, PAGES, ITEMS)), axis=2)[..., :PLACES]
    loved, hated = SHELF[item] == user % SHELVES, SHELF[item] == (user + 1) % SHELVES
    clicked = rng.random(shape) < np.where(loved, 0.8, 0.04)
    feedback = np.where(clicked, CLICK, np.where(hated & (rng.random(shape) < 0.3), NEGATIVE, SHOWN))
    feedback = np.where((feedback == CLICK) & (user % 2 == 0) & (rng.random(shape) < 0.5), ORDER, feedback)
    share = np.where(loved, 0.6, 0.05) + 0.3 * rng.random(shape)
    return Interactions(
        user=user.reshape(-1),
        item=item.reshape(-1),
        order=np.tile(np.arange(PAGES * PLACES), users),
        time=np.tile(np.arange(PAGES * PLACES, dtype=np.float64), users),
        play_time=(share * DURATION[item]).reshape(-1).astype(np.float32),
        page=np.tile(np.repeat(np.arange(PAGES), PLACES), users),
        position=np.tile(np.arange(PLACES), users * PAGES),
        feedback=feedback.reshape(-1).astype(np.int8),
        signals=pack_signals({"like": (clicked & (rng.random(shape) < 0.5)).reshape(-1)}),
    )


def shelf_data(log: Interactions | None = None, users: np.ndarray | None = None, **more: Any) -> PreferenceData:
    """All that is known of the items, and the log of the users (default: all of ``shelf_log``)."""
    log = shelf_log() if log is None else log
    known = {"embeddings": EMBEDDINGS, "table": TABLE, "categories": SHELF.astype(np.int64), "duration": DURATION}
    return PreferenceData(log, np.unique(log.user) if users is None else users, **{**known, **more})


def positives_only(log: Interactions) -> Interactions:
    """The log as one of positive events alone."""
    kept = log.positives()
    return Interactions(kept.user, kept.item, kept.order, time=kept.time)


def weights(model: Any) -> dict[str, np.ndarray]:
    """Copies of all weights by name."""
    return {name: value.detach().numpy().copy() for name, value in model.network.state_dict().items()}


def same_weights(one: Any, two: Any) -> bool:
    """Whether two models have the same weights bit for bit."""
    left, right = weights(one), weights(two)
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)
