"""Sums between nodes that share no more than planners, with users who send given terms."""

from collections.abc import Sequence

import numpy as np
import torch
from changed import Changed
from torch import Tensor

from hmtl.communication import LinkLedger, Network
from hmtl.communication.flows.planner import Planner
from hmtl.communication.flows.sums import SumsOfRows
from hmtl.communication.nodes.aggregation import Aggregation
from hmtl.communication.nodes.host import Host
from hmtl.communication.nodes.relay import Relay
from hmtl.communication.nodes.secure import SecureHost, SecureRelay, SecureServer
from hmtl.communication.nodes.server import Server
from hmtl.communication.round import Nodes, Schedule, Stopwatch, play
from hmtl.communication.rounding_of_sums import FewBits
from hmtl.communication.row_formats import PlainRows
from hmtl.communication.secure.neighbors import Secure
from hmtl.communication.secure_round import SecureSchedule
from hmtl.communication.sum_coders import FewBitSumCoder, FewBitTermCoder, SumCoder, TermCoder
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers
from hmtl.topology import Topology


class Terms(ScriptedUsers):
    """Users who send given terms, with a number beside m."""

    row_bits = (64 * 6, 64, 128)

    def __init__(self, terms: Sequence[Tensor], absent: Sequence[set[int]], mine: Sequence[int] | None = None) -> None:
        super().__init__(terms, absent, 1, mine)

    def receive(self, users: np.ndarray, models: Tensor) -> None:
        super().receive(users, models.clone())


class Total(ScriptedAggregator):
    """An aggregator of sums: what it has had so far, and how often."""

    def __init__(self, width: int) -> None:
        super().__init__(1, width)
        self.state["last"] = torch.zeros(1, width, dtype=torch.int64)

    def update(self, users: np.ndarray, ivs: Tensor) -> Tensor:
        self.seen.append((users, ivs.clone()))
        self.state = {"last": self.state["last"] + ivs.sum(0, keepdim=True), "updates": self.state["updates"] + 1}
        return torch.cat([self.state["last"], self.state["updates"].view(1, 1)], dim=1)


def terms(seed: int, K: int, m: int = 7, reach: int = 50) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-(2**reach), 2**reach, (K, m)))


class Apart:
    """Nodes that share nothing but planners, two of them, that must plan the same; relays `learning` learn the sums.

    With `secure`, users mask their terms.
    """

    def __init__(
        self,
        t: Topology,
        sides: Sequence[Terms],
        network: Network = Network(),  # noqa: B008
        formats: FewBits | None = None,
        sums: str = "auto",
        learning: tuple[int, ...] = (),
        secure: Secure | None = None,
    ) -> None:
        self.width, self.K, self.few_bits, self.learning = sides[0].ivs[0].shape[1], t.K, formats, learning
        recipe = SumsOfRows(formats or PlainRows(self.width - 1), secure=secure)
        host, relay, server, self.schedule = Host, Relay, Server, Schedule()
        if secure:
            host, relay, server, self.schedule = SecureHost, SecureRelay, SecureServer, SecureSchedule()
        planners = [Planner(t, network, learning, sums=sums) for _ in range(2)]
        self.hosts = []
        for n, side in enumerate(sides):
            members = np.array(sorted(side.mine))
            coder = FewBitTermCoder(side, formats, members) if formats else TermCoder(side)
            self.hosts.append(host(planners[n % 2], recipe, side, coder, n, members))
        names = [host.name for host in self.hosts]
        self.seats = [self.seat() for _ in range(t.H if learning else 1)]
        at_relays = self.seats if learning else [None] * t.H
        self.relays = [relay(i, planners[i % 2], recipe, names, seat) for i, seat in enumerate(at_relays)]
        self.server = server(planners[0], recipe, None if learning else self.seats[0])
        self.links = Changed(LinkLedger(t.K, t.H))
        self.names = names, [relay.name for relay in self.relays]

    def seat(self) -> Aggregation:
        coder = FewBitSumCoder(self.few_bits) if self.few_bits else SumCoder(self.width - 1)
        return Aggregation(self.K, Total(self.width), coder, revocable=True)

    @property
    def newest(self) -> Aggregation:
        """That of an aggregator with the present state; all such aggregators have the same."""
        if not self.learning:
            return self.seats[0]
        last = max(relay.version for relay in self.relays)
        seats = [relay.aggregation for relay in self.relays if relay.version == last]
        assert all((seat.state_bytes() == seats[0].state_bytes()).all() for seat in seats)
        return seats[0]

    @property
    def total(self) -> Total:
        return self.newest.aggregator

    def play(self, round: int, away=(), change=Changed.change) -> None:
        self.links.change = change
        self.links.ledger.begin_round()
        there = [relay for relay in self.relays if relay.i not in away]
        seat = None if self.learning else self.seats[0]
        play(round, Nodes(self.hosts, there, self.server, seat, self.schedule, *self.names), self.links, Stopwatch())


def owed(hosts: Sequence[Host], counted: set[tuple[int, int]]) -> Tensor:
    """What all users owe: a pending update leaves over what it would, if it counted."""
    total = torch.zeros(hosts[0].coder.formats.numbers, dtype=torch.int64)
    for host in hosts:
        for place, k in enumerate(host.members.tolist()):
            late = host.pending[k] and (int(host.sent[k]), k) in counted
            total += (host.coder.owed_if_counted if late else host.coder.owed)[place]
    return total
