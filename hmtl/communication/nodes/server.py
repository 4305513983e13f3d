"""The server: it decides who takes part, notices silent relays, plays its part of a flow, and sends models.

If it aggregates, it computes the models of what it learned; relays that aggregate beside it must hold the same.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from hmtl.communication.accounting.ledger import SERVER_TO_RELAYS
from hmtl.communication.agreement import CONTENT_DIGEST_BYTES, Digest
from hmtl.communication.attendance import DOUBTED, Attempt, Report, decide
from hmtl.communication.flows.flow import OF_SERVER, OTHER_PLAN, Copy, Shape
from hmtl.communication.flows.planner import Planner
from hmtl.communication.flows.recipe import Transport, flow_of
from hmtl.communication.gate import Gate
from hmtl.communication.messages import (
    AGREED,
    ATTENDANCE,
    DIGESTS,
    IN_VAIN,
    MODELS,
    REPORT,
    SERVER,
    STATE,
    VERDICT,
    Content,
    Message,
    overhead_only,
    relay_name,
    relay_number,
)
from hmtl.communication.nodes.aggregation import Aggregation
from hmtl.communication.nodes.relay import Node
from hmtl.communication.turns import Turn
from hmtl.errors import CodingError

log = logging.getLogger(__name__)


class Server(Node):
    """The server.

    Args:
        planner, transport: see `Node`.
        aggregation: computes the models, if the server aggregates.

    Attributes:
        attempts: how many there have been in all rounds.
        empty: whether nobody aggregates in this round, or nobody counts, since a sum is unknown or out of range.
        silent: the relays whose message is missing in this attempt.
        handover_bits: bits of the aggregators' state that were handed to relays in this round.
        dtype: the type of the users' numbers, in which models are computed.
    """

    STATE = ("version", "attempts")

    def __init__(self, planner: Planner, transport: Transport, aggregation: Aggregation | None) -> None:
        super().__init__(SERVER, planner, transport)
        self.aggregation = aggregation
        self.attempts = 0
        self.empty = False
        self.silent: set[int] = set()
        self.handover_bits = 0
        self.dtype = torch.float64
        self._reports: dict[int, Report] = {}
        self._doubted: set[int] = set()  # relays that computed other models from the same rows: their state is wrong

    def attend(self, round: int, messages: Sequence[Message]) -> list[Message]:
        """Decide from the relays' reports who takes part and who aggregates; announce it."""
        self.round, self.handover_bits = round, 0
        sent = {relay_number(message.sender): message.overhead[0].numpy() for message in messages}
        self._reports = {i: Report.from_bytes(sent[i], self.topology, i) for i in sorted(sent)}
        for i in self._doubted & self._reports.keys():
            self._reports[i] = replace(self._reports[i], version=DOUBTED, prepared=DOUBTED)
        return self._announce()

    def attend_again(self) -> list[Message]:
        """Announce the attendance for the next attempt, as if the silent relays had not reported."""
        for i in self.silent:
            del self._reports[i]
        return self._announce()

    def _announce(self) -> list[Message]:
        self.silent, self._digest, self._heard = set(), Digest(), None
        planner = self.planner
        content = decide(self.topology, self._reports, self.version, planner.preferred, planner.server).to_bytes()
        self.attendance = self.planner.attendance(content.tobytes())
        self.empty = not (self._reports if planner.server else self.attendance.aggregating.any())
        usual = [report for report in self._reports.values() if report.format == self.attendance.format]
        self.sizes = next(((report.payload, report.overhead) for report in usual), (0, 0))
        self.attempts += 1
        versions = [self._reports[i].version for i in np.flatnonzero(self.attendance.behind).tolist()]
        self._flow = flow_of(self.transport, self.planner, self.attendance, self.sizes)
        self.attempt = Attempt(self.attempts, self.version, min([self.version, *versions]), self.flow.digest)
        content = np.concatenate([self.attempt.to_bytes(), content])
        return self._to(self.attendance.relays, ATTENDANCE, overhead_only(content))

    def pass_state(self, messages: Sequence[Message] = ()) -> list[Message]:
        """Send the relays that missed a round what another aggregator sent for them, or what the server holds."""
        attendance, behind = self.attendance, np.flatnonzero(self.attendance.behind).tolist()
        self._lacks([attendance.source] if attendance.source >= 0 else [], messages)
        states = [Content(message.payload, message.overhead, format=message.format) for message in messages]
        if self.aggregation and behind:
            states = [overhead_only(*self.aggregation.missed(self.attempt.since))]
        copies = [copy for state in states for copy in self._to(behind, STATE, state)]
        self.handover_bits += 8 * sum(message.overhead.numel() for message in (*messages, *copies))
        return copies

    def down(self, n: int, messages: Sequence[Message] = ()) -> list[Message]:
        """Take what relays sent in step n, learn what it brings, and send relays what they need.

        If a message is missing, the attempt is in vain.
        """
        step = self.flow.collect[n]
        messages = sorted(messages, key=lambda message: relay_number(message.sender))  # as steps join them
        if self.empty or self._lacks(step.senders, messages):
            return []
        if OF_SERVER in step.learners:
            assert self.aggregation, "only a server that aggregates learns something"
            self.dtype = messages[0].dtype if messages else self.dtype
            self.aggregation.open(self.round, self.attempt.number, self.name, self.attendance.users)
            heard = step.learn(OF_SERVER, self._heard, messages, self._digest, self.aggregation)
            self._heard = heard or self._heard
        return [self._copy(step.kinds[1], copy) for copy in step.down(self._heard, messages)]

    def aggregate(self) -> None:
        """Compute the models, if the server aggregates."""
        self._heard = None  # may be as large as all models
        if self.aggregation and not self.empty and not self.silent:
            self.aggregation.update(self._value, self.dtype, self.attendance)

    def compare(self, digests: Sequence[Message] = (), models: Sequence[Message] = ()) -> list[Message]:
        """Release the models if all aggregators hold the same ones; send those of users whom no aggregator hears.

        Raises:
            CodingError: nobody knows which aggregators follow the right plan, or hold the right rows or models.
        """
        if not self._lacks(self.attendance.aggregators, digests) and digests:
            self.silent = self._deviating(digests)
        in_vain = bool(self.silent)
        if self.aggregation:
            self.aggregation.settle(self.attempt.agreed if in_vain else self.attempt.number)
        if in_vain:
            return self._verdict(IN_VAIN, self.attendance.relays)
        if self.empty:
            return []
        sent = [Content(m.payload, m.overhead, m.users, m.at, m.format) for m in models]
        if self.aggregation and (computed := self.aggregation.models(self._value)):
            sent = [computed.content]
        self.version = self.attempt.number
        self._doubted -= set(self.attendance.aggregators)
        self.empty = bool(self.aggregation and self.aggregation.unknown)
        verdict = self._verdict(AGREED, self.attendance.aggregators)
        return [*verdict, *(self._copy(MODELS, copy) for content in sent for copy in self.flow.delivery.down(content))]

    def expects(self, message: Message, turn: Turn, gate: Gate) -> Shape | None:
        """Return the shape of such a message; None: the node expects none."""
        i, kind, (_, overhead) = relay_number(message.sender), message.kind, message.sizes
        if kind == REPORT:
            report = Report.from_bytes(message.only_row, self.topology, i)
            nbytes, _ = self.transport.lengths.get(report.format, (-1, -1))
            fits = (report.payload, report.overhead) == (nbytes, 8 * self.transport.row_layout.further)
            if fits and DOUBTED <= report.version <= report.prepared <= self.attempts:
                return Shape(0, overhead)
        elif turn.action == "down" and i in (step := self.flow.collect[int(turn.numbers[0])]).senders:
            return step.shape(i, up=True)
        elif kind == STATE and i == self.attendance.source:
            gate.aggregation.check(message.only_row, message.format, self.version)
            return Shape(0, overhead, format=message.format)
        elif kind == DIGESTS and i in self.attendance.aggregators:
            return Shape(0, 2 * CONTENT_DIGEST_BYTES)
        elif kind == MODELS:
            nbytes = self.transport.model(message.overhead[:1], message.format)
            return self.flow.delivery.passed(i, True, message, nbytes)
        return None

    @property
    def _value(self) -> bytes:
        """The digest of what the server learned; empty if no relay ever aggregates."""
        return self._digest.value() if self.planner.preferred else b""

    def _deviating(self, digests: Sequence[Message]) -> set[int]:
        """Return the relays whose digests differ from those of most, or from the server's own, and say in what.

        If nobody knows who is right, these are all: no round ends a run, after the first one that counted.

        Raises:
            CodingError: before a round counted, no digest is that of most, or all made another plan than the server.
        """
        received = {relay_number(message.sender): message.overhead[0].numpy().tobytes() for message in digests}
        flow, plan = self.flow, len(self.flow.digest)
        odd = {i: OTHER_PLAN for i, digest in received.items() if digest[:plan] != flow.digest}
        rest = {i: digest for i, digest in received.items() if i not in odd}
        right = max(rest.values(), key=[*rest.values()].count, default=b"")
        decided = 2 * [*rest.values()].count(right) > len(rest) and any(right[CONTENT_DIGEST_BYTES:])
        if self.aggregation and (models := self.aggregation.models(self._value)):
            right, decided = self._digest.sealed(flow.digest) + models.digest, True
        doubted = set[int]()
        for i, digest in rest.items():
            if digest[:CONTENT_DIGEST_BYTES] != right[:CONTENT_DIGEST_BYTES]:
                odd[i] = "it learned other IVs than the other aggregators."
            elif digest != right:
                odd[i] = "it computed other models than the other aggregators."
                doubted.add(i)
        if odd and (not rest or not decided):
            text = (
                f"Aggregators differ in round {self.round}, and nobody knows which of them are right: "
                f"{self._named([*odd])}: {next(iter(odd.values()))}"
            )
            if not self.version:
                raise CodingError(
                    f"{text} The run stops before a wrong model spreads. Please report this with the topology, the "
                    "settings of the communicator and the seed."
                )
            log.warning("%s All of them count as silent.", text)
            return {*received}
        self._doubted = self._doubted - rest.keys() | doubted
        for i, why in odd.items():
            log.warning("round %d: %s counts as silent: %s", self.round, self._named([i]), why)
        return {*odd}

    def _named(self, relays: Sequence[int]) -> str:
        return f"relay{'s' * (len(relays) > 1)} " + ", ".join(map(str, self.topology.names.of_relays(relays)))

    def _lacks(self, relays: Sequence[int], messages: Sequence[Message]) -> bool:
        """Record the relays that sent no message; return whether one is or was missing.

        `silent` keeps the first such relays of an attempt: relays that cannot send because of them are not silent.
        """
        if not self.silent:
            self.silent = set(relays).difference(relay_number(message.sender) for message in messages)
        return bool(self.silent)

    def _verdict(self, agreed: bool, relays: Sequence[int]) -> list[Message]:
        return self._to(relays, VERDICT, overhead_only(np.array([agreed], np.uint8)))

    def _to(self, relays: Sequence[int], kind: str, content: Content) -> list[Message]:
        """Return a message to some relays: one broadcast, or a copy for each."""
        return [self._copy(kind, Copy(to, link, content)) for to, link in self.planner.copies(tuple(relays))]

    def _copy(self, kind: str, copy: Copy) -> Message:
        names = tuple(relay_name(i) for i in copy.relays)
        header = self.round, SERVER_TO_RELAYS, kind, SERVER, names, copy.link
        return Message(*header, *copy.content[:4], format=copy.content.format)
