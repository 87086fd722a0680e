"""What could be achieved in live sessions, and by whom: agents to judge others by, and the judge.

Four agents choose whole pages. ``RandomPages`` and ``LoggingPages`` (the store's own recommender) are what there was
before. ``SessionOracle`` knows the world but not the shopper: it filters the taste exactly from the pages seen
(``taste_filter``) and shows the items of highest expected preference. ``Bound`` knows the taste. ``judge_sessions``
plays any agent against shoppers that are the same for all of them. Left out: planning; the oracle shows no page only to
learn from it, so it is a strong mark and not an upper limit, which ``Bound`` is where its conditions hold.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from sidgym.envs.records import CLICK, ORDER, PAD_ITEM, Episodes
from sidgym.envs.rewards import RewardContext, RewardSum, Term
from sidgym.envs.session_dynamics import Sessions, open_with_pages, play_any, session_rewards
from sidgym.envs.simulator import draw_page
from sidgym.envs.simulator_world import World
from sidgym.envs.taste_filter import TasteFilter, best, rows_at_once
from sidgym.sid.table import SidTable

Warmup = Sequence[tuple[Episodes, Sessions]]
"""Pages played before an episode, each with the sessions after it."""


class SessionAgent(Protocol):
    """Chooses pages. Two further methods are called where an agent has them:

    ``begin(sessions, warm)`` before the first page, with the pages of the warm-up, and ``observe(played, after)`` after
    each page; rows where ``after.done`` do not come back in the next ``choose``.
    """

    def choose(self, sessions: Sessions, rng: np.random.Generator) -> np.ndarray:
        """A page for each of B running sessions: items (B, S), PAD_ITEM for an empty place."""
        ...


class RandomPages:
    """Distinct items, each set of S equally likely, in random order."""

    def __init__(self, world: World) -> None:
        self.items = len(world.shelf)

    def choose(self, sessions: Sessions, rng: np.random.Generator) -> np.ndarray:
        """Floyd's algorithm, (B, S): the cost does not grow with the catalogue."""
        count, width = sessions.shown.shape
        page = np.full((count, width), PAD_ITEM, dtype=np.int64)
        for place, last in enumerate(range(self.items - width, self.items)):
            drawn = rng.integers(last + 1, size=(count, 1))
            page[:, place] = np.where((page == drawn).any(axis=1), last, drawn[:, 0])
        return rng.permuted(page, axis=1)


class LoggingPages:
    """The recommender that wrote the simulated log; it sees clicks and popularity only."""

    def __init__(self, world: World) -> None:
        self.world = world

    def choose(self, sessions: Sessions, rng: np.random.Generator) -> np.ndarray:
        """Items (B, S) of ``simulator.draw_page``."""
        return draw_page(self.world, sessions.shoppers, rng, sessions.shown.shape[1])[0]


class Bound:
    """Knows the taste and shows the S items of highest true preference, best first.

    Among agents that leave no place empty none has a higher expected return, if the reward is ``engagement`` with
    order >= click >= dislike_rate * |negative| and negative <= 0 (the default 1, 2, -1 is, in every world), there is no
    discount, and an episode ends when the shopper leaves. A place that is looked at with probability e earns of an item
    with preference p, expected,

        e p (click + order_rate p (order - click)) - dislike_rate |negative| (1 - e p) (1 - p).

    That grows with p. By the first condition it also grows with e the faster the larger p is, so that the S highest p,
    best first, earn most; they have the highest chance of at least one click, too. The future depends on the page only
    through that chance, as a click makes leaving less likely: whether a shopper drifts, or comes back, depends on
    nothing that is shown. A longer session takes nothing from the later ones and adds what its pages earn, which is
    more than 0 unless even the best items are likelier disliked than clicked: so greedy maximises the return.

    Outside these conditions it is a strong mark, not a proven limit. If dislikes weigh more than clicks, the best order
    is another one. An empty place earns 0, which is more than an item that is likelier disliked than clicked. With a
    discount below 1, or where ``max_pages`` cuts the episode, a click less can bring the next session forward; that
    pays only if the session so gained is worth 1 / (leave_idle - leave_engaged) clicks more than staying: 20 in the
    default world, out of reach unless the discount is far below 1 or the cut is near. Rewards by play time are not
    covered.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    def choose(self, sessions: Sessions, rng: np.random.Generator) -> np.ndarray:
        """Items (B, S) for the tastes as they are."""
        tastes, taste_of = np.unique(sessions.shoppers.taste, axis=0, return_inverse=True)
        width, step = sessions.shown.shape[1], rows_at_once(self.world)
        parts = [
            best(self.world.preference_of_states(tastes[start : start + step]), width)[0]
            for start in range(0, len(tastes), step)
        ]
        return np.concatenate(parts)[taste_of.reshape(-1)]


class SessionOracle:
    """Follows each shopper with an exact filter over tastes; shows the S items of highest expected preference.

    It reads what shoppers do and nothing of what is hidden: items, positions, feedback, play times, and that a session
    is new. That is more than an observation of ``Session-v0`` holds: every page of the warm-up, where an observation
    has the clicks and the last page, and play times, which are in ``info`` only and after the warm-up only. So an agent
    that goes by observations cannot quite reach it, even with a memory of its own. It is ``oracle.BayesReference`` in
    live sessions; it plans for the next page only.
    """

    def __init__(self, world: World) -> None:
        self.filter = TasteFilter(world)
        self.belief = self.filter.prior(0)  # (B, H, H, S) of the sessions that go on

    def begin(self, sessions: Sessions, warm: Warmup) -> None:
        """The prior, and what the pages of the warm-up teach."""
        self.belief = self.filter.prior(len(sessions))
        for played, after in warm:
            self.observe(played, after)

    def observe(self, played: Episodes, after: Sessions) -> None:
        """Learns from a page each; forgets shoppers who have left for good."""
        assert played.page is not None
        assert played.feedback is not None
        assert played.play_time is not None
        belief = self.filter.learn(self.belief, played.page, played.feedback, played.play_time)
        self.belief = self.filter.drift(belief, after.new_session)[~after.done]

    def choose(self, sessions: Sessions, rng: np.random.Generator) -> np.ndarray:
        """Items (B, S). Raises ``ValueError`` when the sessions are not those that were followed."""
        if len(sessions) != len(self.belief):
            raise ValueError(
                f"SessionOracle: follows {len(self.belief)} sessions and was asked for {len(sessions)} pages; call "
                "begin at the start, observe after every page, and drop the sessions that are done"
            )
        return self.filter.top(self.belief, sessions.shown.shape[1])[0]


AGENTS: dict[str, Callable[[World], SessionAgent]] = {
    "random": RandomPages,
    "logging": LoggingPages,
    "oracle": SessionOracle,
    "bound": Bound,
}
"""The agents every other one is judged by: name -> class, built with the world."""


def judge_sessions(
    world: World,
    agent: SessionAgent,
    users: np.ndarray,
    page_size: int = 5,
    history: int = 10,
    warm_pages: int = 3,
    *,
    discount: float = 0.99,
    max_pages: int | None = 100,
    seed: int = 0,
    reward: RewardSum | None = None,
    table: SidTable | None = None,
) -> dict[str, np.ndarray]:
    """Whole episodes of an agent with ``users`` (U,) new shoppers; an array (U,) for each key.

    Keys: ``discounted`` (sum of discount ** k times the reward of page k), ``total`` (the same without discount),
    ``pages``, ``clicks`` (orders included), ``orders``, ``sessions``, ``left`` (bool; else ended by ``max_pages``).
    ``reward`` is ``engagement`` by default; another one may read SIDs, which are those of ``table``, by default of the
    table that the reward was built with. Raises ``ValueError`` where such a reward comes with neither.

    Shoppers, warm-up, and the random numbers of page k in row u depend on the seed and not on the agent, so that two
    agents may be compared in pairs: where row u drifts after page k under both, it drifts to the same shelf.
    """
    needs_no_table = reward is None and table is None  # the default reward reads no SIDs
    reward = reward or RewardSum([Term("engagement")], RewardContext(table), page_size)
    sessions, warm = open_with_pages(world, users, history, page_size, warm_pages, np.random.default_rng([seed, 0]))
    if hasattr(agent, "begin"):
        agent.begin(sessions, warm)
    choices = np.random.default_rng([seed, 1])
    out = {name: np.zeros(len(users)) for name in ("discounted", "total")}
    out |= {name: np.zeros(len(users), dtype=np.int64) for name in ("pages", "clicks", "orders")}
    going, step = np.arange(len(users)), 0
    while len(going) and (max_pages is None or step < max_pages):
        pages = np.full((len(users), page_size), PAD_ITEM, dtype=np.int64)
        pages[going] = agent.choose(sessions.take(going), choices)
        # Shoppers who have left are played along with empty pages: row u always gets the same random numbers.
        sessions, everything = play_any(world, sessions, pages, np.random.default_rng([seed, 2, step]), every_row=True)
        played, after = everything.take(going), sessions.take(going)
        codes = np.zeros((len(going), page_size, 0), dtype=np.int64) if needs_no_table else None
        worth, _ = session_rewards(played, reward, table, codes)
        assert played.feedback is not None
        out["discounted"][going] += discount**step * worth
        out["total"][going] += worth
        out["pages"][going] += 1
        out["clicks"][going] += (played.feedback >= CLICK).sum(axis=1)
        out["orders"][going] += (played.feedback == ORDER).sum(axis=1)
        if hasattr(agent, "observe"):
            agent.observe(played, after)
        going, step = going[~after.done], step + 1
    return out | {"sessions": sessions.shoppers.session + 1, "left": sessions.done}


def session_marks(world: World, users: np.ndarray, **settings: Any) -> dict[str, dict[str, float]]:
    """Means over shoppers of what ``judge_sessions`` returns for each of ``AGENTS``; settings go to it unchanged.

    ``standard_error`` is that of ``discounted``. Where another agent stands between random and oracle, in percent, is
    ``oracle.percent_of_oracle`` of the ``discounted`` means.
    """
    marks = {}
    for name, build in AGENTS.items():
        results = judge_sessions(world, build(world), users, **settings)
        marks[name] = {key: float(values.mean()) for key, values in results.items()}
        marks[name]["standard_error"] = float(results["discounted"].std(ddof=1) / np.sqrt(len(users)))
    return marks
