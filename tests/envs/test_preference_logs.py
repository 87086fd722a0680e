"""Logs in the formats of others, written here and fitted: KuaiRand's and KuaiRec's columns, a shop's pages."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preference_cases import DURATION, ITEMS, PAGES, PLACES, SHELF, SHELVES, shelf_log

from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import DataSet, load_dataset
from sidgym.envs.preference import PreferenceData, fit_preference
from sidgym.envs.preference.signals import find_signals
from sidgym.envs.records import CLICK, NEGATIVE, ORDER, PAD_ITEM, SHOWN, SIGNALS, Interactions, pack_signals
from sidgym.envs.splits import split

SMALL: dict[str, Any] = {"hidden": 16, "epochs": 12, "batch": 50}


def write(path: Path, columns: dict[str, Any]) -> None:
    """A comma-separated file of columns of one length."""
    rows = zip(*(np.asarray(values).tolist() for values in columns.values()))
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")


def source(users: int = 120) -> Interactions:
    return shelf_log(0, users)


def has(log: Interactions, name: str) -> np.ndarray:
    """Whether the events of a log that was read have a signal."""
    assert log.signals is not None
    return (log.signals >> SIGNALS.index(name) & 1).astype(bool)


def kuairand(folder: Path) -> DataConfig:
    log = source()
    assert log.feedback is not None
    assert log.play_time is not None
    assert log.time is not None
    rng = np.random.default_rng(5)
    clicked = log.feedback >= CLICK
    columns: dict[str, Any] = {
        "user_id": log.user,
        "video_id": 100 + log.item,
        "time_ms": 1_649_408_000_000 + (1000 * log.time).astype(int),
        "is_click": clicked.astype(int),
        "is_like": (log.feedback == ORDER).astype(int),
        "is_follow": (clicked & (rng.random(len(log)) < 0.2)).astype(int),
        "is_hate": (log.feedback == NEGATIVE).astype(int),
        "long_view": (log.play_time > 0.5 * DURATION[log.item]).astype(int),
        "play_time_ms": np.round(1000 * log.play_time).astype(int),
        "duration_ms": (1000 * DURATION[log.item]).astype(int),
    }
    write(folder / "log_standard_1.csv", columns)
    write(folder / "video_features_basic_1.csv",
          {"video_id": 100 + np.arange(ITEMS), "video_duration": 1000 * DURATION, "tag": SHELF})  # fmt: skip
    return DataConfig(name="kuairand", path=str(folder), min_events=0, split="leave_one_out")


def data_of(dataset: DataSet, config: DataConfig) -> PreferenceData:
    """Training data with embeddings that tell the shelf, which is the item's name modulo four."""
    shelf = dataset.catalogue.ids.astype(int) % SHELVES
    splits = split(dataset, config, seed=0)
    return PreferenceData.of(dataset.interactions, splits, dataset.catalogue, np.eye(SHELVES, dtype=np.float32)[shelf])


def assert_learned(model: Any, dataset: DataSet) -> None:
    """What stands on the shelf of a history scores higher."""
    shelf = dataset.catalogue.ids.astype(int) % SHELVES
    history = np.stack([np.flatnonzero(shelf == wanted)[:3] for wanted in range(SHELVES)])
    items = np.broadcast_to(np.arange(len(shelf)), (SHELVES, len(shelf)))
    loved = np.arange(SHELVES)[:, None] == shelf
    scores = model.score(history, items)
    assert scores[loved].mean() > 2 * scores[~loved].mean()


@pytest.fixture(scope="module")
def kuairand_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSet, DataConfig]:
    config = kuairand(tmp_path_factory.mktemp("kuairand"))
    return load_dataset(config, seed=0), config


def test_kuairands_columns_become_signals(kuairand_set: tuple[DataSet, DataConfig], tmp_path: Path) -> None:
    dataset, config = kuairand_set
    log, raw = dataset.interactions, source()
    assert log.feedback is not None
    assert raw.feedback is not None
    assert raw.play_time is not None
    np.testing.assert_array_equal(has(log, "like"), raw.feedback == ORDER)
    np.testing.assert_array_equal(has(log, "long_view"), raw.play_time > 0.5 * DURATION[raw.item])
    assert not has(log, "comment").any()
    dataset.save(tmp_path / "saved")
    again = DataSet.load(tmp_path / "saved").interactions
    np.testing.assert_array_equal(again.signals, log.signals)
    signals = find_signals(data_of(dataset, config))
    assert list(signals.labels) == ["click", "order", "negative", "long_play", "long_view", "like", "follow"]
    assert set(signals.absent) == {"comment", "forward", "cart"}


def test_every_kind_fits_kuairand(kuairand_set: tuple[DataSet, DataConfig]) -> None:
    dataset, config = kuairand_set
    data = data_of(dataset, config)
    for kind in ("sim", "pscore", "duration_aware"):
        # Without pages every event is one, so that a batch of as many events has more of them.
        model: Any = fit_preference(kind, data, 0, **{**SMALL, "batch": 200})
        assert_learned(model, dataset)
        assert model.report["auc"] > 0.6, kind
    assert fit_preference("sim", data, 0, **{**SMALL, "epochs": 1}).report["search"] == "category"


def test_no_row_of_a_target_is_read(kuairand_set: tuple[DataSet, DataConfig]) -> None:
    dataset, config = kuairand_set
    splits = split(dataset, config, seed=0)
    data = PreferenceData.of(dataset.interactions, splits, dataset.catalogue)
    key = data.log.user * 10_000 + data.log.order
    for part in (splits.valid, splits.test):
        assert part.event is not None
        rows = dataset.interactions.select(part.event)
        assert not np.isin(rows.user * 10_000 + rows.order, key).any()


def kuairec(folder: Path, name: str = "big_matrix.csv") -> DataConfig:
    log = source()
    assert log.play_time is not None
    assert log.time is not None
    duration = DURATION[log.item]
    columns: dict[str, Any] = {
        "user_id": log.user,
        "video_id": log.item,
        "play_duration": np.round(1000 * log.play_time).astype(int),
        "video_duration": (1000 * duration).astype(int),
        "time": np.full(len(log), "2020-07-05 00:08:23.438"),
        "date": np.full(len(log), 20200705),
        "timestamp": 1_593_878_903.438 + 60 * log.time,
        "watch_ratio": log.play_time / duration,
    }
    write(folder / name, columns)
    features = "\n".join(f'{item},"[{shelf}, 99]"' for item, shelf in enumerate(SHELF.tolist()))
    (folder / "item_categories.csv").write_text(f"video_id,feat\n{features}\n")
    return DataConfig(name="kuairand", path=str(folder), min_events=0, split="leave_one_out")


def test_kuairecs_matrix_tells_plays_by_the_watch_ratio(tmp_path: Path) -> None:
    config = kuairec(tmp_path)
    with pytest.raises(ValueError, match="the sft part is empty"):
        split(load_dataset(config, seed=0), config, seed=0)  # nobody watches anything to its end here
    config = DataConfig(**{**vars(config), "clicks": ("watch_ratio>=0.5",), "orders": ("watch_ratio >= 0.8",)})
    dataset = load_dataset(config, seed=0)
    log, raw = dataset.interactions, source()
    assert raw.play_time is not None
    ratio = raw.play_time / DURATION[raw.item]
    wanted = np.where(ratio >= 0.8, ORDER, np.where(ratio >= 0.5, CLICK, SHOWN))
    np.testing.assert_array_equal(log.feedback, wanted)  # type: ignore[arg-type]
    np.testing.assert_allclose(log.play_time, raw.play_time, atol=1e-3)  # type: ignore[arg-type]
    np.testing.assert_allclose(dataset.catalogue.duration, DURATION)  # type: ignore[arg-type]
    assert log.signals is None
    assert dataset.catalogue.categories[5] == ("tag 1", "tag 99")
    assert any("clicks watch_ratio>=0.5" in note for note in dataset.notes)
    assert_learned(fit_preference("duration_aware", data_of(dataset, config), 0, **SMALL), dataset)


def test_the_big_matrix_goes_before_the_small_one_and_logs_before_both(tmp_path: Path) -> None:
    config = kuairec(tmp_path, "small_matrix.csv")
    more = {"clicks": ("watch_ratio>=0.5",)}
    one = load_dataset(DataConfig(**{**vars(config), **more}), seed=0)
    assert one.notes[0].startswith("small_matrix.csv: 3600 rows")
    kuairec(tmp_path)
    assert load_dataset(DataConfig(**{**vars(config), **more}), seed=0).notes[0].startswith("big_matrix.csv: ")
    kuairand(tmp_path)
    assert load_dataset(config, seed=0).notes[0].startswith("log_standard_1.csv: ")


@pytest.mark.parametrize("sign", ["watch_ratio>=much", "watch_ratio>=nan", "watch_ratio>=0>=1"])
def test_thresholds_that_are_no_numbers_are_refused(tmp_path: Path, sign: str) -> None:
    config = kuairec(tmp_path)
    with pytest.raises(ValueError, match=r"data\.clicks: expected a column, or a column>=number, got 'watch_ratio>="):
        load_dataset(DataConfig(**{**vars(config), "clicks": (sign,)}), seed=0)
    with pytest.raises(ValueError, match=r"data\.orders: no column watched in the log"):
        load_dataset(DataConfig(**{**vars(config), "orders": ("watched>=1",)}), seed=0)


def shop(folder: Path) -> DataConfig:
    """A shop's pages: what was shown together under one request, clicked, put into the cart, and ordered."""
    log = source()
    assert log.feedback is not None
    assert log.page is not None
    rng = np.random.default_rng(6)
    clicked = log.feedback >= CLICK
    columns: dict[str, Any] = {
        "user_id": np.char.add("u", log.user.astype(str)),
        "item_id": log.item,
        "timestamp": 1_700_000_000 + 1000 * log.page,
        "page_id": [f"req-{user}-{page}" for user, page in zip(log.user, log.page)],
        "position": log.position,
        "click": clicked.astype(int),
        "cart": (clicked & (rng.random(len(log)) < 0.4)).astype(int),
        "order": (log.feedback == ORDER).astype(int),
    }
    write(folder / "log_shop.csv", columns)
    return DataConfig(name="kuairand", path=str(folder), min_events=0, split="leave_one_out")


def test_a_shops_pages_of_clicks_and_orders_are_read_and_fitted(tmp_path: Path) -> None:
    config = shop(tmp_path)
    dataset = load_dataset(config, seed=0)
    log, raw = dataset.interactions, source()
    assert raw.feedback is not None
    np.testing.assert_array_equal(log.feedback, np.maximum(raw.feedback, SHOWN))  # type: ignore[arg-type]
    np.testing.assert_array_equal(log.position, raw.position)  # type: ignore[arg-type]
    assert len(np.unique(np.stack([log.user, log.page]), axis=1).T) == 120 * PAGES  # type: ignore[arg-type]
    assert has(log, "cart").sum() < (raw.feedback >= CLICK).sum()
    assert log.play_time is None
    data = data_of(dataset, config)
    model: Any = fit_preference("pscore", data, 0, **SMALL)
    assert model.report["signals"] == ["click", "order", "cart"]
    assert model.network.shape.positions == PLACES
    assert_learned(model, dataset)
    assert_learned(fit_preference("sim", data, 0, **SMALL), dataset)
    with pytest.raises(ValueError, match="this log has no play_time and no duration"):
        fit_preference("duration_aware", data)


def test_orders_have_a_tower_of_their_own_in_a_shop(tmp_path: Path) -> None:
    config = shop(tmp_path)
    dataset = load_dataset(config, seed=0)
    model: Any = fit_preference("pscore", data_of(dataset, config), 0, goal={"click": 1, "order": 4}, **SMALL)
    parts = model.scores_by_signal(np.array([[0, 4, 8]]), np.array([[12, 13, PAD_ITEM]]))
    assert parts["order"][0, 0] < parts["click"][0, 0]
    assert parts["order"][0, 0] > 3 * parts["order"][0, 1]


def test_a_log_of_clicks_alone_is_taken_for_positive_events_even_if_it_says_so_of_each() -> None:
    log = source().positives()
    assert log.feedback is not None
    data = PreferenceData(log, np.arange(120), embeddings=np.eye(SHELVES)[SHELF], categories=SHELF)
    for kind in ("sim", "din"):
        assert "sampled" in fit_preference(kind, data, 0, epochs=1, hidden=8).report["negatives"]
    with pytest.raises(ValueError, match="for a log of positive events use 'sim'"):
        fit_preference("pscore", data)


def test_flags_of_openonerec_become_signals(tmp_path: Path) -> None:
    lists = {"pid": [[7, 8, 9]], "longview": [[1, 1, 0]], "like": [[0, 1, 0]], "not_interested": [[0, 0, 1]]}
    columns: dict[str, Any] = {f"hist_video_{name}": value for name, value in lists.items()}
    columns |= {f"target_video_{name}": [[]] for name in lists}
    types = {name: pa.list_(pa.int64()) for name in columns}
    table = pa.table({"uid": [1]} | {name: pa.array(value, types[name]) for name, value in columns.items()})
    pq.write_table(table, tmp_path / "log.parquet")
    log = load_dataset(DataConfig(name="openonerec", path=str(tmp_path), min_events=0), seed=0).interactions
    assert has(log, "long_view").tolist() == [True, True, False]
    assert has(log, "like").tolist() == [False, True, False]
    assert not has(log, "follow").any()


def test_bits_by_hand() -> None:
    bits = pack_signals({"follow": np.array([True, False, True]), "long_view": np.array([False, False, True])})
    assert bits is not None
    assert bits.tolist() == [4, 0, 5]
    assert bits.dtype == np.int32
    assert pack_signals({}) is None
