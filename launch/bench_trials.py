"""One trial of a contest: what it spent, its line in ``results.jsonl``, and reading it back for the summary.

A line is written once a trial is evaluated and never changed; the last one of a system, seed and setting counts. It
holds the hash of the evaluation's inputs, the hash of the setting that trials have in common, figures, costs, and the
folder with what was measured of each user.
Left out: training (``bench_runs``) and what is made of the trials (``benchmarks.arms_summary``).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from sidgym.agents.config import RlConfig
from sidgym.agents.logging import TIMES, read_metrics
from sidgym.agents.recipes import completed
from sidgym.agents.student import reference_kind
from sidgym.agents.task import load_episodes
from sidgym.agents.tree_search import Request
from sidgym.benchmarks.arms_summary import Trial
from sidgym.benchmarks.cost_model import Decoder, forward_flops
from sidgym.benchmarks.summary import BASELINES, CEILINGS
from sidgym.envs.records import PAD_ITEM, Episodes
from sidgym.envs.segments import SEGMENTS, Bands, item_bands
from sidgym.launch.bench_arms import rewards_of, settings_of
from sidgym.launch.stages import is_complete, read_record
from sidgym.sid.table import SidTable
from sidgym.sid.trie import Trie

RESULTS = "results.jsonl"
TOP = 10
"""Places that popularity is measured on."""


def evaluation_of(system: str, run: Path) -> Path:
    """The folder of the stage that judged a system."""
    name = "baselines" if system in (*BASELINES, *CEILINGS) else system if system == "sft" else f"rl_{system}"
    return run / "evaluate" / name


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Every whole line of a contest's ``results.jsonl``; none where there is no file."""
    path = folder / RESULTS
    return read_metrics(path) if path.exists() else []


def append_line(folder: Path, line: Mapping[str, Any]) -> None:
    """Adds a line; one that a kill cut short before it is closed first, so that it spoils no other."""
    path = folder / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size:
        path.write_text("".join(json.dumps(row) + "\n" for row in read_metrics(path)))
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def keep_line(folder: Path, line: Mapping[str, Any]) -> None:
    """Adds a line, unless the last one of its system, seed and setting says the same."""
    told = json.loads(json.dumps(line))  # as it is read back
    place = [told[key] for key in ("system", "seed", "setting")]
    same = [old for old in read_lines(folder) if [old["system"], old["seed"], old["setting"]] == place]
    if same[-1:] != [told]:
        append_line(folder, told)


def newest(lines: Iterable[Mapping[str, Any]], folder: Path, setting: str) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The last line of each system and seed in a setting whose results still stand in ``folder``, and notes.

    The trials of an arm must have been trained alike. Those that were trained otherwise than the arm's newest one are
    left out; the notes tell which.
    """
    last: dict[tuple[str, int], Mapping[str, Any]] = {}
    made: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line["setting"] == setting and _stands(folder, line):
            last[line["system"], line["seed"]] = line
            made[line["system"]] = trained_as(folder, line)
    other: dict[str, list[int]] = {}
    for system, seed in sorted(last):
        if trained_as(folder, last[system, seed]) != made[system]:
            other.setdefault(system, []).append(seed)
            del last[system, seed]
    notes = [
        f"Left out, because they were trained with other settings or code than the newest trial of {system}: its seeds "
        f"{', '.join(map(str, seeds))}."
        for system, seeds in other.items()
    ]
    return list(last.values()), notes


def looks(folder: Path, setting: str, seeds: int) -> list[int]:
    """The numbers of seeds that a contest was summed up with in ``folder``, this time's ``seeds`` included, ascending.

    More than one: seeds were added once figures could be seen.
    """
    path = folder / "summary.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or cut short: it is written anew
        return [seeds]
    if not isinstance(before, dict) or before.get("setting") != setting:
        return [seeds]
    return sorted({*before.get("looks", [len(before["seeds"])]), seeds})


def looks_note(read_at: Sequence[int]) -> list[str]:
    """What readers have to know of seeds that were added; nothing where none were."""
    *before, now = read_at
    if not before:
        return []
    earlier = f"{' and '.join(map(str, before))} seed{'s' if before[-1] > 1 else ''}"
    return [
        f"Figures could be seen with {earlier} before there were {now}: seeds added until something shows make a false "
        "difference likelier. The tests do not account for it; the papers' claims are judged with p-values times "
        f"{len(read_at)}."
    ]


def _stands(folder: Path, line: Mapping[str, Any]) -> bool:
    """Whether what a line tells of still lies there, and so does the training that was judged."""
    run = folder / line["run"]
    judged, trained = evaluation_of(line["system"], run), read_record(run / f"rl_{line['system']}")
    if not is_complete(judged, line["key"]):
        return False
    return not trained or trained["inputs_hash"] in read_record(judged)["inputs"]["needs"]


def trained_as(folder: Path, line: Mapping[str, Any]) -> dict[str, Any]:
    """What an arm was trained with, whatever its seed: ``rl``, its settings, and ``code``, the hashes of components of
    one's own; {} for what is no arm."""
    inputs = read_record(folder / line["run"] / f"rl_{line['system']}").get("inputs", {})
    return {key: inputs[key] for key in ("rl", "code") if key in inputs}


def settings_in(folder: Path, line: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an arm's line with its reward in words."""
    terms = trained_as(folder, line).get("rl", {}).get("rewards", ())
    return {**line["settings"], "rewards": rewards_of(terms)}


def line_of(run: Path, system: str, seed: int, setting: str, rl: RlConfig | None) -> dict[str, Any]:
    """What ``results.jsonl`` keeps of a finished trial; ``rl`` are the settings of an arm."""
    per_user, whole = _scores(run, system)
    return {
        "system": system,
        "seed": seed,
        "setting": setting,
        "key": read_record(evaluation_of(system, run))["inputs_hash"],
        "run": run.name,
        "figures": {name: float(values.mean()) for name, values in per_user.items()} | whole,
        "users": len(next(iter(per_user.values()))),
        "cost": _cost(run, system, rl),
        "settings": settings_of(rl) if rl else {},
    }


def read_trial(folder: Path, line: Mapping[str, Any], bands: Mapping[str, Bands]) -> Trial:
    """The trial of a line, with what its folder holds of each user and of its training."""
    run, system = folder / line["run"], line["system"]
    per_user, whole = _scores(run, system)
    log = run / f"rl_{system}" / "metrics.jsonl"
    return Trial(
        system,
        line["seed"],
        per_user,
        whole,
        dict(bands),
        read_metrics(log) if log.exists() else (),
        dict(line["cost"]),
    )


def bands_of(episodes: Episodes, run: Path) -> dict[str, Bands]:
    """Every segmentation of a seed's test users."""
    counts = np.load(run / "data" / "popularity.npy")
    return {name: segment(episodes, counts) for name, segment in SEGMENTS.items()}


def _scores(run: Path, system: str) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Metrics of each user, popularity of the top of the lists among them, and metrics of the whole."""
    folder = evaluation_of(system, run) / system
    with np.load(folder / "per_user.npz", allow_pickle=False) as arrays:
        per_user = {key: arrays[key] for key in arrays.files}
    if (folder / "items.npy").exists():
        per_user |= exposed(np.load(folder / "items.npy"), np.load(run / "data" / "popularity.npy"))
    return per_user, json.loads((folder / "whole.json").read_text(encoding="utf-8"))


def exposed(items: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """``popular@10`` and ``tail@10`` (U,): share of each user's filled places that head and long tail have
    (``segments.item_bands``). ``items`` (U, K) best first, PAD_ITEM where empty; ``counts`` (N,) training events."""
    bands, top = item_bands(counts), items[:, :TOP]
    filled = top != PAD_ITEM
    places = np.maximum(filled.sum(axis=1), 1)
    shares = {}
    for name, band in (("popular", "head"), ("tail", "tail")):
        inside = filled & (bands.band[top] == bands.names.index(band))
        shares[f"{name}@{TOP}"] = inside.sum(axis=1) / places
    return shares


def _cost(run: Path, system: str, rl: RlConfig | None) -> dict[str, float | None]:
    """Seconds of training, and for an arm what it drew and learned from; {} for what is not trained."""
    if rl is None:
        return {"seconds": read_record(run / "sft").get("seconds")} if system == "sft" else {}
    rl, log = completed(rl), read_metrics(run / f"rl_{system}" / "metrics.jsonl")
    steps = [row for row in log if "contexts/groups" in row]
    times = run / f"rl_{system}" / TIMES
    # A resumed stage counts its own seconds from its resumption; the log of times has every iteration.
    spent = sum(row.get("time/iteration") or 0.0 for row in read_metrics(times)) if times.exists() else None
    drawn = sum(rl.contexts_per_step * (1 + (row.get("refill/rounds") or 0.0)) for row in steps)
    request = Request(rl.group_size, rl.mode, cast(Trie, None), rl.normalise, seed=0, lanes=1, top_k=rl.top_k)
    minibatches = -(-rl.contexts_per_step // (rl.minibatch or rl.contexts_per_step))
    learned = float(len(steps) * rl.epochs)
    return {
        "seconds": spent,
        "steps": float(len(steps)),
        "rollouts": drawn * request.drawn,
        "updates": learned * minibatches,
        "flops": _flops(run, rl, request.drawn, drawn, learned * rl.contexts_per_step),
    }


def _flops(run: Path, rl: RlConfig, candidates: int, drawn: float, learned: float) -> float | None:
    """Estimated operations: a pass for each context that is drawn, with so many ``candidates``; for each that is
    learned from a pass with its group, two backwards, and one more through the reference. None where the model is not
    of Llama's family or a candidate is a page."""
    model = decoder_of(run / "sft" / "config.json")
    if model is None or rl.environment != "next_item":
        return None
    table, contexts = SidTable.load(run / "sid"), load_episodes(run / "data" / "rl_contexts.npz")
    levels = len(table.sizes)
    merged = json.loads((run / "sft" / "sidgym.json").read_text(encoding="utf-8")).get("merge_items", False)
    items = float((contexts.history != PAD_ITEM).sum(axis=1).mean())
    prompt, codes = round(items * (1 if merged else levels)) + 1, round(float(np.mean(table.sizes)))
    rollout = forward_flops(model, prompt, candidates * (levels - 1), codes)
    one = forward_flops(model, prompt, rl.group_size * (levels - 1), codes)
    targets = forward_flops(model, prompt, (rl.group_size + 1) * (levels - 1), codes) if rl.nll_weight > 0 else one
    reference = 0 if reference_kind(rl) == "none" else 1
    return drawn * rollout + learned * (3 * targets + reference * one)


def decoder_of(path: Path) -> Decoder | None:
    """The shape of a checkpoint by its ``config.json``; None where that does not name what Llama's family has."""
    known = json.loads(path.read_text(encoding="utf-8"))
    try:
        heads, hidden = known["num_attention_heads"], known["hidden_size"]
        return Decoder(
            known["model_type"],
            known["num_hidden_layers"],
            hidden,
            known["intermediate_size"],
            heads,
            known.get("num_key_value_heads") or heads,
            known.get("head_dim") or hidden // heads,
            known["vocab_size"],
            bool(known.get("tie_word_embeddings", True)),
        )
    except KeyError:
        return None


def systems_in(run: Path) -> Sequence[str]:
    """The references that a seed's baselines stage has judged."""
    return sorted(path.parent.name for path in (run / "evaluate" / "baselines").glob("*/per_user.npz"))
