"""What benchmark scripts but the pipeline's share: options, the machine, one JSON object as the last line, random SIDs.

Left out: the measurements, and runs of whole pipelines (``runs``).
"""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sidgym

PACKAGES = ("torch", "gymnasium", "numpy")

Measure = Callable[[argparse.Namespace], dict[str, Any]]


def main(
    name: str,
    description: str,
    measure: Measure,
    seeds: Sequence[int] = (0,),
    packages: Sequence[str] = (),
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """Parses ``--quick``, ``--seeds`` and ``--out``, measures, prints the result and writes it where that is asked for.

    ``add_options`` adds a script's own. ``measure`` gets the options and returns the figures; they stand beside
    ``benchmark``, ``quick``, ``seeds``, ``machine``, ``versions`` and ``wall_seconds``.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a short run whose figures only show that it works")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--out", type=Path, help="also write the JSON object to this file")
    if add_options:
        add_options(parser)
    options = parser.parse_args()
    if options.quick:
        options.seeds = options.seeds[:1]
        if "workers" in options:
            options.workers = 1  # starting others takes longer than all that there is to do
    start = time.perf_counter()
    figures = measure(options)
    result = {
        "benchmark": name,
        "quick": options.quick,
        "seeds": options.seeds,
        **figures,
        "machine": machine(),
        "versions": {"sidgym": sidgym.__version__}
        | {package: importlib.metadata.version(package) for package in (*PACKAGES, *packages)},
        "wall_seconds": round(time.perf_counter() - start, 3),
    }
    text = json.dumps(result)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.flush()
    print(text)


def at_least_one(text: str) -> int:
    """A whole number of an option that counts something; ``ArgumentTypeError`` for one below 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def machine() -> str:
    """The processors of this machine, in words."""
    return processors(os.cpu_count(), platform.machine())


def processors(count: int | None, kind: str) -> str:
    """Processors as every result and table names them."""
    return f"{count} CPU cores ({kind}), one thread a process"


def random_codes(items: int, sizes: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Distinct SIDs (items, L) of codes below ``sizes``."""
    flat = rng.choice(int(np.prod(sizes)), size=items, replace=False)
    return np.stack(np.unravel_index(flat, tuple(sizes)), axis=1).astype(np.int64)
