"""The faces of communication: a communicator chooses plan and nodes for a network, and plays rounds on it.

K users, H relays, m numbers per IV.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.coding import Loads, bounds, scheme_of
from hmtl.communication.accounting.ledger import (
    RELAYS_TO_SERVER,
    RELAYS_TO_USERS,
    SERVER_TO_RELAYS,
    SETUP,
    TIERS,
    USERS_TO_RELAYS,
    LinkLedger,
)
from hmtl.communication.accounting.network import Network, tier_loads
from hmtl.communication.accounting.stopwatch import Stopwatch
from hmtl.communication.attendance import Attendance, Report
from hmtl.communication.encoding import WIRES, rounding
from hmtl.communication.links import InProcess, Links
from hmtl.communication.messages import SERVER, Users, relay_name
from hmtl.communication.nodes.aggregator import Aggregation, AggregatorSide
from hmtl.communication.nodes.host import UserHost, UserSide
from hmtl.communication.nodes.relay import Relay
from hmtl.communication.nodes.server import Server
from hmtl.communication.planning.planners import Planners, Planning
from hmtl.communication.round import Nodes, Outcome, play
from hmtl.errors import ConfigError
from hmtl.topology import Moving, Topology

BEFORE = -1  # the number of the set-up round
NOBODY = np.empty(0, np.int64)


class Communicator(ABC):
    """Base of all transports.

    Args:
        topology: who hears whom, in all rounds or round by round; the attribute is that of the round in work.
        network: the links.
        scheme: one of `hmtl.coding.SCHEMES`: what is sent.
        wire: how numbers travel, a name of WIRES; None sends them as they are.
        links: how messages travel.
        plans: settings of the scheme's plans, see `Planner`.
    """

    def __init__(
        self,
        topology: Topology | Moving,
        network: Network,
        scheme: str,
        wire: str | None = None,
        links: Callable[[LinkLedger], Links] = InProcess,
        **plans: Any,
    ) -> None:
        if wire is not None and wire not in WIRES:
            raise ConfigError(f"wire={wire} is unknown: choose one of {', '.join(WIRES)}, or null for no conversion.")
        self.contacts, self.topology, self.network, self.wire = topology, topology.at(0), network, wire
        network.uplinks(self.topology)  # refuses links that do not fit
        self.scheme = scheme_of(scheme)
        self._planners, self.planning = Planners(topology, network, scheme, **plans), Planning()
        self.planner = self._planners.of(self.topology)
        self._figures: dict[Topology, NDArray[np.float64]] = {}
        self.ledger, self.stopwatch = LinkLedger(topology.K, topology.H), Stopwatch()
        self.V_bits = 0  # of one IV on the wire, known from the first round on
        self.make_links, self._links = links, links(self.ledger)
        self._nodes: Nodes | None = None
        self._sides: tuple[UserSide, AggregatorSide] | None = None
        self._memory: dict[str, Any] = {}  # of nodes that are still to be made
        self._server: Server | None = None  # as it was in the last round
        self._dtype = ""  # of the models
        self._before = [0.0, 0.0]  # seconds of the set-up, and what they were uncoded
        self._setups = 0

    def meet(self, aggregator: AggregatorSide) -> None:  # noqa: B027, most take any
        """Refuse a learner that cannot be served, before the first round."""

    def seat(self, users: UserSide, aggregator: AggregatorSide) -> None:
        """Make the nodes of this learner, unless they are there."""
        if self._sides is None or self._sides[0] is not users or self._sides[1] is not aggregator:
            self._sides, self._nodes = (users, aggregator), self._cast(users, aggregator)
            self._nodes.load_state_dict(self._memory)

    def setup(self, users: UserSide, aggregator: AggregatorSide) -> None:
        """Exchange what has to be known before the first round, in one turn or more; the ledger counts it as SETUP."""
        server = self._play(BEFORE, self._cast(users, aggregator))
        self._setups += 1
        if server:
            self._before = [self.seconds(SETUP), self._uncoded_seconds(self._sent(SETUP), server, self._setups)]

    def round(
        self, number: int, users: UserSide, aggregator: AggregatorSide, absent_relays: Collection[int] = ()
    ) -> Outcome:
        """One round: IVs up, the global update, models down; every bit in the ledger. Nothing travels where m = 0.

        Args:
            number: of the round, counted up.
            users, aggregator: the two sides of the learner, the same in each round.
            absent_relays: who takes no part.

        Returns:
            What came of it, as the server knows; at an end of the links without it, of nobody.

        Raises:
            CodingError: IVs or models have not one row for each user, or aggregators hold different ones.
        """
        self._follow(number)
        self.seat(users, aggregator)
        assert self._nodes is not None
        there = [relay for relay in self._nodes.relays if relay.i not in absent_relays]
        names = [name for i, name in enumerate(self._nodes.all_relays) if i not in absent_relays]
        self.ledger.begin_round()
        self._server = None
        if not users.numbers:
            took_part, _ = users.local_update(number)
            users.commit(took_part)
            return Outcome(took_part, tuple(relay.i for relay in there), (), empty=False)
        self._server = self._play(number, replace(self._nodes, relays=there, all_relays=names))
        for host in self._nodes.hosts:
            self.V_bits, self._dtype = 8 * host.nbytes, str(host.dtype).split(".")[-1]
        if self._server is None:
            return Outcome(NOBODY, (), (), empty=False)
        self.V_bits = 8 * self._server.sizes[0] or self.V_bits
        attendance, empty = self._server.attendance, self._server.empty
        if isinstance(self.contacts, Moving) and attendance.heard == self.topology:
            self._figures_in(number)  # now that it is planned
        counted = NOBODY if empty else attendance.users
        return Outcome(counted, attendance.relays, attendance.aggregators, empty)

    def seconds(self, round: int | str = -1) -> float:
        """Communication time of a round, or of the ledger's SETUP; see `Network.seconds`."""
        return self.network.seconds(self._sent(round))

    def uncoded_seconds(self) -> float:
        """What the communication of the last round had taken with nothing coded, and the server as aggregator."""
        return self._uncoded_seconds(self._sent(-1), self._server) if self._server else 0.0

    @property
    @abstractmethod
    def theory(self) -> Loads:
        """The loads between relays and server of a round in which all take part."""

    @property
    def setup_seconds(self) -> tuple[float, float]:
        """Communication time of the set-up, and what it had been with nothing coded."""
        return self._before[0], self._before[1]

    def describe(self) -> dict[str, Any]:
        """What `summary.json` says of communication."""
        *figures, r = np.mean([self._figures_in(number) for number in self._told], axis=0).tolist()
        between = RELAYS_TO_SERVER, SERVER_TO_RELAYS
        return {
            "r": r,
            "communicator": "coded" if self.scheme.code else "uncoded",
            "scheme": self.scheme.name,
            "aggregators": list(self.planner.home) or "server",
            "medium": self.network.medium,
            "V_bits": self.V_bits,
            "loads": self.ledger.loads(self.V_bits),
            "loads_theory": dict(zip(between, figures[:2], strict=True)),
            "bounds": dict(zip(between, figures[2:], strict=True)),
            **({"handover_bits": bits} if (bits := self.planning.handover_bits) else {}),
            **({"note": note} if (note := rounding(self.wire, self._dtype)) else {}),
        }

    def state_dict(self) -> dict[str, Any]:
        """All that later rounds build on, as tensors and numbers in plain dictionaries."""
        return {
            "ledger": self.ledger.state_dict(),
            "V_bits": self.V_bits,
            "dtype": self._dtype,
            "setup_seconds": list(self._before),
            "planning": list(astuple(self.planning)),
            "nodes": self._nodes.state_dict() if self._nodes else self._memory,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, to the same bits."""
        self.ledger.load_state_dict(state["ledger"])
        self.V_bits, self._dtype = int(state["V_bits"]), str(state["dtype"])
        self._before = [float(seconds) for seconds in state["setup_seconds"]]
        self.planning = Planning(*state["planning"])
        self._memory = state["nodes"]
        if self._nodes:
            self._nodes.load_state_dict(self._memory)

    def _cast(self, users: UserSide, aggregator: AggregatorSide) -> Nodes:
        """The nodes at this end of the links."""
        K, wire = self.topology.K, WIRES[self.wire] if self.wire else None
        seat = Aggregation(K, aggregator, users.numbers, wire, revocable=not self._links.sure)
        at_relays, at_server = (seat, None) if self.planner.home else (None, seat)
        return self._here(
            lambda n, mine: UserHost(K, users, wire, n, mine),
            lambda i, hosts: Relay(i, self.planner, at_relays, hosts, self._links.sure),
            lambda: Server(self.planner, at_server),
            seat,
        )

    def _here(
        self,
        host: Callable[[int, Users], UserHost],
        relay: Callable[[int, Sequence[str]], Relay],
        server: Callable[[], Server],
        seat: Aggregation | None,
    ) -> Nodes:
        """Of all the nodes that could be made, those at this end of the links."""
        homes, relays = self._links.homes(self.topology.K), [relay_name(i) for i in range(self.topology.H)]
        plays = self._links.plays
        return Nodes(
            [host(n, mine) for n, (name, mine) in enumerate(homes.items()) if plays(name)],
            [relay(i, list(homes)) for i, name in enumerate(relays) if plays(name)],
            server() if plays(SERVER) else None,
            seat,
            list(homes),
            relays,
        )

    def _follow(self, round: int) -> None:
        """Go on with the contacts of a round, if they are others."""
        if (t := self.contacts.at(round)) is self.topology:
            return
        self.topology, self.planner = t, self._planners.of(t)
        if self._nodes:
            self._nodes.follow(self.planner)

    @property
    def _told(self) -> range:
        """The rounds so far; or where users stay one of them, as they are all alike."""
        return range(max(1, self.ledger.rounds if isinstance(self.contacts, Moving) else 0))

    def _figures_in(self, round: int) -> NDArray[np.float64]:
        """Loads between relays and server by the formula, what bounds them, and r, when all are there."""
        self._follow(round)
        if self.topology not in self._figures:
            bound, medium = bounds(self.topology, aggregators=self.planner.usual or "server"), self.network.medium
            theory = tier_loads(self.topology, self.scheme.name, medium, self.theory)
            up, down = (float(theory[tier].sum()) for tier in (RELAYS_TO_SERVER, SERVER_TO_RELAYS))
            self._figures[self.topology] = np.array([up, down, bound.uplink, bound.down(medium), self.topology.r])
        return self._figures[self.topology]

    def _play(self, number: int, nodes: Nodes) -> Server | None:
        self.stopwatch, made = Stopwatch(), self.planner.made
        play(number, nodes, self._links, self.stopwatch, coded=bool(self.planner.home))
        if number != BEFORE:
            handed_over = nodes.server.handed_over if nodes.server else 0
            self.planning.add(self.planner.made - made, self.stopwatch.slowest("planning"), handed_over)
        return nodes.server

    def _sent(self, round: int | str) -> dict[str, NDArray[np.int64]]:
        return {tier: self.ledger.per_link(tier, round).sum(axis=1) for tier in TIERS}

    def _uncoded_seconds(self, sent: Mapping[str, NDArray[np.int64]], server: Server, times: int = 1) -> float:
        """What users send goes on to the server, what they get comes from it; who is there is told as here."""
        attendance = server.attendance
        present, there = attendance.users, np.flatnonzero(attendance.there)
        up = np.zeros(self.topology.H)
        np.add.at(up, self.planner.forwarders(attendance.heard)[present], sent[USERS_TO_RELAYS][present])
        up[there] += [8 * times * Report.nbytes(self.topology, i) for i in there.tolist()]
        copies = len(there) if self.network.medium == "unicast" else min(len(there), 1)
        down = sent[RELAYS_TO_USERS].sum() + 8 * times * copies * Attendance.nbytes(self.topology)
        return self.network.seconds({**sent, RELAYS_TO_SERVER: up, SERVER_TO_RELAYS: down})
