"""Rows to codes at least total cost, with at most so many rows a code: the assignment step of balanced k-means.

It is the transportation problem with N sources of 1 and K sinks of a common capacity. Solved exactly in two steps:

1. Prices by Sinkhorn's iteration at falling temperature (entropic optimal transport), then by the loads of whole rows
   with steps that adapt to each code (Rprop, Riedmiller and Braun 1993). Every row takes the code with the least
   cost + price, which leaves few rows too many. For the loads that it gives, such an assignment is the cheapest,
   whatever the prices are.
2. Successive shortest paths. In the graph of the codes, the edge j -> k weighs what it costs to move the cheapest row
   of code j to code k. Moving one row along each edge of a shortest path, from an overfull code to one with room, keeps
   the assignment the cheapest for its loads. At the end paths that lower the cost are taken too, until there is none:
   then no cycle and no path is negative, and the assignment is optimal.

The duals of the optimum are the negative distances in that graph. What is left out: graphs of many thousand codes, for
which (K, K) weights would be too large.

Symbols: N rows, K codes.
"""

import itertools

import numpy as np

SAMPLE_ROWS = 20_000
"""Sinkhorn's prices come from at most so many rows, evenly spaced."""

BLOCK_ROWS = 4096
"""Rows whose costs and prices are added up at once."""

TEMPERATURES = (0.3, 0.1, 0.03, 0.01)
"""Of Sinkhorn's iteration, as shares of the mean distance between a row's nearest code and its mean code."""

SWEEPS = 12
"""Sinkhorn updates at each temperature."""

NUDGES = 80
"""Price updates by the loads of all rows, after Sinkhorn's."""


def balanced_assignment(costs: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest assignment of rows to codes with at most ``capacity`` rows a code.

    Args:
        costs: (N, K) float64, finite.
        capacity: rows that a code may have, with capacity * K >= N.

    Returns codes (N,) int64 and prices (K,) float64, not negative, 0 for a code with room: each row's code has the
    least cost + price, up to rounding. Of equally cheap assignments it is always the same one.
    """
    rows, size = costs.shape
    if capacity * size < rows:
        raise ValueError(f"balanced_assignment: {size} codes with {capacity} rows each cannot hold {rows} rows")
    plan = _Plan(costs, starting_prices(costs, capacity), capacity)
    while plan.improve():
        pass
    return plan.codes, plan.prices()


def starting_prices(costs: np.ndarray, capacity: int) -> np.ndarray:
    """Prices (K,) at which few rows of costs (N, K) are too many for the code with the least cost + price."""
    rows, size = costs.shape
    scale = float((costs.mean(axis=1) - costs.min(axis=1)).mean())
    if scale <= 0:
        return np.zeros(size)
    prices = sinkhorn_prices(costs, scale)
    best, least = prices, np.inf
    step, last = np.full(size, 0.003 * scale), np.zeros(size)
    for _ in range(NUDGES):
        load = np.bincount(cheapest(costs, prices), minlength=size)
        too_many = np.maximum(load - capacity, 0).sum()
        if too_many < least:
            best, least = prices, too_many
        if too_many == 0:
            break
        # Steps grow while a code's load stays on one side and halve when it changes sides.
        side = np.sign(load - rows / size)
        step *= np.where(side * last > 0, 1.3, np.where(side * last < 0, 0.5, 1.0))
        # Close to the mean load steps are shorter yet.
        prices = prices + side * step * np.minimum(1, np.abs(load * size / rows - 1) / 0.02)
        last = side
    return best


def cheapest(costs: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """The code with the least cost + price of each row of costs (N, K): (N,) int64, the first of equals."""
    codes = np.empty(len(costs), np.int64)
    for start in range(0, len(costs), BLOCK_ROWS):  # all sums at once would take as much memory as the costs
        part = slice(start, start + BLOCK_ROWS)
        codes[part] = np.argmin(costs[part] + prices, axis=1)
    return codes


def sinkhorn_prices(costs: np.ndarray, scale: float) -> np.ndarray:
    """Prices (K,) at which codes get about equally many rows of costs (N, K) that differ by about ``scale``."""
    if len(costs) > SAMPLE_ROWS:
        costs = costs[np.linspace(0, len(costs) - 1, SAMPLE_ROWS).astype(np.int64)]
    rows, size = costs.shape
    prices = np.zeros(size)
    for temperature in TEMPERATURES:
        heat = temperature * scale
        for _ in range(SWEEPS):
            weights = -(costs + prices) / heat
            weights -= weights.max(axis=1, keepdims=True)
            np.exp(weights, out=weights)
            weights /= weights.sum(axis=1, keepdims=True)
            # A code that is far from every row may be left without any weight.
            prices += heat * np.log(np.maximum(weights.sum(axis=0), 1e-3) * size / rows)
    return prices - prices.min()


class _Plan:
    """An assignment that is the cheapest for its loads, and the graph of its codes.

    ``weight[j, k]`` is the least ``costs[i, k] - costs[i, j]`` over the rows i of code j, ``mover[j, k]`` that row.
    """

    def __init__(self, costs: np.ndarray, prices: np.ndarray, capacity: int) -> None:
        self.costs, self.capacity = costs, capacity
        self.size = costs.shape[1]
        self.codes = cheapest(costs, prices)
        order = np.argsort(self.codes, kind="stable")
        self.load = np.bincount(self.codes, minlength=self.size)
        self.members = np.split(order, np.cumsum(self.load)[:-1])
        self.weight = np.full((self.size, self.size), np.inf)
        self.mover = np.full((self.size, self.size), -1)
        for code in range(self.size):
            self._weigh(code)
        # Rounding of sums must not look like a path that lowers the cost.
        self.least = 1e-9 * float(np.abs(costs).max(initial=1e-300))

    def _weigh(self, code: int) -> None:
        """The weights of the edges that leave a code, after its rows changed."""
        rows = self.members[code]
        if len(rows) == 0:
            self.weight[code], self.mover[code] = np.inf, -1
            return
        extra = self.costs[rows] - self.costs[rows, code][:, None]
        best = extra.argmin(axis=0)
        self.weight[code], self.mover[code] = extra[best, np.arange(self.size)], rows[best]
        self.weight[code, code] = np.inf

    def _distances(self, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shortest distances (K,) from codes that start at ``start`` (K,), and the code before each, -1 at a start."""
        distance, before = start.copy(), np.full(self.size, -1)
        changed = np.flatnonzero(np.isfinite(distance))
        for _ in range(self.size):
            through = distance[changed, None] + self.weight[changed]
            best = through.argmin(axis=0)
            found = through[best, np.arange(self.size)]
            shorter = np.flatnonzero(found < distance - self.least)
            if len(shorter) == 0:
                break
            distance[shorter], before[shorter] = found[shorter], changed[best[shorter]]
            changed = shorter
        return distance, before

    def improve(self) -> bool:
        """One row less in an overfull code, else a cheaper path; False when there is neither."""
        overfull, room = self.load > self.capacity, self.load < self.capacity
        any_over = bool(overfull.any())
        if not room.any():
            return False
        starts = overfull if any_over else self.load > 0
        distance, before = self._distances(np.where(starts, 0.0, np.inf))
        target = int(np.argmin(np.where(room, distance, np.inf)))
        if not any_over and distance[target] >= -self.least:
            return False
        path = [target]
        while before[path[-1]] >= 0:
            path.append(int(before[path[-1]]))
        path.reverse()
        self._shift(path)
        return True

    def _shift(self, path: list[int]) -> None:
        """Move one row along each edge of a path of codes."""
        moved = [(int(self.mover[source, target]), source, target) for source, target in itertools.pairwise(path)]
        for row, source, target in moved:
            self.members[source] = self.members[source][self.members[source] != row]
            self.members[target] = np.append(self.members[target], row)
            self.codes[row] = target
        self.load[path[0]] -= 1
        self.load[path[-1]] += 1
        for code in path:
            self._weigh(code)

    def prices(self) -> np.ndarray:
        """Duals of the capacities, (K,): a code costs what its place is worth to the rows that would take it."""
        return np.maximum(-self._distances(np.zeros(self.size))[0], 0.0)
