"""``benchmarks/RESULTS.md``, made from the stored results and never typed by hand.

    python -m sidgym.benchmarks.results_page --write benchmarks/RESULTS.md
    python -m sidgym.benchmarks.results_page --take variants_scientific runs/bench-variants-full/summary.json

A section a stored result: the command that made it, seeds, machine and commit as far as they are stored, and its
tables; a result that is not there is left out. ``--take`` stores a contest's summary under a name that says which log
it is of, such as ``sizes_scientific``, and none for the simulator. Names of the data's folders are kept, paths are
replaced. The last line printed is one JSON object.
Left out: tables of other pages (``tables``, ``algorithm_tables``), and running anything.
"""

import argparse
import json
import shlex
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from sidgym.benchmarks import recipe_tables
from sidgym.benchmarks.arms_tables import figure_cell, grid, interval_cell, pairs, results
from sidgym.benchmarks.claims import claims_table, judge_all, of
from sidgym.benchmarks.comparisons import shown
from sidgym.benchmarks.script import main, processors
from sidgym.benchmarks.systems_summary import pairs_table, systems_table

RESULTS = Path(__file__).resolve().parent / "results"
ARMS = ("variants", "sampling", "rewards", "normalise")
"""Contests of arms from one start, in the page's order."""
SYSTEMS = ("scaling", "transfer")
DATA = {"scientific": "Amazon Industrial & Scientific", "beauty": "Amazon Beauty"}
"""Words in the folders' names of logs, and in the names of their results -> what the logs are."""
STORE = "simulator"
APART = ("baselines_table", "recipe")
"""Results with a section of their own."""
PLACES = (
    ("DATA", ("data", "path")),
    ("DATA2", ("", "second-path")),
    ("MODEL", ("policy", "path")),
    ("INDEX", ("sid", "index")),
    ("ENCODER", ("sid", "encoder")),
    ("OUT", ("", "out")),
)
"""What stands for a path in a stored summary, and the table and key of its configuration that name the path; the second
catalogue's is in the command alone."""
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
        "are 95 %, over users and seeds, or over users alone where there is one seed, unless it says otherwise. "
        "`docs/benchmarks.md` says what is tested how.",
        "## What the papers claim",
        "Reproduced: every comparison that the claim names is shown by its own test, at 5 %. A difference that is not "
        "shown, whichever way it points, is not reproduced. Ours are small models from random weights on one machine; "
        "the papers' are not.",
        claims_table(judge_all(contests)),
    ]
    for benchmark in (*ARMS, *SYSTEMS):
        for name in (name for name, one in contests.items() if of(one, benchmark)):
            parts += section(contests[name])
    parts += baselines(stored.get("baselines_table"))
    if "recipe" in stored:
        found = stored["recipe"]
        told = "The search, on validation users; `docs/recipe.md` says what it asked and what came of it."
        parts += ["## The recipe", made_by(found), recipe_tables.final(found), told, *recipe_tables.search(found)]
    parts += ["## Everything else that is stored", others({n: o for n, o in stored.items() if n not in contests})]
    return "\n\n".join(part for part in parts if part) + "\n"


def contests_in(stored: Stored) -> dict[str, Mapping[str, Any]]:
    """The results that are summaries of contests."""
    return {name: one for name, one in stored.items() if any(of(one, kind) for kind in (*ARMS, *SYSTEMS))}


def section(result: Mapping[str, Any]) -> Iterator[str]:
    """One contest: what made it, what it says, its tables."""
    yield f"## {result['title']}: {data_words(result.get('data') or data_of(result))}"
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
    yield "Means over seeds, with intervals over users alone; the differences below are over users and seeds."
    if result.get("devices", ["cpu"]) != ["cpu"]:
        yield f"Trained on {', '.join(result['devices'])}."
    shown_metrics = {"r@5": "R@5", "r@10": "R@10", "n@5": "N@5", "n@10": "N@10"}
    names = [*shown_metrics.values(), "N@10, history allowed", "parameters", "published (R@5 R@10 N@5 N@10)",
             "why it differs"]  # fmt: skip
    for store, rows in result["stores"].items():
        cells = {}
        for name, row in rows.items():
            published = "; ".join(_published(*one) for one in (row.get("published") or {}).items())
            known = [figure_cell(row.get(metric)) for metric in shown_metrics]
            size = f"{row['parameters']:,}" if row.get("parameters") else "–"
            allowed = figure_cell((row.get("allowed") or {}).get("n@10"))
            cells[name] = [*known, allowed, size, published or "–", row.get("differs") or "–"]
        yield f"### {data_words([store])}"
        yield _rules(store, rows)
        yield grid(names, cells)
        yield margin_words((result.get("margins") or {}).get(store))


BESIDE = {"r@10": "R@10", "n@10": "N@10", "r@50": "R@50"}
"""Metrics in which we are compared with baselines, and their heads."""
RULES = {"left_out": "history left out", "allowed": "history allowed"}


def _published(source: str, one: Mapping[str, Any]) -> str:
    """A published row, and under which rule ours is within 10 % of it."""
    near = " or ".join(RULES[rule] for rule in one.get("matches", ()))
    figures = " ".join(f"{value:.4f}" for value in one["figures"].values())
    return f"{source} {figures}{f' (within 10 %, {near})' if near else ''}"


def _rules(store: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What the lists hold, and where settings come from."""
    told = []
    if any("repeats" in row for row in rows.values()):
        kept = any(row.get("repeats") for row in rows.values())
        told.append(
            "Users take items again, so lists may hold items of the history."
            if kept
            else "No user takes an item twice in training, so items of the history are left out of all lists."
        )
    tuned = {row["settings_from"] for row in rows.values() if row.get("settings_from", store) != store}
    if tuned:
        told.append(f"Settings are those that validated best on {', '.join(sorted(tuned))}.")
    return " ".join(told)


def margin_words(found: Mapping[str, Any] | None) -> str:
    """Ours against the baseline that validates best (on all users, with the lists of test), and against the others."""
    if not found:
        return ""
    cells: dict[str, list[str]] = {}
    for pair in found["pairs"]:
        told = f"{interval_cell(pair)}{'' if shown(pair) else ', not shown'}"
        best = ", the best by validation" if pair["b"] == found["baseline"] else ""
        cells.setdefault(f"{pair['b']}{best}", []).append(told)
    said = (
        f"`{found['ours']}` minus each baseline, by user; intervals over users and seeds, tests corrected over the "
        "baselines of a metric:"
    )
    return said + "\n\n" + grid(list(BESIDE.values()), cells)


def others(stored: Stored) -> str:
    """What else is stored: command, seeds, machine."""
    rows = {f"`{name}.json`": [made_by(one).rstrip(".") or "–"] for name, one in stored.items() if name not in APART}
    return grid(["made by"], rows) if rows else ""


def take(name: str, summary: Path, folder: Path = RESULTS) -> Path:
    """Stores a contest's ``summary.json`` as ``name.json``; the paths of raw data become DATA and DATA2.

    Raises ``ValueError`` for a file that is no contest's summary, for a name that says another data set than the
    summary's, and for one under which another result lies.
    """
    if not summary.is_file():
        raise ValueError(f"--take: there is no file {summary}; give the summary.json of a contest's folder")
    found, out = json.loads(summary.read_text(encoding="utf-8")), folder / f"{name}.json"
    if not isinstance(found, dict) or not contests_in({name: found}):
        raise ValueError(f"--take: expected the summary.json of 'sidgym bench', {summary} is none")
    if out.exists() and not contests_in({name: json.loads(out.read_text(encoding="utf-8"))}):
        raise ValueError(f"--take: {out} is another benchmark's result; take another name, such as {name}_contest")
    data = found.get("data") or data_of(found)
    wrong = [key for key in DATA if (key in name.lower()) != any(key in one.lower() for one in data)]
    if wrong:
        suffix = "".join(f"_{key}" for one in data for key in DATA if key in one.lower())
        raise ValueError(
            f"--take: {summary} is of {' and '.join(data)}, which {name!r} does not say; take a name such as "
            f"{found['benchmark']}{suffix}"
        )
    # Where one path stands for two things the first says what it is.
    paths = {path: place for place, path in reversed(_places(found).items()) if "/" in path}
    kept = {**_without(found, paths), "data": data}
    out.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return out


def data_of(summary: Mapping[str, Any]) -> list[str]:
    """The catalogues of a summary by its configuration: STORE, or the names of the folders that logs lie in."""
    data = tomllib.loads(summary.get("config", "")).get("data", {})
    if data.get("name", STORE) == STORE:
        return [STORE]
    places = _places(summary)
    return [Path(path).name for path in (places["DATA"] or data["name"], places["DATA2"]) if path]


def data_words(data: Iterable[str]) -> str:
    """What catalogues are, in words; those that are not known are called as their folders are."""
    known = [next((DATA[key] for key in DATA if key in one.lower()), one) for one in data]
    return ", then ".join("the simulated store" if one == STORE else one for one in known)


def _places(summary: Mapping[str, Any]) -> dict[str, str]:
    """Values of PLACES -> the path that the configuration or the command names there, or ""."""
    config = tomllib.loads(summary.get("config", ""))
    words = [part for token in shlex.split(summary.get("command", "")) for part in token.split("=", 1)]
    found = {place: str((config.get(table, {}) if table else config).get(key, "")) for place, (table, key) in PLACES}
    return {**found, "DATA2": dict(pairwise(words)).get("--second-path", "")}


def _without(value: Any, paths: Mapping[str, str]) -> Any:
    """The same with the paths in its texts replaced, the longest first, as one may lie in another."""
    if isinstance(value, dict):
        return {key: _without(item, paths) for key, item in value.items()}
    if isinstance(value, list):
        return [_without(item, paths) for item in value]
    if isinstance(value, str):
        for path in sorted(paths, key=len, reverse=True):
            for written in (path, json.dumps(path)[1:-1], json.dumps(path, ensure_ascii=False)[1:-1]):
                value = value.replace(written, paths[path])
    return value


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Stores what is to be taken, writes the page; what it holds."""
    if options.take:
        try:
            take(options.take[0], Path(options.take[1]))
        except ValueError as error:
            raise SystemExit(str(error)) from error
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
