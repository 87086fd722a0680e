"""New items from the command line: SIDs, a grown checkpoint, and a warning for what the tokeniser never saw."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidgym.agents.checkpoint import load_policy, read_info, save_policy
from sidgym.agents.config import PolicyConfig
from sidgym.agents.policy import build_policy
from sidgym.agents.recommender import Recommender
from sidgym.launch.new_items import read_new_items
from sidgym.launch.sid_add import add_command, add_items, add_options, find_parts
from sidgym.launch.sid_files import export_command, export_options, import_command, import_options
from sidgym.sid.alignment import I2IContrastive, save_alignment
from sidgym.sid.config import SidConfig
from sidgym.sid.embed import make_embedder, save_embedder
from sidgym.sid.rq_kmeans import RQKMeans
from sidgym.sid.table import SidTable
from sidgym.sid.tfidf import TfidfSvd
from sidgym.sid.tokenizers import build_table

TINY = PolicyConfig(hidden_size=16, intermediate_size=32, layers=2, heads=2, kv_heads=1)
WORDS = ["red", "green", "blue", "round", "flat", "steel", "wood", "glass", "small", "large"]


def catalogue_texts(items: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 4)) + f" model {k % 7}" for k in range(items)]


def make_run(
    folder: Path,
    collisions: str = "reassign",
    tokenizer: str = "rq_kmeans",
    aligned: bool = False,
    **settings: Any,
) -> Path:
    """A run with a ``sid`` stage and an untrained policy."""
    config = SidConfig(tokenizer=tokenizer, levels=2, codes=8, embedding_dim=8, collisions=collisions, **settings)
    texts = catalogue_texts(40)
    embedder = make_embedder(config, 0).fit(texts)
    embeddings = embedder.embed(texts)
    if aligned:
        alignment = some_alignment(embeddings)
        embeddings = alignment.transform(embeddings)
        save_alignment(alignment, folder / "sid" / "embedder", "i2i_contrastive")
    ids = [f"i{k}" for k in range(len(texts))]
    paths = [["Shop", WORDS[k % 4]] for k in range(len(texts))]
    table = build_table(embeddings, ids, config, 0, paths, save_to=folder / "sid" / "tokenizer")
    table.save(folder / "sid")
    np.save(folder / "sid" / "embeddings.npy", embeddings)
    save_embedder(embedder, folder / "sid" / "embedder", config.embedder)
    save_policy(folder / "sft", build_policy(TINY, table, 0), {"stage": "sft", "history": 5})
    return folder


def some_alignment(embeddings: np.ndarray) -> I2IContrastive:
    """One that moves every row far, as if it had learnt much."""
    user, item = np.repeat(np.arange(60), 4), np.random.default_rng(0).integers(0, len(embeddings), 240)
    alignment = I2IContrastive(0, epochs=0).fit(embeddings, user, item)
    assert alignment.projection is not None
    with torch.no_grad():
        alignment.projection.leave += torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    return alignment


class Sourced(TfidfSvd):
    """An embedder that reads a folder of its own, as a text encoder does."""

    takes = ("source",)

    def __init__(self, dim: int, seed: int, source: str = "") -> None:
        super().__init__(dim, seed)
        self.source = source

    @classmethod
    def load(cls, directory: str | Path, source: str = "") -> "TfidfSvd":
        if not (Path(source) / "weights").is_file():
            raise ValueError(f"no weights in {source!r}")
        return TfidfSvd.load(directory)


class NoDistances(RQKMeans):
    """A tokeniser that cannot say how far an item is from its codes."""

    @property
    def distances(self) -> Any:  # type: ignore[override]
        raise AttributeError("none")


class NoNumbers(RQKMeans):
    """A tokeniser whose distances are no numbers."""

    def distances(self, x: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(x)) == 1, np.nan, 0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


NEW = [
    {"id": "n0", "title": "red round steel small model 3"},
    {"id": "n1", "title": "red round steel small model 3", "description": "", "categories": []},
    {"id": "n2", "description": "quartz violin", "categories": "Music,Strings"},
]


def write_items(path: Path, rows: list[dict[str, object]] = NEW) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(add: object, run: object, *arguments: object) -> None:
    parser = argparse.ArgumentParser()
    add(parser)  # type: ignore[operator]
    run(parser.parse_args([str(one) for one in arguments]))  # type: ignore[operator]


def test_new_items_get_sids_and_the_policy_goes_on(run: Path, tmp_path: Path) -> None:
    report = add_items(run, write_items(tmp_path / "new.jsonl"), tmp_path / "grown")
    before, after = SidTable.load(run / "sid"), SidTable.load(tmp_path / "grown" / "sid")
    assert np.array_equal(after.codes[:40], before.codes)
    assert after.item_ids[40:].tolist() == ["n0", "n1", "n2"]
    assert after.collision_count() == 0
    assert report["sid_hash"] == after.content_hash() != report["sid_hash_before"]
    assert json.loads((tmp_path / "grown" / "added.json").read_text()) == json.loads(json.dumps(report))
    assert after.metadata["extensions"][0]["source"] == "new.jsonl"

    old, new = load_policy(run / "sft"), load_policy(tmp_path / "grown", after)
    weights = new.model.state_dict()
    for name, value in old.model.state_dict().items():
        assert torch.equal(weights[name][: len(value)], value), name
    assert read_info(tmp_path / "grown")["history"] == 5
    found, _ = Recommender.load(tmp_path / "grown").recommend([["i1", "n0"]], k=43)
    assert {"n0", "n1", "n2"} <= set(found[0].tolist())


def test_what_the_tokeniser_never_saw_is_reported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [*NEW, {"id": "n3", "title": catalogue_texts(40)[7]}]
    command(add_options, add_command, run, write_items(tmp_path / "new.jsonl", rows), tmp_path / "grown")
    report = json.loads((tmp_path / "grown" / "added.json").read_text())
    known = {row["item_id"]: row for row in report["items"]}
    assert known["n2"]["out_of_distribution"], "not one of its words is in the catalogue"
    assert known["n2"]["no_known_word"]
    assert not known["n3"]["out_of_distribution"], "an item's own text lies where it lay"
    assert known["n3"]["nearer_share"] < 1
    shown = capsys.readouterr()
    assert "n2" in shown.out
    assert "4 items added" in shown.out
    assert "warning: " in shown.err
    assert "99% of the items that the tokeniser was fitted on" in shown.err
    loose = add_items(run, tmp_path / "new.jsonl", tmp_path / "strict", quantile=0.01)
    assert loose["threshold"] < report["threshold"]
    assert loose["out_of_distribution"] > report["out_of_distribution"]


def test_items_are_added_again_and_again(run: Path, tmp_path: Path) -> None:
    add_items(run, write_items(tmp_path / "a.jsonl"), tmp_path / "once")
    more = write_items(tmp_path / "b.jsonl", [{"id": "m0", "title": "blue flat wood large model 1"}])
    report = add_items(tmp_path / "once", more, tmp_path / "twice")
    table = SidTable.load(tmp_path / "twice" / "sid")
    assert table.num_items == 44
    assert [entry["items"] for entry in table.metadata["extensions"]] == [3, 1]
    assert len(read_info(tmp_path / "twice")["grown"]) == 2
    assert len(np.load(tmp_path / "twice" / "sid" / "embeddings.npy")) == 44
    assert report["threshold"] == add_items(run, more, tmp_path / "other")["threshold"], (
        "fitted items alone are compared"
    )


def test_the_level_that_counts_goes_on_counting_and_gets_codes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "extra_level")
    before = SidTable.load(run / "sid")
    rows = [{"id": f"n{k}", "title": catalogue_texts(40)[7]} for k in range(9)]
    report = add_items(run, write_items(tmp_path / "new.jsonl", rows), tmp_path / "grown")
    assert report["sizes"][2] > before.sizes[2]
    grown = load_policy(tmp_path / "grown")
    assert grown.table.collision_count() == 0
    assert len(grown.level_ids(2)) == report["sizes"][2]


def test_codes_of_categories_are_compared_by_what_is_known_of_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "extra_level", "category")
    rows = [
        {"id": "n0", "title": "x", "categories": ["Shop", "green"]},
        {"id": "n1", "title": "x", "categories": ["Shop", "mauve"]},
    ]
    report = add_items(run, write_items(tmp_path / "new.jsonl", rows), tmp_path / "grown")
    assert [row["out_of_distribution"] for row in report["items"]] == [False, True]
    assert load_policy(tmp_path / "grown").table.collision_count() == 0


def test_embeddings_may_be_brought(run: Path, tmp_path: Path) -> None:
    items = write_items(tmp_path / "new.jsonl")
    rows = np.load(run / "sid" / "embeddings.npy")[:3]
    np.save(tmp_path / "rows.npy", rows)
    report = add_items(run, items, tmp_path / "grown", embeddings=tmp_path / "rows.npy")
    assert not any(row["no_known_word"] for row in report["items"])
    np.save(tmp_path / "rows.npy", rows[:2])
    for wrong, message in (
        (rows[:2], "expected 3 rows, one for each item in their order, got 2"),
        (rows.astype(str), r"expected numbers of shape \(3, D\)"),
        (rows * 1j, r"expected numbers of shape \(3, D\)"),
        (np.where(rows == rows[1], np.nan, rows), r"1 rows are not finite, first \[1\]"),
    ):
        np.save(tmp_path / "rows.npy", wrong)
        with pytest.raises(ValueError, match=message):
            add_items(run, items, tmp_path / "again", embeddings=tmp_path / "rows.npy")
    np.savez(tmp_path / "rows.npz", rows)
    with pytest.raises(ValueError, match="got NpzFile"):
        add_items(run, items, tmp_path / "again", embeddings=tmp_path / "rows.npz")


@pytest.mark.parametrize("embedder", ["tfidf_svd", "file"])
def test_rows_that_are_brought_are_aligned_as_the_run_s_are(tmp_path: Path, embedder: str) -> None:
    fitted = TfidfSvd(8, 0).fit(catalogue_texts(40))
    np.save(tmp_path / "old.npy", fitted.embed(catalogue_texts(40)))
    source = str(tmp_path / "old.npy") if embedder == "file" else ""
    run = make_run(tmp_path / "run", "keep", aligned=True, embedder=embedder, encoder=source)
    rows = [{"id": f"n{k}", "title": catalogue_texts(40)[k]} for k in range(6)]
    np.save(tmp_path / "new.npy", fitted.embed(catalogue_texts(40)[:6]))
    items = write_items(tmp_path / "new.jsonl", rows)
    report = add_items(run, items, tmp_path / "grown", embeddings=tmp_path / "new.npy")
    table = SidTable.load(tmp_path / "grown" / "sid")
    assert np.array_equal(table.codes[40:], table.codes[:6]), "an item's own row gets its own codes"
    assert len(np.unique(table.codes[:6], axis=0)) > 1
    assert report["out_of_distribution"] == 0
    kept = np.load(tmp_path / "grown" / "sid" / "embeddings.npy")
    assert kept[40:] == pytest.approx(kept[:6], abs=1e-6)


def test_an_encoder_may_have_moved(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", embedder=f"{__name__}:Sourced")
    items = write_items(tmp_path / "new.jsonl")
    with pytest.raises(ValueError, match=r"no weights in ''\. Or give --encoder FOLDER"):
        add_items(run, items, tmp_path / "grown")
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "weights").write_text("")
    command(add_options, add_command, run, items, tmp_path / "grown", "--encoder", moved)
    assert SidTable.load(tmp_path / "grown" / "sid").num_items == 43
    with pytest.raises(ValueError, match="give one of them"):
        add_items(run, items, tmp_path / "x", embeddings=tmp_path / "rows.npy", encoder=moved)


def test_distances_that_are_missing_are_noted_and_those_not_finite_refused(tmp_path: Path) -> None:
    items = write_items(tmp_path / "new.jsonl")
    report = add_items(make_run(tmp_path / "a", tokenizer=f"{__name__}:NoDistances"), items, tmp_path / "grown")
    assert "has no distances" in report["note"]
    assert "out_of_distribution" not in report
    assert load_policy(tmp_path / "grown").table.num_items == 43
    with pytest.raises(ValueError, match="NoNumbers: expected a finite distance for each of 40 items"):
        add_items(make_run(tmp_path / "b", tokenizer=f"{__name__}:NoNumbers"), items, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_done_says_what_to_do(run: Path, tmp_path: Path) -> None:
    items = write_items(tmp_path / "new.jsonl")
    with pytest.raises(FileNotFoundError, match="neither a checkpoint nor a run"):
        find_parts(tmp_path)
    with pytest.raises(ValueError, match=r"1 items are in the catalogue already, first \['i3'\]"):
        add_items(run, write_items(tmp_path / "known.jsonl", [{"id": "i3", "title": "red"}]), tmp_path / "x")
    with pytest.raises(ValueError, match="exists already"):
        add_items(run, items, run)
    with pytest.raises(ValueError, match="between 0 and 1"):
        add_items(run, items, tmp_path / "x", quantile=1.0)
    with pytest.raises(FileNotFoundError, match="no saved tokeniser"):
        add_items(run, items, tmp_path / "x", tools=tmp_path)
    other = make_run(tmp_path / "other", "extra_level")
    with pytest.raises(ValueError, match="did not make the table"):
        add_items(run, items, tmp_path / "x", tools=other / "sid")
    assert not (tmp_path / "x").exists()


def test_new_items_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text('id,title,brand,categories\n7,"Nut, M6",X,"Tools,Nuts, small"\n8,Bolt,Y,"[""Tools"", ""Bolts""]"\n')
    new = read_new_items(path)
    assert new.ids.tolist() == ["7", "8"]
    assert new.titles == ("Nut, M6", "Bolt")
    assert new.categories == (("Tools", "Nuts, small"), ("Tools", "Bolts"))
    assert new.texts()[1] == "Bolt. Tools Bolts"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"id": "1", "title": "x"}\n{"id": ', "line 2 is not JSON"),
        ("a.jsonl", '{"title": "x"}\n', "line 1 has no id"),
        (
            "a.jsonl",
            '{"id": "1", "title": "x"}\n\n{"id": 1, "title": "y"}\n',
            "line 3: item '1' stands in line 1 already",
        ),
        ("a.jsonl", '{"id": "1"}\n', "neither title nor description"),
        ("a.jsonl", "[1]\n", "expected an object"),
        ("a.jsonl", "\n", "at least one item, got none"),
        ("a.csv", "item,title\n1,x\n", "no column 'id'"),
        ("a.csv", "id,title\n1,x,y\n", "line 2 has not as many fields"),
        ("a.csv", "id,title,description\n1,x\n", "line 2 has not as many fields"),
        ("a.txt", "1", "ends in .jsonl or .csv"),
        ("a.jsonl", b'{"id": "1", "title": "\xff"}', "not UTF-8"),
    ],
)
def test_damaged_files_of_items_are_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as caught:
        read_new_items(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_export_and_import(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = SidTable.load(run / "sid")
    for name, extra in (("i.json", []), ("i.csv", []), ("i.parquet", []), ("o.json", ["--format", "openonerec"])):
        command(export_options, export_command, run, tmp_path / name, *extra)
        out = tmp_path / f"{name}.sid"
        command(import_options, import_command, tmp_path / name, out, "--codes", *table.sizes)
        back = SidTable.load(out)
        assert back.item_ids.tolist() == table.item_ids.tolist()
        assert np.array_equal(back.codes, table.codes)
        assert back.metadata["collisions"]["colliding_items"] == 0
    assert "40 items, 8 x 8 codes, 0 items in collision" in capsys.readouterr().out
    with pytest.raises(ValueError, match="exists already"):
        command(import_options, import_command, tmp_path / "i.csv", tmp_path)
    with pytest.raises(FileNotFoundError, match="no saved data set"):
        command(import_options, import_command, tmp_path / "i.csv", tmp_path / "x", "--data", tmp_path)
    with pytest.raises(ValueError, match="is a folder"):
        command(export_options, export_command, run, tmp_path)


def test_import_of_a_saved_table_keeps_what_it_says_of_its_collisions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "extra_level")
    before = SidTable.load(run / "sid")
    assert before.metadata["collisions"]["colliding_items"] > 0
    command(import_options, import_command, run / "sid", tmp_path / "same")
    after = SidTable.load(tmp_path / "same")
    assert after.content_hash() == before.content_hash()
    assert after.metadata["collisions"] == before.metadata["collisions"]
    command(import_options, import_command, run / "sid", tmp_path / "asked", "--collisions", "forbid")
    assert SidTable.load(tmp_path / "asked").metadata["collisions"]["policy"] == "forbid"
