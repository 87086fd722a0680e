"""What ``sidgym doctor`` finds in a run's data: files cut off, items that are not the table's, equal histories."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.splits import load_splits, save_splits, split
from sidgym.launch.doctor_contexts import check_data, count_equal_histories, count_shared
from sidgym.sid.table import SidTable

ITEMS = 40


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A data folder in order."""
    folder, config = tmp_path_factory.mktemp("contexts") / "data", DataConfig(users=60, items=ITEMS)
    dataset = load_dataset(config, 0)
    dataset.save(folder)
    save_splits(split(dataset, config, 0), folder)
    return folder


@pytest.fixture
def data(whole, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(whole, tmp_path / "data")


def found(folder, level):
    ids = np.array([f"i{row:04d}" for row in range(ITEMS)])
    table = SidTable(np.arange(ITEMS)[:, None], (ITEMS,), ids)
    return [f"{one.check}: {one.what}" for one in check_data(folder, table) if one.level == level]


def test_data_in_order(whole, tmp_path):
    assert found(whole, "error") == found(whole, "warning") == []
    assert found(whole, "ok")[0] == "data: the table has the catalogue's 40 items in its order"
    assert found(tmp_path / "nothing", "ok") == []


@pytest.mark.parametrize("item", [ITEMS, -2])
@pytest.mark.parametrize("part", ["sft", "valid"])
def test_contexts_of_items_that_do_not_exist(data, part, item):
    splits = load_splits(data)
    held = getattr(splits, part)
    (held.items if part == "sft" else held.history).flat[-1] = item
    save_splits(splits, data)
    assert [text for text in found(data, "error") if text.startswith(f"contexts: {part} has items from ")]


@pytest.mark.parametrize("name", ["dataset.json", "interactions.parquet", "catalogue.parquet"])
@pytest.mark.parametrize("content", [b"", b"{", b"PAR1cut", None])
def test_data_that_cannot_be_read(data, name, content):
    path = data / name
    path.unlink() if content is None else path.write_bytes(content)
    (text,) = found(data, "error")
    assert text.startswith(f"data: {data} cannot be read (")


def test_equal_histories_are_counted():
    history = np.array([[1, 2], [1, 2], [-1, 2], [-1, 2], [3, 4], [-1, -1], [-1, -1]])
    target = np.array([7, 8, 9, 9, 1, 2, 3])
    assert count_equal_histories(history, target) == (4, 2)
    assert count_equal_histories(history[5:], target[5:]) == (0, 0)
    other = np.array([[-1, 1, 2], [-1, 1, 2], [-1, -1, 2], [5, 3, 4], [-1, -1, -1]])
    assert count_shared(history, target, other, np.array([8, 9, 9, 1, 2])) == 2


def test_contexts_with_one_history_are_remarked_on(data):
    splits = load_splits(data)
    rl = replace(splits.rl, history=np.zeros_like(splits.rl.history))
    test = replace(
        splits.test, history=np.zeros_like(splits.test.history), targets=np.tile(rl.targets[:1], (len(splits.test), 1))
    )
    save_splits(replace(splits, rl=rl, test=test), data)
    said = found(data, "warning")
    assert any(f"{len(rl):,} of {len(rl):,} rl contexts share their history" in text for text in said)
    assert any("test contexts have history and target" in text for text in said)
    for content in (b"", b"PK\x03\x04cut", b"text"):
        (data / "splits.npz").write_bytes(content)
        assert [text for text in found(data, "error") if text.startswith("contexts: ")]
