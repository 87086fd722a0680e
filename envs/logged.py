"""The dynamics of logged contexts, without Gymnasium: a user's history is answered with a SID, a group or a page.

The log says what an answer is worth. ``SIDGym/NextItem-v0`` and ``SIDGym/Page-v0`` are views of these classes.
Left out: spaces (the environments' own modules), answers code by code (``logged_tokens``), and users who answer back
(``session_dynamics``).

Symbols: B contexts, n slots, T history length, L levels, G SIDs an answer, C items a SID.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sidgym.envs.dynamics import Transition, check_count, repeats
from sidgym.envs.records import PAD_ITEM, Catalogue, Episodes, Rollouts
from sidgym.envs.render import answer_lines, context_line, item_title
from sidgym.envs.reward_context import Reward, RewardContext, is_member
from sidgym.envs.rewards import RewardSum, RewardTerm, Term, check_page_reward
from sidgym.sid.table import SidTable

RewardLike = str | Reward | RewardTerm | Sequence[str | Reward | RewardTerm]
"""A reward's name, a callable, a term, or several of these, whose weighted sum is taken."""

NO_CODE = -1
"""Code of a history's padding."""


@dataclass(frozen=True)
class Store:
    """What the environments need of a data set."""

    episodes: Episodes
    table: SidTable
    context: RewardContext


@functools.lru_cache(maxsize=4)
def demonstration_store(users: int = 100, items: int = 200, history: int = 10, seed: int = 0) -> Store:
    """A small simulated store, a function of the seed; every page with a click, but a user's first, is a context.

    Made once for equal arguments: many environments share one table and one trie.
    """
    # Only the environments without arguments need these.
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
    counts = np.bincount(store.interactions.positives().item, minlength=items).astype(np.float64)
    context = RewardContext(table, embeddings, truth=store.truth, popularity=counts, catalogue=store.catalogue)
    return Store(episodes, table, context)


def open_store(
    episodes: Episodes | None, table: SidTable | None, context: RewardContext | None, environment: str
) -> Store:
    """The store that an environment's arguments name, the simulated one without them.

    Raises ``ValueError`` for contexts without a table, a table without contexts, and no contexts at all.
    """
    if (episodes is None) != (table is None):
        raise ValueError(f"{environment}: give both episodes and table, or neither for the simulated store")
    if episodes is None or table is None:
        store = demonstration_store()
        return Store(store.episodes, store.table, context or store.context)
    if len(episodes) == 0:
        raise ValueError(f"{environment}: expected at least one context, got empty episodes")
    return Store(episodes, table, context or RewardContext(table))


def reward_sum(reward: RewardLike, context: RewardContext, group_size: int) -> RewardSum:
    """A name, a callable, a term, or a sequence of them as one sum over groups of ``group_size``.

    Raises ``ValueError`` for anything else, and for an empty sequence.
    """
    alone = isinstance(reward, str) or callable(reward) or not isinstance(reward, Sequence)
    parts: list[Any] = [reward] if alone else list(reward)  # type: ignore[arg-type]
    if not parts:
        raise ValueError("reward: expected at least one term, got an empty sequence; an example is reward='rule'")
    terms = [Term(part) if isinstance(part, str) or callable(part) else part for part in parts]
    for term in terms:
        if not all(hasattr(term, field) for field in ("name", "weight", "args")):
            raise ValueError(
                "reward: expected a name, a callable, a Term, or a sequence of these, got "
                f"{reward!r}; to weight a name or a callable write Term('rule', 0.5) or Term(my_reward, 0.5), with "
                "Term of sidgym.envs.rewards"
            )
    return RewardSum(terms, context, group_size)


def as_rollouts(codes: np.ndarray, table: SidTable, distinct: bool = False) -> Rollouts:
    """SIDs chosen by an agent, (B, G, L) integers in the order of its confidence, as ``Rollouts``.

    The log-probabilities are all zero, so that ``rank`` is the given order; SIDs outside the trie are not valid, and
    with ``distinct`` neither is a SID that stands in its group already.
    """
    codes, leaf = _leaves(codes, table)
    return _as_rollouts(codes, leaf, table, distinct)


def _leaves(codes: np.ndarray, table: SidTable) -> tuple[np.ndarray, np.ndarray]:
    """Codes (B, G, L) as int64 of our own, and the leaf of each SID (B, G), -1 where it does not exist."""
    codes = np.array(codes, dtype=np.int64, order="C")
    return codes, table.trie.leaf_of(torch.from_numpy(codes)).numpy()


def _as_rollouts(codes: np.ndarray, leaf: np.ndarray, table: SidTable, distinct: bool) -> Rollouts:
    if distinct:
        leaf = np.where(repeats(leaf), -1, leaf)
    items = table.trie.items_of(torch.from_numpy(leaf)).numpy()
    logp = np.zeros(codes.shape, dtype=np.float32)
    return Rollouts(codes, leaf >= 0, items, logp, mode="given", normalise="trie")


def answer(
    episodes: Episodes, codes: np.ndarray, table: SidTable, reward: RewardSum, distinct: bool = False
) -> tuple[np.ndarray, dict[str, np.ndarray], Rollouts]:
    """Groups of SIDs (B, G, L) in B contexts to rewards (B, G), their terms and the groups' items.

    A SID that is not valid (see ``as_rollouts``) gets the sum's ``invalid_value``.
    """
    rollouts = as_rollouts(codes, table, distinct)
    total, terms = reward(episodes, rollouts)
    return total, terms, rollouts


def observe(episodes: Episodes, table: SidTable) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the histories (B, T, L), -1 at padding, and their lengths (B,), both int64."""
    return _codes_of_histories(episodes.history, table)


def _codes_of_histories(history: np.ndarray, table: SidTable) -> tuple[np.ndarray, np.ndarray]:
    return codes_of(history, table), (history != PAD_ITEM).sum(axis=1)


def codes_of(items: np.ndarray, table: SidTable) -> np.ndarray:
    """SIDs of items (...), NO_CODE at PAD_ITEM; (..., L) int64."""
    return np.where((items != PAD_ITEM)[..., None], table.codes[np.maximum(items, 0)], NO_CODE)


class LoggedContexts:
    """Which context each slot shows; what the dynamics below share.

    Args:
        size: slots.
        episodes, table: contexts and item-code table.
        catalogue: titles for ``render``; without it items are called by their ids.
    """

    def __init__(self, size: int, episodes: Episodes, table: SidTable, catalogue: Catalogue | None = None) -> None:
        size = check_count("num_envs", size)
        self.size, self.episodes, self.table, self.catalogue = size, episodes, table, catalogue
        self._row = np.zeros(size, dtype=np.int64)

    def begin(self, slots: np.ndarray, rng: np.random.Generator, options: dict[str, Any]) -> dict[str, np.ndarray]:
        """Contexts drawn uniformly, or those of ``options["row"]``, one number or one a slot."""
        unknown = sorted(options.keys() - {"row"})
        if unknown:
            raise ValueError(f"reset: the only option is 'row', got {unknown}")
        rows = rng.integers(len(self.episodes), size=len(slots))
        if "row" in options:
            rows = self._chosen_rows(np.asarray(options["row"]), len(slots))
        self._row[slots] = rows
        return {"row": rows, "user": self.episodes.user[rows]}

    def _chosen_rows(self, given: np.ndarray, count: int) -> np.ndarray:
        if given.shape not in ((), (count,)) or not np.issubdtype(given.dtype, np.integer):
            raise ValueError(
                f"reset: row must be an integer or integers of shape ({count},), got {given.dtype} {given.shape}"
            )
        outside = given[(given < 0) | (given >= len(self.episodes))]
        if len(outside):
            raise ValueError(f"reset: row must be in [0, {len(self.episodes)}), got {outside[:5].tolist()}")
        return np.broadcast_to(given, count).astype(np.int64)

    def contexts(self, slots: np.ndarray) -> Episodes:
        """The contexts that the slots show."""
        return self.episodes.take(self._row[slots])

    def histories(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes (n, T, L) and lengths (n,) of the slots' histories, int64; see ``observe``."""
        if self.size == 1:
            # One context costs T rows of the table. Tables of all contexts would not pay, and views of one slot abound.
            return _codes_of_histories(self.episodes.history[self._row[slots]], self.table)
        codes, length = self._all_histories
        rows = self._row[slots]
        return codes[rows].astype(np.int64), length[rows]

    @functools.cached_property
    def _all_histories(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes of every history in the smallest integers that hold them, and lengths.

        A step then reads one run of memory a slot: gathering T scattered rows of the table instead would grow dearer
        with the catalogue.
        """
        kind = np.min_scalar_type(-max(self.table.sizes))
        # Row -1, the last one, is the padding's.
        codes = np.append(self.table.codes.astype(kind), np.full((1, self.table.levels), NO_CODE, kind), axis=0)
        history = self.episodes.history
        return codes[history], (history != PAD_ITEM).sum(axis=1)

    def context_line(self, slot: int) -> str:
        """The slot's user and history, for ``render``."""
        row = self._row[slot]
        return context_line(int(self.episodes.user[row]), self.episodes.history[row], self.table, self.catalogue)

    def answer_lines(self, slot: int, codes: np.ndarray, reward: RewardSum, distinct: bool = False) -> list[str]:
        """A slot's answer (G, L) and its rewards by component, for ``render``: worked out anew, not kept by steps."""
        rollouts = as_rollouts(codes[None], self.table, distinct)
        scores = reward.score(self.contexts(np.array([slot])), rollouts)
        said = {name: part[0] for name, part in reward.said(scores).items()}
        return answer_lines(codes, rollouts.item[0], scores.total[0], said, self.table, self.catalogue)

    def target_line(self, slot: int) -> str:
        """What the slot's user did next, for ``render``."""
        return f"  next     {item_title(int(self.episodes.target[self._row[slot]]), self.table, self.catalogue)}"


class LoggedDynamics(LoggedContexts):
    """One step: a context is answered with a SID, or with a ranked group of G; see ``NextItemEnv``.

    The reward of the step is the mean over the group.
    """

    distinct = False

    def __init__(
        self,
        size: int,
        episodes: Episodes,
        table: SidTable,
        reward: RewardSum,
        group_size: int = 1,
        catalogue: Catalogue | None = None,
    ) -> None:
        super().__init__(size, episodes, table, catalogue)
        group_size = check_count("group_size", group_size)
        self.reward, self.group_size = reward, group_size
        # What ``render`` shows; the rest is worked out from it.
        self._codes = np.zeros((size, group_size, table.levels), dtype=np.int64)
        self._answered = np.zeros(size, dtype=bool)

    def begin(self, slots: np.ndarray, rng: np.random.Generator, options: dict[str, Any]) -> dict[str, np.ndarray]:
        """See ``LoggedContexts.begin``."""
        info = super().begin(slots, rng, options)
        self._answered[slots] = False
        return info

    def observe(self, slots: np.ndarray) -> dict[str, np.ndarray]:
        """``history`` (n, T, L) and ``length`` (n,)."""
        codes, length = self.histories(slots)
        return {"history": codes, "length": length}

    def step(self, slots: np.ndarray, actions: np.ndarray, rng: np.random.Generator) -> Transition:
        """Actions (n, L) or (n, G, L); every episode terminates."""
        codes, leaf = _leaves(actions.reshape(len(slots), self.group_size, self.table.levels), self.table)
        self._codes[slots], self._answered[slots] = codes, True
        contexts, rollouts = self.contexts(slots), _as_rollouts(codes, leaf, self.table, self.distinct)
        rewards, _ = self.reward(contexts, rollouts)
        info: dict[str, Any] = {"rewards": rewards, "items": rollouts.item, "legal": (leaf >= 0).all(axis=1)}
        info |= self._told(contexts, rollouts, leaf)
        ended = np.ones(len(slots), dtype=bool)
        return Transition(self._value(rewards), ended, ~ended, info)

    def _value(self, rewards: np.ndarray) -> np.ndarray:
        return rewards.mean(axis=1, dtype=np.float64)

    def _told(self, contexts: Episodes, rollouts: Rollouts, leaf: np.ndarray) -> dict[str, np.ndarray]:
        return {"target": contexts.target}

    def render(self, slot: int) -> str:
        """The history by title and, once it is answered, every SID's way through the trie and what it earned."""
        lines = [self.context_line(slot)]
        if self._answered[slot]:
            lines += self.answer_lines(slot, self._codes[slot], self.reward, self.distinct)
            lines.append(self.target_line(slot))
        return "\n".join(lines)


class PageDynamics(LoggedDynamics):
    """One step: a context is answered with a page of distinct SIDs; see ``PageEnv``. The reward is the sum over it."""

    distinct = True

    def __init__(
        self,
        size: int,
        episodes: Episodes,
        table: SidTable,
        reward: RewardSum,
        page_size: int = 1,
        catalogue: Catalogue | None = None,
    ) -> None:
        """Raises ``ValueError`` for a reward whose sum says nothing of a page."""
        super().__init__(size, episodes, table, reward, page_size, catalogue)
        check_page_reward(reward)

    def _value(self, rewards: np.ndarray) -> np.ndarray:
        return rewards.sum(axis=1, dtype=np.float64)

    def _told(self, contexts: Episodes, rollouts: Rollouts, leaf: np.ndarray) -> dict[str, np.ndarray]:
        # What exists and is not valid stands on the page already.
        return {
            "distinct": np.asarray((leaf < 0) | rollouts.valid).all(axis=1),
            "hits": is_member(rollouts.items, contexts.targets).any(axis=-1).sum(axis=1),
            "positives": (contexts.targets != PAD_ITEM).sum(axis=1),
        }

    def target_line(self, slot: int) -> str:
        """What the slot's user engaged with on the logged page."""
        targets = self.episodes.targets[self._row[slot]]
        names = [item_title(int(item), self.table, self.catalogue) for item in targets[targets != PAD_ITEM]]
        return f"  wanted   {' | '.join(names)}"
