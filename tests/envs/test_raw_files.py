"""Blocks, columns and malformed rows of raw files."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.envs.raw_columns import csv_blocks, json_blocks
from sidgym.envs.raw_files import Reading, blocks, csv_header, csv_items, find_files, json_objects, total_size


def read_json(path: Path, reading: Reading) -> list[tuple[str, float]]:
    chunks = list(json_blocks(path, ["a"], ["t"], reading))
    return [(a, t) for chunk in chunks for a, t in zip(chunk["a"].to_pylist(), chunk["t"].tolist())]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("ab\n", max_size=6), max_size=8), st.integers(1, 9))
def test_blocks_hold_whole_lines_and_know_their_numbers(parts: list[str], size: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.txt"
        path.write_text("".join(parts))
        lines = path.read_text().split("\n")
        got: list[tuple[int, str]] = []
        for first, block in blocks(path, size):
            assert block.endswith(b"\n")
            got += enumerate(block.decode().split("\n")[:-1], start=first)
    expected = list(enumerate(lines, start=1))
    assert got == (expected[:-1] if lines[-1] == "" else expected)


def test_a_cut_archive_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "x.json.gz"
    whole = gzip.compress("".join(f'{{"a": "{i * 7919}", "t": {i}}}\n' for i in range(5000)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"x\.json\.gz: not readable behind line \d+.*may be cut off"):
        read_json(path, Reading())


def test_json_lines_of_either_kind_and_faults_by_line(tmp_path: Path) -> None:
    lines = [
        b'{"a": "x", "t": 1, "other": {"b": [1]}}',
        b"{'a': 'y', 't': 2.5, 'none': None}",  # a printed Python dictionary, as in the files of 2014
        b"",
        b'{"a": "z", "t": "3"}',
        b'{"a": "z"}',
        b'{"a": "", "t": 1}',
        b'{"a": "z", "t": NaN}',
        b'{"a": "z", "t": "soon"}',
        b'{"a": "cut',
        b'["a"]',
        b'{"a": "\xff", "t": 1}',
        b'{"a": true, "t": 1}',
        b'{"a": 17, "t": 4}',
    ]
    path = tmp_path / "x.json"
    path.write_bytes(b"\n".join(lines))
    reading = Reading()
    assert read_json(path, reading) == [("x", 1.0), ("y", 2.5), ("z", 3.0), ("17", 4.0)]
    assert (reading.rows, reading.malformed) == (12, 8)
    assert reading.shown == [
        'x.json line 5: no \'t\': {"a": "z"}',
        'x.json line 6: no text in \'a\': {"a": "", "t": 1}',
        'x.json line 7: no number in \'t\': {"a": "z", "t": NaN}',
    ]
    with pytest.raises(ValueError, match=r"x: 12 rows, 8 malformed .*data\.max_malformed = 0\.5 allows"):
        reading.check("x", 0.5)
    reading.check("x", 0.7)


def test_sound_blocks_are_not_taken_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sidgym.envs import raw_columns

    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(b'{"t": 1, "a": "x"}\n{"a": "\xc3\xa9", "t": 2.5}\n'))
    monkeypatch.delattr(raw_columns, "_line_by_line")
    assert read_json(path, Reading()) == [("x", 1.0), ("é", 2.5)]


@pytest.mark.parametrize("delimiter", [",", "::"])
def test_delimited_text_and_faults_by_line(tmp_path: Path, delimiter: str) -> None:
    rows = [
        ["u", "i", "t", "z"],
        ["a", "1", "5", ""],
        [""],
        ["a", "2"],
        ["b", "2", "x", ""],
        ["b", "2", "6", "", ""],
        ["", "2", "", ""],
        ["\xff", "2", "6", ""],
        ["c", "3", "7.5", ""],
        ["c", "3", "inf", ""],
        ["d", '"4', "8", ""],
    ]
    path = tmp_path / "x.csv"
    path.write_bytes("\n".join(delimiter.join(row) for row in rows).encode("latin-1"))
    reading = Reading()
    chunks = list(csv_blocks(path, rows[0], ["u", "i"], ["t"], reading, delimiter))
    got = [(u, i, t) for c in chunks for u, i, t in zip(c["u"].to_pylist(), c["i"].to_pylist(), c["t"].tolist())]
    loose = [("d", '"4', 8.0)]  # a quote that does not end is text where no field may hold quotes
    assert got == [("a", "1", 5.0), ("c", "3", 7.5), *(loose if delimiter == "::" else [])]
    assert (reading.rows, reading.malformed) == (9, 6 + (delimiter == ","))
    assert reading.shown[0] == f"x.csv line 4: 2 fields instead of 4: a{delimiter}2"
    assert reading.shown[1] == f"x.csv line 5: no number in 't': b{delimiter}2{delimiter}x{delimiter}"
    assert reading.shown[2].startswith("x.csv line 6: 5 fields instead of 4")


def test_an_open_quote_does_not_swallow_the_lines_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('u,t\n"a,1\nb,2\nc"c,3\n"d",4\n')
    reading = Reading()
    (chunk,) = csv_blocks(path, ["u", "t"], ["u"], ["t"], reading)
    assert chunk["u"].to_pylist() == ["b", 'c"c', "d"]
    assert (reading.rows, reading.malformed) == (4, 1)
    path.write_text('t,u\n1,a\n2,"b\n')
    reading = Reading()
    (chunk,) = csv_blocks(path, ["t", "u"], ["u"], ["t"], reading)
    assert chunk["u"].to_pylist() == ["a"]
    assert (reading.rows, reading.malformed) == (2, 1)


def test_files_of_items_keep_line_ends_inside_quotes(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text('\ufeffid,title,more\n1,"two\nlines, one",x\n2,short\n3,"say ""so""",y\n', encoding="utf-8")
    reading = Reading()
    assert [row["title"] for _, row in csv_items(path, ["id", "title"], reading)] == ["two\nlines, one", 'say "so"']
    assert reading.shown == ["items.csv line 4: 2 fields instead of 3: 2,short"]
    with pytest.raises(ValueError, match="no column price; the columns present are id, title, more"):
        list(csv_items(path, ["price"], Reading()))


def items_of(path: Path, reading: Reading) -> list[str]:
    return [row["id"] for _, row in csv_items(path, ["id", "title"], reading)]


def test_quotes_that_do_not_end_are_refused_and_never_swallow_a_file(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    rows = [f"{i},title {i}\n" for i in range(1000)]
    rows[500] = '500,"open\n'
    path.write_text("id,title\n" + "".join(rows))
    with pytest.raises(ValueError, match=r"items\.csv: line 502 opens quotes that do not end before the file does"):
        items_of(path, Reading())
    # Quotes further on end those that were open; every line between them is lost, and counted.
    rows[600] = '600,"title"\n'
    path.write_text("id,title\n" + "".join(rows))
    reading = Reading()
    assert len(items_of(path, reading)) == 1000 - 101
    assert (reading.rows, reading.malformed) == (1000, 101)
    assert reading.shown == ["items.csv line 502: ',' expected after '\"': 500,\"open"]
    # What is longer than a field may be ends there.
    rows = [f"{i},{'x' * 1000}\n" for i in range(400)]
    rows[10] = '10,"open\n'
    path.write_text("id,title\n" + "".join(rows))
    reading = Reading()
    found = items_of(path, reading)
    assert found[:10] == [str(i) for i in range(10)]
    assert len(found) + reading.malformed == reading.rows == 400
    assert 100 < reading.malformed < 200
    assert "field larger than field limit" in reading.shown[0]


def test_bytes_that_are_no_text_make_the_row_malformed(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes('\ufeffid,title\n1,caf\xe9\n2,"two\n'.encode() + b'\xff lines"\n3,ok\r\n4,\xe9\n')
    reading = Reading()
    assert [(line, row["title"]) for line, row in csv_items(path, ["title"], reading)] == [(2, "caf\xe9"), (5, "ok")]
    assert (reading.rows, reading.malformed) == (5, 3)
    assert reading.shown == ['items.csv line 3: not UTF-8 text: 2,"two', "items.csv line 6: not UTF-8 text: 4,\ufffd"]


def test_archives_of_items_that_are_cut_off_or_none_are_named(tmp_path: Path) -> None:
    path = tmp_path / "items.csv.gz"
    whole = gzip.compress("".join(["id,title\n", *(f"{i * 7919},{i * 104729}\n" for i in range(5000))]).encode())
    path.write_bytes(whole[: len(whole) // 2])
    for read in (csv_header, lambda path: items_of(path, Reading())):
        with pytest.raises(ValueError, match=r"items\.csv\.gz: not readable behind line \d+.*may be cut off"):
            read(path)
    path.write_text("id,title\n1,a\n")
    for read in (csv_header, lambda path: items_of(path, Reading())):
        with pytest.raises(ValueError, match=r"items\.csv\.gz: not readable behind line 0: Not a gzipped file"):
            read(path)


def test_lines_that_break_a_parser_are_counted(tmp_path: Path) -> None:
    lines = [
        b"{[1]: 2}",
        b"[" * 100_000,
        b'{"a": "x", "t": ' + b"1" * 400 + b"}",
        b'{"a": "\\ud800", "t": 1}',
        b'{"a": ' + b"9" * 5000 + b', "t": 1}',
        b'{"a": "y", "t": 2}',
    ]
    path = tmp_path / "x.json"
    path.write_bytes(b"\n".join(lines))
    reading = Reading()
    assert read_json(path, reading) == [("y", 2.0)]
    assert (reading.rows, reading.malformed) == (6, 5)
    assert [entry for _, entry in json_objects(path, Reading())][-1] == {"a": "y", "t": 2}


def test_only_pieces_with_a_fault_go_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sidgym.envs import raw_columns

    taken = []
    by_line = raw_columns._line_by_line
    monkeypatch.setattr(raw_columns, "_line_by_line", lambda *args: taken.append(args[1]) or by_line(*args))
    monkeypatch.setattr(raw_columns, "SMALLEST", 100)
    rows = [f'{{"a": "{i:03d}", "t": {i}}}' for i in range(100)]
    rows[41], rows[99] = '{"a": "041"}', ""
    (tmp_path / "x.json").write_text("\n".join(rows) + "\n")
    reading = Reading()
    expected = [(f"{i:03d}", float(i)) for i in range(99) if i != 41]
    assert read_json(tmp_path / "x.json", reading) == expected
    assert (reading.rows, reading.malformed) == (99, 1)
    assert reading.shown[0].startswith("x.json line 42: no 't'")
    assert len(taken) == 2
    assert 37 <= taken[0] <= 42
    (tmp_path / "x.csv").write_text("\n".join([f"{a},{t}" for a, t in expected[:60]] + ["z,", "y,1,2", "w,5"]) + "\n")
    reading = Reading()
    chunks = list(csv_blocks(tmp_path / "x.csv", ["a", "t"], ["a"], ["t"], reading, header=False))
    assert [a for c in chunks for a in c["a"].to_pylist()] == [a for a, _ in expected[:60]] + ["w"]
    assert (reading.rows, reading.malformed) == (63, 2)
    assert reading.shown[0].startswith("x.csv line 61: no number in 't'")


def test_objects_of_items_are_counted_too(tmp_path: Path) -> None:
    path = tmp_path / "meta.json"
    path.write_text('{"a": 1}\nnot\n\n{"a": 2}\n')
    reading = Reading()
    assert [(number, entry["a"]) for number, entry in json_objects(path, reading)] == [(1, 1), (4, 2)]
    assert (reading.rows, reading.malformed) == (3, 1)


def test_missing_files_say_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder; expected one with logs"):
        find_files(tmp_path / "none", ["*.csv"], "logs")
    with pytest.raises(FileNotFoundError, match=r"no \*\.csv or \*\.dat; expected a folder with logs"):
        find_files(tmp_path, ["*.csv", "*.dat"], "logs")
    (tmp_path / "a.csv.gz").write_bytes(b"0123456789")
    assert total_size(find_files(tmp_path, ["*.gz"], "logs")) == 100
    with pytest.raises(ValueError, match="empty; expected at least one row"):
        Reading().check("a", 1.0)


def test_numbers_come_as_floats(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("1649408076860\n2\n")
    (chunk,) = csv_blocks(path, ["t"], [], ["t"], Reading(), header=False)
    assert chunk["t"].dtype == np.float64
    assert chunk["t"].tolist() == [1649408076860.0, 2.0]
