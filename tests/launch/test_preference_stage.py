"""The stage ``preference`` and rewards that read it, end to end on a tiny store and on a log of positive events."""

import json
import shutil
import sys

import numpy as np
import pytest
from test_pipeline import AMAZON, TINY, refused, write_amazon, write_config

from sidgym.agents.logging import TIMES, read_metrics
from sidgym.envs.datasets import DataSet
from sidgym.envs.gate import Gate
from sidgym.envs.preference import PREFERENCES, load_preference
from sidgym.envs.records import PAD_ITEM
from sidgym.envs.splits import load_splits
from sidgym.launch.cli import main

# Nothing here asks for a preference model: --rewards gated:1 has to be enough.
PLAIN = (
    TINY.partition("[arms.nll_only]")[0].replace("enabled = true\n", "").replace("gated_preference", "rule")
    + TINY[TINY.index("[eval]") :]
)
LEARNED = ["--preference.relevance", "learned"]
GATED = ["--rewards", "gated:1", *LEARNED]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder with a configuration and its stages before ``preference``."""
    folder = tmp_path_factory.mktemp("store")
    main(["sid", write_config(folder, PLAIN), "--out", str(folder / "runs")])
    return folder


@pytest.fixture(scope="module")
def likes(tmp_path_factory):
    """The same of a log that holds positive events alone."""
    folder = tmp_path_factory.mktemp("likes")
    write_amazon(folder / "raw")
    text = AMAZON.partition("[arms.nll_only]")[0] + TINY[TINY.index("[eval]") :]
    config = write_config(folder, text.replace("[data]", f"[data]\npath = '{folder / 'raw'}'"))
    main(["sid", config, "--out", str(folder / "runs")])
    return folder


def fit(folder, *options):
    main(["preference", "fit", str(folder / "tiny.toml"), "--out", str(folder / "runs"), *options])
    return folder / "runs/tiny/preference"


def figures(stage):
    return tuple(json.loads((stage / name).read_text()) for name in ("report.json", "gate_report.json"))


@pytest.mark.parametrize("kind", sorted(PREFERENCES))
def test_every_kind_is_fitted_and_shown(store, capsys, kind):
    stage = fit(store, "--preference.kind", kind, *LEARNED)
    told = capsys.readouterr().out
    assert told.startswith(f"tiny: {kind}, gate: relevance learned > ")
    assert "Reliability" in told
    assert f"preference: {stage}" in told
    report, gate = figures(stage)
    assert report["kind"] == kind
    assert 0 <= report["ece"] <= 1
    assert set(gate["pass_rate"]) == {"targets", "random", "ignored", "favourites"}
    assert gate["pass_rate"]["targets"] >= 0.98
    assert {other["relevance"] for other in gate["others"]} == {"text", "prefix", "learned"}
    model, valid = load_preference(stage / "model"), load_splits(stage.parent / "data").valid
    scores = model.score(valid.history, np.tile([3, PAD_ITEM, 0], (len(valid), 1)))
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores <= 1)).all()
    assert not scores[:, 1].any()
    assert np.ptp(scores[:, 0]) > 0, "it looks at who asks"


def test_a_given_threshold_stays_and_a_second_fit_has_nothing_to_do(store, capsys):
    stage = fit(store, "--preference.tau", "0.25", "--preference-settings", '{"hidden": 8}')
    gate = Gate.load(stage / "model")
    assert (gate.relevance, gate.taus["text"]) == ("text", 0.25)
    assert "text > 0.25 (given)" in capsys.readouterr().out
    before = (stage / "stage.json").stat().st_mtime_ns
    fit(store, "--preference.tau", "0.25", "--preference-settings", '{"hidden": 8}', "--preference.scoring.cache", "5")
    assert (stage / "stage.json").stat().st_mtime_ns == before
    assert "text > 0.25 (given)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("din", "for each positive 4 sampled (uniform)"),
        ("sim", "for each positive 4 sampled (uniform) and 32 in-batch (logQ-corrected)"),
        ("sasrec", "judged against 4 sampled (uniform) for each positive"),
    ],
)
def test_a_log_of_positive_events_says_where_its_negatives_come_from(likes, capsys, kind, said):
    stage = fit(likes, "--preference.kind", kind)
    report, gate = figures(stage)
    assert said in report["negatives"]
    assert f"Negatives: {report['negatives']}." in capsys.readouterr().out
    assert gate["model"]["against"] == "random"
    assert "ignored" not in gate["pass_rate"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [("duration_aware", "this log has no feedback and no play_time"), ("pscore", "it needs Interactions.feedback")],
)
def test_a_kind_that_needs_what_a_log_lacks_says_so_and_leaves_nothing(likes, capfd, kind, said):
    shutil.rmtree(likes / "runs/tiny/preference", ignore_errors=True)
    options = ["--out", str(likes / "runs"), "--preference.kind", kind]
    message = refused(capfd, "preference", "fit", str(likes / "tiny.toml"), *options)
    assert f"preference '{kind}'" in message
    assert said in message
    assert not (likes / "runs/tiny/preference").exists()


@pytest.mark.parametrize(("judged", "equal"), [(True, True), (False, False)])
def test_what_validation_and_test_ask_for_changes_no_model(likes, tmp_path, judged, equal):
    before = fit(likes, "--preference.kind", "din")
    raw = json.loads((likes / "raw/Toy.inter.json").read_text())
    shutil.copytree(likes, tmp_path / "other")
    # The last two items of each user are what validation and test ask for; the others are there to be learned from.
    changed = {
        user: [(item + 1) % 12 if (place >= len(items) - 2) == judged else item for place, item in enumerate(items)]
        for user, items in raw.items()
    }
    (tmp_path / "other/raw/Toy.inter.json").write_text(json.dumps(changed))
    after = fit(tmp_path / "other", "--data.path", str(tmp_path / "other/raw"))
    assert DataSet.load(after.parent / "data").interactions.item.tolist() != (
        DataSet.load(before.parent / "data").interactions.item.tolist()
    )
    name = "model/preference.safetensors"
    assert ((after / name).read_bytes() == (before / name).read_bytes()) == equal
    first, second = (Gate.load(stage / "model") for stage in (before, after))
    assert (first.classifier == second.classifier) == equal
    assert (figures(before)[0] == figures(after)[0]) == equal


OWN = """
import json
from pathlib import Path
import numpy as np

class Mine:
    report = {"kind": "my_models:Mine", {figures}}

    @classmethod
    def fit(cls, data, seed=0, *, scale=1.0):
        model = cls()
        model.scale = scale
        return model

    def score(self, history, items):
        return np.where(items < 0, 0.0, self.scale * (items % 7) / 7).astype(np.float32)

    def save(self, directory):
        Path(directory).mkdir()
        (Path(directory) / "preference.json").write_text(json.dumps(self.report | {"scale": self.scale}))

    @classmethod
    def load(cls, directory):
        return cls.fit(None, scale=json.loads((Path(directory) / "preference.json").read_text())["scale"])
"""


def test_a_model_of_ones_own_goes_the_same_way(store, tmp_path, monkeypatch, capfd):
    monkeypatch.syspath_prepend(str(tmp_path))
    shutil.copytree(store / "runs", tmp_path / "runs")
    given = ["--out", str(tmp_path / "runs"), "--preference.kind", "my_models:Mine"]
    given += ["--preference-settings", '{"scale": 0.5}']
    (tmp_path / "my_models.py").write_text(OWN.replace("{figures}", '"auc": 0.5'))
    message = refused(capfd, "preference", "fit", str(store / "tiny.toml"), *given)
    assert "preference model 'my_models:Mine': its report must tell ece of users held out" in message
    (tmp_path / "my_models.py").write_text(OWN.replace("{figures}", '"auc": 0.5, "ece": 0.0'))
    monkeypatch.delitem(sys.modules, "my_models")
    main(["rl", str(store / "tiny.toml"), *given, *GATED])
    rows = read_metrics(tmp_path / "runs/tiny/rl/metrics.jsonl")
    raw = [row["audit/gated/raw"] for row in rows if "audit/gated/raw" in row]
    assert raw
    assert 0 < min(raw) <= max(raw) <= 0.5 * 6 / 7


# In RL ---------------------------------------------------------------------------------------------------------------


def arm(folder, out, *options):
    """The arm's folder after RL with a gated reward, in a copy of what is built already."""
    if not out.exists():
        shutil.copytree(folder / "runs", out)
    main(["rl", str(folder / "tiny.toml"), "--out", str(out), *GATED, *options])
    return out / "tiny/rl"


def bits(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")} | {
        "metrics": (folder / "metrics.jsonl").read_bytes()
    }


@pytest.mark.parametrize(("where", "kind"), [("store", "sim"), ("likes", "sasrec")])
def test_gated_alone_is_enough_and_its_cost_is_logged(request, tmp_path, where, kind):
    folder = request.getfixturevalue(where)
    found = arm(folder, tmp_path / "runs", "--preference.kind", kind)
    rows, times = read_metrics(found / "metrics.jsonl"), read_metrics(found / TIMES)
    assert any(row.get("audit/gated/raw", 0) > 0 for row in rows)
    assert all(0 <= row["audit/gated/pass_rate"] <= 1 for row in rows if "audit/gated/pass_rate" in row)
    assert [row["step"] for row in times] == [1, 2, 3, 4]
    assert all(0 < row["time/preference_share"] < 1 for row in times)
    weights = bits(found)
    shutil.rmtree(found)
    anew = arm(folder, tmp_path / "runs", "--preference.kind", kind, "--preference.scoring.cache", "3")
    assert bits(anew) == weights, "what is remembered decides how fast, not what comes out"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(("where", "kind"), [("store", "din"), ("likes", "sim")])
def test_ray_actors_give_the_bits_of_scoring_in_the_process(request, tmp_path, where, kind):
    pytest.importorskip("ray")
    folder = request.getfixturevalue(where)
    here = arm(folder, tmp_path / "here", "--preference.kind", kind)
    apart = ["--rl.backend", "rllib", "--rl.env-runners", "2", "--preference.scoring.replicas", "2"]
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = arm(folder, tmp_path / "there", "--preference.kind", kind, *apart)
    assert bits(there) == bits(here)
    assert all(row["time/preference_seconds"] > 0 for row in read_metrics(there / TIMES))


@pytest.mark.slow
def test_a_whole_run_ends_in_a_report_that_tells_of_the_model(store, tmp_path, capsys):
    shutil.copytree(store / "runs", tmp_path / "runs")
    main(["run", str(store / "tiny.toml"), "--out", str(tmp_path / "runs"), *GATED, "--preference.kind", "sim"])
    assert "Preference model on held-out training users: AUC" in (tmp_path / "runs/tiny/report.html").read_text()
    capsys.readouterr()
    main(["preference", "inspect", str(tmp_path / "runs/tiny")])
    told = capsys.readouterr().out
    assert "In RL, over what the policy proposed" in told
    assert "rl: scoring took " in told
