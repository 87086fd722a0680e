"""``sidgym sid add``: new items for a trained policy, without fitting or training anything again.

The saved embedder and tokeniser of the run give each new item its codes, the table's own collision policy a free SID,
and the policy rows for codes that it did not have (``agents.grow``). The result is a checkpoint folder like any other,
with table, tokeniser, embedder and embeddings in ``sid/``, so that more items can be added to it. Each item's distance
to what its codes stand for is compared with those of the items that the tokeniser was fitted on.

Left out: training on the new items, and their text tasks.

Symbols: M new items.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.agents.checkpoint import read_info
from sidgym.agents.grow import grow_checkpoint
from sidgym.envs.records import Catalogue
from sidgym.launch.new_items import read_new_items
from sidgym.sid.extension import check_extends
from sidgym.sid.table import SidTable

QUANTILE = 0.99
"""Of the fitted items' distances: a new item beyond it is reported as out of distribution."""

SHOWN = 20
"""Items of the printed table."""

REPORT = "added.json"


@dataclass(frozen=True)
class Parts:
    """What a policy needs to take new items."""

    checkpoint: Path
    tools: Path  # folder with tokenizer/, embedder/ and embeddings.npy
    table: SidTable  # of the checkpoint


def find_parts(source: Path, tools: Path | None = None) -> Parts:
    """The checkpoint that ``source`` names and the folder of the tokeniser that made its table.

    Args:
        source: a run's folder, whose RL policy is taken, else its SFT policy; or a checkpoint.
        tools: folder with ``tokenizer``; without it the checkpoint's own ``sid``, else the ``sid`` stage beside it.

    Raises ``FileNotFoundError`` or ``ValueError`` that says what was expected.
    """
    found = [folder for folder in (source, source / "rl", source / "sft") if (folder / "sidgym.json").is_file()]
    if not found:
        raise FileNotFoundError(
            f"{source} is neither a checkpoint nor a run with a trained policy in rl or sft; expected sidgym.json there"
        )
    checkpoint = found[0]
    read_info(checkpoint)
    table = SidTable.load(checkpoint / "sid")
    places = [checkpoint / "sid", checkpoint.resolve().parent / "sid"] if tools is None else [tools]
    holding = [folder for folder in places if (folder / "tokenizer" / "tokenizer.json").is_file()]
    if not holding:
        raise FileNotFoundError(
            f"no saved tokeniser in {' or '.join(str(place / 'tokenizer') for place in places)}; give --sid FOLDER "
            "with the sid stage that made the table. A table from a ready-made index has none: extend it with "
            "SidTable.extend and sidgym.agents.grow"
        )
    if (holding[0] / "table.json").is_file():
        try:
            check_extends(SidTable.load(holding[0]), table)
        except ValueError as error:
            raise ValueError(f"{holding[0]} did not make the table of {checkpoint}: {error}") from error
    return Parts(checkpoint, holding[0], table)


def add_items(
    source: Path,
    items: Path,
    out: Path,
    tools: Path | None = None,
    embeddings: Path | None = None,
    quantile: float = QUANTILE,
    seed: int = 0,
    encoder: Path | None = None,
) -> dict[str, Any]:
    """Adds the items of a file to a policy and writes the grown checkpoint.

    Args:
        source, tools: see ``find_parts``.
        items: JSON lines or CSV, see ``read_new_items``.
        out: folder to write, which must not exist.
        embeddings: ``.npy`` (M, D) as the run's embedder would give them, where it cannot embed texts; where the run's
            embeddings were aligned with its log, these are too.
        quantile: of the fitted items' distances beyond which an item counts as out of distribution.
        seed: of new embedding rows.
        encoder: directory of the run's text encoder, where it has moved.

    Returns what ``added.json`` in ``out`` holds: hashes, sizes and new codes, the threshold, and by item its id, SID,
    distance, the share of fitted items that lie nearer, and ``out_of_distribution``. Raises ``ValueError`` and
    ``FileNotFoundError`` that say what to do.
    """
    from sidgym.sid.tokenizers import code_costs, load_tokenizer

    if not 0 < quantile < 1:
        raise ValueError(f"--quantile: expected a number between 0 and 1, got {quantile}")
    if out.exists():
        raise ValueError(f"{out} exists already; give a folder that does not, or remove it")
    parts = find_parts(source, tools)
    new = read_new_items(items)
    known = np.isin(new.ids, parts.table.item_ids)
    if known.any():
        raise ValueError(f"{items}: {int(known.sum())} items are in the catalogue already, first {new.ids[known][:5]}")
    tokenizer = load_tokenizer(parts.tools / "tokenizer")
    by_category = getattr(tokenizer, "reads", "embeddings") == "categories"
    vectors = None if by_category else embed(parts.tools / "embedder", new, embeddings, encoder)
    features = new.categories if vectors is None else vectors
    codes = tokenizer.encode(features)
    provenance = {"source": items.name, "tokenizer": parts.table.metadata.get("tokenizer", ""), "seed": seed}
    table = parts.table.extend(
        new.ids, codes, code_costs(tokenizer, features), sizes=tokenizer.sizes, provenance=provenance
    )
    report = {
        "checkpoint": str(parts.checkpoint),
        "tools": str(parts.tools),
        "sid_hash_before": parts.table.content_hash(),
        "sid_hash": table.content_hash(),
        "sizes_before": list(parts.table.sizes),
        "sizes": list(table.sizes),
        "extension": table.metadata["extensions"][-1],
        **judge(tokenizer, parts, table, features, vectors, quantile),
    }
    grow_checkpoint(
        parts.checkpoint, table, out, seed, None, lambda fresh: _write_beside(fresh, parts, vectors, report)
    )
    return report


def embed(embedder: Path, new: Catalogue, given: Path | None, encoder: Path | None = None) -> np.ndarray:
    """Embeddings (M, D) of new items in the space that the tokeniser reads. ``ValueError`` where there are none.

    Args:
        embedder: directory of the saved embedder, and of the alignment where there is one.
        new: the items.
        given: ``.npy`` file of their rows before alignment; None to embed their texts.
        encoder: where the saved embedder's encoder lies now; None where it was.
    """
    from sidgym.sid.alignment import holds_alignment, load_alignment
    from sidgym.sid.embed import load_embedder, read_rows

    if given is not None and encoder is not None:
        raise ValueError("--embeddings and --encoder: give one of them; rows of a file need no encoder")
    if given is not None:
        rows = read_rows(given, len(new))
        return load_alignment(embedder).transform(rows) if holds_alignment(embedder) else rows
    try:
        return load_embedder(embedder, source=str(encoder or "")).embed(new.texts())
    except ValueError as error:
        raise ValueError(
            f"{embedder}: {error}. Or give --encoder FOLDER where a text encoder has moved, or --embeddings FILE.npy, "
            "one row an item"
        ) from error


def judge(
    tokenizer: Any, parts: Parts, table: SidTable, features: Any, vectors: np.ndarray | None, quantile: float
) -> dict[str, Any]:
    """How far each new item lies from what its codes stand for, beside the items that the tokeniser was fitted on.

    An item of whose text the embedder knows nothing has the zero vector and counts as out of distribution, however near
    that lies to the codes.
    """
    first, tokens = parts.table.num_items, table.tokens()
    rows: list[dict[str, Any]] = [
        {"item_id": name, "sid": "".join(tokens[level][code] for level, code in enumerate(codes))}
        for name, codes in zip(table.item_ids[first:].tolist(), table.codes[first:].tolist())
    ]
    told: dict[str, Any] = {"quantile": quantile, "threshold": None, "items": rows}
    if not hasattr(tokenizer, "distances"):
        return {**told, "note": "the tokeniser has no distances: how far items are from their codes is not known"}
    if vectors is None:
        before, empty = np.zeros(1), np.zeros(len(rows), bool)  # every category of the fitted items is known
    else:
        fitted = fitted_embeddings(parts)
        if fitted is None:
            return {**told, "note": "no embeddings of the fitted items: distances cannot be compared"}
        before, empty = np.sort(finite_distances(tokenizer, fitted)), ~np.any(vectors, axis=1)
    now = finite_distances(tokenizer, features)
    threshold = float(np.quantile(before, quantile))
    nearer = np.searchsorted(before, now, side="left") / len(before)
    for row, distance, share, unknown in zip(rows, now.tolist(), nearer.tolist(), empty.tolist()):
        row |= {"distance": distance, "nearer_share": share, "no_known_word": unknown}
        row["out_of_distribution"] = unknown or distance > threshold
    return {**told, "threshold": threshold, "out_of_distribution": sum(row["out_of_distribution"] for row in rows)}


def finite_distances(tokenizer: Any, items: Any) -> np.ndarray:
    """The tokeniser's distances (M,) float64. ``ValueError`` for NaN, which no threshold would ever report."""
    found = np.asarray(tokenizer.distances(items), np.float64)
    wrong = np.flatnonzero(~np.isfinite(found))
    if found.shape != (len(items),) or len(wrong):
        raise ValueError(
            f"{type(tokenizer).__name__}: expected a finite distance for each of {len(items)} items, got "
            f"{found.shape}, {len(wrong)} of them not finite; fit the tokeniser again"
        )
    return found


def fitted_embeddings(parts: Parts) -> np.ndarray | None:
    """Embeddings (N, D) of the items that the tokeniser was fitted on, not of those added later; None if unknown."""
    path = parts.tools / "embeddings.npy"
    if not path.is_file():
        return None
    own = SidTable.load(parts.tools) if (parts.tools / "table.json").is_file() else parts.table
    extensions = own.metadata.get("extensions", [])
    rows = np.load(path, allow_pickle=False)
    return rows[: extensions[0]["first_row"]] if extensions else rows


def _write_beside(fresh: Path, parts: Parts, vectors: np.ndarray | None, report: dict[str, Any]) -> None:
    """What belongs into a grown checkpoint besides the policy: the tools in ``sid/``, and the report."""
    for name in ("tokenizer", "embedder"):
        if (parts.tools / name).is_dir():
            shutil.copytree(parts.tools / name, fresh / "sid" / name)
    path = parts.tools / "embeddings.npy"
    if vectors is not None and path.is_file():
        rows = np.load(path, allow_pickle=False)
        # Where the tools know fewer items than the checkpoint, rows would no longer be items.
        if len(rows) == parts.table.num_items:
            np.save(fresh / "sid" / "embeddings.npy", np.concatenate([rows, vectors.astype(rows.dtype)]))
    (fresh / REPORT).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")


# The command ---------------------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sidgym sid add``."""
    parser.add_argument("source", type=Path, help="a run such as runs/demo (its rl policy, else sft), or a checkpoint")
    parser.add_argument("items", type=Path, help="JSON lines or CSV with id, title, description and categories")
    parser.add_argument("out", type=Path, help="checkpoint folder to write; must not exist")
    parser.add_argument("--sid", type=Path, help="folder with the saved tokeniser, where it does not lie with the run")
    parser.add_argument("--embeddings", type=Path, help=".npy file with one row a new item, instead of the embedder")
    parser.add_argument("--encoder", type=Path, help="folder of the run's text encoder, where it has moved")
    parser.add_argument(
        "--quantile", type=float, default=QUANTILE, help="of the fitted items' distances, for the warning"
    )
    parser.add_argument("--seed", type=int, default=0, help="of new embedding rows")


def add_command(options: argparse.Namespace) -> None:
    """``sidgym sid add``."""
    from sidgym.launch.builders import prepare_process

    prepare_process(1)
    report = add_items(
        options.source,
        options.items,
        options.out,
        options.sid,
        options.embeddings,
        options.quantile,
        options.seed,
        options.encoder,
    )
    print_report(report, options.out)


def print_report(report: dict[str, Any], out: Path) -> None:
    """The items that lie farthest out, the warning, and where things are."""
    from rich.console import Console
    from rich.table import Table

    items: Sequence[dict[str, Any]] = report["items"]
    shown = sorted(items, key=lambda row: -row.get("distance", 0.0))[:SHOWN]
    table = Table("item", "SID", "distance", "nearer", "")
    for row in shown:
        measured = "distance" in row
        table.add_row(
            row["item_id"],
            row["sid"],
            f"{row['distance']:.4f}" if measured else "",
            f"{row['nearer_share']:.1%}" if measured else "",
            "out of distribution" if row.get("out_of_distribution") else "",
        )
    Console().print(table)
    if len(items) > len(shown):
        print(f"{len(items) - len(shown)} more items in {out / REPORT}")
    extension = report["extension"]
    print(
        f"{len(items)} items added, {extension['changed_items']} of them not on the codes nearest to them; sizes "
        f"{report['sizes_before']} -> {report['sizes']}"
    )
    if report.get("out_of_distribution"):
        print(
            f"warning: {report['out_of_distribution']} of {len(items)} items lie farther from their codes than "
            f"{report['quantile']:.0%} of the items that the tokeniser was fitted on (distance over "
            f"{report['threshold']:.4f}), or have no word that it knows: their SIDs say little of them; fit anew if "
            "they are many",
            file=sys.stderr,
        )
    if "note" in report:
        print(f"note: {report['note']}", file=sys.stderr)
    print(f"model    {out}")
