"""One round: the nodes of a process, all of them or a few, take turns."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from hmtl.communication.attendance import Attendance
from hmtl.communication.flows.flow import Flow, Step
from hmtl.communication.flows.planner import Planner
from hmtl.communication.links import Links
from hmtl.communication.messages import (
    ATTENDANCE,
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
from hmtl.communication.nodes.aggregation import Aggregation
from hmtl.communication.nodes.host import Host
from hmtl.communication.nodes.phases import Phase
from hmtl.communication.nodes.relay import Relay
from hmtl.communication.nodes.server import Server
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
        schedule: the turns that they take.
        host_names, relay_names: names of all hosts and relays, in this process or not.
    """

    hosts: Sequence[Host]
    relays: Sequence[Relay]
    server: Server | None
    aggregation: Aggregation | None
    schedule: "Schedule"
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

    def _members(self) -> list[Host | Relay | Server | Aggregation]:
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


Got = Mapping[str, list[Message]]
"""The messages that a node gets for a turn, by kind."""
Answers = Iterable[Message] | None
"""What it sends in return."""
N = TypeVar("N", Host, Relay, Server)


class Stage:
    """Gives nodes their turns: hands over messages, measures CPU time, and posts the answers.

    A turn is a function of a node and of the messages that it gets, of the kinds in `hears`. After the turn, the node
    sends no more messages of the kinds in `says`. CPU time is recorded as `task`, or, if there is none, as the node's
    coding.

    Attributes:
        acting: the relays of this process that take part at present.
        streams: whether rows follow in blocks once it is known who takes part.
    """

    def __init__(self, nodes: Nodes, links: Links, watch: Stopwatch) -> None:
        self.nodes, self.links, self.watch = nodes, links, watch
        self.streams = links.streams and all(host.recipe.adds for host in nodes.hosts)
        self.acting = nodes.relays

    def hosts(self, action: Callable[[Host, Got], Answers], **turn: Any) -> None:
        """Give each host a turn."""
        relays = self.nodes.relay_names
        for host in self.nodes.hosts:
            self._turn(host, action, senders=relays, receivers=relays, **turn)

    def relays(self, action: Callable[[Relay, Got], Answers], **turn: Any) -> None:
        """Give each relay that takes part a turn."""
        for relay in self.acting:
            self._turn(relay, action, **turn)

    def server(self, action: Callable[[Server, Got], Answers], peers: Sequence[str] | None = None, **turn: Any) -> None:
        """Give the server a turn; by default, `peers` are the relays that take part."""
        if server := self.nodes.server:
            if peers is None:
                peers = [relay_name(i) for i in server.attendance.relays]
            self._turn(server, action, senders=peers, receivers=peers, **turn)

    def flow(self) -> Flow | None:
        """Return the flow of this attempt, whose plans the nodes of a process share; None if none of them acts."""
        if self._any is None:
            return None
        with self.watch.measure("planning"):  # all nodes plan at the same time
            return self._any.flow()

    @property
    def attendance(self) -> Attendance:
        """Who takes part, as a node of this process knows it."""
        assert self._any, "no node of this process acts"
        return self._any.attendance

    @property
    def _any(self) -> Server | Relay | None:
        return self.nodes.server or next(iter(self.acting), None)

    def keep_attending(self) -> None:
        """Go on with the relays that know who takes part."""
        self.acting = [relay for relay in self.acting if relay.phase is Phase.ATTENDING]

    def _turn(
        self,
        node: N,
        action: Callable[[N, Got], Answers],
        *,
        hears: Sequence[str] = (),
        says: Sequence[str] = (),
        senders: Sequence[str] = (SERVER,),
        receivers: Sequence[str] = (SERVER,),
        task: str = "",
    ) -> None:
        self.links.turn(node.name)
        got = {kind: self.links.collect(node.name, kind, senders) for kind in hears}
        with self.watch.measure(f"{task} of {node.name}" if task else node.name):
            answers = list(action(node, got) or ())
        for message in answers:
            self.links.post(message)
        for kind in says:
            self.links.end(kind, receivers)


class Schedule:
    """The turns of a round.

    Users send rows, or say that these follow; relays report; the server announces the attendance. In an *attempt*, rows
    are collected and models are computed. If a message that other nodes need does not arrive from a relay, there is
    another attempt without it.
    """

    def begin(self, stage: Stage, round: int) -> None:
        """Let users compute their rows."""
        relays = stage.nodes.relay_names
        stage.hosts(lambda host, _: host.update(round, relays))

    def attempt(self, stage: Stage, flow: Flow) -> None:
        """Collect rows, and compute models."""
        collect(stage, flow)
        compute(stage, flow)

    def end(self, stage: Stage, flow: Flow | None) -> None:
        """Do what follows once no relay is silent; a process without relays that act knows no flow."""


def collect(stage: Stage, flow: Flow) -> None:
    """Hand over state to relays that missed a round, and play the steps after which the aggregators can aggregate."""
    hand_over_state(stage)
    hear_rows(stage, flow)
    for step in flow.collect:
        play_step(stage, step)
    if stage.links.reliable:  # otherwise they may need what they heard for another attempt
        stage.relays(lambda relay, _: relay.release())


def hear_rows(stage: Stage, flow: Flow) -> None:
    """Let relays hear rows: those that arrived before the attendance, or block by block those that were announced."""
    stage.relays(lambda relay, _: relay.begin(flow))
    while any(host.unsent for host in stage.nodes.hosts) and stage.streams:
        stage.hosts(lambda host, _: host.block(), says=[IVS])
        stage.relays(lambda relay, got: relay.take(got[IVS]), hears=[IVS], senders=stage.nodes.host_names)


def play_step(stage: Stage, step: Step) -> None:
    """Let relays send, the server send, and both learn what they can."""
    up, down = step.kinds
    rises, falls = [up] * bool(step.senders), [down] * bool(step.receivers)
    if rises:
        stage.relays(lambda relay, _: relay.up(step), says=rises)
    stage.server(lambda server, got: server.down(step, got.get(up, [])), hears=rises, says=falls)
    stage.relays(lambda relay, got: relay.learn(step, got.get(down, [])), hears=falls)


def hand_over_state(stage: Stage) -> None:
    """Bring relays that missed rounds to the present state, if there are any."""
    attendance = stage.attendance
    if not attendance.behind.any():
        return
    from_relay = [STATE] * (attendance.source >= 0)
    if from_relay:
        stage.relays(lambda relay, _: relay.send_state(), says=from_relay)
    stage.server(lambda server, got: server.pass_state(got.get(STATE, [])), hears=from_relay, says=[STATE])
    stage.relays(lambda relay, got: relay.adopt_state(got[STATE]), hears=[STATE])


def compute(stage: Stage, flow: Flow) -> None:
    """Compute the models, and let the server release them if all aggregators hold the same."""
    confirm = [DIGESTS, MODELS] if stage.attendance.aggregators else []
    stage.server(lambda server, _: server.aggregate(), task="global update")
    stage.relays(lambda relay, _: relay.aggregate(), task="global update")
    if confirm:
        stage.relays(lambda relay, _: relay.confirm(flow), says=confirm)
    stage.server(
        lambda server, got: server.compare(flow, got.get(DIGESTS, []), got.get(MODELS, [])),
        hears=confirm,
        says=[VERDICT, MODELS],
    )


def conclude(stage: Stage) -> None:
    """Let relays heed the server's verdict."""
    stage.relays(lambda relay, got: relay.conclude(got[VERDICT], got[MODELS]), hears=[VERDICT, MODELS])


def play(round: int, nodes: Nodes, links: Links, watch: Stopwatch) -> None:
    """Play a round.

    Args:
        round: number of the round.
        nodes: the nodes that take part; absent relays are not among them.
        links: how messages travel.
        watch: records the CPU time of each node. Computing the models is recorded as `global update`, separately for
            each node; making the round's plan is recorded as `planning`, which all nodes do at the same time.

    Raises:
        CodingError: the aggregators hold different IVs or models.
    """
    stage, server, schedule = Stage(nodes, links, watch), nodes.server, nodes.schedule
    hosts, relays = nodes.host_names, nodes.relay_names
    links.begin(round)
    try:
        schedule.begin(stage, round)
        stage.hosts(lambda host, _: host.announce() if stage.streams else host.rows(), says=[IVS])
        stage.relays(lambda relay, got: relay.report(round, got[IVS]), hears=[IVS], says=[REPORT], senders=hosts)
        stage.server(
            lambda server, got: server.attend(round, got[REPORT]), peers=relays, hears=[REPORT], says=[ATTENDANCE]
        )
        flow: Flow | None = None
        while stage.acting or server:
            stage.relays(lambda relay, got: relay.attend(got[ATTENDANCE]), hears=[ATTENDANCE])
            stage.keep_attending()
            if flow := stage.flow():
                schedule.attempt(stage, flow)
            conclude(stage)
            stage.acting = [relay for relay in stage.acting if relay.phase is Phase.IN_VAIN]
            if not (server.silent if server else stage.acting):
                break
            stage.server(lambda server, _: server.attend_again(), says=[ATTENDANCE])
        stage.acting = nodes.relays
        schedule.end(stage, flow)
        stage.acting, delivery = nodes.relays, flow and flow.delivery
        stage.relays(
            lambda relay, _: relay.deliver(delivery) if delivery else [], says=[RECEIPTS, MODELS], receivers=hosts
        )
        for host in nodes.hosts:
            host.read_receipts(links.collect(host.name, RECEIPTS, relays))
            host.receive(links.collect(host.name, MODELS, relays))
    finally:
        for relay in nodes.relays:
            relay.close()
        if nodes.aggregation:
            nodes.aggregation.close()
