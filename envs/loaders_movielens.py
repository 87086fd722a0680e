"""Reader of MovieLens: ``ratings.dat`` and ``movies.dat`` (1M, 10M), or ``ratings.csv`` and ``movies.csv`` (20M on).

Every rating is an event; ``min_rating`` leaves the low ones out. Users rate many films in one sitting, so equal times
are common; they stay in the order of the file. ``movies.dat`` is Latin-1 in 1M and UTF-8 in 10M, which each line tells.
Left out: tags, genomes and what is known of the users.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sidgym.envs.config import DataConfig
from sidgym.envs.filters import Ledger, keeps_title
from sidgym.envs.raw_columns import csv_blocks
from sidgym.envs.raw_files import Reading, blocks, csv_header, csv_items, find_files, total_size
from sidgym.envs.records import Catalogue, Interactions
from sidgym.envs.streaming import Events, keys_of_text, keys_of_titled, read_log

EXPECTED = "ratings.dat and movies.dat, or ratings.csv and movies.csv"
NAMES = ["userId", "movieId", "rating", "timestamp"]
LATIN = "latin-1"
Film = tuple[str, tuple[str, ...]]


def _events(path: Path, reading: Reading) -> Iterator[Events]:
    if path.suffix == ".dat":
        chunks = csv_blocks(path, NAMES, NAMES[:2], NAMES[2:], reading, delimiter="::", header=False)
    else:
        names = csv_header(path)
        missing = [name for name in NAMES if name not in names]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}; the columns present are {', '.join(names)}")
        chunks = csv_blocks(path, names, NAMES[:2], NAMES[2:], reading)
    for columns in chunks:
        who, user_keys, _ = keys_of_text(columns["userId"])
        code, items, films = keys_of_text(columns["movieId"])
        yield Events(user_keys[who], code, items, films, time=columns["timestamp"], rating=columns["rating"])


def _films(path: Path, reading: Reading) -> Iterator[tuple[str, str, str]]:
    """Id, title and genres of every film."""
    if path.suffix != ".dat":
        for _, row in csv_items(path, ["movieId", "title", "genres"], reading):
            yield row["movieId"], row["title"], row["genres"]
        return
    for first, block in blocks(path):
        for number, raw in enumerate(block.split(b"\n")[:-1], start=first):
            if not raw.strip():
                continue
            reading.rows += 1
            try:
                line = raw.decode("utf-8").strip()
            except UnicodeDecodeError:
                line = raw.decode("latin-1").strip()
                reading.counts[LATIN] += 1
            parts = line.split("::")
            if len(parts) < 3:
                reading.bad(f"{path.name} line {number}", f"{len(parts)} fields instead of 3", line)
                continue
            yield parts[0], "::".join(parts[1:-1]), parts[-1]


def _read_films(path: Path, config: DataConfig, ledger: Ledger) -> dict[str, Film]:
    reading = Reading()
    films = {name: (title.strip(), tuple(g for g in genres.strip().split("|") if g and g != "(no genres listed)"))
             for name, title, genres in _films(path, reading)}  # fmt: skip
    reading.check(path.name, config.max_malformed)
    ledger.note(reading.described(path.name))
    latin = reading.counts[LATIN]
    ledger.note(f"{path.name}: read as " + (f"Latin-1 in {latin} lines that are not UTF-8" if latin else "UTF-8"))
    return films


def read_movielens(folder: Path, config: DataConfig, ledger: Ledger) -> tuple[Catalogue, Interactions]:
    """Catalogue and filtered log; ``categories`` hold a film's genres in the order of the file.

    Raises ``FileNotFoundError`` or ``ValueError`` that names the file and what is wrong with it.
    """
    paths = find_files(folder, ("ratings.dat", "ratings.csv"), EXPECTED)
    if len(paths) > 1:
        raise ValueError(f"{folder}: found ratings.csv and ratings.dat; keep one of them")
    ratings = paths[0]
    films = _read_films(find_files(folder, (f"movies{ratings.suffix}",), EXPECTED)[0], config, ledger)
    allowed = None
    if config.title_words:
        allowed = keys_of_titled(n for n, (title, _) in films.items() if keeps_title(title, config.title_words))
    catalogue, log = read_log(
        lambda reading: _events(ratings, reading), ratings.name, total_size([ratings]), config, ledger, allowed
    )
    ids = catalogue.ids.tolist()
    known = [films.get(name, ("", ())) for name in ids]
    missing = sum(name not in films for name in ids)
    if missing:
        ledger.note(f"{missing} of {len(ids)} films are not in movies{ratings.suffix}; they have no title")
    ledger.note("genres are a set: categories hold them in the order of the file, not as a path of a tree")
    return replace(
        catalogue, titles=tuple(title for title, _ in known), categories=tuple(genres for _, genres in known)
    ), log
