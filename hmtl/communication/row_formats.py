"""How rows of terms and sums travel: as integers of some bits, whole or in shares.

n rows, L numbers in a row, B blocks of numbers, int64; x shares, see `hmtl.coding.sum_codes`. A block's *size* says how
large its numbers are; among rows that are added, the largest size counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import SumCode
from hmtl.communication.words import Words

SIZES = Words(16)
WORK = 2**16  # numbers that are rounded or added at once, so that they stay in the processor's cache


@dataclass(frozen=True)
class RowFormat:
    """Rows of L words of `bits` bits each, followed by the sizes of their blocks, if there are any."""

    L: int
    bits: int
    blocks: int = 0

    @property
    def words(self) -> Words:
        return Words(self.bits)

    @property
    def nbytes(self) -> int:
        """Bytes of a row."""
        return self.words.nbytes(self.L) + SIZES.nbytes(self.blocks)

    def pack(self, numbers: Tensor, sizes: Tensor) -> Tensor:
        """Return numbers [n, L] and sizes [n, B] as bytes, uint8 [n, nbytes]."""
        packed = self.words.pack(numbers)
        return torch.cat([packed, SIZES.pack(sizes)], dim=1) if self.blocks else packed

    def unpack(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers [n, L] and sizes [n, B] that `pack` was given."""
        end = self.words.nbytes(self.L)
        return self.words.unpack(rows[:, :end], self.L), SIZES.unpack(rows[:, end:], self.blocks)

    def added(self, rows: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum [1, L] of the numbers in the rows `at`, and the largest sizes [1, B]."""
        total, largest = (torch.zeros(1, length, dtype=torch.int64) for length in (self.L, self.blocks))
        for places in portions(at, self.L):
            start = int(places[0])
            part = rows[places] if len(places) > 1 else rows[start : start + 1]  # long rows are not copied
            numbers, sizes = self.unpack(part)
            total += numbers.sum(0) if len(places) > 1 else numbers
            largest = torch.maximum(largest, sizes.amax(0))
        return total, largest

    def share_nbytes(self, code: SumCode) -> int:
        """Return the bytes of a share of a row with its sizes."""
        return sum(words.nbytes(code.bits * code.stretches(length)) for words, length in self._parts)

    def split(self, row: Tensor, code: SumCode, shares: NDArray[np.int64]) -> Tensor:
        """Return some shares of a row, uint8 [x, share_nbytes] for uint8 [1, nbytes]."""
        parts = zip(self._parts, self.unpack(row), strict=False)
        rows = [words.pack(code.split(numbers[0], shares).view(len(shares), -1)) for (words, _), numbers in parts]
        return torch.cat(rows, dim=1)

    def join(self, shares: Tensor, code: SumCode, group: int) -> Tensor:
        """Return the row, uint8 [1, nbytes], of which `split` made the shares of a set, uint8 [c, share_nbytes]."""
        rows, start = [], 0
        for words, length in self._parts:
            stretches = code.bits * code.stretches(length)
            stop = start + words.nbytes(stretches)
            numbers = words.unpack(shares[:, start:stop], stretches).reshape(code.pieces * code.bits, -1)
            rows.append(words.pack(code.join(group, numbers, length)[None]))
            start = stop
        return torch.cat(rows, dim=1)

    @property
    def _parts(self) -> list[tuple[Words, int]]:
        """The words of numbers and sizes, and how many there are."""
        return [(self.words, self.L), *([(SIZES, self.blocks)] if self.blocks else [])]


class Formats(Protocol):
    """The formats of a learner's rows, all of L numbers."""

    @property
    def L(self) -> int: ...

    @property
    def terms(self) -> RowFormat:
        """Format of a user's terms."""

    @property
    def sums(self) -> RowFormat:
        """Format of sums of such terms."""

    @property
    def whole(self) -> RowFormat:
        """Format of other terms, and of their sums."""


@dataclass(frozen=True)
class PlainRows:
    """Formats of rows that are always L words of 64 bits."""

    L: int

    @property
    def terms(self) -> RowFormat:
        return RowFormat(self.L, 64)

    sums = whole = terms


def portions(at: Tensor, L: int) -> Iterator[Tensor]:
    """Yield portions of `at`, numbers of rows of L numbers, that are small enough for the processor's cache."""
    if len(at):
        yield from torch.split(at, max(1, WORK // max(1, L)))
