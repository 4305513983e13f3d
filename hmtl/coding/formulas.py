"""Loads between relays and server in closed form, and what no scheme can do better than. All in IVs per iteration.

K is the number of users who are present, and i runs over the active relays.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from hmtl.coding.allocation import Allocation
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


def uncoded_loads(t: Topology, uplinks: Uplinks | None = None) -> Loads:
    """Each IV and each model passes the server once. Ref: Hu et al. 2022, Example 1."""
    forwarded = np.bincount(forwarders(t, uplinks)[list(t.present)], minlength=t.H)
    return Loads.of(t, forwarded[list(t.active)].tolist(), len(t.present))


def optimal_loads(t: Topology, uplinks: Uplinks | None = None) -> Loads:
    """What no scheme falls below; for the least time where uplinks differ, with fewer pieces than relays."""
    if not t.active:
        return Loads.of(t, [], 0)
    rates = Demand(t.core).rates(max(1, len(t.active) - 1), uplinks)
    return Loads.of(t, [Fraction(count, rates.pieces) for count in rates.counts], _most_missed(t))


def allocated_loads(t: Topology, parts: Iterable[Allocation]) -> Loads:
    """The sums over all z. Ref: Hu et al. 2022, Theorem 1, eqs. (33a) and (33b)."""
    parts = tuple(parts)
    shares = [[n * alpha for n, alpha in zip(part.n, part.alpha, strict=True)] for part in parts]
    active = [sum(share, Fraction()) for share in zip(*shares, strict=True)] or [0] * len(t.active)
    return Loads.of(t, active, sum(part.downlink for part in parts))


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


def bounds(t: Topology) -> Loads:
    """Loads that no scheme can fall below, in closed form; 0 where a single relay is active, which then hears all.

    The uplink of `loads(t, "optimal")` is the larger, and exact, bound.

    Ref: Hu et al. 2022, Theorem 2, eqs. (35a) and (35b), over the relays that hear somebody.
    """
    H = len(t.active)
    uplink = Fraction(H * len(t.present) - int(t.degrees.sum()), H - 1) if H > 1 else Fraction()
    return Loads(float(uplink), float(_most_missed(t)))


def _most_missed(t: Topology) -> int:
    """K − min_i |N_i|: as many IVs as the relay misses that hears the fewest."""
    return max((len(t.present) - int(heard) for heard in t.core.sum(axis=1)), default=0)
