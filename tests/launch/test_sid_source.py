"""What the tools for SIDs are given: another catalogue, damaged data and a bare index are told, not passed over."""

import json
import shutil

import numpy as np
import pytest

from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import DataSet, load_dataset
from sidgym.envs.records import Catalogue, Interactions
from sidgym.envs.splits import save_splits, split
from sidgym.launch.cli import main
from sidgym.launch.sid_source import load_source
from sidgym.sid.table import SidTable


def printed(capsys, *arguments):
    main(["sid", "inspect", *map(str, arguments)])
    return capsys.readouterr().out


def refused(capsys, *arguments):
    """The one line that the command ends with."""
    with pytest.raises(SystemExit) as stop:
        main(["sid", "inspect", *map(str, arguments)])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_catalogue_of_mostly_other_items_is_refused(tmp_path, capsys):
    """Row numbers as ids: those of a small catalogue stand in a large one, whatever they name there."""
    codes = np.arange(100)[:, None]
    SidTable(codes, (100,), np.arange(100).astype(str), {}).save(tmp_path / "large")

    def data(items):
        titles = ("",) * items
        catalogue = Catalogue(np.arange(items).astype(str), titles, titles, ((),) * items)
        ones = np.zeros(items, np.int64)
        DataSet("other", catalogue, Interactions(ones, np.arange(items), np.arange(items))).save(tmp_path / "data")
        return tmp_path / "data"

    line = refused(capsys, tmp_path / "large", "--data", data(49))
    assert "another catalogue: 51 of the table's 100 items are not in it, for example '49'" in line
    assert "Row numbers as ids fit any catalogue" in load_source(tmp_path / "large", data(50)).warnings[0]
    (only,) = load_source(tmp_path / "large", data(120)).warnings
    assert only.startswith("20 of 120 items of")
    assert "Row numbers" in only
    out = printed(capsys, tmp_path / "large", "--data", tmp_path / "data", "--json", tmp_path / "f.json")
    assert f"! {only}" in out
    assert json.loads((tmp_path / "f.json").read_text())["warnings"] == [only]


@pytest.fixture(scope="module")
def split_run(tmp_path_factory):
    """A run whose data was split."""
    folder, config = tmp_path_factory.mktemp("split") / "run", DataConfig(users=60, items=40)
    dataset = load_dataset(config, 0)
    dataset.save(folder / "data")
    save_splits(split(dataset, config, 0), folder / "data")
    SidTable(np.arange(40)[:, None], (40,), dataset.catalogue.ids, {}).save(folder / "sid")
    return folder


@pytest.mark.parametrize("content", [b"", b"{", b"PAR1 cut", b"PK\x03\x04cut", b"[]"])
@pytest.mark.parametrize(
    "name", ["dataset.json", "catalogue.parquet", "interactions.parquet", "splits.json", "splits.npz"]
)
def test_damaged_data_is_one_line(split_run, name, content, tmp_path, capsys):
    run = shutil.copytree(split_run, tmp_path / "run")
    (run / "data" / name).write_bytes(content)
    line = refused(capsys, run)
    assert f"{run / 'data'} cannot be read (" in line
    assert line.endswith("build it again: sidgym data CONFIG")


def test_data_of_an_older_version_is_one_line(split_run, tmp_path, capsys):
    run = shutil.copytree(split_run, tmp_path / "run")
    printed(capsys, run)
    manifest = json.loads((run / "data" / "splits.json").read_text())
    del manifest["train_before"]
    (run / "data" / "splits.json").write_text(json.dumps(manifest))
    assert "cannot be read (KeyError: 'train_before'); build it again" in refused(capsys, run)
    (run / "data" / "interactions.parquet").unlink()
    assert "cannot be read (FileNotFoundError: " in refused(capsys, run)


def test_sizes_that_an_index_does_not_say(tmp_path, capsys):
    (tmp_path / "i.index.json").write_text('{"0": ["<a_3>", "<b_7>"], "1": ["<a_0>", "<b_2>"]}')
    out = printed(capsys, tmp_path / "i.index.json", "--format", "index_json")
    assert "2 items on 2 levels of at least 4 × 8 codes; imported index, tokeniser unknown, collisions: unknown" in out
    assert "An index does not say how many codes a level has" in out
    main(["sid", "import", str(tmp_path / "i.index.json"), str(tmp_path / "table"), "--codes", "9"])
    capsys.readouterr()
    out = printed(capsys, tmp_path / "table")
    assert "2 levels of 9 × 9 codes" in out
    assert "An index does not say" not in out
    SidTable(np.array([[0]]), (1,), np.array(["x"]), {"tokenizer": "rq_kmeans"}).save(tmp_path / "made")
    assert "1 item on 1 level of 1 codes; tokeniser rq_kmeans" in printed(capsys, tmp_path / "made")
    assert "i.index.json" in refused(capsys, tmp_path / "i.index.json", "--format", "csv")
