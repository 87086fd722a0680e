"""The gate's threshold, chosen on validation users, and what the gate lets pass and rejects.

A gate costs what users did want and it rejects, and it saves from what a preference model praises where it has seen
nothing. The first can be counted in a log, the second cannot: logs hold what an older recommender showed. So the
threshold is the highest that still lets pass almost all (``keep``) of what validation users took next; it is chosen by
the log alone and by no simulator's truth. Left out: what relevance is (``relevance``), the reward itself
(``reward_preference``).

Symbols: B contexts, M targets, K items asked, N items.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.envs.records import CLICK, PAD_ITEM, Episodes
from sidgym.envs.relevance import (
    RELEVANCE_NEEDS,
    Classifier,
    Relevance,
    items_of,
    relevance_function,
)
from sidgym.envs.reward_context import PreferenceModel, RewardContext
from sidgym.sid.registry import resolve
from sidgym.sid.table import write_atomically

FILE = "gate.json"
"""Beside the preference model that the gate stands before."""
SCHEMA_VERSION = 1
KEEP = 0.98
"""Share of what validation users took next that a chosen threshold lets pass."""
JUST_BELOW = 0.01
"""How far a threshold stands below the lowest relevance where nothing may be rejected."""

RANDOM_ITEMS = 20
"""Items drawn uniformly for each context that a gate is judged by."""
CANDIDATES, FAVOURITES = 500, 10
"""Of so many random items for each context, so many that the preference model praises most."""
CONTEXTS = 200
"""Contexts whose favourites are looked at, at most."""
ROWS = 16
"""Contexts worked on at once."""
SHOWN_EXAMPLES = 12
"""Rejected items that a report names, at most."""


@dataclass(frozen=True)
class Gate:
    """Which relevance a gate asks, and from which threshold on it lets pass."""

    relevance: str  # name in RELEVANCES, or package.module:name
    taus: Mapping[str, float]  # relevance -> threshold
    classifier: Classifier | None = None  # for "learned"

    def threshold(self, relevance: Any) -> float:
        """The threshold for a relevance by name. Raises ``ValueError`` where none was chosen for it."""
        if isinstance(relevance, str) and relevance in self.taus:
            return self.taus[relevance]
        raise ValueError(
            f"reward 'gated': no threshold was chosen for relevance {relevance!r}, only for "
            f"{', '.join(sorted(self.taus))}; give the reward a tau, or set preference.relevance to it"
        )

    def save(self, directory: str | Path) -> None:
        """Write ``gate.json`` into ``directory``."""
        told = {"schema_version": SCHEMA_VERSION, "relevance": self.relevance, "taus": dict(self.taus)}
        told["classifier"] = self.classifier.to_json() if self.classifier else None
        write_atomically(Path(directory) / FILE, json.dumps(told, indent=1, allow_nan=False).encode())

    @classmethod
    def load(cls, directory: str | Path) -> "Gate | None":
        """What ``save`` wrote, None where there is no gate. Raises ``ValueError`` for another schema version."""
        path = Path(directory) / FILE
        if not path.exists():
            return None
        told = json.loads(path.read_text())
        if told.get("schema_version") != SCHEMA_VERSION:
            found = told.get("schema_version")
            raise ValueError(f"{path}: expected schema_version {SCHEMA_VERSION}, got {found}; fit the preference again")
        classifier = Classifier.from_json(told["classifier"]) if told["classifier"] else None
        return cls(told["relevance"], told["taus"], classifier)


def choose_tau(relevance: np.ndarray, keep: float = KEEP) -> float:
    """The highest threshold that a share ``keep`` of the targets' relevances (P,) still exceed.

    It lies half-way between the lowest relevance that passes and the highest that does not, and ``JUST_BELOW`` the
    lowest where all have to pass. Raises ``ValueError`` without targets, for one that is not finite and for
    ``keep`` outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"choose_tau: expected keep above 0 and at most 1, got {keep}")
    values = np.sort(np.asarray(relevance, dtype=np.float32).reshape(-1))
    if not len(values) or not np.isfinite(values).all():
        what = "NaN or an infinity among them" if len(values) else "none"
        raise ValueError(f"choose_tau: expected the relevance of validation targets, got {what}")
    # Rounded: 0.02 * 50 must be 1, and 1 - 0.98 is a little less than 0.02.
    lowest = values[min(int(np.floor(round((1 - keep) * len(values), 9))), len(values) - 1)]
    below = values[values < lowest]
    tau = np.float32((float(lowest) + float(below[-1])) / 2 if len(below) else float(lowest) - JUST_BELOW)
    if tau < lowest:
        return float(tau)
    # Where float32 has nothing between the two the lower one itself is the threshold: passing means to exceed it.
    return float(below[-1] if len(below) else np.nextafter(lowest, np.float32(-np.inf)))


def target_relevance(relevance: Relevance, valid: Episodes) -> np.ndarray:
    """Relevance of what validation users took next, all of D+ where they have a history. (P,)."""
    usable = (valid.targets != PAD_ITEM) & (valid.history != PAD_ITEM).any(axis=1, keepdims=True)
    return asked(relevance, valid.history, valid.targets)[usable]


def asked(function: Relevance, history: np.ndarray, items: np.ndarray) -> np.ndarray:
    """A relevance or score of items (B, K), some contexts at a time; (B, K) float."""
    starts = range(0, len(items), ROWS)
    parts = [np.asarray(function(history[a : a + ROWS], items[a : a + ROWS])) for a in starts]
    return np.concatenate(parts) if parts else np.zeros(items.shape)


def choose_gate(
    context: RewardContext,
    valid: Episodes,
    relevance: str = "text",
    tau: float | str = "auto",
    keep: float = KEEP,
    classifier: Classifier | None = None,
) -> Gate:
    """A threshold for every relevance that ``context`` allows, the given or chosen one for ``relevance``.

    Raises ``ValueError`` where ``relevance`` needs what the run does not have.
    """
    gate = Gate(relevance, {}, classifier)
    context = replace(context, gate=gate)
    known = [name for name, need in RELEVANCE_NEEDS.items() if getattr(context, need) is not None]
    known = [name for name in known if name != "learned" or classifier is not None]
    taus: dict[str, float] = {}
    for name in dict.fromkeys([relevance, *known]):
        if name == relevance and not isinstance(tau, str):
            relevance_function(name, context)  # says what is missing
            taus[name] = float(tau)
        else:
            taus[name] = choose_tau(target_relevance(relevance_function(name, context), valid), keep)
    return replace(gate, taus=taus)


# What a gate does ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Items that a gate is shown, by where they come from: relevance and preference of each, and which are real."""

    items: dict[str, np.ndarray]  # (B', K) each
    relevance: dict[str, np.ndarray]
    preference: dict[str, np.ndarray]
    rows: dict[str, np.ndarray] = field(default_factory=dict)  # (B',) rows of the contexts

    def flat(self, kind: str, name: str) -> np.ndarray:
        """Values ``name`` of the real items of a kind, end to end."""
        return getattr(self, name)[kind][self.items[kind] != PAD_ITEM]


def judge_gate(
    context: RewardContext, gate: Gate, model: PreferenceModel, valid: Episodes, seed: int, keep: float = KEEP
) -> dict[str, Any]:
    """What the gate passes and rejects for validation users, as JSON values.

    ``pass_rate`` of ``targets`` (what they took next), ``random`` items, ``ignored`` ones (shown and not taken, where
    the log tells) and ``favourites`` (what the model praises most among random items: where a policy is drawn to);
    ``preference`` of the favourites that pass and of those that do not; ``curve`` over thresholds; ``by_popularity``,
    the pass rate of random items from the rarest quarter of the catalogue to the most popular one; ``others``, the
    same rates of every other relevance at its own threshold; ``rejected`` favourites and ``lost`` targets by example;
    ``model``, how well the scores tell what validation users took from what they did not.
    """
    valid = valid.take(np.flatnonzero((valid.history != PAD_ITEM).any(axis=1)))
    context = replace(context, gate=gate)
    rng = np.random.default_rng([seed, 6])
    judged = _judged(context, gate, model, valid, rng)
    tau = gate.threshold(gate.relevance)
    kinds = list(judged.items)
    rates = {kind: _rate(judged.flat(kind, "relevance"), tau) for kind in kinds}
    best = judged.flat("favourites", "relevance") > tau
    praise = judged.flat("favourites", "preference")
    return {
        "relevance": gate.relevance,
        "tau": tau,
        "keep": keep,
        "contexts": len(valid),
        "counts": {kind: int((judged.items[kind] != PAD_ITEM).sum()) for kind in kinds},
        "pass_rate": rates,
        "preference": {"passed": _mean(praise[best]), "rejected": _mean(praise[~best])},
        "curve": _curve(judged, tau),
        "by_popularity": _by_popularity(judged, tau, context.popularity),
        "others": _others(context, gate, valid, judged),
        "rejected": _examples(judged, valid, "favourites", tau, "preference"),
        "lost": _examples(judged, valid, "targets", tau, "relevance"),
        "model": _model_figures(judged),
    }


def _judged(
    context: RewardContext, gate: Gate, model: PreferenceModel, valid: Episodes, rng: np.random.Generator
) -> Judged:
    relevance = relevance_function(gate.relevance, context)
    count, every = items_of(context), np.arange(len(valid))
    some = np.sort(rng.permutation(len(valid))[:CONTEXTS])
    items = {"targets": valid.targets, "random": rng.integers(0, count, size=(len(valid), RANDOM_ITEMS))}
    rows = {"targets": every, "random": every, "favourites": some}
    if valid.page is not None and valid.feedback is not None:
        items["ignored"] = np.where(valid.feedback < CLICK, valid.page, PAD_ITEM)
        rows["ignored"] = every
    drawn = rng.integers(0, count, size=(len(some), min(CANDIDATES, count)))
    praise = asked(model.score, valid.history[some], drawn)
    top = np.argsort(-praise, axis=1, kind="stable")[:, :FAVOURITES]
    items["favourites"] = np.take_along_axis(drawn, top, axis=1)
    values, praises = {}, {}
    for kind, shown in items.items():
        past = valid.history[rows[kind]]
        values[kind], praises[kind] = asked(relevance, past, shown), asked(model.score, past, shown)
    return Judged(items, values, praises, rows)


def _rate(relevance: np.ndarray, tau: float) -> float | None:
    return float((relevance > tau).mean()) if len(relevance) else None


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _curve(judged: Judged, tau: float, points: int = 40) -> list[dict[str, float | None]]:
    """Pass rates of every kind over thresholds from the least to the largest relevance."""
    everything = np.concatenate([judged.flat(kind, "relevance") for kind in judged.items])
    grid = np.quantile(everything, np.linspace(0, 1, points)) if len(everything) else np.zeros(0)
    grid = np.unique(np.append(grid, tau).astype(np.float32))
    return [
        {"tau": float(t), **{kind: _rate(judged.flat(kind, "relevance"), float(t)) for kind in judged.items}}
        for t in grid
    ]


def _by_popularity(judged: Judged, tau: float, popularity: np.ndarray | None) -> list[dict[str, float | None]]:
    if popularity is None:
        return []
    # Equal counts are ordered by item: every quarter has as many items.
    order = np.argsort(popularity, kind="stable")
    quarter = np.empty(len(order), dtype=np.int64)
    quarter[order] = np.arange(len(order)) * 4 // len(order)
    items, relevance = judged.flat("random", "items"), judged.flat("random", "relevance")
    preference = judged.flat("random", "preference")
    out = []
    for number in range(4):
        inside = quarter[items] == number
        passed = _rate(relevance[inside], tau)
        out.append({"quarter": number + 1, "pass_rate": passed, "preference": _mean(preference[inside])})
    return out


def _others(context: RewardContext, gate: Gate, valid: Episodes, judged: Judged) -> list[dict[str, Any]]:
    """Pass rates of every relevance that has a threshold, at its own; the one in use comes first."""
    out = []
    for name, tau in sorted(gate.taus.items(), key=lambda pair: (pair[0] != gate.relevance, pair[0])):
        function, rates = relevance_function(name, context), {}
        for kind, items in judged.items.items():
            values = asked(function, valid.history[judged.rows[kind]], items)[items != PAD_ITEM]
            rates[kind] = _rate(values, tau)
        out.append({"relevance": name, "tau": tau, "pass_rate": rates})
    return out


def _examples(judged: Judged, valid: Episodes, kind: str, tau: float, by: str) -> list[dict[str, Any]]:
    """Rejected items of a kind, at most one a context: those of the highest preference, or of the lowest relevance."""
    items, relevance, preference = judged.items[kind], judged.relevance[kind], judged.preference[kind]
    closed = (items != PAD_ITEM) & (relevance <= tau)
    value = np.where(closed, preference if by == "preference" else -relevance, -np.inf)
    place = value.argmax(axis=1)
    rows = np.flatnonzero(closed.any(axis=1))
    rows = rows[np.argsort(-value[rows, place[rows]], kind="stable")][:SHOWN_EXAMPLES]
    out = []
    for row in rows.tolist():
        at, context = place[row], int(judged.rows[kind][row])
        past = valid.history[context]
        out.append(
            {
                "user": int(valid.user[context]),
                "history": past[past != PAD_ITEM][-5:].tolist(),
                "item": int(items[row, at]),
                "relevance": float(relevance[row, at]),
                "preference": float(preference[row, at]),
            }
        )
    return out


def _model_figures(judged: Judged) -> dict[str, Any]:
    """AUC of the scores on validation users: what they took against what they were shown, else against random items."""
    from sidgym.envs.preference import evaluate_probabilities

    against = "ignored" if "ignored" in judged.items else "random"
    taken, others = judged.flat("targets", "preference"), judged.flat(against, "preference")
    told = evaluate_probabilities(np.append(taken, others), np.arange(len(taken) + len(others)) < len(taken))
    return {"against": against, "auc": told["auc"], "rows": told["valid_rows"]}


def check_gate(relevance: str, tau: float | str, keep: float, names: Sequence[str]) -> None:
    """Settings of a gate, before there is anything to choose by. Raises ``ValueError``.

    ``names``: the built-in relevances, whose values lie in [-1, 1].
    """
    resolve("relevance", relevance, dict.fromkeys(names))
    if isinstance(tau, str) and tau != "auto":
        raise ValueError(f"preference.tau: expected 'auto' or a number, got {tau!r}")
    if not isinstance(tau, str) and relevance in names and not -1 <= tau < 1:
        does = "lets nothing pass" if tau >= 1 else "lets everything pass"
        raise ValueError(
            f"preference.tau: expected 'auto', or at least -1 and below 1 for relevance {relevance!r}, got {tau}, "
            f"which {does}; a gate that is always open is gate = false among the args of the reward 'gated'"
        )
    if not 0 < keep <= 1:
        raise ValueError(f"preference.keep: expected more than 0 and at most 1, got {keep}")
