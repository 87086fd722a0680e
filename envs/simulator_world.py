"""The fixed part of the simulated store: settings, items, and the true preference of every latent taste.

A taste is z = (long-term shelf a, current shelf b, style s). A *shelf* is a leaf category. The true click preference is

    p(z, i) = sigmoid(appeal_i + w_long sim(a, shelf_i) + w_now sim(b, shelf_i) + w_style 1[s = style_i])
    appeal_i = base + w_quality quality_i - w_price z-scored log price_i

with sim = 1 on the same shelf, ``department_similarity`` in the same department and 0 elsewhere. Left out: who browses
and what the logging recommender shows (``simulator``), what can be inferred from the log (``oracle``).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sidgym.envs.records import Catalogue
from sidgym.envs.simulator_text import category_names, titles_and_descriptions

_SHARES = (
    "department_similarity",
    "drift",
    "drift_home",
    "history_decay",
    "order_rate",
    "dislike_rate",
    "leave_idle",
    "leave_engaged",
    "popularity_quality",
)
"""Settings that must lie in [0, 1]."""


@dataclass(frozen=True)
class SimulatorConfig:
    """Every number of the simulated store. Weights are in logits unless said otherwise."""

    users: int = 3000
    items: int = 2000
    seed: int = 0
    departments: int = 8
    shelves_per_department: int = 4
    """Leaf categories of a department; the default has 32 shelves in all."""
    styles: int = 4
    page_size: int = 10
    """Items shown together."""
    base: float = -4.2
    """Logit of an item of average quality and price that matches nothing of the taste."""
    weight_long: float = 1.3
    """Match with the long-term shelf a."""
    weight_now: float = 2.8
    """Match with the current shelf b."""
    weight_style: float = 1.4
    """Match with the style s."""
    weight_quality: float = 0.9
    """Hidden quality, a standard normal."""
    weight_price: float = 0.3
    """Penalty of log price, standardised within the shelf."""
    department_similarity: float = 0.5
    """sim of two different shelves of one department, in [0, 1]."""
    prior_exponent: float = 0.4
    """Long-term shelves and styles are drawn in proportion to rank ** -prior_exponent, ranked at random."""
    drift: float = 0.4
    """Probability that the current shelf is drawn anew when a session starts."""
    drift_home: float = 0.85
    """Share of new current shelves that is uniform in the long-term shelf's department; the rest is uniform overall."""
    popularity_exponent: float = 0.9
    """Popularity is proportional to rank ** -popularity_exponent."""
    popularity_quality: float = 0.1
    """Correlation of quality with the normal score whose order is the popularity rank."""
    popularity_weight: float = 1.0
    """Logging recommender: weight of log popularity."""
    history_weight: float = 7.0
    """Logging recommender: weight of the share of the shelf among the user's decayed clicks."""
    history_decay: float = 0.8
    """Factor on the clicks counted so far at each new page."""
    examine_exponent: float = 0.2
    """Position bias: the item at position j (from 0) is examined with probability (1 + j) ** -examine_exponent."""
    order_rate: float = 0.4
    """A click becomes an order with probability order_rate * p."""
    dislike_rate: float = 0.01
    """A shown item that is not clicked is disliked with probability dislike_rate * (1 - p)."""
    play_base: float = 0.5
    """The share of a clicked item's duration that is played is Beta(play_base + play_slope * p, 1)."""
    play_slope: float = 4.0
    sessions: float = 4.6
    """Mean sessions of a user: min_sessions + Poisson(sessions - min_sessions)."""
    min_sessions: int = 2
    max_pages: int = 8
    """Most pages of one session."""
    leave_idle: float = 0.25
    """Probability of leaving after a page without a click."""
    leave_engaged: float = 0.2
    """Probability of leaving after a page with a click."""
    page_seconds: float = 30.0
    """Time spent on a page besides playing, seconds."""
    gap_hours: float = 48.0
    """Mean hours between two sessions, on top of one hour."""
    opening_days: float = 30.0
    """First sessions are spread evenly over so many days."""

    def __post_init__(self) -> None:
        if self.items < self.page_size:
            raise ValueError(f"items: expected at least page_size = {self.page_size}, got {self.items}; add items")
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a value in [0, 1], got {getattr(self, name)}")
        if not 1 <= self.min_sessions <= self.sessions:
            raise ValueError(f"min_sessions: expected 1 to sessions = {self.sessions}, got {self.min_sessions}")
        if self.users < 1 or self.max_pages < 1:
            raise ValueError(f"users and max_pages: expected at least 1, got {self.users} and {self.max_pages}")

    @property
    def shelves(self) -> int:
        """Number H of leaf categories."""
        return self.departments * self.shelves_per_department


@dataclass(frozen=True)
class ItemSampler:
    """Items in the order of their shelves with cumulated weights: draws an item by inversion in O(H + log N)."""

    weight: np.ndarray  # (N,) float64, popularity ** popularity_weight
    item: np.ndarray  # (N,) int64, items sorted by shelf
    edges: np.ndarray  # (N + 1,) float64, cumulated weights in that order
    start: np.ndarray  # (H + 1,) int64, where each shelf begins
    shelf_mass: np.ndarray  # (H,) float64, weight of each shelf

    @classmethod
    def of(cls, weight: np.ndarray, shelf: np.ndarray, shelves: int) -> "ItemSampler":
        """Sampler of items with the given weights (N,) on the given shelves (N,)."""
        item = np.argsort(shelf, kind="stable")
        edges = np.concatenate([[0.0], np.cumsum(weight[item])])
        start = np.searchsorted(shelf[item], np.arange(shelves + 1))
        return cls(weight, item, edges, start, np.diff(edges[start]))

    def draw(self, mass: np.ndarray, edges: np.ndarray, boost: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One item a row with replacement; shelf weights ``mass``, their cumulation and the shelf factors, (U, H)."""
        rows = np.arange(len(mass))
        point = rng.random(len(mass)) * edges[:, -1]
        shelf = np.minimum((edges <= point[:, None]).sum(axis=1), mass.shape[1] - 1)
        inside = (point - edges[rows, shelf] + mass[rows, shelf]) / boost[rows, shelf]
        place = np.searchsorted(self.edges, self.edges[self.start[shelf]] + inside, side="right") - 1
        return self.item[np.clip(place, self.start[shelf], self.start[shelf + 1] - 1)]


@dataclass(frozen=True)
class World:
    """Items and population of one store. N items, H shelves, S styles."""

    config: SimulatorConfig
    shelf: np.ndarray  # (N,) int64
    style: np.ndarray  # (N,) int64
    quality: np.ndarray  # (N,) float32, standard normal, hidden
    popularity: np.ndarray  # (N,) float64, sums to 1
    appeal: np.ndarray  # (N,) float32, the part of the logit that no taste changes
    duration: np.ndarray  # (N,) float32, seconds
    shelf_prior: np.ndarray  # (H,) float64, probability of each long-term shelf
    style_prior: np.ndarray  # (S,) float64, probability of each style

    @cached_property
    def relation(self) -> np.ndarray:
        """How two shelves relate: 2 the same, 1 the same department, 0 neither. (H, H) int64, symmetric."""
        shelves = np.arange(self.config.shelves)
        department = shelves // self.config.shelves_per_department
        return (department[:, None] == department).astype(np.int64) + (shelves[:, None] == shelves)

    @cached_property
    def similarity(self) -> np.ndarray:
        """sim of two shelves, (H, H) float32."""
        return np.array([0.0, self.config.department_similarity, 1.0], dtype=np.float32)[self.relation]

    @cached_property
    def drift_kernel(self) -> np.ndarray:
        """Probability of the new current shelf given the long-term one, (H, H) float64; also that of the first one."""
        config = self.config
        home = (self.relation > 0) / config.shelves_per_department
        return config.drift_home * home + (1 - config.drift_home) / config.shelves

    @cached_property
    def sampler(self) -> ItemSampler:
        """Draws items in proportion to popularity ** popularity_weight, built once."""
        weight = self.popularity**self.config.popularity_weight
        return ItemSampler.of(weight, self.shelf, self.config.shelves)

    def preference_of_states(
        self, states: np.ndarray, items: np.ndarray | None = None, chunk: int = 1 << 21
    ) -> np.ndarray:
        """True preference p(z, i) in [0, 1], without position bias.

        ``states`` (B, 3) holds (a, b, s); ``items`` (B, K) or None for all. ``chunk`` is the number of values worked
        on at once. Returns float32 (B, K) or (B, N).
        """
        width = len(self.shelf) if items is None else items.shape[1]
        out = np.empty((len(states), width), dtype=np.float32)
        step = max(1, chunk // max(1, width))
        for start in range(0, len(states), step):
            part = slice(start, start + step)
            columns = slice(None) if items is None else items[part]
            out[part] = self._preference(states[part], columns)
        return out

    def _preference(self, states: np.ndarray, items: np.ndarray | slice) -> np.ndarray:
        config = self.config
        long, now, style = (states[:, column].astype(np.int64)[:, None] for column in range(3))
        shelf = self.shelf[items]
        logits = self.appeal[items] + np.float32(config.weight_long) * self.similarity[long, shelf]
        logits += np.float32(config.weight_now) * self.similarity[now, shelf]
        logits += np.float32(config.weight_style) * (style == self.style[items])
        return sigmoid(logits)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Logistic function by tanh, which cannot overflow; keeps the dtype."""
    return 0.5 * (1 + np.tanh(0.5 * logits))


def make_world(config: SimulatorConfig, seeds: np.random.SeedSequence) -> tuple[World, Catalogue]:
    """Draw the items of a store: what is hidden of them (``World``) and what is shown (``Catalogue``)."""
    item_seed, text_seed = seeds.spawn(2)
    rng = np.random.default_rng(item_seed)
    count = config.items
    shelf, style = rng.integers(config.shelves, size=count), rng.integers(config.styles, size=count)
    quality, price_score = rng.standard_normal(count), rng.standard_normal(count)
    shelf_price = rng.normal(3.2, 0.7, size=config.shelves)  # log of each shelf's median price
    price = np.round(np.exp(shelf_price[shelf] + 0.4 * price_score), 2)
    duration = np.exp(rng.normal(np.log(40.0), 0.5, size=count)).astype(np.float32)
    link = config.popularity_quality
    score = link * quality + np.sqrt(1 - link**2) * rng.standard_normal(count)
    rank = np.empty(count)
    rank[np.argsort(-score, kind="stable")] = np.arange(1, count + 1)
    appeal = config.base + config.weight_quality * quality - config.weight_price * price_score
    world = World(
        config=config,
        shelf=shelf,
        style=style,
        quality=quality.astype(np.float32),
        popularity=_normalised(rank**-config.popularity_exponent),
        appeal=appeal.astype(np.float32),
        duration=duration,
        shelf_prior=_normalised((1.0 + rng.permutation(config.shelves)) ** -config.prior_exponent),
        style_prior=_normalised((1.0 + rng.permutation(config.styles)) ** -config.prior_exponent),
    )
    paths = category_names(config.departments, config.shelves_per_department)
    titles, descriptions = titles_and_descriptions(
        shelf, style, config.shelves_per_department, np.random.default_rng(text_seed)
    )
    digits = max(4, len(str(count - 1)))
    ids = np.char.add("i", np.char.zfill(np.arange(count).astype(str), digits))
    categories = tuple(map(paths.__getitem__, shelf.tolist()))
    return world, Catalogue(ids, titles, descriptions, categories, price.astype(np.float32), duration)


def _normalised(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()
