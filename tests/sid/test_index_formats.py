"""Index formats: both ways without loss, and a message that helps for every kind of damage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.sid.index_formats import FORMATS, MAX_CODES, guess_format, read_index, write_index
from sidgym.sid.table import SidTable

FILES = [
    ("t.index.json", "index_json"),
    ("t.json", "openonerec"),
    ("t.parquet", "openonerec"),
    ("t.csv", "csv"),
    ("t.parquet", "parquet"),
]

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=0x24F, exclude_categories=["Cc"]), min_size=1, max_size=6)


def example() -> SidTable:
    return SidTable(np.array([[0, 1], [2, 0], [0, 1]]), (3, 2), np.array(["5", "007", "ü,\"x'"]))


@pytest.mark.parametrize(("name", "kind"), FILES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, name: str, kind: str, data: st.DataObject) -> None:
    levels = data.draw(st.integers(1, 5))
    row = st.tuples(*(st.integers(0, 300) for _ in range(levels)))
    codes = np.array(data.draw(st.lists(row, min_size=1, max_size=10)))
    ids = data.draw(st.lists(NAMES, min_size=len(codes), max_size=len(codes), unique=True))
    table = SidTable(codes, tuple(codes.max(axis=0) + data.draw(st.integers(1, 3))), np.array(ids))
    path = tmp_path_factory.mktemp("index") / name
    write_index(table, path, kind)
    assert read_index(path, ids, table.sizes).content_hash() == table.content_hash()
    assert read_index(path, table.item_ids, table.sizes, kind).content_hash() == table.content_hash()
    smallest = tuple(codes.max(axis=0) + 1)
    assert read_index(path, ids).sizes == (table.sizes if kind == "parquet" else smallest)
    assert sorted(read_index(path).item_ids) == sorted(ids)


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_the_format_is_told_from_the_file(tmp_path: Path, name: str, kind: str) -> None:
    write_index(example(), tmp_path / name, kind)
    assert guess_format(tmp_path / name) == kind
    assert read_index(tmp_path / name).metadata == {
        "tokenizer": "index",
        "index": name,
        "format": kind,
        "items_in_index": 3,
    }
    assert {kind for _, kind in FILES} == set(FORMATS)


def test_the_forms_are_those_of_the_projects(tmp_path: Path) -> None:
    table = SidTable(np.array([[12, 3, 201], [0, 0, 0]]), (256, 256, 256), np.array(["7", "11"]))
    write_index(table, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["7"] == ["<a_12>", "<b_3>", "<c_201>"]
    write_index(table, tmp_path / "b.json", "openonerec")
    span = "<|sid_begin|><s_a_12><s_b_3><s_c_201><|sid_end|>"
    assert json.loads((tmp_path / "b.json").read_text())["7"] == span
    write_index(table, tmp_path / "c.csv")
    assert (tmp_path / "c.csv").read_text() == "item_id,level_0,level_1,level_2\n7,12,3,201\n11,0,0,0\n"
    import pyarrow
    import pyarrow.parquet as pq

    write_index(table, tmp_path / "d.parquet", "openonerec")
    assert pq.read_table(tmp_path / "d.parquet").to_pydict() == {"pid": [7, 11], "sid": [[12, 3, 201], [0, 0, 0]]}
    for column, values in (("codes", [[12, 3, 201], [0, 0, 0]]), ("sid", [span, span.replace("12", "0")])):
        pq.write_table(pyarrow.table({"pid": [7, 11], column: values}), tmp_path / "e.parquet")
        assert read_index(tmp_path / "e.parquet").codes[0].tolist() == [12, 3, 201]
    with pytest.raises(ValueError, match=r"ends in \.json, \.csv or \.parquet"):
        write_index(table, tmp_path / "f.txt")
    with pytest.raises(ValueError, match=r"ends in \.json"):
        read_index(_written(tmp_path / "f.txt", "x"))


def test_a_saved_table_is_an_index_too(tmp_path: Path) -> None:
    table = SidTable(np.array([[0, 1], [2, 0]]), (5, 4), np.array(["10", "9"]), {"tokenizer": "random"})
    table.save(tmp_path / "sid")
    assert read_index(tmp_path / "sid").content_hash() == table.content_hash(), "rows stay rows"
    back = read_index(tmp_path / "sid", ["9", "10"])
    assert back.codes.tolist() == [[2, 0], [0, 1]]
    assert (back.sizes, back.metadata) == ((5, 4), {"tokenizer": "random"})


def _written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


BEGIN, END = "<|sid_begin|>", "<|sid_end|>"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("i.json", '{"0": ["<a_1>", "<b_0>"], "1": ["<a_1>"]}', "1 items differ, first '1' with 1"),
        ("i.json", '{"0": ["<a_1>"], "": ["<a_2>"]}', "row 2 has no id"),
        ("o.json", json.dumps({"": "<|sid_begin|><s_a_1><|sid_end|>"}), "row 1 has no id"),
        ("i.json", '{"0": ["<a_1>", "<c_0>"]}', "expected <b_...>, got '<c_0>'"),
        ("i.json", '{"0": ["<a_1>"], "0": ["<a_2>"]}', "key '0' stands there more than once"),
        ("i.json", '{"0": ["<a_1>"], "1": ["<a_', "perhaps truncated"),
        ("i.json", '{"0": ["<a_70000>"]}', f"item '0' has code 70000 on level 0, expected one in [0, {MAX_CODES})"),
        ("i.json", '{"0": ["<a_-1>"]}', "malformed token '<a_-1>'"),
        ("o.json", json.dumps({"0": BEGIN + "<s_a_1><s_c_1>" + END}), "level letters must run a, b, c"),
        ("o.json", json.dumps({"0": BEGIN + "<s_a_1>"}), "item '0': expected a form such as <|sid_begin|>"),
        ("o.json", json.dumps({"0": BEGIN + "<s_a_1>" + END, "1": BEGIN + "<s_a_1><s_b_2>" + END}), "1 items differ"),
        ("t.csv", "item_id,level_0,level_1\n0,1,2\n1,3\n", "item '1' has no code on level 1"),
        ("t.csv", "item_id,level_0,level_1\n0,1,2\n1,3,\n", "item '1' has no code on level 1"),
        ("t.csv", "item_id,level_0\n0,1\n1,-3\n", "item '1' has '-3' on level 0"),
        ("t.csv", "item_id,level_0\n0,1.0\n", "item '0' has '1.0' on level 0"),
        ("t.csv", "item_id,level_0\n0,1,2\n1,3,4\n", "the rows have more fields than the header"),
        ("t.csv", "item_id,level_0\n0,1,\n1,3,\n", "the rows have more fields than the header"),
        ("t.csv", "item_id,level_0\n0,1\n1,3,4\n", "not a readable CSV"),
        ("t.csv", "item_id,level_0\n0,1\n0,2\n", "item '0' stands there more than once"),
        ("t.csv", "item_id,level_0\n0,1\n1,2", "may be cut off"),
        ("t.csv", "item_id,level_0,level_2\n0,1,2\n", "without a gap, got item_id, level_0, level_2"),
        ("t.csv", "level_0\n1\n", "expected columns item_id"),
        ("t.csv", "item_id,level_0\n", "empty index"),
        ("t.csv", "", "not a readable CSV"),
        ("t.csv", "item_id,level_0\n,2\n", "row 1 has no item_id"),
        ("t.csv", "item_id,level_0\n0,99999\n", "out of range"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_index(_written(tmp_path / name, content))
    assert str(tmp_path / name) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": ["0", "1"], "level_0": [1, None]}, "1 missing codes"),
        ({"item_id": ["0", "1"], "level_0": [1.0, 2.0]}, "type double"),
        ({"item_id": ["0", "0"], "level_0": [1, 2]}, "item '0' stands there more than once"),
        ({"item_id": ["0", "1"], "level_0": [1, -2]}, "item '1' has code -2 on level 0"),
        ({"item_id": ["0", "1"], "level_1": [1, 2]}, "without a gap"),
        ({"item_id": ["0", None], "level_0": [1, 2]}, "row 2 has no item_id"),
        ({"pid": [0, 1], "sid": [[1, 2], [1]]}, "1 items differ, first '1' with 1"),
        ({"pid": [0, 1], "sid": [[1, 2], None]}, "first '1' with none"),
        ({"pid": [0, 1], "sid": [[1, 2], [1, None]]}, "1 codes are missing"),
        ({"pid": [0, 1], "sid": [[1, 2], [1, -2]]}, "item '1' has code -2 on level 1"),
        ({"pid": [0, 0], "sid": [[1], [2]]}, "item '0' stands there more than once"),
        ({"pid": [0, 1], "sid": [1, 2]}, "expected lists of codes"),
        ({"pid": [0, 1], "code": [[1], [2]]}, "expected columns 'pid' and 'sid' or 'codes', got pid, code"),
    ],
)
def test_damaged_parquet_is_named(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    import pyarrow
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    pq.write_table(pyarrow.table(columns), path)
    with pytest.raises(ValueError) as caught:
        read_index(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_parquet_file_is_checked_against_what_it_says_of_itself(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    write_index(example(), path)
    with pytest.raises(ValueError, match="perhaps truncated"):
        read_index(_written(tmp_path / "cut.parquet", path.read_bytes()[:-20]))
    table = pq.read_table(path)
    changed = table.set_column(1, "level_0", pyarrow.array([1, 2, 0]))
    pq.write_table(changed, path)
    with pytest.raises(ValueError, match="not those that the file was written with"):
        read_index(path)


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_an_index_of_another_catalogue_or_of_other_sizes_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    write_index(example(), path, kind)
    names = example().item_ids.tolist()
    with pytest.raises(ValueError, match=r"1 of 4 catalogue ids are not in the index, first \['new'\]"):
        read_index(path, [*names, "new"])
    with pytest.raises(ValueError, match=r"1 of 3 items are not in the catalogue, first \['5'\]"):
        read_index(path, names[1:])
    assert read_index(path, names[1:], unknown="drop").item_ids.tolist() == names[1:]
    with pytest.raises(ValueError, match=r"item '007' has code 2 on level 0, expected one in \[0, 2\)"):
        read_index(path, sizes=2)
    assert read_index(path, sizes=8).sizes == read_index(path, sizes=np.int64(8)).sizes == (8, 8)
    with pytest.raises(ValueError, match="expected 3 levels, as sizes"):
        read_index(path, sizes=(3, 3, 3))


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    for name, kind in (("i.json", "index_json"), ("o.json", "openonerec"), ("t.csv", "csv")):
        path = tmp_path / name
        write_index(example(), path, kind)
        marked = _written(tmp_path / f"marked.{name}", b"\xef\xbb\xbf" + path.read_bytes())
        assert read_index(marked).content_hash() == read_index(path).content_hash()


@pytest.mark.parametrize("said", [b"{", b"[]", b'{"sizes": [3, 2]}', b'{"sizes": null, "content_hash": "x"}'])
def test_what_a_parquet_file_says_of_itself_may_be_damaged(tmp_path: Path, said: bytes) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    write_index(example(), path)
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"sidgym": said}), path)
    with pytest.raises(ValueError, match="of itself is damaged"):
        read_index(path)


def test_what_is_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; give an index file"):
        read_index(tmp_path / "none.json")
    path = _written(tmp_path / "a.json", '{"0": ["<a_1>"]}')
    with pytest.raises(ValueError, match="unknown index format 'xml'"):
        read_index(path, format="xml")
    with pytest.raises(ValueError, match="'refuse' or 'drop'"):
        read_index(path, unknown="ignore")
    with pytest.raises(ValueError, match="expected a form such as"):
        read_index(path, format="openonerec")
