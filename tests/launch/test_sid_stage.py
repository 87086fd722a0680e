"""The stage that gives items their SIDs: embedders, alignment, and what of the data they may read."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import DataSet
from sidgym.envs.splits import load_splits
from sidgym.launch.builders import build_data, build_sid, rl_task
from sidgym.launch.pipeline import check_names, make_plan
from sidgym.launch.schema import RunConfig
from sidgym.sid.alignment import ALIGNMENTS, I2IContrastive
from sidgym.sid.config import SidConfig
from sidgym.sid.embed import load_embedder, tfidf_svd
from sidgym.sid.table import SidTable

BASE = SidConfig(levels=2, codes=8, embedding_dim=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished data stage: 150 shoppers, 60 items."""
    folder = tmp_path_factory.mktemp("data")
    build_data(RunConfig(name="tiny", data=DataConfig(users=150, items=60)), folder, None, "data")
    return folder


@pytest.fixture
def config(data: Path, tmp_path: Path) -> RunConfig:
    """A run whose data stage is built."""
    run = RunConfig(name="tiny", out=str(tmp_path), data=DataConfig(users=150, items=60), sid=BASE)
    shutil.copytree(data, run.directory / "data")
    return run


def built(config: RunConfig, **settings: Any) -> Path:
    """The finished stage of ``config`` with other SID settings."""
    config = replace(config, sid=replace(BASE, **settings))
    work = config.directory / "sid"
    work.mkdir()
    build_sid(config, work, None, "sid")
    return work


def without_texts(config: RunConfig) -> int:
    """Takes the catalogue's texts away; the number of items."""
    dataset = DataSet.load(config.directory / "data")
    count = len(dataset.catalogue)
    blank = replace(dataset.catalogue, titles=("",) * count, descriptions=("",) * count, categories=((),) * count)
    replace(dataset, catalogue=blank).save(config.directory / "data")
    return count


def test_embeddings_are_those_of_the_texts_and_new_ones_can_be_made(config: RunConfig) -> None:
    work = built(config)
    texts = DataSet.load(config.directory / "data").catalogue.texts()
    embeddings = np.load(work / "embeddings.npy")
    assert np.array_equal(embeddings, tfidf_svd(texts, 16, config.seed))
    embedder = load_embedder(work / "embedder")
    assert np.array_equal(embedder.embed(texts), embeddings)
    assert np.isfinite(embedder.embed([texts[0] + " of another colour"])).all()
    assert not (work / "text_embeddings.npy").exists()
    assert SidTable.load(work).num_items == len(texts)


def test_what_is_quantised_is_aligned_and_what_rewards_compare_is_not(config: RunConfig) -> None:
    work = built(config, alignment="i2i_contrastive")
    texts = DataSet.load(config.directory / "data").catalogue.texts()
    plain, aligned = np.load(work / "text_embeddings.npy"), np.load(work / "embeddings.npy")
    assert np.array_equal(plain, tfidf_svd(texts, 16, config.seed))
    assert not np.allclose(plain, aligned)
    assert np.array_equal(load_embedder(work / "embedder").embed(texts), aligned)
    assert rl_task(config, config.rl, 0).embeddings == str((work / "text_embeddings.npy").resolve())


def test_alignment_reads_what_sft_reads(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    class Watching(I2IContrastive):
        def fit(self, x: np.ndarray, user: np.ndarray, item: np.ndarray) -> I2IContrastive:
            seen.append((user, item))
            return super().fit(x, user, item)

    monkeypatch.setitem(ALIGNMENTS, "i2i_contrastive", Watching)
    built(config, alignment="i2i_contrastive")
    splits = load_splits(config.directory / "data")
    ((user, item),) = seen
    assert np.array_equal(item, splits.sft.items)
    assert np.array_equal(np.unique(user), splits.sft.user[np.diff(splits.sft.offsets) > 0])
    for part in (splits.rl, splits.valid, splits.test):
        assert not np.isin(part.user, user).any()


def test_a_file_of_embeddings_needs_no_texts(config: RunConfig, tmp_path: Path) -> None:
    count = without_texts(config)
    rows = np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    work = built(config, embedder="file", encoder=str(tmp_path / "rows.npy"))
    assert np.array_equal(np.load(work / "embeddings.npy"), rows)


class Noting:
    """An embedder that notes what it was given."""

    takes = ("source", "cache", "on_progress")
    given: ClassVar[dict[str, Any]] = {}

    def __init__(self, dim: int, seed: int, **extras: Any) -> None:
        self.given.update(extras, dim=dim)

    def fit(self, texts: Sequence[str]) -> "Noting":
        return self

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.arange(4 * len(texts), dtype=np.float32).reshape(len(texts), 4)

    def save(self, directory: Path) -> None:
        pass


def test_the_cache_outlives_the_stage(config: RunConfig) -> None:
    work = built(config, embedder=f"{__name__}:Noting", encoder="weights")
    assert np.load(work / "embeddings.npy").shape == (60, 4)
    assert Noting.given == {"source": "weights", "cache": Path(config.out) / "embedding_cache", "on_progress": None,
                            "dim": 16}  # fmt: skip


def test_without_texts_there_is_nothing_to_embed(config: RunConfig) -> None:
    without_texts(config)
    with pytest.raises(ValueError, match=r"no item texts.*sid\.embedder = 'file'"):
        built(config)


def test_another_file_is_another_stage(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, np.zeros((60, 3), np.float32))
    own = replace(config, sid=replace(BASE, embedder="file", encoder=str(path)))
    first = make_plan(own).stages["sid"].hash
    assert make_plan(own).stages["sid"].hash == first
    np.save(path, np.ones((60, 3), np.float32))
    assert make_plan(own).stages["sid"].hash != first
    aligned = replace(config, sid=replace(BASE, alignment="i2i_contrastive"))
    assert make_plan(aligned).stages["sid"].hash != make_plan(config).stages["sid"].hash


def test_names_and_places_are_checked_before_anything_runs(config: RunConfig, tmp_path: Path) -> None:
    def checked(**settings: Any) -> None:
        check_names(replace(config, sid=replace(BASE, **settings)))

    with pytest.raises(ValueError, match=r"unknown alignment 'i2i'; known: i2i_contrastive"):
        checked(alignment="i2i")
    with pytest.raises(ValueError, match=r"needs sid\.encoder"):
        checked(embedder="encoder")
    with pytest.raises(ValueError, match="is not a folder"):
        checked(embedder="encoder", encoder=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="is not a file"):
        checked(embedder="file", encoder=str(tmp_path / "nowhere.npy"))
