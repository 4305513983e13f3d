"""One round: the nodes of a process, all of them or a few, take turns by a schedule."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hmtl.communication.links import Links
from hmtl.communication.messages import (
    ATTENDANCE,
    BROADCAST,
    COMBINATIONS,
    DIGESTS,
    IVS,
    KEYS,
    MODELS,
    RECEIPTS,
    REPORT,
    SERVER,
    SHARED,
    SHARES,
    STATE,
    UNMASK,
    VERDICT,
    Users,
    relay_name,
)
from hmtl.communication.nodes.aggregation import Aggregation
from hmtl.communication.nodes.base import Relay, Server
from hmtl.communication.nodes.host import UserHost
from hmtl.communication.nodes.phases import Phase
from hmtl.communication.nodes.secure import SecureRelay, SecureServer
from hmtl.communication.planning.pieces import Segment, segments
from hmtl.communication.planning.planner import Planner
from hmtl.io.cpu_time import cpu_seconds


class Stopwatch:
    """CPU seconds of a round by task, such as `relay 3` or `global update of relay 3`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the CPU time of the enclosed block to the time of `name`."""
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
        schedule: plays an attempt: `forwarding`, `masked`, `summing`, `coding` or `supplying`.
        host_names, relay_names: names of all hosts and relays, in this process or not.
    """

    hosts: Sequence[UserHost]
    relays: Sequence[Relay]
    server: Server | None
    aggregation: Aggregation | None
    schedule: "Callable[[Stage], None]"
    host_names: Sequence[str]
    relay_names: Sequence[str]

    def follow(self, planner: Planner) -> None:
        """Continue with the topology of another planner."""
        for host in self.hosts:
            host.follow(planner)
        for node in (*self.relays, *([self.server] if self.server else [])):
            node.follow(planner)

    def state_dict(self) -> dict[str, Any]:
        """Return what the nodes remember from round to round."""
        return {member.name: member.state_dict() for member in self._members()}

    def load_state_dict(self, memory: dict[str, Any]) -> None:
        """Continue from `state_dict`; a node without an entry starts anew."""
        for member in self._members():
            if member.name in memory:
                member.load_state_dict(memory[member.name])

    def _members(self) -> list[UserHost | Relay | Server | Aggregation]:
        return [member for member in (*self.hosts, *self.relays, self.server, self.aggregation) if member]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of a round.

    Attributes:
        users: the users whose IV counted.
        relays: the relays that took part.
        aggregators: the relays that computed the models; empty if the server alone did.
        empty: whether nobody computed models, because no relay took part, or none that held the current state.
    """

    users: Users
    relays: tuple[int, ...]
    aggregators: tuple[int, ...]
    empty: bool


class Stage:
    """Gives nodes their turns: hands over messages, measures CPU time, and posts the answers.

    Attributes:
        acting: the relays of this process that take part at present.
    """

    def __init__(self, nodes: Nodes, links: Links, watch: Stopwatch) -> None:
        self.nodes, self.links, self.watch = nodes, links, watch
        self.acting = nodes.relays

    def hosts(self, action: str, *arguments: object, **turn: Any) -> None:
        """Give each host a turn, see `_turn`."""
        relays = self.nodes.relay_names
        for host in self.nodes.hosts:
            self._turn(host, action, arguments, senders=relays, receivers=relays, **turn)

    def relays(self, action: str, *arguments: object, **turn: Any) -> None:
        """Give each relay a turn, see `_turn`."""
        for relay in self.acting:
            self._turn(relay, action, arguments, **turn)

    def server(self, action: str, *arguments: object, peers: Sequence[str] = (), **turn: Any) -> None:
        """Give the server a turn, see `_turn`; by default, `peers` are the relays that take part."""
        if server := self.nodes.server:
            peers = peers or [relay_name(i) for i in server.attendance.relays]
            self._turn(server, action, arguments, senders=peers, receivers=peers, **turn)

    def plan(self) -> None:
        """Make the plans of this attempt, which the nodes of a process share."""
        if node := self._planning_node:
            with self.watch.measure("planning"):
                node.plan()

    def segments(self) -> list[Segment]:
        """Return the segments that are coded in this attempt; none if no relay aggregates."""
        node = self._planning_node
        if node is None or not node.attendance.aggregating.any():
            return []
        with self.watch.measure("planning"):
            return list(segments(node.planner.code(node.attendance).plan, *node.sizes))

    @property
    def _planning_node(self) -> Relay | Server | None:
        """The node whose planning is measured; all nodes plan at the same time."""
        return self.nodes.server or next(iter(self.acting), None)

    def release(self) -> None:
        """Let the relays release what they heard, unless they may need it for another attempt."""
        if self.links.reliable:
            for relay in self.acting:
                relay.release()

    def _turn(
        self,
        node: UserHost | Relay | Server,
        action: str,
        arguments: tuple[object, ...],
        *,
        hears: Sequence[str] = (),
        says: Sequence[str] = (),
        senders: Sequence[str] = (SERVER,),
        receivers: Sequence[str] = (SERVER,),
        task: str = "",
    ) -> None:
        """Call the method `action` of a node with arguments and the messages it hears; post what it returns.

        The method gets one list of messages for each kind in `hears`. After the turn, the node sends no more messages
        of the kinds in `says`. CPU time is recorded as `task`, or, if there is none, as the node's coding.
        """
        self.links.turn(node.name)
        received = [self.links.collect(node.name, kind, senders) for kind in hears]
        with self.watch.measure(f"{task} of {node.name}" if task else node.name):
            answers = getattr(node, action)(*arguments, *received)
        for message in answers or ():
            self.links.post(message)
        for kind in says:
            self.links.end(kind, receivers)


def forwarding(stage: Stage) -> None:
    """Play the schedule in which relays forward IVs, or sums of them, and the server aggregates."""
    stage.plan()
    stage.relays("forward", says=[IVS])
    stage.release()
    stage.server("gather", hears=[IVS])
    stage.server("aggregate", task="global update")
    stage.server("hand_back", says=[VERDICT, MODELS])


def masked(stage: Stage) -> None:
    """Play the schedule in which relays and server add masked terms; `unmask` follows once no relay is silent."""
    stage.plan()
    stage.relays("forward", says=[IVS])
    stage.release()
    stage.server("gather", hears=[IVS])
    stage.server("retry", says=[VERDICT, MODELS])


def share_secrets(stage: Stage, round: int) -> None:
    """Let users advertise keys and share the seeds of their masks, and send masked terms."""
    hosts, relays = stage.nodes.host_names, stage.nodes.relay_names
    stage.hosts("send", round, relays, says=[KEYS])
    stage.relays("advertise", round, hears=[KEYS], says=[KEYS], senders=hosts)
    stage.server("introduce", round, hears=[KEYS], says=[KEYS], peers=relays)
    stage.relays("introduce", hears=[KEYS], says=[KEYS], receivers=hosts)
    stage.hosts("share", hears=[KEYS], says=[SHARES])
    stage.relays("collect", hears=[SHARES], says=[SHARES], senders=hosts)
    stage.server("pass_on", hears=[SHARES], says=[SHARES], peers=relays)
    stage.relays("pass_on", hears=[SHARES], says=[SHARES], receivers=hosts)
    stage.hosts("read", hears=[SHARES], says=[SHARED])
    stage.relays("confirm", hears=[SHARED], says=[SHARED], senders=hosts)
    stage.server("settle", hears=[SHARED], says=[SHARED], peers=relays)
    stage.relays("announce", hears=[SHARED], says=[SHARED], receivers=hosts)
    stage.hosts("mask", hears=[SHARED], says=[IVS])


def unmask(stage: Stage, round: int) -> None:
    """Let users reveal shares, relays combine them, the server unmask the sum and send the models.

    Relays combine shares again if one of them falls silent.
    """
    hosts, relays = stage.nodes.host_names, stage.nodes.relay_names
    stage.server("ask", peers=relays, says=[UNMASK])
    stage.relays("ask", hears=[UNMASK], says=[UNMASK], receivers=hosts)
    stage.hosts("answer", hears=[UNMASK], says=[UNMASK])
    stage.relays("hear", hears=[UNMASK], says=[UNMASK], senders=hosts)
    combining = True
    while combining:
        stage.server("unmask", hears=[UNMASK], says=[UNMASK], peers=relays)
        stage.relays("combine", hears=[UNMASK], says=[UNMASK])
        nodes = stage.nodes.server, *stage.acting
        combining = any(node.combining for node in nodes if isinstance(node, (SecureRelay, SecureServer)))
    stage.server("aggregate", task="global update")
    stage.server("hand_back", says=[VERDICT, MODELS])
    stage.acting = [relay for relay in stage.acting if relay.phase is Phase.ATTENDING]
    stage.relays("conclude", hears=[VERDICT, MODELS])


def summing(stage: Stage) -> None:
    """Play the schedule in which relays add terms and aggregate, and the server adds those that they lack."""
    _hand_over_state(stage)
    stage.plan()
    stage.relays("forward", says=[IVS])
    stage.server("add", hears=[IVS], says=[BROADCAST])
    stage.relays("complete", hears=[BROADCAST])
    _aggregate_at_relays(stage)


def coding(stage: Stage) -> None:
    """Play the schedule in which relays exchange coded IVs, and aggregate."""
    _hand_over_state(stage)
    for segment in stage.segments():
        stage.relays("encode", segment, says=[COMBINATIONS])
        stage.server("recode", segment, hears=[COMBINATIONS], says=[BROADCAST])
        stage.relays("decode", segment, hears=[BROADCAST])
    stage.relays("finish")
    _aggregate_at_relays(stage)


def _hand_over_state(stage: Stage) -> None:
    stage.relays("send_state", says=[STATE])
    stage.server("pass_state", hears=[STATE], says=[STATE])
    stage.relays("adopt_state", hears=[STATE])


def _aggregate_at_relays(stage: Stage) -> None:
    stage.release()
    stage.relays("aggregate", task="global update")
    stage.relays("confirm", says=[DIGESTS, MODELS])
    stage.server("compare", hears=[DIGESTS, MODELS], says=[VERDICT, MODELS])


def supplying(stage: Stage) -> None:
    """Play the schedule in which relays forward IVs, and the server aggregates beside relays that it sends codes."""
    stage.server("send_state", says=[STATE])
    stage.relays("adopt_state", hears=[STATE])
    stage.relays("forward", says=[IVS])
    stage.server("gather", hears=[IVS])
    for segment in stage.segments():
        stage.server("supply", segment, says=[BROADCAST])
        stage.relays("decode", segment, hears=[BROADCAST])
    stage.relays("finish")
    stage.release()
    stage.server("aggregate", task="global update")
    stage.relays("aggregate", task="global update")
    stage.relays("confirm", says=[DIGESTS, MODELS])
    stage.server("compare", hears=[DIGESTS, MODELS], says=[VERDICT, MODELS])


def play(round: int, nodes: Nodes, links: Links, watch: Stopwatch) -> None:
    """Play a round: users send, relays report, the server announces the attendance, relays deliver the models.

    Between the announcement and the delivery, the nodes play an attempt by their schedule. If a message that other
    nodes need does not arrive from a relay, they repeat the attempt without that relay.

    Args:
        round: number of the round.
        nodes: the nodes that take part; absent relays are not among them.
        links: how messages travel.
        watch: records the CPU time of each node. Computing the models is recorded as `global update`, separately for
            each node; making the round's plan is recorded as `planning`, which all nodes do at the same time.

    Raises:
        CodingError: the aggregators hold different IVs or models.
    """
    stage, server = Stage(nodes, links, watch), nodes.server
    links.begin(round)
    try:
        if nodes.schedule is masked:
            share_secrets(stage, round)
        else:
            stage.hosts("send", round, nodes.relay_names, says=[IVS])
        stage.relays("report", round, hears=[IVS], says=[REPORT], senders=nodes.host_names)
        stage.server("attend", round, hears=[REPORT], says=[ATTENDANCE], peers=nodes.relay_names)
        while stage.acting or server:
            stage.relays("attend", hears=[ATTENDANCE])
            stage.acting = [relay for relay in stage.acting if relay.phase is Phase.ATTENDING]
            nodes.schedule(stage)
            stage.relays("conclude", hears=[VERDICT, MODELS])
            stage.acting = [relay for relay in stage.acting if relay.phase is Phase.IN_VAIN]
            if not (server.silent if server else stage.acting):
                break
            stage.server("attend_again", says=[ATTENDANCE])
        stage.acting = nodes.relays
        if nodes.schedule is masked:
            unmask(stage, round)
            stage.acting = nodes.relays
        stage.relays("deliver", says=[RECEIPTS, MODELS], receivers=nodes.host_names)
        for host in nodes.hosts:
            host.read_receipts(links.collect(host.name, RECEIPTS, nodes.relay_names))
            host.receive(links.collect(host.name, MODELS, nodes.relay_names))
    finally:
        for relay in nodes.relays:
            relay.close()
        if nodes.aggregation:
            nodes.aggregation.close()
