"""How rows of terms and sums travel: as integers of some bits, whole or in shares.

n rows, L numbers in a row, int64; x shares, see `hmtl.coding.sum_codes`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import SumCode, add_terms
from hmtl.communication.encoding import from_bytes
from hmtl.communication.wires import INT64
from hmtl.communication.words import Words

WORK = 2**16  # numbers that are rounded or added at once, so that they stay in the processor's cache


@dataclass(frozen=True)
class RowFormat:
    """Rows of L words of `bits` bits each. A sum of rows has the sum of each word, modulo 2^bits."""

    L: int
    bits: int

    @property
    def words(self) -> Words:
        return Words(self.bits)

    @property
    def nbytes(self) -> int:
        """Bytes of a row."""
        return self.words.nbytes(self.L)

    def pack(self, numbers: Tensor) -> Tensor:
        """Return numbers [n, L] as bytes, uint8 [n, nbytes]."""
        return self.words.pack(numbers)

    def unpack(self, rows: Tensor) -> Tensor:
        """Return the numbers [n, L] that `pack` was given."""
        return self.words.unpack(rows, self.L)

    def add(self, rows: Tensor, at: Tensor, A: Tensor, to: Tensor, first: int = 0) -> None:
        """Add A·S to `to`, where S is the sum of the numbers in the rows `at`, cut; see `hmtl.coding.add_terms`."""
        if self.bits == 64:
            add_terms(from_bytes(rows, torch.int64), at, A, to, first)
            return
        for places in portions(at, self.L):
            add_terms(self.unpack(rows[places]), torch.arange(len(places)), A, to)

    def share_nbytes(self, code: SumCode) -> int:
        """Return the bytes of a share of a row."""
        return self.words.nbytes(code.bits * code.stretches(self.L))

    def split(self, row: Tensor, code: SumCode, shares: NDArray[np.int64]) -> Tensor:
        """Return some shares of a row, uint8 [x, share_nbytes] for uint8 [1, nbytes]."""
        return self.words.pack(code.split(self.words.read(row, self.L)[0], shares).view(len(shares), -1))

    def join(self, shares: Tensor, code: SumCode, group: int) -> Tensor:
        """Return the row, uint8 [1, nbytes], of which `split` made the shares of a set, uint8 [c, share_nbytes]."""
        stretch = code.stretches(self.L)
        numbers = self.words.read(shares, code.bits * stretch).reshape(-1, stretch)
        return self.pack(code.join(group, numbers, self.L)[None])


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
    def up(self) -> Mapping[str, tuple[RowFormat, RowFormat]]:
        """Format of terms and that of their sums, by the format that users' messages name."""

    @property
    def down(self) -> RowFormat:
        """Format of the row for users, as a rule."""

    def of_row(self, overhead: Tensor) -> RowFormat:
        """Return the format of a row for users, given its further numbers, uint8 [1, bytes]."""


@dataclass(frozen=True)
class PlainRows:
    """Formats of rows that are always L words of 64 bits.

    Attributes:
        bits_down: bits of a number in the row for users: 64 for sums, or those of an average.
    """

    L: int
    bits_down: int = 64

    @property
    def terms(self) -> RowFormat:
        return RowFormat(self.L, 64)

    sums = terms

    @property
    def up(self) -> Mapping[str, tuple[RowFormat, RowFormat]]:
        return {INT64: (self.terms, self.sums)}

    @property
    def down(self) -> RowFormat:
        return RowFormat(self.L, self.bits_down)

    def of_row(self, overhead: Tensor) -> RowFormat:
        return self.down


def portions(at: Tensor, L: int) -> Iterator[Tensor]:
    """Yield portions of `at`, numbers of rows of L numbers, that are small enough for the processor's cache."""
    if len(at):
        yield from torch.split(at, max(1, WORK // max(1, L)))
