"""Links within a process on a clock of their own, which shows the seconds that messages would take over access links.

Each node has a clock. A message leaves when its sender's clock allows it and the sender's link is free, and arrives
when both ends' links have carried it; a node that waits for it goes on then. Computing takes no time. Every relay sends
a host its rows in one message, as between processes, and users send a copy to each relay, since that hop has no
broadcast.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from hmtl.communication.accounting.access import Access
from hmtl.communication.accounting.ledger import LinkLedger
from hmtl.communication.links import InProcess
from hmtl.communication.messages import BROADCAST, COMBINATIONS, SERVER, Message, relay_number
from hmtl.topology import Moving, Topology

FRAME = 100  # bytes of a frame's header, and of what carries it

_Frame = tuple[str, float, Message | None]  # kind, bits, the message if it leaves once for several receivers
_Arrival = tuple[float, float, float, str]  # when its first and last bit can arrive, bits, the kind


class TimedLinks(InProcess):
    """Links with the seconds of a round.

    As between processes, rows go ahead of the report of who takes part.

    Args:
        ledger: counts bits.
        contacts: who hears whom.
        access: the links of the nodes.
        scale: how many times longer payloads are than those that are posted.
        segments: how many times combinations go back and forth one after the other, instead of once.

    Attributes:
        seconds: how long the messages of the last round took.
    """

    streams = False

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
        self._homes = [np.flatnonzero(access.homes == n) for n in range(len(access.links) - 1 - self.topology.H)]
        self._node = SERVER
        self.begin(0)

    @property
    def seconds(self) -> float:  # type: ignore[override]  # read-only
        self._depart()
        return float(self._clock.max())

    def begin(self, round: int) -> None:
        super().begin(round)
        self.topology = self.contacts.at(max(round, 0))
        self._clock = np.zeros(1 + self.topology.H + len(self._homes))
        self._sent, self._taken = np.zeros((2, len(self.access.links)))  # until when the links are busy
        self._leaving: dict[int, dict[int, list[_Frame]]] = defaultdict(lambda: defaultdict(list))  # by both ends
        self._arriving: dict[int, list[_Arrival]] = defaultdict(list)  # by receiver
        self._arrived: dict[tuple[int, str], float] = defaultdict(float)  # when, by receiver and kind

    def turn(self, node: str) -> None:
        self._depart()
        self._node = node

    def send(self, message: Message) -> None:
        super().send(message)
        payload, overhead = (8 * part.shape[1] for part in (message.payload, message.overhead))
        row, users, cast = payload * self.scale + overhead, message.users, None
        if users is None and len(message.receivers) > 1:
            cast = message  # leaves once for all receivers
        for receiver in message.receivers:
            by_home: list[int] = []
            if users is not None and SERVER not in (message.sender, receiver):
                heard = self.topology.G[relay_number(receiver), users] if receiver.startswith("relay") else None
                by_home = np.bincount(self.access.homes[users], heard, len(self._homes)).astype(int).tolist()
            for a in self._places(message.sender):
                for b in self._places(receiver):
                    rows = len(message)
                    if users is not None and by_home:
                        here = by_home[max(a, b) - 1 - self.topology.H]
                        rows = here if rows == len(users) else min(here, 1)
                    if rows:
                        self._leaving[a][b].append((message.kind, rows * row + 8 * FRAME, cast))

    def end(self, kind: str, receivers: Sequence[str]) -> None:
        for a in self._places(self._node):
            for receiver in receivers:
                for b in self._places(receiver):
                    if all(frame[0] != kind for frame in self._leaving[a][b]):
                        self._leaving[a][b].append((kind, 8.0 * FRAME, None))

    def collect(self, node: str, kind: str) -> list[Message]:
        self._depart()
        for b in self._places(node):
            until = max((arrival[0] for arrival in self._arriving[b] if arrival[-1] == kind), default=-1.0)
            # What arrives earlier is taken earlier, whatever the node waits for.
            for first, last, bits, each in sorted(self._arriving[b]):
                if first <= until:
                    self._taken[b] = max(self._taken[b], first) + bits / self.access.links[b, 1]
                    self._arrived[b, each] = max(self._arrived[b, each], last, self._taken[b])
            self._arriving[b] = [arrival for arrival in self._arriving[b] if arrival[0] > until]
            self._clock[b] = max(self._clock[b], self._arrived.pop((b, kind), 0.0))
        return super().collect(node, kind)

    def _places(self, node: str) -> Sequence[int]:
        """Return the places of a node's clocks and links; a host of this process stands for all hosts."""
        if node == SERVER:
            return [0]
        if node.startswith("relay"):
            return [1 + relay_number(node)]
        return range(1 + self.topology.H, len(self._clock))

    def _depart(self) -> None:
        """Let the frames of the last turn leave: first those whose receivers take longest, as if all left together."""
        links = self.access.links
        for a, batches in self._leaving.items():
            time = {b: sum(bits for _, bits, _ in batch) / links[b, 1] for b, batch in batches.items()}
            casts: dict[Message | None, tuple[float, float]] = {}  # when they began and ended to leave
            for b in sorted(batches, key=lambda b: -time[b]):
                for kind, bits, cast in batches[b]:
                    if cast in casts:
                        start, end = casts[cast]
                    else:
                        start = max(self._clock[a], self._sent[a])
                        end = self._sent[a] = start + bits / links[a, 0]
                    if cast:
                        casts[cast] = start, end
                    times = self.segments if kind in (COMBINATIONS, BROADCAST) else 1
                    latency = times * links[[a, b], 2].sum()
                    self._arriving[b].append((start + latency, end + latency, bits, kind))
        self._leaving.clear()
