"""Plans of a network, which every node derives by itself; `ivs` and `sums` say what each node sends by them.

`hmtl.communication.prices.sums_or_ivs` chooses between the two.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hmtl.coding import MAX_SUM_PIECES, AggregatorSet, Plan, SumCode, Uplinks, forwarders, make_plan, sum_code
from hmtl.communication.accounting.network import Network
from hmtl.communication.attendance import Attendance, Report, decide
from hmtl.communication.flows.routes import Trip
from hmtl.topology import Moving, Topology

T = TypeVar("T")
SUMS = ("auto", "coded", "whole")
"""How rows of sums travel: in shares if this takes less time, also with padding; always in shares; or always whole."""
MakePlan = Callable[..., Plan]
"""Returns the plan for the links over which IVs arrived; takes `uplinks` and `aggregators`, as `make_plan` does."""


class Planner:
    """The plans of a topology, kept in case an attendance recurs.

    The nodes of a process share a planner.

    Args:
        topology: who hears whom when everybody is present.
        network: bandwidths and media.
        preferred: the preferred aggregators among relays. If none of them is present, any relay may aggregate, unless
            the server does. Empty: the server aggregates alone, and nothing is coded.
        make: makes the plans.
        sums: one of `SUMS`: whether relays send rows of sums whole or in shares.
        server: whether the server aggregates beside preferred relays.

    Attributes:
        server: whether the server aggregates.
        access: the links from the network's file; None: it has none.
        plans_made: how many plans and codes were made so far.
        attendance: function from bytes to the attendance that they encode.
        copies: function from relays to which of them get the same message of the server, and on which link: all on
            one, or each its own.
        row_receivers: function from relays to the relay to which each user sends its row [K], or None: to all within
            range. If only the server needs rows, further copies take a link's time in vain.
        forwarders: function from the links over which IVs arrived to the relay that forwards each user's IV [K].
        routes: function from an attendance to the relay that sends each user its model [K], -1 if none does, and
            whether that relay gets it from the server, because it does not aggregate [K].
        plain_routes: function from an attendance to the relays by which plain forwarding would take each user's row to
            the server, and its model back [K] each.
        sum_code: function from links, and the numbers in a row, to the code by which relays send the server the sum of
            these users' terms.
        spread_code: function from the relays that take part, and the numbers in a row, to the code by which they hand
            on the sums to all users within range.
    """

    def __init__(
        self,
        topology: Topology,
        network: Network,
        preferred: tuple[int, ...] = (),
        make: MakePlan = make_plan,
        sums: str = "auto",
        server: bool = False,
    ) -> None:
        self.topology, self.network, self.preferred, self._make, self.sums = topology, network, preferred, make, sums
        self.server, self.access = server or not preferred, network.access(topology)
        self.plans_made = 0
        many = lru_cache(64)
        self._plans = self._kept(self._plan)
        self.attendance = many(lambda content: Attendance.from_bytes(content, topology))
        self.copies, self.row_receivers, self.routes = many(self._copies), many(self._row_receivers), many(self._routes)
        self.plain_routes = many(self._plain_routes)
        self.forwarders = many(lambda heard: forwarders(heard, network.uplinks(heard)))
        self.sum_code = self._kept(lambda heard, L: self._sum_code(heard, network.uplinks(heard), L))
        self.spread_code = self._kept(self._spread_code)

    @property
    def usual(self) -> AggregatorSet:
        """The nodes that aggregate when everybody is present."""
        active = self.topology.active
        relays = tuple(i for i in self.preferred if i in active) or (() if self.server else active)
        return AggregatorSet(relays, self.server)

    @cached_property
    def everybody(self) -> Attendance:
        """The attendance of a round in which everybody is present."""
        reports = {i: Report(np.array(self.topology.N(i), dtype=np.int64), 0, 0, 0) for i in range(self.topology.H)}
        return decide(self.topology, reports, 0, self.preferred, self.server)

    @property
    def plan(self) -> Plan:
        """The plan for when everybody is present."""
        return self._plans(self.topology, self.usual.relays)

    def plan_of(self, attendance: Attendance) -> Plan:
        """Return the plan of a round in which relays aggregate."""
        return self._plans(attendance.heard, attendance.aggregators)

    def _kept(self, make: Callable[..., T]) -> Callable[..., T]:
        """Return a function that makes a plan or a code, counts it, and keeps the last ones."""

        @lru_cache(8)  # they are large
        def made(*network: Any) -> T:
            self.plans_made += 1
            return make(*network)

        return made

    def _copies(self, relays: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], int], ...]:
        if self.network.medium == "unicast":
            return tuple(((i,), i) for i in relays)
        return ((relays, self.topology.H),) if relays else ()

    def _row_receivers(self, relays: tuple[int, ...]) -> NDArray[np.int64] | None:
        if self.access is None or self.preferred:
            return None
        return Trip(self.access, self.topology.restricted(relays=relays).G, up=True).fastest()

    def _routes(self, attendance: Attendance) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        t, here, serving = attendance.reached, attendance.aggregating, attendance.reached.serving
        if self.access:
            serving = Trip(self.access, t.G, up=False, here=here).fastest()
        return serving, (serving >= 0) & ~here[serving]

    def _plain_routes(self, attendance: Attendance) -> tuple[NDArray[np.int64], ...]:
        t = self.topology.restricted(relays=attendance.relays)
        if not self.access:
            return self.forwarders(attendance.heard), t.serving
        return Trip(self.access, attendance.heard.G, up=True).fastest(), Trip(self.access, t.G, up=False).fastest()

    def _spread_code(self, relays: tuple[int, ...], L: int) -> SumCode:
        t = self.topology.restricted(relays=relays)
        if self.access:  # rows come to relays, and go to users
            up, down, _ = self.access.links[1 : 1 + t.H].T
            seconds_of = (1 / down + 1 / up)[list(t.active)]
            return self._sum_code(t, Uplinks(tuple((1 / seconds_of).tolist()), parallel=True), L)
        shares = self._sum_code(t, None, L)
        if self.sums != "auto":
            return shares

        def seconds(code: SumCode) -> float:
            """Return the time of a row from server to users, in seconds for each of its bits."""
            rows, network = code.load * code.padding(L), self.network
            down = min(1.0, rows) if network.medium == "broadcast" else rows
            last = rows if network.last_hop == "broadcast" else len(t.present) * code.padding(L)
            return down / network.W2 + last / network.W1

        return min(sum_code(t, None, 1), shares, key=seconds)

    def _sum_code(self, t: Topology, uplinks: Uplinks | None, L: int) -> SumCode:
        return sum_code(t, uplinks, 1 if self.sums == "whole" else MAX_SUM_PIECES, L if self.sums == "auto" else 0)

    def _plan(self, heard: Topology, aggregators: tuple[int, ...]) -> Plan:
        uplinks, nodes = self.network.uplinks(heard), AggregatorSet(aggregators, self.server).setting
        return self._make(heard, uplinks=uplinks, aggregators=nodes if isinstance(nodes, str) else tuple(nodes))


def who_may_aggregate(contacts: Topology | Moving) -> Topology:
    """Return a topology whose active relays may have users in some round, not only in the first contacts."""
    return contacts if isinstance(contacts, Topology) else replace(contacts.at(0), G=np.ones_like(contacts.at(0).G))
