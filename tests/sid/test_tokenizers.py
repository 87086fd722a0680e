"""Contract of every tokeniser, and the steps from embeddings to a table."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sidgym.sid.config import SidConfig
from sidgym.sid.table import SidTable
from sidgym.sid.tokenizers import TOKENIZERS, RandomCodes, build_table

ITEMS = 120
IDS = [f"item-{number}" for number in range(ITEMS)]


def embeddings() -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(ITEMS, 5)).astype(np.float32)
    x[1] = x[0]  # equal items collide under every tokeniser that reads the embeddings
    return x


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_contract(name: str) -> None:
    x = embeddings()
    tokenizer = TOKENIZERS[name](3, 4, 11).fit(x)
    codes = tokenizer.encode(x)
    assert codes.shape == (ITEMS, 3)
    assert codes.dtype == np.int64
    assert len(tokenizer.sizes) == 3
    assert ((codes >= 0) & (codes < np.array(tokenizer.sizes))).all()
    assert len(np.unique(codes, axis=0)) > 1
    assert np.array_equal(codes, tokenizer.encode(x))
    assert np.array_equal(codes, TOKENIZERS[name](3, 4, 11).fit(x).encode(x))
    assert not np.array_equal(codes, TOKENIZERS[name](3, 4, 12).fit(x).encode(x))


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_item_to_codes_to_item(name: str, tmp_path: Path) -> None:
    config = SidConfig(tokenizer=name, levels=2, codes=4, collisions="extra_level")
    table = build_table(embeddings(), IDS, config, seed=1)
    table.save(tmp_path)
    table = SidTable.load(tmp_path)
    assert table.levels == 3
    assert table.collision_count() == 0
    # 120 items on 16 pairs of codes must collide before the extra level.
    assert table.metadata["collisions"]["colliding_items"] > 0
    assert table.metadata["tokenizer"] == name
    assert table.metadata["config"]["codes"] == 4
    items = table.trie.items_of(table.trie.leaf_of(torch.from_numpy(table.codes)))
    assert items.tolist() == [[item] for item in range(ITEMS)]


def test_rq_kmeans_tells_its_distortion() -> None:
    table = build_table(embeddings(), IDS, SidConfig(levels=2, codes=8, collisions="keep"), seed=1)
    finer = build_table(embeddings(), IDS, SidConfig(levels=2, codes=32, collisions="keep"), seed=1)
    assert 0 < finer.metadata["distortion_share"] < table.metadata["distortion_share"] < 1
    assert table.codes[0].tolist() == table.codes[1].tolist()


def test_random_codes_depend_on_the_row_alone() -> None:
    x = embeddings()
    tokenizer = RandomCodes(3, 7, 0)
    assert np.array_equal(tokenizer.encode(x)[:50], tokenizer.encode(-x[:50]))
    assert set(tokenizer.encode(x).ravel().tolist()) == set(range(7))


def test_ready_made_index_replaces_fitting(tmp_path: Path) -> None:
    (tmp_path / "toy.index.json").write_text('{"1": ["<a_2>"], "0": ["<a_1>"], "2": ["<a_2>"]}')
    config = SidConfig(index=str(tmp_path / "toy.index.json"), collisions="extra_level")
    table = build_table(None, ["0", "1", "2"], config, seed=0)
    assert table.codes.tolist() == [[1, 0], [2, 0], [2, 1]]
    assert table.sizes == (3, 2)
    assert table.metadata["tokenizer"] == "index"
    assert table.metadata["collisions"]["colliding_items"] == 2


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="one embedding for each of 120 items, got 119 rows"):
        build_table(embeddings()[1:], IDS, SidConfig(), seed=0)
    with pytest.raises(ValueError, match="got none"):
        build_table(None, IDS, SidConfig(), seed=0)
    with pytest.raises(ValueError, match="unknown tokenizer"):
        build_table(embeddings(), IDS, SidConfig(tokenizer="rqkmean"), seed=0)
    with pytest.raises(ValueError, match="collisions are forbidden"):
        build_table(embeddings(), IDS, SidConfig(levels=1, codes=2, collisions="forbid"), seed=0)
