"""Messages as bytes with a header, for links that leave the process.

A frame is a header of HEADER bytes and a body: numbers of users (4 bytes each) where rows belong to users, then payload,
then overhead. Nothing in it is executed when it is read, and nothing is believed before it was checked.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from hmtl.communication import messages
from hmtl.communication.wire import WIRES
from hmtl.errors import CodingError

KINDS = (
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
DTYPES = tuple(WIRES.values())
MAGIC = b"hmtl"
LAYOUT = struct.Struct("<4s B B ? ? ? H H i I I I I I")
HEADER = LAYOUT.size + 4  # bytes, with the checksum of the header itself


@dataclass(frozen=True)
class Header:
    """What a header says.

    Attributes:
        kind: of the message, a place in KINDS.
        dtype: of the numbers, a place in DTYPES; see `Message.dtype`.
        of_users: whether rows belong to users.
        last: whether the sender has nothing more to say of this kind for the time being.
        empty: whether that is all that the frame says, and there is no message.
        sender, receiver: ranks of processes.
        round: in which it is sent.
        sequence: how many frames went the same way before.
        rows, payload, overhead: number of rows, and of bytes in each of their parts.
        checksum: CRC-32 of the body.
    """

    kind: int
    dtype: int
    of_users: bool
    last: bool
    empty: bool
    sender: int
    receiver: int
    round: int
    sequence: int
    rows: int
    payload: int
    overhead: int
    checksum: int

    @property
    def body(self) -> int:
        """Bytes of the body."""
        return self.rows * (4 * self.of_users + self.payload + self.overhead)

    def to_bytes(self) -> bytes:
        content = LAYOUT.pack(
            MAGIC,
            self.kind,
            self.dtype,
            self.of_users,
            self.last,
            self.empty,
            self.sender,
            self.receiver,
            self.round,
            self.sequence,
            self.rows,
            self.payload,
            self.overhead,
            self.checksum,
        )
        return content + zlib.crc32(content).to_bytes(4, "little")

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """What a header says, if it arrived as it was sent.

        Raises:
            CodingError: it did not.
        """
        if int.from_bytes(content[-4:], "little") != zlib.crc32(content[:-4]) or content[:4] != MAGIC:
            raise CodingError("the header of a message is damaged, or of another program")
        _, *fields = LAYOUT.unpack(content[:-4])
        return cls(*fields)


def to_body(users: messages.Users | None, payload: Tensor, overhead: Tensor) -> Tensor:
    """The body of a frame with these rows, uint8 [bytes]."""
    ids = np.empty(0, "<u4") if users is None else users.astype("<u4")
    return torch.cat([torch.from_numpy(ids.view(np.uint8)), payload.reshape(-1), overhead.reshape(-1)])


def from_body(header: Header, body: Tensor) -> tuple[messages.Users | None, Tensor, Tensor]:
    """Users, payload and overhead of the rows in a body, which share its memory.

    Raises:
        CodingError: it did not arrive as it was sent.
    """
    if checksum(body) != header.checksum:
        raise CodingError(f"{KINDS[header.kind]} of round {header.round} arrived damaged")
    n, ids = header.rows, 4 * header.rows * header.of_users
    users = body[:ids].numpy().view("<u4").astype(np.int64) if header.of_users else None
    end = ids + n * header.payload
    return users, body[ids:end].view(n, header.payload), body[end:].view(n, header.overhead)


def checksum(body: Tensor) -> int:
    """CRC-32 of bytes."""
    return zlib.crc32(body.numpy().data)
