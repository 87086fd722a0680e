"""The trie of Semantic IDs as a zoomable sunburst: what is drawn of it, and the drawing (plotly).

A ring is a level, a sector a prefix, its angle the items below it. A prefix of a single item is drawn as that item, so
titles stand where the code stops telling items apart. A browser holds some ten thousand sectors, a catalogue millions:
of every prefix the fullest branches are drawn and the others are one grey sector that says how many they are, so angles
and sums stay true. Left out: the page around it (``sid_page``).

Symbols: N items, L levels, S sectors.
"""

import textwrap
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from sidgym.launch.findings import counted
from sidgym.sid.inspection import prefix_numbers

if TYPE_CHECKING:
    from sidgym.launch.sid_source import SidSource

SECTORS = 12_000
"""Most sectors that a page holds, grey ones aside."""

FIRST_RING = 256
"""Most sectors of the first ring; those after it share what is left."""

RINGS = 3
"""Rings that are seen at once, the middle included; a click shows further ones."""

LABEL = 60
"""Letters of a title that are shown."""

LINE = 20
"""Letters of a line in a sector."""


NAMED = 5
"""Branches that the drawing's text names."""

NO_SCRIPT = "<noscript><p>The drawing needs JavaScript. The tables below hold its figures without it.</p></noscript>"


@dataclass(frozen=True)
class Sectors:
    """What is drawn, parents before their children; sector 0 is the whole catalogue."""

    parent: np.ndarray  # (S,) int64, -1 for the whole
    items: np.ndarray  # (S,) int64 items below
    depth: np.ndarray  # (S,) int64 codes read, 0 for the whole; of an item as many as tell it apart
    first: np.ndarray  # (S,) int64 the first item below
    is_item: np.ndarray  # (S,) bool
    rest: np.ndarray  # (S,) int64 branches that a grey sector stands for, 0 for any other
    shown_items: int  # items with a sector of their own


def cut_sectors(numbers: np.ndarray, most: int = SECTORS, first_ring: int = FIRST_RING) -> Sectors:
    """The sectors of a trie: all of them, or of each prefix the fullest branches so that at most ``most`` are drawn.

    Args:
        numbers: (L, N) of ``prefix_numbers``.
        most: sectors, grey ones not counted; the whole and the first ring are drawn in any case.
        first_ring: sectors of the first ring at most.
    """
    parent, items, depth, first, is_item = _all_sectors(numbers)
    if len(parent) == 1:
        return Sectors(parent, items, depth, first, is_item, np.zeros(1, np.int64), int(is_item.sum()))
    order = np.lexsort((np.arange(len(parent)), -items, parent))
    begins = np.searchsorted(parent[order], parent[order])
    rank = np.empty(len(parent), np.int64)
    rank[order] = np.arange(len(parent)) - begins
    branches = np.bincount(parent[1:], minlength=len(parent))
    rings = [np.flatnonzero(depth == d) for d in range(1, int(depth.max()) + 1)]

    def kept_with(fan: int) -> np.ndarray:
        kept = np.zeros(len(parent), dtype=bool)
        kept[0] = True
        for number, ring in enumerate(rings):
            limit = first_ring if number == 0 else fan
            above = branches[parent[ring]]
            # One branch too many is drawn as well: grey, it would take the same room.
            kept[ring] = kept[parent[ring]] & (rank[ring] < np.where(above == limit + 1, above, limit))
        return kept

    low, high = 0, int(branches.max())  # a fan of ``low`` fits, or is the least there is
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if kept_with(middle).sum() <= most else (low, middle - 1)
    kept = kept_with(low)
    return _with_rest(parent, items, depth, first, is_item, kept)


def _all_sectors(numbers: np.ndarray) -> tuple[np.ndarray, ...]:
    """The whole, prefixes of several items, and items: parent, items, depth, first item, and whether it is an item."""
    levels, count = numbers.shape
    parents, sizes, depths = [np.array([-1])], [np.array([count])], [np.array([0])]
    firsts, flags = [np.array([0])], [np.array([count == 1])]
    above = np.zeros(count, np.int64)  # sector that each item lies in so far
    alone_at = np.zeros(count, np.int64)  # depth at which an item stands alone; 0 while it does not
    total = 1
    for level in range(levels if count > 1 else 0):
        _, first, inside = np.unique(numbers[level], return_index=True, return_counts=True)
        alone_at[(inside[numbers[level]] == 1) & (alone_at == 0)] = level + 1
        shared = np.flatnonzero(inside > 1)
        sector = np.full(len(inside), -1)
        sector[shared] = total + np.arange(len(shared))
        parents.append(above[first[shared]])
        sizes.append(inside[shared])
        depths.append(np.full(len(shared), level + 1))
        firsts.append(first[shared])
        flags.append(np.zeros(len(shared), dtype=bool))
        above = np.where(inside[numbers[level]] > 1, sector[numbers[level]], above)
        total += len(shared)
    if count > 1:
        alone_at[alone_at == 0] = levels + 1  # one of several on a leaf
        parents.append(above)
        sizes.append(np.ones(count, np.int64))
        depths.append(alone_at)
        firsts.append(np.arange(count))
        flags.append(np.ones(count, dtype=bool))
    return tuple(np.concatenate(part) for part in (parents, sizes, depths, firsts, flags))


def _with_rest(
    parent: np.ndarray, items: np.ndarray, depth: np.ndarray, first: np.ndarray, is_item: np.ndarray, kept: np.ndarray
) -> Sectors:
    """The kept sectors, numbered anew, and one for the branches of each of them that are not kept."""
    new = np.cumsum(kept) - 1
    dropped = ~kept & kept[np.maximum(parent, 0)] & (parent >= 0)
    owners, where = np.unique(parent[dropped], return_inverse=True)
    where = where.reshape(-1)
    lost = np.bincount(where, weights=items[dropped], minlength=len(owners)).astype(np.int64)
    rest = np.bincount(where, minlength=len(owners))
    kept_parent = np.where(parent[kept] >= 0, new[np.maximum(parent[kept], 0)], -1)
    zeros = np.zeros(int(kept.sum()), np.int64)
    return Sectors(
        parent=np.concatenate([kept_parent, new[owners]]),
        items=np.concatenate([items[kept], lost]),
        depth=np.concatenate([depth[kept], depth[owners] + 1]),
        first=np.concatenate([first[kept], first[owners]]),
        is_item=np.concatenate([is_item[kept], np.zeros(len(owners), dtype=bool)]),
        rest=np.concatenate([zeros, rest]),
        shown_items=int(is_item[kept].sum()),
    )


def check_plotly() -> None:
    """Raises ``ValueError`` where plotly cannot be imported."""
    try:
        import plotly.graph_objects  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"the page is drawn with plotly, which cannot be imported ({error}): pip install plotly"
        ) from None


def sunburst_html(source: "SidSource", rows: np.ndarray | None = None, most: int = SECTORS) -> tuple[str, str]:
    """The drawing as HTML, plotly's own code and a text for who cannot see it included, and what it leaves out.

    ``rows`` restricts it to some items (n,). Raises ``ValueError`` where plotly is not installed.
    """
    check_plotly()
    import plotly.graph_objects as go
    import plotly.io as pio

    table = source.table
    rows = np.arange(table.num_items) if rows is None else rows
    numbers = prefix_numbers(table.codes[rows], table.sizes)
    sectors = cut_sectors(numbers, most)
    labels, paths = _labels(source, sectors, rows)
    events, tone = _popularity(source, sectors, numbers, rows)
    about = _about(source, sectors, numbers, rows)
    mostly = [f"<br>{share:.0%} {escape(shortened(name))}" if name else "" for share, name in about]
    names = [str(number) for number in range(len(labels))]
    trace: dict[str, Any] = {
        "ids": names,
        "labels": [escape(label) for label in labels],
        "text": _texts(sectors, labels, about),
        "textinfo": "text",
        "parents": ["" if number < 0 else str(number) for number in sectors.parent.tolist()],
        "values": sectors.items.tolist(),
        "branchvalues": "total",
        "maxdepth": RINGS,
        "customdata": [[escape(path), *more] for path, *more in zip(paths, events, mostly)],
        "hovertemplate": "<b>%{label}</b><br>%{customdata[0]}<br>%{value:,} items%{customdata[1]}%{customdata[2]}"
        "<extra></extra>",
        "insidetextorientation": "radial",
        "leaf": {"opacity": 0.85},
        "marker": _marker(sectors, tone),
    }
    figure = go.Figure(go.Sunburst(**trace))
    figure.update_layout(
        margin={"l": 0, "r": 0, "t": 0, "b": 60},
        height=800,
        paper_bgcolor="rgba(0,0,0,0)",
        uniformtext={"minsize": 8, "mode": "hide"},
        font={"family": "system-ui, sans-serif", "color": "#7a8590"},
    )
    config = {"displaylogo": False, "displayModeBar": False, "responsive": True}
    drawing = pio.to_html(figure, config, include_plotlyjs=True, full_html=False, div_id="sunburst", validate=False)
    told = f'<div role="img" aria-label="{escape(_in_words(sectors, labels))}">{drawing}</div>\n{NO_SCRIPT}'
    return told, _left_out(sectors, len(rows))


def _in_words(sectors: Sectors, labels: list[str]) -> str:
    """What a reader who does not see the drawing is told instead of it."""
    ring = np.flatnonzero((sectors.parent == 0) & (sectors.rest == 0))
    fullest = ring[np.argsort(-sectors.items[ring], kind="stable")][:NAMED]
    named = ", ".join(f"{labels[number]} {sectors.items[number]:,}" for number in fullest.tolist())
    inner = f"the fullest branches of the first ring hold, in items: {named}" if named else "one item"
    return f"Sunburst of a trie of {counted(int(sectors.items[0]), 'item')}; {inner}. The tables of this page say more."


def _left_out(sectors: Sectors, items: int) -> str:
    greys = int((sectors.rest > 0).sum())
    if not greys:
        return f"All {items:,} items are drawn."
    merged = int(sectors.items[sectors.rest > 0].sum())
    return (
        f"Not everything is drawn: {sectors.shown_items:,} of {items:,} items have a sector of their own. Of each "
        f"prefix the fullest branches are shown; {merged:,} items lie in the others, which are {greys:,} grey sectors. "
        "Draw the items below one prefix alone with --below '<a_3><b_7>'."
    )


def _labels(source: "SidSource", sectors: Sectors, rows: np.ndarray) -> tuple[list[str], list[str]]:
    """What stands in each sector, and its codes."""
    tokens, codes = source.table.tokens(), source.table.codes[rows]
    labels, paths = [], []
    for depth, first, item, rest in zip(
        sectors.depth.tolist(), sectors.first.tolist(), sectors.is_item.tolist(), sectors.rest.tolist()
    ):
        read = len(source.table.sizes) if item else depth - 1 if rest else depth
        path = [tokens[level][code] for level, code in enumerate(codes[first, :read].tolist())]
        if item:
            label = shortened(source.title(int(rows[first])))
        else:
            label = f"{rest:,} more" if rest else path[-1] if path else "all items"
        labels.append(label)
        paths.append("".join(path))
    return labels, paths


def shortened(text: str, letters: int = LABEL) -> str:
    """A title on one line of at most so many letters."""
    text = " ".join(text.split())
    return text if len(text) <= letters else text[: letters - 1].rstrip() + "…"


def _texts(sectors: Sectors, labels: list[str], about: list[tuple[float, str]]) -> list[str]:
    """What is written in each sector: a title on a few short lines, a code with its category where that is news."""
    kinds = [name if share > 0.5 and parent >= 0 else "" for (share, name), parent in zip(about, sectors.parent)]
    out = []
    for number, (label, item) in enumerate(zip(labels, sectors.is_item.tolist())):
        kind = kinds[number] if kinds[number] != kinds[max(sectors.parent[number], 0)] else ""
        lines = textwrap.wrap(label, LINE) if item else [f"{label} {shortened(kind, LINE)}".strip()]
        out.append("<br>".join(escape(line) for line in lines))
    return out


def _sums(sectors: Sectors, numbers: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Sum of an item weight (n,) below each sector, (S,)."""
    out = np.zeros(len(sectors.parent))
    out[0] = weight.sum()
    for level, row in enumerate(numbers):
        here = (sectors.depth == level + 1) & ~sectors.is_item & (sectors.rest == 0)
        out[here] = np.bincount(row, weights=weight)[row[sectors.first[here]]]
    out[sectors.is_item] = weight[sectors.first[sectors.is_item]]
    shown = np.bincount(sectors.parent[1:], weights=out[1:], minlength=len(out))
    grey = sectors.rest > 0
    out[grey] = out[sectors.parent[grey]] - shown[sectors.parent[grey]]
    return out


def _popularity(
    source: "SidSource", sectors: Sectors, numbers: np.ndarray, rows: np.ndarray
) -> tuple[list[str], np.ndarray | None]:
    """A note on the events below each sector, and how many times the average item's they are, as log2."""
    if source.popularity is None or not source.popularity[rows].sum():
        return [""] * len(sectors.parent), None
    sums = _sums(sectors, numbers, source.popularity[rows].astype(np.float64))
    lift = sums / sectors.items / (sums[0] / sectors.items[0])
    notes = [f"<br>{round(events):,} events, {ratio:.2g}× the average item’s" for events, ratio in zip(sums, lift)]
    return notes, np.log2(np.maximum(lift, 1 / 8))


def _about(source: "SidSource", sectors: Sectors, numbers: np.ndarray, rows: np.ndarray) -> list[tuple[float, str]]:
    """The category that most items of a sector have, after its share of them; (0, "") where none is known."""
    out = [(0.0, "")] * len(sectors.parent)
    names = source.category_names
    if not names:
        return out
    label = source.broad[rows]
    known = label >= 0
    for level, row in enumerate([np.zeros(len(rows), np.int64), *numbers]):
        pairs, counts = np.unique(row[known] * len(names) + label[known], return_counts=True)
        order = np.lexsort((-counts, pairs // len(names)))
        owner, place = np.unique(pairs[order] // len(names), return_index=True)
        best = dict(zip(owner.tolist(), order[place].tolist()))
        here = ~sectors.is_item & (sectors.rest == 0) & (sectors.depth == level)
        for number in np.flatnonzero(here).tolist():
            where = best.get(int(row[sectors.first[number]]))
            if where is not None:
                out[number] = (float(counts[where] / sectors.items[number]), names[int(pairs[where]) % len(names)])
    for number in np.flatnonzero(sectors.is_item).tolist():
        of_item = int(label[sectors.first[number]])
        out[number] = (1.0, names[of_item]) if of_item >= 0 else (0.0, "")
    return out


def _marker(sectors: Sectors, tone: np.ndarray | None) -> dict[str, Any]:
    """Colours by popularity where it is known, else by first code; grey sectors are grey."""
    line = {"width": 0.5, "color": "rgba(255,255,255,0.6)"}
    if tone is None:
        return {"line": line, "colors": ["#c9ced3" if rest else "" for rest in sectors.rest.tolist()]}
    return {
        "line": line,
        "colors": np.round(tone, 3).tolist(),
        "colorscale": [[0.0, "#0072B2"], [0.5, "#e3e3e3"], [1.0, "#D55E00"]],
        "cmin": -3,
        "cmax": 3,
        "showscale": True,
        "colorbar": {
            "title": {"text": "events an item"},
            "tickvals": [-3, -2, -1, 0, 1, 2, 3],
            "ticktext": ["⅛×", "¼×", "½×", "average", "2×", "4×", "8×"],
            "orientation": "h",
            "len": 0.6,
            "thickness": 10,
            "y": -0.02,
            "yanchor": "top",
        },
    }
