"""``sidgym bench NAME``: contests of arms from one start. The command line, and the presets.

Left out: what the commands do (``bench_runs``), where arms come from (``bench_arms``, ``bench_sets``), and the contests
that are none of arms (``bench_scaling``, ``bench_transfer``).
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidgym.benchmarks.script import at_least_one
from sidgym.launch.bench_sets import SETS, apart_of, notes_of, with_set
from sidgym.launch.schema import ConfigError, RunConfig, validate

if TYPE_CHECKING:
    from sidgym.launch.bench_runs import Bench

BENCHES = {
    "variants": "policy-gradient objectives from one SFT checkpoint, beside SFT and a likelihood-only control",
    **{name: chosen.about for name, chosen in SETS.items()},
    "scaling": "loss and accuracy of SFT by the size of the model, with a fitted power law",
    "transfer": "policies trained on one catalogue, judged on another that they never saw",
}
EXAMPLE = {"variants": "ecpo", "sampling": "beam", "rewards": "rule", "normalise": "trie"}
"""An arm of each contest, for its --help."""
OBJECTIVES = ("grpo", "ecpo", "gbpo", "grpo_sr", "rloo", "dapo")


@dataclass(frozen=True)
class Preset:
    """A configuration, the options that come before the user's own, and how often it is repeated."""

    config: str
    options: tuple[str, ...]
    seeds: int


PRESETS = {
    "quick": Preset(
        "objectives",
        tuple("--sft.epochs 6 --sft.patience 6 --rl.steps 40 --rl.eval-every 5 --log.wandb disabled".split()),  # noqa: SIM905
        5,
    ),
    "full": Preset("objectives", ("--rl.eval-every", "10", "--log.wandb", "disabled"), 5),
}


def make_parser(name: str) -> argparse.ArgumentParser:
    """The parser of everything but the settings, which have a parser of their own."""
    parser = argparse.ArgumentParser(
        prog=f"sidgym bench {name}",
        description=f"{BENCHES[name][0].upper()}{BENCHES[name][1:]}. Every setting of a run is an option too, such as "
        f"--data.users 500 --rl.steps 40 --arms.{EXAMPLE[name]}.lr 3e-4 (--print-config shows them all, sidgym run "
        "CONFIG --help explains them); what is said of rl holds for every arm that learns from rewards. The same "
        "command goes on where it was stopped; with more objectives or seeds it adds to the folder.",
        allow_abbrev=False,
    )
    if name in SETS:
        parser.add_argument(
            "--arms", nargs="+", default=[], metavar="NAME",
            help=f"some of {', '.join(SETS[name].arms)}, or arms of the configuration"
            + (", or rewards of another name, or package.module:name" if SETS[name].of_rewards else "")
            + " (default: all of these)",
        )  # fmt: skip
    else:
        parser.add_argument(
            "--objectives", nargs="+", default=list(OBJECTIVES), metavar="NAME",
            help="objectives, arms of the configuration, or package.module:name (default: %(default)s)",
        )  # fmt: skip
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), default="full", help="full, or quick: some ten minutes on two cores"
    )
    parser.add_argument("--config", type=Path, help="TOML file or shipped name in place of the preset's")
    parser.add_argument(
        "--seeds", type=at_least_one, help="how many, from the configured one on (default: the preset's)"
    )
    parser.add_argument("--out", type=Path, help="folder of the contest (default: runs/bench-NAME-PRESET)")
    parser.add_argument("--start-of", type=Path, metavar="FOLDER", help="another contest's folder: data, codes, start "
                        "and preference model are taken from it where they are the same")  # fmt: skip
    parser.add_argument("--metric", default="", help="what decides which is best, such as ndcg@10 (default: the true "
                        "preference of the top 10 where it is known, else ndcg@10)")  # fmt: skip
    parser.add_argument("--target-ndcg", type=float, help="validation NDCG@10 that costs are told for (default: "
                        "above each seed's start by half of the largest gain, where that is shown)")  # fmt: skip
    parser.add_argument("--ray", action="store_true", help="run trials as Ray tasks, on --address or on this machine")
    parser.add_argument("--dry-run", action="store_true", help="estimate the time, and stop")
    parser.add_argument("--print-config", action="store_true", help="print every setting of all arms, and stop")
    return parser


def run_bench_command(given: Sequence[str]) -> None:
    """``sidgym bench NAME ...``. Raises ``SystemExit`` for what is malformed, after an explanation."""
    front = argparse.ArgumentParser(
        prog="sidgym bench",
        description="; ".join(f"{name}: {text}" for name, text in BENCHES.items()) + ". Each has a --help of its own.",
    )
    front.add_argument("name", choices=sorted(BENCHES))
    name = front.parse_args(given[:1]).name
    if name in ("scaling", "transfer"):
        _run_other(name, given)
        return
    options, rest = make_parser(name).parse_known_args(given[1:])
    check_options(options)
    bench = make_bench(name, options, rest, given)
    if options.print_config:
        from sidgym.launch.config import to_toml

        print(to_toml(bench.config), end="")
        return

    from rich.console import Console

    from sidgym.launch.bench_estimate import print_estimate
    from sidgym.launch.bench_report import console_table
    from sidgym.launch.bench_runs import others_here, run_bench
    from sidgym.launch.pipeline import check_names

    check_names(bench.config)
    for line in others_here(bench):
        print(line, file=sys.stderr)
    print_estimate(bench)
    if options.dry_run:
        return
    summary = run_bench(bench)
    console = Console()
    console.print(console_table(summary))
    for _, text in summary["verdict"]:
        console.print(f"- {text}", markup=False, highlight=False)
    folder = bench.config.directory
    for what, file in (("report", "report.html"), ("tables", "report.md"), ("summary", "summary.json")):
        print(f"{what:8} {folder / file}")


def _run_other(name: str, given: Sequence[str]) -> None:
    """The contests that are none of arms."""
    if name == "scaling":
        from sidgym.launch.bench_scaling import run_scaling_command

        run_scaling_command(given[1:], shlex.join(["sidgym", "bench", *_without_places(given)]))
    else:
        from sidgym.launch.bench_transfer import run_transfer_command

        run_transfer_command(given[1:], shlex.join(["sidgym", "bench", *_without_places(given)]))


def check_options(options: argparse.Namespace) -> None:
    """Raises ``ConfigError`` for values that cannot work, before anything is read."""
    if options.target_ndcg is not None and not 0 < options.target_ndcg < 1:
        raise ConfigError(f"--target-ndcg: expected an NDCG@10 between 0 and 1, got {options.target_ndcg}")
    if options.start_of and not any(options.start_of.glob("seed-*")):
        raise ConfigError(
            f"--start-of: expected the folder of a contest, with seed-0 and so on; got {options.start_of}"
        )


def make_bench(name: str, options: argparse.Namespace, rest: Sequence[str], given: Sequence[str]) -> "Bench":
    """The contest that a command line asks for."""
    from sidgym.launch.bench_arms import notes_of_objectives, with_arms
    from sidgym.launch.bench_runs import Bench
    from sidgym.launch.config import apply_arm_options, load_config, split_arm_options

    preset, chosen = PRESETS[options.preset], SETS.get(name)
    source = options.config or Path(preset.config)
    own = () if chosen is None else chosen.quick if options.preset == "quick" else chosen.full
    settings, prog = [*preset.options, *own, *rest], f"sidgym bench {name}"
    configured = load_config(source, split_arm_options(settings)[1], prog).arms
    of_arms, settings = split_arm_options(settings, configured)
    config = found = load_config(source, settings, prog)
    rated = source == Path(preset.config)
    told: dict[str, Any] = {"preset": options.preset}
    if chosen is None:
        config = with_arms(config, options.objectives, settings)
    else:
        config = with_set(config, chosen, options.arms, settings, rated)
        told |= {"kind": chosen.kind}
    config = apply_arm_options(config, of_arms, prog)
    validate(config, "bench")
    check_metric(options.metric, config)
    out = options.out or Path(config.out) / f"bench-{name}-{options.preset}"
    return Bench(
        config=replace(cut_once(config), out=str(out.parent), name=out.name),
        seeds=options.seeds or preset.seeds,
        title=chosen.title if chosen else "Policy-gradient variants",
        command=shlex.join(["sidgym", "bench", *_without_places(given)]),
        metric=options.metric,
        target=options.target_ndcg,
        ray=options.ray,
        told=told,
        notes=notes_of(config, chosen, rated) if chosen else notes_of_objectives(config, found),
        name=name,
        apart=apart_of(config, chosen) if chosen else {},
        start_of=options.start_of,
    )


def check_metric(metric: str, config: RunConfig) -> None:
    """Raises ``ConfigError`` where what decides ("": what decides by default) will not be measured."""
    names = ("ndcg", "hr", *(name.rpartition(":")[2] for name in config.eval.metrics))
    known = [f"{name}@{k}" for k in config.eval.ks for name in names] + ["popular@10", "tail@10", "div"]
    if config.data.name == "simulator" or ":" in config.data.name:  # one of the user's own may know the truth, too
        known = ["preference@10", "preference@1", *known]
    wanted = metric or ("ndcg@10" if "preference@10" not in known else "preference@10")
    if wanted not in known:
        raise ConfigError(
            f"--metric: expected one of {', '.join(known)}, got {wanted!r}; --eval.ks and --eval.metrics measure more"
        )


def cut_once(config: RunConfig) -> RunConfig:
    """``config`` with one split of a log for all seeds, so that they judge the same users.

    Users of a log dealt anew with each seed would be neither the same nor independent. A simulated store is another one
    with each seed whatever its split.
    """
    if config.data.name == "simulator" or config.data.split != "by_user" or config.split_seed != "seed":
        return config
    return replace(config, split_seed=config.seed)


PLACES = ("--out", "--start-of")


def _without_places(given: Sequence[str]) -> list[str]:
    """A command as it would be given elsewhere: where its folders lie changes no result."""
    kept, skip = [], False
    for token in given:
        if not skip and token.partition("=")[0] not in PLACES:
            kept.append(token)
        skip = token in PLACES
    return kept
