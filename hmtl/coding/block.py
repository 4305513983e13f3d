"""A code for the IVs of some users: what relays, server and aggregators multiply by.

Shapes: c pieces per IV, m messages of the server; rows_i uplink messages of relay i. Lists over i run over the active
relays, lists over j over those of them that aggregate. All matrices are uint8 tensors over GF(2^8); a message and a
piece are equally long.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hmtl.errors import CodingError


@dataclass(frozen=True, eq=False)
class Block:
    """A code for the IVs of some users, independent of all others.

    Attributes:
        users: whose IVs the block carries.
        pieces: c, the pieces that each IV is cut into.
        heard: for each relay, the positions within `users` of those that it hears.
        uplink: for each relay, `[rows_i, c·|heard_i|]`, acting on the pieces that it hears: piece s of the user at
            place p of `heard[i]` is row p·c + s.
        downlink: [m, Σ_i rows_i], acting at the server on the uplink messages in the order of relays. Aggregator j
            needs the first `need_j = c·(|users| − |heard_j|)` of these messages.
        aggregators: which of the relays learn all, as places among the active ones.
        decoders: for each aggregator, `[need_j, need_j + c·|heard_j|]`, acting on the messages that it needs and below
            them the pieces that it hears; gives the pieces that it misses, in the order of `users`.

    Raises:
        CodingError: a matrix has another shape.
    """

    users: tuple[int, ...]
    pieces: int
    heard: tuple[tuple[int, ...], ...]
    uplink: tuple[Tensor, ...]
    downlink: Tensor
    aggregators: tuple[int, ...]
    decoders: tuple[Tensor, ...]

    def need(self, i: int) -> int:
        """How many messages of the server relay i needs to learn all pieces."""
        return self.pieces * (len(self.users) - len(self.heard[i]))

    @cached_property
    def forwards(self) -> bool:
        """Whether the server's messages are those that it receives."""
        m, received = self.downlink.shape
        return m == received and torch.equal(self.downlink, torch.eye(m, dtype=torch.uint8))

    def piece_bytes(self, nbytes: int) -> int:
        """Bytes of a piece of an IV of so many bytes."""
        return -(-nbytes // self.pieces)

    def __post_init__(self) -> None:
        c, m, received = self.pieces, len(self.downlink), sum(len(rows) for rows in self.uplink)
        expected = {"downlink": (self.downlink, (m, received))}
        for i, (heard, rows) in enumerate(zip(self.heard, self.uplink, strict=True)):
            expected[f"uplink[{i}]"] = rows, (len(rows), c * len(heard))
        for j, (i, decoder) in enumerate(zip(self.aggregators, self.decoders, strict=True)):
            expected[f"decoders[{j}]"] = decoder, (self.need(i), self.need(i) + c * len(self.heard[i]))
        for name, (matrix, shape) in expected.items():
            if matrix.dtype != torch.uint8 or matrix.shape != shape:
                raise CodingError(
                    f"{name} must be a uint8 tensor of shape {list(shape)}, not {matrix.dtype} of shape "
                    f"{list(matrix.shape)}: {len(self.users)} users of c={c} pieces. Make plans with make_plan."
                )


def on_all(uplink: Sequence[Tensor], heard: tuple[tuple[int, ...], ...], c: int, n: int) -> Tensor:
    """The uplink of all relays [Σ_i rows_i, c·n], acting on the pieces of all n users."""
    widened = []
    for known, rows in zip(heard, uplink, strict=True):
        wide = torch.zeros(len(rows), c * n, dtype=torch.uint8)
        wide[:, piece_rows(known, c)] = rows
        widened.append(wide)
    return torch.cat(widened)


def piece_rows(positions: tuple[int, ...], c: int) -> Tensor:
    """The rows of these users' pieces among the stacked pieces of all: piece s of the user at p is row p·c + s."""
    return (torch.tensor(positions, dtype=torch.int64)[:, None] * c + torch.arange(c)).flatten()
