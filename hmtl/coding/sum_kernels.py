"""Compiled loops over rows of sums, integers modulo 2^w, by portions of columns that stay in the cache."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.io.compiled import jit

COLUMNS_AT_ONCE = 2**13  # columns that are added or multiplied at once
Integers = NDArray[Any]  # integers of one type


@jit()
def _add_multiples(factors: Integers, source: Integers, to: Integers, first: int) -> None:
    """Add multiples of a row [n] to columns first, first + 1, .. of rows: factors[i]·source to row i of `to`."""
    for i in range(len(factors)):
        factor, target = factors[i], to[i, first : first + len(source)]
        if factor != 0:
            for column in range(len(source)):
                target[column] += factor * source[column]


@jit()
def add_cut(
    numbers: Integers, pitch: int, width: int, at: NDArray[np.int64], A: Integers, to: Integers, first: int
) -> None:
    """Add A·S to `to` [x, stretch], where S [c, stretch] is the sum of some rows, cut into c stretches.

    Args:
        numbers: the memory of rows, which hold columns first, first + 1, ..; all other columns are zero.
        pitch: how far a row's beginning is from the next one's, in numbers.
        width: the columns of a row.
        at: the rows to add.
        A: [x, c].
        to: receives the product.
        first: see `numbers`.
    """
    stretch, total = to.shape[1], np.empty(COLUMNS_AT_ONCE, to.dtype)
    for j in range(A.shape[1]):
        factors = A[:, j]
        if not factors.any():
            continue
        begin, end = max(j * stretch, first), min((j + 1) * stretch, first + width)
        for start in range(begin, end, COLUMNS_AT_ONCE):
            stop = min(end, start + COLUMNS_AT_ONCE)
            part = total[: stop - start]
            part[:] = 0
            for k in at:
                row = numbers[k * pitch + start - first : k * pitch + stop - first]
                if len(at) == 1:
                    part = row
                else:
                    for column in range(len(part)):
                        part[column] += row[column]
            _add_multiples(factors, part, to, start - j * stretch)


@jit()
def multiply(A: Integers, X: Integers, to: Integers) -> None:
    """Add A·X to `to` [n, L], for A [n, m] and X [m, L]."""
    for start in range(0, X.shape[1], COLUMNS_AT_ONCE):
        for j in range(A.shape[1]):
            _add_multiples(A[:, j], X[j, start : start + COLUMNS_AT_ONCE], to, start)
