"""``benchmarks/RESULTS.md``, made from the stored results and never typed by hand.

    python -m sidgym.benchmarks.results_page --write benchmarks/RESULTS.md
    python -m sidgym.benchmarks.results_page --take variants_scientific runs/bench-variants-full/summary.json

A section a stored result: the command that made it, seeds, machine and commit as far as they are stored, and its
tables; a result that is not there is left out. ``--take`` stores a contest's summary under a name (behind an underscore
the data set where that is not the simulator), the paths of its data replaced. The last line printed is one JSON object.
Left out: tables of other pages (``tables``, ``algorithm_tables``), and running anything.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sidgym.benchmarks.arms_tables import grid, pairs, results
from sidgym.benchmarks.claims import claims_table, judge_all, of
from sidgym.benchmarks.script import main, processors
from sidgym.benchmarks.systems_summary import pairs_table, systems_table

RESULTS = Path(__file__).resolve().parent / "results"
ARMS = ("variants", "sampling", "rewards", "normalise")
"""Contests of arms from one start, in the page's order."""
SYSTEMS = ("scaling", "transfer")
DATA = {"": "the simulated store", "scientific": "Amazon Industrial & Scientific", "beauty": "Amazon Beauty"}
METRICS = ("loss", "nll", "preference@10", "ndcg@10", "hr@10")

Stored = Mapping[str, Mapping[str, Any]]


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Name -> stored result, by name. Raises ``ValueError`` for a file that holds no JSON object."""
    out = {}
    for path in sorted(folder.glob("*.json")):
        try:
            out[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} holds no JSON: {error}; store the result again") from error
        if not isinstance(out[path.stem], dict):
            raise ValueError(f"{path}: expected a JSON object, got {type(out[path.stem]).__name__}")
    return out


def page(stored: Stored) -> str:
    """The whole page."""
    contests = contests_in(stored)
    parts = [
        "# Results",
        "Made from `benchmarks/results/*.json` by `python -m sidgym.benchmarks.results_page --write "
        "benchmarks/RESULTS.md`. Every number stands under the one command and configuration that gave it; intervals "
        "are 95 %, over users and seeds unless it says otherwise. `docs/benchmarks.md` says what is tested how.",
        "## What the papers claim",
        "Reproduced: shown by a test or an interval. A difference that is not shown, whichever way it points, is not "
        "reproduced. Ours are small models from random weights on one machine; the papers' are not.",
        claims_table(judge_all(contests)),
    ]
    for benchmark in (*ARMS, *SYSTEMS):
        for name in (name for name, one in contests.items() if of(one, benchmark)):
            parts += section(name, contests[name])
    parts += baselines(stored.get("baselines"))
    parts += ["## Everything else that is stored", others({n: o for n, o in stored.items() if n not in contests})]
    return "\n\n".join(part for part in parts if part) + "\n"


def contests_in(stored: Stored) -> dict[str, Mapping[str, Any]]:
    """The results that are summaries of contests."""
    return {name: one for name, one in stored.items() if any(of(one, kind) for kind in (*ARMS, *SYSTEMS))}


def section(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    """One contest: what made it, what it says, its tables."""
    data = DATA.get(name.rpartition("_")[2], DATA[""])
    yield f"## {result['title']}: {data}"
    yield made_by(result)
    yield "\n".join(f"- {text}" for _, text in result["verdict"])
    if "objectives" in result:
        yield results(result)
        yield pairs(result)
    else:
        heads = {"parameters": "parameters"} if of(result, "scaling") else {}
        yield systems_table(result, METRICS, heads)
        yield pairs_table(result)
    yield "\n".join(f"- {note}" for note in result.get("notes", ()))


def made_by(result: Mapping[str, Any]) -> str:
    """Command, seeds, machine, versions, commit: as far as they are stored."""
    script = RESULTS.parent / f"{result.get('benchmark', '')}.py"
    told = [f"`{result['command']}`"] if result.get("command") else []
    told += [f"`benchmarks/{script.name}`"] if not told and script.is_file() else []
    seeds = result.get("seeds")
    if seeds:
        told.append(f"seeds {', '.join(map(str, seeds))}" if isinstance(seeds, list) else f"{seeds} seeds")
    if result.get("n_users"):
        told.append(f"{result['n_users']:,} test users")
    told.append(machine_of(result))
    if result.get("setting"):
        told.append(f"setting {result['setting']}")
    if result.get("commit"):
        told.append(f"commit {result['commit']}")
    return "; ".join(part for part in told if part) + "."


def machine_of(result: Mapping[str, Any]) -> str:
    """The machine in words; "" where it was not stored."""
    if isinstance(result.get("machine"), str):
        return result["machine"]
    known = result.get("environment") or {}
    if not known.get("cpu_count"):
        return ""
    versions = known.get("packages") or {}
    torch = f", torch {versions['torch']}" if versions.get("torch") else ""
    return f"{processors(known['cpu_count'], known.get('machine', ''))}{torch}"


def baselines(result: Mapping[str, Any] | None) -> Iterator[str]:
    """The table of baselines by data set, published figures beside them."""
    if not result:
        return
    yield "## Baselines"
    yield made_by(result)
    for store, rows in result["stores"].items():
        cells = {}
        for name, row in rows.items():
            published = "; ".join(
                f"{source} {' '.join(f'{v:.4f}' for v in one['figures'].values())}"
                for source, one in (row.get("published") or {}).items()
            )
            known = [_spread(row.get(metric)) for metric in ("r@5", "r@10", "n@5", "n@10")]
            cells[name] = [*known, published or "–", row.get("differs") or "–"]
        yield f"### {store}"
        yield grid(["R@5", "R@10", "N@5", "N@10", "published (R@5 R@10 N@5 N@10)", "why it differs"], cells)


def _spread(value: Any) -> str:
    if not isinstance(value, Mapping):
        return "–" if value is None else f"{value:.4f}"
    ends = f" [{value['low']:.4f}, {value['high']:.4f}]" if "low" in value else ""
    return f"{value['mean']:.4f}{ends}"


def others(stored: Stored) -> str:
    """What else is stored: command, seeds, machine."""
    rows = {f"`{name}.json`": [made_by(one).rstrip(".") or "–"] for name, one in stored.items() if name != "baselines"}
    return grid(["made by"], rows) if rows else ""


def take(name: str, summary: Path, folder: Path = RESULTS) -> Path:
    """Stores a contest's ``summary.json`` as ``name.json``; the paths of raw data become DATA, as in its command.

    Raises ``ValueError`` for a file that is no contest's summary, and for a name under which another result lies.
    """
    text, out = summary.read_text(encoding="utf-8"), folder / f"{name}.json"
    if not contests_in({name: json.loads(text)}):
        raise ValueError(f"--take: expected the summary.json of 'sidgym bench', {summary} is none")
    if out.exists() and not contests_in({name: json.loads(out.read_text(encoding="utf-8"))}):
        raise ValueError(f"--take: {out} is another benchmark's result; take another name, such as {name}_contest")
    for number, path in enumerate(sorted(_paths(json.loads(text)), key=len, reverse=True)):
        text = text.replace(json.dumps(path)[1:-1], "DATA" if number == 0 else f"DATA{number + 1}")
    out.write_text(json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return out


def _paths(summary: Mapping[str, Any]) -> set[str]:
    """Paths of raw data that the configuration or the command names."""
    found = set(re.findall(r'^path = "([^"]+)"', summary.get("config", ""), flags=re.M))
    found |= set(re.findall(r"--(?:data\.path|second-path)[ =](\S+)", summary.get("command", "")))
    return {path for path in found if "/" in path}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Stores what is to be taken, writes the page; what it holds."""
    if options.take:
        take(options.take[0], Path(options.take[1]))
    stored = read_results()
    text = page(stored)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    counts = [row["status"] for row in judge_all(contests_in(stored))]
    claims = {status: counts.count(status) for status in sorted(set(counts))}
    return {"results": sorted(stored), "claims": claims, "lines": text.count("\n")}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--write", type=Path, help="the page to write, such as benchmarks/RESULTS.md")
    parser.add_argument("--take", nargs=2, metavar=("NAME", "SUMMARY"), help="first store a contest's summary.json")


if __name__ == "__main__":
    main("results_page", __doc__ or "", measure, add_options=add_options)
