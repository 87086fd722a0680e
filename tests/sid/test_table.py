"""The item-code table on disk and in the index format."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.sid.index_formats import read_index
from sidgym.sid.table import SidTable, write_atomically


def example() -> SidTable:
    codes = np.array([[0, 1], [2, 0], [0, 1]])
    return SidTable(codes, (3, 2), np.array(["x", "y", "ü"]), {"tokenizer": "random", "seed": 3})


def write_index(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_views() -> None:
    table = example()
    assert (table.levels, table.num_items, table.collision_count()) == (2, 3, 2)
    assert table.tokens() == [["<a_0>", "<a_1>", "<a_2>"], ["<b_0>", "<b_1>"]]
    assert table.trie.num_leaves == 2
    assert table.trie is table.trie


def test_save_and_load(tmp_path: Path) -> None:
    table = example()
    table.save(tmp_path / "sid")
    loaded = SidTable.load(tmp_path / "sid")
    assert np.array_equal(loaded.codes, table.codes)
    assert loaded.codes.dtype == np.int64
    assert loaded.item_ids.tolist() == ["x", "y", "ü"]
    assert (loaded.sizes, loaded.metadata) == (table.sizes, table.metadata)
    assert loaded.content_hash() == table.content_hash()
    assert sorted(p.name for p in (tmp_path / "sid").iterdir()) == ["codes.safetensors", "table.json"]


@pytest.fixture
def mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a table that counts as large."""
    monkeypatch.setattr("sidgym.sid.table.MAPPED_FROM", 3)
    example().save(tmp_path / "sid")
    return tmp_path / "sid"


def test_a_large_table_has_its_trie_beside_it(mapped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(p.name for p in mapped.iterdir()) == ["codes.safetensors", "table.json", "trie.safetensors"]
    built, loaded = example(), SidTable.load(mapped)
    with monkeypatch.context() as patch:
        patch.setattr("sidgym.sid.trie.Trie.from_codes", None)  # it is opened
        trie = loaded.trie
        twin = pickle.loads(pickle.dumps(loaded))
        assert twin.trie._source.path == mapped / "trie.safetensors"  # and what is sent names the file
    del trie.__dict__["_hash"]
    assert trie.content_hash() == twin.trie.content_hash() == built.trie.content_hash()
    assert loaded.content_hash() == built.content_hash()
    (mapped / "trie.safetensors").unlink()
    assert SidTable.load(mapped).trie.content_hash() == built.trie.content_hash()


def test_a_trie_file_that_is_damaged_or_of_another_table_is_not_used(mapped: Path) -> None:
    path, expected = mapped / "trie.safetensors", example().trie.content_hash()
    whole = path.read_bytes()
    for content in (whole[:-3], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(content)
        with pytest.warns(UserWarning, match=r"trie\.safetensors cannot be used, so the trie is built again"):
            assert SidTable.load(mapped).trie.content_hash() == expected
    SidTable(np.array([[0, 1], [2, 0], [1, 1]]), (3, 2), np.array(["x", "y", "z"])).trie.save(path)
    with pytest.warns(UserWarning, match="the trie of another table"):
        trie = SidTable.load(mapped).trie
    assert trie.content_hash() == expected
    assert len(pickle.dumps(trie)) > 1000  # it has no file


def test_a_small_table_leaves_no_trie_of_a_larger_one(mapped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidgym.sid.table.MAPPED_FROM", 4)
    example().save(mapped)
    assert sorted(p.name for p in mapped.iterdir()) == ["codes.safetensors", "table.json"]


def test_hash_sees_codes_sizes_and_ids() -> None:
    table = example()
    others = [
        SidTable(table.codes[[1, 0, 2]], table.sizes, table.item_ids),
        SidTable(table.codes, (3, 3), table.item_ids),
        SidTable(table.codes, table.sizes, np.array(["x", "y", "z"])),
    ]
    assert len({t.content_hash() for t in [table, *others]}) == 4


def test_load_refuses_what_does_not_belong_together(tmp_path: Path) -> None:
    table = example()
    table.save(tmp_path)
    whole = (tmp_path / "table.json").read_text()
    other = SidTable(table.codes[[1, 0, 2]], table.sizes, table.item_ids)
    other.save(tmp_path / "other")
    (tmp_path / "other" / "table.json").write_text(whole)
    with pytest.raises(ValueError, match="expected content hash"):
        SidTable.load(tmp_path / "other")
    (tmp_path / "table.json").write_text(whole.replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(ValueError, match="expected schema_version 1, got 2"):
        SidTable.load(tmp_path)
    (tmp_path / "table.json").write_text(whole[:-9])
    with pytest.raises(ValueError, match="perhaps truncated"):
        SidTable.load(tmp_path)
    (tmp_path / "table.json").write_text(whole)
    (tmp_path / "codes.safetensors").write_bytes((tmp_path / "codes.safetensors").read_bytes()[:-4])
    with pytest.raises(ValueError, match="damaged or incomplete"):
        SidTable.load(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"sizes": None},
        {"sizes": ["x", 2]},
        {"sizes": [2, 1]},
        {"item_ids": None},
        {"item_ids": ["x"]},
        {"metadata": None},
        {"metadata": []},
        {"content_hash": None},
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, changed: dict[str, Any]) -> None:
    example().save(tmp_path)
    header = json.loads((tmp_path / "table.json").read_text())
    (key,) = changed
    for broken in ({**header, **changed}, {one: value for one, value in header.items() if one != key}):
        (tmp_path / "table.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError) as caught:
            SidTable.load(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert "build it again" in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected an item-code table, but there is no table\.json"):
        SidTable.load(tmp_path)
    example().save(tmp_path)
    (tmp_path / "codes.safetensors").unlink()
    with pytest.raises(ValueError, match="damaged or incomplete item-code table"):
        SidTable.load(tmp_path)


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file", b"old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(tmp_path / "file", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_metadata_that_json_cannot_hold_writes_nothing(tmp_path: Path) -> None:
    table = SidTable(np.array([[0]]), (1,), np.array(["x"]), {"distortion": float("nan")})
    with pytest.raises(ValueError, match="JSON compliant"):
        table.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_index_json_round_trip(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    levels = data.draw(st.integers(1, 4))
    row = st.tuples(*(st.integers(0, 300) for _ in range(levels)))
    codes = np.array(data.draw(st.lists(row, min_size=1, max_size=12)))
    ids = np.array(data.draw(st.permutations([str(n) for n in range(len(codes))])))
    table = SidTable(codes, tuple(codes.max(axis=0) + 1), ids)
    path = tmp_path_factory.mktemp("index") / "toy.index.json"
    table.to_index_json(path)
    back = read_index(path, ids)
    assert back.content_hash() == table.content_hash()
    by_number = read_index(path)
    assert by_number.item_ids.tolist() == [str(n) for n in range(len(codes))]
    assert np.array_equal(by_number.codes, codes[np.argsort(ids.astype(int))])


def test_index_order_and_sizes(tmp_path: Path) -> None:
    numbers = write_index(tmp_path / "n.json", {"10": ["<a_1>", "<b_0>"], "9": ["<a_4>", "<b_2>"]})
    table = read_index(numbers)
    assert table.item_ids.tolist() == ["9", "10"]
    assert table.codes.tolist() == [[4, 2], [1, 0]]
    assert table.sizes == (5, 3)
    # A catalogue may hold fewer items than the index; the vocabulary stays the file's.
    assert read_index(numbers, ["10"], unknown="drop").sizes == (5, 3)
    words = write_index(tmp_path / "w.json", {"b": ["<a_1>"], "10": ["<a_0>"], "a": ["<a_1>"]})
    assert read_index(words).item_ids.tolist() == ["b", "10", "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"0": ["<a_1>", "<b_', "perhaps truncated"),
        ('["<a_1>"]', "expected a JSON object, got list"),
        ("{}", "empty index"),
        ('{"0": ["<a_1>"], "0": ["<a_2>"]}', "key '0' stands there more than once"),
        ('{"0": "<a_1>"}', "item '0': expected a list of tokens"),
        ('{"0": []}', "item '0': expected a list of tokens"),
        ('{"0": ["<a_1"]}', "item '0': malformed token '<a_1'"),
        ('{"0": ["<a_-1>"]}', "malformed token"),
        ('{"0": ["<a_01>"]}', "malformed token"),
        ('{"0": [7]}', "malformed token 7"),
        ('{"0": ["<a_1>", "<c_1>"]}', "expected <b_...>, got '<c_1>'"),
        ('{"0": ["<a_1>", "<b_1>"], "1": ["<a_1>"]}', "1 items differ, first '1' with 1"),
    ],
)
def test_bad_index_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.index.json"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_index(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_missing_catalogue_ids_are_named(tmp_path: Path) -> None:
    path = write_index(tmp_path / "i.json", {"0": ["<a_1>"]})
    with pytest.raises(ValueError, match=r"2 of 3 catalogue ids are not in the index, first \['1', '2'\]"):
        read_index(path, ["0", "1", "2"])


@pytest.mark.parametrize(
    ("codes", "sizes", "ids", "message"),
    [
        (np.array([[0]]), (1,), ["x", "y"], r"expected shape \(1,\)"),
        (np.array([[0], [0]]), (1,), ["x", "x"], "repeated ids"),
        (np.array([[3]]), (1,), ["x"], "level 0 expects"),
        (np.zeros((1, 27), int), (1,) * 27, ["x"], "at most 26 levels"),
    ],
)
def test_bad_fields_are_refused(codes: np.ndarray, sizes: tuple[int, ...], ids: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SidTable(codes, sizes, np.array(ids))
