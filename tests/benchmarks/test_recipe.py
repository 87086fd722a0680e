"""The search for a recipe: what is tried, who is judged, who goes on, and that test users are read once."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sidgym.agents.checkpoint import load_policy
from sidgym.agents.policy import Policy
from sidgym.agents.recipes import check_objective, completed
from sidgym.benchmarks import recipe
from sidgym.benchmarks.beauty import QUICK, made_up
from sidgym.benchmarks.recipe import Rung, Search, best_controls, final, gain, scored, search
from sidgym.benchmarks.recipe_parts import (
    Store,
    neighbour_vectors,
    prepared,
    train_arm,
    train_start,
    trained,
    users_of,
)
from sidgym.benchmarks.recipe_settings import candidates, like
from sidgym.envs.records import Sequences

RUNGS = (Rung(2, 40, 1, 2, 2), Rung(3, 60, 2, 1, 1))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    path = made_up(tmp_path_factory.mktemp("log") / "raw")
    return Store("toy", replace(QUICK.data, path=path), QUICK.policy, replace(QUICK.sft, epochs=1))


def test_every_arm_is_another_one():
    arms = candidates()
    for name, arm in arms.items():
        check_objective(arm.rl)
        assert arm.control == name.startswith("nll"), name
        assert completed(arm.rl).nll_weight > 0 or arm.rl.rewards or arm.rl.objective == "list_ndcg", name
    assert len({repr(arm) for arm in arms.values()}) == len(arms)
    plan = Search({}, arms, [0], Path(), 1)
    assert len({plan.slug(name, RUNGS[0]) for name in arms}) == len(arms)
    assert plan.slug("list", RUNGS[0]) != plan.slug("list", RUNGS[1]), "another number of steps is another part"


def test_an_arm_is_compared_with_the_control_of_its_own_rate_and_contexts():
    arms = candidates()
    alike = {name: like(arms, name) for name in arms}
    assert alike["hits + nll, lr 3e-4"] == "nll lr 3e-4"
    assert alike["hits + nll, refills"] == "nll refills"
    assert alike["list + nll, curriculum"] == "nll curriculum"
    assert alike["nll"] is None
    for name, other in alike.items():
        assert arms[name].control or (other and arms[other].rl.lr == arms[name].rl.lr), name


@pytest.mark.slow
def test_every_arm_learns_something_else_from_one_start(store, tmp_path):
    """No setting is ignored, and none is drowned by the likelihood beside it."""
    start = tmp_path / "toy.start"
    train_start(store, 3, start)
    splits, _ = prepared(store, 3, test=False)
    before = flat(load_policy(start))
    moved = {}
    for name, arm in candidates().items():
        small = replace(arm.rl, contexts_per_step=16, chunk=16, steps=6, warmup_steps=1)
        (tmp_path / name).mkdir()
        policy = trained(splits, 3, start, replace(arm, rl=small), tmp_path / name, [])
        moved[name] = flat(policy) - before
        assert np.isfinite(moved[name]).all(), name
        assert np.abs(moved[name]).max() > 0, name
    names = list(moved)
    for number, one in enumerate(names):
        for other in names[:number]:
            a, b = moved[one], moved[other]
            assert np.linalg.norm(a - b) > 0.003 * np.linalg.norm(b), f"{one} and {other} learn the same"


def flat(policy: Policy) -> np.ndarray:
    return np.concatenate([value.detach().numpy().ravel() for value in policy.model.parameters()])


def test_without_being_told_nobody_sees_test_users(store):
    splits, _ = prepared(store, 3, test=False)
    assert len(splits.test) == 0
    judged = users_of(splits, 20, test=False)
    assert set(judged.event.tolist()) <= set(splits.valid.event.tolist())
    assert len(judged) == 20
    whole, _ = prepared(store, 3, test=True)
    assert len(users_of(whole, 0, test=True)) == len(whole.test) > 100


def test_neighbours_in_the_log_are_near():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 10, 8) + 10 * (user % 2) for user in range(60)]
    vectors = neighbour_vectors(Sequences(np.arange(60), np.concatenate(rows), np.arange(61) * 8), 21, width=4)
    unit = vectors[:20] / np.linalg.norm(vectors[:20], axis=1, keepdims=True)
    near = unit @ unit.T
    assert near[:10, :10].mean() > near[:10, 10:].mean() + 0.3
    assert np.abs(vectors[20]).max() < 1e-6, "never seen"


# Figures by hand -----------------------------------------------------------------------------------------------------


def part(level: float, rng: np.random.Generator, recall: float | None = None) -> dict:
    users = rng.normal(scale=0.01, size=400)
    return {"per_user": {"n@10": (level + users).tolist(), "r@50": ((recall or level) + users).tolist()}, "cpu_s": 1.0}


def planted(levels: dict, stores=("a", "b"), seeds=(0, 1)) -> dict:
    """A level of both metrics, or one of each, for every arm."""
    out = {}
    for number, (name, level) in enumerate(levels.items()):
        level, *recall = np.atleast_1d(level)
        for store in stores:
            out |= {(name, store, seed): part(level, np.random.default_rng([seed, number]), *recall) for seed in seeds}
    return out


def test_a_gain_is_paired_by_user_and_averaged_over_seeds():
    found = {
        ("x", "a", 0): {"per_user": {"n@10": [1.0, 0.5]}},
        ("x", "a", 1): {"per_user": {"n@10": [0.0, 0.5]}},
        ("y", "a", 0): {"per_user": {"n@10": [0.0, 0.5]}},
        ("y", "a", 1): {"per_user": {"n@10": [0.0, 0.0]}},
    }
    assert gain(found, "x", "y", "a", "n@10").tolist() == [0.5, 0.25]


def test_the_score_is_the_weakest_of_metrics_and_controls():
    found = planted({"sft": 0.10, "weak": 0.11, "nll": 0.12, "both": 0.13, "top": (0.14, 0.115), "bad": 0.1})
    del found["bad", "a", 0]
    found["bad", "a", 0] = {"broken": "the loss is nan", "cpu_s": 1.0}
    control = best_controls(found, ["weak", "nll"], ["a", "b"])
    assert control == {"a": "nll", "b": "nll"}
    score = scored(found, ["both", "top", "bad"], control)
    assert score["both"] > 2
    assert score["top"] < 0, "better at the top, below the control at 50"
    assert score["bad"] == float("-inf")


class Planted(Search):
    """A search whose parts are made up."""

    levels = {"sft": 0.1, "nll": 0.12, "nll weak": 0.11, "poor": 0.09, "good": 0.13, "fair": 0.121}  # noqa: RUF012

    def __init__(self, folder: Path):
        base = candidates()
        arms = {name: base["nll" if "nll" in name else "hits"] for name in self.levels if name != "sft"}
        super().__init__({"a": None, "b": None}, arms, [0, 1], folder, 1)  # type: ignore[dict-item]
        self.asked: list = []

    def starts(self) -> None:
        pass

    def judge(self, names, rung, label, test=False):
        self.asked.append((sorted(names), rung.steps, rung.seeds, test))
        return planted({name: self.levels[name] for name in ("sft", *names)}, seeds=range(rung.seeds))


def test_halving_ends_with_the_best_arm_and_never_asks_for_test_users(tmp_path):
    plan = Planted(tmp_path)
    found = search(plan, RUNGS)
    assert (found["chosen"], found["control"]) == ("good", {"a": "nll", "b": "nll"})
    assert plan.asked[0] == (["fair", "good", "nll", "nll weak", "poor"], 2, 1, False)
    assert plan.asked[1] == (["fair", "good", "nll", "nll weak"], 3, 2, False)
    assert found["rungs"][0]["arms"]["good"]["like"]["a"]["n@10"]["low"] > 0
    json.dumps(found)


def test_an_arm_of_a_later_rung_joins_there_and_is_the_same_part_wherever_it_joins(tmp_path):
    plan = Planted(tmp_path)
    early, late = plan.arms["good"], replace(plan.arms["good"], rung=1)
    plan.arms["good"] = late
    found = search(plan, RUNGS)
    assert found["chosen"] == "good"
    assert [("good" in names) for names, *_ in plan.asked] == [False, True]
    assert repr(early) == repr(late), "what is kept of it is told by its arguments"
    own, other = Planted(tmp_path), Planted(tmp_path)
    other.arms["good"] = late
    assert own.slug("good", RUNGS[0]) == other.slug("good", RUNGS[0])


def test_the_final_judges_test_users_of_one_choice(tmp_path):
    plan = Planted(tmp_path)
    chosen = {"chosen": "good", "control": {"a": "nll", "b": "nll"}, "steps": 9}
    out = final(plan, chosen, 0)
    assert plan.asked == [(["good", "nll"], 9, 2, True)]
    assert out["criterion_met"] is True
    assert out["stores"]["a"]["recipe_minus_nll"]["n@10"]["mean"] == pytest.approx(0.01, abs=0.002)
    assert final(plan, chosen, 0) == out, "asked again, the same"
    with pytest.raises(SystemExit, match="not judged twice"):
        final(plan, {**chosen, "chosen": "fair"}, 0)
    fewer = Planted(tmp_path)
    fewer.seeds = [0]
    with pytest.raises(SystemExit, match="not judged twice"):
        final(fewer, chosen, 0)
    changed = Planted(tmp_path)
    changed.arms["good"] = replace(changed.arms["good"], rl=replace(changed.arms["good"].rl, lr=1.0))
    with pytest.raises(SystemExit, match="not judged twice"):
        final(changed, chosen, 0)
    assert final(Planted(tmp_path / "b"), {**chosen, "chosen": "poor"}, 0)["criterion_met"] is False


def test_a_start_and_an_arm_are_trained_and_judged_on_validation_users(store, tmp_path):
    start = tmp_path / "toy.start"
    assert train_start(store, 3, start)["best_epoch"] == 1
    arm = candidates()["top 2 neighbours + nll"]
    figures = train_arm(store, 3, start, replace(arm, rl=recipe.quick(arm.rl)), 2, 30, test=False)
    assert len(figures["per_user"]["n@10"]) == len(figures["per_user"]["r@50"]) == 30
    assert figures["training"]["last"]["reward"] > 0
    broken = replace(arm, rl=replace(recipe.quick(arm.rl), nll_weight=float("inf"), refusals=1))
    assert "broken" in train_arm(store, 3, start, broken, 3, 30, test=False)
    refused = replace(arm, rl=replace(recipe.quick(arm.rl), cut_levels=99))
    assert "ValueError" in train_arm(store, 3, start, refused, 3, 30, test=False)["broken"]
