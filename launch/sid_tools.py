"""``sidgym sid inspect | add | export | import``: the tools around a table of Semantic IDs.

``sidgym sid CONFIG`` builds one and is not among them. Left out: what the tools do (``sid_inspect``, ``sid_add``,
``sid_files``), which are imported only when they are called.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

SID_TOOLS = {
    "inspect": "figures on the codes: use, collisions, agreement of neighbours, branching, popularity; also as a page",
    "add": "give new items SIDs, and a trained policy the rows for them",
    "export": "write the table in another project's format",
    "import": "make a table of another project's index",
}


def run_sid_tool(given: Sequence[str]) -> None:
    """Runs ``given[0]``, one of ``SID_TOOLS``, on the other arguments."""
    parser = argparse.ArgumentParser(prog="sidgym sid", description="Tools around a table of Semantic IDs.")
    tools = parser.add_subparsers(dest="tool", required=True, metavar="TOOL")
    text = SID_TOOLS[given[0]]
    chosen = tools.add_parser(given[0], help=text, description=f"{text[0].upper()}{text[1:]}.")
    if given[0] == "inspect":
        inspect_options(chosen)
        inspect(parser.parse_args(given))
    elif given[0] == "add":
        from sidgym.launch.sid_add import add_command, add_options

        add_options(chosen)
        add_command(parser.parse_args(given))
    else:
        from sidgym.launch import sid_files

        if given[0] == "export":
            sid_files.export_options(chosen)
            sid_files.export_command(parser.parse_args(given))
        else:
            sid_files.import_options(chosen)
            sid_files.import_command(parser.parse_args(given))


def inspect_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sidgym sid inspect``."""
    from sidgym.sid.index_formats import FORMATS

    parser.add_argument(
        "source", type=Path, help="a run such as runs/demo, a checkpoint, a saved table or an index file"
    )
    parser.add_argument(
        "--data", type=Path, help="run or saved data set with titles, categories and log, if not beside it"
    )
    parser.add_argument(
        "--format", default="", choices=["", *FORMATS], help="of an index file; by default told from it"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots and a zoomable sunburst too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too")
    parser.add_argument("--below", default="", metavar="PREFIX", help="draw only the items below, such as '<a_3><b_7>'")


def inspect(options: argparse.Namespace) -> None:
    """``sidgym sid inspect``."""
    from sidgym.launch.sid_inspect import inspect_command

    inspect_command(options.source, options.data, options.html, options.json, options.below, options.format)
