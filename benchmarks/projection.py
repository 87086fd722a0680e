"""An iteration on 8 to 1,024 GPUs as arithmetic over stated assumptions: the tables of docs/scaling.md.

    python benchmarks/projection.py [--quick] [--write docs/scaling.md] [--out FILE]

Nothing is measured here and there is no shorter way: ``--quick`` changes nothing. What ``scaling`` has measured of the
driver and of sending weights is read from its stored result. The last line printed is one JSON object.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from sidgym.benchmarks.cost_model import (
    ASSUMED,
    HERE,
    LARGE,
    SMALL,
    Cluster,
    Decoder,
    Iteration,
    Plan,
    Workload,
    in_turn,
    overlapped,
)
from sidgym.benchmarks.script import main

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
RESULT = Path(__file__).resolve().parent / "results" / "scaling.json"
NAME = "projection"
"""Of the marked part of the page."""


def cluster_of(path: Path) -> Cluster:
    """The assumptions; where there is a stored result of ``scaling``, what it measured, rounded to the slow side."""
    if not path.exists():
        return Cluster()
    result = json.loads(path.read_text(encoding="utf-8"))
    sent, asked = result["sending"], result["runners"]
    return replace(
        Cluster(),
        hand=slower(sent["hand_bytes_per_s"]),
        take=slower(sent["take_bytes_per_s"]),
        pickle=slower(asked["put_bytes_per_s"]),
        call=1 / slower(1 / asked["call_s"]),
    )


def slower(rate: float) -> float:
    """A rate rounded down to its first digit: 4.7e8 is 4e8."""
    unit = 10.0 ** math.floor(math.log10(rate))
    return math.floor(rate / unit) * unit


def projected(model: Decoder, work: Workload, cluster: Cluster, gpus: Sequence[int]) -> list[dict[str, Any]]:
    """Both ways of running an iteration at each number of GPUs; a sharded model runs in turn only."""
    plan, rows = Plan(model, work, cluster), []
    for count in gpus:
        row: dict[str, Any] = {"gpus": count, "in_turn": asdict(in_turn(plan, count))}
        if not plan.sharded:
            row["overlapped"] = asdict(overlapped(plan, count))
            row["vllm_requests"] = plan.requests(row["overlapped"]["runners"])
        rows.append(row)
    return rows


def faster(cluster: Cluster) -> dict[str, Cluster]:
    """The cluster with other software on it, one change after another; none of these is built."""
    link = cluster.busy * cluster.network
    collective = replace(cluster, weight_bytes=2, hand=link, take=link, host_link=link, pcie=link)
    return {
        "as it is": cluster,
        "weights in bf16 by a collective between GPUs": collective,
        "and calls of a tenth of the time": replace(collective, call=cluster.call / 10),
    }


def assumptions(cluster: Cluster, work: Workload, measured: bool) -> str:
    """Table of every number that the projection rests on; ``measured``: whether there is a result of ``scaling``."""
    lines = ["| | value | where from |", "|---|---|---|"]
    for one in fields(cluster):
        value = getattr(cluster, one.name)
        shown = f"{value:g}"
        source = one.metadata["source"]
        source = ASSUMED if source == HERE and not measured else source
        lines.append(f"| `{one.name}`: {one.metadata['text']} | {shown} | {source} |")
    chosen = {
        "contexts rolled out at once (`rl.chunk`)": f"{work.chunk}",
        "tokens of a pass (`rl.tokens_per_microbatch`)": f"{work.tokens_per_pass:,}",
        "codes of a level, for the logits": f"{work.codes}",
        "pass of the reference, for the KL term": "whole, one forward pass on all contexts"
        if work.reference
        else "none",
        "weights from node to node (RLlib)": "a binomial tree, each round over `host_link`",
        "nothing hidden": "gradients are exchanged after the backward pass, weights gathered before the rollout",
    }
    lines += [f"| {text} | {value} | {ASSUMED} |" for text, value in chosen.items()]
    return "\n".join(lines)


def workload(work: Workload, cluster: Cluster) -> str:
    """What an iteration consists of, counted."""
    lines = ["| | " + " | ".join(model.name for model in (SMALL, LARGE)) + " |", "|---|---|---|"]
    plans = [Plan(model, work, cluster) for model in (SMALL, LARGE)]

    def row(text: str, values: Sequence[str]) -> None:
        lines.append(f"| {text} | " + " | ".join(values) + " |")

    row("weights", [f"{plan.model.weights / 1e9:.2f} · 10⁹" for plan in plans])
    row("tokens fed, P + G · (L - 1) a context", [f"{work.tokens}"] * 2)
    row("with a prompt a candidate, G · (P + L - 1)", [f"{work.usual_tokens:,}"] * 2)
    row("operations of a forward pass on a context", [f"{plan.flops / 1e12:.2f} · 10¹²" for plan in plans])
    row("forward passes that an update costs (backward two, the reference one)", [f"{plan.passes}" for plan in plans])
    row(
        "operations of an iteration, rollout included",
        [f"{work.contexts * (1 + plan.passes) * plan.flops / 1e15:.1f} · 10¹⁵" for plan in plans],
    )
    row("trained as", ["shards over all GPUs (FSDP2)" if plan.sharded else "replicas (DDP)" for plan in plans])
    row(f"most bytes on one of {GPUS[0]} GPUs", [_giga(plan.gpu_bytes(GPUS[0])) for plan in plans])
    row(f"of these activations of {work.tokens_per_pass:,} tokens", [_giga(plan.activations) for plan in plans])
    row("gradients, float32", [_giga(4 * plan.model.weights) for plan in plans])
    row(
        "weights to those that roll out (FSDP2: reference included)",
        [_giga((4 if plan.sharded else cluster.weight_bytes) * plan.model.weights) for plan in plans],
    )
    row("groups of an iteration, as numbers", [_giga(work.contexts * work.group_bytes)] * 2)
    return "\n".join(lines)


def times(rows: Sequence[dict[str, Any]]) -> str:
    """Table of one model's parts and iterations, in seconds."""
    overlap = "overlapped" in rows[0]
    head = ["GPUs", "rollouts", "forward, backward", "gradients", "optimiser", "weights out", "weights in", "driver"]
    head += ["runners + learners", "in turn", "bottleneck"]
    if overlap:
        head += ["runners + learners", "overlapped", "bottleneck", "vLLM requests"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        one = row["in_turn"]
        cells = [f"{one['gpus']:,}", *(_seconds(value) for value in one["parts"].values())]
        cells += [_split(one), f"**{_seconds(one['seconds'])}**", one["bottleneck"]]
        if overlap:
            other = row["overlapped"]
            cells += [_split(other), f"**{_seconds(other['seconds'])}**"]
            cells += [other["bottleneck"], _seconds(row["vllm_requests"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _split(one: dict[str, Any]) -> str:
    both = one["runners"] == one["learners"] == one["gpus"]
    return "all do both" if both else f"{one['runners']} + {one['learners']}"


def reading(models: dict[str, list[dict[str, Any]]], work: Workload) -> str:
    """What the tables say, in sentences."""
    lines = []
    for name, rows in models.items():
        for way, title in (("in_turn", "in turn"), ("overlapped", "overlapped")):
            if way in rows[0]:
                lines.append(f"- {name}, {title}: the largest part is {_bottlenecks([row[way] for row in rows])}.")
        if "overlapped" in rows[0]:
            gains = [row["in_turn"]["seconds"] / row["overlapped"]["seconds"] for row in rows]
            lines.append(f"- {name}: a staleness of 1 makes an iteration {_range(gains)} times as fast.")
        shares = [row["in_turn"]["parts"]["rollouts"] / row["in_turn"]["seconds"] for row in rows]
        lines.append(f"- {name}: rollouts are {_range([100 * share for share in shares])} % of an iteration in turn.")
    fewer = work.usual_tokens / work.tokens
    lines.append(
        f"- A prompt once instead of once a candidate is {fewer:.0f} times fewer tokens; without that rollouts, forward"
        " and backward passes would take about as many times longer, and all else as long."
    )
    return "\n".join(lines)


def _bottlenecks(rows: Sequence[dict[str, Any]]) -> str:
    """Runs of equal bottlenecks: ``weights out on 8 to 64 GPUs, ...``."""
    runs = [(name, [row["gpus"] for row in part]) for name, part in groupby(rows, key=lambda row: row["bottleneck"])]
    return ", ".join(
        f"{name} on {found[0]:,}" + (f" to {found[-1]:,}" if len(found) > 1 else "") + " GPUs" for name, found in runs
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"


def levers(found: dict[str, list[Iteration]]) -> str:
    """Table of what other software would change."""
    first = next(iter(found.values()))
    lines = ["| | " + " | ".join(f"{one.gpus:,} GPUs" for one in first) + " |", "|---|" + "---|" * len(first)]
    for name, row in found.items():
        cells = [f"{_seconds(one.seconds)}, {one.bottleneck}" for one in row]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _giga(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count < 1e10 else f"{count / 1e9:.0f} GB"


def _seconds(value: float) -> str:
    return "–" if value == 0 else f"{value:.2g}" if value < 9.95 else f"{value:.0f}"


def paper() -> tuple[Workload, int]:
    """MiniOneRec's batch, 64 prompts of 16 candidates, and the GPUs it was run on."""
    return Workload(contexts=64), 8


def project() -> tuple[str, dict[str, Any]]:
    """The marked part of the page, and the same as numbers."""
    work, cluster = Workload(), cluster_of(RESULT)
    models = {model.name: projected(model, work, cluster, GPUS) for model in (SMALL, LARGE)}
    small, gpus = paper()
    batch = {model.name: projected(model, small, cluster, (gpus,))[0]["in_turn"] for model in (SMALL, LARGE)}
    chosen = (GPUS[0], 64, GPUS[-1])
    changed = {
        name: [overlapped(Plan(SMALL, work, other), count) for count in chosen]
        for name, other in faster(cluster).items()
    }
    parts = [
        f"Counted for B = {work.contexts:,} contexts, P = {work.prompt}, G = {work.group}, L = {work.levels}:",
        workload(work, cluster),
        "Assumed:",
        assumptions(cluster, work, RESULT.exists()),
        f"**{SMALL.name}**, RLlib, seconds (in turn: `rl.staleness = 0`, runners and learners have GPUs of their own "
        "and wait for each other; overlapped: `rl.staleness = 1`; each in the split that is fastest; the parts are "
        "those in turn):",
        times(models[SMALL.name]),
        f"**{LARGE.name}**, FSDP2, seconds (in turn; `weights in` is the gathering of shards, `driver` the groups "
        "that ranks hand round):",
        times(models[LARGE.name]),
        "So:",
        reading(models, work),
        f"MiniOneRec's batch, B = {small.contexts}, on {gpus} GPUs, in turn: "
        + "; ".join(f"{name} {_seconds(one['seconds'])} s, {one['bottleneck']}" for name, one in batch.items())
        + ".",
        f"What other software would change for {SMALL.name}, overlapped, seconds and bottleneck; each row adds to the "
        "one above, and only the first is built:",
        levers(changed),
    ]
    figures = {
        "workload": asdict(work),
        "cluster": asdict(cluster),
        "models": models,
        "paper_batch": {"contexts": small.contexts, "gpus": gpus, "in_turn": batch},
        "levers": {name: [asdict(one) for one in row] for name, row in changed.items()},
    }
    return "\n\n".join(parts), figures


def marked(name: str, text: str) -> str:
    """``text`` between the marks that a page is updated by."""
    return f"<!-- {name}: begin -->\n\n{text}\n\n<!-- {name}: end -->"


def write_marked(path: Path, name: str, text: str) -> None:
    """Replaces the marked part of a page. ``ValueError`` where it has none."""
    page = path.read_text(encoding="utf-8")
    begin, end = (page.find(f"<!-- {name}: {mark} -->") for mark in ("begin", "end"))
    if not 0 <= begin < end:
        raise ValueError(
            f"{path}: expected the marks '<!-- {name}: begin -->' and '<!-- {name}: end -->', in this order"
        )
    rest = page[end + len(f"<!-- {name}: end -->") :]
    path.write_text(page[:begin] + marked(name, text) + rest, encoding="utf-8")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Prints the tables and returns their numbers."""
    text, figures = project()
    print(text)
    if options.write:
        write_marked(options.write, NAME, text)
    return figures


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--write", type=Path, help="also put the tables in the marked part of this page")


if __name__ == "__main__":
    main(NAME, __doc__ or "", measure, add_options=add_options)
