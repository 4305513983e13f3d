"""Integers as words of a few bits, and back.

Shapes: n rows of L integers. A word of w bits holds an integer modulo 2^w, in two's complement. The words of a row
follow each other without gaps, low bits first, so that 8 words fill w bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.encoding import from_bytes, to_bytes

INTEGERS = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}
"""Integers of whole bytes."""
GROUP = 8  # words that fill whole bytes, whatever their length


@dataclass(frozen=True)
class Words:
    """Words of `bits` bits each, 1 to 64."""

    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 64:
            raise ValueError(f"a word of {self.bits} bits: give 1 to 64")

    def nbytes(self, L: int) -> int:
        """Return the number of bytes of L words."""
        return -(-L * self.bits // 8)

    def pack(self, x: Tensor) -> Tensor:
        """Return the low bits of integers, uint8 [n, ⌈L·w/8⌉] for int64 [n, L]; words of 64 bits are not copied."""
        if self.bits in INTEGERS:
            return to_bytes(x.to(INTEGERS[self.bits]))
        (n, L), groups = x.shape, -(-x.shape[1] // GROUP)
        padded = np.zeros((n, groups * GROUP), np.uint64)
        padded[:, :L] = x.numpy().view(np.uint64) & np.uint64(2**self.bits - 1)
        integers = padded.reshape(n, groups, GROUP)
        rows = np.zeros((n, groups, self.bits), np.uint8)
        for word, byte, shift in self._overlaps():
            part = integers[..., word] >> np.uint64(shift) if shift >= 0 else integers[..., word] << np.uint64(-shift)
            rows[..., byte] |= part.astype(np.uint8)  # keeps the low 8 bits
        return torch.from_numpy(rows.reshape(n, groups * self.bits)[:, : self.nbytes(L)])

    def read(self, rows: Tensor, L: int) -> Tensor:
        """Return the integers that words hold, modulo 2^w, [n, L]: without a copy if words are integers of a type."""
        return from_bytes(rows, INTEGERS[self.bits]) if self.bits in INTEGERS else self.unpack(rows, L)

    def unpack(self, rows: Tensor, L: int) -> Tensor:
        """Return the integers in −2^(w−1) .. 2^(w−1) − 1 that words hold, int64 [n, L] for uint8 [n, ⌈L·w/8⌉]."""
        if self.bits in INTEGERS:
            return self.read(rows, L).to(torch.int64)
        n, groups = len(rows), -(-L // GROUP)
        padded = np.zeros((n, groups * self.bits), np.uint8)
        padded[:, : rows.shape[1]] = rows.numpy()
        content = padded.reshape(n, groups, self.bits)
        integers = np.zeros((n, groups, GROUP), np.uint64)
        for word, byte, shift in self._overlaps():
            part = content[..., byte].astype(np.uint64)
            integers[..., word] |= part << np.uint64(shift) if shift >= 0 else part >> np.uint64(-shift)
        unused = 64 - self.bits
        signed = (integers << np.uint64(unused)).view(np.int64) >> unused  # the shift back extends the sign
        return torch.from_numpy(signed.reshape(n, groups * GROUP)[:, :L])

    def _overlaps(self) -> Iterator[tuple[int, int, int]]:
        """Yield the words and bytes of a group that share bits, and where the byte begins in the word [bits]."""
        for byte in range(self.bits):
            for word in range(8 * byte // self.bits, (8 * byte + 7) // self.bits + 1):
                yield word, byte, 8 * byte - word * self.bits
