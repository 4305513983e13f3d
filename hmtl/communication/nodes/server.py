"""What every server does: decide who takes part, notice silent relays, send models.

K users, H relays.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.accounting.ledger import SERVER_TO_RELAYS
from hmtl.communication.attendance import Attendance, Report, decide
from hmtl.communication.messages import (
    AGREED,
    ATTENDANCE,
    IN_VAIN,
    MODELS,
    SERVER,
    VERDICT,
    Message,
    Users,
    overhead_only,
    relay_name,
)
from hmtl.communication.nodes.aggregation import PackedModels
from hmtl.communication.planning.planner import Planner


class Server(ABC):
    """The server, which knows what the relays sent to it.

    Args:
        planner: plans of the network.

    Attributes:
        version: number of rounds that relays have aggregated.
        attendance: who takes part in the round.
        empty: whether nobody aggregates in this round.
        silent: the relays of which a message is missing in this attempt.
        sizes: bytes of payload and overhead of an IV.
        handover_bits: bits of the aggregators' state that were handed to relays in this round.
    """

    name = SERVER

    def __init__(self, planner: Planner) -> None:
        self.planner, self.topology = planner, planner.topology
        self.version = 0
        self.round = -1
        self.attendance = Attendance.nobody(planner.topology)
        self.empty = False
        self.silent: set[int] = set()
        self.sizes = (0, 0)
        self.handover_bits = 0
        self._reports: dict[int, Report] = {}

    def follow(self, planner: Planner) -> None:
        """Continue with the topology of another planner."""
        self.planner, self.topology = planner, planner.topology

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

    @abstractmethod
    def nobody_aggregates(self) -> bool:
        """Return whether nobody aggregates, given the attendance."""

    def close(self) -> None:  # noqa: B027, not every server holds models
        """Release what only this round needs."""

    def state_dict(self) -> dict[str, Tensor]:
        return {"version": torch.tensor(self.version)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.version = int(state["version"])

    def _announce(self) -> list[Message]:
        self.silent = set()
        content = decide(self.topology, self._reports, self.version, self.planner.preferred).to_bytes(self.topology)
        self.attendance = self.planner.attendance(content.tobytes())
        self.empty = self.nobody_aggregates()
        self.sizes = max(((report.payload, report.overhead) for report in self._reports.values()), default=(0, 0))
        return list(self._to(self.attendance.relays, ATTENDANCE, *overhead_only(content)))

    def _lacks(self, relays: Sequence[int], messages: Sequence[Message]) -> bool:
        """Return whether a message of these relays is missing, now or before in this attempt."""
        if not self.silent:  # relays that a silent one left without what they need are not silent themselves
            self.silent = set(relays).difference(map(relay_of, messages))
        return bool(self.silent)

    def _verdict(self, agreed: bool, relays: Sequence[int]) -> list[Message]:
        """Return the verdict on this attempt for some relays."""
        return list(self._to(relays, VERDICT, *overhead_only(np.array([agreed], np.uint8))))

    def _agreed(self, relays: Sequence[int]) -> list[Message]:
        return self._verdict(AGREED, relays)

    def _in_vain(self) -> list[Message]:
        return self._verdict(IN_VAIN, self.attendance.relays)

    def _to(self, relays: Sequence[int], kind: str, payload: Tensor, overhead: Tensor) -> Iterator[Message]:
        """Yield the same message to some relays, once by broadcast or as a copy for each."""
        names = [relay_name(i) for i in relays]
        copies: list[tuple[tuple[str, ...], int]] = [(tuple(names), self.topology.H)] if names else []
        if self.planner.network.medium == "unicast":
            copies = [((name,), i) for name, i in zip(names, relays, strict=True)]
        for receivers, link in copies:
            yield Message(self.round, SERVER_TO_RELAYS, kind, SERVER, receivers, link, payload, overhead)

    def _to_serving(self, models: Message | PackedModels, of: Users, rows: Tensor) -> Iterator[Message]:
        """Yield the models of some users to the relays that serve them."""
        serving, via_server = self.planner.routes(self.attendance)
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
