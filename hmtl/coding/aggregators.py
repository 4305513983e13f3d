"""Who learns all IVs and computes the models: some of the relays, or the server, whichever takes the least time.

Let relays A aggregate. They need `uplink(A)` from all relays (`programme`); the server sends them max_{j∈A} (K − |N_j|)
messages where all hear them, Σ_{j∈A} (K − |N_j|) where each gets its own; and the models of the u(A) users whom no
relay of A hears go up once and down once. The server alone takes K and K.

A *cost* is the time of all this in IVs at the speed of the server's downlink: where all links are alike, the number of
IVs. It is at least what a single aggregator needs, max_{j∈A} (K − |N_j|), and the known rest; most sets A are ruled out
by that.

Shapes: H active relays, T types; 2^H sets of relays, whose members are the bits of their number.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import inf

import numpy as np
from numpy.typing import NDArray

from hmtl.coding.optimal import Demand, Uplinks
from hmtl.coding.programme import over_sets, users_within
from hmtl.errors import CodingError
from hmtl.topology import Topology

log = logging.getLogger(__name__)

MEDIA = ("broadcast", "unicast")
MOST_ENUMERATED = 20  # relays, all sets of which are compared by their bounds
MOST_PROVEN = 10  # relays up to which the search goes on until the best set is proven
MOST_TRIED = 30  # sets that are tried beyond

Meter = Callable[[Sequence[int], int, float], float | None]
"""How long the uplink takes for aggregators, with so many models; None if no less than the last argument."""


@dataclass(frozen=True)
class Choice:
    """Who aggregates.

    Attributes:
        relays: the aggregators; none where the server aggregates.
        cost: of a round between relays and server.
        bound: no set of relays, nor the server, costs less, with this scheme.
    """

    relays: tuple[int, ...]
    cost: float
    bound: float

    @property
    def proven(self) -> bool:
        """Whether no other choice costs less."""
        return self.cost <= self.bound * (1 + 1e-9) + 1e-9


def aggregators_of(t: Topology, choice: str | Sequence[int], best: Callable[[], Choice]) -> tuple[int, ...]:
    """The relays that aggregate; none for the server.

    Args:
        t: who hears whom.
        choice: `all` active relays; the `server`; `auto`, the `best`; or relays by number, of which inactive ones learn
            nothing.

    Raises:
        CodingError: another word, or relays that are not there.
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
            f"aggregators={given} has to name relays from 0 to {t.H - 1}, one or more, each once. For the server, set "
            "aggregators=server."
        )
    return tuple(i for i in sorted(map(int, given)) if i in t.active)


class Search:
    """For the best aggregators of a network.

    Args:
        t: who hears whom, with an active relay.
        uplinks: of the active relays; None: all links are alike, and relays send one after the other.
        medium: `broadcast`: all relays hear what the server sends; `unicast`: each relay gets its own copy.
        meter: of the scheme.
    """

    def __init__(self, t: Topology, uplinks: Uplinks | None, medium: str, meter: Meter) -> None:
        self.demand, self.K, self.meter, self.relays = Demand(t.core), len(t.present), meter, t.active
        W = np.ones(len(t.active)) if uplinks is None else np.asarray(uplinks.bandwidths)
        self.speed = ((uplinks and uplinks.downlink) or W.max()) / W.max()  # of the downlink, in fastest relays
        self.W, self.parallel = W / W.max(), uplinks is not None and uplinks.parallel
        self.add = np.maximum if medium == "broadcast" else np.add
        self.missed = self.K - t.core.sum(axis=1, dtype=np.int64)  # by each relay [H]
        if self.parallel:
            self.alone = self.missed / (self.W.sum() - self.W).clip(min=1e-300)
        else:  # each IV that relay j misses comes by the fastest that hears it
            fastest = (self.demand.hears * self.W).max(axis=1)
            self.alone = (self.demand.counts / fastest) @ ~self.demand.hears

    def best(self, server: float) -> Choice:
        """The best found, and how much better another can be.

        Args:
            server: what the uplink takes where the server aggregates.
        """
        H = self.demand.H
        self.found: tuple[float, tuple[int, ...]] = float(self.speed * server) + self.K, ()
        self.tried = 0
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
        """What A costs at least."""
        u, members = self.demand.avoiding(A), list(A)
        uplink = float(self.alone[members].max())
        if self.parallel:
            uplink = max(uplink, float(self.missed[members].max() + u) / float(self.W.sum()))
        else:
            uplink += u / float(self.W[members].max())
        return float(self.speed * uplink + self._down(A) + u)

    def _bounds(self) -> NDArray[np.float64]:
        """`_bound` of every set, infinite for the empty one [2^H]."""
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
        """The set whose bound is least, by an integer programme, and what no set costs less than.

        Variables: whether each relay aggregates [H], whether each type is unheard [T], the most that an aggregator
        misses and the time that the slowest of them takes alone.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array, csr_array, eye_array, hstack

        H, T = self.demand.H, len(self.demand.counts)
        per_model = 1 + (0 if self.parallel else self.speed)  # at the least, of whose model goes by way of the server
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
        found = milp(
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
        if found.x is None:
            return tuple(range(H)), float(cost[-2:] @ [self.missed.min(), self.alone.min()])
        return tuple(np.flatnonzero(found.x[:H] > 0.5).tolist()), float(found.mip_dual_bound)


def _column(H: int, place: int) -> NDArray[np.float64]:
    column = np.zeros((H, 2))
    column[:, place] = 1
    return column
