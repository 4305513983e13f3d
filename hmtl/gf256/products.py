"""Matrix products over GF(2^8) on any device, and the tables of the field.

The field has the polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11D) and generator 2; its elements are bytes.

Shapes: A [n, m] coefficients; X [m, L] and A·X [n, L] messages of L bytes, one per row; all are uint8 tensors.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from hmtl.errors import CodingError
from hmtl.gf256 import instructions, simd
from hmtl.gf256.simd import POLYNOMIAL

# Memory of a tile's tables and accumulators. On a CPU they stay in the cache; on other devices the cost per call
# dominates, so tiles are wide.
CPU_WORKSPACE_BYTES = 4 << 20
DEVICE_WORKSPACE_BYTES = 256 << 20


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
    return simd.matmul(A, X) if A.is_cpu and instructions.usable() else portable(A, X)


def portable(A: Tensor, X: Tensor) -> Tensor:
    """Return A·X by the method of four Russians on int64 words of 8 bytes.

    The rows of X are split into groups of g, and a table holds the 2^g sums of each group. Each of the 8n *planes* (bit
    b of row i's coefficients) adds up one sum per group. Horner's rule then combines the planes. Columns are processed
    in tiles with the same buffers, so that the tables stay in the cache.
    """
    used = (A != 0).any(dim=0)
    if not bool(used.all()):
        A, X = A[:, used], X[used]
    (n, m), L = A.shape, X.shape[1]
    product = A.new_empty(n, L)
    if not n * m * L:
        return product.zero_()

    g = min(range(1, 9), key=lambda size: -(-m // size) * (2**size + 8 * n))
    groups, words = -(-m // g), -(-L // 8)
    workspace = CPU_WORKSPACE_BYTES if A.device.type == "cpu" else DEVICE_WORKSPACE_BYTES
    tiles = -(-words // max(32, workspace // (8 * (groups * 2**g + 16 * n))))
    width = -(-words // tiles)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=A.device)

    sources, tables = zeros(groups * g, width), zeros(groups, 2**g, width)
    planes, picked, carry = zeros(8 * n, width), zeros(8 * n, width), zeros(n, width).view(torch.int8)
    source_bytes = sources.view(torch.uint8)
    by_bit = planes.view(torch.int8).view(8, n, 8 * width)
    # Step j of the doubling, for all groups at once: the sums with row j are the sums without it, plus row j.
    grouped = sources.view(groups, g, 1, width)
    doublings = [(tables[:, : 1 << j], grouped[:, j], tables[:, 1 << j : 2 << j]) for j in range(g)]
    lookups = list(zip(tables.unbind(0), _picks(A, g).unbind(0), strict=True))

    for start in range(0, L, 8 * width):
        stop = min(L, start + 8 * width)  # the last tile may be short: the excess is computed and ignored
        source_bytes[:m, : stop - start] = X[:, start:stop]
        for sums, row, with_row in doublings:
            torch.bitwise_xor(sums, row, out=with_row)
        torch.index_select(lookups[0][0], 0, lookups[0][1], out=planes)
        for table, pick in lookups[1:]:
            torch.index_select(table, 0, pick, out=picked)
            planes.bitwise_xor_(picked)
        total = by_bit[7]
        for bit in range(6, -1, -1):  # total = 2·total + plane, bytewise: the sign is the bit that overflows
            torch.bitwise_right_shift(total, 7, out=carry)
            carry.bitwise_and_(POLYNOMIAL & 0xFF)
            total.add_(total).bitwise_xor_(carry).bitwise_xor_(by_bit[bit])
        product[:, start:stop] = total.view(torch.uint8)[:, : stop - start]
    return product


def _picks(A: Tensor, g: int) -> Tensor:
    """Return which sum each plane adds from each group's table, int64 [groups, 8n].

    Planes are ordered by bit, then by row.
    """
    n, m = A.shape
    groups = -(-m // g)
    bits = (pad(A, (0, groups * g - m)) >> torch.arange(8, dtype=torch.uint8, device=A.device)[:, None, None]) & 1
    weights = 1 << torch.arange(g, device=A.device)
    return (bits.reshape(8 * n, groups, g) * weights).sum(dim=2).T.contiguous()
