"""OpenOneRec's Parquet on small files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sidgym.envs import loaders_openonerec
from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.records import CLICK, NEGATIVE, ORDER, SHOWN

USERS: dict[str, list[Any]] = {
    "uid": [5, 3, 8],
    "split": [0, 1, 0],
    "hist_video_pid": [[11, 12, 13], [12], None],
    "hist_video_longview": [[1, 0, 0], [1], None],
    "hist_video_like": [[1, 0, 0], [0], None],
    "hist_video_follow": [[0, 0, 0], [0], None],
    "hist_video_forward": [[0, 0, 0], [0], None],
    "hist_video_not_interested": [[0, 0, 1], [0], None],
    "target_video_pid": [[12, 2**40], [], [11]],
    "target_video_longview": [[1, 0], [], [0]],
    "target_video_like": [[0, 0], [], [0]],
    "target_video_follow": [[0, 0], [], [0]],
    "target_video_forward": [[0, 0], [], [1]],
    "target_video_not_interested": [[0, 0], [], [0]],
    "hist_goods_pid": [[900], [901, 900], None],
    "target_goods_pid": [[901], None, None],
}


def release(folder: Path, users: dict[str, list[Any]] = USERS, **more: Any) -> DataConfig:
    pd.DataFrame(users).to_parquet(folder / "onerec_bench_release.parquet", index=False)
    captions = pd.DataFrame({"pid": [12, 11, 99], "dense_caption": ["a  long\ncaption", None, "of no use"]})
    captions.to_parquet(folder / "pid2caption.parquet", index=False)
    pd.DataFrame({"pid": [12], "sid": [[1, 2, 3]]}).to_parquet(folder / "video_ad_pid2sid.parquet", index=False)
    return DataConfig(**({"name": "openonerec", "path": str(folder), "min_events": 0} | more))


@pytest.mark.parametrize("users", [1, 2, 512])
def test_history_then_targets_with_feedback(tmp_path: Path, users: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders_openonerec, "USERS", users)
    data = load_dataset(release(tmp_path), seed=0)
    log, items = data.interactions, data.catalogue
    assert items.ids.tolist() == ["11", "12", "13", str(2**40)]
    assert log.user.tolist() == [0, 0, 0, 0, 0, 1, 2]
    assert items.ids[log.item].tolist() == ["11", "12", "13", "12", str(2**40), "12", "11"]
    assert log.feedback is not None
    assert log.feedback.tolist() == [ORDER, SHOWN, NEGATIVE, CLICK, SHOWN, CLICK, ORDER]
    assert (log.time, log.page) == (None, None)
    assert items.descriptions == ("", "a long caption", "", "")
    assert "1 of 3 users are the published test part; they are kept here" in data.notes
    assert any(note.startswith("order only") for note in data.notes)
    assert "onerec_bench_release.parquet: 3 rows, 0 malformed" in data.notes


def test_goods_are_clicks_only(tmp_path: Path) -> None:
    data = load_dataset(release(tmp_path, domain="goods"), seed=0)
    assert data.catalogue.ids[data.interactions.item].tolist() == ["900", "901", "901", "900"]
    assert data.interactions.feedback is None


def test_captions_go_to_the_numbering_they_are_of(tmp_path: Path) -> None:
    users = USERS | {"hist_goods_pid": [[12], [901, 12], None], "hist_ad_pid": [[12], None, None],
                     "target_ad_pid": [[12], None, None]}  # fmt: skip
    config = release(tmp_path, users, domain="goods")
    data = load_dataset(config, seed=0)
    assert data.catalogue.ids.tolist() == ["12", "901"]
    assert data.catalogue.descriptions == ("", "")
    assert any(note.startswith("pid2caption.parquet: not taken for goods") for note in data.notes)
    assert any(note.startswith("no captions") for note in data.notes)
    captions = pd.DataFrame({"pid": [12], "dense_caption": ["a pan"]})
    captions.to_parquet(tmp_path / "product_pid2caption.parquet", index=False)
    assert load_dataset(config, seed=0).catalogue.descriptions == ("a pan", "")
    for domain in ("video", "ad"):
        items = load_dataset(replace(config, domain=domain), seed=0).catalogue
        assert items.descriptions[items.ids.tolist().index("12")] == "a long caption"


def test_the_first_caption_that_says_something_stays(tmp_path: Path) -> None:
    config = release(tmp_path)
    captions = pd.DataFrame({"pid": [12, 11, 12, 12, 11], "dense_caption": [" ", None, "one", None, "two"]})
    captions.to_parquet(tmp_path / "pid2caption.parquet", index=False)
    more = pd.DataFrame({"pid": [12, None], "dense_caption": ["three", "nobody's"]})
    more.to_parquet(tmp_path / "pid2caption_2.parquet", index=False)
    data = load_dataset(config, seed=0)
    assert data.catalogue.descriptions == ("two", "one", "", "")
    assert "1 captions are of items that have one already; the first of each is taken" in data.notes


@pytest.mark.parametrize("users", [1, 512])
def test_a_second_row_of_a_user_is_malformed(tmp_path: Path, users: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders_openonerec, "USERS", users)
    data = load_dataset(release(tmp_path, USERS | {"uid": [5, 8, 8]}, max_malformed=0.5), seed=0)
    assert data.interactions.user.tolist() == [0, 0, 0, 0, 0, 1]
    assert "row 3: this user has a row before: uid 8" in data.notes[0]


def test_columns_may_be_of_other_types_and_are_named_if_they_cannot(tmp_path: Path) -> None:
    users = {name: list(values) for name, values in USERS.items()}
    expected = load_dataset(release(tmp_path, users), seed=0)
    for name in users:
        if "video" in name and "pid" not in name:
            users[name] = [None if row is None else [bool(value) for value in row] for row in users[name]]
    users["uid"] = ["5", "3", "8"]
    for name in ("hist_video_pid", "target_video_pid"):
        users[name] = [None if row is None else [str(value) for value in row] for row in users[name]]
    data = load_dataset(release(tmp_path, users), seed=0)
    for name in ("user", "item", "feedback"):
        np.testing.assert_array_equal(getattr(data.interactions, name), getattr(expected.interactions, name))
    users["hist_video_like"] = [["yes", "", ""], ["no"], None]
    with pytest.raises(
        ValueError, match=r"release\.parquet: column hist_video_like: expected whole numbers, got string"
    ):
        load_dataset(release(tmp_path, users), seed=0)
    with pytest.raises(ValueError, match=r"release\.parquet: column hist_video_like: expected lists, got int64"):
        load_dataset(release(tmp_path, users | {"hist_video_like": [1, 2, 3]}), seed=0)
    with pytest.raises(ValueError, match=r"release\.parquet: column uid: expected whole numbers, got .*string"):
        load_dataset(release(tmp_path, users | {"uid": ["a", "b", "c"]}), seed=0)


def test_flags_can_be_chosen_and_other_domains_are_refused(tmp_path: Path) -> None:
    config = release(tmp_path, clicks=("not_interested",), orders=("longview",))
    log = load_dataset(config, seed=0).interactions
    assert log.feedback is not None
    assert log.feedback.tolist() == [ORDER, SHOWN, NEGATIVE, ORDER, SHOWN, ORDER, SHOWN]
    with pytest.raises(ValueError, match=r"data\.clicks: no column share in the log; the columns present are longview"):
        load_dataset(replace(config, clicks=("share",)), seed=0)
    with pytest.raises(ValueError, match=r"no file with uid, hist_ad_pid and target_ad_pid; .*Set data\.domain"):
        load_dataset(replace(config, domain="ad"), seed=0)


def test_users_with_broken_lists_are_counted_and_left_out(tmp_path: Path) -> None:
    users = {name: list(values) for name, values in USERS.items()}
    users["hist_video_longview"][0] = [1, 0]
    users["target_video_pid"][2] = [11, None]
    users["target_video_longview"][2] = users["target_video_like"][2] = [0, 1]
    for name in ("follow", "forward", "not_interested"):
        users[f"target_video_{name}"][2] = [0, 0]
    config = release(tmp_path, users, max_malformed=0.7)
    data = load_dataset(config, seed=0)
    assert data.catalogue.ids[data.interactions.item].tolist() == ["12"]
    assert data.interactions.feedback is not None
    assert data.interactions.feedback.tolist() == [CLICK]
    assert data.notes[0] == (
        "onerec_bench_release.parquet: 3 rows, 2 malformed and left out, such as onerec_bench_release.parquet row 1: "
        "hist_video_longview is not as long as hist_video_pid: uid 5; onerec_bench_release.parquet row 3: a null in "
        "target_video_pid: uid 8"
    )
    with pytest.raises(ValueError, match=r"data\.max_malformed = 0\.01 allows"):
        load_dataset(replace(config, max_malformed=0.01), seed=0)


def test_a_missing_uid_is_malformed(tmp_path: Path) -> None:
    users = USERS | {"uid": [5, None, 8]}
    data = load_dataset(release(tmp_path, users, max_malformed=0.5), seed=0)
    assert len(np.unique(data.interactions.user)) == 2
    assert "row 2: no uid" in data.notes[0]


def test_k_core_and_folder_without_parquet(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \*\.parquet; expected a folder with Parquet files"):
        load_dataset(DataConfig(name="openonerec", path=str(tmp_path)), seed=0)
    config = release(tmp_path, min_events=1)
    (tmp_path / "more.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"more\.parquet: not a readable Parquet file"):
        load_dataset(config, seed=0)
    (tmp_path / "more.parquet").unlink()
    data = load_dataset(config, seed=0)
    assert data.catalogue.ids.tolist() == ["11", "12"]
    assert data.notes[2] == "1-core: 3 -> 3 users, 2 -> 2 items, 5 -> 5 events"
