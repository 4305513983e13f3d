"""Compiled loops over rows of sums, integers modulo 2^w, by portions of columns that stay in the cache."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.io.compiled import jit

PORTION = 2**13  # columns that are added or multiplied at once
Numbers = NDArray[Any]  # integers of one type


@jit()
def add_cut(numbers: Numbers, at: NDArray[np.int64], A: Numbers, to: Numbers, first: int) -> None:
    """Add A·S to `to` [x, stretch], where S [c, stretch] is the sum of some rows, cut into c stretches.

    Args:
        numbers: columns first, first + 1, .. of the rows [n, w]; all other columns are zero.
        at: the rows to add.
        A: [x, c].
        to: receives the product.
        first: see `numbers`.
    """
    (x, c), stretch, total = A.shape, to.shape[1], np.empty(PORTION, to.dtype)
    for j in range(c):
        if not A[:, j].any():
            continue
        begin, end = max(j * stretch, first), min((j + 1) * stretch, first + numbers.shape[1])
        for start in range(begin, end, PORTION):
            stop = min(end, start + PORTION)
            part = total[: stop - start]
            part[:] = 0
            for k in at:
                source = numbers[k, start - first : stop - first]
                for column in range(len(part)):
                    part[column] += source[column]
            for i in range(x):
                factor, target = A[i, j], to[i, start - j * stretch : stop - j * stretch]
                if factor != 0:
                    for column in range(len(part)):
                        target[column] += factor * part[column]


@jit()
def multiply(A: Numbers, X: Numbers, to: Numbers) -> None:
    """Add A·X to `to` [n, L], for A [n, m] and X [m, L]."""
    for start in range(0, X.shape[1], PORTION):
        stop = min(X.shape[1], start + PORTION)
        for i in range(A.shape[0]):
            target = to[i, start:stop]
            for j in range(A.shape[1]):
                factor, source = A[i, j], X[j, start:stop]
                if factor != 0:
                    for column in range(len(source)):
                        target[column] += factor * source[column]
