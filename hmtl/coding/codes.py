"""The codes of a plan: their users, numbers of messages and coefficients."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding.allocation import MOST_PIECES, Allocation
from hmtl.coding.block import Block, Layout, draw_block, random_matrix
from hmtl.coding.formulas import unheard
from hmtl.coding.generations import similar_groups, uniform_parts
from hmtl.coding.omniscience import Demand, Rates, Uplinks
from hmtl.coding.rates import TOLERANCE, Programme
from hmtl.errors import CodingError
from hmtl.gf256 import cauchy
from hmtl.topology import Topology

ROUNDING = 0.005  # with several generations, relative excess of the load that is accepted for fewer pieces

Rate = Callable[[NDArray[np.uint8]], Rates]


@dataclass(frozen=True)
class CodeSettings:
    """Settings of a plan's codes, see `make_plan`.

    Attributes:
        seed: the source of all coefficients.
        max_pieces: the largest number of pieces of an IV.
        generation: about how many users are coded together.
        uplinks: of the active relays; None: equal and shared.

    Raises:
        CodingError: `max_pieces` or `generation` is below 1.
    """

    seed: int = 0
    max_pieces: int = 8
    generation: int = 200
    uplinks: Uplinks | None = None

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
    models: float = 0.0,
) -> Iterator[Block]:
    """Yield one code per generation: random combinations, as many as the rates require.

    Generations with equal numbers of users of each type share one code. A generation is split into uniform parts if
    that does not increase the load, because the work of coding a user grows with the number of users coded together.

    Args:
        users: the users to code [n].
        G: which relays hear them [H, n].
        places: the aggregators, as rows of G.
        settings: of the codes, with an uplink for each row of G.
        models: number of models that pass the server, per user.
    """
    groups = similar_groups(G, max(1, round(len(users) / settings.generation)))
    rates_of = _rates(places, settings, models, ROUNDING if len(groups) > 1 else TOLERANCE)
    split: dict[bytes, NDArray[np.intp]] = {}
    parts = []
    for group in groups:
        hears = G[:, group]
        if (key := hears.tobytes()) not in split:
            split[key] = uniform_parts(hears, _no_costlier(rates_of, rates_of(hears), settings.uplinks))
        parts += list(group[split[key]])
    blocks: dict[bytes, Block] = {}
    for part in parts:
        hears, members = G[:, part], tuple(users[part].tolist())
        if (key := hears.tobytes()) not in blocks:
            heard = tuple(tuple(np.flatnonzero(row).tolist()) for row in hears)
            rates = rates_of(hears)
            c = rates.pieces
            shapes = [(count, c * len(known)) for count, known in zip(rates.counts, heard, strict=True)]

            def draw(rng: np.random.Generator, shapes: list[tuple[int, int]] = shapes) -> list[Tensor]:
                return [random_matrix(rng, shape) for shape in shapes]

            downlink = c * max(len(part) - len(heard[i]) for i in places)
            layout = Layout(members, c, heard, tuple(places), downlink)
            blocks[key] = draw_block(layout, draw, settings.seed, "generation", len(blocks))
        yield replace(blocks[key], users=members)


def _rates(places: Sequence[int], settings: CodeSettings, models: float, slack: float) -> Rate:
    """Return a function that gives the rates of a generation from G [H, n].

    Args:
        places: the aggregators, as rows of G.
        models: number of models that pass the server, per user.
        slack: see `Programme.rates`.
    """
    sets = None  # found for one generation, and probably violated in the next

    def rates(hears: NDArray[np.uint8]) -> Rates:
        nonlocal sets
        n = hears.shape[1]
        programme = Programme(Demand(hears), settings.uplinks, sets)
        max_pieces = min(settings.max_pieces, max(1, MOST_PIECES // n))
        best = programme.rates(places, max_pieces, models * n, slack)
        sets = programme.sets
        return best

    return rates


def _no_costlier(rates_of: Rate, whole: Rates, uplinks: Uplinks | None) -> Callable[[NDArray[np.uint8], int], bool]:
    """Return a test whether uniform parts send no more than the whole, with less work."""

    def acceptable(hears: NDArray[np.uint8], parts: int) -> bool:
        rates = rates_of(hears)
        sent, before = parts * np.array(rates.counts) / rates.pieces, np.array(whole.counts) / whole.pieces
        if uplinks is not None and uplinks.parallel:  # per relay, because models are divided to fit the rates
            no_more = bool((sent <= before * (1 + 1e-9)).all())
        else:
            cost = np.sum if uplinks is None else uplinks.seconds
            no_more = bool(cost(sent) <= cost(before) * (1 + 1e-9))
        return no_more and rates.pieces < parts * whole.pieces

    return acceptable


def allocated_code(allocation: Allocation, places: Sequence[int], seed: int) -> Block:
    """Return the code of an allocation, with the fewest pieces of which all α are multiples.

    Raises:
        CodingError: there are too many pieces, or no code was found.

    Ref: Hu et al. 2022, Section IV-B.
    """
    c = allocation.pieces
    if too_long := allocation.too_long:
        raise CodingError(f"{too_long} Use scheme=optimal, which splits users into generations, or fewer users.")
    layout = Layout(allocation.users, c, allocation.heard, tuple(places), int(c * allocation.downlink))
    return draw_block(layout, lambda rng: _allocated_uplink(allocation, c, rng), seed, allocation.z)


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
