"""How fast rollouts and updates are against the usual order of work, beside what counting tokens allows.

    python benchmarks/throughput.py [--quick] [--plot docs/performance.svg] [--out FILE]

A rollout of the built-in engine against ``generate`` under a prefix function; a packed update against G copies of every
prompt; a whole iteration against MiniOneRec's order; vLLM where it is installed, in a process of its own. Same weights
and contexts, one thread, contestants in turns, medians; ratios are medians over rounds. Then the share of the trie's
look-ups, the same with a vocabulary of 151,936 words, the memory of an update by group size, and (not ``--quick``) the
same where no code is certain and a sweep over prompt and group. The last line printed is one JSON object.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.agents.engine import Engine
from sidgym.agents.engine_vllm import VllmEngine
from sidgym.agents.tree_cache import BlockTree
from sidgym.benchmarks.contenders import (
    LEVELS,
    LOOK_UPS,
    Case,
    Contest,
    Timer,
    in_own_process,
    peak_bytes,
)
from sidgym.benchmarks.script import main, random_codes
from sidgym.envs.records import Rollouts
from sidgym.sid.trie import Trie

WORDS = 151_936
"""Vocabulary of Qwen's models."""
CATALOGUES = {"10k": 10_000, "10m": 10_000_000}
FULL = 22
"""Codes of a level when nearly all SIDs are taken by 10 thousand items, so that no code is certain."""
PROMPTS, GROUPS = (30, 120, 500, 2000), (4, 16, 64, 512)
MOST_REPLICATED = 64
"""Largest group whose replicated update is held in memory at once."""
SWEEP_TOKENS = 65_536
"""Replicated tokens of a sweep's case at most: fewer contexts where prompts or groups are large."""

Arms = dict[str, Callable[[], object]]


def take_turns(arms: Arms, rounds: int, before: Callable[[int], None] | None = None) -> dict[str, list[float]]:
    """Seconds of each arm in each round. A turn of all comes first that does not count. ``before`` gets the round's
    number before each turn, which is not timed."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, arm in arms.items():
            if before is not None:
                before(number)
            start = time.perf_counter()
            arm()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def compare(title: str, arms: Arms, rounds: int, limit: float | None = None) -> dict[str, Any]:
    """Median seconds of each arm and, for all but the first, how many times the first one's they are: the median and,
    as ``_ratios``, every round's."""
    times = take_turns(arms, rounds)
    first = next(iter(arms))
    figures: dict[str, Any] = {f"{name}_s": float(np.median(values)) for name, values in times.items()}
    text = ", ".join(f"{name} {figures[f'{name}_s']:.3f} s" for name in arms)
    for name in list(arms)[1:]:
        ratios = sorted(np.array(times[name]) / np.array(times[first]))
        figures[f"{name}_ratio"], figures[f"{name}_ratios"] = float(np.median(ratios)), [float(r) for r in ratios]
        text += f"; {figures[f'{name}_ratio']:.1f} times, {ratios[0]:.1f} to {ratios[-1]:.1f}"
    print(f"{title}: {text}" + (f" (counting tokens: {limit:.1f})" if limit else ""), flush=True)
    return figures


def rollout_arm(contest: Contest, engine: Engine, trie: Trie | None = None) -> Callable[[], Rollouts]:
    """A rollout of all contexts."""
    return lambda: engine.rollout(contest.episodes, contest.case.group, trie=trie)


def rollout_arms(contest: Contest, same_batch: bool = True) -> Arms:
    """The built-in engine, ``generate`` with the same batch where that is asked for, and with the batch that suits it
    best; what they build once is built."""
    engines = {"torch": contest.engine("torch"), "hf_best": contest.engine("hf", chunk=contest.best_chunk)}
    if same_batch:
        engines["hf"] = contest.engine("hf")
    for engine in engines.values():
        engine.rollout(contest.episodes.take(slice(0, 1)), 2)
    return {name: rollout_arm(contest, engine) for name, engine in engines.items()}


def update_arms(contest: Contest) -> Arms:
    return {"packed": contest.packed_update, "replicated": contest.replicated_update}


def iteration_arms(contest: Contest) -> Arms:
    return {"sidgym": contest.iteration(usual=False), "minionerec": contest.iteration(usual=True)}


def logp_difference(one: Rollouts, other: Rollouts) -> float:
    """Largest difference of a log-probability of candidates that both found, which must be 99 % of them."""
    worst, shared = 0.0, 0
    for row in range(len(one.codes)):
        place = {tuple(codes): h for h, codes in enumerate(other.codes[row].tolist())}
        for g, codes in enumerate(one.codes[row].tolist()):
            h = place.get(tuple(codes))
            if h is not None and one.valid[row, g]:
                shared += 1
                worst = max(worst, float(np.abs(one.logp[row, g] - other.logp[row, h]).max()))
    if shared < 0.99 * one.valid.sum():
        raise ValueError(f"the two rollouts share {shared} of {one.valid.sum()} candidates; they are not comparable")
    return worst


def gradient_difference(contest: Contest) -> float:
    """Largest difference between the packed and the replicated gradient, as a share of the largest gradient."""
    grads = []
    for update in (contest.packed_update, contest.replicated_update):
        update()
        grads.append(torch.cat([p.grad.flatten() for p in contest.policy.model.parameters() if p.grad is not None]))
    return float((grads[0] - grads[1]).abs().max() / grads[1].abs().max())


def comparisons(title: str, contest: Contest, learned: Contest, rounds: int) -> dict[str, Any]:
    """Rollout on ``contest``, update and iteration on ``learned``."""
    limit = contest.case.limit
    return {
        "rollout": compare(f"{title}rollout", rollout_arms(contest), rounds, limit),
        "update": compare(f"{title}update", update_arms(learned), rounds, limit),
        "iteration": compare(f"{title}iteration", iteration_arms(learned), rounds, limit),
    }


def heart(case: Case, update_case: Case, rounds: int, seed: int) -> dict[str, Any]:
    """The comparisons, and how far the contestants' numbers are apart."""
    contest, learned = Contest(case, seed), Contest(update_case, seed)
    arms = rollout_arms(contest)
    parity = logp_difference(arms["torch"](), arms["hf"]())  # type: ignore[arg-type]
    gradient = gradient_difference(learned)
    figures = comparisons("", contest, learned, rounds)
    return {**figures, "parity_max_logp_diff": parity, "gradient_max_relative_diff": gradient}


def mask_shares(case: Case, rounds: int, seed: int) -> dict[str, float]:
    """Share of the trie's look-ups in a rollout of L beam steps (the first reads the prompt) and, as ``_of_search``, in
    what is left of it without the pass over the prompt, by size of the catalogue."""
    contest = Contest(case, seed)
    engine = contest.engine("torch")
    figures: dict[str, float] = {}
    for name, items in CATALOGUES.items():
        trie = Trie.from_codes(random_codes(items, case.sizes, np.random.default_rng(seed)), case.sizes)
        rollout = rollout_arm(contest, engine, trie)
        rollout()
        shares, of_search = [], []
        for _ in range(rounds):
            clock = time.perf_counter
            with Timer(clock, Trie, LOOK_UPS) as looked_up, Timer(clock, BlockTree, ("__init__", "prompt")) as read:
                start = clock()
                rollout()
                seconds = clock() - start
            shares.append(looked_up.seconds / seconds)
            of_search.append(looked_up.seconds / (seconds - read.seconds))
        share, search = float(np.median(shares)), float(np.median(of_search))
        figures |= {f"mask_share_{name}": share, f"mask_share_{name}_of_search": search}
        print(f"trie look-ups with {name} items: {100 * share:.2f} % of the beam steps, ", end="")
        print(f"{100 * search:.2f} % without the prompt", flush=True)
    return figures


def update_memory(groups: tuple[int, ...], seed: int) -> list[dict[str, Any]]:
    """Peak memory of an update of two contexts, by group size; the replicated one only while it is reasonable."""
    rows = []
    for group in groups:
        contest = Contest(Case(contexts=2, group=group), seed)
        contest.packed_update()  # gradients exist from here on
        row: dict[str, Any] = {"group": group, "packed": peak_bytes(contest.packed_update), "replicated": None}
        if group <= MOST_REPLICATED:
            row["replicated"] = peak_bytes(contest.replicated_update)
        rows.append(row)
        shown = {k: f"{v / 2**20:.0f} MiB" for k, v in row.items() if k != "group" and v is not None}
        print(f"peak memory of an update, G = {group}: {shown}", flush=True)
    return rows


def sweep(rounds: int, seed: int) -> list[dict[str, Any]]:
    """Rollout and update over prompts at G = 16, and over groups at P = 120."""
    cases = [Case(prompt=p) for p in PROMPTS] + [Case(group=g) for g in GROUPS if g != Case.group]
    rows = []
    for case in cases:
        per_context = case.group * (case.prompt_tokens + LEVELS - 1)
        case = replace(case, contexts=max(1, min(case.contexts, SWEEP_TOKENS // per_context)))
        contest = Contest(case, seed)
        name = f"P = {case.prompt_tokens}, G = {case.group}, B = {case.contexts}"
        rollouts = compare(f"{name}, rollout", rollout_arms(contest, same_batch=False), rounds, case.limit)
        updates = compare(f"{name}, update", update_arms(contest), rounds, case.limit)
        rows.append({**asdict(case), "limit": case.limit, "rollout": rollouts, "update": updates})
    return rows


def vllm_turns(case: dict[str, int], rounds: int, seed: int) -> dict[str, float]:
    """vLLM, ``generate`` and the built-in engine, and vLLM's own unconstrained steps of one token; this process's own.

    vLLM's prefix cache is emptied before each of its turns, as new weights empty it in training.
    """
    torch.set_num_threads(1)
    contest = Contest(Case(**case), seed)
    engine = VllmEngine(contest.policy, contest.case.contexts, "trie", in_process=True)
    engine.rollout(contest.episodes.take(slice(0, 1)), 2)  # starts vLLM
    assert engine.runners is not None
    found = contest.engine("torch").rollout(contest.episodes, contest.case.group)
    steps = _single_steps(rollout_arm(contest, engine), engine.runners[0])
    arms: Arms = {"vllm": rollout_arm(contest, engine), "vllm_own_steps": steps, **rollout_arms(contest)}
    weights = contest.policy.model.state_dict()
    times = take_turns(arms, rounds, lambda number: engine.load_weights(weights, number))
    ratio = {name: float(np.median(np.array(values) / np.array(times["vllm"]))) for name, values in times.items()}
    return {
        **{f"{name}_s": float(np.median(values)) for name, values in times.items()},
        "vllm_vs_hf": ratio["hf"],
        "vllm_vs_own_steps": ratio["vllm_own_steps"],
        "vllm_parity_max_logp_diff": logp_difference(found, arms["vllm"]()),  # type: ignore[arg-type]
    }


def _single_steps(rollout: Callable[[], Rollouts], runner: Any) -> Callable[[], None]:
    """The prompts of every step of ``rollout``, each asked for one token with no trie and no log-probabilities."""
    steps: list[list[list[int]]] = []
    score = runner.score

    def record(stamp: str, prompts: list[list[int]], *others: Any) -> np.ndarray:
        steps.append(prompts)
        return score(stamp, prompts, *others)

    runner.score = record
    rollout()
    del runner.score  # what the class says, again
    kind = sys.modules["vllm"].SamplingParams  # the runner has imported it, the one place that may
    wanted = kind(temperature=0, max_tokens=1, detokenize=False, ignore_eos=True, skip_clone=True)

    def run() -> None:
        for step in steps:
            runner.llm.generate([{"prompt_token_ids": prompt} for prompt in step], wanted, use_tqdm=False)

    return run


def vllm_figures(case: Case, rounds: int, seed: int) -> dict[str, Any]:
    """``vllm_turns`` in a process of its own: vLLM changes torch there. All null where it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        print("vllm is not installed: vllm_vs_hf is null")
        return {"vllm_vs_hf": None, "vllm_vs_own_steps": None}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    figures = in_own_process("vllm_turns", asdict(case), rounds, seed)
    print(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return figures


def again(title: str, case: Case, rounds: int, seed: int) -> dict[str, Any]:
    """The comparisons on another case."""
    contest = Contest(case, seed)
    return comparisons(f"{title}, ", contest, contest, rounds)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All comparisons, for the first seed."""
    torch.set_num_threads(1)
    quick, seed = options.quick, options.seeds[0]
    case, small, rounds = (Case(contexts=6), Case(contexts=2), 2) if quick else (Case(), Case(), 5)
    figures = heart(case, small, rounds, seed)
    result = {
        "case": {**asdict(case), "prompt_tokens": case.prompt_tokens},
        "update_contexts": small.contexts,
        "rounds": rounds,
        "rollout_vs_hf": figures["rollout"]["hf_ratio"],
        "update_vs_replicated": figures["update"]["replicated_ratio"],
        "iteration_vs_minionerec": figures["iteration"]["minionerec_ratio"],
        "token_limit": case.limit,
        **vllm_figures(case, rounds, seed),
        **mask_shares(case if quick else Case(), max(rounds, 3), seed),
        **figures,
        "vocabulary_151936": again(
            f"{WORDS} words",
            replace(case, vocabulary=WORDS, contexts=1 if quick else case.contexts),
            1 if quick else 2,
            seed,
        ),
        "update_memory": update_memory(GROUPS[:2] if quick else (4, 16, 64, 128, 256, 512), seed),
    }
    if not quick:
        full = replace(case, codes=FULL)
        result["no_certain_code"] = again("no code is certain", full, 2, seed) | vllm_figures(full, 2, seed)
        result["sweep"] = sweep(2, seed)
    if options.plot:
        from sidgym.benchmarks.throughput_figure import draw

        draw(result, options.plot)
    return result


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plot", type=Path, help="draw the sweep and the memory as an SVG file (not with --quick)")


if __name__ == "__main__":
    main("throughput", __doc__ or "", measure, packages=("transformers",), add_options=add_options)
