"""What could be achieved in the simulated store, because the probabilities that made it are known.

Three marks for a list of k items, each a mean true click preference p(z, i): ``random_value`` (any items), the
*reference* (exact Bayes from the log alone) and ``bound`` (knows the latent taste). The reference is a forward filter
over all tastes z = (a, b, s): a and s never change, b is drawn anew at some session starts (an HMM, Rabiner 1989,
eq. 19-20). It reads all that the log shows of a user before the event's page: items shown and where, clicks, orders,
dislikes and play times.
Exposure and leaving depend on the observed history only, so they cancel. Enumeration is exact up to float32 rounding;
``calibration`` checks it. Left out: the earlier positions of the event's own page, and planning beyond one page.

For an exact reference, pick the rows of ``event_rows`` without a look at what happens on or after their page (all rows
of some pages, ``last_session_rows``). Otherwise the choice is itself evidence on the taste that the filter lacks, and
the calibration may be off by more than noise.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from sidgym.envs.records import CLICK, NEGATIVE, Interactions
from sidgym.envs.simulator import Truth, examine_probability, outcome_probabilities
from sidgym.envs.simulator_world import sigmoid

_SMALLEST = 1e-30
"""Probabilities and played shares below this are raised to it before the logarithm."""


def random_value(truth: Truth, event_rows: np.ndarray, chunk: int = 512) -> np.ndarray:
    """Mean true preference over all items, (B,) float64: what a list drawn at random is worth."""
    parts = [
        truth.preference(rows).mean(axis=1, dtype=np.float64)
        for rows in _chunks(event_rows, min(chunk, _rows_at_once(truth)))
    ]
    return np.concatenate(parts)


def bound(truth: Truth, event_rows: np.ndarray, k: int, chunk: int = 512) -> np.ndarray:
    """Mean true preference of the truly best k items, (B,) float64. No policy can do better, as none sees the taste."""
    parts = [
        _best(truth.preference(rows), k)[1].mean(axis=1, dtype=np.float64)
        for rows in _chunks(event_rows, min(chunk, _rows_at_once(truth)))
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

    H shelves and S styles make H * H * S tastes, numbered (a * H + b) * S + s. An item tells tastes apart only by how
    a and b relate to its shelf (same, same department, neither) and whether s is its style: 18 cells, over which
    likelihoods and expectations are worked out. ``chunk`` is the number of users, or events, handled at once.
    """

    def __init__(self, truth: Truth, interactions: Interactions, chunk: int = 256) -> None:
        """Keep the log, one row a page. Raises ``ValueError`` when it is not the whole log that ``truth`` describes."""
        _check_log(truth, interactions)
        if interactions.feedback is None or interactions.play_time is None:
            raise ValueError(
                "BayesReference: expected feedback and play_time in the log; pass simulate(...).interactions"
            )
        self.truth, self.world, self.chunk = truth, truth.world, chunk
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
        tastes = self._prior.size
        out = np.empty((len(event_rows), tastes), dtype=np.float32)
        for where, belief in self._filter(event_rows):
            out[where] = belief.reshape(-1, tastes)
        return out

    def expected_preference(self, event_rows: np.ndarray) -> np.ndarray:
        """Posterior mean of p(z, i) for all items, (B, N) float32."""
        out = np.empty((len(event_rows), len(self.world.shelf)), dtype=np.float32)
        for where, belief in self._filter(event_rows):
            for part in _chunks(np.arange(len(where)), min(self.chunk, _rows_at_once(self.truth))):
                out[where[part]] = self._expect(belief[part])
        return out

    def top(self, event_rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k items of highest expected preference, best first, and that preference: (B, k) int64, (B, k) float32."""
        items = np.empty((len(event_rows), k), dtype=np.int64)
        values = np.empty((len(event_rows), k), dtype=np.float32)
        for where, belief in self._filter(event_rows):
            for part in _chunks(np.arange(len(where)), min(self.chunk, _rows_at_once(self.truth))):
                items[where[part]], values[where[part]] = _best(self._expect(belief[part]), k)
        return items, values

    def _filter(self, event_rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
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
            belief = np.repeat(self._prior[None], len(users), axis=0)
            for step in range(needed[users[0]] + 1):
                belief = belief[: np.count_nonzero(needed[users] >= step)]
                page = user_first[users[: len(belief)]] + step
                self._drift(belief, self._starts_session[page])
                wanted = (start // self.chunk) * steps + step
                where = order[np.searchsorted(key, wanted) : np.searchsorted(key, wanted, side="right")]
                if len(where):
                    yield where, belief[event_slot[where] - start]
                going = np.count_nonzero(needed[users] > step)
                belief = belief[:going]
                self._learn(belief, page[:going])

    def _drift(self, belief: np.ndarray, starts: np.ndarray) -> None:
        """P(a, b, s) <- (1 - drift) P(a, b, s) + drift K(a, b) sum_b' P(a, b', s), in place where a session starts."""
        drift = np.float32(self.truth.config.drift)
        old = belief[starts]
        fresh = self.world.drift_kernel.astype(np.float32)[:, :, None] * old.sum(axis=2, keepdims=True)
        belief[starts] = (1 - drift) * old + drift * fresh

    def _learn(self, belief: np.ndarray, page: np.ndarray) -> None:
        """Multiply by the likelihood of what happened on the pages, in place, normalised."""
        if len(page) == 0:
            return
        with np.errstate(divide="ignore"):
            logs = np.log(belief)
        logs += self._log_likelihood(page).reshape(belief.shape)
        logs -= logs.max(axis=(1, 2, 3), keepdims=True)
        np.exp(logs, out=belief)
        belief /= belief.sum(axis=(1, 2, 3), keepdims=True)

    def _log_likelihood(self, page: np.ndarray) -> np.ndarray:
        """log P(feedback and play times of a page | taste), (n, H, H * S) float32."""
        config, world = self.truth.config, self.world
        item, feedback = self._item[page], self._feedback[page]
        count, width = item.shape
        chance = sigmoid(world.appeal[item][:, :, None, None, None].astype(np.float64) + self._cell_logit)
        examine = examine_probability(config, width)[:, None, None, None]
        outcomes = outcome_probabilities(config, chance, examine)
        outcome = (feedback - NEGATIVE).astype(np.int64)[:, :, None, None, None, None]
        cells = np.log(np.maximum(np.take_along_axis(outcomes, outcome, axis=-1)[..., 0], _SMALLEST))
        # Played share x of a click: density alpha x ** (alpha - 1).
        share = np.log(np.maximum(self._play_time[page] / world.duration[item], _SMALLEST))[:, :, None, None, None]
        alpha = config.play_base + config.play_slope * chance
        played = np.log(alpha) + (alpha - 1) * share
        cells += np.where((feedback >= CLICK)[:, :, None, None, None], played, 0)
        # Sum over the page of the cell each taste lies in, as one matrix product a page: (H, 6 P) @ (6 P, H S).
        long = np.matmul(
            self._relation[world.shelf[item]].swapaxes(2, 3), cells.reshape(count, width, 3, 6).astype(np.float32)
        )
        left = long.transpose(0, 2, 1, 3).reshape(count, -1, width * 6)
        right = self._now_style[world.shelf[item], world.style[item]].reshape(count, width * 6, -1)
        return np.matmul(left, right)

    @cached_property
    def _prior(self) -> np.ndarray:
        """Probability of each taste before the first page, (H, H, S) float32."""
        world = self.world
        prior = world.shelf_prior[:, None, None] * world.drift_kernel[:, :, None] * world.style_prior
        return prior.astype(np.float32)

    @cached_property
    def _relation(self) -> np.ndarray:
        """One-hot cells of a taste's shelf for an item's shelf: (item shelf, 3, taste shelf) float32."""
        return np.ascontiguousarray(np.eye(3, dtype=np.float32)[self.world.relation].transpose(0, 2, 1))

    @cached_property
    def _cell_logit(self) -> np.ndarray:
        """What the taste adds to an item's logit in each cell, (3, 3, 2) float64."""
        config = self.truth.config
        sim = np.array([0.0, config.department_similarity, 1.0])
        shelves = config.weight_long * sim[:, None] + config.weight_now * sim
        return shelves[:, :, None] + config.weight_style * np.array([0.0, 1.0])

    @cached_property
    def _now_style(self) -> np.ndarray:
        """One-hot cells of (b, s) for an item of each shelf and style: (H, S, 6, H * S) float32."""
        same = np.eye(self.truth.config.styles, dtype=np.float32)
        table = np.einsum("hyb,tms->htymbs", self._relation, np.stack([1 - same, same], axis=1))
        return table.reshape(*table.shape[:2], 6, -1)

    @cached_property
    def _groups(self) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
        """Items by shelf and style with their preference in each cell: (shelf, style, items (n,), table (18, n))."""
        world, styles = self.world, self.truth.config.styles
        combination = world.shelf * styles + world.style
        order = np.argsort(combination, kind="stable")
        edges = np.searchsorted(combination[order], np.arange(self.truth.config.shelves * styles + 1))
        groups = []
        for number, (low, high) in enumerate(itertools.pairwise(edges)):
            items = order[low:high]
            table = sigmoid(self._cell_logit.reshape(-1, 1) + world.appeal[items]).astype(np.float32)
            groups.append((number // styles, number % styles, items, table))
        return groups

    def _expect(self, belief: np.ndarray) -> np.ndarray:
        """Expected preference of all items under beliefs (n, H, H, S): (n, N) float32."""
        count, shelves, _, styles = belief.shape
        long = np.matmul(self._relation.reshape(-1, shelves), belief.reshape(count, shelves, -1))
        long = long.reshape(count, shelves, 3, shelves, styles).transpose(0, 1, 2, 4, 3)
        cells = np.einsum("nhxsb,hyb->nhxys", long, self._relation, optimize=True)
        everything = cells.sum(axis=-1)
        out = np.empty((count, len(self.world.shelf)), dtype=np.float32)
        for shelf, style, items, table in self._groups:
            match = cells[:, shelf, :, :, style]
            chance = np.stack([everything[:, shelf] - match, match], axis=-1).reshape(count, -1)
            out[:, items] = chance @ table
        return out


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


def _best(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values of the k largest of each row, largest first; ties go to the lower column."""
    if not 1 <= k <= values.shape[1]:
        raise ValueError(f"k: expected 1 to {values.shape[1]} (the number of items), got {k}")
    if k < values.shape[1]:
        columns = np.sort(np.argpartition(-values, k - 1, axis=1)[:, :k], axis=1)
    else:
        columns = np.broadcast_to(np.arange(k), values.shape)
    picked = np.take_along_axis(values, columns, axis=1)
    order = np.argsort(-picked, axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(picked, order, axis=1)


def _rows_at_once(truth: Truth) -> int:
    """Rows whose values over all items stay within some 64 MB."""
    return max(1, (1 << 24) // len(truth.shelf))


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
