"""MovieLens in both layouts on small files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import load_dataset

RATINGS = [(1, 10, 5, 300), (1, 2, 3, 100), (2, 10, 4, 50), (1, 7, 1, 100), (2, 9, 4, 60)]
FILMS = [(2, "Café: A :: Story (1995)", "Comedy|Drama"), (7, "Seven, The", "(no genres listed)"), (10, "Ten", "War")]


def old(folder: Path, encoding: str = "latin-1", **more: Any) -> DataConfig:
    (folder / "ratings.dat").write_text("\n".join("::".join(map(str, row)) for row in RATINGS))
    (folder / "movies.dat").write_bytes("\n".join("::".join(map(str, row)) for row in FILMS).encode(encoding))
    return DataConfig(**({"name": "movielens", "path": str(folder), "min_events": 0} | more))


def new(folder: Path, **more: Any) -> DataConfig:
    rows = "\n".join(",".join(map(str, row)) for row in RATINGS)
    (folder / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{rows}\n")
    films = "\n".join(f'{name},"{title}",{genres}' for name, title, genres in FILMS)
    (folder / "movies.csv").write_text(f"movieId,title,genres\n{films}\n", encoding="utf-8")
    return DataConfig(**({"name": "movielens", "path": str(folder), "min_events": 0} | more))


@pytest.mark.parametrize("write", [old, new])
def test_both_layouts_yield_one_log(tmp_path: Path, write: Any) -> None:
    data = load_dataset(write(tmp_path), seed=0)
    log, films = data.interactions, data.catalogue
    assert films.ids.tolist() == ["2", "7", "9", "10"]
    assert films.ids[log.item].tolist() == ["2", "7", "10", "10", "9"]  # equal times stay in the order of the file
    assert log.user.tolist() == [0, 0, 0, 1, 1]
    assert log.time is not None
    assert log.time.tolist() == [100.0, 100.0, 300.0, 50.0, 60.0]
    assert films.titles == ("Café: A :: Story (1995)", "Seven, The", "", "Ten")
    assert films.categories == (("Comedy", "Drama"), (), (), ("War",))
    assert any(note.startswith("1 of 4 films are not in movies") for note in data.notes)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_the_encoding_of_titles_is_told_by_the_file(tmp_path: Path, encoding: str) -> None:
    data = load_dataset(old(tmp_path, encoding), seed=0)
    assert data.catalogue.titles[0] == "Café: A :: Story (1995)"
    how = "UTF-8" if encoding == "utf-8" else "Latin-1 in 1 lines that are not UTF-8"
    assert f"movies.dat: read as {how}" in data.notes


def test_ratings_titles_and_k_core_filter(tmp_path: Path) -> None:
    config = new(tmp_path, min_rating=3)
    data = load_dataset(config, seed=0)
    assert data.catalogue.ids.tolist() == ["2", "9", "10"]
    assert "rating at least 3: 5 -> 4 events" in data.notes
    data = load_dataset(replace(config, title_words=2), seed=0)  # film 9 has no title, film 2 a long one
    assert data.catalogue.ids.tolist() == ["10"]
    data = load_dataset(replace(config, max_events=1), seed=0)
    assert data.catalogue.ids[data.interactions.item].tolist() == ["10", "9"]


def test_malformed_ratings_are_counted_and_shown(tmp_path: Path) -> None:
    config = old(tmp_path, max_malformed=0.5)
    with (tmp_path / "ratings.dat").open("a") as file:
        file.write("\n3::10::five::60\n3::10::5")
    data = load_dataset(config, seed=0)
    assert len(data.interactions) == 5
    shown = [
        "ratings.dat line 6: no number in 'rating': 3::10::five::60",
        "ratings.dat line 7: 3 fields instead of 4: 3::10::5",
    ]
    assert "ratings.dat: 7 rows, 2 malformed and left out, such as " + "; ".join(shown) in data.notes
    with pytest.raises(ValueError, match=r"data\.max_malformed = 0\.1 allows"):
        load_dataset(replace(config, max_malformed=0.1), seed=0)


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    config = DataConfig(name="movielens", path=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no ratings\.dat or ratings\.csv"):
        load_dataset(config, seed=0)
    (tmp_path / "ratings.csv").write_text("user,movieId,rating\n1,2,3\n")
    with pytest.raises(FileNotFoundError, match=r"no movies\.csv"):
        load_dataset(config, seed=0)
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,a,b\n")
    with pytest.raises(ValueError, match="no column userId, timestamp; the columns present are user, movieId, rating"):
        load_dataset(config, seed=0)
    old(tmp_path)
    with pytest.raises(ValueError, match=r"found ratings\.csv and ratings\.dat; keep one"):
        load_dataset(config, seed=0)


def test_many_ratings_split_across_blocks_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sidgym.envs import raw_files

    rng = np.random.default_rng(0)
    rows = [(int(u), int(i), 4, int(t)) for u, i, t in zip(rng.integers(9, size=400), rng.integers(5, size=400),
                                                           rng.permutation(400))]  # fmt: skip
    monkeypatch.setattr("test_loaders_movielens.RATINGS", rows)
    config = old(tmp_path, min_events=5)
    whole = load_dataset(config, seed=0)
    monkeypatch.setattr(raw_files.blocks, "__defaults__", (64,))
    parts = load_dataset(config, seed=0)
    assert len(whole.interactions) == 400
    for name in ("user", "item", "time", "order"):
        np.testing.assert_array_equal(getattr(parts.interactions, name), getattr(whole.interactions, name))
