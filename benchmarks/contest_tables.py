"""What the README says of contests: the objectives' verdict, and the papers' claims store by store.

Made from the stored results and never typed by hand. Left out: the figures behind it (``results_page``), and how a
claim is judged (``claims``).
"""

from collections.abc import Mapping
from typing import Any

from sidgym.benchmarks.arms_tables import grid
from sidgym.benchmarks.claims import judge_all
from sidgym.benchmarks.results_page import DATA, contests_in, machine_of

SIMULATED = "the simulated store"


def contests(stored: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Paragraphs: objectives on the simulated store, and the claims."""
    found = contests_in(stored)
    shown = found["variants"]
    made = f"`{shown['command']}`; {shown['n_users']:,} test users, {len(shown['seeds'])} seeds; {machine_of(shown)}"
    stores = [SIMULATED, *(data for data in DATA.values() if any(store_of(name) == data for name in found))]
    cells: dict[str, dict[str, str]] = {}
    for row in judge_all(found):
        store = store_of(row["result"]) if row["result"] else SIMULATED
        cells.setdefault(f"{row['claim']} ({row['source']})", {})[store] = row["status"]
    rows = {claim: [by_store.get(store, "–") for store in stores] for claim, by_store in cells.items()}
    return [
        f"**Contests** ({made}). {sentences(shown)}",
        "What the papers claim, and what was found with small models from random weights; figures and intervals are in "
        "`benchmarks/RESULTS.md`:",
        grid(stores, rows),
    ]


def sentences(summary: Mapping[str, Any]) -> str:
    """Of the verdict: who is best, who is above the start, and who finds less of what users took next."""
    begin = ("No ", "Shown to be above SFT", "What users took next")
    return " ".join(text for _, text in summary["verdict"] if text.startswith(begin) or " is best in " in text)


def store_of(name: str) -> str:
    """The log of a stored contest, by its name."""
    return next((data for word, data in DATA.items() if word in name), SIMULATED)
