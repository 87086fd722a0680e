"""Rewards: what a group of candidates is worth in its context.

A reward is any callable ``(episodes, rollouts) -> float array (B, G)`` over whole groups. An entry of ``REWARDS``, or
any object named ``package.module:name``, is either such a function (its further keyword arguments come from the config)
or a class built as ``cls(context, **args)`` whose instances are such callables. Two optional attributes of a function
or class speak for it: ``needs_group`` (meaningless for one candidate, so refused at G = 1) and ``target_is_best`` (the
target's value is the highest of its group, when SID and item are one to one).

Left out: the collaborative reward of MiniOneRec (it hurts, by the paper's own ablation), the format reward (an
advantage in OneRec-V1, not a reward), and normalisation inside the group, which is the advantage's business.

Symbols as in ``records``: B contexts, G candidates a group, C items a SID, T history length, M targets.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sidgym.envs.records import PAD_ITEM, Episodes, Rollouts
from sidgym.sid.registry import resolve
from sidgym.sid.table import SidTable

Reward = Callable[[Episodes, Rollouts], np.ndarray]


class PreferenceModel(Protocol):
    """A fitted model of engagement, such as ``preference.LoggedPreference``."""

    def score(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(B, T) and (B, K) item ids, PAD_ITEM allowed, to (B, K) in [0, 1]; 0 at padding."""
        ...


class TruePreference(Protocol):
    """The simulator's ground truth."""

    def preference(self, event_rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Rows (B,) of the log and item ids (B, K) to the probability of engagement (B, K)."""
        ...


class RewardTerm(Protocol):
    """What ``build_reward`` reads of a config: any object with these three fields."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def args(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Term:
    """A term written in code rather than in a config."""

    name: str
    weight: float = 1.0
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardContext:
    """What rewards may be built from; a field that a run lacks is None, and a reward that needs it says so."""

    table: SidTable | None = None
    embeddings: np.ndarray | None = None  # (N, D) float, text embeddings of the items
    preference: PreferenceModel | None = None
    truth: TruePreference | None = None

    def require(self, field: str, reward: str) -> Any:
        """The field, or ``ValueError`` naming the reward that lacks it."""
        value = getattr(self, field)
        if value is None:
            raise ValueError(f"reward {reward!r} needs RewardContext.{field}, which this run does not have")
        return value


def is_member(items: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Whether each item (B, G, C) is one of its row's members (B, M); padding never is. (B, G, C) bool."""
    return (items[..., None] == members[:, None, None, :]).any(axis=-1) & (items != PAD_ITEM)


def mean_over_items(values: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Expectation of per-item values (B, G, C) over the items of each candidate's SID; 0 where it has none. (B, G)."""
    real = items != PAD_ITEM
    return np.where(real, values, 0.0).sum(axis=-1) / np.maximum(real.sum(axis=-1), 1)


def rule(episodes: Episodes, rollouts: Rollouts, *, any_positive: bool = False) -> np.ndarray:
    """1 for the target, else 0; a SID of m items is worth 1/m, the chance that it means the target. (B, G) float32.

    ``any_positive`` counts every item of D+ (``Episodes.targets``) as a target. Source: MiniOneRec section 3.4.2.
    """
    wanted = episodes.targets if any_positive else episodes.targets[:, :1]
    return mean_over_items(is_member(rollouts.items, wanted), rollouts.items).astype(np.float32)


def rank(episodes: Episodes, rollouts: Rollouts, *, groups: str = "hit_only", denominator: str = "paper") -> np.ndarray:
    """Penalty on negatives, heaviest on the most probable ones. (B, G) float32, at most 0.

    With the candidate's rank rho in the model's own list, ``R~ = 0`` for the target and ``-1 / log(rho + 1)``
    otherwise, and ``R = -R~ / sum(R~)`` over the group (MiniOneRec section 3.4.2). A candidate whose SID holds the
    target among others counts as the target. Invalid candidates get 0 and take no share.

    groups: ``hit_only`` gives zero to a group without the target, the rule of MiniOneRec's released code; ``all``, the
        paper's formula, penalises such groups too.
    denominator: ``paper`` sums over negatives, which then share exactly -1; ``released`` sums over the target's slot
        too, so that negatives share less (-0.836 for a hit at rank 1 of 16).
    """
    _check_choice("rank", "groups", groups, ("hit_only", "all"))
    _check_choice("rank", "denominator", denominator, ("paper", "released"))
    valid = rollouts.valid
    hit = is_member(rollouts.items, episodes.targets[:, :1]).any(axis=-1) & valid
    discount = np.where(valid, 1.0 / np.log(rollouts.rank + 1.0), 0.0)
    penalty = np.where(hit, 0.0, discount)
    total = (discount if denominator == "released" else penalty).sum(axis=1, keepdims=True)
    share = -np.divide(penalty, total, out=np.zeros_like(penalty), where=total > 0)
    if groups == "hit_only":
        share = np.where(hit.any(axis=1, keepdims=True), share, 0.0)
    # Adding zero turns -0.0 into 0.0.
    return (share + 0.0).astype(np.float32)


rule.target_is_best = True  # type: ignore[attr-defined]
rank.target_is_best = True  # type: ignore[attr-defined]
rank.needs_group = True  # type: ignore[attr-defined]


class GatedPreference:
    """Preference behind a relevance gate, positives anchored to the best of the group (GenRec equations 6 and 7).

    ``r_i = 1(s_i > tau) * pref_i``; then a candidate in D+ gets the group's largest ``r``. GenRec does not say what
    ``s_i`` measures: here it is the largest cosine similarity of the candidate's text embedding to those of the
    history's items, and 0 with an empty history. Where a SID holds several items all quantities are means over them,
    and the SID is in D+ when one of its items is.

    tau: threshold of the gate; choose it by validation. anchor: apply equation 7. gate: False sets every gate open.
    """

    target_is_best = True

    def __init__(self, context: RewardContext, tau: float = 0.2, anchor: bool = True, gate: bool = True) -> None:
        self.preference: PreferenceModel = context.require("preference", "gated_preference")
        vectors = np.asarray(context.require("embeddings", "gated_preference"), dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        # An item without text has a zero vector: similar to nothing.
        self.unit_vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
        self.tau = tau
        self.anchor = anchor
        self.gate = gate
        # Without the anchor nothing lifts the target above other candidates.
        self.target_is_best = anchor

    def relevance(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Largest cosine similarity of items (B, K) to the items of the history (B, T). (B, K) float32 in [-1, 1]."""
        cosine = np.einsum("bkd,btd->bkt", self.unit_vectors[items], self.unit_vectors[history])
        seen = (history != PAD_ITEM)[:, None, :]
        best = np.where(seen, cosine, -np.inf).max(axis=2)
        return np.where(seen.any(axis=2), best, 0.0)

    def explain(self, episodes: Episodes, rollouts: Rollouts) -> dict[str, np.ndarray]:
        """What the reward is made of, each (B, G) float32: relevance, preference, passed (share of items that pass the
        gate), gated (equation 6) and reward (with equation 7, if on). Means over invalid candidates need ``valid``."""
        shape = rollouts.items.shape
        items = rollouts.items.reshape(shape[0], -1)
        relevance = self.relevance(episodes.history, items).reshape(shape)
        preference = self.preference.score(episodes.history, items).reshape(shape)
        passed = relevance > self.tau if self.gate else np.ones(shape, dtype=bool)
        parts = {"relevance": relevance, "preference": preference, "passed": passed}
        parts["gated"] = np.where(passed, preference, 0.0)
        result = {name: mean_over_items(part, rollouts.items).astype(np.float32) for name, part in parts.items()}
        result["reward"] = self._anchored(result["gated"], episodes, rollouts) if self.anchor else result["gated"]
        return result

    def __call__(self, episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
        """(B, G) float32 in [0, 1]."""
        return self.explain(episodes, rollouts)["reward"]

    def _anchored(self, gated: np.ndarray, episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
        positive = is_member(rollouts.items, episodes.targets).any(axis=-1) & rollouts.valid
        best = np.where(rollouts.valid, gated, 0.0).max(axis=1, keepdims=True)
        return np.where(positive, best, gated)


class TruePreferenceReward:
    """The simulator's own probability of engagement: an oracle for tests and upper bounds, never a training signal.

    Needs episodes cut from a simulated log (``Episodes.event``). The mean over the items of a shared SID.
    """

    def __init__(self, context: RewardContext) -> None:
        self.truth: TruePreference = context.require("truth", "true_preference")

    def __call__(self, episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
        """(B, G) float32 in [0, 1]."""
        if episodes.event is None:
            raise ValueError("reward 'true_preference' needs Episodes.event, the target's row in the simulated log")
        shape = rollouts.items.shape
        items = np.maximum(rollouts.items, 0).reshape(shape[0], -1)
        values = np.asarray(self.truth.preference(episodes.event, items)).reshape(shape)
        return mean_over_items(values, rollouts.items).astype(np.float32)


REWARDS: dict[str, Any] = {
    "rule": rule,
    "rank": rank,
    "gated_preference": GatedPreference,
    "true_preference": TruePreferenceReward,
}


def find_reward(term: RewardTerm) -> Any:
    """The function or class that a term names, after a look at its signature: it costs nothing and needs no models.

    Raises ``ValueError`` for an unknown name, and for one that does not take ``(episodes, rollouts)`` (a class:
    ``(context)``) and the term's arguments.
    """
    entry = resolve("reward", term.name, REWARDS)
    given = (None,) if isinstance(entry, type) else (None, None)
    try:
        inspect.signature(entry).bind(*given, **term.args)
    except TypeError as error:
        expected = "(context, **args)" if isinstance(entry, type) else "(episodes, rollouts, **args)"
        raise ValueError(
            f"reward {term.name!r} must take {expected} with args {dict(term.args)} (args are set in the TOML file): "
            f"{error}"
        ) from error
    return entry


def build_reward(term: RewardTerm, context: RewardContext) -> Reward:
    """The reward that a config's term names. Raises ``ValueError`` for unknown names, arguments or missing context."""
    entry = find_reward(term)
    if isinstance(entry, type):
        return entry(context, **term.args)
    return functools.partial(entry, **term.args) if term.args else entry


def claims(reward: Reward, attribute: str) -> bool:
    """Whether a reward carries a true ``needs_group`` or ``target_is_best``, looking through ``functools.partial``."""
    return bool(getattr(reward.func if isinstance(reward, functools.partial) else reward, attribute, False))


class RewardSum:
    """Weighted sum of reward terms, each output checked.

    Two terms of one name are told apart as ``name`` and ``name#2``. Raises ``ValueError`` for a weight that is not
    finite and for a term that needs a group when ``group_size`` is 1.
    """

    def __init__(
        self, terms: Sequence[RewardTerm], context: RewardContext, group_size: int, invalid_value: float = 0.0
    ) -> None:
        self.invalid_value = invalid_value
        self.rewards: dict[str, Reward] = {}
        self.weights: dict[str, float] = {}
        for term in terms:
            copies = sum(name.partition("#")[0] == term.name for name in self.rewards)
            self.add(term.name if not copies else f"{term.name}#{copies + 1}", build_reward(term, context), term.weight)
        self.check_group_size(group_size)

    @classmethod
    def of(cls, reward: Reward, group_size: int, name: str = "reward") -> "RewardSum":
        """A sum of one callable that is at hand already."""
        total = cls((), RewardContext(), group_size)
        total.add(name, reward, 1.0)
        total.check_group_size(group_size)
        return total

    def add(self, name: str, reward: Reward, weight: float) -> None:
        """One more term."""
        if not math.isfinite(weight):
            raise ValueError(f"reward {name!r}: expected a finite weight, got {weight}")
        self.rewards[name], self.weights[name] = reward, weight

    def check_group_size(self, group_size: int) -> None:
        """Refuse terms that compare the candidates of a group where there is only one."""
        alone = [name for name, reward in self.rewards.items() if claims(reward, "needs_group")]
        if group_size == 1 and alone:
            raise ValueError(
                f"reward {alone[0]!r} ranks the candidates of a group and is the same for every candidate when "
                f"group_size is 1; use group_size >= 2 or drop it"
            )

    def __call__(self, episodes: Episodes, rollouts: Rollouts) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The weighted total (B, G) float32, ``invalid_value`` at invalid candidates, and each term's own unweighted
        values (B, G) float32, 0 there. Raises ``ValueError`` on a wrong shape, or NaN or infinity where valid."""
        valid = rollouts.valid
        parts = {name: checked(name, r(episodes, rollouts), valid) for name, r in self.rewards.items()}
        total = np.zeros(valid.shape)
        for name, part in parts.items():
            total += self.weights[name] * part
        return np.where(valid, total, self.invalid_value).astype(np.float32), parts


def checked(name: str, values: Any, valid: np.ndarray) -> np.ndarray:
    """A reward's output as (B, G) float32 with 0 at invalid candidates, or ``ValueError`` saying what is wrong."""
    values = np.asarray(values)
    if values.shape != valid.shape:
        raise ValueError(f"reward {name!r}: expected shape (contexts, group) = {valid.shape}, got {values.shape}")
    wrong = np.argwhere(~np.isfinite(values) & valid)
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(
            f"reward {name!r}: {values[row, column]} at row {row}, candidate {column}, and at {len(wrong)} of "
            f"{int(valid.sum())} valid candidates in all; a reward must be finite for every valid candidate"
        )
    return np.where(valid, values, 0.0).astype(np.float32)


def _check_choice(reward: str, argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"reward {reward!r}: {argument} must be one of {choices}, got {value!r}")
