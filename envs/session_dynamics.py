"""Sessions with simulated shoppers: page after page, each answered by the shopper, until the shopper stays away.

Pure functions with explicit state: ``open_sessions`` -> (``play_page`` -> ``session_rewards``)*. A ``Sessions`` never
changes, so a learner may fork one (``sessions.take`` with repeated rows) and show each copy another page. How shoppers
answer, leave and come back is the simulator's own ``respond`` and ``advance``: log and live session run one dynamics.
``SessionDynamics`` keeps sessions in slots for the environments (``session``). Left out: agents and what they
can reach (``session_oracle``), spaces and everything else of Gymnasium.

Symbols: B sessions, T history length, S items a page, L levels of a SID, N items.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from sidgym.envs.dynamics import Transition, check_count, repeats
from sidgym.envs.logged import codes_of
from sidgym.envs.records import CLICK, ORDER, PAD_ITEM, SHOWN, Catalogue, Episodes, Rollouts
from sidgym.envs.render import context_line, item_title, parts_text, path_text
from sidgym.envs.rewards import RewardContext, RewardSum, Scores, Term, check_page_reward
from sidgym.envs.simulator import Shoppers, advance, draw_page, new_shoppers, respond
from sidgym.envs.simulator_world import World
from sidgym.sid.table import SidTable

_USER_NUMBERS = 1 << 31
"""Shoppers of an environment are numbered below this."""

_DEEDS = {-1: "disliked", 0: "passed over", 1: "clicked", 2: "ordered"}


@dataclass(frozen=True)
class Sessions:
    """Shoppers between two pages, and what an agent may know of them. ``shoppers`` itself is hidden."""

    shoppers: Shoppers  # B shoppers
    history: np.ndarray  # (B, T) int64 clicked items, most recent last, PAD_ITEM on the left
    shown: np.ndarray  # (B, S) int64 items of the last page by position, PAD_ITEM where the place was empty
    feedback: np.ndarray  # (B, S) int8 what was done with them, SHOWN at padding
    pages: np.ndarray  # (B,) int64 pages of this episode so far

    def __len__(self) -> int:
        return len(self.history)

    @property
    def done(self) -> np.ndarray:
        """Whether the shopper has left for good, (B,) bool."""
        return self.shoppers.done

    @property
    def new_session(self) -> np.ndarray:
        """Whether the shopper has come back since the last page, so that the taste may have changed; (B,) bool."""
        return (self.shoppers.page_of_session == 0) & (self.shoppers.page > 0)

    def take(self, rows: np.ndarray) -> "Sessions":
        """The given rows (boolean mask or indices); a row taken several times is a fork of the session."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        shoppers = parts.pop("shoppers").take(rows)
        return Sessions(shoppers=shoppers, **{name: value[rows] for name, value in parts.items()})

    def put(self, rows: np.ndarray, part: "Sessions") -> "Sessions":
        """The same sessions with ``part`` in the given rows, in new arrays."""
        shoppers = _with_rows(self.shoppers, part.shoppers, rows)
        return replace(_with_rows(self, part, rows, skip="shoppers"), shoppers=shoppers)


def open_sessions(
    world: World, users: np.ndarray, length: int, page_size: int, warm_pages: int, rng: np.random.Generator
) -> Sessions:
    """New shoppers, numbered ``users`` (B,), with the history from ``warm_pages`` pages of the logging recommender.

    The sessions that a shopper will come for are counted from the one in which the episode starts: leaving during the
    warm-up uses none of them up. So nobody is gone before the first page, and as the count is drawn apart from taste
    and clicks, no kind of shopper is preferred. Raises ``ValueError`` for sizes that cannot be.
    """
    return open_with_pages(world, users, length, page_size, warm_pages, rng)[0]


def open_with_pages(
    world: World, users: np.ndarray, length: int, page_size: int, warm_pages: int, rng: np.random.Generator
) -> tuple[Sessions, list[tuple[Episodes, Sessions]]]:
    """``open_sessions`` and what happened in the warm-up: each page played with the sessions after it."""
    if length < 1 or warm_pages < 0 or not 1 <= page_size <= len(world.shelf):
        raise ValueError(
            f"sessions: expected length >= 1, warm_pages >= 0 and page_size in [1, {len(world.shelf)}] (the number of "
            f"items), got {length}, {warm_pages} and {page_size}"
        )
    shoppers, count = new_shoppers(world, np.asarray(users), rng), len(users)
    planned = shoppers.sessions
    # A page ends at most one session, so nobody can use up this many.
    shoppers = replace(shoppers, sessions=planned + np.int32(warm_pages))
    sessions = Sessions(
        shoppers=shoppers,
        history=np.full((count, length), PAD_ITEM, dtype=np.int64),
        shown=np.full((count, page_size), PAD_ITEM, dtype=np.int64),
        feedback=np.full((count, page_size), SHOWN, dtype=np.int8),
        pages=np.zeros(count, dtype=np.int64),
    )
    warm = []
    for _ in range(warm_pages):
        items, _ = draw_page(world, sessions.shoppers, rng, page_size)
        sessions, played = play_page(world, sessions, items, rng)
        warm.append((played, sessions))
    shoppers = replace(sessions.shoppers, session=np.zeros_like(planned), sessions=planned)
    return replace(sessions, shoppers=shoppers, pages=np.zeros(count, dtype=np.int64)), warm


def episodes_of(sessions: Sessions) -> Episodes:
    """The contexts in which an agent chooses the next page; the targets are not known yet, (B, 1) PAD_ITEM."""
    shoppers = sessions.shoppers
    targets = np.full((len(sessions), 1), PAD_ITEM, dtype=np.int64)
    return Episodes(shoppers.user, shoppers.user, sessions.history, targets, taste=shoppers.taste)


def play_page(
    world: World, sessions: Sessions, items: np.ndarray, rng: np.random.Generator
) -> tuple[Sessions, Episodes]:
    """Shows a page of items (B, S) to each shopper; the sessions after it, and the page as ``Episodes``.

    PAD_ITEM is an empty place and so is every later copy of an item; the other items keep their positions. The
    episodes hold the history and the taste from before the page, ``page``, ``feedback``, ``play_time``, and as targets
    (B, S) the items ordered, then those clicked, each in page order. Raises ``ValueError`` for a session that is over
    and for items that do not exist.
    """
    if sessions.done.any():
        over = np.flatnonzero(sessions.done)
        raise ValueError(f"play_page: the shoppers of rows {over[:5].tolist()} have left; pass sessions.take(~done)")
    if items.shape != sessions.shown.shape:
        raise ValueError(f"play_page: expected pages of shape {sessions.shown.shape}, got {items.shape}")
    if items.size and not (items.min() >= PAD_ITEM and items.max() < len(world.shelf)):
        raise ValueError(f"play_page: expected items in [0, {len(world.shelf)}) or PAD_ITEM = {PAD_ITEM}")
    return play_any(world, sessions, items, rng)


def play_any(
    world: World, sessions: Sessions, items: np.ndarray, rng: np.random.Generator, every_row: bool = False
) -> tuple[Sessions, Episodes]:
    """``play_page`` without its checks: sessions that are over stay over, and use up their random numbers.

    With ``every_row`` row u gets the same random numbers whatever is shown, here and in the other rows; see
    ``simulator.advance``.
    """
    shoppers = sessions.shoppers
    page = without_repeats(items)
    answer = respond(world, shoppers, page, rng)
    clicked, ordered = answer.feedback >= CLICK, answer.feedback == ORDER
    everything = np.concatenate([sessions.history, page], axis=1)
    kept = np.concatenate([sessions.history != PAD_ITEM, clicked], axis=1)
    history = _packed(everything[:, ::-1], kept[:, ::-1])[:, : sessions.history.shape[1]][:, ::-1]
    targets = _packed(np.concatenate([page, page], axis=1), np.concatenate([ordered, clicked & ~ordered], axis=1))
    played = Episodes(
        index=shoppers.user,
        user=shoppers.user,
        history=sessions.history,
        targets=targets[:, : page.shape[1]],
        page=page,
        feedback=answer.feedback,
        play_time=answer.play_time,
        taste=shoppers.taste,
    )
    moved = advance(world, shoppers, page, answer, rng, every_row)
    after = Sessions(moved, np.ascontiguousarray(history), page, answer.feedback, sessions.pages + 1)
    return after, played


def without_repeats(items: np.ndarray) -> np.ndarray:
    """Pages (B, S) with PAD_ITEM in the place of every later copy of an item."""
    return np.where(repeats(items), PAD_ITEM, items).astype(np.int64)


def _packed(items: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The items to ``keep`` (B, W) moved to the left in their order, PAD_ITEM behind them."""
    out = np.full(items.shape, PAD_ITEM, dtype=np.int64)
    rows, columns = np.nonzero(keep)
    out[rows, (np.cumsum(keep, axis=1) - 1)[rows, columns]] = items[rows, columns]
    return out


def session_rewards(
    played: Episodes, reward: RewardSum, table: SidTable | None = None, codes: np.ndarray | None = None
) -> tuple[np.ndarray, Scores]:
    """What pages were worth, (B,) float64, and how the reward came to it: ``total`` and every term's values (B, S).

    The one function that environments and learners call. The places of a page are its group, in the order of the page;
    a page is worth the sum over its places, and an empty place is an invalid candidate: 0, unless ``reward`` says
    otherwise. The SIDs of the group are ``codes`` (B, S, L), or those of the page's items in ``table``, by default the
    table that the reward was built with. Raises ``ValueError`` for episodes without a page, and where there are neither
    codes nor a table: a reward that reads SIDs would take them all for equal.
    """
    page = played.page
    if page is None:
        raise ValueError("session_rewards: expected episodes that play_page returned; these hold no page")
    if codes is None:
        table = reward.context.table if table is None else table
        if table is None:
            raise ValueError(
                "session_rewards: expected a table or codes, as a reward may read SIDs, and the reward's own context "
                "holds no table; pass table= or build the reward with RewardContext(table)"
            )
        codes = codes_of(page, table)
    scores = reward.score(played, shown_page(page, codes))
    return scores.total.sum(axis=1, dtype=np.float64), scores


def shown_page(page: np.ndarray, codes: np.ndarray) -> Rollouts:
    """Pages of items (B, S) and their SIDs (B, S, L) as groups, ranked as they stand on the page."""
    logp = np.zeros(codes.shape, dtype=np.float32)
    return Rollouts(codes, page != PAD_ITEM, page[:, :, None], logp, mode="given", normalise="trie")


class SessionDynamics:
    """``size`` sessions side by side; see ``dynamics.Dynamics`` for the methods and ``session`` for what they mean.

    Actions are SIDs (n, S, L). Where a SID holds several items, the first of them is shown.
    """

    def __init__(
        self,
        world: World,
        table: SidTable,
        reward: RewardSum | None = None,
        size: int = 1,
        page_size: int = 5,
        history: int = 10,
        warm_pages: int = 3,
        max_pages: int | None = 100,
        catalogue: Catalogue | None = None,
    ) -> None:
        """``reward`` is ``engagement`` by default. Raises ``ValueError`` where the arguments do not fit together."""
        if table.num_items != len(world.shelf):
            raise ValueError(f"table: expected the SIDs of the world's {len(world.shelf)} items, got {table.num_items}")
        size, page_size = check_count("num_envs", size), check_count("page_size", page_size)
        history, warm_pages = check_count("history", history), check_count("warm_pages", warm_pages, 0)
        max_pages = None if max_pages is None else check_count("max_pages (None for no limit)", max_pages)
        self.world, self.table, self.size = world, table, size
        self.reward = reward or RewardSum([Term("engagement")], RewardContext(table), page_size)
        check_page_reward(self.reward)
        self.page_size, self.history, self.warm_pages, self.max_pages = page_size, history, warm_pages, max_pages
        self.catalogue = catalogue
        self._all = np.arange(size)
        self._sessions = self._open(self._all, np.random.default_rng(0))  # replaced when the episodes begin
        self._played: tuple[Episodes, np.ndarray, Scores] | None = None  # and the SIDs asked for
        self._row = np.full(size, -1)  # row of each slot in the pages last played, -1 before an episode's first

    @property
    def sessions(self) -> Sessions:
        """The sessions of all slots."""
        return self._sessions

    def begin(self, slots: np.ndarray, rng: np.random.Generator, options: dict[str, Any]) -> dict[str, np.ndarray]:
        """New shoppers in the slots; there are no options."""
        if options:
            raise ValueError(f"reset: a session has no options, got {sorted(options)}")
        self._put(slots, self._open(slots, rng))
        self._row[slots] = -1
        return self._numbers(self._rows(slots))

    def step(self, slots: np.ndarray, actions: np.ndarray, rng: np.random.Generator) -> Transition:
        """Shows a page to the shopper of each slot."""
        actions = np.array(actions, dtype=np.int64)  # a copy: it is shown by render
        trie = self.table.trie
        items = trie.items_of(trie.leaf_of(torch.from_numpy(actions))).numpy()[..., 0]
        after, played = play_page(self.world, self._rows(slots), items, rng)
        reward, scores = session_rewards(played, self.reward, codes=actions)
        self._put(slots, after)
        self._played, self._row[:] = (played, actions, scores), -1
        self._row[slots] = np.arange(len(slots))
        left = after.done
        limit = np.zeros_like(left) if self.max_pages is None else ~left & (after.pages >= self.max_pages)
        assert played.page is not None
        assert played.feedback is not None
        assert played.play_time is not None
        info = {
            "items": played.page,
            "rewards": scores.total,
            "feedback": played.feedback,
            "play_time": played.play_time,
            "legal": (items != PAD_ITEM).all(axis=1),
            "distinct": (played.page == items).all(axis=1),
            "left": left,
        }
        # Copies: from these arrays the next page is played, and they are what is rendered.
        info = {key: value.copy() for key, value in info.items()} | self._numbers(after)
        return Transition(reward, left.copy(), limit, info)

    def observe(self, slots: np.ndarray) -> dict[str, np.ndarray]:
        """Histories and last pages as SIDs, -1 where there is none."""
        sessions = self._rows(slots)
        return {
            "history": codes_of(sessions.history, self.table),
            "length": (sessions.history != PAD_ITEM).sum(axis=1),
            "shown": codes_of(sessions.shown, self.table),
            "feedback": sessions.feedback.copy(),
            "new_session": sessions.new_session.astype(np.int64),
        }

    def render(self, slot: int) -> str:
        """The history by title, the last page with what was done to each item, and the reward by component."""
        sessions, row = self._sessions.take(np.array([slot])), self._row[slot]
        user, history = sessions.shoppers.user[0], sessions.history[0]
        stand = f"  pages {sessions.pages[0]}, session {sessions.shoppers.session[0] + 1}"
        if row < 0 or self._played is None:
            return "\n".join([context_line(user, history, self.table, self.catalogue), stand])
        played, codes, scores = self._played
        lines = [context_line(user, played.history[row], self.table, self.catalogue)]
        lines += [self._place_line(place, codes[row, place], row) for place in range(self.page_size)]
        parts = parts_text({name: part[row].sum() for name, part in self.reward.said(scores).items()})
        lines.append(f"  reward   {scores.total[row].sum(dtype=np.float64):.4g} ({parts})")
        goes_on = "comes back with a new session" if sessions.new_session[0] else "stays"
        return "\n".join([*lines, f"{stand}: the shopper {'leaves for good' if sessions.done[0] else goes_on}"])

    def _place_line(self, place: int, codes: np.ndarray, row: int) -> str:
        """What stood at a place of the page last played, and what became of it."""
        played, _, scores = self._played  # type: ignore[misc]
        item, seconds = int(played.page[row, place]), float(played.play_time[row, place])  # type: ignore[index]
        did = _DEEDS[int(played.feedback[row, place])] if item != PAD_ITEM else "empty place"  # type: ignore[index]
        title = item_title(item, self.table, self.catalogue)
        words = f"{title}, {did}" + (f" and played for {seconds:.1f} s" if seconds > 0 else "")
        parts = parts_text({name: part[row, place] for name, part in self.reward.said(scores).items()})
        reward = f"reward {scores.total[row, place]:.4g} ({parts})"
        return f"  place {place + 1}  {path_text(codes, self.table)}: {words}, {reward}"

    def _numbers(self, sessions: Sessions) -> dict[str, np.ndarray]:
        shoppers = sessions.shoppers
        return {"user": shoppers.user.copy(), "pages": sessions.pages.copy(), "session": shoppers.session.copy()}

    def _open(self, slots: np.ndarray, rng: np.random.Generator) -> Sessions:
        users = rng.integers(_USER_NUMBERS, size=len(slots))
        return open_sessions(self.world, users, self.history, self.page_size, self.warm_pages, rng)

    def _are_all(self, slots: np.ndarray) -> bool:
        return len(slots) == self.size and bool((slots == self._all).all())

    def _rows(self, slots: np.ndarray) -> Sessions:
        return self._sessions if self._are_all(slots) else self._sessions.take(slots)

    def _put(self, slots: np.ndarray, part: Sessions) -> None:
        """The slots' sessions become ``part``; arrays given out earlier stay as they are."""
        self._sessions = part if self._are_all(slots) else self._sessions.put(slots, part)


def _with_rows(old: Any, new: Any, rows: np.ndarray, skip: str = "") -> Any:
    """A record of arrays with some rows exchanged, in new arrays."""
    values = {}
    for field in fields(old):
        if field.name != skip:
            values[field.name] = getattr(old, field.name).copy()
            values[field.name][rows] = getattr(new, field.name)
    return replace(old, **values)
