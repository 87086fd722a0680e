"""What contests share whose systems are no arms of one start (``bench_scaling``, ``bench_transfer``).

    OUT/results.jsonl     a line a judged system of a seed, appended; ``stage`` and ``result`` say where its figures lie
    OUT/summary.json      what all trials of the newest setting came to; report.md and report.html tell it

Stages are the pipeline's, and a few of their own; finished ones are not built again. Left out: which stages there are,
and what their outcome means.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.benchmarks.arms_summary import Trial
from sidgym.benchmarks.arms_tables import figure_cell
from sidgym.benchmarks.arms_words import metric_name, spread_of
from sidgym.benchmarks.script import at_least_one
from sidgym.benchmarks.systems_summary import pairs_table, summarise_systems, systems_table
from sidgym.launch.bench_figures import figure
from sidgym.launch.bench_report import table
from sidgym.launch.bench_runs import commit, write_results_files
from sidgym.launch.bench_trials import append_line, looks, looks_note, read_lines
from sidgym.launch.charts import interval_chart
from sidgym.launch.config import to_toml
from sidgym.launch.report import facts_table, flat, write_page
from sidgym.launch.schema import RunConfig
from sidgym.launch.stages import Stage, environment_record, is_complete, read_record

Summary = dict[str, Any]
COLOUR = "#0072B2"


@dataclass(frozen=True)
class Contest:
    """What is compared, and how it is told."""

    name: str
    title: str
    config: RunConfig  # its directory is the contest's folder
    seeds: int
    command: str
    metrics: Sequence[str]  # told with intervals
    tested: Sequence[str]  # all pairs of systems are tested on these
    references: Sequence[str] = ()
    notes: Sequence[str] = ()
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def numbers(self) -> range:
        """The seeds."""
        return range(self.config.seed, self.config.seed + self.seeds)


def about(text: str) -> str:
    """A contest's description for --help, from the first line of its module's docstring."""
    what = text.partition("\n")[0].partition(": ")[2]
    return (
        f"{what[:1].upper()}{what[1:]} Every setting of a run is an option too, such as --data.users 500 --sft.epochs "
        "4 (sidgym run CONFIG --help explains them). The same command goes on where it was stopped; with more seeds it "
        "adds to the folder."
    )


def add_common(parser: argparse.ArgumentParser, presets: Sequence[str]) -> None:
    """The options that these contests share."""
    parser.add_argument("--preset", choices=sorted(presets), default="full", help="full, or quick: minutes")
    parser.add_argument("--config", type=Path, help="TOML file or shipped name in place of the preset's")
    parser.add_argument("--seeds", type=at_least_one, help="how many, from the configured one on (default: the "
                        "preset's)")  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the contest (default: runs/bench-NAME-PRESET)")
    parser.add_argument("--print-config", action="store_true", help="print every setting that systems share, and stop")
    parser.add_argument("--dry-run", action="store_true", help="estimate the time, and stop")


def link_stages(folder: Path, source: Path, stages: Sequence[str]) -> None:
    """Links in ``folder`` to stages of the run ``source`` beside it, built or not yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if not (folder / stage).is_symlink():
            (folder / stage).symlink_to(Path("..") / source.name / stage)


def save_figures(folder: Path, per_user: Mapping[str, np.ndarray], whole: Mapping[str, float]) -> None:
    """Metrics of each user and of the whole, as ``read_figures`` finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "per_user.npz", **per_user)  # type: ignore[arg-type]
    (folder / "whole.json").write_text(json.dumps(dict(whole)) + "\n", encoding="utf-8")


def read_figures(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """What ``save_figures`` wrote."""
    with np.load(folder / "per_user.npz", allow_pickle=False) as arrays:
        per_user = {name: arrays[name] for name in arrays.files}
    return per_user, json.loads((folder / "whole.json").read_text(encoding="utf-8"))


def keep_result(
    folder: Path, stage: Stage, result: Path, system: str, seed: int, setting: str, cost: Mapping[str, Any]
) -> None:
    """Appends the line of a judged system, unless it stands there already."""
    known = {(line["system"], line["seed"], line["key"], line["setting"]) for line in read_lines(folder)}
    if (system, seed, stage.hash, setting) in known:
        return
    per_user, whole = read_figures(result)
    line = {
        "system": system,
        "seed": seed,
        "setting": setting,
        "key": stage.hash,
        "stage": str(stage.directory.relative_to(folder)),
        "result": str(result.relative_to(folder)),
        "figures": {name: float(values.mean()) for name, values in per_user.items()} | whole,
        "users": len(next(iter(per_user.values()))),
        "cost": dict(cost),
    }
    append_line(folder, line)


def read_trials(folder: Path, setting: str) -> list[Trial]:
    """The newest trial of each system and seed in a setting whose results still stand."""
    last: dict[tuple[str, int], Mapping[str, Any]] = {}
    for line in read_lines(folder):
        if line["setting"] == setting and is_complete(folder / line["stage"], line["key"]):
            last[line["system"], line["seed"]] = line
    return [
        Trial(system, seed, *read_figures(folder / line["result"]), cost=dict(line["cost"]))
        for (system, seed), line in last.items()
    ]


def seconds_of(stage: Stage) -> float | None:
    """Seconds that a finished stage took; a resumed one counts from its resumption."""
    return read_record(stage.directory).get("seconds")


def write_summary(
    contest: Contest,
    setting: str,
    same_users: bool,
    more: Callable[[Summary, Sequence[Trial]], None],
    charts: Callable[[Summary], Iterator[str]],
    heads: Mapping[str, str] | None = None,
    order: Sequence[str] = (),
) -> Summary:
    """``summary.json``, ``report.md`` and ``report.html`` from all trials of the setting; the summary.

    ``more`` adds to the summary what is the contest's own, ``verdict`` (``[sign, sentence]``) among it; ``charts``
    yields figures for the page; ``heads`` names figures of systems that become columns; ``order`` is that of
    the systems.
    """
    folder = contest.config.directory
    trials = read_trials(folder, setting)
    place = {name: number for number, name in enumerate(order)}
    trials.sort(key=lambda trial: place.get(trial.system, len(place)))
    found = summarise_systems(
        trials, contest.metrics, contest.tested, contest.references, same_users, contest.config.eval.bootstrap
    )
    read_at = looks(folder, setting, len(found["seeds"]))
    summary: Summary = {
        "benchmark": contest.name,
        "title": contest.title,
        "command": contest.command,
        **contest.told,
        **found,
        "looks": read_at,
        "setting": setting,
        "notes": [*contest.notes, *looks_note(read_at)],
        "environment": environment_record(),
        "commit": commit(),
        "config": to_toml(contest.config),
    }
    more(summary, trials)
    write_results_files(folder, summary, lambda found: markdown(found, contest.metrics, heads))
    write_page_of(folder / "report.html", summary, contest, list(charts(summary)), heads or {})
    return summary


def markdown(summary: Summary, metrics: Sequence[str], heads: Mapping[str, str] | None = None) -> str:
    """The report as Markdown."""
    parts = [
        f"# {summary['title']}",
        f"`{summary['command']}`",
        "\n".join(f"- {text}" for _, text in summary["verdict"]),
        "## Results",
        systems_table(summary, metrics, heads),
        f"Means over test users, 95 % intervals over {spread_of(summary)}.",
        "## Pairs",
        pairs_table(summary),
        "Bold: shown to differ, by Holm's correction over the pairs of the metric.",
        "\n".join(f"- {note}" for note in summary["notes"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_page_of(
    path: Path, summary: Summary, contest: Contest, charts: Sequence[str], heads: Mapping[str, str]
) -> None:
    """The report as one self-contained page."""
    marks = {1: ' class="up"', -1: ' class="down"', 0: ""}
    items = "".join(f"<li{marks[sign]}>{escape(text)}</li>" for sign, text in summary["verdict"])
    lead = f"{len(summary['seeds'])} seed(s), {summary['n_users']:,} test users; differences are paired by user."
    rows = []
    for name, figures in {**summary["systems"], **summary["references"]}.items():
        first = [f"{figures[key]:,.0f}" if figures.get(key) is not None else "–" for key in heads]
        rows.append((escape(name), [*first, *(escape(figure_cell(figures.get(m))) for m in contest.metrics)]))
    pairs = [
        (escape(f"{pair['a']} − {pair['b']}"), {**pair, "inner": pair["users"]}, COLOUR)
        for pair in summary["pairs"]
        if pair["metric"] == contest.tested[0]
    ]
    drawn = [interval_chart("pairs", pairs, f"difference in {contest.tested[0]}")] if pairs else []
    told = [figure(f"All pairs: {metric_name(contest.tested[0])}", svg) for svg in drawn]
    notes = "".join(f"<li>{escape(note)}</li>" for note in summary["notes"])
    sections = [
        f'<h1>{escape(summary["title"])}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        f'<ul class="verdicts">{items}</ul>\n<pre>{escape(summary["command"])}</pre>',
        f"<h2>Results on the test users</h2>\n{table([*heads.values(), *map(metric_name, contest.metrics)], rows)}",
        f'<h2>Figures</h2><div class="charts">{"".join([*charts, *told])}</div>',
        f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "",
        facts_table("Environment", flat(summary["environment"]) | {"commit": summary["commit"]}),
        "<h2>Configuration</h2><details><summary>The resolved configuration (TOML)</summary>"
        f"<pre>{escape(summary['config'])}</pre></details>",
    ]
    write_page(path, f"{summary['title']} – sidgym report", sections)
