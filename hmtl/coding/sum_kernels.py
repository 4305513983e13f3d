"""Compiled loops over rows of sums, integers modulo 2^64, by portions of columns that stay in the cache."""

import numpy as np
from numpy.typing import NDArray

from hmtl.io.compiled import jit

PORTION = 2**14  # columns that are multiplied at once
CACHED = 2**15  # numbers of a sum that are held in the cache, before it is multiplied
Numbers = NDArray[np.int64]


@jit()
def multiply(A: Numbers, X: Numbers, to: Numbers) -> None:
    """Add A·X to `to` [n, L], for A [n, m] and X [m, L]."""
    for start in range(0, X.shape[1], PORTION):
        stop = min(X.shape[1], start + PORTION)
        _multiply(A, X, start, to, start, stop - start)


@jit()
def add_cut(numbers: Numbers, at: Numbers, A: Numbers, to: Numbers) -> None:
    """Add A·S to `to` [x, stretch], where S [c, stretch] is the sum of some rows, cut into c stretches.

    Args:
        numbers: the rows [n, L]; a last stretch that is shorter is padded with zeros.
        at: the rows to add.
        A: [x, c].
        to: receives the product.
    """
    count, stretch, L = A.shape[1], to.shape[1], numbers.shape[1]
    cut = np.empty((count, max(64, CACHED // count)), np.int64)
    used = [j for j in range(count) if A[:, j].any()]
    for start in range(0, stretch, cut.shape[1]):
        width = min(cut.shape[1], stretch - start)
        cut[:] = 0
        for k in at:
            for j in used:
                first = j * stretch + start
                source = numbers[k, first : max(first, min(first + width, L))]
                target = cut[j]
                for column in range(len(source)):
                    target[column] += source[column]
        _multiply(A, cut, 0, to, start, width)


@jit()
def _multiply(A: Numbers, X: Numbers, start: int, to: Numbers, to_start: int, width: int) -> None:
    """Add A·X to `to`, for `width` columns of both."""
    for i in range(A.shape[0]):
        target = to[i, to_start : to_start + width]
        for j in range(A.shape[1]):
            factor, source = A[i, j], X[j, start : start + width]
            if factor == 1:
                for column in range(width):
                    target[column] += source[column]
            elif factor != 0:
                for column in range(width):
                    target[column] += factor * source[column]
