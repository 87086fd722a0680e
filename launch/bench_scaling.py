"""``sidgym bench scaling``: loss and accuracy of supervised training by the size of the model, and the fitted law.

Every size is a fresh model, trained on the same sequences of the same data and codes, with one rule for its learning
rate that was set beforehand. Judged are the loss of the test users' targets and their NDCG. Sources: MiniOneRec's and
OneRec-V1's scaling figures. Left out: pretrained models, and laws in data or operations.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.agents.packed import packed_scores
from sidgym.agents.policy import Policy, build_policy, parameter_count
from sidgym.agents.sft import make_feed
from sidgym.benchmarks.arms_summary import Trial
from sidgym.benchmarks.arms_words import pair_of
from sidgym.benchmarks.comparisons import shown
from sidgym.benchmarks.power_law import EXPONENTS, LEAST_SIZES, law_with_interval
from sidgym.benchmarks.systems_summary import pair_words
from sidgym.envs.records import Episodes
from sidgym.launch import builders
from sidgym.launch.bench import cut_once
from sidgym.launch.bench_figures import figure
from sidgym.launch.bench_systems import (
    Contest,
    Summary,
    about,
    add_common,
    keep_result,
    link_stages,
    read_figures,
    save_figures,
    seconds_of,
    write_summary,
)
from sidgym.launch.charts import Style, band_chart
from sidgym.launch.config import load_config, to_toml
from sidgym.launch.evaluation import test_contexts
from sidgym.launch.jobs import Job, run_jobs
from sidgym.launch.pipeline import build_stage, make_plan, own_sources
from sidgym.launch.schema import ConfigError, PreferenceConfig, RunConfig
from sidgym.launch.stages import Stage, content_hash
from sidgym.sid.table import SidTable

SIZES: Mapping[str, Mapping[str, int]] = {
    "xs": {"hidden_size": 16, "intermediate_size": 48, "layers": 1, "heads": 2, "kv_heads": 1},
    "s": {"hidden_size": 32, "intermediate_size": 96, "layers": 2, "heads": 2, "kv_heads": 1},
    "m": {"hidden_size": 64, "intermediate_size": 192, "layers": 2, "heads": 4, "kv_heads": 2},
    "l": {"hidden_size": 128, "intermediate_size": 384, "layers": 3, "heads": 4, "kv_heads": 2},
    "xl": {"hidden_size": 256, "intermediate_size": 768, "layers": 4, "heads": 8, "kv_heads": 4},
}
METRICS = ("loss", "nll", "ndcg@10", "hr@10", "preference@10")
TESTED = ("loss", "ndcg@10")


@dataclass(frozen=True)
class Preset:
    """A configuration, options before the user's own, sizes and seeds."""

    config: str
    options: tuple[str, ...]
    sizes: tuple[str, ...]
    seeds: int


PRESETS = {
    "quick": Preset("objectives", ("--sft.epochs", "6", "--sft.patience", "6"), ("xs", "s", "m", "l"), 5),
    "full": Preset("objectives", (), ("xs", "s", "m", "l", "xl"), 5),
}


def run_scaling_command(given: Sequence[str], command: str) -> None:
    """``sidgym bench scaling ...``."""
    parser = argparse.ArgumentParser(prog="sidgym bench scaling", description=about(__doc__ or ""), allow_abbrev=False)
    add_common(parser, list(PRESETS))
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), help="at least four (default: the preset's)")
    options, rest = parser.parse_known_args(given)
    contest, sizes = make_contest(options, rest, command)
    if options.print_config:
        print(to_toml(contest.config), end="")
        return
    print_estimate(contest, sizes)
    if options.dry_run:
        return
    summary = run_scaling(contest, sizes)
    for _, text in summary["verdict"]:
        print(f"- {text}")
    print(f"report   {contest.config.directory / 'report.html'}")


def make_contest(options: argparse.Namespace, rest: Sequence[str], command: str) -> tuple[Contest, Sequence[str]]:
    """The contest that a command line asks for, and its sizes in their order."""
    preset = PRESETS[options.preset]
    sizes = [name for name in SIZES if name in (options.sizes or preset.sizes)]
    if len(sizes) < LEAST_SIZES:
        raise ConfigError(f"--sizes: a law needs at least {LEAST_SIZES} sizes, got {' '.join(sizes)}")
    source = options.config or Path(preset.config)
    config = load_config(source, [*preset.options, "--log.wandb", "disabled", *rest], prog="sidgym bench scaling")
    out = options.out or Path(config.out) / f"bench-scaling-{options.preset}"
    # RL is not run, so that neither its arms nor what its rewards read is built.
    config = replace(cut_once(config), out=str(out.parent), name=out.name, arms={}, preference=PreferenceConfig())
    contest = Contest(
        name="scaling",
        title="Loss by model size",
        config=config,
        seeds=options.seeds or preset.seeds,
        command=command,
        metrics=METRICS,
        tested=TESTED,
        references=("popularity", "cooccurrence", "random", "oracle", "bound"),
        notes=(
            "Loss: mean cross-entropy of a code of the test target, over the whole vocabulary (nats). nll: of the "
            "whole SID, over the trie (nats). Weights are those of the best validation by NDCG@10, so the loss need "
            "not be at its own best.",
            f"Learning rate: the configured {config.sft.lr:g} at the configured width, {config.policy.hidden_size}, "
            f"times sqrt({config.policy.hidden_size} / width) at others; nothing else is tuned by size. Parameters are "
            "all of a model, embeddings of the SIDs among them.",
        ),
        told={"preset": options.preset, "sizes": {name: dict(SIZES[name]) for name in sizes}},
    )
    return contest, sizes


def sized(config: RunConfig, size: str) -> RunConfig:
    """``config`` with the model of a size and its learning rate; dropout and the rest stay.

    The configured rate is taken to hold at the configured width; others get it times sqrt(that width / their own).
    """
    policy = replace(config.policy, path="", **SIZES[size])  # type: ignore[arg-type]
    rate = config.sft.lr * math.sqrt(config.policy.hidden_size / policy.hidden_size)
    return replace(config, policy=policy, sft=replace(config.sft, lr=rate))


def setting_of(config: RunConfig) -> str:
    """Hash of what trials must have in common: all but the seed, and which of the sizes are measured."""
    told: dict[str, Any] = {name: asdict(getattr(config, name)) for name in ("data", "sid", "sft", "eval")}
    told["split_seed"] = config.split_seed
    shape = {name for size in SIZES.values() for name in size} - {"hidden_size"}  # the width sets the learning rate
    policy = {name: value for name, value in asdict(config.policy).items() if name not in (*shape, "path")}
    sizes = {name: dict(size) for name, size in SIZES.items()}
    return content_hash({**told, "policy": policy, "sizes": sizes, "sources": own_sources()})


def run_scaling(contest: Contest, sizes: Sequence[str]) -> Summary:
    """Trains and judges what is missing, then writes summary and reports; the summary."""
    config, folder = contest.config, contest.config.directory
    bases = [replace(config, seed=k, out=str(folder), name=f"seed-{k}") for k in contest.numbers]
    folder.mkdir(parents=True, exist_ok=True)
    first = [Job(f"Seed {run.seed}: data and codes", build_base, (run,)) for run in bases]
    run_jobs(first, config.workers)
    runs = [(size, replace(sized(base, size), name=f"{base.name}-{size}")) for size in sizes[::-1] for base in bases]
    for _, run in runs:
        link_stages(run.directory, folder / f"seed-{run.seed}", ("data", "sid"))
    jobs = [Job(f"Seed {run.seed}: size {size}", build_size, (run,)) for size, run in runs]
    try:
        run_jobs(jobs, config.workers)
    finally:
        setting = setting_of(config)
        for size, run in runs:
            judged = loss_stage(run)
            if judged.complete:
                cost = {"seconds": seconds_of(make_plan(run).stages["sft"])}
                keep_result(folder, judged, judged.directory, size, run.seed, setting, cost)
        for base in bases:
            stage = make_plan(base).stages["evaluate/baselines"]
            for path in sorted(stage.directory.glob("*/per_user.npz")) if stage.complete else ():
                keep_result(folder, stage, path.parent, path.parent.name, base.seed, setting, {})
    dataset, _ = test_contexts(bases[0])
    same = dataset.truth is None  # the split of a log is the same for all seeds
    heads = {"parameters": "parameters", "seconds": "seconds"}
    order = [*SIZES]
    return write_summary(contest, setting, same, add_law, law_charts, heads, order)


def build_base(run: RunConfig, on_progress: Any = None) -> None:
    """Data, codes and baselines of a seed."""
    stages = make_plan(run).stages
    for name in ("data", "sid", "evaluate/baselines"):
        if not stages[name].complete:
            build_stage(run, stages[name], on_progress)


def build_size(run: RunConfig, on_progress: Any = None) -> None:
    """Trains and judges one size of a seed."""
    stages = make_plan(run).stages
    for name in ("sft", "evaluate/sft"):
        if not stages[name].complete:
            build_stage(run, stages[name], on_progress)
    builders.prepare_process(run.threads)
    loss_stage(run).run(lambda work: judge_loss(run, work))


def loss_stage(run: RunConfig) -> Stage:
    """The stage that keeps all figures of a size: those of its evaluation, and its losses."""
    judged = make_plan(run).stages["evaluate/sft"]
    return Stage("evaluate/loss", {"needs": [judged.hash]}, run.directory / "evaluate" / "loss")


def judge_loss(run: RunConfig, work: Path) -> None:
    """Losses of the test users' targets beside the metrics of the evaluation."""
    policy = builders.load_stage_policy(run, "sft")
    _, episodes = test_contexts(run)
    per_user, whole = read_figures(run.directory / "evaluate" / "sft" / "sft")
    per_user |= losses(policy, episodes, run.eval.batch)
    save_figures(work, per_user, whole | {"parameters": float(parameter_count(policy.model))})


def losses(policy: Policy, episodes: Episodes, batch: int = 64) -> dict[str, np.ndarray]:
    """``loss``, cross-entropy a code of the target over the vocabulary, and ``nll``, of the whole SID over the trie:
    (B,) nats each."""
    codes = torch.from_numpy(policy.table.codes)[torch.from_numpy(episodes.target)][:, None]
    found: dict[str, list[np.ndarray]] = {"loss": [], "nll": []}
    with torch.no_grad():
        for start in range(0, len(episodes), batch):
            rows = slice(start, start + batch)
            vocab, trie = packed_scores(policy, episodes.take(rows).trimmed(), codes[rows], ("vocab", "trie"))
            found["loss"].append(-vocab.logp.mean((1, 2)).cpu().numpy().astype(np.float64))
            found["nll"].append(-trie.logp.sum((1, 2)).cpu().numpy().astype(np.float64))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def add_law(summary: Summary, trials: Sequence[Trial]) -> None:
    """The law through the sizes' losses, the number of their parameters, and the verdict."""
    names = list(summary["systems"])
    by_size = {name: {t.seed: t for t in trials if t.system == name} for name in names}
    for name in names:
        summary["systems"][name]["parameters"] = next(iter(by_size[name].values())).whole["parameters"]
    seeds = sorted(set.intersection(*(set(found) for found in by_size.values())))
    summary["law"] = None
    if len(names) >= LEAST_SIZES and seeds:
        parameters = [summary["systems"][name]["parameters"] for name in names]
        given = [[by_size[name][seed].per_user["loss"] for seed in seeds] for name in names]
        summary["law"] = law_with_interval(parameters, given, same_users=summary["same_users"])
    summary["verdict"] = [list(said) for said in words(summary)]


def words(summary: Summary) -> Iterator[tuple[int, str]]:
    """What the sizes show, in sentences."""
    names = sorted(summary["systems"], key=lambda name: summary["systems"][name]["parameters"])
    for metric, good in (("loss", -1), ("ndcg@10", 1)):
        pair = pair_of(summary, names[-1], names[0], metric)
        if pair:
            yield shown(pair) * good, f"Largest against smallest: {pair_words(pair)}"
    lowest = min(names, key=lambda name: summary["systems"][name]["loss"]["mean"])
    beyond = pair_of(summary, names[-1], lowest, "loss")
    if beyond:
        yield 0, f"The lowest mean loss is {lowest}'s, not the largest one's: {pair_words(beyond)}"
    if summary["law"]:
        yield 0, _law_words(summary["law"], len(names))


def _law_words(law: Mapping[str, Any], sizes: int) -> str:
    """The fitted law in a sentence, and whether these sizes tell its exponent at all."""
    ends, steep = law["exponent_interval"], law["slope_interval"]
    untold = ends["low"] <= EXPONENTS[0] or ends["high"] >= EXPONENTS[-1]
    text = (
        f"Loss ≈ {law['floor']:.3f} + {law['scale']:.3f} · (N / {law['smallest']:,.0f})^−{law['exponent']:.3f} "
        f"(exponent {ends['low']:.3f} to {ends['high']:.3f}{', so these sizes do not tell it' if untold else ''}; "
        f"R² {law['r2']:.3f}); without a floor the slope of log loss on log N is {law['slope']:+.4f} "
        f"({steep['low']:+.4f} to {steep['high']:+.4f}), over {sizes} sizes and {law['seeds']} "
        f"seed{'' if law['seeds'] == 1 else 's'}."
    )
    return text.replace("-", "−")


def law_charts(summary: Summary) -> Iterator[str]:
    """Loss and NDCG by the logarithm of the number of parameters, with the law."""
    names = sorted(summary["systems"], key=lambda name: summary["systems"][name]["parameters"])
    style = {"measured": Style("#0072B2"), "law": Style("#D55E00", "6 2")}
    for metric, unit in (("loss", "test loss, nats a code"), ("ndcg@10", "test NDCG@10")):
        known = [(summary["systems"][n]["parameters"], summary["systems"][n].get(metric)) for n in names]
        lines = {"measured": [[math.log10(x), y["mean"], y["low"], y["high"]] for x, y in known if y]}
        law = summary["law"]
        if metric == "loss" and law:
            grid = np.geomspace(known[0][0], known[-1][0], 40)
            fit = law["floor"] + law["scale"] * (grid / law["smallest"]) ** -law["exponent"]
            lines["law"] = [[math.log10(x), y, y, y] for x, y in zip(grid.tolist(), fit.tolist())]
        svg = band_chart(f"size-{metric.replace('@', '-')}", lines, "log10 of parameters", unit, style)
        caption = f"{unit[0].upper()}{unit[1:]}, by model size"
        yield figure(caption + ("; broken line: the law" if "law" in lines else ""), svg)


def print_estimate(contest: Contest, sizes: Sequence[str]) -> float:
    """Prints and returns about how many seconds training takes, by one timed step of each size."""
    from sidgym.envs.datasets import load_dataset
    from sidgym.envs.splits import split
    from sidgym.sid.config import SidConfig
    from sidgym.sid.tokenizers import build_table

    config = contest.config
    builders.prepare_process(config.threads)
    dataset = load_dataset(config.data, config.seed)
    sequences = split(dataset, config.data, config.seed).sft
    shape = SidConfig(tokenizer="random", levels=config.sid.levels, codes=config.sid.codes)
    table: SidTable = build_table(np.zeros((len(dataset.catalogue), 1)), dataset.catalogue.ids, shape, config.seed)
    total = 0.0
    for size in sizes:
        chosen = sized(config, size)
        policy = build_policy(chosen.policy, table, config.seed)
        feed = make_feed(policy, sequences, chosen.sft, config.data.history, config.seed, dataset.catalogue)
        batches = feed.epoch(0)
        begin = time.perf_counter()
        for part in feed.parts(batches[len(batches) // 2]):
            feed.loss(policy, part).backward()
        seconds = (time.perf_counter() - begin) * len(batches) * config.sft.epochs
        total += seconds * contest.seeds
        print(f"size {size:3} {parameter_count(policy.model):>12,} parameters, about {seconds / 60:.1f} minutes a seed",
              file=sys.stderr)  # fmt: skip
    wall = total / max(1, config.workers)
    print(f"about {wall / 60:.1f} minutes of training with {config.workers} worker(s)", file=sys.stderr)
    return wall
