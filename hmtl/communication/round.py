"""One round: the nodes of a process, all of them or a few, take turns."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from hmtl.communication.attendance import Attendance
from hmtl.communication.flows.flow import Flow, Step
from hmtl.communication.flows.planner import Planner
from hmtl.communication.flows.recipe import flow_of
from hmtl.communication.gate import Gate
from hmtl.communication.links import Links
from hmtl.communication.messages import ATTENDANCE, DIGESTS, IVS, MODELS, RECEIPTS, REPORT, STATE, VERDICT, Message
from hmtl.communication.nodes.aggregation import Aggregation
from hmtl.communication.nodes.host import Host
from hmtl.communication.nodes.relay import Relay
from hmtl.communication.nodes.server import Server
from hmtl.communication.turns import Answers, Phase, Turn, check_turn
from hmtl.io.arrays import Ids
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
    """The nodes of a learner.

    Attributes:
        hosts, relays, server: the nodes of this process.
        aggregation: what the aggregators among them share; None: each has its own.
        schedule: the turns that they take.
        relay_names: names of all relays, in this process or not.
        gate: decides which messages they take; None: others play them.
    """

    hosts: Sequence[Host]
    relays: Sequence[Relay]
    server: Server | None
    aggregation: Aggregation | None
    schedule: "Schedule"
    relay_names: Sequence[str]
    gate: Gate | None

    def play(self, turns: Sequence[Turn], watch: Stopwatch) -> Iterator[Sequence[Message]]:
        """Give these nodes, which do not wait for each other, their turns; yield what each of them sends."""
        for turn in turns:
            node: Any = self.members[turn.node]
            check_turn(node.last_turn if isinstance(node, Host) else None, turn.action)
            if isinstance(node, Host):
                node.last_turn = turn.action
            with watch.measure(f"{turn.task} of {turn.node}" if turn.task else turn.node):
                heard = self.gate.admitted(node, turn) if self.gate else turn.heard
                answers = list(getattr(node, turn.action)(*turn.numbers, *heard) or ())
            yield answers

    def follow(self, planner: Planner) -> None:
        """Continue with the topology of another planner."""
        for host in self.hosts:
            host.follow(planner)
        for node in (*self.relays, *([self.server] if self.server else [])):
            node.follow(planner)

    def close(self) -> None:
        """End the round, and release its messages."""
        for host in self.hosts:
            host.last_turn = ""
        for relay in self.relays:
            relay.close()
        if self.aggregation:
            self.aggregation.close()

    def state_dict(self) -> dict[str, Any]:
        """Return what the nodes remember from round to round."""
        return {name: member.state_dict() for name, member in self.members.items()}

    def load_state_dict(self, memory: dict[str, Any]) -> None:
        """Continue from `state_dict`; a node without an entry starts anew."""
        for name, member in self.members.items():
            if name in memory:
                member.load_state_dict(memory[name])

    @cached_property
    def members(self) -> dict[str, Host | Relay | Server | Aggregation]:
        """The nodes, and what they share, by name."""
        return {member.name: member for member in (*self.hosts, *self.relays, self.server, self.aggregation) if member}


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of a round.

    Attributes:
        users: the users whose IV counted.
        relays: the relays that took part.
        aggregators: the relays that computed the models; empty if the server alone did.
        empty: whether nobody counts, because no relay took part, or none that held the current state, or because a sum
            is unknown or out of range.
    """

    users: Ids
    relays: tuple[int, ...]
    aggregators: tuple[int, ...]
    empty: bool


class Stage:
    """Gives nodes their turns: hands over messages, and posts the answers.

    A turn is a method of a node, which gets `numbers` and, for each kind in `hears`, the messages of this kind. It
    `tells` if what it returns is needed before the next turns.

    Attributes:
        acting: the relays that take part at present.
        streams: whether rows follow in blocks once it is known who takes part.
    """

    def __init__(self, round: int, nodes: Nodes, links: Links, watch: Stopwatch) -> None:
        assert nodes.server
        self.round, self.nodes, self._server, self.links, self.watch = round, nodes, nodes.server, links, watch
        self.streams = links.reliable and links.streams and all(host.transport.recipe.adds for host in nodes.hosts)
        self.acting = nodes.relays

    def hosts(self, action: Callable[..., Answers], *numbers: Any, **turn: Any) -> None:
        """Give each host a turn."""
        self._turns(self.nodes.hosts, action, numbers, **turn)

    def relays(self, action: Callable[..., Answers], *numbers: Any, **turn: Any) -> None:
        """Give each relay that takes part a turn."""
        self._turns(self.acting, action, numbers, **turn)

    def server(self, action: Callable[..., Answers], *numbers: Any, **turn: Any) -> None:
        """Give the server a turn."""
        self._turns([self._server], action, numbers, **turn)

    @property
    def attendance(self) -> Attendance:
        """Who takes part."""
        return self._server.attendance

    def keep_attending(self) -> None:
        """Go on with the relays that know who takes part."""
        self.acting = [relay for relay in self.acting if relay.phase is Phase.ATTENDING]

    def _turns(
        self,
        nodes: Sequence[Host | Relay | Server],
        action: Callable[..., Answers],
        numbers: tuple[Any, ...],
        *,
        hears: Sequence[str] = (),
        tells: bool = False,
        task: str = "",
    ) -> None:
        links, turns = self.links, []
        for node in nodes:
            heard = [links.collect(node.name, kind) for kind in hears]
            turns.append(Turn(node.name, action.__name__, self.round, numbers, hears, heard, tells, task))
        for answers in self.nodes.play(turns, self.watch):
            for message in answers:
                links.post(message)


class Schedule:
    """The turns of a round.

    Users send rows, or say that these follow; relays report; the server announces the attendance. In an *attempt*, rows
    are collected and models are computed. If a message that other nodes need does not arrive from a relay, there is
    another attempt without it.

    Attributes:
        turns: how often nodes wait for messages of each tier in a round, beside those of steps and for digests.
    """

    turns: ClassVar[tuple[int, ...]] = (1, 1, 2, 1)  # rows; report; attendance and verdict; models

    def begin(self, stage: Stage, round: int) -> None:
        """Let users compute their rows."""
        stage.hosts(Host.update, round, tuple(stage.nodes.relay_names))

    def attempt(self, stage: Stage, flow: Flow[Any]) -> None:
        """Collect rows, and compute models."""
        collect(stage, flow)
        compute(stage)

    def end(self, stage: Stage) -> None:
        """Do what follows once no relay is silent."""


def collect(stage: Stage, flow: Flow[Any]) -> None:
    """Hand over state to relays that missed a round, and play the steps after which the aggregators can aggregate."""
    hand_over_state(stage)
    hear_rows(stage)
    for n, step in enumerate(flow.collect):
        play_step(stage, n, step)
    if stage.links.reliable:  # otherwise they may need what they heard for another attempt
        stage.relays(Relay.release)


def hear_rows(stage: Stage) -> None:
    """Let relays hear rows: those that arrived before the attendance, or block by block those that were announced."""
    stage.relays(Relay.begin)
    while stage.streams and any(host.unsent for host in stage.nodes.hosts):
        stage.hosts(Host.block, tells=True)
        stage.relays(Relay.take, hears=[IVS])


def play_step(stage: Stage, n: int, step: Step[Any]) -> None:
    """Let relays send, the server send, and both learn what they can."""
    up, down = step.kinds
    rises, falls = [up] * bool(step.senders), [down] * bool(step.receivers)
    if rises:
        stage.relays(Relay.up, n, tells=True)
    stage.server(Server.down, n, hears=rises, tells=bool(falls))
    stage.relays(Relay.learn, n, hears=falls)


def hand_over_state(stage: Stage) -> None:
    """Bring relays that missed rounds to the present state, if there are any."""
    attendance = stage.attendance
    if not attendance.behind.any():
        return
    from_relay = [STATE] * (attendance.source >= 0)
    if from_relay:
        stage.relays(Relay.send_state, tells=True)
    stage.server(Server.pass_state, hears=from_relay, tells=True)
    stage.relays(Relay.adopt_state, hears=[STATE])


def compute(stage: Stage) -> None:
    """Compute the models, and let the server release them if all aggregators hold the same."""
    confirm = [DIGESTS, MODELS] if stage.attendance.aggregators else []
    stage.server(Server.aggregate, task="global update")
    stage.relays(Relay.aggregate, task="global update")
    if confirm:
        stage.relays(Relay.confirm, tells=True)
    stage.server(Server.compare, hears=confirm, tells=True)


def conclude(stage: Stage) -> None:
    """Let relays heed the server's verdict."""
    assert stage.nodes.server
    stage.relays(Relay.conclude, hears=[VERDICT, MODELS], tells=bool(stage.nodes.server.silent))


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
    stage, server, schedule = Stage(round, nodes, links, watch), nodes.server, nodes.schedule
    assert server
    links.begin(round)
    try:
        schedule.begin(stage, round)
        stage.hosts(Host.announce if stage.streams else Host.rows, tells=True)
        stage.relays(Relay.report, round, hears=[IVS], tells=True)
        stage.server(Server.attend, round, hears=[REPORT], tells=True, task="planning")
        while True:
            stage.relays(Relay.attend, hears=[ATTENDANCE], tells=True)
            stage.keep_attending()
            with watch.measure("planning"):  # all nodes plan at the same time
                flow = flow_of(server.transport, server.planner, server.attendance, server.sizes)
            schedule.attempt(stage, flow)
            conclude(stage)
            if not server.silent:
                break
            stage.acting = [relay for relay in stage.acting if relay.phase in (Phase.IN_VAIN, Phase.UNCONFIRMED)]
            stage.server(Server.attend_again, tells=True, task="planning")
        stage.acting = nodes.relays
        schedule.end(stage)
        stage.acting = nodes.relays
        stage.relays(Relay.deliver, tells=True)
        stage.hosts(Host.conclude, hears=[RECEIPTS, MODELS], tells=True)
    finally:
        nodes.close()
