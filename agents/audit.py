"""The audit of the reward: what a group's figures say about it, and whether the policy games it.

A reward is a stand-in for what users want, and a policy finds out where the two differ. ``group_figures`` describes
every group that is trained on; ``HackingMonitor`` compares the reward with held-out accuracy at each validation;
``closing_warnings`` looks back on the whole run. Left out: the reward itself (``rewards``), and how figures are drawn
(``launch.report_audit``).

Symbols as in ``records``: B contexts, G candidates a group, N items.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sidgym.envs.records import Episodes, Rollouts
from sidgym.envs.reward_context import is_member, mean_over_items
from sidgym.envs.rewards import Scores

EVALUATIONS = 3
"""Evaluations in a row, each against the one before it, that can make a warning."""
CLEAR_FALL = 3.0
"""Standard errors of the paired difference by which NDCG must have fallen over them."""
EXTREME = 0.9
"""Share of groups from which on a warning says that most groups teach nothing."""
NAMES = {"passed": "pass_rate", "preference": "raw", "gated": "gated"}
"""What the audit calls the quantities of a gated reward; others keep the reward's own name."""

ADVICE = (
    "The policy may be learning to please the reward instead of the users (reward hacking). Try a gate in front of "
    "the preference (reward 'gated', a higher tau), anchor = true, a higher rl.nll_weight or rl.kl_weight; see the "
    "audit in the report."
)
STREAK = "audit/reward_up_ndcg_down"
FIRED = "audit/reward_hacking"
"""Names in the metrics log: the monitor's count, and whether it has warned."""


def group_figures(
    scores: Scores, rollouts: Rollouts, episodes: Episodes, popularity: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Figures (B,) float64 of each group, finite everywhere, to be averaged over contexts; none without a reward.

    ``audit/all_zero``, ``audit/all_equal`` and ``audit/all_hit`` are 1 where the total of every valid candidate is 0,
    where all totals are equal, and where every candidate has an item of D+; so all-zero groups are among the all-equal
    ones. A group without a valid candidate is all-zero, and not all-hit. ``rewards/<name>/mean`` is the mean over the
    valid candidates of a term or of a ``term/component``, unweighted; the quantities that a reward explains itself by
    become ``audit/<term>/<quantity>`` alike: ``pass_rate`` of the gate, the ``raw`` preference and what is left of it
    when ``gated``, and ``gate_loss``, the difference of the two. ``audit/popularity_correlation`` is Pearson's
    correlation inside the group of the total with the log of one plus ``popularity`` (N,), a count of events (the mean
    over a candidate's items); 0 where either is constant.
    """
    if not scores.parts:
        return {}
    valid, total = rollouts.valid, np.asarray(scores.total, dtype=np.float64)
    hit = is_member(rollouts.items, episodes.targets).any(axis=-1)
    figures = {
        "audit/all_zero": ((total == 0) | ~valid).all(axis=1).astype(np.float64),
        "audit/all_equal": is_constant(total, valid).astype(np.float64),
        "audit/all_hit": ((hit | ~valid).all(axis=1) & valid.any(axis=1)).astype(np.float64),
    }
    for name, values in {**scores.parts, **scores.components}.items():
        figures[f"rewards/{name}/mean"] = _mean(values, valid)
    for name, values in scores.diagnostics.items():
        term, _, quantity = name.rpartition("/")
        figures[f"audit/{term}/{NAMES.get(quantity, quantity)}"] = _mean(values, valid)
    for term in scores.parts:
        raw, gated = (figures.get(f"audit/{term}/{quantity}") for quantity in ("raw", "gated"))
        if raw is not None and gated is not None:
            figures[f"audit/{term}/gate_loss"] = raw - gated
    if popularity is not None:
        figures["audit/popularity_correlation"] = correlation(total, log_popularity(rollouts, popularity), valid)
    return figures


def log_popularity(rollouts: Rollouts, popularity: np.ndarray) -> np.ndarray:
    """Mean of ``log(1 + popularity)`` over the items of each candidate, 0 where it has none. (B, G) float64."""
    counts = np.asarray(popularity, dtype=np.float64)[rollouts.items]
    return mean_over_items(np.log1p(counts), rollouts.items)


def correlation(left: np.ndarray, right: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Pearson's correlation of (B, G) with (B, G) over each row's valid places; 0 where a side is constant. (B,)."""
    a, b = (np.where(valid, side - _mean(side, valid)[:, None], 0.0) for side in (left, right))
    usable = ~is_constant(left, valid) & ~is_constant(right, valid)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(valid)), where=usable & (scale > 0)).clip(-1.0, 1.0)


def is_constant(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Whether the valid values of each row are equal to each other, (B,) bool."""
    return ~(np.where(valid, values, np.inf).min(axis=1) < np.where(valid, values, -np.inf).max(axis=1))


def _mean(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Mean of each row over its valid and finite values, 0 where there is none. (B,) float64."""
    usable = valid & np.isfinite(values)
    return np.where(usable, values, 0.0).sum(axis=1, dtype=np.float64) / np.maximum(usable.sum(axis=1), 1)


@dataclass
class HackingMonitor:
    """Whether the validation reward rises while held-out NDCG falls: the sign of a policy that games its reward.

    An evaluation counts when its reward is strictly above, and its NDCG strictly below, that of the evaluation before
    it; any other ends the count. One whose reward or NDCG is not finite is passed over: it neither counts nor ends a
    count, and the next is compared with the last finite one. The warning, once a run, is due after ``EVALUATIONS`` in a
    row. It says whether NDCG has fallen since the count began by more than ``CLEAR_FALL`` standard errors of the paired
    difference over the validation contexts; if not, it is a note that this may be noise (a reward that rises steadily
    and an NDCG that only trembles make one sooner or later), and the warning follows where the fall becomes clear.
    MiniOneRec (collaborative reward) and GenRec (preference without its gate) report the failure.
    """

    reward: float | None = None
    ndcg: list[float] | None = None
    """NDCG of each context at the last evaluation."""
    step: int | None = None
    streak: int = 0
    """Evaluations that count, in a row, up to the last one."""
    since: dict[str, Any] | None = None
    """Step, reward and NDCG of the evaluation that the count began from."""
    fired: int | None = None
    """Step of the warning."""
    noted: int | None = None
    """Step of the note."""

    def observe(self, step: int, reward: float, ndcg: np.ndarray) -> str:
        """Takes one evaluation, ``ndcg`` (B,) of each validation context; the warning's text where it is due, else "".

        The contexts are the same ones each time, in the same order.
        """
        ndcg = np.asarray(ndcg, dtype=np.float64)
        if not (math.isfinite(reward) and np.isfinite(ndcg).all() and len(ndcg)):
            return ""
        if self.reward is not None and reward > self.reward and ndcg.mean() < np.mean(self.ndcg or []):
            if self.since is None:
                self.since = {"step": self.step, "reward": self.reward, "ndcg": self.ndcg}
            self.streak += 1
        else:
            self.streak, self.since = 0, None
        self.reward, self.ndcg, self.step = float(reward), ndcg.tolist(), step
        if self.streak < EVALUATIONS or self.fired is not None:
            return ""
        if self.fall > CLEAR_FALL:
            self.fired = step
            return f"warning: {self._finding()}. {ADVICE}"
        if self.noted is not None:
            return ""
        self.noted = step
        return f"note: {self._finding()}, which may still be noise. If it goes on: {ADVICE}"

    @property
    def fall(self) -> float:
        """How far NDCG has fallen since the count began, in standard errors of the paired difference; 0 without one."""
        if self.since is None or self.ndcg is None:
            return 0.0
        lost = np.asarray(self.since["ndcg"]) - np.asarray(self.ndcg)
        error = float(lost.std()) / math.sqrt(len(lost))
        # Every context lost the same: as clear as can be, and still a number that JSON can hold.
        return min(float(lost.mean()) / error, 1e3) if error > 0 else 1e3

    def figures(self) -> dict[str, float]:
        """What the metrics log keeps of the last evaluation: the count, the fall, and 1 from the warning on."""
        return {STREAK: self.streak, "audit/ndcg_fall": self.fall, FIRED: float(self.fired is not None)}

    def state(self) -> dict[str, Any]:
        """Everything as JSON values: what a checkpoint keeps."""
        return asdict(self)

    @classmethod
    def restored(cls, state: Mapping[str, Any] | None) -> "HackingMonitor":
        """Inverse of ``state``; a fresh monitor for None."""
        return cls(**(state or {}))

    def _finding(self) -> str:
        before: dict[str, Any] = self.since or {}
        ndcg_before, ndcg = (float(np.mean(values)) for values in (before["ndcg"], self.ndcg or []))
        return (
            f"in {self.streak} evaluations in a row the validation reward rose while NDCG@10 fell (steps "
            f"{before['step']} to {self.step}: reward {before['reward']:.4f} to {self.reward:.4f}, NDCG@10 "
            f"{ndcg_before:.4f} to {ndcg:.4f}), by {self.fall:.1f} standard errors over the same contexts"
        )


def phase_mean(rows: Sequence[Mapping[str, Any]], key: str, last: bool) -> float | None:
    """Mean of a logged figure over the first or the last tenth (at least one) of the rows that hold it; None without.

    ``rows`` are those of a metrics log; null and NaN are passed over.
    """
    found = (row[key] for row in rows if isinstance(row.get(key), int | float))
    values = [float(value) for value in found if math.isfinite(value)]
    count = max(1, len(values) // 10)
    return float(np.mean(values[-count:] if last else values[:count])) if values else None


def closing_warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the audit has to say at the end of a run, from the rows of its metrics log: at most one line."""
    equal, zero, hit = (phase_mean(rows, f"audit/all_{kind}", last=True) for kind in ("equal", "zero", "hit"))
    if equal is None or equal <= EXTREME:
        return []
    kinds = [f"{share:.0%} {kind}" for share, kind in ((zero, "all zero"), (hit, "all hits")) if share]
    return [
        f"warning: in the last tenth of the steps {equal:.0%} of the groups gave all candidates the same reward"
        + (f" ({', '.join(kinds)})" if kinds else "")
        + ": they teach the policy nothing. A denser reward or a larger rl.group_size helps against zeros."
    ]
