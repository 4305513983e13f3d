"""Rounding of IVs and models: compiled loops that take blocks of numbers to few bits and back.

Terms of sums are rounded in `rounding_of_sums`.

A row of m numbers has blocks of BLOCK numbers, the last one perhaps shorter. A block is encoded as its integers,
in planes, and its scale as a bfloat16 of 2 bytes. A plane holds 8, 4, 2 or 1 bits of each integer, low bits first: the
3 bits of an integer are a plane of 2 bits and a plane of 1 bit. In a plane of n bytes, number i of the block is in byte
i mod n, so that neighbouring numbers are in neighbouring bytes and the loops vectorise.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.communication.encoding import BLOCK
from hmtl.io.compiled import jit

LARGEST = np.int32(0x7F800000)  # the bits of infinity; those of NaN are larger
MASK = np.int32(0x7FFFFFFF)  # all bits of a float32 but its sign
Bytes = NDArray[np.uint8]


@jit()
def encode(x: Any, bits: int, planes: Any, out: Bytes) -> int:
    """Encode rows x [n, m] into `out` [n, bytes]; return how many blocks have no encoding.

    Args:
        x: float32 or float64.
        bits: b; integers are at most 2^(b-1) - 1 in size.
        planes: bits of each plane.
        out: receives the rows of bytes.
    """
    n, m = x.shape
    failed = 0
    top = np.float32(2 ** (bits - 1) - 1)
    codes, numbers = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.float32)
    magnitudes = numbers.view(np.int32)
    pair = np.empty(2, np.float32)  # the largest number, and the scale
    pair_bits = pair.view(np.uint32)
    for k in range(n):
        row, place = out[k], 0
        for start in range(0, m, BLOCK):
            block = x[k, start : start + BLOCK]
            size = len(block)
            for i in range(size):
                numbers[i] = block[i]
            highest = np.int32(0)
            for i in range(size):  # the bits of floats without their signs compare like the floats
                magnitude = magnitudes[i] & MASK
                if magnitude > highest:
                    highest = magnitude
            pair_bits[0] = np.uint32(highest)
            pair[1] = pair[0] / top
            # Round up to a bfloat16, and once more if the quotient was rounded down, so that |x| / scale <= top.
            pair_bits[1] = ((pair_bits[1] + np.uint32(0xFFFF)) >> np.uint32(16)) << np.uint32(16)
            if pair[1] * top < pair[0]:
                pair_bits[1] += np.uint32(0x10000)
            failed += int(highest >= LARGEST or not pair[1] < np.inf)
            inverse = 1 / pair[1] if pair[1] > 0 else np.float32(0)
            if not inverse < np.inf:  # the scale is so small that its inverse overflows
                inverse = np.float32(0)
            for i in range(size):
                codes[i] = np.int8(np.rint(numbers[i] * inverse))
            low = 0
            for p in planes:
                stop = place + (size * p + 7) // 8
                _put_plane(codes, size, low, p, row[place:stop])
                place, low = stop, low + p
            row[place] = (pair_bits[1] >> np.uint32(16)) & np.uint32(0xFF)
            row[place + 1] = pair_bits[1] >> np.uint32(24)
            place += 2
    return failed


@jit()
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
            block = out[k, start : start + BLOCK]
            size = len(block)
            codes[:] = 0
            low = 0
            for p in planes:
                stop = place + (size * p + 7) // 8
                _add_plane(row[place:stop], p, low, codes, size)
                place, low = stop, low + p
            scale_bits[0] = (np.uint32(row[place]) << np.uint32(16)) | (np.uint32(row[place + 1]) << np.uint32(24))
            place += 2
            for i in range(size):
                block[i] = np.float32(np.int8(np.uint8(codes[i] << shift)) >> shift) * scale[0]  # extends the sign


@jit()
def _put_plane(codes: Any, size: int, low: int, p: int, part: Bytes) -> None:
    """Write bits low, .., low + p - 1 of the first `size` codes to the bytes of a plane."""
    if size == BLOCK and p == 4:  # loops of known lengths are faster
        for i in range(BLOCK // 2):
            part[i] = ((codes[i] >> low) & 15) | ((codes[BLOCK // 2 + i] >> low) << 4)
        return
    mask = np.uint8((1 << p) - 1)
    part[:] = 0
    for shift in range(0, 8, p):
        first = shift // p * len(part)
        these = codes[first : min(first + len(part), size)]
        for i in range(len(these)):
            part[i] |= ((these[i] >> low) & mask) << shift


@jit()
def _add_plane(part: Bytes, p: int, low: int, codes: Any, size: int) -> None:
    """Add to the codes what `_put_plane` wrote to the bytes of a plane."""
    if size == BLOCK and p == 4:
        for i in range(BLOCK // 2):
            codes[i] |= (part[i] & 15) << low
            codes[BLOCK // 2 + i] |= (part[i] >> 4) << low
        return
    mask = np.uint8((1 << p) - 1)
    for shift in range(0, 8, p):
        first = shift // p * len(part)
        these = codes[first : min(first + len(part), size)]
        for i in range(len(these)):
            these[i] |= ((part[i] >> shift) & mask) << low
