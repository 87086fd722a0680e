"""The README's tables, made from the stored results and never typed by hand.

    python -c "from sidgym.benchmarks.tables import readme; print(readme())"

Left out: anything that is not in a stored summary.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidgym.benchmarks.contest_tables import beside_baselines, contests
from sidgym.benchmarks.results_page import read_results
from sidgym.benchmarks.script import processors

RESULTS = Path(__file__).resolve().parent / "results"

NAMES = {
    "popularity": "popularity",
    "cooccurrence": "last-item co-occurrence",
    "sft_all": "SFT on all contexts",
    "sft": "SFT",
    "nll_only": "SFT + NLL only, same contexts and steps",
    "rule_rank": "SFT + GRPO, rule + rank",
    "rl": "**SFT + GRPO**",
    "sft_reranked": "SFT's top 50 reranked by the reward",
    "oracle": "oracle (Bayes, knows the history)",
    "bound": "bound (knows the taste, too)",
}
"""Systems of the tables, in their order."""

DEMO = ("hr@10", "ndcg@10", "preference@1", "preference@10", "percent@1", "percent@10")
SCRIPTS = (
    "environments",
    "throughput",
    "next_token_sb3",
    "next_token_rllib",
    "sessions",
    "scaling",
    "soak",
    "semantic_ids",
    "trie",
    "page_wise",
    "sft",
    "beauty",
    "task_mixtures",
    "token_merger",
    "preference",
    "recipe",
    "baselines_table",
)
"""Stored results of scripts that are no pipeline."""
USERS_ALONE = "Differences, with 95 % intervals over the users of these trainings; other seeds may lie outside:"
AMAZON = ("hr@1", "hr@5", "hr@10", "hr@50", "ndcg@5", "ndcg@10", "ndcg@50")


def table(result: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """Markdown table of one stored result: means over users and seeds; with several seeds the range of their means."""
    lines = ["| | " + " | ".join(_head(metric) for metric in metrics) + " |", "|---|" + "---|" * len(metrics)]
    for system, name in NAMES.items():
        if system in result["systems"]:
            cells = [_cell(result, system, metric) for metric in metrics]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(result: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """One line a comparison of RL with another arm, 95 % intervals over users."""
    lines = []
    for other in ("sft", "nll_only", "sft_reranked"):
        figures = result.get(f"rl_minus_{other}") or {}
        said = [
            f"{_head(metric)} {_interval(figures[metric])}" for metric in metrics if figures.get(metric) is not None
        ]
        if said:
            lines.append(f"- GRPO minus {NAMES[other].replace('*', '')}: " + "; ".join(said))
    return "\n".join(lines)


def readme() -> str:
    """The part of the README that quotes results."""
    stored = read_results()
    demo, amazon = stored["demo"], stored["amazon_scientific"]
    parts = [
        f"**The demonstration** (`{demo['command']}`; {_setting(demo)}). Logs come from a popularity-biased "
        "recommender and the true preference is known. The preference reward is learned from the same logs. Range over "
        "seeds in brackets; % of the way from random to the oracle, which knows the history but not the taste:",
        table(demo, DEMO),
        USERS_ALONE,
        differences(demo, ("preference@1", "preference@10", "ndcg@10")),
        f"**Amazon Industrial & Scientific**, leave-one-out (`{amazon['command']}`; {_setting(amazon)}). Not "
        "comparable with MiniOneRec's table: other items, another split.",
        table(amazon, AMAZON),
        USERS_ALONE,
        differences(amazon, ("ndcg@10",)),
        *beside_baselines(stored.get("baselines_table")),
        *throughput(stored["throughput"]),
        learners(stored["scaling"], stored["soak"]),
        *environments(stored["environments"]),
        agents([stored["next_token_sb3"], stored["next_token_rllib"]]),
        *sessions(stored["sessions"]),
        *contests(stored),
    ]
    return "\n\n".join(part for part in parts if part)


def throughput(result: Mapping[str, Any]) -> list[str]:
    """Speed of rollout and update: a sentence and a table."""
    case, wide, full = result["case"], result["vocabulary_151936"], result["no_certain_code"]
    lines = ["| | here, s | usual, s | times | no certain code | 151,936 words |", "|---|---|---|---|---|---|"]
    for part, ours, other, title in (
        ("rollout", "torch", "hf", "rollout, against `generate` with a prefix function, the same batch"),
        ("rollout", "torch", "hf_best", "rollout, against `generate` with the batch that suits it best"),
        ("update", "packed", "replicated", "update, against G copies of the prompt"),
        ("iteration", "sidgym", "minionerec", "iteration, against MiniOneRec's order of work"),
    ):
        row, ratio = result[part], f"{other}_ratio"
        around = f"{row[ratio]:.1f} [{min(row[ratio + 's']):.1f}, {max(row[ratio + 's']):.1f}]"
        others = f"{full[part][ratio]:.1f} | {wide[part][ratio]:.1f}"
        lines.append(f"| {title} | {row[f'{ours}_s']:.2f} | {row[f'{other}_s']:.2f} | {around} | {others} |")
    ratio = f"{result['vllm_vs_hf']:.1f} | {full['vllm_vs_hf']:.1f} | |"
    lines.append(f"| rollout by vLLM, against `generate` | {result['vllm_s']:.2f} | {result['hf_s']:.2f} | {ratio}")
    return [
        f"**Rollout and update** (`python benchmarks/throughput.py`; {result['machine']}; {case['contexts']} contexts, "
        f"prompts of {case['prompt_tokens']} tokens, {case['group']} candidates of 3 codes, a Qwen3 of 4 layers and "
        f"width 256; medians of {result['rounds']} rounds in turns, range in brackets). Counting tokens allows "
        f"{result['token_limit']:.1f} times; `docs/performance.md` says where the rest comes from:",
        "\n".join(lines),
    ]


def performance() -> str:
    """The part of ``docs/performance.md`` that quotes ``throughput``."""
    result = json.loads((RESULTS / "throughput.json").read_text())
    memory = {row["group"]: row["packed"] / 2**20 for row in result["update_memory"]}
    known = "; ".join(f"G = {group}: {size:.0f} MiB" for group, size in memory.items())
    copies = [row for row in result["update_memory"] if row["replicated"]][-1]
    steps = [result["vllm_vs_own_steps"], result["no_certain_code"]["vllm_vs_own_steps"]]
    masks = [100 * result[f"mask_share_{size}"] for size in ("10k", "10m")]
    searches = [100 * result[f"mask_share_{size}_of_search"] for size in ("10k", "10m")]
    return "\n\n".join(
        [
            *throughput(result),
            "vLLM's own unconstrained steps of one token behind the same prompts take "
            f"{steps[0]:.2f} times as long as our beams by it, {steps[1]:.2f} times where no code is certain. The "
            f"trie's look-ups, masking included, are {masks[0]:.2f} % of the beam steps with 10 thousand items and "
            f"{masks[1]:.2f} % with 10 million; without the first step's pass over the prompt "
            f"{searches[0]:.1f} and {searches[1]:.1f} %. Log-probabilities of `torch` and `hf` differ by "
            f"{result['parity_max_logp_diff']:.0e} at most, those of `torch` and `vllm` by "
            f"{result['vllm_parity_max_logp_diff']:.0e}, gradients of packed and replicated updates by "
            f"{result['gradient_max_relative_diff']:.0e} of the largest.",
            f"Peak memory of an update of two contexts: {known}. With {copies['group']} copies of each prompt it is "
            f"{copies['replicated'] / 2**20:,.0f} MiB.",
        ]
    )


def learners(scaling: Mapping[str, Any], soak: Mapping[str, Any]) -> str:
    """What Ray costs, brings and survives."""
    runners, seconds = scaling["runners"], soak["seconds_to_next"]
    compared = soak["kills_compared_bit_for_bit"]
    assert soak["weights_and_metrics_equal"], "the sentence below says so"
    return (
        f"**Learners on Ray** (`python benchmarks/scaling.py`, `make soak`; {scaling['machine']}). All that is neither "
        "rollout, reward, forward, backward nor optimiser step is "
        f"{100 * scaling['rllib_overhead_share']:.1f} % of an iteration inside RLlib, at the demonstration's size, and "
        f"{100 * scaling['torch_overhead_share']:.1f} % without Ray. Two env runners, a core each, roll out "
        f"{scaling['runners_2_vs_1']:.2f} times as much as one "
        f"[{min(runners['ratios']):.2f}, {max(runners['ratios']):.2f}]; two processes on that machine do "
        f"{runners['limit']:.2f} times the work of one. After ten iterations two learners differ from one by "
        f"{scaling['learners_2_max_weight_diff']:.1e}. {soak['kills']} processes and nodes were killed at random "
        f"moments and all runs went on; those of {compared} kills, all but the vLLM engines', ended with the weights "
        "and metrics of an undisturbed run bit for bit. Seconds until the next iteration: "
        + ", ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in seconds.items())
        + "."
    )


def environments(result: Mapping[str, Any]) -> list[str]:
    """Speed of the environments: a sentence, a table, a sentence."""
    lines = ["| | native, ms a step | `SyncVectorEnv`, ms a step | ratio |", "|---|---|---|---|"]
    for name, row in result["by_environment"].items():
        lines.append(f"| `{name}-v0` | {row['native_ms']:.2f} | {row['sync_ms']:.0f} | {row['ratio']:.0f} |")
    steps = " / ".join(f"{result[f'step_ms_{size}']:.2f}" for size in ("10k", "1m", "10m"))
    return [
        f"**Environments** (`python benchmarks/environments.py`; {result['machine']}; a step of "
        f"{result['num_envs']:,} environments, medians of {result['rounds']} rounds in one run).",
        "\n".join(lines),
        f"At 10 thousand, 1 million and 10 million items a step of `NextItem-v0` takes {steps} ms: "
        f"{result['step_10m_vs_10k']:.2f} times as long with the largest catalogue as with the smallest.",
    ]


def agents(results: Sequence[Mapping[str, Any]]) -> str:
    """Agents that were written elsewhere, in ``NextToken-v0``."""
    said = []
    for result in results:
        values = ", ".join(f"{run['percent_of_oracle']:.1f}" for run in result["runs"])
        steps = result["runs"][0]["steps"]
        said.append(f"{result['agent']} {values} % after {steps:,} codes (`python benchmarks/{result['script']}.py`)")
    return (
        "**Agents of other projects**, unchanged, in a `NextToken-v0` of 60 items and 64 contexts; the way from random "
        "play to the exact oracle, seeds 0, 1, 2: " + "; ".join(said) + "."
    )


def sessions(result: Mapping[str, Any]) -> list[str]:
    """Policies in whole sessions: a sentence, a table, differences."""
    lines = ["| | discounted return | % oracle | clicks | pages |", "|---|---|---|---|---|"]
    for name, label in result["labels"].items():
        row, spread = result["systems"][name], [run["systems"][name]["discounted"] for run in result["runs"]]
        around = f"{row['discounted']:.2f} [{min(spread):.2f}, {max(spread):.2f}]"
        figures = f"{row['percent_of_oracle']:.1f} | {row['clicks']:.1f} | {row['pages']:.1f}"
        lines.append(f"| {label} | {around} | {figures} |")
    gaps = []
    for name in result["runs"][0]["differences"]:
        per_seed = ", ".join(_interval(run["differences"][name]) for run in result["runs"])
        gaps.append(f"- {name.replace('_', ' ')}, by seed: {per_seed}")
    return [
        f"**Whole sessions** (`python benchmarks/sessions.py`; {result['shoppers']:,} new shoppers, "
        f"{len(result['seeds'])} seeds; {result['machine']}, {result['wall_seconds'] / 60:.0f} minutes). Each policy "
        "shows its five most probable items, page after page, until the shopper stays away. The oracle updates the "
        "exact posterior of the taste after every page. Range over seeds in brackets:",
        "\n".join(lines),
        "\n".join(gaps),
    ]


def _setting(result: Mapping[str, Any]) -> str:
    machine = result["environment"]
    seeds = len(result["seeds"])
    return (
        f"{result['n_users']:,} test users, {seeds} seed{'s' if seeds > 1 else ''}; "
        f"{processors(machine['cpu_count'], machine['machine'])}, {result['wall_seconds'] / 60:.0f} minutes, at most "
        f"{result['peak_memory_gib']:.1f} GiB"
    )


SHORT = {"preference@1": "pref@1", "preference@10": "pref@10", "percent@1": "% oracle@1", "percent@10": "% oracle@10"}


def _head(metric: str) -> str:
    return SHORT.get(metric, metric.upper())


def _cell(result: Mapping[str, Any], system: str, metric: str) -> str:
    if metric.startswith("percent@"):
        value = result["percent_of_oracle"].get(system, {}).get(metric.replace("percent", "preference"))
        return "–" if value is None else f"{value:.1f}"
    value = result["systems"][system].get(metric)
    if value is None:
        return "–"
    spread = result["over_seeds"][system][metric] if len(result["seeds"]) > 1 else None
    digits = 3 if metric.startswith("preference") else 4
    around = f" [{spread['min']:.{digits}f}, {spread['max']:.{digits}f}]" if spread else ""
    return f"{value:.{digits}f}{around}"


def _interval(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:+.4f} [{figure['low']:+.4f}, {figure['high']:+.4f}]"
