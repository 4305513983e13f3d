"""Matrix products over GF(2^8) on any device, and the tables of the field.

The field has the polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11D) and generator 2; its elements are bytes.

Shapes: A [n, m] coefficients; X [m, L] and A·X [n, L] messages of L bytes, one per row; all are uint8 tensors.
"""

import numpy as np
import torch
from torch import Tensor

from hmtl.errors import CodingError
from hmtl.gf256 import instructions, simd
from hmtl.gf256.simd import POLYNOMIAL


def _tables() -> tuple[Tensor, Tensor]:
    """Return the products of all pairs [256, 256] and the inverses [256], 0 for 0."""
    exp, log = np.zeros(510, dtype=np.uint8), np.zeros(256, dtype=np.int64)
    power = 1
    for exponent in range(255):
        exp[exponent] = exp[exponent + 255] = power
        log[power] = exponent
        power <<= 1
        if power > 255:
            power ^= POLYNOMIAL
    products = exp[log[:, None] + log]
    products[0, :] = products[:, 0] = 0  # 0 has no logarithm
    inverses = exp[255 - log]
    inverses[0] = 0
    return torch.from_numpy(products), torch.from_numpy(inverses)


PRODUCTS, INVERSES = _tables()


def matmul(A: Tensor, X: Tensor) -> Tensor:
    """Return the matrix product A·X over GF(2^8).

    Args:
        A: coefficients, uint8 [n, m].
        X: one message of L bytes per row, uint8 [m, L], on A's device. Strides are arbitrary, sizes may be 0.

    Returns:
        uint8 [n, L], contiguous.

    Raises:
        CodingError: an argument has another dtype or shape; the message names it.
    """
    for name, tensor in (("A", A), ("X", X)):
        if tensor.dtype != torch.uint8 or tensor.ndim != 2:
            raise CodingError(f"{name} is {tensor.dtype} of shape {list(tensor.shape)}: pass a uint8 matrix.")
    if A.shape[1] != X.shape[0]:
        raise CodingError(f"A has shape {list(A.shape)}, X {list(X.shape)}: give X a row for each column of A.")
    if A.is_cpu and instructions.usable():
        return simd.matmul(A, X)
    # GPUs, and processors without vector instructions, look up each product.
    product, products = A.new_zeros(A.shape[0], X.shape[1]), PRODUCTS.to(A.device)
    for coefficients, row in zip(A.T.int(), X, strict=True):
        product ^= products[coefficients][:, row.int()]
    return product
