"""Rounding of sums: terms as integers of b bits on scales that all users share. IVs are rounded in `rounding`.

K users, n rows, m numbers in a row of terms; B = ⌈m/64⌉ blocks of 64 numbers, the last of which may be shorter. A row
has L = m + 2B words. All are int64, and all arithmetic is exact, so that sums have the same bits in any order.

A user has to add x = t + e: its term, and e, what rounding left over before. It sends q = clip(round(x/s)) and keeps
x − q·s as the next e. The scale s of a block is a power of two that follows from sums alone, so that nobody has to know
anything of a single user. After the q's, a row has two votes for each block: whether the block does not *fit* its scale
(a number exceeds 1.5 times the largest q·s), and whether it *needs* it (a number exceeds half of that). A scale doubles
if there is a vote that a block does not fit. It halves once every user has taken part without needing it; a scale that
has doubled outlasts HOLD rounds before. So what rounding leaves over is bounded, however rarely a user takes part
(docs/theory/low_precision.md).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from hmtl.communication.attendance import bytes_to_numbers
from hmtl.communication.encoding import BLOCK
from hmtl.communication.row_formats import RowFormat
from hmtl.communication.wires import INT64, QUANTISERS
from hmtl.errors import RangeError

FEW_BITS = {name: blocks.width for name, blocks in QUANTISERS.items()}
"""The bits b of a term, by the names that the setting `wire` may have for sums."""
STAMP = 4  # bytes before a row's other overhead: its number n, if it is to be added to row n − 1; −n, if it is S itself
LARGEST = 2**61  # of |x|, so that x, and what rounding adds to it, fits in 64 bits
HOLD = 8  # rounds in which nobody needs a scale that has doubled, before they count towards its halving
SPREAD = 10  # no scale is less than 2^-10 of the row's largest, so that a block that was zero soon has its scale


@dataclass(frozen=True)
class FewBits:
    """The formats of sums whose terms have `bits` bits.

    Scales are int64 [2, B]: the scale of each block, and in how many rounds nobody has needed it since somebody did; −h
    if it is held for h such rounds first. They are zeros if they are unknown; then terms are not rounded.

    Attributes:
        bits: b.
        K: number of users.
        numbers: m.
        masked: whether terms are masked modulo the words of sums, and have as many bits.
    """

    bits: int
    K: int
    numbers: int
    masked: bool = False
    stamp: ClassVar[int] = STAMP

    @property
    def blocks(self) -> int:
        """B."""
        return -(-self.numbers // BLOCK)

    @property
    def L(self) -> int:
        """Words in a row."""
        return self.numbers + 2 * self.blocks

    @property
    def terms(self) -> RowFormat:
        """Format of a user's terms."""
        return self.sums if self.masked else RowFormat(self.L, self.bits)

    @property
    def sums(self) -> RowFormat:
        """Format of sums of up to K rows of terms: b + ⌈log₂ K⌉ bits."""
        return RowFormat(self.L, self.bits + (self.K - 1).bit_length())

    @property
    def whole(self) -> RowFormat:
        """Format of terms before the scales are known, and of sums for users who lack the last row."""
        return RowFormat(self.L, 64)

    @property
    def up(self) -> Mapping[str, tuple[RowFormat, RowFormat]]:
        return {INT64: (self.whole, self.whole), f"int{self.bits}": (self.terms, self.sums)}

    @property
    def down(self) -> RowFormat:
        """Format of a row for users who have the one before."""
        return self.sums

    def of_row(self, overhead: Tensor) -> RowFormat:
        """Return the format of a row for users, which its stamp gives, see STAMP."""
        return self.sums if bytes_to_numbers(overhead[0, :STAMP].numpy())[0] > 0 else self.whole

    @property
    def largest(self) -> int:
        """The largest q, 2^(b−1) − 1."""
        return (1 << (self.bits - 1)) - 1

    def rounded(self, x: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows [n, L] of q's and votes, and x − q·s [n, m], for x [n, m].

        Raises:
            RangeError: a number exceeds 2^61.
        """
        peaks = pad(x.abs(), (0, -self.numbers % BLOCK)).view(len(x), self.blocks, BLOCK).amax(2)
        if peaks.numel() and int(peaks.max()) > LARGEST:
            raise RangeError(
                "A term of a sum, plus what rounding left over before, exceeds 2^61 units of the grid. "
                "Lower fraction_bits, or solver.step if training diverges."
            )
        if not scales.any():
            return pad(x, (0, 2 * self.blocks)), torch.zeros_like(x)
        s = self._of_numbers(scales)
        q = torch.div(x + s // 2, s, rounding_mode="floor").clamp_(-self.largest, self.largest)
        limits = self.largest * scales[:1] + self.largest * scales[:1] // 2
        return torch.cat([q, peaks > limits, peaks > limits // 2], dim=1), x - q * s

    def values(self, total: Tensor, scales: Tensor) -> Tensor:
        """Return the sum of terms [1, m] for a sum of rows [1, L] and the scales of these rows.

        Raises:
            RangeError: it might not fit in 64 bits.
        """
        q, _, _ = self.split(total)
        if not scales.any():
            return q
        s = self._of_numbers(scales)
        if float((q.double() * s).abs().max()) > 2 * LARGEST:
            raise RangeError("A sum does not fit in 64 bits. Lower fraction_bits, or solver.step if training diverges.")
        return q * s

    def check(self, total: Tensor, few: bool, n: int) -> None:
        """Raise RangeError unless `total` [1, L] can be the sum of rows of n users; `few`: on known scales."""
        numbers, votes = torch.split(total, [self.numbers, 2 * self.blocks], dim=1)
        beyond = few and int(numbers.abs().max()) > n * self.largest
        if beyond or int(votes.min()) < 0 or int(votes.max()) > n * few:
            raise RangeError(f"no rows of {n} users with {self.bits} bits add up to it.")

    def next_scales(self, total: Tensor, scales: Tensor, absence: int = 1) -> Tensor:
        """Return the scales of the next rows for a sum of rows [1, L], their scales, and the longest absence."""
        _, misfits, needs = self.split(total)
        s, quiet = scales[:1], scales[1:]
        quiet = torch.where(needs > 0, quiet.clamp_max(0), quiet + 1)
        halves = quiet >= absence
        quiet = torch.where(misfits > 0, -HOLD, quiet.masked_fill(halves, absence * 3 // 4))
        return _spread(torch.where(misfits > 0, 2 * s, torch.where(halves, s // 2, s)), quiet)

    def first_scales(self, total: Tensor, n: int) -> Tensor:
        """Return scales that follow from the first sum of terms [1, m] of n users; zeros if the sum is zero.

        They fit terms that are as large as independent terms with this sum, 1/√n of it.
        """
        if not total.any():
            return torch.zeros(2, self.blocks, dtype=torch.int64)
        peaks = pad(total.abs(), (0, -self.numbers % BLOCK)).view(1, self.blocks, BLOCK).amax(2)
        _, exponents = torch.frexp((peaks // (self.largest * math.isqrt(n))).double())
        return _spread(torch.ones_like(peaks) << exponents, torch.zeros_like(peaks))

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the numbers [n, m] and both votes [n, B] of rows [n, L]."""
        m, B = self.numbers, self.blocks
        return rows[:, :m], rows[:, m : m + B], rows[:, m + B :]

    def _of_numbers(self, scales: Tensor) -> Tensor:
        """Return the scale of each number [1, m]."""
        return scales[:1].repeat_interleave(BLOCK, dim=1)[:, : self.numbers]


def longest_absence(counted: NDArray[np.int64], round: int) -> int:
    """Return the least n such that every user took part in the last n rounds, the present one included.

    Users who have been away for more than half of all rounds are left out: they may be gone for good.

    Args:
        counted: the round in which each user's terms counted last [K]; negative: in none.
        round: the present round.
    """
    present = counted[counted >= round // 2]
    return round + 1 - int(present.min()) if len(present) else 1


def _spread(s: Tensor, quiet: Tensor) -> Tensor:
    """Return scales, none of which is 0, or much less than the largest."""
    return torch.cat([torch.maximum(s, s.max() >> SPREAD).clamp_min_(1), quiet])
