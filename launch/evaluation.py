"""Evaluation of every system of a run on the same test contexts, its summary and its report.

A system is whatever answers a context with a ranked list: baselines, policies, the oracle. Each leaves per-context
metrics and its lists; the summary compares them pairwise over contexts. Left out: how metrics and intervals are made.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sidgym.agents.config import ScoringConfig
from sidgym.agents.evaluate import Preference, evaluate_policy, judge_items, rerank
from sidgym.benchmarks.baselines.cooccurrence import LastItemCooccurrence
from sidgym.benchmarks.baselines.popularity import Popularity
from sidgym.benchmarks.summary import SystemResult, summarise, write_summary
from sidgym.envs.datasets import DataSet
from sidgym.envs.records import PAD_ITEM, SHOWN, Episodes
from sidgym.envs.splits import load_splits
from sidgym.launch import builders
from sidgym.launch.schema import RunConfig, arms_of
from sidgym.launch.stages import environment_record
from sidgym.sid.table import SidTable

if TYPE_CHECKING:
    from sidgym.envs.simulator import Truth


def system_name(stage: str) -> str:
    """What the tables call the policy of a stage: a control arm goes by its own name."""
    return stage.removeprefix("rl_")


def test_contexts(config: RunConfig) -> tuple[DataSet, Episodes]:
    """The data set and the test contexts that every system answers."""
    dataset = DataSet.load(config.directory / "data")
    return dataset, load_splits(config.directory / "data").test.take(slice(0, config.eval.max_users or None))


def build_evaluation(config: RunConfig, work: Path, on_progress: Any, name: str) -> None:
    """Evaluates one policy (and SFT's reranked list beside it) or all baselines; a folder a system."""
    stage = name.removeprefix("evaluate/")
    if stage == "baselines":
        _evaluate_baselines(config, work)
        return
    system = system_name(stage)
    dataset, episodes = test_contexts(config)
    policy = builders.load_stage_policy(config, stage)
    preference = true_preference(dataset)
    per_user, whole, ranked = evaluate_policy(policy, episodes, config.eval, preference, on_progress)
    save_system(work / system, SystemResult(system, per_user, whole), ranked.items)
    if system == "sft" and config.preference.enabled:
        # Each list is scored once, so there is nothing to remember, and Ray need not run.
        task = replace(builders.rl_task(config, config.rl, config.seed), scoring=ScoringConfig(cache=0))
        reward = task.load_reward(policy.table)
        blind = without_answer(episodes)
        starts = range(0, len(blind), config.eval.batch)
        rows = [slice(start, start + config.eval.batch) for start in starts]
        best = rerank(ranked, np.concatenate([reward(blind.take(r), ranked.take(r))[0] for r in rows]))
        result = judge_items(best.items, episodes, config.eval, preference, policy.table.num_items)
        save_system(work / "sft_reranked", SystemResult("sft_reranked", *result), best.items)


def without_answer(episodes: Episodes) -> Episodes:
    """What a reranker may see: no targets, so that the reward's anchor has nothing to hold on to, and no page."""
    empty: dict[str, Any] = {"targets": np.full_like(episodes.targets, PAD_ITEM)}
    for name, value in (("page", PAD_ITEM), ("feedback", SHOWN), ("play_time", 0)):
        if getattr(episodes, name) is not None:
            empty[name] = np.full_like(getattr(episodes, name), value)
    return replace(episodes, **empty)


def true_preference(dataset: DataSet) -> Preference | None:
    """The probability of a click; None where no simulator made the log."""
    truth = dataset.truth
    return None if truth is None else lambda episodes, items: truth.preference(events_of(episodes), items)


def events_of(episodes: Episodes) -> np.ndarray:
    """Log rows of the targets (B,), which every split of a simulated log records."""
    assert episodes.event is not None
    return episodes.event


def _evaluate_baselines(config: RunConfig, work: Path) -> None:
    dataset, episodes = test_contexts(config)
    sequences, count = load_splits(config.directory / "data").sft_all, len(dataset.catalogue)
    width = min(max(10, *config.eval.ks), count)
    lists = {
        "popularity": Popularity.fit(sequences, count).recommend(episodes, width)[0],
        "cooccurrence": LastItemCooccurrence.fit(sequences, count).recommend(episodes, width)[0],
    }
    preference = true_preference(dataset)
    if dataset.truth is not None:
        lists |= _judge_oracles(work, dataset, dataset.truth, episodes, width)
    for name, items in lists.items():
        result = judge_items(items[:, :, None], episodes, config.eval, preference, count)
        save_system(work / name, SystemResult(name, *result), items[:, :, None])


def _judge_oracles(
    work: Path, dataset: DataSet, truth: "Truth", episodes: Episodes, width: int
) -> dict[str, np.ndarray]:
    """Lists of the Bayes reference and of the truth itself; writes how well the reference is calibrated."""
    from sidgym.envs.oracle import BayesReference, calibration

    events = events_of(episodes)
    best, predicted = BayesReference(truth, dataset.interactions).top(events, width)
    report = {
        f"calibration@{k}": calibration(truth, events, best[:, :k], predicted[:, :k], episodes.user) for k in (1, 10)
    }
    (work / "oracle.json").write_text(json.dumps(report, indent=2) + "\n")
    _save_random(work, truth, episodes)
    return {"oracle": best, "bound": _best_by_truth(truth, events, width)}


def _best_by_truth(truth: Any, events: np.ndarray, k: int, chunk: int = 256) -> np.ndarray:
    parts = [
        np.argsort(-truth.preference(events[start : start + chunk]), axis=1, kind="stable")[:, :k]
        for start in range(0, len(events), chunk)
    ]
    return np.concatenate(parts)


def _save_random(work: Path, truth: Any, episodes: Episodes) -> None:
    """A uniformly random list, by its exact expectation instead of by a draw."""
    from sidgym.envs.oracle import random_value

    value = random_value(truth, events_of(episodes))
    save_system(work / "random", SystemResult("random", {"preference@1": value, "preference@10": value}, {}), None)


def save_system(directory: Path, result: SystemResult, items: np.ndarray | None) -> None:
    """Writes per-context metrics, whole-set metrics and the first 50 items of the lists."""
    directory.mkdir(parents=True)
    np.savez(directory / "per_user.npz", **result.per_user)  # type: ignore[arg-type]
    (directory / "whole.json").write_text(json.dumps(result.whole) + "\n")
    if items is not None:
        np.save(directory / "items.npy", items[:, :50, 0])


def load_systems(config: RunConfig) -> dict[str, SystemResult]:
    """Every evaluated system of a run, in the order of the report's table."""
    from sidgym.launch.pipeline import make_plan

    stages = [stage for name, stage in make_plan(config).stages.items() if name.startswith("evaluate/")]
    found = {}
    for file in sorted(path for stage in stages for path in stage.directory.glob("*/per_user.npz") if stage.complete):
        with np.load(file, allow_pickle=False) as arrays:
            per_user = {key: arrays[key] for key in arrays.files}
        found[file.parent.name] = SystemResult(
            file.parent.name, per_user, json.loads((file.parent / "whole.json").read_text())
        )
    first = ["random", "popularity", "cooccurrence", "sft_all", "sft", "sft_reranked", "rl"]
    last = ["oracle", "bound"]
    middle = [name for name in found if name not in (*first, *last)]
    return {name: found[name] for name in (*first, *middle, *last) if name in found}


def write_results(config: RunConfig, runs: list[RunConfig]) -> dict[str, Any]:
    """``summary.json`` and ``report.html`` in the folder of ``config`` from the finished ``runs`` (one a seed)."""
    from sidgym.launch.config import to_toml
    from sidgym.launch.pipeline import make_plan
    from sidgym.launch.report import write_report

    dataset, _ = test_contexts(runs[0])
    notes = [*dataset.notes, *load_splits(runs[0].directory / "data").notes, *_notes(runs[0], dataset, len(runs))]
    oracle_file = runs[0].directory / "evaluate" / "baselines" / "oracle.json"
    summary = summarise(
        name=config.name,
        results=[load_systems(run) for run in runs],
        seeds=[run.seed for run in runs],
        oracle=json.loads(oracle_file.read_text()) if oracle_file.exists() else None,
        environment=environment_record(),
        config_hash=make_plan(runs[0]).stages["evaluate/rl"].hash,
        notes=notes,
        bootstrap=config.eval.bootstrap,
        # A simulated store is another one with each seed; a real log that is cut alike has the same test users.
        same_users=dataset.truth is None and (config.split_seed != "seed" or config.data.split != "by_user"),
    )
    write_summary(config.directory / "summary.json", summary)
    write_report(
        config.directory / "report.html", summary, curves(runs[0]), examples(runs[0], dataset), to_toml(config), notes
    )
    return summary


def _notes(config: RunConfig, dataset: DataSet, seeds: int) -> list[str]:
    table = SidTable.load(config.directory / "sid")
    report = table.metadata.get("collisions", {})
    notes = [
        f"Semantic IDs: {' x '.join(map(str, table.sizes))} codes, tokeniser "
        f"{table.metadata.get('tokenizer', 'given index')}, "
        f"{report.get('colliding_items', 0)} items collided before the policy {report.get('policy', 'keep')!r}, "
        f"{table.collision_count()} after it."
    ]
    oracle = config.directory / "evaluate" / "baselines" / "oracle.json"
    if oracle.exists():
        check = json.loads(oracle.read_text())["calibration@10"]
        notes.append(
            f"The oracle predicts {check['predicted']:.4f} for its own top 10 and gets {check['true']:.4f} (difference "
            f"{check['difference']:+.4f}, standard error {check['standard_error']:.4f}). Its inference is exact for a "
            "page taken at random; test pages are each user's last one with a click, which it is not told."
        )
    if seeds > 1:
        notes.append(
            f"Semantic IDs, preference model, oracle check, learning curves and examples are seed {config.seed}'s."
        )
    if dataset.name == "amazon":
        notes.append("Not comparable with MiniOneRec's tables: other items and another split.")
    preference = config.directory / "preference" / "report.json"
    if preference.exists() and config.preference.enabled:
        figures = json.loads(preference.read_text())
        counted = "impressions" if config.preference.kind == "din" else "examples"
        learned = f", {figures['rows']:.0f} {counted}" if "rows" in figures else ""
        notes.append(
            f"Preference model on held-out training users: AUC {figures['auc']:.3f}, expected calibration error "
            f"{figures['ece']:.3f}{learned}."
        )
    return notes


def curves(config: RunConfig) -> dict[str, list[dict[str, Any]]]:
    """The metrics log of every trained stage."""
    from sidgym.agents.logging import read_metrics

    names = ("sft", "sft_all", *arms_of(config))
    return {system_name(name): read_metrics(config.directory / name / "metrics.jsonl") for name in names}


def examples(config: RunConfig, dataset: DataSet, count: int = 6) -> list[dict[str, Any]]:
    """A few test users: what they had taken, what came next, what SFT and RL recommended."""
    _, episodes = test_contexts(config)
    lists = {name: np.load(config.directory / "evaluate" / name / name / "items.npy") for name in ("sft", "rl")}

    def titles(items: np.ndarray) -> list[str]:
        return [dataset.catalogue.titles[item] for item in items if item != PAD_ITEM]

    rows = np.linspace(0, len(episodes) - 1, min(count, len(episodes))).astype(int)
    return [
        {
            "user": int(episodes.user[row]),
            "history": titles(episodes.history[row])[-8:],
            "target": titles(episodes.targets[row, :1])[0],
            "lists": {name: titles(items[row, :5]) for name, items in lists.items()},
        }
        for row in rows
    ]
