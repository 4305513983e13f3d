"""Sums between nodes that share no more than planners, with users who send given terms."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from changed import Changed
from torch import Tensor

from hmtl.communication import LinkLedger, Network
from hmtl.communication.coders import AggregatorCoder, UserCoder
from hmtl.communication.communicators.sums import NODES, SECURE_NODES
from hmtl.communication.few_bits import FewBits
from hmtl.communication.nodes.adding import SummingAggregation
from hmtl.communication.nodes.few_bit_sums import FewBitCoder, FewBitHost
from hmtl.communication.planning.planner import Planner
from hmtl.communication.round import Nodes, Stopwatch, forwarding, masked, play, summing
from hmtl.communication.row_formats import PlainRows
from hmtl.communication.secure.neighbors import Secure
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
        kinds = SECURE_NODES[formats is not None] if secure else NODES[formats is not None, bool(learning)]
        host, relay, server = (partial(kind, formats=formats or PlainRows(self.width - 1)) for kind in kinds)
        self.schedule = summing if learning else forwarding
        if secure:
            self.schedule = masked
            host, server = partial(host, secure=secure), partial(server, secure=secure)
        planners = [Planner(t, network, learning, sums=sums) for _ in range(2)]
        self.hosts = [
            host(t.K, side, UserCoder(side, None), n, np.array(sorted(side.mine)), planners[n % 2])
            for n, side in enumerate(sides)
        ]
        names = [host.name for host in self.hosts]
        self.seats = [self.seat() for _ in range(t.H if learning else 1)]
        if learning:
            self.relays = [relay(i, planners[i % 2], names, seat) for i, seat in enumerate(self.seats)]
            self.server = server(planners[0])
        else:
            self.relays = [relay(i, planners[i % 2], names) for i in range(t.H)]
            self.server = server(planners[0], *self.seats)
        self.links = Changed(LinkLedger(t.K, t.H))
        self.names = names, [relay.name for relay in self.relays]

    def seat(self) -> SummingAggregation:
        coder = FewBitCoder(self.few_bits) if self.few_bits else AggregatorCoder(self.width - 1, None)
        return SummingAggregation(self.K, Total(self.width), coder, revocable=True)

    @property
    def newest(self) -> SummingAggregation:
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


def owed(hosts: Sequence[FewBitHost], counted: set[tuple[int, int]]) -> Tensor:
    """What all users owe: a pending update leaves over what it would, if it counted."""
    total = torch.zeros(hosts[0].formats.numbers, dtype=torch.int64)
    for host in hosts:
        for place, k in enumerate(host.members.tolist()):
            late = host.pending[k] and (int(host.sent[k]), k) in counted
            total += torch.from_numpy((host.owed_if_counted if late else host.owed)[place])
    return total
