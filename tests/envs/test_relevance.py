"""Relevance by a learned classifier, and relevances by name: what they read, what they say, what they refuse."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_cases import TABLE

from sidgym.envs.gate import Gate
from sidgym.envs.records import PAD_ITEM, Sequences
from sidgym.envs.relevance import (
    Classifier,
    LearnedRelevance,
    Relevance,
    _logistic,
    examples_of,
    features,
    items_of,
    relevance_function,
)
from sidgym.envs.reward_context import RewardContext
from sidgym.sid.table import SidTable

KINDS, ITEMS = 6, 60
KIND = np.arange(ITEMS) % KINDS


def store(table: bool = True, embeddings: bool = True, seed: int = 0) -> RewardContext:
    """Items of six kinds, which texts and first codes tell apart."""
    rng = np.random.default_rng(seed)
    codes = np.stack([KIND, np.arange(ITEMS) // KINDS], axis=1)
    ids = np.array([f"i{n}" for n in range(ITEMS)])
    vectors = (np.eye(KINDS)[KIND] + rng.normal(0, 0.3, (ITEMS, KINDS))).astype(np.float32)
    return RewardContext(
        SidTable(codes, (KINDS, ITEMS // KINDS), ids) if table else None, vectors if embeddings else None
    )


def faithful(users: int = 80, length: int = 6, seed: int = 1) -> Sequences:
    """Users who stay with one kind."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, KINDS, users)
    items = np.concatenate([rng.permutation(np.flatnonzero(kind == KIND))[:length] for kind in kinds])
    rows = np.arange(users)
    return Sequences(user=rows, offsets=np.arange(users + 1) * length, items=items)


def fitted(context: RewardContext, **args: Any) -> Classifier:
    return Classifier.fit(faithful(), context, history=4, seed=0, **args)


def learned(context: RewardContext, classifier: Classifier) -> Relevance:
    gate = Gate("learned", {"learned": 0.5}, classifier)
    return relevance_function("learned", replace(context, gate=gate))


@pytest.mark.parametrize(("table", "embeddings"), [(True, True), (True, False), (False, True)])
def test_the_classifier_tells_items_of_the_users_kind_from_others(table: bool, embeddings: bool) -> None:
    context = store(table, embeddings)
    classifier = fitted(context)
    assert classifier.reads == (("embeddings",) if embeddings else ()) + (("table",) if table else ())
    past, taken = examples_of(faithful(seed=7), 4, 100, np.random.default_rng(0))
    every = np.broadcast_to(np.arange(ITEMS), (len(past), ITEMS))
    said = learned(context, classifier)(past, every)
    own = KIND[taken][:, None] == KIND[None]
    assert said[own].mean() > said[~own].mean() + 0.5
    assert said.dtype == np.float32
    assert ((said >= 0) & (said <= 1)).all()


def test_the_same_seed_gives_the_same_classifier_and_another_part_of_many_examples() -> None:
    context = store()
    assert fitted(context) == fitted(context)
    assert fitted(context, examples=50) != fitted(context)
    assert fitted(context, examples=50) == fitted(context, examples=50)
    read = fitted(context)
    assert Classifier.from_json(read.to_json()) == read


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 150))
def test_a_row_says_the_same_to_the_last_bit_whatever_stands_beside_it(seed: int, width: int, rows: int) -> None:
    context = store()
    relevance = learned(context, CLASSIFIER)
    rng = np.random.default_rng(seed)
    past, items = rng.integers(PAD_ITEM, ITEMS, (rows, 3)), rng.integers(0, ITEMS, (rows, width))
    whole = relevance(past, items)
    assert (whole[(past == PAD_ITEM).all(axis=1)] == 0).all(), "nothing is known of someone without a history"
    for row in rng.integers(0, rows, 3):
        one = relevance(past[row : row + 1], items[row : row + 1, ::-1])
        assert one[0, ::-1].tobytes() == whole[row].tobytes()


CLASSIFIER = fitted(store())


def test_features_by_hand() -> None:
    context = RewardContext(TABLE, np.eye(len(TABLE.codes), dtype=np.float32))
    past, items = np.array([[PAD_ITEM, 0, 3], [PAD_ITEM] * 3]), np.array([[2, 3], [2, 3]])
    # Items 0, 2 and 3 are 000, 002 and 010.
    told = features(context, ("embeddings", "table"), past, items)
    np.testing.assert_allclose(told[0, 0], [0, 0, 0, 2 / 3, 1 / 2, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(told[0, 1], [1, 1 / 2, 1, 1, 2 / 3, 1], atol=1e-6)
    assert not told[1].any()


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 12))
def test_examples_are_what_followed_in_the_same_sequence(seed: int, history: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 5, size=5)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.arange(offsets[-1])
    sequences = Sequences(user=np.arange(5), offsets=offsets, items=items)
    every = [
        (([PAD_ITEM] * history + items[a:place].tolist())[-history:], place)
        for a, b in itertools.pairwise(offsets)
        for place in range(a + 1, b)
    ]
    if not every:
        with pytest.raises(ValueError, match="no training user has an event that follows another one"):
            examples_of(sequences, history, most, rng)
        return
    past, taken = examples_of(sequences, history, most, rng)
    found = list(zip(past.tolist(), taken.tolist()))
    assert len(found) == min(most, len(every))
    assert len({place for _, place in found}) == len(found)
    assert all(example in every for example in found)


def test_the_regression_stands_where_the_penalised_loss_is_least() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(300, 3))
    labels = (values @ [1.0, -2.0, 0.0] + 0.5 + rng.logistic(size=300) > 0).astype(float)
    weight = rng.random(300) / 150

    def loss(found: np.ndarray) -> float:
        logit = found[0] + values @ found[1:]
        return float((weight * (np.logaddexp(0, logit) - labels * logit)).sum() + 0.5e-3 * (found[1:] ** 2).sum())

    best = _logistic(values, labels, weight)
    for step in np.eye(4).repeat(2, axis=0) * np.tile([1e-3, -1e-3], 4)[:, None]:
        assert loss(best + step) > loss(best)
    separable = _logistic(values, (values[:, 0] > 0).astype(float), weight)
    assert np.isfinite(separable).all()


def test_what_a_relevance_lacks_is_named() -> None:
    context = store()
    with pytest.raises(ValueError, match="this run has neither"):
        fitted(RewardContext())
    with pytest.raises(ValueError, match=r"needs RewardContext\.gate"):
        LearnedRelevance(context)
    with pytest.raises(ValueError, match="needs a fitted classifier; fit the preference again"):
        LearnedRelevance(replace(context, gate=Gate("text", {"text": 0.1})))
    with pytest.raises(ValueError, match=r"needs RewardContext\.embeddings"):
        learned(store(embeddings=False), CLASSIFIER)
    with pytest.raises(ValueError, match="unknown relevance 'texts'; known: learned, prefix, text"):
        relevance_function("texts", context)
    with pytest.raises(ValueError, match=r"must be callable as \(history, items\)"):
        relevance_function(lambda only: only, context)  # type: ignore[arg-type, misc, return-value]
    assert items_of(store(table=False)) == items_of(context) == ITEMS
