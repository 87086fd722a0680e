"""``SIDGym/NextItem-v0``: recommend one item, or a ranked group, to a logged user.

The dynamics are one batched function, ``answer``, which the scalar environment calls with a batch of one. Left out:
sessions of several pages, and codes chosen one at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from sidgym.envs.records import PAD_ITEM, Episodes, Rollouts
from sidgym.envs.rewards import Reward, RewardContext, RewardSum, RewardTerm, Term
from sidgym.envs.spaces import TrieSpace
from sidgym.sid.table import SidTable


@dataclass(frozen=True)
class Store:
    """What the environment needs of a data set."""

    episodes: Episodes
    table: SidTable
    context: RewardContext


def demonstration_store(users: int = 100, items: int = 200, history: int = 10, seed: int = 0) -> Store:
    """A small simulated store, a function of the seed; every page with a click, but a user's first, is a context."""
    # Only the environment without arguments needs these.
    from sidgym.envs.simulator import SimulatorConfig, simulate
    from sidgym.envs.splits import find_labels, make_episodes
    from sidgym.sid.config import SidConfig
    from sidgym.sid.embed import tfidf_svd
    from sidgym.sid.tokenizers import build_table

    store = simulate(SimulatorConfig(users=users, items=items, seed=seed))
    embeddings = tfidf_svd(store.catalogue.texts(), 16, seed)
    table = build_table(embeddings, store.catalogue.ids, SidConfig(levels=2, codes=16), seed)
    labels = find_labels(store.interactions)
    episodes = make_episodes(labels, np.flatnonzero(labels.usable), history)
    return Store(episodes, table, RewardContext(table, embeddings, truth=store.truth))


def as_rollouts(codes: np.ndarray, table: SidTable) -> Rollouts:
    """SIDs chosen by an agent, (B, G, L) integers in the order of its confidence, as ``Rollouts``.

    The log-probabilities are all zero, so that ``rank`` is the given order; SIDs outside the trie are not valid.
    """
    codes = np.ascontiguousarray(codes, dtype=np.int64)
    leaf = table.trie.leaf_of(torch.from_numpy(codes))
    items = table.trie.items_of(leaf).numpy()
    logp = np.zeros(codes.shape, dtype=np.float32)
    return Rollouts(codes, leaf.numpy() >= 0, items, logp, mode="given", normalise="trie")


def answer(
    episodes: Episodes, codes: np.ndarray, table: SidTable, reward: RewardSum
) -> tuple[np.ndarray, dict[str, np.ndarray], Rollouts]:
    """The dynamics: groups of SIDs (B, G, L) in B contexts to rewards (B, G), their terms and the groups' items.

    A SID that does not exist gets the sum's ``invalid_value``.
    """
    rollouts = as_rollouts(codes, table)
    total, terms = reward(episodes, rollouts)
    return total, terms, rollouts


def observe(episodes: Episodes, table: SidTable) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the histories (B, T, L), -1 at padding, and their lengths (B,), both int64."""
    real = episodes.history != PAD_ITEM
    codes = np.where(real[..., None], table.codes[np.maximum(episodes.history, 0)], PAD_ITEM)
    return codes, real.sum(axis=1)


class NextItemEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
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
    1/m where m items share it, else 0. With ``group_size`` above 1 the mean over the group. Rewards such as ``rank``
    that compare the candidates of a group are refused with ``group_size=1``.

    ``info`` after a step: ``rewards`` (G,) of each SID, ``items`` (G,) the first item of each SID or -1, ``legal``
    whether all SIDs exist, ``target`` the item that came next.

    ## Starting State

    A context drawn uniformly by the environment's generator, or row k of the episodes with
    ``reset(options={"row": k})``. ``info`` holds ``row`` and ``user``.

    ## Episode End

    Every episode terminates after one step and never truncates; the last observation is the first one again.

    ## Arguments

    ```python
    gymnasium.make("SIDGym/NextItem-v0", group_size=4, reward=["rule", "rank"])
    ```

    - ``episodes``, ``table``: contexts and item-code table; without both, a simulated store of 200 items and 100 users.
    - ``reward``: a name in ``REWARDS`` or ``package.module:name``; a callable ``(episodes, rollouts) -> (B, G)``; or a
      sequence of names and terms (``name``, ``weight``, ``args``), whose weighted sum is taken.
    - ``group_size``: SIDs an action holds, G.
    - ``context``: ``RewardContext`` with what the reward needs beyond episodes and table.
    - ``render_mode``: ``"ansi"`` or None.

    ## Version History

    * v0: first version.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(
        self,
        episodes: Episodes | None = None,
        table: SidTable | None = None,
        reward: str | Reward | Sequence[str | RewardTerm] = "rule",
        group_size: int = 1,
        context: RewardContext | None = None,
        render_mode: str | None = None,
    ) -> None:
        if group_size < 1:
            raise ValueError(f"NextItemEnv: group_size must be at least 1, got {group_size}")
        if (episodes is None) != (table is None):
            raise ValueError("NextItemEnv: give both episodes and table, or neither for the simulated store")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"NextItemEnv: render_mode must be 'ansi' or None, got {render_mode!r}")
        if episodes is None or table is None:
            store = demonstration_store()
            episodes, table, context = store.episodes, store.table, context or store.context
        if len(episodes) == 0:
            raise ValueError("NextItemEnv: expected at least one context, got empty episodes")
        self.episodes, self.table, self.group_size, self.render_mode = episodes, table, group_size, render_mode
        self.reward = _reward_sum(reward, context or RewardContext(table), group_size)
        length, levels = episodes.history.shape[1], table.levels
        self.action_space = TrieSpace(table.trie, () if group_size == 1 else (group_size,))
        self.observation_space = spaces.Dict(
            {
                "history": spaces.Box(-1, max(table.sizes) - 1, (length, levels), np.int64),
                "length": spaces.Discrete(length + 1),
            }
        )
        self._row: int | None = None
        self._told: dict[str, Any] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw a context, or take row ``options["row"]``."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(len(self.episodes)))
        row = int((options or {}).get("row", drawn))
        if not 0 <= row < len(self.episodes):
            raise ValueError(f"reset: row must be in [0, {len(self.episodes)}), got {row}")
        self._row, self._told = row, {}
        return self._observation(row), {"row": row, "user": int(self.episodes.user[row])}

    def step(self, action: Any) -> tuple[dict[str, Any], SupportsFloat, bool, bool, dict[str, Any]]:
        """Answer the context with a SID or a group of SIDs; the episode is over."""
        if self._row is None:
            raise gymnasium.error.ResetNeeded("call reset() before step(): an episode of this environment is one step")
        codes = np.asarray(action)
        if codes.shape != self.action_space.shape or not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(
                f"step: expected integer codes of shape {self.action_space.shape}, got {codes.dtype} {codes.shape}"
            )
        row, self._row = self._row, None
        context = self.episodes.take([row])
        groups = codes.reshape(1, self.group_size, self.table.levels)
        rewards, _, rollouts = answer(context, groups, self.table, self.reward)
        info = {
            "rewards": rewards[0],
            "items": rollouts.item[0],
            "legal": bool(rollouts.valid.all()),
            "target": int(context.target[0]),
        }
        self._told = {"row": row, **info}
        return self._observation(row), float(rewards[0].mean()), True, False, info

    def render(self) -> str | None:  # type: ignore[override]
        """The context, and after a step the answer and its reward, as text by item ids; None without a render mode."""
        if self.render_mode is None:
            return None
        row = self._told.get("row", self._row)
        if row is None:
            return "no episode yet"
        history = self.episodes.history[row]
        lines = [f"user {self.episodes.user[row]}: " + " ".join(self.table.item_ids[history[history != PAD_ITEM]])]
        if self._told:
            names = [self.table.item_ids[item] if item >= 0 else "(no such SID)" for item in self._told["items"]]
            lines += [f"  {name}: {value:g}" for name, value in zip(names, self._told["rewards"])]
            lines.append(f"  next was {self.table.item_ids[self._told['target']]}")
        return "\n".join(lines)

    def _observation(self, row: int) -> dict[str, Any]:
        history, length = observe(self.episodes.take([row]), self.table)
        return {"history": history[0], "length": length[0]}


def _reward_sum(
    reward: str | Reward | Sequence[str | RewardTerm], context: RewardContext, group_size: int
) -> RewardSum:
    parts = [reward] if isinstance(reward, str) or callable(reward) else list(reward)
    named = [Term(part) if isinstance(part, str) else part for part in parts if not callable(part)]
    total = RewardSum(named, context, group_size)
    for part in parts:
        if isinstance(part, type):
            part = part(context)
        if callable(part):
            total.add(getattr(part, "__name__", type(part).__name__), part, 1.0)
    total.check_group_size(group_size)
    return total
