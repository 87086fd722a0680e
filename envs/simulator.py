"""A store whose truth is known: seeded synthetic shoppers, pages of an older recommender, and their feedback.

One batched dynamics, as functions with explicit state, so that a log and a live session run the same code:
``new_shoppers`` -> (``draw_page`` -> ``respond`` -> ``advance``)*. The logging recommender sees the observable history
and popularity only, never taste or quality. The loop runs over pages; users are worked on in blocks of fixed size with
one random stream each, and the cost of a page does not grow with the catalogue, so a larger store only needs memory.
Left out: items and preference (``simulator_world``), words (``simulator_text``), inference (``oracle``).
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from sidgym.envs.records import CLICK, PAD_ITEM, SHOWN, Catalogue, Interactions
from sidgym.envs.simulator_world import SimulatorConfig, World, make_world

__all__ = [
    "Feedback",
    "Shoppers",
    "SimulatedStore",
    "SimulatorConfig",
    "Truth",
    "World",
    "advance",
    "draw_page",
    "examine_probability",
    "make_world",
    "new_shoppers",
    "outcome_probabilities",
    "respond",
    "simulate",
]

USERS_PER_BLOCK = 4096
"""Users that share a random stream and are simulated at once; a constant, because the log of a seed depends on it."""

_REDRAWS = 16
"""Attempts to draw an item that is not yet on the page before all items are weighed; exact either way."""


@dataclass(frozen=True)
class Truth:
    """What the log hides: the world and the latent taste at every log row."""

    world: World
    state: np.ndarray  # (E, 3) int16, taste (a, b, s) of the user when the row's page was shown
    session: np.ndarray  # (E,) int32, session number in the user's log, from 0

    @property
    def config(self) -> SimulatorConfig:
        """Settings the store was made with."""
        return self.world.config

    @property
    def shelf(self) -> np.ndarray:
        """Leaf category of each item, (N,) int64."""
        return self.world.shelf

    @property
    def style(self) -> np.ndarray:
        """Style of each item, (N,) int64."""
        return self.world.style

    @property
    def quality(self) -> np.ndarray:
        """Hidden quality of each item, (N,) float32."""
        return self.world.quality

    @property
    def popularity(self) -> np.ndarray:
        """Popularity the logging recommender goes by, (N,) float64, sums to 1."""
        return self.world.popularity

    def preference(self, event_rows: np.ndarray, items: np.ndarray | None = None, chunk: int = 1 << 21) -> np.ndarray:
        """True click preference of the users at the given log rows (B,), float32 (B, K) or (B, N) when items is None.

        Position bias is left out: it is the probability of a click once the item is looked at.
        """
        return self.world.preference_of_states(self.state[event_rows], items, chunk)

    def preference_of_states(self, states: np.ndarray, items: np.ndarray | None = None) -> np.ndarray:
        """True preference of given tastes (S, 3), float32 (S, K) or (S, N) when items is None."""
        return self.world.preference_of_states(states, items)

    def save(self, directory: Path | str) -> None:
        """Write ``truth.npz`` and ``truth.json`` (the config) to a directory, which is made if needed."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self.world, name) for name in _WORLD_ARRAYS}
        np.savez(directory / "truth.npz", state=self.state, session=self.session, **arrays)
        (directory / "truth.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path | str) -> "Truth":
        """Read what ``save`` wrote."""
        directory = Path(directory)
        config = SimulatorConfig(**json.loads((directory / "truth.json").read_text()))
        with np.load(directory / "truth.npz") as stored:
            world = World(config=config, **{name: stored[name] for name in _WORLD_ARRAYS})
            return cls(world=world, state=stored["state"], session=stored["session"])


_WORLD_ARRAYS = tuple(name for name in World.__annotations__ if name != "config")


@dataclass(frozen=True)
class SimulatedStore:
    """What ``simulate`` returns."""

    catalogue: Catalogue
    interactions: Interactions  # every shown item, sorted by user and order
    truth: Truth


@dataclass(frozen=True)
class Shoppers:
    """Shoppers in the middle of browsing, one a row. H shelves."""

    user: np.ndarray  # (U,) int64
    taste: np.ndarray  # (U, 3) int16 latent (a, b, s)
    clicked: np.ndarray  # (U, H) float64 decayed counts of clicked shelves, what the logging recommender sees
    session: np.ndarray  # (U,) int32, current session from 0
    sessions: np.ndarray  # (U,) int32, sessions the shopper will come for
    page: np.ndarray  # (U,) int64, pages seen so far in all sessions
    page_of_session: np.ndarray  # (U,) int64, pages seen so far in the current session
    time: np.ndarray  # (U,) float64, seconds since the store opened
    done: np.ndarray  # (U,) bool, the last session is over

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> "Shoppers":
        """The given rows (boolean mask or indices)."""
        return Shoppers(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class Feedback:
    """Answers to a page of P items."""

    feedback: np.ndarray  # (U, P) int8, NEGATIVE, SHOWN, CLICK or ORDER
    play_time: np.ndarray  # (U, P) float32, seconds, 0 where not clicked


def examine_probability(config: SimulatorConfig, width: int) -> np.ndarray:
    """Position bias: probability that each of ``width`` positions is looked at, (width,) float64."""
    return (1.0 + np.arange(width)) ** -config.examine_exponent


def outcome_probabilities(config: SimulatorConfig, preference: np.ndarray, examine: np.ndarray) -> np.ndarray:
    """Probabilities of NEGATIVE, SHOWN, CLICK and ORDER on a new last axis, from p and the examination probability."""
    click = examine * preference
    order = click * config.order_rate * preference
    negative = (1 - click) * config.dislike_rate * (1 - preference)
    return np.stack([negative, 1 - click - negative, click - order, order], axis=-1)


def new_shoppers(world: World, users: np.ndarray, rng: np.random.Generator) -> Shoppers:
    """Shoppers at the start of their first session; tastes drawn from the prior. ``users`` (U,) are their numbers."""
    config, count = world.config, len(users)
    long = rng.choice(config.shelves, size=count, p=world.shelf_prior)
    style = rng.choice(config.styles, size=count, p=world.style_prior)
    now = _draw_current_shelf(world, long, rng)
    return Shoppers(
        user=users.astype(np.int64),
        taste=np.stack([long, now, style], axis=1).astype(np.int16),
        clicked=np.zeros((count, config.shelves)),
        session=np.zeros(count, dtype=np.int32),
        sessions=(config.min_sessions + rng.poisson(config.sessions - config.min_sessions, size=count)).astype(
            np.int32
        ),
        page=np.zeros(count, dtype=np.int64),
        page_of_session=np.zeros(count, dtype=np.int64),
        time=rng.uniform(0, config.opening_days * 86400, size=count),
        done=np.zeros(count, dtype=bool),
    )


def draw_page(
    world: World, shoppers: Shoppers, rng: np.random.Generator, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A page of the logging recommender: distinct items, drawn one after the other in proportion to exp(score).

    score = popularity_weight log popularity + history_weight share of the item's shelf among the decayed clicks, which
    is the law of Gumbel top-k (Plackett-Luce). Redrawing what is already on the page gives the same law without
    touching every item. Returns items (U, P) int64 and propensities (U, P) float64: the probability of the item at its
    position given the items placed before it. ``width`` is P, the store's ``page_size`` by default.
    """
    config = world.config
    width = config.page_size if width is None else width
    sampler = world.sampler
    boost = np.exp(config.history_weight * shoppers.clicked / (1 + shoppers.clicked.sum(axis=1, keepdims=True)))
    mass = boost * sampler.shelf_mass
    edges = np.cumsum(mass, axis=1)
    rows = np.arange(len(shoppers))
    page = np.full((len(shoppers), width), PAD_ITEM, dtype=np.int64)
    propensity = np.empty(page.shape)
    left = edges[:, -1].copy()  # weight of the items not yet on the page
    for position in range(width):
        pending = rows
        for _ in range(_REDRAWS):
            item = sampler.draw(mass[pending], edges[pending], boost[pending], rng)
            new = (page[pending, :position] != item[:, None]).all(axis=1)
            page[pending[new], position] = item[new]
            pending = pending[~new]
            if len(pending) == 0:
                break
        if len(pending):
            page[pending, position] = _weigh_all(world, boost[pending], page[pending, :position], rng)
        item = page[:, position]
        weight = sampler.weight[item] * boost[rows, world.shelf[item]]
        propensity[:, position] = np.minimum(weight / np.maximum(left, weight), 1.0)
        left -= weight
    return page, propensity


def respond(world: World, shoppers: Shoppers, page: np.ndarray, rng: np.random.Generator) -> Feedback:
    """What shoppers do with a page of items (U, P), whoever chose it. At PAD_ITEM the place is empty: SHOWN, 0 s."""
    config, real = world.config, page != PAD_ITEM
    page = np.where(real, page, 0)
    preference = world.preference_of_states(shoppers.taste, page).astype(np.float64)
    chances = outcome_probabilities(config, preference, examine_probability(config, page.shape[1]))
    drawn = (np.cumsum(chances[..., :3], axis=-1) <= rng.random((*page.shape, 1))).sum(axis=-1)
    feedback = np.where(real, drawn - 1, SHOWN).astype(np.int8)
    share = (1 - rng.random(page.shape)) ** (1 / (config.play_base + config.play_slope * preference))
    play_time = np.where(feedback >= CLICK, world.duration[page] * share, 0).astype(np.float32)
    return Feedback(feedback, play_time)


def advance(
    world: World,
    shoppers: Shoppers,
    page: np.ndarray,
    answer: Feedback,
    rng: np.random.Generator,
    every_row: bool = False,
) -> Shoppers:
    """Shoppers after a page: clicks are remembered, some leave, and who comes back starts a session and may drift.

    ``every_row`` draws a new shelf for those who do not drift, too, so that the random numbers of a row do not depend
    on what became of the other rows. The law is the same; the log draws only what it needs.
    """
    config, rows = world.config, np.arange(len(shoppers))
    click = answer.feedback >= CLICK
    clicked = shoppers.clicked * config.history_decay
    np.add.at(clicked, (rows[:, None], world.shelf[np.maximum(page, 0)]), click)
    time = shoppers.time + config.page_seconds + answer.play_time.sum(axis=1)
    leave = np.where(click.any(axis=1), config.leave_engaged, config.leave_idle)
    ends = (rng.random(len(rows)) < leave) | (shoppers.page_of_session + 1 >= config.max_pages)
    done = shoppers.done | (ends & (shoppers.session + 1 >= shoppers.sessions))
    returns = ends & ~done
    jumps = returns & (rng.random(len(rows)) < config.drift)
    taste = shoppers.taste.copy()
    drawn = np.ones_like(jumps) if every_row else jumps
    shelf = _draw_current_shelf(world, taste[drawn, 0], rng)
    taste[jumps, 1] = shelf[jumps] if every_row else shelf
    gap = 3600 * (1 + rng.exponential(config.gap_hours, size=len(rows)))
    return replace(
        shoppers,
        taste=taste,
        clicked=clicked,
        session=shoppers.session + returns.astype(np.int32),
        page=shoppers.page + 1,
        page_of_session=np.where(returns, 0, shoppers.page_of_session + 1),
        time=time + np.where(returns, gap, 0),
        done=done,
    )


def simulate(config: SimulatorConfig) -> SimulatedStore:
    """Catalogue, full exposure log and truth of one seeded store; the same config gives identical arrays.

    All rows of a page carry the time at which it was shown; ``page`` counts the user's pages from 0.
    """
    world_seed, user_seed = np.random.SeedSequence(config.seed).spawn(2)
    world, catalogue = make_world(config, world_seed)
    starts = range(0, config.users, USERS_PER_BLOCK)
    parts = []
    for start, seed in zip(starts, user_seed.spawn(len(starts))):
        users = np.arange(start, min(start + USERS_PER_BLOCK, config.users))
        parts.append(_simulate_block(world, users, np.random.default_rng(seed)))
    columns = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    truth = Truth(world, columns.pop("state"), columns.pop("session"))
    return SimulatedStore(catalogue, Interactions(**columns), truth)


def _simulate_block(world: World, users: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Log columns of one block of users, sorted by user and order."""
    config = world.config
    shoppers, steps = new_shoppers(world, users, rng), []
    while len(shoppers):
        page, propensity = draw_page(world, shoppers, rng)
        answer = respond(world, shoppers, page, rng)
        steps.append(
            {
                "user": shoppers.user,
                "page": shoppers.page,
                "time": shoppers.time,
                "session": shoppers.session,
                "state": shoppers.taste,
                "item": page,
                "feedback": answer.feedback,
                "play_time": answer.play_time,
                "propensity": propensity.astype(np.float32),
            }
        )
        shoppers = advance(world, shoppers, page, answer, rng)
        shoppers = shoppers.take(~shoppers.done)
    pages = {name: np.concatenate([step.pop(name) for step in steps]) for name in list(steps[0])}
    by_user = np.argsort(pages["user"], kind="stable")
    width = config.page_size
    columns = {}
    for name in list(pages):
        values = pages.pop(name)[by_user]
        flat = name in ("item", "feedback", "play_time", "propensity")
        columns[name] = values.reshape(-1) if flat else np.repeat(values, width, axis=0)
    columns["position"] = np.tile(np.arange(width), len(by_user))
    columns["order"] = columns["page"] * width + columns["position"]
    return columns


def _draw_current_shelf(world: World, long: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A current shelf for each long-term shelf (U,), from the drift kernel."""
    config, count = world.config, len(long)
    size = config.shelves_per_department
    home = (long // size) * size + rng.integers(size, size=count)
    anywhere = rng.integers(config.shelves, size=count)
    return np.where(rng.random(count) < config.drift_home, home, anywhere)


def _weigh_all(
    world: World, boost: np.ndarray, taken: np.ndarray, rng: np.random.Generator, chunk: int = 1 << 22
) -> np.ndarray:
    """One item a row that is not ``taken`` (U, j), from the weights of all items: the slow way, for crowded pages."""
    count = len(world.shelf)
    step, drawn = max(1, chunk // count), np.empty(len(boost), dtype=np.int64)
    for start in range(0, len(boost), step):
        part = slice(start, start + step)
        # The first arrival of exponential clocks with rates w has the law of a draw in proportion to w.
        arrival = rng.standard_exponential((len(boost[part]), count))
        arrival /= world.sampler.weight * boost[part][:, world.shelf]
        np.put_along_axis(arrival, taken[part], np.inf, axis=1)
        drawn[part] = arrival.argmin(axis=1)
    return drawn
