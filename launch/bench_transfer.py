"""``sidgym bench transfer``: policies trained on one catalogue, judged on another whose items and users they never saw.

MiniOneRec's claim is that RL alone on one domain (Industrial) helps on another (Office) that it never saw. Here both
catalogues have one codebook (``bench_codes``), and a policy of the first is asked through the trie of the second.
Beside ``rl_only`` stand the untrained policy that it began with, SFT and SFT with RL on the first, and SFT on the
second (``inside``). What differs from the paper: it began from a pretrained language model, and these begin at random
weights unless ``--policy.path`` names a checkpoint.

    OUT/seed-K/               the first catalogue: codes, untrained policy, RL from it
    OUT/seed-K-sft/           the same, with SFT and RL from that
    OUT/seed-K-second/        the second catalogue, SFT inside, and everybody judged on its test users

Left out: training on both.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sidgym.agents.checkpoint import load_policy
from sidgym.agents.evaluate import evaluate_policy
from sidgym.agents.policy import Policy
from sidgym.benchmarks.arms_summary import Trial
from sidgym.benchmarks.arms_words import pair_of
from sidgym.benchmarks.comparisons import shown
from sidgym.benchmarks.systems_summary import pair_words
from sidgym.envs.datasets import load_catalogue
from sidgym.launch import builders
from sidgym.launch.bench import cut_once
from sidgym.launch.bench_arms import rewards_of
from sidgym.launch.bench_codes import FITTED, shared_tables, with_index
from sidgym.launch.bench_figures import figure
from sidgym.launch.bench_sets import HITS
from sidgym.launch.bench_systems import (
    COLOUR,
    Contest,
    Summary,
    about,
    add_common,
    keep_result,
    link_stages,
    save_figures,
    seconds_of,
    write_summary,
)
from sidgym.launch.charts import interval_chart
from sidgym.launch.config import load_config, to_toml
from sidgym.launch.evaluation import test_contexts, true_preference
from sidgym.launch.jobs import Job, run_jobs
from sidgym.launch.pipeline import build_stage, check_names, make_plan, own_sources, trained_settings
from sidgym.launch.schema import RunConfig
from sidgym.launch.stages import Stage, content_hash
from sidgym.sid.table import SidTable

METRICS = ("preference@10", "ndcg@10", "hr@10")
TESTED = ("ndcg@10", "preference@10")
ORDER = ("untrained", "rl_only", "sft", "sft_rl", "inside")
OTHER_SEED = 1000
"""Added to the seed of a simulated second catalogue: another store, other shoppers."""


@dataclass(frozen=True)
class Preset:
    """A configuration, the options before the user's own, and seeds."""

    config: str
    options: tuple[str, ...]
    seeds: int


_SHORT = "--sft.epochs 6 --sft.patience 6 --rl.steps 60 --rl.eval-every 20"
PRESETS = {
    "quick": Preset("objectives", (*_SHORT.split(), *HITS), 5),
    "full": Preset("objectives", ("--rl.steps", "300", "--rl.eval-every", "50", *HITS), 5),
}


@dataclass(frozen=True)
class Runs:
    """The runs of one seed."""

    untrained: RunConfig  # first catalogue, no SFT; its arm is rl_only
    trained: RunConfig  # first catalogue, SFT; its arm is sft_rl
    second: RunConfig  # second catalogue
    fitted: str

    @property
    def tables(self) -> Stage:
        """The stage of both tables; it needs the data of both."""
        data = [make_plan(without_index(run)).stages["data"].hash for run in (self.untrained, self.second)]
        sid = replace(self.untrained.sid, index="")
        inputs = {"sid": asdict(sid), "fitted": self.fitted, "needs": data, "seed": self.untrained.seed}
        return Stage("tables", inputs | {"sources": own_sources()}, self.untrained.directory / "tables")


def run_transfer_command(given: Sequence[str], command: str) -> None:
    """``sidgym bench transfer ...``."""
    parser = argparse.ArgumentParser(prog="sidgym bench transfer", description=about(__doc__ or ""), allow_abbrev=False)
    add_common(parser, list(PRESETS))
    parser.add_argument("--second-path", default="", help="raw data of the second catalogue, which a real log needs")
    parser.add_argument("--codebook", choices=FITTED, default="first", help="what embedder and tokeniser are fitted on")
    options, rest = parser.parse_known_args(given)
    preset = PRESETS[options.preset]
    source = options.config or Path(preset.config)
    settings = [*preset.options, "--log.wandb", "disabled", *rest]
    config = load_config(source, settings, prog="sidgym bench transfer")
    if bool(options.second_path) == (config.data.name == "simulator"):
        parser.error("--second-path: give the folder of the second catalogue's raw data; a simulated one has none")
    out = options.out or Path(config.out) / f"bench-transfer-{options.preset}"
    config = replace(cut_once(config), out=str(out.parent), name=out.name, arms={})
    check_names(config)
    contest = make_contest(config, options, command)
    if options.print_config:
        print(to_toml(contest.config), end="")
        return
    print_estimate(contest)
    if options.dry_run:
        return
    summary = run_transfer(contest, options.second_path, options.codebook)
    for _, text in summary["verdict"]:
        print(f"- {text}")
    print(f"report   {config.directory / 'report.html'}")


def make_contest(config: RunConfig, options: argparse.Namespace, command: str) -> Contest:
    """The contest of a command line."""
    metrics = METRICS if config.data.name == "simulator" else METRICS[1:]
    return Contest(
        name="transfer",
        title="To a catalogue never seen",
        config=config,
        seeds=options.seeds or PRESETS[options.preset].seeds,
        command=command,
        metrics=metrics,
        tested=tuple(metric for metric in TESTED if metric in metrics),
        references=("popularity", "cooccurrence", "random", "oracle", "bound"),
        notes=(
            f"Codebook fitted on {'both catalogues' if options.codebook == 'both' else 'the first catalogue alone'}. "
            "Items and users of the second catalogue took no part in any training but that of 'inside' and of its "
            "popularity and cooccurrence.",
            "rl_only and untrained share their weights at the start"
            + (
                ", which are random."
                if not config.policy.path
                else f": the checkpoint {Path(config.policy.path).name}."
            ),
            f"RL learns from the reward {rewards_of([asdict(term) for term in config.rl.rewards])} with the "
            f"configuration's learning rate, {config.rl.lr:g}, which was not tuned here.",
        ),
        told={"preset": options.preset, "codebook": options.codebook},
    )


def runs_of(contest: Contest, seed: int, second_path: str, codebook: str) -> Runs:
    """The runs of a seed; codes of both catalogues lie below the first one's folder."""
    base = replace(contest.config, seed=seed, out=str(contest.config.directory), name=f"seed-{seed}")
    other_seed = seed if second_path else seed + OTHER_SEED
    data = replace(base.data, path=second_path) if second_path else base.data
    tables = base.directory / "tables"
    first = replace(base, sid=with_index(base.sid, tables / "first"))
    untrained = replace(first, sft=replace(base.sft, epochs=0), arms={"rl_only": base.rl})
    trained = replace(first, name=f"seed-{seed}-sft", arms={"sft_rl": base.rl})
    sid = with_index(base.sid, tables / "second")
    second = replace(base, name=f"seed-{seed}-second", seed=other_seed, data=data, sid=sid)
    return Runs(untrained, trained, second, codebook)


def setting_of(contest: Contest, second_path: str, codebook: str) -> str:
    """Hash of what trials must have in common."""
    config = contest.config
    parts = {name: asdict(getattr(config, name)) for name in ("data", "sid", "policy", "sft", "preference", "eval")}
    second = {"second": second_path, "codebook": codebook, "split_seed": config.split_seed, "sources": own_sources()}
    return content_hash({**parts, **second, "rl": trained_settings(config.rl)})


def run_transfer(contest: Contest, second_path: str = "", codebook: str = "first") -> Summary:
    """Trains and judges what is missing, then writes summary and reports; the summary."""
    config, folder = contest.config, contest.config.directory
    folder.mkdir(parents=True, exist_ok=True)
    every = [runs_of(contest, seed, second_path, codebook) for seed in contest.numbers]
    for runs in every:
        link_stages(runs.trained.directory, runs.untrained.directory, ("data", "preference"))
    run_jobs([Job(f"Seed {r.untrained.seed}: data and codes", build_codes, (r,)) for r in every], config.workers)
    parts = [(seed_runs, part) for part in ("trained", "untrained", "inside") for seed_runs in every]
    names = {"trained": "SFT, and RL from it", "untrained": "RL alone", "inside": "SFT on the second catalogue"}
    # One after the other where they share a preference model, which the first of them builds.
    ready = [Job(f"Seed {r.untrained.seed}: preference model", build_shared, (r,)) for r in every]
    run_jobs(ready if config.preference.enabled else [], config.workers)
    jobs = [Job(f"Seed {r.untrained.seed}: {names[part]}", build_part, (r, part)) for r, part in parts]
    try:
        run_jobs(jobs, config.workers)
    finally:
        setting = setting_of(contest, second_path, codebook)
        for runs in every:
            keep(folder, runs, setting)
    dataset, _ = test_contexts(every[0].second)
    same = dataset.truth is None  # the split of a log is the same for all seeds
    return write_summary(contest, setting, same, add_words, charts, {"seconds": "seconds"}, ORDER)


def build_codes(runs: Runs, on_progress: Any = None) -> None:
    """Data of both catalogues, and their codes."""
    builders.prepare_process(runs.untrained.threads)
    for run in (runs.untrained, runs.second):
        _build(run, ("data",), on_progress, check=False)

    def build(work: Path) -> None:
        first, second = (load_catalogue(run.directory / "data") for run in (runs.untrained, runs.second))
        sid = replace(runs.untrained.sid, index="")
        tables = shared_tables(first, second, sid, runs.untrained.seed, runs.fitted)
        for name, table in zip(("first", "second"), tables):
            table.save(work / name)

    runs.tables.run(build)
    for run in (runs.untrained, runs.trained, runs.second):
        _build(run, ("sid",), on_progress)


def build_shared(runs: Runs, on_progress: Any = None) -> None:
    """What both runs on the first catalogue read."""
    _build(runs.untrained, ("preference",), on_progress)


def build_part(runs: Runs, part: str, on_progress: Any = None) -> None:
    """Trains one part of a seed and judges what it leaves on the second catalogue."""
    run = {"trained": runs.trained, "untrained": runs.untrained, "inside": runs.second}[part]
    stages = ("sft", *(f"rl_{arm}" for arm in run.arms)) if part != "inside" else ("evaluate/baselines", "sft")
    _build(run, stages, on_progress)
    builders.prepare_process(run.threads)
    for system, (source, stage) in policies(runs).items():
        if source is run:
            judged_stage(runs, system).run(partial(judge, runs, source.directory / stage))


def _build(run: RunConfig, names: Sequence[str], on_progress: Any, check: bool = True) -> None:
    """Stages by name; without ``check`` those that do not read the codes, which need not lie there yet."""
    plan = make_plan(run if check else without_index(run))
    for name in names:
        if not plan.stages[name].complete:
            build_stage(run, plan.stages[name], on_progress)


def without_index(run: RunConfig) -> RunConfig:
    """A run whose codes need not lie there yet; its data are the same."""
    return replace(run, sid=replace(run.sid, index=""))


def policies(runs: Runs) -> Mapping[str, tuple[RunConfig, str]]:
    """System -> the run and the stage that its policy comes from."""
    return {
        "untrained": (runs.untrained, "sft"),
        "rl_only": (runs.untrained, "rl_rl_only"),
        "sft": (runs.trained, "sft"),
        "sft_rl": (runs.trained, "rl_sft_rl"),
        "inside": (runs.second, "sft"),
    }


def judged_stage(runs: Runs, system: str) -> Stage:
    """The stage that keeps what a system came to on the second catalogue."""
    run, stage = policies(runs)[system]
    needs = [make_plan(run).stages[stage].hash, make_plan(runs.second).stages["sid"].hash]
    inputs = {"needs": needs, "eval": asdict(runs.second.eval)}
    return Stage(f"judged/{system}", inputs, runs.second.directory / "judged" / system)


def judge(runs: Runs, checkpoint: Path, work: Path) -> None:
    """Figures of a policy on the second catalogue's test users, through that catalogue's trie."""
    policy = on_catalogue(load_policy(checkpoint), SidTable.load(runs.second.directory / "sid"))
    dataset, episodes = test_contexts(runs.second)
    per_user, whole, _ = evaluate_policy(policy, episodes, runs.second.eval, true_preference(dataset))
    save_figures(work, per_user, whole)


def on_catalogue(policy: Policy, table: SidTable) -> Policy:
    """The policy asked about another catalogue whose SIDs have the same tokens. ``ValueError`` where they have not."""
    if policy.table.sizes != table.sizes:
        raise ValueError(
            f"a policy over {policy.table.sizes} codes cannot be asked about a catalogue with {table.sizes}; code both "
            "with one tokeniser"
        )
    other = Policy(policy.model, policy.tokenizer, table)
    if policy.template != "plain":
        other.use_template(policy.template)
    return other.eval()


def keep(folder: Path, runs: Runs, setting: str) -> None:
    """Lines of everything of a seed that has been judged."""
    if not runs.tables.complete:
        return
    for system, (run, name) in policies(runs).items():
        judged = judged_stage(runs, system)
        if judged.complete:
            cost = {"seconds": seconds_of(make_plan(run).stages[name])} if system != "untrained" else {}
            keep_result(folder, judged, judged.directory, system, runs.untrained.seed, setting, cost)
    stage = make_plan(runs.second).stages["evaluate/baselines"]
    for path in sorted(stage.directory.glob("*/per_user.npz")) if stage.complete else ():
        keep_result(folder, stage, path.parent, path.parent.name, runs.untrained.seed, setting, {})


def add_words(summary: Summary, trials: Sequence[Trial]) -> None:
    """The verdict."""
    summary["verdict"] = [list(said) for said in words(summary)]


def words(summary: Summary) -> Iterator[tuple[int, str]]:
    """What the policies show on the catalogue that they never saw."""
    for a, b in (
        ("rl_only", "untrained"),
        ("sft", "untrained"),
        ("rl_only", "sft"),
        ("rl_only", "inside"),
        ("sft_rl", "sft"),
        ("sft", "inside"),
    ):
        for metric in TESTED:
            pair = pair_of(summary, a, b, metric)
            if pair:
                yield shown(pair), pair_words(pair)


def charts(summary: Summary) -> Iterator[str]:
    """Each system's difference to the untrained policy."""
    for metric in TESTED:
        found = {name: pair_of(summary, name, "untrained", metric) for name in summary["systems"]}
        rows = [(name, pair, COLOUR) for name, pair in found.items() if pair]
        if rows:
            svg = interval_chart(f"from-{metric.replace('@', '-')}", rows, f"difference in {metric}")
            yield figure(f"{metric}, minus the untrained policy", svg)


def print_estimate(contest: Contest) -> float:
    """Prints and returns about how many seconds all seeds take, by timed steps on the first catalogue."""
    from sidgym.launch.estimate import estimate

    config = contest.config
    costs = {cost.stage: cost.seconds for cost in estimate(config)[0]}
    seed = costs["data"] * 2 + costs["sft"] * 2 + costs["rl"] * 2 + costs["evaluate"] / 3 * 5
    wall = seed * contest.seeds / max(1, config.workers)
    print(
        f"about {wall / 60:.1f} minutes with {config.workers} worker(s), preference model not counted", file=sys.stderr
    )
    return wall
