"""Search-based interest: what of a long history is found, what that costs, and what the network makes of it."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from preference_cases import EMBEDDINGS, ITEMS, SHELF, TABLE, shelf_data, shelf_log

from sidgym.envs.preference import PreferenceData, fit_preference
from sidgym.envs.preference.body import AGES, MatchUnit
from sidgym.envs.preference.search import CHUNK, choose_search, hard_search, prefix_groups, soft_search
from sidgym.envs.records import CLICK, PAD_ITEM, SHOWN, Interactions

LONG = 10_000


def by_hand(agree: np.ndarray, history: np.ndarray, found: int) -> tuple[list[int], list[int], int]:
    """Items and ages of the best agreement, the latest first among equals, and how many agree."""
    age = len(history) - 1 - np.arange(len(history))
    fits = [t for t in range(len(history)) if history[t] != PAD_ITEM and agree[t] > 0]
    best = sorted(fits, key=lambda t: (-agree[t], age[t]))[:found]
    return [int(history[t]) for t in best], [int(age[t]) for t in best], len(fits)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), found=st.integers(1, 5), chunk=st.integers(1, 9))
def test_hard_search_agrees_with_a_plain_loop_whatever_the_chunks(seed: int, found: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    groups = prefix_groups(rng.integers(0, 2, (12, 3)))
    groups[0] = -1  # an item of which nothing is known
    history = rng.integers(-1, 12, (3, rng.integers(0, 20)))
    items = rng.integers(0, 12, (3, 4))
    got, age, count = (
        part.numpy()
        for part in hard_search(
            torch.from_numpy(groups), torch.from_numpy(history), torch.from_numpy(items), found, chunk
        )
    )
    for row in range(3):
        for column in range(4):
            own = groups[items[row, column]]
            agree = ((groups[history[row]] == own) & (own >= 0)).sum(axis=1)
            wanted = by_hand(agree, history[row], found)
            real = got[row, column] != PAD_ITEM
            assert got[row, column][real].tolist() == wanted[0]
            assert age[row, column][real].tolist() == wanted[1]
            assert count[row, column] == wanted[2]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), found=st.integers(1, 5), chunk=st.integers(1, 9))
def test_soft_search_takes_the_nearest(seed: int, found: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (12, 3)).astype(np.float32) + 0.25
    history = rng.integers(-1, 12, (2, rng.integers(0, 20)))
    items = rng.integers(0, 12, (2, 3))
    tensors = (torch.from_numpy(value) for value in (vectors, history, items))
    got, _, count = (part.numpy() for part in soft_search(*tensors, found, chunk))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row in range(2):
        for column in range(3):
            agree = np.round((unit[history[row]] @ unit[items[row, column]]).astype(np.float64), 5)
            wanted = by_hand(agree, history[row], found)
            real = got[row, column] != PAD_ITEM
            theirs = np.round((unit[got[row, column][real]] @ unit[items[row, column]]).astype(np.float64), 5)
            np.testing.assert_allclose(theirs, np.sort(agree[(agree > 0) & (history[row] != PAD_ITEM)])[::-1][:found])
            assert count[row, column] == wanted[2]


def test_prefixes_are_equal_where_all_codes_so_far_are() -> None:
    codes = np.array([[0, 1], [0, 2], [1, 1], [0, 1]])
    groups = prefix_groups(codes)
    for level in (0, 1):
        same = (codes[:, None, : level + 1] == codes[None, :, : level + 1]).all(axis=2)
        np.testing.assert_array_equal(groups[:, None, level] == groups[None, :, level], same)


def test_auto_takes_the_first_search_that_the_data_allow() -> None:
    log = shelf_log(users=6)
    assert choose_search(shelf_data(log), "auto", "sim")[0] == "category"
    assert choose_search(shelf_data(log, categories=np.full(ITEMS, -1)), "auto", "sim")[0] == "prefix"
    assert choose_search(shelf_data(log, categories=None), "auto", "sim")[1].shape == (ITEMS, TABLE.codes.shape[1])
    assert choose_search(shelf_data(log, categories=None, table=None), "auto", "sim")[0] == "soft"
    with pytest.raises(ValueError, match=r"needs PreferenceData\.table"):
        choose_search(shelf_data(log, table=None), "prefix", "sim")
    with pytest.raises(ValueError, match="search must be one of auto, category, prefix, soft, none, got 'semantic'"):
        choose_search(shelf_data(log), "semantic", "sim")


def aged_log(users: int = 40) -> Interactions:
    """A user's taste shows in the first three clicks only; 30 clicks on items of no shelf follow, then two pages that
    tell: items of the loved shelf are clicked, others not."""
    rng = np.random.default_rng(0)
    rows: list[tuple[int, int, int, int]] = []
    for user in range(users):
        loved = np.flatnonzero(user % 4 == SHELF)
        rows += [(user, page, int(item), CLICK) for page, item in enumerate(rng.choice(loved, 3, replace=False))]
        rows += [(user, 3 + page, ITEMS + int(rng.integers(8)), CLICK) for page in range(30)]
        for page in (40, 41):
            items = rng.choice(ITEMS, 6, replace=False)
            rows += [(user, page, int(item), CLICK if item in loved else SHOWN) for item in items]
    user, page, item, feedback = np.array(rows).T
    order = np.arange(len(user))
    return Interactions(user, item, order, page=page, feedback=feedback.astype(np.int8))


@pytest.mark.parametrize("search", ["category", "soft"])
def test_a_search_finds_what_the_last_items_no_longer_show(search: str) -> None:
    shelves = np.concatenate([SHELF, np.full(8, 4)])
    log = aged_log()
    data = PreferenceData(log, np.unique(log.user), embeddings=np.eye(5)[shelves], categories=shelves)
    small: dict[str, Any] = {"recent": 8, "found": 4, "hidden": 16, "epochs": 12, "batch": 100, "valid_share": 0.2}
    searched, blind = (fit_preference("sim", data, 0, search=how, **small) for how in (search, "none"))
    # One history for each shelf: the taste lies 30 items back.
    history = np.array([[shelf, shelf + 4, shelf + 8, *[ITEMS] * 30] for shelf in range(4)])
    items = np.broadcast_to(np.arange(12, ITEMS), (4, 12))
    loved = np.arange(4)[:, None] == SHELF[items]
    scores = searched.score(history, items)
    assert scores[loved].min() > 2 * scores[~loved].max()
    assert blind.score(history, items)[loved].mean() < 1.5 * blind.score(history, items)[~loved].mean()


class Counted:
    """Counts what ``MatchUnit`` and the network are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.matched = 0
        real = MatchUnit.forward

        def forward(unit: MatchUnit, cosine: torch.Tensor, age: torch.Tensor, real_: torch.Tensor) -> torch.Tensor:
            self.matched += cosine.numel()
            return real(unit, cosine, age, real_)

        monkeypatch.setattr(MatchUnit, "forward", forward)


@pytest.mark.parametrize("search", ["category", "prefix", "soft"])
def test_ten_thousand_items_of_history_cost_no_more_matches_than_those_found(
    search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small: dict[str, Any] = {"found": 8, "recent": 5, "hidden": 8, "heads": 2, "epochs": 1, "batch": 64}
    model: Any = fit_preference("sim", shelf_data(shelf_log(users=20)), search=search, **small)
    history = np.random.default_rng(0).integers(0, ITEMS, (2, LONG))
    items = np.array([[0, 1, 2], [3, 4, 5]])
    counted, chunks = Counted(monkeypatch), []
    model.network.body.search = lambda past, shown: widths(type(model.network.body).search, model, past, shown, chunks)
    scores = model.score(history, items)
    assert counted.matched == 2 * 3 * 2 * (8 + 5)
    assert max(chunks) == CHUNK
    assert sum(chunks) == LONG
    assert ((scores > 0) & (scores < 1)).all()
    # A hundredth of the history asks for as many.
    model.score(history[:, -100:], items)
    assert counted.matched == 2 * 2 * 3 * 2 * (8 + 5)


def widths(search: Any, model: Any, past: torch.Tensor, shown: torch.Tensor, told: list[int]) -> Any:
    """The search, with the width of every part of the history that it looks at noted."""
    import sidgym.envs.preference.search as module

    real = module.find_matches

    def find(agreement: Any, *rest: Any, **more: Any) -> Any:
        def watched(part: torch.Tensor) -> torch.Tensor:
            told.append(part.shape[1])
            return agreement(part)

        return real(watched, *rest, **more)

    module.find_matches = find
    try:
        return search(model.network.body, past, shown)
    finally:
        module.find_matches = real


@pytest.mark.parametrize("search", ["category", "soft"])
def test_short_and_long_histories_are_matched_alike(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sidgym.envs.preference.body as module

    small: dict[str, Any] = {"found": 4, "recent": 5, "hidden": 8, "heads": 2, "epochs": 1, "batch": 64}
    model: Any = fit_preference("sim", shelf_data(shelf_log(users=20)), search=search, **small)
    history, items = np.random.default_rng(0).integers(-1, ITEMS, (3, 12)), np.arange(21).reshape(3, 7)
    whole = model.logits(history, items)
    monkeypatch.setattr(module, "SHORT", 0)
    np.testing.assert_allclose(model.logits(history, items), whole, atol=1e-5)
    # Both read what was found: without it the logits are others.
    monkeypatch.setattr(module.InterestBody, "_cosine_of_found", lambda body, found, shown: torch.zeros(3, 7, 2, 4))
    assert not np.allclose(model.logits(history, items), whole, atol=1e-5)


def test_what_lies_beyond_the_longest_history_is_not_read() -> None:
    model = fit_preference("sim", shelf_data(shelf_log(users=20)), history=12, hidden=8, heads=2, epochs=1, recent=4)
    history = np.random.default_rng(0).integers(0, ITEMS, (1, 40))
    items = np.arange(6)[None]
    np.testing.assert_allclose(model.score(history, items), model.score(history[:, -12:], items), atol=1e-6)
    assert not np.allclose(model.score(history, items), model.score(history[:, -6:], items))


def test_training_reads_histories_of_ten_thousand_items() -> None:
    rng = np.random.default_rng(0)
    users, size = 3, LONG + 20
    log = Interactions(
        user=np.repeat(np.arange(users), size),
        item=rng.integers(0, ITEMS, users * size),
        order=np.tile(np.arange(size), users),
        feedback=np.tile(np.r_[np.full(LONG, CLICK), np.tile([CLICK, SHOWN], 10)], users).astype(np.int8),
    )
    # The first 10 000 events of everybody stand on one page, and so have no history; twenty pages come behind it.
    log = Interactions(**{**vars(log), "page": np.tile(np.r_[np.zeros(LONG), np.arange(1, 21)], users).astype(int)})
    data = PreferenceData(log, np.arange(users), embeddings=EMBEDDINGS, categories=SHELF)
    model: Any = fit_preference("sim", data, hidden=8, heads=2, found=4, recent=4, epochs=1, batch=128)
    assert model.network.shape.history == LONG
    assert np.isfinite(model.report["log_loss"])


def test_ages_have_buckets_that_double() -> None:
    unit = MatchUnit(heads=1)
    with torch.no_grad():
        # Nearly all weight on the bucket of ages 3 to 6.
        unit.recency[2] = 30.0
    cosine = torch.full((1, 1, 1, 9), -5.0)
    real = torch.ones(1, 1, 9, dtype=torch.bool)
    age = torch.arange(9)[None, None]
    shares = []
    for place in range(9):
        one = cosine.clone()
        one[..., place] = 5.0
        shares.append(float(unit(one, age, real)[0, 0, 0].detach()))
    np.testing.assert_allclose(shares, [0, 0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0], atol=1e-4)
    assert np.log2(LONG + 1) <= AGES
