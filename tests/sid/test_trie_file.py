"""A trie on disk: mapped is the same as in memory, shared by processes, sent by name, and damage is named."""

import copy
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sidgym.sid.trie import Trie

CODES = np.random.default_rng(0).integers(0, 30, (3000, 3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Trie.from_codes(CODES, (30, 30, 30)).save(tmp_path / "deep" / "catalogue.trie")
    return tmp_path / "deep" / "catalogue.trie"


def test_mapped_is_as_in_memory(path: Path) -> None:
    built = Trie.from_codes(CODES, (30, 30, 30))
    for verify in (True, False):
        trie = Trie.open(path, verify)
        assert trie.content_hash() == built.content_hash()
        del trie.__dict__["_hash"]
        assert trie.content_hash() == built.content_hash()  # of the arrays, not of the header
        rows = torch.from_numpy(CODES)
        assert torch.equal(trie.path(rows), built.path(rows))
        assert torch.equal(trie.items_of(trie.leaf_of(rows)), built.items_of(built.leaf_of(rows)))
        some = np.arange(0, 3000, 7)
        assert trie.restrict(some).content_hash() == built.restrict(some).content_hash()
        more = np.array([[1, 2, 3], [29, 29, 29]])
        assert trie.add(more).content_hash() == built.add(more).content_hash()
        assert trie.remove(some).content_hash() == built.remove(some).content_hash()
    assert [entry.name for entry in path.parent.iterdir()] == ["catalogue.trie"]


def test_arrays_of_any_kind_come_back(tmp_path: Path) -> None:
    """No shared leaf, so an array without an entry; a single level; codes of several bytes."""
    for codes, sizes in (([[0, 1], [1, 0]], (2, 2)), ([[0], [0]], (1,)), ([[70_000, 3], [5, 300]], (70_001, 301))):
        built = Trie.from_codes(np.array(codes), sizes)
        built.save(tmp_path / "some.trie")
        trie = Trie.open(tmp_path / "some.trie")
        del trie.__dict__["_hash"]
        assert trie.content_hash() == built.content_hash()
        assert trie.stored_bytes == built.stored_bytes
        assert trie.edge_code.dtype == built.edge_code.dtype


def test_writing_to_a_mapped_array_leaves_the_file_alone(path: Path) -> None:
    content = path.read_bytes()
    trie = Trie.open(path)
    was = int(trie.item_at[0])
    trie.item_at[0] = was + 1
    assert Trie.open(path).item_at[0] == was
    assert path.read_bytes() == content


CHILD = """
import json, sys
import torch
from sidgym.sid.trie import Trie

trie = Trie.open(sys.argv[1])
total = trie.items_of(torch.arange(trie.num_leaves)).sum().item()
del trie.__dict__["_hash"]
print(json.dumps({"sum": total, "hash": trie.content_hash()}), flush=True)
sys.stdin.readline()
print(open("/proc/self/smaps").read())
"""


def pages_of(path: Path, smaps: str) -> dict[str, int]:
    """The kernel's account, in kB, of the one mapping of a file."""
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", smaps, flags=re.MULTILINE)
    (own,) = [part for part in mappings if str(path) in part]
    return {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", own, flags=re.MULTILINE)}


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux accounts for mapped pages there")
def test_two_processes_share_the_pages_of_the_file(tmp_path: Path) -> None:
    codes = np.random.default_rng(1).integers(0, 60, (100_000, 3))
    path = tmp_path / "catalogue.trie"
    built = Trie.from_codes(codes, (60, 60, 60))
    built.save(path)
    size = path.stat().st_size / 1024
    mine = Trie.open(path)
    total = int(mine.items_of(torch.arange(mine.num_leaves)).sum())
    root = Path(sys.modules["sidgym"].__file__ or "").resolve().parents[1]
    command = [sys.executable, "-c", CHILD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert json.loads(child.stdout.readline()) == {"sum": total, "hash": built.content_hash()}
        ours = pages_of(path, Path("/proc/self/smaps").read_text())  # while both hold the file
        child.stdin.close()
        theirs = pages_of(path, child.stdout.read())
    for pages in (ours, theirs):
        assert pages["Rss"] > 0.9 * size
        assert pages["Private_Dirty"] == pages["Anonymous"] == 0
    assert ours["Pss"] < 0.6 * size  # the proportional share of pages that two hold


def test_damage_is_named(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    bad = tmp_path / "bad.trie"

    def opened(content: bytes, verify: bool = True) -> str:
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.trie: ") as error:
            Trie.open(bad, verify)
        return str(error.value)

    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        text = opened(whole[:length], verify=False)
        assert "cut off" in text or "expected a safetensors file" in text
    assert "cut off or damaged" in opened(whole + b"x", verify=False)
    for place in (len(whole) - 3, len(whole) // 2):
        changed = bytearray(whole)
        changed[place] ^= 1
        assert "damaged: its content" in opened(bytes(changed))
    assert "damaged" in opened(whole.replace(b"most_items", b"mist_items"), verify=False)
    count = b'num_items\\": 3000'
    assert count in whole
    assert "damaged: its content" in opened(whole.replace(count, count.replace(b"3000", b"2999")))
    assert "expected a safetensors file" in opened(b"\xff" * 100)
    assert "schema_version 1, got 2" in opened(whole.replace(b'schema_version\\": 1', b'schema_version\\": 2'))
    with pytest.raises(FileNotFoundError):
        Trie.open(tmp_path / "nowhere.trie")


def test_no_change_of_a_byte_goes_by(path: Path, tmp_path: Path) -> None:
    """Each is named or, in what nothing reads (the shapes, the blanks), changes nothing."""
    whole, expected = path.read_bytes(), Trie.open(path).content_hash()
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    bad, refused, harmless = tmp_path / "bad.trie", 0, 0
    for place in [*range(8), *rng.integers(8, header, 150), *rng.integers(header, len(whole), 10)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        bad.write_bytes(changed)
        try:
            trie = Trie.open(bad)
        except ValueError as error:
            refused += str(bad) in str(error)
            continue
        del trie.__dict__["_hash"]
        assert trie.content_hash() == expected
        harmless += 1
    assert refused + harmless == 168
    assert refused > 120


def test_another_safetensors_file_is_no_trie(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"codes": np.zeros(3, np.int64)}, tmp_path / "codes.safetensors")
    with pytest.raises(ValueError, match="not a trie"):
        Trie.open(tmp_path / "codes.safetensors")


def test_a_restricted_trie_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not restricted"):
        Trie.from_codes(CODES, (30, 30, 30)).restrict(np.arange(3)).save(tmp_path / "part.trie")
    assert not list(tmp_path.iterdir())


def test_an_open_trie_is_sent_as_the_name_of_its_file(path: Path) -> None:
    trie = Trie.open(path)
    arrays = len(pickle.dumps(Trie.from_codes(CODES, (30, 30, 30))))
    assert len(pickle.dumps(trie)) < 1000 < arrays
    for part, most in ((trie, 1000), (trie.restrict(np.arange(0, 3000, 3)), arrays / 2)):
        sent = pickle.dumps(part)
        assert len(sent) < most
        for twin in (pickle.loads(sent), copy.deepcopy(part)):
            assert twin._source.path == path.resolve()
            twin.__dict__.pop("_hash", None)
            assert twin.content_hash() == part.content_hash()
            assert len(pickle.dumps(twin)) < most  # and can be sent on
    assert len(pickle.dumps(trie.add(CODES[:1]))) > arrays / 2  # another trie than the file's


def test_what_was_moved_or_replaced_is_sent_with_its_arrays(path: Path) -> None:
    trie, expected = Trie.open(path), Trie.open(path).content_hash()
    Trie.from_codes(CODES[:100], (30, 30, 30)).save(path)
    twin = pickle.loads(pickle.dumps(trie))
    assert "_hash" not in twin.__dict__  # so it is that of the arrays
    assert twin.content_hash() == expected != Trie.open(path).content_hash()
    path.unlink()
    assert copy.deepcopy(trie).content_hash() == expected


def test_a_sent_trie_whose_file_is_gone_or_another_by_then_is_refused(path: Path) -> None:
    sent = pickle.dumps(Trie.open(path))
    Trie.from_codes(CODES[:100], (30, 30, 30)).save(path)
    with pytest.raises(ValueError, match="another trie took its place"):
        pickle.loads(sent)
    path.unlink()
    with pytest.raises(ValueError, match="under the same path"):
        pickle.loads(sent)
