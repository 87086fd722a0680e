"""``sidgym sid inspect``: figures on a table of Semantic IDs, as tables in the terminal.

Left out: the figures (``sid.inspection``), what they are read from (``sid_source``), the HTML page (``sid_page``).
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sidgym.launch.findings import counted
from sidgym.launch.sid_source import SidSource, at_least, load_source
from sidgym.launch.sunburst import shortened
from sidgym.sid.inspection import Figures, inspect_codes
from sidgym.sid.table import write_atomically

PLAIN_WIDTH = 200
"""Letters a line where no terminal says how many it has: nothing is wrapped or cut."""

FEW_USED = 0.9
"""A level that uses less of what it could is remarked on."""

MOSTLY = 0.9
"""A depth of which more nodes have a single child is remarked on."""

COMPARED = {
    "broad": "share its broad category",
    "fine": "share its whole category path",
    "together": "are engaged with by its users",
}
"""What neighbours are compared by."""


def inspect_command(
    path: Path,
    data: Path | None = None,
    page: Path | None = None,
    record: Path | None = None,
    below: str = "",
    format: str = "",
) -> None:
    """Prints the figures of ``path``; ``page`` gets them as HTML, ``record`` as JSON.

    ``below``: a prefix such as ``<a_3><b_7>`` that the page's sunburst is restricted to. ``format`` of an index file,
    empty to tell it from the file. Raises ``ValueError`` and ``FileNotFoundError`` for what cannot be read.
    """
    for target in filter(None, (page, record)):
        if target.is_dir() or not target.absolute().parent.is_dir():
            raise ValueError(f"{target}: expected the name of a file in a folder that exists")
    if page is not None and record is not None and page.resolve() == record.resolve():
        raise ValueError(f"--html and --json are both {page}: one would overwrite the other; give two files")
    if below and page is None:
        raise ValueError("--below chooses what the page's sunburst draws; give --html FILE as well")
    source = load_source(path, data, format)
    if page is not None:
        from sidgym.launch.sid_page import items_below, write_page
        from sidgym.launch.sunburst import check_plotly

        check_plotly()
        rows = items_below(source, below) if below else None
    figures = inspected(source)
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH, color_system=None)
    for part in report(source, figures, plain=not console.is_terminal):
        console.print(part, soft_wrap=isinstance(part, Text) and not console.is_terminal)
    if record is not None:
        text = json.dumps(recorded(source, figures), indent=1, allow_nan=False, ensure_ascii=False)
        write_atomically(record, f"{text}\n".encode())
        print(f"figures  {record}")
    if page is not None:
        write_page(page, source, figures, below, rows)
        print(f"page     {page}")


def inspected(source: SidSource) -> Figures:
    """All figures of ``inspect_codes`` that the source allows."""
    table = source.table
    return inspect_codes(table.codes, table.sizes, source.labels, source.events, source.quantised)


def recorded(source: SidSource, figures: Figures) -> Figures:
    """The figures for others to read: colliding items by their ids instead of row numbers, and ``warnings``."""
    ids = source.table.item_ids
    groups = [ids[rows].tolist() for rows in figures["collisions"]["groups"]]
    return {
        **figures,
        "collisions": {**figures["collisions"], "groups": groups},
        "warnings": list(source.warnings),
    }


# Words ---------------------------------------------------------------------------------------------------------------


def headline(source: SidSource) -> str:
    """What is looked at: items, levels, tokeniser, collision policy."""
    told, sizes = source.table.metadata, " × ".join(f"{size:,}" for size in source.table.sizes)
    least = "at least " if any(at_least(source.table)) else ""
    policy = (told.get("collisions") or {}).get("policy", "unknown")
    maker = told.get("tokenizer", "unknown")
    made = "imported index, tokeniser unknown" if maker == "index" else f"tokeniser {maker}"
    items, levels = counted(source.table.num_items, "item"), counted(source.table.levels, "level")
    return f"{items} on {levels} of {least}{sizes} codes; {made}, collisions: {policy}"


def counts_collisions(source: SidSource) -> bool:
    """Whether the last level counts the items of a collision: it is uneven by nature."""
    return (source.table.metadata.get("collisions") or {}).get("policy") == "extra_level"


def remarks(source: SidSource, figures: Figures) -> list[tuple[int, str]]:
    """What stands out, as (sign, sentence): 1 speaks for the codes, -1 against them."""
    return [
        *((-1, text) for text in source.warnings),
        *_use(figures["levels"][: -1 if counts_collisions(source) else None], figures["items"]),
        *_collisions(figures),
        *_meaning(figures),
        *_structure(figures),
    ]


def _use(levels: Sequence[Figures], items: int) -> Iterable[tuple[int, str]]:
    for row in levels:
        level, used, codes = row["level"], row["used"], row["codes"]
        most = min(codes, items)
        if used < FEW_USED * most:
            text = f"Level {level} uses {used:,} of {codes:,} codes: the rest of the vocabulary is never trained. "
            yield -1, text + "Fewer codes, balanced k-means, or a revival of dead codes would use them."
        elif row["perplexity"] < 0.25 * most:
            text = (
                f"Level {level} uses its codes very unevenly: its perplexity is {row['perplexity']:.1f} of {codes:,}, "
            )
            yield -1, text + "so it tells items apart as well as that many even codes would."


def _collisions(figures: Figures) -> Iterable[tuple[int, str]]:
    found = figures["collisions"]
    if not found["colliding_items"]:
        yield 1, "Every SID is one item."
        return
    text = f"{found['colliding_items']:,} of {found['items']:,} items share their SID with another "
    text += (
        f"({found['colliding_sids']:,} SIDs, up to {found['largest_leaf']:,} items each): a hit on such a SID is not "
    )
    yield -1, text + "a hit on the item. Use collisions = 'extra_level' or 'reassign', or read item-level metrics."


def _meaning(figures: Figures) -> Iterable[tuple[int, str]]:
    for kind, rows in compared(figures):
        first = rows[0]
        if first["share"] is None or first["lift"] is None:
            continue
        what = (
            "what a user engaged with besides an item" if kind == "together" else "the items with an item’s first code"
        )
        does = "has its first code" if kind == "together" else COMPARED[kind]
        sentence = (
            f"{first['share']:.1%} of {what} {does}: {first['lift']:.1f} times the {first['chance']:.1%} of chance."
        )
        yield (1 if first["lift"] >= 1.5 else -1 if first["lift"] < 1.1 else 0), sentence


def _structure(figures: Figures) -> Iterable[tuple[int, str]]:
    for row in figures["branching"][1:-1]:
        if row["single_share"] > MOSTLY:
            text = (
                f"{row['single_share']:.0%} of the prefixes of {row['depth']} codes have one continuation: the codes "
            )
            yield 0, text + "after them say little. Fewer levels, or fewer codes on the first ones, would do."
            return


def compared(figures: Figures) -> list[tuple[str, Sequence[Figures]]]:
    """Rows of neighbour agreement by kind, categories first; only those that are known."""
    known = [(kind, figures["categories"][kind]) for kind in ("broad", "fine") if kind in figures["categories"]]
    return [*known, *([("together", figures["together"])] if figures["together"] else [])]


# Tables --------------------------------------------------------------------------------------------------------------

Cells = tuple[str, list[str], list[list[str]]]
"""Title, heads and rows of a table."""


def tables(source: SidSource, figures: Figures) -> list[Cells]:
    """Every table of the report, as text."""
    found = [_levels(figures), _branching(figures)]
    found += [_agreement(kind, rows) for kind, rows in compared(figures)]
    if figures["popularity"]:
        found += [_spread(figures["popularity"]), _top(source, figures["popularity"])]
    if figures["collisions"]["groups"]:
        found.append(_groups(source, figures["collisions"]))
    return found


def _levels(figures: Figures) -> Cells:
    left = {row["level"]: row for row in figures["reconstruction"] or ()}
    heads = ["level", "codes", "used", "perplexity", "Gini", "largest bucket"]
    rows = []
    for row in figures["levels"]:
        cells = [row["level"], f"{row['codes']:,}", f"{row['used']:,} ({row['used'] / row['codes']:.0%})"]
        cells += [f"{row['perplexity']:,.1f}", f"{row['gini']:.3f}"]
        cells += [f"{row['largest']:,} ({row['largest'] / figures['items']:.1%})"]
        if left:
            one = left.get(row["level"])
            cells += [f"{one['error']:.4g}", f"{one['share']:.1%}"] if one else ["–", "–"]
        rows.append(cells)
    return "Levels", heads + (["error after it", "left over"] if left else []), rows


def _branching(figures: Figures) -> Cells:
    heads = ["codes read", "prefixes", "mean branches", "median", "most", "with one branch", "most items below"]
    rows = [
        [
            str(row["depth"]),
            f"{row['nodes']:,}",
            f"{row['mean']:.2f}",
            f"{row['median']:g}",
            f"{row['largest']:,}",
            f"{row['single_share']:.1%}",
            f"{row['largest_subtree']:,}",
        ]
        for row in figures["branching"]
    ]
    return "Branching by depth", heads, rows


def _agreement(kind: str, rows: Sequence[Figures]) -> Cells:
    unit = "events" if kind == "together" else "items"
    heads = ["codes shared", f"{unit} counted", "share", "chance", "times chance"]
    cells = [
        [
            str(row["depth"]),
            f"{row[unit]:,}",
            percent(row["share"]),
            percent(row["chance"]),
            "–" if row["lift"] is None else f"{row['lift']:.2f}",
        ]
        for row in rows
    ]
    return f"Neighbours: do items that share a prefix {_question(kind)}", heads, cells


def _question(kind: str) -> str:
    return {
        "broad": "share the broad category?",
        "fine": "share the whole category path?",
        "together": "come together in a user’s log?",
    }[kind]


def _spread(popularity: Figures) -> Cells:
    heads = ["codes read", "Gini of events", "items of the top prefix", "events of the top prefix"]
    rows = [
        [str(r["depth"]), f"{r['gini']:.3f}", percent(r["largest_items"]), percent(r["largest_events"])]
        for r in popularity["by_depth"]
    ]
    return f"Popularity by depth ({popularity['events']:,} events)", heads, rows


def _top(source: SidSource, popularity: Figures) -> Cells:
    tokens = source.table.tokens()[0]
    rows = [
        [
            tokens[row["code"]],
            f"{row['items']:,}",
            percent(row["items_share"]),
            f"{row['events']:,}",
            percent(row["events_share"]),
            most_popular(source, row["code"]),
        ]
        for row in popularity["top"]
    ]
    return "Most popular first codes", ["code", "items", "of all", "events", "of all", "most popular item"], rows


def most_popular(source: SidSource, code: int) -> str:
    """Title of the most popular item with this first code."""
    popularity = source.popularity
    rows = (source.table.codes[:, 0] == code).nonzero()[0]
    return "" if popularity is None else shortened(source.title(int(rows[popularity[rows].argmax()])), 48)


def _groups(source: SidSource, collisions: Figures) -> Cells:
    tokens = source.table.tokens()
    rows = []
    for group in collisions["groups"]:
        sid = "".join(tokens[level][code] for level, code in enumerate(source.table.codes[group[0]].tolist()))
        titles = [shortened(source.titles[item], 36) if source.titles else "" for item in group[:4]]
        named = [f"{source.table.item_ids[item]} {title}".strip() for item, title in zip(group, titles)]
        more = f" and {len(group) - 4:,} more" if len(group) > 4 else ""
        rows.append([sid, str(len(group)), "; ".join(named) + more])
    shown, all_ = len(collisions["groups"]), collisions["colliding_sids"]
    title = f"Items that share a SID ({'the largest ' if shown < all_ else ''}{shown:,} of {all_:,} SIDs)"
    return title, ["SID", "items", "which"], rows


def percent(value: float | None) -> str:
    """A share in percent; a dash where there is none."""
    return "–" if value is None else f"{value:.1%}"


def report(source: SidSource, figures: Figures, plain: bool) -> Iterable[RenderableType]:
    """What the terminal shows; ``plain`` leaves out colours and lines."""
    yield Text(f"{source.name}: {headline(source)}", style="" if plain else "bold")
    marks = {1: ("+", "green"), -1: ("!", "yellow"), 0: ("·", "")}
    for sign, sentence in remarks(source, figures):
        mark, style = marks[sign]
        yield Text(f"{mark} {sentence}", style="" if plain else style)
    for title, heads, rows in tables(source, figures):
        yield Text()
        yield Text(title, style="" if plain else "bold")
        yield _drawn(heads, rows, plain)
    for note in source.notes:
        yield Text(f"· {note}", style="" if plain else "dim")


def _drawn(heads: Sequence[str], rows: Sequence[Sequence[str]], plain: bool) -> Table:
    table = Table(box=None if plain else box.SIMPLE, pad_edge=not plain, header_style="" if plain else "bold")
    texts = {"SID", "code", "level", "which", "most popular item"}
    for head in heads:
        table.add_column(Text(head), justify="left" if head in texts else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def facts(source: SidSource) -> dict[str, Any]:
    """What the table's metadata says of how it was made, flat."""
    out: dict[str, Any] = {}
    for name, value in source.table.metadata.items():
        if isinstance(value, dict):
            out.update({f"{name} {key}": inner for key, inner in value.items() if inner not in ("", None)})
        else:
            out[name] = value
    return {**out, "content hash": source.table.content_hash()}
