"""Cutting IVs into pieces, and fingerprints of what was decoded.

Within a block of the plan: n users, c pieces per IV, so n·c pieces; L bytes per IV, pieces of ceil(L/c) bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import Block, Plan
from hmtl.coding.block import piece_rows
from hmtl.coding.gf256 import matmul
from hmtl.communication.messages import nothing
from hmtl.rng import generator

WORKING_SET = 32 << 20  # bytes of a block's pieces that are in work at once, whatever the size of an IV
CHECK_ROWS = 4  # two sets of IVs that differ have one fingerprint with probability 2^-32


@dataclass(frozen=True)
class Segment:
    """Some columns of the pieces of one block: what is coded at once.

    Attributes:
        number: of the block in its plan.
        part: of the IVs' messages, `payload` or `overhead`.
        nbytes: L, of a whole row of that part.
        columns: of the pieces.
    """

    number: int
    block: Block
    part: str
    nbytes: int
    columns: slice

    @property
    def width(self) -> int:
        return int(self.columns.stop - self.columns.start)

    @property
    def users(self) -> NDArray[np.int64]:
        """Of the block."""
        return np.array(self.block.users)

    def sides(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Payload and overhead of a message that holds these rows."""
        return (rows, nothing(len(rows))) if self.part == "payload" else (nothing(len(rows)), rows)

    def spans(self) -> Iterator[tuple[int, slice, slice]]:
        """Of each piece s, the bytes of an IV that these columns hold, and which columns (the end is padding)."""
        piece = -(-self.nbytes // self.block.pieces)
        for s in range(self.block.pieces):
            start = s * piece + self.columns.start
            stop = min(s * piece + self.columns.stop, self.nbytes)
            if start < stop:
                yield s, slice(start, stop), slice(0, stop - start)

    def cut(self, rows: Tensor, at: Tensor) -> Tensor:
        """The pieces [len(at)·c, width] of the IVs rows[at], zero-padded."""
        c, (n, L) = self.block.pieces, (len(at), self.nbytes)
        if self.width * c == L:  # whole IVs without padding
            return rows[at].view(n * c, self.width)
        pieces = rows.new_zeros(n, c, self.width)
        for s, source, columns in self.spans():
            pieces[:, s, columns] = rows[at, source]
        return pieces.view(n * c, self.width)

    def put(self, pieces: Tensor, rows: Tensor, at: Tensor) -> None:
        """The inverse of `cut`: pieces back to their place in rows[at]."""
        pieces = pieces.view(len(at), self.block.pieces, self.width)
        for s, target, columns in self.spans():
            rows[at, target] = pieces[:, s, columns]


def segments(plan: Plan, payload: int, overhead: int) -> Iterator[Segment]:
    """What is coded one after the other, of IVs of so many bytes."""
    for number, block in enumerate(plan.blocks):
        width = max(64, WORKING_SET // (len(block.users) * block.pieces) // 64 * 64)
        for part, nbytes in (("payload", payload), ("overhead", overhead)):
            piece = -(-nbytes // block.pieces)
            for start in range(0, piece, width):
                yield Segment(number, block, part, nbytes, slice(start, min(start + width, piece)))


@dataclass(frozen=True)
class View:
    """A block as one relay knows it.

    Attributes:
        heard, missing: places within the block's users, of those that it hears and of the others.
        encoder: see `Block.uplink`.
        from_server, from_heard: the two parts of `Block.decoders`; without rows and columns for a helper, who decodes
            nothing.
        check_heard, check_missing: the columns of the fingerprint for these users' pieces, [CHECK_ROWS, ..].
    """

    heard: NDArray[np.int64]
    missing: NDArray[np.int64]
    encoder: Tensor
    from_server: Tensor
    from_heard: Tensor
    check_heard: Tensor
    check_missing: Tensor

    @classmethod
    def of(cls, block: Block, n: int) -> "View":
        """Of the n-th of the active relays."""
        c, users = block.pieces, len(block.users)
        missing = tuple(sorted(set(range(users)) - set(block.heard[n])))
        known, unknown = piece_rows(block.heard[n], c), piece_rows(missing, c)
        checks = check_rows(users * c)
        heard, lacking = (np.array(places, dtype=np.int64) for places in (block.heard[n], missing))
        decoder, need = torch.empty(0, 0, dtype=torch.uint8), 0
        if n in block.aggregators:
            decoder, need = block.decoders[block.aggregators.index(n)], block.need(n)
        return cls(
            heard, lacking, block.uplink[n], decoder[:, :need], decoder[:, need:], checks[:, known], checks[:, unknown]
        )

    @property
    def need(self) -> int:
        """How many messages of the server it needs, the first ones."""
        return self.from_server.shape[1]

    def decode(self, messages: Tensor, heard: Tensor) -> Tensor:
        """The pieces that the relay misses, of the messages that it needs and the pieces that it heard."""
        return matmul(self.from_server, messages).bitwise_xor_(matmul(self.from_heard, heard))

    def check(self, heard: Tensor, decoded: Tensor) -> Tensor:
        """Random combinations [CHECK_ROWS, width] of all pieces of the block, however they came to be known."""
        return matmul(self.check_heard, heard).bitwise_xor_(matmul(self.check_missing, decoded))


@lru_cache(maxsize=64)
def check_rows(n: int) -> Tensor:
    """Coefficients [CHECK_ROWS, n] of fingerprints, the same everywhere."""
    return torch.from_numpy(generator(0, "fingerprint", n).integers(0, 256, (CHECK_ROWS, n), "uint8"))
