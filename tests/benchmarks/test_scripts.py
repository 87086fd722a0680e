"""Every benchmark script has a quick mode whose last line is one JSON object."""

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sidgym.benchmarks
from sidgym.sid.tokenizers import TOKENIZERS

FOLDER = Path(sidgym.benchmarks.__file__).parent
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text())
PIPELINES = {"demo", "amazon_scientific", "objectives", "objectives_scientific"}
APART = {*PIPELINES, "sessions", "next_token_rllib", "scaling", "soak", "throughput", "beauty"}
"""Scripts that run in a process of their own, as a reader starts them: those with Ray, vLLM or a pipeline, which the
process that they begin in shows, and one of the others. Starting one takes ten seconds of imports."""
EXPECTED = {
    "environments": ("next_item_vs_sync", "session_vs_sync", "step_10m_vs_10k"),
    "next_token_sb3": ("percent_of_oracle",),
    "next_token_rllib": ("percent_of_oracle",),
    "sessions": ("systems",),
    "objective_figures": ("weights", "ecpo_largest_weight_worse", "gbpo_largest_factor_to_bce"),
    "scaling": ("rllib_overhead_share", "runners_2_vs_1", "learners_2_max_weight_diff"),
    "projection": ("models", "cluster"),
    "semantic_ids": ("stores",),
    "trie": (
        "build_vs_lexsort",
        "bytes_per_item",
        "restrict_vs_lexsort",
        "toggle_10k_vs_lexsort",
        "mmap_open_s",
        "beam_step",
    ),
    "baselines_table": ("stores", "margins", "best", "trials", "command"),
    "results_page": ("results", "claims", "lines"),
    "recipe": ("search", "final", "settings", "rungs", "cpu_minutes"),
    "beauty": ("r@5", "r@10", "n@5", "n@10", "arms", "withheld_minus_full", "command"),
    "task_mixtures": ("stores",),
    "page_wise": ("page_minus_point", "page_minus_retrieval", "epochs"),
    "sft": ("packed_vs_trainer", "packed_vs_trainer_cpu"),
    "token_merger": ("prompt_codes_vs_merged", "ndcg@10_merged_minus_codes", "rollout_codes_vs_merged"),
    "preference": ("corr_true_logged", "corr_true_generated", "ece", "share_of_iteration"),
    "soak": ("kills", "seconds_to_next", "weights_and_metrics_equal"),
    "throughput": (
        "rollout_vs_hf",
        "update_vs_replicated",
        "iteration_vs_minionerec",
        "vllm_vs_hf",
        "mask_share_10k",
        "mask_share_10m",
        "parity_max_logp_diff",
    ),
}
"""What the JSON of a script that is no pipeline holds besides the common fields."""


def test_there_are_scripts():
    assert PIPELINES | set(EXPECTED) == set(SCRIPTS)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.parametrize("script", SCRIPTS)
def test_quick_prints_one_json_object_last(script, capfd, monkeypatch):
    printed = apart(script) if script in APART else here(script, capfd, monkeypatch)
    figures = json.loads(printed.splitlines()[-1])
    assert figures["wall_seconds"] > 0
    if script in PIPELINES:
        assert figures["schema_version"] == 1
        assert figures["rl_minus_sft"]["ndcg@10"]["low"] <= figures["rl_minus_sft"]["ndcg@10"]["high"]
        return
    assert figures["quick"] is True
    assert set(EXPECTED[script]) <= set(figures)
    CHECKS.get(script, lambda figures: None)(figures)


def apart(script: str) -> str:
    """What a script prints in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", f"sidgym.benchmarks.{script}", "--quick"],
        capture_output=True,
        text=True,
        cwd=Path(sidgym.__file__).resolve().parents[1],
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def here(script: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What it prints in this process, whose modules are there already."""
    monkeypatch.setattr(sys, "argv", [script, "--quick"])
    monkeypatch.chdir(Path(sidgym.__file__).resolve().parents[1])
    threads = torch.get_num_threads()
    capfd.readouterr()
    try:
        runpy.run_module(f"sidgym.benchmarks.{script}", run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    return capfd.readouterr().out


def agent_has_learned(figures):
    """A short training is better than the best item for everybody."""
    for run in figures["runs"]:
        assert run["random"] < run["constant"] < run["oracle"]
        assert run["value"] > run["constant"]


def native_is_faster(figures):
    """Nothing close to the full figures: only that arrays beat a loop."""
    assert all(pair["ratio"] > 1 for pair in figures["by_environment"].values())


def the_same_work_is_done_faster(figures):
    for name in ("rollout_vs_hf", "update_vs_replicated", "iteration_vs_minionerec"):
        assert figures[name] > 1
    assert figures["parity_max_logp_diff"] < 5e-4
    if importlib.util.find_spec("vllm") is not None:
        assert figures["vllm_parity_max_logp_diff"] < 5e-4


def workers_change_nothing(figures):
    assert figures["learners_2_max_weight_diff"] <= 1e-6
    assert figures["rllib_max_weight_diff"] == 0
    assert figures["runners"] is None or figures["runners"]["same_groups"]


def every_kill_was_made_good(figures):
    """An env runner, the learner and the driver of one run, whose bits are those of an undisturbed one."""
    assert {event["victim"] for event in figures["events"]} == {"env_runner", "learner", "driver"}
    assert figures["kills_compared_bit_for_bit"] == figures["kills"] == 3


def every_arm_was_judged(figures):
    arms = figures["stores"]["simulator"]["arms"]
    assert {arm["tokenizer"] for arm in arms.values()} == set(TOKENIZERS)
    for arm in arms.values():
        assert all(0 <= seed["ndcg@10"] <= 1 for seed in arm["per_seed"])
    assert arms["rq_kmeans"]["ndcg@10_vs_rq_kmeans"] == {"mean": 0, "low": 0, "high": 0}
    kept, moved = (arms[name]["per_seed"][0]["colliding_items_after"] for name in ("rq_kmeans, keep", "rq_kmeans"))
    assert moved == 0 < kept


def compact_and_opened_at_once(figures):
    assert figures["bytes_per_item"] <= 16
    assert figures["mmap_open_s"] < 1
    assert figures["toggle_10k_vs_lexsort"] < figures["restrict_vs_lexsort"] < figures["build_vs_lexsort"]


CHECKS = {
    "semantic_ids": every_arm_was_judged,
    "trie": compact_and_opened_at_once,
    "scaling": workers_change_nothing,
    "soak": every_kill_was_made_good,
    "next_token_sb3": agent_has_learned,
    "next_token_rllib": agent_has_learned,
    "environments": native_is_faster,
    "throughput": the_same_work_is_done_faster,
}
