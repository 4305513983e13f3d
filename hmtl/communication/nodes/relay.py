"""Relays. They execute the steps of a round's flow, and know nothing more of what steps send. K users, H relays.

`flows.ivs` and `flows.sums` decide what they send.

If a relay aggregates, it computes the models of what it learned. One that missed rounds is handed the state of another.
Aggregators confirm by digests that they hold the same models, which the server compares before any user gets one.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, RELAYS_TO_USERS
from hmtl.communication.agreement import Digest
from hmtl.communication.attendance import ATTEMPT_BYTES, DOUBTED, Attempt, Attendance, Report, decide
from hmtl.communication.codecs.formats import REQUEST
from hmtl.communication.flows.flow import OTHER_PLAN, Flow, Heard, Shape
from hmtl.communication.flows.planner import Planner
from hmtl.communication.flows.recipe import Transport, flow_of
from hmtl.communication.gate import Gate
from hmtl.communication.messages import (
    AGREED,
    ATTENDANCE,
    BROADCAST,
    DIGESTS,
    IVS,
    MODELS,
    RECEIPTS,
    REPORT,
    SERVER,
    STATE,
    VERDICT,
    Content,
    Message,
    nothing,
    overhead_only,
    relay_name,
)
from hmtl.communication.nodes.aggregation import Aggregation, PackedModels
from hmtl.communication.turns import TRANSITIONS, Event, Phase, Turn, following
from hmtl.io.arrays import NOBODY, Ids, are_among

log = logging.getLogger(__name__)


class Node:
    """A relay or the server. It knows only what was sent to it.

    Args:
        name: its name.
        planner: plans of the network.
        transport: how rows travel.

    Attributes:
        version: of the state, as far as the node knows, see `Attempt`.
        attempt: the present one.
        attendance: who takes part in it.
        sizes: bytes of payload and overhead of a row.
        members: None, since relays and server have no users, see `gate.Expecting`.
        combining: whether relays combine, or are asked to combine, what users of secure sums revealed.
    """

    STATE: tuple[str, ...] = ("version",)
    combining = False
    members = None

    def __init__(self, name: str, planner: Planner, transport: Transport) -> None:
        self.name, self.planner, self.topology, self.transport = name, planner, planner.topology, transport
        self.version = 0
        self.round = -1
        self.attempt = Attempt()
        self.attendance: Attendance = decide(planner.topology, {}, 0, ())  # nobody takes part
        self.sizes = (0, 0)
        self._flow: Flow[Any] | None = None  # of this attempt, once it is known who takes part
        self._heard: Heard | None = None
        self._digest = Digest()

    def follow(self, planner: Planner) -> None:
        """Continue with the topology of another planner."""
        self.planner, self.topology = planner, planner.topology

    @property
    def flow(self) -> Flow[Any]:
        """The flow of this attempt."""
        assert self._flow, "a node asks for it once it knows who takes part"
        return self._flow

    def state_dict(self) -> dict[str, Tensor]:
        return {name: torch.tensor(getattr(self, name)) for name in self.STATE}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.STATE:
            setattr(self, name, int(state[name]))


class Relay(Node):
    """Relay i.

    Args:
        i: number of the relay.
        planner, transport: see `Node`.
        hosts: names of the users' hosts.
        aggregation: computes the models, if relays may aggregate; relays of one process share it.

    Attributes:
        phase: where it is in the round.
        dtype: the type of the users' numbers, in which models are computed.
        prepared: the attempt in which it computed models of which it does not know whether they count; 0: none.
        adopted: the version of the last state that it adopted; 0: none.
    """

    STATE = ("version", "prepared", "adopted")

    def __init__(
        self, i: int, planner: Planner, transport: Transport, hosts: Sequence[str], aggregation: Aggregation | None
    ) -> None:
        super().__init__(relay_name(i), planner, transport)
        self.i, self.hosts, self.aggregation = i, tuple(hosts), aggregation
        self.phase = Phase.ABSENT
        self.dtype = torch.float64
        self.prepared = self.adopted = 0
        self._models: PackedModels | None = None
        self._arrived: Sequence[Message] = ()  # that it heard before it reported, or announcements
        self._passed: Sequence[Message] = ()  # models that the server passed on

    def report(self, round: int, messages: Sequence[Message]) -> list[Message]:
        """Report to the server which users within range take part, given their rows, or announcements of them."""
        requests = [message for message in messages if message.format == REQUEST]
        rows = [message for message in messages if message.format != REQUEST]
        if not rows:
            return []  # without a message, the length of a row in this round is unknown
        self.phase = following(self.phase, Event.REPORT)
        hears, votes = self.topology.G[self.i] == 1, Counter[str]()
        for message in rows:
            votes[message.format] += int(hears[message.of_users()].sum())
        rows = [message for message in rows if message.format == max(votes, key=votes.__getitem__)]
        self.round, self.dtype, self._arrived = round, rows[0].dtype, rows
        users = np.unique(np.concatenate([message.of_users() for message in rows]))
        self.sizes = rows[0].payload.shape[1], rows[0].overhead.shape[1]
        requested, near = any(hears[message.of_users()].any() for message in requests), users[hears[users]]
        report = Report(near, self.version, *self.sizes, requested, rows[0].format, self.prepared or self.version)
        return [self._to_server(REPORT, overhead_only(report.to_bytes(self.topology, self.i)))]

    def attend(self, messages: Sequence[Message]) -> None:
        """Read who takes part and who aggregates; a relay without this message leaves the round.

        So does one that makes another plan than the server, unless it aggregates: then the server finds out.
        """
        self._digest = Digest()
        if self.phase is Phase.ABSENT:
            return
        attends = bool(messages)
        if messages:
            content = messages[0].overhead[0].numpy()
            self.attempt = Attempt.from_bytes(content[:ATTEMPT_BYTES])
            self.attendance = self.planner.attendance(content[ATTEMPT_BYTES:].tobytes())
            self._flow = flow_of(self.transport, self.planner, self.attendance, self.sizes)
            self.settle(self.attempt.agreed)
            if not self.attendance.aggregating[self.i] and self.flow.digest != self.attempt.digest:
                log.warning("round %d: %s stays out: %s", self.round, self.name, OTHER_PLAN)
                attends = False
        self.phase = following(self.phase, Event.ATTEND if attends else Event.MISS)

    def settle(self, agreed: int) -> None:
        """Keep an update that is prepared if its attempt was agreed on, and undo it otherwise."""
        if self.prepared == agreed:
            self.version = agreed
        self.prepared = 0
        if self.aggregation:
            self.aggregation.settle(agreed)

    @property
    def aggregating(self) -> bool:
        """Whether the relay computes models in this attempt: it aggregates, and lacks no message."""
        return self.phase is Phase.ATTENDING and bool(self.attendance.aggregating[self.i])

    def send_state(self) -> list[Message]:
        """Send the rows of missed rounds, or this aggregator's state, if the server names this relay as the source."""
        if self.attendance.source != self.i:
            return []
        content, row_format = self._aggregation.missed(self.attempt.since, self.adopted)
        return [self._to_server(STATE, overhead_only(content, row_format))]

    def adopt_state(self, messages: Sequence[Message]) -> None:
        """Repeat the rounds that this relay missed, or adopt another node's state."""
        if self.attendance.behind[self.i] and not messages:
            self.phase = following(self.phase, Event.MISS)
        for message in messages:
            whole = self._computes(partial(self._aggregation.catch_up, message.only_row, message.format, self.dtype))
            self.version = self._aggregation.version
            self.adopted = self.version if whole else self.adopted

    def _computes(self, act: Callable[[], Any]) -> Any:
        """Return what `act` returns; if it fails after another node handed over a state, this relay cannot go on."""
        try:
            return act()
        except Exception as error:  # a wrong state may lead to any
            if not self.attendance.behind[self.i]:
                raise
            why = "the state that another node handed over is wrong"
            log.warning("round %d: %s counts as silent: %s: %s", self.round, self.name, why, error)
            self.version = self._aggregation.version = DOUBTED
            self.phase = following(self.phase, Event.MISS)

    def begin(self) -> None:
        """Keep what the flow needs of the rows that were heard so far."""
        self._heard = self.flow.hearing(self.i)
        self.take([message for message in self._arrived if not message.announces])

    def take(self, messages: Sequence[Message]) -> None:
        """Hear rows of users, if they are in the format that the server announced."""
        assert self._heard, "a relay hears rows once it knows who takes part"
        self._heard.take([message for message in messages if message.format == self.attendance.format])

    def up(self, n: int) -> list[Message]:
        """Send the server what step n asks of this relay."""
        step = self.flow.collect[n]
        if self.phase is not Phase.ATTENDING or self.i not in step.senders or not self._heard_all():
            return []
        return [self._to_server(step.kinds[0], step.up(self.i, self._heard))]

    def learn(self, n: int, messages: Sequence[Message] = ()) -> None:
        """Learn what step n brings, if this relay aggregates."""
        step = self.flow.collect[n]
        if not self.aggregating or self.i not in step.learners:
            return
        if self.i in step.receivers and not messages:
            self.phase = following(self.phase, Event.MISS)
        if self.phase is not Phase.ATTENDING:
            return
        keeps = self._opens()
        step.learn(self.i, self._heard, messages, self._digest, self._aggregation if keeps else None)

    def _heard_all(self) -> bool:
        """Return whether all numbers of the rows arrived that this relay reported; without some, it cannot go on."""
        assert self._heard, "a relay hears rows before it sends anything of them"
        if lacking := self._heard.lacking.tolist():
            users = self.topology.names.of_users(lacking)
            log.warning("round %d: %s counts as silent: it lacks numbers of %s", self.round, self.name, users)
            self.phase = following(self.phase, Event.MISS)
        return not lacking

    def _opens(self) -> bool:
        """Begin an attempt, and return whether this relay keeps what aggregators of its process learn."""
        return self._aggregation.open(self.round, self.attempt.number, self.name, self.attendance.users)

    def release(self) -> None:
        """Release the rows that it heard, which may be large."""
        self._heard, self._arrived = None, ()

    def aggregate(self) -> None:
        """Compute the models; relays of a process that learned the same share them."""
        if not self.aggregating:
            return
        digest = self._digest.value()
        if self._opens():
            self._computes(lambda: self._aggregation.update(digest, self.dtype, self.attendance))
        if not self.aggregating:
            return
        self._models, self.prepared = self._aggregation.models(digest), self.attempt.number
        self.phase = following(self.phase, Event.AGGREGATE)

    def confirm(self) -> list[Message]:
        """Send digests to the server, and the models of users whom no aggregator hears."""
        if self.phase is not Phase.AGGREGATED:
            return []
        models, learned = self._models, self._digest.sealed(self.flow.digest)
        digests = learned + (models.digest if models else bytes(len(learned)))
        messages = [self._to_server(DIGESTS, overhead_only(np.frombuffer(digests, np.uint8).copy()))]
        if models and (passed := self.flow.delivery.up(self.i, models.content)):
            messages.append(self._to_server(MODELS, passed))
        return messages

    def conclude(self, verdict: Sequence[Message], models: Sequence[Message]) -> None:
        """Heed the server's verdict on this attempt, which only aggregators need; keep the models that it passes on."""
        self._passed = models
        if verdict:
            self.phase = following(
                self.phase, Event.AGREE if bool(verdict[0].overhead[0, 0]) is AGREED else Event.RETRY
            )
            self.settle(self.attempt.number if self.phase is Phase.AGREED else self.attempt.agreed)
        elif self.phase is Phase.AGGREGATED:
            self.phase = following(self.phase, Event.MISS)
        if self.phase is not Phase.AGREED:
            self._models = None

    def deliver(self) -> list[Message]:
        """Send users the models that the server passed on, and those that the relay computed.

        The latter are sent only if all aggregators agree. In a round without aggregators, send receipts instead, which
        say that no row counted.
        """
        if self.phase is Phase.ABSENT:
            return []
        if not self.planner.server and not self.attendance.aggregating.any():
            users = np.flatnonzero(self.planner.routes(self.attendance)[0] == self.i)
            not_counted = torch.zeros(len(users), 1, dtype=torch.uint8)
            return [self._to_users(RECEIPTS, users, Content(nothing(len(users)), not_counted, users))]
        models = self._models.content if self._models else None
        last_hop = self.flow.delivery.last_hop(self.i, models, self._passed)
        return [self._to_users(MODELS, links, rows) for links, rows in last_hop]

    def expects(self, message: Message, turn: Turn, gate: Gate) -> Shape | None:
        """Return the shape of such a message; None: the node expects none."""
        payload, overhead = message.sizes
        if message.kind == IVS:
            shape = gate.row(message)  # only links within a process carry blocks of rows
            return Shape(payload, overhead, True, format=message.format) if turn.action == "take" else shape
        if message.kind == BROADCAST and self.i in (step := self.flow.collect[int(turn.numbers[0])]).learners:
            return step.shape(self.i, up=False)
        if message.kind == VERDICT:
            event = Event.AGREE if bool(message.only_row[0]) is AGREED else Event.RETRY
            if event in TRANSITIONS[self.phase]:
                return Shape(0, 1)
        if message.kind == ATTENDANCE and self._may_attend(message.only_row, self.transport.lengths):
            return Shape(0, overhead)
        if message.kind == STATE and self.attendance.behind[self.i]:
            self._aggregation.check(message.only_row, message.format, self.attempt.agreed)
            return Shape(0, overhead, format=message.format)
        if message.kind == MODELS:
            nbytes = self.transport.model(message.overhead[:1], message.format)
            return self.flow.delivery.passed(self.i, False, message, nbytes)
        return None

    def _may_attend(self, content: NDArray[np.uint8], formats: Collection[str]) -> bool:
        """Return whether the server may tell this relay who attends; raise CodingError if nobody can attend so."""
        told = self.planner.attendance(content[ATTEMPT_BYTES:].tobytes())
        arrived = np.concatenate([NOBODY, *(message.of_users() for message in self._arrived)])
        heard = are_among(np.flatnonzero(told.heard.G[self.i]), np.sort(arrived))
        able = self.aggregation is not None or not told.aggregating.any()
        return bool(told.reporting[self.i] and heard and able and told.format in formats)

    def close(self) -> None:
        """End the round, and release its messages."""
        self.phase = following(self.phase, Event.CLOSE)
        self.release()
        self._passed, self._models, self._flow = (), None, None
        if self.aggregation:
            self.aggregation.close()

    @property
    def _aggregation(self) -> Aggregation:
        assert self.aggregation, "the server names only relays that can aggregate"
        return self.aggregation

    def _to_server(self, kind: str, content: Content) -> Message:
        header = self.round, RELAYS_TO_SERVER, kind, self.name, (SERVER,), self.i
        return Message(*header, *content[:4], self.dtype, format=content.format)

    def _to_users(self, kind: str, links: int | Ids, content: Content) -> Message:
        """Return a message that is counted on these links."""
        header = self.round, RELAYS_TO_USERS, kind, self.name, self.hosts, links
        return Message(*header, *content[:4], self.dtype, format=content.format)
