"""What every relay does: report, attend, heed the verdict, deliver models.

K users, H relays.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, RELAYS_TO_USERS
from hmtl.communication.attendance import Attendance, Report
from hmtl.communication.messages import (
    AGREED,
    MODELS,
    REPORT,
    SERVER,
    Message,
    Users,
    overhead_only,
    relay_name,
)
from hmtl.communication.nodes.phases import Event, Phase, following
from hmtl.communication.planning.planner import Planner


class Relay:
    """Relay i, which knows what it heard and what the server sent to it.

    Args:
        i: number of the relay.
        planner: plans of the network.
        hosts: names of the users' hosts.
        reliable: whether every message arrives, so that an attempt never has to be repeated.

    Attributes:
        version: number of rounds that it has aggregated.
        phase: where it is in the round.
        attendance: who takes part in the round.
        sizes: bytes of payload and overhead of an IV.
    """

    def __init__(self, i: int, planner: Planner, hosts: Sequence[str], reliable: bool = False) -> None:
        self.i, self.name = i, relay_name(i)
        self.hosts, self.reliable = tuple(hosts), reliable
        self.version = 0
        self.phase = Phase.ABSENT
        self.round = -1
        self.dtype = torch.float64
        self.sizes = (0, 0)
        self.planner, self.topology = planner, planner.topology
        self.attendance = Attendance.nobody(planner.topology)
        self._ivs: dict[str, Tensor] = {}  # payload and overhead of what it heard, a row for each IV
        self._row: NDArray[np.int64] = np.full(planner.topology.K, -1)  # where each user's IV is; -1: not heard
        self._passed: Sequence[Message] = ()  # models that the server passed on

    def follow(self, planner: Planner) -> None:
        """Continue with the topology of another planner."""
        self.planner, self.topology = planner, planner.topology

    def report(self, round: int, messages: Sequence[Message]) -> list[Message]:
        """Take the IVs of the users within range and report to the server whose they are."""
        if not messages:
            return []  # nobody says how long IVs are in this round
        self._on(Event.REPORT)
        self.round, self.dtype = round, messages[0].dtype
        within_range = self.topology.G[self.i].astype(bool)
        places = [np.flatnonzero(within_range[message.of_users()]) for message in messages]
        if len(messages) == 1:  # the rows of users out of range stay where they are, unread
            self._ivs = {"payload": messages[0].payload, "overhead": messages[0].overhead}
            rows = places[0]
        else:
            self._ivs = {
                part: _stacked([getattr(message, part) for message in messages], places)
                for part in ("payload", "overhead")
            }
            rows = np.arange(sum(map(len, places)))
        users = np.concatenate([message.of_users()[at] for message, at in zip(messages, places, strict=True)])
        self._row = np.full(self.topology.K, -1)
        self._row[users] = rows
        self.sizes = self._ivs["payload"].shape[1], self._ivs["overhead"].shape[1]
        content = Report(users, self.version, *self.sizes).to_bytes(self.topology, self.i)
        return [self._to_server(REPORT, *overhead_only(content))]

    def attend(self, messages: Sequence[Message]) -> None:
        """Read who takes part and who aggregates; without this message the relay leaves the round."""
        if self.phase is Phase.ABSENT:
            return
        if not messages:
            self._on(Event.MISS)
            return
        self._on(Event.ATTEND)
        self.attendance = self.planner.attendance(messages[0].overhead.numpy().tobytes())

    def conclude(self, verdict: Sequence[Message], models: Sequence[Message]) -> None:
        """Heed the server's verdict on this attempt, and keep the models that it passes on.

        A relay that did not aggregate needs no verdict.
        """
        self._passed = models
        if verdict:
            self._on(Event.AGREE if bool(verdict[0].overhead[0, 0]) is AGREED else Event.RETRY)
        elif self.phase is Phase.AGGREGATED:
            self._on(Event.MISS)

    def deliver(self) -> list[Message]:
        """Send the models that the server passed on to the users."""
        return [self._to_users(MODELS, m.payload, m.overhead, m.of_users(), m.rows()) for m in self._passed]

    def close(self) -> None:
        """End the round, and release its messages, which may be large."""
        self._on(Event.CLOSE)
        self._ivs, self._passed = {}, ()

    def state_dict(self) -> dict[str, Tensor]:
        return {"version": torch.tensor(self.version)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.version = int(state["version"])

    def _on(self, event: Event) -> None:
        self.phase = following(self.phase, event)

    def _to_server(
        self, kind: str, payload: Tensor, overhead: Tensor, users: Users | None = None, at: Tensor | None = None
    ) -> Message:
        """Return a message to the server."""
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


def _stacked(sources: Sequence[Tensor], places: Sequence[NDArray[np.int64]]) -> Tensor:
    """Return these rows of each source below each other, without a further copy on the way."""
    rows, end = sources[0].new_empty(sum(map(len, places)), sources[0].shape[1]), 0
    for source, at in zip(sources, places, strict=True):
        start, end = end, end + len(at)
        torch.index_select(source, 0, torch.from_numpy(at), out=rows[start:end])
    return rows
