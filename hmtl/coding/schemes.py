"""The schemes by name: what each of them sends, and how. Nothing else compares their names."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from hmtl.coding.aggregators import MEDIA, Choice, Meter, Search, aggregators_of
from hmtl.coding.allocation import Allocation, Split, allocate, cheapest, even
from hmtl.coding.block import Block
from hmtl.coding.formulas import Loads, allocated_loads, bounds_for, optimal_loads, uncoded_loads, unheard
from hmtl.coding.generations import check_sizes
from hmtl.coding.optimal import Demand, Uplinks
from hmtl.coding.plan import Plan, allocated_code, optimal_code
from hmtl.coding.programme import Programme
from hmtl.errors import CodingError
from hmtl.topology import Topology

log = logging.getLogger(__name__)

Aggregators = str | Sequence[int]
"""Who learns all IVs: `all` active relays, the `server`, `auto` for those that take the least time, or relays."""


@dataclass(frozen=True)
class Scheme:
    """A way to bring all IVs to where the global update runs.

    Attributes:
        name: as users write it.
        loads: of a topology, aggregators (one at least) and the uplinks of its active relays.
        meter: of a topology and uplinks, how long the uplink takes for aggregators.
        code: the blocks of a plan, of topology, aggregators (one at least), seed, max_pieces, generation and
            uplinks. None: IVs go to the server as they are.
        obstacle: of a topology and aggregators, why no plan is made for them; empty where one is.
    """

    name: str
    loads: Callable[[Topology, Sequence[int], Uplinks | None], Loads]
    meter: Callable[[Topology, Uplinks | None], Meter]
    code: Callable[[Topology, Sequence[int], int, int, int, Uplinks | None], Iterable[Block]] | None
    obstacle: Callable[[Topology, Sequence[int]], str] = lambda t, A: ""


def _seconds(t: Topology, load: Loads, uplinks: Uplinks | None) -> float:
    """The time of an uplink in IVs at the speed of the fastest relay."""
    if uplinks is None:
        return load.uplink
    return uplinks.seconds(np.array([load.by_relay[i] for i in t.active])) * max(uplinks.bandwidths)


def _by_allocation(name: str, split: Split) -> Scheme:
    """The scheme of Hu et al. 2022, Section IV, with a choice of α; uplinks and settings mean nothing to it."""

    @lru_cache(1)  # who asks for loads asks next whether they can be sent
    def parts(t: Topology, A: tuple[int, ...]) -> tuple[Allocation, ...]:
        return allocate(t, split, A)

    def found(t: Topology, A: Sequence[int], uplinks: Uplinks | None) -> Loads:
        return allocated_loads(t, A, parts(t, tuple(A)), uplinks)

    def meter(t: Topology, uplinks: Uplinks | None) -> Meter:
        return lambda places, models, stop: _seconds(t, found(t, [t.active[i] for i in places], uplinks), uplinks)

    def code(t: Topology, A: Sequence[int], seed: int, _: int, __: int, ___: Uplinks | None) -> Iterable[Block]:
        places = [t.active.index(i) for i in A]
        return (allocated_code(part, places, seed) for part in parts(t, tuple(A)))

    def obstacle(t: Topology, A: Sequence[int]) -> str:
        return next((part.too_long for part in parts(t, tuple(A)) if part.too_long), "")

    return Scheme(name, found, meter, code, obstacle)


def _optimal_meter(t: Topology, uplinks: Uplinks | None) -> Meter:
    return Programme(Demand(t.core), uplinks).time


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            Scheme(
                "uncoded",
                lambda t, A, uplinks: uncoded_loads(t, uplinks),
                lambda t, uplinks: lambda A, models, stop: None,
                None,
            ),
            Scheme("optimal", optimal_loads, _optimal_meter, optimal_code),
            _by_allocation("paper", cheapest),
            _by_allocation("equal", even),
        )
    }
)
CODED_SCHEMES = tuple(scheme.name for scheme in SCHEMES.values() if scheme.code)


def scheme_of(name: str, among: Collection[str] = tuple(SCHEMES)) -> Scheme:
    """The scheme of that name.

    Raises:
        CodingError: it is not `among` those to choose from.
    """
    if name not in among:
        raise CodingError(f"scheme={name} is unknown: choose one of {', '.join(among)}.")
    return SCHEMES[name]


def best_aggregators(
    t: Topology, scheme: str = "optimal", uplinks: Uplinks | None = None, medium: str = "broadcast"
) -> Choice:
    """The relays to aggregate, or the server, such that a round takes the least time between relays and server.

    Proven for up to 10 active relays; beyond, a search that tells how much better another choice can be.

    Args:
        t: the topology.
        scheme: that brings them the IVs.
        uplinks: of the active relays; None: all links are alike, and relays send one after the other.
        medium: whether all relays hear what the server sends, `broadcast`, or each gets its own copy, `unicast`.

    Raises:
        CodingError: no such scheme or medium.
    """
    if medium not in MEDIA:
        raise CodingError(f"medium={medium} is unknown: choose one of {', '.join(MEDIA)}.")
    chosen = scheme_of(scheme)
    server = _seconds(t, uncoded_loads(t, uplinks), uplinks)
    if not t.active:
        return Choice((), 0.0, 0.0)
    return Search(t, uplinks, medium, chosen.meter(t, uplinks)).best(server)


def resolve(
    t: Topology,
    aggregators: Aggregators,
    scheme: str = "optimal",
    uplinks: Uplinks | None = None,
    medium: str = "broadcast",
) -> tuple[int, ...]:
    """The relays that a choice of aggregators means, ascending; none for the server.

    Raises:
        CodingError: another word, or relays that are not there.
    """
    return aggregators_of(t, aggregators, lambda: best_aggregators(t, scheme, uplinks, medium))


def loads(
    t: Topology,
    scheme: str = "optimal",
    uplinks: Uplinks | None = None,
    *,
    aggregators: Aggregators = "all",
    medium: str = "broadcast",
) -> Loads:
    """The loads of a scheme.

    Args:
        t: the topology.
        scheme: `uncoded`, where each IV and each model passes the server once; `optimal`, which no scheme with the same
            aggregators falls below; `paper` or `equal`, see `make_plan`.
        uplinks: of the active relays, for which `optimal` then takes the least time instead of the least load, with
            whole pieces as in a plan, and `uncoded` the relays that forward soonest; None: all alike.
        aggregators: who learns all IVs.
        medium: for which `auto` chooses them.

    Raises:
        CodingError: no such scheme, or no such aggregators.

    Ref: Hu et al. 2022, Theorem 1, eqs. (33a) and (33b).
    """
    chosen = scheme_of(scheme)
    A = resolve(t, aggregators, scheme, uplinks, medium) if chosen.code else ()
    if A:
        return chosen.loads(t, A, uplinks)
    coded_for_nobody = chosen.code and not t.active
    return Loads.of(t, [], 0, 0) if coded_for_nobody else uncoded_loads(t, uplinks)


def bounds(t: Topology, *, aggregators: Aggregators = "all", medium: str = "broadcast") -> Loads:
    """Loads that no scheme with these aggregators can fall below, in closed form; 0 where one relay alone hears all.

    The uplink of `loads(t, "optimal")` is the larger, and exact, bound.

    Args:
        aggregators: who learns all IVs.
        medium: for which `auto` chooses them.

    Ref: Hu et al. 2022, Theorem 2, eqs. (35a) and (35b), over the relays that hear somebody.
    """
    return bounds_for(t, resolve(t, aggregators, medium=medium))


def obstacle(t: Topology, scheme: str, aggregators: Aggregators = "all") -> str:
    """Why a coded scheme, whose loads are known, cannot be carried out, see `loads`; empty where it can.

    Raises:
        CodingError: no such coded scheme, or no such aggregators.
    """
    A = resolve(t, aggregators, scheme)
    chosen = scheme_of(scheme, CODED_SCHEMES)
    return chosen.obstacle(t, A) if A else ""


def uplink_bound(t: Topology, uplinks: Uplinks | None = None, *, aggregators: Aggregators = "all") -> float:
    """What the uplink of any scheme with these aggregators takes at least: the linear programme over all cuts.

    Args:
        t: the topology.
        uplinks: of the active relays; None: all alike and shared, and the bound is that of `Demand.optimum`.
        aggregators: who learns all IVs.

    Returns:
        A time, in IVs at the speed of the fastest relay; models that pass the server are in it.
    """
    A = resolve(t, aggregators, uplinks=uplinks)
    if not A:
        return _seconds(t, uncoded_loads(t, uplinks), uplinks)
    demand, places = Demand(t.core), [t.active.index(i) for i in A]
    if uplinks is None and len(A) == len(t.active):
        return float(demand.optimum()[0])
    return Programme(demand, uplinks).bound(places, unheard(t, A))


def make_plan(
    t: Topology,
    scheme: str = "optimal",
    seed: int = 0,
    *,
    max_pieces: int = 8,
    generation: int = 200,
    uplinks: Uplinks | None = None,
    aggregators: Aggregators = "all",
    medium: str = "broadcast",
) -> Plan:
    """The plan of a scheme, every aggregator's decoding proven; equal arguments give equal plans.

    Args:
        t: the topology.
        scheme: `optimal`, the fewest messages, to which alone `max_pieces`, `generation` and `uplinks` matter; or the
            paper's, with the cheapest allocation, `paper`, or an even one, `equal`.
        seed: the run's seed.
        max_pieces: the most pieces that an IV is cut into. 1 is the cheapest to compute, and costs less than one IV;
            where all relays aggregate, the optimum needs H − 1 at most.
        generation: about how many users are coded together, where there are at least one and a half times as many.
            Fewer are, where they can be dealt into parts that are alike for no more load.
        uplinks: of the active relays, where they differ or work side by side.
        aggregators: who learns all IVs.
        medium: for which `auto` chooses them; the plan serves both.

    Raises:
        CodingError: no such coded scheme or aggregators, more pieces than can be inverted, or no draw lets
            every aggregator decode.

    Ref: Hu et al. 2022, Section IV-B.
    """
    check_sizes(max_pieces, generation)
    code = scheme_of(scheme, CODED_SCHEMES).code
    assert code is not None
    A = resolve(t, aggregators, scheme, uplinks, medium)
    blocks, done = [], 0
    for block in code(t, A, seed, max_pieces, generation, uplinks) if A else ():
        blocks.append(block)
        done += len(block.users)
        log.debug("a code for %d of %d users", done, len(t.present))
    return Plan(t, scheme, seed, A, uplinks, tuple(blocks))
