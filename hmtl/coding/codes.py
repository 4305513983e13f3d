"""The codes of a plan: their users, numbers of messages and coefficients."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding.allocation import MAX_PIECES, Allocation, AllocationRule, allocate
from hmtl.coding.formulas import unheard
from hmtl.coding.generations import similar_groups, uniform_parts
from hmtl.coding.plan import Block, draw_block, random_matrix
from hmtl.coding.rates import TOLERANCE, Demand, Program, Rates, Uplinks
from hmtl.errors import CodingError
from hmtl.gf256 import cauchy
from hmtl.topology import Topology

ROUNDING = 0.005  # relative excess of the load that is accepted for fewer pieces, if there are several generations


@dataclass(frozen=True)
class CodeSettings:
    """Settings of a plan's codes; `make_plan` explains them."""

    seed: int
    max_pieces: int
    generation: int
    uplinks: Uplinks | None

    def __post_init__(self) -> None:
        for name in ("max_pieces", "generation"):
            if (value := getattr(self, name)) < 1:
                raise CodingError(f"{name}={value} must be at least 1. Change {name}.")


def optimal_code(t: Topology, A: Sequence[int], settings: CodeSettings) -> Iterator[Block]:
    """Yield the codes of scheme `optimal` for users that an aggregator misses."""
    users = np.flatnonzero((t.degrees > 0) & ~t.G[list(A)].all(axis=0))
    if len(users):
        places = np.searchsorted(t.active, A).tolist()
        yield from code_of(users, t.G[list(t.active)][:, users], places, settings, unheard(t, A) / len(users))


def code_of(
    users: NDArray[np.int64],
    G: NDArray[np.uint8],
    places: Sequence[int],
    settings: CodeSettings,
    models: float,
) -> Iterator[Block]:
    """Yield one code per generation: random combinations, as many as the rates require.

    Generations with equal numbers of users of each type share one code. A generation is split into uniform parts if
    that does not increase the load, because the work of coding a user grows with the number of users coded together.

    Args:
        users: the users to code [n].
        G: which relays hear them [H, n], as `settings.uplinks` numbers the relays.
        places: the aggregators, as rows of G.
        settings: of the codes.
        models: number of models that pass the server, per user.
    """
    groups = _groups(G, settings)
    slack = ROUNDING if len(groups) > 1 else TOLERANCE
    uplinks, sets = settings.uplinks, None  # sets violated in one generation are probably violated in the next

    def rates_of(hears: NDArray[np.uint8]) -> Rates:
        nonlocal sets
        n = hears.shape[1]
        program = Program(Demand(hears), uplinks, sets)
        rates = program.rates(places, min(settings.max_pieces, max(1, MAX_PIECES // n)), models * n, slack)
        sets = program.sets
        return rates

    def no_costlier(whole: Rates, hears: NDArray[np.uint8], parts: int) -> bool:
        """Return whether uniform parts send no more than the whole group, with less work."""
        rates = rates_of(hears)
        sent, before = parts * np.array(rates.counts) / rates.pieces, np.array(whole.counts) / whole.pieces
        if uplinks is not None and uplinks.parallel:  # per relay, because models are divided to fit the rates
            no_more = bool((sent <= before * (1 + 1e-9)).all())
        else:
            cost = np.sum if uplinks is None else uplinks.seconds
            no_more = bool(cost(sent) <= cost(before) * (1 + 1e-9))
        return no_more and rates.pieces < parts * whole.pieces

    def block(members: tuple[int, ...], hears: NDArray[np.uint8], number: int) -> Block:
        rates, heard = rates_of(hears), _heard(hears)
        shapes = [(n, rates.pieces * len(k)) for n, k in zip(rates.counts, heard, strict=True)]
        code = members, rates.pieces, heard, tuple(places)
        return draw_block(
            *code, lambda rng: [random_matrix(rng, shape) for shape in shapes], settings.seed, "generation", number
        )

    yield from _blocks(users, G, groups, lambda hears: partial(no_costlier, rates_of(hears)), block)


def server_code(t: Topology, A: Sequence[int], settings: CodeSettings) -> Iterator[Block]:
    """Yield the codes by which a server that knows all IVs sends relays A what they miss, in whole messages."""
    users = np.flatnonzero((t.degrees > 0) & ~t.G[list(A)].all(axis=0))
    if not A or not len(users):
        return
    G, places = t.restricted(relays=A).G[list(t.active)][:, users], tuple(np.searchsorted(t.active, A).tolist())

    def block(members: tuple[int, ...], hears: NDArray[np.uint8], number: int) -> Block:
        """Draw a code in which the server is one more relay, which hears everybody and sends all IVs."""
        n, heard = len(members), _heard(hears)
        uplink = [torch.empty(0, len(known), dtype=torch.uint8) for known in heard]
        drawn = draw_block(
            members,
            1,
            (*heard, tuple(range(n))),
            places,
            lambda _: [*uplink, torch.eye(n, dtype=torch.uint8)],
            settings.seed,
            "generation",
            number,
        )
        return replace(drawn, heard=heard, uplink=tuple(uplink))

    yield from _blocks(users, G, _groups(G, settings), lambda _: lambda *_: True, block)


def _groups(G: NDArray[np.uint8], settings: CodeSettings) -> list[NDArray[np.intp]]:
    return similar_groups(G, max(1, round(G.shape[1] / settings.generation)))


def _blocks(
    users: NDArray[np.int64],
    G: NDArray[np.uint8],
    groups: Sequence[NDArray[np.intp]],
    acceptable: Callable[[NDArray[np.uint8]], Callable[[NDArray[np.uint8], int], bool]],
    code: Callable[[tuple[int, ...], NDArray[np.uint8], int], Block],
) -> Iterator[Block]:
    """Yield one block per generation, a group or a uniform part of one; those that relays hear alike share a code.

    Args:
        users, G: see `code_of`.
        groups: groups of users, as columns of G.
        acceptable: returns from the columns of a group when to split it, see `uniform_parts`.
        code: returns a block from its users, their columns of G, and its number among the blocks with a code of their
            own.
    """
    split: dict[bytes, NDArray[np.intp]] = {}
    parts: list[NDArray[np.intp]] = []
    for group in groups:
        hears = G[:, group]
        if (key := hears.tobytes()) not in split:
            split[key] = uniform_parts(hears, acceptable(hears))
        parts += list(group[split[key]])
    blocks: dict[bytes, Block] = {}
    for part in parts:
        hears, members = G[:, part], tuple(users[part].tolist())
        if (key := hears.tobytes()) not in blocks:
            blocks[key] = code(members, hears, len(blocks))
        yield replace(blocks[key], users=members)


def _heard(hears: NDArray[np.uint8]) -> tuple[tuple[int, ...], ...]:
    """Return the columns that each relay hears."""
    return tuple(tuple(np.flatnonzero(row).tolist()) for row in hears)


def allocated_codes(split: AllocationRule, t: Topology, A: Sequence[int], settings: CodeSettings) -> Iterator[Block]:
    """Yield the codes of all allocations, with the fewest pieces of which all α are multiples.

    Ref: Hu et al. 2022, Section IV-B.
    """
    places = tuple(np.searchsorted(t.active, A).tolist())
    for part in allocate(t, split, tuple(A)):
        if part.too_long:
            raise CodingError(
                f"{part.too_long} Use scheme=optimal, which splits users into generations, or fewer users."
            )
        draw = partial(_allocated_uplink, part, part.pieces)
        yield draw_block(part.users, part.pieces, part.heard, places, draw, settings.seed, part.z)


def _allocated_uplink(allocation: Allocation, c: int, rng: np.random.Generator) -> list[Tensor]:
    """Return each relay's combinations [n_i·cα_i, c·|heard_i|].

    A user's pieces are divided among its relays in order, at most cα_i to relay i, until none is left, so that no piece
    is sent twice. Message (l, s) of relay i is the l-th combination of the s-th pieces of its users; a user without an
    s-th piece there contributes nothing. Any n_i columns of the coefficients are independent if the field has enough
    elements; otherwise they are random, and `draw_block` checks them.
    """
    assigned = [0] * len(allocation.users)  # pieces of each user so far
    uplink = []
    for heard, n, alpha in zip(allocation.heard, allocation.n, allocation.alpha, strict=True):
        share = int(c * alpha)
        coefficients = cauchy(n, len(heard)) if n + len(heard) <= 256 else random_matrix(rng, (n, len(heard)))
        rows = torch.zeros(n, share, len(heard), c, dtype=torch.uint8)
        for place, position in enumerate(heard):
            first = assigned[position]
            slots = torch.arange(min(share, c - first))
            rows[:, slots, place, first + slots] = coefficients[:, place, None]
            assigned[position] += len(slots)
        uplink.append(rows.view(n * share, len(heard) * c))
    return uplink
