"""A small catalogue, contexts and groups that the tests of rewards share."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from sidgym.envs.records import PAD_ITEM, Episodes, Rollouts
from sidgym.envs.rewards import RewardContext, Term, build_reward
from sidgym.sid.table import SidTable

SIZES = (2, 2, 3)
ITEMS = math.prod(SIZES)
TABLE = SidTable(
    np.stack(np.unravel_index(np.arange(ITEMS), SIZES), axis=1), SIZES, np.array([f"i{n:02d}" for n in range(ITEMS)])
)
"""Item n has the codes of n written in the mixed base (2, 2, 3): item 0 is 000, item 11 is 112."""


class FixedPreference:
    """Item i is engaged with at probability i / 20, whoever looks."""

    def score(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        return np.where(items == PAD_ITEM, 0.0, items / 20).astype(np.float32)

    def preference(self, event_rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        return (items / 20).astype(np.float32)

    def preference_of_states(self, states: np.ndarray, items: np.ndarray) -> np.ndarray:
        return ((items == states[:, :1]) / 2).astype(np.float32)


def make_episodes(targets: list[list[int]], history: list[list[int]] | None = None, **fields: Any) -> Episodes:
    rows = np.arange(len(targets))
    past = np.array(history or [[PAD_ITEM, 0]] * len(targets))
    return Episodes(index=rows, user=rows, history=past, targets=np.array(targets), event=rows, **fields)


def make_rollouts(items: Any, score: Any = None, codes: Any = None) -> Rollouts:
    """Items (B, G) or (B, G, C); a candidate without items is not valid, and has the codes 0 unless they are given."""
    items = np.array(items)
    items = items[..., None] if items.ndim == 2 else items
    groups, valid = items.shape[:2], items[..., 0] != PAD_ITEM
    logp = np.zeros((*groups, len(SIZES)), dtype=np.float32)
    logp[..., 0] = -np.arange(groups[1]) if score is None else score
    codes = np.where(valid[..., None], TABLE.codes[items[..., 0] % ITEMS], 0) if codes is None else np.array(codes)
    return Rollouts(codes, valid, items, logp, mode="sample", normalise="trie")


def context(**fields: Any) -> RewardContext:
    embeddings = np.random.default_rng(0).normal(size=(ITEMS, 4)).astype(np.float32)
    given = {
        "table": TABLE,
        "embeddings": embeddings,
        "preference": FixedPreference(),
        "truth": FixedPreference(),
        "popularity": np.arange(ITEMS, dtype=np.float64) ** 2,
    }
    return RewardContext(**(given | fields))


def values(name: str, episodes: Episodes, rollouts: Rollouts, **args: Any) -> Any:
    return build_reward(Term(name, args=args), context())(episodes, rollouts)


@st.composite
def groups(draw: Callable[..., Any], contexts: int = 4) -> tuple[Episodes, Rollouts]:
    """Random groups with invalid candidates, empty histories and a page that the user reacted to."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, size = draw(st.integers(1, contexts)), draw(st.integers(2, 6))
    items = rng.integers(PAD_ITEM, ITEMS, size=(rows, size))
    targets = rng.integers(0, ITEMS, size=(rows, 2)).tolist()
    history = rng.integers(PAD_ITEM, ITEMS, size=(rows, 3)).tolist()
    page = np.stack([rng.permutation(ITEMS)[:4] for _ in range(rows)])
    feedback = rng.integers(-1, 3, size=page.shape).astype(np.int8)
    episodes = make_episodes(targets, history, page=page, feedback=feedback)
    return episodes, make_rollouts(items, rng.permutation(size)[None] * -1.0)
