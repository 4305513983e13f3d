"""Frames: rows of bytes with a header, as they travel between processes.

A frame is a header of HEADER bytes and a body: the numbers of the users (4 bytes each), then payload and overhead of
the rows. Reading a frame executes nothing. TLS protects frames on their way, and who sent one is whom the stream's
certificate names, so a header says neither.
"""

import struct
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from hmtl.communication import messages
from hmtl.communication.codecs.formats import BYTES, FORMATS, NUMBERS
from hmtl.communication.messages import nothing
from hmtl.errors import CodingError
from hmtl.io.arrays import Ids

CONTROL = "control values"  # calls of the controller, and answers, see `hmtl.distributed.values`
BYE = "bye"  # the last frame of a connection
CAST = "cast"  # the header and the digest of a body that comes by multicast
LACKS = "lacks"  # places of pieces of it that did not arrive
PIECES = "pieces"  # these pieces
UP = messages.IVS, messages.REPORT, messages.STATE, messages.COMBINATIONS, messages.DIGESTS, messages.MODELS
DOWN = messages.ATTENDANCE, messages.STATE, messages.BROADCAST, messages.VERDICT, messages.MODELS
SECRETS = messages.KEYS, messages.SHARES, messages.SHARED, messages.UNMASK  # of secure sums, by relays
# A receiver trusts the indices of a header: change MAGIC along with KINDS, DTYPES or FORMATS.
KINDS = tuple(dict.fromkeys((CONTROL, BYE, CAST, LACKS, PIECES, *UP, *DOWN, messages.RECEIPTS, *SECRETS)))
DTYPES = tuple(NUMBERS.values())
MAGIC = b"hmt8"  # the digit is the version of the layout
LAYOUT = struct.Struct("<4s B B B I i i I I I")
HEADER = LAYOUT.size  # bytes
SERVES, RELAYS, HOSTS = "server", "relay", "host"  # the roles of nodes
MAY_SEND: dict[tuple[str, str], frozenset[str]] = {
    (HOSTS, RELAYS): frozenset({messages.IVS, *SECRETS, BYE}),
    (RELAYS, HOSTS): frozenset({messages.RECEIPTS, messages.MODELS, *SECRETS, BYE}),
    (RELAYS, SERVES): frozenset({*UP, *SECRETS, CONTROL, LACKS, BYE}),
    (SERVES, RELAYS): frozenset({*DOWN, *SECRETS, CONTROL, CAST, PIECES, BYE}),
    (HOSTS, SERVES): frozenset({CONTROL, BYE}),
    (SERVES, HOSTS): frozenset({CONTROL, BYE}),
}
"""The kinds of frames that a role may send to another; roles that are missing here do not talk to each other."""


def role(name: str) -> str:
    """Return the role of a node."""
    return name.split()[0]


@dataclass(frozen=True)
class Header:
    """The header of a frame, with its fields in the order of LAYOUT."""

    kind: int  # index into KINDS
    dtype: int  # index into DTYPES, see `Message.dtype`
    format: int  # index into FORMATS, see `Message.format`
    number: int  # by which the frame is known among all of its sender
    round: int  # see `Message`
    users: int  # number of users whose rows these are, one row for each or one row for all; -1: rows of no user
    rows: int  # number of rows
    payload: int  # bytes of payload per row
    overhead: int  # bytes of overhead per row

    @property
    def body(self) -> int:
        """Length of the body [bytes]."""
        return 4 * max(self.users, 0) + self.rows * (self.payload + self.overhead)

    def to_bytes(self) -> bytes:
        """Return the header as HEADER bytes."""
        return LAYOUT.pack(MAGIC, *vars(self).values())

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Return the header that `to_bytes` encoded.

        Raises:
            CodingError: the bytes do not form a header, or come from another version.
        """
        if len(content) != HEADER or not content.startswith(MAGIC):
            raise CodingError("it is another program or version")
        header = cls(*LAYOUT.unpack(content)[1:])
        if header.kind >= len(KINDS) or header.dtype >= len(DTYPES) or header.format >= len(FORMATS):
            raise CodingError("it sent a header with unknown fields")
        return header


@dataclass(frozen=True, eq=False)
class Frame:
    """Rows that travel between processes; see `Header` and `Message` for the meaning of their fields."""

    kind: str  # one of KINDS
    round: int
    payload: Tensor = field(default_factory=lambda: nothing(0))  # uint8 [rows, bytes]
    overhead: Tensor = field(default_factory=lambda: nothing(0))  # likewise
    users: Ids | None = None  # whose rows these are; None: rows of no user
    dtype: torch.dtype = torch.float64
    format: str = BYTES
    number: int = 0

    def header(self) -> Header:
        """Return the header of this frame."""
        return Header(
            kind=KINDS.index(self.kind),
            dtype=DTYPES.index(self.dtype),
            format=FORMATS.index(self.format),
            number=self.number,
            round=self.round,
            users=-1 if self.users is None else len(self.users),
            rows=len(self.payload),
            payload=self.payload.shape[1],
            overhead=self.overhead.shape[1],
        )

    @cached_property
    def body(self) -> Tensor:
        """The numbers of the users, payload and overhead, uint8 [bytes]; all receivers share its memory."""
        ids = np.empty(0, "<u4") if self.users is None else self.users.astype("<u4")
        parts = [torch.from_numpy(ids.view(np.uint8)), self.payload.reshape(-1), self.overhead.reshape(-1)]
        parts = [part for part in parts if len(part)]
        return torch.cat(parts) if len(parts) > 1 else (parts or [nothing(1)[0]])[0].contiguous()

    @classmethod
    def from_bytes(cls, header: Header, body: Tensor) -> Self:
        """Return the frame, whose rows share the body's memory."""
        ids = 4 * max(header.users, 0)  # bytes
        end = ids + header.rows * header.payload
        return cls(
            KINDS[header.kind],
            header.round,
            body[ids:end].view(header.rows, header.payload),
            body[end:].view(header.rows, header.overhead),
            body[:ids].numpy().view("<u4").astype(np.int64) if header.users >= 0 else None,
            DTYPES[header.dtype],
            FORMATS[header.format],
            header.number,
        )
