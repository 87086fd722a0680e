"""Figures of the table of baselines: of one fit, over seeds, against our model, and beside what is published.

Left out: fitting and choosing (``baselines_table``), and what a list may hold (``lists``).

Symbols: B contexts, K places of a list, N items.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sidgym.benchmarks.baseline_settings import LEAVE_OUT, PUBLISHED
from sidgym.benchmarks.baselines.lists import allowed_places
from sidgym.benchmarks.comparisons import compare
from sidgym.benchmarks.own_models import OWN
from sidgym.envs.metrics import coverage, rank_metrics
from sidgym.envs.records import Episodes
from sidgym.envs.segments import by_segment, exposure
from sidgym.envs.statistics import bootstrap_mean

DEPTH = 50
"""Places of a list."""
KS = (5, 10, 50)
METRICS = {f"{ours}@{k}": f"{theirs}@{k}" for ours, theirs in (("r", "hr"), ("n", "ndcg")) for k in KS}
"""Recall and NDCG as the papers name them; with one target recall is the hit rate."""
ROW = ("r@5", "r@10", "n@5", "n@10")
"""Metrics of a row of ``PUBLISHED``."""
MARGINS = ("r@10", "n@10", "r@50")
RESAMPLES = 2000


def figures(lists: np.ndarray, test: Episodes, counts: np.ndarray, repeats: bool) -> dict[str, Any]:
    """Test figures of ranked items (B, K), and one value a user of each metric; ``repeats`` as in ``lists``."""
    kept = allowed_places(lists, test.history, DEPTH, repeats)
    found = rank_metrics(kept, test.target, KS)
    with_history = rank_metrics(lists, test.target, KS[:2])
    values = {name: found[key] for name, key in METRICS.items()}
    return {
        **{name: float(value.mean()) for name, value in values.items()},
        "repeats": repeats,
        "allowed": {name: float(with_history[METRICS[name]].mean()) for name in ROW},
        "segments": by_segment({name: values[name] for name in ("r@10", "n@10")}, test, counts),
        "exposure@10": exposure(kept, counts, 10),
        "coverage@10": float(coverage(kept, len(counts), 10)),
        "per_user": {name: value.tolist() for name, value in values.items()},
    }


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, intervals over users of their mean, and the spread over seeds."""
    users = {name: np.mean([seed["per_user"][name] for seed in seeds], axis=0) for name in METRICS}
    means = np.array([[seed[name] for name in METRICS] for seed in seeds])
    return {
        **{name: bootstrap_mean(values, RESAMPLES, 0) for name, values in users.items()},
        "sd_over_seeds": dict(zip(METRICS, means.std(axis=0, ddof=1).tolist())) if len(seeds) > 1 else None,
        "repeats": seeds[0]["repeats"],
        "allowed": {name: float(np.mean([seed["allowed"][name] for seed in seeds])) for name in ROW},
        "parameters": seeds[0]["fit"].get("parameters"),
        "per_seed": [{name: value for name, value in seed.items() if name != "per_user"} for seed in seeds],
    }


def margins_of(per_user: Mapping[str, Mapping[int, Any]], valid: Mapping[str, float]) -> dict[str, Any] | None:
    """Our best system, by validation, against the baseline that validates best and against all others.

    ``{"ours", "baseline", "pairs"}``: differences ours minus theirs over users and seeds (``comparisons.compare``),
    corrected over all baselines of a metric. None where one of both kinds is missing.
    """
    own, others = ([name for name in per_user if (name in OWN) == which] for which in (True, False))
    if not own or not others:
        return None
    ours, best = (max(names, key=lambda name: valid[name]) for names in (own, others))
    pairs = []
    for metric in MARGINS:
        values = {name: {seed: np.asarray(part[metric]) for seed, part in per_user[name].items()}
                  for name in (ours, *others)}  # fmt: skip
        pairs += compare(values, metric, same_users=True, resamples=RESAMPLES, against=ours)
    return {"ours": ours, "baseline": best, "pairs": pairs}


def beside_published(store: str, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Published rows of Beauty, ours over theirs under both rules, and whether R@10 and N@10 lie within 10 % of each.

    ``ratio`` has ``left_out`` and ``allowed``: items of the history in our lists or not. ``matches`` names the rules
    under which both metrics are within 10 %, ``within_10_percent`` says whether any is. Of TIGER's table 1 the rows of
    GRU4Rec, SASRec, Caser and BERT4Rec are taken over from S3-Rec's, whose code leaves the history out
    (``their_rule``); of TIGER's own row and of OneRec-Think's table it is not known.
    """
    rows = {source: table[name] for source, table in PUBLISHED.items() if name in table and store == "beauty"}
    ours = {"left_out": {metric: found[metric]["mean"] for metric in ROW}, "allowed": found["allowed"]}
    if found["repeats"]:
        del ours["left_out"]
    out: dict[str, Any] = {}
    for source, row in rows.items():
        ratio = {rule: {metric: values[metric] / theirs for metric, theirs in zip(ROW, row)}
                 for rule, values in ours.items()}  # fmt: skip
        matches = [
            rule for rule, one in ratio.items() if all(abs(one[metric] - 1) <= 0.1 for metric in ("r@10", "n@10"))
        ]
        out[source] = {
            "figures": dict(zip(ROW, row)),
            "ratio": ratio,
            "matches": matches,
            "within_10_percent": bool(matches),
            "their_rule": "left_out" if name in LEAVE_OUT.get(source, ()) else "unknown",
        }
    return out
