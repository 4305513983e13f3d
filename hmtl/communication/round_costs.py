"""What one round would cost on a network: loads, bounds and seconds for every choice of aggregators.

Loads are in IVs per round, times in seconds. Tiers and media are dictionary keys, as in `plan format=json`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from hmtl.coding import (
    CODED_SCHEMES,
    MEDIA,
    SCHEMES,
    AggregatorSet,
    Loads,
    Uplinks,
    best_aggregators,
    bounds,
    demand_of,
    loads,
    obstacle,
    sum_codes,
    sum_loads,
)
from hmtl.communication.accounting.ledger import (
    RELAYS_TO_SERVER,
    SERVER_TO_RELAYS,
    TIERS,
)
from hmtl.communication.accounting.network import Network, tier_loads
from hmtl.communication.codecs.formats import FEW_BITS
from hmtl.communication.codecs.wires import check_wire, row_bits
from hmtl.communication.flows.sums import SumsOfRows
from hmtl.communication.secure.neighbors import Secure
from hmtl.communication.secure_costs import AddedBits, SecureCosts, added_bits, secure_costs
from hmtl.topology import Names, Topology

BEST = "optimal"  # the scheme by which given aggregators learn all IVs with the smallest load


@dataclass(frozen=True)
class ChosenRelays:
    """Relays that aggregate, or that add terms of sums.

    Attributes:
        relays: the relays; empty if the server alone aggregates.
        relays_to_server: load from relays to server.
        proven: whether `cost` reaches `bound`, so that nothing in the class of `bound` is better.
        downlinks: the load from server to relays on each medium.
        seconds: the communication time on each medium.
    """

    relays: list[int]
    relays_to_server: float
    proven: bool
    downlinks: dict[str, float]
    seconds: dict[str, float]


@dataclass(frozen=True)
class BestAggregators(ChosenRelays):
    """The best aggregators for one medium.

    Attributes:
        server: whether the server aggregates, alone or beside relays.
        cost: time between relays and server, in IVs at the speed of the server's downlink.
        bound: a lower bound of `cost` for all aggregators, with the loads of scheme `optimal` in `hmtl.coding.loads`.
        excess: by what fraction `cost` can be above that of the best aggregators at most.
    """

    server: bool
    cost: float
    bound: float
    excess: float

    @property
    def nodes(self) -> AggregatorSet:
        """The aggregators."""
        return AggregatorSet(tuple(self.relays), self.server)


@dataclass(frozen=True)
class AddingRelays(ChosenRelays):
    """The relays that send the server sums of terms.

    Attributes:
        cost: time from relays to server, in rows at the speed of the slowest relay.
        bound: a lower bound of `cost` for every scheme in which the server learns the sums.
        pieces: number of pieces of a row, so that a share is as long as one of them; 1: relays send whole rows.
    """

    cost: float
    bound: float
    pieces: int


@dataclass(frozen=True)
class RoundCost:
    """The cost of a round in one format of numbers.

    Attributes:
        bits: bits between relays and server, in both directions.
        seconds: the communication time over all hops.
    """

    bits: float
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Every choice of aggregators on one network.

    Attributes:
        K, H, r: users, relays, and relays per user.
        names: names of relays and users.
        V_bits: bits of one IV.
        network: the links.
        loads: loads by scheme and tier; all relays aggregate, or the server (uncoded).
        aggregators: the best aggregators by medium.
        sums: the relays that add, for learners that need only sums; loads on a broadcast downlink.
        downlinks: loads from server to relays by medium and scheme.
        bounds: lower bounds by tier of schemes in which all relays learn all IVs (Hu et al. 2022, Theorem 2).
        proof: the least load from relays to server of such schemes, and a partition of the relays that certifies it.
        not_trainable: schemes without a plan on this network, with the reason.
        seconds: communication time of one round by medium and scheme.
        formats: the cost of a round by wire (`null`, 64 bits, and the one that is asked for) and by what travels:
            `uncoded`, `coded` with the best aggregators, `sums`, or `secure` sums, with all that these add.
        secure: what secure sums add to a round; None: nobody asked for it.
        secure_sums: the relays that send the server secure sums; seconds are those of all that is sent for them.
    """

    K: int
    H: int
    r: float
    names: Names
    V_bits: int
    network: Network
    loads: dict[str, dict[str, float]]
    aggregators: dict[str, BestAggregators]
    sums: AddingRelays
    downlinks: dict[str, dict[str, float]]
    bounds: dict[str, float]
    proof: dict[str, Any]
    not_trainable: dict[str, str]
    seconds: dict[str, dict[str, float]]
    formats: dict[str, dict[str, RoundCost]]
    secure: SecureCosts | None
    secure_sums: AddingRelays | None


def compare(
    topology: Topology, network: Network, V_bits: int, wire: str | None = None, secure: Secure | None = None
) -> Comparison:
    """Compare the server (uncoded), all relays (each scheme), and the best relays for each medium.

    Args:
        topology: who hears whom.
        network: the links.
        V_bits: bits of an IV whose numbers have 64 bits each.
        wire: another format of numbers, in which a round's cost is computed, too; None: none.
        secure: settings of secure sums, whose cost is computed, too; None: it is not.

    Raises:
        ConfigError: the format is unknown, or there are too few users for secure sums.
    """
    check_wire(wire)
    costs = secure_costs(topology, secure, network.medium) if secure else None
    added = {each: added_bits(topology, secure, each) for each in MEDIA} if secure else None
    clock = _Clock(topology, network, V_bits)
    uplinks = clock.uplinks
    by_scheme = {scheme: loads(topology, scheme, uplinks) for scheme in SCHEMES}
    least, partition = demand_of(topology).optimum
    obstacles = {scheme: obstacle(topology, scheme) for scheme in CODED_SCHEMES}
    best = {medium: _best(clock, medium) for medium in MEDIA}
    return Comparison(
        K=topology.K,
        H=topology.H,
        r=topology.r,
        names=topology.names,
        V_bits=V_bits,
        network=network,
        loads={scheme: _between(by_scheme[scheme]) for scheme in SCHEMES},
        aggregators=best,
        sums=_adding(clock),
        downlinks={medium: {scheme: by_scheme[scheme].down(medium) for scheme in SCHEMES} for medium in MEDIA},
        bounds=_between(bounds(topology)),
        proof={
            RELAYS_TO_SERVER: float(least),
            "partition": [[topology.active[i] for i in part] for part in partition],
        },
        not_trainable={scheme: reason for scheme, reason in obstacles.items() if reason},
        seconds={medium: {scheme: clock.seconds(by_scheme[scheme], medium) for scheme in SCHEMES} for medium in MEDIA},
        formats={
            each or "null": _in_format(clock, best[network.medium].nodes, each, added)
            for each in dict.fromkeys((None, wire))
        },
        secure=costs,
        secure_sums=_adding(clock, added) if costs else None,
    )


@dataclass(frozen=True)
class _Clock:
    """Communication times on one network."""

    topology: Topology
    network: Network
    V_bits: int

    @property
    def uplinks(self) -> Uplinks | None:
        return self.network.uplinks(self.topology)

    def seconds(self, load: Loads, medium: str) -> float:
        """Return the time [s] of a round."""
        return self.cost(load, medium).seconds

    def cost(
        self, load: Loads, medium: str, bits: Mapping[str, int] | None = None, added: dict[str, AddedBits] | None = None
    ) -> RoundCost:
        """Return the cost of a round whose rows have `bits` on each tier, or V bits, and of what is added."""
        rows = tier_loads(load, len(self.topology.present), medium, self.network.last_hop)
        bits = bits or dict.fromkeys(TIERS, self.V_bits)
        sent = {tier: bits[tier] * rows[tier] for tier in TIERS}
        for by_tier in (added[medium] if added else {}).values():
            for tier, links in by_tier.items():
                sent[tier] = sent[tier] + (links if tier == RELAYS_TO_SERVER else links.sum())
        between = sum(float(sent[tier].sum()) for tier in (RELAYS_TO_SERVER, SERVER_TO_RELAYS))
        return RoundCost(between, self.network.seconds(sent))


def _best(clock: _Clock, medium: str) -> BestAggregators:
    choice = best_aggregators(clock.topology, BEST, clock.uplinks, medium)
    load = loads(clock.topology, BEST, clock.uplinks, aggregators=choice.nodes.setting)
    return BestAggregators(
        relays=list(choice.relays),
        server=choice.server,
        relays_to_server=load.uplink,
        cost=round(choice.cost, 9),
        bound=choice.bound,
        excess=choice.excess,
        proven=choice.proven,
        downlinks={name: load.down(name) for name in MEDIA},
        seconds={name: clock.seconds(load, name) for name in MEDIA},
    )


def _in_format(
    clock: _Clock, nodes: AggregatorSet, wire: str | None, added: dict[str, AddedBits] | None
) -> dict[str, RoundCost]:
    """Return the cost of a round in a format, by what travels; sums have no format of 16 or 32 bits."""
    t, uplinks, medium, m = clock.topology, clock.uplinks, clock.network.medium, -(-clock.V_bits // 64)
    bits = dict.fromkeys(TIERS, row_bits(wire, m, torch.float64))
    costs = {
        "uncoded": clock.cost(loads(t, "uncoded", uplinks), medium, bits),
        "coded": clock.cost(loads(t, BEST, uplinks, aggregators=nodes.setting), medium, bits),
    }
    if wire is None or wire in FEW_BITS:
        plain = SumsOfRows(wire=wire)
        costs["sums"] = clock.cost(sum_loads(t, uplinks), medium, plain.of_numbers(m, t.K).row_bits(0))
        if added:
            masked = replace(plain, secure=Secure()).of_numbers(m, t.K)
            costs["secure"] = clock.cost(sum_loads(t, uplinks), medium, masked.row_bits(0), added)
    return costs


def _adding(clock: _Clock, added: dict[str, AddedBits] | None = None) -> AddingRelays:
    up, spread = sum_codes(clock.topology, clock.uplinks)
    load = up.loads(spread)
    return AddingRelays(
        relays=list(up.relays),
        pieces=up.pieces,
        cost=up.cost,
        bound=up.bound,
        proven=up.proven,
        relays_to_server=load.uplink,
        downlinks={name: load.down(name) for name in MEDIA},
        seconds={name: clock.cost(load, name, added=added).seconds for name in MEDIA},
    )


def _between(load: Loads) -> dict[str, float]:
    """Return the loads between relays and server, on a broadcast downlink."""
    return {RELAYS_TO_SERVER: load.uplink, SERVER_TO_RELAYS: load.downlink}
