"""Pages behind sequences: histories before them, what they ask for in which order, and what they cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.logged_pages import LoggedPages, logged_pages, page_targets
from sidgym.envs.records import CLICK, NEGATIVE, ORDER, PAD_ITEM, SHOWN, Episodes, Interactions, Sequences
from sidgym.envs.splits import split

CONFIG = DataConfig(users=40, items=60, rl_share=0.5)
DATA = load_dataset(CONFIG, 1)


def page_of(items: list[int], feedback: list[int]) -> LoggedPages:
    contexts = Episodes(
        index=np.zeros(1, dtype=np.int64),
        user=np.zeros(1, dtype=np.int64),
        history=np.array([[3]]),
        targets=np.array([[i for i, f in zip(items, feedback) if f >= CLICK] or [PAD_ITEM]]),
        page=np.array([items]),
        feedback=np.array([feedback], dtype=np.int8),
    )
    return LoggedPages(contexts, np.zeros(1, dtype=np.int64))


@pytest.mark.parametrize("cut", ["by_user", "leave_one_out", "chronological"])
@pytest.mark.parametrize("part", ["sft", "sft_all"])
def test_pages_are_those_of_the_sequences_and_no_others(cut, part):
    config = DataConfig(users=40, items=60, rl_share=0.4, valid_share=0.1, split=cut)
    sequences = getattr(split(DATA, config, 0), part)
    pages = logged_pages(DATA.interactions, sequences, 5)
    targets, log = pages.contexts.targets, DATA.interactions
    assert np.array_equal(targets[targets != PAD_ITEM], sequences.items)
    assert pages.covers(len(sequences.items)).all()
    for row in range(0, len(pages), 7):
        at = int(pages.begin[row])
        start = sequences.offsets[np.searchsorted(sequences.offsets, at, side="right") - 1]
        history = pages.contexts.history[row]
        assert history[history != PAD_ITEM].tolist() == sequences.items[max(start, at - 5) : at].tolist()
        event = pages.contexts.event[row]
        page = np.flatnonzero((log.user == log.user[event]) & (log.page == log.page[event]))
        items, feedback = (values[row][: len(page)] for values in pages.shown)
        assert items.tolist() == log.item[page].tolist()
        assert feedback.tolist() == log.feedback[page].tolist()


def test_fewer_pages_cover_their_own_items():
    sequences = split(DATA, CONFIG, 0).sft
    pages = logged_pages(DATA.interactions, sequences, 5)
    some = pages.take(np.arange(0, len(pages), 3))
    covered = some.covers(len(sequences.items))
    targets = some.contexts.targets
    assert 0 < covered.sum() < len(covered)
    assert sequences.items[covered].tolist() == targets[targets != PAD_ITEM].tolist()


def test_a_log_without_pages_has_a_page_an_event():
    log = Interactions(np.array([0, 0, 0, 5]), np.array([4, 2, 9, 1]), np.array([0, 1, 2, 0]))
    pages = logged_pages(log, Sequences(np.array([0]), np.array([4, 2]), np.array([0, 2])), 3)
    assert pages.contexts.page is None
    assert pages.shown[0].tolist() == [[4], [2]]
    assert (pages.shown[1] == CLICK).all()


def test_other_logs_are_refused():
    log = Interactions(np.array([0, 0]), np.array([4, 2]), np.array([0, 1]))
    for items, user in (([4, 3], 0), ([4], 1), ([4, 2, 7], 0)):
        wrong = Sequences(np.array([user]), np.array(items), np.array([0, len(items)]))
        with pytest.raises(ValueError, match="the log that the sequences were cut from"):
            logged_pages(log, wrong, 3)


def test_orders_of_a_page():
    pages = page_of([7, 8, 9, 5, 6, PAD_ITEM], [CLICK, SHOWN, ORDER, NEGATIVE, CLICK, SHOWN])
    rng = np.random.default_rng(0)
    assert [row.tolist() for row in page_targets(pages, "strongest", False, rng)] == [[[9, 7, 6, -1, -1, -1]], [3]]
    assert [row.tolist() for row in page_targets(pages, "strongest", True, rng)] == [[[9, 7, 6, 8, -1, -1]], [4]]
    assert page_targets(pages, "logged", True, rng)[0].tolist() == [[7, 8, 9, 6, -1, -1]]
    drawn = {tuple(page_targets(pages, "random", False, rng)[0][0, :3]) for _ in range(80)}
    assert len(drawn) == 6
    assert {tuple(sorted(row)) for row in drawn} == {(6, 7, 9)}
    with pytest.raises(ValueError, match="known: strongest, logged, random"):
        page_targets(pages, "best", False, rng)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([NEGATIVE, SHOWN, CLICK, ORDER])), min_size=1, max_size=7),
    st.sampled_from(["strongest", "logged", "random"]),
    st.booleans(),
)
def test_each_wanted_item_stands_once(page, order, exposed):
    items, feedback = (list(values) for values in zip(*page))
    found, counts = page_targets(page_of(items, feedback), order, exposed, np.random.default_rng(1))
    least = SHOWN if exposed else CLICK
    wanted = {item for item, answer in page if answer >= least}
    assert set(found[0, : counts[0]]) == wanted
    assert counts[0] == len(wanted)
    assert (found[0, counts[0] :] == PAD_ITEM).all()
    if order == "strongest":
        best = [max(answer for item, answer in page if item == one) for one in found[0, : counts[0]]]
        assert best == sorted(best, reverse=True)
