"""The base of all communicators, which makes the nodes of a learner and plays rounds.

K users, H relays, m numbers per IV.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hmtl.coding import Aggregators, AggregatorSet, Loads, Plan, Scheme, bounds, loads, make_plan, scheme_of
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
from hmtl.communication.attendance import Attendance, Report
from hmtl.communication.coders import AggregatorCoder, QuantisedAggregatorCoder, QuantisedUserCoder, UserCoder
from hmtl.communication.links import InProcess, Links
from hmtl.communication.messages import SERVER, relay_name
from hmtl.communication.nodes.aggregation import Aggregation, AggregatorSide
from hmtl.communication.nodes.host import Host, UserSide
from hmtl.communication.nodes.relay import Relay
from hmtl.communication.nodes.server import Server
from hmtl.communication.planning.flow import Recipe
from hmtl.communication.planning.ivs import IVs
from hmtl.communication.planning.planner import MakePlan, Planner, preferred_aggregators
from hmtl.communication.round import Nodes, Outcome, Schedule, Stopwatch, play
from hmtl.communication.timed import TimedLinks
from hmtl.communication.wires import FLOATS, Wire, check_wire, quantiser_of, rounding
from hmtl.topology import Moving, Names, Topology

SETUP_ROUND = -1  # number of the round in which a set-up is exchanged
NOBODY = np.empty(0, np.int64)
KEPT = 16  # planners, in case a topology recurs

PLAIN = Schedule()

MakeLinks = Callable[[LinkLedger], Links]


@dataclass
class Planning:
    """The cost of changes in the network: users who move, and users and relays that drop out.

    Attributes:
        plans: number of plans made during the rounds; a resumed run may make some of them twice.
        seconds: time it took to make them; all nodes plan at the same time.
        handover_bits: bits of aggregators' state that were handed to relays that had missed rounds.
    """

    plans: int = 0
    seconds: float = 0.0
    handover_bits: int = 0


class Communicator:
    """The base of all communicators.

    Args:
        contacts: who hears whom, in all rounds or round by round.
        network: bandwidths and media.
        scheme: what is sent: a name in `hmtl.coding.SCHEMES`, or a `Scheme` of your own.
        wire: the format in which numbers travel, see `hmtl.communication.wires`; None: their own type.
        links: makes the links that carry the messages.
        make: makes the scheme's plans.
        aggregators: who computes the models, see `hmtl.coding.resolve`.

    Attributes:
        topology: who hears whom in the current round.
        aggregators: the choice of who computes the models.
        planner: plans for this topology.
        planning: cost of changing plans so far.
        ledger: bits of every link.
        stopwatch: CPU time of the current round.
        V_bits: bits of one IV on the wire; 0 before the first round.
        setup_seconds: communication time of the set-up, and the time that it takes uncoded.
        alike: makes a communicator with the same settings, from a topology, a network, `links` and others to change.
        row_type: of an IV; integers for sums.
    """

    alike: "Callable[..., Communicator]"
    row_type = torch.float64

    def __init__(
        self,
        contacts: Topology | Moving,
        network: Network,
        scheme: str | Scheme,
        wire: Wire = None,
        links: MakeLinks = InProcess,
        make: MakePlan = make_plan,
        aggregators: Aggregators = "all",
    ) -> None:
        check_wire(wire)
        self.contacts, self.topology, self.network, self.wire = contacts, contacts.at(0), network, wire
        network.uplinks(self.topology)  # raises if uplink_bps has another number of relays
        self.scheme, self.aggregators = scheme_of(scheme), aggregators
        self._chosen = chosen = preferred_aggregators(contacts, network, scheme, aggregators)
        self._planner_of = lru_cache(KEPT)(lambda t: Planner(t, network, chosen.relays, make, server=chosen.server))
        self.planner: Planner = self._planner_of(self.topology)
        self.planning = Planning()
        self.ledger, self.stopwatch = LinkLedger(contacts.K, contacts.H, self.topology.names), Stopwatch()
        access = network.access(self.topology)
        self.make_links, self._links = links, links(self.ledger)
        if access and type(self._links) is InProcess:
            self._links = TimedLinks(self.ledger, contacts, access)
        self.V_bits = 0
        self._dtype = ""  # of the models
        self._sides: tuple[UserSide, AggregatorSide] | None = None
        self._nodes: Nodes | None = None
        self._memory: dict[str, Any] = {}  # state of nodes that have not been made yet
        self._server: Server | None = None  # after the last round, if it is in this process
        self._theory: dict[Topology, NDArray[np.float64]] = {}
        self._predictions: dict[tuple[Topology, bool, int], float] = {}
        self.setup_seconds: tuple[float, ...] = (0.0, 0.0)
        self._setup_exchanges = 0

    @property
    def plan(self) -> Plan:
        """The plan for a round in which everybody is present."""
        return self.planner.plan

    @property
    def theory(self) -> Loads:
        """The loads between relays and server of a round in which everybody takes part."""
        if self.scheme.code:
            return self.plan.loads
        return loads(self.topology, self.scheme.name, self.network.uplinks(self.topology))

    def for_rows(self, V_bits: float) -> "Communicator":
        """Return this communicator with those aggregators with which rows of V bits take the least time.

        It is itself unless it chooses its aggregators (`aggregators=auto`) by a file of links.
        """
        if self.network.links is None or self.aggregators != "auto":
            return self
        from hmtl.communication.prediction import by_seconds  # late, since it imports this module

        best = next(iter(by_seconds(self.alike, self.topology, self.network, V_bits, self.row_type)))
        if best == AggregatorSet(self.planner.preferred, self.planner.server):
            return self
        chosen = self.alike(self.contacts, self.network, links=self.make_links, aggregators=best.setting)
        chosen.aggregators = self.aggregators
        return chosen

    def attach(self, users: UserSide, aggregator: AggregatorSide) -> None:
        """Make the nodes of this learner, unless they exist already."""
        if self._sides is None or self._sides[0] is not users or self._sides[1] is not aggregator:
            self._sides, self._nodes = (users, aggregator), self._make_nodes(users, aggregator)
            self._nodes.load_state_dict(self._memory)

    def setup(self, users: UserSide, aggregator: AggregatorSide) -> None:
        """Exchange what has to be known before the first round; the ledger counts it as SETUP."""
        server = self._play(SETUP_ROUND, self._make_nodes(users, aggregator))
        self._setup_exchanges += 1
        if server:
            uncoded = self._uncoded_seconds(self._sent(SETUP), server, self._setup_exchanges)
            self.setup_seconds = self.seconds(SETUP), uncoded

    def round(
        self, number: int, users: UserSide, aggregator: AggregatorSide, absent_relays: Collection[int] = ()
    ) -> Outcome:
        """Play one round: IVs up, the global update, models down. Nothing is sent if m = 0.

        Args:
            number: number of the round, ascending.
            users, aggregator: the two sides of the learner, the same in every round.
            absent_relays: relays that take no part.

        Returns:
            The outcome as the server knows it. In a process without the server, it names no users or relays.

        Raises:
            CodingError: IVs or models do not have one row per user, or aggregators hold different ones.
        """
        self._follow(number)
        self.attach(users, aggregator)
        assert self._nodes is not None
        present = [relay for relay in self._nodes.relays if relay.i not in absent_relays]
        names = [name for i, name in enumerate(self._nodes.relay_names) if i not in absent_relays]
        self.ledger.begin_round()
        self._server = None
        if not users.numbers:
            active = NOBODY
            if self._nodes.hosts:  # a process without users has nothing to do
                active, _ = users.local_update(number)
                users.commit(active)
            return Outcome(active, tuple(relay.i for relay in present), (), empty=False)
        self._server = self._play(number, replace(self._nodes, relays=present, relay_names=names))
        for host in self._nodes.hosts:
            self.V_bits, self._dtype = 8 * host.nbytes, str(host.dtype).split(".")[-1]
        if self._server is None:
            return Outcome(NOBODY, (), (), empty=False)
        self.V_bits = 8 * self._server.sizes[0] or self.V_bits
        attendance, empty = self._server.attendance, self._server.empty
        if isinstance(self.contacts, Moving) and attendance.heard == self.topology:
            self._theory_of(number)  # the round's plan exists now
        counted = NOBODY if empty else attendance.users
        return Outcome(counted, attendance.relays, attendance.aggregators, empty)

    def seconds(self, round: int | str = -1) -> float:
        """Return the communication time of the last round, or of SETUP; see `Network.seconds`.

        With a file of links, it is that of all messages as they wait for each other; between processes, that of a round
        in which everybody takes part.
        """
        if self.network.links is None:
            return self.network.seconds(self._sent(round))
        if self._links.seconds is not None:
            return self._links.seconds
        return self._predicted(self._sent(round), coded=round != SETUP)

    def uncoded_seconds(self) -> float:
        """Return the communication time that the last round would take uncoded."""
        return self._uncoded_seconds(self._sent(-1), self._server) if self._server else 0.0

    def describe(self) -> dict[str, Any]:
        """Return what `summary.json` reports about communication."""
        *figures, r = np.mean([self._theory_of(number) for number in self._described_rounds], axis=0).tolist()
        between = RELAYS_TO_SERVER, SERVER_TO_RELAYS
        described: dict[str, Any] = {
            "r": r,
            "communicator": "coded" if self.scheme.code else "uncoded",
            "scheme": self.scheme.name,
            "aggregators": _named(self.topology.names, AggregatorSet(self.planner.preferred, self.planner.server)),
            "medium": self.network.medium,
            "V_bits": self.V_bits,
            "loads": self.ledger.loads(self.V_bits),
            "loads_theory": dict(zip(between, figures[:2], strict=True)),
            "bounds": dict(zip(between, figures[2:], strict=True)),
        }
        if self.planning.handover_bits:
            described["handover_bits"] = self.planning.handover_bits
        if note := rounding(self.wire, self._dtype):
            described["note"] = note
        return described

    def state_dict(self) -> dict[str, Any]:
        """Return what later rounds depend on, as tensors and numbers in plain dictionaries."""
        return {
            "ledger": self.ledger.state_dict(),
            "V_bits": self.V_bits,
            "dtype": self._dtype,
            "setup_seconds": list(self.setup_seconds),
            "planning": list(astuple(self.planning)),
            "nodes": self._nodes.state_dict() if self._nodes else self._memory,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`, with the same bits."""
        self.ledger.load_state_dict(state["ledger"])
        self.V_bits, self._dtype = int(state["V_bits"]), str(state["dtype"])
        self.setup_seconds = tuple(state["setup_seconds"])
        self.planning = Planning(*state["planning"])
        self._memory = state["nodes"]
        self._sides = self._nodes = None  # `attach` makes new ones

    def _make_nodes(self, users: UserSide, aggregator: AggregatorSide) -> Nodes:
        """Make the nodes of this process."""
        aggregation = Aggregation(self.topology.K, aggregator, self._aggregator_coder(users), not self._links.reliable)
        return self._local_nodes(users, IVs(), aggregation, self._user_coder)

    def _local_nodes(
        self,
        users: UserSide,
        recipe: Recipe,
        aggregation: Aggregation,
        coder: Callable[[UserSide, NDArray[np.int64]], UserCoder],
        host: Callable[..., Host] = Host,
        relay: Callable[..., Relay] = Relay,
        server: Callable[..., Server] = Server,
        schedule: Schedule = PLAIN,
    ) -> Nodes:
        """Make those nodes of the network that this process plays."""
        planner, plays = self.planner, self._links.plays
        homes = self._links.homes(self.topology.K)
        names = [relay_name(i) for i in range(self.topology.H)]
        at_relays = aggregation if planner.preferred else None
        at_server = aggregation if planner.server else None
        return Nodes(
            [
                host(planner, recipe, users, coder(users, ids), n, ids)
                for n, (name, ids) in enumerate(homes.items())
                if plays(name)
            ],
            [relay(i, planner, recipe, list(homes), at_relays) for i, name in enumerate(names) if plays(name)],
            server(planner, recipe, at_server) if plays(SERVER) else None,
            aggregation,
            schedule,
            list(homes),
            names,
        )

    def _user_coder(self, users: UserSide, members: NDArray[np.int64]) -> UserCoder:
        quantiser = quantiser_of(self.wire)
        if quantiser and users.numbers:  # a set-up has none
            return QuantisedUserCoder(users, quantiser, members)
        return UserCoder(users, self._float_type)

    def _aggregator_coder(self, users: UserSide) -> AggregatorCoder:
        quantiser = quantiser_of(self.wire)
        if quantiser and users.numbers:
            return QuantisedAggregatorCoder(users, quantiser, self.topology.K)
        return AggregatorCoder(users.numbers, self._float_type)

    @property
    def _float_type(self) -> torch.dtype | None:
        return FLOATS.get(self.wire) if isinstance(self.wire, str) else None

    def _follow(self, round: int) -> None:
        """Switch to the contacts of a round, if they differ from the current ones."""
        if (t := self.contacts.at(round)) is self.topology:
            return
        self.topology, self.planner = t, self._planner_of(t)
        if self._nodes:
            self._nodes.follow(self.planner)

    def _play(self, number: int, nodes: Nodes) -> Server | None:
        self.stopwatch, plans_before = Stopwatch(), self.planner.plans_made
        play(number, nodes, self._links, self.stopwatch)
        if number != SETUP_ROUND:
            if plans := self.planner.plans_made - plans_before:
                self.planning.plans += plans
                self.planning.seconds += self.stopwatch.slowest("planning")
            self.planning.handover_bits += nodes.server.handover_bits if nodes.server else 0
        return nodes.server

    @property
    def _described_rounds(self) -> range:
        """The rounds so far; only one if users do not move, since then all rounds are alike."""
        return range(max(1, self.ledger.rounds if isinstance(self.contacts, Moving) else 0))

    def _theory_of(self, round: int) -> NDArray[np.float64]:
        """Return loads by formula, their bounds, and r, for a round in which everybody is present."""
        self._follow(round)
        if self.topology not in self._theory:
            bound, medium = bounds(self.topology, aggregators=self.planner.usual.setting), self.network.medium
            theory = tier_loads(self.topology, self.scheme.name, medium, self.theory)
            up, down = (float(theory[tier].sum()) for tier in (RELAYS_TO_SERVER, SERVER_TO_RELAYS))
            self._theory[self.topology] = np.array([up, down, bound.uplink, bound.down(medium), self.topology.r])
        return self._theory[self.topology]

    def _sent(self, round: int | str) -> dict[str, NDArray[np.int64]]:
        return {tier: self.ledger.per_link(tier, round).sum(axis=1) for tier in TIERS}

    def _uncoded_seconds(self, sent: Mapping[str, NDArray[np.int64]], server: Server, times: int = 1) -> float:
        """Return the time that the messages `sent` would take uncoded.

        Relays then forward what users send and receive; reports and the attendance stay the same.
        """
        if self.network.links is not None:
            return self._predicted(sent, coded=False)
        attendance = server.attendance
        present, relays = attendance.users, attendance.relays
        up = np.zeros(self.topology.H)
        np.add.at(up, self.planner.forwarders(attendance.heard)[present], sent[USERS_TO_RELAYS][present])
        for i in relays:
            up[i] += 8 * times * Report.nbytes(self.topology, i)
        copies = len(relays) if self.network.medium == "unicast" else min(len(relays), 1)
        down = sent[RELAYS_TO_USERS].sum() + 8 * times * copies * Attendance.nbytes(self.topology)
        return self.network.seconds({**sent, RELAYS_TO_SERVER: up, SERVER_TO_RELAYS: down})

    def _predicted(self, sent: Mapping[str, NDArray[np.int64]], coded: bool) -> float:
        """Return the seconds of a round over access links whose rows are as long as the longest that users sent."""
        from hmtl.communication.communicators.ivs import Uncoded  # late, since these import this module
        from hmtl.communication.prediction import predict

        V_bits, key = int(sent[USERS_TO_RELAYS].max()), (self.topology, coded)
        if V_bits and self._predictions.get((*key, V_bits)) is None:
            make, dtype = (self.alike, self.row_type) if coded else (Uncoded, torch.float64)
            self._predictions[*key, V_bits] = predict(make, self.topology, self.network, V_bits, dtype)
        return self._predictions.get((*key, V_bits), 0.0)


def _named(names: Names, nodes: AggregatorSet) -> str | list[int | str]:
    """Return nodes as in the setting `aggregators`, by their names if they have any."""
    return nodes.setting if isinstance(nodes.setting, str) else names.of_relays(nodes.setting)
