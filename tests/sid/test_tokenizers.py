"""Contract of every tokeniser, and the steps from items to a table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidgym.sid.config import SidConfig
from sidgym.sid.residual import ResidualQuantizer
from sidgym.sid.rq_kmeans_plus import RQKMeansPlus
from sidgym.sid.rq_vae import RQVAE, VaeSettings
from sidgym.sid.table import SidTable
from sidgym.sid.tokenizers import TOKENIZERS, RandomCodes, build_table, load_tokenizer

ITEMS = 120
IDS = [f"item-{number}" for number in range(ITEMS)]
QUICK = VaeSettings(latent=4, hidden=(16,), steps=40, batch=64, revive_every=10)
NAMES = sorted(TOKENIZERS)
LEARNERS = sorted(set(NAMES) - {"random", "category"})


def embeddings() -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(ITEMS, 5)).astype(np.float32)
    x[1] = x[0]  # equal items collide under every tokeniser that is a function of the embedding
    return x


def categories() -> list[tuple[str, ...]]:
    return [("Shop", f"aisle {row % 3}", f"shelf {row % 7}")[: 1 + row % 5] for row in range(ITEMS)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks small enough for a test."""
    for kind in (RQVAE, RQKMeansPlus):
        monkeypatch.setattr(kind, "defaults", QUICK)


def items_for(name: str) -> Any:
    return categories() if name == "category" else embeddings()


@pytest.mark.filterwarnings("ignore::sidgym.sid.rq_vae.CollapseWarning")
@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str) -> None:
    x = items_for(name)
    told: list[tuple[int, int, str]] = []
    tokenizer = TOKENIZERS[name](3, 4, 11)
    assert tokenizer.fit(x, lambda *report: told.append(report)) is tokenizer
    codes = tokenizer.encode(x)
    assert codes.shape == (ITEMS, 3)
    assert codes.dtype == np.int64
    assert len(tokenizer.sizes) == 3
    assert max(tokenizer.sizes) <= 4
    assert ((codes >= 0) & (codes < np.array(tokenizer.sizes))).all()
    assert len(np.unique(codes, axis=0)) > 1
    assert np.array_equal(codes, tokenizer.encode(x))
    assert np.array_equal(codes, TOKENIZERS[name](3, 4, 11).fit(x).encode(x))
    other = TOKENIZERS[name](3, 4, 12).fit(x).encode(x)
    assert np.array_equal(codes, other) == (name == "category")  # which has nothing random
    distances = tokenizer.distances(x)
    assert distances.shape == (ITEMS,)
    assert (np.isfinite(distances) & (distances >= 0)).all()
    json.dumps(tokenizer.describe(x), allow_nan=False)
    assert all(0 <= done <= total and text for done, total, text in told)
    assert bool(told) == (name in LEARNERS)


@pytest.mark.filterwarnings("ignore::sidgym.sid.rq_vae.CollapseWarning")
@pytest.mark.parametrize("name", NAMES)
def test_loaded_is_equal_to_the_bit_and_codes_new_items(name: str, tmp_path: Path) -> None:
    x = items_for(name)
    tokenizer = TOKENIZERS[name](3, 4, 11).fit(x[:90])
    tokenizer.save(tmp_path / "one")
    loaded = load_tokenizer(tmp_path / "one")
    assert type(loaded) is type(tokenizer)
    for rows in (slice(90), slice(90, None), slice(None)):
        part = x[rows]
        assert np.array_equal(loaded.encode(part), tokenizer.encode(part))
        assert loaded.distances(part).tobytes() == tokenizer.distances(part).tobytes()
    assert loaded.sizes == tokenizer.sizes
    assert loaded.describe(x) == tokenizer.describe(x)
    loaded.save(tmp_path / "two")
    for file in ("tokenizer.json", "tokenizer.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.filterwarnings("ignore::sidgym.sid.rq_vae.CollapseWarning")
@pytest.mark.parametrize("name", LEARNERS)
def test_what_an_item_gets_does_not_hang_on_the_others(name: str) -> None:
    x = embeddings()[2:]
    tokenizer = TOKENIZERS[name](3, 4, 11).fit(x[:90])
    codes = tokenizer.encode(x)
    order = np.random.default_rng(1).permutation(len(x))
    assert np.array_equal(tokenizer.encode(x[order]), codes[order])
    assert np.array_equal(tokenizer.encode(x[95:97]), codes[95:97])


@pytest.mark.filterwarnings("ignore::sidgym.sid.rq_vae.CollapseWarning")
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"category"}))
def test_nan_and_other_shapes_are_refused(name: str) -> None:
    x = embeddings()
    broken = x.copy()
    broken[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"1 rows are not finite, first \[7\]"):
        TOKENIZERS[name](2, 4, 0).fit(broken)
    with pytest.raises(ValueError, match="at least one row"):
        TOKENIZERS[name](2, 4, 0).fit(x[:0])
    fitted = TOKENIZERS[name](2, 4, 0).fit(x)
    for call in (fitted.encode, fitted.distances, fitted.describe):
        if (name, call) == ("random", fitted.describe):
            continue  # says nothing, whatever it is given
        with pytest.raises(ValueError, match=r"1 rows are not finite, first \[7\]"):
            call(broken)
        with pytest.raises(ValueError, match=r"expected shape \(N, 5\)"):
            call(x[:, :3])


@pytest.mark.parametrize("name", NAMES)
def test_wrong_use_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 level"):
        TOKENIZERS[name](0, 4, 0)
    with pytest.raises(ValueError, match="at least 1 level and 1 code"):
        TOKENIZERS[name](1, 0, 0)
    for wrong in ((2.0, 4, 0), (2, 4.5, 0), (2, 4, None), (True, 4, 0)):
        with pytest.raises(ValueError, match="and integers, got levels="):
            TOKENIZERS[name](*wrong)  # type: ignore[arg-type]
    fresh = TOKENIZERS[name](2, 4, 0)
    with pytest.raises(ValueError, match="call fit or load first"):
        fresh.save(tmp_path)
    with pytest.raises(ValueError, match="call fit or load first"):
        fresh.distances(items_for(name))


@pytest.mark.filterwarnings("ignore::sidgym.sid.rq_vae.CollapseWarning")
@pytest.mark.parametrize("name", LEARNERS)
def test_fewer_items_than_codes(name: str) -> None:
    x = np.repeat(np.array([[1, 0, 0], [0, 1, 0], [3, 3, 0]], np.float32), 4, axis=0)
    tokenizer = TOKENIZERS[name](2, 8, 0).fit(x)
    assert tokenizer.sizes[0] <= 3
    assert tokenizer.describe(x)["reduced_levels"]["0"] == tokenizer.sizes[0]
    assert len(np.unique(tokenizer.encode(x), axis=0)) <= 3
    one = TOKENIZERS[name](2, 8, 0).fit(x[:1])
    assert one.sizes == (1, 1)
    assert one.encode(x).tolist() == [[0, 0]] * 12


@pytest.mark.filterwarnings("ignore::sidgym.sid.rq_vae.CollapseWarning")
@pytest.mark.parametrize("name", NAMES)
def test_item_to_codes_to_item(name: str, tmp_path: Path) -> None:
    config = SidConfig(tokenizer=name, levels=2, codes=4, collisions="extra_level")
    table = build_table(embeddings(), IDS, config, 1, categories(), save_to=tmp_path / "tokenizer")
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
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert np.array_equal(loaded.encode(items_for(name)), table.codes[:, :2])


def test_rq_kmeans_tells_its_distortion() -> None:
    table = build_table(embeddings(), IDS, SidConfig(levels=2, codes=8, collisions="keep"), seed=1)
    finer = build_table(embeddings(), IDS, SidConfig(levels=2, codes=32, collisions="keep"), seed=1)
    assert 0 < finer.metadata["distortion_share"] < table.metadata["distortion_share"] < 1
    assert table.codes[0].tolist() == table.codes[1].tolist()


def test_reassign_weighs_codes_by_the_codebooks() -> None:
    config = SidConfig(levels=2, codes=16, collisions="reassign")
    table = build_table(embeddings(), IDS, config, seed=1)
    report = table.metadata["collisions"]
    assert table.collision_count() == 0
    assert table.sizes == (16, 16)
    # Before, each item had its nearest code, so the report must begin at the tokeniser's own distortion.
    assert report["distortion_before"] == pytest.approx(table.metadata["distortion"], rel=1e-5)
    assert report["distortion_after"] > report["distortion_before"]


def test_random_codes_depend_on_the_row_alone() -> None:
    x = embeddings()
    tokenizer = RandomCodes(3, 7, 0)
    assert np.array_equal(tokenizer.encode(x)[:50], tokenizer.encode(-x[:50]))
    assert set(tokenizer.encode(x).ravel().tolist()) == set(range(7))
    assert tokenizer.fit(x[:2]).distances(x[:1]) == pytest.approx(0, abs=1e-6)  # the mean of two equal rows


def test_a_saved_table_without_collisions_stays_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, ids = rng.standard_normal((40, 4)).astype(np.float32), [f"i{row}" for row in range(40)]
    first = build_table(x, ids, SidConfig(levels=2, codes=4), seed=0)
    assert len(first.sizes) == 3, "collisions gave it one more level"
    first.save(tmp_path / "sid")
    again = build_table(None, ids, SidConfig(index=str(tmp_path / "sid")), seed=1)
    assert again.content_hash() == first.content_hash()
    assert again.metadata["collisions"] == first.metadata["collisions"]
    shared = build_table(x, ids, SidConfig(levels=2, codes=4, collisions="keep"), seed=0)
    shared.save(tmp_path / "kept")
    assert build_table(None, ids, SidConfig(index=str(tmp_path / "kept")), seed=0).collision_count() == 0


@pytest.mark.parametrize("policy", ["extra_level", "reassign", "keep", "forbid"])
def test_a_plain_index_without_collisions_stays_as_it_is(tmp_path: Path, policy: str) -> None:
    (tmp_path / "toy.index.json").write_text('{"0": ["<a_1>", "<b_0>"], "1": ["<a_1>", "<b_1>"]}')
    config = SidConfig(index=str(tmp_path / "toy.index.json"), collisions=policy)
    table = build_table(None, ["0", "1"], config, seed=0)
    assert table.sizes == (2, 2), "no level of one code"
    assert table.codes.tolist() == [[1, 0], [1, 1]]
    report = table.metadata["collisions"]
    assert report["colliding_items"] == report["colliding_items_after"] == 0
    # No level counts collisions, so new items must not be placed as if the last one did.
    assert report["policy"] == ("forbid" if policy == "extra_level" else policy)
    assert (report.get("asked"), "no level was added" in report.get("note", "")) == (
        ("extra_level", True) if policy == "extra_level" else (None, False)
    )
    assert table.extend(["new"], np.array([[0, 1]])).codes[2].tolist() == [0, 1]


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
    with pytest.raises(ValueError, match="one path of categories for each of 120 items, got none"):
        build_table(embeddings(), IDS, SidConfig(tokenizer="category"), seed=0)
    with pytest.raises(ValueError, match="unknown tokenizer"):
        build_table(embeddings(), IDS, SidConfig(tokenizer="rqkmean"), seed=0)
    with pytest.raises(ValueError, match="collisions are forbidden"):
        build_table(embeddings(), IDS, SidConfig(levels=1, codes=2, collisions="forbid"), seed=0)


class Sign:
    """A tokeniser as a user may bring it along: no progress, no costs; one number to save."""

    def __init__(self, levels: int, codes: int, seed: int) -> None:
        self.sizes, self.middle = (2,), 0.0

    def fit(self, x: np.ndarray) -> "Sign":
        self.middle = float(np.median(x[:, 0]))
        return self

    def encode(self, x: np.ndarray) -> np.ndarray:
        return (x[:, :1] > self.middle).astype(np.int64)

    def describe(self, x: np.ndarray) -> dict[str, Any]:
        return {"middle": self.middle}


class SavedSign(Sign):
    """The same with files of its own."""

    def save(self, directory: str | Path) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / "middle.txt").write_text(repr(self.middle))

    @classmethod
    def load(cls, directory: str | Path) -> "SavedSign":
        loaded = cls(1, 2, 0)
        loaded.middle = float((Path(directory) / "middle.txt").read_text())
        return loaded


def test_tokenizers_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for kind in ("Sign", "SavedSign"):
        config = SidConfig(tokenizer=f"{__name__}:{kind}", collisions="keep")
        table = build_table(embeddings(), IDS, config, 0, on_progress=print, save_to=tmp_path / kind)
        assert table.sizes == (2,)
        assert "middle" in table.metadata
    assert not (tmp_path / "Sign").exists()
    loaded = load_tokenizer(tmp_path / "SavedSign")
    assert np.array_equal(loaded.encode(embeddings()), table.codes)


@pytest.mark.filterwarnings("ignore::sidgym.sid.rq_vae.CollapseWarning")
@pytest.mark.parametrize("name", LEARNERS)
def test_items_are_quantised_once_and_in_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = embeddings()
    tokenizer = TOKENIZERS[name](3, 4, 11).fit(x)
    assert isinstance(tokenizer, ResidualQuantizer)
    codes, distances, told = tokenizer.encode(x), tokenizer.distances(x), tokenizer.describe(x)
    rows: list[int] = []
    choose = tokenizer.choose

    def counting(residual: np.ndarray, level: int) -> np.ndarray:
        rows.append(len(residual))
        return choose(residual, level)

    monkeypatch.setattr(tokenizer, "choose", counting)
    monkeypatch.setattr("sidgym.sid.residual.ENCODE_ROWS", 50)
    again = tokenizer.describe(x)
    assert rows == [50] * 3 + [50] * 3 + [20] * 3
    for key, value in told.items():
        assert again[key] == pytest.approx(value, rel=1e-5), key
    assert np.array_equal(tokenizer.encode(x), codes)
    assert tokenizer.distances(x) == pytest.approx(distances, rel=1e-4, abs=1e-6)


@pytest.mark.filterwarnings("ignore::sidgym.sid.rq_vae.CollapseWarning")
@pytest.mark.parametrize("name", ["rq_vae", "rq_kmeans_plus"])
def test_weights_that_are_not_finite_give_no_codes(name: str) -> None:
    x = embeddings()
    tokenizer: Any = TOKENIZERS[name](2, 4, 0).fit(x)
    with torch.no_grad():
        next(tokenizer.networks["encoder"].parameters()).view(-1)[0] = float("nan")
    for call in (tokenizer.encode, tokenizer.distances, tokenizer.describe):
        with pytest.raises(ValueError, match="what is quantised are not finite"):
            call(x)
