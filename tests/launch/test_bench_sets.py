"""Contests of sets of arms without training: what differs between arms, models of their own, shared codes."""

from dataclasses import fields, replace

import numpy as np
import pytest

from sidgym.benchmarks.arms_summary import CONTROL
from sidgym.envs.records import Catalogue
from sidgym.launch.bench import make_bench, make_parser, run_bench_command
from sidgym.launch.bench_codes import shared_tables
from sidgym.launch.bench_runs import PREFERENCE, rounds, share_stages
from sidgym.launch.bench_scaling import SIZES, sized
from sidgym.launch.bench_sets import COLLABORATIVE, SETS
from sidgym.launch.bench_transfer import on_catalogue, runs_of
from sidgym.launch.config import load_config
from sidgym.launch.pipeline import check_names
from sidgym.launch.schema import ConfigError
from sidgym.sid.config import SidConfig
from sidgym.sid.table import SidTable


def asked(name, *given):
    options, rest = make_parser(name).parse_known_args(list(given))
    return make_bench(name, options, rest, [name, *given])


@pytest.mark.parametrize("preset", ["quick", "full"])
@pytest.mark.parametrize("name", sorted(SETS))
def test_arms_differ_in_what_the_set_says_and_in_nothing_else(name, preset):
    bench = asked(name, "--preset", preset)
    assert list(bench.config.arms) == [*SETS[name].arms, CONTROL]
    own = {field for arm in SETS[name].arms.values() for field in arm}
    assert len(own) == 1
    for field in fields(bench.config.rl):
        values = [getattr(bench.config.arms[arm], field.name) for arm in SETS[name].arms]
        alike = all(value == values[0] for value in values)
        assert alike != (field.name in own), field.name
    assert bench.config.directory.name == f"bench-{name}-{preset}"
    check_names(bench.config)


def test_the_control_is_the_same_in_all_and_options_reach_every_arm():
    bench = asked("sampling", "--arms", "beam", "sample", "--rl.steps", "7", "--rl.lr", "5e-5", "--rewards", "rule")
    assert list(bench.config.arms) == ["beam", "sample", CONTROL]
    assert {bench.config.arms[arm].steps for arm in ("beam", "sample")} == {7}
    assert {bench.config.arms[arm].lr for arm in ("beam", "sample")} == {5e-5}
    assert {tuple(t.name for t in bench.config.arms[arm].rewards) for arm in ("beam", "sample")} == {("rule",)}
    assert bench.config.arms[CONTROL].objective == "nll"
    with pytest.raises(ConfigError, match="no way of drawing 'nothing'; known: beam"):
        asked("sampling", "--arms", "nothing")


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


def test_sizes_grow_and_wider_models_learn_more_slowly():
    config = load_config(None)
    made = [sized(config, size) for size in SIZES]
    widths = [one.policy.hidden_size for one in made]
    assert widths == sorted(widths)
    assert len(set(widths)) == len(SIZES) >= 4
    rates = [one.sft.lr * one.policy.hidden_size**0.5 for one in made]
    assert rates == pytest.approx([rates[0]] * len(rates))
    assert sized(config, "m").sft.lr == config.sft.lr
    with pytest.raises(ConfigError, match="at least 4 sizes"):
        run_bench_command(["scaling", "--sizes", "xs", "s", "m", "--dry-run"])


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
