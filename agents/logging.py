"""Where figures go: ``metrics.jsonl`` always, wandb beside it, offline unless the user asked for more.

What clocks say goes to ``times.jsonl``: it differs from run to run, while equal runs write equal metrics.

Metric names follow TRL where TRL has one (``reward``, ``reward_std``, ``kl``, ``entropy`` ...). Left out: printing.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from sidgym.agents.config import LogConfig

TIMES = "times.jsonl"


class MetricsLog:
    """Appends one JSON object a call to ``metrics.jsonl`` in ``directory``.

    A resumed run passes the step that it goes on from: lines beyond it, written by the part of the run that was lost,
    are dropped, so that a resumed log equals one that was never interrupted. A value that is not finite is written as
    null, since JSON has no NaN.
    """

    def __init__(self, directory: Path, config: LogConfig, name: str, resume_from: int | None = None):
        directory.mkdir(parents=True, exist_ok=True)
        self.path, times = directory / "metrics.jsonl", directory / TIMES
        _keep(self.path, resume_from)
        if times.exists():
            _keep(times, resume_from)
        self._file, self._times = self.path.open("a"), times
        self._run = _start_wandb(directory, config, name)

    def log(self, figures: dict[str, Any], step: int) -> None:
        """Writes ``figures`` under ``step``."""
        # Sorted, because a metric may come from another process in any order and two equal runs must write equal lines.
        row = {"step": step, **{key: _finite(figures[key]) for key in sorted(figures)}}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._run is not None:
            self._run.log({key: value for key, value in row.items() if value is not None}, step=step)

    def log_times(self, figures: dict[str, float], step: int) -> None:
        """Writes figures of time under ``step``."""
        with self._times.open("a") as file:
            file.write(json.dumps({"step": step, **{key: _finite(figures[key]) for key in sorted(figures)}}) + "\n")
        if self._run is not None:
            self._run.log(figures, step=step)

    def close(self) -> None:
        """Ends the log."""
        self._file.close()
        if self._run is not None:
            self._run.finish()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _keep(path: Path, step: int | None) -> None:
    """Drops the lines of a log beyond ``step``; all of them for None."""
    kept = read_metrics(path) if step is not None and path.exists() else []
    fresh = path.with_suffix(".writing")
    fresh.write_text("".join(json.dumps(row) + "\n" for row in kept if row.get("step", 0) <= (step or 0)))
    os.replace(fresh, path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a ``metrics.jsonl``; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _finite(value: Any) -> Any:
    if isinstance(value, (int, str)) or value is None:
        return value
    return float(value) if math.isfinite(value) else None


def _start_wandb(directory: Path, config: LogConfig, name: str) -> Any:
    if config.wandb == "disabled":
        return None
    if config.wandb != "offline" and config.wandb != "online":
        raise ValueError(f"log.wandb must be offline, online or disabled, got {config.wandb!r}")
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    settings = wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True)
    mode: Any = config.wandb
    return wandb.init(project=config.project, name=name, dir=str(directory), mode=mode, settings=settings)
