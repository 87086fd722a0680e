"""Page-wise warm-up and RSFT in a run: settings, what is refused before it starts, and what the stage leaves."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_pipeline import write_config

from sidgym.agents.checkpoint import load_policy, read_info
from sidgym.agents.config import RewardConfig, RsftConfig
from sidgym.envs.logged_pages import LoggedPages
from sidgym.envs.rewards import RewardError
from sidgym.launch import builders, estimate
from sidgym.launch.builders import builder_of
from sidgym.launch.config import ConfigError, load_config, to_toml
from sidgym.launch.pipeline import check_names, make_plan

OPTIONS = ["--data.users", "60", "--log.wandb", "disabled", "--sft.epochs", "1", "--sft.tasks", "page_wise:1",
           "retrieval:1", "--sft.page-order", "random", "--sft.rsft.drop", "0.5", "--sft.rsft.epochs", "2"]  # fmt: skip

PENALTY = """
[[sft.rsft.rewards]]
name = "engagement"
[[sft.rsft.rewards]]
name = "popularity"
weight = -0.5
"""


def settings(folder: Path, *more: str):
    return load_config(Path(write_config(folder)), [*OPTIONS, *more, "--out", str(folder)])


def test_settings_come_from_the_command_line_and_back_from_toml(tmp_path):
    config = settings(tmp_path)
    assert (config.sft.page_order, config.sft.rsft.drop, config.sft.rsft.epochs) == ("random", 0.5, 2)
    (tmp_path / "again.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "again.toml").sft == config.sft
    check_names(config)
    stages = [make_plan(one).stages["sft"].hash for one in (config, settings(tmp_path, "--sft.rsft.lr", "1e-4"))]
    assert stages[0] != stages[1]


def test_what_cannot_work_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="strongest, logged, random"):
        settings(tmp_path, "--sft.page-order", "best")
    with pytest.raises(ValueError, match=r"a share in \[0, 1\)"):
        check_names(settings(tmp_path, "--sft.rsft.drop", "1"))


def test_a_weight_of_rsft_may_be_below_zero_as_in_rl(tmp_path):
    path = Path(write_config(tmp_path))
    path.write_text(path.read_text() + PENALTY)
    terms = load_config(path, [*OPTIONS, "--out", str(tmp_path)]).sft.rsft.rewards
    assert [(term.name, term.weight) for term in terms] == [("engagement", 1.0), ("popularity", -0.5)]


def test_rsft_and_the_simulators_truth(tmp_path, capsys):
    config = settings(tmp_path)
    truth = replace(config.sft, rsft=RsftConfig(0.5, (RewardConfig("true_preference"),)))
    check_names(replace(config, sft=truth))
    assert "sft.rsft: reward 'true_preference' is the simulator's own truth: an upper bound" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"sft\.rsft: reward 'true_preference' needs the simulator's truth"):
        check_names(replace(config, sft=truth, data=replace(config.data, name="movielens")))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run whose data and codes are made."""
    config = settings(tmp_path_factory.mktemp("pages"), "--sft.checkpoint-every", "5", "--policy.dropout", "0.2")
    for name in ("data", "sid"):
        work = config.directory / name
        work.mkdir(parents=True)
        builder_of(name)(config, work, None, name)
    return config


def test_what_rsft_cannot_score_is_refused_before_the_warm_up(prepared, tmp_path, monkeypatch):
    whole = builders.logged_pages

    def bare(*args):
        pages = whole(*args)
        return LoggedPages(replace(pages.contexts, page=None, feedback=None), pages.begin)

    for module in (builders, estimate):
        monkeypatch.setattr(module, "logged_pages", bare)
        monkeypatch.setattr(module, "build_policy", lambda *args: pytest.fail("the warm-up began"))
    with pytest.raises(RewardError, match=r"needs Episodes\.page"):
        builder_of("sft")(prepared, tmp_path, None, "sft")
    with pytest.raises(RewardError, match=r"needs Episodes\.page"):
        estimate.estimate(prepared)


def test_rsft_counts_popularity_where_sft_learns_and_nowhere_else(prepared):
    splits = builders.load_splits(prepared.directory / "data")
    table = builders.SidTable.load(prepared.directory / "sid")
    known = builders.rsft_context(prepared.directory, table, splits.sft).popularity
    assert known.tolist() == np.bincount(splits.sft.items, minlength=table.num_items).tolist()
    assert known.sum() < np.load(prepared.directory / "data" / "popularity.npy").sum()


def test_a_stage_killed_in_the_warm_up_or_in_rsft_ends_as_if_it_had_not_been(prepared, tmp_path):
    def build(name, stop=None):
        work, begun = tmp_path / name, []
        work.mkdir(exist_ok=True)

        def kill(step, steps, text):
            begun.append(step)
            if (begun.count(0), step) == stop:  # the warm-up begins at step 0, and RSFT again
                raise KeyboardInterrupt

        builder_of("sft")(prepared, work, kill, "sft")
        return load_policy(work).model.state_dict(), (work / "metrics.jsonl").read_text()

    weights, figures = build("whole")
    for name, stop in (("warm", (1, 7)), ("rsft", (2, 1))):
        with pytest.raises(KeyboardInterrupt):
            build(name, stop)
        again, told = build(name)
        assert told == figures
        assert all(torch.equal(value, weights[key]) for key, value in again.items())


def test_the_stage_goes_on_without_the_worst_pages(prepared, tmp_path, capfd):
    builder_of("sft")(prepared, tmp_path, None, "sft")
    info = read_info(tmp_path)
    rsft = info["rsft"]
    assert rsft["rsft/kept"] == rsft["rsft/pages"] - rsft["rsft/pages"] // 2
    assert len(rsft["figures"]) == 2
    assert 0 < rsft["seen"]["page_wise"][0] < 2 * info["seen"]["page_wise"][0]
    said = capfd.readouterr().err
    assert f"{rsft['rsft/kept']} of {rsft['rsft/pages']} pages kept" in said
    best = [max(row["eval/ndcg@10"] for row in one["figures"]) for one in (info, rsft)]
    assert f"{best[0]:.4f} in the warm-up, {best[1]:.4f} in RSFT" in said
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == [1, 2, 3]
    assert ["rsft/eval/ndcg@10" in row for row in logged] == [False, True, True]
    assert load_policy(tmp_path).levels > 0
