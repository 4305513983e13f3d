"""How rows of terms and sums travel: as words of some bits, whole or in shares.

n rows, L numbers in a row, int64; x shares, see `hmtl.coding.sum_codes`. A word of w bits holds an integer modulo 2^w,
in two's complement. The words of a row follow each other without gaps, low bits first, so that 8 words fill w bytes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import SumCode, add_terms
from hmtl.communication.encoding import from_bytes, to_bytes
from hmtl.communication.wires import INT64

INTEGERS = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}
"""Integers of whole bytes."""
GROUP = 8  # words that fill whole bytes, whatever their length
WORK = 2**16  # numbers that are rounded or added at once, so that they stay in the processor's cache


@dataclass(frozen=True)
class RowFormat:
    """Rows of L words of `bits` bits each, 1 to 64. A sum of rows has the sum of each word, modulo 2^bits."""

    L: int
    bits: int

    @property
    def nbytes(self) -> int:
        """Bytes of a row."""
        return -(-self.L * self.bits // 8)

    def pack(self, x: Tensor) -> Tensor:
        """Return the low bits of integers [n, L], uint8 [n, nbytes]; words of 64 bits are not copied."""
        if self.bits in INTEGERS:
            return to_bytes(x.to(INTEGERS[self.bits]))
        n, groups = len(x), -(-self.L // GROUP)
        padded = np.zeros((n, groups * GROUP), np.uint64)
        padded[:, : self.L] = x.numpy().view(np.uint64) & np.uint64(2**self.bits - 1)
        integers = padded.reshape(n, groups, GROUP)
        rows = np.zeros((n, groups, self.bits), np.uint8)
        for word, byte, shift in self._overlaps():
            part = integers[..., word] >> np.uint64(shift) if shift >= 0 else integers[..., word] << np.uint64(-shift)
            rows[..., byte] |= part.astype(np.uint8)  # keeps the low 8 bits
        return torch.from_numpy(rows.reshape(n, groups * self.bits)[:, : self.nbytes])

    def read(self, rows: Tensor) -> Tensor:
        """Return the integers that words hold, modulo 2^w, [n, L]: without a copy if words are integers of a type."""
        return from_bytes(rows, INTEGERS[self.bits]) if self.bits in INTEGERS else self.unpack(rows)

    def unpack(self, rows: Tensor) -> Tensor:
        """Return the integers in −2^(w−1) .. 2^(w−1) − 1 that words hold, int64 [n, L] for uint8 [n, nbytes]."""
        if self.bits in INTEGERS:
            return self.read(rows).to(torch.int64)
        n, groups = len(rows), -(-self.L // GROUP)
        padded = np.zeros((n, groups * self.bits), np.uint8)
        padded[:, : rows.shape[1]] = rows.numpy()
        content = padded.reshape(n, groups, self.bits)
        integers = np.zeros((n, groups, GROUP), np.uint64)
        for word, byte, shift in self._overlaps():
            part = content[..., byte].astype(np.uint64)
            integers[..., word] |= part << np.uint64(shift) if shift >= 0 else part >> np.uint64(-shift)
        unused = 64 - self.bits
        signed = (integers << np.uint64(unused)).view(np.int64) >> unused  # the shift back extends the sign
        return torch.from_numpy(signed.reshape(n, groups * GROUP)[:, : self.L])

    def add(self, rows: Tensor, at: Tensor, A: Tensor, to: Tensor, first: int = 0) -> None:
        """Add A·S to `to`, where S is the sum of the numbers in the rows `at`, cut; see `hmtl.coding.add_terms`."""
        if self.bits == 64:
            add_terms(from_bytes(rows, torch.int64), at, A, to, first)
            return
        for places in portions(at, self.L):
            add_terms(self.unpack(rows[places]), torch.arange(len(places)), A, to)

    def share(self, code: SumCode) -> "RowFormat":
        """Return the format of a share of a row, whose words are m stretches of a padded row."""
        return RowFormat(code.bits * code.stretches(self.L), self.bits)

    def split(self, row: Tensor, code: SumCode, shares: NDArray[np.int64]) -> Tensor:
        """Return some shares of a row, uint8 [x, bytes] for uint8 [1, nbytes]."""
        return self.share(code).pack(code.split(self.read(row)[0], shares).view(len(shares), -1))

    def join(self, shares: Tensor, code: SumCode, group: int) -> Tensor:
        """Return the row, uint8 [1, nbytes], of which `split` made the shares of a set, uint8 [c, bytes]."""
        numbers = self.share(code).read(shares).reshape(-1, code.stretches(self.L))
        return self.pack(code.join(group, numbers, self.L)[None])

    def _overlaps(self) -> Iterator[tuple[int, int, int]]:
        """Yield the words and bytes of a group that share bits, and where the byte begins in the word [bits]."""
        for byte in range(self.bits):
            for word in range(8 * byte // self.bits, (8 * byte + 7) // self.bits + 1):
                yield word, byte, 8 * byte - word * self.bits


@dataclass(frozen=True)
class PlainRows:
    """The formats of rows that are always L words of 64 bits.

    Attributes:
        bits_down: bits of a number in the row for users: 64 for sums, or those of an average.
        K: number of users.
        stamp: bytes of a row for users before its further numbers.
        terms, sums: formats of a user's terms, and of sums of such terms.
        up: the same, by the format that users' messages name.
        down: format of the row for users, as a rule.
    """

    L: int
    bits_down: int = 64
    K: int = 0
    stamp: ClassVar[int] = 0

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
        """Return the format of a row for users, given its further numbers, uint8 [1, bytes]."""
        return self.down


def portions(at: Tensor, L: int) -> Iterator[Tensor]:
    """Yield portions of `at`, numbers of rows of L numbers, that are small enough for the processor's cache."""
    if len(at):
        yield from torch.split(at, max(1, WORK // max(1, L)))
