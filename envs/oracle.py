"""What could be achieved in the simulated store, because the probabilities that made it are known.

Three marks for a list of k items, each a mean true click preference p(z, i): ``random_value`` (any items), the
*reference* (exact Bayes from the log alone) and ``bound`` (knows the latent taste). The reference is the forward filter
of ``taste_filter`` over all that the log shows of a user before the event's page: items shown and where, clicks,
orders, dislikes and play times. Exposure and leaving depend on the observed history only, so they cancel.
``calibration`` checks it. Left out: the earlier positions of the event's own page, and planning beyond one page; live
sessions, which ``session_oracle`` judges.

For an exact reference, pick the rows of ``event_rows`` without a look at what happens on or after their page (all rows
of some pages, ``last_session_rows``). Otherwise the choice is itself evidence on the taste that the filter lacks, and
the calibration may be off by more than noise.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sidgym.envs.records import Interactions
from sidgym.envs.simulator import Truth
from sidgym.envs.taste_filter import TasteFilter, best, rows_at_once


def random_value(truth: Truth, event_rows: np.ndarray, chunk: int = 512) -> np.ndarray:
    """Mean true preference over all items, (B,) float64: what a list drawn at random is worth."""
    parts = [
        truth.preference(rows).mean(axis=1, dtype=np.float64)
        for rows in _chunks(event_rows, min(chunk, rows_at_once(truth.world)))
    ]
    return np.concatenate(parts)


def bound(truth: Truth, event_rows: np.ndarray, k: int, chunk: int = 512) -> np.ndarray:
    """Mean true preference of the truly best k items, (B,) float64. No policy can do better, as none sees the taste."""
    parts = [
        best(truth.preference(rows), k)[1].mean(axis=1, dtype=np.float64)
        for rows in _chunks(event_rows, min(chunk, rows_at_once(truth.world)))
    ]
    return np.concatenate(parts)


def percent_of_oracle(value: float, random: float, reference: float) -> float:
    """Where a mean preference stands between random items (0) and the reference (100)."""
    if not reference > random:
        raise ValueError(f"reference: expected more than random = {random}, got {reference}; use more events")
    return 100 * (value - random) / (reference - random)


def last_session_rows(truth: Truth, interactions: Interactions) -> np.ndarray:
    """First log row of each user's last session, (U,) int64, users in order.

    The number of sessions is drawn apart from taste and clicks, so these rows are picked without selection bias.
    """
    _check_log(truth, interactions)
    user, session = interactions.user, truth.session
    starts = np.flatnonzero(np.concatenate([[True], (user[1:] != user[:-1]) | (session[1:] != session[:-1])]))
    last = np.concatenate([user[starts][1:] != user[starts][:-1], [True]])
    return starts[last]


class BayesReference:
    """Exact posterior of the taste given a user's log before a page, for the log that ``simulate`` returned.

    H shelves and S styles make H * H * S tastes, numbered (a * H + b) * S + s. ``chunk`` is the number of users, or
    events, handled at once.
    """

    def __init__(self, truth: Truth, interactions: Interactions, chunk: int = 256) -> None:
        """Keep the log, one row a page. Raises ``ValueError`` when it is not the whole log that ``truth`` describes."""
        _check_log(truth, interactions)
        if interactions.feedback is None or interactions.play_time is None:
            raise ValueError(
                "BayesReference: expected feedback and play_time in the log; pass simulate(...).interactions"
            )
        self.truth, self.world, self.chunk = truth, truth.world, chunk
        self.filter = TasteFilter(truth.world)
        width = truth.config.page_size
        self._item = interactions.item.reshape(-1, width)
        self._feedback = interactions.feedback.reshape(-1, width)
        self._play_time = interactions.play_time.reshape(-1, width)
        user, session = interactions.user[::width], truth.session[::width]
        first = np.concatenate([[True], user[1:] != user[:-1]])
        self._starts_session = np.concatenate([[True], session[1:] != session[:-1]]) & ~first
        self._first_page = np.maximum.accumulate(np.where(first, np.arange(len(user)), 0))

    def posterior(self, event_rows: np.ndarray) -> np.ndarray:
        """Probability of each taste when the page of each event was shown, (B, H * H * S) float32."""
        out = np.empty((len(event_rows), self.filter.prior(1).size), dtype=np.float32)
        for where, belief in self._beliefs(event_rows):
            out[where] = belief.reshape(len(where), -1)
        return out

    def expected_preference(self, event_rows: np.ndarray) -> np.ndarray:
        """Posterior mean of p(z, i) for all items, (B, N) float32."""
        out = np.empty((len(event_rows), len(self.world.shelf)), dtype=np.float32)
        for where, belief in self._beliefs(event_rows):
            out[where] = self.filter.expected_preference(belief, min(self.chunk, rows_at_once(self.world)))
        return out

    def top(self, event_rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k items of highest expected preference, best first, and that preference: (B, k) int64, (B, k) float32."""
        items = np.empty((len(event_rows), k), dtype=np.int64)
        values = np.empty((len(event_rows), k), dtype=np.float32)
        for where, belief in self._beliefs(event_rows):
            items[where], values[where] = self.filter.top(belief, k, min(self.chunk, rows_at_once(self.world)))
        return items, values

    def _beliefs(self, event_rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Forward pass; yields places in ``event_rows`` and their beliefs (n, H, H, S), every place once."""
        event_page = np.asarray(event_rows, dtype=np.int64) // self.truth.config.page_size
        first = self._first_page[event_page]
        user_first, user_of_event = np.unique(first, return_inverse=True)
        depth = event_page - first
        needed = np.zeros(len(user_first), dtype=np.int64)
        np.maximum.at(needed, user_of_event, depth)
        # Users with long logs first: those still needed are then a prefix of each chunk.
        by_length = np.argsort(-needed, kind="stable")
        slot = np.empty_like(by_length)
        slot[by_length] = np.arange(len(by_length))
        event_slot = slot[user_of_event]
        steps = depth.max(initial=0) + 1
        key = (event_slot // self.chunk) * steps + depth
        order = np.argsort(key, kind="stable")
        key = key[order]
        for start in range(0, len(by_length), self.chunk):
            users = by_length[start : start + self.chunk]
            belief = self.filter.prior(len(users))
            for step in range(needed[users[0]] + 1):
                belief = belief[: np.count_nonzero(needed[users] >= step)]
                page = user_first[users[: len(belief)]] + step
                belief = self.filter.drift(belief, self._starts_session[page])
                wanted = (start // self.chunk) * steps + step
                where = order[np.searchsorted(key, wanted) : np.searchsorted(key, wanted, side="right")]
                if len(where):
                    yield where, belief[event_slot[where] - start]
                going = np.count_nonzero(needed[users] > step)
                seen = page[:going]
                belief = self.filter.learn(
                    belief[:going], self._item[seen], self._feedback[seen], self._play_time[seen], self.chunk
                )


def calibration(
    truth: Truth, event_rows: np.ndarray, items: np.ndarray, predicted: np.ndarray, user: np.ndarray
) -> dict[str, float]:
    """Does the reference's prediction for its own items (B, k) hold? Exact inference says yes, within noise.

    ``user`` (B,) clusters the standard error: events of one user are not independent. Keys: predicted, true (means over
    events and items), difference, standard_error, z.
    """
    real = truth.preference(event_rows, items).mean(axis=1, dtype=np.float64)
    guess = predicted.mean(axis=1, dtype=np.float64)
    gap = guess - real
    _, cluster = np.unique(user, return_inverse=True)
    spread = np.bincount(cluster, weights=gap - gap.mean())
    error = float(np.sqrt((spread**2).sum()) / len(gap))
    return {
        "predicted": float(guess.mean()),
        "true": float(real.mean()),
        "difference": float(gap.mean()),
        "standard_error": error,
        "z": float(gap.mean() / error) if error > 0 else 0.0,
    }


def oracle_table(
    truth: Truth, interactions: Interactions, event_rows: np.ndarray, ks: Sequence[int] = (1, 10)
) -> dict[str, Any]:
    """The marks of the scale on given events: random, and for each k reference@k, bound@k and calibration@k.

    reference@k is the mean true preference of the reference's k items, not its own prediction of it.
    """
    items, predicted = BayesReference(truth, interactions).top(event_rows, max(ks))
    table: dict[str, Any] = {"events": len(event_rows), "random": float(random_value(truth, event_rows).mean())}
    user = interactions.user[event_rows]
    for k in ks:
        check = calibration(truth, event_rows, items[:, :k], predicted[:, :k], user)
        table[f"reference@{k}"] = check["true"]
        table[f"bound@{k}"] = float(bound(truth, event_rows, k).mean())
        table[f"calibration@{k}"] = check
    return table


def _chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _check_log(truth: Truth, interactions: Interactions) -> None:
    """The truth is row by row: a filtered or re-sorted log no longer belongs to it."""
    width = truth.config.page_size
    position = interactions.position
    whole = len(interactions) == len(truth.session) and len(interactions) % width == 0 and position is not None
    if not whole or (position.reshape(-1, width) != np.arange(width)).any():  # type: ignore[union-attr]
        raise ValueError(
            f"interactions: expected the complete log of {len(truth.session)} rows that simulate() returned with this "
            f"truth, got {len(interactions)} rows or another order; pass the log before any filtering"
        )
