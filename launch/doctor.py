"""``sidgym doctor``: is a set-up in order, from the tokens over the hashes to the installed versions.

A finding says what is wrong, why it matters and what to do. Left out: mending anything, and the
checks of a policy's folder, of contexts and of what is installed (``doctor_policy``, ``doctor_contexts``,
``doctor_versions``).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from sidgym.launch.doctor_contexts import check_data
from sidgym.launch.doctor_policy import check_model, check_policy, is_grown
from sidgym.launch.doctor_versions import check_packages, check_versions, inputs_of
from sidgym.launch.findings import Finding, bad, counted, fine, odd
from sidgym.launch.stages import read_record
from sidgym.sid.collisions import leaf_counts
from sidgym.sid.table import SidTable

WITHOUT_REPEATS = ("beam", "stochastic_beam")
"""Modes whose candidates are different SIDs. Draws of the others may repeat, those of ``free`` need not be SIDs."""

UNFINISHED = (".partial", ".building", ".writing")
"""How the names of folders end that are still worked in, or were when something stopped; ``.partial-`` ones aside."""


def doctor_command(source: Path) -> None:
    """Prints the findings on ``source``; exits with 1 where one of them is an error.

    Raises ``FileNotFoundError`` and ``ValueError`` for what is neither a run nor a checkpoint nor a model.
    """
    findings = list(examine(source))
    show(findings)
    if any(finding.level == "error" for finding in findings):
        raise SystemExit(1)


def show(findings: list[Finding]) -> None:
    """One line a finding, and for what is not in order why it matters and what to do."""
    console = Console()
    colours = {"error": "bold red", "warning": "yellow", "ok": "green"} if console.is_terminal else {}
    for finding in findings:
        line = Text(f"{finding.level:<7}  ", style=colours.get(finding.level, ""))
        line.append(
            f"{finding.check}: {finding.what}", style="bold" if colours and finding.level == "error" else "none"
        )
        console.print(line, soft_wrap=True)
        for name, text in (("why", finding.why), ("do", finding.todo)):
            if text:
                console.print(Text(f"{'':9}{name:>3}: {text}"), soft_wrap=True)
    counts = [sum(finding.level == level for finding in findings) for level in ("error", "warning", "ok")]
    told = f"{counted(counts[0], 'error')}, {counted(counts[1], 'warning')}, {counts[2]} in order"
    console.print(told, highlight=False)


def examine(source: Path) -> Iterator[Finding]:
    """All findings on a run's folder, on that of several seeds, on a checkpoint, or on a plain model directory."""
    if not source.exists():
        raise FileNotFoundError(
            f"{source} does not exist; give a run such as runs/demo, a checkpoint or a model directory"
        )
    seeds = sorted(one for one in source.glob("seed-*") if (one / "sid").is_dir())
    if is_policy(source):
        yield from check_policy(source, _table_of(source.resolve().parent / "sid")[0])
        stages = {source.name: read_record(source)}
        yield from check_settings(stages, _table_of(source / "sid")[0])
        yield from (*check_versions(stages), *check_packages(stages))
    elif (source / "sid").is_dir():
        yield from examine_run(source)
    elif seeds:
        for one in seeds:
            yield from (finding.at(one.name) for finding in examine_run(one))
    elif (source / "config.json").is_file():
        yield from check_model(source)
        yield from (*check_versions({}), *check_packages({}))
    else:
        raise ValueError(
            f"{source} is neither a run (with a folder sid), nor a checkpoint (sidgym.json), nor a model directory "
            "(config.json)"
        )


def examine_run(run: Path) -> Iterator[Finding]:
    """Everything in a run's folder: its stages, its table, its contexts and each of its policies."""
    stages = {one.parent.relative_to(run).as_posix(): read_record(one.parent) for one in run.rglob("stage.json")}
    stages = {name: record for name, record in stages.items() if not any(map(is_unfinished, Path(name).parts))}
    yield from check_stages(run, stages)
    table, error = _table_of(run / "sid")
    if table is None:
        yield bad(
            "table",
            f"{run / 'sid'} holds no readable item-code table ({error})",
            "no SID can be decoded without it",
            "build it again: sidgym sid CONFIG",
        )
    else:
        yield from check_table(run / "sid", table)
    yield from check_data(run / "data", table)
    for folder in policies(run):
        yield from check_policy(folder, table)
    yield from check_base_model(stages)
    yield from check_settings(stages, table)
    yield from check_versions(stages)
    yield from check_packages(stages)


def _table_of(folder: Path) -> tuple[SidTable | None, str]:
    """The table in a folder, or None and why it cannot be read."""
    try:
        return SidTable.load(folder), ""
    except (OSError, ValueError) as error:
        return None, str(error)


def is_unfinished(name: str) -> bool:
    """Whether a folder of this name is one that a stage or a checkpoint is, or was, being written in."""
    return name.endswith(UNFINISHED) or ".partial-" in name


def is_policy(folder: Path) -> bool:
    """Whether a folder is a checkpoint, even one that lost its ``sidgym.json``: a model with a table."""
    return (folder / "sidgym.json").is_file() or ((folder / "config.json").is_file() and (folder / "sid").is_dir())


def policies(run: Path) -> list[Path]:
    """The checkpoints in a run's folder, and the folders of stages that should be one."""
    folders = sorted(one for one in run.iterdir() if one.is_dir() and not is_unfinished(one.name))
    return [one for one in folders if is_policy(one) or is_policy_stage(read_record(one))]


def is_policy_stage(record: Mapping[str, Any]) -> bool:
    """Whether a stage's record says that it trains a policy."""
    return record.get("name") in ("sft", "rl") or bool({"sft", "rl"} & inputs_of(record).keys())


def check_stages(run: Path, stages: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Whether every stage is whole and was built from the stages that stand beside it now."""
    hashes = {record.get("inputs_hash") for record in stages.values()}
    lost = sorted(_without_record(run, stages))
    wrong = bool(lost)
    for name in lost:
        yield bad(
            f"stage {name}",
            "it has no stage.json",
            "from what it was built, and whether it is complete, is not known; a run would not take it up",
            "restore stage.json from a copy, or move the folder away and run the configuration again",
        )
    for name, record in sorted(stages.items()):
        if record.get("complete") is not True:
            wrong = True
            yield bad(
                f"stage {name}",
                "its record does not say that it is complete",
                "its files may be half written",
                "run the stage again",
            )
        needs = inputs_of(record).get("needs") or []
        # Where a record is lost, what was built from that stage cannot be told from what was built from another.
        if not lost and any(need not in hashes for need in needs):
            wrong = True
            yield bad(
                f"stage {name}",
                "it was built from stages that no longer stand beside it",
                "its codes, contexts or weights belong to another run of data, sid or sft",
                "run the configuration again; only what is out of date is rebuilt",
            )
    for one in sorted((*run.glob("*.partial"), *run.glob("*.building"))):
        yield odd(
            "stages",
            f"{one.name} is unfinished",
            "a run was stopped or killed there, or still works",
            "give --resume to go on, or remove it",
        )
    if stages and not wrong:
        are = "stage is" if len(stages) == 1 else "stages are"
        yield fine("stages", f"{len(stages)} {are} complete and built from one another")


def _without_record(run: Path, stages: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Folders of data, table and policies that no stage recorded; a grown policy was never a stage."""
    for folder in [run / "data", run / "sid", *policies(run)]:
        if folder.is_dir() and folder.name not in stages and not is_grown(folder):
            yield folder.name


def check_table(folder: Path, table: SidTable) -> Iterator[Finding]:
    """Collisions, and embeddings that belong to the table."""
    _, counts = leaf_counts(table.codes, table.sizes)
    shared = int(counts[counts > 1].sum())
    if shared:
        yield odd(
            "table",
            f"{shared:,} of {table.num_items:,} items share their SID with another",
            "a hit on such a SID is not a hit on the item; rewards and metrics are expectations over its items",
            "set sid.collisions to 'extra_level' or 'reassign', or report item-level metrics",
        )
    else:
        yield fine("table", f"{table.num_items:,} items, every SID is one item")
    path = folder / "embeddings.npy"
    if not path.is_file():
        return
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        finite = rows.ndim == 2 and bool(np.isfinite(rows).all())
    except (ValueError, EOFError, OSError) as error:
        yield bad(
            "embeddings",
            f"{path} cannot be read ({error})",
            "rewards that compare items read it",
            "build the stage again",
        )
        return
    if not finite or len(rows) != table.num_items:
        what = f"{path} has shape {rows.shape} for {table.num_items:,} items" + ("" if finite else ", or is not finite")
        yield bad("embeddings", what, "row i would not be item i, or would poison rewards", "build the stage again")


def check_base_model(stages: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """The generation settings of the model that the policy was made of."""
    paths = {(inputs_of(record).get("policy") or {}).get("path", "") for record in stages.values()}
    for path in sorted(filter(None, paths)):
        if not Path(path).is_dir():
            yield odd("base model", f"{path} is not there any more", "SFT cannot be built again", "put it back")
            continue
        for finding in check_model(Path(path)):
            # The policy was given clean settings when it was built, so other tools alone are concerned.
            yield (
                finding
                if finding.level != "error"
                else odd(
                    finding.check, finding.what, f"{finding.why}; sidgym's own checkpoints leave them out", finding.todo
                )
            )


def check_settings(stages: Mapping[str, Mapping[str, Any]], table: SidTable | None) -> Iterator[Finding]:
    """Group, page and beam against the number of SIDs."""
    if table is None:
        return
    sids = len(leaf_counts(table.codes, table.sizes)[1])
    for name, record in sorted(stages.items()):
        inputs = inputs_of(record)
        if isinstance(inputs.get("rl"), dict):
            yield from _check_group(name, inputs["rl"], sids)
        beam = (inputs.get("eval") or {}).get("beam", 0)
        if beam > sids:
            yield odd(
                name,
                f"eval.beam is {beam}, the catalogue has {sids:,} SIDs",
                "lists end early, so cut-offs beyond that compare nothing",
                f"set eval.beam to at most {sids}",
            )


def _check_group(name: str, rl: Mapping[str, Any], sids: int) -> Iterator[Finding]:
    paged = rl.get("environment", "next_item") != "next_item"
    key = "page_size" if paged else "group_size"
    size, mode = int(rl.get(key, 0)), rl.get("mode", "beam")
    distinct = paged or mode in WITHOUT_REPEATS
    what = f"rl.{key} is {size} ({'pages' if paged else 'mode ' + repr(mode)}), the catalogue has {sids:,} SIDs"
    todo = f"set rl.{key} well below {sids}, or use a larger catalogue"
    if distinct and size > sids:
        why = "so many different candidates do not exist: the group ends in candidates that are not valid"
        yield bad(name, what, why, todo)
    elif 2 * size > sids:
        why = "the group is most of the catalogue: nearly every target is in it, so rewards judge little but its order"
        yield odd(name, what, why, todo)
    elif size:
        yield fine(name, what)
