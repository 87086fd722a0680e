"""The trie at the size of a large catalogue, beside one sort of its codes and beside other ways to mask a beam step.

    python benchmarks/trie.py [--items 10000000] [--quick] [--seeds 0] [--out FILE]

Items have distinct random SIDs of 3 levels of 8,192 codes. Random is the worst case for the number of nodes, since
hardly any two items share two codes; distinct is the best case for the leaves, since a leaf of several items needs
arrays of its own. So bytes are also given for a table of which a tenth of the items share another's SID, and one in a
hundred all have one and the same. One ``numpy.lexsort`` of the same codes as contiguous uint16 columns is the unit, the
fastest form of it (strided columns stand beside it): building, allowing half of all items at random, changing 10,000 of
them (half come, half go), adding and removing 10,000 items for good. Opening the file reads it once to verify its hash,
from the page cache, where it lies since it was written: a first opening waits for the disk besides.

Then one beam step (mask the logits of 512 beams, move on along a code each) at each level, against the contenders of
``trie_contenders``, which must give the same logits; and ours alone with half of the items allowed, where all beams are
alive and where half of them are dead. Contestants take turns, a turn that does not count comes first, ratios are
medians over rounds, one CPU thread. The last line printed is one JSON object.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.benchmarks.script import main, random_codes
from sidgym.benchmarks.trie_contenders import Contender, DenseMask, Ours, SearchEveryCode, SearchRange, StaticIndex
from sidgym.sid.trie import Trie
from sidgym.sid.trie_arrays import bytes_of

SIZES = (8192, 8192, 8192)
ITEMS, QUICK_ITEMS = 10_000_000, 1_000_000
CHANGE = 10_000
"""Items that a change touches."""
BEAMS = 512
"""Rows of a beam step: 16 contexts of 32 beams."""
FEWEST_ITEMS = 100
"""A tenth of the items must be enough to change some and to leave some."""

Arms = dict[str, Callable[[], object]]


def take_turns(arms: Arms, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each arm in each round, (rounds,); a round that does not count comes first."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in times.items()}


def against_lexsort(trie: Trie, codes: np.ndarray, rounds: int, rng: np.random.Generator) -> dict[str, Any]:
    """Seconds of what changes or opens a trie, and how many lexsorts each takes."""
    mask = rng.random(len(codes)) < 0.5
    part = trie.restrict(mask)
    change = min(CHANGE, len(codes) // 10)
    come, go = (rng.permutation(np.flatnonzero(side))[: change // 2] for side in (~mask, mask))
    new = rng.integers(0, SIZES[0], (change, len(SIZES))).astype(codes.dtype)
    gone = rng.permutation(len(codes))[:change]
    strided = codes.T[::-1]
    columns = np.ascontiguousarray(strided)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalogue.trie"
        trie.save(path)
        arms: Arms = {
            "lexsort": lambda: np.lexsort(columns),
            "lexsort_strided": lambda: np.lexsort(strided),
            "build": lambda: Trie.from_codes(codes, SIZES),
            "restrict": lambda: trie.restrict(mask),
            "toggle_10k": lambda: part.toggle(add=come, remove=go),
            "restrict_to_10k": lambda: trie.restrict(come),
            "add_10k": lambda: trie.add(new),
            "remove_10k": lambda: trie.remove(gone),
            "mmap_open": lambda: Trie.open(path),
            "mmap_open_unverified": lambda: Trie.open(path, verify=False),
        }
        times = take_turns(arms, rounds)
        file_bytes = path.stat().st_size
    figures: dict[str, Any] = {f"{name}_s": float(np.median(values)) for name, values in times.items()}
    for name in list(arms)[1:]:
        ratios = times[name] / times["lexsort"]
        figures |= {f"{name}_vs_lexsort": float(np.median(ratios)), f"{name}_vs_lexsort_rounds": sorted(ratios)}
        print(f"{name}: {1e3 * figures[f'{name}_s']:.2f} ms, {figures[f'{name}_vs_lexsort']:.4f} lexsorts", flush=True)
    for name in ("add_10k", "remove_10k"):
        figures[f"{name}_vs_build"] = float(np.median(times[name] / times["build"]))
    return {**figures, "changed_items": change, "file_bytes_per_item": file_bytes / len(codes)}


def beam_steps(trie: Trie, rounds: int, rng: np.random.Generator) -> dict[str, Any]:
    """Milliseconds of a beam step by contender and level, and how many times ours all levels take."""
    codes = trie.codes_of(torch.from_numpy(rng.integers(trie.num_leaves, size=BEAMS)))
    path = trie.path(codes)
    dense = DenseMask(trie, path[:, 2])
    contenders: dict[str, Contender] = {
        "trie": Ours(trie),
        "dense_mask": dense,
        "binary_search_every_code": SearchEveryCode(trie),
        "binary_search_range": SearchRange(trie),
        "static": StaticIndex(trie),
    }
    logits = torch.from_numpy(rng.standard_normal((BEAMS, SIZES[0]), dtype=np.float32))
    states = _states(contenders, codes, logits)
    times = []
    for level in range(len(SIZES)):
        arms = {
            name: _arm(contender, logits, states[name][level], codes, level) for name, contender in contenders.items()
        }
        times.append(take_turns(arms, rounds))
    by_level = {name: [1e3 * float(np.median(part[name])) for part in times] for name in contenders}
    whole = {name: sum(part[name] for part in times) for name in contenders}
    figures: dict[str, Any] = {"rows": BEAMS, "ms_by_level": by_level, "dense_mask_in_full_bytes": dense.bytes_in_full}
    figures["bytes_per_item"] = {name: contender.nbytes / trie.num_items for name, contender in contenders.items()}
    figures["ratio"] = {name: float(np.median(whole[name] / whole["trie"])) for name in contenders}
    for name, ms in by_level.items():
        shown = ", ".join(f"{value:.2f}" for value in ms)
        size = figures["bytes_per_item"][name]
        print(
            f"beam step, {name}: {shown} ms by level, {figures['ratio'][name]:.2f} times ours, {size:.1f} bytes an item"
        )
    return figures


def dead_beams(trie: Trie, rounds: int, rng: np.random.Generator) -> dict[str, Any]:
    """Milliseconds of our step by level with half of the items allowed: all beams alive, and half of them dead (-1)."""
    allowed = rng.permutation(trie.num_items)[: trie.num_items // 2]
    part = trie.restrict(allowed)
    leaves = trie.leaf_at(trie.place_of[torch.from_numpy(rng.choice(allowed, BEAMS))].long())
    codes = trie.codes_of(leaves)
    logits = torch.from_numpy(rng.standard_normal((BEAMS, trie.sizes[0]), dtype=np.float32))
    dead = torch.from_numpy(rng.permutation(BEAMS) < BEAMS // 2)
    alive, times = part.path(codes), []
    for level in range(trie.depth):
        states = {"alive": alive[:, level], "half_dead": torch.where(dead, -1, alive[:, level])}
        times.append(
            take_turns({name: _arm(Ours(part), logits, state, codes, level) for name, state in states.items()}, rounds)
        )
    ms = {name: [1e3 * float(np.median(one[name])) for one in times] for name in times[0]}
    whole = {name: sum(one[name] for one in times) for name in times[0]}
    ratio = float(np.median(whole["half_dead"] / whole["alive"]))
    print(f"beam step, restricted: half of the beams dead takes {ratio:.2f} times as long as all alive", flush=True)
    return {"ms_by_level": ms, "half_dead_vs_alive": ratio}


def colliding_bytes(items: int, rng: np.random.Generator) -> dict[str, float]:
    """Bytes an item where some share a SID: stored, with look-up tables, and what restricting adds."""
    codes = random_codes(items, SIZES, rng).astype(np.uint16)
    codes[: items // 10] = codes[rng.integers(items // 10, items, items // 10)]
    codes[: items // 100] = codes[-1]
    trie = Trie.from_codes(codes, SIZES)
    stored = trie.nbytes
    trie.step(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    trie.reaches_one(torch.zeros(1, dtype=torch.int64))
    added = bytes_of(trie.restrict(np.arange(items) % 2 == 0).view)
    print(f"with collisions {trie.nbytes / items:.2f} bytes an item, {added / items:.2f} more restricted", flush=True)
    return {
        "items_a_leaf": items / trie.num_leaves,
        "bytes_per_item": trie.nbytes / items,
        "bytes_per_item_stored": stored / items,
        "bytes_per_item_restricted": added / items,
    }


def _states(
    contenders: dict[str, Contender], codes: torch.Tensor, logits: torch.Tensor
) -> dict[str, list[torch.Tensor]]:
    """Each contender's state before every level; ``ValueError`` where one masks other codes than the first does."""
    states: dict[str, list[torch.Tensor]] = {}
    expected: list[torch.Tensor] = []
    for name, contender in contenders.items():
        states[name] = [contender.start(len(codes))]
        for level in range(codes.shape[1]):
            masked = contender.masked(logits, states[name][-1], level)
            if len(expected) == level:
                expected.append(masked)
            if not torch.equal(masked, expected[level]):
                raise ValueError(f"{name} masks other codes of level {level} than the trie; they are not comparable")
            states[name].append(contender.step(states[name][-1], codes[:, level], level))
    return states


def _arm(
    contender: Contender, logits: torch.Tensor, state: torch.Tensor, codes: torch.Tensor, level: int
) -> Callable[[], object]:
    """One step: the mask, and on along a code."""
    return lambda: (contender.masked(logits, state, level), contender.step(state, codes[:, level], level))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both comparisons, for the first seed."""
    torch.set_num_threads(1)
    items = options.items if options.items is not None else QUICK_ITEMS if options.quick else ITEMS
    rounds = 3 if options.quick else 7
    rng = np.random.default_rng(options.seeds[0])
    codes = random_codes(items, SIZES, rng).astype(np.uint16)
    trie = Trie.from_codes(codes, SIZES)
    stored = trie.nbytes
    steps = {**beam_steps(trie, rounds, rng), "restricted": dead_beams(trie, rounds, rng)}
    trie.reaches_one(torch.zeros(1, dtype=torch.int64))
    restricted = bytes_of(trie.restrict(np.arange(items) % 2 == 0).view)
    figures = against_lexsort(trie, codes, rounds, rng)
    print(f"{trie.nbytes / items:.2f} bytes an item, {restricted / items:.2f} more restricted", flush=True)
    return {
        "items": items,
        "sizes": SIZES,
        "rounds": rounds,
        "build_vs_lexsort": figures["build_vs_lexsort"],
        "bytes_per_item": trie.nbytes / items,
        "bytes_per_item_stored": stored / items,
        "bytes_per_item_restricted": restricted / items,
        "colliding": colliding_bytes(items, rng),
        "restrict_vs_lexsort": figures["restrict_vs_lexsort"],
        "toggle_10k_vs_lexsort": figures["toggle_10k_vs_lexsort"],
        "mmap_open_s": figures["mmap_open_s"],
        "mmap_open_page_cache": "warm",
        "beam_step": steps,
        "figures": figures,
    }


def item_count(text: str) -> int:
    """The value of ``--items``; ``ArgumentTypeError``, which argparse turns into its usage message, if it is none."""
    try:
        items = int(text)
    except ValueError:
        items = -1
    if items < FEWEST_ITEMS:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {FEWEST_ITEMS}, got {text!r}")
    return items


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--items", type=item_count, help=f"items of the catalogue ({ITEMS:,}, with --quick {QUICK_ITEMS:,})"
    )


if __name__ == "__main__":
    main("trie", __doc__ or "", measure, add_options=add_options)
