"""Which aggregators, and whether sums or IVs travel: the choice with the lowest price.

K users, H relays, m numbers in an IV.
"""

import logging
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from math import inf

import torch

from hmtl.coding import AggregatorSet
from hmtl.communication.accounting.network import Network
from hmtl.communication.codecs.wires import suits_sums
from hmtl.communication.communicators.base import Communicator
from hmtl.communication.flows.recipe import Recipe
from hmtl.communication.flows.sums import SumsOfRows
from hmtl.communication.prices.pricing import Price, price
from hmtl.communication.sides import RowMeaning
from hmtl.errors import CodingError
from hmtl.topology import Topology

log = logging.getLogger(__name__)
MAX_PRICED_RELAYS = 6  # relays; up to this number, all sets are tried if the network is small
MAX_PRICING_WORK = 10**5  # sets that are tried times users and relays, at least two


def cheapest(
    recipe: Recipe, t: Topology, network: Network, m: int, dtype: torch.dtype = torch.float64
) -> dict[AggregatorSet, Price]:
    """Return the price of a round by sets of aggregators, the shortest first: all sets if there are few relays.

    Otherwise, a relay more or less is tried as long as this takes less time and not too many sets were tried.

    Args:
        recipe, t, network, m, dtype: see `price`; the rows are IVs.
    """
    prices: dict[AggregatorSet, Price] = {}
    most = max(2, MAX_PRICING_WORK // (t.K * t.H))

    def shortest(sets: Iterable[AggregatorSet]) -> AggregatorSet:
        for nodes in [nodes for nodes in sets if nodes not in prices][: most - len(prices)]:
            try:
                prices[nodes] = price(replace(recipe, aggregators=nodes.setting), t, network, m, dtype)
            except CodingError:  # these relays cannot aggregate by this scheme
                prices[nodes] = Price({}, inf, inf, {})
            log.debug("choices of aggregators tried: %d of at most %d", len(prices), most)
        return min(prices, key=lambda nodes: (prices[nodes].seconds, len(nodes.relays)))

    alone, everyone = AggregatorSet((), server=True), AggregatorSet(t.active, server=False)
    if len(t.active) <= MAX_PRICED_RELAYS and (2 << len(t.active)) <= most:
        sets = [A for n in range(1, len(t.active) + 1) for A in combinations(t.active, n)]
        best = shortest([alone, *(AggregatorSet(A, server) for A in sets for server in (False, True))])
    else:
        singles = [AggregatorSet((i,), server) for i in t.active for server in (False, True)]
        best, before = shortest([alone, everyone, *singles]), None
        while best != before:
            before, A = best, set(best.relays)
            near = [tuple(sorted(A ^ {i})) for i in t.active]
            best = shortest([AggregatorSet(B, server) for B in near if B for server in (False, True)])
    return dict(sorted(prices.items(), key=lambda item: (item[0] != best, item[1].seconds)))


def chosen(communicator: Communicator, meaning: RowMeaning | None, m: int, dtype: torch.dtype) -> Communicator:
    """Return the communicator whose rounds take the least time: the given one, one with other aggregators, or sums.

    It is the given one unless that has `aggregators=auto`. Aggregators are chosen again only by a file of links.
    Without such a file, sums are compared with IVs by the time between relays and server alone. Sums replace IVs only
    if numbers travel in their own type or in few bits.

    Args:
        communicator: its rows are IVs.
        meaning: what rows mean if sums of them suffice; None: every row is needed.
        m: numbers in an IV.
        dtype: type of these numbers.
    """
    if communicator.aggregators != "auto" or not m:
        return communicator
    t, network, wire = communicator.topology, communicator.network, communicator.recipe.wire
    if network.links:
        communicator = _with_aggregators(communicator, next(iter(cheapest(communicator.recipe, t, network, m, dtype))))
    if meaning is None or not suits_sums(wire):
        return communicator
    recipe = SumsOfRows(wire=wire)
    adding = price(recipe, t, network, meaning.words, dtype, None if wire else meaning.common)
    coding = price(communicator.recipe, t, network, m, dtype)
    if adding.between >= coding.between:
        return communicator
    made = Communicator(communicator.contacts, network, recipe, communicator.make_links)
    where = "a round" if network.links else "between relays and server"
    made.note = f"sums replace coding: {adding.between:.2g} s, not {coding.between:.2g} s, {where}"
    return made


def _with_aggregators(communicator: Communicator, nodes: AggregatorSet) -> Communicator:
    """Return a communicator that differs from this one in its aggregators; itself if it has these."""
    if nodes == AggregatorSet(communicator.planner.preferred, communicator.planner.server):
        return communicator
    recipe = replace(communicator.recipe, aggregators=nodes.setting)
    made = Communicator(communicator.contacts, communicator.network, recipe, communicator.make_links)
    made.aggregators = communicator.aggregators
    _ = made.theory  # plans before the first round
    return made
