"""Cutting IVs into pieces, and coding them.

Within a block of the plan: n users, c pieces per IV, so n·c pieces; L bytes per IV, pieces of ⌈L/c⌉ bytes. For g blocks
with the same code, the pieces of users in the same place of their block stand side by side in one row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import Block, Plan
from hmtl.coding.plan import piece_rows
from hmtl.communication.agreement import CHECK_ROWS, check_rows
from hmtl.communication.encoding import put
from hmtl.communication.messages import nothing
from hmtl.gf256 import matmul

WORKING_SET = 16 << 20  # bytes of pieces that are coded at once, whatever the size of an IV; a shared cache holds them
MOST_TOGETHER = 2048  # pieces of blocks with the same code that are coded at once: with more, rows would be too short


@dataclass(frozen=True)
class Segment:
    """Some columns of the pieces of blocks with the same code: what is coded at once.

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
        """Return payload and overhead of a message that holds these rows."""
        return (rows, nothing(len(rows))) if self.part == "payload" else (nothing(len(rows)), rows)

    def cut(self, rows: Tensor, at: Tensor) -> Tensor:
        """Return the pieces [n·c, g·width] of the IVs rows[at], zero-padded; `at` is [n, g]."""
        (n, g), c = at.shape, self.block.pieces
        if c == 1 and self.width == self.nbytes:  # whole IVs
            return rows[at.ravel()].view(n, g * self.width)
        pieces, end = rows.new_empty(n, c, g, self.width), dict.fromkeys(range(c), 0)
        for s, source, columns in self._spans():
            for to, of in self._matched(pieces, at):
                torch.index_select(rows[:, source], 0, of, out=to[:, s, columns])
            end[s] = columns.stop
        for s, stop in end.items():
            pieces[:, s, :, stop:] = 0
        return pieces.view(n * c, g * self.width)

    def put(self, pieces: Tensor, rows: Tensor, at: Tensor) -> None:
        """Put pieces back to their place in rows[at], the inverse of `cut`."""
        (n, g), c = at.shape, self.block.pieces
        for of, to in self._matched(pieces.view(n, c, g, self.width), at):
            for s, target, columns in self._spans():
                put(rows[:, target], to, of[:, s, columns], torch.arange(len(to)))

    def recoded(self, received: Tensor) -> Tensor:
        """Return the server's combinations of those that it received [Σ_i rows_i, g·width]."""
        return received if self.block.forwards else matmul(self.block.downlink, received)

    def _spans(self) -> Iterator[tuple[int, slice, slice]]:
        """Yield, for each piece, the bytes of an IV in these columns, and their columns."""
        piece = self.block.piece_bytes(self.nbytes)
        for s in range(self.block.pieces):
            start = s * piece + self.columns.start
            stop = min(s * piece + self.columns.stop, self.nbytes)
            if start < stop:
                yield s, slice(start, stop), slice(0, stop - start)

    def _matched(self, pieces: Tensor, at: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pieces as [.., c, width] with the places of their IVs, at once if possible."""
        if 1 in pieces.shape[1:3]:
            yield pieces.view(-1, self.block.pieces, self.width), at.ravel()
        else:
            yield from zip(pieces.transpose(1, 2), at, strict=True)


def segments(plan: Plan, payload: int, overhead: int) -> Iterator[Segment]:
    """Yield what is coded one after the other, for IVs of this many bytes."""
    for number, blocks in together(plan):
        pieces = len(blocks) * len(blocks[0].users) * blocks[0].pieces
        width = max(64, WORKING_SET // pieces // 64 * 64)
        for part, nbytes in (("payload", payload), ("overhead", overhead)):
            piece = blocks[0].piece_bytes(nbytes)
            for start in range(0, piece, width):
                yield Segment(number, blocks, part, nbytes, slice(start, min(start + width, piece)))


def together(plan: Plan) -> Iterator[tuple[int, tuple[Block, ...]]]:
    """Yield consecutive blocks of the plan that share a code, with the number of the first."""
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
        heard, missing: places within the block of the users whom the relay hears, and of the remaining users.
        encoder: see `Block.uplink`.
        from_server, from_heard: the two parts of `Block.decoders`; empty for a helper, which decodes nothing.
        block: the whole block.
    """

    heard: NDArray[np.int64]
    missing: NDArray[np.int64]
    encoder: Tensor
    from_server: Tensor
    from_heard: Tensor
    block: Block

    @classmethod
    def of(cls, block: Block, n: int) -> "View":
        """Return the view of the n-th active relay."""
        missing = tuple(sorted(set(range(len(block.users))) - set(block.heard[n])))
        heard, lacking = (np.array(places, dtype=np.int64) for places in (block.heard[n], missing))
        decoder, need = torch.empty(0, 0, dtype=torch.uint8), 0
        if n in block.aggregators:
            decoder, need = block.decoders[block.aggregators.index(n)], block.need(n)
        return cls(heard, lacking, block.uplink[n], decoder[:, :need], decoder[:, need:], block)

    @property
    def need(self) -> int:
        """How many of the server's messages it needs: the first ones."""
        return self.from_server.shape[1]

    def decode(self, messages: Tensor, heard: Tensor) -> Tensor:
        """Return the pieces that the relay misses, given messages and the pieces it heard."""
        return matmul(self.from_server, messages).bitwise_xor_(matmul(self.from_heard, heard))

    def check(self, heard: Tensor, decoded: Tensor, blocks: int = 1) -> Tensor:
        """Return random combinations of all pieces of some blocks, the same at every relay."""
        of_heard, of_missing = self._checks(blocks)
        width = heard.shape[1] // blocks
        return matmul(of_heard, heard.view(-1, width)).bitwise_xor_(matmul(of_missing, decoded.view(-1, width)))

    @cached_property
    def _checks(self) -> Callable[[int], tuple[Tensor, Tensor]]:
        """Function from a number of blocks to coefficients of heard and missing pieces."""

        def coefficients(blocks: int) -> tuple[Tensor, Tensor]:
            c = self.block.pieces
            checks = check_rows(len(self.block.users) * c * blocks).view(CHECK_ROWS, -1, blocks)
            known, unknown = (piece_rows(tuple(places.tolist()), c) for places in (self.heard, self.missing))
            return checks[:, known].flatten(1), checks[:, unknown].flatten(1)

        return lru_cache(2)(coefficients)
