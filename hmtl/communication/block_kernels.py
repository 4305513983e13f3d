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

from hmtl.communication.wires import BLOCK

Bytes = NDArray[np.uint8]
SETTINGS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


@njit(**SETTINGS)  # type: ignore[untyped-decorator]  # numba has no types
def encode(x: Any, bits_of_x: Any, mask: Any, bits: int, planes: Any, out: Bytes) -> int:
    """Encode rows x [n, m] into `out` [n, bytes]; return how many blocks have no encoding.

    Args:
        x: float32 or float64.
        bits_of_x: the bits of `x` as integers, which compare like absolute values once `mask` has removed the signs.
        mask: all bits but the sign.
        bits: b; integers are at most 2^(b-1) - 1 in size.
        planes: bits of each plane.
        out: receives the rows of bytes.
    """
    n, m = x.shape
    failed = 0
    top = np.float32(2 ** (bits - 1) - 1)
    codes = np.empty(BLOCK, np.uint8)
    most = np.empty(1, bits_of_x.dtype)
    scale = np.empty(1, np.float32)
    scale_bits = scale.view(np.uint32)
    for k in range(n):
        place = 0
        for start in range(0, m, BLOCK):
            size = min(BLOCK, m - start)
            block, magnitudes = x[k, start : start + size], bits_of_x[k, start : start + size]
            highest = magnitudes[0] & mask
            for i in range(size):
                magnitude = magnitudes[i] & mask
                if magnitude > highest:
                    highest = magnitude
            most[0] = highest
            largest = most.view(x.dtype)[0]  # NaN or infinite if a number is
            scale[0] = largest / top
            # Round up to a bfloat16, and once more if the quotient was rounded down, so that |x| / scale <= top.
            scale_bits[0] = ((scale_bits[0] + np.uint32(0xFFFF)) >> np.uint32(16)) << np.uint32(16)
            if scale[0] * top < largest:
                scale_bits[0] += np.uint32(0x10000)
            failed += not (largest < np.inf and scale[0] < np.inf)
            inverse = 1 / scale[0] if scale[0] > 0 else np.float32(0)
            if not inverse < np.inf:  # the scale is so small that its inverse overflows
                inverse = np.float32(0)
            for i in range(size):
                codes[i] = np.int8(np.rint(np.float32(block[i]) * inverse))
            low = 0
            for p in planes:
                place = _put_plane(codes[:size], low, p, out[k], place)
                low += p
            out[k, place] = (scale_bits[0] >> np.uint32(16)) & np.uint32(0xFF)
            out[k, place + 1] = scale_bits[0] >> np.uint32(24)
            place += 2
    return failed


@njit(**SETTINGS)  # type: ignore[untyped-decorator]
def decode(rows: Bytes, bits: int, planes: Any, out: Any) -> None:
    """Decode `rows` [n, bytes], which `encode` wrote, into `out` [n, m], float32 or float64."""
    n, m = out.shape
    codes = np.empty(BLOCK, np.uint8)
    scale = np.empty(1, np.float32)
    scale_bits = scale.view(np.uint32)
    shift = 8 - bits
    for k in range(n):
        place = 0
        for start in range(0, m, BLOCK):
            size = min(BLOCK, m - start)
            codes[:] = 0
            low = 0
            for p in planes:
                place = _add_plane(rows[k], place, p, low, codes[:size])
                low += p
            scale_bits[0] = (np.uint32(rows[k, place]) << np.uint32(16)) | (
                np.uint32(rows[k, place + 1]) << np.uint32(24)
            )
            place += 2
            step, block = scale[0], out[k, start : start + size]
            for i in range(size):
                code = np.int8(np.uint8(codes[i] << shift)) >> shift  # extends the sign
                block[i] = np.float32(code) * step


@njit(**SETTINGS)  # type: ignore[untyped-decorator]
def _put_plane(codes: Any, low: int, p: int, row: Bytes, place: int) -> int:
    """Write bits low, .., low + p - 1 of all codes to a row at a place; return the place after them."""
    size = len(codes)
    length, mask = -(-size * p // 8), np.uint8((1 << p) - 1)
    part = row[place : place + length]
    part[:] = 0
    for shift in range(0, 8, p):
        first = shift // p * length
        these = codes[first : first + length]
        for i in range(len(these)):
            part[i] |= ((these[i] >> low) & mask) << shift
    return place + length


@njit(**SETTINGS)  # type: ignore[untyped-decorator]
def _add_plane(row: Bytes, place: int, p: int, low: int, codes: Any) -> int:
    """Read from a row what `_put_plane` wrote, and add it to the codes; return the place after it."""
    size = len(codes)
    length, mask = -(-size * p // 8), np.uint8((1 << p) - 1)
    part = row[place : place + length]
    for shift in range(0, 8, p):
        first = shift // p * length
        these = codes[first : first + length]
        for i in range(len(these)):
            these[i] |= ((part[i] >> shift) & mask) << low
    return place + length
