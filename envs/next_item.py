"""``SIDGym/NextItem-v0``: recommend one item, or a ranked group, to a logged user.

Two views of ``logged.LoggedDynamics``. Left out: pages that a user looks at as a whole (``page``), codes chosen one
after another (``next_token``), and users who answer back (``session``).
"""

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from sidgym.envs.dynamics import check_count
from sidgym.envs.logged import (
    LoggedDynamics,
    RewardLike,
    Store,
    answer,
    as_rollouts,
    demonstration_store,
    observe,
    open_store,
    reward_sum,
)
from sidgym.envs.records import Episodes
from sidgym.envs.reward_context import RewardContext
from sidgym.envs.spaces import TrieSpace
from sidgym.envs.views import ScalarView, VectorView
from sidgym.sid.table import SidTable

__all__ = [
    "NextItemEnv",
    "NextItemVectorEnv",
    "Store",
    "answer",
    "as_rollouts",
    "demonstration_store",
    "history_space",
    "observe",
]


def history_space(episodes: Episodes, table: SidTable) -> spaces.Dict:
    """The observations of ``LoggedDynamics``: ``history`` and ``length``."""
    length = episodes.history.shape[1]
    return spaces.Dict(
        {
            "history": spaces.Box(-1, max(table.sizes) - 1, (length, table.levels), np.int64),
            "length": spaces.Discrete(length + 1),
        }
    )


def _parts(
    size: int,
    episodes: Episodes | None,
    table: SidTable | None,
    reward: RewardLike,
    group_size: int,
    context: RewardContext | None,
) -> tuple[LoggedDynamics, spaces.Dict, TrieSpace]:
    """What both environments below are made of: dynamics, observation space and action space."""
    store = open_store(episodes, table, context, "NextItem")
    group_size = check_count("group_size", group_size)
    total = reward_sum(reward, store.context, group_size)
    dynamics = LoggedDynamics(size, store.episodes, store.table, total, group_size, store.context.catalogue)
    actions = TrieSpace(store.table.trie, () if group_size == 1 else (group_size,))
    return dynamics, history_space(store.episodes, store.table), actions


class NextItemEnv(ScalarView):
    """Given what a user did, name the item that comes next.

    ## Description

    Next-item recommendation over Semantic IDs (SIDs) as a contextual bandit. Each episode shows the history of one
    logged user; the agent answers with the SID of one item, or with a group of G SIDs in the order of its confidence,
    and is rewarded by comparing them with what the user did next. Items and SIDs come from an item-code table, users
    from a log.

    ## Action Space

    A ``TrieSpace``: int64 of shape ``(L,)`` (``group_size=1``) or ``(G, L)``, every row a SID of the catalogue, one
    code for each of L levels. In a group, row 0 is the most probable. SIDs may repeat.
    ``action_space.sample(mask=items)`` draws among allowed items, given as bool ``(N,)``.

    A SID that does not exist is accepted: it earns 0 and sets ``info["legal"]`` to False, so that agents that decode
    without the trie can be measured. An action of the wrong shape raises ``ValueError``.

    ## Observation Space

    A ``Dict``:

    | key | space | meaning |
    |---|---|---|
    | ``history`` | ``Box(-1, max(sizes) - 1, (T, L), int64)`` | SIDs of the last T items, oldest first, -1 in front |
    | ``length`` | ``Discrete(T + 1)`` | number of real rows |

    ## Rewards

    The reward that was asked for (``sidgym.envs.rewards.REWARDS``), ``rule`` by default: 1 if the SID is the target's,
    1/m where m items share it, else 0. With ``group_size`` above 1 the mean over the group, and ``info["rewards"]``
    holds each candidate's own. Rewards such as ``rank`` that compare the candidates of a group are refused with
    ``group_size=1``.

    Learn a group from ``info["rewards"]``: a mean can hide all that they say. With ``reward=["rule", "rank"]`` it does:
    the negatives beside a hit share a penalty of exactly -1, so that a group with one hit gets 1 - 1 = 0 on the whole,
    like a group without any, while the hit itself gets 1 and the others less than 0.

    ``info`` after a step: ``rewards`` (G,) of each SID, ``items`` (G,) the first item of each SID or -1, ``legal``
    whether all SIDs exist, ``target`` the item that came next.

    ## Starting State

    A context drawn uniformly by the environment's generator, or row k of the episodes with
    ``reset(options={"row": k})``. ``info`` holds ``row`` and ``user``.

    ## Episode End

    Every episode terminates after one step and never truncates; the last observation is the first one again.

    ## Arguments

    ```python
    gymnasium.make("SIDGym/NextItem-v0", group_size=4, reward="rule")
    gymnasium.make_vec("SIDGym/NextItem-v0", num_envs=1024)
    ```

    - ``episodes``, ``table``: contexts and item-code table; without both, a simulated store of 200 items and 100 users.
    - ``reward``: a name in ``REWARDS`` or ``package.module:name``; a callable ``(episodes, rollouts) -> (B, G)``; a
      ``Term`` (name or callable, ``weight``, ``args``); or a sequence of these, whose weighted sum is taken.
    - ``group_size``: SIDs an action holds, G.
    - ``context``: ``RewardContext`` with what the reward needs beyond episodes and table, and the titles for
      ``render``.
    - ``render_mode``: ``"ansi"`` (history by title, path through the trie, item, reward by component) or None.
    - ``num_envs``, ``autoreset_mode``: of the vector environment only; see ``NextItemVectorEnv``.

    ## Version History

    * v0: first version.
    """

    def __init__(
        self,
        episodes: Episodes | None = None,
        table: SidTable | None = None,
        reward: RewardLike = "rule",
        group_size: int = 1,
        context: RewardContext | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(*_parts(1, episodes, table, reward, group_size, context), render_mode)


class NextItemVectorEnv(VectorView):
    """``NextItemEnv`` for ``num_envs`` users at once, arrays end to end; its page holds for each row.

    Actions are ``(num_envs, L)`` or ``(num_envs, G, L)``; ``reset(options={"row": k})`` takes a number or one for each
    environment that is reset. ``autoreset_mode`` is ``SAME_STEP`` by default, so that no step is spent on resets.
    """

    def __init__(
        self,
        num_envs: int = 1,
        episodes: Episodes | None = None,
        table: SidTable | None = None,
        reward: RewardLike = "rule",
        group_size: int = 1,
        context: RewardContext | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(*_parts(num_envs, episodes, table, reward, group_size, context), autoreset_mode, render_mode)
