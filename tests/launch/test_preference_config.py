"""Settings of the preference model: in the file, on the command line, as a reward's name with a weight, refused."""

import pytest
from test_config import write
from test_pipeline import TINY, refused, write_config

from sidgym.agents.config import RewardConfig, RlConfig, ScoringConfig
from sidgym.launch.config import ConfigError, PreferenceConfig, apply_reward_flags, load_config, to_toml
from sidgym.launch.pipeline import make_plan
from sidgym.launch.preference_stage import fit_settings

FILE = """
[preference]
enabled = true
kind = "sim"
epochs = 3
relevance = "learned"
tau = 0.25
keep = 0.9
settings = { hidden = 16, negatives = "uniform" }
[preference.scoring]
cache = 100
replicas = 2
gpus = 0.5
"""


def test_every_setting_can_stand_in_the_file_and_is_written_back(tmp_path):
    config = load_config(write(tmp_path, FILE))
    settings = {"hidden": 16, "negatives": "uniform"}
    scoring = ScoringConfig(cache=100, replicas=2, gpus=0.5)
    assert config.preference == PreferenceConfig(True, "sim", 3, settings, "learned", 0.25, 0.9, scoring)
    assert load_config(write(tmp_path, to_toml(config))) == config
    default = load_config(None)
    assert default.preference.tau == "auto"
    assert load_config(write(tmp_path, to_toml(default), "run.toml")) == default


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (["--preference.tau", "0.5"], "tau", 0.5),
        (["--preference.tau", "-0.01"], "tau", -0.01),
        (["--preference.tau", "auto"], "tau", "auto"),
        (["--preference.kind", "my.models:mine"], "kind", "my.models:mine"),
        (["--preference-settings", '{"hidden": 8}'], "settings", {"hidden": 8}),
        (["--preference.scoring.replicas", "3"], "scoring", ScoringConfig(cache=100, replicas=3, gpus=0.5)),
    ],
)
def test_options_win_over_the_file(tmp_path, options, field, value):
    assert getattr(load_config(write(tmp_path, FILE), options).preference, field) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tau = 'high'", r"'preference\.tau': expected float or 'auto', got str 'high'"),
        ("tau = true", r"'preference\.tau': expected float or 'auto', got bool True"),
        ("tau = inf", r"preference\.tau: expected a finite number, got inf"),
        ("keep = 0", r"preference\.keep: expected more than 0, got 0"),
        ("scoring = { cache = -1 }", r"preference\.scoring\.cache: expected at least 0, got -1"),
        ("kinds = 'sim'", r"unknown key 'preference\.kinds'; did you mean 'preference\.kind'"),
        ("settings = 'hidden'", r"'preference\.settings': expected table, got str"),
    ],
)
def test_values_of_another_type_are_named(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path, f"[preference]\n{text}\n"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--preference.kind", "simm"], "unknown preference model 'simm'"),
        (["--preference.kind", "no_such_package.here:it"], "cannot import"),
        (["--preference-settings", '{"hiden": 8}'], "kind 'din' has no setting 'hiden'; it has"),
        (["--preference-settings", "hidden=8"], "--preference-settings: expected a JSON object, such as"),
        (["--preference.relevance", "texts"], "unknown relevance 'texts'"),
        (["--preference.tau", "1.5"], "at least -1 and below 1 for relevance 'text', got 1.5, which lets nothing pass"),
        (["--preference.keep", "1.5"], "preference.keep: expected more than 0 and at most 1, got 1.5"),
        (["--preference.scoring.gpus", "0.5"], "set preference.scoring.replicas, too"),
        (["--preference.scoring.replicas", "2"], "which backend 'torch' does without"),
        (
            ["--preference.scoring.replicas", "2", "--preference.scoring.gpus", "0.5", "--rl.backend", "rllib"],
            "kind 'din' scores on the CPU",
        ),
        (
            ["--rewards", "gated:1", "--reward-args", '{"relevance": "numpy:dot"}'],
            "has relevance 'numpy:dot' and no tau",
        ),
        (["--preference.kind", "collections:OrderedDict"], "has no fit, load, score, save"),
        (["--rewards", "gated:1", "--reward-weights", "2"], "give them in one of the two ways"),
        (["--rewards", "gated:nan"], "expected a finite number, got nan"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_built(tmp_path, capfd, options, said):
    if "rllib" in options:
        pytest.importorskip("ray")
    message = refused(capfd, "run", write_config(tmp_path), "--out", str(tmp_path / "runs"), *options)
    assert said in message
    assert not (tmp_path / "runs").exists()


def test_a_learned_relevance_needs_the_fitted_gate_even_before_ones_own_model(tmp_path, capfd):
    args = 'name = "gated_preference"\nargs = { preference = "test_scores:mine", relevance = "learned", tau = 0.5 }'
    text = TINY.replace("enabled = true", "enabled = false").replace('name = "gated_preference"', args)
    (tmp_path / "test_scores.py").write_text("def mine(context):\n    return None\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        message = refused(capfd, "run", write_config(tmp_path, text), "--out", str(tmp_path / "runs"))
    assert "reward 'gated_preference' needs the preference model: set preference.enabled" in message


# A weight behind the name --------------------------------------------------------------------------------------------


def test_a_weight_can_stand_behind_a_rewards_name():
    rl = RlConfig(rewards=(RewardConfig("gated", 0.5, {"tau": 0.1}), RewardConfig("rank", 2.0)))
    given = ["gated:1", "rank", "prefix:-0.25", "my.rewards:fresh", "my.rewards:stale:3e-1"]
    assert apply_reward_flags(rl, given, None).rewards == (
        RewardConfig("gated", 1.0, {"tau": 0.1}),
        RewardConfig("rank", 2.0),
        RewardConfig("prefix", -0.25),
        RewardConfig("my.rewards:fresh", 1.0),
        RewardConfig("my.rewards:stale", 0.3),
    )


@pytest.mark.parametrize(
    ("options", "enabled"),
    [
        (["--rewards", "gated:1"], True),
        (["--rewards", "rank", "gated"], True),
        (["--rewards", "rule:1"], False),
        (["--rl.lr", "0.1"], False),
    ],
)
def test_a_reward_that_reads_the_model_has_one_fitted(tmp_path, options, enabled):
    config = load_config(write(tmp_path, "[data]\nusers = 10\n"), options)
    assert config.preference.enabled is enabled
    assert ("preference" in make_plan(config).stages) is enabled


def test_how_scores_are_asked_for_is_no_input_of_any_stage(tmp_path):
    path = write_config(tmp_path)
    plain, asked = (make_plan(load_config(path, options)) for options in ([], ["--preference.scoring.cache", "7"]))
    assert {name: stage.hash for name, stage in plain.stages.items()} == {
        name: stage.hash for name, stage in asked.stages.items()
    }
    other = make_plan(load_config(path, ["--preference.keep", "0.5"]))
    assert other.stages["rl"].hash != plain.stages["rl"].hash
    assert other.stages["sft"].hash == plain.stages["sft"].hash


def test_a_kind_is_given_the_settings_that_it_has(tmp_path):
    path = write(tmp_path, "[data]\nhistory = 7\n[preference]\nenabled = true\n")
    assert fit_settings(load_config(path)) == {"history": 7, "epochs": 8}
    assert fit_settings(load_config(path, ["--preference.kind", "sim"])) == {"history": 7}
    given = ["--preference.kind", "sim", "--preference.epochs", "2", "--preference-settings", '{"history": 500}']
    assert fit_settings(load_config(path, given)) == {"history": 500, "epochs": 2}
