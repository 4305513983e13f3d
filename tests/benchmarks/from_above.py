"""The exchange as one function that sees all users' IVs and plays every relay: the peer of the nodes.

It is how the first version computed a round: pieces are gathered, messages and what a relay knows assembled, and every
byte hashed, at each relay. Models are only counted.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from hmtl.coding import Plan
from hmtl.coding.plan import piece_rows
from hmtl.gf256 import matmul

WORKING_SET = 32 << 20


def exchange(plan: Plan, ivs: Tensor, global_update: Callable[[Tensor], Tensor]) -> Tensor:
    """One round: IVs [K, m] in, models out."""
    sent, t = ivs.view(torch.uint8), plan.topology
    own = list(t.N(t.active[0]))
    received = torch.zeros_like(sent)
    received[own] = sent[own]
    truth = hashlib.blake2b(digest_size=16)
    digests = [hashlib.blake2b(digest_size=16) for _ in t.active]
    for block in plan.blocks:
        n, c = len(block.users), block.pieces
        piece = -(-sent.shape[1] // c)
        width, users = max(64, WORKING_SET // (n * c) // 64 * 64), torch.as_tensor(block.users)
        for start in range(0, piece, width):
            columns = slice(start, min(start + width, piece))
            pieces = sent.new_zeros(n, c, columns.stop - columns.start)
            for s, source in spans(columns, piece, c, sent.shape[1]):
                pieces[:, s, : source.stop - source.start] = sent[users, source]
            pieces = pieces.view(n * c, -1)
            truth.update(pieces.numpy().data)
            rows = [piece_rows(heard, c) for heard in block.heard]
            heard = [pieces[r] for r in rows]
            messages = [matmul(uplink, known) for uplink, known in zip(block.uplink, heard, strict=True)]
            broadcast = matmul(block.downlink, torch.cat(messages))
            for i, digest in enumerate(digests):
                known = torch.empty_like(pieces)
                known[rows[i]] = heard[i]
                missing = torch.ones(len(pieces), dtype=torch.bool)
                missing[rows[i]] = False
                known[missing] = matmul(block.decoders[i], torch.cat([broadcast, heard[i]]))
                digest.update(known.numpy().data)
                if i == 0:
                    decoded = known.view(n, c, -1)
                    for s, target in spans(columns, piece, c, sent.shape[1]):
                        received[users, target] = decoded[:, s, : target.stop - target.start]
    assert all(digest.digest() == truth.digest() for digest in digests)
    models = global_update(received.view(ivs.dtype))
    return models.clone()


def spans(columns: slice, piece: int, c: int, nbytes: int) -> list[tuple[int, slice]]:
    """For each piece s, the bytes of an IV which its `columns` hold."""
    starts = [(s, s * piece + columns.start, min(s * piece + columns.stop, nbytes)) for s in range(c)]
    return [(s, slice(start, stop)) for s, start, stop in starts if start < stop]
