"""The summary: means, paired intervals, percentages of the oracle, null for what is missing, and its checks."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.benchmarks.summary import (
    SCHEMA_VERSION,
    SystemResult,
    load_summary,
    summarise,
    validate_summary,
    write_summary,
)

USERS = 40


def systems(seed: int = 0, preference: bool = True, users: int = USERS) -> dict[str, SystemResult]:
    rng = np.random.default_rng(seed)
    level = {"random": 0.1, "popularity": 0.2, "sft": 0.3, "nll_only": 0.3, "rl": 0.4, "oracle": 0.5}
    noise = rng.random(users) * 0.01
    out = {}
    for name, value in level.items():
        if name in ("random", "oracle") and not preference:
            continue
        figures = {"ndcg@10": value / 2 + noise, "hr@10": np.full(users, value)}
        if preference:
            figures |= {"preference@1": value + noise, "preference@10": value + noise}
        out[name] = SystemResult(name, figures, {"har": 0.05} if name in ("sft", "rl") else {})
    return out


def summary(results=None, seeds=(0,), **changes):
    results = [systems()] if results is None else results
    arguments = {"oracle": None, "environment": {"python": "3"}, "config_hash": "abc", "notes": ["n"], "bootstrap": 50}
    return summarise("run", results, list(seeds), **{**arguments, **changes})


def test_top_level_figures_are_means_over_users() -> None:
    out = summary()
    assert out["schema_version"] == SCHEMA_VERSION
    assert out["rl"] == out["systems"]["rl"]
    assert out["rl"]["hr@10"] == pytest.approx(0.4)
    assert (out["rl"]["n_users"], out["rl"]["seeds"], out["n_users"]) == (USERS, [0], USERS)
    assert out["oracle"]["hr@10"] == pytest.approx(0.5)


def test_differences_are_paired() -> None:
    """The noise is common to all systems, so the paired difference has no spread at all."""
    interval = summary()["rl_minus_sft"]["preference@10"]
    assert interval == pytest.approx({"mean": 0.1, "low": 0.1, "high": 0.1})
    assert summary()["rl_minus_nll_only"]["ndcg@10"]["mean"] == pytest.approx(0.05)
    assert not any(key in summary() for key in ("rl_minus_random", "rl_minus_oracle", "rl_minus_rl"))


def test_percent_of_oracle_by_hand() -> None:
    percent = summary()["percent_of_oracle"]
    assert percent["random"]["preference@1"] == pytest.approx(0.0)
    assert percent["oracle"]["preference@1"] == pytest.approx(100.0)
    assert percent["rl"]["preference@10"] == pytest.approx(75.0)


def test_what_a_data_set_lacks_is_null() -> None:
    out = summary([systems(preference=False)])
    assert out["oracle"] is None
    assert out["rl_minus_sft"]["preference@10"] is None
    assert out["rl_minus_sft"]["ndcg@10"] is not None
    assert out["percent_of_oracle"]["rl"] == {"preference@1": None, "preference@10": None}
    assert out["systems"]["popularity"]["har"] is None
    json.dumps(out, allow_nan=False)


def test_no_percentage_when_oracle_equals_random() -> None:
    results = systems()
    results["oracle"] = SystemResult("oracle", results["random"].per_user)
    assert summary([results])["percent_of_oracle"]["rl"]["preference@10"] is None


def test_seeds_are_pooled_and_kept_apart() -> None:
    out = summary([systems(1), systems(2, users=2 * USERS)], seeds=(1, 2))
    assert out["n_users"] == 3 * USERS
    assert [seed["n_users"] for seed in out["per_seed"]] == [USERS, 2 * USERS]
    means = [seed["systems"]["rl"]["ndcg@10"] for seed in out["per_seed"]]
    assert out["rl"]["ndcg@10"] == pytest.approx((means[0] + 2 * means[1]) / 3)
    across = out["over_seeds"]["rl"]["ndcg@10"]
    assert (across["min"], across["max"]) == (min(means), max(means))
    assert across["mean"] == pytest.approx(np.mean(means))
    assert out["over_seeds"]["rl_minus_sft"]["ndcg@10"]["mean"] == pytest.approx(0.05)


def test_a_system_of_some_seeds_says_which() -> None:
    results = [systems(1), systems(2)]
    del results[1]["nll_only"]
    out = summary(results, seeds=(1, 2))
    assert out["systems"]["nll_only"]["seeds"] == [1]
    assert out["per_seed"][1]["differences"].keys() == {"rl_minus_sft", "rl_minus_popularity"}


def test_same_users_count_once() -> None:
    """Four seeds on the same users do not make the interval narrower, as four times the users would."""
    rng = np.random.default_rng(0)
    result = {
        name: SystemResult(name, {"ndcg@10": rng.random(USERS)}) for name in ("sft", "rl")
    }  # fmt: skip
    one = summary([result], bootstrap=400)["rl_minus_sft"]["ndcg@10"]
    same = summary([result] * 4, seeds=range(4), bootstrap=400, same_users=True)
    pooled = summary([result] * 4, seeds=range(4), bootstrap=400)["rl_minus_sft"]["ndcg@10"]
    assert same["rl_minus_sft"]["ndcg@10"] == pytest.approx(one)
    assert same["n_users"] == USERS
    assert pooled["high"] - pooled["low"] < 0.7 * (one["high"] - one["low"])


def test_same_users_needs_equal_numbers() -> None:
    with pytest.raises(ValueError, match="same_users"):
        summary([systems(1), systems(2, users=7)], seeds=(1, 2), same_users=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    results = systems()
    results["rl"].per_user["ndcg@10"][3] = bad
    with pytest.raises(ValueError, match=r"rl\.per_user\['ndcg@10'\], seed 0.*1 values"):
        summary([results])
    results = systems()
    results["sft"].whole["har"] = bad
    with pytest.raises(ValueError, match=r"sft\.whole\['har'\]"):
        summary([results])


def test_different_users_are_refused() -> None:
    results = systems()
    results["rl"].per_user["ndcg@10"] = np.zeros(USERS - 1)
    with pytest.raises(ValueError, match="same users"):
        summary([results])
    with pytest.raises(ValueError, match="key 'rl' holds the result of 'sft'"):
        summary([{**systems(), "rl": systems()["sft"]}])
    with pytest.raises(ValueError, match="at least one seed"):
        summary([], seeds=())


@given(level=st.floats(-1, 1), scale=st.floats(0.01, 10), shift=st.floats(-5, 5))
@settings(max_examples=15, deadline=None)
def test_percentage_does_not_depend_on_the_unit(level: float, scale: float, shift: float) -> None:
    def percent(map_):
        values = {"random": 0.0, "oracle": 1.0, "sft": 0.0, "rl": level}
        made = {n: SystemResult(n, {"preference@1": np.full(3, map_(v))}) for n, v in values.items()}
        return summary([made], bootstrap=1)["percent_of_oracle"]["rl"]["preference@1"]

    assert percent(lambda v: scale * v + shift) == pytest.approx(100 * level, abs=1e-6)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema_version",), 2, "'schema_version': expected 1, got 2"),
        (("schema_version",), True, "'schema_version'"),
        (("seeds",), [], "'seeds'"),
        (("n_users",), 4.0, "'n_users'"),
        (("rl", "ndcg@10"), "high", r"'rl\.ndcg@10'"),
        (("rl", "n_users"), None, r"'rl\.n_users'"),
        (("systems", "sft", "har"), float("nan"), r"'systems\.sft\.har'"),
        (("rl_minus_sft", "ndcg@10"), 0.1, r"'rl_minus_sft\.ndcg@10': expected a table or null"),
        (("rl_minus_nll_only", "preference@1", "low"), None, r"'rl_minus_nll_only\.preference@1\.low'"),
        (("percent_of_oracle", "rl", "preference@1"), "75", r"'percent_of_oracle\.rl\.preference@1'"),
        (("environment", "python"), float("inf"), r"'environment\.python'"),
        (("notes",), "n", "'notes'"),
    ],
)
def test_validation_names_the_field(path: tuple[str, ...], value: object, message: str) -> None:
    broken = copy.deepcopy(summary())
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        validate_summary(broken)


@pytest.mark.parametrize(
    "path", [("popularity",), ("rl_minus_sft",), ("rl_minus_sft", "preference@10"), ("rl", "seeds")]
)
def test_validation_names_what_is_missing(path: tuple[str, ...]) -> None:
    broken = copy.deepcopy(summary())
    (broken if len(path) == 1 else broken[path[0]]).pop(path[-1])
    with pytest.raises(ValueError, match=f"'{'.'.join(path)}' is missing"):
        validate_summary(broken)


def test_files_round_trip_and_nothing_broken_is_written(tmp_path) -> None:
    out = summary(oracle={"calibration@1": {"z": 0.5}})
    path = tmp_path / "deep" / "summary.json"
    write_summary(path, out)
    assert load_summary(path) == out
    before = path.read_bytes()
    with pytest.raises(ValueError, match="seeds"):
        write_summary(path, {**out, "seeds": None})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["summary.json"]
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"summary\.json: summary: field 'schema_version' is missing"):
        load_summary(path)
