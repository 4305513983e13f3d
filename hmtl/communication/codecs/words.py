"""Words: terms and sums, which are integers, as they are, so there is no rest; and how words of any bits travel.

Rows travel whole or in shares. n rows, L numbers in a row, int64; x shares, see `hmtl.coding.sum_codes`; K users. A
word of w bits holds an integer modulo 2^w, in two's complement. The words of a row follow each other without gaps, low
bits first.
"""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import SumCode, add_terms
from hmtl.communication.codecs import word_loops
from hmtl.communication.codecs.formats import INT64, NAMES, NUMBERS
from hmtl.communication.codecs.plain import AggregatorCoder, Read, UserCoder
from hmtl.communication.codecs.rows import bytes_to_numbers, from_bytes, numbers_to_bytes, to_bytes, unpack
from hmtl.errors import CodingError, RangeError
from hmtl.io.arrays import Ids
from hmtl.io.row_layout import RowLayout

INTEGERS = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}
"""Integers of whole bytes."""
MAX_TERM = 2**61  # of a term, so that it, and what rounding adds to it, fits in 64 bits
CACHE_WORDS = 2**16  # numbers that are added at once, so that they stay in the processor's cache


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
        rows = torch.empty(len(x), self.nbytes, dtype=torch.uint8)
        word_loops.pack(x.contiguous().numpy(), self.bits, rows.numpy())
        return rows

    def read(self, rows: Tensor) -> Tensor:
        """Return the integers that words hold, modulo 2^w, [n, L]: without a copy if words are integers of a type."""
        if self.bits in INTEGERS:
            return from_bytes(rows, INTEGERS[self.bits])
        x = torch.empty(len(rows), self.L, dtype=torch.int64)
        word_loops.unpack(rows.contiguous().numpy(), self.bits, x.numpy())
        return x

    def unpack(self, rows: Tensor) -> Tensor:
        """Return the integers in −2^(w−1) .. 2^(w−1) − 1 that words hold, int64 [n, L] for uint8 [n, nbytes]."""
        return self.read(rows).to(torch.int64)

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


@dataclass(frozen=True)
class PlainRows:
    """The formats of rows that are always L words of 64 bits.

    Attributes:
        received: the type of the numbers in the row for users: int64 for sums, or that of an average.
        K: number of users.
        stamp: bytes of a row for users before its further numbers.
        terms, sums: formats of a user's terms, and of sums of such terms.
        up: the same, by the format that users' messages name.
        down: formats of the row for users, by the format that their messages name, the usual one first.
    """

    L: int
    received: torch.dtype
    K: int
    stamp: ClassVar[int] = 0

    @cached_property
    def terms(self) -> RowFormat:
        return RowFormat(self.L, 64)

    @cached_property
    def sums(self) -> RowFormat:
        return self.terms

    @cached_property
    def up(self) -> Mapping[str, tuple[RowFormat, RowFormat]]:
        return {INT64: (self.terms, self.sums)}

    @cached_property
    def down(self) -> Mapping[str, RowFormat]:
        return {NAMES[self.received]: RowFormat(self.L, 8 * self.received.itemsize)}


def portions(at: Tensor, L: int) -> Iterator[Tensor]:
    """Yield portions of `at`, numbers of rows of L numbers, that are small enough for the processor's cache."""
    if len(at):
        yield from torch.split(at, max(1, CACHE_WORDS // max(1, L)))


class TermCoder(UserCoder):
    """A host's coder for terms of 64 bits, whose users share one row: of sums, or a model.

    Args:
        layout: of the rows.
        K: number of users in the network.
    """

    def __init__(self, layout: RowLayout, K: int) -> None:
        super().__init__(layout, torch.int64)
        self.K = K

    def read(self, users: Ids, overhead: Tensor, round: int, row_format: str) -> Read:
        end, receipts = unpacked(overhead[0].numpy(), self.K)
        return Read(users, receipts[users], overhead[:1, :end])

    def decode(self, users: Ids, payload: Tensor, extras: Tensor, dtype: torch.dtype, row_format: str) -> Tensor:
        """Return the sums, int64, or the model as it traveled [n, m + e′], for each of these users."""
        received = NUMBERS[row_format]
        return unpack(payload, extras, received, received).expand(len(users), -1)


def unpacked(content: NDArray[np.uint8], K: int) -> tuple[int, Ids]:
    """Return how many bytes come before the receipts of K users, and the receipts, as `SumCoder` packed them.

    Raises:
        CodingError: they are not there, or not of K users.
    """
    nbytes = int(bytes_to_numbers(content[-4:])[0]) if len(content) >= 4 else 0
    before = len(content) - 4 - nbytes
    return before, _receipts(content[before:-4].tobytes() if nbytes > 0 and before >= 0 else b"", K)


@lru_cache(2)  # all relays and hosts of a process read the same
def _receipts(packed: bytes, K: int) -> Ids:
    """Return the receipts of K users; raise CodingError if it holds something else."""
    reader, receipts = zlib.decompressobj(), b""
    with suppress(zlib.error):
        receipts = reader.decompress(packed, 4 * K + 1)  # which may be bombs
    if len(receipts) != 4 * K or not reader.eof:
        raise CodingError(f"it has no receipts of K={K} users")
    return bytes_to_numbers(np.frombuffer(receipts, np.uint8))


class SumCoder(AggregatorCoder):
    """An aggregator's coder for sums of 64 bits.

    Args:
        numbers: m.
        common: the type of a model that all users receive; None: they receive sums.
    """

    adds = True

    def __init__(self, numbers: int, common: torch.dtype | None = None) -> None:
        super().__init__(numbers, torch.int64 if common is None else common)

    def decode(self, users: Ids, payload: Tensor, extras: Tensor, dtype: torch.dtype, row_format: str) -> Tensor:
        """Return the sum; raise RangeError if no terms that users may send add up to it."""
        sums = unpack(payload, extras, torch.int64, torch.int64)
        if sums.numel() and max(-int(sums.min()), int(sums.max())) > 2 * MAX_TERM:
            raise RangeError("it exceeds what terms of 64 bits may add up to.")
        return sums

    def _receipts(self, last: Ids) -> Tensor:
        # Most users' last round is the same, so the compressed receipts take far less than 4 bytes for each user.
        packed = np.frombuffer(zlib.compress(numbers_to_bytes(last).tobytes()), np.uint8)
        return torch.from_numpy(np.concatenate([packed, numbers_to_bytes([len(packed)])]))[None]
