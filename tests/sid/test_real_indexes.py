"""Published indexes as they are: all below the folder that SIDGYM_DATA names, skipped where it is not set."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sidgym.sid.config import SidConfig
from sidgym.sid.index_formats import read_index, write_index
from sidgym.sid.tokenizers import build_table

FOLDER = os.environ.get("SIDGYM_DATA", "")
FILES = sorted(Path(FOLDER).rglob("*.index.json")) if FOLDER else []

KNOWN = {
    "Beauty.letter_native": (12_101, 4, 130),
    "Beauty.rkmeans_native": (12_101, 4, 2_612),
    "Beauty.rkmeans_zcr": (12_101, 4, 0),
    "Beauty.rqvae_native": (12_101, 4, 1_031),
    "Industrial_and_Scientific": (3_686, 3, 31),
    "Scientific.letter_native": (4_344, 4, 54),
    "Scientific.rkmeans_native": (4_344, 4, 1_326),
    "Scientific.rkmeans_zcr": (4_344, 4, 0),
    "Scientific.rqvae_native": (4_344, 4, 887),
}
"""Items, levels, and items that share their SID, of files that are known by name."""


@pytest.fixture(params=FILES or [None], ids=lambda path: path.name if path else "none")
def index(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip("no *.index.json: set SIDGYM_DATA to a folder with published indexes")
    return request.param


def test_it_is_read_as_it_stands(index: Path, tmp_path: Path) -> None:
    raw = json.loads(index.read_text())
    shared = Counter(map(tuple, raw.values()))
    table = read_index(index)
    found = (table.num_items, table.levels, table.collision_count())
    levels = len(next(iter(raw.values())))
    assert found == (len(raw), levels, sum(count for count in shared.values() if count > 1))
    assert found == KNOWN.get(index.name.removesuffix(".index.json"), found)
    tokens = table.tokens()
    for name, codes in zip(table.item_ids.tolist(), table.codes.tolist()):
        assert [tokens[level][code] for level, code in enumerate(codes)] == raw[name]
    built = build_table(None, table.item_ids, SidConfig(index=str(index)), 0)
    assert built.collision_count() == 0
    assert built.levels == levels + (table.collision_count() > 0)
    for name in ("t.csv", "t.parquet", "t.json"):
        write_index(table, tmp_path / name)
        assert read_index(tmp_path / name, table.item_ids, table.sizes).content_hash() == table.content_hash()


def test_damaged_copies_are_refused(index: Path, tmp_path: Path) -> None:
    raw, whole = json.loads(index.read_text()), index.read_bytes()
    names = list(raw)
    place = int(np.random.default_rng(0).integers(1, len(names)))
    name = names[place]

    def changed(entry: object) -> bytes:
        return json.dumps({**raw, name: entry}).encode()

    damage = {
        "perhaps truncated": whole[: len(whole) // 2],
        f"1 items differ, first {name!r}": changed(raw[name][:-1]),
        f"item {name!r}: malformed token": changed([*raw[name][:-1], "<a_"]),
        f"item {name!r}: level letters must run": changed(raw[name][::-1]),
        f"item {name!r} has code 99999": changed(["<a_99999>", *raw[name][1:]]),
        f"item {name!r}: expected a list of tokens": changed(None),
        "stands there more than once": whole.rstrip()[:-1] + f', "{name}": {json.dumps(raw[name])}}}'.encode(),
        f"row {len(names) + 1} has no id": json.dumps({**raw, "": raw[name]}).encode(),
    }
    for message, content in damage.items():
        path = tmp_path / "copy.index.json"
        path.write_bytes(content)
        with pytest.raises(ValueError) as caught:
            read_index(path)
        assert message in str(caught.value)
    with pytest.raises(ValueError, match=r"1 of \d+ catalogue ids are not in the index"):
        read_index(index, [*names, "an item of another catalogue"])
    write_index(read_index(index), tmp_path / "t.parquet")
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "t.parquet").write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"t\.parquet"):
        read_index(tmp_path / "t.parquet")
