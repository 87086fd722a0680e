"""``sidgym preference fit | inspect``: fits the preference model of a configuration, and shows what it and its gate do.

``inspect`` reads what the stage and the RL arms of a run left behind, and computes nothing. Left out: the stage
(``preference_stage``) and the HTML page (``preference_page``).
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sidgym.agents.audit import phase_mean
from sidgym.agents.logging import TIMES, read_metrics
from sidgym.launch.preference_stage import GATE_REPORT, REPORT
from sidgym.launch.sid_inspect import PLAIN_WIDTH, Cells, percent
from sidgym.launch.sunburst import shortened
from sidgym.sid.table import write_atomically

PREFERENCE_TOOLS = {
    "fit": "fit the preference model of a configuration and choose its gate's threshold",
    "inspect": "figures on the model and the gate: reliability, AUC, pass rates, what is rejected; also as a page",
}
LEAST_AUC = 0.6
"""A model below it is remarked on."""
MOST_ECE = 0.05
"""So is one whose probabilities are off by more."""
OPEN = 0.95
"""A gate that lets pass more of random items is remarked on."""
MOST_SHARE = 0.15
"""Scoring that takes a larger share of an iteration is remarked on."""
KINDS = {
    "targets": "what validation users took next",
    "ignored": "what they were shown and left",
    "favourites": "random items that the model praises most",
    "random": "random items",
}
"""What a gate is judged by, in words."""


@dataclass(frozen=True)
class Inspected:
    """What a run says of its preference model."""

    name: str
    model: dict[str, Any]  # report.json
    gate: dict[str, Any]  # gate_report.json
    titles: Sequence[str] = ()  # of the items; () where they are not known
    arms: Mapping[str, dict[str, float]] = field(default_factory=dict)  # RL arm -> figures of its log

    def title(self, item: int) -> str:
        """Title of an item, its number where it has none."""
        known = self.titles[item] if item < len(self.titles) else ""
        return shortened(known, 40) if known else str(item)


def run_preference_tool(given: Sequence[str]) -> None:
    """Runs ``given[0]``, one of ``PREFERENCE_TOOLS``, on the other arguments."""
    parser = argparse.ArgumentParser(prog="sidgym preference", description="The preference model of a run.")
    tools = parser.add_subparsers(dest="tool", required=True, metavar="TOOL")
    for name, text in PREFERENCE_TOOLS.items():
        chosen = tools.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}."
            + " Every setting of a configuration is an option too, as in sidgym run." * (name == "fit"),
            allow_abbrev=False,
        )
        if name == "fit":
            chosen.add_argument("config", type=Path, help="TOML file, or the name of a shipped one such as demo")
        else:
            chosen.add_argument("source", type=Path, help="a run such as runs/demo, or its folder preference")
            chosen.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots too")
            chosen.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too")
    options, rest = parser.parse_known_args(list(given))
    if options.tool == "fit":
        fit_command(options.config, rest)
    elif rest:
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    else:
        inspect_command(options.source, options.html, options.json)


def fit_command(path: Path, overrides: Sequence[str]) -> None:
    """Builds the stage ``preference`` and what it is built from, whether the configuration enables it or not."""
    from sidgym.launch.config import load_config
    from sidgym.launch.pipeline import run_pipeline

    config = load_config(path, overrides, prog=f"sidgym preference fit {path}")
    config = replace(config, preference=replace(config.preference, enabled=True))
    run_pipeline(config, "preference")
    folder = config.directory / "preference"
    show(inspected(folder))
    print(f"preference: {folder}")


def inspect_command(path: Path, page: Path | None = None, record: Path | None = None) -> None:
    """Prints the figures of ``path``; ``page`` gets them as HTML, ``record`` as JSON.

    Raises ``ValueError`` for what cannot be read or written.
    """
    for target in filter(None, (page, record)):
        if target.is_dir() or not target.absolute().parent.is_dir():
            raise ValueError(f"{target}: expected the name of a file in a folder that exists")
    if page is not None and record is not None and page.resolve() == record.resolve():
        raise ValueError(f"--html and --json are both {page}: one would overwrite the other; give two files")
    found = inspected(path)
    show(found)
    if record is not None:
        text = json.dumps({"model": found.model, "gate": found.gate, "rl": dict(found.arms)}, indent=1)
        write_atomically(record, f"{text}\n".encode())
        print(f"figures  {record}")
    if page is not None:
        from sidgym.launch.preference_page import write_page

        write_page(page, found)
        print(f"page     {page}")


def inspected(path: Path) -> Inspected:
    """Reads a run's folder, or its ``preference``. Raises ``ValueError`` where no finished stage is there."""
    stage = path if (path / REPORT).is_file() else path / "preference"
    for file in (REPORT, GATE_REPORT):
        if not (stage / file).is_file():
            raise ValueError(
                f"{path} holds no preference model ({stage / file} is missing): give a run with preference.enabled, or "
                "make one with sidgym preference fit CONFIG"
            )
    model, gate = (json.loads((stage / file).read_text()) for file in (REPORT, GATE_REPORT))
    run = stage.absolute().parent
    titles: Sequence[str] = ()
    if (run / "data").is_dir():
        from sidgym.envs.datasets import load_catalogue

        titles = load_catalogue(run / "data").titles
    return Inspected(run.name, model, gate, titles, dict(_arms(run)))


def _arms(run: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """RL arms whose log holds a gate's figures: the first and the last tenth of the steps, and scoring's share."""
    logs = [log for log in sorted(run.glob("rl*/metrics.jsonl")) if ".partial" not in log.parent.name]
    for log in logs:
        rows, told = read_metrics(log), {}
        gates = {key.rsplit("/", 1)[0] for row in rows for key in row if key.endswith("/pass_rate")}
        if not gates:
            continue
        for quantity in ("pass_rate", "raw", "gated"):
            for name, last in (("first", False), ("last", True)):
                value = phase_mean(rows, f"{min(gates)}/{quantity}", last)
                if value is not None:
                    told[f"{quantity}_{name}"] = value
        if (log.parent / TIMES).exists():
            times = read_metrics(log.parent / TIMES)
            told |= {name: sum(row[key] for row in times if key in row) / len(times) for name, key in _TIMES if times}
        told |= _own_gate(log.parent)
        yield log.parent.name, told


def _own_gate(arm: Path) -> dict[str, float]:
    """The threshold that the arm's reward sets itself, by which it trained and not by the gate shown here."""
    stage = arm / "stage.json"
    rewards = json.loads(stage.read_text())["inputs"].get("rl", {}).get("rewards", []) if stage.exists() else []
    taus = [term["args"]["tau"] for term in rewards if isinstance(term.get("args", {}).get("tau"), int | float)]
    return {"tau": float(taus[0])} if taus else {}


_TIMES = (("share", "time/preference_share"), ("remembered", "time/preference_remembered"))


# Words ---------------------------------------------------------------------------------------------------------------


def headline(found: Inspected) -> str:
    """Which model, and which gate."""
    gate, how = found.gate, "chosen on validation users" if found.gate["chosen"] else "given"
    return f"{found.model.get('kind', 'preference')}, gate: relevance {gate['relevance']} > {gate['tau']:.3g} ({how})"


def remarks(found: Inspected) -> list[tuple[int, str]]:
    """What stands out, as (sign, sentence): 1 speaks for model and gate, -1 against them."""
    return [*_of_model(found.model), *_of_gate(found), *_of_arms(found.arms)]


def _of_model(model: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    if "negatives" in model:
        yield 0, f"Negatives: {model['negatives']}."
    auc = model["auc"]
    if auc < LEAST_AUC:
        text = f"The model hardly tells what users want from what they do not: AUC {auc:.3f} on held-out training users"
        yield -1, f"{text}. A reward of it is mostly noise."
    ece = model["ece"]
    if ece > MOST_ECE:
        yield -1, f"Its probabilities are off by {ece:.3f} on average (ECE); another calibration may help."
    else:
        before = model.get("ece_before", ece)
        was = f", {before:.3f} before calibration" if before != ece else ""
        yield 1, f"Its probabilities can be believed: ECE {ece:.3f}{was}."


def _of_gate(found: Inspected) -> Iterator[tuple[int, str]]:
    gate, rates = found.gate, found.gate["pass_rate"]
    random, targets = rates["random"], rates["targets"]
    if random is None or targets is None:
        return
    count = gate["counts"]["targets"]
    if gate["chosen"] and round((1 - gate["keep"]) * count, 9) < 1 and gate["keep"] < 1:
        text = f"Only {count} items that validation users took decide the threshold: a share of {gate['keep']:g} means "
        yield -1, f"{text}all of them. More users, or a lower preference.keep, would give it a footing."
    if targets < gate["keep"] - 0.05:
        text = f"The gate rejects {1 - targets:.1%} of what validation users took next"
        yield -1, f"{text}: those users did want what RL will be told to avoid. A lower tau, or tau = 'auto', helps."
    elif random > OPEN:
        text = f"The gate hardly closes: {random:.1%} of random items pass. Relevance {gate['relevance']!r} cannot tell"
        text += f" them from what users take at keep = {gate['keep']:g}; try another one, or a lower preference.keep."
        yield -1, text
    else:
        text = f"The gate passes {targets:.1%} of what validation users took next, and {random:.1%} of random items."
        yield 1, text + (" The threshold was chosen on those users." if gate["chosen"] else "")
    better = [o for o in gate["others"][1:] if o["pass_rate"]["random"] is not None]
    better = [o for o in better if o["pass_rate"]["random"] < random - 0.05 and _keeps(o, gate, targets)]
    if better:
        best = min(better, key=lambda other: other["pass_rate"]["random"])
        text = f"Relevance {best['relevance']!r} rejects more at the same price: {best['pass_rate']['random']:.1%} of "
        yield 0, f"{text}random items pass its threshold {best['tau']:.3g}."


def _keeps(other: Mapping[str, Any], gate: Mapping[str, Any], targets: float) -> bool:
    return other["pass_rate"]["targets"] is not None and other["pass_rate"]["targets"] >= min(targets, gate["keep"])


def _of_arms(arms: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[int, str]]:
    for arm, told in arms.items():
        if "tau" in told:
            yield 0, f"{arm}: its reward sets a threshold of its own, {told['tau']:g}, and trained behind that one."
        if "share" in told:
            slow = told["share"] > MOST_SHARE
            text = f"{arm}: scoring took {told['share']:.1%} of an iteration, {told['remembered']:.0%} of the scores "
            text += "were remembered"
            yield (-1, f"{text}; preference.scoring.replicas would share the work.") if slow else (1, f"{text}.")


# Tables --------------------------------------------------------------------------------------------------------------


def tables(found: Inspected) -> list[Cells]:
    """Every table of the report, as text."""
    out = [_model(found), _towers(found.model), _reliability(found.model), _rates(found.gate)]
    out += [_popularity(found.gate)] if found.gate["by_popularity"] else []
    out += [_rl(found.arms)] if found.arms else []
    for kind, title in (("rejected", "What the gate rejects though the model praises it"),
                        ("lost", "What users took and the gate rejects")):  # fmt: skip
        if found.gate[kind]:
            out.append((title, _EXAMPLE_HEADS, [_example(found, row) for row in found.gate[kind]]))
    return [cells for cells in out if cells[2]]


def _model(found: Inspected) -> Cells:
    names = {
        "rows": "examples trained on",
        "epochs": "passes of the kept weights",
        "auc": "AUC, held-out training users",
        "log_loss": "log loss",
        "base_log_loss": "log loss of the base rate alone",
        "base_rate": "base rate",
        "ece_before": "ECE before calibration",
        "ece": "ECE",
    }
    rows = [[text, number(found.model[name])] for name, text in names.items() if found.model.get(name) is not None]
    told = found.gate["model"]
    rows.append([f"AUC, validation users, against {KINDS[told['against']]}", number(told["auc"])])
    for which, praise in found.gate["preference"].items():
        if praise is not None:
            rows.append([f"mean preference of random items praised most, {which} by the gate", number(praise)])
    return "Model", ["figure", "value"], rows


def _towers(model: Mapping[str, Any]) -> Cells:
    """What a model of several towers says of each signal."""
    keys = ("auc", "log_loss", "base_log_loss", "base_rate")
    rows = [[name, *(number(told.get(key)) for key in keys)] for name, told in model.get("towers", {}).items()]
    return (
        "Towers, on held-out training users",
        ["signal", "AUC", "log loss", "of the base rate alone", "base rate"],
        rows,
    )


def _reliability(model: Mapping[str, Any]) -> Cells:
    rows = [
        [f"{b['low']:.3f} – {b['high']:.3f}", number(b["predicted"]), number(b["observed"]), f"{b['count']:,}"]
        for b in model.get("reliability", ())
    ]
    return "Reliability: what was predicted and what happened", ["scores", "predicted", "observed", "examples"], rows


def _rates(gate: Mapping[str, Any]) -> Cells:
    kinds = [kind for kind in KINDS if kind in gate["pass_rate"]]
    heads = ["relevance", "threshold", *(KINDS[kind] for kind in kinds)]
    rows = [
        [other["relevance"], f"{other['tau']:.3g}", *(percent(other["pass_rate"][kind]) for kind in kinds)]
        for other in gate["others"]
    ]
    return "Pass rates of the gate, the one in use first", heads, rows


def _popularity(gate: Mapping[str, Any]) -> Cells:
    names = ("rarest quarter", "second", "third", "most popular quarter")
    rows = [
        [names[row["quarter"] - 1], percent(row["pass_rate"]), number(row["preference"])]
        for row in gate["by_popularity"]
    ]
    return "Random items by popularity", ["items", "pass", "mean preference"], rows


def _rl(arms: Mapping[str, Mapping[str, float]]) -> Cells:
    heads = ["arm", "pass at first", "pass at last", "preference at first", "at last", "share of an iteration"]
    keys = ("pass_rate_first", "pass_rate_last", "raw_first", "raw_last", "share")
    rows = [
        [arm, *(number(told.get(key)) if key.startswith("raw") else percent(told.get(key)) for key in keys)]
        for arm, told in arms.items()
    ]
    return "In RL, over what the policy proposed", heads, rows


_EXAMPLE_HEADS = ["relevance", "preference", "item", "history"]


def _example(found: Inspected, row: Mapping[str, Any]) -> list[str]:
    past = "; ".join(found.title(item) for item in row["history"][-3:])
    return [f"{row['relevance']:.3f}", number(row["preference"]), found.title(row["item"]), past]


def number(value: float | None) -> str:
    """Three decimals, whole numbers as they are; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def show(found: Inspected) -> None:
    """Prints the report: plain where no terminal reads it."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH, color_system=None)
    for part in report(found, plain=not console.is_terminal):
        console.print(part, soft_wrap=isinstance(part, Text) and not console.is_terminal)


def report(found: Inspected, plain: bool) -> Iterator[RenderableType]:
    """What the terminal shows; ``plain`` leaves out colours and lines."""
    yield Text(f"{found.name}: {headline(found)}", style="" if plain else "bold")
    marks = {1: ("+", "green"), -1: ("!", "yellow"), 0: ("·", "")}
    for sign, sentence in remarks(found):
        mark, style = marks[sign]
        yield Text(f"{mark} {sentence}", style="" if plain else style)
    for title, heads, rows in tables(found):
        yield Text()
        yield Text(title, style="" if plain else "bold")
        table = Table(box=None if plain else box.SIMPLE, pad_edge=not plain, header_style="" if plain else "bold")
        for head in heads:
            table.add_column(Text(head), justify="left" if head in LEFT else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        yield table


LEFT = frozenset({"figure", "signal", "relevance", "item", "items", "history", "arm", "scores"})
"""Heads of columns that hold words."""
