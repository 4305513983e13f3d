"""Sparse rows: a SciPy CSR array [n, d] in place of a dense tensor, of which no dense copy is made.

n rows, d features.
"""

from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.sparse import csr_array, issparse
from torch import Tensor

Features: TypeAlias = Tensor | csr_array
"""Features of a user's rows: a tensor [n, d] or [n, ...], or a CSR array [n, d]."""


def checked(x: Any) -> csr_array:
    """Return a sparse array or matrix as float64 CSR, which shares memory with x if it can.

    Raises:
        ValueError: a column is out of range, or the arrays do not match each other. Compiled code relies on them.
    """
    rows = csr_array(x, dtype=np.float64)
    rows.check_format(full_check=True)
    return rows


def stored(x: Features) -> Tensor:
    """Return the numbers that x stores: all of them, or [non-zeros] if x is sparse."""
    return torch.from_numpy(x.data) if issparse(x) else x


def finite(x: Any) -> Tensor:
    """Return whether all numbers of a row are finite, [n]."""
    if not issparse(x):
        # a thousand rows at a time, since intermediate results are as large as the rows
        return torch.cat([part.isfinite().flatten(1).all(dim=1) for part in torch.split(x, 1000)])
    bad = np.flatnonzero(~np.isfinite(x.data))
    rows = torch.ones(x.shape[0], dtype=torch.bool)
    rows[np.searchsorted(x.indptr, bad, side="right") - 1] = False
    return rows


def times(x: Features, W: Tensor) -> Tensor:
    """Return x @ W for W [d, C], [n, C] in the type of W."""
    return torch.from_numpy(x @ W.numpy()) if issparse(x) else x.to(W) @ W


def widened(x: csr_array, d: int) -> csr_array:
    """Return x with d columns; the further ones are empty."""
    return csr_array((x.data, x.indices, x.indptr), shape=(x.shape[0], max(d, x.shape[1])))
