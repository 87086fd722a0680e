"""Codes from category paths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.sid.category import CategoryCodes

PATHS = [
    ("Shop", "Tools", "Saws"),
    ("Shop", "Glass"),
    ("Shop", "Tools", "Drills"),
    ("Shop", "Tools", "Saws"),
    ("Shop", "Glass", "Beakers"),
    ("Shop", "Tools", "Saws"),
]


def test_names_in_order_then_numbers() -> None:
    tokenizer = CategoryCodes(3, 8, seed=0).fit(PATHS)
    assert tokenizer.sizes == (8, 8, 8)
    # Glass 0, Tools 1; under Tools: Drills 0, Saws 1; under Glass: none 0, Beakers 1; "Shop" tells nothing apart.
    assert tokenizer.encode(PATHS).tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 1, 0], [1, 1, 2]]
    told = tokenizer.describe(PATHS)
    assert (told["categories"], told["skipped"], told["largest_category"]) == (4, ["Shop"], 3)
    assert told["codes_used"] == [2, 2, 3]


def test_fewer_and_more_levels_than_names() -> None:
    assert CategoryCodes(1, 8, 0).fit(PATHS).encode(PATHS)[:, 0].tolist() == [1, 0, 1, 1, 0, 1]
    assert CategoryCodes(2, 8, 0).fit(PATHS).encode(PATHS).tolist() == [[1, 0], [0, 0], [1, 1], [1, 2], [0, 1], [1, 3]]
    assert (CategoryCodes(5, 8, 0).fit(PATHS).encode(PATHS)[:, 2:4] == 0).all()
    assert CategoryCodes(2, 8, 0).fit([("Shop",)] * 3).encode([("Shop",)] * 3).tolist() == [[0, 0], [0, 1], [0, 2]]


def test_an_item_without_a_category_does_not_bring_the_root_back() -> None:
    tokenizer = CategoryCodes(3, 8, seed=0).fit([*PATHS, ()])
    assert tokenizer.skipped == ("Shop",)
    codes = tokenizer.encode([*PATHS, ()])
    assert np.array_equal(np.unique(codes[:-1, 0], return_inverse=True)[1], [1, 0, 1, 1, 0, 1])
    assert codes[-1, 0] not in codes[:-1, 0]
    assert tokenizer.describe([*PATHS, ()])["without_category"] == 1


def test_new_items_and_new_names() -> None:
    tokenizer = CategoryCodes(3, 8, 0).fit(PATHS)
    new = [("Shop", "Tools", "Saws"), ("Shop", "Tools", "Files"), ("Shop", "Ropes"), ("Elsewhere",)]
    codes = tokenizer.encode(new)
    assert codes[:2, 0].tolist() == [1, 1]
    assert codes[0].tolist() == [1, 1, 0]
    assert np.array_equal(codes[1:2], tokenizer.encode(new[1:2]))
    assert tokenizer.distances([*new, ()]).tolist() == [0, 0.5, 1, 1, 1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=3), min_size=1, max_size=30), st.integers(2, 4))
def test_same_category_is_same_prefix(paths: list[list[str]], levels: int) -> None:
    if not any(paths):
        with pytest.raises(ValueError, match="no item has a category"):
            CategoryCodes(levels, 64, 0).fit(paths)
        return
    tokenizer = CategoryCodes(levels, 64, 0).fit(paths)
    codes = tokenizer.encode(paths)
    assert len(np.unique(codes, axis=0)) == len(paths)
    skip = len(tokenizer.skipped)
    cut = [tuple(path[skip : skip + levels - 1]) for path in paths]
    for one in range(len(paths)):
        for two in range(one):
            assert (cut[one] == cut[two]) == (codes[one, :-1].tolist() == codes[two, :-1].tolist())


def test_codes_wrap_round() -> None:
    paths = [(f"{number:02}", "x") for number in range(10)] * 3
    codes = CategoryCodes(2, 4, 0).fit(paths).encode(paths)
    assert codes.max() == 3
    assert codes[:10, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="call fit or load"):
        CategoryCodes(2, 4, 0).encode(PATHS)
    with pytest.raises(ValueError, match="at least one item"):
        CategoryCodes(2, 4, 0).fit([])
    with pytest.raises(ValueError, match="path of names for each item, got 'Shop' for row 0"):
        CategoryCodes(2, 4, 0).fit(["Shop"])
    with pytest.raises(ValueError, match="for row 1"):
        CategoryCodes(2, 4, 0).fit([("Shop",), (float("nan"),)])  # type: ignore[list-item]
