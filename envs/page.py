"""``SIDGym/Page-v0``: fill a page with distinct items for a logged user.

Two views of ``logged.PageDynamics``. Left out: users who answer back (``session``).
"""

from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from sidgym.envs.dynamics import check_count
from sidgym.envs.logged import PageDynamics, RewardLike, open_store, reward_sum
from sidgym.envs.next_item import history_space
from sidgym.envs.records import Episodes
from sidgym.envs.reward_context import RewardContext
from sidgym.envs.rewards import Term
from sidgym.envs.spaces import TrieSpace
from sidgym.envs.views import ScalarView, VectorView
from sidgym.sid.table import SidTable

DEFAULT_REWARD = Term("rule", args={"any_positive": True})
"""1 for every item that the user engaged with on the logged page."""


def _parts(
    size: int,
    episodes: Episodes | None,
    table: SidTable | None,
    reward: RewardLike,
    page_size: int,
    context: RewardContext | None,
) -> tuple[PageDynamics, spaces.Dict, TrieSpace]:
    """What both environments below are made of: dynamics, observation space and action space."""
    store = open_store(episodes, table, context, "Page")
    page_size = check_count("page_size", page_size)
    total = reward_sum(reward, store.context, page_size)
    dynamics = PageDynamics(size, store.episodes, store.table, total, page_size, store.context.catalogue)
    actions = TrieSpace(store.table.trie, (page_size,), distinct=True)
    return dynamics, history_space(store.episodes, store.table), actions


class PageEnv(ScalarView):
    """Given what a user did, fill a page with S distinct items.

    ## Description

    Recommendation of whole pages over Semantic IDs (SIDs) as a contextual bandit. Each episode shows the history of one
    logged user; the agent answers with S different SIDs, from the first place of the page to the last, and is rewarded
    by comparing them with what the user engaged with on the page that was logged: the positives D+ of GenRec, clicked
    and ordered items, ``Episodes.targets``.

    ## Action Space

    A ``TrieSpace`` with ``distinct=True``: int64 of shape ``(S, L)``, every row a SID of the catalogue, one code for
    each of L levels, no two rows equal. ``action_space.sample(mask=items)`` draws among allowed items, bool ``(N,)``.

    A SID that does not exist is accepted: it earns 0 and sets ``info["legal"]`` to False. So is a SID that stands on
    the page already: it earns nothing the second time and sets ``info["distinct"]`` to False. An action of the wrong
    shape raises ``ValueError``.

    ## Observation Space

    A ``Dict``:

    | key | space | meaning |
    |---|---|---|
    | ``history`` | ``Box(-1, max(sizes) - 1, (T, L), int64)`` | SIDs of the last T items, oldest first, -1 in front |
    | ``length`` | ``Discrete(T + 1)`` | number of real rows |

    ## Rewards

    The sum over the page of the reward that was asked for, by default ``rule`` with ``any_positive``: 1 for each SID of
    a positive, so that a page earns at most ``min(S, positives)``. Where m items share a SID it earns the share of them
    that is positive. ``engagement`` reads clicks, orders, play times and negative feedback off the logged page. The
    page is the group of rewards that compare candidates, such as ``diversity``; they are refused with ``page_size=1``.
    ``rank`` is refused: what it gives the places of a page adds up to the same whichever items stand there.

    ``info`` after a step: ``rewards`` (S,) of each SID, ``items`` (S,) the first item of each SID or -1, ``legal``
    whether all SIDs exist, ``distinct`` whether none repeats, ``hits`` the number of SIDs with a positive,
    ``positives`` the number of items in D+.

    ## Starting State

    A context drawn uniformly by the environment's generator, or row k of the episodes with
    ``reset(options={"row": k})``. ``info`` holds ``row`` and ``user``.

    ## Episode End

    Every episode terminates after one step and never truncates; the last observation is the first one again.

    ## Arguments

    ```python
    gymnasium.make("SIDGym/Page-v0", page_size=8)
    gymnasium.make_vec("SIDGym/Page-v0", num_envs=1024)
    ```

    - ``episodes``, ``table``: contexts and item-code table; without both, a simulated store of 200 items and 100 users.
    - ``reward``: a name in ``REWARDS`` or ``package.module:name``; a term (``name``, ``weight``, ``args``); a callable
      ``(episodes, rollouts) -> (B, S)``; or a sequence of these, whose weighted sum is taken.
    - ``page_size``: items a page, S; at most the number of SIDs, else ``ValueError``.
    - ``context``: ``RewardContext`` with what the reward needs beyond episodes and table, and the titles for
      ``render``.
    - ``render_mode``: ``"ansi"`` (history by title, paths through the trie, items, reward by component) or None.
    - ``num_envs``, ``autoreset_mode``: of the vector environment only; see ``PageVectorEnv``.

    ## Version History

    * v0: first version.
    """

    def __init__(
        self,
        episodes: Episodes | None = None,
        table: SidTable | None = None,
        reward: RewardLike = DEFAULT_REWARD,
        page_size: int = 5,
        context: RewardContext | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(*_parts(1, episodes, table, reward, page_size, context), render_mode)


class PageVectorEnv(VectorView):
    """``PageEnv`` for ``num_envs`` users at once, arrays end to end; its page holds for each row.

    Actions are ``(num_envs, S, L)``; ``reset(options={"row": k})`` takes a number or one for each environment that is
    reset. ``autoreset_mode`` is ``SAME_STEP`` by default, so that no step is spent on resets.
    """

    def __init__(
        self,
        num_envs: int = 1,
        episodes: Episodes | None = None,
        table: SidTable | None = None,
        reward: RewardLike = DEFAULT_REWARD,
        page_size: int = 5,
        context: RewardContext | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(*_parts(num_envs, episodes, table, reward, page_size, context), autoreset_mode, render_mode)
