"""One round: the nodes of a process, be they all or a few, take their turns."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hmtl.communication.links import Links
from hmtl.communication.messages import (
    ATTENDANCE,
    IVS,
    MODELS,
    RECEIPTS,
    REPORT,
    SERVER,
    VERDICT,
    Message,
    Users,
    relay_name,
)
from hmtl.communication.nodes.aggregation import Aggregation
from hmtl.communication.nodes.base import Relay, Server
from hmtl.communication.nodes.host import UserHost
from hmtl.communication.nodes.phases import Phase
from hmtl.communication.planning.pieces import Segment, segments
from hmtl.communication.planning.planner import Planner
from hmtl.communication.schedules import RELAYS, Schedule, Turn
from hmtl.cpu_time import cpu_seconds


class Stopwatch:
    """CPU seconds of a round by task, such as `relay 3` or `global update of relay 3`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the CPU time of the enclosed block to what `name` has so far."""
        start = cpu_seconds()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + cpu_seconds() - start

    def slowest(self, prefix: str) -> float:
        """Return the largest time among names that start with `prefix`; zero if there is none."""
        return max((seconds for name, seconds in self.seconds.items() if name.startswith(prefix)), default=0.0)


@dataclass(frozen=True)
class Nodes:
    """The nodes of a process.

    Attributes:
        hosts, relays, server: the nodes of this process.
        aggregation: what the aggregators among them share; None: each has its own.
        schedule: what they play.
        host_names, relay_names: all nodes of the network.
    """

    hosts: Sequence[UserHost]
    relays: Sequence[Relay]
    server: Server | None
    aggregation: Aggregation | None
    schedule: Schedule
    host_names: Sequence[str]
    relay_names: Sequence[str]

    def follow(self, planner: Planner) -> None:
        """Continue with the topology of another planner."""
        for relay in self.relays:
            relay.follow(planner)
        if self.server:
            self.server.follow(planner)

    def state_dict(self) -> dict[str, Any]:
        """Return what the nodes remember from round to round."""
        return {name: node.state_dict() for name, node in self._by_name().items()}

    def load_state_dict(self, memory: dict[str, Any]) -> None:
        """Continue from `state_dict`; a node without an entry starts anew."""
        for name, node in self._by_name().items():
            if name in memory:
                node.load_state_dict(memory[name])

    def _by_name(self) -> dict[str, UserHost | Relay | Server | Aggregation]:
        nodes: list[UserHost | Relay | Server] = [*self.hosts, *self.relays, *([self.server] if self.server else [])]
        shared = {"aggregation": self.aggregation} if self.aggregation else {}
        return {node.name: node for node in nodes} | shared


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of a round.

    Attributes:
        users: the users whose IV counted.
        relays: the relays that took part.
        aggregators: the relays that computed the models; empty if the server did.
        empty: whether nobody computed models, since no relay took part, or none that held the current state.
    """

    users: Users
    relays: tuple[int, ...]
    aggregators: tuple[int, ...]
    empty: bool


class _Stage:
    """Gives nodes their turns: hands over messages, measures time, posts messages."""

    def __init__(self, nodes: Nodes, links: Links, watch: Stopwatch) -> None:
        self.nodes, self.links, self.watch = nodes, links, watch

    def inbox(self, node: str, kind: str, senders: Sequence[str] = (SERVER,)) -> list[Message]:
        return self.links.collect(node, kind, senders)[0]

    def act(
        self,
        clock: str,
        action: Callable[..., list[Message] | None],
        *arguments: object,
        says: Sequence[str] = (),
        to: Sequence[str] = (SERVER,),
    ) -> None:
        """Let a node act, post its messages, and announce the kinds with which it is done."""
        with self.watch.measure(clock):
            messages = action(*arguments)
        for message in messages or ():
            self.links.post(message)
        for kind in says:
            self.links.end(kind, to)

    def attempt(self, relays: Sequence[Relay]) -> None:
        """Play the schedule once, with the relays that receive the attendance."""
        for relay in relays:
            self.act(relay.name, relay.attend, self.inbox(relay.name, ATTENDANCE))
        attending = [relay for relay in relays if relay.phase is Phase.ATTENDING]
        schedule, server = self.nodes.schedule, self.nodes.server
        self.play(schedule.opening, attending)
        if schedule.segment:
            with self.watch.measure("planning"):
                coded = list(_segments(server or next(iter(attending), None)))
            for segment in coded:
                self.play(schedule.segment, attending, segment)
        self.play(schedule.closing, attending)
        for relay in attending:
            verdict, models = self.inbox(relay.name, VERDICT), self.inbox(relay.name, MODELS)
            self.act(relay.name, relay.conclude, verdict, models)

    def play(self, turns: Iterable[Turn], relays: Sequence[Relay], *arguments: object) -> None:
        """Play turns with these relays and the server."""
        server = self.nodes.server
        names = [relay_name(i) for i in server.attendance.relays] if server else []
        for turn in turns:
            if turn.final and not self.links.reliable:
                continue
            peers: Sequence[str] = (SERVER,) if turn.role == RELAYS else names
            nodes: Sequence[Relay | Server] = relays if turn.role == RELAYS else [server] if server else []
            for node in nodes:
                heard = [self.inbox(node.name, kind, peers) for kind in turn.hears]
                clock = f"{turn.task} of {node.name}" if turn.task else node.name
                self.act(clock, getattr(node, turn.action), *arguments, *heard, says=turn.says, to=peers)


def play(round: int, nodes: Nodes, links: Links, watch: Stopwatch) -> None:
    """Play a round.

    If a message that others need does not arrive from a relay, they repeat their attempt without that relay.

    Args:
        round: number of the round.
        nodes: the nodes that take part; absent relays are not among them.
        links: how messages travel.
        watch: records the CPU time of each node. Models are computed as `global update`, of each node separately, and
            the round's plan is made as `planning`, which all nodes do at the same time.

    Raises:
        CodingError: the aggregators hold different IVs or models.
    """
    stage, server = _Stage(nodes, links, watch), nodes.server
    links.begin(round)
    for host in nodes.hosts:
        links.post(host.send(round, nodes.relay_names))
        links.end(IVS, nodes.relay_names)
    try:
        for relay in nodes.relays:
            stage.act(relay.name, relay.report, round, stage.inbox(relay.name, IVS, nodes.host_names), says=[REPORT])
        if server:
            reports = stage.inbox(SERVER, REPORT, nodes.relay_names)
            stage.act(SERVER, server.attend, round, reports, says=[ATTENDANCE], to=nodes.relay_names)
        relays = list(nodes.relays)
        while relays or server:
            stage.attempt(relays)
            relays = [relay for relay in relays if relay.phase is Phase.IN_VAIN]
            if not (server.silent if server else relays):
                break
            if server:
                reported = [relay_name(i) for i in server.attendance.relays]
                stage.act(SERVER, server.attend_again, says=[ATTENDANCE], to=reported)
        for relay in nodes.relays:
            deliver: Callable[[], list[Message]] = list if relay.phase is Phase.ABSENT else relay.deliver
            stage.act(relay.name, deliver, says=[RECEIPTS, MODELS], to=nodes.host_names)
        for host in nodes.hosts:
            host.read_receipts(stage.inbox(host.name, RECEIPTS, nodes.relay_names))
            host.receive(stage.inbox(host.name, MODELS, nodes.relay_names))
    finally:
        for relay in nodes.relays:
            relay.close()
        if server:
            server.close()


def _segments(node: Relay | Server | None) -> Iterable[Segment]:
    """Return what is coded in this round; nothing if nobody aggregates."""
    if node is None or not node.attendance.aggregating.any():
        return []
    return segments(node.planner.code(node.attendance).plan, *node.sizes)
