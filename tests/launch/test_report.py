"""The report: what it claims follows the intervals, nothing is fetched, nothing is left unescaped, ids are unique."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from sidgym.agents.audit import FIRED, STREAK
from sidgym.benchmarks.summary import SystemResult, summarise
from sidgym.launch.charts import INK, interval_chart, line_chart, styles
from sidgym.launch.report import console_table, write_report
from sidgym.launch.report_audit import reward_weights
from sidgym.launch.report_text import columns, number, order_systems, verdicts

VOID = {"meta", "path", "use", "line", "br", "rect"}


class Page(HTMLParser):
    """Collects ids, references and tags of a page, and checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.ids += [value] if name == "id" else []
            self.references += re.findall(r"url\(#([^)]*)\)", value or "")
            self.references += [value.removeprefix("#")] if name in ("href", "src", "xlink:href") else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def check_page(text: str) -> None:
    """A page is well formed, its references are its own, and it asks nothing of the network."""
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids)) > 0
    assert set(page.references) <= set(page.ids)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in text


def make_summary(gain: float = 0.1, preference: bool = True, seeds=(0,), arm: str = "nll_only", name: str = "run"):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.02, 60)
    level = {"random": 0.1, "popularity": 0.2, "sft": 0.3, arm: 0.3, "rl": 0.3 + gain, "oracle": 0.6}
    results = {}
    for system, value in level.items():
        if system in ("random", "oracle") and not preference:
            continue
        values = value + noise * (system == "rl")  # noise of RL alone: a paired difference with a spread
        figures = {"ndcg@10": values, "hr@10": values}
        if preference:
            figures |= {"preference@1": figures["ndcg@10"], "preference@10": figures["ndcg@10"]}
        whole = {"har": {"sft": 0.04, "rl": 0.02, arm: 0.03}[system]} if system in ("sft", "rl", arm) else {}
        results[system] = SystemResult(system, figures, whole)
    environment = {"python": "3.11", "packages": {"torch": "2"}}
    return summarise(name, [results] * len(seeds), list(seeds), None, environment, "abc", ["a note"], 200)


CURVES = {
    "sft": [{"step": 10 * e, "epoch": e, "train_loss": 3.0 / e, "eval/ndcg@10": 0.1 * e} for e in (1, 2, 3)],
    "rl": [{"step": s, "reward": 0.1 * s, "kl": None, "grad_norm": float("nan"), "entropy": 2.0} for s in range(80)],
    "nll_only": [{"step": 5, "eval/ndcg@10": 0.2}, {"step": 1, "eval/ndcg@10": 0.1}],
}
HOSTILE = "<script>alert('1')</script> & \"co\""
EXAMPLES = [{"user": HOSTILE, "history": [HOSTILE], "target": "b", "lists": {"sft": ["a", "b"], "rl": ["c", HOSTILE]}}]


def render(tmp_path, **changes) -> str:
    arguments = {"summary": make_summary(), "curves": CURVES, "examples": EXAMPLES, "config_toml": "", "notes": ["x"]}
    path = tmp_path / "report.html"
    write_report(path, **{**arguments, **changes})
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("gain", "sign", "said"),
    [(0.1, 1, "RL raised"), (-0.1, -1, "RL lowered"), (0.0, 0, "RL did not measurably change")],
)
def test_verdict_follows_the_interval(gain: float, sign: int, said: str) -> None:
    first = verdicts(make_summary(gain))[0]
    assert first[0] == sign
    assert first[1].startswith(said)
    assert "true preference of the top 10" in first[1]


def test_a_loss_is_told_in_positive_figures_and_in_order() -> None:
    text = verdicts(make_summary(-0.1))[0][1]
    size, low, high = map(float, re.search(r"by ([\d.]+) \(95\s% interval ([\d.]+) to ([\d.]+)\)", text).groups())
    assert low < size < high
    assert size == pytest.approx(0.1, abs=0.01)


def test_verdicts_without_preference_or_partner() -> None:
    told = [text for _, text in verdicts(make_summary(preference=False))]
    assert "NDCG@10" in told[0]
    assert not any("preference" in text or "oracle" in text for text in told)
    results = {"popularity": SystemResult("popularity", {"ndcg@10": np.zeros(3)})}
    alone = summarise("run", [results], [0], None, {}, "abc", [], 5)
    assert verdicts(alone) == [(0, "There is no pair of SFT and RL results to compare.")]


def test_seeds_are_told() -> None:
    assert "one seed" in verdicts(make_summary())[-1][1]
    assert "Over the 2 seeds" in verdicts(make_summary(seeds=(0, 1)))[-1][1]


def test_page_is_well_formed_and_asks_nothing_of_the_network(tmp_path) -> None:
    check_page(render(tmp_path))


def test_everything_is_escaped(tmp_path) -> None:
    arm = "a<i>rm"
    summary = {**make_summary(arm=arm, name=HOSTILE), "environment": {"e": HOSTILE}}
    text = render(
        tmp_path,
        summary=summary,
        curves={**CURVES, arm: CURVES["nll_only"]},
        config_toml=f"# {HOSTILE}",
        notes=[HOSTILE],
        tokeniser={HOSTILE: HOSTILE},
    )
    assert "<script" not in text
    assert "<i>" not in text
    assert text.count("&lt;script&gt;") >= 10
    assert "a&lt;i&gt;rm" in text
    assert Page(text).open == []


def test_equal_input_gives_equal_bytes(tmp_path) -> None:
    assert render(tmp_path) == render(tmp_path)


def test_columns_without_data_are_left_out(tmp_path) -> None:
    assert "True preference" not in render(tmp_path, summary=make_summary(preference=False))
    assert "True preference" in render(tmp_path)
    assert not re.search(r"\bnan\b", render(tmp_path), flags=re.I)


def test_sections_without_data_are_left_out(tmp_path) -> None:
    text = render(tmp_path, curves={}, examples=[], notes=[])
    assert "Learning curves" not in text
    assert "Example users" not in text
    assert "a note" in text


def test_target_is_marked_where_it_is_listed(tmp_path) -> None:
    text = render(tmp_path)
    assert text.count('<li class="hit">b<') == 1
    assert text.count("The next item is not in this list.") == 1


def test_best_trained_value_by_direction_and_ties() -> None:
    summary = make_summary()
    best = {column.key: column.best(summary) for column in columns(summary)}
    assert best["ndcg@10"] == {"rl"}
    assert best["har"] == {"rl"}
    losing = make_summary(-0.1)
    assert {c.key: c.best(losing) for c in columns(losing)}["ndcg@10"] == {"sft", "nll_only"}


def test_console_table_shows_the_same_figures() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(console_table(make_summary(arm="[red]arm")))
    text = console.export_text()
    assert "[red]arm" in text
    assert "RL raised" in text
    assert re.search(r"Oracle .* 100\.0 ", text)


def test_order_of_systems() -> None:
    given = ["bound", "rl", "mine", "oracle", "sft", "random", "sft_reranked"]
    assert order_systems(given) == ["random", "sft", "mine", "rl", "sft_reranked", "oracle", "bound"]


def test_numbers() -> None:
    assert [number(None, 2), number(-0.004, 2), number(-0.5, 1), number(0.25, 2, signed=True)] == [
        "–",
        "0.00",
        "−0.5",
        "+0.25",
    ]


def test_chart_takes_the_pages_ink_and_keeps_system_colours() -> None:
    style = styles(["rl", "mine", "other"])
    assert len({(s.colour, s.dash) for s in style.values()}) == 3
    svg = line_chart("a", {"rl": [(0, 1.0), (1, 2.0)]}, "step", "reward", style)
    assert INK not in svg
    assert "currentColor" in svg
    assert style["rl"].colour.lower() in svg.lower()
    other = line_chart("b", {"rl": [(0, 1.0), (1, 2.0)]}, "step", "reward", style)
    assert not set(Page(svg).ids) & set(Page(other).ids)


def test_interval_dot_is_filled_only_where_zero_is_left_out() -> None:
    def draw(low: float) -> str:
        return interval_chart("a", [("x", {"mean": 0.1, "low": low, "high": 0.2}, "#123456")], "difference")

    assert "var(--paper)" in draw(-0.01)
    assert "var(--paper)" not in draw(0.01)


WEIGHTS = """
[[rl.rewards]]
name = "gated"
weight = 0.25
[[rl.rewards]]
name = "my.pkg:fresh"
"""


def audited(evaluations: int = 5, fired: bool = False) -> list[dict]:
    """The log of an arm with a gated reward and one in components, 40 steps."""
    terms = {"gated": 0.5, "my.pkg:fresh": 0.3, "my.pkg:fresh/<b>new</b>": 0.1, "my.pkg:fresh/old": 0.2}
    rows = [
        {
            "step": step,
            **{f"rewards/{name}/mean": value + 0.001 * step for name, value in terms.items()},
            **{f"audit/all_{kind}": 0.25 for kind in ("zero", "equal", "hit")},
            "audit/popularity_correlation": 0.1 + 0.02 * (step - 1),
            "audit/gated/pass_rate": 0.6,
            "audit/gated/raw": 0.8,
            "audit/gated/gated": 0.5,
            "audit/gated/gate_loss": 0.3,
        }
        for step in range(1, 41)
    ]
    judged = [
        {"step": 10 * k, STREAK: k, FIRED: float(fired and k >= 3), "eval/reward": 0.1} for k in range(evaluations)
    ]
    return rows + judged


def test_reward_by_component_with_its_weight(tmp_path) -> None:
    text = render(tmp_path, curves={**CURVES, "rl": audited()}, config_toml=WEIGHTS)
    section = text.partition("Reward by component")[2].partition("<h2>")[0]
    for said in ("gated × 0.25", "my.pkg:fresh × 1", "</svg>old</span>", "&lt;b&gt;new&lt;/b&gt;</span>"):
        assert said in section
    assert section.count("<figure>") == 2
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert "Reward by component" not in render(tmp_path), "no arm has logged a term"


def test_weights_follow_arms_and_copies() -> None:
    arm = '[[arms.two.rewards]]\nname = "rule"\n[[arms.two.rewards]]\nname = "rule"\nweight = -2.0\n'
    assert reward_weights(WEIGHTS + arm) == {
        "rl": {"gated": 0.25, "my.pkg:fresh": 1.0},
        "two": {"rule": 1.0, "rule#2": -2.0},
    }


def test_the_audit_shows_first_and_last_and_says_what_it_found(tmp_path) -> None:
    text = render(tmp_path, curves={**CURVES, "rl": audited()}, config_toml=WEIGHTS)
    section = text.partition("Audit of the reward")[2].partition("<h2>")[0]
    assert "with item popularity</th><td>0.130</td><td>0.850</td>" in section, "means of the first and last four steps"
    assert "gated: lost at the gate</th><td>0.300</td>" in section
    assert "In no arm did the validation reward rise" in section
    assert "cannot be seen" not in section
    assert "reward hacking" not in text
    few = render(tmp_path, curves={**CURVES, "rl": audited(evaluations=3)})
    assert "With 3 evaluations or fewer that cannot be seen: RL." in few
    assert "Audit of the reward" not in render(tmp_path)


def test_a_hacked_reward_is_told_in_the_audit_and_at_the_top(tmp_path) -> None:
    text = render(tmp_path, curves={**CURVES, "rl": audited(fired=True)})
    assert text.count("up to step 30. The policy may have learned to please the reward") == 2
    assert text.index("reward hacking") < text.index("Results on the test users")
    assert "In no arm" not in text


def test_groups_without_a_signal_are_told_in_the_audit(tmp_path) -> None:
    rows = [{**row, "audit/all_equal": 0.96} if "audit/all_equal" in row else row for row in audited()]
    section = render(tmp_path, curves={"rl": rows}).partition("Audit of the reward")[2]
    assert "RL: in the last tenth of the steps 96% of the groups gave all candidates the same reward" in section
