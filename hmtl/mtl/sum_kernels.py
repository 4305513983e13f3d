"""Compiled loops over the terms of sums."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.io.compiled import jit

CACHE_COLUMNS = 4096  # columns for which all rows are read one after the other, so that their sums stay in the cache


@jit()
def add_changes(
    new: Any, last: Any, weights: NDArray[np.float64], scale: float, limit: float, to: NDArray[np.int64], first: int
) -> bool:
    """Write round(w_k·scale·(new_k − last_k)) to rows, or add all to one row.

    Return whether all scale·(new_k − last_k) fit.

    Columns first, first + 1, .. are read, as many as `to` has.

    Args:
        new: float32 or float64 [n, m].
        last: of the same type, [n, m] or [1, m].
        weights: w_k [n].
        scale: units of the grid in 1.
        limit: the largest size that fits; NaN does not.
        to: a row for each row of `new`, which is overwritten, or one for all, to which all are added.
        first: the first column.
    """
    n, m = len(new), to.shape[1]
    misfits = np.zeros(CACHE_COLUMNS, np.bool_)
    for start in range(0, m, CACHE_COLUMNS):
        stop = min(m, start + CACHE_COLUMNS)
        for k in range(n):
            row = new[k, first + start : first + stop]
            before = last[min(k, len(last) - 1), first + start : first + stop]
            target, weight = to[min(k, len(to) - 1), start:stop], weights[k]
            if len(to) == n:
                target[:] = 0
            for j in range(len(row)):
                units = (np.float64(row[j]) - np.float64(before[j])) * scale
                misfits[j] |= not abs(units) <= limit
                target[j] += np.int64(np.rint(units * weight))
    return not misfits.any()
