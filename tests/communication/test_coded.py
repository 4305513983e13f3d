"""The coded transport beyond the contract: columns in blocks, isolation of the relays, detection of damage."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import topologies

from hmtl.communication import CodedHierarchical, coded
from hmtl.communication.communicator import Stopwatch
from hmtl.errors import CodingError
from hmtl.topology import Topology, any_r, symmetric


@settings(max_examples=30)
@given(topology=topologies(max_H=5, max_K=12), m=st.integers(1, 60), working_set=st.sampled_from((1, 5000, 1 << 20)))
def test_columns_in_blocks_give_the_same(topology: Topology, m: int, working_set: int) -> None:
    ivs = torch.randn(topology.K, m, dtype=torch.float64, generator=torch.Generator().manual_seed(m))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coded, "WORKING_SET", working_set)
        communicator = CodedHierarchical(topology)
        assert torch.equal(communicator.exchange(ivs, lambda x: x), ivs)


def test_a_relay_encodes_from_what_it_heard_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the IV of one user: only the messages of the relays that hear it may change."""
    topology = any_r(K=12, H=5, r=2, seed=1)
    sent: list[list[torch.Tensor]] = []
    product = coded.matmul

    def spy(A: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
        sent[-1].append(product(A, X))
        return sent[-1][-1]

    monkeypatch.setattr(coded, "matmul", spy)
    communicator = CodedHierarchical(topology)
    assert len(communicator.plan.blocks) == 1
    ivs = torch.randn(12, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for change in (0, 1):
        sent.append([])
        ivs[4] += change
        communicator.exchange(ivs, lambda x: x)
    for n, relay in enumerate(topology.active):
        assert torch.equal(sent[0][n], sent[1][n]) == (relay not in topology.relays_of(4))


@pytest.mark.parametrize("relay", range(5))
def test_a_wrong_decoder_is_found_in_the_round(relay: int) -> None:
    communicator = CodedHierarchical(symmetric(K=20, H=5, r=3))
    block = communicator.plan.blocks[0]
    decoders = list(block.decoders)
    decoders[relay] = decoders[relay].clone()
    decoders[relay][3, 2] ^= 1
    communicator.plan = dataclasses.replace(
        communicator.plan, blocks=(dataclasses.replace(block, decoders=tuple(decoders)),)
    )
    with pytest.raises(CodingError, match=f"relay {relay} decoded other IVs .* round 0"):
        communicator.exchange(torch.ones(20, 4, dtype=torch.float64), lambda x: x)


def test_digests_are_counted_as_overhead() -> None:
    communicator = CodedHierarchical(symmetric(K=20, H=5, r=3))
    communicator.exchange(torch.ones(20, 3, dtype=torch.float64), lambda x: x)
    assert [communicator.ledger.bits("relays_to_server", link=i).overhead for i in range(5)] == [128] * 5
    assert communicator.ledger.bits("server_to_relays").overhead == 0


def test_unicast_sends_a_copy_to_each_relay() -> None:
    ivs = torch.ones(20, 6, dtype=torch.float64)
    per_link = {}
    for medium in ("broadcast", "unicast"):
        communicator = CodedHierarchical(symmetric(K=20, H=5, r=3), medium=medium)
        communicator.exchange(ivs, lambda x: x)
        per_link[medium] = communicator.ledger.per_link("server_to_relays")[:, 0].tolist()
    once = 8 * 6 * 64
    assert per_link == {"broadcast": [0] * 5 + [once], "unicast": [once] * 5 + [0]}


def test_each_product_is_timed_for_who_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every relay encodes, the server recodes, every relay decodes."""
    product, timed, doing = coded.matmul, Stopwatch.measure, [""]
    computed = []

    @contextmanager
    def measure(watch: Stopwatch, who: str) -> Iterator[None]:
        with timed(watch, who):
            doing.append(who)
            yield
            doing.pop()

    def spy(A: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
        computed.append(doing[-1])
        return product(A, X)

    monkeypatch.setattr(Stopwatch, "measure", measure)
    monkeypatch.setattr(coded, "matmul", spy)
    communicator = CodedHierarchical(symmetric(K=20, H=5, r=3))
    communicator.exchange(torch.ones(20, 6, dtype=torch.float64), lambda x: x)
    relays = [f"relay {i}" for i in range(5)]
    assert computed == [*relays, "server", *relays]


def test_the_slowest_relay_counts() -> None:
    communicator = CodedHierarchical(symmetric(K=20, H=5, r=3))
    communicator.exchange(torch.ones(20, 300, dtype=torch.float64), lambda x: x)
    watch = communicator.stopwatch
    assert watch.seconds.keys() == {*(f"relay {i}" for i in range(5)), "server", "global update"}
    assert watch.slowest("relay") == max(watch.seconds[f"relay {i}"] for i in range(5)) > 0
