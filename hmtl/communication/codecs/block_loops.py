"""Compiled loops that round blocks of IVs and models to few bits, and take them back; `few_bit_blocks` keeps the rest.

A row of m numbers consists of blocks of BLOCK numbers, the last one perhaps shorter. A whole block is rotated first:
some signs are changed, chosen at random once and for all, and it is multiplied by a Hadamard matrix. This spreads a
rounding error over the block. Without it, many small numbers beside a large one would all be rounded to zero, and their
errors would add up, since they point in the direction of the numbers.

A block is encoded as its integers, in planes, and its scale as a bfloat16 of 2 bytes. A plane holds 8, 4, 2 or 1 bits
of each integer, low bits first: the 3 bits of an integer are a plane of 2 bits and a plane of 1 bit. In a plane of n
bytes, number i of the block is in byte i mod n, so that neighboring numbers are in neighboring bytes and the loops
vectorize.

Ref: Suresh et al. 2017, *Distributed mean estimation with limited communication* (rotation before quantization).
"""

from typing import Any

import numpy as np

from hmtl.communication.codecs.formats import BLOCK
from hmtl.io.arrays import Bytes
from hmtl.io.compiled import jit
from hmtl.rng import generator

SIDE = 8  # a block is rotated as a matrix of this size
SIGNS = (generator(0, "signs of blocks").integers(0, 2, BLOCK) * 2 - 1).astype(np.float32)
INF_BITS = np.int32(0x7F800000)  # the bits of infinity; those of NaN are larger
ABS_MASK = np.int32(0x7FFFFFFF)  # all bits of a float32 but its sign


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
    codes, rotated, scratch = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    magnitudes = rotated.view(np.int32)
    pair = np.empty(2, np.float32)  # the largest number, and the scale
    pair_bits = pair.view(np.uint32)
    for k in range(n):
        row, place = out[k], 0
        for start in range(0, m, BLOCK):
            block = x[k, start : start + BLOCK]
            size = len(block)
            if size == BLOCK:
                for i in range(BLOCK):
                    scratch[i] = np.float32(block[i]) * SIGNS[i]
                _rotate(scratch, rotated)
            else:
                for i in range(size):
                    rotated[i] = block[i]
            highest = np.int32(0)
            for i in range(size):  # the bits of floats without their signs compare like the floats
                magnitude = magnitudes[i] & ABS_MASK
                if magnitude > highest:
                    highest = magnitude
            pair_bits[0] = np.uint32(highest)
            pair[1] = pair[0] / top
            # Round up to a bfloat16, and once more if the quotient was rounded down, so that |x| / scale <= top.
            pair_bits[1] = ((pair_bits[1] + np.uint32(0xFFFF)) >> np.uint32(16)) << np.uint32(16)
            if pair[1] * top < pair[0]:
                pair_bits[1] += np.uint32(0x10000)
            failed += int(highest >= INF_BITS or not pair[1] < np.inf)
            inverse = 1 / pair[1] if pair[1] > 0 else np.float32(0)
            if not inverse < np.inf:  # the scale is so small that its inverse overflows
                inverse = np.float32(0)
            for i in range(size):
                codes[i] = np.int8(np.rint(rotated[i] * inverse))
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
    codes, rotated, scratch = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
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
            step = scale[0] / np.float32(BLOCK) if size == BLOCK else scale[0]  # rotating twice multiplies by BLOCK
            for i in range(size):
                rotated[i] = np.float32(np.int8(np.uint8(codes[i] << shift)) >> shift) * step  # extends the sign
            if size == BLOCK:
                _rotate(rotated, scratch)
                for i in range(BLOCK):
                    block[i] = scratch[i] * SIGNS[i]
            else:
                for i in range(size):
                    block[i] = rotated[i]


@jit()
def _rotate(block: Any, out: Any) -> None:
    """Write H (H B)ᵀ to `out` for a block, read as a matrix B [8, 8], and overwrite the block.

    H is the Hadamard matrix. Up to a factor of 64, this map is orthogonal and its own inverse.
    """
    _multiply_columns(block)
    for i in range(SIDE):
        for j in range(SIDE):
            out[SIDE * i + j] = block[SIDE * j + i]
    _multiply_columns(out)


@jit()
def _multiply_columns(x: Any) -> None:
    """Multiply x, read as a matrix [8, 8], by the Hadamard matrix from the left."""
    for i in range(SIDE):
        a0 = x[i]
        a1 = x[8 + i]
        a2 = x[16 + i]
        a3 = x[24 + i]
        a4 = x[32 + i]
        a5 = x[40 + i]
        a6 = x[48 + i]
        a7 = x[56 + i]
        b0, b4 = a0 + a4, a0 - a4
        b1, b5 = a1 + a5, a1 - a5
        b2, b6 = a2 + a6, a2 - a6
        b3, b7 = a3 + a7, a3 - a7
        c0, c2 = b0 + b2, b0 - b2
        c1, c3 = b1 + b3, b1 - b3
        c4, c6 = b4 + b6, b4 - b6
        c5, c7 = b5 + b7, b5 - b7
        x[i] = c0 + c1
        x[8 + i] = c0 - c1
        x[16 + i] = c2 + c3
        x[24 + i] = c2 - c3
        x[32 + i] = c4 + c5
        x[40 + i] = c4 - c5
        x[48 + i] = c6 + c7
        x[56 + i] = c6 - c7


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
