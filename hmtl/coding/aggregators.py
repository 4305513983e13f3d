"""The choice of aggregators: relays, or the server, that compute the models soonest.

Let relays A aggregate. All relays send `uplink(A)` (see `rates`). The server sends max_{j∈A} (K − |N_j|) messages as a
broadcast, or Σ_{j∈A} (K − |N_j|) as copies for each aggregator. The models of the u(A) users that no relay of A hears
go up once and down once. If the server aggregates, K IVs go up and K models down.

The *cost* is the time of these messages in IVs at the speed of the server's downlink; with equal links, it is the
number of IVs. A lower bound of `uplink(A)` is what a single aggregator needs, which excludes most sets A.

Shapes: H active relays, T types; 2^H sets of relays, whose members are the bits of their number.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import inf

import numpy as np
from numpy.typing import NDArray

from hmtl.coding.omniscience import Demand, Uplinks
from hmtl.coding.rates import over_sets, users_within
from hmtl.errors import CodingError
from hmtl.topology import Topology

log = logging.getLogger(__name__)

MEDIA = ("broadcast", "unicast")
MOST_ENUMERATED = 20  # relays up to which the bounds of all sets are compared
MOST_PROVEN = 10  # relays up to which the search continues until the best set is proven
MOST_TRIED = 30  # sets that are tried for more relays

Meter = Callable[[Sequence[int], int, float], float | None]
"""Gives the time of the uplink for aggregators and a number of models; None if it is at least the last argument."""


@dataclass(frozen=True)
class Choice:
    """A choice of aggregators.

    Attributes:
        relays: the aggregators; empty if the server aggregates.
        cost: of a round between relays and server, see the module.
        bound: lower bound of the cost of all choices with this scheme.
    """

    relays: tuple[int, ...]
    cost: float
    bound: float

    @property
    def proven(self) -> bool:
        """Whether no other choice costs less."""
        return self.cost <= self.bound * (1 + 1e-9) + 1e-9


def aggregators_of(t: Topology, choice: str | Sequence[int], best: Callable[[], Choice]) -> tuple[int, ...]:
    """Return the relays that aggregate; empty if the server does.

    Args:
        t: the topology.
        choice: `all` active relays; the `server`; `auto`, the `best`; or numbers of relays, where inactive ones are
            ignored.
        best: returns the best choice.

    Raises:
        CodingError: the choice is another word, or the numbers are not those of relays.
    """
    if isinstance(choice, str):
        if choice not in ("auto", "all", "server"):
            raise CodingError(f"aggregators={choice} is unknown: choose auto, all, server, or relays such as [0,2].")
        if choice == "auto":
            return best().relays
        return t.active if choice == "all" else ()
    given = list(choice)
    numbers = all(isinstance(i, int | np.integer) and not isinstance(i, bool) and 0 <= i < t.H for i in given)
    if not given or not numbers or len(set(given)) < len(given):
        raise CodingError(
            f"aggregators={given} must be distinct relays from 0 to {t.H - 1}, at least one. Change it, or set "
            "aggregators=server."
        )
    return tuple(i for i in sorted(map(int, given)) if i in t.active)


class Search:
    """The search for the best aggregators of a network.

    Args:
        t: the topology, with at least one active relay.
        uplinks: of the active relays; None: all links are equal, and relays send one after the other.
        medium: `broadcast`: all relays hear the server; `unicast`: each relay gets its own copy.
        meter: gives the time of the scheme's uplink.
    """

    def __init__(self, t: Topology, uplinks: Uplinks | None, medium: str, meter: Meter) -> None:
        self.demand, self.K, self.meter, self.relays = Demand(t.core), len(t.present), meter, t.active
        W = np.ones(len(t.active)) if uplinks is None else np.asarray(uplinks.bandwidths)
        self.speed = (
            (uplinks and uplinks.downlink) or W.max()
        ) / W.max()  # of the downlink relative to the fastest relay
        self.W, self.parallel = W / W.max(), uplinks is not None and uplinks.parallel
        self.add = np.maximum if medium == "broadcast" else np.add
        self.missed = self.K - t.core.sum(axis=1, dtype=np.int64)  # IVs that each relay misses [H]
        self.found: tuple[float, tuple[int, ...]] = inf, ()  # the least cost so far, and its aggregators
        self.tried = 0
        if self.parallel:
            self.alone = self.missed / (self.W.sum() - self.W).clip(min=1e-300)
        else:  # the fastest relay that hears it sends each IV that relay j misses
            fastest = (self.demand.hears * self.W).max(axis=1)
            self.alone = (self.demand.counts / fastest) @ ~self.demand.hears

    def best(self, server: float) -> Choice:
        """Return the best choice found, with a lower bound of the cost.

        Args:
            server: time of the uplink if the server aggregates.
        """
        H = self.demand.H
        self.found = float(self.speed * server) + self.K, ()
        everyone = tuple(range(H))
        if H <= MOST_ENUMERATED:
            bounds = self._bounds()
            order = np.flatnonzero(bounds < self.found[0])
            if H > MOST_PROVEN and len(order) > MOST_TRIED:
                least = np.partition(bounds[order], MOST_TRIED)[MOST_TRIED]
                order = order[bounds[order] <= least]
                self._try(everyone)
            size = over_sets(np.ones(H, np.int8), np.add, 0)[order]
            order = order[np.lexsort((order, size, bounds[order].round(9)))]
            for tried, number in enumerate(order.tolist()):
                if bounds[number] >= self.found[0] * (1 - 1e-12) - 1e-9:
                    break
                if H > MOST_PROVEN and tried == MOST_TRIED:
                    return self._choice(float(bounds[number]))
                self._try(tuple(i for i in range(H) if number >> i & 1))
            return self._choice(self.found[0])
        cover, least = self._cover()
        near = [tuple(sorted(set(cover) ^ {i})) for i in range(H)]
        near = sorted((A for A in near if A), key=lambda A: (self._bound(A), len(A), A))
        for A in chain([cover], near[: MOST_TRIED // 4], [everyone]):
            if self._bound(A) < self.found[0]:
                self._try(A)
        return self._choice(least)

    def _choice(self, bound: float) -> Choice:
        cost, A = self.found
        return Choice(tuple(self.relays[i] for i in A), float(cost), float(min(bound, cost)))

    def _try(self, A: tuple[int, ...]) -> None:
        self.tried += 1
        log.debug("choices of aggregators tried: %d", self.tried)
        u = self.demand.avoiding(A)
        rest = self._down(A) + u
        uplink = self.meter(A, u, (self.found[0] * (1 - 1e-12) - 1e-9 - rest) / self.speed)
        if uplink is not None and self.speed * uplink + rest < self.found[0] * (1 - 1e-12) - 1e-9:
            self.found = self.speed * uplink + rest, A

    def _down(self, A: Sequence[int]) -> int:
        return int(self.add.reduce(self.missed[list(A)]))

    def _bound(self, A: Sequence[int]) -> float:
        """Return a lower bound of the cost of A."""
        u, members = self.demand.avoiding(A), list(A)
        uplink = float(self.alone[members].max())
        if self.parallel:
            uplink = max(uplink, float(self.missed[members].max() + u) / float(self.W.sum()))
        else:
            uplink += u / float(self.W[members].max())
        return float(self.speed * uplink + self._down(A) + u)

    def _bounds(self) -> NDArray[np.float64]:
        """Return `_bound` of every set [2^H], infinite for the empty set."""
        u = users_within(self.demand)[::-1]
        uplink = over_sets(self.alone, np.maximum, 0.0)
        if self.parallel:
            uplink = np.maximum(uplink, (over_sets(self.missed, np.maximum, 0) + u) / self.W.sum())
        else:
            uplink += u / over_sets(self.W, np.maximum, 1e-300)
        bounds = np.asarray(self.speed * uplink + over_sets(self.missed, self.add, 0) + u)
        bounds[0] = inf
        return bounds

    def _cover(self) -> tuple[tuple[int, ...], float]:
        """Return the set with the least bound, and a lower bound of all costs.

        An integer programme. The variables are: whether each relay aggregates [H], whether no aggregator hears each
        type [T], the largest number of IVs that an aggregator misses, and the time that the slowest aggregator takes
        alone.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array, csr_array, eye_array, hstack

        H, T = self.demand.H, len(self.demand.counts)
        per_model = 1 + (
            0 if self.parallel else self.speed
        )  # lower bound of the cost of a model that passes the server
        broadcast = self.add is np.maximum
        cost = np.r_[
            np.zeros(H) if broadcast else self.missed, per_model * self.demand.counts, float(broadcast), self.speed
        ]
        heard = hstack([csr_array(self.demand.hears.astype(float)), eye_array(T), coo_array((T, 2))])
        rows = np.arange(H)
        most, slowest = (
            hstack([coo_array((-value.astype(float), (rows, rows))), coo_array((H, T)), _column(H, place)])
            for place, value in enumerate((self.missed, self.alone))
        )
        some = csr_array(np.r_[np.ones(H), np.zeros(T + 2)][None])
        solution = milp(
            cost,
            constraints=[
                LinearConstraint(heard.tocsr(), 1, inf),
                *(LinearConstraint(part.tocsr(), 0, inf) for part in (most, slowest)),
                LinearConstraint(some, 1, inf),
            ],
            bounds=Bounds(np.r_[np.zeros(H + T), self.missed.min(), self.alone.min()], np.r_[np.ones(H + T), inf, inf]),
            integrality=np.r_[np.ones(H), np.zeros(T + 2)],
            options={"node_limit": 200, "mip_rel_gap": 1e-3},
        )
        if solution.x is None:
            return tuple(range(H)), float(cost[-2:] @ [self.missed.min(), self.alone.min()])
        return tuple(np.flatnonzero(solution.x[:H] > 0.5).tolist()), float(solution.mip_dual_bound)


def _column(H: int, place: int) -> NDArray[np.float64]:
    column = np.zeros((H, 2))
    column[:, place] = 1
    return column
