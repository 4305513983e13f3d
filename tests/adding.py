"""Sums between nodes that share no more than planners, with users who send given terms."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from changed import Changed
from torch import Tensor

from hmtl.communication import LinkLedger, Network
from hmtl.communication.coders import AggregatorCoder, UserCoder
from hmtl.communication.few_bits import FewBits
from hmtl.communication.nodes.adding import AddingHost, AddingRelay, AddingServer, SummingAggregation
from hmtl.communication.nodes.few_bit_sums import FewBitHost, FewBitRelay, FewBitServer
from hmtl.communication.planning.planner import Planner
from hmtl.communication.round import Nodes, Stopwatch, forwarding, play
from hmtl.communication.row_formats import PlainRows
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
    """Nodes that share nothing but planners, two of them, that must plan the same."""

    def __init__(
        self,
        t: Topology,
        sides: Sequence[Terms],
        network: Network = Network(),  # noqa: B008
        formats: FewBits | None = None,
        sums: str = "auto",
    ) -> None:
        kinds: tuple[Any, Any, Any] = AddingHost, AddingRelay, AddingServer
        if formats:
            kinds = FewBitHost, FewBitRelay, FewBitServer
        width = sides[0].ivs[0].shape[1]
        host, relay, server = (partial(kind, formats=formats or PlainRows(width - 1)) for kind in kinds)
        planners = [Planner(t, network, sums=sums) for _ in range(2)]
        self.hosts = [
            host(t.K, side, UserCoder(side, None), n, np.array(sorted(side.mine)), planners[n % 2])
            for n, side in enumerate(sides)
        ]
        names = [host.name for host in self.hosts]
        self.relays = [relay(i, planners[i % 2], names) for i in range(t.H)]
        self.total = Total(width)
        self.seat = SummingAggregation(t.K, self.total, AggregatorCoder(width - 1, None))
        self.server = server(planners[0], self.seat)
        self.links = Changed(LinkLedger(t.K, t.H))
        self.names = names, [relay.name for relay in self.relays]

    def play(self, round: int, away=(), change=Changed.change) -> None:
        self.links.change = change
        self.links.ledger.begin_round()
        there = [relay for relay in self.relays if relay.i not in away]
        nodes = Nodes(self.hosts, there, self.server, self.seat, forwarding, *self.names)
        play(round, nodes, self.links, Stopwatch())
