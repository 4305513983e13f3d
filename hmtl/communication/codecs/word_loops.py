"""Compiled loops that pack integers into words of some bits, unpack them, and round terms to words of few bits.

L words of a row follow each other without gaps, low bits first. Terms are rounded as `few_bit_words` says.
"""

from typing import Any

import numpy as np

from hmtl.communication.codecs.formats import BLOCK
from hmtl.io.arrays import Bytes, Ints
from hmtl.io.compiled import jit

HALF = 32  # a longer word is packed in two parts, so that they and up to 7 bits before them fit in 64 bits


@jit()
def pack(x: Ints, bits: int, rows: Bytes) -> None:
    """Write the low bits of integers [n, L] to rows of bytes [n, ⌈L·bits/8⌉]."""
    for k in range(len(x)):
        _put(x[k], bits, rows[k])


@jit()
def unpack(rows: Bytes, bits: int, x: Ints) -> None:
    """Write the integers that words hold in two's complement to x [n, L]."""
    low, unused = min(bits, HALF), np.uint64(64 - bits)
    high = bits - low
    mask, rest = np.uint64((1 << low) - 1), np.uint64((1 << high) - 1)
    for k in range(len(x)):
        row, numbers, held, filled, place = rows[k], x[k], np.uint64(0), 0, 0
        for i in range(len(numbers)):
            while filled < low:
                held |= np.uint64(row[place]) << np.uint64(filled)
                place, filled = place + 1, filled + 8
            word = held & mask
            held >>= np.uint64(low)
            filled -= low
            if high > 0:
                while filled < high:
                    held |= np.uint64(row[place]) << np.uint64(filled)
                    place, filled = place + 1, filled + 8
                word |= (held & rest) << np.uint64(low)
                held >>= np.uint64(high)
                filled -= high
            numbers[i] = np.int64(word << unused) >> np.int64(unused)  # the shift back extends the sign


@jit()
def round_terms(
    terms: Ints,
    owed: Ints,
    rest: Ints,
    errors: Ints,
    scales: Ints,
    largest: int,
    rows: Bytes,
    bits: int,
    most: int,
) -> bool:
    """Round terms [n, m], plus what is owed, and pack them with their votes; return whether all numbers fit.

    Args:
        terms: of n users.
        owed, rest: the rows of `errors` with what each user owes, and those for what rounding leaves over [n].
        errors: what rounding left over [h, m].
        scales: powers of two [B].
        largest: the size up to which numbers fit.
        rows: receives words [n, bytes].
        bits: of a word.
        most: the largest q.
    """
    (n, m), B = terms.shape, len(scales)
    full, odd = m // BLOCK, m % BLOCK
    whole, tail = np.empty(BLOCK, np.int64), np.empty(odd + 2 * B, np.int64)  # the last block, and votes
    for k in range(n):
        row = rows[k]
        for b in range(B):
            start, stop, scale = b * BLOCK, min(m, (b + 1) * BLOCK), scales[b]
            these, before, left = terms[k, start:stop], errors[owed[k], start:stop], errors[rest[k], start:stop]
            q, shift, peak = whole if b < full else tail[:odd], 0, np.int64(0)
            while (scale >> shift) > 1:
                shift += 1
            for i in range(len(these)):
                x = these[i] + before[i]
                peak = max(peak, abs(x))
                q[i] = max(-most, min(most, (x + (scale >> 1)) >> shift))
                left[i] = x - (q[i] << shift)
            if peak > largest:
                return False
            limit = most * scale + (most * scale >> 1)
            tail[odd + b], tail[odd + B + b] = peak > limit, peak > limit >> 1
            if b < full:  # 64 words fill whole bytes
                _put(q, bits, row[8 * bits * b : 8 * bits * (b + 1)])
        _put(tail, bits, row[8 * bits * full :])
    return True


@jit()
def _put(words: Ints, bits: int, out: Any) -> None:
    """Write the low bits of words to bytes."""
    low = min(bits, HALF)
    high = bits - low
    mask, rest = np.uint64((1 << low) - 1), np.uint64((1 << high) - 1)
    held, filled, place = np.uint64(0), 0, 0
    for i in range(len(words)):
        word = np.uint64(words[i])
        held |= (word & mask) << np.uint64(filled)
        filled += low
        while filled >= 8:
            out[place] = held & np.uint64(255)
            held >>= np.uint64(8)
            place, filled = place + 1, filled - 8
        if high > 0:
            held |= ((word >> np.uint64(low)) & rest) << np.uint64(filled)
            filled += high
            while filled >= 8:
                out[place] = held & np.uint64(255)
                held >>= np.uint64(8)
                place, filled = place + 1, filled - 8
    if filled > 0:
        out[place] = held & np.uint64(255)
