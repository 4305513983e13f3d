"""Loads between relays and server in closed form, and what no scheme can do better than. All in IVs per iteration."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from hmtl.coding.allocation import allocate
from hmtl.coding.optimal import Demand, Uplinks
from hmtl.topology import Topology
from hmtl.topology.topology import balanced


@dataclass(frozen=True)
class Loads:
    """Loads per iteration in IVs, that is bits divided by V: relays to server, and server to relays.

    Attributes:
        by_relay: the uplink of each relay [H], inactive ones included; loads are equal whatever their shares.
    """

    uplink: float
    downlink: float
    by_relay: tuple[float, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def of(cls, t: Topology, active: Sequence[Fraction | int], downlink: Fraction | int) -> "Loads":
        """From the exact loads of the active relays."""
        by_relay = dict(zip(t.active, active, strict=True))
        return cls(float(sum(active)), float(downlink), tuple(float(by_relay.get(i, 0)) for i in range(t.H)))


def loads(t: Topology, scheme: str = "optimal", uplinks: Uplinks | None = None) -> Loads:
    """The loads of a scheme.

    Args:
        t: the topology.
        scheme: `uncoded`, where each IV and each model passes the server once; `optimal`, which no scheme falls below;
            or one that `allocate` knows.
        uplinks: of the active relays, for which `optimal` then takes the least time instead of the least load, with
            c < H pieces, and `uncoded` the relays that forward soonest; None: all alike.

    Raises:
        CodingError: no such scheme.

    Ref: Hu et al. 2022, Theorem 1, eqs. (33a) and (33b).
    """
    if scheme == "uncoded":
        return Loads.of(t, np.bincount(forwarders(t, uplinks), minlength=t.H)[list(t.active)].tolist(), t.K)
    if scheme == "optimal":
        rates = Demand(t.G[list(t.active)]).rates(max(1, len(t.active) - 1), uplinks)
        return Loads.of(t, [Fraction(count, rates.pieces) for count in rates.counts], _most_missed(t))
    parts = allocate(t, scheme)
    shares = [[n * alpha for n, alpha in zip(part.n, part.alpha, strict=True)] for part in parts]
    active = [sum(share, Fraction()) for share in zip(*shares, strict=True)] or [0] * len(t.active)
    return Loads.of(t, active, sum(part.downlink for part in parts))


def forwarders(t: Topology, uplinks: Uplinks | None = None) -> NDArray[np.int64]:
    """[K] the one relay of N(k) that passes each user's IV on to the server where nothing is coded, for the least time.

    Args:
        uplinks: of the active relays; None: all alike, and each user's `serving` relay forwards.
    """
    if uplinks is None:
        return t.serving
    bandwidths = np.ones(t.H)
    bandwidths[list(t.active)] = uplinks.bandwidths
    return balanced(t.G, bandwidths) if uplinks.parallel else (t.G * bandwidths[:, None]).argmax(axis=0)


def bounds(t: Topology) -> Loads:
    """Loads that no scheme can fall below, in closed form; 0 where a single relay is active, which then hears all.

    The uplink of `loads(t, "optimal")` is the larger, and exact, bound.

    Ref: Hu et al. 2022, Theorem 2, eqs. (35a) and (35b), over the relays that hear somebody.
    """
    H = len(t.active)
    uplink = Fraction(H * t.K - int(t.degrees.sum()), H - 1) if H > 1 else Fraction()
    return Loads(float(uplink), float(_most_missed(t)))


def _most_missed(t: Topology) -> int:
    """K − min_i |N_i|: as many IVs as the relay misses that hears the fewest."""
    return t.K - int(t.G.sum(axis=1)[list(t.active)].min())
