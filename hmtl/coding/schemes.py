"""The table of schemes, and the functions that take a scheme by name."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from types import MappingProxyType

import numpy as np

from hmtl.coding.aggregators import MEDIA, SERVER, AggregatorSet, Choice, Search
from hmtl.coding.allocation import AllocationRule, allocate, cheapest, even
from hmtl.coding.codes import CodeSettings, allocated_codes, optimal_code, server_code
from hmtl.coding.formulas import Loads, allocated_loads, missed, optimal_loads, server_loads
from hmtl.coding.plan import Block, Plan, block_of
from hmtl.coding.rates import Demand, Program, Uplinks, demand_of
from hmtl.errors import CodingError
from hmtl.io.described import Described
from hmtl.topology import Topology

log = logging.getLogger(__name__)

Aggregators = str | Sequence[int | str]
"""The nodes that learn all IVs: `all` active relays, the `server`, `auto` for the least time, or a list of them:
numbers or names of relays, and `server` if it is one of them."""


@dataclass(frozen=True, repr=False)
class Scheme(Described):
    """A way to bring all IVs to relays that aggregate, unless the server learns all IVs, too.

    One of your own has at least a name and a code; `make_plan` checks its blocks, which `hmtl.coding.block_of` makes.

    Attributes:
        name: the name in settings and messages.
        loads: returns the loads for a topology, aggregators (at least one) and the uplinks of its active relays. None:
            those of its plan.
        code: returns the blocks of a plan for a topology, aggregators (at least one) and settings. None: IVs go to the
            server without coding.
        split: the choice of α in the schemes of Hu et al. 2022, Section IV; a plan may need too many pieces for it.
    """

    _shown = ("name",)
    name: str
    loads: Callable[[Topology, tuple[int, ...], Uplinks | None], Loads] | None = None
    code: Callable[[Topology, Sequence[int], CodeSettings], Iterable[Block]] | None = None
    split: AllocationRule | None = None

    def loads_of(self, t: Topology, A: Sequence[int], uplinks: Uplinks | None) -> Loads:
        """Return the loads for a topology, aggregators and the uplinks of its active relays."""
        if self.loads is not None:
            return self.loads(t, tuple(A), uplinks)
        return make_plan(t, self, uplinks=uplinks, aggregators=[*A]).loads


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            Scheme("uncoded", lambda t, A, uplinks: server_loads(t, (), uplinks)),
            Scheme("optimal", optimal_loads, optimal_code),
            Scheme("paper", partial(allocated_loads, cheapest), partial(allocated_codes, cheapest), cheapest),
            Scheme("equal", partial(allocated_loads, even), partial(allocated_codes, even), even),
        )
    }
)
CODED_SCHEMES = tuple(scheme.name for scheme in SCHEMES.values() if scheme.code)


def _seconds(t: Topology, load: Loads, uplinks: Uplinks | None) -> float:
    """Return the time of an uplink in IVs at the speed of the fastest relay."""
    if uplinks is None:
        return load.uplink
    return uplinks.seconds(np.array([load.by_relay[i] for i in t.active])) * max(uplinks.bandwidths)


def scheme_of(name: str | Scheme, among: Collection[str] = tuple(SCHEMES)) -> Scheme:
    """Return the scheme of that name; raise CodingError if it is not `among` the choices."""
    if isinstance(name, Scheme):
        return name
    if name not in among:
        raise CodingError(f"scheme={name} is unknown: choose one of {', '.join(among)}.")
    return SCHEMES[name]


def best_aggregators(
    t: Topology, scheme: str | Scheme = "optimal", uplinks: Uplinks | None = None, medium: str = "broadcast"
) -> Choice:
    """Return the aggregators with the least time between relays and server.

    The choice is among the server and all sets of relays, with and without the server. Without it, all relays of a set
    learn all IVs by the scheme, and the models of users that none of them hears pass the server uncoded. With it, all
    IVs go to the server uncoded, which sends the relays of the set combinations, and the other users their models. For
    up to 10 active relays, the result is proven optimal in this class; for more, it is that of a search, with a lower
    bound for the class. The times are those of `loads`. Schemes outside the class can take less time (see
    docs/theory/aggregators.md).

    Args:
        t: the topology.
        scheme: the scheme by which the aggregators learn the IVs.
        uplinks: links of the active relays; None: all links are equal, and relays send one after the other.
        medium: `broadcast` if all relays hear the server, `unicast` if each gets its own copy.

    Raises:
        CodingError: the scheme or the medium is unknown.
    """
    if medium not in MEDIA:
        raise CodingError(f"medium={medium} is unknown: choose one of {', '.join(MEDIA)}.")
    chosen = scheme_of(scheme, CODED_SCHEMES)
    if not t.active:
        return Choice((), 0.0, 0.0, server=True)

    program = Program(demand_of(t), uplinks)

    def meter(places: Sequence[int], models: int, stop: float) -> float | None:
        if scheme == "optimal" and (uplinks is None or program.tabulated):  # in pieces as small as necessary
            solution = program.least(places, models, stop)
            if solution is None or uplinks is None:
                return solution and solution[0]
        return _seconds(t, chosen.loads_of(t, tuple(t.active[i] for i in places), uplinks), uplinks)

    return Search(t, uplinks, medium, meter, _seconds(t, server_loads(t, (), uplinks), uplinks)).best()


def resolve(
    t: Topology,
    aggregators: Aggregators,
    scheme: str | Scheme = "optimal",
    uplinks: Uplinks | None = None,
    medium: str = "broadcast",
) -> AggregatorSet:
    """Return the nodes that a choice of aggregators denotes.

    Relays that are named but inactive are ignored. If no relay is left, the server aggregates.

    Raises:
        CodingError: the choice is another word, or the list names other nodes, a node twice, or none.
    """
    if isinstance(aggregators, str):
        if aggregators not in ("auto", "all", "server"):
            raise CodingError(
                f"aggregators={aggregators} is unknown: choose auto, all, server, or nodes such as [0,2] or [server,0]."
            )
        if aggregators == "auto":
            return best_aggregators(t, scheme, uplinks, medium).nodes
        relays = t.active if aggregators == "all" else ()
        return AggregatorSet(relays, not relays)
    given = t.names.numbers(aggregators)
    server = SERVER in given
    numbers = {i for i in given if isinstance(i, int | np.integer) and not isinstance(i, bool) and 0 <= i < t.H}
    if not given or len(numbers) + server < len(given):
        raise CodingError(
            f"aggregators=[{','.join(map(str, aggregators))}]: the list must name each node once, relays from 0 to "
            f"{t.H - 1} {'or by name, ' * bool(t.names.relays)}or server, and at least one. Change it, or set "
            "aggregators=auto."
        )
    relays = tuple(i for i in sorted(map(int, numbers)) if i in t.active)
    return AggregatorSet(relays, server or not relays)


def loads(
    t: Topology,
    scheme: str | Scheme = "optimal",
    uplinks: Uplinks | None = None,
    *,
    aggregators: Aggregators = "all",
    medium: str = "broadcast",
) -> Loads:
    """Return the loads of a scheme.

    Args:
        t: the topology.
        scheme: `uncoded`: each IV and each model passes the server once; `optimal`: the smallest loads with which these
            aggregators learn all IVs, plus one message up and one down for each model of a user that no aggregator
            hears; `paper` or `equal`: see `make_plan`. If the server aggregates, all coded schemes have the same loads.
        uplinks: rates of the active relays. With them, `optimal` takes the least time in whole pieces, as in a plan,
            and `uncoded` chooses the relays that forward soonest. None: all links are equal.
        aggregators: the nodes that learn all IVs.
        medium: for which `auto` chooses the aggregators.

    Raises:
        CodingError: the scheme is unknown, or the aggregators are invalid.

    Ref: Hu et al. 2022, Theorem 1, eqs. (33a) and (33b).
    """
    chosen = scheme_of(scheme)
    if chosen.code:
        A = resolve(t, aggregators, scheme, uplinks, medium)
        if A.server:
            return server_loads(t, A.relays, uplinks)
        return chosen.loads_of(t, A.relays, uplinks)
    return chosen.loads_of(t, (), uplinks)


def bounds(t: Topology, *, aggregators: Aggregators = "all", medium: str = "broadcast") -> Loads:
    """Return lower bounds, in closed form, of any scheme by which these aggregators learn all IVs.

    If all active relays aggregate, the bounds are those of the paper, and 0 for a single relay. If some do, each of
    them has to receive what it misses. Models that pass the server are not counted, because another scheme might not
    send them. If the server aggregates, K IVs go up. If it does so alone, K models go down in any scheme in which
    relays know of the models only what the server sends, and the models may take any values.

    If uplinks are equal, `uplink_bound` is at least as large as the uplink here.

    Args:
        t: the topology.
        aggregators: the nodes that learn all IVs.
        medium: for which `auto` chooses the aggregators.

    Ref: Hu et al. 2022, Theorem 2, eqs. (35a) and (35b), over the active relays.
    """
    A, K = resolve(t, aggregators, medium=medium), float(len(t.present))
    if not A.relays:
        return Loads(K, K, unicast=K)
    misses = missed(t, A.relays)
    most, total = int(misses.max()), int(misses.sum())
    uplink = Fraction(total, max(1, len(A.relays) - 1)) if len(t.active) == len(A.relays) else most
    if A.server:
        uplink = Fraction(K)
    return Loads(float(uplink), float(most), unicast=float(total))


def obstacle(t: Topology, scheme: str | Scheme, aggregators: Aggregators = "all") -> str:
    """Return the reason why a coded scheme has loads but no plan; empty if it has a plan.

    Raises:
        CodingError: the coded scheme is unknown, or the aggregators are invalid.
    """
    A, split = resolve(t, aggregators, scheme), scheme_of(scheme, CODED_SCHEMES).split
    parts = allocate(t, split, A.relays) if split and not A.server else ()
    return next((part.too_long for part in parts if part.too_long), "")


def uplink_bound(t: Topology, uplinks: Uplinks | None = None, *, aggregators: Aggregators = "all") -> float:
    """Return a lower bound, from all cuts, of the uplink's time in any scheme by which these aggregators learn all IVs.

    Random codes come as close as desired to the bound over all cuts. Models that pass the server are not counted.

    Args:
        t: the topology.
        uplinks: links of the active relays; None: equal and shared, which gives the bound of `Demand.optimum`.
        aggregators: the nodes that learn all IVs.

    Returns:
        A time in IVs at the speed of the fastest relay.
    """
    A = resolve(t, aggregators, uplinks=uplinks)
    if not A.server:
        return Program(demand_of(t), uplinks).bound([t.active.index(i) for i in A.relays])
    if uplinks is not None:
        uplinks = replace(uplinks, bandwidths=(*uplinks.bandwidths, max(uplinks.bandwidths, default=1.0)))
    demand = Demand(np.vstack([t.core, np.zeros_like(t.G[:1, list(t.present)])]))  # the server as a relay without users
    return Program(demand, uplinks).bound([len(t.active)])


def make_plan(
    t: Topology,
    scheme: str | Scheme = "optimal",
    seed: int = 0,
    *,
    max_pieces: int = 8,
    generation: int = 200,
    uplinks: Uplinks | None = None,
    aggregators: Aggregators = "all",
    medium: str = "broadcast",
) -> Plan:
    """Return a plan with which every aggregator can decode; equal arguments give equal plans.

    If the server is one of the aggregators, all IVs go to it uncoded, whatever the scheme, and it codes them for the
    other aggregators.

    Args:
        t: the topology.
        scheme: `optimal`, with which the aggregators learn all IVs from the fewest messages in at most `max_pieces`
            pieces, and which uses all arguments below; or the paper's scheme with the cheapest allocation, `paper`, or
            equal shares, `equal`.
        seed: seed of the run.
        max_pieces: the largest number of pieces of an IV. 1 is the cheapest to compute. If all relays aggregate, 1
            costs less than one IV on the uplink, and H − 1 allows the optimum; with helpers, 1 can cost several IVs.
        generation: about how many users are coded together, if there are at least 1.5 times as many. Fewer users are
            coded together if they can be split into uniform parts without a larger load.
        uplinks: links of the active relays, if they differ or work in parallel.
        aggregators: the nodes that learn all IVs.
        medium: for which `auto` chooses the aggregators; the plan serves both.

    Raises:
        CodingError: the coded scheme is unknown, a setting is invalid, there are too many pieces to code, no code was
            found, or the blocks of a scheme of your own do not code each user that an aggregator misses once.

    Ref: Hu et al. 2022, Section IV-B.
    """
    settings = CodeSettings(seed, max_pieces, generation, uplinks)
    chosen = scheme_of(scheme, CODED_SCHEMES)
    if chosen.code is None:
        raise CodingError(f"scheme={chosen.name} has no code, so that it has no plan. Give it a code.")
    A = resolve(t, aggregators, scheme, uplinks, medium)
    own = not A.server and SCHEMES.get(chosen.name) is not chosen
    blocks, coded = list[Block](), 0
    for block in (server_code if A.server else chosen.code)(t, A.relays, settings):
        if own and not isinstance(block, Block):
            raise CodingError(f"scheme={chosen.name} yields a {type(block).__name__}. Yield what block_of returns.")
        if own:  # its decoders are made here, because only those of a checked code decode
            block = block_of(t, A.relays, block.users, block.uplink, block.downlink, block.pieces)
        blocks.append(block)
        coded += len(block.users)
        log.debug("a code for %d of %d users", coded, len(t.present))
    if own:
        times = Counter(k for block in blocks for k in block.users)
        missed_by_some = (k for k in t.present if not t.G[list(A.relays), k].all())
        if wrong := [k for k in {*times, *missed_by_some} if times[k] != 1]:
            raise CodingError(
                f"scheme={chosen.name} codes {t.names.of_users(wrong[:1])} {times[wrong[0]]} times. Each user that an "
                "aggregator misses must be in one block."
            )
    return Plan(t, chosen.name, seed, A.relays, uplinks, tuple(blocks), A.server)
