"""Rows of bytes with a header, as they travel between processes.

A frame is a header of HEADER bytes and a body: numbers of users (4 bytes each), whose rows they are, payload, overhead.
Nothing in a frame is executed when it is read, and nothing is believed before it was checked.
"""

import struct
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from hmtl.communication import messages
from hmtl.communication.encoding import WIRES
from hmtl.communication.messages import Users, nothing
from hmtl.errors import CodingError

WORD = "word"  # of one process to another, which no node hears: measurements, and whether to go on
BYE = "bye"  # the last frame of all
KINDS = (
    WORD,
    BYE,
    messages.IVS,
    messages.REPORT,
    messages.ATTENDANCE,
    messages.STATE,
    messages.COMBINATIONS,
    messages.BROADCAST,
    messages.DIGESTS,
    messages.VERDICT,
    messages.RECEIPTS,
    messages.MODELS,
)
DTYPES = (*WIRES.values(), torch.int64)
MAGIC = b"hmtl"
LAYOUT = struct.Struct("<4s B B ? ? ? H H i I I i I I I I")
HEADER = LAYOUT.size + 4  # bytes, with the checksum of the header itself


@dataclass(frozen=True)
class Header:
    """What a header says.

    Attributes:
        kind: a place in KINDS.
        dtype: of the numbers in the payload, a place in DTYPES; see `Message.dtype`.
        last: whether the sender has nothing more to say of this kind for the time being.
        empty: whether that is all that the frame says, and it carries no message.
        apart: whether the body came by multicast.
        sender, receiver: ranks of processes.
        round: in which it is sent.
        sequence: how many frames went the same way before.
        cast: number of the multicast by which the body came, or should have; 0: of none.
        users: number of users whose rows these are, one row for each or one for all; -1: nobody's.
        rows, payload, overhead: number of rows, and of bytes in each of their parts.
        checksum: CRC-32 of the body.
    """

    kind: int
    dtype: int
    last: bool
    empty: bool
    apart: bool
    sender: int
    receiver: int
    round: int
    sequence: int
    cast: int
    users: int
    rows: int
    payload: int
    overhead: int
    checksum: int

    @property
    def body(self) -> int:
        """Bytes of the body."""
        return 4 * max(self.users, 0) + self.rows * (self.payload + self.overhead)

    def to_bytes(self) -> bytes:
        content = LAYOUT.pack(MAGIC, *vars(self).values())
        return content + zlib.crc32(content).to_bytes(4, "little")

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """What a header says, if it arrived as it was sent.

        Raises:
            CodingError: it did not.
        """
        if content[:4] != MAGIC or int.from_bytes(content[-4:], "little") != zlib.crc32(content[:-4]):
            raise CodingError("a header arrived damaged, or is of another program")
        _, *fields = LAYOUT.unpack(content[:-4])
        header = cls(*fields)
        if header.kind >= len(KINDS) or header.dtype >= len(DTYPES) or header.users < -1:
            raise CodingError("a header is of another version of this program")
        return header


@dataclass(frozen=True, eq=False)
class Frame:
    """Rows on their way.

    Attributes:
        kind, last, empty, round: see `Header`.
        payload, overhead: uint8 [rows, bytes].
        users: whose rows these are; None: nobody's.
        dtype: see `Message`.
        damaged: what happened to it on its way, so that there is nothing to read; "" if nothing did.
    """

    kind: str
    round: int
    payload: Tensor = field(default_factory=lambda: nothing(0))
    overhead: Tensor = field(default_factory=lambda: nothing(0))
    users: Users | None = None
    dtype: torch.dtype = torch.float64
    last: bool = True
    empty: bool = False
    damaged: str = ""

    def to_bytes(self, sender: int, receiver: int, sequence: int) -> tuple[Header, Tensor]:
        """Header and body, which is one in memory for all to whom the frame goes."""
        header = Header(
            kind=KINDS.index(self.kind),
            dtype=DTYPES.index(self.dtype),
            last=self.last,
            empty=self.empty,
            apart=False,
            sender=sender,
            receiver=receiver,
            round=self.round,
            sequence=sequence,
            cast=0,
            users=-1 if self.users is None else len(self.users),
            rows=len(self.payload),
            payload=self.payload.shape[1],
            overhead=self.overhead.shape[1],
            checksum=self.checksum,
        )
        return header, self.body

    @cached_property
    def checksum(self) -> int:
        """CRC-32 of the body."""
        return zlib.crc32(self.body.numpy().data)

    @cached_property
    def body(self) -> Tensor:
        """Numbers of users, payload and overhead, uint8 [bytes]."""
        ids = np.empty(0, "<u4") if self.users is None else self.users.astype("<u4")
        parts = [torch.from_numpy(ids.view(np.uint8)), self.payload.reshape(-1), self.overhead.reshape(-1)]
        parts = [part for part in parts if len(part)]
        return torch.cat(parts) if len(parts) > 1 else (parts or [nothing(1)[0]])[0].contiguous()

    @classmethod
    def from_bytes(cls, header: Header, body: Tensor) -> Self:
        """The frame, whose rows share the body's memory.

        Raises:
            CodingError: the body did not arrive as it was sent.
        """
        if zlib.crc32(body.numpy().data) != header.checksum:
            raise CodingError(f"{KINDS[header.kind]} of round {header.round} arrived damaged")
        n, ids = header.rows, 4 * max(header.users, 0)
        end = ids + n * header.payload
        return cls(
            KINDS[header.kind],
            header.round,
            body[ids:end].view(n, header.payload),
            body[end:].view(n, header.overhead),
            body[:ids].numpy().view("<u4").astype(np.int64) if header.users >= 0 else None,
            DTYPES[header.dtype],
            header.last,
            header.empty,
        )
