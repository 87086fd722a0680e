"""Dynamic sampling (DAPO): groups without signal make room for groups of further contexts.

A group whose advantages are all zero gives no policy gradient; left in the batch it only weakens the others. Left out:
how groups are rolled out and how many workers do it. ``contexts_of_step`` and ``step_seed`` give the contexts and the
seed of each further slice, so that what is drawn is a function of the iteration alone.

Source: Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", section 3.2.
"""

from collections.abc import Callable

import numpy as np

from sidgym.agents.update import GroupBatch, Groups, concatenate_groups


def has_signal(batch: GroupBatch) -> np.ndarray:
    """Whether any candidate's advantage is not zero, (B,) bool."""
    return (batch.advantage != 0).any(axis=1)


def refill(groups: Groups, draw: Callable[[int], Groups], limit: int) -> Groups:
    """The batch with its groups without signal replaced by groups with one, of its own size.

    ``draw(k)`` rolls out the k-th further slice of contexts, k = 1, 2, ...: whole slices, in this order, at most
    ``limit`` and only as long as a group without signal is left. The first such group gets the slice's first group with
    signal and so on; what a slice holds too many is dropped, and what is missing after the last slice stays as it was.
    A context that stands in the batch already is passed over: where slices run into the next epoch it could come twice.
    So the result depends on what ``draw`` returns and on nothing else. Versions and numbers of contexts go with the
    groups.

    The statistics stay those of the contexts drawn first: the policy's own figures, not those of a selection. Added
    are ``refill/rounds`` (slices drawn), ``refill/replaced`` and ``refill/without_signal`` (of each place, whether its
    group was replaced and whether the one that stands there now has no signal). With ``limit`` 0 nothing changes.
    """
    batch, figures = groups
    if limit < 1:
        return groups
    silent = ~has_signal(batch)
    at_first, parts, rows, rounds = silent.copy(), [batch], np.arange(len(batch)), 0
    present = batch.context.copy()
    while rounds < limit and silent.any():
        rounds += 1
        further, _ = draw(rounds)
        new = np.zeros(len(further), dtype=bool)
        new[np.unique(further.context, return_index=True)[1]] = True
        found = np.flatnonzero(new & has_signal(further) & ~np.isin(further.context, present))[: silent.sum()]
        places = np.flatnonzero(silent)[: len(found)]
        present[places] = further.context[found]
        rows[places] = sum(map(len, parts)) + found
        silent[places] = False
        parts.append(further)
    whole, _ = concatenate_groups([(part, {}) for part in parts])
    figures = figures | {
        "refill/rounds": np.full(len(batch), float(rounds)),
        "refill/replaced": (at_first & ~silent).astype(np.float64),
        "refill/without_signal": silent.astype(np.float64),
    }
    return whole.take(rows), figures
