"""Cutting IVs into pieces, and coding them.

A block of the plan has n users and c pieces per IV, so n·c pieces; L bytes per IV give pieces of ⌈L/c⌉ bytes. For g
blocks with the same code, one row holds side by side the pieces of the users at the same place in each block.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import Block, Plan
from hmtl.coding.plan import piece_rows
from hmtl.communication.agreement import CHECK_ROWS, check_rows
from hmtl.communication.messages import nothing
from hmtl.gf256 import matmul

WORKING_SET = 16 << 20  # bytes of pieces that are coded at once, whatever the size of an IV; they fit a shared cache
MAX_TOGETHER = 2048  # pieces of blocks with the same code that are coded at once; with more, rows would be too short


@dataclass(frozen=True)
class Segment:
    """What is coded at once: some columns of the pieces of blocks with the same code.

    Attributes:
        number: number of the first of these blocks in its plan.
        blocks: the blocks, consecutive in the plan.
        part: the part of the IVs' messages, `payload` or `overhead`.
        nbytes: L, length of a row of that part.
        columns: columns of the pieces.
    """

    number: int
    blocks: tuple[Block, ...]
    part: str
    nbytes: int
    columns: slice

    @property
    def block(self) -> Block:
        """The first block."""
        return self.blocks[0]

    @property
    def width(self) -> int:
        """Bytes of one piece."""
        return int(self.columns.stop - self.columns.start)

    @property
    def users(self) -> NDArray[np.int64]:
        """The users of the blocks [n, g]."""
        return np.array([block.users for block in self.blocks]).T

    def sides(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the payload and overhead of a message that holds these rows."""
        return (rows, nothing(len(rows))) if self.part == "payload" else (nothing(len(rows)), rows)

    def cut(self, rows: Tensor, at: Tensor) -> Tensor:
        """Return the pieces [n·c, g·width] of the IVs rows[at], zero-padded; `at` is [n, g]."""
        (n, g), c = at.shape, self.block.pieces
        if c == 1 and self.width == self.nbytes:  # whole IVs
            return rows.index_select(0, at.ravel()).view(n, g * self.width)
        pieces = rows.new_empty(n, c, g, self.width)
        for s, source, columns in self._spans():
            for matched, places in self._matched(pieces, at):
                torch.index_select(rows[:, source], 0, places, out=matched[:, s, columns])
            pieces[:, s, :, columns.stop :] = 0
        return pieces.view(n * c, g * self.width)

    def put(self, pieces: Tensor, rows: Tensor, at: Tensor) -> None:
        """Write pieces to their places in rows[at]; the inverse of `cut`."""
        (n, g), c = at.shape, self.block.pieces
        for matched, places in self._matched(pieces.view(n, c, g, self.width), at):
            for s, target, columns in self._spans():
                rows[:, target].numpy()[places.numpy()] = matched[:, s, columns].numpy()

    def recoded(self, received: Tensor) -> Tensor:
        """Return the server's combinations of what the block's downlink acts on [.., g·width]."""
        return received if self.block.forwards else matmul(self.block.downlink, received)

    def check(self, pieces: Tensor) -> Tensor:
        """Return random combinations of all pieces of the blocks, the same as `View.check`."""
        return matmul(check_rows(len(pieces) * len(self.blocks)), pieces.view(-1, self.width))

    def _spans(self) -> Iterator[tuple[int, slice, slice]]:
        """Yield each piece's number, its bytes of an IV in this segment, and their columns."""
        piece = self.block.piece_bytes(self.nbytes)
        for s in range(self.block.pieces):
            start = s * piece + self.columns.start
            length = max(0, min(self.width, self.nbytes - start))
            yield s, slice(start, start + length), slice(0, length)

    def _matched(self, pieces: Tensor, at: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pieces as [.., c, width] with the places of their IVs, all at once if possible."""
        if 1 in pieces.shape[1:3]:
            yield pieces.view(-1, self.block.pieces, self.width), at.ravel()
        else:
            yield from zip(pieces.transpose(1, 2), at, strict=True)


def segments(plan: Plan, payload: int, overhead: int) -> Iterator[Segment]:
    """Yield the segments of a plan in the order of coding, for IVs of this many bytes."""
    for number, blocks in together(plan):
        pieces = len(blocks) * len(blocks[0].users) * blocks[0].pieces
        width = max(64, WORKING_SET // pieces // 64 * 64)
        for part, nbytes in (("payload", payload), ("overhead", overhead)):
            piece = blocks[0].piece_bytes(nbytes)
            for start in range(0, piece, width):
                yield Segment(number, blocks, part, nbytes, slice(start, min(start + width, piece)))


def together(plan: Plan) -> Iterator[tuple[int, tuple[Block, ...]]]:
    """Yield runs of consecutive blocks that share a code, with the number of the first block."""
    start, blocks = 0, plan.blocks
    while start < len(blocks):
        first = blocks[start]
        most = max(1, MAX_TOGETHER // (len(first.users) * first.pieces))
        stop = next((n for n in range(start, len(blocks)) if blocks[n].downlink is not first.downlink), len(blocks))
        stop = min(stop, start + most)
        yield start, blocks[start:stop]
        start = stop


class View:
    """A block as its n-th active relay knows it.

    Attributes:
        heard, missing: places within the block of the users whom the relay hears, and of the remaining users.
        encoder: see `Block.uplink`.
        need: how many of the server's combinations it needs (the first ones); 0 for a helper, which decodes nothing.
    """

    def __init__(self, block: Block, n: int) -> None:
        self.heard = np.array(block.heard[n], dtype=np.int64)
        self.missing = np.setdiff1d(np.arange(len(block.users)), self.heard)
        self.encoder = block.uplink[n]
        decoder, self.need = nothing(0), 0
        if n in block.aggregators:
            decoder, self.need = block.decoders[block.aggregators.index(n)], block.need(n)
        self._from_server, self._from_heard = decoder[:, : self.need], decoder[:, self.need :]
        self._block = block

    def decode(self, received: Tensor, heard: Tensor) -> Tensor:
        """Return the pieces that the relay missed, from combinations and the pieces it heard."""
        return matmul(self._from_server, received).bitwise_xor_(matmul(self._from_heard, heard))

    def check(self, heard: Tensor, decoded: Tensor, blocks: int) -> Tensor:
        """Return random combinations of all pieces of some blocks, the same at every relay."""
        users, c, width = len(self._block.users), self._block.pieces, heard.shape[1] // blocks
        checks = check_rows(users * c * blocks).view(CHECK_ROWS, -1, blocks)
        known, unknown = (checks[:, piece_rows(tuple(at.tolist()), c)].flatten(1) for at in (self.heard, self.missing))
        return matmul(known, heard.view(-1, width)).bitwise_xor_(matmul(unknown, decoded.view(-1, width)))
