"""Linear algebra over GF(2^8), exact: many inverses at once, and a matrix without a singular minor.

Shapes: B matrices A [n, n], uint8 tensors on the CPU.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.errors import CodingError
from hmtl.gf256.products import INVERSES, PRODUCTS, matmul

FLAT_PRODUCTS = PRODUCTS.numpy().ravel()  # of a and b at 256·a + b
PANEL = 16  # columns reduced one by one before one product brings the rest of each matrix up to date


def inverses(matrices: Sequence[Tensor]) -> list[Tensor] | None:
    """The inverses of square matrices of any sizes, or None where one of them has none.

    Gauss and Jordan's elimination in place, of all matrices in step, smaller ones filled up with ones on the diagonal.
    Within a panel of columns, which then holds how much of each pivot's row went to each row, it goes column by column;
    one product does the same to all other columns. In numpy, as the many small steps would cost torch more to start
    than to do.
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
        for A, part in zip(work, panel, strict=True):
            pivots = A[start:stop].copy()
            A[start:stop] = 0  # what the panel says of a pivot's own row includes that row
            A ^= matmul(torch.from_numpy(part), torch.from_numpy(pivots)).numpy()
            A[:, start:stop] = part
    found = np.empty_like(work)
    np.put_along_axis(found, order[:, None], work, axis=2)  # exchanged rows of A are exchanged columns of its inverse
    return [torch.from_numpy(A[: len(m), : len(m)].copy()) for A, m in zip(found, matrices, strict=True)]


def _reduced(work: NDArray[np.uint8], order: NDArray[np.int64], start: int, stop: int) -> NDArray[np.uint8] | None:
    """Some columns, eliminated within themselves, rows of `work` and `order` exchanged; None where one has no pivot."""
    every = np.arange(len(work))
    panel = work[:, :, start:stop].copy()
    for column in range(start, stop):
        at, here = column - start, panel[:, :, column - start]
        found = column + (here[:, column:] != 0).argmax(axis=1)
        pivots = here[every, found]
        if not pivots.all():
            return None
        if (found != column).any():
            for rows in (panel, work, order):
                rows[every, found], rows[:, column] = rows[:, column].copy(), rows[every, found]
        factors = panel[:, :, at].astype(np.uint16) << 8
        factors[:, column] = 0
        panel[:, :, at] = 0
        panel[:, column, at] = 1
        scales = INVERSES.numpy()[pivots].astype(np.uint16) << 8
        panel[:, column] = FLAT_PRODUCTS.take(scales[:, None] | panel[:, column])
        panel ^= FLAT_PRODUCTS.take(factors[:, :, None] | panel[:, column, None])
    return panel


def inverse(A: Tensor) -> Tensor:
    """The inverse of A [n, n].

    Raises:
        CodingError: A is not square, or singular.
    """
    n = len(A)
    if A.shape != (n, n):
        raise CodingError(
            f"Argument 'A' must have shape [n, n], not {list(A.shape)}: only square matrices have inverses."
        )
    found = inverses([A])
    if found is None:
        raise CodingError(f"Argument 'A' is singular: it has no inverse, n={n}. Draw other coefficients.")
    return found[0]


def cauchy(n: int, m: int) -> Tensor:
    """The Cauchy matrix 1 / (x_i + y_j) [n, m], n + m distinct x and y: all its square submatrices are invertible.

    Raises:
        CodingError: n + m exceeds 256, the number of elements of the field.
    """
    if n + m > 256:
        raise CodingError(f"n + m = {n + m} exceeds 256, the elements of GF(2^8). Lower n or m, or draw at random.")
    x, y = torch.arange(n, dtype=torch.uint8), torch.arange(n, n + m, dtype=torch.uint8)
    return INVERSES[(x[:, None] ^ y).long()]
