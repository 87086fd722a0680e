"""Readers on small files made here: what they yield, what they refuse, and saving all or nothing."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.envs import datasets
from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import DATASETS, DataSet, k_core, load_dataset, time_window
from sidgym.envs.records import CLICK, SHOWN, Catalogue, Interactions

LOGS = {"a": [0, 1, 2], "b": [2, 0], "c": [1, 2, 0, 1]}
ITEMS = {
    str(i): {"title": f"thing {i}", "description": f"['what', ' it  is {i}']", "categories": "Home,Pots, Pans & Lids"}
    for i in range(4)
}


def amazon(folder: Path, logs: Any = None, items: Any = None) -> DataConfig:
    (folder / "Toy.inter.json").write_text(json.dumps(LOGS if logs is None else logs))
    (folder / "Toy.item.json").write_text(json.dumps(ITEMS if items is None else items))
    return DataConfig(name="amazon", path=str(folder), min_events=0)


def minionerec(folder: Path, parts: dict[str, list[tuple[str, list[int], int]]]) -> DataConfig:
    for part, rows in parts.items():
        lines = [f'{user},"{history}",{item}' for user, history, item in rows]
        (folder / f"Toy.{part}.csv").write_text("\n".join(["user_id,history_item_id,item_id", *lines]) + "\n")
    (folder / "Toy.item.json").write_text(json.dumps(ITEMS))
    (folder / "Toy.info.txt").write_text("".join(f"<a_{i}><b_0>\tthing {i}\t{i}\n" for i in range(4)))
    return DataConfig(name="minionerec", path=str(folder), min_events=0)


def lists(log: Interactions) -> list[list[int]]:
    return [log.item[log.user == user].tolist() for user in np.unique(log.user)]


def test_amazon_yields_the_log_in_order_and_the_texts(tmp_path: Path) -> None:
    data = load_dataset(amazon(tmp_path), seed=0)
    assert lists(data.interactions) == list(LOGS.values())
    assert data.interactions.order.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    assert data.interactions.time is None
    assert any("no timestamps" in note for note in data.notes)
    assert data.catalogue.ids.tolist() == ["0", "1", "2", "3"]
    assert data.catalogue.descriptions[3] == "what it is 3"
    assert data.catalogue.categories[0] == ("Home", "Pots, Pans & Lids")


def test_half_a_pair_of_surrogates_becomes_the_sign_for_what_cannot_be_read(tmp_path: Path) -> None:
    titles = {name: {**item, "title": "tent \U0001f600 red \ud83d"} for name, item in ITEMS.items()}
    assert load_dataset(amazon(tmp_path, items=titles), seed=0).catalogue.titles[1] == "tent \U0001f600 red \ufffd"


def test_amazon_without_item_file_has_no_text_and_says_so(tmp_path: Path) -> None:
    config = amazon(tmp_path, logs={"a": [10, 9], "b": [9, 2]})
    (tmp_path / "Toy.item.json").unlink()
    data = load_dataset(config, seed=0)
    assert data.catalogue.ids.tolist() == ["2", "9", "10"]
    assert lists(data.interactions) == [[2, 1], [1, 0]]
    assert any("no item text" in note for note in data.notes)


def test_minionerec_chains_the_rows_of_a_user(tmp_path: Path) -> None:
    parts = {
        "train": [("u", [0], 1), ("v", [3], 3)],
        "valid": [("u", [0, 1], 2), ("u", [0, 1, 2], 3)],
        "test": [("u", [1, 2, 3], 3), ("w", [2, 2, 2], 2), ("w", [2, 2, 2], 0)],
    }
    data = load_dataset(minionerec(tmp_path, parts), seed=0)
    assert lists(data.interactions) == [[0, 1, 2, 3, 3], [3, 3], [2, 2, 2, 2, 0]]
    assert any("rebuilt from 7 rows whose histories hold at most 3 items" in note for note in data.notes)
    assert any(note.startswith("1 of 3 users") for note in data.notes)


def test_minionerec_without_train_names_what_is_lost(tmp_path: Path) -> None:
    parts = {"valid": [("u", [0, 1], 2)], "test": [("u", [2, 3], 1)]}
    data = load_dataset(minionerec(tmp_path, parts), seed=0)
    assert lists(data.interactions) == [[0, 1, 2, 3, 1]]
    assert any("no train.csv" in note for note in data.notes)
    assert any(note.startswith("1 rows do not continue") for note in data.notes)


def test_amazon_truncated_json_is_named_with_its_place(tmp_path: Path) -> None:
    config = amazon(tmp_path)
    whole = (tmp_path / "Toy.inter.json").read_text()
    (tmp_path / "Toy.inter.json").write_text(whole[:-10])
    with pytest.raises(ValueError, match=rf"Toy\.inter\.json: not valid JSON at line 1, .*character {len(whole) - 10}"):
        load_dataset(config, seed=0)


@pytest.mark.parametrize(
    ("logs", "items", "message"),
    [
        ({"a": [0, 9]}, None, "user 'a' has item '9', which is not among the catalogue's 4 items"),
        ({}, None, "the log is empty"),
        ({"a": []}, None, "the log is empty"),
        ([1], None, "expected a JSON object at the top level, got list"),
        ({"a": 3}, None, "user 'a': expected a list"),
        (None, ITEMS | {"2": {"title": "", "brand": "x"}}, "item '2' has neither title nor description"),
        (None, ITEMS | {"1": "x"}, "item '1': expected an object with a title"),
    ],
)
def test_amazon_refuses_broken_contents(tmp_path: Path, logs: Any, items: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset(amazon(tmp_path, logs, items), seed=0)


def test_missing_files_say_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is not a folder; expected one with \*\.inter\.json"):
        load_dataset(DataConfig(name="amazon", path=str(tmp_path / "none")), seed=0)
    with pytest.raises(FileNotFoundError, match=r"no \*\.item\.json; expected a folder with \*\.valid\.csv"):
        load_dataset(DataConfig(name="minionerec", path=str(tmp_path)), seed=0)
    with pytest.raises(ValueError, match=r"set data\.path to its folder"):
        load_dataset(DataConfig(name="amazon"), seed=0)
    amazon(tmp_path)
    (tmp_path / "Other.inter.json").write_text("{}")
    with pytest.raises(ValueError, match=r"found Other\.inter\.json, Toy\.inter\.json; keep one"):
        load_dataset(DataConfig(name="amazon", path=str(tmp_path)), seed=0)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("valid.csv", "user_id,item_id\nu,1\n", "no column history_item_id; the columns present are user_id, item_id"),
        ("valid.csv", "user_id,history_item_id,item_id\nu,0 1,2\n", r"row 1: history_item_id should be a list"),
        ("valid.csv", "user_id,history_item_id,item_id\nu,[0],1\nu\n", "row 2 has no item_id"),
        ("valid.csv", 'user_id,history_item_id,item_id\nu,"[0', "not a readable CSV"),
        ("valid.csv", "", "not a readable CSV"),
        ("valid.csv", "user_id,history_item_id,item_id\nu,[7],1\n", "user 'u' has item '7'"),
        ("info.txt", "<a_0>\tthing\n", "line 1: expected SID, title and item id"),
        ("info.txt", "<a_0>\tthing\t9\n", "item '9' is not in Toy.item.json"),
        ("item.json", '{"0": {', "Toy.item.json: not valid JSON"),
    ],
)
def test_minionerec_refuses_broken_contents(tmp_path: Path, file: str, text: str, message: str) -> None:
    config = minionerec(tmp_path, {"valid": [("u", [0], 1)], "test": [("u", [0, 1], 2)]})
    (tmp_path / f"Toy.{file}").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_dataset(config, seed=0)


def test_minionerec_without_rows_is_empty(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the log is empty"):
        load_dataset(minionerec(tmp_path, {"valid": [], "test": []}), seed=0)


def full_data() -> DataSet:
    catalogue = Catalogue(
        ids=np.array(["x", "y"]),
        titles=("", "y"),
        descriptions=("text", ""),
        categories=((), ("a", "b")),
        price=np.array([1.5, np.nan], np.float32),
    )
    log = Interactions(
        user=np.array([0, 0, 1]),
        item=np.array([1, 0, 1]),
        order=np.array([0, 1, 0]),
        time=np.array([1.0, 2.0, 3.0]),
        feedback=np.array([CLICK, SHOWN, CLICK], np.int8),
    )
    return DataSet("mine", catalogue, log, notes=("a note",))


def assert_same(a: DataSet, b: DataSet) -> None:
    assert (a.name, a.notes, a.truth) == (b.name, b.notes, b.truth)
    for one, two in ((a.catalogue, b.catalogue), (a.interactions, b.interactions)):
        for field in fields(one):
            left, right = getattr(one, field.name), getattr(two, field.name)
            assert type(left) is type(right), field.name
            if isinstance(left, np.ndarray):
                assert left.dtype.kind == right.dtype.kind
                np.testing.assert_array_equal(left, right)
            else:
                assert left == right


def test_save_and_load_keep_everything_and_absent_fields_stay_absent(tmp_path: Path) -> None:
    data = full_data()
    data.save(tmp_path / "new" / "folder")
    loaded = DataSet.load(tmp_path / "new" / "folder")
    assert_same(loaded, data)
    assert loaded.interactions.page is None
    assert loaded.catalogue.duration is None


def test_failed_save_leaves_nothing_behind_and_an_older_save_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = full_data()
    old.save(tmp_path / "old")
    before = sorted(path.name for path in (tmp_path / "old").iterdir())

    monkeypatch.setattr(datasets, "SCHEMA_VERSION", object())  # the manifest, written last, cannot be serialised
    for folder in ("old", "new"):
        with pytest.raises(TypeError, match="not JSON serializable"):
            replace(old, name="newer").save(tmp_path / folder)
    monkeypatch.undo()
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == before
    assert_same(DataSet.load(tmp_path / "old"), old)


def test_load_refuses_other_folders_and_schemas(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no saved data set: dataset\.json is missing"):
        DataSet.load(tmp_path)
    full_data().save(tmp_path)
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(ValueError, match="schema_version 99, this version reads 1"):
        DataSet.load(tmp_path)


def plain_k_core(rows: list[tuple[int, int]], k: int) -> list[tuple[int, int]]:
    while True:
        users, items = [u for u, _ in rows], [i for _, i in rows]
        kept = [(u, i) for u, i in rows if users.count(u) >= k and items.count(i) >= k]
        if kept == rows:
            return kept
        rows = kept


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30), st.integers(1, 3))
def test_k_core_equals_plain_loops(rows: list[tuple[int, int]], k: int) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    names = np.array(list("abcdef"))
    catalogue = Catalogue(names, tuple(names), ("",) * 6, ((),) * 6)
    user, item = np.array(rows).T
    expected = plain_k_core(rows, k)
    if not expected:
        with pytest.raises(ValueError, match="lower min_events"):
            k_core(catalogue, Interactions(user, item, np.arange(len(rows))), k)
        return
    kept, log = k_core(catalogue, Interactions(user, item, np.arange(len(rows))), k)
    assert kept.ids[log.item].tolist() == [names[i] for _, i in expected]
    assert kept.ids.tolist() == sorted({names[i] for _, i in expected})
    assert log.user.tolist() == np.unique([u for u, _ in expected], return_inverse=True)[1].tolist()
    assert all((np.diff(log.order[log.user == u]) == 1).all() for u in np.unique(log.user))


def test_k_core_counts_positive_events_only() -> None:
    data = full_data()
    kept, log = k_core(data.catalogue, data.interactions, 1)
    assert kept.ids.tolist() == ["y"]
    assert log.user.tolist() == [0, 1]


def test_load_dataset_applies_the_k_core_and_notes_it(tmp_path: Path) -> None:
    data = load_dataset(replace(amazon(tmp_path), min_events=2), seed=0)
    assert data.catalogue.ids.tolist() == ["0", "1", "2"]
    assert data.notes[-1] == "2-core: 3 -> 3 users, 4 -> 3 items, 9 -> 9 events"


def test_time_window_keeps_its_start_and_refuses_order_only_logs() -> None:
    log = full_data().interactions
    cut = time_window(log, 2.0, 3.0)
    assert cut.item.tolist() == [0]
    assert cut.order.tolist() == [0]
    with pytest.raises(ValueError, match="order only"):
        time_window(replace(log, time=None), 0, 1)


def unsorted_loader(config: DataConfig, seed: int) -> DataSet:
    data = full_data()
    return replace(data, interactions=data.interactions.select(np.array([2, 0, 1])))


def outside_loader(config: DataConfig, seed: int) -> DataSet:
    data = full_data()
    return replace(data, interactions=replace(data.interactions, item=np.array([0, 1, 2])))


def test_logs_of_any_loader_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "unsorted", unsorted_loader)
    monkeypatch.setitem(DATASETS, "outside", outside_loader)
    with pytest.raises(ValueError, match="sorted by user, then order; row 1"):
        load_dataset(DataConfig(name="unsorted"), seed=0)
    with pytest.raises(ValueError, match="user 1 has item 2, but the catalogue has 2 items"):
        load_dataset(DataConfig(name="outside"), seed=0)
    with pytest.raises(ValueError, match="Did you mean 'simulator'"):
        load_dataset(DataConfig(name="simulatr"), seed=0)


def test_simulator_is_left_whole_and_keeps_its_truth(tmp_path: Path) -> None:
    data = load_dataset(DataConfig(users=30, items=60, min_events=5), seed=1)
    assert len(data.catalogue) == 60
    data.save(tmp_path)
    loaded = DataSet.load(tmp_path)
    assert loaded.truth is not None
    assert_same(replace(loaded, truth=None), replace(data, truth=None))
    again = load_dataset(DataConfig(users=30, items=60, min_events=5), seed=1)
    np.testing.assert_array_equal(again.interactions.item, data.interactions.item)
