"""Frames: rows of bytes with a header, as they travel between processes.

A frame is a header of HEADER bytes and a body: numbers of users (4 bytes each), payload and overhead of the rows.
Reading a frame executes nothing, and the checksums of header and body are verified before anything else is read.
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

CONTROL = "control values"  # see `hmtl.distributed.control`; no node receives them
BYE = "bye"  # the last frame of a connection
KINDS = (
    CONTROL,
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
MAGIC = b"hmt1"  # the digit is the version of the layout
LAYOUT = struct.Struct("<4s B B ? ? ? H H i I I i I I I I")
HEADER = LAYOUT.size + 4  # bytes, with the checksum of the header itself


@dataclass(frozen=True)
class Header:
    """The header of a frame.

    Attributes:
        kind: index into KINDS.
        dtype: index into DTYPES, see `Message.dtype`.
        last: whether the frame is the last of a batch: its sender has nothing more to send of this kind for now.
        empty: whether the frame only ends a batch and carries no message.
        apart: whether the body has arrived by multicast; otherwise it follows the header.
        sender, receiver: ranks of processes.
        round: number of the round.
        sequence: number of frames that the sender has sent to the receiver before.
        cast: number of the multicast that carries the body; 0: none does.
        users: number of users whose rows these are, one row for each or one row for all; -1: rows of no user.
        rows: number of rows.
        payload, overhead: bytes in each part of a row.
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
        """Length of the body [bytes]."""
        return 4 * max(self.users, 0) + self.rows * (self.payload + self.overhead)

    def to_bytes(self) -> bytes:
        """Return HEADER bytes, the last four of which are a checksum of the others."""
        content = LAYOUT.pack(MAGIC, *vars(self).values())
        return content + zlib.crc32(content).to_bytes(4, "little")

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Return the header that `to_bytes` encoded.

        Raises:
            CodingError: the bytes are damaged, or come from another program or version.
        """
        if not content.startswith(MAGIC) or int.from_bytes(content[-4:], "little") != zlib.crc32(content[:-4]):
            raise CodingError("it sent a damaged header, or is another program or version")
        return cls(*LAYOUT.unpack(content[:-4])[1:])


@dataclass(frozen=True, eq=False)
class Frame:
    """Rows that travel between processes.

    Attributes:
        kind: one of KINDS.
        round: number of the round.
        payload, overhead: uint8 [rows, bytes].
        users: the users whose rows these are; None: rows of no user.
        dtype: see `Message`.
        last, empty: see `Header`.
        damaged: how the frame was damaged in transit, so that its rows are missing; "" if it was not.
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
        """Return header and body; all receivers of a frame share the body's memory."""
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
        """The numbers of the users, payload and overhead, uint8 [bytes]."""
        ids = np.empty(0, "<u4") if self.users is None else self.users.astype("<u4")
        parts = [torch.from_numpy(ids.view(np.uint8)), self.payload.reshape(-1), self.overhead.reshape(-1)]
        parts = [part for part in parts if len(part)]
        return torch.cat(parts) if len(parts) > 1 else (parts or [nothing(1)[0]])[0].contiguous()

    @classmethod
    def from_bytes(cls, header: Header, body: Tensor) -> Self:
        """Return the frame, whose rows share the body's memory.

        Raises:
            CodingError: the body is damaged.
        """
        if zlib.crc32(body.numpy().data) != header.checksum:
            raise CodingError(f"{KINDS[header.kind]} of round {header.round} arrived damaged")
        ids = 4 * max(header.users, 0)  # bytes
        end = ids + header.rows * header.payload
        return cls(
            KINDS[header.kind],
            header.round,
            body[ids:end].view(header.rows, header.payload),
            body[end:].view(header.rows, header.overhead),
            body[:ids].numpy().view("<u4").astype(np.int64) if header.users >= 0 else None,
            DTYPES[header.dtype],
            header.last,
            header.empty,
        )
