"""Splits: what each part holds on small logs, refusals, and that the leakage check catches planted leaks."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import DataSet
from sidgym.envs.leakage import check_leakage
from sidgym.envs.records import CLICK, ORDER, PAD_ITEM, SHOWN, Catalogue, Episodes, Interactions, Sequences, Splits
from sidgym.envs.splits import SPLITS, load_splits, save_splits, split, training_log

ITEMS = 30


def make_data(log: Interactions) -> DataSet:
    names = np.arange(ITEMS).astype(str)
    return DataSet("toy", Catalogue(names, tuple(names), ("",) * ITEMS, ((),) * ITEMS), log)


def order_log(lengths: list[int], seed: int = 0) -> DataSet:
    """Order only: one event after the other."""
    user = np.repeat(np.arange(len(lengths)), lengths)
    order = np.concatenate([np.arange(n) for n in lengths])
    return make_data(Interactions(user, np.random.default_rng(seed).integers(0, ITEMS, len(user)), order))


def page_log(users: int = 60, seed: int = 0) -> DataSet:
    """Pages of four with feedback and times; page numbers start again with each user."""
    rng = np.random.default_rng(seed)
    pages = rng.integers(3, 12, users)
    user = np.repeat(np.arange(users), pages * 4)
    order = np.concatenate([np.arange(n * 4) for n in pages])
    item = np.concatenate([rng.permutation(ITEMS)[:4] for _ in range(pages.sum())])
    feedback = rng.choice([SHOWN, CLICK, ORDER], size=len(user), p=[0.6, 0.3, 0.1]).astype(np.int8)
    time = (order // 4 + 10.0 * rng.random(users)[user]).astype(np.float64)
    log = Interactions(user, item, order, time=time, page=order // 4, position=order % 4, feedback=feedback)
    return make_data(log)


CONFIG = DataConfig(history=4, min_events=2, rl_share=0.3, valid_share=0.15, test_share=0.2, rl_contexts_per_user=2)


def items_of(sequences: Sequences, user: int) -> list[int]:
    rows = np.flatnonzero(sequences.user == user)
    return sequences[rows[0]].tolist() if len(rows) else []


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_training_log_ends_before_every_page_that_is_judged(name: str, tmp_path: Path) -> None:
    data = page_log()
    save_splits(split(data, replace(CONFIG, split=name), seed=0), tmp_path)
    splits = load_splits(tmp_path)
    log = data.interactions
    used = training_log(log, splits)
    assert len(used) > 0
    assert set(used.user) <= set(splits.train_users)
    assert log.page is not None
    assert used.page is not None
    read = set(zip(used.user.tolist(), used.page.tolist()))
    for part in (splits.valid, splits.test):
        assert part.event is not None
        for row in part.event:
            judged = {
                (log.user[row], page) for page in range(log.page[row], log.page[log.user == log.user[row]].max() + 1)
            }
            assert not read & judged, "neither the page of a target nor any later page of its user"
    if name == "chronological":
        assert used.time is not None
        assert log.time is not None
        assert splits.valid.event is not None
        assert used.time.max() < log.time[splits.valid.event].min()


def test_leave_one_out_by_hand() -> None:
    user, item = np.repeat([0, 1, 2], [5, 3, 2]), np.arange(10)
    data = make_data(Interactions(user, item, np.array([0, 1, 2, 3, 4, 0, 1, 2, 0, 1])))
    splits = split(data, replace(CONFIG, split="leave_one_out", rl_share=0.99, history=3), seed=0)
    assert splits.test.user.tolist() == splits.valid.user.tolist() == [0, 1]
    assert splits.test.event is not None
    assert splits.test.event.tolist() == [4, 7]
    assert splits.test.targets.tolist() == [[4], [7]]
    assert splits.test.history.tolist() == [[1, 2, 3], [PAD_ITEM, 5, 6]]
    assert splits.valid.target.tolist() == [3, 6]
    assert splits.rl.user.tolist() == [0]
    assert splits.rl.target.tolist() == [2]
    assert [items_of(splits.sft, u) for u in range(3)] == [[0, 1], [5], [8, 9]]
    assert [items_of(splits.sft_all, u) for u in range(3)] == [[0, 1, 2], [5], [8, 9]]
    assert any("1 users with fewer than 3 labels" in note for note in splits.notes)


def test_pages_give_targets_shown_items_and_a_history_before_the_page() -> None:
    feedback = np.array([CLICK, SHOWN, SHOWN, ORDER, CLICK, SHOWN, CLICK, SHOWN, CLICK], np.int8)
    log = Interactions(
        np.zeros(9, int), np.arange(9), np.arange(9), page=np.array([5, 5, 6, 6, 6, 7, 7, 7, 8]), feedback=feedback,
        play_time=np.arange(9, dtype=np.float32),
    )  # fmt: skip
    splits = split(make_data(log), replace(CONFIG, split="leave_one_out", rl_share=0.99), seed=0)
    assert splits.rl.targets.tolist() == [[3, 4]]
    assert splits.rl.page is not None
    assert splits.rl.page.tolist() == [[2, 3, 4]]
    assert splits.rl.feedback is not None
    assert splits.rl.play_time is not None
    assert splits.rl.feedback.dtype == np.int8
    assert splits.rl.play_time.dtype == np.float32
    assert splits.rl.feedback.tolist() == [[SHOWN, ORDER, CLICK]]
    assert splits.rl.play_time.tolist() == [[2, 3, 4]]
    assert splits.rl.history.tolist() == [[PAD_ITEM, PAD_ITEM, PAD_ITEM, 0]]
    assert splits.valid.targets.tolist() == [[6]]
    assert splits.valid.history.tolist() == [[PAD_ITEM, 0, 3, 4]]
    assert splits.test.history.tolist() == [[0, 3, 4, 6]]
    assert items_of(splits.sft, 0) == [0]
    assert items_of(splits.sft_all, 0) == [0, 3, 4]


def test_by_user_keeps_users_apart_and_shares_them_out() -> None:
    data = order_log([6] * 40)
    splits = split(data, replace(CONFIG, split="by_user"), seed=3)
    groups = [set(part.user.tolist()) for part in (splits.test, splits.valid, splits.rl, splits.sft)]
    assert [len(group) for group in groups] == [8, 6, 12, 14]
    assert len(set.union(*groups)) == 40
    assert set(splits.train_users) == groups[2] | groups[3] == set(splits.sft_all.user)
    assert len(splits.rl) == 24
    for episodes, ends in ((splits.test, [5]), (splits.rl, [4, 5])):
        assert episodes.event is not None
        assert set(data.interactions.order[episodes.event]) == set(ends)
    user = int(splits.rl.user[0])
    assert items_of(splits.sft_all, user) == data.interactions.item[data.interactions.user == user].tolist()
    other = split(data, replace(CONFIG, split="by_user"), seed=4)
    assert set(other.test.user) != groups[0]


def test_by_user_gives_no_context_to_users_with_few_events() -> None:
    data = order_log([3, 8] * 30)
    splits = split(data, replace(CONFIG, split="by_user", min_events=5), seed=0)
    for part in (splits.rl, splits.valid, splits.test):
        assert (part.user % 2 == 1).all()
    assert (splits.sft.user % 2 == 0).any()


def test_chronological_cuts_everyone_at_the_same_times() -> None:
    data = page_log()
    splits = split(data, replace(CONFIG, split="chronological"), seed=0)
    time = data.interactions.time
    assert time is not None
    spans = []
    for part in (splits.rl, splits.valid, splits.test):
        assert part.event is not None
        assert len(np.unique(part.user)) == len(part)
        spans.append((time[part.event].min(), time[part.event].max()))
    good = data.interactions.positives()
    assert good.time is not None
    sft_end = max(good.time[good.user == u][len(splits.sft[row]) - 1] for row, u in enumerate(splits.sft.user))
    bounds = [sft_end, *(bound for span in spans for bound in span)]
    assert bounds == sorted(bounds)
    assert len({sft_end, *(span[0] for span in spans)}) == 4
    share = len(splits.sft.items) / len(good)
    assert share == pytest.approx(1 - 0.3 - 0.15 - 0.2, abs=0.08)


def test_chronological_needs_times() -> None:
    with pytest.raises(ValueError, match=r"order only, no timestamps.*use leave_one_out"):
        split(order_log([5, 5]), replace(CONFIG, split="chronological"), seed=0)
    data = page_log()
    assert data.interactions.time is not None
    wrong = replace(data.interactions, time=-data.interactions.time)
    with pytest.raises(ValueError, match="not fall inside a user's log"):
        split(make_data(wrong), replace(CONFIG, split="chronological"), seed=0)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"rl_share": 0.0}, "the rl part is empty; raise rl_share"),
        ({"test_share": 0.0}, "the test part is empty; raise test_share"),
        ({"valid_share": 0.0}, "the valid part is empty; raise valid_share"),
        ({"rl_share": 0.64}, "the sft part is empty; lower rl_share"),
        ({"rl_share": 0.7}, "sum to 1.05"),
        ({"rl_share": -0.1}, r"rl_share: expected a share in \[0, 1\)"),
        ({"history": 0}, "history and rl_contexts_per_user"),
        ({"split": "by_users"}, "Did you mean 'by_user'"),
    ],
)
def test_settings_that_leave_nothing_are_named(settings_: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(order_log([6] * 20), replace(CONFIG, **{"split": "by_user", **settings_}), seed=0)


@pytest.mark.parametrize("name", ["leave_one_out", "by_user"])
def test_every_label_is_refused_where_it_does_nothing(name: str) -> None:
    with pytest.raises(ValueError, match=f"every_label does nothing in the split '{name}'"):
        split(order_log([5, 5]), replace(CONFIG, split=name, every_label=True), seed=0)


def test_short_logs_leave_nothing_to_hold_out() -> None:
    with pytest.raises(ValueError, match="valid part is empty; use a data set whose users have 3 labels"):
        split(order_log([2] * 20), replace(CONFIG, split="leave_one_out", rl_share=0.0), seed=0)


def test_scattered_pages_are_refused() -> None:
    log = Interactions(np.zeros(3, int), np.arange(3), np.arange(3), page=np.array([0, 1, 0]))
    with pytest.raises(ValueError, match="must follow each other"):
        split(make_data(log), replace(CONFIG, split="leave_one_out"), seed=0)


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_every_split_keeps_the_contract_on_pages(name: str) -> None:
    data = page_log()
    splits = split(data, replace(CONFIG, split=name), seed=1)
    log = data.interactions
    assert log.page is not None
    for part in (splits.rl, splits.valid, splits.test):
        assert part.event is not None
        assert part.page is not None
        assert part.feedback is not None
        assert part.play_time is None
        assert (part.history[:, -1] != PAD_ITEM).all()
        assert len(np.unique(part.index)) == len(part)
        for row in range(len(part)):
            event = part.event[row]
            mine = (log.user == part.user[row]) & (log.page == log.page[event])
            liked = log.select(mine).positives().item.tolist()
            assert [i for i in part.targets[row] if i != PAD_ITEM] == liked
            assert [i for i in part.page[row] if i != PAD_ITEM] == log.item[mine].tolist()
            assert part.feedback[row][part.page[row] != PAD_ITEM].tolist() == log.feedback[mine].tolist()
            assert (part.feedback[row][part.page[row] == PAD_ITEM] == SHOWN).all()
            before = log.select((log.user == part.user[row]) & (np.arange(len(log)) < np.argmax(mine))).positives()
            assert [i for i in part.history[row] if i != PAD_ITEM] == before.item[-CONFIG.history :].tolist()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=12, max_size=30), st.integers(0, 1000))
def test_any_log_that_splits_passes_the_check(lengths: list[int], seed: int) -> None:
    data = order_log([*lengths, *[9] * 40], seed)  # enough long logs that no part comes out empty
    for name in ("by_user", "leave_one_out"):
        splits = split(data, replace(CONFIG, split=name), seed)
        again = split(data, replace(CONFIG, split=name), seed)
        np.testing.assert_array_equal(splits.test.history, again.test.history)
        np.testing.assert_array_equal(splits.sft.items, again.sft.items)


def lengthen(sequences: Sequences, data: DataSet, user: int) -> Sequences:
    """The sequence of ``user`` with the user's whole log in it."""
    good = data.interactions.positives()
    rows = [good.item[good.user == u] if u == user else sequences[i] for i, u in enumerate(sequences.user)]
    return Sequences(sequences.user, np.concatenate(rows), np.cumsum([0, *map(len, rows)]))


def with_user(sequences: Sequences, data: DataSet, user: int) -> Sequences:
    """One more sequence: everything that ``user`` did."""
    good = data.interactions.positives()
    more = good.item[good.user == user]
    offsets = np.append(sequences.offsets, len(sequences.items) + len(more))
    return Sequences(np.append(sequences.user, user), np.append(sequences.items, more), offsets)


def shifted(episodes: Episodes) -> Episodes:
    """Histories that end with the target itself."""
    return replace(episodes, history=np.column_stack([episodes.history[:, 1:], episodes.target]))


def plant_sft_end(s: Splits, d: DataSet) -> Splits:
    return replace(s, sft=lengthen(s.sft, d, int(s.test.user[0])))


def plant_sft_rl(s: Splits, d: DataSet) -> Splits:
    return replace(s, sft=s.sft_all)


def plant_sft_all(s: Splits, d: DataSet) -> Splits:
    return replace(s, sft_all=lengthen(s.sft_all, d, int(s.valid.user[0])))


def plant_history(s: Splits, d: DataSet) -> Splits:
    return replace(s, test=shifted(s.test))


def plant_valid_history(s: Splits, d: DataSet) -> Splits:
    return replace(s, valid=shifted(s.valid))


def plant_rl_on_test(s: Splits, d: DataSet) -> Splits:
    return replace(s, rl=s.test)


def plant_valid_on_test(s: Splits, d: DataSet) -> Splits:
    return replace(s, valid=s.test)


def plant_target(s: Splits, d: DataSet) -> Splits:
    target = (s.test.targets + 1) % ITEMS
    return replace(s, test=replace(s.test, targets=target))


def plant_foreign_items(s: Splits, d: DataSet) -> Splits:
    items = s.sft.items.copy()
    items[0] = (items[0] + 1) % ITEMS
    return replace(s, sft=replace(s.sft, items=items))


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (plant_sft_end, "sft: user .* not before the (rl|valid|test) target"),
        (plant_sft_rl, "sft: user .* not before the rl target"),
        (plant_sft_all, "sft_all: user .* not before the valid target"),
        (plant_history, "test: context .* is not what the user did before"),
        (plant_valid_history, "valid: context .* is not what the user did before"),
        (plant_rl_on_test, "not before the (valid|test) target"),
        (plant_valid_on_test, "valid: user .* not before the test target|sft_all"),
        (plant_target, "test: context .* not a positive event of its user on its target"),
        (plant_foreign_items, "sft: the sequence of user .* is not the beginning"),
    ],
)
def test_planted_leaks_are_caught(plant: Callable[[Splits, DataSet], Splits], message: str) -> None:
    data = order_log([7] * 30)
    splits = split(data, replace(CONFIG, split="leave_one_out"), seed=0)
    with pytest.raises(ValueError, match=message):
        check_leakage(plant(splits, data), data.interactions)


def test_history_from_the_page_of_the_target_is_caught() -> None:
    data = page_log()
    splits = split(data, replace(CONFIG, split="by_user"), seed=0)
    log = data.interactions.positives()
    assert log.page is not None
    assert splits.test.event is not None
    assert data.interactions.page is not None
    pages = data.interactions.page[splits.test.event]
    row = int(np.argmax((splits.test.targets != PAD_ITEM).sum(1) > 1))
    before = log.item[(log.user == splits.test.user[row]) & (log.page <= pages[row])][-CONFIG.history - 1 : -1]
    history = splits.test.history.copy()
    history[row, -len(before) :] = before
    with pytest.raises(ValueError, match=f"test: context {row}: the history"):
        check_leakage(replace(splits, test=replace(splits.test, history=history)), data.interactions)


def test_test_users_in_training_are_caught() -> None:
    data = order_log([7] * 40)
    splits = split(data, replace(CONFIG, split="by_user"), seed=0)
    user = int(splits.test.user[0])
    planted = replace(splits, sft=with_user(splits.sft, data, user))
    with pytest.raises(ValueError, match=f"sft: user {user} has event .* not before the test target"):
        check_leakage(planted, data.interactions)
    listed = replace(splits, train_users=np.append(splits.train_users, user))
    check_leakage(listed, data.interactions)
    with pytest.raises(ValueError, match=f"test: user {user} is among train_users"):
        check_leakage(listed, data.interactions, disjoint_users=True)
    unlisted = replace(splits, train_users=splits.train_users[1:])
    with pytest.raises(ValueError, match="is not among train_users"):
        check_leakage(unlisted, data.interactions)


def test_split_runs_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = SPLITS["leave_one_out"]

    def leaky(dataset: DataSet, config: DataConfig, seed: int) -> Splits:
        return plant_history(honest(dataset, config, seed), dataset)

    monkeypatch.setitem(SPLITS, "leave_one_out", leaky)
    with pytest.raises(ValueError, match="leakage check: test"):
        split(order_log([7] * 30), replace(CONFIG, split="leave_one_out"), seed=0)


@pytest.mark.parametrize("data", [order_log([6] * 40), page_log()], ids=["order", "pages"])
def test_save_and_load(tmp_path: Path, data: DataSet) -> None:
    splits = split(data, replace(CONFIG, split="by_user"), seed=0)
    save_splits(splits, tmp_path / "out")
    loaded = load_splits(tmp_path / "out")
    assert loaded.notes == splits.notes
    np.testing.assert_array_equal(loaded.train_users, splits.train_users)
    for part in ("sft", "sft_all", "rl", "valid", "test"):
        for field in fields(getattr(splits, part)):
            left, right = (getattr(getattr(side, part), field.name) for side in (loaded, splits))
            assert (left is None) == (right is None)
            if left is not None:
                np.testing.assert_array_equal(left, right)
    check_leakage(loaded, data.interactions, disjoint_users=True)
    manifest = tmp_path / "out" / "splits.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": 0}))
    with pytest.raises(ValueError, match="schema_version 0"):
        load_splits(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="holds no saved splits"):
        load_splits(tmp_path)
