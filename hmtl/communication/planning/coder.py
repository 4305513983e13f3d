"""Cutting IVs into pieces, and fingerprints of what was decoded.

Within a block of the plan: n users, c pieces per IV, so n·c pieces; L bytes per IV, pieces of ceil(L/c) bytes. Of g
blocks that have one code, the pieces of users in the same place of their block stand side by side in one row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import Block, Plan
from hmtl.coding.block import piece_rows
from hmtl.communication.encoding import put
from hmtl.communication.messages import nothing
from hmtl.gf256 import matmul
from hmtl.rng import generator

WORKING_SET = (
    16 << 20
)  # bytes of pieces that are in work at once, whatever the size of an IV; a shared cache holds them
MOST_TOGETHER = 2048  # pieces of blocks with one code that are in work at once: of more, each would be cut too short
CHECK_ROWS = 4  # two sets of IVs that differ have one fingerprint with probability 2^-32


@dataclass(frozen=True)
class Segment:
    """Some columns of the pieces of blocks with one code: what is coded at once.

    Attributes:
        number: of the first of these blocks in its plan.
        blocks: these, one after the other in the plan.
        part: of the IVs' messages, `payload` or `overhead`.
        nbytes: L, of a whole row of that part.
        columns: of the pieces.
    """

    number: int
    blocks: tuple[Block, ...]
    part: str
    nbytes: int
    columns: slice

    @property
    def block(self) -> Block:
        """The first of them."""
        return self.blocks[0]

    @property
    def width(self) -> int:
        """Bytes of one piece."""
        return int(self.columns.stop - self.columns.start)

    @property
    def users(self) -> NDArray[np.int64]:
        """Of the blocks [n, g]."""
        return np.array([block.users for block in self.blocks]).T

    def sides(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Payload and overhead of a message that holds these rows."""
        return (rows, nothing(len(rows))) if self.part == "payload" else (nothing(len(rows)), rows)

    def spans(self) -> Iterator[tuple[int, slice, slice]]:
        """Of each piece s, the bytes of an IV that these columns hold, and which columns (the end is padding)."""
        piece = self.block.piece_bytes(self.nbytes)
        for s in range(self.block.pieces):
            start = s * piece + self.columns.start
            stop = min(s * piece + self.columns.stop, self.nbytes)
            if start < stop:
                yield s, slice(start, stop), slice(0, stop - start)

    def cut(self, rows: Tensor, at: Tensor) -> Tensor:
        """The pieces [n·c, g·width] of the IVs rows[at], zero-padded; `at` are places [n, g]."""
        (n, g), c = at.shape, self.block.pieces
        if c == 1 and self.width == self.nbytes:  # whole IVs
            return rows[at.ravel()].view(n, g * self.width)
        pieces, end = rows.new_empty(n, c, g, self.width), dict.fromkeys(range(c), 0)
        for s, source, columns in self.spans():
            for to, of in self._matched(pieces, at):
                torch.index_select(rows[:, source], 0, of, out=to[:, s, columns])
            end[s] = columns.stop
        for s, stop in end.items():
            pieces[:, s, :, stop:] = 0
        return pieces.view(n * c, g * self.width)

    def _matched(self, pieces: Tensor, at: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Pieces [n, c, g, width] as [.., c, width], with the places of their IVs [..]: at once where that can be."""
        if 1 in pieces.shape[1:3]:
            yield pieces.view(-1, self.block.pieces, self.width), at.ravel()
        else:
            yield from zip(pieces.transpose(1, 2), at, strict=True)

    def recoded(self, received: Tensor) -> Tensor:
        """The server's messages, of those that it received [Σ_i rows_i, g·width]."""
        return received if self.block.forwards else matmul(self.block.downlink, received)

    def put(self, pieces: Tensor, rows: Tensor, at: Tensor) -> None:
        """The inverse of `cut`: pieces back to their place in rows[at]."""
        (n, g), c = at.shape, self.block.pieces
        for of, to in self._matched(pieces.view(n, c, g, self.width), at):
            for s, target, columns in self.spans():
                put(rows[:, target], to, of[:, s, columns], torch.arange(len(to)))


def segments(plan: Plan, payload: int, overhead: int) -> Iterator[Segment]:
    """What is coded one after the other, of IVs of so many bytes."""
    for number, blocks in together(plan):
        pieces = len(blocks) * len(blocks[0].users) * blocks[0].pieces
        width = max(64, WORKING_SET // pieces // 64 * 64)
        for part, nbytes in (("payload", payload), ("overhead", overhead)):
            piece = blocks[0].piece_bytes(nbytes)
            for start in range(0, piece, width):
                yield Segment(number, blocks, part, nbytes, slice(start, min(start + width, piece)))


def together(plan: Plan) -> Iterator[tuple[int, tuple[Block, ...]]]:
    """Blocks with one code, one after the other in the plan, and the number of the first."""
    start, blocks = 0, plan.blocks
    while start < len(blocks):
        first = blocks[start]
        most = max(1, MOST_TOGETHER // (len(first.users) * first.pieces))
        stop = next((n for n in range(start, len(blocks)) if blocks[n].downlink is not first.downlink), len(blocks))
        stop = min(stop, start + most)
        yield start, blocks[start:stop]
        start = stop


@dataclass(frozen=True)
class View:
    """A block as one relay knows it.

    Attributes:
        heard, missing: places within the block's users, of those that it hears and of the others.
        encoder: see `Block.uplink`.
        from_server, from_heard: the two parts of `Block.decoders`; without rows and columns for a helper, who decodes
            nothing.
        block: all of it.
    """

    heard: NDArray[np.int64]
    missing: NDArray[np.int64]
    encoder: Tensor
    from_server: Tensor
    from_heard: Tensor
    block: Block

    @classmethod
    def of(cls, block: Block, n: int) -> "View":
        """Of the n-th of the active relays."""
        missing = tuple(sorted(set(range(len(block.users))) - set(block.heard[n])))
        heard, lacking = (np.array(places, dtype=np.int64) for places in (block.heard[n], missing))
        decoder, need = torch.empty(0, 0, dtype=torch.uint8), 0
        if n in block.aggregators:
            decoder, need = block.decoders[block.aggregators.index(n)], block.need(n)
        return cls(heard, lacking, block.uplink[n], decoder[:, :need], decoder[:, need:], block)

    @property
    def need(self) -> int:
        """How many messages of the server it needs, the first ones."""
        return self.from_server.shape[1]

    def decode(self, messages: Tensor, heard: Tensor) -> Tensor:
        """The pieces that the relay misses, of the messages that it needs and the pieces that it heard."""
        return matmul(self.from_server, messages).bitwise_xor_(matmul(self.from_heard, heard))

    def check(self, heard: Tensor, decoded: Tensor, blocks: int = 1) -> Tensor:
        """Random combinations [CHECK_ROWS, width] of all pieces of so many blocks, however they came to be known."""
        of_heard, of_missing = self._checks(blocks)
        width = heard.shape[1] // blocks
        return matmul(of_heard, heard.view(-1, width)).bitwise_xor_(matmul(of_missing, decoded.view(-1, width)))

    @cached_property
    def _checks(self) -> Callable[[int], tuple[Tensor, Tensor]]:
        """Coefficients of the heard and the missing pieces of so many blocks, [CHECK_ROWS, ..] each."""

        def of(blocks: int) -> tuple[Tensor, Tensor]:
            c = self.block.pieces
            checks = check_rows(len(self.block.users) * c * blocks).view(CHECK_ROWS, -1, blocks)
            known, unknown = (piece_rows(tuple(places.tolist()), c) for places in (self.heard, self.missing))
            return checks[:, known].flatten(1), checks[:, unknown].flatten(1)

        return lru_cache(2)(of)


@lru_cache(maxsize=64)
def check_rows(n: int) -> Tensor:
    """Coefficients [CHECK_ROWS, n] of fingerprints, the same everywhere."""
    return torch.from_numpy(generator(0, "fingerprint", n).integers(0, 256, (CHECK_ROWS, n), "uint8"))
