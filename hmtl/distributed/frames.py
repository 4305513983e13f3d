"""Frames: rows of bytes with a header, as they travel between processes.

A frame is a header of HEADER bytes and a body: the numbers of the users (4 bytes each), then payload and overhead of
the rows. Reading a frame executes nothing, and the checksums of header and body are verified before anything else.
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
from hmtl.communication.messages import Users, nothing
from hmtl.communication.wires import FLOATS
from hmtl.errors import CodingError

CONTROL = "control values"  # see `hmtl.distributed.control`; no node receives them
BYE = "bye"  # the last frame of a connection
# A receiver trusts the indices of a header: change MAGIC along with KINDS or DTYPES.
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
DTYPES = (*FLOATS.values(), torch.int64)
MAGIC = b"hmt1"  # the digit is the version of the layout
LAYOUT = struct.Struct("<4s B B ? ? ? H H i I I i I I I I")
HEADER = LAYOUT.size + 4  # bytes, with the checksum of the header itself


@dataclass(frozen=True)
class Header:
    """The header of a frame, with its fields in the order of LAYOUT."""

    kind: int  # index into KINDS
    dtype: int  # index into DTYPES, see `Message.dtype`
    last: bool  # the frame ends a batch: the sender has nothing more of this kind for now
    empty: bool  # the frame only ends a batch and carries no message
    apart: bool  # the body has arrived by multicast; otherwise it follows the header
    sender: int  # rank of a process
    receiver: int
    round: int
    sequence: int  # number of frames that the sender has sent to the receiver before
    cast: int  # number of the multicast that carries the body; 0: none does
    users: int  # number of users whose rows these are, one row for each or one row for all; -1: rows of no user
    rows: int  # number of rows
    payload: int  # bytes of payload per row
    overhead: int  # bytes of overhead per row
    checksum: int  # CRC-32 of the body

    @property
    def body(self) -> int:
        """Length of the body [bytes]."""
        return 4 * max(self.users, 0) + self.rows * (self.payload + self.overhead)

    def to_bytes(self) -> bytes:
        """Return the header as HEADER bytes, of which the last four are a checksum of the others."""
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
    """Rows that travel between processes; see `Header` and `Message` for the meaning of their fields."""

    kind: str  # one of KINDS
    round: int
    payload: Tensor = field(default_factory=lambda: nothing(0))  # uint8 [rows, bytes]
    overhead: Tensor = field(default_factory=lambda: nothing(0))  # likewise
    users: Users | None = None  # whose rows these are; None: rows of no user
    dtype: torch.dtype = torch.float64
    last: bool = True
    empty: bool = False
    damaged: str = ""  # how the frame was damaged in transit, so that its rows are missing; "" if it was not

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
        """Return the frame, whose rows share the body's memory; it has no rows if the body is damaged."""
        kind = KINDS[header.kind]
        if zlib.crc32(body.numpy().data) != header.checksum:
            damaged = f"{kind} of round {header.round} arrived damaged"
            return cls(kind, header.round, last=header.last, damaged=damaged)
        ids = 4 * max(header.users, 0)  # bytes
        end = ids + header.rows * header.payload
        return cls(
            kind,
            header.round,
            body[ids:end].view(header.rows, header.payload),
            body[end:].view(header.rows, header.overhead),
            body[:ids].numpy().view("<u4").astype(np.int64) if header.users >= 0 else None,
            DTYPES[header.dtype],
            header.last,
            header.empty,
        )
