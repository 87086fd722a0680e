"""Rewards: what a group of candidates is worth in its context.

A reward is any callable ``(episodes, rollouts) -> float array (B, G)`` over whole groups, or ``-> {component: (B,
G)}``, whose sum is then its value. It is given read-only views of the arrays. An entry of ``REWARDS``, or any object
named ``package.module:name``, is either such a function (its further keyword arguments come from the config) or a class
built as ``cls(context, **args)`` whose instances are such callables. Optional attributes of a function or class speak
for it:

- ``needs_group``: meaningless for one candidate, so refused at G = 1.
- ``needs_mode``: how candidates must be drawn for it to say anything, such as ``"free"``.
- ``constant_sum``: its values add up to the same whatever the group holds, so refused where the sum over a page pays.
- ``target_is_best``: the target's value is the highest of its group, when SID and item are one to one.
- ``requires``: a tuple of the fields of ``RewardContext`` that it reads, or a static method (of a function, a function)
  from its arguments to them.
- ``check``: likewise a function of its arguments that looks at them before any work is done and raises ``ValueError``.
- ``about``: of instances, words that messages add to the term's name.
- ``explain(episodes, rollouts)``: a method that returns the value as ``"reward"`` and what it is made of, (B, G) each.

Left out: the rewards themselves (``reward_terms``, ``reward_preference``, ``reward_adapters``), and normalisation
inside the group, which is the advantage's business.

Symbols as in ``records``: B contexts, G candidates a group.
"""

import functools
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sidgym.envs.records import Episodes, Rollouts
from sidgym.envs.reward_adapters import TrlReward, VerlReward
from sidgym.envs.reward_checks import RewardError, check_entry, check_total, evaluate, needed_fields, read_only
from sidgym.envs.reward_context import PreferenceModel, Reward, RewardContext, TruePreference
from sidgym.envs.reward_preference import GatedPreference, TruePreferenceReward
from sidgym.envs.reward_terms import (
    PopularityPenalty,
    PrefixReward,
    SemanticReward,
    diversity,
    engagement,
    legal_format,
    rank,
    rule,
)
from sidgym.sid.registry import resolve

__all__ = [
    "REWARDS",
    "GatedPreference",
    "PreferenceModel",
    "Reward",
    "RewardContext",
    "RewardError",
    "RewardSum",
    "RewardTerm",
    "Scores",
    "Term",
    "TruePreference",
    "TruePreferenceReward",
    "build_reward",
    "check_page_reward",
    "claims",
    "find_reward",
    "rank",
    "required_fields",
    "required_mode",
    "rule",
]

REWARDS: dict[str, Any] = {
    "rule": rule,
    "rank": rank,
    "prefix": PrefixReward,
    "semantic": SemanticReward,
    "gated": GatedPreference,
    "gated_preference": GatedPreference,
    "true_preference": TruePreferenceReward,
    "format": legal_format,
    "diversity": diversity,
    "popularity_penalty": PopularityPenalty,
    "engagement": engagement,
    "trl": TrlReward,
    "verl": VerlReward,
}


class RewardTerm(Protocol):
    """What ``build_reward`` reads of a config: any object with these three fields. See ``Term``."""

    @property
    def name(self) -> str | Callable[..., Any]: ...
    @property
    def weight(self) -> float: ...
    @property
    def args(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Term:
    """A term written in code rather than in a config; ``name`` may be the function, class or other callable itself."""

    name: str | Callable[..., Any]
    weight: float = 1.0
    args: Mapping[str, Any] = field(default_factory=dict)


def find_reward(term: RewardTerm) -> Any:
    """The function or class that a term names, after a look at its signature: it costs nothing and needs no models.

    Raises ``ValueError`` for an unknown name, for one that does not take ``(episodes, rollouts)`` (a class:
    ``(context)``, and its instances ``(episodes, rollouts)``) and the term's arguments, for arguments that its
    ``check`` refuses, and for a ``requires`` that names no fields of ``RewardContext``.
    """
    name = label(term)
    if not isinstance(term.args, Mapping) or not all(isinstance(key, str) for key in term.args):
        raise ValueError(f"reward {name!r}: expected args as a table of names and values, got {term.args!r}")
    entry = resolve("reward", term.name, REWARDS) if isinstance(term.name, str) else term.name
    check_entry(name, entry, term.args)
    needed_fields(name, entry, term.args)
    return entry


def label(term: RewardTerm) -> str:
    """What messages and logs call a term: its name, or that of its callable. Raises ``ValueError`` for neither."""
    if isinstance(term.name, str):
        return term.name
    if not callable(term.name):
        raise ValueError(f"reward: expected a name or a callable in the term, got {term.name!r}")
    named = _innermost(term.name)
    return str(getattr(named, "__name__", type(named).__name__))


def build_reward(term: RewardTerm, context: RewardContext) -> Reward:
    """The reward that a config's term names. Raises ``ValueError`` for unknown names, arguments or missing context."""
    entry = find_reward(term)
    if isinstance(entry, type):
        return entry(context, **term.args)
    return functools.partial(entry, **term.args) if term.args else entry


def required_fields(term: RewardTerm) -> tuple[str, ...]:
    """Fields of ``RewardContext`` that a term reads, as far as it says so. Raises ``ValueError`` as ``find_reward``."""
    return needed_fields(label(term), find_reward(term), term.args)


def may_read(terms: Iterable[RewardTerm], name: str) -> bool:
    """Whether a term reads the field ``name`` of ``RewardContext``: it says so, or is the user's own and need not say.
    Raises ``ValueError`` as ``find_reward``."""
    return any(not isinstance(term.name, str) or ":" in term.name or name in required_fields(term) for term in terms)


def claims(reward: Reward, attribute: str) -> bool:
    """Whether a reward (a built one, or what ``find_reward`` returns) carries a true ``needs_group``, ``constant_sum``
    or ``target_is_best``, looking through ``functools.partial``."""
    return bool(getattr(_innermost(reward), attribute, False))


def required_mode(reward: Reward) -> str:
    """How candidates must be drawn for a reward (a built one, or what ``find_reward`` returns); "" if any way does."""
    return str(getattr(_innermost(reward), "needs_mode", ""))


def _innermost(reward: Any) -> Any:
    return reward.func if isinstance(reward, functools.partial) else reward


@dataclass(frozen=True)
class Scores:
    """What a ``RewardSum`` says of groups of candidates; everything but ``total`` is 0 at invalid candidates."""

    total: np.ndarray  # (B, G) float32, the weighted sum; the sum's invalid_value at invalid candidates
    parts: dict[str, np.ndarray]  # term -> (B, G) float32, unweighted
    components: dict[str, np.ndarray]  # "term/component" -> (B, G) float32, unweighted; their sum is the term
    diagnostics: dict[str, np.ndarray]  # "term/quantity" -> (B, G) float32; never trained on, may be NaN


class RewardSum:
    """Weighted sum of reward terms, each output checked.

    Two terms of one name are told apart as ``name`` and ``name#2``. Raises ``ValueError`` for a weight that is not
    finite and for a term that needs a group when ``group_size`` is 1.
    """

    def __init__(
        self, terms: Sequence[RewardTerm], context: RewardContext, group_size: int, invalid_value: float = 0.0
    ) -> None:
        self.context = context
        self.invalid_value = invalid_value
        self.rewards: dict[str, Reward] = {}
        self.weights: dict[str, float] = {}
        for term in terms:
            self.add(label(term), build_reward(term, context), term.weight)
        self.check_group_size(group_size)

    @classmethod
    def of(cls, reward: Reward, group_size: int, name: str = "reward") -> "RewardSum":
        """A sum of one callable that is at hand already."""
        total = cls((), RewardContext(), group_size)
        total.add(name, reward, 1.0)
        total.check_group_size(group_size)
        return total

    def add(self, name: str, reward: Reward, weight: float) -> str:
        """One more term; returns what it is called here."""
        if not isinstance(weight, numbers.Real) or isinstance(weight, bool) or not math.isfinite(weight):
            raise ValueError(f"reward {name!r}: expected a finite weight, got {weight!r}")
        copies = sum(known.partition("#")[0] == name for known in self.rewards)
        name = f"{name}#{copies + 1}" if copies else name
        self.rewards[name], self.weights[name] = reward, weight
        return name

    def check_group_size(self, group_size: int) -> None:
        """Refuse terms that compare the candidates of a group where there is only one."""
        alone = [name for name, reward in self.rewards.items() if claims(reward, "needs_group")]
        if group_size == 1 and alone:
            raise ValueError(
                f"reward {alone[0]!r} ranks the candidates of a group and is the same for every candidate when "
                f"group_size is 1; use group_size >= 2 or drop it"
            )

    def score(self, episodes: Episodes, rollouts: Rollouts) -> Scores:
        """Every term of whole groups, each called once, with views of the arrays that it cannot write.

        Raises ``RewardError`` (a ``ValueError``) for a term that raises or returns anything but finite numbers (B, G)
        at valid candidates, and for weights that make their sum anything else.
        """
        episodes, rollouts = read_only(episodes), read_only(rollouts)
        told = {name: evaluate(name, r, episodes, rollouts, self._names) for name, r in self.rewards.items()}
        total = np.zeros(rollouts.valid.shape)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            for name, term in told.items():
                total += self.weights[name] * term.value
        check_total(total, self.weights, episodes, rollouts, self._names)
        return Scores(
            total=np.where(rollouts.valid, total, self.invalid_value).astype(np.float32),
            parts={name: term.value for name, term in told.items()},
            components={f"{n}/{key}": part for n, term in told.items() for key, part in term.components.items()},
            diagnostics={f"{n}/{key}": part for n, term in told.items() for key, part in term.diagnostics.items()},
        )

    def __call__(self, episodes: Episodes, rollouts: Rollouts) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The weighted total (B, G) float32, ``invalid_value`` at invalid candidates, and each term's own unweighted
        values (B, G) float32, 0 there. Raises as ``score``."""
        scores = self.score(episodes, rollouts)
        return scores.total, scores.parts

    def said(self, scores: Scores) -> dict[str, np.ndarray]:
        """Unweighted values (B, G) as ``render`` tells them: each term with its weight, ``0.5 x rank``, then the
        components."""
        told = {f"{self.weights[name]:g} x {name}": part for name, part in scores.parts.items()}
        return told | scores.components

    def _names(self, items: np.ndarray) -> list[str]:
        """Items as a message calls them: by the data set's ids where they are known."""
        table, catalogue = self.context.table, self.context.catalogue
        ids = catalogue.ids if catalogue is not None else table.item_ids if table is not None else None
        return [str(item) if ids is None or item >= len(ids) else str(ids[item]) for item in items.tolist()]


def check_page_reward(reward: RewardSum) -> None:
    """Refuses terms whose sum over a page says nothing of the page, where that sum is what is earned.

    Raises ``ValueError``. Before anything is built, ``claims(find_reward(term), "constant_sum")`` says the same of a
    term.
    """
    constant = [name for name, term in reward.rewards.items() if claims(term, "constant_sum")]
    if constant:
        raise ValueError(
            f"reward {constant[0]!r} shares out a fixed amount among the items of a page, so that its sum over the "
            "page does not depend on which items are shown; drop it: it is meant for items as candidates"
        )
