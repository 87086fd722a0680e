"""Which items are engaged with together: Swing similarity, and the pairs of items that alignment learns from.

Swing (Yang et al., "Large Scale Product Graph Construction for Recommendation in E-commerce", arXiv:2010.05525): two
items are alike when many pairs of users who have little else in common engaged with both of them,

    s(i, j) = sum over pairs of users {u, v}, both in U_i and U_j, of  w_u w_v / (alpha + |I_u & I_v|),  w_u = |I_u|^-p

where ``U_i`` are the users of item i and ``I_u`` the items of user u. A pair is two different users, counted once: one
user alone makes no swing, and the factor 2 of ordered pairs would change no order. Left out: order and time of events.

Symbols: E events, N items, U users, P pairs.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from sidgym.sid.collisions import number_in_group

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

MOST_PRODUCTS = 10_000_000
"""Terms of the user-user overlap that are worked out at once; bounds the memory, changes no result."""

USER_PAIRS = 500_000
"""Pairs of users whose common items are held at once; bounds the memory, changes only the last bits."""


def swing_similarity(
    user: np.ndarray,
    item: np.ndarray,
    num_items: int,
    *,
    smoothing: float = 1.0,
    user_power: float = 0.5,
    users_per_item: int = 1000,
    items_per_user: int = 1000,
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> "csr_matrix":
    """Swing similarity of every pair of items that two users share.

    Args:
        user: (E,) whose event it is; any integers.
        item: (E,) items in ``[0, num_items)``. A user who took an item twice counts once.
        smoothing: alpha, greater than 0.
        user_power: p; 0.5 as in the paper, 0 for users of equal weight.
        users_per_item: an item with more users is judged by so many of them, drawn at random.
        items_per_user: users with more items (crawlers, shared accounts) are left out.
        seed: of that draw.
        on_progress: called as ``(users done, users, text)``.

    Returns (N, N) float64, symmetric, zero on the diagonal; only what is greater than 0 is stored, columns ascending.
    ``ValueError`` for items out of range, unequal lengths, or a setting that cannot work.
    """
    from scipy.sparse import csr_matrix, diags

    if not smoothing > 0 or not np.isfinite(user_power):
        raise ValueError(f"swing: expected smoothing > 0 and a finite power, got {smoothing} and {user_power}")
    if users_per_item < 2 or items_per_user < 2:
        raise ValueError(
            f"swing: two users and two items make a swing; got users_per_item={users_per_item}, "
            f"items_per_user={items_per_user}"
        )
    whole = _engagement(user, item, num_items, items_per_user)
    counts = np.diff(whole.indptr)
    weight = np.zeros(len(counts))
    np.power(counts, -user_power, out=weight, where=counts > 0, dtype=np.float64, casting="unsafe")
    drawn = _fewer_users(whole, users_per_item, seed)
    similarity = csr_matrix((num_items, num_items), dtype=np.float64)
    for first, second, done in _user_pairs(drawn):
        # Of a popular item's users a draw decides who may speak for it, but what two users share is counted in full.
        common = np.asarray(whole[first].multiply(whole[second]).sum(axis=1)).ravel()
        share = weight[first] * weight[second] / (smoothing + common)
        both = drawn[first].multiply(drawn[second]).tocsr()
        similarity = similarity + both.T @ (diags(share) @ both)
        if on_progress:
            on_progress(done, drawn.shape[0], "users compared with each other")
    similarity = csr_matrix(similarity)
    similarity.setdiag(0)
    similarity.eliminate_zeros()
    similarity.sort_indices()
    return similarity


def _engagement(user: np.ndarray, item: np.ndarray, num_items: int, items_per_user: int) -> "csr_matrix":
    """Who engaged with what, (U, N) of ones; users with one item or more than ``items_per_user`` have an empty row."""
    from scipy.sparse import csr_matrix

    user, item = np.asarray(user), np.asarray(item, dtype=np.int64)
    if user.ndim != 1 or user.shape != item.shape:
        raise ValueError(f"swing: expected one user for each item of the log, got {user.shape} and {item.shape}")
    if len(item) and not (item.min() >= 0 and item.max() < num_items):
        raise ValueError(f"swing: expected items in [0, {num_items}), got {item.min()} to {item.max()}")
    users, row = np.unique(user, return_inverse=True)
    matrix = csr_matrix((np.ones(len(item)), (row, item)), shape=(len(users), num_items))
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    count = np.diff(matrix.indptr)
    outside = (count < 2) | (count > items_per_user)
    matrix.data[np.repeat(outside, count)] = 0.0
    matrix.eliminate_zeros()
    return matrix


def _fewer_users(matrix: "csr_matrix", most: int, seed: int) -> "csr_matrix":
    """The same with at most ``most`` users an item, drawn at random."""
    if not matrix.nnz or np.bincount(matrix.indices).max() <= most:
        return matrix
    ticket = np.random.default_rng(seed).random(matrix.nnz)
    order = np.lexsort((ticket, matrix.indices))
    kept = matrix.copy()
    kept.data[order[number_in_group(matrix.indices[order]) >= most]] = 0.0
    kept.eliminate_zeros()
    return kept


def _user_pairs(matrix: "csr_matrix") -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Pairs of users with two common items or more, as parts ((P,), (P,)) of users, the first one smaller.

    Beside each part, of how many users the pairs are all given with it.
    """
    users_of = np.bincount(matrix.indices, minlength=matrix.shape[1])
    # The terms that a user's row of the product has, so that a block of users holds a bounded number of them.
    block = np.cumsum(matrix @ users_of.astype(np.float64)) // MOST_PRODUCTS
    edges = np.flatnonzero(np.diff(block, prepend=-1.0, append=np.inf))
    transposed = matrix.T.tocsr()
    for begin, end in pairwise(edges.tolist()):
        overlap = (matrix[begin:end] @ transposed).tocoo()
        kept = (overlap.data >= 2) & (overlap.col > overlap.row + begin)
        first, second = overlap.row[kept].astype(np.int64) + begin, overlap.col[kept].astype(np.int64)
        order = np.lexsort((second, first))
        for start in range(0, len(order), USER_PAIRS):
            part = order[start : start + USER_PAIRS]
            yield first[part], second[part], end if start + USER_PAIRS >= len(order) else int(first[part[-1]])


def top_neighbours(similarity: "csr_matrix", per_item: int) -> np.ndarray:
    """Item-to-item pairs: each item with those most similar to it, (P, 2) int64 of (item, neighbour).

    At most ``per_item`` of similarity above 0 for an item, the most similar first; of equals the smaller number.
    """
    count = np.diff(similarity.indptr)
    row = np.repeat(np.arange(len(count)), count)
    order = np.lexsort((similarity.indices, -similarity.data, row))
    chosen = order[(number_in_group(row) < per_item) & (similarity.data[order] > 0)]
    return np.stack([row[chosen], similarity.indices[chosen]], axis=1).astype(np.int64)


def user_to_item_pairs(user: np.ndarray, item: np.ndarray, similarity: "csr_matrix", history: int = 20) -> np.ndarray:
    """User-to-item pairs (OneRec-V1): each positive of a user with the most similar of the user's earlier positives.

    Args:
        user: (E,) whose event it is, the events of one user together.
        item: (E,) items, oldest first for each user.
        similarity: (N, N), as ``swing_similarity`` gives it.
        history: how many events back the earlier positive may lie.

    Returns (P, 2) int64 of (target item, earlier item), never an item with itself. Of equally similar ones the most
    recent counts, also where none is similar at all: in a sparse log Swing knows few pairs, and what came just before
    still tells something. ``ValueError`` where a user's events are not together.
    """
    user, item = np.asarray(user), np.asarray(item, dtype=np.int64)
    changes = np.count_nonzero(user[1:] != user[:-1])
    if len(user) and changes != len(np.unique(user)) - 1:
        raise ValueError("user_to_item_pairs: the events of one user must follow each other; sort the log by user")
    best, earlier = np.full(len(item), -1.0), np.full(len(item), -1, dtype=np.int64)
    for back in range(1, min(history, len(item) - 1) + 1):
        event = np.flatnonzero(user[back:] == user[:-back]) + back
        if not len(event):
            break
        before = item[event - back]
        value = np.asarray(similarity[item[event], before]).ravel()
        better = (value > best[event]) & (before != item[event])
        best[event[better]], earlier[event[better]] = value[better], before[better]
    found = np.flatnonzero(earlier >= 0)
    return np.stack([item[found], earlier[found]], axis=1)
