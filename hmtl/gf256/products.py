"""The field GF(2^8), polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11D), generator 2; bytes are its elements.

Shapes: A [n, m] coefficients, X [m, L] and A·X [n, L] messages of L bytes, one a row; all of them uint8 tensors.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from hmtl.errors import CodingError
from hmtl.gf256 import simd
from hmtl.gf256.simd import POLYNOMIAL

# What a tile's tables and accumulators may take together. The processor's figure keeps them in cache; other devices
# pay per call rather than per byte, so they take wide tiles.
CPU_WORKSPACE_BYTES = 4 << 20
DEVICE_WORKSPACE_BYTES = 256 << 20


def _tables() -> tuple[Tensor, Tensor]:
    """The products of all pairs [256, 256] and the inverses [256] (with 0 for 0), from powers of the generator."""
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


def matmul(A: Tensor, X: Tensor, out: Tensor | None = None) -> Tensor:
    """The matrix product A·X over GF(2^8).

    Args:
        A: coefficients, uint8 [n, m].
        X: one message of L bytes per row, uint8 [m, L], on A's device. Any strides and any of the sizes 0 will do.
        out: where to put the product, uint8 [n, L] on A's device, each row contiguous, apart from A and X; None makes a
            new, contiguous tensor.

    Returns:
        uint8 [n, L]: `out` where given.

    Raises:
        CodingError: a dtype or a shape does not fit; the message names the argument.
    """
    for name, argument, shape in (("A", A, "[n, m]"), ("X", X, "[m, L]")):
        if argument.dtype != torch.uint8 or argument.ndim != 2:
            raise CodingError(
                f"Argument {name!r} must be a uint8 tensor of shape {shape}, not {argument.dtype} "
                f"of shape {list(argument.shape)}."
            )
    if A.shape[1] != X.shape[0]:
        raise CodingError(
            f"Argument 'X' must have a row for each column of 'A', that is shape [{A.shape[1]}, L], "
            f"not {list(X.shape)}; 'A' is {list(A.shape)}."
        )
    shape_of_product = A.shape[0], X.shape[1]
    if out is not None and (
        out.dtype != torch.uint8 or out.shape != shape_of_product or out.stride(1) > 1 < X.shape[1]
    ):
        raise CodingError(
            f"Argument 'out' must be a uint8 tensor of shape {list(shape_of_product)} with contiguous rows, not "
            f"{out.dtype} of shape {list(out.shape)} and strides {list(out.stride())}."
        )
    return simd.matmul(A, X, out) if A.is_cpu and simd.available() else portable(A, X, out)


def portable(A: Tensor, X: Tensor, out: Tensor | None = None) -> Tensor:
    """A·X by the method of four Russians, 8 bytes to an int64 word, in calls that any torch device has.

    Rows of X are taken in groups of g. The 2^g sums of a group stand in a table; each of the 8n *planes* (bit b of
    row i's coefficients) picks one sum per group and adds it up; at last the planes are joined by Horner's rule.
    Columns go through in tiles, in the same buffers, so that the tables stay in cache.
    """
    used = (A != 0).any(dim=0)
    if not bool(used.all()):
        A, X = A[:, used], X[used]
    (n, m), L = A.shape, X.shape[1]
    product = A.new_empty(n, L) if out is None else out
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
    # Step j of the doubling, in all groups at once: the sums with row j are those without it, plus row j.
    grouped = sources.view(groups, g, 1, width)
    doublings = [(tables[:, : 1 << j], grouped[:, j], tables[:, 1 << j : 2 << j]) for j in range(g)]
    lookups = list(zip(tables.unbind(0), _picks(A, g).unbind(0), strict=True))

    for start in range(0, L, 8 * width):
        stop = min(L, start + 8 * width)  # the last tile may be short: what lies beyond is computed and dropped
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
    """The sum that each plane picks from each group's table: int64 [groups, 8n], planes in order of bits, then rows."""
    n, m = A.shape
    groups = -(-m // g)
    bits = (pad(A, (0, groups * g - m)) >> torch.arange(8, dtype=torch.uint8, device=A.device)[:, None, None]) & 1
    weights = 1 << torch.arange(g, device=A.device)
    return (bits.reshape(8 * n, groups, g) * weights).sum(dim=2).T.contiguous()
