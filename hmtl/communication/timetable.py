"""What a round takes over access links for each choice of who aggregates, and what it asks of these boxes."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import torch

from hmtl.coding import AggregatorSet, make_plan
from hmtl.communication.accounting.network import Network
from hmtl.communication.flows.ivs import UNCODED, IVs
from hmtl.communication.flows.sums import SumsOfRows
from hmtl.communication.prediction import by_seconds, predict
from hmtl.communication.secure.neighbors import Secure
from hmtl.communication.secure_costs import SecureCosts, secure_costs
from hmtl.communication.wires import check_wire, row_bits
from hmtl.topology import Names, Topology


@dataclass(frozen=True)
class Duty:
    """What a round asks of an aggregating box.

    Attributes:
        name: the box.
        memory: bytes of V, of the round's IVs and of the models, which it holds at the same time, K rows each.
        multiplied: bytes that it multiplies in GF(2^8), to encode and decode.
        update: multiplications of a global update that couples all users, K²m.
    """

    name: str
    memory: int
    multiplied: int
    update: int


@dataclass(frozen=True)
class Timetable:
    """The seconds of a round over access links, by who aggregates.

    Attributes:
        K, H, r, names: of the network, see `Topology`.
        V_bits: bits of a row on its way.
        network: the links.
        uncoded: the time of plain forwarding.
        choices: the nodes that aggregate, as in the setting `aggregators`, and the time, the shortest first.
        sums: the same for learners that need only sums, of 64 bits; the nodes learn these.
        every: whether these are all choices.
        duties: what the first choice asks of its boxes.
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
    choices: list[tuple[str | list[int | str], float]]
    sums: list[tuple[str | list[int | str], float]]
    every: bool
    duties: list[Duty]
    secure: SecureCosts | None
    secure_seconds: float | None


def timetable(
    t: Topology, network: Network, V_bits: int, wire: str | None = None, secure: Secure | None = None
) -> Timetable:
    """Return the seconds of a round for each choice of aggregators; V_bits are those of an IV in 64-bit numbers."""
    check_wire(wire)
    costs = secure_costs(t, secure, network.medium) if secure else None
    m = -(-V_bits // 64)
    bits = row_bits(wire, m, torch.float64)
    coded, sums = by_seconds(IVs(), t, network, bits), by_seconds(SumsOfRows(), t, network, V_bits)
    best = next(iter(coded))
    return Timetable(
        K=t.K,
        H=t.H,
        r=t.r,
        names=t.names,
        V_bits=bits,
        network=network,
        uncoded=predict(UNCODED, t, network, bits),
        choices=[(nodes.setting, seconds) for nodes, seconds in coded.items() if seconds < inf],
        sums=[(nodes.setting, seconds) for nodes, seconds in sums.items() if seconds < inf],
        every=len(coded) == (2 << len(t.active)) - 1,
        duties=list(_duties(t, network, best, bits, m)),
        secure=costs,
        secure_seconds=predict(SumsOfRows(secure=secure), t, network, V_bits) if secure else None,
    )


def _duties(t: Topology, network: Network, nodes: AggregatorSet, bits: int, m: int) -> Iterator[Duty]:
    work = {"the server": 0} if nodes.server else {}
    work |= {f"relay {t.names.relay(i)}": 0 for i in nodes.relays}
    blocks = make_plan(t, uplinks=network.uplinks(t), aggregators=nodes.setting).blocks if nodes.relays else ()
    for block in blocks:
        width = block.piece_bytes(bits // 8)
        if nodes.server:
            work["the server"] += block.downlink.numel() * width
        for n, decoder in zip(block.aggregators, block.decoders, strict=True):
            work[f"relay {t.names.relay(t.active[n])}"] += (block.uplink[n].numel() + decoder.numel()) * width
    for name, multiplied in work.items():
        yield Duty(name, 3 * t.K * 8 * m, multiplied, t.K**2 * m)
