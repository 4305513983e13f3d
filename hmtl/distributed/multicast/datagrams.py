"""Datagrams of the multicast protocol: pieces of a body, questions about what arrived, and reports in reply.

A body is cut into pieces of equal length, and these are grouped into generations of at most GENERATION pieces; linear
combinations over GF(2^8) within a generation repair losses. A datagram with a wrong checksum is ignored.
"""

import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from torch import Tensor

from hmtl.errors import CodingError
from hmtl.gf256 import cauchy

MAGIC = b"hmtm"
PIECE, QUESTION, REPORT = range(3)
LAYOUT = struct.Struct("<4s B Q I I H B")
HEADER = LAYOUT.size + 4  # bytes, with the checksum
DATAGRAM = 1400  # bytes at most, so that links carry it in one packet
ROOM = DATAGRAM - HEADER
GENERATION = 100  # pieces at most; larger generations even out losses, but leave only 256 - GENERATION combinations
LACK = np.dtype([("generation", "<u2"), ("pieces", "u1")])


@dataclass(frozen=True)
class Datagram:
    """One datagram."""

    what: int  # PIECE of a body, QUESTION about which receiver lacks what, or REPORT in reply
    run: int  # a number that no other run on the network has
    number: int  # of the body, from 1
    size: int  # of the body [bytes]
    generation: int  # the piece's generation; in a question and in the reports that answer it, the question's number
    index: int = 0  # the piece's place in its generation; for a combination, its row plus the generation's size
    content: bytes | memoryview = (
        b""  # a piece; in a report, the receiver's rank [2 bytes] and what it lacks, see `LACK`
    )

    def to_bytes(self) -> bytes:
        head = LAYOUT.pack(MAGIC, self.what, self.run, self.number, self.size, self.generation, self.index)
        return b"".join((head, zlib.crc32(self.content, zlib.crc32(head)).to_bytes(4, "little"), self.content))

    @classmethod
    def from_bytes(cls, datagram: bytes) -> Self:
        """Return the datagram that `to_bytes` encoded.

        Raises:
            CodingError: the bytes are damaged, or come from another program.
        """
        content = memoryview(datagram)
        head, checksum, rest = content[: LAYOUT.size], content[LAYOUT.size : HEADER], content[HEADER:]
        if head[:4] != MAGIC or zlib.crc32(rest, zlib.crc32(head)) != int.from_bytes(checksum, "little"):
            raise CodingError("a datagram is damaged, or comes from another program")
        _, what, run, number, size, generation, index = LAYOUT.unpack(head)
        return cls(what, run, number, size, generation, index, rest)


class Cut:
    """How a body is cut into pieces and generations.

    Args:
        size: of the body [bytes].

    Attributes:
        pieces, generations: their numbers.
        length: of a piece [bytes]; the last ones are padded with zeros.
    """

    def __init__(self, size: int) -> None:
        self.size, self.pieces = size, max(1, -(-size // ROOM))
        self.length, self.generations = -(-size // self.pieces), -(-self.pieces // GENERATION)

    def places(self, generation: int) -> slice:
        """Return the pieces of a generation."""
        return slice(generation * self.pieces // self.generations, (generation + 1) * self.pieces // self.generations)


@lru_cache(maxsize=8)
def combinations(pieces: int) -> Tensor:
    """Return the coefficients [256 - pieces, pieces] of all combinations of a generation."""
    return cauchy(256 - pieces, pieces)
