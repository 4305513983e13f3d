"""A network whose nodes share no more than planners, as on machines of their own."""

from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import numpy as np
from adding import Total
from changed import Change, Changed

from hmtl.coding import AggregatorSet
from hmtl.communication import LinkLedger, Network, SumsOfRows
from hmtl.communication.flows.recipe import Recipe, Transport
from hmtl.communication.gate import Gate
from hmtl.communication.nodes.aggregation import Aggregation
from hmtl.communication.nodes.host import Host
from hmtl.communication.nodes.relay import Relay
from hmtl.communication.nodes.secure import SecureHost, SecureRelay, SecureServer
from hmtl.communication.nodes.server import Server
from hmtl.communication.round import Nodes, Schedule, Stopwatch, play
from hmtl.communication.secure_round import SecureSchedule
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers
from hmtl.topology import Topology


def with_other_plan(transport: Transport, digest: bytes) -> Transport:
    """Return a transport whose flows say that they follow a plan with this digest."""

    class Other(type(transport)):  # type: ignore[misc]  # a class of its own for each transport
        def flow(self, *args: Any) -> Any:
            return replace(super().flow(*args), digest=digest)

    return Other(**{each.name: getattr(transport, each.name) for each in fields(transport)})


class Apart:
    """Nodes that share nothing but planners, two of them, that must plan the same.

    Planners know nothing of a round but what they are asked. Each aggregator has memory of its own, unless all have one
    that is `shared`, as in one process; `make` returns what aggregates. Each of `sides` has a host.

    Attributes:
        home: the relays that aggregate if they can.
        central: whether the server aggregates.
    """

    def __init__(
        self,
        t: Topology,
        sides: Sequence[ScriptedUsers],
        recipe: Recipe = SumsOfRows(aggregators="server"),  # noqa: B008
        network: Network = Network(),  # noqa: B008
        make: Callable[[], Any] | None = None,
        shared: bool = False,
    ) -> None:
        nodes = AggregatorSet((), server=True) if recipe.secure else recipe.nodes(t, network)
        planners = [recipe.planner(t, network, nodes) for _ in range(2)]
        layout, width = sides[0].row_layout, sides[0].ivs[0].shape[1]
        transport = replace(recipe.transport(layout, t.K, sides[0].hold_meaning()), row_layout=layout)
        host, relay, server, self.schedule = Host, Relay, Server, Schedule()
        if recipe.secure:
            host, relay, server, self.schedule = SecureHost, SecureRelay, SecureServer, SecureSchedule()
        self.t, self.home, self.central = t, nodes.relays, nodes.server

        def aggregation() -> Aggregation:
            if shared and self.made:
                return self.made[0]
            aggregator = make() if make else Total(width) if recipe.adds else ScriptedAggregator(t.K, width)
            _, aggregator, _ = recipe.joined(sides[0], aggregator, planners[0])  # sides send terms if these travel
            self.made.append(Aggregation(aggregator, transport, revocable=True))
            return self.made[-1]

        self.hosts, self.made = [], list[Aggregation]()
        for n, side in enumerate(sides):
            members = np.array(sorted(side.mine))
            self.hosts.append(host(planners[n % 2], transport, side, n, members))
        names = [host.name for host in self.hosts]
        self.relays = [
            relay(i, planners[i % 2], transport, names, aggregation() if self.home else None) for i in range(t.H)
        ]
        self.server = server(planners[0], transport, aggregation() if self.central else None)
        self.links = Changed(LinkLedger(t.K, t.H))
        self.names = [relay.name for relay in self.relays]
        homes = {host.name: host.members for host in self.hosts}
        self.links.members = homes
        self.gate = Gate(transport, homes, self.seats()[-1])

    def play(self, round: int, away: Collection[int] = (), change: Change = Changed.change) -> None:
        self.links.change = change
        self.links.ledger.begin_round()
        there = [relay for relay in self.relays if relay.i not in away]
        nodes = Nodes(self.hosts, there, self.server, self.seats()[-1], self.schedule, self.names, self.gate)
        play(round, nodes, self.links, Stopwatch())

    def seats(self) -> list[Aggregation]:
        """The relays' aggregations, if any, then that of the server."""
        relays = [relay.aggregation for relay in self.relays] if self.home else []
        return relays + ([self.server.aggregation] if self.central else [])

    def aggregators(self) -> list[ScriptedAggregator]:
        return [seat.aggregator for seat in self.seats()]

    @property
    def newest(self) -> Aggregation:
        """That of an aggregator with the present state, once it is settled; all such aggregators have the same."""
        if self.central:
            return self.server.aggregation
        last = self.server.version
        seats = [deepcopy(relay.aggregation) for relay in self.relays if last in (relay.version, relay.prepared)]
        for seat in seats:
            seat.settle(last)
        assert all((seat.state_bytes() == seats[0].state_bytes()).all() for seat in seats)
        return seats[0]

    @property
    def total(self) -> Total:
        return self.newest.aggregator
