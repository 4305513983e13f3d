"""Who sends which combination and who decodes how, fixed before the first round by the topology and one seed.

Shapes: c pieces per IV, m broadcast messages; rows_i uplink messages of relay i. Lists over i run over the active
relays. All matrices are uint8 tensors over GF(2^8); a message and a piece are equally long.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import linalg
from hmtl.coding.allocation import Allocation
from hmtl.coding.formulas import Loads
from hmtl.coding.generations import similar_groups
from hmtl.coding.gf256 import matmul
from hmtl.coding.optimal import Demand, Uplinks
from hmtl.errors import CodingError
from hmtl.rng import generator
from hmtl.topology import Topology

TRIES = 20  # a draw fails with a probability near H/255, so that with tens of relays this many never fail together
MOST_PIECES = 4096  # a block of so many pieces takes minutes to plan, and time grows with their cube
ROUNDING = 0.005  # with several generations, each takes the fewest pieces whose load is that near to the best

Draw = Callable[[np.random.Generator], list[Tensor]]


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
    """Codes after which every active relay holds the IVs of all present users.

    Those of users that all of these relays hear need no code.

    Attributes:
        topology: whom the plan is for.
        scheme: how the uplink is shared out.
        seed: where the coefficients come from.
        blocks: the codes, each for other users.
    """

    topology: Topology
    scheme: str
    seed: int
    blocks: tuple[Block, ...] = field(repr=False)

    @property
    def loads(self) -> Loads:
        """What the plan sends, in IVs, padding aside: that of the formula, but for `optimal` with too few pieces."""
        active, downlink = [Fraction()] * len(self.topology.active), Fraction()
        for block in self.blocks:
            for i, rows in enumerate(block.uplink):
                active[i] += Fraction(len(rows), block.pieces)
            downlink += Fraction(len(block.downlink), block.pieces)
        return Loads.of(self.topology, active, downlink)


def optimal_code(t: Topology, seed: int, max_pieces: int, generation: int, uplinks: Uplinks | None) -> Iterator[Block]:
    """For each generation, one code across all z: random combinations, as many as the rates say."""
    users = np.flatnonzero((t.degrees > 0) & (t.degrees < len(t.active)))
    if not len(users):
        return
    G = t.G[list(t.active)][:, users]
    groups = similar_groups(G, max(1, round(len(users) / generation)))
    slack = ROUNDING if len(groups) > 1 else 1e-9
    for number, group in enumerate(groups):
        hears, n = G[:, group], len(group)
        heard = tuple(tuple(np.flatnonzero(row).tolist()) for row in hears)
        rates = Demand(hears).rates(min(max_pieces, max(1, MOST_PIECES // n)), uplinks, slack)
        c = rates.pieces
        shapes = [(count, c * len(known)) for count, known in zip(rates.counts, heard, strict=True)]

        def draw(rng: np.random.Generator, shapes: list[tuple[int, int]] = shapes) -> list[Tensor]:
            return [_random(rng, shape) for shape in shapes]

        downlink = c * (n - min(map(len, heard)))
        yield _block(users[group], c, heard, draw, downlink, seed, "generation", number)


def allocated_code(part: Allocation, seed: int) -> Block:
    """The code of one z, with as few pieces as all α are multiples of. Ref: Hu et al. 2022, Section IV-B."""
    c = lcm(*(alpha.denominator for alpha in part.alpha))
    cut = c * len(part.users)
    if cut > MOST_PIECES:
        raise CodingError(
            f"This allocation cuts the IVs of the {len(part.users)} users that {part.z} relays hear into c={c} pieces "
            f"each, {cut} in all: more than {MOST_PIECES} take too long to invert. Use scheme=optimal, which deals "
            f"users into generations, or fewer users."
        )
    users = np.array(part.users)
    return _block(users, c, part.heard, lambda rng: _uplink(part, c, rng), c * part.downlink, seed, part.z)


def _block(
    users: NDArray[np.int64],
    c: int,
    heard: tuple[tuple[int, ...], ...],
    draw: Draw,
    downlink: int,
    seed: int,
    *name: str | int,
) -> Block:
    """The first draw with which all relays decode, of the uplink by `draw`, of the downlink as so many messages."""
    for attempt in range(TRIES):
        uplink = draw(generator(seed, "uplink", *name, attempt))
        received = sum(len(rows) for rows in uplink)
        recoding = _random(generator(seed, "downlink", *name, attempt), (downlink, received))
        broadcast = matmul(recoding, _on_all(uplink, heard, c, len(users)))
        decoders = []
        for known in heard:
            decoder = _decoder(broadcast, piece_rows(known, c))
            if decoder is None:
                break
            decoders.append(decoder)
        else:
            return Block(tuple(users.tolist()), c, heard, tuple(uplink), recoding, tuple(decoders))
    raise CodingError(
        f"No code found for the {len(users)} users of a block and {len(heard)} relays: in each of {TRIES} draws some "
        f"relay could not decode, as GF(2^8) is small for so many. Try another seed or fewer relays."
    )


def _random(rng: np.random.Generator, shape: tuple[int, int]) -> Tensor:
    return torch.from_numpy(rng.integers(0, 256, shape, np.uint8))


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
        coefficients = linalg.cauchy(n, len(heard)) if n + len(heard) <= 256 else _random(rng, (n, len(heard)))
        rows = torch.zeros(n, share, len(heard), c, dtype=torch.uint8)
        for place, position in enumerate(heard):
            first = dealt[position]
            slots = torch.arange(min(share, c - first))
            rows[:, slots, place, first + slots] = coefficients[:, place, None]
            dealt[position] += len(slots)
        uplink.append(rows.view(n * share, len(heard) * c))
    return uplink


def _on_all(uplink: list[Tensor], heard: tuple[tuple[int, ...], ...], c: int, n: int) -> Tensor:
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
