"""Datagrams that carry a body in pieces, questions about what of it arrived, and reports that answer them.

A body is cut into pieces of equal length, and these into generations of at most GENERATION, of which combinations over
GF(2^8) repair what was lost. Nothing is believed of a datagram whose checksum is wrong.
"""

import struct
import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Self

import numpy as np
from torch import Tensor

from hmtl.errors import CodingError
from hmtl.gf256 import cauchy

MAGIC = b"hmtm"
PIECE, QUESTION, REPORT = range(3)
LAYOUT = struct.Struct("<4s B Q I I H B")
HEADER = LAYOUT.size + 4  # bytes, with the checksum
DATAGRAM = 1400  # bytes at most, below what links carry in one packet
ROOM = DATAGRAM - HEADER
GENERATION = 100  # pieces; the more, the less repairs differ from the mean; 256 less these combinations are distinct
LACK = np.dtype([("generation", "<u2"), ("pieces", "u1")])


@dataclass(frozen=True)
class Datagram:
    """What a datagram says.

    Attributes:
        what: PIECE, of a body; QUESTION, what who lacks; or REPORT, the answer.
        run: a number that no other run on the network has.
        number: of the body, from 1.
        size: of the body [bytes].
        generation: of a piece; in a question, and in reports that answer it, its own number.
        index: of a piece in its generation; from the generation's size on, the row of its combination.
        content: of a piece, its bytes; of a report, rank of the receiver and how many pieces it lacks, see `LACK`.
    """

    what: int
    run: int
    number: int
    size: int
    generation: int
    index: int = 0
    content: bytes | memoryview = b""

    def to_bytes(self) -> bytes:
        head = LAYOUT.pack(MAGIC, self.what, self.run, self.number, self.size, self.generation, self.index)
        return b"".join((head, zlib.crc32(self.content, zlib.crc32(head)).to_bytes(4, "little"), self.content))

    @classmethod
    def from_bytes(cls, datagram: bytes) -> Self:
        """What it says.

        Raises:
            CodingError: it is damaged, or of another program.
        """
        content = memoryview(datagram)
        head, checksum, rest = content[: LAYOUT.size], content[LAYOUT.size : HEADER], content[HEADER:]
        if head[:4] != MAGIC or zlib.crc32(rest, zlib.crc32(head)) != int.from_bytes(checksum, "little"):
            raise CodingError("a datagram arrived damaged, or is of another program")
        _, what, run, number, size, generation, index = LAYOUT.unpack(head)
        return cls(what, run, number, size, generation, index, rest)


@dataclass(frozen=True)
class Cut:
    """Where the pieces of a body are, of so many bytes."""

    size: int

    @cached_property
    def pieces(self) -> int:
        return max(1, -(-self.size // ROOM))

    @cached_property
    def length(self) -> int:
        """Bytes of a piece; the last ones are filled up with zeros."""
        return -(-self.size // self.pieces)

    @cached_property
    def generations(self) -> int:
        return -(-self.pieces // GENERATION)

    def places(self, generation: int) -> slice:
        """The pieces of a generation."""
        pieces, generations = self.pieces, self.generations
        return slice(generation * pieces // generations, (generation + 1) * pieces // generations)


@lru_cache(maxsize=8)
def combinations(pieces: int) -> Tensor:
    """Coefficients [256 - pieces, pieces] of all combinations of a generation of so many pieces."""
    return cauchy(256 - pieces, pieces)
