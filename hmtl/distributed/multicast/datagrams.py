"""Datagrams of the multicast protocol: pieces of a body, questions about what arrived, and reports in reply.

A body is cut into pieces of equal length, and these are grouped into generations of at most GENERATION pieces; linear
combinations over GF(2^8) within a generation repair losses.

Pieces and questions are sealed with AES-GCM under the group's key, which the server and all relays hold. A relay could
forge them, so a question also proves the body's digest to each relay that it asks, and a report proves who sent it:
keyed BLAKE2b under a key that only the server and that relay hold. Datagrams without proof are ignored.
"""

import struct
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from hmac import compare_digest
from typing import NamedTuple, Self

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray
from torch import Tensor

from hmtl.gf256 import cauchy

PIECE, QUESTION = range(2)
LAYOUT = struct.Struct("<B I I H B")
TAG = 16  # bytes of a seal or a proof
HEADER = LAYOUT.size + TAG
DATAGRAM = 1400  # bytes at most, so that links carry it in one packet
ROOM = DATAGRAM - HEADER
GENERATION = 100  # pieces at most; larger generations even out losses, but leave only 256 - GENERATION combinations
PROOF = struct.Struct(f"<H {TAG}s")  # in a question: a receiver's rank, and the proof for it
REPORT = struct.Struct("<H I H ?")
LACK = np.dtype([("generation", "<u2"), ("pieces", "u1")])
KEY = 32  # bytes of a key or a digest


class Datagram(NamedTuple):
    """A piece or a question."""

    what: int  # PIECE of a body, or QUESTION about which receiver lacks what
    number: int  # of the body, from 1
    size: int  # of the body [bytes]
    generation: int  # the piece's generation; the question's number
    place: int  # the piece's place in its generation; for a combination, its row plus the generation's size
    content: bytes | memoryview  # the piece; in a question, the body's digest and then a PROOF for each receiver asked

    @property
    def head(self) -> bytes:
        """The fields before the content; no two datagrams under the same key share them, so they serve as nonce."""
        return LAYOUT.pack(*self[:5])

    def to_bytes(self, group: AESGCM) -> bytes:
        head = self.head
        return head + group.encrypt(head, self.content, None)

    @classmethod
    def from_bytes(cls, datagram: bytes, group: AESGCM) -> Self | None:
        """Return the datagram that `to_bytes` encoded; None if it was not sealed with the group's key."""
        head = datagram[: LAYOUT.size]
        try:
            content = group.decrypt(head, datagram[LAYOUT.size :], None)
        except (InvalidTag, ValueError):
            return None
        return cls._make((*LAYOUT.unpack(head), content))


class LackReport(NamedTuple):
    """The answer of one receiver to a question."""

    receiver: int  # rank
    number: int  # of the body
    question: int
    gives_up: bool  # the receiver needs a copy of the body through its connection
    lacks: NDArray[np.void]  # what it lacks, see LACK

    def to_bytes(self, key: bytes) -> bytes:
        content = REPORT.pack(*self[:4]) + self.lacks.tobytes()
        return content + prove(key, content)

    @classmethod
    def from_bytes(cls, report: bytes, keys: Mapping[int, bytes]) -> Self | None:
        """Return the report that `to_bytes` encoded; None if no receiver proves it with its key."""
        content, proof = report[:-TAG], report[-TAG:]
        if len(content) < REPORT.size or (len(content) - REPORT.size) % LACK.itemsize:
            return None
        fields = REPORT.unpack_from(content)
        key = keys.get(fields[0])
        if key is None or not compare_digest(proof, prove(key, content)):
            return None
        return cls._make((*fields, np.frombuffer(content[REPORT.size :], LACK)))


def derive(secret: bytes, purpose: str) -> bytes:
    """Return the key for one purpose, which tells nothing about the secret and the keys for others."""
    return blake2b(purpose.encode(), key=secret, digest_size=KEY).digest()


def prove(key: bytes, content: bytes) -> bytes:
    """Return the proof that who holds the key has sent this content."""
    return blake2b(content, key=key, digest_size=TAG).digest()


def digest(content: bytes | memoryview) -> bytes:
    """Return the digest by which a body is known."""
    return blake2b(content, digest_size=KEY).digest()


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
