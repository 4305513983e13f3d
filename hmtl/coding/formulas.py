"""Loads between relays and server in closed form, and what no scheme can do better than. All in IVs per iteration.

K is the number of users who are present, and i runs over the active relays; A are those of them that aggregate. Loads
hold the models that pass the server because no relay of A hears their users, once in each direction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from hmtl.coding.allocation import Allocation
from hmtl.coding.optimal import Demand, Uplinks
from hmtl.coding.programme import Programme
from hmtl.topology import Topology, balanced

MOST_PIECES = 8  # of an IV, where relays' links differ and unless told otherwise
Number = Fraction | float


@dataclass(frozen=True)
class Loads:
    """Loads per iteration in IVs, that is bits divided by V: relays to server, and server to relays.

    Attributes:
        downlink: where all relays hear what the server sends.
        by_relay: the uplink of each relay [H], inactive ones included; loads are equal whatever their shares.
        unicast: the downlink where each relay is sent a copy of its own of what it needs.
    """

    uplink: float
    downlink: float
    by_relay: tuple[float, ...] = field(default=(), compare=False, repr=False)
    unicast: float = field(default=0.0, compare=False, repr=False)

    @classmethod
    def of(cls, t: Topology, active: Sequence[Number], downlink: Number, unicast: Number) -> "Loads":
        """From the loads of the active relays."""
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
        """From those of what is coded, `sent` by each active relay; models that pass the server come on top."""
        u = unheard(t, A)
        passed = np.bincount(carriers(t, A, sent, u, uplinks), minlength=t.H)[list(t.active)].tolist()
        return cls.of(t, [x + n for x, n in zip(sent, passed, strict=True)], downlink + u, unicast + u)

    def down(self, medium: str) -> float:
        """The downlink over a `broadcast` or `unicast` medium."""
        return self.unicast if medium == "unicast" else self.downlink


def uncoded_loads(t: Topology, uplinks: Uplinks | None = None) -> Loads:
    """Each IV and each model passes the server once. Ref: Hu et al. 2022, Example 1."""
    forwarded = np.bincount(forwarders(t, uplinks)[list(t.present)], minlength=t.H)
    return Loads.of(t, forwarded[list(t.active)].tolist(), len(t.present), len(t.present))


def optimal_loads(t: Topology, A: Sequence[int], uplinks: Uplinks | None = None) -> Loads:
    """What no scheme with these aggregators falls below; for the least time where uplinks differ, in whole pieces."""
    demand, places, misses = Demand(t.core), [t.active.index(i) for i in A], missed(t, A)
    if uplinks is None and len(A) < len(t.active):
        found = Programme(demand).least(places)
        assert found is not None
        sent: list[Number] = found[1].tolist()
    else:
        pieces = MOST_PIECES if uplinks else max(1, demand.H - 1)
        if len(A) < len(t.active):
            rates = Programme(demand, uplinks).rates(places, pieces, unheard(t, A))
        else:
            rates = demand.rates(pieces, uplinks)
        sent = [Fraction(count, rates.pieces) for count in rates.counts]
    return Loads.coded(t, A, sent, int(misses.max()), int(misses.sum()), uplinks)


def allocated_loads(
    t: Topology, A: Sequence[int], parts: Iterable[Allocation], uplinks: Uplinks | None = None
) -> Loads:
    """The sums over all z. Ref: Hu et al. 2022, Theorem 1, eqs. (33a) and (33b)."""
    parts = tuple(parts)
    shares = [[n * alpha for n, alpha in zip(part.n, part.alpha, strict=True)] for part in parts]
    sent = [sum(share, Fraction()) for share in zip(*shares, strict=True)] or [Fraction()] * len(t.active)
    downlink = sum(part.downlink for part in parts)
    return Loads.coded(t, A, sent, downlink, int(missed(t, A).sum()), uplinks)


def carriers(
    t: Topology, A: Sequence[int], sent: Sequence[Number], models: int, uplinks: Uplinks | None
) -> NDArray[np.int64]:
    """Which aggregator sends each of so many models to the server, such that the last is there soonest; ascending.

    Args:
        A: the aggregators.
        sent: IVs that each active relay sends besides.
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
    """u(A): how many users who are present none of these relays hears."""
    return len(t.present) - int(t.G[list(A)].any(axis=0).sum())


def missed(t: Topology, A: Sequence[int]) -> NDArray[np.int64]:
    """How many IVs each of these relays misses, K − |N_i|."""
    return np.asarray(len(t.present) - t.G[list(A)].sum(axis=1, dtype=np.int64))


def forwarders(t: Topology, uplinks: Uplinks | None = None) -> NDArray[np.int64]:
    """[K] the one relay of N(k) that passes each user's IV on to the server where nothing is coded, for the least time.

    Absent users have -1.

    Args:
        uplinks: of the active relays; None: all alike, and each user's `serving` relay forwards.
    """
    if uplinks is None:
        return t.serving
    bandwidths = np.ones(t.H)
    bandwidths[list(t.active)] = uplinks.bandwidths
    if uplinks.parallel:
        return balanced(t.G, bandwidths)
    return np.where(t.degrees > 0, (t.G * bandwidths[:, None]).argmax(axis=0), -1)


def bounds_for(t: Topology, A: Sequence[int]) -> Loads:
    """Loads that no scheme can fall below, in closed form.

    All active relays aggregate: Hu et al. 2022, Theorem 2, eqs. (35a) and (35b). Some: the uplink has to bring what one
    of them misses. None, but the server: it needs all IVs, and gives all models.
    """
    K, H = len(t.present), len(A)
    if not H:
        return Loads(float(K), float(K), unicast=float(K))
    misses, u = missed(t, A), unheard(t, A)
    uplink = Fraction(int(misses.max()) + u)
    if len(t.active) == H:
        uplink = Fraction(int(misses.sum()), H - 1) if H > 1 else Fraction()
    return Loads(float(uplink), float(misses.max() + u), unicast=float(misses.sum() + u))
