"""The one schedule of a round: who speaks when. It drives the nodes of this process, be they all or a few."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hmtl.communication.accounting.stopwatch import Stopwatch
from hmtl.communication.links import Links
from hmtl.communication.messages import (
    ATTENDANCE,
    BROADCAST,
    COMBINATIONS,
    DIGESTS,
    IVS,
    MODELS,
    RECEIPTS,
    REPORT,
    SERVER,
    STATE,
    VERDICT,
    Message,
    Users,
    relay_name,
)
from hmtl.communication.nodes.aggregator import Aggregation
from hmtl.communication.nodes.host import UserHost
from hmtl.communication.nodes.relay import Relay
from hmtl.communication.nodes.server import Server
from hmtl.communication.planning.coder import Segment, segments
from hmtl.communication.planning.planner import Planner

Says = Sequence[str]  # kinds of messages of which a node has no more to say
Names = Sequence[str]


@dataclass(frozen=True)
class Nodes:
    """The nodes of this process, `seat`, which those that aggregate share if they do, and the names of all nodes."""

    hosts: Sequence[UserHost]
    relays: Sequence[Relay]
    server: Server | None
    seat: Aggregation | None
    all_hosts: Sequence[str]
    all_relays: Sequence[str]

    def follow(self, planner: Planner) -> None:
        """Go on where the contacts are those of this planner."""
        for relay in self.relays:
            relay.follow(planner)
        if self.server:
            self.server.follow(planner)

    def state_dict(self) -> dict[str, Any]:
        """What each of them remembers from round to round."""
        return {name: node.state_dict() for name, node in self._rememberers().items()}

    def load_state_dict(self, memory: dict[str, Any]) -> None:
        """Go on from `state_dict`; who is not in it knows nothing yet."""
        for name, node in self._rememberers().items():
            if name in memory:
                node.load_state_dict(memory[name])

    def _rememberers(self) -> dict[str, UserHost | Relay | Server | Aggregation]:
        named: list[UserHost | Relay | Server] = [*self.hosts, *self.relays, *([self.server] if self.server else [])]
        return {**{node.name: node for node in named}, **({"aggregation": self.seat} if self.seat else {})}


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a round.

    Attributes:
        users: those whose IV counted.
        relays: those that were there.
        aggregators: the relays that computed the models; none where the server did.
        empty: nobody computed models: no relay was there, or none that held the present state.
    """

    users: Users
    relays: tuple[int, ...]
    aggregators: tuple[int, ...]
    empty: bool


def play(round: int, nodes: Nodes, links: Links, watch: Stopwatch, coded: bool) -> None:
    """Play a round.

    Args:
        round: its number.
        nodes: who is there; an absent relay is not among them.
        links: how messages travel.
        watch: told how long each node takes; computing the models counts as `global update`, of each relay apart, and
            making the round's plan as `planning`, which all nodes do at the same time.
        coded: whether relays aggregate and code; else the server does, and they forward.

    Where a message of a relay is missing that others need, these do it again without that relay.

    Raises:
        CodingError: the aggregators do not hold the same.
    """
    server, hosts, all_relays = nodes.server, nodes.all_hosts, nodes.all_relays

    def inbox(node: str, kind: str, senders: Sequence[str] = (SERVER,)) -> list[Message]:
        return links.collect(node, kind, senders)[0]

    def turn(
        who: str, action: Callable[..., list[Message] | None], *arguments: object, says: Says = (), to: Names = ()
    ) -> None:
        with watch.measure(who):
            messages = action(*arguments)
        for message in messages or ():
            links.post(message)
        for kind in says:
            links.end(kind, to)

    links.begin(round)
    for host in nodes.hosts:
        links.post(host.send(round, all_relays))
        links.end(IVS, all_relays)
    for relay in nodes.relays:
        turn(relay.name, relay.hear, round, inbox(relay.name, IVS, hosts), says=[REPORT], to=[SERVER])
    if server:
        turn(SERVER, server.attend, round, inbox(SERVER, REPORT, all_relays), says=[ATTENDANCE], to=all_relays)

    def attempt(relays: Sequence[Relay]) -> None:
        """Learn who is there, and come to the models."""
        for relay in relays:
            turn(relay.name, relay.attend, inbox(relay.name, ATTENDANCE))
        relays = [relay for relay in relays if relay.there]
        there = [relay_name(i) for i in server.attendance.relays] if server else []  # whom the server speaks with
        if not coded:
            for relay in relays:
                turn(relay.name, relay.forward, says=[IVS], to=[SERVER])
                relay.let_go()
            if server:
                turn(SERVER, server.gather, inbox(SERVER, IVS, there))
                turn("global update", server.aggregate)
                turn(SERVER, server.hand_back, says=[VERDICT, MODELS], to=there)
            return
        for relay in relays:
            turn(relay.name, relay.tell_state, says=[STATE], to=[SERVER])
        if server:
            turn(SERVER, server.pass_state, inbox(SERVER, STATE, there), says=[STATE], to=there)
        for relay in relays:
            turn(relay.name, relay.take_state, inbox(relay.name, STATE))
        with watch.measure("planning"):
            coded_parts = list(_segments(server or next(iter(relays), None)))
        for segment in coded_parts:
            for relay in relays:
                turn(relay.name, relay.encode, segment, says=[COMBINATIONS], to=[SERVER])
            if server:
                turn(SERVER, server.recode, segment, inbox(SERVER, COMBINATIONS, there), says=[BROADCAST], to=there)
            for relay in relays:
                turn(relay.name, relay.decode, segment, inbox(relay.name, BROADCAST))
        for relay in relays:
            turn(relay.name, relay.finish)
            relay.let_go()
        for relay in relays:  # no sooner, as models need room, and it may be one tensor that all heard
            turn(f"global update of {relay.name}", relay.aggregate)
            turn(relay.name, relay.confirm, says=[DIGESTS, MODELS], to=[SERVER])
        if server:
            digests, models = (inbox(SERVER, kind, there) for kind in (DIGESTS, MODELS))
            turn(SERVER, server.compare, digests, models, says=[VERDICT, MODELS], to=there)

    relays = list(nodes.relays)
    while relays or server:
        attempt(relays)
        for relay in relays:
            if relay.there:
                turn(relay.name, relay.conclude, inbox(relay.name, VERDICT), inbox(relay.name, MODELS))
        if not (server.silent if server else any(relay.again for relay in relays)):
            break
        if server:
            then = [relay_name(i) for i in server.attendance.relays]
            turn(SERVER, server.attend_again, says=[ATTENDANCE], to=then)
        relays = [relay for relay in relays if relay.again]

    for relay in nodes.relays:
        if not relay.there:
            turn(relay.name, list, says=[RECEIPTS, MODELS], to=hosts)
    for relay in relays:
        if relay.there:
            turn(relay.name, relay.deliver, says=[RECEIPTS, MODELS], to=hosts)
    for host in nodes.hosts:
        host.told(inbox(host.name, RECEIPTS, all_relays))
        host.receive(inbox(host.name, MODELS, all_relays))
    for relay in nodes.relays:
        relay.close()
    if server:
        server.close()


def _segments(node: Relay | Server | None) -> Iterator[Segment]:
    """What is coded in this round, as this node knows it, and every other; nothing where nobody aggregates."""
    if node is not None and node.attendance.aggregating.any():
        yield from segments(node.planner.code(node.attendance).plan, *node.sizes)
