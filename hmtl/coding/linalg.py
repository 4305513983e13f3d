"""Linear algebra over GF(2^8), exact: rank, inverse, rows that span, and a matrix without a singular minor.

Shapes: A [n, m], uint8 tensors on the CPU.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import gf256
from hmtl.errors import CodingError

PANEL = 64  # columns reduced one by one before one product brings the rest of the matrix up to date


def _eliminate(A: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Bring the first `columns` columns of A to reduced row-echelon form.

    A panel of columns is reduced on its own, beside a record of what was done: a column for each pivot, which says how
    much of that pivot's row, as it was before the panel, went to each row. One product then does the same to all
    columns. In numpy, as the many small steps would cost torch more to start, and to spread over threads, than to do.

    Returns:
        The reduced matrix [n, m], whose first rows are the pivot rows, and which rows of A those were, int64 [rank].
    """
    products, inverses = gf256.PRODUCTS.numpy(), gf256.INVERSES.numpy()
    reduced: NDArray[np.uint8] = A.numpy().copy()
    order, rank = np.arange(len(reduced)), 0
    for start in range(0, columns, PANEL):
        first, panel = rank, reduced[:, start : min(start + PANEL, columns)]
        width = panel.shape[1]
        work = np.concatenate([panel, np.zeros_like(panel)], axis=1)  # the panel and the record
        for column in range(width):
            candidates = work[rank:, column].nonzero()[0]
            if not len(candidates):
                continue
            if candidates[0]:
                swap, back = [rank, rank + candidates[0]], [rank + candidates[0], rank]
                for rows in (work, reduced, order):
                    rows[swap] = rows[back]
            work[rank, width + rank - first] = 1
            pivot = work[rank] = products[inverses[work[rank, column]]].take(work[rank])
            factors = work[:, column].copy()
            factors[rank] = 0
            work ^= _product(factors[:, None], pivot[None])
            rank += 1
        pivots = reduced[first:rank, start:].copy()
        reduced[first:rank, start:] = 0  # the record replaces pivot rows, and adds to the others
        reduced[:, start:] ^= _product(work[:, width : width + rank - first], pivots)
    return torch.from_numpy(reduced), torch.from_numpy(order[:rank])


def _product(A: NDArray[np.uint8], X: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return gf256.matmul(torch.from_numpy(A), torch.from_numpy(X)).numpy()


def rank(A: Tensor) -> int:
    """The rank of A [n, m]."""
    return len(_eliminate(A, A.shape[1])[1])


def independent_rows(A: Tensor) -> Tensor:
    """The numbers, int64 [rank] in ascending order, of rows of A [n, m] that are independent and span all of them."""
    return _eliminate(A, A.shape[1])[1].sort().values


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
    reduced, pivots = _eliminate(torch.cat([A, torch.eye(n, dtype=torch.uint8)], dim=1), n)
    if len(pivots) < n:
        raise CodingError(f"Argument 'A' has rank {len(pivots)} < n={n}: it has no inverse. Draw other coefficients.")
    return reduced[:, n:].contiguous()


def cauchy(n: int, m: int) -> Tensor:
    """The Cauchy matrix 1 / (x_i + y_j) [n, m], n + m distinct x and y: all its square submatrices are invertible.

    Raises:
        CodingError: n + m exceeds 256, the number of elements of the field.
    """
    if n + m > 256:
        raise CodingError(f"n + m = {n + m} exceeds 256, the elements of GF(2^8). Lower n or m, or draw at random.")
    x, y = torch.arange(n, dtype=torch.uint8), torch.arange(n, n + m, dtype=torch.uint8)
    return gf256.inverse(x[:, None] ^ y)
