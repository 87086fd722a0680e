"""The tables of ``docs/supervised.md``, made from the stored results and never typed by hand.

    python -c "from sidgym.benchmarks.sft_tables import PARTS; print(PARTS['beauty']())"

Left out: the README's (``tables``) and the page of tasks (``sidgym.agents.tasks_page``).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sidgym.benchmarks.tables import RESULTS

STORES = {"simulator": "The simulated store", "scientific": "Amazon Industrial & Scientific"}


def beauty() -> str:
    """Beauty beside what is published: both arms, the floors, and what withholding costs."""
    result = _stored("beauty")
    names = [name for name in result["arms"]["full"] if name[:2] in ("r@", "n@")]
    heads = [name.replace("r@", "R@").replace("n@", "NDCG@") for name in names]
    rows = {"SFT, everything": result["arms"]["full"], "SFT, RL's contexts withheld": result["arms"]["withheld"]}
    told = {name: [arm[metric] for metric in names] for name, arm in rows.items()}
    told |= {name: [figures[metric] for metric in names] for name, figures in result["baselines"].items()}
    told |= {f"{name} (published)": figures for name, figures in result["published"].items()}
    lines = [_row(("", *heads)), "|---|" + "---|" * len(names)]
    lines += [_row((name, *(f"{value:.4f}" for value in figures))) for name, figures in told.items()]
    cost, full = result["withheld_minus_full"], result["arms"]["full"]["per_seed"]
    minutes = np.mean([part["training_cpu_s"] for part in full]) / 60
    unseen = np.mean([[part["unseen"][metric] for metric in names] for part in full], axis=0)
    shown = ", ".join(f"{head} {value:.4f}" for head, value in zip(heads, unseen))
    return "\n".join(
        [
            f"`{result['command']}`; {result['users']:,} test users, seed{_plural(result['seeds'])} "
            f"{', '.join(map(str, result['seeds']))}; {result['machine']}; {full[0]['parameters']:,} parameters, "
            f"{minutes:.0f} minutes of one processor a training:",
            "",
            *lines,
            "",
            f"Withheld minus everything: {_interval(cost['n@10'])} NDCG@10, {_interval(cost['r@10'])} R@10 (95 % over "
            f"users). With items of the history left out of the lists: {shown}.",
        ]
    )


def mixtures() -> str:
    """What tasks over text bring, store by store."""
    result = _stored("task_mixtures")
    lines = [_row(("", "tasks", "NDCG@10", "over SIDs alone", "by seed", "CPU s")), "|---|---|---|---|---|---|"]
    for name, store in result["stores"].items():
        for arm, figures in store["arms"].items():
            mean = np.mean([part["ndcg@10"] for part in figures["per_seed"]])
            spent = np.mean([part["sft_cpu_s"] for part in figures["per_seed"]])
            gain = figures.get("ndcg@10_minus_sids")
            over = (_interval(gain), ", ".join(f"{x:+.4f}" for x in gain["seeds"])) if gain else ("", "")
            lines.append(_row((STORES[name], arm, f"{mean:.4f}", *over, f"{spent:.0f}")))
    return "\n".join(lines)


def pages() -> str:
    """Page-wise against point-wise and retrieval, by the number of passes."""
    result = _stored("page_wise")
    lines = [
        _row(
            ("passes", "point-wise", "page-wise", "retrieval", "page over point", "page over retrieval", "HaR of each")
        ),
        "|---|---|---|---|---|---|---|",
    ]
    names = ("point, strongest", "page, strongest", "retrieval")
    for epochs, found in result["epochs"].items():
        arms, gains = found["arms"], found["gains"]
        means = [f"{np.mean([part['ndcg@10'] for part in arms[name]]):.4f}" for name in names]
        har = " / ".join(f"{np.mean([part['har'] for part in arms[name]]):.3f}" for name in names)
        over = [_interval(gains[name]["ndcg@10"]) for name in ("strongest", "retrieval")]
        lines.append(_row((epochs, *means, *over, har)))
    return "\n".join(lines)


def merger() -> str:
    """What the Token Merger costs and saves."""
    result = _stored("token_merger")
    lines = [_row(("history", "prompt, codes", "prompt, merged", "rollout", "update")), "|---|---|---|---|---|"]
    for items, figures in result["speed_by_items"].items():
        tokens = figures["prompt_tokens"]
        lines.append(
            _row(
                (
                    f"{items} items",
                    *(f"{tokens[arm]} tokens" for arm in ("codes", "merged")),
                    *(f"{figures[f'{part}_codes_vs_merged']:.2f}x" for part in ("rollout", "update")),
                )
            )
        )
    gain = result["differences"]["ndcg@10"]
    seeds = ", ".join(f"{x:+.4f}" for x in gain["seeds"])
    return "\n".join(
        [*lines, "", f"NDCG@10 merged minus codes: {_interval(gain)} over test users; by seed {seeds}. Prompts of test "
         f"users are {result['prompt_codes_vs_merged']:.1f} times shorter."]
    )  # fmt: skip


def speed() -> str:
    """Packed training against ``transformers.Trainer``."""
    result = _stored("sft")
    cases = {
        "mixture": f"tasks, histories of at most {result['history']}",
        "histories": f"histories of at most {result['history']}",
        "histories_20": "histories of at most 20",
        "vocabulary_151936": "tasks, 151,936 words",
    }
    heads = ("", "padding", "tokens a second", "times Trainer", "processor time", "grouped by length", "processor time")
    lines = [_row(heads), "|---|" + "---|" * (len(heads) - 1)]
    for name, title in cases.items():
        one = result[name]
        ratios = [one[f"{arm}_vs_packed{kind}"] for arm in ("trainer", "trainer_by_length") for kind in ("", "_cpu")]
        rate = f"{one['packed_tokens_per_s']:,.0f}"
        lines.append(_row((title, f"{one['padded_vs_tokens']:.1f}x", rate, *(f"{ratio:.1f}x" for ratio in ratios))))
    return "\n".join(lines)


PARTS: Mapping[str, Callable[[], str]] = {
    "beauty": beauty,
    "mixtures": mixtures,
    "pages": pages,
    "merger": merger,
    "speed": speed,
}
"""The parts of the page that quote results."""


def _stored(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _interval(figures: Mapping[str, Any]) -> str:
    return f"{figures['mean']:+.4f} [{figures['low']:+.4f}, {figures['high']:+.4f}]"


def _plural(values: Sequence[Any]) -> str:
    return "s" if len(values) > 1 else ""
