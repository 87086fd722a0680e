"""What the README says of contests: the objectives' verdict, and the papers' claims store by store.

Made from the stored results and never typed by hand. Left out: the figures behind it (``results_page``), and how a
claim is judged (``claims``).
"""

from collections.abc import Mapping
from typing import Any

from sidgym.benchmarks.arms_tables import grid
from sidgym.benchmarks.arms_words import headline
from sidgym.benchmarks.claims import judge_all
from sidgym.benchmarks.results_page import DATA, STORE, contests_in, data_of, data_words, machine_of


def contests(stored: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Paragraphs: objectives on the simulated store, and the claims."""
    found = contests_in(stored)
    shown = found["variants"]
    made = f"`{shown['command']}`; {shown['n_users']:,} test users, {len(shown['seeds'])} seeds; {machine_of(shown)}"
    known = {name: store_of(result) for name, result in found.items()}
    simulated = data_words([STORE])
    stores = [store for store in (simulated, *DATA.values()) if store in known.values()]
    cells: dict[str, dict[str, str]] = {}
    for row in judge_all(found):
        store = known.get(row["result"], simulated)
        cells.setdefault(f"{row['claim']} ({row['source']})", {})[store] = row["status"]
    rows = {claim: [by_store.get(store, "–") for store in stores] for claim, by_store in cells.items()}
    return [
        f"**Contests** ({made}). {' '.join(headline(shown))}",
        "What the papers claim, and what was found with small models from random weights; figures and intervals are in "
        "`benchmarks/RESULTS.md`:",
        grid(stores, rows),
    ]


def store_of(result: Mapping[str, Any]) -> str:
    """The log that a stored contest learns from, in words."""
    return data_words((result.get("data") or data_of(result))[:1])
