"""Loads between relays and server in closed form, and what no scheme can do better than. All in IVs per iteration."""

from dataclasses import dataclass
from fractions import Fraction

from hmtl.coding.allocation import allocate
from hmtl.topology import Topology


@dataclass(frozen=True)
class Loads:
    """Loads per iteration in IVs, that is bits divided by V: relays to server, and server to relays."""

    uplink: float
    downlink: float


def loads(t: Topology, scheme: str = "paper") -> Loads:
    """The loads of a scheme.

    Args:
        t: the topology.
        scheme: `uncoded`, where each IV and each model passes the server once, or one that `allocate` knows.

    Raises:
        CodingError: no such scheme.

    Ref: Hu et al. 2022, Theorem 1, eqs. (33a) and (33b).
    """
    if scheme == "uncoded":
        return Loads(float(t.K), float(t.K))
    parts = allocate(t, scheme)
    return Loads(float(sum(part.uplink for part in parts)), float(sum(part.downlink for part in parts)))


def bounds(t: Topology) -> Loads:
    """Loads that no scheme can fall below; 0 where a single relay is active, which then hears all.

    Ref: Hu et al. 2022, Theorem 2, eqs. (35a) and (35b), over the relays that hear somebody.
    """
    H = len(t.active)
    uplink = Fraction(H * t.K - int(t.degrees.sum()), H - 1) if H > 1 else Fraction()
    return Loads(float(uplink), float(t.K - min(len(t.N(i)) for i in t.active)))
