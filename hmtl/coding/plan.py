"""Who sends which combination and who decodes how, fixed before the first round by the topology and one seed.

Shapes: c pieces per IV, m messages of the server; rows_i uplink messages of relay i. Lists over i run over the active
relays, lists over j over those of them that aggregate. All matrices are uint8 tensors over GF(2^8); a message and a
piece are equally long.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding.allocation import MOST_PIECES, Allocation
from hmtl.coding.block import Block, on_all, piece_rows
from hmtl.coding.formulas import Loads, carriers, uncoded_loads, unheard
from hmtl.coding.generations import alike, similar_groups
from hmtl.coding.optimal import Demand, Rates, Uplinks
from hmtl.coding.programme import Programme
from hmtl.errors import CodingError
from hmtl.gf256 import cauchy, inverses, matmul
from hmtl.rng import generator
from hmtl.topology import Topology

TRIES = 20  # a draw fails with a probability near H/255, so that with tens of relays this many never fail together
ROUNDING = 0.005  # with several generations, each takes the fewest pieces whose load is that near to the best

Draw = Callable[[np.random.Generator], list[Tensor]]


@dataclass(frozen=True, eq=False)
class Plan:
    """Codes after which every aggregator holds the IVs of all present users.

    Those of users that all aggregators hear need no code.

    Attributes:
        topology: whom the plan is for.
        scheme: how the uplink is shared out.
        seed: where the coefficients come from.
        aggregators: the relays that learn all IVs; none where IVs go to the server, which needs no code.
        uplinks: of the active relays, see `make_plan`.
        blocks: the codes, each for other users.
    """

    topology: Topology
    scheme: str
    seed: int
    aggregators: tuple[int, ...]
    uplinks: Uplinks | None
    blocks: tuple[Block, ...] = field(repr=False)

    @cached_property
    def sent(self) -> tuple[Fraction, ...]:
        """IVs' worth of combinations that each active relay sends, padding aside."""
        sent = [Fraction()] * len(self.topology.active)
        for block in self.blocks:
            for i, rows in enumerate(block.uplink):
                sent[i] += Fraction(len(rows), block.pieces)
        return tuple(sent)

    @cached_property
    def loads(self) -> Loads:
        """What the plan sends, in IVs, padding aside; that of the formula, but for `optimal` with too few pieces."""
        if not self.aggregators:
            return uncoded_loads(self.topology, self.uplinks)
        return Loads.coded(self.topology, self.aggregators, self.sent, *self.received, self.uplinks)

    @cached_property
    def received(self) -> tuple[Fraction, Fraction]:
        """IVs' worth of combinations from the server, where all hear it, and where each relay gets its own copy."""
        broadcast, unicast = Fraction(), Fraction()
        for block in self.blocks:
            broadcast += Fraction(len(block.downlink), block.pieces)
            unicast += Fraction(sum(map(block.need, block.aggregators)), block.pieces)
        return broadcast, unicast

    def carriers(self, models: int) -> NDArray[np.int64]:
        """Which aggregator sends each of so many models to the server, for users whom none of them hears."""
        return carriers(self.topology, self.aggregators, self.sent, models, self.uplinks)


def optimal_code(
    t: Topology,
    A: Sequence[int],
    seed: int,
    max_pieces: int,
    generation: int,
    uplinks: Uplinks | None,
) -> Iterator[Block]:
    """For each generation, one code across all z, of the users whom not all aggregators hear; see `code_of`."""
    users = np.flatnonzero((t.degrees > 0) & ~t.G[list(A)].all(axis=0))
    if len(users):
        places = np.searchsorted(t.active, A).tolist()
        G, models = t.G[list(t.active)][:, users], unheard(t, A) / len(users)
        yield from code_of(users, G, places, seed, max_pieces, generation, uplinks, models)


def code_of(
    users: NDArray[np.int64],
    G: NDArray[np.uint8],
    places: Sequence[int],
    seed: int,
    max_pieces: int,
    generation: int,
    uplinks: Uplinks | None,
    models: float = 0.0,
) -> Iterator[Block]:
    """For each generation of these users, one code: random combinations, as many as the rates say.

    Generations with as many users of each type have the same code, which is made once. A generation is dealt into parts
    that are alike if that costs no load: the arithmetic of coding a user grows with the number of those coded together.

    Args:
        users: their numbers [n].
        G: which relays hear them [H, n]; `places` and blocks count relays as the rows of G, `uplinks` has as many.
        models: that pass the server, for each user.
    """
    groups = similar_groups(G, max(1, round(len(users) / generation)))
    rates_of = _rates(places, ROUNDING if len(groups) > 1 else 1e-9, uplinks, models)

    def found(hears: NDArray[np.uint8]) -> Rates:
        return rates_of(hears, min(max_pieces, max(1, MOST_PIECES // hears.shape[1])))

    dealt: dict[bytes, NDArray[np.intp]] = {}
    parts = []
    for group in groups:
        hears = G[:, group]
        if (key := hears.tobytes()) not in dealt:
            dealt[key] = alike(hears, _no_dearer(found, found(hears), uplinks))
        parts += list(group[dealt[key]])
    made: dict[bytes, Block] = {}
    for part in parts:
        hears, n = G[:, part], len(part)
        key, members = hears.tobytes(), tuple(users[part].tolist())
        if key not in made:
            heard = tuple(tuple(np.flatnonzero(row).tolist()) for row in hears)
            rates = found(hears)
            c = rates.pieces
            shapes = [(count, c * len(known)) for count, known in zip(rates.counts, heard, strict=True)]

            def draw(rng: np.random.Generator, shapes: list[tuple[int, int]] = shapes) -> list[Tensor]:
                return [_random(rng, shape) for shape in shapes]

            downlink = c * max(n - len(heard[i]) for i in places)
            made[key] = _block(members, c, heard, draw, downlink, places, seed, "generation", len(made))
        yield replace(made[key], users=members)


def _rates(
    places: Sequence[int], slack: float, uplinks: Uplinks | None, models: float
) -> Callable[[NDArray[np.uint8], int], Rates]:
    """What finds the rates of one generation after the other, from who hears whom and the most pieces.

    Args:
        places: of the aggregators.
        models: that pass the server, for each user.
    """
    sets = None

    def rates(hears: NDArray[np.uint8], max_pieces: int) -> Rates:
        nonlocal sets
        demand = Demand(hears)
        if len(places) == len(hears):
            return demand.rates(max_pieces, uplinks, slack)
        programme = Programme(demand, uplinks, sets)
        found = programme.rates(places, max_pieces, models * hears.shape[1], slack)
        sets = programme.sets
        return found

    return rates


def _no_dearer(
    found: Callable[[NDArray[np.uint8]], Rates], whole: Rates, uplinks: Uplinks | None
) -> Callable[[NDArray[np.uint8], int], bool]:
    """Whether users in so many parts that are alike send no more than as a whole, and are coded with less work."""

    def enough(hears: NDArray[np.uint8], parts: int) -> bool:
        rates = found(hears)
        sent, before = parts * np.array(rates.counts) / rates.pieces, np.array(whole.counts) / whole.pieces
        if uplinks is not None and uplinks.parallel:  # models may be shared out to fit
            no_more = bool((sent <= before * (1 + 1e-9)).all())
        else:
            seconds = np.sum if uplinks is None else uplinks.seconds
            no_more = bool(seconds(sent) <= seconds(before) * (1 + 1e-9))
        return no_more and rates.pieces < parts * whole.pieces

    return enough


def allocated_code(part: Allocation, places: Sequence[int], seed: int) -> Block:
    """The code of one z, with as few pieces as all α are multiples of. Ref: Hu et al. 2022, Section IV-B."""
    c = part.pieces
    if too_long := part.too_long:
        raise CodingError(f"{too_long} Use scheme=optimal, which deals users into generations, or fewer users.")

    def draw(rng: np.random.Generator) -> list[Tensor]:
        return _uplink(part, c, rng)

    return _block(part.users, c, part.heard, draw, c * part.downlink, places, seed, part.z)


def _block(
    users: tuple[int, ...],
    c: int,
    heard: tuple[tuple[int, ...], ...],
    draw: Draw,
    downlink: int,
    places: Sequence[int],
    seed: int,
    *name: str | int,
) -> Block:
    """The first draw with which all aggregators decode: the uplink's by `draw`, the downlink's of so many messages."""
    known = [piece_rows(heard[i], c) for i in places]
    missing = [_others(rows, c * len(users)) for rows in known]
    for attempt in range(TRIES):
        uplink = draw(generator(seed, "uplink", *name, attempt))
        received = sum(len(rows) for rows in uplink)
        if received == downlink == min(map(len, missing)):
            recoding = torch.eye(downlink, dtype=torch.uint8)  # all need all that there is: it goes on as it comes
        else:
            recoding = _random(generator(seed, "downlink", *name, attempt), (downlink, received))
        on_pieces = on_all(uplink, heard, c, len(users))
        sent = matmul(recoding, on_pieces)
        found = inverses([sent[: len(rows), rows] for rows in missing])
        if found is not None:  # subtracting is adding here
            decoders = (
                torch.cat([inverse, matmul(inverse, sent[: len(inverse)][:, rows])], dim=1)
                for inverse, rows in zip(found, known, strict=True)
            )
            return Block(users, c, heard, tuple(uplink), recoding, tuple(places), tuple(decoders))
    raise CodingError(
        f"No code found for the {len(users)} users of a block and {len(places)} aggregators: in each of {TRIES} draws "
        f"one of them could not decode, as GF(2^8) is small for so many. Try another seed or fewer relays."
    )


def _others(rows: Tensor, n: int) -> Tensor:
    """The numbers below n that are not among `rows`."""
    left = torch.ones(n, dtype=torch.bool)
    left[rows] = False
    return left.nonzero().ravel()


def _random(rng: np.random.Generator, shape: tuple[int, int]) -> Tensor:
    return torch.from_numpy(rng.integers(0, 256, shape, np.uint8))


def _uplink(part: Allocation, c: int, rng: np.random.Generator) -> list[Tensor]:
    """Each relay's combinations, [n_i·cα_i, c·|heard_i|].

    A user's pieces are dealt over its relays in order, at most cα_i to relay i, until none is left: what the α add up
    to beyond 1 is not sent twice. Message (l, s) of relay i is the l-th combination of the s-th pieces dealt to it; a
    user that has no s-th piece there adds nothing. Any n_i columns of the coefficients are independent where the
    field has the elements for it; beyond that they are drawn, and `_block` finds out.
    """
    dealt = [0] * len(part.users)
    uplink = []
    for heard, n, alpha in zip(part.heard, part.n, part.alpha, strict=True):
        share = int(c * alpha)
        coefficients = cauchy(n, len(heard)) if n + len(heard) <= 256 else _random(rng, (n, len(heard)))
        rows = torch.zeros(n, share, len(heard), c, dtype=torch.uint8)
        for place, position in enumerate(heard):
            first = dealt[position]
            slots = torch.arange(min(share, c - first))
            rows[:, slots, place, first + slots] = coefficients[:, place, None]
            dealt[position] += len(slots)
        uplink.append(rows.view(n * share, len(heard) * c))
    return uplink
