"""The general search unit of SIM: of a long history, the items that have to do with a candidate (Pi et al. 2020).

Hard search takes what shares the candidate's category, or the longest SID prefix; soft search what is nearest in
embedding space. Whatever the length of the history, at most M items come back, the best agreement first and the latest
first among equals, and the work lies in chunks of the history, so that memory does not grow with it. Left out: an index
over users (SIM's user behaviour tree), which pays where one user is asked thousands of times.

Symbols: B contexts, T history length, K candidates, M items found, N items, V levels of groups, D embedding width.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sidgym.envs.preference.data import PreferenceData
from sidgym.envs.preference.network import products
from sidgym.envs.records import PAD_ITEM

SEARCHES = ("auto", "category", "prefix", "soft", "none")

CHUNK = 1024
"""Items of a history that are looked at together."""

VECTORS = 1 << 24
"""Numbers of the embeddings of one chunk, in soft search."""

_AGES = 1 << 32
"""More than any history's length: agreement and age share one integer, agreement first."""

_STEPS = 1 << 20
"""Steps of a cosine of 1, coarser than float32: rounding seldom chooses among equals, so that age does."""


def find_matches(
    agreement: Callable[[Tensor], Tensor], history: Tensor, shape: tuple[int, int], found: int, chunk: int = CHUNK
) -> tuple[Tensor, Tensor, Tensor]:
    """The items of each history that agree best with each candidate.

    Args:
        agreement: part of the history (B, t) to int64 agreement with the candidates (B, K, t), at most 0 where none.
        history: (B, T), PAD_ITEM on the left.
        shape: B and K.
        found, chunk: M, and items of the history looked at together.

    Returns items (B, K, m), PAD_ITEM where fewer were found; their age (B, K, m), 0 the newest of the history; and how
    many agree in all, (B, K). m is at most M and T.
    """
    length = history.shape[1]
    where = history.device
    age = torch.arange(length - 1, -1, -1, device=where)
    best = torch.empty((*shape, 0), dtype=torch.int64, device=where)
    count = torch.zeros(shape, dtype=torch.int64, device=where)
    for start in range(0, length, chunk):
        part = slice(start, start + chunk)
        agree = agreement(history[:, part])
        fits = (agree > 0) & (history[:, part] != PAD_ITEM)[:, None, :]
        key = torch.where(fits, agree * _AGES + (_AGES - 1 - age[part]), -1)
        count += fits.sum(dim=2)
        best = torch.cat([best, key], dim=2)
        # All keys of one candidate differ, so what is chosen does not depend on the chunks.
        best = best.topk(min(found, best.shape[2]), dim=2).values
    real = best >= 0
    ages = torch.where(real, _AGES - 1 - best % _AGES, 0)
    place = (length - 1 - ages).clamp(min=0)
    items = history.gather(1, place.flatten(1)).view_as(place)
    return torch.where(real, items, PAD_ITEM), ages, count


def hard_search(
    groups: Tensor, history: Tensor, items: Tensor, found: int, chunk: int = CHUNK
) -> tuple[Tensor, Tensor, Tensor]:
    """``find_matches`` by the number of levels on which item and candidate are in one group.

    groups: (N, V) int64; on each level the number of an item's group, -1 for none. One level is a category; with prefix
    numbers (``prefix_groups``) the levels in common are the longest common SID prefix.
    """
    own = groups[items.clamp(min=0)]

    def agreement(part: Tensor) -> Tensor:
        theirs = groups[part.clamp(min=0)]
        levels = torch.zeros((*items.shape, part.shape[1]), dtype=torch.int64, device=part.device)
        for level in range(groups.shape[1]):
            mine = own[:, :, None, level]
            levels += (mine == theirs[:, None, :, level]) & (mine >= 0)
        return levels

    return find_matches(agreement, history, (items.shape[0], items.shape[1]), found, chunk)


def soft_search(
    embeddings: Tensor, history: Tensor, items: Tensor, found: int, chunk: int = CHUNK
) -> tuple[Tensor, Tensor, Tensor]:
    """``find_matches`` by cosine of the embeddings (N, D), where that is positive."""
    own = F.normalize(embeddings[items.clamp(min=0)], dim=-1)
    # Embeddings of a chunk are the largest part of it.
    chunk = max(1, min(chunk, VECTORS // max(1, len(history) * embeddings.shape[1])))

    def agreement(part: Tensor) -> Tensor:
        theirs = F.normalize(embeddings[part.clamp(min=0)], dim=-1)
        return (products(own, theirs) * _STEPS).round().to(torch.int64)

    return find_matches(agreement, history, (items.shape[0], items.shape[1]), found, chunk)


def prefix_groups(codes: np.ndarray) -> np.ndarray:
    """Number of each item's SID prefix on every level, (N, L) int64: equal where all codes up to that level are."""
    columns, above = [], np.zeros(len(codes), dtype=np.int64)
    for level in range(codes.shape[1]):
        _, above = np.unique(np.stack([above, codes[:, level]]), axis=1, return_inverse=True)
        above = above.reshape(-1)
        columns.append(above)
    return np.stack(columns, axis=1)


def choose_search(data: PreferenceData, search: str, kind: str) -> tuple[str, np.ndarray]:
    """The search that is meant, and groups (N, V) for it, with V = 0 where it reads none.

    ``auto`` is ``category`` where a category is known, else ``prefix`` where there is a table of SIDs, else ``soft``.
    Raises ``ValueError`` for another name and for one whose field the data lacks.
    """
    if search not in SEARCHES:
        raise ValueError(f"preference {kind!r}: search must be one of {', '.join(SEARCHES)}, got {search!r}")
    if search == "auto":
        known = data.categories is not None and bool((data.categories >= 0).any())
        search = "category" if known else "soft" if data.table is None else "prefix"
    if search == "category":
        return search, data.require("categories", kind)[:, None].astype(np.int64)
    if search == "prefix":
        return search, prefix_groups(data.require("table", kind))
    return search, np.zeros((data.num_items, 0), dtype=np.int64)
