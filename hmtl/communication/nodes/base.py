"""The base of relays and servers: what each of them does in every round.

A relay reports, attends, heeds the verdict and delivers models. The server decides who takes part, notices silent
relays and sends models. K users, H relays.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, RELAYS_TO_USERS, SERVER_TO_RELAYS
from hmtl.communication.attendance import Report, decide
from hmtl.communication.messages import (
    AGREED,
    ATTENDANCE,
    MODELS,
    REPORT,
    SERVER,
    VERDICT,
    Message,
    Users,
    by_user,
    overhead_only,
    relay_name,
)
from hmtl.communication.nodes.aggregation import PackedModels
from hmtl.communication.nodes.phases import Event, Phase, following
from hmtl.communication.planning.planner import Planner


class Node:
    """A relay or the server. It knows only what was sent to it.

    Attributes:
        version: number of rounds that were aggregated, as far as the node knows; 0 if no relay ever aggregates.
        attendance: who takes part in the round.
        sizes: bytes of payload and overhead of an IV.
    """

    def __init__(self, name: str, planner: Planner) -> None:
        self.name, self.planner, self.topology = name, planner, planner.topology
        self.version = 0
        self.round = -1
        self.attendance = decide(planner.topology, {}, 0, ())  # nobody takes part
        self.sizes = (0, 0)

    def follow(self, planner: Planner) -> None:
        """Continue with the topology of another planner."""
        self.planner, self.topology = planner, planner.topology

    def plan(self) -> None:
        """Make the plans of an attempt in advance, if making them takes long."""

    def state_dict(self) -> dict[str, Tensor]:
        return {"version": torch.tensor(self.version)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.version = int(state["version"])


class Relay(Node):
    """Relay i.

    Args:
        i: number of the relay.
        planner: plans of the network.
        hosts: names of the users' hosts.

    Attributes:
        phase: where it is in the round.
    """

    def __init__(self, i: int, planner: Planner, hosts: Sequence[str]) -> None:
        super().__init__(relay_name(i), planner)
        self.i, self.hosts = i, tuple(hosts)
        self.phase = Phase.ABSENT
        self.dtype = torch.float64
        self._ivs: dict[str, Tensor] = {}  # payload and overhead of what it heard, a row for each IV
        self._row: NDArray[np.int64] = np.full(planner.topology.K, -1)  # where each user's IV is; -1: not heard
        self._passed: Sequence[Message] = ()  # models that the server passed on

    def report(self, round: int, messages: Sequence[Message]) -> list[Message]:
        """Take the IVs of the users within range and report to the server whose IVs they are."""
        if not messages:
            return []  # without a message, the length of an IV in this round is unknown
        self._on(Event.REPORT)
        self.round, self.dtype = round, messages[0].dtype
        users, self._ivs = by_user(messages)  # rows of users out of range remain unread
        at = np.flatnonzero(self.topology.G[self.i][users])
        self._row = np.full(self.topology.K, -1)
        self._row[users[at]] = at
        self.sizes = self._ivs["payload"].shape[1], self._ivs["overhead"].shape[1]
        content = Report(users[at], self.version, *self.sizes).to_bytes(self.topology, self.i)
        return [self._to_server(REPORT, *overhead_only(content))]

    def attend(self, messages: Sequence[Message]) -> None:
        """Read who takes part and who aggregates; a relay without this message leaves the round."""
        if self.phase is Phase.ABSENT:
            return
        self._on(Event.ATTEND if messages else Event.MISS)
        if messages:
            self.attendance = self.planner.attendance(messages[0].overhead.numpy().tobytes())

    def release(self) -> None:
        """Release the IVs that it heard, which may be large."""
        self._ivs = {}

    def conclude(self, verdict: Sequence[Message], models: Sequence[Message]) -> None:
        """Heed the server's verdict on this attempt, which only aggregators need; keep the models that it passes on."""
        self._passed = models
        if verdict:
            self._on(Event.AGREE if bool(verdict[0].overhead[0, 0]) is AGREED else Event.RETRY)
        elif self.phase is Phase.AGGREGATED:
            self._on(Event.MISS)

    def deliver(self) -> list[Message]:
        """Send the users the models that the server passed on."""
        return [self._to_users(MODELS, m.payload, m.overhead, m.of_users(), m.rows()) for m in self._passed]

    def close(self) -> None:
        """End the round, and release its messages."""
        self._on(Event.CLOSE)
        self.release()
        self._passed = ()

    def _on(self, event: Event) -> None:
        self.phase = following(self.phase, event)

    def _to_server(
        self, kind: str, payload: Tensor, overhead: Tensor, users: Users | None = None, at: Tensor | None = None
    ) -> Message:
        return Message(
            self.round, RELAYS_TO_SERVER, kind, self.name, (SERVER,), self.i, payload, overhead, users, at, self.dtype
        )

    def _to_users(
        self, kind: str, payload: Tensor, overhead: Tensor, users: Users, at: Tensor | None = None
    ) -> Message:
        """Return a message with a row for each of these users, counted on the link of each."""
        return Message(
            self.round, RELAYS_TO_USERS, kind, self.name, self.hosts, users, payload, overhead, users, at, self.dtype
        )


class Server(Node):
    """The server.

    Attributes:
        empty: whether nobody aggregates in this round.
        silent: the relays whose message is missing in this attempt.
        handover_bits: bits of the aggregators' state that were handed to relays in this round.
    """

    def __init__(self, planner: Planner) -> None:
        super().__init__(SERVER, planner)
        self.empty = False
        self.silent: set[int] = set()
        self.handover_bits = 0
        self._reports: dict[int, Report] = {}

    def attend(self, round: int, messages: Sequence[Message]) -> list[Message]:
        """Decide from the relays' reports who takes part and who aggregates; announce it."""
        self.round, self.handover_bits = round, 0
        self._reports = {
            relay_of(message): Report.from_bytes(message.overhead[0].numpy(), self.topology, relay_of(message))
            for message in messages
        }
        return self._announce()

    def attend_again(self) -> list[Message]:
        """Announce the attendance for the next attempt, as if the silent relays had not reported."""
        for i in self.silent:
            del self._reports[i]
        return self._announce()

    def _announce(self) -> list[Message]:
        self.silent = set()
        planner = self.planner
        content = decide(self.topology, self._reports, self.version, planner.preferred, planner.server).to_bytes()
        self.attendance = self.planner.attendance(content.tobytes())
        self.empty = not (self._reports if planner.server else self.attendance.aggregating.any())
        heard = [report for report in self._reports.values() if len(report.heard)]  # others may not know the sizes
        sizes = ((report.payload, report.overhead) for report in heard or self._reports.values())
        self.sizes = max(sizes, default=(0, 0))
        return self._to(self.attendance.relays, ATTENDANCE, *overhead_only(content))

    def _lacks(self, relays: Sequence[int], messages: Sequence[Message]) -> bool:
        """Record the relays that sent no message; return whether one is or was missing.

        `silent` keeps the first such relays of an attempt: relays that cannot send because of them are not silent.
        """
        if not self.silent:
            self.silent = set(relays).difference(map(relay_of, messages))
        return bool(self.silent)

    def _verdict(self, agreed: bool, relays: Sequence[int]) -> list[Message]:
        return self._to(relays, VERDICT, *overhead_only(np.array([agreed], np.uint8)))

    def _to(self, relays: Sequence[int], kind: str, payload: Tensor, overhead: Tensor) -> list[Message]:
        """Return a message to some relays: one broadcast, or a copy for each."""
        names = tuple(relay_name(i) for i in relays)
        copies: list[tuple[tuple[str, ...], int]] = [(names, self.topology.H)] if names else []
        if self.planner.network.medium == "unicast":
            copies = [((name,), i) for name, i in zip(names, relays, strict=True)]
        return [Message(self.round, SERVER_TO_RELAYS, kind, SERVER, to, link, payload, overhead) for to, link in copies]

    def _to_serving(self, models: Message | PackedModels, of: Users, rows: Tensor) -> Iterator[Message]:
        """Yield the models of some users to the relays that serve them and need the server for it."""
        serving, via_server = self.attendance.routes
        payload, overhead = models.payload, models.overhead
        for i in np.unique(serving[of][via_server[of]]).tolist():
            chosen = np.flatnonzero(via_server[of] & (serving[of] == i))
            users, at = of[chosen], rows[torch.from_numpy(chosen)]
            to = (relay_name(i),)
            yield Message(self.round, SERVER_TO_RELAYS, MODELS, SERVER, to, i, payload, overhead, users, at)


def relay_of(message: Message) -> int:
    """Return the number of the relay on whose link to the server a message travelled."""
    assert isinstance(message.links, int)
    return message.links
