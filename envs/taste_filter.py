"""What a shopper's answers say of the hidden taste: an exact filter over all tastes of a simulated world.

A forward filter of an HMM (Rabiner 1989, eq. 19-20) over tastes z = (a, b, s): a and s never change, b is drawn anew at
some session starts. H shelves and S styles make H * H * S tastes. An item tells tastes apart only by how a and b relate
to its shelf (same, same department, neither) and whether s is its style: 18 cells, over which likelihoods and
expectations are worked out. Enumeration is exact up to float32 rounding. The log's reference (``oracle``) and the
agent of live sessions (``session_oracle``) both run this. Left out: where pages come from, and choosing them.
"""

import itertools
from functools import cached_property

import numpy as np

from sidgym.envs.records import CLICK, NEGATIVE, PAD_ITEM
from sidgym.envs.simulator import examine_probability, outcome_probabilities
from sidgym.envs.simulator_world import World, sigmoid

_SMALLEST = 1e-30
"""Probabilities and played shares below this are raised to it before the logarithm."""

_ROWS = 256
"""Beliefs that learn from their pages at once."""


class TasteFilter:
    """Beliefs (n, H, H, S) float32, probabilities of the tastes (a, b, s), n shoppers side by side.

    Every method returns a new array, so a belief may be kept, or shared by forks of a session.
    """

    def __init__(self, world: World) -> None:
        self.world, self.config = world, world.config

    def prior(self, count: int) -> np.ndarray:
        """Beliefs of ``count`` shoppers before their first page."""
        return np.repeat(self._prior[None], count, axis=0)

    def drift(self, belief: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """P(a, b, s) <- (1 - drift) P(a, b, s) + drift K(a, b) sum_b' P(a, b', s) where a session ``starts`` (n,) bool.

        The first session of a shopper is no such start: the prior speaks of it.
        """
        drift = np.float32(self.config.drift)
        out, old = belief.copy(), belief[starts]
        fresh = self.world.drift_kernel.astype(np.float32)[:, :, None] * old.sum(axis=2, keepdims=True)
        out[starts] = (1 - drift) * old + drift * fresh
        return out

    def learn(
        self, belief: np.ndarray, items: np.ndarray, feedback: np.ndarray, play_time: np.ndarray, rows: int = _ROWS
    ) -> np.ndarray:
        """Beliefs after a page each: items, feedback and play times (n, P), PAD_ITEM where a place was empty.

        ``rows`` pages are worked on at once.
        """
        out = np.empty_like(belief)
        for start in range(0, len(belief), rows):
            part = slice(start, start + rows)
            with np.errstate(divide="ignore"):
                logs = np.log(belief[part])
            logs += self._log_likelihood(items[part], feedback[part], play_time[part]).reshape(logs.shape)
            logs -= logs.max(axis=(1, 2, 3), keepdims=True)
            np.exp(logs, out=logs)
            out[part] = logs / logs.sum(axis=(1, 2, 3), keepdims=True)
        return out

    def expected_preference(self, belief: np.ndarray, rows: int | None = None) -> np.ndarray:
        """Expected click preference of all items under the beliefs, (n, N) float32; ``rows`` beliefs at once."""
        rows = rows or self._rows_at_once
        out = np.empty((len(belief), len(self.world.shelf)), dtype=np.float32)
        for start in range(0, len(belief), rows):
            out[start : start + rows] = self._expect(belief[start : start + rows])
        return out

    def top(self, belief: np.ndarray, k: int, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k items of highest expected preference, best first, and that preference: (n, k) int64, (n, k) float32."""
        rows = rows or self._rows_at_once
        items = np.empty((len(belief), k), dtype=np.int64)
        values = np.empty((len(belief), k), dtype=np.float32)
        for start in range(0, len(belief), rows):
            part = slice(start, start + rows)
            items[part], values[part] = best(self._expect(belief[part]), k)
        return items, values

    @property
    def _rows_at_once(self) -> int:
        return min(_ROWS, rows_at_once(self.world))

    def _log_likelihood(self, item: np.ndarray, feedback: np.ndarray, play_time: np.ndarray) -> np.ndarray:
        """log P(feedback and play times of a page | taste), (n, H, H * S) float32."""
        config, world = self.config, self.world
        count, width = item.shape
        real = item != PAD_ITEM
        item = np.where(real, item, 0)
        chance = sigmoid(world.appeal[item][:, :, None, None, None].astype(np.float64) + self._cell_logit)
        examine = examine_probability(config, width)[:, None, None, None]
        outcomes = outcome_probabilities(config, chance, examine)
        outcome = (feedback - NEGATIVE).astype(np.int64)[:, :, None, None, None, None]
        cells = np.log(np.maximum(np.take_along_axis(outcomes, outcome, axis=-1)[..., 0], _SMALLEST))
        # Played share x of a click: density alpha x ** (alpha - 1).
        share = np.log(np.maximum(play_time / world.duration[item], _SMALLEST))[:, :, None, None, None]
        alpha = config.play_base + config.play_slope * chance
        played = np.log(alpha) + (alpha - 1) * share
        cells += np.where((feedback >= CLICK)[:, :, None, None, None], played, 0)
        cells = np.where(real[:, :, None, None, None], cells, 0)
        # Sum over the page of the cell each taste lies in, as one matrix product a page: (H, 6 P) @ (6 P, H S).
        long = np.matmul(
            self._relation[world.shelf[item]].swapaxes(2, 3), cells.reshape(count, width, 3, 6).astype(np.float32)
        )
        left = long.transpose(0, 2, 1, 3).reshape(count, -1, width * 6)
        right = self._now_style[world.shelf[item], world.style[item]].reshape(count, width * 6, -1)
        return np.matmul(left, right)

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
        config = self.config
        sim = np.array([0.0, config.department_similarity, 1.0])
        shelves = config.weight_long * sim[:, None] + config.weight_now * sim
        return shelves[:, :, None] + config.weight_style * np.array([0.0, 1.0])

    @cached_property
    def _now_style(self) -> np.ndarray:
        """One-hot cells of (b, s) for an item of each shelf and style: (H, S, 6, H * S) float32."""
        same = np.eye(self.config.styles, dtype=np.float32)
        table = np.einsum("hyb,tms->htymbs", self._relation, np.stack([1 - same, same], axis=1))
        return table.reshape(*table.shape[:2], 6, -1)

    @cached_property
    def _groups(self) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
        """Items by shelf and style with their preference in each cell: (shelf, style, items (n,), table (18, n))."""
        world, styles = self.world, self.config.styles
        combination = world.shelf * styles + world.style
        order = np.argsort(combination, kind="stable")
        edges = np.searchsorted(combination[order], np.arange(self.config.shelves * styles + 1))
        groups = []
        for number, (low, high) in enumerate(itertools.pairwise(edges)):
            items = order[low:high]
            table = sigmoid(self._cell_logit.reshape(-1, 1) + world.appeal[items]).astype(np.float32)
            groups.append((number // styles, number % styles, items, table))
        return groups


def best(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
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


def rows_at_once(world: World) -> int:
    """Rows whose values over all items stay within some 64 MB."""
    return max(1, (1 << 24) // len(world.shelf))
