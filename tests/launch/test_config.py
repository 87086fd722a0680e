"""Configurations: reading, errors that name the fault, command-line overrides, arms, round trip, checks on values."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.launch.config import (
    ConfigError,
    RunConfig,
    apply_reward_flags,
    config_hash,
    load_config,
    select_sections,
    shipped_configs,
    to_toml,
    validate,
)

SHIPPED = {
    "amazon_scientific": RunConfig,
    "demo": RunConfig,
    "objectives": RunConfig,
    "objectives_beauty": RunConfig,
    "objectives_scientific": RunConfig,
    "sessions": RunConfig,
}


def write(folder: Path, text: str, name: str = "demo.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_shipped_config_is_listed_here():
    assert set(shipped_configs()) == set(SHIPPED)


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_config_parses_and_round_trips(name, tmp_path):
    config = load_config(shipped_configs()[name])
    assert type(config) is SHIPPED[name]
    assert config.name == name
    assert config.arms, "a shipped run has its likelihood-only control"
    assert load_config(write(tmp_path, to_toml(config))) == config


def test_no_reward_at_all_is_a_slip():
    with pytest.raises(ConfigError, match="--rewards: expected at least one name"):
        load_config(None, ["--rewards"])


def test_shipped_config_by_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("demo")) == load_config(shipped_configs()["demo"])


def test_defaults_are_valid_and_round_trip(tmp_path):
    config = load_config(None)
    assert config == RunConfig(name="run")
    assert load_config(write(tmp_path, to_toml(config))) == config


def test_types_are_converted_only_where_nothing_is_lost(tmp_path):
    config = load_config(write(tmp_path, "[sft]\nlr = 1\n[eval]\nks = [1, 3]\nbeam = 8\n", "mine.toml"))
    assert config.name == "mine"
    assert type(config.sft.lr) is float
    assert config.eval.ks == (1, 3)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[rl]\ngroup_sise = 4", ["demo.toml", "unknown key 'rl.group_sise'", "did you mean 'rl.group_size'?"]),
        ("sead = 4", ["unknown key 'sead'", "did you mean 'seed'?"]),
        ("[rll]\nlr = 1.0", ["unknown key 'rll'", "did you mean 'rl'?"]),
        ("[log]\nqqqqqq = 1", ["unknown key 'log.qqqqqq'", "known here: wandb, project"]),
        ("[arms.nll]\nnll_wait = 1.0", ["unknown key 'arms.nll.nll_wait'", "did you mean 'arms.nll.nll_weight'?"]),
        ("[[rl.rewards]]\nname='rule'\nwait=1", ["unknown key 'rl.rewards[0].wait'", "'rl.rewards[0].weight'?"]),
        ("[[rl.rewards]]\nweight=1.0", ["'rl.rewards'", "every term needs a 'name'"]),
        ("[rl]\nsteps = 2.0", ["'rl.steps': expected int, got float 2.0"]),
        ("[rl]\nsteps = true", ["'rl.steps': expected int, got bool True"]),
        ("[rl]\nlr = true", ["'rl.lr': expected float, got bool True"]),
        ("[rl]\nlr = '1'", ["'rl.lr': expected float, got str '1'"]),
        ("[preference]\nenabled = 1", ["'preference.enabled': expected bool, got int 1"]),
        ("[eval]\nks = 5", ["'eval.ks': expected list of int, got int 5"]),
        ("[eval]\nks = [5, 1.0]", ["'eval.ks[1]': expected int, got float 1.0"]),
        ("rl = 3", ["'rl': expected a table of RlConfig, got int 3"]),
        ("arms = 3", ["'arms': expected tables [arms.NAME], got int 3"]),
        ("[[rl.rewards]]\nname='x'\nargs={since=2020-01-01}", ["'rl.rewards[0].args.since'", "got date"]),
        ("[rl\n", ["demo.toml: not valid TOML", "line 1"]),
    ],
)
def test_errors_name_file_key_expected_and_given(text, parts, tmp_path):
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, text))
    for part in parts:
        assert part in str(error.value)


def test_missing_file_names_what_is_shipped(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml.*amazon_scientific, demo"):
        load_config(tmp_path / "none.toml")


# Arms and the command line -------------------------------------------------------------------------------------------

ARMS = """
[rl]
lr = 0.5
nll_weight = 0.1
[arms.nll]
rewards = []
nll_weight = 1.0
[arms.slow]
lr = 0.25
"""


def test_arms_inherit_what_they_do_not_set(tmp_path):
    config = load_config(write(tmp_path, ARMS))
    assert config.arms["nll"] == dataclasses.replace(config.rl, rewards=(), nll_weight=1.0)
    assert config.arms["slow"] == dataclasses.replace(config.rl, lr=0.25)


def test_overrides_reach_inherited_fields_only(tmp_path):
    options = ["--rl.lr", "0.125", "--rl.steps", "7", "--data.users", "500", "--eval.ks", "1", "2"]
    config = load_config(write(tmp_path, ARMS), options)
    assert (config.data.users, config.eval.ks) == (500, (1, 2))
    assert [rl.steps for rl in (config.rl, *config.arms.values())] == [7, 7, 7]
    assert (config.rl.lr, config.arms["nll"].lr, config.arms["slow"].lr) == (0.125, 0.125, 0.25)


def test_arm_options_win_even_where_they_repeat_the_default(tmp_path):
    default = RlConfig().steps
    options = ["--rl.steps", "7", f"--arms.nll.steps={default}", "--arms.slow.kl-weight", "0.5", "--seed", "3"]
    config = load_config(write(tmp_path, ARMS), options)
    assert (config.rl.steps, config.arms["nll"].steps, config.arms["slow"].steps) == (7, default, 7)
    assert (config.arms["slow"].kl_weight, config.rl.kl_weight, config.seed) == (0.5, 0.0, 3)


def test_arm_options_without_arms_are_an_error():
    with pytest.raises(ConfigError, match=r"--arms\.nll\.lr: the configuration has no arms"):
        load_config(None, ["--arms.nll.lr", "1"])


@pytest.mark.parametrize(
    ("options", "near"),
    [(["--rl.group-sise", "3"], "--rl.group-size"), (["--arms.nll.lrr", "3"], "--arms.nll.lr")],
)
def test_unknown_option_names_the_nearest(options, near, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        load_config(write(tmp_path, ARMS), options)
    assert stop.value.code == 2
    assert near in capsys.readouterr().err.replace(options[0], "")


def test_help_lists_options_with_meaning_and_value(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        load_config(write(tmp_path, ARMS), ["--help"], prog="sidgym run CONFIG")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for part in ("sidgym run CONFIG", "--rewards [NAME ...]", "--rl.lr FLOAT", "(default: 0.5)", "--arms.nll.lr"):
        assert part in text


def test_rewards_on_the_command_line_reach_arms_that_inherit_them(tmp_path):
    options = ["--rewards", "rule", "rank", "my_pkg.mine:freshness", "--reward-weights", "1", "1", "0.2"]
    config = load_config(write(tmp_path, ARMS), options)
    terms = (RewardConfig("rule", 1.0), RewardConfig("rank", 1.0), RewardConfig("my_pkg.mine:freshness", 0.2))
    assert config.rl.rewards == config.arms["slow"].rewards == terms
    assert config.arms["nll"].rewards == ()


def test_reward_flags_keep_what_is_configured():
    rl = RlConfig(rewards=(RewardConfig("a", 0.5, {"tau": 0.1}), RewardConfig("b", 2.0)))
    assert apply_reward_flags(rl, None, None) == rl
    assert apply_reward_flags(rl, ["c", "a"], None).rewards == (RewardConfig("c", 1.0), rl.rewards[0])
    assert apply_reward_flags(rl, ["a"], [3]).rewards == (RewardConfig("a", 3.0, {"tau": 0.1}),)
    assert [term.weight for term in apply_reward_flags(rl, None, [4.0, 5.0]).rewards] == [4.0, 5.0]
    assert apply_reward_flags(rl, [], None).rewards == ()


def test_overrides_leave_the_arguments_of_terms_alone(tmp_path):
    args = 'args = { tau = 0.5, mixed = [1, "a", [2.5, true]], none = [], deep = { empty = {}, flag = true } }'
    path = write(tmp_path, f"[[rl.rewards]]\nname = 'a.b:c'\n{args}\n[arms.nll]\nrewards = []\nnll_weight = 1.0\n")
    config = load_config(path, ["--seed", "0", "--arms.nll.lr", "0.5", "--rl.rewards.0.weight", "0.5"])
    assert config.rl.rewards == (dataclasses.replace(load_config(path).rl.rewards[0], weight=0.5),)


def test_reward_weights_must_match_the_terms():
    with pytest.raises(ConfigError, match=r"expected 2 weights, one for each term \(rule rank\), got 3"):
        apply_reward_flags(RlConfig(), None, [1.0, 2.0, 3.0])


def test_reward_arguments_are_json_objects_one_a_term(tmp_path):
    path = write(tmp_path, "[[rl.rewards]]\nname='rule'\nweight=2.0\nargs={any_positive=true}\n")
    options = ["--rewards", "rule", "rank", "--reward-args", "{}", '{"groups": "all"}']
    config = load_config(path, options)
    expected = (RewardConfig("rule", 2.0, {}), RewardConfig("rank", 1.0, {"groups": "all"}))
    assert config.rl.rewards == expected, "arguments are replaced, weights stay as configured"
    assert load_config(write(tmp_path, to_toml(config))) == config


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["{}"], r"expected 2 JSON objects, one for each term \(rule rank; '\{\}' for no arguments\), got 1"),
        (["{}", "tau=1"], r"JSON object for reward 'rank', such as .*; got 'tau=1'"),
        (["[1]", "{}"], r"JSON object for reward 'rule', got list \[1\]"),
        (["{}", '{"a": {"b": null}}'], r"--reward-args: 'rank\.a\.b': expected str, int, float, bool"),
    ],
)
def test_reward_arguments_that_cannot_be_read_are_shown(given, said):
    with pytest.raises(ConfigError, match=said):
        apply_reward_flags(RlConfig(), None, None, given)


# Round trip ----------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
numbers = st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    numbers | st.booleans() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
terms = st.builds(
    RewardConfig,
    name=st.sampled_from(["rule", "rank", "a.b:c"]),
    weight=st.floats(-1e9, 1e9),
    args=st.dictionaries(texts, plain, max_size=3),
)
rls = st.builds(RlConfig, rewards=st.lists(terms, min_size=1, max_size=2).map(tuple), lr=st.floats(1e-12, 1e12))


@given(config=st.builds(RunConfig, name=st.just("x"), out=texts, rl=rls, arms=st.dictionaries(st.just("a-1_b"), rls)))
def test_written_config_reads_back_equal(config, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("round"), to_toml(config))
    again = load_config(path)
    assert again == config
    assert to_toml(again) == to_toml(config)


def test_what_toml_cannot_hold_is_refused():
    rl = RlConfig(rewards=(RewardConfig("rule", args={"x": None}),))
    with pytest.raises(ConfigError, match="cannot write NoneType None as TOML"):
        to_toml(RunConfig(name="x", rl=rl))


# Values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("threads = 0", "threads: expected more than 0, got 0"),
        ("name = 'a/b'", "name: expected letters, digits"),
        ("name = '..'", "name: expected letters, digits"),
        ("[arms.'a.b']\nlr = 1.0", "arms: expected a name without '.'"),
        ("[eval]\nbeam = 5", r"eval\.beam: expected at least the largest of eval\.ks \(1, 5, 10, 50\), got 5"),
        ("[eval]\nks = []", r"eval\.beam: expected at least the largest"),
        ("[eval]\nks = [0]", r"eval\.ks\[0\]: expected more than 0, got 0"),
        ("[data]\nrl_share = 0.8", r"expected rl_share \+ valid_share \+ test_share below 1"),
        ("[data]\nvalid_share = 0.0", r"data\.valid_share: expected more than 0, got 0\.0"),
        ("[data]\nsplit='leave_one_out'\nrl_share = 1.5", r"data\.rl_share: expected at most 1, got 1\.5"),
        ("[data]\nsplit='random'", r"data\.split: expected one of by_user, leave_one_out, chronological; got 'random'"),
        ("[arms.one]\ngroup_size = 1", r"arms\.one\.group_size: a group of one"),
        ("[arms.one]\nmode = 'greedy'", r"arms\.one\.mode: expected one of beam, sample, top_k, dynamic, .*free; got"),
        ("[rl]\ncombine = 'product'", r"rl\.combine: expected one of sum, each; got 'product'"),
        ("[rl]\nenvironment = 'feed'", r"rl\.environment: expected one of next_item, page, session; got 'feed'"),
        ("[rl]\ndiscount = 1.5", r"rl\.discount: expected between 0 and 1, got 1\.5"),
        ("[rl]\ndiscount = -0.5", r"rl\.discount: expected at least 0, got -0\.5"),
        ("[rl]\npage_size = 0", r"rl\.page_size: expected more than 0, got 0"),
        ("[rl]\nenvironment = 'page'\nmode = 'free'", r"rl\.mode: .* mode 'free' goes with environment = 'next_item'"),
        ("[rl]\nenvironment = 'page'\nnormalise = 'vocab'", r"rl\.normalise: .* expected 'trie', got 'vocab'"),
        (
            "[data]\nname = 'amazon'\n[arms.one]\nenvironment = 'session'",
            r"arms\.one\.environment: 'session' needs shoppers .* got data\.name = 'amazon'",
        ),
        (
            "[rl]\nenvironment = 'session'\nnll_weight = 0.1",
            r"rl\.nll_weight: a session has no logged targets",
        ),
        (
            "[arms.one]\nenvironment = 'session'\nobjective = 'grpo_sr'",
            r"arms\.one\.nll_weight: a session has no logged targets.*got 0\.1",
        ),
        (
            "[rl]\nmode = 'stochastic_beam'\nnormalise = 'vocab'",
            r"rl\.normalise: stochastic_beam draws from the SIDs of the trie",
        ),
        (
            "[data]\nitems = 5\n[rl]\nenvironment = 'session'",
            r"rl\.page_size: expected fewer than the 5 items of the store, got 5",
        ),
        ("[rl]\nlr = nan", r"rl\.lr: expected a finite number, got nan"),
        ("[[rl.rewards]]\nname='rule'\nweight=inf", r"rl\.rewards\[0\]\.weight: expected a finite number, got inf"),
        ("[rl]\nlr = -1.0", r"rl\.lr: expected more than 0, got -1\.0"),
        ("[rl]\nkl_weight = -1.0", r"rl\.kl_weight: expected at least 0, got -1\.0"),
        ("[rl]\nengines = 2", r"rl\.engines, rl\.tensor_parallel: expected 1 with engine 'torch'; they are vLLM's"),
        ("[rl]\nminibatch = 65", r"rl\.minibatch: expected at most contexts_per_step = 64, got 65"),
        ("[rl]\nobjective = 'my.mod:'", r"rl\.objective: expected a registered name or package\.module:name"),
        ("[rl]\ngroup_size = 1\n[[rl.rewards]]\nname='rule'", r"rl\.group_size: a group of one"),
        ("[arms.nll]\nrewards = []", r"arms\.nll: expected at least one reward or an nll_weight above 0"),
        ("address = 'ray://head:10001'", r"address: expected auto or host:port of the head of a Ray cluster"),
        ("[policy]\nheads = 3", r"policy\.hidden_size: expected a multiple of policy\.heads = 3, got 64"),
        ("[policy]\ndropout = 1.0", r"policy\.dropout: expected less than 1"),
    ],
)
def test_values_that_cannot_work_are_named(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as error:
        load_config(write(tmp_path, text))
    assert str(error.value).startswith("demo.toml: ")


def test_values_that_look_odd_but_work(tmp_path):
    rl = "[rl]\ngroup_size=1\nnll_weight=1.0\n[[rl.rewards]]\nname='rule'\nweight=-1\n"
    page = "[arms.page]\nenvironment='page'\npage_size=1\ndiscount=0.0\nhorizon=0\nwarm_pages=0\n"
    text = f"[data]\nsplit='leave_one_out'\nrl_share=1.0\n{rl}{page}"
    config = load_config(write(tmp_path, text))
    assert config.rl.rewards[0].weight == -1.0
    assert config.arms["page"].horizon == 0


def test_every_fault_is_listed():
    config = RunConfig(name="x", threads=0, rl=RlConfig(lr=-1.0))
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert len(str(error.value).splitlines()) == 2


# Hashes --------------------------------------------------------------------------------------------------------------


def test_hash_follows_the_chosen_sections_only():
    one = RunConfig(name="one", arms={"nll": RlConfig(rewards=())})
    two = dataclasses.replace(one, name="two", rl=RlConfig(lr=1.0))
    assert config_hash(one, ["data", "seed", "arms.nll"]) == config_hash(two, ["data", "seed", "arms.nll"])
    assert config_hash(one, ["data", "rl"]) != config_hash(two, ["data", "rl"])
    assert config_hash(one, ["rl"]) != config_hash(one, ["arms.nll"])
    assert select_sections(two, ["rl.lr", "seed"]) == {"rl.lr": 1.0, "seed": 0}


@pytest.mark.parametrize("section", ["nope", "rl.nope", "arms.nope", "seed.nope"])
def test_unknown_section_is_refused(section):
    with pytest.raises(ConfigError, match=f"no section '{section}'"):
        config_hash(RunConfig(name="x"), [section])
