"""The choice of aggregators: the relays, or the server, that compute the models soonest.

The choice is among two schemes for each set A of relays. In both, the server sends max_{j∈A} (K − |N_j|) messages as a
broadcast, or Σ_{j∈A} (K − |N_j|) as copies for each aggregator.
    Relays alone: all relays together send `uplink(A)` (see `rates`). The models of the u(A) users that no relay of A
        hears go up once and down once.
    The server, too: K IVs go up uncoded. The server computes all models, and u(A) of them go down. If A is empty, the
        server aggregates alone, and K models go down.

The *cost* is the time of these messages in IVs at the speed of the server's downlink; with equal links, it is the
number of IVs. A lower bound of `uplink(A)` is what a single aggregator needs, which excludes most sets A. The cost
with the server has a closed form. With `Uplinks`, `uplink(A)` is that of a plan. Schemes of other kinds can cost less.

Shapes: H active relays, T types; 2^H sets of relays, whose members are the bits of their number.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

import numpy as np

from hmtl.coding.rates import Uplinks, demand_of, over_sets
from hmtl.topology import Topology

log = logging.getLogger(__name__)

MEDIA = ("broadcast", "unicast")
SERVER = "server"
MAX_ENUMERATED = 20  # relays; up to this number, the bounds of all sets are compared
MAX_PROVEN = 10  # relays; up to this number, the search continues until the best set is proven
MAX_TRIED = 30  # sets that are tried if there are more relays
MAX_SEARCH_WORK = 10**6  # of a search in nodes, or of one in fifths of sets, times relays and types

Meter = Callable[[Sequence[int], int, float], float | None]
"""Returns the uplink's time for aggregators and a number of models; None if it is at least the last argument."""


@dataclass(frozen=True)
class AggregatorSet:
    """The nodes that aggregate.

    Attributes:
        relays: the relays among them, ascending.
        server: whether the server is one of them; it is if no relay is.
    """

    relays: tuple[int, ...]
    server: bool

    @property
    def setting(self) -> str | list[int | str]:
        """The nodes as in the setting `aggregators`: `server`, `[0, 2]`, or `[server, 0, 2]`."""
        if not self.relays:
            return SERVER
        return [SERVER, *self.relays] if self.server else list(self.relays)


@dataclass(frozen=True)
class Choice:
    """A choice of aggregators, or of relays that add, with a lower bound of the cost of any choice in its class.

    For `best_aggregators`, the class has the two schemes of the module for each set of relays, with one coding scheme
    and the loads of `hmtl.coding.loads`. Schemes outside it can cost less, such as those with more pieces, or in which
    relays divide a model.

    Attributes:
        relays: the relays.
        cost: the cost of this choice.
        bound: lower bound of the cost of all choices.
        server: whether the server aggregates beside relays, which `best_aggregators` says.
    """

    relays: tuple[int, ...]
    cost: float
    bound: float
    server: bool = False

    @property
    def nodes(self) -> AggregatorSet:
        """The aggregators."""
        return AggregatorSet(self.relays, self.server or not self.relays)

    @property
    def proven(self) -> bool:
        """Whether no other choice in the class costs less."""
        return self.cost <= self.bound * (1 + 1e-9) + 1e-9

    @property
    def excess(self) -> float:
        """The largest possible excess over the least cost, as a fraction of it."""
        if self.proven:
            return 0.0
        return self.cost / self.bound - 1 if self.bound > 0 else inf


class Search:
    """The search for the best aggregators of a network.

    Args:
        t: the topology, with at least one active relay.
        uplinks: links of the active relays; None: all links are equal, and relays send one after the other.
        medium: `broadcast`: all relays hear the server; `unicast`: each relay gets its own copy.
        meter: gives the time of the scheme's uplink.
        server: time of the uplink if the server learns all IVs.
    """

    def __init__(self, t: Topology, uplinks: Uplinks | None, medium: str, meter: Meter, server: float) -> None:
        self.demand, self.K, self.meter, self.relays = demand_of(t), len(t.present), meter, t.active
        W = np.ones(len(t.active)) if uplinks is None else np.asarray(uplinks.bandwidths)
        downlink = (uplinks and uplinks.downlink) or W.max()
        self.speed = downlink / W.max()  # of the downlink relative to the fastest relay
        self.W, self.parallel = W / W.max(), uplinks is not None and uplinks.parallel
        self.broadcast = medium == "broadcast"
        self.add = np.maximum if self.broadcast else np.add
        self.missed = self.K - t.core.sum(axis=1, dtype=np.int64)  # IVs that each relay misses [H]
        self.forwarding = float(self.speed * server)  # cost of the uplink to a server that learns all IVs
        self.lowest: tuple[float, tuple[int, ...]] = self.forwarding + self.K, ()  # cost, aggregators
        self.tried, self.most = 0, 0
        if self.parallel:
            self.alone = self.missed / (self.W.sum() - self.W).clip(min=1e-300)
        else:  # the fastest relay that hears it sends each IV that relay j misses
            fastest = (self.demand.hears * self.W).max(axis=1)
            self.alone = (self.demand.counts / fastest) @ ~self.demand.hears

    def best(self) -> Choice:
        """Return the best choice found, with a lower bound of the cost."""
        bound = self._enumerate() if self.demand.H <= MAX_ENUMERATED else self._search()
        beside, least = self._beside()
        server = not self.lowest[1]
        if (cost := self.forwarding + self._rest(beside)) < self._to_beat:
            self.lowest, server = (cost, beside), True
        cost, A = self.lowest
        return Choice(tuple(self.relays[i] for i in A), float(cost), float(min(bound, least, cost)), server)

    def _beside(self) -> tuple[tuple[int, ...], float]:
        """Return the best relays beside a server that aggregates, and a lower bound of the cost of all such sets."""
        if self.broadcast:  # all relays that miss at most as much as one of them
            sets = [tuple(np.flatnonzero(self.missed <= most).tolist()) for most in np.unique(self.missed)]
            A = min(sets, key=self._rest)
            return A, self.forwarding + self._rest(A)
        A, least = self._cover(model=1.0, alone=0.0, gap=0.0)
        return A, self.forwarding + ceil(least - 1e-6)

    def _rest(self, A: Sequence[int]) -> int:
        """Return the cost of the downlink, with one model for each user that none of these relays hears."""
        return int(self.add.reduce(self.missed[list(A)])) + self.demand.avoiding(A)

    def _enumerate(self) -> float:
        """Try sets in ascending order of their bounds, and return a lower bound of all costs."""
        H = self.demand.H
        bounds = np.asarray(self._bound(over_sets, self.demand.within[::-1]))
        bounds[0] = inf  # the empty set is the server
        order = np.flatnonzero(bounds < self.lowest[0])
        if H > MAX_PROVEN and len(order) > MAX_TRIED:
            order = order[bounds[order] <= np.partition(bounds[order], MAX_TRIED)[MAX_TRIED]]
            self._try(tuple(range(H)))
        self.most = len(order) if H <= MAX_PROVEN else min(len(order), MAX_TRIED) + 1
        size = over_sets(np.ones(H, np.int8), np.add, 0)[order]
        order = order[np.lexsort((order, size, bounds[order].round(9)))]
        for tried, number in enumerate(order.tolist()):
            if bounds[number] >= self._to_beat:
                break
            if H > MAX_PROVEN and tried == MAX_TRIED:
                return float(bounds[number])
            self._try(tuple(i for i in range(H) if number >> i & 1))
        return self.lowest[0]

    def _search(self) -> float:
        """Try the set with the least bound, its neighbors and all relays; return a lower bound of all costs."""

        def bound(A: tuple[int, ...]) -> float:
            members = list(A)
            return float(self._bound(lambda values, add, _: add.reduce(values[members]), self.demand.avoiding(A)))

        model = 1 + (0 if self.parallel else self.speed)  # lower bound of the cost of a model that passes the server
        cover, least = self._cover(model, self.speed, gap=1e-3)
        H = self.demand.H
        near = [tuple(sorted(set(cover) ^ {i})) for i in range(H)]
        near = sorted((A for A in near if A), key=lambda A: (bound(A), len(A), A))
        tried = min(MAX_TRIED // 4, MAX_SEARCH_WORK // (5 * self.demand.hears.size))
        self.most = tried + 2
        for A in (cover, *near[:tried], tuple(range(H))):
            if bound(A) < self.lowest[0]:
                self._try(A)
        return least

    @property
    def _to_beat(self) -> float:
        """The cost that a better choice has to be below: the least so far, minus a tolerance."""
        return self.lowest[0] * (1 - 1e-12) - 1e-9

    def _try(self, A: tuple[int, ...]) -> None:
        self.tried += 1
        log.debug("choices of aggregators tried: %d of at most %d", self.tried, self.most)
        u, rest = self.demand.avoiding(A), self._rest(A)
        uplink = self.meter(A, u, (self._to_beat - rest) / self.speed)
        if uplink is not None and self.speed * uplink + rest < self._to_beat:
            self.lowest = self.speed * uplink + rest, A

    def _bound(self, over: Callable[..., Any], u: Any) -> Any:
        """Return a lower bound of the cost of one set, or of all sets [2^H].

        `over` combines the values of members as `over_sets` does, and u users are heard by no member.
        """
        uplink = over(self.alone, np.maximum, 0.0)
        if self.parallel:
            uplink = np.maximum(uplink, (over(self.missed, np.maximum, 0) + u) / self.W.sum())
        else:
            uplink = uplink + u / over(self.W, np.maximum, 1e-300)
        return self.speed * uplink + over(self.missed, self.add, 0) + u

    def _cover(self, model: float, alone: float, gap: float) -> tuple[tuple[int, ...], float]:
        """Return the set with the least bound, and a lower bound of all costs, by an integer program.

        Its variables are: whether each relay aggregates [H], whether no aggregator hears each type [T], the largest
        number of IVs that an aggregator misses, and the time that the slowest aggregator takes alone.

        Args:
            model: cost of the model of a user that no aggregator hears.
            alone: cost of a unit of the last variable.
            gap: relative distance from the least bound that is accepted.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import block_array, csr_array, eye_array

        H, T = self.demand.H, len(self.demand.counts)
        each_relay = np.zeros(H) if self.broadcast else self.missed
        cost = np.r_[each_relay, model * self.demand.counts, float(self.broadcast), alone]
        each, one = eye_array(H), np.ones((H, 1))
        constraints = block_array(
            [
                [csr_array(self.demand.hears.astype(float)), eye_array(T), None, None],
                [-each * self.missed, None, one, None],
                [-each * self.alone, None, None, one],
                [np.ones((1, H)), None, None, None],
            ]
        )
        solution = milp(
            cost,
            constraints=LinearConstraint(constraints.tocsr(), np.repeat([1.0, 0.0, 1.0], [T, 2 * H, 1]), inf),
            bounds=Bounds(np.r_[np.zeros(H + T), self.missed.min(), self.alone.min()], np.r_[np.ones(H + T), inf, inf]),
            integrality=np.r_[np.ones(H), np.zeros(T + 2)],
            options={"node_limit": max(1, min(200, MAX_SEARCH_WORK // self.demand.hears.size)), "mip_rel_gap": gap},
        )
        if solution.x is None:
            return tuple(range(H)), float(cost[-2:] @ [self.missed.min(), self.alone.min()])
        return tuple(np.flatnonzero(solution.x[:H] > 0.5).tolist()), float(solution.mip_dual_bound)
