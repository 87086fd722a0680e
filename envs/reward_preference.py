"""Rewards of preference: a model's score behind a relevance gate, and the simulator's own truth.

Left out: the models (``preference``), what relevance is (``relevance``) and how the gate's threshold is chosen
(``gate``).

Symbols as in ``records``: B contexts, G candidates a group, C items a SID, T history length, L levels, K items asked.
"""

from typing import Any

import numpy as np

from sidgym.envs.records import PAD_ITEM, Episodes, Rollouts
from sidgym.envs.relevance import (
    RELEVANCE_NEEDS,
    RELEVANCES,
    LearnedRelevance,
    PrefixRelevance,
    Relevance,
    TextRelevance,
    relevance_function,
)
from sidgym.envs.reward_context import (
    PreferenceModel,
    RewardContext,
    TruePreference,
    check_flag,
    check_number,
    is_member,
    mean_over_items,
)
from sidgym.sid.registry import resolve

__all__ = [
    "AUTO",
    "DEFAULT_TAU",
    "PREFERENCES",
    "RELEVANCES",
    "GatedPreference",
    "LearnedRelevance",
    "PrefixRelevance",
    "Relevance",
    "TextRelevance",
    "TruePreferenceReward",
    "preference_model",
    "relevance_function",
]

AUTO = "auto"
"""As ``tau`` or ``relevance``: what was chosen when the preference model was fitted."""
PREFERENCES: dict[str, str] = {"model": "preference"}
"""Built-in choices of ``preference``: the field of RewardContext that holds the model."""

DEFAULT_TAU = 0.2
"""Threshold where none is given and none was chosen."""


class GatedPreference:
    """Preference behind a relevance gate, positives anchored to the best of the group (GenRec equations 6 and 7).

    ``r_i = 1(s_i > tau) * pref_i``; then a candidate in D+ gets the group's largest ``r``. Where a SID holds several
    items all quantities are means over them, and the SID is in D+ when one of its items is. A relevance or preference
    of NaN at an item of a valid candidate raises ``ValueError``, whether the gate lets the item pass or not.

    tau: finite threshold of the gate; ``auto`` takes the one that was chosen by validation for this relevance
        (``RewardContext.gate``), and ``DEFAULT_TAU`` where there is no gate. anchor: apply equation 7. gate: False
        opens every gate.
    preference: ``model`` takes ``RewardContext.preference``; ``package.module:name`` names an object with
        ``score(history (B, T), items (B, K)) -> (B, K) in [0, 1]``, or what makes one from a ``RewardContext`` (a class
        or a function); in code the object itself can be given.
    relevance: what ``s_i`` measures, which GenRec does not say. ``text`` is the largest cosine similarity of the
        candidate's text embedding to those of the history's items, ``prefix`` the longest SID prefix in common with
        one of them, divided by L, ``learned`` a classifier of both; all are 0 with an empty history. ``auto`` is what
        ``RewardContext.gate`` says, ``text`` where there is none. ``package.module:name`` names a function
        ``(history, items) -> (B, K)``, or what makes one from a ``RewardContext``; or give the function itself.
    """

    target_is_best = True

    def __init__(
        self,
        context: RewardContext,
        tau: float | str = AUTO,
        anchor: bool = True,
        gate: bool = True,
        preference: str | PreferenceModel = "model",
        relevance: str | Relevance = AUTO,
    ) -> None:
        self.check(preference, relevance, tau, anchor, gate)
        self.preference = preference_model(preference, context)
        if relevance == AUTO:
            relevance = context.gate.relevance if context.gate is not None else "text"
        self.relevance = relevance_function(relevance, context)
        if isinstance(tau, str):
            tau = context.gate.threshold(relevance) if gate and context.gate is not None else DEFAULT_TAU
        self.tau = tau
        self.anchor = anchor
        self.gate = gate
        # Without the anchor nothing lifts the target above other candidates.
        self.target_is_best = anchor

    @staticmethod
    def check(
        preference: Any = "model", relevance: Any = AUTO, tau: Any = AUTO, anchor: Any = True, gate: Any = True
    ) -> None:
        """Raises ``ValueError`` for a model or relevance that is not known or cannot be imported, for a threshold that
        is no finite number, and for switches that are not bool."""
        if tau != AUTO:
            check_number("gated", "tau", tau, ", or 'auto'; gate = false opens every gate")
        check_flag("gated", "anchor", anchor)
        check_flag("gated", "gate", gate)
        if isinstance(preference, str):
            resolve("preference model", preference, PREFERENCES)
        if isinstance(relevance, str) and relevance != AUTO:
            resolve("relevance", relevance, RELEVANCES)

    @staticmethod
    def requires(preference: Any = "model", relevance: Any = AUTO, **_: Any) -> tuple[str, ...]:
        """Fields of ``RewardContext`` that these arguments read; what comes from outside may ask for the catalogue."""
        named = ((preference, PREFERENCES), ("text" if relevance == AUTO else relevance, RELEVANCE_NEEDS))
        fields = [known.get(choice, "catalogue") for choice, known in named if isinstance(choice, str)]
        return tuple(dict.fromkeys(fields))

    def explain(self, episodes: Episodes, rollouts: Rollouts) -> dict[str, np.ndarray]:
        """What the reward is made of, each (B, G) float32: relevance, preference, passed (share of items that pass the
        gate), gated (equation 6) and reward (with equation 7, if on). Means over invalid candidates need ``valid``."""
        shape = rollouts.items.shape
        items = rollouts.items.reshape(shape[0], -1)
        relevance = self.relevance(episodes.history, items).reshape(shape)
        preference = self.preference.score(episodes.history, items).reshape(shape)
        _refuse_nan("relevance", relevance, rollouts)
        _refuse_nan("preference", preference, rollouts)
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


def _refuse_nan(name: str, values: np.ndarray, rollouts: Rollouts) -> None:
    """Raises ``ValueError`` for NaN (B, G, C) at an item of a valid candidate: a closed gate would hide it."""
    wrong = np.argwhere(np.isnan(values) & (rollouts.items != PAD_ITEM) & rollouts.valid[:, :, None])
    if len(wrong):
        row, candidate, place = wrong[0].tolist()
        raise ValueError(
            f"reward 'gated': the {name} of item {rollouts.items[row, candidate, place]} (candidate {candidate}) is "
            "nan; expected a number for every item, so mend the model or the embeddings it comes from"
        )


def preference_model(choice: str | PreferenceModel, context: RewardContext) -> PreferenceModel:
    """The model that ``GatedPreference``'s argument means. Raises ``ValueError`` where it has no ``score``."""
    if isinstance(choice, str) and choice in PREFERENCES:
        return context.require(PREFERENCES[choice], "gated")
    found: Any = resolve("preference model", choice, PREFERENCES) if isinstance(choice, str) else choice
    if isinstance(found, type) or (callable(found) and not hasattr(found, "score")):
        found = found(context)
    if not callable(getattr(found, "score", None)):
        raise ValueError(
            f"reward 'gated': preference {choice!r} must have score(history, items) -> (contexts, items) in [0, 1], or "
            f"make such an object from a RewardContext; got {type(found).__name__}"
        )
    return found


class TruePreferenceReward:
    """The simulator's own probability of engagement: an oracle for tests and upper bounds, never a training signal.

    Reads the shopper's latent taste at hand (``Episodes.taste``, which simulated sessions have), else the taste at the
    target's row of the simulated log (``Episodes.event``). The mean over the items of a shared SID.
    """

    requires = ("truth",)

    def __init__(self, context: RewardContext) -> None:
        self.truth: TruePreference = context.require("truth", "true_preference")

    def __call__(self, episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
        """(B, G) float32 in [0, 1]."""
        shape = rollouts.items.shape
        items = np.maximum(rollouts.items, 0).reshape(shape[0], -1)
        if episodes.taste is not None:
            values = self.truth.preference_of_states(episodes.taste, items)
        elif episodes.event is not None:
            values = self.truth.preference(episodes.event, items)
        else:
            raise ValueError(
                "reward 'true_preference' needs Episodes.event, the target's row in the simulated log, or "
                "Episodes.taste, the shopper's taste in a simulated session; these contexts have neither"
            )
        return mean_over_items(np.asarray(values).reshape(shape), rollouts.items).astype(np.float32)
