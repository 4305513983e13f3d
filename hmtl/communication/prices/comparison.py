"""What a round costs for each choice of who aggregates, and what travels: the content of `hmtl.plan`.

Loads are in IVs per round, times in seconds. Tiers and media are dictionary keys, as in `plan format=json`.
"""

from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch

from hmtl.coding import (
    CODED_SCHEMES,
    MEDIA,
    SCHEMES,
    AggregatorSet,
    Loads,
    best_aggregators,
    bounds,
    demand_of,
    loads,
    obstacle,
    sum_codes,
)
from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, SERVER_TO_RELAYS
from hmtl.communication.accounting.network import Network
from hmtl.communication.codecs.wires import Wire, check_wire, row_bits, suits_sums
from hmtl.communication.flows.ivs import UNCODED, IVs
from hmtl.communication.flows.recipe import Recipe
from hmtl.communication.flows.routes import Trip
from hmtl.communication.flows.sums import SumsOfRows
from hmtl.communication.prices.pricing import cheapest, price
from hmtl.communication.secure.neighbors import Secure
from hmtl.topology import Names, Topology


@dataclass(frozen=True)
class ChosenRelays:
    """The best relays to aggregate for one medium, or to send the server sums of terms.

    Attributes:
        relays: the relays; empty if the server alone aggregates.
        server: whether the server aggregates, alone or beside relays, or learns the sums.
        relays_to_server: load from relays to server.
        downlinks: the load from server to relays on each medium.
        seconds: the communication time on each medium.
        cost: for aggregators, time between relays and server, in IVs at the speed of the server's downlink; for sums,
            time from relays to server, in rows at the speed of the slowest relay.
        bound: a lower bound of `cost`: for all aggregators, with the loads of scheme `optimal` in `hmtl.coding.loads`;
            or for every scheme in which the server learns the sums.
        excess: by what fraction `cost` can be above the least one at most.
        proven: whether `cost` reaches `bound`, so that nothing in its class is better.
        pieces: number of pieces of a row of sums, so that a share is as long as one of them; 1: relays send whole rows.
    """

    relays: list[int]
    server: bool
    relays_to_server: float
    downlinks: dict[str, float]
    seconds: dict[str, float]
    cost: float
    bound: float
    excess: float
    proven: bool
    pieces: int = 1

    @property
    def nodes(self) -> AggregatorSet:
        """The aggregators."""
        return AggregatorSet(tuple(self.relays), self.server)


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
class Compared:
    """What comparisons have in common.

    Attributes:
        K, H, r: users, relays, and relays per user.
        names: names of relays and users.
        V_bits: bits of one IV; with a file of links, as it travels.
        network: the links.
        secure: what secure sums promise, see `Secure.describe`, and the `bits` that they add to a round, by kind of
            message and tier, all of them overhead; None: nobody asked for it.
    """

    K: int
    H: int
    r: float
    names: Names
    V_bits: int
    network: Network
    secure: dict[str, Any] | None


@dataclass(frozen=True)
class Comparison(Compared):
    """Every choice of aggregators on one network.

    Attributes:
        loads: loads by scheme and tier; all relays aggregate, or the server (uncoded).
        aggregators: the best aggregators by medium.
        sums: the relays that add, for learners that need only sums; loads on a broadcast downlink.
        downlinks: loads from server to relays by medium and scheme.
        bounds: lower bounds by tier of schemes in which all relays learn all IVs (Hu et al. 2022, Theorem 2).
        proof: the least load from relays to server of such schemes, and a partition of the relays that certifies it.
        not_trainable: schemes without a plan on this network, with the reason.
        seconds: communication time of one round by medium and scheme that has a plan.
        formats: the cost of a round by wire (`null`, 64 bits, and the one that is asked for) and by what travels:
            `uncoded`, `coded` with the best aggregators, `sums`, or `secure` sums, with all that these add.
        secure_sums: the relays that send the server secure sums; seconds are those of all that is sent for them.
    """

    loads: dict[str, dict[str, float]]
    aggregators: dict[str, ChosenRelays]
    sums: ChosenRelays
    downlinks: dict[str, dict[str, float]]
    bounds: dict[str, float]
    proof: dict[str, Any]
    not_trainable: dict[str, str]
    seconds: dict[str, dict[str, float]]
    formats: dict[str, dict[str, RoundCost]]
    secure_sums: ChosenRelays | None


@dataclass(frozen=True)
class Timetable(Compared):
    """The seconds of a round over access links, by who aggregates.

    Attributes:
        uncoded: the time of plain forwarding.
        uncoded_bound: what plain forwarding takes at least, whichever relays forward rows and deliver models.
        choices: the nodes that aggregate, as in the setting `aggregators`, and the time, the shortest first.
        sums_seconds: the time for learners that need only sums, of 64 bits.
        every: whether these are all choices.
        secure_seconds: the time of secure sums of 64 bits.
    """

    uncoded: float
    uncoded_bound: float
    choices: list[tuple[str | list[int | str], float]]
    sums_seconds: float
    every: bool
    secure_seconds: float | None


def comparison(
    t: Topology, network: Network, V_bits: int, wire: str | None = None, secure: Secure | None = None
) -> Comparison | Timetable:
    """Compare the server (uncoded), all relays (each scheme), and the best relays for each medium.

    With a file of links, the seconds of each choice of aggregators are compared instead.

    Args:
        t: who hears whom.
        network: the links.
        V_bits: bits of an IV whose numbers have 64 bits each; they are rounded up to whole numbers.
        wire: another format of numbers, in which a round's cost is computed, too; None: none. With a file of links, the
            only one for IVs.
        secure: settings of secure sums, whose cost is computed, too; None: it is not.

    Raises:
        ConfigError: the format is unknown, or there are too few users for secure sums.
    """
    check_wire(wire)
    m = -(-V_bits // 64)
    compared: dict[str, Any] = {"K": t.K, "H": t.H, "r": t.r, "names": t.names, "V_bits": V_bits, "network": network}
    added = price(SumsOfRows(secure=secure), t, network, m).added if secure else {}
    compared["secure"] = secure.describe(t.K, t.G) | {"bits": added} if secure else None
    if network.links:
        return _by_seconds(t, network, m, wire, secure, compared)
    media, uplinks = {medium: replace(network, medium=medium) for medium in MEDIA}, network.uplinks(t)
    recipes = {scheme: IVs(scheme, aggregators="all") for scheme in CODED_SCHEMES} | {"uncoded": UNCODED}
    by_scheme = {scheme: loads(t, scheme, uplinks) for scheme in SCHEMES}
    obstacles = {scheme: reason for scheme in CODED_SCHEMES if (reason := obstacle(t, scheme))}
    least, partition = demand_of(t).optimum
    best = {medium: _best(t, media, medium, m) for medium in MEDIA}
    return Comparison(
        **compared,
        loads={scheme: _between(by_scheme[scheme]) for scheme in SCHEMES},
        aggregators=best,
        sums=_adding(t, media, m, SumsOfRows()),
        downlinks={medium: {scheme: by_scheme[scheme].down(medium) for scheme in SCHEMES} for medium in MEDIA},
        bounds=_between(bounds(t)),
        proof={RELAYS_TO_SERVER: float(least), "partition": [[t.active[i] for i in part] for part in partition]},
        not_trainable=obstacles,
        seconds={
            medium: {
                scheme: price(recipes[scheme], t, media[medium], m).seconds
                for scheme in SCHEMES
                if scheme not in obstacles
            }
            for medium in MEDIA
        },
        formats={
            each or "null": _in_format(t, network, best[network.medium].nodes, m, each, secure)
            for each in dict.fromkeys((None, wire))
        },
        secure_sums=_adding(t, media, m, SumsOfRows(secure=secure)) if secure else None,
    )


def _by_seconds(
    t: Topology, network: Network, m: int, wire: Wire, secure: Secure | None, compared: dict[str, Any]
) -> Timetable:
    access, bits = network.access(t), row_bits(wire, m, torch.float64)
    assert access is not None
    trips = [Trip(access, t.G, up) for up in (True, False)]
    beyond = bits * sum(trip.seconds(trip.fastest()) - trip.bound for trip in trips)
    plain, coded = price(IVs("uncoded", wire=wire), t, network, m).seconds, cheapest(IVs(wire=wire), t, network, m)
    return Timetable(
        **{**compared, "V_bits": bits},
        uncoded=plain,
        uncoded_bound=plain - beyond,
        choices=[(nodes.setting, seconds) for nodes, seconds in coded.items() if seconds < inf],
        sums_seconds=price(SumsOfRows(), t, network, m).seconds,
        every=len(coded) == (2 << len(t.active)) - 1,
        secure_seconds=price(SumsOfRows(secure=secure), t, network, m).seconds if secure else None,
    )


def _best(t: Topology, media: dict[str, Network], medium: str, m: int) -> ChosenRelays:
    uplinks = media[medium].uplinks(t)
    choice = best_aggregators(t, uplinks=uplinks, medium=medium)
    load = loads(t, uplinks=uplinks, aggregators=choice.nodes.setting)
    return ChosenRelays(
        relays=list(choice.relays),
        server=choice.server,
        **_costs(IVs(aggregators=choice.nodes.setting), load, t, media, m),
        cost=round(choice.cost, 9),
        bound=choice.bound,
        excess=choice.excess,
        proven=choice.proven,
    )


def _adding(t: Topology, media: dict[str, Network], m: int, recipe: SumsOfRows) -> ChosenRelays:
    up, spread = sum_codes(t, media["broadcast"].uplinks(t))
    return ChosenRelays(
        relays=list(up.relays),
        server=True,
        **_costs(recipe, up.loads(spread), t, media, m),
        cost=up.cost,
        bound=up.bound,
        excess=0.0 if up.proven else up.cost / up.bound - 1,
        proven=up.proven,
        pieces=up.pieces,
    )


def _costs(recipe: Recipe, load: Loads, t: Topology, media: dict[str, Network], m: int) -> dict[str, Any]:
    """Return the load between relays and server, and the seconds of a round, on each medium."""
    seconds = {medium: price(recipe, t, network, m).seconds for medium, network in media.items()}
    downlinks = {medium: load.down(medium) for medium in media}
    return {"relays_to_server": load.uplink, "downlinks": downlinks, "seconds": seconds}


def _in_format(
    t: Topology, network: Network, nodes: AggregatorSet, m: int, wire: str | None, secure: Secure | None
) -> dict[str, RoundCost]:
    """Return the cost of a round in a format, by what travels; sums have no format of 16 or 32 bits."""
    coded = IVs(aggregators=nodes.setting, wire=wire)
    recipes: dict[str, Recipe] = {"uncoded": IVs("uncoded", wire=wire), "coded": coded}
    if suits_sums(wire):
        recipes["sums"] = SumsOfRows(wire=wire)
        if secure:
            recipes["secure"] = SumsOfRows(wire=wire, secure=secure)
    prices = {what: price(recipe, t, network, m) for what, recipe in recipes.items()}
    inner = RELAYS_TO_SERVER, SERVER_TO_RELAYS
    return {what: RoundCost(sum(float(p.bits[tier].sum()) for tier in inner), p.seconds) for what, p in prices.items()}


def _between(load: Loads) -> dict[str, float]:
    """Return the loads between relays and server, on a broadcast downlink."""
    return {RELAYS_TO_SERVER: load.uplink, SERVER_TO_RELAYS: load.downlink}
