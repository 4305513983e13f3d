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
from hmtl.communication.accounting.access import Access
from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, SERVER_TO_RELAYS, TIERS
from hmtl.communication.accounting.network import Network
from hmtl.communication.codecs.wires import Wire, check_wire, row_bits, suits_sums
from hmtl.communication.flows.ivs import UNCODED, IVs
from hmtl.communication.flows.recipe import Recipe
from hmtl.communication.flows.routes import Trip
from hmtl.communication.flows.sums import SumsOfRows
from hmtl.communication.prices.pricing import BITS_PER_GB, Price, price
from hmtl.communication.prices.sums_or_ivs import cheapest
from hmtl.communication.secure.neighbors import Secure
from hmtl.errors import ConfigError, did_you_mean, few
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
        hops: the bytes of each tier, and the time that they take.
    """

    bits: float
    seconds: float
    hops: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class LinkUse:
    """What a round needs of a node's link.

    Attributes:
        node: the node, such as `roof` or `relay 0`.
        sent, received: bytes on the link.
        seconds: the time that they take at the link's rates, that of sending or of receiving, whichever is longer.
        cost: their price; None: the file of links has none.
    """

    node: str
    sent: float
    received: float
    seconds: float
    cost: float | None


@dataclass(frozen=True)
class Failure:
    """A round without a relay that has failed.

    Attributes:
        relay: name or number of the relay; None: all take part.
        cut_off: number of users whom no other relay hears, so that they take no part.
        seconds: the time of a round by what travels: `uncoded`, `coded` (with the aggregators `Compared.coded`) or
            `sums`; empty: no user is left, and the run waits.
        cost: the round's price by what travels; empty: the file of links has none.
    """

    relay: str | int | None
    cut_off: int
    seconds: dict[str, float]
    cost: dict[str, float]


@dataclass(frozen=True)
class Compared:
    """What comparisons have in common.

    Attributes:
        K, H, r: users, relays, and relays per user.
        names: names of relays and users.
        V_bits: bits of one IV; with a file of links, as it travels.
        network: the links.
        coded: the aggregators if IVs are coded: the best choice with relays; the server alone may take less time.
        secure: what secure sums promise, see `Secure.describe`, and the `bits` that they add to a round, by kind of
            message and tier, all of them overhead; None: nobody asked for it.
        failures: rounds without the relays whose failure is planned for, after one with all relays.
    """

    K: int
    H: int
    r: float
    names: Names
    V_bits: int
    network: Network
    coded: str | list[int | str]
    secure: dict[str, Any] | None
    failures: list[Failure]


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
            `uncoded`, `coded`, `sums`, or `secure` sums, with all that these add.
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
        costs: the price of a round by choice; empty: the file has no prices.
        sums_seconds: the time for learners that need only sums, of 64 bits or of the format's few bits.
        every: whether these are all choices.
        secure_seconds: the time of secure sums of 64 bits.
        links: what a round needs of each node's link by what travels, see `Failure.seconds`.
    """

    uncoded: float
    uncoded_bound: float
    choices: list[tuple[str | list[int | str], float]]
    costs: list[float]
    sums_seconds: float
    every: bool
    secure_seconds: float | None
    links: dict[str, list[LinkUse]]


def comparison(
    t: Topology,
    network: Network,
    V_bits: int,
    wire: str | None = None,
    secure: Secure | None = None,
    fail: str | None = None,
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
        fail: a relay without which a round is computed, too, or `each`; None: none.

    Raises:
        ConfigError: the format or the relay is unknown, or there are too few users for secure sums.
    """
    check_wire(wire)
    m = -(-V_bits // 64)
    compared: dict[str, Any] = {"K": t.K, "H": t.H, "r": t.r, "names": t.names, "V_bits": V_bits, "network": network}
    added = price(SumsOfRows(secure=secure), t, network, m).added if secure else {}
    compared["secure"] = secure.describe(t.K, t.G) | {"bits": added} if secure else None
    failed = _failing(t, fail)
    if network.links:
        return _by_seconds(t, network, m, wire, secure, failed, compared)
    media, uplinks = {medium: replace(network, medium=medium) for medium in MEDIA}, network.uplinks(t)
    recipes = {scheme: IVs(scheme, aggregators="all") for scheme in CODED_SCHEMES} | {"uncoded": UNCODED}
    by_scheme = {scheme: loads(t, scheme, uplinks) for scheme in SCHEMES}
    obstacles = {scheme: reason for scheme in CODED_SCHEMES if (reason := obstacle(t, scheme))}
    least, partition = demand_of(t).optimum
    best = {medium: _best(t, media, medium, m) for medium in MEDIA}
    tried = [each.nodes for each in (best[network.medium], *best.values()) if each.relays]
    nodes = tried[0] if tried else AggregatorSet(t.active, server=False)
    ways = _ways(nodes, wire)
    return Comparison(
        **compared,
        coded=nodes.setting,
        failures=_failures(t, network, m, ways, failed),
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
            each or "null": _in_format(t, network, nodes, m, each, secure) for each in dict.fromkeys((None, wire))
        },
        secure_sums=_adding(t, media, m, SumsOfRows(secure=secure)) if secure else None,
    )


def _by_seconds(
    t: Topology,
    network: Network,
    m: int,
    wire: Wire,
    secure: Secure | None,
    failed: list[int],
    compared: dict[str, Any],
) -> Timetable:
    access, bits = network.access(t), row_bits(wire, m, torch.float64)
    assert access is not None
    trips = [Trip(access, t.G, up) for up in (True, False)]
    beyond = bits * sum(trip.seconds(trip.fastest()) - trip.bound for trip in trips)
    coded = {nodes: each for nodes, each in cheapest(IVs(wire=wire), t, network, m).items() if each.seconds < inf}
    nodes = next((each for each in coded if each.relays), next(iter(coded)))
    ways = _ways(nodes, wire)
    prices = {what: price(recipe, t, network, m) for what, recipe in ways.items()}
    plain = prices["uncoded"].seconds
    return Timetable(
        **{**compared, "V_bits": bits},
        coded=nodes.setting,
        failures=_failures(t, network, m, ways, failed),
        uncoded=plain,
        uncoded_bound=plain - beyond,
        choices=[(nodes.setting, each.seconds) for nodes, each in coded.items()],
        costs=[each.cost for each in coded.values() if each.cost is not None],
        sums_seconds=prices["sums"].seconds,
        every=len(coded) == (2 << len(t.active)) - 1,
        secure_seconds=price(SumsOfRows(secure=secure), t, network, m).seconds if secure else None,
        links={what: _link_uses(each, access) for what, each in prices.items()},
    )


def _link_uses(priced: Price, access: Access) -> list[LinkUse]:
    links, prices = priced.links, access.prices
    assert links is not None
    seconds = (links / access.links[:, :2]).max(axis=1).tolist()
    costs = [None] * len(seconds) if prices is None else ((links * prices).sum(axis=1) / BITS_PER_GB).tolist()
    return [LinkUse(*each) for each in zip(access.names, *(links.T / 8).tolist(), seconds, costs, strict=True)]


def _ways(nodes: AggregatorSet, wire: Wire) -> dict[str, Recipe]:
    """Return how a round can travel; sums have no format of 16 or 32 bits, and 64 then."""
    coded, sums = IVs(aggregators=nodes.setting, wire=wire), SumsOfRows(wire=wire if suits_sums(wire) else None)
    return {"uncoded": IVs("uncoded", wire=wire), "coded": coded, "sums": sums}


def _failing(t: Topology, fail: str | None) -> list[int]:
    """Return the numbers of the relays that the setting `fail` names; raise ConfigError if there is no such relay."""
    named = [] if fail is None else list(t.active) if fail == "each" else t.names.numbers([fail])
    named = [int(i) if str(i).isdecimal() else i for i in named]
    if any(i not in t.active for i in named):
        relays = few([str(t.names.relay(i)) for i in t.active])
        remedy = did_you_mean(str(fail), ["each", *t.names.relays], f"Choose each, or one of {relays}.")
        raise ConfigError(f"fail={fail} is not a relay with users. {remedy}")
    return [i for i in named if isinstance(i, int)]


def _failures(t: Topology, network: Network, m: int, ways: dict[str, Recipe], failed: list[int]) -> list[Failure]:
    failures = list[Failure]()
    for i in [None, *failed] if failed else []:
        left = t.restricted(relays=set(range(t.H)) - {i})
        played, absent = ways if left.active else {}, () if i is None else (i,)
        prices = {what: price(recipe, t, network, m, absent=absent) for what, recipe in played.items()}
        failures.append(
            Failure(
                relay=None if i is None else t.names.relay(i),
                cut_off=len(t.present) - len(left.present),
                seconds={what: each.seconds for what, each in prices.items()},
                cost={what: each.cost for what, each in prices.items() if each.cost is not None},
            )
        )
    return failures


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
    recipes = _ways(nodes, wire)
    if not suits_sums(wire):
        del recipes["sums"]
    elif secure:
        recipes["secure"] = SumsOfRows(wire=wire, secure=secure)
    costs = {}
    for what, recipe in recipes.items():
        priced = price(recipe, t, network, m)
        total = {tier: float(priced.bits[tier].sum()) for tier in TIERS}
        seconds = {
            each: network.seconds({tier: priced.bits[tier] * (tier == each) for tier in TIERS}) for each in TIERS
        }
        hops = {tier: (total[tier] / 8, seconds[tier]) for tier in TIERS}
        costs[what] = RoundCost(total[RELAYS_TO_SERVER] + total[SERVER_TO_RELAYS], priced.seconds, hops)
    return costs


def _between(load: Loads) -> dict[str, float]:
    """Return the loads between relays and server, on a broadcast downlink."""
    return {RELAYS_TO_SERVER: load.uplink, SERVER_TO_RELAYS: load.downlink}
