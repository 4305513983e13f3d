"""Exact linear algebra over GF(2^8): inverses and Cauchy matrices.

Shapes: B matrices A [n, n], uint8 tensors on the CPU.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.gf256.products import INVERSES, PRODUCTS, matmul

FLAT_PRODUCTS = PRODUCTS.numpy().ravel()  # of a and b at 256·a + b
PANEL = 16  # columns reduced one by one before one product updates the rest of each matrix


def inverses(matrices: Sequence[Tensor]) -> list[Tensor] | None:
    """Return the inverses of square matrices of any sizes, or None if one of them is singular.

    Gauss-Jordan elimination in place, for all matrices in step; smaller ones are padded with ones on the diagonal. A
    panel of columns is eliminated column by column and then holds the factors of each pivot's row in each row; one
    product applies them to all other columns. The steps are in numpy: for many small steps, torch's overhead dominates.
    """
    n = max(map(len, matrices), default=0)
    work = np.zeros((len(matrices), n, n), dtype=np.uint8)
    for A, matrix in zip(work, matrices, strict=True):
        size = len(matrix)
        A[:size, :size] = matrix.numpy()
        A[range(size, n), range(size, n)] = 1
    order = np.tile(np.arange(n), (len(matrices), 1))
    for start in range(0, n, PANEL):
        stop = min(start + PANEL, n)
        panel = _reduced(work, order, start, stop)
        if panel is None:
            return None
        for A, factors in zip(work, panel, strict=True):
            pivots = A[start:stop].copy()
            A[start:stop] = 0  # the panel's factors include the pivot's own row
            A ^= matmul(torch.from_numpy(factors), torch.from_numpy(pivots)).numpy()
            A[:, start:stop] = factors
    result = np.empty_like(work)
    np.put_along_axis(result, order[:, None], work, axis=2)  # exchanged rows of A are exchanged columns of its inverse
    return [torch.from_numpy(A[: len(m), : len(m)].copy()) for A, m in zip(result, matrices, strict=True)]


def _reduced(work: NDArray[np.uint8], order: NDArray[np.int64], start: int, stop: int) -> NDArray[np.uint8] | None:
    """Eliminate some columns and return them, or None if a pivot is missing.

    Exchanges rows of `work` and `order`.
    """
    every = np.arange(len(work))
    panel = work[:, :, start:stop].copy()
    for column in range(start, stop):
        at = column - start
        entries = panel[:, :, at]
        rows = column + (entries[:, column:] != 0).argmax(axis=1)
        pivots = entries[every, rows]
        if not pivots.all():
            return None
        if (rows != column).any():
            for array in (panel, work, order):
                array[every, rows], array[:, column] = array[:, column].copy(), array[every, rows]
        factors = panel[:, :, at].astype(np.uint16) << 8
        factors[:, column] = 0
        panel[:, :, at] = 0
        panel[:, column, at] = 1
        scales = INVERSES.numpy()[pivots].astype(np.uint16) << 8
        panel[:, column] = FLAT_PRODUCTS.take(scales[:, None] | panel[:, column])
        panel ^= FLAT_PRODUCTS.take(factors[:, :, None] | panel[:, column, None])
    return panel


def cauchy(n: int, m: int) -> Tensor:
    """Return the Cauchy matrix 1 / (x_i + y_j) [n, m].

    All its square submatrices are invertible. It needs n + m distinct elements x and y, so n + m is at most 256.
    """
    x, y = torch.arange(n, dtype=torch.uint8), torch.arange(n, n + m, dtype=torch.uint8)
    return INVERSES[(x[:, None] ^ y).long()]
