"""``SIDGym/Session-v0``: many pages with one simulated shopper, who clicks, changes taste, leaves and comes back.

Spaces and arguments of the environments; what happens stands in ``session_dynamics``, what can be reached in
``session_oracle``. Left out: sessions of logged users, who cannot answer a page that they did not see.
"""

import functools

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from sidgym.envs.dynamics import check_count
from sidgym.envs.logged import RewardLike, reward_sum
from sidgym.envs.records import NEGATIVE, ORDER, Catalogue
from sidgym.envs.reward_context import RewardContext
from sidgym.envs.session_dynamics import SessionDynamics
from sidgym.envs.simulator import SimulatorConfig, Truth
from sidgym.envs.simulator_world import World, make_world
from sidgym.envs.spaces import TrieSpace
from sidgym.envs.views import ScalarView, VectorView
from sidgym.sid.table import SidTable

DEMONSTRATION = SimulatorConfig(items=200)
"""The world of an environment that is made without arguments."""

_CODES = 16


class SessionEnv(ScalarView):
    """Keep one simulated shopper engaged, page after page, for as long as the shopper comes.

    ## Description

    Recommendation over Semantic IDs (SIDs) as a sequential problem. A shopper with a hidden taste visits a store for a
    number of sessions. The agent fills page after page with S items; the shopper looks at them from the top with
    falling attention, and clicks, orders, plays for a time, dislikes, or passes over each. After every page the shopper
    may leave, sooner without a click. When one session is over the shopper comes back another day, perhaps looking for
    something else (the taste has drifted), until the last session is over. What counts is the return of the whole
    episode: what was clicked also tells what to show next, and keeps the shopper browsing.

    Taste is a = long-term shelf, b = current shelf, s = style; a and s never change, b may when a session starts. The
    probability of a click on an item that is looked at is a logistic function of its matches with a, b and s, its
    quality and its price (``sidgym.envs.simulator_world``). The store's own log comes from the same functions, with an
    older recommender in the agent's place. As the world is known, so are the marks to judge an agent by:
    ``sidgym.envs.session_oracle.judge_sessions`` plays the same shoppers with random pages, the older recommender, an
    exact Bayesian filter (the oracle) and an agent that knows the taste (the bound).

    ## Action Space

    ``TrieSpace(trie, (S,), distinct=True)``: int64 of shape ``(S, L)``, the SIDs of S different items, one code for
    each of L levels; row 0 stands first on the page.

    A SID that does not exist, and one that stands on the page already, are accepted: their place stays empty, earns 0
    and is told by ``info["legal"]`` and ``info["distinct"]``. Where a SID holds several items, the first of them is
    shown. An action of the wrong shape raises ``ValueError``.

    ## Observation Space

    A ``Dict``:

    | key | space | meaning |
    |---|---|---|
    | ``history`` | ``Box(-1, max(sizes) - 1, (T, L), int64)`` | SIDs of the last T clicks, oldest first, -1 in front |
    | ``length`` | ``Discrete(T + 1)`` | number of real rows |
    | ``shown`` | ``Box(-1, max(sizes) - 1, (S, L), int64)`` | SIDs of the last page by position, -1 where empty |
    | ``feedback`` | ``Box(-1, 2, (S,), int8)`` | -1 disliked, 0 passed over, 1 clicked, 2 ordered (clicked too) |
    | ``new_session`` | ``Discrete(2)`` | 1 if the shopper has come back since the last page |

    ## Rewards

    The sum over the page's S places of the reward that was asked for (``sidgym.envs.rewards.REWARDS``). By default
    ``engagement``: 1 for a click, 2 for an order, -1 for a dislike, 0 otherwise. A reward sees the page as a group of S
    candidates in page order and the shopper's answers as the contexts' ``page``, ``feedback`` and ``play_time``; its
    targets are the items ordered, then those clicked. ``rank`` is refused: what it gives the places of a page adds up
    to the same whichever items stand there.

    ``info`` after a step, by place: ``items`` (S,) shown, -1 where empty, ``rewards`` (S,), ``feedback`` (S,) and
    ``play_time`` (S,) in seconds; ``legal`` and ``distinct``; ``left``, whether the shopper has left for good;
    ``user``, ``pages`` of the episode so far, and ``session``, how many sessions of it are over.

    ## Starting State

    A new shopper, taste drawn from the population, numbered by the environment's generator, who has already seen
    ``warm_pages`` pages of the older recommender: their clicks are the history, the last of them is ``shown``. The
    sessions that the shopper will come for are counted from there. ``reset`` knows no options; its ``info`` holds
    ``user``, ``pages`` and ``session``.

    ## Episode End

    Terminates when the shopper leaves for good, after some 17 pages in 4.6 sessions in the default world. Truncates
    after ``max_pages`` pages.

    ## Arguments

    ```python
    gymnasium.make("SIDGym/Session-v0", config=SimulatorConfig(items=2000), page_size=10)
    ```

    - ``config``: a ``SimulatorConfig``; its world, catalogue and SIDs are made from it. 200 items by default. The size
      of the log, ``users`` and ``page_size``, only sets the scale of the popularity that rewards may read.
    - ``world``, ``table``, ``catalogue``: a world at hand with its item-code table, instead of ``config``; the
      catalogue gives titles to ``render`` and may be left out.
    - ``page_size``: items a page, S. ``history``: clicked items that are observed, T.
    - ``warm_pages``: pages before the episode; 0 starts without a history.
    - ``reward``: a name, a callable, a term, or a sequence of these, whose weighted sum is taken.
    - ``context``: ``RewardContext`` with what the reward needs; made from the world if left out.
    - ``max_pages``: truncation, None for never.
    - ``render_mode``: ``"ansi"`` or None.

    ## Version History

    * v0: first version.
    """

    def __init__(
        self,
        config: SimulatorConfig | None = None,
        world: World | None = None,
        table: SidTable | None = None,
        catalogue: Catalogue | None = None,
        page_size: int = 5,
        history: int = 10,
        warm_pages: int = 3,
        reward: RewardLike = "engagement",
        context: RewardContext | None = None,
        max_pages: int | None = 100,
        render_mode: str | None = None,
    ) -> None:
        dynamics = _dynamics(
            1, config, world, table, catalogue, page_size, history, warm_pages, reward, context, max_pages
        )
        super().__init__(dynamics, *_spaces(dynamics), render_mode)


class SessionVectorEnv(VectorView):
    """``num_envs`` shoppers at once, arrays end to end; see ``SessionEnv`` for everything else.

    ``autoreset_mode`` is ``SAME_STEP`` by default: the observation after a shopper's last page is the next shopper's
    first, the last one is in ``info["final_obs"]``. One generator serves all shoppers, so that the episode of one slot
    depends on the number of slots and on what is shown in the others.
    """

    def __init__(
        self,
        num_envs: int = 1,
        config: SimulatorConfig | None = None,
        world: World | None = None,
        table: SidTable | None = None,
        catalogue: Catalogue | None = None,
        page_size: int = 5,
        history: int = 10,
        warm_pages: int = 3,
        reward: RewardLike = "engagement",
        context: RewardContext | None = None,
        max_pages: int | None = 100,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
    ) -> None:
        dynamics = _dynamics(
            num_envs, config, world, table, catalogue, page_size, history, warm_pages, reward, context, max_pages
        )
        super().__init__(dynamics, *_spaces(dynamics), autoreset_mode, render_mode)


@functools.lru_cache(maxsize=4)
def session_store(config: SimulatorConfig = DEMONSTRATION) -> tuple[World, SidTable, Catalogue, RewardContext]:
    """World, SIDs, catalogue and reward context of a simulated store, without its log; a function of the config.

    The world is that of ``simulate(config)``. SIDs come from the items' texts, with 16 codes a level and as many levels
    as it takes to tell the items apart, one more where items collide. As there is no log to count in, the context's
    popularity is the number of impressions that items of the world's popularity get in a log of ``config.users`` users,
    ``config.sessions`` sessions each, one page of ``config.page_size`` items a session: an expectation, not a whole
    number, and shown rather than engaged with. Made once for equal configs.
    """
    # Worlds at hand bring their own table and need none of this.
    from sidgym.sid.config import SidConfig
    from sidgym.sid.embed import tfidf_svd
    from sidgym.sid.tokenizers import build_table

    world, catalogue = make_world(config, np.random.SeedSequence(config.seed).spawn(2)[0])
    embeddings = tfidf_svd(catalogue.texts(), 16, config.seed)
    levels = max(2, int(np.ceil(np.log(config.items) / np.log(_CODES))))
    table = build_table(embeddings, catalogue.ids, SidConfig(levels=levels, codes=_CODES), config.seed)
    nothing = Truth(world, np.zeros((0, 3), dtype=np.int16), np.zeros(0, dtype=np.int32))
    impressions = config.users * config.sessions * config.page_size * world.popularity
    context = RewardContext(table, embeddings, truth=nothing, popularity=impressions, catalogue=catalogue)
    return world, table, catalogue, context


def _dynamics(
    size: int,
    config: SimulatorConfig | None,
    world: World | None,
    table: SidTable | None,
    catalogue: Catalogue | None,
    page_size: int,
    history: int,
    warm_pages: int,
    reward: RewardLike,
    context: RewardContext | None,
    max_pages: int | None,
) -> SessionDynamics:
    """Raises ``ValueError`` for a world without a table, a table without a world, and a world with a config."""
    if (world is None) != (table is None) or (world is not None and config is not None):
        raise ValueError("Session-v0: give both world and table, or a config to make them from, or none of the three")
    if world is None or table is None:
        world, table, catalogue, made = session_store(config or DEMONSTRATION)
        context = context or made
    context = context or RewardContext(table, catalogue=catalogue)
    total = reward_sum(reward, context, check_count("page_size", page_size))
    return SessionDynamics(world, table, total, size, page_size, history, warm_pages, max_pages, catalogue)


def _spaces(dynamics: SessionDynamics) -> tuple[spaces.Dict, TrieSpace]:
    """Of observations and actions."""
    table, width = dynamics.table, dynamics.page_size
    highest = max(table.sizes) - 1
    seen = {
        "history": spaces.Box(-1, highest, (dynamics.history, table.levels), np.int64),
        "length": spaces.Discrete(dynamics.history + 1),
        "shown": spaces.Box(-1, highest, (width, table.levels), np.int64),
        "feedback": spaces.Box(NEGATIVE, ORDER, (width,), np.int8),
        "new_session": spaces.Discrete(2),
    }
    return spaces.Dict(seen), TrieSpace(table.trie, (width,), distinct=True)
