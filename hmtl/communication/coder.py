"""Cutting IVs into pieces, and fingerprints of what was decoded.

Within a block of the plan: n users, c pieces per IV, so n·c pieces; L bytes per IV, pieces of ceil(L/c) bytes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import Block, Plan, linalg
from hmtl.coding.block import on_all, piece_rows
from hmtl.coding.gf256 import matmul
from hmtl.communication.messages import nothing
from hmtl.rng import generator

WORKING_SET = 32 << 20  # bytes of a block's pieces that are in work at once, whatever the size of an IV
CHECK_ROWS = 4  # two sets of IVs that differ have one fingerprint with probability 2^-32
MENDS = 64  # of each relay and block that are kept, for when the same messages are lost again


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
        piece = self.block.piece_bytes(self.nbytes)
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
        pieces, end = rows.new_empty(n, c, self.width), dict.fromkeys(range(c), 0)
        for s, source, columns in self.spans():
            torch.index_select(rows[:, source], 0, at, out=pieces[:, s, columns])
            end[s] = columns.stop
        for s, stop in end.items():
            pieces[:, s, stop:] = 0
        return pieces.view(n * c, self.width)

    def recoded(self, received: Tensor) -> Tensor:
        """The server's messages, the further ones last, of those that it received [Σ_i rows_i, width]."""
        block = self.block
        m, L = len(block.downlink), self.width
        messages = torch.empty(m + block.margin, L, dtype=torch.uint8)
        matmul(block.downlink, received, messages[:m])
        if block.margin:
            split = messages[m:].view(-1, L // block.parts)
            matmul(block.further, received.view(-1, L // block.parts), split)
        return messages

    def own(self, messages: Tensor, need: int) -> Tensor:
        """Of the server's messages, those for a relay that needs so many and gets a copy of its own."""
        if not self.block.margin or not need:
            return messages[:need]
        return torch.cat([messages[:need], messages[len(self.block.downlink) :]])

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
            piece = block.piece_bytes(nbytes)
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
        block: all of it.
    """

    heard: NDArray[np.int64]
    missing: NDArray[np.int64]
    encoder: Tensor
    from_server: Tensor
    from_heard: Tensor
    check_heard: Tensor
    check_missing: Tensor
    block: Block

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
            heard,
            lacking,
            block.uplink[n],
            decoder[:, :need],
            decoder[:, need:],
            checks[:, known],
            checks[:, unknown],
            block,
        )

    @property
    def need(self) -> int:
        """How many messages of the server it needs, the first ones."""
        return self.from_server.shape[1]

    def decode(self, messages: Tensor, heard: Tensor) -> Tensor:
        """The pieces that the relay misses, of the messages that it needs and the pieces that it heard."""
        return matmul(self.from_server, messages).bitwise_xor_(matmul(self.from_heard, heard))

    def mended(self, arrived: NDArray[np.bool_], messages: Tensor, heard: Tensor) -> Tensor | None:
        """The messages that the relay needs, of those that it was sent [sent] but got in part; None: too few came."""
        first = int(arrived[: self.need].sum())
        if first == self.need:
            return messages[:first]
        if (mend := self.mends(arrived.tobytes())) is None:
            return None
        width = messages.shape[1] // self.block.parts
        from_first, from_others, from_heard = mend
        lost = matmul(from_others, messages[first:].view(-1, width))
        lost.bitwise_xor_(matmul(from_first, messages[:first].view(-1, width)))
        lost.bitwise_xor_(matmul(from_heard, heard.view(-1, width)))
        needed = messages.new_empty(self.need, messages.shape[1])
        kept = torch.from_numpy(arrived[: self.need])
        needed[kept], needed[~kept] = messages[:first], lost.view(-1, messages.shape[1])
        return needed

    @cached_property
    def mends(self) -> Callable[[bytes], tuple[Tensor, Tensor, Tensor] | None]:
        """From which messages arrived, as bytes, how the lost ones of those needed are made; see `mended`."""
        return lru_cache(MENDS)(self._mend)

    def _mend(self, arrived: bytes) -> tuple[Tensor, Tensor, Tensor] | None:
        """What acts on the parts of the needed messages that came, of the others that came, and of the heard pieces."""
        came, need = torch.from_numpy(np.frombuffer(arrived, bool).copy()), self.need
        others = self.surplus[len(self.surplus) + need - len(came) :][came[need:]].flatten(0, 1)
        on_lost, on_first = others[:, :need][:, ~came[:need]].flatten(1), others[:, :need][:, came[:need]].flatten(1)
        if (chosen := linalg.independent(on_lost)) is None:
            return None
        inverse = linalg.inverse(on_lost[chosen])
        from_others = torch.zeros(len(inverse), len(others), dtype=torch.uint8)
        from_others[:, chosen] = inverse
        from_heard = matmul(inverse, others[:, need:].flatten(1)[chosen])
        return matmul(inverse, on_first[chosen]), from_others, from_heard

    @cached_property
    def surplus(self) -> Tensor:
        """What the server sends beyond what the relay needs, as it follows from that and from the heard pieces.

        [messages, s, need + c·|heard|, s]: which part of which message, from which part of which message or piece.
        """
        block, s = self.block, self.block.parts
        known, unknown = (piece_rows(tuple(places.tolist()), block.pieces) for places in (self.heard, self.missing))
        received = on_all(block.uplink, block.heard, block.pieces, len(block.users))

        def follows(recoding: Tensor) -> Tensor:
            sent = matmul(recoding, received)
            on_missing = sent[:, unknown]
            from_heard = matmul(on_missing, self.from_heard).bitwise_xor_(sent[:, known])
            return torch.cat([matmul(on_missing, self.from_server), from_heard], dim=1)

        whole = torch.kron(follows(block.downlink[self.need :]), torch.eye(s, dtype=torch.uint8))
        further = [follows(block.further[:, part::s]) for part in range(s)] if block.margin else []
        rows = [whole, torch.stack(further, dim=2).flatten(1)] if further else [whole]
        return torch.cat(rows).view(-1, s, self.need + len(known), s)

    def check(self, heard: Tensor, decoded: Tensor) -> Tensor:
        """Random combinations [CHECK_ROWS, width] of all pieces of the block, however they came to be known."""
        return matmul(self.check_heard, heard).bitwise_xor_(matmul(self.check_missing, decoded))


@lru_cache(maxsize=64)
def check_rows(n: int) -> Tensor:
    """Coefficients [CHECK_ROWS, n] of fingerprints, the same everywhere."""
    return torch.from_numpy(generator(0, "fingerprint", n).integers(0, 256, (CHECK_ROWS, n), "uint8"))
