"""What a round takes over access links for each choice of who aggregates."""

from dataclasses import dataclass
from math import inf

import torch

from hmtl.communication.accounting.network import Network
from hmtl.communication.codecs.wires import check_wire, row_bits
from hmtl.communication.flows.ivs import UNCODED, IVs
from hmtl.communication.flows.routes import Trip
from hmtl.communication.flows.sums import SumsOfRows
from hmtl.communication.prediction import by_seconds, predict
from hmtl.communication.secure.neighbors import Secure
from hmtl.communication.secure_costs import SecureCosts, secure_costs
from hmtl.topology import Names, Topology


@dataclass(frozen=True)
class Timetable:
    """The seconds of a round over access links, by who aggregates.

    Attributes:
        K, H, r, names: of the network, see `Topology`.
        V_bits: bits of a row on its way.
        network: the links.
        uncoded: the time of plain forwarding.
        uncoded_bound: what plain forwarding takes at least, whichever relays forward rows and deliver models.
        choices: the nodes that aggregate, as in the setting `aggregators`, and the time, the shortest first.
        sums_seconds: the time for learners that need only sums, of 64 bits.
        every: whether these are all choices.
        secure: what secure sums add to a round; None: nobody asked for it.
        secure_seconds: the time of secure sums of 64 bits.
    """

    K: int
    H: int
    r: float
    names: Names
    V_bits: int
    network: Network
    uncoded: float
    uncoded_bound: float
    choices: list[tuple[str | list[int | str], float]]
    sums_seconds: float
    every: bool
    secure: SecureCosts | None
    secure_seconds: float | None


def timetable(t: Topology, network: Network, V_bits: int, wire: str | None, secure: Secure | None) -> Timetable:
    """Return the seconds of a round for each choice of aggregators; V_bits are those of an IV in 64-bit numbers."""
    check_wire(wire)
    access = network.access(t)
    assert access is not None
    costs = secure_costs(t, secure, network.medium) if secure else None
    bits = row_bits(wire, -(-V_bits // 64), torch.float64)
    coded = by_seconds(IVs(), t, network, bits)
    return Timetable(
        K=t.K,
        H=t.H,
        r=t.r,
        names=t.names,
        V_bits=bits,
        network=network,
        uncoded=predict(UNCODED, t, network, bits),
        uncoded_bound=Trip(access, t.G, bits, up=True).bound + Trip(access, t.G, bits, up=False).bound,
        choices=[(nodes.setting, seconds) for nodes, seconds in coded.items() if seconds < inf],
        sums_seconds=predict(SumsOfRows(), t, network, V_bits),
        every=len(coded) == (2 << len(t.active)) - 1,
        secure=costs,
        secure_seconds=predict(SumsOfRows(secure=secure), t, network, V_bits) if secure else None,
    )
