"""Contests of sets of arms without training: what differs between arms, models of their own, shared codes."""

from argparse import Namespace
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from sidgym.benchmarks.arms_summary import CONTROL
from sidgym.envs.records import Catalogue
from sidgym.launch.bench import make_bench, make_parser, run_bench_command
from sidgym.launch.bench_codes import shared_tables
from sidgym.launch.bench_runs import PREFERENCE, rounds, share_stages
from sidgym.launch.bench_scaling import SIZES, make_contest, setting_of, sized
from sidgym.launch.bench_sets import COLLABORATIVE, RATE, SETS
from sidgym.launch.bench_transfer import PRESETS as TRANSFER
from sidgym.launch.bench_transfer import on_catalogue, runs_of
from sidgym.launch.config import load_config
from sidgym.launch.pipeline import check_names
from sidgym.launch.schema import ConfigError
from sidgym.sid.config import SidConfig
from sidgym.sid.table import SidTable


def asked(name, *given):
    options, rest = make_parser(name).parse_known_args(list(given))
    return make_bench(name, options, rest, [name, *given])


OWN = {"sampling": {"mode"}, "rewards": {"rewards"}, "normalise": {"normalise", "objective", "nll_weight"}}
"""Set -> the settings that tell its arms apart; a learning rate besides may be each arm's own."""


@pytest.mark.parametrize("preset", ["quick", "full"])
@pytest.mark.parametrize("name", sorted(SETS))
def test_arms_differ_in_what_the_set_says_and_in_nothing_else(name, preset):
    bench = asked(name, "--preset", preset)
    assert list(bench.config.arms) == [*SETS[name].arms, CONTROL]
    for field in fields(bench.config.rl):
        values = [getattr(bench.config.arms[arm], field.name) for arm in SETS[name].arms]
        alike = all(value == values[0] for value in values)
        assert alike != (field.name in OWN[name]) or field.name == "lr", field.name
    assert bench.config.directory.name == f"bench-{name}-{preset}"
    assert bench.config.preference.enabled == (name == "rewards")  # no model is fitted that nobody reads
    check_names(bench.config)


def test_the_control_is_the_same_in_all_and_options_reach_every_arm():
    given = ("--arms", "beam", "sample", "grpo_sr", "--rl.steps", "7", "--rl.lr", "5e-5", "--rewards", "rule")
    bench = asked("sampling", *given)
    arms = ("beam", "sample", "grpo_sr")
    assert list(bench.config.arms) == [*arms, CONTROL]
    assert {bench.config.arms[arm].steps for arm in arms} == {7}
    assert {bench.config.arms[arm].lr for arm in arms} == {5e-5}
    assert {tuple(t.name for t in bench.config.arms[arm].rewards) for arm in arms} == {("rule",)}
    assert bench.config.arms["grpo_sr"].objective == "grpo_sr"
    assert bench.config.arms[CONTROL].objective == "nll"
    own = asked("sampling", "--arms", "beam", "grpo_sr", "--rl.lr", "5e-5", "--arms.grpo_sr.lr", "2e-5").config.arms
    assert (own["beam"].lr, own["grpo_sr"].lr) == (5e-5, 2e-5)
    with pytest.raises(ConfigError, match=r"no way of drawing 'nothing'; known: beam"):
        asked("sampling", "--arms", "nothing")


def test_every_arm_may_have_a_learning_rate_of_its_own(monkeypatch):
    rates = {name: 10.0 ** -(3 + number) for number, name in enumerate(SETS["sampling"].arms)}
    arms = {name: {**own, "lr": rates[name]} for name, own in SETS["sampling"].arms.items()}
    changed = replace(SETS["sampling"], arms=arms, chosen="As somebody chose.")
    monkeypatch.setattr("sidgym.launch.bench.SETS", {**SETS, "sampling": changed})
    bench = asked("sampling")
    assert {name: bench.config.arms[name].lr for name in rates} == rates
    assert bench.notes[-1] == (
        "Learning rates: beam 0.001, sample 0.0001, top_k 1e-05, dynamic 1e-06, stochastic_beam 1e-07; the control's "
        "is 0.0001. As somebody chose."
    )
    assert {asked("sampling", "--rl.lr", "3e-4").config.arms[name].lr for name in rates} == {3e-4}


def test_the_rates_of_a_set_are_those_of_the_presets_store_alone(tmp_path):
    there = asked("sampling", "--config", "objectives_scientific", "--data.path", str(tmp_path))
    assert {arm.lr for arm in there.config.arms.values()} == {3e-5}
    assert there.notes[-1].startswith("Learning rates: 3e-05 for every arm; the control's is 3e-05. They are those of ")
    here = asked("normalise")
    assert "0.001 for every arm; the control's is 0.0001. That one was chosen for beams" in here.notes[-1]
    other = asked("normalise", "--rl.lr", "1e-3")  # the same rate, asked for
    assert other.config.arms == here.config.arms
    assert "sample 0.0003" in asked("sampling").notes[-1]
    assert asked("sampling").notes[-1].endswith("which is not reported (docs/log.md).")


def test_notes_tell_the_reward_that_arms_learn_from():
    assert "All arms learn from the reward rule + rank." in asked("sampling").notes
    assert "All arms learn from the reward rule." in asked("sampling", "--rewards", "rule").notes
    assert not any("All arms learn from" in note for note in asked("rewards").notes)


def test_any_reward_is_an_arm_of_rewards():
    arms = asked("rewards", "--arms", "gated", "prefix", "my_rewards:fresh", "--arms.fresh.lr", "2e-4").config.arms
    assert {name: [term.name for term in arm.rewards] for name, arm in arms.items() if name != CONTROL} == {
        "gated": ["gated"], "prefix": ["prefix"], "fresh": ["my_rewards:fresh"],
    }  # fmt: skip
    assert [arms[name].lr for name in ("gated", "prefix", "fresh")] == [RATE, RATE, 2e-4]
    with pytest.raises(ConfigError, match=r"no reward 'nope'; known: rule, .*'package.module:name'; arms of the conf"):
        asked("rewards", "--arms", "nope")
    with pytest.raises(ConfigError, match=r"no way of drawing 'my_modes:mine'; known: beam, .*_beam; arms of"):
        asked("sampling", "--arms", "my_modes:mine")


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("rewards", "--rewards"),
        ("rewards", "--reward-weights"),
        ("sampling", "--rl.mode"),
        ("normalise", "--rl.nll-weight"),
    ],
)
def test_an_option_that_no_arm_would_follow_is_refused(name, option):
    given = {"--rewards": ["rule"], "--reward-weights": ["1"], "--rl.mode": ["sample"]}.get(option, ["0.5"])
    with pytest.raises(ConfigError, match=f"{option}: every arm of this contest has .* of its own"):
        asked(name, option, *given)


def test_grpo_sr_stands_beside_grpo_under_both_softmaxes():
    arms = asked("normalise").config.arms
    told = {name: (arm.normalise, arm.objective, arm.nll_weight) for name, arm in arms.items() if name != CONTROL}
    assert told == {
        "trie": ("trie", "grpo", 0.0),
        "vocab": ("vocab", "grpo", 0.0),
        "trie_sr": ("trie", "grpo_sr", 0.1),
        "vocab_sr": ("vocab", "grpo_sr", 0.1),
    }


def test_the_collaborative_arm_has_a_model_and_a_run_of_its_own(tmp_path):
    bench = asked("rewards", "--seeds", "2", "--out", str(tmp_path / "out"))
    assert bench.config.preference.kind == "din"
    assert bench.config.arms["collaborative"].rewards[0].name == COLLABORATIVE
    plan = rounds(bench)
    steps = {(step.system, step.seed): step for step in plan[-1]}
    own, other = steps["collaborative", 1].config, steps["gated", 1].config
    assert (own.preference.kind, other.preference.kind) == ("sasrec", "din")
    assert (own.name, other.name) == ("seed-1-collaborative", "seed-1")
    models = [step for step in plan[1] if step.system == PREFERENCE]
    assert [step.config.preference.kind for step in models] == ["din", "din", "sasrec", "sasrec"]
    share_stages(bench)
    share_stages(bench)  # links that lie there stay
    assert (own.directory / "sft").readlink().as_posix() == "../seed-1/sft"
    (tmp_path / "out" / "seed-1" / "sft").mkdir(parents=True)
    assert (own.directory / "sft").is_dir()


def test_all_commands_have_a_help(capsys):
    for name in ("sampling", "rewards", "normalise", "scaling", "transfer"):
        with pytest.raises(SystemExit) as stop:
            run_bench_command([name, "--help"])
        assert stop.value.code == 0
        assert f"sidgym bench {name}" in capsys.readouterr().out


@pytest.mark.parametrize("width", [64, 128])
def test_sizes_grow_and_wider_models_learn_more_slowly(width):
    config = load_config(None, ["--policy.hidden-size", str(width)])
    made = [sized(config, size) for size in SIZES]
    widths = [one.policy.hidden_size for one in made]
    assert widths == sorted(widths)
    assert len(set(widths)) == len(SIZES) >= 4
    rates = [one.sft.lr * one.policy.hidden_size**0.5 for one in made]
    assert rates == pytest.approx([rates[0]] * len(rates))
    assert sized(config, {64: "m", 128: "l"}[width]).sft.lr == config.sft.lr  # at the configured width the configured
    with pytest.raises(ConfigError, match="at least 4 sizes"):
        run_bench_command(["scaling", "--sizes", "xs", "s", "m", "--dry-run"])


def test_sizes_that_are_made_otherwise_are_no_trials_of_one_setting(monkeypatch):
    config = load_config(None)
    plain = setting_of(config)
    assert setting_of(replace(config, seed=7, policy=replace(config.policy, layers=9))) == plain  # of each size its own
    changes = {"merge_items": True, "architecture": "llama", "text_vocabulary": 7, "hidden_size": 32, "dropout": 0.5}
    others = [setting_of(replace(config, policy=replace(config.policy, **{k: v}))) for k, v in changes.items()]
    others.append(setting_of(replace(config, split_seed=3)))
    monkeypatch.setitem(SIZES, "xs", {**SIZES["xs"], "layers": 2})
    assert len({plain, *others, setting_of(config)}) == len(changes) + 3


def test_sizes_are_judged_on_one_split_of_a_log(tmp_path):
    options = Namespace(preset="quick", sizes=None, config=None, out=tmp_path / "x", seeds=2)
    log = ["--data.name", "amazon", "--data.path", str(tmp_path), "--data.split", "by_user", "--seed", "4"]
    contest, _ = make_contest(options, log, "")
    assert contest.config.split_seed == 4
    assert "configured width, 64, times sqrt(64 / width)" in contest.notes[1]
    assert make_contest(options, [], "")[0].config.split_seed == "seed"


@pytest.mark.parametrize("name", ["scaling", "transfer", "sampling"])
@pytest.mark.parametrize("seeds", ["0", "-1"])
def test_contests_have_at_least_one_seed(name, seeds, capsys):
    with pytest.raises(SystemExit):
        run_bench_command([name, "--seeds", seeds])
    told = capsys.readouterr().err
    assert "--seeds" in told
    assert "at least 1" in told


@pytest.mark.parametrize("preset", list(TRANSFER))
def test_rl_learns_from_hits_and_ranks_before_it_is_asked_about_another_catalogue(preset):
    config = load_config(Path(TRANSFER[preset].config), TRANSFER[preset].options)
    assert [term.name for term in config.rl.rewards] == ["rule", "rank"]
    assert not config.preference.enabled


# Two catalogues with one codebook -------------------------------------------------------------------------------------

WORDS = ("tent", "stove", "rucksack", "kettle", "lamp", "chair", "drill", "brush", "glove", "rope")


def catalogue(count, seed, name="i"):
    rng = np.random.default_rng(seed)
    titles = [" ".join(WORDS[w] for w in rng.integers(0, len(WORDS), 4)) for _ in range(count)]
    return Catalogue(
        ids=np.array([f"{name}{n}" for n in range(count)]),
        titles=titles,
        descriptions=titles,
        categories=[()] * count,
    )


@pytest.mark.parametrize("fitted", ["first", "both"])
def test_both_tables_have_the_same_tokens_and_the_ids_of_their_catalogues(fitted):
    first, second = catalogue(40, 0), catalogue(30, 1)  # ids of both begin alike
    config = SidConfig(levels=2, codes=8, embedding_dim=8)
    one, two = shared_tables(first, second, config, 0, fitted)
    assert one.sizes == two.sizes
    assert (one.item_ids == first.ids).all()
    assert (two.item_ids == second.ids).all()
    assert one.collision_count() == two.collision_count() == 0


def test_a_codebook_of_the_first_does_not_know_the_second():
    config = SidConfig(levels=2, codes=8, embedding_dim=8)
    first = catalogue(40, 0)
    tables = [shared_tables(first, catalogue(30, seed), config, 0)[0] for seed in (1, 2)]
    assert (tables[0].codes == tables[1].codes).all()
    twin, _ = shared_tables(first, first, config, 0)[0], None
    mine, theirs = shared_tables(first, first, config, 0)
    assert (mine.codes[:, :2] == theirs.codes[:, :2]).all()  # equal texts have equal codes but for the counting level
    assert (twin.codes == mine.codes).all()


def test_codes_of_one_catalogue_alone_are_refused():
    first, second = catalogue(10, 0), catalogue(10, 1)
    with pytest.raises(ValueError, match=r"sid\.index and sid\.alignment belong to one"):
        shared_tables(first, second, SidConfig(index="somewhere"), 0)
    with pytest.raises(ValueError, match="expected one of first, both"):
        shared_tables(first, second, SidConfig(), 0, "second")


def test_runs_of_a_transfer_differ_as_they_should(tmp_path):
    config = replace(load_config(None), out=str(tmp_path), name="x")
    contest = type("Contest", (), {"config": config})()
    runs = runs_of(contest, 2, "", "first")
    assert (runs.untrained.sft.epochs, runs.trained.sft.epochs) == (0, config.sft.epochs)
    assert runs.untrained.arms["rl_only"] == runs.trained.arms["sft_rl"] == config.rl
    assert runs.untrained.sid.index != runs.second.sid.index
    assert runs.second.seed != runs.untrained.seed  # another store
    real = runs_of(contest, 2, "elsewhere", "first")
    assert (real.second.seed, real.second.data.path, real.untrained.data.path) == (2, "elsewhere", config.data.path)


def test_a_policy_is_asked_about_catalogues_with_its_own_tokens_only():
    policy = type("Policy", (), {"table": SidTable(np.array([[0, 0]]), (2, 2), np.array(["a"]))})()
    with pytest.raises(ValueError, match="code both with one tokeniser"):
        on_catalogue(policy, SidTable(np.array([[0, 2]]), (2, 3), np.array(["a"])))
