"""Examples in which items of a history are predicted code by code and read merged: where their tokens stand.

    trunk      <|history|>        h_a            h_b       ...      read by all that follows
    branches               a1 a2         b1 b2          c1 c2       one item's codes, read by nobody else

A branch stands behind the trunk before it: its first code is predicted from the trunk's newest token, as in a rollout
from a merged prompt, and all branches share the trunk. In arrays tokens stand in reading order, a branch before its own
item's merged token; ``branch`` holds 0 on the trunk and a number above 0, the same for a run of tokens, in a branch. A
token sees the trunk before it and the earlier tokens of its branch. Items that are only said (a page's,
``page_wise``) stand on the trunk, code by code. Left out: models.

Symbols: R examples, T tokens of all of them.
"""

import numpy as np
import torch


def stepped_branches(step: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For segments of ``counts`` (S,) tokens, of which those that are a ``step`` (S,) are a branch and one token of the
    trunk: ``branch`` (T,), and where those tokens of the trunk stand."""
    branch = np.repeat(np.where(step, np.arange(1, len(step) + 1), 0), counts)
    trunk = np.cumsum(counts)[step] - 1
    branch[trunk] = 0
    return branch, trunk


def _runs(offsets: np.ndarray, branch: np.ndarray) -> np.ndarray:
    """Where the run of equal ``branch`` that each token stands in begins, (T,)."""
    new = np.ones(len(branch), dtype=bool)
    new[1:] = branch[1:] != branch[:-1]
    new[offsets[:-1][offsets[:-1] < len(branch)]] = True
    return np.maximum.accumulate(np.where(new, np.arange(len(branch)), 0))


def positions(offsets: np.ndarray, branch: np.ndarray) -> np.ndarray:
    """Position (T,) of each token: how many others it sees."""
    trunk = branch == 0
    begun = np.append(0, np.cumsum(trunk))
    before = begun[:-1] - np.repeat(begun[offsets[:-1]], np.diff(offsets))
    return before + np.where(trunk, 0, np.arange(len(branch)) - _runs(offsets, branch))


def predictors(offsets: np.ndarray, branch: np.ndarray) -> np.ndarray:
    """Number (T,) of the token that each one is predicted from: the one before it in its branch, or the trunk's newest;
    -1 for an example's first token, which has none."""
    number, trunk = np.arange(len(branch)), branch == 0
    newest = np.append(-1, np.maximum.accumulate(np.where(trunk, number, -1)))[: len(branch)]
    newest[offsets[:-1][offsets[:-1] < len(branch)]] = -1  # what stands before an example is another example
    inside = ~trunk & (number > _runs(offsets, branch))
    return np.where(inside, number - 1, newest)


def needed(offsets: np.ndarray, branch: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which tokens (T,) are seen by any of those at ``wanted``: the codes that end branches never are."""
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    last_of, last_in = np.full(len(offsets) - 1, -1), np.full(len(branch), -1)
    begin = _runs(offsets, branch)
    np.maximum.at(last_of, owner[wanted], wanted)
    np.maximum.at(last_in, begin[wanted], wanted)
    return np.arange(len(branch)) <= np.where(branch == 0, last_of[owner], last_in[begin])


def sees(branch: torch.Tensor) -> torch.Tensor:
    """Boolean (B, W, W) 'token may see token' for rows ``branch`` (B, W) of tokens in reading order."""
    key, query = branch[:, None], branch[:, :, None]
    return ((key == 0) | (key == query)).tril()
