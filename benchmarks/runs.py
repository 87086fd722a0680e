"""Running a shipped configuration as a reader would, and keeping what it measured.

The run is a separate process (``sidgym run``), so that its time and memory are those of the command that the README
names. Left out: anything about what is measured, which the run's own ``summary.json`` says.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


class PeakMemory(threading.Thread):
    """Samples the proportional memory of a process and all its descendants, in bytes (Linux; 0 elsewhere)."""

    def __init__(self, root: int, interval: float = 0.5):
        super().__init__(daemon=True)
        self.root, self.interval, self.peak = root, interval, 0
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(self.interval):
            self.peak = max(self.peak, sum(_proportional(pid) for pid in _family(self.root)))

    def stop(self) -> int:
        """Ends the sampling; the largest sum seen."""
        self._end.set()
        self.join()
        return self.peak


def _family(root: int) -> list[int]:
    """``root`` and everything in its session or descended from it: Ray detaches its daemons from their parent."""
    parents, sessions = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)], sessions[int(stat.parent.name)] = int(fields[1]), int(fields[3])
    family = {pid for pid, session in sessions.items() if session == root} | {root}
    grown = True
    while grown:
        fresh = {pid for pid, parent in parents.items() if parent in family} - family
        family |= fresh
        grown = bool(fresh)
    return sorted(family)


def _proportional(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def run_config(config: str, out: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Runs ``sidgym run CONFIG`` to the end: its summary with ``command``, ``wall_seconds`` and ``peak_memory_gib``.

    Raises ``RuntimeError`` when the run fails; what it printed has been shown already.
    """
    command = [sys.executable, "-m", "sidgym.launch.cli", "run", config, "--out", str(out), *arguments]
    start = time.monotonic()
    # stdout of this script ends in one JSON object, so the run's own output goes to stderr.
    process = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
    memory = PeakMemory(process.pid)
    memory.start()
    code = process.wait()
    peak = memory.stop()
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with status {code}")
    summary = json.loads((out / config / "summary.json").read_text())
    return {
        "command": " ".join(["sidgym", "run", config, *arguments]),
        "wall_seconds": round(time.monotonic() - start, 1),
        "peak_memory_gib": round(peak / 2**30, 2),
        **summary,
    }


def main(
    config: str,
    description: str,
    quick: Sequence[str],
    full: Sequence[str],
    data_path: bool = False,
    more: Callable[[Path], dict[str, Any]] | None = None,
) -> None:
    """Command line of a benchmark that runs one configuration; the last line printed is its JSON.

    ``more`` gets the run's folder and returns what else belongs into the result.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a small smoke run, whose figures mean nothing")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the full run")
    parser.add_argument("--out", type=Path, help="folder for the run (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help=f"write the result to {RESULTS.name}/{config}.json")
    if data_path:
        parser.add_argument("--data-path", default="", help="folder with the raw data (not needed with --quick)")
    options = parser.parse_args()
    if data_path and not options.quick and not options.data_path:
        parser.error("the full run needs --data-path")
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch)
        given = [*quick] if options.quick else [*full, "--seeds", str(options.seeds)]
        if data_path:
            given += ["--data.path", options.data_path or str(_toy_amazon(Path(scratch) / "raw"))]
        result = run_config(config, out, given)
        if more is not None:
            result |= more(out / config)
    if data_path and options.data_path:
        result["command"] = result["command"].replace(options.data_path, "DATA")
    if options.keep and not options.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{config}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def _toy_amazon(folder: Path) -> Path:
    """A simulated log in the format of the Amazon files, for smoke runs on a machine without the data."""
    from sidgym.envs.simulator import SimulatorConfig, simulate

    store = simulate(SimulatorConfig(users=300, items=200, seed=0))
    positives = store.interactions.positives()
    log: dict[str, list[int]] = {}
    for user, item in zip(positives.user.tolist(), positives.item.tolist()):
        log.setdefault(str(user), []).append(item)
    items = store.catalogue
    text = {
        str(row): {"title": items.titles[row], "description": items.descriptions[row], "brand": "",
                   "categories": ",".join(items.categories[row])}
        for row in range(len(items))
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "Toy.inter.json").write_text(json.dumps(log))
    (folder / "Toy.item.json").write_text(json.dumps(text))
    return folder
