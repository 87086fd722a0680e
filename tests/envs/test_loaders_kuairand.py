"""KuaiRand-style logs on small files: feedback, play time, what stays empty, and their splits."""

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.records import CLICK, NEGATIVE, ORDER, SHOWN
from sidgym.envs.splits import find_labels, split

FLAGS = ["is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view"]
HEADER = ["user_id", "video_id", "date", "hourmin", "time_ms", *FLAGS, "play_time_ms", "duration_ms", "is_rand", "tab"]


def row(user: int, video: int, ms: int, *flags: str, play: int = 1500, rand: int = 0) -> str:
    values = [user, video, 20220408, 1600, ms, *(int(flag in flags) for flag in FLAGS), play, 60_000 + video, rand, 1]
    return ",".join(map(str, values))


STANDARD = [
    row(3, 20, 1649408076860, "is_click"),
    row(3, 7, 1649408000000),
    row(3, 9, 1649408076861, "is_click", "is_hate", play=0),
    row(4, 7, 1649408000000, "long_view", "is_like"),
]
RANDOM = [row(3, 7, 1649408076862, "long_view", rand=1)]


def kuairand(folder: Path, standard: list[str] = STANDARD, **more: Any) -> DataConfig:
    (folder / "log_standard_1.csv").write_text("\n".join([",".join(HEADER), *standard]) + "\n")
    text = "\n".join([",".join(HEADER), *RANDOM]) + "\n"
    (folder / "log_random_1.csv.gz").write_bytes(gzip.compress(text.encode()))
    return DataConfig(**({"name": "kuairand", "path": str(folder), "min_events": 0} | more))


def test_impressions_with_feedback_and_play_time(tmp_path: Path) -> None:
    data = load_dataset(kuairand(tmp_path), seed=0)
    log, ids = data.interactions, data.catalogue.ids
    assert ids.tolist() == ["7", "9", "20"]
    assert ids[log.item].tolist() == ["7", "20", "9", "7", "7"]
    assert log.feedback is not None
    assert log.feedback.tolist() == [SHOWN, CLICK, NEGATIVE, CLICK, ORDER]
    assert log.feedback.dtype == np.int8
    assert log.time is not None
    assert log.time[1] == 1649408076.860
    assert log.play_time is not None
    assert log.play_time.tolist() == [1.5, 1.5, 0.0, 1.5, 1.5]
    assert (log.page, log.position, log.propensity) == (None, None, None)
    assert data.catalogue.duration is not None
    np.testing.assert_allclose(data.catalogue.duration, [60.007, 60.009, 60.02], rtol=1e-6)
    assert "1 of 5 rows were shown at random; the log does not say how probably" in data.notes
    assert any(
        "orders are is_like, is_follow, is_comment, is_forward; clicks is_click, long_view" in n for n in data.notes
    )


def test_the_columns_that_count_can_be_chosen(tmp_path: Path) -> None:
    config = kuairand(tmp_path, clicks=("is_like",), orders=("is_click",))
    log = load_dataset(config, seed=0).interactions
    assert log.feedback is not None
    assert log.feedback.tolist() == [SHOWN, ORDER, NEGATIVE, SHOWN, CLICK]
    with pytest.raises(
        ValueError, match=r"data\.orders: no column is_paid in the log; the columns present are user_id"
    ):
        load_dataset(replace(config, orders=("is_paid",)), seed=0)


def test_logs_of_other_houses_may_have_pages_and_seconds(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,page_id,position,bought\nann,x y,5,1,0,0\nann,z,5,1,1,1\nbob,z,7,2,0,1\n"
    (tmp_path / "log_mine.csv").write_text(text)
    config = DataConfig(name="kuairand", path=str(tmp_path), min_events=0, clicks=("bought",))
    data = load_dataset(config, seed=0)
    log = data.interactions
    assert data.catalogue.ids.tolist() == ["x y", "z"]
    assert log.page is not None
    assert log.position is not None
    assert log.page.tolist() == [1, 1, 2]
    assert log.position.tolist() == [0, 1, 0]
    assert log.time is not None
    assert log.time.tolist() == [5.0, 5.0, 7.0]
    with pytest.raises(ValueError, match="no event would be positive; name the feedback columns"):
        load_dataset(replace(config, clicks=()), seed=0)
    (tmp_path / "log_mine.csv").write_text("user_id,time_ms\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns user_id, video_id or item_id"):
        load_dataset(config, seed=0)


HOUSE = DataConfig(name="kuairand", min_events=0, clicks=("bought",))
NAMES = "user_id,item_id,timestamp,page_id,position,bought\n"


def test_pages_with_large_numbers_or_names_stay_apart(tmp_path: Path) -> None:
    big = 2**53
    pages = [big, big + 1, 2**63 - 1, 2**63 - 2, "007", "7", "4f-a", "4f-b"]
    rows = [f"ann,{i},{i},{page},0,1" for i, page in enumerate(pages) for _ in range(2)]
    (tmp_path / "log_mine.csv").write_text(NAMES + "\n".join(rows) + "\n")
    page = load_dataset(replace(HOUSE, path=str(tmp_path)), seed=0).interactions.page
    assert page is not None
    assert page[:4].tolist() == [big, big, big + 1, big + 1]
    assert len(np.unique(page)) == len(pages)
    assert (page[::2] == page[1::2]).all()


def test_pages_come_one_after_the_other_by_position(tmp_path: Path) -> None:
    rows = ["ann,a,5,p,1,1", "ann,b,5,p,0,1", "ann,c,7,q,0,1", "ann,d,9,p,2,1", "bob,a,1,r,1,0", "bob,c,1,r,0,1"]
    (tmp_path / "log_mine.csv").write_text(NAMES + "\n".join(rows) + "\n")
    config = replace(HOUSE, path=str(tmp_path))
    data = load_dataset(config, seed=0)
    log = data.interactions
    assert data.catalogue.ids[log.item].tolist() == ["b", "a", "d", "c", "c", "a"]
    assert log.time is not None
    assert log.time.tolist() == [5, 5, 5, 7, 1, 1]
    assert find_labels(log).end.tolist() == [3, 4, 5]  # each page is in one piece
    assert any(note.startswith("1 events come before the one that stands ahead") for note in data.notes)
    # Without pages, positions order what happened at one time.
    (tmp_path / "log_mine.csv").write_text((NAMES + "\n".join(rows) + "\n").replace("page_id", "sheet"))
    data = load_dataset(config, seed=0)
    assert data.catalogue.ids[data.interactions.item].tolist() == ["b", "a", "c", "d", "c", "a"]
    assert data.interactions.time is not None
    assert data.interactions.time.tolist() == [5, 5, 7, 9, 1, 1]


def test_files_beside_the_log_describe_the_videos(tmp_path: Path) -> None:
    config = kuairand(tmp_path)
    basic = 'video_id,video_duration,tag\n7,10000.0,"12,65"\n9,,3\n8,1,4\n'
    (tmp_path / "video_features_basic_1.csv").write_text(basic)
    levels = [
        f"{level}_level_category_{what}" for level in ("first", "second", "third", "fourth") for what in ("id", "name")
    ]
    (tmp_path / "kuairand_video_categories.csv").write_text(
        "final_video_id," + ",".join(levels) + "\n9,1,Music,2,Jazz,-124,UNKNOWN,-124,UNKNOWN\n"
    )
    captions = tmp_path / "kuairand_video_captions.csv"
    captions.write_text('final_video_id,caption\n7,"one,\n two"\n9,\n20,a b c\n20,too\n')
    items = load_dataset(config, seed=0).catalogue
    assert items.categories == (("tag 12", "tag 65"), ("Music", "Jazz"), ())
    assert items.titles == ("one, two", "", "a b c")
    kept = load_dataset(replace(config, title_words=2), seed=0).catalogue
    assert kept.ids.tolist() == ["7", "20"]
    assert kept.titles == ("one, two", "too")  # the first that stays
    captions.write_bytes(b"final_video_id,caption\n7,\xff\n")
    with pytest.raises(ValueError, match=r"kuairand_video_captions\.csv: 1 rows, 1 malformed"):
        load_dataset(replace(config, title_words=2), seed=0)
    captions.unlink()
    with pytest.raises(ValueError, match=r"title_words reads captions, and .* holds no"):
        load_dataset(replace(config, title_words=2), seed=0)
    (tmp_path / "video_features_basic_1.csv").write_text("video_id,video_duration,tag\n7,long,1\n9,,3\n")
    items = load_dataset(replace(config, max_malformed=0.5), seed=0)
    assert items.catalogue.categories == ((), ("Music", "Jazz"), ())
    assert any("line 2: no number in 'video_duration': 7,long,1" in note for note in items.notes)


def test_malformed_rows_are_counted_and_shown(tmp_path: Path) -> None:
    bad = [row(5, 7, 1649408000000).replace("1649408000000", "soon"), "5,7"]
    config = kuairand(tmp_path, STANDARD + bad, max_malformed=0.5)
    data = load_dataset(config, seed=0)
    assert len(data.interactions) == 5
    note = data.notes[0]
    assert note.startswith("log_random_1.csv.gz, log_standard_1.csv: 7 rows, 2 malformed and left out, such as ")
    assert "log_standard_1.csv line 6: no number in 'time_ms': 5,7,20220408,1600,soon" in note
    assert "log_standard_1.csv line 7: 2 fields instead of 16: 5,7" in note
    with pytest.raises(ValueError, match=r"data\.max_malformed = 0\.01 allows"):
        load_dataset(replace(config, max_malformed=0.01), seed=0)


def test_the_k_core_counts_positive_events_and_the_log_can_be_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [row(int(rng.integers(6)), int(rng.integers(4)), 1649408000000 + ms, *(["is_click"] if rng.random() < 0.7
                else [])) for ms in range(150)]  # fmt: skip
    rows += [row(77, 1, 1649408000000 + ms) for ms in range(9)]  # a user who never clicks
    config = kuairand(
        tmp_path, rows, min_events=5, split="chronological", valid_share=0.1, test_share=0.1, rl_share=0.2
    )
    data = load_dataset(config, seed=0)
    assert len(np.unique(data.interactions.user)) == 6
    assert data.interactions.feedback is not None
    assert (data.interactions.feedback == SHOWN).any()
    splits = split(data, config, seed=0)
    assert min(len(splits.rl), len(splits.valid), len(splits.test)) > 0
