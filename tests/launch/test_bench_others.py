"""``sidgym bench rewards``, ``scaling`` and ``transfer`` end to end on a tiny store: resumable and told."""

import json
import tomllib

import numpy as np
import pytest
from test_pipeline import TINY
from test_report import Page

from sidgym.benchmarks.claims import judge_all
from sidgym.benchmarks.results_page import page, read_results
from sidgym.launch import bench_scaling, bench_transfer
from sidgym.launch.cli import main

pytestmark = pytest.mark.slow
SHORT = ("--rl.steps", "4", "--rl.eval-every", "2")


def bench(folder, name, *options):
    config = folder / "tiny.toml"
    config.write_text(TINY)
    main(["bench", name, "--config", str(config), "--out", str(folder / name), *options])
    return json.loads((folder / name / "summary.json").read_text())


def lines(folder, name):
    return [json.loads(line) for line in (folder / name / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("others")
    found = {
        "rewards": bench(folder, "rewards", "--seeds", "2", "--arms", "rule", "collaborative", "gated", "ungated"),
        "sampling": bench(folder, "sampling", "--seeds", "1"),
        "normalise": bench(folder, "normalise", "--seeds", "1"),
        "scaling": bench(folder, "scaling", "--seeds", "1", "--sizes", "xs", "s", "m", "l"),
        "transfer": bench(folder, "transfer", "--seeds", "1", *SHORT),
    }
    return folder, found


def test_every_contest_tells_its_arms(done):
    _, found = done
    assert set(found["sampling"]["objectives"]) == {
        "sft", "nll_only", "beam", "sample", "top_k", "dynamic", "stochastic_beam",
    }  # fmt: skip
    assert set(found["normalise"]["objectives"]) == {"sft", "nll_only", "trie", "vocab", "trie_sr", "vocab_sr"}
    assert set(found["sampling"]["contexts_equal"].values()) == {True}
    rollouts = {name: one["rollouts"] for name, one in found["sampling"]["objectives"].items() if name != "sft"}
    assert rollouts["dynamic"] == 1.5 * rollouts["beam"]  # what is drawn and left out counts, too
    assert len({count for name, count in rollouts.items() if name != "dynamic"}) == 1
    rewards = {name: told["rewards"] for name, told in found["rewards"]["settings"].items()}
    assert (rewards["rule"], rewards["ungated"]) == ("rule", "gated (gate=False)")
    assert found["rewards"]["own_rewards"]
    assert found["rewards"]["failed"] == []
    assert found["rewards"]["objectives"]["sft"]["reward"] is None
    gains = found["rewards"]["by_seed"]["collaborative"]["reward_gain"]
    assert set(gains) == {"0", "1"}


def test_arms_with_a_model_of_their_own_begin_at_the_same_start(done):
    folder, _ = done
    own = folder / "rewards" / "seed-0-collaborative"
    assert (own / "sft").is_symlink()
    kinds = [json.loads((run / "preference" / "model" / "preference.json").read_text()).get("kind", "din") for run in
             (own, folder / "rewards" / "seed-0")]  # fmt: skip
    assert kinds == ["sasrec", "din"]


def test_sizes_have_a_law_and_reports(done):
    folder, found = done
    summary = found["scaling"]
    counts = [one["parameters"] for one in summary["systems"].values()]
    assert counts == sorted(counts)
    assert set(summary["law"]) >= {"exponent", "exponent_interval", "slope_interval", "r2"}
    with np.load(folder / "scaling" / "seed-0-l" / "evaluate" / "loss" / "per_user.npz") as arrays:
        assert summary["systems"]["l"]["loss"]["mean"] == pytest.approx(arrays["loss"].mean())
        assert (arrays["nll"] >= 0).all()
        # The trie leaves out what is not allowed, so a SID is never less probable than over the whole vocabulary.
        assert (arrays["nll"] <= 3 * arrays["loss"] + 1e-4).all()


def test_the_new_catalogue_is_judged_by_its_own_users_and_items(done):
    folder, found = done
    summary = found["transfer"]
    assert list(summary["systems"]) == ["untrained", "rl_only", "sft", "sft_rl", "inside"]
    assert not (folder / "transfer" / "seed-0" / "preference").exists()  # hits and ranks alone are rewarded
    assert any("RL learns from the reward rule + rank " in note for note in summary["notes"])
    assert any(text.startswith("rl_only is ") and " inside in NDCG@10" in text for _, text in summary["verdict"])
    with np.load(
        folder / "transfer" / "seed-0-second" / "evaluate" / "baselines" / "popularity" / "per_user.npz"
    ) as own:
        assert summary["n_users"] == len(own["ndcg@10"])
    first, second = (
        np.load(folder / "transfer" / run / "data" / "popularity.npy") for run in ("seed-0", "seed-0-second")
    )
    assert (first != second).any()
    assert set(summary["references"]) >= {"popularity", "oracle"}


def test_pages_are_well_formed(done):
    folder, found = done
    for name in found:
        text = (folder / name / "report.html").read_text(encoding="utf-8")
        assert Page(text).open == [], name
        assert "https://" not in text
        assert text.count('<svg class="chart"') >= 2, name
        assert (folder / name / "report.md").read_text(encoding="utf-8").startswith("# ")


def test_finished_parts_are_not_done_again(done, monkeypatch):
    folder, found = done
    before = {name: lines(folder, name) for name in ("scaling", "transfer")}
    for module in (bench_scaling, bench_transfer):
        monkeypatch.setattr(module, "build_stage", lambda *_: pytest.fail("everything is finished"))
    again = bench(folder, "scaling", "--seeds", "1", "--sizes", "xs", "s", "m", "l")
    assert again["systems"] == found["scaling"]["systems"]
    assert bench(folder, "transfer", "--seeds", "1", *SHORT)["systems"] == found["transfer"]["systems"]
    assert {name: lines(folder, name) for name in before} == before


def test_claims_and_page_read_what_was_made(done):
    _, found = done
    rows = judge_all(found)
    tested = {row["claim"]: row["status"] for row in rows if row["result"]}
    assert {"beam search beats sampling", "larger models have lower loss", "the gate stops reward hacking"} <= set(
        tested
    )
    text = page(found)
    assert "## To a catalogue never seen: the simulated store" in text
    assert "sidgym bench scaling" in text


@pytest.mark.skipif("transfer" not in read_results(), reason="only in a checkout")
def test_stored_verdicts_are_what_their_figures_say():
    stored = {name: one for name, one in read_results().items() if "systems" in one and "verdict" in one}
    said = {"scaling": bench_scaling.words, "transfer": bench_transfer.words}
    assert {one["benchmark"] for one in stored.values()} == set(said)
    for name, one in stored.items():
        assert one["verdict"] == [list(words) for words in said[one["benchmark"]](one)], name


def test_sizes_are_told_without_a_law_that_they_do_not_show():
    interval = {"mean": 0.0, "low": -0.1, "high": 0.1}
    systems = {name: {"parameters": 10**n, "loss": {**interval, "mean": loss}} for n, (name, loss) in
               enumerate({"xs": 1.4, "m": 1.1, "l": 1.2}.items(), 1)}  # fmt: skip
    pair = {"metric": "loss", "p_holm": 1.0, "users": {"low": 0.0, "high": 0.0}, "seeds": {}}
    pairs = [{**pair, **interval, "a": a, "b": b, "mean": systems[a]["loss"]["mean"] - systems[b]["loss"]["mean"]}
             for a, b in (("l", "xs"), ("l", "m"))]  # fmt: skip
    law = {"exponent": 1.2, "scale": 0.4, "floor": 1.1, "r2": 0.9, "slope": -0.1, "smallest": 10.0, "seeds": 1,
           "exponent_interval": {"low": 0.01, "high": 2.0}, "slope_interval": {"low": -0.2, "high": 0.0}}  # fmt: skip
    told = [text for _, text in bench_scaling.words({"systems": systems, "pairs": pairs, "law": law})]
    assert told[1].startswith("The lowest mean loss is m's, not the largest one's: l is not shown to differ from m")
    assert "(exponent 0.010 to 2.000, so these sizes do not tell it;" in told[2]
    assert told[2].endswith("over 3 sizes and 1 seed.")
    law["exponent_interval"]["low"], systems["l"]["loss"]["mean"] = 0.5, 1.0
    told = [text for _, text in bench_scaling.words({"systems": systems, "pairs": pairs, "law": law})]
    assert len(told) == 2
    assert "do not tell" not in told[1]


@pytest.mark.parametrize("name", ["scaling", "transfer"])
def test_settings_are_printed_and_nothing_is_done(name, tmp_path, capsys):
    out = tmp_path / "contest"
    main(["bench", name, "--preset", "quick", "--sft.epochs", "3", "--out", str(out), "--print-config"])
    settings = tomllib.loads(capsys.readouterr().out)
    assert settings["sft"]["epochs"] == 3
    assert not out.exists()
