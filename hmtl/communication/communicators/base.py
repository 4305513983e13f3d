"""The communicator, which makes the nodes of a learner and plays rounds.

K users, H relays, m numbers per IV.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hmtl.coding import AggregatorSet, Loads, Plan
from hmtl.communication.accounting.access import Paths
from hmtl.communication.accounting.ledger import (
    RELAYS_TO_SERVER,
    RELAYS_TO_USERS,
    SERVER_TO_RELAYS,
    SETUP,
    TIERS,
    USERS_TO_RELAYS,
    LinkLedger,
)
from hmtl.communication.accounting.network import Network
from hmtl.communication.attendance import ATTEMPT_BYTES, Attendance, Report
from hmtl.communication.codecs.wires import name_of
from hmtl.communication.flows.flow import Flow
from hmtl.communication.flows.ivs import UNCODED, IVs
from hmtl.communication.flows.planner import Planner
from hmtl.communication.flows.recipe import Recipe, Transport, flow_of
from hmtl.communication.gate import Gate
from hmtl.communication.links import InProcess, Links
from hmtl.communication.messages import SERVER, relay_name
from hmtl.communication.nodes.aggregation import Aggregation
from hmtl.communication.nodes.host import Host
from hmtl.communication.nodes.relay import Relay
from hmtl.communication.nodes.secure import SecureHost, SecureRelay, SecureServer
from hmtl.communication.nodes.server import Server
from hmtl.communication.round import Nodes, Outcome, Schedule, Stopwatch, play
from hmtl.communication.secure_round import SecureSchedule
from hmtl.communication.sides import AggregatorSide, UserSide
from hmtl.io.arrays import NOBODY
from hmtl.io.described import Described
from hmtl.io.row_layout import RowLayout
from hmtl.topology import Moving, Names, Topology

SETUP_ROUND = -1  # number of the round in which a set-up is exchanged
MAX_PLANNERS = 16  # planners, in case a topology recurs

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


@dataclass(frozen=True)
class NodeKinds:
    """The kinds of the nodes that play a recipe, and the turns that they take."""

    host: Callable[..., Host] = Host
    relay: Callable[..., Relay] = Relay
    server: Callable[..., Server] = Server
    schedule: Schedule = Schedule()  # noqa: RUF009, it has no state


def _kinds(recipe: Recipe) -> NodeKinds:
    if not recipe.secure:
        return NodeKinds()
    return NodeKinds(SecureHost, SecureRelay, SecureServer, SecureSchedule())


class Communicator(Described):
    """Plays the rounds of a learner on a network, and counts what they cost.

    Args:
        contacts: who hears whom, in all rounds or round by round.
        network: bandwidths and media.
        recipe: how the learner's rows travel, such as `IVs` or `SumsOfRows`.
        links: makes the links that carry the messages.

    Attributes:
        topology: who hears whom in the current round.
        recipe: how rows travel, with the aggregators that were chosen.
        transport: how the learner's rows travel; of no numbers before the learner is attached.
        aggregators: the choice of who computes the models, as it was made.
        planner: plans for this topology.
        planning: cost of changing plans so far.
        ledger: bits of every link.
        stopwatch: CPU time of the current round.
        setup_seconds: communication time of the set-up, and the time that it takes uncoded.
        note: why rows travel by this recipe, if it was chosen because it takes less time.
        name: of its nodes, among those of several communicators.
        nodes: the nodes of the learner, once it is attached.
    """

    name = "learner"
    _shown = ("topology", "recipe")

    def __init__(
        self,
        contacts: Topology | Moving,
        network: Network = Network(),  # noqa: B008, it is frozen
        recipe: Recipe = IVs(),  # noqa: B008, it is frozen
        links: MakeLinks = InProcess,
    ) -> None:
        self.contacts, self.topology, self.network = contacts, contacts.at(0), network
        network.uplinks(self.topology)  # raises if uplink_bps has another number of relays
        nodes = recipe.nodes(contacts, network)
        self.recipe, self.aggregators = replace(recipe, aggregators=nodes.setting), recipe.aggregators
        self._planner_of = lru_cache(MAX_PLANNERS)(lambda t: recipe.planner(t, network, nodes))
        self.planner: Planner = self._planner_of(self.topology)
        self.transport: Transport = self.recipe.transport(RowLayout.zeros(0), contacts.K)
        self.planning = Planning()
        self.ledger, self.stopwatch = LinkLedger(contacts.K, contacts.H, self.topology.names), Stopwatch()
        self.make_links, self._links = links, links(self.ledger)
        self.note = ""
        self._sides: tuple[UserSide, AggregatorSide] | None = None
        self.nodes: Nodes | None = None
        self._memory: dict[str, Any] = {}  # state of nodes that have not been made yet
        self._server: Server | None = None  # after the last round, if it is in this process
        self._theory: dict[tuple[Transport, Topology], NDArray[np.float64]] = {}
        self.setup_seconds: tuple[float, ...] = (0.0, 0.0)
        self._setup_exchanges = 0

    @property
    def plan(self) -> Plan:
        """The plan for a round in which everybody is present."""
        return self.planner.plan

    @property
    def V_bits(self) -> int:
        """The bits of a row that users send, V; 0 before the learner is known."""
        return self.transport.tier_bits[USERS_TO_RELAYS]

    @property
    def theory(self) -> Loads:
        """The loads of a round in which everybody takes part."""
        return self.transport.loads(self.planner)

    def attach(self, users: UserSide, aggregator: AggregatorSide) -> None:
        """Make the nodes of this learner, unless they exist already."""
        if self._sides is None or self._sides[0] is not users or self._sides[1] is not aggregator:
            self._sides = users, aggregator
            self.nodes, self.transport = self._make_nodes(self.name, self.recipe, self.planner, users, aggregator)
            self.nodes.load_state_dict(self._memory)

    def setup_nodes(self, users: UserSide, aggregator: AggregatorSide, number: int) -> Nodes:
        """Return the nodes that play a set-up, one of several."""
        recipe, planner = replace(self.recipe, wire=None), self.planner  # facts are exact
        if recipe.adds:  # it has facts about each user
            recipe, planner = UNCODED, Planner(self.topology, self.network)
        nodes, _ = self._make_nodes(f"set-up {number}", recipe, planner, users, aggregator)
        return nodes

    def setup(self, users: UserSide, aggregator: AggregatorSide, number: int = 0) -> None:
        """Exchange what has to be known before the first round; the ledger counts it as SETUP."""
        server = self._play(SETUP_ROUND, self.setup_nodes(users, aggregator, number))
        self._setup_exchanges += 1
        if server:
            sent, times = self._sent(SETUP), self._setup_exchanges
            paths = self._paths(server, _flow(server, server.sizes), Schedule(), times)
            self.setup_seconds = self._time(sent, paths), self._uncoded_seconds(sent, server, times)

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
        self.follow(number)
        self.attach(users, aggregator)
        assert self.nodes is not None
        present = [relay for relay in self.nodes.relays if relay.i not in absent_relays]
        names = [name for i, name in enumerate(self.nodes.relay_names) if i not in absent_relays]
        self.ledger.begin_round()
        self._server = None
        if not users.row_layout.numbers:
            active = NOBODY
            if self.nodes.hosts:  # a process without users has nothing to do
                active, _ = users.local_update(number)
                users.commit(active)
            return Outcome(active, tuple(relay.i for relay in present), (), empty=False)
        self._server = self._play(number, replace(self.nodes, relays=present, relay_names=names))
        if self._server is None:
            return Outcome(NOBODY, (), (), empty=False)
        attendance, empty = self._server.attendance, self._server.empty
        if isinstance(self.contacts, Moving) and attendance.heard == self.topology:
            self._theory_of(number)  # the round's plan exists now
        counted = NOBODY if empty else attendance.users
        return Outcome(counted, attendance.relays, attendance.aggregators, empty)

    def seconds(self, round: int = -1) -> float:
        """Return the communication time of the last round, see `Network.seconds` and `Access.seconds`."""
        return self.time_of(self._sent(round))

    def time_of(self, bits: Mapping[str, ArrayLike], sizes: tuple[int, int] | None = None) -> float:
        """Return the time of the last round if each link of each tier had carried these bits.

        Args:
            bits: by tier and link, as the ledger counts them.
            sizes: bytes of payload and overhead of a row; None: those of the round.
        """
        if self._server is None or not self.planner.access:
            return self.network.seconds(bits)
        return self._time(bits, self.paths(sizes))

    def paths(self, sizes: tuple[int, int] | None = None) -> Paths:
        """Return who sent to whom in the last round, in a process with the server; see `time_of` for `sizes`."""
        assert self._server is not None
        flow = _flow(self._server, sizes or self._server.sizes)
        return self._paths(self._server, flow, _kinds(self.recipe).schedule)

    def uncoded_seconds(self) -> float:
        """Return the communication time that the last round would take uncoded."""
        if self._server is None or self._sides is None:
            return 0.0
        sent = self.transport.uncoded(self._sent(-1), self._server.attendance)
        return self._uncoded_seconds(sent, self._server)

    def describe(self) -> dict[str, Any]:
        """Return what `summary.json` reports about communication."""
        recipe, planner, tiers = self.recipe, self.planner, self.recipe.tiers
        r, *figures = np.mean([self._theory_of(number) for number in self._described_rounds], axis=0).tolist()
        row_bits = self.transport.tier_bits
        measured = {tier: self.ledger.bits(tier).payload / (self.ledger.rounds * row_bits[tier] or 1) for tier in TIERS}
        described: dict[str, Any] = {
            "r": r,
            **self.transport.describe(planner),
            "aggregators": _named(self.topology.names, AggregatorSet(planner.preferred, planner.server)),
            "medium": self.network.medium,
            "wire": name_of(recipe.wire),
            "rates": self.network.rates,
            "V_bits": self.V_bits,
            "loads": measured,
            "loads_theory": dict(zip(tiers, figures[: len(tiers)], strict=True)),
            "bounds": dict(zip(tiers, figures[len(tiers) :], strict=True)),
        }
        if recipe.secure:
            described["secure"] = recipe.secure.describe(self.contacts.K, self.contacts.at(0).G)
        if self.planning.handover_bits:
            described["handover_bits"] = self.planning.handover_bits
        notes = {"why": self.note, "note": described.pop("note")}
        return described | {name: note for name, note in notes.items() if note}

    def state_dict(self) -> dict[str, Any]:
        """Return what later rounds depend on, as tensors and numbers in plain dictionaries."""
        return {
            "ledger": self.ledger.state_dict(),
            "setup_seconds": list(self.setup_seconds),
            "planning": list(astuple(self.planning)),
            "nodes": self.nodes.state_dict() if self.nodes else self._memory,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`, with the same bits."""
        self.ledger.load_state_dict(state["ledger"])
        self.setup_seconds = tuple(state["setup_seconds"])
        self.planning = Planning(*state["planning"])
        self.forget(state["nodes"])

    def forget(self, memory: dict[str, Any]) -> None:
        """Let `attach` make new nodes, which continue from `memory`, the state of nodes by name."""
        self._memory, self._sides, self.nodes = memory, None, None

    def _make_nodes(
        self, name: str, recipe: Recipe, planner: Planner, users: UserSide, aggregator: AggregatorSide
    ) -> tuple[Nodes, Transport]:
        """Make those nodes of the network that this process plays, or stand-ins for those that others play.

        Also return how their rows travel.
        """
        kinds = _kinds(recipe)
        played, updating, transport = recipe.joined(users, aggregator, planner)
        if self._links.stand_ins:
            return self._links.stand_ins(name, transport, planner, aggregator, kinds.schedule), transport
        plays, homes = self._links.plays, self._links.homes(self.topology.K)
        names = [relay_name(i) for i in range(self.topology.H)]
        revocable = bool(planner.preferred) and not self._links.reliable
        aggregation = Aggregation(updating, transport, revocable)
        at_relays = aggregation if planner.preferred else None
        at_server = aggregation if planner.server else None
        nodes = Nodes(
            [kinds.host(planner, transport, played, n, homes[name]) for n, name in enumerate(homes) if plays(name)],
            [kinds.relay(i, planner, transport, list(homes), at_relays) for i, name in enumerate(names) if plays(name)],
            kinds.server(planner, transport, at_server) if plays(SERVER) else None,
            aggregation,
            kinds.schedule,
            names,
            Gate(transport, homes, aggregation),
        )
        return nodes, transport

    def follow(self, round: int) -> None:
        """Switch to the contacts of a round, if they differ from the current ones."""
        if (t := self.contacts.at(round)) is self.topology:
            return
        self.topology, self.planner = t, self._planner_of(t)
        if self.nodes:
            self.nodes.follow(self.planner)

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
        """Return r, loads by formula, and their bounds, for a round in which everybody is present."""
        self.follow(round)
        key = self.transport, self.topology
        if key not in self._theory:
            figures = [self.topology.r]
            for load in (self.theory, self.recipe.bounds(self.planner)):
                between = load.uplink, load.down(self.network.medium), load.last_hop
                figures += between[: len(self.recipe.tiers)]
            self._theory[key] = np.array(figures)
        return self._theory[key]

    def _sent(self, round: int | str) -> dict[str, NDArray[np.int64]]:
        return {tier: np.add(*self.ledger.per_link(tier, round).T) for tier in TIERS}

    def _paths(self, server: Server, flow: Flow[Any], schedule: Schedule, times: int = 1) -> Paths:
        """Return who sent to whom in a round by this flow, or in several by flows alike."""
        attendance, steps, turns = server.attendance, flow.collect, np.array(schedule.turns)
        turns[1] += sum(len(step.senders) > 0 for step in steps) + (len(attendance.aggregators) > 0)
        turns[2] += sum(len(step.receivers) > 0 for step in steps)
        return Paths(attendance.near, attendance.heard.G, flow.delivery.served, times * turns)

    def _time(self, bits: Mapping[str, ArrayLike], paths: Paths) -> float:
        access = self.planner.access
        return access.seconds(bits, paths) if access else self.network.seconds(bits)

    def _uncoded_seconds(self, sent: Mapping[str, NDArray[np.int64]], server: Server, times: int = 1) -> float:
        """Return the time that the messages `sent` would take uncoded.

        Relays then forward what users send and receive; reports and the attendance stay the same.
        """
        attendance, t, turns = server.attendance, self.topology, np.add(Schedule.turns, (0, 1, 0, 0))
        rows, last = sent[USERS_TO_RELAYS], sent[RELAYS_TO_USERS][: t.K]
        forwards, delivers = self.planner.plain_routes(attendance)
        heard, served = (np.arange(t.H)[:, None] == relays for relays in (forwards, delivers))
        up, down = (heard * rows).sum(axis=1), np.append((served * last).sum(axis=1), 0)
        for i in attendance.relays:
            up[i] += 8 * times * Report.nbytes(t, i)
        for _, link in self.planner.copies(attendance.relays):
            down[link] += 8 * times * (ATTEMPT_BYTES + Attendance.nbytes(t))
        bits = {USERS_TO_RELAYS: rows, RELAYS_TO_SERVER: up, SERVER_TO_RELAYS: down}
        bits[RELAYS_TO_USERS] = np.append(last, np.zeros(t.H))
        return self._time(bits, Paths(attendance.near, heard, served, times * turns))


def _flow(server: Server, sizes: tuple[int, int]) -> Flow[Any]:
    """Return the flow of the server's last attempt if a row has these bytes of payload and overhead."""
    return flow_of(server.transport, server.planner, server.attendance, sizes)


def _named(names: Names, nodes: AggregatorSet) -> str | list[int | str]:
    """Return nodes as in the setting `aggregators`, by their names if they have any."""
    return nodes.setting if isinstance(nodes.setting, str) else names.of_relays(nodes.setting)
