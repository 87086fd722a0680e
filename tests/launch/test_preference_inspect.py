"""``sidgym preference inspect``: figures in the terminal, as JSON and as a page, and what is said about them."""

import json
import re

import numpy as np
import pytest

from sidgym.agents.config import LogConfig
from sidgym.agents.logging import MetricsLog
from sidgym.envs.datasets import DataSet
from sidgym.envs.records import Catalogue, Interactions
from sidgym.launch.cli import main
from sidgym.launch.preference_inspect import inspected, remarks, tables

HOSTILE = "</script><script>alert('1')</script> & \"co\""

MODEL = {
    "kind": "pscore",
    "negatives": "impressions: items that were shown and ignored",
    "rows": 1200,
    "epochs": 3,
    "auc": 0.75,
    "log_loss": 0.4,
    "base_log_loss": 0.5,
    "base_rate": 0.2,
    "ece": 0.01,
    "ece_before": 0.06,
    "reliability": [
        {"low": 0.0, "high": 0.25, "predicted": 0.125, "observed": 0.1, "count": 700},
        {"low": 0.25, "high": 0.9, "predicted": 0.5, "observed": 0.53125, "count": 500},
    ],
    "towers": {"click": {"auc": 0.8125, "log_loss": 0.25, "base_log_loss": 0.375, "base_rate": 0.125}},
}
RATES = {"targets": 0.98, "ignored": 0.7, "favourites": 0.9, "random": 0.4}
GATE = {
    "relevance": "text",
    "tau": 0.125,
    "keep": 0.98,
    "chosen": True,
    "contexts": 100,
    "counts": {"targets": 300, "ignored": 900, "favourites": 1000, "random": 2000},
    "pass_rate": RATES,
    "preference": {"passed": 0.3, "rejected": 0.2},
    "curve": [
        {"tau": 0.0, **dict.fromkeys(RATES, 1.0)},
        {"tau": 0.125, **RATES},
        {"tau": 1.0, **dict.fromkeys(RATES, 0)},
    ],
    "by_popularity": [{"quarter": n + 1, "pass_rate": 0.1 * n, "preference": 0.5} for n in range(4)],
    "others": [
        {"relevance": "text", "tau": 0.125, "pass_rate": RATES},
        {"relevance": "prefix", "tau": -0.01, "pass_rate": RATES | {"random": 1.0}},
    ],
    "rejected": [{"user": 3, "history": [1, 2], "item": 0, "relevance": 0.0625, "preference": 0.6875}],
    "lost": [],
    "model": {"against": "ignored", "auc": 0.71875, "rows": 1200},
}


def make_run(folder, model=None, gate=None):
    """A run whose stage ``preference`` ended with the given figures, and one arm that read the model."""
    stage = folder / "preference"
    stage.mkdir(parents=True)
    (stage / "report.json").write_text(json.dumps(MODEL | (model or {})))
    (stage / "gate_report.json").write_text(json.dumps(GATE | (gate or {})))
    ids = np.array([f"i{row}" for row in range(4)])
    catalogue = Catalogue(ids, (HOSTILE, "one", "two", "three"), ("",) * 4, ((),) * 4)
    DataSet("toy", catalogue, Interactions(np.zeros(2, int), np.arange(2), np.arange(2))).save(folder / "data")
    with MetricsLog(folder / "rl", LogConfig(wandb="disabled"), "x") as log:
        for step in range(1, 21):
            log.log({f"audit/gated/{name}": step / 50 for name in ("pass_rate", "raw", "gated")}, step)
            log.log_times({"time/preference_share": 0.05 + step % 2 / 10, "time/preference_remembered": 0.5}, step)
    with MetricsLog(folder / "rl_plain", LogConfig(wandb="disabled"), "x") as log:
        log.log({"reward": 1.0}, 1)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("inspect") / "toy")


def test_the_figures_of_a_run(run, capsys, tmp_path):
    main(["preference", "inspect", str(run), "--json", str(tmp_path / "figures.json")])
    out = capsys.readouterr().out
    for part in (
        "toy: pscore, gate: relevance text > 0.125 (chosen on validation users)",
        "Negatives: impressions: items that were shown and ignored.",
        "ECE 0.010, 0.060 before calibration",
        "The gate passes 98.0% of what validation users took next, and 40.0% of random items.",
        "rl: scoring took 10.0% of an iteration, 50% of the scores were remembered.",
    ):
        assert part in out, part
    assert re.search(r"AUC, validation users, against what they were shown and left +0\.719", out)
    assert re.search(r"click +0\.812 +0\.250 +0\.375 +0\.125", out)
    assert re.search(r"0\.250 – 0\.900 +0\.500 +0\.531 +500", out)
    assert re.search(r"prefix +-0\.01 +98\.0% +70\.0% +90\.0% +100\.0%", out)
    assert re.search(r"rarest quarter +0\.0% +0\.500", out)
    # The first and the last two of twenty steps.
    assert re.search(r"rl +3\.0% +39\.0% +0\.030 +0\.390 +10\.0%", out)
    assert "rl_plain" not in out, "it reads no model"
    assert "What users took and the gate rejects" not in out, "there is none"
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["model"] == MODEL
    assert figures["gate"] == GATE
    assert figures["rl"]["rl"]["share"] == pytest.approx(0.1)


def test_the_stages_own_folder_will_do(run, capsys):
    main(["preference", "inspect", str(run / "preference")])
    assert capsys.readouterr().out.startswith("toy: pscore")


def test_the_page_stands_alone_and_shows_text_as_text(run, capsys, tmp_path):
    page = tmp_path / "page.html"
    main(["preference", "inspect", str(run), "--html", str(page)])
    assert f"page     {page}" in capsys.readouterr().out
    text = page.read_text()
    assert text.count("<svg") >= 2
    assert "Reliability curve" in text
    assert "&lt;/script&gt;" in text
    assert "<script" not in text.lower()
    for outside in ("http://", "https://", "src=", "@import"):
        assert not [line for line in text.splitlines() if outside in line and "www.w3.org" not in line]


def test_what_stands_out_is_said(tmp_path):
    def said(**changes):
        folder = make_run(tmp_path / str(len(list(tmp_path.iterdir()))), **changes)
        return [sentence for sign, sentence in remarks(inspected(folder)) if sign < 0]

    assert said() == []
    assert "AUC 0.550 on held-out training users" in said(model={"auc": 0.55})[0]
    assert "off by 0.200 on average (ECE)" in said(model={"ece": 0.2})[0]
    counted = GATE["counts"] | {"targets": 30}
    assert said(gate={"counts": counted})[0].startswith("Only 30 items that validation users took decide the threshold")
    assert said(gate={"counts": counted, "chosen": False}) == []
    assert "hardly closes: 96.0% of random items pass" in said(gate={"pass_rate": RATES | {"random": 0.96}})[0]
    assert "rejects 50.0% of what validation users took" in said(gate={"pass_rate": RATES | {"targets": 0.5}})[0]


def test_a_relevance_that_rejects_more_at_the_same_price_is_named(tmp_path):
    better = {"relevance": "learned", "tau": 0.25, "pass_rate": RATES | {"random": 0.2}}
    found = inspected(make_run(tmp_path / "run", gate={"others": [*GATE["others"], better]}))
    told = [sentence for sign, sentence in remarks(found) if sign == 0]
    assert any("Relevance 'learned' rejects more at the same price: 20.0%" in sentence for sentence in told)
    dear = better | {"pass_rate": better["pass_rate"] | {"targets": 0.5}}
    found = inspected(make_run(tmp_path / "dear", gate={"others": [*GATE["others"], dear]}))
    assert not [sentence for _, sentence in remarks(found) if "same price" in sentence]


def test_scoring_that_takes_long_is_remarked_on(tmp_path):
    folder = make_run(tmp_path / "run")
    with MetricsLog(folder / "rl", LogConfig(wandb="disabled"), "x") as log:
        log.log({"audit/gated/pass_rate": 0.5}, 1)
        log.log_times({"time/preference_share": 0.4, "time/preference_remembered": 0.0}, 1)
    told = [sentence for sign, sentence in remarks(inspected(folder)) if sign < 0]
    assert told == [
        "rl: scoring took 40.0% of an iteration, 0% of the scores were remembered; preference.scoring.replicas would "
        "share the work."
    ]


def test_an_arm_with_a_threshold_of_its_own_is_told_apart_and_a_discarded_run_is_no_arm(tmp_path):
    folder = make_run(tmp_path / "run")
    for arm in ("rl", "rl.partial-0123abcd"):
        with MetricsLog(folder / arm, LogConfig(wandb="disabled"), "x") as log:
            log.log({"audit/gated/pass_rate": 0.5}, 1)
    rewards = [{"name": "gated", "weight": 1.0, "args": {"tau": 0.25}}]
    (folder / "rl" / "stage.json").write_text(json.dumps({"inputs": {"rl": {"rewards": rewards}}}))
    found = inspected(folder)
    assert list(found.arms) == ["rl"]
    told = [sentence for _, sentence in remarks(found) if "of its own" in sentence]
    assert told == ["rl: its reward sets a threshold of its own, 0.25, and trained behind that one."]


def test_what_a_stage_could_not_say_is_left_out(tmp_path):
    """No reliability, impressions, popularity or contexts: as for a log of positives and a model of one's own."""
    rates = {"targets": None, "favourites": None, "random": None}
    gate = {"pass_rate": rates, "by_popularity": [], "rejected": [], "curve": [], "others": []}
    folder = make_run(tmp_path / "run", model={"reliability": [], "towers": {}}, gate=gate)
    found = inspected(folder)
    titles = [title for title, _, _ in tables(found)]
    assert titles == ["Model", "In RL, over what the policy proposed"]
    main(["preference", "inspect", str(folder), "--html", str(tmp_path / "page.html")])
    assert "–" in (tmp_path / "page.html").read_text(), "a dash where there is no figure"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["{folder}/nowhere"], r"nowhere holds no preference model .*report\.json is missing.*preference fit CONFIG"),
        (["{run}", "--html", "{folder}/none/page.html"], "expected the name of a file in a folder that exists"),
        (["{run}", "--html", "{folder}/x", "--json", "{folder}/x"], "one would overwrite the other; give two files"),
    ],
)
def test_what_cannot_be_shown_is_refused(run, tmp_path, capsys, options, said):
    with pytest.raises(SystemExit) as stop:
        main(["preference", "inspect", *(option.format(run=run, folder=tmp_path) for option in options)])
    assert stop.value.code == 2
    assert re.search(said, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "TOOL"),
        (["fits"], "invalid choice: 'fits'"),
        (["inspect"], "source"),
        (["inspect", "somewhere", "--seed", "1"], "unrecognised arguments: --seed 1"),
        (["fit"], "config"),
    ],
)
def test_the_command_line_says_what_it_takes(capsys, options, said):
    with pytest.raises(SystemExit) as stop:
        main(["preference", *options])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["preference", *options[:1], "--help"] if options[:1] != ["fits"] else ["preference", "--help"])
    assert stop.value.code == 0
    assert "usage: sidgym preference" in capsys.readouterr().out


def test_a_configuration_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["preference", "fit", str(tmp_path / "nowhere.toml")])
    assert stop.value.code == 2
    assert "nowhere.toml" in capsys.readouterr().err
