"""Control: codes from the catalogue's own categories, without embeddings.

Level 0 is the first name of an item's category path, level 1 the second, and so on for all levels but the last; the
last level numbers the items that share these, 0, 1, 2 ... by row. What a policy reaches with them is what the shop's
own tree is worth as a SID. Left out: names deeper than L - 1 levels, which only the last level's numbers tell apart.

Symbols: N items, L levels, K codes on a level.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from sidgym.sid.collisions import number_in_group
from sidgym.sid.residual import Progress, check_levels, code_usage
from sidgym.sid.tokenizer_files import damaged, read_tokenizer, write_tokenizer

Categories = Sequence[Sequence[str]]
"""N paths, from the root of the category tree."""


class CategoryCodes:
    """Codes from category paths.

    Names that the path of every item with a category begins with are passed over. A name's code is its place, in
    alphabetical order, among the names under the same parent; a path that ends early goes on with the empty name. With
    one level the code is the category's and there are no numbers. Codes wrap round at K (code modulo K), and a name
    that ``fit`` has not seen gets a code by its hash, so different names may share a code: that is the collision
    policy's to settle, as are new items, which are numbered from 0 as well. The seed changes nothing.
    """

    name = "category"
    reads = "categories"

    def __init__(self, levels: int, codes: int, seed: int) -> None:
        check_levels("CategoryCodes", levels, codes, seed)
        self.sizes = (codes,) * levels
        self.levels, self.codes, self.seed = levels, codes, seed
        self.depth = max(1, levels - 1)
        self.skipped: tuple[str, ...] = ()
        self.places: dict[tuple[str, ...], int] = {}

    def fit(self, x: Categories, on_progress: Progress | None = None) -> Self:
        """Learn the names from N category paths. ``ValueError`` for no items, and where no item has a category."""
        paths = check_paths(x)
        if not any(paths):
            raise ValueError("CategoryCodes: no item has a category; use a tokeniser that reads embeddings")
        self.skipped = common_start(paths)
        children: dict[tuple[str, ...], set[str]] = {}
        for path in set(map(self._path, paths)):
            for depth, name in enumerate(path):
                children.setdefault(path[:depth], set()).add(name)
        self.places = {
            (*parent, name): place for parent, names in children.items() for place, name in enumerate(sorted(names))
        }
        return self

    def encode(self, x: Categories) -> np.ndarray:
        """Codes (N, L) int64 of N category paths. ``ValueError`` before ``fit`` and for no items."""
        self._require_fitted()
        unique: dict[tuple[str, ...], int] = {}
        group = np.array([unique.setdefault(self._path(path), len(unique)) for path in check_paths(x)], np.int64)
        rows = np.array([[self._code(path[: depth + 1]) for depth in range(self.depth)] for path in unique], np.int64)
        codes = rows[group]
        if self.levels == 1:
            return codes
        return np.column_stack([codes, number_in_group(group) % self.codes])

    def distances(self, x: Categories) -> np.ndarray:
        """Share of each path's levels that ``fit`` has not seen, (N,) float64: 0 for a known path, 1 for a new root."""
        self._require_fitted()
        known = [sum(path[: depth + 1] in self.places for depth in range(self.depth)) for path in map(self._path, x)]
        return 1.0 - np.array(known, np.float64) / self.depth

    def describe(self, x: Categories) -> dict[str, Any]:
        """``categories`` (different paths, cut to the levels), ``skipped`` names, ``without_category`` (items), the
        ``largest_category`` (items), ``codes_used`` and ``perplexity`` by level."""
        paths = check_paths(x)
        found: dict[tuple[str, ...], int] = {}
        for path in map(self._path, paths):
            found[path] = found.get(path, 0) + 1
        used, perplexity = code_usage(self.encode(x), self.sizes)
        return {
            "categories": len(found),
            "skipped": list(self.skipped),
            "without_category": sum(not path for path in paths),
            "largest_category": max(found.values()),
            "codes_used": used,
            "perplexity": perplexity,
        }

    def save(self, directory: str | Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer.safetensors`` (the codes of the names, in the order of the JSON)."""
        self._require_fitted()
        header = {
            "levels": self.levels,
            "codes": self.codes,
            "seed": self.seed,
            "skipped": list(self.skipped),
            "names": [list(path) for path in self.places],
        }
        write_tokenizer(directory, type(self), header, {"places": np.array(list(self.places.values()), np.int64)})

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read what ``save`` wrote; ``ValueError`` for another schema version or class, and for damaged files."""
        header, arrays = read_tokenizer(directory, cls)
        with damaged(directory):
            tokenizer = cls(header["levels"], header["codes"], header["seed"])
            if not isinstance(header["skipped"], list):
                raise TypeError(f"skipped: expected a list of names, got {header['skipped']!r}")
            tokenizer.skipped, *names = check_paths([header["skipped"], *header["names"]])
            if max(map(len, names), default=0) != tokenizer.depth:
                raise ValueError(f"expected paths of up to {tokenizer.depth} names for {tokenizer.levels} levels")
            if arrays["places"].dtype != np.int64 or (arrays["places"] < 0).any():
                raise ValueError("expected a code from 0 on for each name")
            tokenizer.places = dict(zip(names, arrays["places"].tolist(), strict=True))
        return tokenizer

    def _path(self, path: Sequence[str]) -> tuple[str, ...]:
        """The names that levels are made of, ``depth`` of them."""
        names = tuple(path)
        if names[: len(self.skipped)] == self.skipped:
            names = names[len(self.skipped) :]
        return (*names, *[""] * self.depth)[: self.depth]

    def _code(self, path: tuple[str, ...]) -> int:
        """The code of the last name of a path."""
        place = self.places.get(path)
        return (zlib.crc32(json.dumps(path).encode()) if place is None else place) % self.codes

    def _require_fitted(self) -> None:
        if not self.places:
            raise ValueError("CategoryCodes knows no categories yet; call fit or load first")


def check_paths(x: Categories) -> list[tuple[str, ...]]:
    """N category paths as tuples; ``ValueError`` for none at all, and for a path that is no sequence of names."""
    if len(x) == 0:
        raise ValueError("categories: expected at least one item, got none")
    for row, path in enumerate(x):
        if isinstance(path, str) or not all(isinstance(name, str) for name in path):
            raise ValueError(f"categories: expected a path of names for each item, got {path!r} for row {row}")
    return [tuple(path) for path in x]


def common_start(paths: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The names that all paths begin with, where more names follow in some; items without a category do not count."""
    paths = [path for path in paths if path]
    first, last = min(paths), max(paths)
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    # With nothing behind it the shared path is all that there is.
    return first[:shared] if max(map(len, paths)) > shared else ()
