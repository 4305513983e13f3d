"""Who sends which combination and who decodes how, fixed before the first round by the topology and one seed.

Shapes: c pieces per IV, m broadcast messages; rows_i uplink messages of relay i. Lists over i run over the active
relays. All matrices are uint8 tensors over GF(2^8); a message and a piece are equally long.
"""

from dataclasses import dataclass
from math import lcm

import numpy as np
import torch
from torch import Tensor

from hmtl.coding import linalg
from hmtl.coding.allocation import Allocation, allocate
from hmtl.coding.gf256 import matmul
from hmtl.errors import CodingError
from hmtl.rng import generator
from hmtl.topology import Topology

TRIES = 20  # a draw fails with a probability near H/255, so that with tens of relays this many never fail together
MOST_PIECES = 4096  # a block of so many pieces takes minutes to invert, and time grows with their cube


@dataclass(frozen=True, eq=False)
class Block:
    """A code for the IVs of some users, independent of all others.

    Attributes:
        users: whose IVs the block carries.
        pieces: c, the pieces that each IV is cut into.
        heard: for each relay, the positions within `users` of those that it hears.
        uplink: for each relay, [rows_i, c·|heard_i|], acting on the pieces that it hears: piece s of the user at
            place p of `heard[i]` is row p·c + s.
        downlink: [m, Σ_i rows_i], acting at the server on the uplink messages in the order of relays.
        decoders: for each relay, [c·(|users| − |heard_i|), m + c·|heard_i|], acting on the broadcast messages and
            below them the pieces that it hears; gives the pieces that it misses, in the order of `users`.

    Raises:
        CodingError: a matrix has another shape.
    """

    users: tuple[int, ...]
    pieces: int
    heard: tuple[tuple[int, ...], ...]
    uplink: tuple[Tensor, ...]
    downlink: Tensor
    decoders: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        c, m = self.pieces, len(self.downlink)
        expected = {"downlink": (self.downlink, (m, sum(len(rows) for rows in self.uplink)))}
        for i, (heard, rows, decoder) in enumerate(zip(self.heard, self.uplink, self.decoders, strict=True)):
            known = c * len(heard)
            expected[f"uplink[{i}]"] = rows, (len(rows), known)
            expected[f"decoders[{i}]"] = decoder, (c * len(self.users) - known, m + known)
        for name, (matrix, shape) in expected.items():
            if matrix.dtype != torch.uint8 or matrix.shape != shape:
                raise CodingError(
                    f"{name} must be a uint8 tensor of shape {list(shape)}, not {matrix.dtype} of shape "
                    f"{list(matrix.shape)}: {len(self.users)} users of c={c} pieces. Make plans with make_plan."
                )


@dataclass(frozen=True, eq=False)
class Plan:
    """Codes after which every active relay holds the IVs of all users; those of users that all of them hear need none.

    Attributes:
        topology: whom the plan is for.
        scheme: how the uplink is shared out.
        seed: where the coefficients come from.
        blocks: the codes, each for other users.
    """

    topology: Topology
    scheme: str
    seed: int
    blocks: tuple[Block, ...]


def make_plan(t: Topology, scheme: str = "paper", seed: int = 0) -> Plan:
    """The plan of a scheme, every relay's decoding proven; equal arguments give equal plans.

    Args:
        t: the topology.
        scheme: `paper` or `equal`.
        seed: the run's seed.

    Raises:
        CodingError: no such scheme, more pieces than can be inverted, or no draw lets every relay decode.

    Ref: Hu et al. 2022, Section IV-B.
    """
    return Plan(t, scheme, seed, tuple(_block(part, seed) for part in allocate(t, scheme)))


def _block(part: Allocation, seed: int) -> Block:
    """The first draw with which all relays decode."""
    c = lcm(*(alpha.denominator for alpha in part.alpha))
    cut = c * len(part.users)
    if cut > MOST_PIECES:
        raise CodingError(
            f"This allocation cuts the IVs of the {len(part.users)} users that {part.z} relays hear into c={c} pieces "
            f"each, {cut} in all: more than {MOST_PIECES} take too long to invert. Use scheme=equal, whose c is "
            f"{part.z}, or fewer users."
        )
    for attempt in range(TRIES):
        uplink = _uplink(part, c, generator(seed, "uplink", part.z, attempt))
        received = sum(len(rows) for rows in uplink)
        draw = generator(seed, "downlink", part.z, attempt).integers(0, 256, (c * part.downlink, received), np.uint8)
        downlink = torch.from_numpy(draw)
        broadcast = matmul(downlink, _on_all(part, c, uplink))
        decoders = [_decoder(broadcast, _columns(heard, c)) for heard in part.heard]
        if all(decoder is not None for decoder in decoders):
            proven = tuple(decoder for decoder in decoders if decoder is not None)
            return Block(part.users, c, part.heard, tuple(uplink), downlink, proven)
    raise CodingError(
        f"No code found for the {len(part.users)} users that {part.z} of {len(part.heard)} relays hear: in each of "
        f"{TRIES} draws some relay could not decode, as GF(2^8) is small for so many. Try another seed or fewer relays."
    )


def _uplink(part: Allocation, c: int, rng: np.random.Generator) -> list[Tensor]:
    """Each relay's combinations, [n_i·cα_i, c·|heard_i|].

    A user's pieces are dealt over its relays in order, at most cα_i to relay i, until none is left: what the α add up
    to beyond 1 is not sent twice. Message (l, s) of relay i is the l-th combination of the s-th pieces dealt to it; a
    user that has no s-th piece there adds nothing. Any n_i columns of the coefficients are independent where the
    field has the elements for it; beyond that they are drawn, and `_decoder` finds out.
    """
    dealt = [0] * len(part.users)
    uplink = []
    for heard, n, alpha in zip(part.heard, part.n, part.alpha, strict=True):
        share = int(c * alpha)
        if n + len(heard) <= 256:
            coefficients = linalg.cauchy(n, len(heard))
        else:
            coefficients = torch.from_numpy(rng.integers(0, 256, (n, len(heard)), np.uint8))
        rows = torch.zeros(n, share, len(heard), c, dtype=torch.uint8)
        for place, position in enumerate(heard):
            first = dealt[position]
            slots = torch.arange(min(share, c - first))
            rows[:, slots, place, first + slots] = coefficients[:, place, None]
            dealt[position] += len(slots)
        uplink.append(rows.view(n * share, len(heard) * c))
    return uplink


def _on_all(part: Allocation, c: int, uplink: list[Tensor]) -> Tensor:
    """The uplink of all relays [Σ_i rows_i, c·|users|], acting on the pieces of all users."""
    widened = []
    for heard, rows in zip(part.heard, uplink, strict=True):
        wide = torch.zeros(len(rows), c * len(part.users), dtype=torch.uint8)
        wide[:, _columns(heard, c)] = rows
        widened.append(wide)
    return torch.cat(widened)


def _columns(positions: tuple[int, ...], c: int) -> Tensor:
    """The places of these users' pieces among the pieces of all."""
    return (torch.tensor(positions, dtype=torch.int64)[:, None] * c + torch.arange(c)).flatten()


def _decoder(broadcast: Tensor, known: Tensor) -> Tensor | None:
    """The decoder of a relay that knows some of the pieces, or None where the others cannot be told apart.

    Args:
        broadcast: the broadcast messages in terms of all pieces, [m, c·|users|].
        known: the numbers of the pieces that the relay hears.
    """
    missing = torch.ones(broadcast.shape[1], dtype=torch.bool)
    missing[known] = False
    rows = linalg.independent_rows(broadcast[:, missing])
    solved = int(missing.sum())
    if len(rows) < solved:
        return None
    solution = linalg.inverse(broadcast[rows][:, missing])
    decoder = torch.zeros(solved, len(broadcast) + len(known), dtype=torch.uint8)
    decoder[:, rows] = solution
    decoder[:, len(broadcast) :] = matmul(solution, broadcast[rows][:, known])  # subtracting is adding here
    return decoder
