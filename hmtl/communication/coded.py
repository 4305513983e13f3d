"""The coded transport: relays and server send combinations over GF(2^8), relays decode and run the global update.

K users, H relays, L bytes per IV, c pieces per IV; within a block of the plan n users, so n·c pieces.
"""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hmtl.coding import Block, make_plan
from hmtl.coding.gf256 import matmul
from hmtl.coding.plan import piece_rows
from hmtl.communication.communicator import Communicator, Users
from hmtl.communication.ledger import RELAYS_TO_SERVER, SERVER_TO_RELAYS
from hmtl.communication.network import Network
from hmtl.errors import CodingError
from hmtl.topology import Topology

WORKING_SET = 32 << 20  # bytes of a block's pieces that are in work at once, whatever the size of an IV
DIGEST_BYTES = 16


class CodedHierarchical(Communicator):
    """The hierarchical scheme of Hu et al. 2022, Section IV, with any of the plans of `hmtl.coding`.

    Each round every relay confirms what it decoded by a digest, which the server compares; it counts as overhead.

    Args:
        topology: who hears whom.
        scheme: which plan, see `hmtl.coding.make_plan`, also for `max_pieces` and `generation`.
        seed: coefficients follow from it and the topology, so none travel.
        medium, wire: see `Communicator`.
        uplink_bps, uplink: the relays' links to the server, see `Network`; `optimal` uses them for the least time.
    """

    def __init__(
        self,
        topology: Topology,
        scheme: str = "optimal",
        seed: int = 0,
        medium: str = "broadcast",
        wire: str | None = None,
        *,
        max_pieces: int = 8,
        generation: int = 100,
        uplink_bps: Sequence[float] | None = None,
        uplink: str = "shared",
    ) -> None:
        super().__init__(topology, medium, wire)
        uplinks = Network(uplink_bps=uplink_bps, uplink=uplink).uplinks(topology)
        self.plan = make_plan(topology, scheme, seed, max_pieces=max_pieces, generation=generation, uplinks=uplinks)

    def _gather(self, ivs: Tensor, present: Users) -> Tensor:
        relays = self.topology.active
        own = list(self.topology.N(relays[0]))
        received = torch.zeros_like(ivs)  # by the first relay: what it heard, and below what it decodes
        received[own] = ivs[own]
        truth = hashlib.blake2b(digest_size=DIGEST_BYTES)
        digests = [hashlib.blake2b(digest_size=DIGEST_BYTES) for _ in relays]
        for block in self.plan.blocks:
            for pieces, columns in _column_blocks(ivs, block):
                truth.update(_buffer(pieces))
                for n, decoded in enumerate(self._exchange_block(block, pieces)):
                    with self.stopwatch.measure(f"relay {relays[n]}"):
                        digests[n].update(_buffer(decoded))
                    if n == 0:
                        _write_columns(received, block, decoded, columns)
        self.ledger.add(RELAYS_TO_SERVER, relays, 0, 8 * DIGEST_BYTES)
        for relay, digest in zip(relays, digests, strict=True):
            if digest.digest() != truth.digest():
                raise CodingError(
                    f"relay {relay} decoded other IVs than the users sent in round {self.ledger.rounds - 1}: stopped "
                    "before a wrong model spreads. Please report this with the topology, the scheme and the seed."
                )
        return received

    def _return(self, payload_bits: int, overhead_bits: int) -> None:
        """The global update ran at the relays: the models are there."""

    def _exchange_block(self, block: Block, pieces: Tensor) -> Iterator[Tensor]:
        """Pieces [n·c, columns] as the users sent them; yields them as each relay in turn comes to know them.

        A relay works on `heard[n]` and the server's broadcast alone, the server on the relays' messages alone.
        """
        relays = self.topology.active
        rows = [piece_rows(heard, block.pieces) for heard in block.heard]
        heard = [pieces[r] for r in rows]
        messages = []
        for n, relay in enumerate(relays):
            with self.stopwatch.measure(f"relay {relay}"):
                messages.append(matmul(block.uplink[n], heard[n]))
            self.ledger.add(RELAYS_TO_SERVER, relay, 8 * messages[n].numel())
        with self.stopwatch.measure("server"):
            broadcast = matmul(block.downlink, torch.cat(messages))
        listeners = relays if self.medium == "unicast" else self.topology.H
        self.ledger.add(SERVER_TO_RELAYS, listeners, 8 * broadcast.numel())
        for n, relay in enumerate(relays):
            with self.stopwatch.measure(f"relay {relay}"):
                known = torch.empty_like(pieces)
                known[rows[n]] = heard[n]
                missing = torch.ones(len(pieces), dtype=torch.bool)
                missing[rows[n]] = False
                known[missing] = matmul(block.decoders[n], torch.cat([broadcast, heard[n]]))
            yield known


def _column_blocks(ivs: Tensor, block: Block) -> Iterator[tuple[Tensor, slice]]:
    """The block's IVs cut into pieces of ceil(L/c) bytes, zero-padded, a range of columns at a time."""
    n, c = len(block.users), block.pieces
    piece = -(-ivs.shape[1] // c)
    width = max(64, WORKING_SET // (n * c) // 64 * 64)
    users = torch.as_tensor(block.users, dtype=torch.long)
    for start in range(0, piece, width):
        columns = slice(start, min(start + width, piece))
        pieces = ivs.new_zeros(n, c, columns.stop - columns.start)
        for s, source in _spans(columns, piece, c, ivs.shape[1]):
            pieces[:, s, : source.stop - source.start] = ivs[users, source]
        yield pieces.view(n * c, -1), columns


def _write_columns(ivs: Tensor, block: Block, decoded: Tensor, columns: slice) -> None:
    """The inverse of `_column_blocks`: put decoded pieces back to their place in the IVs [K, L]."""
    c = block.pieces
    users = torch.as_tensor(block.users, dtype=torch.long)
    pieces = decoded.view(len(block.users), c, -1)
    for s, target in _spans(columns, -(-ivs.shape[1] // c), c, ivs.shape[1]):
        ivs[users, target] = pieces[:, s, : target.stop - target.start]


def _spans(columns: slice, piece: int, c: int, nbytes: int) -> Iterator[tuple[int, slice]]:
    """For each piece s, the bytes of an IV which its `columns` hold (fewer, or none, at the padded end)."""
    for s in range(c):
        start, stop = s * piece + columns.start, min(s * piece + columns.stop, nbytes)
        if start < stop:
            yield s, slice(start, stop)


def _buffer(pieces: Tensor) -> memoryview:
    return pieces.numpy().data
