"""The contest of baselines: the choice sees validation only, test is judged for the choice alone, figures by hand."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidgym.benchmarks import baselines_table, parts
from sidgym.benchmarks.baseline_settings import DIFFERS, FIXED, LEAVE_OUT, PUBLISHED, QUICK, TRIALS
from sidgym.benchmarks.baselines import figures as of_fits
from sidgym.benchmarks.baselines.registry import BASELINES, fit_baseline
from sidgym.benchmarks.beauty import made_up
from sidgym.benchmarks.own_models import OWN
from sidgym.envs.config import DataConfig
from sidgym.envs.records import Episodes

DATA = {"beauty": DataConfig(path="A"), "scientific": DataConfig(path="B")}
VALID = {0.2: 0.03, 0.5: 0.05}


def options(**given: Any) -> argparse.Namespace:
    asked = {"only": ["sasrec"], "trials": 2, "seeds": [7, 8], "quick": False, "no_test": False, "device": "cpu"}
    asked["settings_of"] = ""
    return argparse.Namespace(**{**asked, "codes": "zcr", "workers": 1, "parts": None, **given})


def figures(values: list[float]) -> dict[str, Any]:
    per_user = {name: values for name in of_fits.METRICS}
    allowed = dict.fromkeys(of_fits.ROW, float(np.mean(values)) / 2)
    means = {name: float(np.mean(values)) for name in of_fits.METRICS}
    return {**means, "repeats": False, "allowed": allowed, "fit": {"parameters": 5}, "per_user": per_user}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any], bool]]:
    """Path, job and kind of every part that is asked for; none is done."""
    seen: list[tuple[str, dict[str, Any], bool]] = []

    def inline(judge: Any, jobs: Mapping[str, Any], workers: int, folder: Path | None) -> Iterator[tuple[str, Any]]:
        for name, (job, test, aside) in jobs.items():
            seen.append((aside.value.data.path, job, test))
            score = VALID[job["settings"]["dropout"]]
            yield name, figures([score, 2 * score]) if test else {"valid_ndcg@10": score}

    monkeypatch.setattr(baselines_table, "in_parts", inline)
    monkeypatch.setattr(baselines_table.Contest, "_content", lambda self, store, needs_codes: f"of {store}")
    return seen


def test_every_baseline_has_trials_and_the_same_number_of_them() -> None:
    assert set(TRIALS) == set(BASELINES) | set(OWN)
    assert {len(trials) for name, trials in TRIALS.items() if name != "popularity"} == {4}
    assert set(QUICK) == set(TRIALS) - {"popularity", "cooccurrence", "item_knn"}
    known = set(BASELINES)
    assert set(FIXED) <= known
    assert set(DIFFERS) <= known
    assert set(LEAVE_OUT) <= set(PUBLISHED)
    for source, rows in PUBLISHED.items():
        assert set(LEAVE_OUT.get(source, ())) <= set(rows) <= known
        assert all(r5 <= r10 and n5 <= n10 for r5, r10, n5, n10 in rows.values())


def test_the_first_trial_has_the_regularisation_of_sparse_data() -> None:
    for name in ("gru4rec", "sasrec", "sasrec_sampled", "hstu", "caser"):
        assert TRIALS[name][0]["dropout"] == 0.5
    assert TRIALS["bert4rec"][0]["mask"] == 0.6


def test_validation_chooses_and_only_the_choice_is_tested(asked: list[tuple[str, dict[str, Any], bool]]) -> None:
    found = baselines_table.Contest(options(), DATA).run()["stores"]
    trials, tests = ([(path, job["settings"]["dropout"], job["seed"]) for path, job, test in asked if test == which]
                     for which in (False, True))  # fmt: skip
    assert trials == [(path, dropout, 7) for path in "AB" for dropout in (0.5, 0.2)]
    assert tests == [(path, 0.5, seed) for path in "AB" for seed in (7, 8)]
    row = found["beauty"]["sasrec"]
    assert row["settings"] == {"dropout": 0.5}
    assert [trial["valid_ndcg@10"] for trial in row["tried"]] == [0.05, 0.03]
    assert (row["settings_from"], row["parameters"], row["valid_ndcg@10"]) == ("beauty", 5, 0.05)
    assert row["allowed"]["n@10"] == pytest.approx(0.0375)
    assert row["n@10"]["mean"] == pytest.approx(0.075)
    assert row["n@10"]["low"] <= row["n@10"]["mean"] <= row["n@10"]["high"]
    assert row["sd_over_seeds"]["n@10"] == 0
    assert all("per_user" not in seed for seed in row["per_seed"])
    asked.clear()
    assert baselines_table.Contest(options(no_test=True), DATA).run()["tried"] == {
        "beauty sasrec": 0, "scientific sasrec": 0,
    }  # fmt: skip
    assert not any(test for _, _, test in asked)


def test_settings_of_one_log_serve_the_others(asked: list[tuple[str, dict[str, Any], bool]]) -> None:
    found = baselines_table.Contest(options(settings_of="scientific"), DATA).run()["stores"]
    assert [(path, job["settings"]["dropout"], test) for path, job, test in asked if job["seed"] == 7] == [
        ("B", 0.5, False), ("B", 0.2, False), ("A", 0.5, False), ("B", 0.5, True), ("A", 0.5, True),
    ]  # fmt: skip
    assert {store: rows["sasrec"]["settings_from"] for store, rows in found.items()} == dict.fromkeys(
        DATA, "scientific"
    )
    assert [len(rows["sasrec"]["tried"]) for rows in found.values()] == [1, 2]
    with pytest.raises(SystemExit, match=r"one of the logs \['beauty', 'scientific'\], got 'sports'"):
        baselines_table.Contest(options(settings_of="sports"), DATA)


def test_parts_are_found_again_wherever_data_stand_and_whatever_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Done once, then with another path, device and SIDs that nobody reads; other data and settings are done anew."""

    def here(judge: Any, jobs: Mapping[str, Any], workers: int, folder: Path) -> Iterator[tuple[str, Any]]:
        """``in_parts`` without its processes, which take their time to start."""
        yield from ((name, parts._part(judge, name, arguments, folder)) for name, arguments in jobs.items())

    monkeypatch.setattr(baselines_table, "in_parts", here)
    monkeypatch.setattr(baselines_table, "TRIALS", {"popularity": ({},)})
    base = replace(baselines_table.DATA, min_events=0)
    for name in ("a", "b"):
        made_up(tmp_path / name)
    made_up(tmp_path / "c", users=140)

    def names(folder: str, **given: Any) -> set[str]:
        stores = {"made_up": replace(base, path=str(tmp_path / folder))}
        asked = options(only=["popularity"], seeds=[7], parts=tmp_path / "parts", **given)
        baselines_table.Contest(asked, stores).run()
        return {path.name for path in (tmp_path / "parts").glob("*.json")}

    once = names("a")
    assert len(once) == 2
    assert names("b", device="cuda", codes="rqvae") == once
    assert len(names("c")) == 4


def test_names_of_parts_tell_settings_and_data() -> None:
    def name(**given: Any) -> str:
        return baselines_table.digest({"name": "tiger", "seed": 0, "settings": {"width": 8}, "data": "x", **given})

    assert len({name(), name(settings={"width": 9}), name(data="y")}) == 3


def test_other_code_of_a_baseline_is_another_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"settings": {"dropout": 0.5}, "data": "a"}
    before = baselines_table.digest(job)
    (tmp_path / "sasrec.py").write_text("LAYERS = 3\n")
    monkeypatch.setattr(baselines_table.baselines, "__file__", str(tmp_path / "__init__.py"))
    after = baselines_table.digest(job)
    assert after != before
    (tmp_path / "sasrec.py").write_text("LAYERS = 2\n")
    assert baselines_table.digest(job) not in (before, after)


def test_two_logs_of_one_name_are_refused(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / "Beauty.inter.json").write_text("{}")
    with pytest.raises(SystemExit, match="both hold a log called 'beauty'"):
        baselines_table.stores_of(options(data_path=[str(folder) for folder in folders]), tmp_path)


@pytest.mark.parametrize("option", ["--trials", "--workers"])
@pytest.mark.parametrize("value", ["0", "-4", "few"])
def test_what_is_counted_is_at_least_one(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    baselines_table.add_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([f"{option}={value}"])
    assert f"expected a whole number of at least 1, got '{value}'" in capsys.readouterr().err


def test_other_sids_are_other_data_for_those_who_read_them(tmp_path: Path) -> None:
    path = made_up(tmp_path)
    index = tmp_path / "Beauty.rkmeans_zcr.index.json"
    text = index.read_text()
    swapped = text.replace('"0":', '"x":').replace('"1":', '"0":').replace('"x":', '"1":')
    (tmp_path / "Beauty.swapped.index.json").write_text(swapped)
    data = replace(baselines_table.DATA, path=path, min_events=0)

    def content(codes: str, needed: bool) -> str:
        return baselines_table.content(*baselines_table.load(data, codes, needed))

    assert content("rkmeans_zcr", True) != content("swapped", True)
    assert content("rkmeans_zcr", False) == content("swapped", False)


def test_the_command_says_all_that_figures_hang_on() -> None:
    base = "python -m sidgym.benchmarks.baselines_table --data-path DATA DATA2 --seeds 7 8"
    plain = options(only=list(TRIALS), trials=4, codes="rkmeans_zcr")
    assert baselines_table.command(plain, 2) == base
    asked = options(only=["sasrec", "tiger"], trials=1, codes="letter", device="cuda", settings_of="scientific")
    assert baselines_table.command(asked, 2) == (
        f"{base} --only sasrec tiger --trials 1 --settings-of scientific --codes letter --device cuda"
    )
    assert baselines_table.command(options(quick=True), 1).startswith(
        "python -m sidgym.benchmarks.baselines_table --quick"
    )


def test_published_rows_are_compared_under_both_rules_and_on_beauty_alone() -> None:
    means = dict(zip(of_fits.ROW, (0.0402, 0.0607, 0.0254, 0.0320)))
    found: dict[str, Any] = {name: {"mean": mean} for name, mean in means.items()}
    found |= {"repeats": False, "allowed": dict.fromkeys(means, 0.01)}

    def rows(store: str = "beauty") -> dict[str, Any]:
        return of_fits.beside_published(store, "sasrec_sampled", found)

    assert rows()["OneRec-Think, table 1"]["ratio"]["left_out"] == pytest.approx(dict.fromkeys(means, 1.0))
    assert all(row["within_10_percent"] and row["matches"] == ["left_out"] for row in rows().values())
    assert [rows()[source]["their_rule"] for source in PUBLISHED] == ["unknown", "left_out"]
    found["n@10"] = {"mean": 0.04}
    assert not any(row["within_10_percent"] or row["matches"] for row in rows().values())
    found["allowed"] = means
    assert [row["matches"] for row in rows().values()] == [["allowed"]] * 2
    assert rows("scientific") == {}
    found["repeats"] = True
    assert all(set(row["ratio"]) == {"allowed"} for row in rows().values())


def test_figures_by_hand() -> None:
    """The second user's target stands third, behind an item of the history, and so second where that is left out."""
    rows = np.arange(2)
    test = Episodes(rows, rows, np.array([[9], [4]]), np.array([[5], [6]]))
    lists = np.array([[0, 1, 2, 3, 4], [1, 4, 6, 2, 3]])
    found = of_fits.figures(lists, test, np.arange(10), repeats=False)
    assert found["r@5"] == 0.5
    assert found["per_user"]["n@5"] == pytest.approx([0, 1 / np.log2(3)])
    assert found["allowed"]["n@5"] == pytest.approx(0.25)
    assert found["coverage@10"] == 0.6
    assert sum(found["exposure@10"].values()) == pytest.approx(1)
    assert found["segments"]["history"]["short (<5)"]["users"] == 2
    assert found["segments"]["history"]["short (<5)"]["n@10"] == pytest.approx(found["n@10"])
    kept = of_fits.figures(lists, test, np.arange(10), repeats=True)
    assert kept["per_user"]["n@5"] == pytest.approx([0, 0.5])
    assert kept["allowed"]["n@5"] == kept["n@5"]


def test_lists_hold_fifty_places_of_what_is_left() -> None:
    rows = np.zeros(1, dtype=np.int64)
    test = Episodes(rows, rows, np.arange(10)[None], np.array([[59]]))
    found = of_fits.figures(np.arange(80)[None], test, np.ones(80, dtype=np.int64), repeats=False)
    assert found["r@50"] == 1
    test = replace(test, history=np.arange(9)[None])
    assert of_fits.figures(np.arange(80)[None], test, np.ones(80, dtype=np.int64), repeats=False)["r@50"] == 0


def test_a_choice_is_by_all_validation_users_and_the_lists_of_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a fit reports of its own validation, which may be of few users and the best of many looks."""
    asks: list[tuple[int, int]] = []

    def fit(name: str, known: Any, *given: Any, **settings: Any) -> Any:
        model = fit_baseline("popularity", known)
        rank = model.rank

        def noted(history: np.ndarray, k: int) -> np.ndarray:
            asks.append((len(history), k))
            return rank(history, k)

        return argparse.Namespace(rank=noted, report={"best_epoch_ndcg@10": 0.9, "valid_ndcg@10": 0.9})

    monkeypatch.setattr(baselines_table, "fit_baseline", fit)
    data = replace(baselines_table.DATA, path=made_up(tmp_path), min_events=0)
    place = baselines_table.Place(data, "rkmeans_zcr", None, "cpu")
    for test in (False, True):
        job = {"name": "popularity", "seed": 0, "settings": {}}
        found = baselines_table.attempt(job, test, baselines_table.Aside(place))
        assert found.get("valid_ndcg@10", 0) < 0.5
    assert asks == [(150, 80)] * 2


def test_our_margin_is_over_the_baseline_that_validates_best_not_the_one_that_tests_best() -> None:
    ours = np.tile([1.0, 0.0, 1.0, 1.0], 30)
    users = {"sid_policy": ours, "sasrec": np.zeros(120), "hstu": ours}
    per_user = {name: {seed: dict.fromkeys(of_fits.METRICS, values.tolist()) for seed in (7, 8)}
                for name, values in users.items()}  # fmt: skip
    found = of_fits.margins_of(per_user, {"sid_policy": 0.1, "sasrec": 0.3, "hstu": 0.2})
    assert found is not None
    assert (found["ours"], found["baseline"]) == ("sid_policy", "sasrec")
    pairs = {(pair["b"], pair["metric"]): pair for pair in found["pairs"]}
    assert {(pair["a"]) for pair in found["pairs"]} == {"sid_policy"}
    assert set(pairs) == {(name, metric) for name in ("sasrec", "hstu") for metric in of_fits.MARGINS}
    assert pairs["sasrec", "n@10"]["mean"] == 0.75
    assert pairs["sasrec", "n@10"]["low"] > 0
    assert pairs["hstu", "n@10"]["mean"] == 0
    assert of_fits.margins_of({"sasrec": per_user["sasrec"]}, {"sasrec": 0.3}) is None
