"""The picture of ``docs/performance.md``, drawn from the result of ``throughput``: ratios and memory."""

from pathlib import Path
from typing import Any

COLOURS = {"rollout": "#1b6ca8", "update": "#c8553d"}


def draw(result: dict[str, Any], path: Path) -> None:
    """Writes an SVG file; the same result gives the same bytes. Raises ``ValueError`` for a quick run's result."""
    if "sweep" not in result:
        raise ValueError("the picture needs the sweep, which --quick leaves out: run without --quick")
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "sidgym"
    from matplotlib import pyplot

    figure, (prompts, groups, memory) = pyplot.subplots(1, 3, figsize=(11, 3.4), constrained_layout=True)
    rows = result["sweep"]
    usual = result["case"]
    _ratios(prompts, [row for row in rows if row["group"] == usual["group"]], "prompt", f"G = {usual['group']}")
    _ratios(groups, [row for row in rows if row["prompt"] == usual["prompt"]], "group", f"P = {usual['prompt']}")
    prompts.set(xlabel="prompt tokens P", ylabel="times faster than the usual order")
    groups.set(xlabel="candidates a context G")
    groups.legend(frameon=False, fontsize=8)
    for name, label, colour in (("packed", "packed", "#1b6ca8"), ("replicated", "G copies of the prompt", "#888888")):
        known = [(row["group"], row[name] / 2**20) for row in result["update_memory"] if row[name]]
        memory.plot(*zip(*known), marker="o", markersize=4, color=colour, label=label)
    memory.set(xscale="log", yscale="log", xlabel="candidates a context G", ylabel="peak memory of an update, MiB")
    memory.legend(frameon=False, fontsize=8)
    _ticks(memory, [row["group"] for row in result["update_memory"]])
    for axes in (prompts, groups, memory):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _ratios(axes: Any, rows: list[dict[str, Any]], by: str, title: str) -> None:
    """Ratios of rollout and update, and what counting tokens allows."""
    rows = sorted(rows, key=lambda row: row[by])
    places = [row[by] for row in rows]
    axes.plot(places, [row["limit"] for row in rows], linestyle="--", color="#888888", label="tokens alone")
    for name, other in (("rollout", "hf_best"), ("update", "replicated")):
        values = [row[name][f"{other}_ratio"] for row in rows]
        axes.plot(places, values, marker="o", markersize=4, color=COLOURS[name], label=name)
    axes.set(xscale="log", yscale="log", title=title)
    _ticks(axes, places)


def _ticks(axes: Any, places: list[int]) -> None:
    """The measured places below, and plain numbers on the left."""
    axes.set_xticks(places, [str(place) for place in places])
    axes.set_xticks([], minor=True)
    low, high = axes.get_ylim()
    steps = [2**n for n in range(2, 13)]
    if high < 8 * low:
        steps += [3 * step // 2 for step in steps]
    marks = sorted(mark for mark in steps if low <= mark <= high)
    axes.set_yticks(marks, [str(mark) for mark in marks])
    axes.set_yticks([], minor=True)
