"""What the README says of contests: our policy beside baselines, the objectives' verdict, the papers' claims by store.

Made from the stored results and never typed by hand. Left out: the figures behind it (``results_page``), and how a
claim is judged (``claims``).
"""

from collections.abc import Mapping
from typing import Any

from sidgym.benchmarks.arms_tables import grid, interval_cell
from sidgym.benchmarks.arms_words import headline
from sidgym.benchmarks.claims import judge_all, status_words
from sidgym.benchmarks.comparisons import shown
from sidgym.benchmarks.results_page import BESIDE, DATA, STORE, contests_in, data_of, data_words, machine_of

SYSTEMS = {
    "popularity": "popularity",
    "cooccurrence": "last-item co-occurrence",
    "item_knn": "item-kNN",
    "gru4rec": "GRU4Rec",
    "caser": "Caser",
    "sasrec_sampled": "SASRec, its paper's sampled loss",
    "sasrec": "SASRec, softmax over all items",
    "bert4rec": "BERT4Rec",
    "hstu": "HSTU",
    "tiger": "TIGER",
    "sid_policy": "**SFT over SIDs**",
}
"""Systems of the table of baselines, in its order."""


def beside_baselines(result: Mapping[str, Any] | None) -> list[str]:
    """Paragraphs: baselines and our policy on every log, and how far ours is from the best; none without a result."""
    if not result:
        return []
    stores = {store: data_words([store]) for store in result["stores"]}
    tables = result["stores"].values()
    known = [name for name in SYSTEMS if any(name in rows for rows in tables)]
    cells = {SYSTEMS[name]: [_mean(rows.get(name), metric) for rows in tables for metric in BESIDE] for name in known}
    heads = [f"{head}, {words}" for words in stores.values() for head in BESIDE.values()]
    made = f"`{result['command']}`; {len(result['seeds'])} seeds; {machine_of(result)}"
    margins = [_margin(stores[store], found) for store, found in result["margins"].items() if found]
    tuned = result.get("settings_of")
    where = f" of {data_words([tuned])}, whose best setting every log takes" if tuned else ""
    return [
        f"**Baselines** ({made}), leave-one-out, by item over the whole catalogue, each with {result['trials']} trials "
        f"on validation{where}; `benchmarks/RESULTS.md` has the figures that others report:",
        grid(heads, cells),
        "\n".join(margins),
        "Intervals are 95 % over users and seeds; not shown: not after correction over all baselines of a metric."
        if margins
        else "",
    ]


def _mean(row: Mapping[str, Any] | None, metric: str) -> str:
    return f"{row[metric]['mean']:.4f}" if row else "–"


def _margin(store: str, found: Mapping[str, Any]) -> str:
    """Our best system against the baseline that validates best, each metric with its interval."""
    pairs = {pair["metric"]: pair for pair in found["pairs"] if pair["b"] == found["baseline"]}
    told = [
        f"{head} {interval_cell(pairs[metric])}{'' if shown(pairs[metric]) else ' (not shown)'}"
        for metric, head in BESIDE.items()
        if metric in pairs
    ]
    return f"- {store}, ours minus {SYSTEMS[found['baseline']]}, the baseline that validates best: {'; '.join(told)}"


def contests(stored: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Paragraphs: objectives on the simulated store, and the claims."""
    found = contests_in(stored)
    variants = found["variants"]
    users, seeds = variants["n_users"], len(variants["seeds"])
    made = f"`{variants['command']}`; {users:,} test users, {seeds} seeds; {machine_of(variants)}"
    known = {name: store_of(result) for name, result in found.items()}
    simulated = data_words([STORE])
    cells: dict[str, dict[str, str]] = {}
    for row in judge_all(found):
        store = known.get(row["result"], simulated)
        cells.setdefault(f"{row['claim']} ({row['source']})", {})[store] = status_words(row)
    stores = [store for store in (simulated, *DATA.values()) if any(store in told for told in cells.values())]
    rows = {claim: [by_store.get(store, "–") for store in stores] for claim, by_store in cells.items()}
    return [
        f"**Contests** ({made}). {' '.join(headline(variants))}",
        "What the papers claim, and what was found with small models from random weights; figures and intervals are in "
        "`benchmarks/RESULTS.md`:",
        grid(stores, rows),
    ]


def store_of(result: Mapping[str, Any]) -> str:
    """The log that a stored contest learns from, in words."""
    return data_words((result.get("data") or data_of(result))[:1])
