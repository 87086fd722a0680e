"""Reader of KuaiRand-style logs: ``log_*.csv`` with one row an impression, its play time and its feedback.

Columns: ``user_id``; ``video_id`` or ``item_id``; ``time_ms``, or ``timestamp`` in seconds; feedback as columns of 0
and 1; and, where there are any, ``play_time_ms``, ``duration_ms``, ``page_id`` (any text), ``position``. A user's log
is in the order of time; where there are pages, in the order in which they start, and on each by position. KuaiRand's
standard and random logs are read together. It tells neither pages nor probabilities of exposure, so these stay empty.
A folder without such files may hold KuaiRec's ``big_matrix.csv``, else ``small_matrix.csv``: ``play_duration`` and
``video_duration`` are in ms, too. A shop's pages are such a log with ``page_id``, ``position``, ``click``, ``order``.

Feedback is NEGATIVE where ``is_hate`` is set, else ORDER where one of ``orders`` is (like, follow, comment, forward,
order), else CLICK where one of ``clicks`` is (click, long view, a ``watch_ratio`` of at least 1), else SHOWN. A column
may be given with a threshold, ``watch_ratio>=0.8``. What kind of feedback it was stays in ``Interactions.signals``.
Left out: what is known of the users, and counts over the whole log (``video_features_statistic``), which know the
future.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sidgym.envs.config import DataConfig
from sidgym.envs.filters import Ledger, keeps_title
from sidgym.envs.raw_columns import Columns, csv_blocks
from sidgym.envs.raw_files import Reading, csv_header, csv_items, find_files, total_size
from sidgym.envs.records import CLICK, NEGATIVE, ORDER, SHOWN, Catalogue, Interactions, pack_signals
from sidgym.envs.streaming import Events, keys_of_pages, keys_of_text, keys_of_titled, read_log

PATTERNS = ("log_*.csv", "log_*.csv.gz")
MATRICES = ("big_matrix.csv*", "small_matrix.csv*")
"""KuaiRec's logs, the first that is there: the small one holds what was shown to test users for the purpose."""
EXPECTED = "log_*.csv (user_id, video_id, time_ms, is_click ...), and optionally video_features_basic_*.csv"
CLICKS = ("is_click", "long_view", "click", "watch_ratio>=1")
ORDERS = ("is_like", "is_follow", "is_comment", "is_forward", "order")
HATES = ("is_hate",)
SIGNAL_COLUMNS = {
    "long_view": "long_view",
    "is_like": "like",
    "is_follow": "follow",
    "is_comment": "comment",
    "is_forward": "forward",
    "cart": "cart",
}
"""Columns, and the names in ``records.SIGNALS`` under which they travel."""
PLAY, DURATION = ("play_time_ms", "play_duration"), ("duration_ms", "video_duration")
"""Names of the play time and of the duration in ms."""
RANDOM = "is_rand"
LEVELS = ("first", "second", "third", "fourth")
CAPTIONS = "*video_captions.csv*"
TAGS = "item_categories.csv*"
CAPTION_COLUMNS = ("final_video_id", "caption")


@dataclass(frozen=True)
class Layout:
    """The columns of the logs that are read."""

    item: str
    time: str
    clicks: tuple[str, ...]
    orders: tuple[str, ...]
    hates: tuple[str, ...]
    optional: tuple[str, ...]  # of PLAY, DURATION, SIGNAL_COLUMNS, position, is_rand
    page: tuple[str, ...]  # page_id, or none

    @property
    def numbers(self) -> list[str]:
        """The columns of numbers, each once."""
        signs = [_column_of(sign) for sign in (*self.clicks, *self.orders, *self.hates)]
        return list(dict.fromkeys([self.time, *signs, *self.optional]))


def feedback_of(negative: np.ndarray, order: np.ndarray, click: np.ndarray) -> np.ndarray:
    """The strongest of three signs of each event, (n,) bool each; a negative one beats the others. (n,) int8."""
    value = np.where(click, CLICK, SHOWN)
    return np.where(negative, NEGATIVE, np.where(order, ORDER, value)).astype(np.int8)


def chosen_columns(
    setting: str, wanted: tuple[str, ...], usual: Sequence[str], present: Sequence[str]
) -> tuple[str, ...]:
    """The feedback columns that a setting names, else those of the usual ones that are there.

    Raises ``ValueError`` for one that is not there.
    """
    missing = [name for name in wanted if name not in present]
    if missing:
        raise ValueError(
            f"data.{setting}: no column {', '.join(missing)} in the log; the columns present are {', '.join(present)}"
        )
    return wanted or tuple(name for name in usual if name in present)


def _column_of(sign: str) -> str:
    """The column of a sign such as ``is_click`` or ``watch_ratio>=0.8``."""
    return sign.partition(">=")[0].strip()


def _chosen_signs(
    setting: str, wanted: tuple[str, ...], usual: Sequence[str], present: Sequence[str]
) -> tuple[str, ...]:
    """``chosen_columns`` of signs that may have a threshold; ``ValueError`` for one that is no number."""
    for sign in wanted:
        try:
            threshold = float(sign.partition(">=")[2] or "0")
        except ValueError:
            threshold = np.nan
        if not np.isfinite(threshold):
            raise ValueError(f"data.{setting}: expected a column, or a column>=number, got {sign!r}")
    chosen_columns(setting, tuple(_column_of(sign) for sign in wanted), (), present)
    return wanted or tuple(sign for sign in usual if _column_of(sign) in present)


def _layout(paths: Sequence[Path], config: DataConfig) -> Layout:
    headers = [csv_header(path) for path in paths]
    present = [name for name in headers[0] if all(name in header for header in headers)]
    item = next((name for name in ("video_id", "item_id") if name in present), "")
    time = next((name for name in ("time_ms", "timestamp") if name in present), "")
    if not item or not time or "user_id" not in present:
        raise ValueError(
            f"{paths[0].parent}: expected the columns user_id, video_id or item_id, time_ms or timestamp in every log; "
            f"all of {', '.join(path.name for path in paths)} have {', '.join(present)}"
        )
    layout = Layout(
        item,
        time,
        _chosen_signs("clicks", config.clicks, CLICKS, present),
        _chosen_signs("orders", config.orders, ORDERS, present),
        tuple(name for name in HATES if name in present),
        tuple(n for n in (*PLAY, *DURATION, *SIGNAL_COLUMNS, "position", RANDOM) if n in present),
        tuple(n for n in ("page_id",) if n in present),
    )
    if not layout.clicks and not layout.orders:
        raise ValueError(
            f"{paths[0].parent}: none of {', '.join((*CLICKS, *ORDERS))} is a column of the logs, so no event would be "
            f"positive; name the feedback columns in data.clicks. The columns present are {', '.join(present)}"
        )
    return layout


def _any(columns: Columns, signs: Sequence[str]) -> np.ndarray:
    """Whether one of the signs is given: its column is above 0, or at least at its threshold."""
    if not signs:
        return np.zeros(1, dtype=bool)
    parts = [(columns[_column_of(sign)], sign.partition(">=")[2]) for sign in signs]
    return np.logical_or.reduce([values >= float(least) if least else values > 0 for values, least in parts])


def _events(paths: Sequence[Path], layout: Layout, reading: Reading) -> Iterator[Events]:
    scale = 1e3 if layout.time.endswith("_ms") else 1.0
    for path in paths:
        text = ["user_id", layout.item, *layout.page]
        for columns in csv_blocks(path, csv_header(path), text, layout.numbers, reading):
            who, user_keys, _ = keys_of_text(columns["user_id"])
            code, items, names = keys_of_text(columns[layout.item])
            more = {name: columns[name] for name in layout.optional}
            reading.counts[RANDOM] += int((more[RANDOM] > 0).sum()) if RANDOM in more else 0
            signs = [_any(columns, names) for names in (layout.hates, layout.orders, layout.clicks)]
            flags = {own: more[name] > 0 for name, own in SIGNAL_COLUMNS.items() if name in more}
            yield Events(
                user_keys[who],
                code,
                items,
                names,
                time=columns[layout.time] / scale,
                feedback=np.broadcast_to(feedback_of(*signs), len(who)),
                play_time=_seconds(next((more[name] for name in PLAY if name in more), None)),
                duration=_seconds(next((more[name] for name in DURATION if name in more), None)),
                page=keys_of_pages(columns["page_id"]) if layout.page else None,
                position=_whole(more.get("position")),
                signals=pack_signals(flags),
            )


def _seconds(milliseconds: np.ndarray | None) -> np.ndarray | None:
    return None if milliseconds is None else (milliseconds / 1e3).astype(np.float32)


def _whole(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else values.astype(np.int64)


@dataclass
class _Videos:
    """What files beside the log say of the videos that are asked for, by name."""

    tags: dict[str, tuple[str, ...]]
    paths: dict[str, tuple[str, ...]]
    captions: dict[str, str]
    duration: dict[str, float]


def _side_files(folder: Path, config: DataConfig, ledger: Ledger, wanted: set[str]) -> _Videos:
    """``video_features_basic_*`` (tags, duration), ``*_video_categories``, ``*_video_captions`` and KuaiRec's
    ``item_categories`` (tags), where there."""
    videos = _Videos({}, {}, {}, {})
    kinds = {
        "video_features_basic*.csv*": ("video_id", "video_duration", "tag"),
        "*video_categories.csv*": ("final_video_id", *(f"{level}_level_category_name" for level in LEVELS)),
        CAPTIONS: CAPTION_COLUMNS,
        TAGS: ("video_id", "feat"),
    }
    for pattern, columns in kinds.items():
        for path in sorted(folder.glob(pattern)):
            reading = Reading()
            for line, row in csv_items(path, columns, reading):
                name, *values = row.values()
                if pattern.startswith("video_features"):
                    duration = _milliseconds(values[0])
                    if duration is None:
                        reading.bad(f"{path.name} line {line}", "no number in 'video_duration'", ",".join(row.values()))
                    elif name in wanted:
                        videos.duration[name] = duration
                        videos.tags[name] = _tags(values[1])
                elif name not in wanted:
                    continue
                elif pattern == TAGS:
                    videos.tags[name] = _tags(values[0].strip("[] "))
                elif pattern == CAPTIONS:
                    if not keeps_title(videos.captions.get(name, ""), config.title_words):
                        videos.captions[name] = " ".join(values[0].split())
                else:
                    videos.paths[name] = tuple(v for v in values if v and v != "UNKNOWN")
            reading.check(path.name, config.max_malformed)
            ledger.note(reading.described(path.name))
    return videos


def _tags(text: str) -> tuple[str, ...]:
    return tuple(f"tag {tag.strip()}" for tag in text.split(",") if tag.strip())


def _milliseconds(text: str) -> float | None:
    """Seconds; NaN where nothing is said, ``None`` for what is no number."""
    try:
        seconds = float(text or "nan") / 1e3
    except ValueError:
        return None
    return None if np.isinf(seconds) else seconds


def _allowed(folder: Path, config: DataConfig) -> np.ndarray | None:
    """Keys of the videos with a caption that ``title_words`` lets through, sorted."""
    if not config.title_words:
        return None
    paths = sorted(folder.glob(CAPTIONS))
    if not paths:
        raise ValueError(f"data.title_words reads captions, and {folder} holds no {CAPTIONS}; set it to 0")
    parts = []
    for path in paths:
        reading = Reading()
        rows = (row.values() for _, row in csv_items(path, CAPTION_COLUMNS, reading))
        parts.append(keys_of_titled(name for name, title in rows if keeps_title(title, config.title_words)))
        reading.check(path.name, config.max_malformed)
    return np.unique(np.concatenate(parts))


def read_kuairand(folder: Path, config: DataConfig, ledger: Ledger) -> tuple[Catalogue, Interactions]:
    """Catalogue and filtered log, with impressions, feedback and play time.

    ``categories`` are the path of ``*_video_categories.csv``, else the tags of ``video_features_basic``; titles are the
    captions of ``*_video_captions.csv``. Raises ``FileNotFoundError`` or ``ValueError`` that names file and fault.
    """
    matrix = [path for pattern in MATRICES for path in sorted(folder.glob(pattern))][:1]
    paths = matrix if matrix and not any(folder.glob("log_*.csv*")) else find_files(folder, PATTERNS, EXPECTED)
    layout = _layout(paths, config)
    allowed = _allowed(folder, config)
    last = Reading()

    def source(reading: Reading) -> Iterator[Events]:
        nonlocal last
        last = reading
        return _events(paths, layout, reading)

    what = ", ".join(path.name for path in paths)
    catalogue, log = read_log(source, what, total_size(paths), config, ledger, allowed)
    ledger.note(
        f"feedback: orders are {', '.join(layout.orders) or 'none'}; clicks {', '.join(layout.clicks) or 'none'}; "
        f"negative {', '.join(layout.hates) or 'none'}"
    )
    if RANDOM in layout.optional:
        ledger.note(
            f"{last.counts[RANDOM]} of {last.rows} rows were shown at random; the log does not say how probably"
        )
    if log.page is None:
        ledger.note("no pages: the log does not say what was shown together, so every positive event is a label")
    ids = catalogue.ids.tolist()
    videos = _side_files(folder, config, ledger, set(ids))
    if not videos.captions:
        ledger.note("no item text: text embedders and text tasks cannot be used; give a ready-made index of SIDs")
    duration = catalogue.duration
    if duration is None and videos.duration:
        duration = np.array([videos.duration.get(name, np.nan) for name in ids], dtype=np.float32)
    return replace(
        catalogue,
        titles=tuple(videos.captions.get(name, "") for name in ids),
        categories=tuple(videos.paths.get(name) or videos.tags.get(name, ()) for name in ids),
        duration=duration,
    ), log
