"""Sums in few bits: terms as integers of b bits on a scale that all users share.

K users, n rows, L numbers in a row; B = ⌈L/64⌉ blocks of 64 numbers, the last of which may be shorter. All numbers are
int64, and all arithmetic is exact, so that sums have the same bits in any order.

A user has to add x = t + e: its term, and e, what rounding left over before. It sends q = clip(round(x/s)) and keeps
x − q·s as the next e. The scale s ≥ 1 of a block follows from the largest |x| in the last round that counted. Users
send their largest |x| of each block as its *size*, a bfloat16 rounded up, of which relays pass on the maximum. The bits
of sizes, read as integers below 2^15, have the same order as the sizes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from hmtl.communication.encoding import BLOCK
from hmtl.communication.row_formats import RowFormat
from hmtl.communication.wires import QUANTISERS
from hmtl.errors import RangeError

FEW_BITS = {name: blocks.width for name, blocks in QUANTISERS.items()}
"""The bits b of a term, by the names that the setting `wire` may have for sums."""
LARGEST = 2**61  # of |x|, so that x, and what rounding adds to it, fits in 64 bits


@dataclass(frozen=True)
class FewBits:
    """The formats of sums whose terms have `bits` bits.

    Attributes:
        bits: b.
        K: number of users.
        L: numbers in a row.
    """

    bits: int
    K: int
    L: int

    @property
    def terms(self) -> RowFormat:
        """Format of a user's terms."""
        return RowFormat(self.L, self.bits, blocks_of(self.L))

    @property
    def sums(self) -> RowFormat:
        """Format of sums of up to K rows of terms: b + ⌈log₂ K⌉ bits."""
        return RowFormat(self.L, self.bits + (self.K - 1).bit_length(), blocks_of(self.L))

    @property
    def whole(self) -> RowFormat:
        """Format of terms before the first sizes are known, and of sums for users who lack the last row."""
        return RowFormat(self.L, 64, blocks_of(self.L))

    @property
    def largest(self) -> int:
        """The largest q, 2^(b−1) − 1."""
        return (1 << (self.bits - 1)) - 1

    def rounded(self, x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return q [n, L] and x − q·s [n, L] for x [n, L] and the sizes [1, B] of the last round that counted."""
        scales = self._scales(sizes)
        q = torch.div(x + scales // 2, scales, rounding_mode="floor").clamp_(-self.largest, self.largest)
        return q, x - q * scales

    def values(self, total: Tensor, sizes: Tensor) -> Tensor:
        """Return s·Σq [1, L] for Σq [1, L] and the sizes [1, B] that gave its scales.

        Raises:
            RangeError: it might not fit in 64 bits.
        """
        scales = self._scales(sizes)
        if float((total.double() * scales).abs().max()) > 2 * LARGEST:
            raise RangeError("A sum does not fit in 64 bits. Lower fraction_bits, or solver.step if training diverges.")
        return total * scales

    def _scales(self, sizes: Tensor) -> Tensor:
        """Return the scale of each number, ⌈size / (2^(b−1) − 1)⌉ and at least 1, [1, L]."""
        maxima = (sizes.int() << 16).view(torch.float32).long()
        scales = ((maxima + self.largest - 1) // self.largest).clamp_min_(1)
        return scales.repeat_interleave(BLOCK, dim=1)[:, : self.L]


def sizes_of(x: Tensor) -> Tensor:
    """Return the sizes [n, B] of the blocks of x [n, L].

    Raises:
        RangeError: a number exceeds 2^61.
    """
    blocks = pad(x.abs(), (0, -x.shape[1] % BLOCK)).view(len(x), -1, BLOCK)
    maxima = blocks.amax(2)
    if len(maxima) and int(maxima.max()) > LARGEST:
        raise RangeError(
            "A term of a sum, plus what rounding left over before, exceeds 2^61 units of the grid. "
            "Lower fraction_bits, or solver.step if training diverges."
        )
    return ((maxima.float().view(torch.int32) + 0xFFFF) >> 16).long()


def blocks_of(L: int) -> int:
    """Return the number of blocks in a row of L numbers."""
    return -(-L // BLOCK)
