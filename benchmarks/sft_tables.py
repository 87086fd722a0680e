"""The tables of ``docs/supervised.md``, made from the stored results and never typed by hand.

    python -c "from sidgym.benchmarks.sft_tables import PARTS; print(PARTS['pages']())"

Left out: the README's (``tables``) and the page of tasks (``sidgym.agents.tasks_page``).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sidgym.benchmarks.tables import RESULTS


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
