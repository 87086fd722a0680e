"""Raw Amazon reviews of three years on small files, MiniOneRec's windows, bounded memory, and real data where given."""

import gzip
import json
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import DataSet, load_dataset
from sidgym.envs.loaders_amazon_reviews import clean_text, description_of, path_of, price_of, title_of
from sidgym.envs.records import PAD_ITEM, Interactions
from sidgym.envs.splits import split

# user, item, rating, seconds; not in order
ROWS = [("u", "B2", 5, 40), ("v", "B1", 2, 10), ("u", "B1", 4, 20), ("v", "B2", 5, 30), ("u", "B10", 1, 30)]
ITEMS: dict[str, dict[str, Any]] = {
    "B1": {"title": "Blue &amp; green lamp", "description": ["A <b>lamp</b>.", "It  shines."], "price": "$1,012.50"},
    "B2": {"title": "<span id='x'>getTime", "feature": ["Red"], "price": "$1 - $2"},
    "B3": {"title": "never bought"},
}
YEARS = ("2014", "2018", "2023")


def review(year: str, user: str, item: str, rating: float, time: float) -> dict[str, Any]:
    if year == "2023":
        who = {"user_id": user, "asin": "variant", "parent_asin": item}
        return {**who, "rating": rating, "timestamp": int(time * 1000), "title": "ok", "images": [{"a": 1}]}
    more = {"style": {"Size:": " L"}} if year == "2018" else {"helpful": [0, 1]}
    return {"reviewerID": user, "asin": item, "overall": float(rating), "unixReviewTime": int(time), **more}


def metadata(year: str, item: str, entry: dict[str, Any]) -> str:
    if year == "2014":
        path = [["Home", "Lamps"], ["Other"]]
        return str({"asin": item, **entry, "categories": path})  # a printed dictionary, as these files are
    if year == "2018":
        return json.dumps({"asin": item, **entry, "category": ["Home", "Lamps", "</span>x"]})
    return json.dumps({"parent_asin": item, **entry, "main_category": "Home", "categories": []})


def write(folder: Path, lines: list[str], name: str) -> None:
    text = "".join(line + "\n" for line in lines).encode()
    (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)


def raw(folder: Path, year: str = "2018", rows: Any = ROWS, meta: bool = True, **more: Any) -> DataConfig:
    end = {"2014": "json.gz", "2018": "json.gz", "2023": "jsonl"}[year]
    write(folder, [json.dumps(review(year, *row)) for row in rows], f"Toys.{end}")
    if meta:
        write(folder, [metadata(year, item, entry) for item, entry in ITEMS.items()], f"meta_Toys.{end}")
    return DataConfig(**({"name": "amazon_reviews", "path": str(folder), "min_events": 0} | more))


def lists(log: Interactions, ids: np.ndarray) -> list[list[str]]:
    return [ids[log.item[log.user == user]].tolist() for user in np.unique(log.user)]


@pytest.mark.parametrize("year", YEARS)
def test_all_years_yield_one_log(tmp_path: Path, year: str) -> None:
    data = load_dataset(raw(tmp_path, year), seed=0)
    items = data.catalogue
    assert items.ids.tolist() == ["B1", "B10", "B2"]
    assert lists(data.interactions, items.ids) == [["B1", "B10", "B2"], ["B1", "B2"]]
    assert data.interactions.time is not None
    assert data.interactions.time.tolist() == [20.0, 30.0, 40.0, 10.0, 30.0]
    assert items.titles == ("Blue & green lamp", "", "")
    assert items.descriptions == ("A lamp . It shines.", "", "Red")
    assert items.categories[0] == (("Home",) if year == "2023" else ("Home", "Lamps"))
    assert items.categories[1] == ()
    assert items.price is not None
    assert items.price[0] == 1012.5
    assert np.isnan(items.price[1:]).all()
    assert any(note.endswith("5 rows, 0 malformed") for note in data.notes)
    assert "1 of 3 items have neither title nor description; 1 are not listed" in data.notes


def test_filters_while_reading_print_rows_in_and_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = raw(tmp_path, min_rating=2, start="1970-01-01T00:00:15", end="35")
    data = load_dataset(config, seed=0)
    assert lists(data.interactions, data.catalogue.ids) == [["B1"], ["B2"]]
    lines = ["rating at least 2: 5 -> 4 events", "time window from 1970-01-01T00:00:15 to before 35: 4 -> 2 events"]
    assert list(data.notes[1:3]) == lines
    assert capsys.readouterr().err.splitlines()[: len(data.notes)] == list(data.notes)


def test_titles_are_judged_before_the_k_core(tmp_path: Path) -> None:
    rows = [("u", "B1", 5, 1), ("u", "B1", 5, 2), ("v", "B2", 5, 1), ("v", "B2", 5, 2), ("w", "B1", 5, 1)]
    data = load_dataset(raw(tmp_path, rows=rows, title_words=4, min_events=2), seed=0)
    assert lists(data.interactions, data.catalogue.ids) == [["B1", "B1"]]
    assert "items with a title of at most 4 words: 5 -> 3 events" in data.notes
    assert "2-core: 1 -> 1 users, 1 -> 1 items, 2 -> 2 events" in data.notes
    with pytest.raises(ValueError, match="no event is left of 5"):
        load_dataset(raw(tmp_path, rows=rows, title_words=3), seed=0)
    (tmp_path / "meta_Toys.json.gz").unlink()
    with pytest.raises(ValueError, match=r"title_words reads titles, and .* holds no meta_\* file"):
        load_dataset(raw(tmp_path, rows=rows, meta=False, title_words=4), seed=0)


def test_of_an_item_listed_twice_the_first_line_whose_title_stays_counts(tmp_path: Path) -> None:
    config = raw(tmp_path, "2023")
    lines = [("B1", "one two three", "long"), ("B2", "", "blank"), ("B1", "one", "short"), ("B1", "x", "late"),
             ("B2", "two", "titled"), ("B10", "one two three", "never")]  # fmt: skip
    entries = [json.dumps({"parent_asin": item, "title": title, "description": [text]}) for item, title, text in lines]
    write(tmp_path, entries, "meta_Toys.jsonl")
    items = load_dataset(config, seed=0).catalogue
    assert items.titles == ("one two three", "one two three", "two")
    assert items.descriptions == ("long", "never", "titled")
    data = load_dataset(replace(config, title_words=2), seed=0)
    assert data.catalogue.ids.tolist() == ["B1", "B2"]
    assert data.catalogue.titles == ("one", "two")
    assert data.catalogue.descriptions == ("short", "titled")


def test_metadata_that_cannot_be_read_are_refused_before_the_reviews(tmp_path: Path) -> None:
    config = raw(tmp_path, "2023", title_words=2)
    write(tmp_path, ["<html>", "<body>", json.dumps({"title": "no name"})], "meta_Toys.jsonl")
    with pytest.raises(ValueError, match=r"meta_Toys\.jsonl: 3 rows, 3 malformed .* line 1: not valid JSON"):
        load_dataset(config, seed=0)
    write(tmp_path, [], "meta_Toys.jsonl")
    with pytest.raises(ValueError, match=r"meta_Toys\.jsonl is empty; expected at least one row"):
        load_dataset(config, seed=0)


def test_a_first_row_without_a_time_does_not_refuse_the_file(tmp_path: Path) -> None:
    first = {"reviewerID": "u", "asin": "B1", "overall": 5.0}
    lines = [json.dumps(first), *(json.dumps(review("2018", *row)) for row in ROWS)]
    write(tmp_path, lines, "Toys.json")
    config = DataConfig(name="amazon_reviews", path=str(tmp_path), min_events=0, max_malformed=0.5)
    data = load_dataset(config, seed=0)
    assert len(data.interactions) == 5
    assert "Toys.json line 1: no 'unixReviewTime'" in data.notes[0]


def test_malformed_rows_are_counted_shown_and_limited(tmp_path: Path) -> None:
    config = raw(tmp_path, "2023", max_malformed=0.5)
    with (tmp_path / "Toys.jsonl").open("a") as file:
        file.write('{"user_id": "u", "parent_asin": "B1"}\n{"user_id": "u", "par')
    data = load_dataset(config, seed=0)
    assert len(data.interactions) == 5
    note = next(note for note in data.notes if note.startswith("Toys.jsonl"))
    assert note.startswith("Toys.jsonl: 7 rows, 2 malformed and left out, such as Toys.jsonl line 6: no 'timestamp': {")
    assert "Toys.jsonl line 7: not valid JSON" in note
    with pytest.raises(ValueError, match=r"2 malformed .*more than the share data\.max_malformed = 0\.01 allows"):
        load_dataset(replace(config, max_malformed=0.01), seed=0)


def test_files_that_are_missing_too_many_or_of_another_kind_are_named(tmp_path: Path) -> None:
    config = DataConfig(name="amazon_reviews", path=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="expected a folder with one file of reviews"):
        load_dataset(config, seed=0)
    write(tmp_path, ['{"title": "x"}'], "meta_Toys.json")
    with pytest.raises(FileNotFoundError, match="no file of reviews"):
        load_dataset(config, seed=0)
    write(tmp_path, ['{"a": 1, "b": 2}'], "one.json")
    with pytest.raises(ValueError, match=r"expected reviews with reviewerID.* or user_id.*; the first has a, b"):
        load_dataset(config, seed=0)
    write(tmp_path, [], "two.json")
    with pytest.raises(ValueError, match=r"expected one file of reviews, found one\.json, two\.json"):
        load_dataset(config, seed=0)
    with pytest.raises(ValueError, match=r"set data\.path to its folder"):
        load_dataset(DataConfig(name="amazon_reviews"), seed=0)


def test_without_metadata_there_is_no_text_and_a_note(tmp_path: Path) -> None:
    data = load_dataset(raw(tmp_path, meta=False), seed=0)
    assert data.catalogue.titles == ("", "", "")
    assert any(note.startswith("no item text") for note in data.notes)


def test_fields_of_the_metadata() -> None:
    assert clean_text("a <b>bold</b>\n word<br />") == "a bold word"
    # Entities become characters last, and what only looks like a tag stays.
    assert clean_text("pipes &lt;2 in. and fittings &gt;1 in.") == "pipes <2 in. and fittings >1 in."
    assert clean_text("pipes <2 in. and >1 in. &amp;lt;") == "pipes <2 in. and >1 in. &lt;"
    assert clean_text("\ud83d\ude00 \ud800") == "\U0001f600 \ufffd"
    assert title_of({"title": "[1984]"}) == "[1984]"
    assert (
        description_of({"description": "['one', 'two']"}) == description_of({"features": ["one", "two"]}) == "one two"
    )
    assert path_of({"category": [], "main_cat": "Home &amp; Garden"}) == ("Home & Garden",)
    assert title_of({"title": None}) == title_of({"title": "var aPageStart = (new Date()).getTime();"}) == ""
    assert price_of({"price": 3.5}) == 3.5
    assert np.isnan([price_of({"price": text}) for text in (None, "—", "$1 - $2", "")]).all()
    assert path_of({}) == ()


# MiniOneRec's protocol -----------------------------------------------------------------------------------------------


def store(rows: int, seed: int = 0) -> list[tuple[str, str, int, int]]:
    """Random reviews whose times all differ, so that a cut in time divides them as a cut by place does."""
    rng = np.random.default_rng(seed)
    times = rng.permutation(rows) + 1_480_000_000
    return [(f"u{rng.integers(12)}", f"B{rng.integers(6)}", 5, int(time)) for time in times]


def test_every_label_gives_the_windows_of_minionerec(tmp_path: Path) -> None:
    rows = store(199)
    config = raw(tmp_path, rows=rows, meta=False, min_events=5, history=10, split="chronological", every_label=True,
                 valid_share=0.1, test_share=0.1, rl_share=0.2, end="2018-11")  # fmt: skip
    data = load_dataset(config, seed=0)
    splits = split(data, config, seed=0)
    # The windows by plain loops: every event with one before it, sorted by the time of the target, cut 8:1:1.
    by_user: dict[str, list[tuple[int, str]]] = {}
    for user, item, _, time in rows:
        by_user.setdefault(user, []).append((time, item))
    windows = []
    for events in by_user.values():
        items = [item for _, item in sorted(events)]
        windows += [(time, items[max(0, i - 10) : i], items[i]) for i, (time, _) in enumerate(sorted(events)) if i]
    windows.sort()
    total = len(windows)
    cuts = [int(total * share) for share in (0.6, 0.8, 0.9, 1.0)]
    assert cuts != [round(total * share) for share in (0.6, 0.8, 0.9, 1.0)]
    ids = data.catalogue.ids
    for part, start, stop in zip((splits.rl, splits.valid, splits.test), cuts, cuts[1:]):
        got = {(tuple(ids[h[h != PAD_ITEM]]), str(ids[t])) for h, t in zip(part.history, part.target)}
        assert got == {(tuple(history), target) for _, history, target in windows[start:stop]}
        assert len(part) == stop - start
    assert len(split(data, replace(config, every_label=False), seed=0).test) < len(splits.test)


# Memory --------------------------------------------------------------------------------------------------------------


def noisy(folder: Path, noise: int) -> int:
    """A core of 100 users and 10 items, and ``noise`` reviews by users who never come again, on items of their own that
    the metadata describe, every other one with too long a title. Gives the bytes of both files."""
    folder.mkdir()
    core = [json.dumps(review("2023", f"u{i % 100}", f"B{i % 10}", 5, i)) for i in range(2000)]
    once = (json.dumps(review("2023", f"once{i:060d}", f"only{i:060d}", 5, i)) for i in range(noise))
    (folder / "x.jsonl").write_text("\n".join(core) + "\n" + "\n".join(once) + "\n")
    names = [f"B{i}" for i in range(10)] + [f"only{i:060d}" for i in range(noise)]
    lines = (metadata("2023", name, {"title": "word " * (2 + 2 * (row % 2) * (row > 9)), "description": ["d" * 60]})
             for row, name in enumerate(names))  # fmt: skip
    (folder / "meta_x.jsonl").write_text("\n".join(lines) + "\n")
    return sum(path.stat().st_size for path in folder.iterdir())


POOLS: list[Any] = []
"""Arrow's memory must outlive all that was taken from it."""


def peaks(config: DataConfig) -> tuple[DataSet, int, int]:
    """What is read, and the most bytes that Python and Arrow held at once."""
    import pyarrow as pa

    usual = pa.default_memory_pool()
    POOLS.append(pa.proxy_memory_pool(usual))  # with a high-water mark of its own
    pa.set_memory_pool(POOLS[-1])
    tracemalloc.start()
    try:
        data = load_dataset(config, seed=0)
        return data, tracemalloc.get_traced_memory()[1], POOLS[-1].max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sidgym.envs import raw_files, streaming

    monkeypatch.setattr(raw_files.blocks, "__defaults__", (1 << 17,))
    monkeypatch.setattr(streaming, "MOST_BITS", streaming.FEWEST_BITS)  # the bound of the sketches, met by small files
    monkeypatch.setattr(streaming, "NAMES", 1000)
    python, arrow, sizes = [], [], []
    for name, noise in (("warm", 100), ("small", 3_000), ("large", 15_000)):
        sizes.append(noisy(tmp_path / name, noise))
        config = DataConfig(name="amazon_reviews", path=str(tmp_path / name), min_events=5, title_words=3)
        data, most, most_arrow = peaks(config)
        python.append(most)
        arrow.append(most_arrow)
        assert len(data.interactions) == 2000
        assert set(data.catalogue.titles) == {"word word"}
        kept = 2000 + noise // 2
        assert f"items with a title of at most 3 words: {2000 + noise} -> {kept} events" in data.notes
        assert f"users and items that may have 5 events, by counting: {kept} -> 2000 events" in data.notes
    assert sizes[2] > 4 * sizes[1] > 4e6
    # Of an item whose title stays a key of 8 bytes is kept, and copied when the keys are sorted.
    keys = 32 * (15_000 - 3_000) // 2
    assert python[2] < 1.1 * python[1] + keys < sizes[2] / 4
    assert 0 < arrow[2] < 1.1 * arrow[1] < sizes[2] / 4


# Real data -----------------------------------------------------------------------------------------------------------


def test_scientific_written_as_reviews_reads_back_as_it_was(tmp_path: Path) -> None:
    """The real log, its order turned into times, against the reader of ``inter.json``."""
    folder = Path(os.environ.get("SIDGYM_DATA", "")) / "amazon-scientific"
    if not os.environ.get("SIDGYM_DATA") or not folder.is_dir():
        pytest.skip("SIDGYM_DATA names no folder with amazon-scientific")
    known = load_dataset(DataConfig(name="amazon", path=str(folder), min_events=5), seed=0)
    log, ids = known.interactions, known.catalogue.ids
    rows = [json.dumps(review("2018", f"user{u}", ids[i], 5, 1e9 + o))
            for u, i, o in zip(log.user.tolist(), log.item.tolist(), log.order.tolist())]  # fmt: skip
    write(tmp_path, rows, "Scientific.json.gz")
    text = zip(ids.tolist(), known.catalogue.titles, known.catalogue.descriptions)
    meta = [json.dumps({"asin": name, "title": title, "description": [about]}) for name, title, about in text]
    write(tmp_path, meta, "meta_Scientific.json.gz")
    data = load_dataset(DataConfig(name="amazon_reviews", path=str(tmp_path), min_events=5), seed=0)
    assert (data.catalogue.ids == ids).all()
    for name in ("user", "item", "order"):
        np.testing.assert_array_equal(getattr(data.interactions, name), getattr(log, name))
    same = sum(a == b for a, b in zip(data.catalogue.titles, known.catalogue.titles))
    assert same > 0.95 * len(ids)
