"""Links within a process on a clock of their own, which shows the seconds that messages would take over access links.

Each node has a clock. A message leaves when its sender's clock allows it and the sender's link is free, and arrives
when both ends' links have carried it; whoever waits for it goes on then. Computing takes no time. Every relay sends a
host its rows in one message, as between processes, and users send a copy to each relay: there is no broadcast on that
hop.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hmtl.communication.accounting.access import Access
from hmtl.communication.accounting.ledger import LinkLedger
from hmtl.communication.links import InProcess
from hmtl.communication.messages import BROADCAST, COMBINATIONS, SERVER, Message, relay_number
from hmtl.topology import Moving, Topology

FRAME = 100  # bytes of a frame's header, and of what carries it

Flow = tuple[float, float, float]  # when a message's first bit arrives, when its last one was sent plus latency, bits


class TimedLinks(InProcess):
    """Links with the seconds of a round.

    Args:
        ledger: counts bits.
        contacts: who hears whom.
        access: the links of the nodes.
        scale: how many times longer payloads are than those that are posted.
        segments: how many times combinations go back and forth one after the other, instead of once.

    Attributes:
        seconds: how long the messages of the last round took.
    """

    def __init__(
        self,
        ledger: LinkLedger,
        contacts: Topology | Moving,
        access: Access,
        scale: float = 1.0,
        segments: int = 1,
    ) -> None:
        super().__init__(ledger)
        self.contacts, self.topology, self.access = contacts, contacts.at(0), access
        self.scale, self.segments = scale, segments
        self._homes = [np.flatnonzero(access.homes == n) for n in range(len(access.ports) - 1 - 2 * self.topology.H)]
        self._node = SERVER
        self.begin(0)

    @property
    def seconds(self) -> float:  # type: ignore[override]  # read-only
        return float(self._clock.max())

    def begin(self, round: int) -> None:
        super().begin(round)
        self.topology = self.contacts.at(max(round, 0))
        self._clock = np.zeros(1 + self.topology.H + len(self._homes))
        self._sent, self._taken = np.zeros((2, len(self.access.links)))  # until when the links are busy
        self._flows: dict[tuple[int, str], list[tuple[Flow, int]]] = defaultdict(list)  # by receiver and kind
        self._posted: set[tuple[int, int, str]] = set()

    def turn(self, node: str) -> None:
        self._node = node

    def send(self, message: Message) -> None:
        super().send(message)
        payload, overhead = (8 * part.shape[1] for part in (message.payload, message.overhead))
        row, users = payload * self.scale + overhead, message.users
        cast = None  # a broadcast of the server leaves once
        for receiver in message.receivers:
            for a in self._places(message.sender):
                for b in self._places(receiver):
                    rows = len(message)
                    if users is not None and SERVER not in (message.sender, receiver):
                        home = self._homes[max(a, b) - 1 - self.topology.H]
                        heard = self.topology.G[min(a, b) - 1][home] if a > b else np.ones(len(home), bool)
                        here = int(np.isin(home[heard == 1], users).sum())
                        rows = here if rows == len(users) else min(here, 1)
                    if rows:
                        cast = self._flow(a, b, message.kind, rows * row + 8 * FRAME, cast if users is None else None)

    def end(self, kind: str, receivers: Sequence[str]) -> None:
        for a in self._places(self._node):
            for receiver in receivers:
                for b in self._places(receiver):
                    if (a, b, kind) not in self._posted:
                        self._flow(a, b, kind, 8 * FRAME, None)
        self._posted.clear()

    def collect(self, node: str, kind: str, expected: Sequence[str]) -> list[Message]:
        for b in self._places(node):
            for (first, last, bits), port in sorted(self._flows.pop((b, kind), ())):
                rate = self.access.links[port, 1]
                self._taken[port] = max(self._taken[port], first) + bits / rate
                self._clock[b] = max(self._clock[b], last, self._taken[port])
        return super().collect(node, kind, expected)

    def _places(self, node: str) -> NDArray[np.int64] | list[int]:
        """Return the places of a node's clocks; a host of this process stands for all hosts."""
        if node == SERVER:
            return [0]
        if node.startswith("relay"):
            return [1 + relay_number(node)]
        return np.arange(1 + self.topology.H, len(self._clock))

    def _flow(
        self, a: int, b: int, kind: str, bits: float, cast: tuple[float, float] | None
    ) -> tuple[float, float] | None:
        """Send bits from place a to b; return when the server's broadcast began and ended, for its other receivers."""
        H, ports = self.topology.H, self.access.ports
        near = a == 0 or b == 0  # between server and relays
        sender, receiver = (int(ports[x if near else x + H]) for x in (a, b))
        latency = self.access.links[[sender, receiver], 2].sum()
        if kind in (COMBINATIONS, BROADCAST):
            latency *= self.segments
        if cast is None:
            start = max(self._clock[a], self._sent[sender])
            cast = start, start + bits / self.access.links[sender, 0]
            self._sent[sender] = cast[1]
        self._flows[b, kind].append(((cast[0] + latency, cast[1] + latency, bits), receiver))
        self._posted.add((a, b, kind))
        return cast if a == 0 else None
