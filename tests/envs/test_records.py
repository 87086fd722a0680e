"""Selection of contexts."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.envs.records import Episodes


@given(size=st.integers(1, 50), count=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_contexts_are_spread_over_the_whole_log(size: int, count: int) -> None:
    """Where the log's order means something the first contexts are no sample."""
    rows = np.arange(size)
    contexts = Episodes(rows, rows, np.zeros((size, 1), np.int64), np.zeros((size, 1), np.int64))
    chosen = contexts.spread(count).index
    if count == 0 or count >= size:
        np.testing.assert_array_equal(chosen, rows)
        return
    assert len(set(chosen.tolist())) == len(chosen) == count
    gaps = np.diff(np.append(chosen, size))
    assert gaps.max() - gaps.min() <= 1
