"""``SIDGym/NextToken-v0``: recommend an item to a logged user, code by code, with a mask of the codes that are legal.

Two views of ``logged_tokens.TokenDynamics``. Left out: whole SIDs as actions (``next_item``), and groups.
"""

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from sidgym.envs.logged import RewardLike, open_store, reward_sum
from sidgym.envs.logged_tokens import TokenDynamics
from sidgym.envs.records import Episodes
from sidgym.envs.reward_context import RewardContext
from sidgym.envs.views import ScalarView, VectorView
from sidgym.sid.table import SidTable


def _parts(
    size: int,
    episodes: Episodes | None,
    table: SidTable | None,
    reward: RewardLike,
    features: str,
    context: RewardContext | None,
) -> tuple[TokenDynamics, spaces.Dict, spaces.Discrete]:
    """What both environments below are made of: dynamics, observation space and action space."""
    store = open_store(episodes, table, context, "NextToken")
    total = reward_sum(reward, store.context, 1)
    dynamics = TokenDynamics(size, store.episodes, store.table, total, features, store.context.catalogue)
    rows, sizes, levels = store.episodes.history.shape[1] + 1, store.table.sizes, store.table.levels
    if features == "one_hot":
        seen = spaces.Box(0, 1, (rows * sum(sizes) + levels,), np.float32)
    else:
        seen = spaces.Box(-1, max(max(sizes) - 1, levels), (rows * levels + 1,), np.float32)
    mask = spaces.Box(0, 1, (max(sizes),), np.float32)
    return dynamics, spaces.Dict({"observations": seen, "action_mask": mask}), spaces.Discrete(max(sizes))


class NextTokenEnv(ScalarView):
    """Given what a user did, spell the Semantic ID of the item that comes next.

    ## Description

    Next-item recommendation over Semantic IDs (SIDs) as a walk through the trie. Each episode shows the history of one
    logged user; the agent chooses one code a step, from the first level to the last, and the item whose SID it has
    spelt is compared with what the user did next. Which codes continue a SID is told by a mask, under the names that
    agents with action masking look for: RLlib's action-masking module reads the observation's ``action_mask``,
    sb3-contrib's MaskablePPO calls ``action_masks()``.

    ## Action Space

    ``Discrete(K)``: the next code, where K is the number of codes on the widest level.

    An illegal action, a code that is no child of the current node, is accepted: the episode terminates with reward 0
    and ``info["legal"]`` is False. ``action_masks()`` gives the legal codes as bool ``(K,)``, and the vector
    environment's ``(num_envs, K)``.

    ## Observation Space

    A ``Dict``:

    | key | space | meaning |
    |---|---|---|
    | ``observations`` | ``Box(0, 1, (D,), float32)`` | history, codes chosen so far and level, see ``features`` |
    | ``action_mask`` | ``Box(0, 1, (K,), float32)`` | 1 for each legal code |

    - ``features="one_hot"``: T SIDs of the history, oldest first, then the SID so far, each as a one-hot vector a level
      (zeros at padding and at levels not chosen yet), then the level as a one-hot vector of L (zeros after the last).
      ``D = (T + 1) * sum(sizes) + L``.
    - ``features="codes"``: the same as plain numbers, -1 at padding and at levels not chosen yet, for agents that embed
      the codes themselves. The space is ``Box(-1, max(max(sizes) - 1, L), (D,), float32)``, ``D = (T + 1) * L + 1``.

    The mask of the last observation is the root's, so that it has a legal code too.

    ## Rewards

    0 on every step but the last, which earns the reward that was asked for (``sidgym.envs.rewards.REWARDS``), ``rule``
    by default: 1 if the SID is the target's, 1/m where m items share it, else 0. The answer is one candidate: rewards
    such as ``rank`` that compare the candidates of a group are refused.

    ``info`` after a step: ``legal`` whether the code was; ``item`` the first item of the SID and ``target`` the item
    that came next, both -1 before the end, ``item`` also after an illegal code.

    ## Starting State

    The root of the trie and a context drawn uniformly by the environment's generator, or row k of the episodes with
    ``reset(options={"row": k})``. ``info`` holds ``row`` and ``user``.

    ## Episode End

    An episode terminates after L steps, or with the first illegal code, and never truncates.

    ## Arguments

    ```python
    gymnasium.make("SIDGym/NextToken-v0", features="codes")
    gymnasium.make_vec("SIDGym/NextToken-v0", num_envs=1024)
    ```

    - ``episodes``, ``table``: contexts and item-code table; without both, a simulated store of 200 items and 100 users.
    - ``reward``: a name in ``REWARDS`` or ``package.module:name``; a callable ``(episodes, rollouts) -> (B, 1)``; a
      ``Term`` (name or callable, ``weight``, ``args``); or a sequence of these, whose weighted sum is taken.
    - ``features``: ``"one_hot"`` or ``"codes"``.
    - ``context``: ``RewardContext`` with what the reward needs beyond episodes and table, and the titles for
      ``render``.
    - ``render_mode``: ``"ansi"`` (history by title, path through the trie, item, reward by component) or None.
    - ``num_envs``, ``autoreset_mode``: of the vector environment only; see ``NextTokenVectorEnv``.

    ## Version History

    * v0: first version.
    """

    dynamics: TokenDynamics

    def __init__(
        self,
        episodes: Episodes | None = None,
        table: SidTable | None = None,
        reward: RewardLike = "rule",
        features: str = "one_hot",
        context: RewardContext | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(*_parts(1, episodes, table, reward, features, context), render_mode)

    def action_masks(self) -> np.ndarray:
        """Codes that are legal now, (K,) bool; what sb3-contrib asks an environment for."""
        return self.dynamics.masks(np.zeros(1, dtype=np.int64))[0]


class NextTokenVectorEnv(VectorView):
    """``NextTokenEnv`` for ``num_envs`` users at once, arrays end to end; its page holds for each row.

    Actions are ``(num_envs,)``; ``reset(options={"row": k})`` takes a number or one for each environment that is reset.
    ``autoreset_mode`` is ``SAME_STEP`` by default, so that no step is spent on resets.
    """

    dynamics: TokenDynamics

    def __init__(
        self,
        num_envs: int = 1,
        episodes: Episodes | None = None,
        table: SidTable | None = None,
        reward: RewardLike = "rule",
        features: str = "one_hot",
        context: RewardContext | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(*_parts(num_envs, episodes, table, reward, features, context), autoreset_mode, render_mode)

    def action_masks(self) -> np.ndarray:
        """Codes that are legal now, (num_envs, K) bool."""
        return self.dynamics.masks(np.arange(self.num_envs))
