"""The command line: ``sidgym run | data | sid | sft | rl | evaluate | preference | bench | recommend | doctor``.

Each training command takes a TOML file (or the name of a shipped one) and overrides such as ``--rl.objective grpo``;
``sidgym sid`` also has tools (``sid inspect``, ``add``, ``export``, ``import``). Left out: what the commands do
(``pipeline``, ``evaluation``, ``estimate``, ``sid_tools``, ``preference_inspect``, ``bench``, ``doctor``).
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sidgym.launch.sid_tools import SID_TOOLS, run_sid_tool

if TYPE_CHECKING:
    import pandas as pd

    from sidgym.launch.schema import RunConfig
    from sidgym.launch.stages import Stage

STAGE_COMMANDS = {
    "run": "every stage of a configuration, then the report; finished stages are not run again",
    "data": "read the data and cut the splits",
    "sid": "give every item its Semantic ID",
    "sft": "train the supervised policy",
    "rl": "train the RL arm",
    "evaluate": "evaluate everything that the configuration trains and write the report",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 2 and one message on bad input; with 1 and a traceback on a fault of the program or of a
    reward, objective or other piece that the user brought."""
    # A user's own reward lies in the folder that the command is given in; workers must find it as well.
    sys.path.insert(0, os.getcwd())
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    parser = make_parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    wants_help = bool({"-h", "--help"} & set(given)) and len(given) > 1 and given[0] in STAGE_COMMANDS
    is_tool = given[:1] == ["sid"] and given[1:2] != [] and given[1] in SID_TOOLS
    is_preference, is_bench = given[:1] == ["preference"], given[:1] == ["bench"]
    if not (is_tool or is_preference or is_bench):
        options, rest = parser.parse_known_args([a for a in given if not (wants_help and a in ("-h", "--help"))])
        if options.command not in STAGE_COMMANDS and rest:
            parser.error(f"unrecognised arguments: {' '.join(rest)}")
        if options.command in STAGE_COMMANDS and options.config is None:
            options.show_help(sys.stdout if wants_help else sys.stderr)
            raise SystemExit(0 if wants_help else 2)
    try:
        if is_tool:
            run_sid_tool(given[1:])
        elif is_preference:
            from sidgym.launch.preference_inspect import run_preference_tool

            run_preference_tool(given[1:])
        elif is_bench:
            from sidgym.launch.bench import run_bench_command

            run_bench_command(given[1:])
        elif options.command == "recommend":
            recommend_file(options)
        elif options.command == "doctor":
            from sidgym.launch.doctor import doctor_command

            doctor_command(options.source)
        else:
            run_command(options, [*rest, "--help"] if wants_help else rest)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # whoever read the output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except Exception as error:
        from sidgym.launch.errors import is_user_error
        from sidgym.launch.jobs import JobError

        if is_user_error(error) or isinstance(error, JobError):
            print(f"sidgym: {error}", file=sys.stderr)
            raise SystemExit(1 if isinstance(error, JobError) and not error.users_matter else 2) from None
        raise


def make_parser() -> argparse.ArgumentParser:
    """The parser of everything but the settings, which have a parser of their own."""
    parser = argparse.ArgumentParser(prog="sidgym", description="Generative recommendation by reinforcement learning.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in STAGE_COMMANDS.items():
        described = f"{text[0].upper()}{text[1:]}. "
        described += f"Every setting is an option too: sidgym {name} CONFIG --help lists them."
        if name == "sid":
            tools = "; ".join(f"sidgym sid {tool}: {does}" for tool, does in SID_TOOLS.items())
            described += f" Tools, each with a --help of its own: {tools}."
        # Without abbreviations: --seed is a setting, not a short --seeds.
        sub = commands.add_parser(name, help=text, description=described, add_help=False, allow_abbrev=False)
        sub.set_defaults(show_help=sub.print_help)
        sub.add_argument("config", type=Path, nargs="?", help="TOML file, or the name of a shipped one such as demo")
        sub.add_argument("--print-config", action="store_true", help="print every setting that would be used, and stop")
        sub.add_argument("--dry-run", action="store_true", help="estimate time and memory, and stop")
        sub.add_argument(
            "--seeds", type=positive, default=1, help="repeat with so many seeds, from the configured one on"
        )
        if name == "rl":
            sub.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
            sub.add_argument("--restart", action="store_true", help="discard unfinished runs and begin anew")
    # Listed here for the help; its tools have parsers of their own.
    commands.add_parser("preference", help="fit | inspect: the preference model, its gate, and what they do")
    commands.add_parser(
        "bench", help="contests from one start, with tests and a report: objectives, rewards, sampling, sizes ..."
    )
    sub = commands.add_parser("recommend", help="answer a Parquet file of histories")
    sub.add_argument("input", type=Path, help="Parquet file with a column 'history' of lists of item ids, oldest first")
    sub.add_argument("output", type=Path, help="Parquet file to write: the same columns, 'items' and 'scores'")
    sub.add_argument("--checkpoint", type=Path, default=Path("runs/demo/rl"), help="policy directory")
    sub.add_argument("--k", type=positive, default=10, help="items a history")
    sub.add_argument("--batch", type=positive, default=64, help="histories a batch")
    sub.add_argument("--allowed", type=Path, help="text file with the item ids that may be recommended, one a line")
    sub = commands.add_parser("doctor", help="check a whole set-up: tokens, hashes, generation settings, versions")
    sub.add_argument("source", type=Path, help="a run such as runs/demo, a checkpoint, or a model directory")
    return parser


def positive(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def run_command(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """All commands that read a configuration."""
    from sidgym.launch.config import load_config, to_toml

    config = load_config(options.config, overrides, prog=f"sidgym {options.command} {options.config}")
    if options.print_config:
        print(to_toml(config), end="")
        return
    if options.dry_run:
        from sidgym.launch.estimate import print_estimate
        from sidgym.launch.pipeline import check_names

        check_names(config)
        print_estimate(config, options.seeds)
        return
    from sidgym.launch.pipeline import make_plan, run_pipeline, seed_configs

    until = "" if options.command in ("run", "evaluate") else options.command
    runs = seed_configs(config, options.seeds)
    for run in runs:
        if options.command == "rl":
            check_unfinished(make_plan(run).stages["rl"], options.resume, options.restart)
    for run in runs:
        if len(runs) > 1:
            print(f"seed {run.seed}", file=sys.stderr)
        run_pipeline(run, until)
    if until:
        print(f"{until}: {', '.join(str(run.directory / until) for run in runs)}")
        return
    finish(config, runs)


def finish(config: "RunConfig", runs: list["RunConfig"]) -> None:
    """Writes summary and report, prints the table and where things are."""
    from rich.console import Console

    from sidgym.launch.evaluation import write_results
    from sidgym.launch.report import console_table

    summary = write_results(config, runs)
    Console().print(console_table(summary))
    print(f"report   {config.directory / 'report.html'}")
    print(f"summary  {config.directory / 'summary.json'}")
    print(f"model    {runs[0].directory / 'rl'}")


def check_unfinished(stage: "Stage", resume: bool, restart: bool) -> None:
    """An unfinished run is neither continued nor thrown away unasked, and not continued with other settings."""
    from sidgym.launch.stages import StageError, holds_work, locked, read_record, set_aside

    partial = stage.partial
    if restart:
        with locked(stage.directory):
            for path in (partial, *set_aside(stage.directory)):
                shutil.rmtree(path, ignore_errors=True)
        return
    for path in filter(holds_work, set_aside(stage.directory)):
        print(f"{path} holds an unfinished run of other settings; remove it if it is not wanted", file=sys.stderr)
    if partial.exists() and not holds_work(partial):
        return  # it ended before it learned anything: there is nothing to lose
    if partial.exists() and not resume:
        raise StageError(f"{partial} holds an unfinished run; give --resume to go on, or --restart to begin anew")
    if partial.exists() and read_record(partial).get("inputs_hash") != stage.hash:
        raise StageError(
            f"{partial} was begun with other settings, code or data, so it cannot be resumed with these; go back to "
            "them, or give --restart to begin anew"
        )
    if resume and not partial.exists():
        print(f"nothing to resume in {partial}; starting from the SFT policy", file=sys.stderr)


def recommend_file(options: argparse.Namespace) -> None:
    """``sidgym recommend``: batches of histories from one Parquet file to another."""
    from sidgym.agents.recommender import Recommender
    from sidgym.launch.builders import prepare_process
    from sidgym.launch.progress import progress

    prepare_process(1)
    table = read_histories(options.input, options.output)
    recommender = Recommender.load(options.checkpoint)
    histories = [list(history) for history in table["history"]]
    recommender.check(histories)
    allowed = read_allowed(options.allowed) if options.allowed else None
    items, scores = [], []
    with progress("Recommending", len(table)) as advance:
        for start in range(0, len(table), options.batch):
            part = histories[start : start + options.batch]
            names, values = recommender.recommend(part, options.k, allowed, options.batch)
            items += [[name for name in row if name] for row in names.tolist()]
            scores += [row[: len(kept)] for row, kept in zip(values.tolist(), items[start:])]
            advance(min(start + options.batch, len(table)), len(table), "")
    fresh = options.output.with_name(options.output.name + ".writing")
    table.assign(items=items, scores=scores).to_parquet(fresh, index=False)
    fresh.replace(options.output)


def read_histories(source: Path, target: Path) -> "pd.DataFrame":
    """The input of ``recommend``, checked before anything is computed. Raises ``ValueError``."""
    import pandas as pd
    import pyarrow

    if not source.is_file():
        raise ValueError(f"{source} does not exist; give a Parquet file with a column 'history'")
    if not target.parent.is_dir():
        raise ValueError(f"the folder of {target} does not exist; make it first")
    try:
        table = pd.read_parquet(source)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{source} is not a Parquet file: {error}") from error
    found = ", ".join(map(str, table.columns))
    if "history" not in table.columns:
        raise ValueError(f"{source} has no column 'history' with lists of item ids; it has: {found}")
    taken = {"items", "scores"} & set(table.columns)
    if taken:
        raise ValueError(f"{source} has a column {sorted(taken)[0]!r}, which the answer would overwrite; rename it")
    null = table["history"].isna().to_numpy()
    if null.any():
        raise ValueError(f"{source}: row {int(null.argmax())} has no history; an empty list stands for a new user")
    return table


def read_allowed(path: Path) -> list[str]:
    """Item ids, one a line; blank lines and spaces around an id do not count."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; --allowed takes a text file with one item id a line")
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


if __name__ == "__main__":
    main()
