"""Every communicator of the package, by the contract that one's own can inherit; and links."""

from collections.abc import Callable, Iterator, Sequence

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding import Block, Scheme, block_of
from hmtl.communication import (
    TIERS,
    CodedHierarchical,
    Communicator,
    InProcess,
    LinkLedger,
    Links,
    Network,
    Uncoded,
)
from hmtl.communication.messages import Message
from hmtl.testing.communication import INHERITED, CommunicatorContract, LinksContract
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers, random_numbers
from hmtl.testing.topologies import topologies
from hmtl.topology import Moving, Topology

MakeLinks = Callable[[LinkLedger], Links]


class Loads(CommunicatorContract):
    """The package's own also promise the loads of the formulas."""

    @examples(10, suppress_health_check=INHERITED)
    @given(
        topology=topologies(),
        m=st.integers(1, 40),
        seed=st.integers(0, 1000),
        medium=st.sampled_from(("broadcast", "unicast")),
    )
    def test_loads_are_those_of_the_formula(self, topology: Topology, m: int, seed: int, medium: str) -> None:
        communicator = self.make(topology, Network(medium=medium), None, InProcess)
        users = ScriptedUsers([random_numbers(seed, topology.K, m, None)] * 2, [set(), set()], 0)
        aggregator, V = ScriptedAggregator(topology.K, m), 64 * m
        for round in range(2):
            communicator.round(round, users, aggregator)
        measured, theory = communicator.describe()["loads"], communicator.theory
        formula = dict(zip(TIERS, (topology.K, theory.uplink, theory.down(medium), topology.K), strict=True))
        assert measured["users_to_relays"] == measured["relays_to_users"] == topology.K
        blocks = communicator.plan.blocks if isinstance(communicator, CodedHierarchical) else ()
        largest = max((block.pieces for block in blocks), default=1)
        for tier in TIERS:  # n pieces of ceil(L/n) bytes are at most n − 1 bytes longer than the IV
            assert formula[tier] - 1e-9 <= measured[tier] <= formula[tier] * (1 + (largest - 1) * 8 / V) + 1e-9


class TestUncoded(Loads):
    def make(self, topology: Topology | Moving, network: Network, wire: str | None, links: MakeLinks) -> Communicator:
        return Uncoded(topology, network, wire, links=links)


class TestOptimal(Loads):
    def make(self, topology: Topology | Moving, network: Network, wire: str | None, links: MakeLinks) -> Communicator:
        return CodedHierarchical(topology, network, seed=3, wire=wire, links=links)


@pytest.mark.slow
class TestGenerations(Loads):
    def make(self, topology: Topology | Moving, network: Network, wire: str | None, links: MakeLinks) -> Communicator:
        return CodedHierarchical(topology, network, seed=3, wire=wire, max_pieces=2, generation=8, links=links)


class TestAllAggregate(Loads):
    def make(self, topology: Topology | Moving, network: Network, wire: str | None, links: MakeLinks) -> Communicator:
        return CodedHierarchical(topology, network, seed=3, wire=wire, aggregators="all", links=links)


@pytest.mark.slow
class TestOneAggregates(Loads):
    def make(self, topology: Topology | Moving, network: Network, wire: str | None, links: MakeLinks) -> Communicator:
        return CodedHierarchical(topology, network, seed=3, wire=wire, aggregators=[0], links=links)


class TestServerBesideRelays(Loads):
    def make(self, topology: Topology | Moving, network: Network, wire: str | None, links: MakeLinks) -> Communicator:
        among = ["server", 0, *range(2, topology.H)]
        return CodedHierarchical(topology, network, seed=3, wire=wire, aggregators=among, generation=8, links=links)


class TestPaper(Loads):
    def make(self, topology: Topology | Moving, network: Network, wire: str | None, links: MakeLinks) -> Communicator:
        return CodedHierarchical(topology, network, "paper", seed=3, wire=wire, links=links)


@pytest.mark.slow
class TestEqual(Loads):
    def make(self, topology: Topology | Moving, network: Network, wire: str | None, links: MakeLinks) -> Communicator:
        return CodedHierarchical(topology, network, "equal", seed=3, wire=wire, links=links)


def one_by_one(t: Topology, A: Sequence[int], settings: object) -> Iterator[Block]:
    """Send each IV that an aggregator misses once, whatever the network."""
    for k in t.present:
        if not t.G[list(A), k].all():
            uplink = [[1] if i == t.relays_of(k)[-1] else [] for i in t.active]
            yield block_of(t, A, [k], uplink=uplink, downlink=[1])


class TestMatricesOfOnesOwn(Loads):
    def make(self, topology: Topology | Moving, network: Network, wire: str | None, links: MakeLinks) -> Communicator:
        scheme = Scheme("one by one", code=one_by_one)
        return CodedHierarchical(topology, network, scheme, wire=wire, aggregators="all", links=links)


class TestInProcess(LinksContract):
    def make(self, ledger: LinkLedger) -> Links:
        return InProcess(ledger)


def test_a_link_that_delivers_twice_is_caught() -> None:
    """The contract can fail."""

    class Twice(InProcess):
        def send(self, message: Message) -> None:
            super().send(message)
            super().send(message)

    class Wrong(LinksContract):
        def make(self, ledger: LinkLedger) -> Links:
            return Twice(ledger)

    with pytest.raises(AssertionError):
        Wrong().test_each_receiver_collects_a_message_once()
