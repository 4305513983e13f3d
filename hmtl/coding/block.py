"""A code for the IVs of some users: the matrices of all nodes, and how they are drawn.

Shapes: c pieces per IV; m messages of the server; rows_i uplink messages of relay i. Lists over i run over the active
relays, lists over j over the aggregators. All matrices are uint8 tensors over GF(2^8); messages and pieces have equal
lengths.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hmtl.errors import CodingError
from hmtl.gf256 import inverses, matmul
from hmtl.rng import generator

TRIES = 20  # a draw fails with a probability near H/255, so tens of relays never need this many

Draw = Callable[[np.random.Generator], list[Tensor]]


@dataclass(frozen=True, eq=False)
class Block:
    """A code for the IVs of some users, independent of all other blocks.

    Attributes:
        users: the users whose IVs the block carries.
        pieces: c, the number of pieces of each IV.
        heard: for each relay, the positions within `users` of those that it hears.
        uplink: for each relay, `[rows_i, c·|heard_i|]`, acting on the pieces that it hears: piece s of the user at
            position p of `heard[i]` is row p·c + s.
        downlink: [m, Σ_i rows_i], acting at the server on the uplink messages in the order of relays. Aggregator j
            needs the first `need_j = c·(|users| − |heard_j|)` of its messages.
        aggregators: the relays that learn all IVs, as positions among the active relays.
        decoders: for each aggregator, `[need_j, need_j + c·|heard_j|]`, acting on the messages that it needs, followed
            by the pieces that it hears; gives the pieces that it misses, in the order of `users`.
    """

    users: tuple[int, ...]
    pieces: int
    heard: tuple[tuple[int, ...], ...]
    uplink: tuple[Tensor, ...]
    downlink: Tensor
    aggregators: tuple[int, ...]
    decoders: tuple[Tensor, ...]

    def need(self, i: int) -> int:
        """Return how many messages of the server relay i needs to learn all pieces."""
        return self.pieces * (len(self.users) - len(self.heard[i]))

    @cached_property
    def forwards(self) -> bool:
        """Whether the server forwards the messages that it receives without combining them."""
        m, received = self.downlink.shape
        return m == received and torch.equal(self.downlink, torch.eye(m, dtype=torch.uint8))

    def piece_bytes(self, nbytes: int) -> int:
        """Return the length in bytes of a piece of an IV of `nbytes` bytes."""
        return -(-nbytes // self.pieces)


@dataclass(frozen=True)
class Layout:
    """The part of a block that is fixed before its coefficients are drawn.

    Attributes:
        users, pieces, heard, aggregators: see `Block`.
        downlink: m, the number of the server's messages.
    """

    users: tuple[int, ...]
    pieces: int
    heard: tuple[tuple[int, ...], ...]
    aggregators: tuple[int, ...]
    downlink: int


def draw_block(layout: Layout, draw: Draw, seed: int, *name: str | int) -> Block:
    """Draw coefficients until all aggregators can decode.

    Args:
        layout: the shape of the code.
        draw: returns the uplink's matrices from a random generator.
        seed: of the run.
        name: of the block's random streams.

    Raises:
        CodingError: no draw lets every aggregator decode.
    """
    n, c, m = len(layout.users), layout.pieces, layout.downlink
    heard_rows = [piece_rows(layout.heard[i], c) for i in layout.aggregators]
    missing_rows = [_complement(rows, c * n) for rows in heard_rows]
    for attempt in range(TRIES):
        uplink = draw(generator(seed, "uplink", *name, attempt))
        received = sum(len(rows) for rows in uplink)
        if received == m == min(map(len, missing_rows)):
            downlink = torch.eye(m, dtype=torch.uint8)  # every aggregator needs all messages, so they are forwarded
        else:
            downlink = random_matrix(generator(seed, "downlink", *name, attempt), (m, received))
        sent = matmul(downlink, _on_all_pieces(uplink, layout.heard, c, n))
        solutions = inverses([sent[: len(rows), rows] for rows in missing_rows])
        if solutions is not None:  # in this field, subtraction is addition
            decoders = (
                torch.cat([inverse, matmul(inverse, sent[: len(inverse)][:, rows])], dim=1)
                for inverse, rows in zip(solutions, heard_rows, strict=True)
            )
            return Block(layout.users, c, layout.heard, tuple(uplink), downlink, layout.aggregators, tuple(decoders))
    raise CodingError(
        f"No code found for a block of {n} users and {len(layout.aggregators)} aggregators in {TRIES} draws, because "
        "GF(2^8) has too few elements. Set another seed or fewer relays."
    )


def random_matrix(rng: np.random.Generator, shape: tuple[int, int]) -> Tensor:
    """Draw a matrix of uniform coefficients."""
    return torch.from_numpy(rng.integers(0, 256, shape, np.uint8))


def piece_rows(positions: tuple[int, ...], c: int) -> Tensor:
    """Return the rows of these users' pieces; piece s of position p is row p·c + s."""
    return (torch.tensor(positions, dtype=torch.int64)[:, None] * c + torch.arange(c)).flatten()


def _on_all_pieces(uplink: Sequence[Tensor], heard: tuple[tuple[int, ...], ...], c: int, n: int) -> Tensor:
    """Return the uplink of all relays as a matrix [Σ_i rows_i, c·n] on all users' pieces."""
    widened = []
    for positions, rows in zip(heard, uplink, strict=True):
        wide = torch.zeros(len(rows), c * n, dtype=torch.uint8)
        wide[:, piece_rows(positions, c)] = rows
        widened.append(wide)
    return torch.cat(widened)


def _complement(rows: Tensor, n: int) -> Tensor:
    """Return the numbers below n that are not among `rows`."""
    mask = torch.ones(n, dtype=torch.bool)
    mask[rows] = False
    return mask.nonzero().ravel()
