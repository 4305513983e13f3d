"""Loads between relays and server, and lower bounds, in closed form, in IVs per round.

K is the number of present users, i runs over the active relays, and A are the aggregators among them. Loads include
the models of users that no aggregator hears, which pass the server once in each direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hmtl.coding.allocation import AllocationRule, allocate
from hmtl.coding.rates import Program, Uplinks, demand_of
from hmtl.topology import Topology, balanced

DEFAULT_PIECES = 8  # largest number of pieces of an IV if the uplinks differ
Number = Fraction | float


@dataclass(frozen=True)
class Loads:
    """Loads per round in IVs, which is bits divided by V.

    Equality ignores all but the first two.

    Attributes:
        uplink: from relays to server.
        downlink: from server to relays, if all relays hear the server's broadcast.
        by_relay: the uplink of each relay [H], 0 for inactive ones.
        unicast: from server to relays, if each relay gets its own copy of what it needs.
        last_hop: for sums, from relays to users, if each relay broadcasts what its users need.
    """

    uplink: float
    downlink: float
    by_relay: tuple[float, ...] = field(default=(), compare=False, repr=False)
    unicast: float = field(default=0.0, compare=False, repr=False)
    last_hop: float = field(default=0.0, compare=False, repr=False)

    @classmethod
    def of(cls, t: Topology, active: Sequence[Number], downlink: Number, unicast: Number) -> "Loads":
        """Return loads, given the uplink load of each active relay."""
        by_relay = dict(zip(t.active, active, strict=True))
        each = tuple(float(by_relay.get(i, 0)) for i in range(t.H))
        return cls(float(sum(active)), float(downlink), each, float(unicast))

    @classmethod
    def coded(
        cls,
        t: Topology,
        A: Sequence[int],
        sent: Sequence[Number],
        downlink: Number,
        unicast: Number,
        uplinks: Uplinks | None,
    ) -> "Loads":
        """Return the loads of coded messages, plus the models that pass the server."""
        u = unheard(t, A)
        passed = np.bincount(carriers(t, A, sent, u, uplinks), minlength=t.H)[list(t.active)].tolist()
        return cls.of(t, [x + n for x, n in zip(sent, passed, strict=True)], downlink + u, unicast + u)

    def down(self, medium: str) -> float:
        """Return the downlink over a `broadcast` or `unicast` medium."""
        return self.unicast if medium == "unicast" else self.downlink


def server_loads(t: Topology, A: Sequence[int], uplinks: Uplinks | None) -> Loads:
    """Return the loads if the server aggregates, beside relays A, which it sends coded IVs.

    Each IV goes to the server once. If A is empty, each model passes it once, too (Hu et al. 2022, Example 1).
    """
    misses, u = missed(t, A), unheard(t, A)
    return Loads.of(t, forwarded(t, uplinks), int(misses.max(initial=0)) + u, int(misses.sum()) + u)


@lru_cache(32)  # a comparison needs those of the same aggregators several times
def optimal_loads(t: Topology, A: tuple[int, ...], uplinks: Uplinks | None = None) -> Loads:
    """Return the smallest loads with which A learns all IVs, plus the uncoded models that pass the server.

    With uplinks, the loads are those of the least time in at most `DEFAULT_PIECES` pieces per IV.
    """
    demand, places, misses = demand_of(t), [t.active.index(i) for i in A], missed(t, A)
    if uplinks is None and len(A) < len(t.active):
        solution = Program(demand).least(places)
        assert solution is not None
        sent: list[Number] = solution[1].tolist()
    else:
        pieces = DEFAULT_PIECES if uplinks else max(1, demand.H - 1)
        rates = Program(demand, uplinks).rates(places, pieces, unheard(t, A))
        sent = [Fraction(count, rates.pieces) for count in rates.counts]
    return Loads.coded(t, A, sent, int(misses.max()), int(misses.sum()), uplinks)


def allocated_loads(split: AllocationRule, t: Topology, A: Sequence[int], uplinks: Uplinks | None = None) -> Loads:
    """Return the loads summed over z. Ref: Hu et al. 2022, Theorem 1, eqs. (33a) and (33b)."""
    allocations = allocate(t, split, tuple(A))
    shares = [[n * alpha for n, alpha in zip(part.n, part.alpha, strict=True)] for part in allocations]
    sent = [sum(share, Fraction()) for share in zip(*shares, strict=True)] or [Fraction()] * len(t.active)
    downlink = sum(part.downlink for part in allocations)
    return Loads.coded(t, A, sent, downlink, int(missed(t, A).sum()), uplinks)


def carriers(
    t: Topology, A: Sequence[int], sent: Sequence[Number], models: int, uplinks: Uplinks | None
) -> NDArray[np.int64]:
    """Return the aggregator in A that sends each model; the last model arrives soonest.

    The active relays also send IVs, as many as `sent` says. With equal uplinks, the first aggregator sends all models.
    """
    relays = np.array(A, dtype=np.int64)
    if not models or uplinks is None:
        return np.repeat(relays[:1], models)
    places = np.searchsorted(t.active, relays)
    W = np.asarray(uplinks.bandwidths)[places]
    if not uplinks.parallel:
        return np.full(models, A[int(W.argmax())], dtype=np.int64)
    load, turns = np.array(sent, dtype=np.float64)[places], np.zeros(len(A), dtype=np.int64)
    for _ in range(models):
        turns[((load + turns + 1) / W).argmin()] += 1
    return np.repeat(relays, turns)


def unheard(t: Topology, A: Sequence[int]) -> int:
    """Return u(A), the number of present users that none of these relays hears."""
    return len(t.present) - int(t.G[list(A)].any(axis=0).sum())


def missed(t: Topology, A: Sequence[int]) -> NDArray[np.int64]:
    """Return the number of IVs that each of these relays misses, K − |N_i|."""
    return np.asarray(len(t.present) - t.G[list(A)].sum(axis=1, dtype=np.int64))


def forwarded(t: Topology, uplinks: Uplinks | None) -> list[int]:
    """Return the number of IVs that each active relay sends if all IVs go to the server uncoded."""
    counts: list[int] = np.bincount(forwarders(t, uplinks)[list(t.present)], minlength=t.H)[list(t.active)].tolist()
    return counts


def forwarders(t: Topology, uplinks: Uplinks | None = None) -> NDArray[np.int64]:
    """Return the relay that forwards each user's IV without coding, in the least time.

    The result has shape [K] and is -1 for absent users.

    Args:
        t: the topology.
        uplinks: links of the active relays; None: equal, so that each user's `serving` relay forwards.
    """
    if uplinks is None:
        return t.serving
    bandwidths = np.ones(t.H)
    bandwidths[list(t.active)] = uplinks.bandwidths
    if uplinks.parallel:
        return balanced(t.G, bandwidths)
    return np.where(t.degrees > 0, (t.G * bandwidths[:, None]).argmax(axis=0), -1)
