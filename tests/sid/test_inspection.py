"""Figures on codes: values known by hand, and everything that is averaged against counting pair by pair."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidgym.sid.inspection import (
    branching_figures,
    category_agreement,
    category_labels,
    collision_figures,
    engagement_agreement,
    gini,
    inspect_codes,
    level_figures,
    perplexity,
    popularity_figures,
    prefix_numbers,
    reconstruction_figures,
)
from sidgym.sid.rq_kmeans import RQKMeans

CODES = np.array([[0, 0], [0, 0], [0, 1], [2, 3], [2, 0]])
SIZES = (3, 4)


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("codes", [1, 2, 8, 256])
def test_equal_counts_have_perplexity_k_and_gini_zero(codes, count):
    counts = np.full(codes, count)
    assert perplexity(counts) == pytest.approx(codes)
    assert gini(counts) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("codes", [2, 8, 256])
def test_one_code_for_everything(codes):
    counts = np.zeros(codes, int)
    counts[1] = 9
    assert perplexity(counts) == pytest.approx(1.0)
    assert gini(counts) == pytest.approx((codes - 1) / codes)


def test_counts_by_hand():
    assert gini(np.array([3, 1])) == pytest.approx(0.25)  # mean absolute difference 1, over twice the mean 2
    assert perplexity(np.array([2, 1, 1])) == pytest.approx(2**1.5)  # entropy of 1.5 bits


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any))
def test_gini_is_half_the_relative_mean_difference(values):
    counts = np.array(values, float)
    difference = np.abs(counts[:, None] - counts[None]).mean()
    assert gini(counts) == pytest.approx(difference / (2 * counts.mean()), abs=1e-12)


def test_levels_by_hand():
    first, second = level_figures(CODES, SIZES)
    assert first == {
        "level": "a",
        "codes": 3,
        "used": 2,
        "largest": 3,
        "perplexity": pytest.approx(np.exp(-0.6 * np.log(0.6) - 0.4 * np.log(0.4))),
        "gini": pytest.approx((-2 * 0 + 0 * 2 + 2 * 3) / 15),  # counts 0, 2, 3
    }
    assert (second["level"], second["used"], second["largest"]) == ("b", 3, 3)


def test_collisions_name_their_items():
    found = collision_figures(CODES, SIZES)
    assert found == {
        "items": 5,
        "distinct_sids": 4,
        "colliding_items": 2,
        "colliding_sids": 1,
        "largest_leaf": 2,
        "groups": [[0, 1]],
    }
    three = np.array([[1], [0], [1], [0], [1], [2]])
    assert collision_figures(three, (3,))["groups"] == [[0, 2, 4], [1, 3]]
    assert collision_figures(three, (3,), show=1)["groups"] == [[0, 2, 4]]
    assert collision_figures(np.arange(4)[:, None], (4,))["groups"] == []


def test_branching_by_hand():
    root, first = branching_figures(prefix_numbers(CODES, SIZES))
    assert root == {"depth": 0, "nodes": 1, "mean": 2.0, "median": 2.0, "largest": 2, "single_share": 0.0,
                    "largest_subtree": 5}  # fmt: skip
    assert (first["nodes"], first["mean"], first["largest_subtree"]) == (2, 2.0, 3)
    chain = branching_figures(prefix_numbers(np.array([[0, 0], [1, 0]]), (2, 1)))
    assert [row["single_share"] for row in chain] == [0.0, 1.0]


@st.composite
def tables(draw):
    """Codes of a few items on up to three small levels."""
    sizes = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    row = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    return np.array(draw(st.lists(row, min_size=1, max_size=12))), sizes


@given(tables())
def test_prefix_numbers_are_the_prefixes(table):
    codes, sizes = table
    for depth, row in enumerate(prefix_numbers(codes, sizes), start=1):
        prefixes = [tuple(code[:depth]) for code in codes.tolist()]
        assert row.tolist() == [sorted(set(prefixes)).index(prefix) for prefix in prefixes]


def mean_or_none(values):
    return pytest.approx(sum(values) / len(values)) if values else None


@given(tables(), st.data())
def test_category_agreement_counts_pairs(table, data):
    codes, sizes = table
    label = np.array([data.draw(st.integers(-1, 2)) for _ in codes])
    figures = category_agreement(prefix_numbers(codes, sizes), label)
    known = [i for i in range(len(codes)) if label[i] >= 0]
    assert len(figures) == len(sizes)
    for depth, row in enumerate(figures, start=1):
        shares, chances = [], []
        for i in known:
            near = [j for j in known if j != i and (codes[i, :depth] == codes[j, :depth]).all()]
            if near:
                shares.append(sum(label[i] == label[j] for j in near) / len(near))
                chances.append(sum(label[i] == label[j] for j in known if j != i) / (len(known) - 1))
        assert row["items"] == len(shares)
        assert row["share"] == mean_or_none(shares)
        assert row["chance"] == mean_or_none(chances)


@given(tables(), st.data())
def test_engagement_agreement_counts_events(table, data):
    codes, sizes = table
    log = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, len(codes) - 1)), min_size=1, max_size=25))
    user, item = np.array(log).T
    figures = engagement_agreement(prefix_numbers(codes, sizes), 7 * user, item)
    events = sorted(set(log))
    for depth, row in enumerate(figures, start=1):
        shares, chances = [], []
        for u, i in events:
            own = [j for v, j in events if v == u and j != i]
            theirs = [j for v, j in events if v != u and j != i]
            if own and theirs:
                same = (codes[:, :depth] == codes[i, :depth]).all(axis=1)
                shares.append(np.mean([same[j] for j in own]))
                chances.append(np.mean([same[j] for j in theirs]))
        assert row["events"] == len(shares)
        assert row["share"] == mean_or_none(shares)
        assert row["chance"] == mean_or_none(chances)


def test_agreement_of_codes_that_say_it_all_and_of_codes_that_say_nothing():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 8, 4000)
    telling, silent = label[:, None], rng.integers(0, 8, (4000, 1))
    user = np.repeat(np.arange(500), 8)
    item = rng.permutation(4000)
    item = item[np.argsort(label[item], kind="stable")]  # every user stays within a category or two
    for codes, low, high in ((telling, 7.0, 9.0), (silent, 0.9, 1.1)):
        numbers = prefix_numbers(codes, (8,))
        assert low < category_agreement(numbers, label)[0]["lift"] < high
        assert low - 0.1 < engagement_agreement(numbers, user, item)[0]["lift"] < high
    assert category_agreement(prefix_numbers(telling, (8,)), label)[0]["share"] == 1.0


def test_popularity_by_hand():
    found = popularity_figures(CODES, SIZES, prefix_numbers(CODES, SIZES), np.array([1, 1, 0, 6, 0]))
    assert found["events"] == 8
    assert found["by_depth"][0] == {"depth": 1, "gini": 0.25, "largest_items": 0.4, "largest_events": 0.75}
    assert found["top"] == [
        {"code": 2, "items": 2, "events": 6, "items_share": 0.4, "events_share": 0.75},
        {"code": 0, "items": 3, "events": 2, "items_share": 0.6, "events_share": 0.25},
    ]


class ByHand:
    """A tokeniser with the codebooks 0, 10 and 0, 1 on the line."""

    sizes = (2, 2)
    books = (np.array([0.0, 10.0]), np.array([0.0, 1.0]))

    def costs(self, x, codes, level):
        left = x[:, 0] - sum((self.books[k][codes[:, k]] for k in range(level)), np.zeros(len(x)))
        return (left[:, None] - self.books[level]) ** 2


def test_reconstruction_by_hand_and_with_the_codes_that_items_have():
    x = np.array([[11.0], [2.0]])
    figures = reconstruction_figures(ByHand(), x, np.array([[1, 1, 0], [0, 1, 0]]))  # the third level was added
    assert figures == [{"level": "a", "error": 2.5, "share": 0.04}, {"level": "b", "error": 0.5, "share": 0.008}]
    moved = reconstruction_figures(ByHand(), x, np.array([[1, 0], [0, 1]]))
    assert moved is not None
    assert [row["error"] for row in moved] == [2.5, 1.0]
    assert reconstruction_figures(object(), x, np.zeros((2, 2), int)) is None
    assert reconstruction_figures(ByHand(), x, np.array([[1, 1], [0, 2]])) is None
    with pytest.raises(ValueError, match="finite"):
        reconstruction_figures(ByHand(), np.array([[np.nan], [0.0]]), np.zeros((2, 2), int))


def test_reconstruction_of_rq_kmeans_is_its_distortion():
    x = np.random.default_rng(1).normal(size=(300, 4)).astype(np.float32)
    quantiser = RQKMeans(3, 8, 0).fit(x)
    figures = reconstruction_figures(quantiser, x, quantiser.encode(x))
    assert figures is not None
    assert figures[-1]["error"] == pytest.approx(quantiser.distortion(x), rel=1e-4)
    assert np.all(np.diff([row["error"] for row in figures]) < 0)


def test_categories_start_where_they_tell_items_apart():
    paths = [("shop", "pens", "red"), ("shop", "pens", "blue"), (), ("shop", "ink")]
    labels = category_labels(paths)
    assert {name: label.tolist() for name, label in labels.items()} == {"broad": [0, 0, -1, 1], "fine": [0, 1, -1, 2]}
    assert list(category_labels([("a",), ("b",)])) == ["broad"]
    assert category_labels([("a",), ("a",)]) == {}
    assert category_labels([(), ()]) == {}


def test_inspection_of_a_whole_table():
    whole = inspect_codes(
        CODES, SIZES, {"broad": np.array([0, 0, 0, 1, 1])}, (np.array([0, 0, 1, 1]), np.array([0, 1, 3, 4])),
        (ByHand(), np.zeros((5, 1))),
    )  # fmt: skip
    assert whole["categories"]["broad"][0]["share"] == 1.0
    assert whole["together"][0]["share"] == 1.0
    assert whole["reconstruction"] is None  # the codes are not that tokeniser's
    bare = inspect_codes(CODES, SIZES)
    assert bare["levels"] == whole["levels"]
    assert (bare["together"], bare["popularity"], bare["categories"]) == (None, None, {})
    nobody = (np.empty(0, int), np.empty(0, int))
    assert inspect_codes(CODES, SIZES, events=nobody)["popularity"] is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": {"broad": np.zeros(4, int)}}, "one for each of 5 items"),
        ({"events": (np.array([0]), np.array([5]))}, r"items in \[0, 5\)"),
        ({"quantised": (ByHand(), np.zeros((4, 1)))}, "one for each of 5 items"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        inspect_codes(CODES, SIZES, **given)
