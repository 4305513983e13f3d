"""Compiled loops that round blocks of numbers to few bits and back.

A row of m numbers consists of blocks of BLOCK numbers, the last one perhaps shorter. A block is encoded as its
integers, in planes, and its scale as a bfloat16 of 2 bytes. A plane holds 8, 4, 2 or 1 bits of each integer, low bits
first: the 3 bits of an integer are a plane of 2 bits and a plane of 1 bit. In a plane of n bytes, number i of the block
is in byte i mod n, so that neighbouring numbers are in neighbouring bytes and the loops vectorise.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

BLOCK = 64  # numbers with a common scale
Bytes = NDArray[np.uint8]
SETTINGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "cache": False}


@njit(**SETTINGS)  # type: ignore[untyped-decorator]  # numba has no types
def encode(x: Any, bits: int, planes: Any, out: Bytes, bad: Any) -> None:
    """Encode rows x [n, m] into `out` [n, bytes]; mark rows with a number that is not finite in `bad` [n].

    Args:
        x: float32 or float64.
        bits: b; integers are at most 2^(b-1) - 1 in size.
        planes: bits of each plane.
        out: receives the rows of bytes.
        bad: receives whether a row holds NaN, infinity or numbers too large for a scale.
    """
    n, m = x.shape
    top = np.float32(2 ** (bits - 1) - 1)
    codes = np.empty(BLOCK, np.uint8)
    scale = np.empty(1, np.float32)
    scale_bits = scale.view(np.uint32)
    for k in range(n):
        row, place = out[k], 0
        for start in range(0, m, BLOCK):
            size = min(BLOCK, m - start)
            largest = x[k, start] * 0
            for i in range(size):
                largest = max(largest, abs(x[k, start + i]))
            for i in range(size):  # max() overlooks NaN
                if not abs(x[k, start + i]) <= largest:
                    bad[k] = True
            scale[0] = largest / top
            # Round up to a bfloat16, and once more if the quotient was rounded down, so that |x| / scale <= top.
            scale_bits[0] = ((scale_bits[0] + np.uint32(0xFFFF)) >> np.uint32(16)) << np.uint32(16)
            if scale[0] * top < largest:
                scale_bits[0] += np.uint32(0x10000)
            if not scale[0] < np.inf:
                bad[k] = True
            inverse = 1 / scale[0] if scale[0] > 0 else np.float32(0)
            if not inverse < np.inf:  # the scale is so small that its inverse overflows
                inverse = np.float32(0)
            for i in range(size):
                codes[i] = np.uint8(np.int32(np.rint(np.float32(x[k, start + i]) * inverse)))
            low = 0
            for p in planes:
                length = -(-size * p // 8)
                part = row[place : place + length]
                mask = np.uint8((1 << p) - 1)
                part[:] = 0
                for j in range(0, -(-size // length)):
                    count = min(length, size - j * length)
                    for i in range(count):
                        part[i] |= ((codes[j * length + i] >> low) & mask) << (j * p)
                place += length
                low += p
            row[place] = (scale_bits[0] >> np.uint32(16)) & np.uint32(0xFF)
            row[place + 1] = scale_bits[0] >> np.uint32(24)
            place += 2


@njit(**SETTINGS)  # type: ignore[untyped-decorator]
def decode(rows: Bytes, bits: int, planes: Any, out: Any) -> None:
    """Decode `rows` [n, bytes], which `encode` wrote, into `out` [n, m], float32 or float64."""
    n, m = out.shape
    codes = np.empty(BLOCK, np.uint8)
    scale = np.empty(1, np.float32)
    scale_bits = scale.view(np.uint32)
    shift = 8 - bits
    for k in range(n):
        row, place = rows[k], 0
        for start in range(0, m, BLOCK):
            size = min(BLOCK, m - start)
            low = 0
            for p in planes:
                length = -(-size * p // 8)
                part = row[place : place + length]
                mask = np.uint8((1 << p) - 1)
                for j in range(0, -(-size // length)):
                    count = min(length, size - j * length)
                    if low == 0:
                        for i in range(count):
                            codes[j * length + i] = (part[i] >> (j * p)) & mask
                    else:
                        for i in range(count):
                            codes[j * length + i] |= ((part[i] >> (j * p)) & mask) << low
                place += length
                low += p
            scale_bits[0] = (np.uint32(row[place]) << np.uint32(16)) | (np.uint32(row[place + 1]) << np.uint32(24))
            place += 2
            for i in range(size):
                code = np.int8(np.uint8(codes[i] << shift)) >> shift  # extends the sign
                out[k, start + i] = np.float32(code) * scale[0]
