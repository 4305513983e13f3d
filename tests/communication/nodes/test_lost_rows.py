"""Rows of a broadcast that are lost on the way, and are not missed."""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.coding import Aggregators
from hmtl.communication import CodedHierarchical, Network
from hmtl.communication.accounting.ledger import SERVER_TO_RELAYS
from hmtl.communication.messages import BROADCAST, SERVER, Message, nothing
from hmtl.communication.planning import coder
from hmtl.testing.networks import topologies
from hmtl.testing.scripted import Lossy, ScriptedAggregator, ScriptedUsers, random_numbers, same_bits
from hmtl.topology import Topology, any_r, symmetric

Lose = Callable[[str, Message], Sequence[int]]
MEDIA = st.sampled_from(("broadcast", "unicast"))
SCHEMES = st.sampled_from(("optimal", "optimal", "paper", "equal"))
SOME = st.sampled_from(("all", "auto", [0, 2]))


def test_what_is_left_of_a_message() -> None:
    rows = torch.arange(20, dtype=torch.uint8).view(5, 4)
    sent = Message(0, SERVER_TO_RELAYS, BROADCAST, SERVER, ("relay 0",), 0, rows, nothing(5), spare=2)
    arrived = np.array([True, False, True, True, False])
    left = sent.left(arrived)
    assert torch.equal(left.payload, rows[[0, 2, 3]])
    assert left.overhead.shape == (3, 0)
    assert len(left) == 3
    assert (left.spare, left.kind, left.receivers) == (2, BROADCAST, ("relay 0",))
    assert left.arrived is arrived
    assert sent.arrived is None


class Run:
    """Rounds of a communicator with lossy links, on given IVs."""

    def __init__(
        self, t: Topology, medium: str, scheme: str, aggregators: Aggregators, e: int, rounds: int = 1, m: int = 5
    ) -> None:
        if not isinstance(aggregators, str):
            aggregators = [i for i in aggregators if i < t.H]
        how = {"aggregators": aggregators, "max_pieces": 3, "generation": 9, "margin": e}
        self.communicator = CodedHierarchical(t, Network(medium=medium), scheme, 7, links=Lossy, **how)
        self.ivs = [random_numbers(n, t.K, m + 1, None) for n in range(rounds)]
        self.users = ScriptedUsers(self.ivs, [set()] * rounds, 1)
        self.aggregator = ScriptedAggregator(t.K, m + 1)

    def play(self, round: int, lose: Lose = Lossy.lose) -> dict[int, torch.Tensor]:
        self.communicator._links.lose = lose
        self.outcome = self.communicator.round(round, self.users, self.aggregator)
        if not self.outcome.empty:
            assert self.aggregator.seen[-1][0].tolist() == self.outcome.users.tolist()
            assert same_bits(self.aggregator.seen[-1][1], self.ivs[round][self.outcome.users])
        return self.users.models


@settings(max_examples=15)
@given(
    t=topologies(max_H=6, max_K=20),
    medium=MEDIA,
    scheme=SCHEMES,
    aggregators=SOME,
    e=st.integers(1, 2),
    seed=st.integers(0, 10**6),
    working_set=st.sampled_from((1, 1 << 25)),
)
def test_any_rows_are_lost_and_not_missed(
    t: Topology, medium: str, scheme: str, aggregators: Aggregators, e: int, seed: int, working_set: int
) -> None:
    """Every choice of e rows in turn, or many, another at each relay: the models are those of a run without loss."""
    rng, rounds = np.random.default_rng(seed), 6
    whole, lossy = (Run(t, medium, scheme, aggregators, e, rounds, m=20) for _ in range(2))
    turns: dict[tuple[str, int], list[tuple[int, ...]]] = {}

    def lose(node: str, message: Message) -> Sequence[int]:
        n = len(message)
        assert message.spare == e
        if not n:  # a copy for a relay that needs nothing
            return ()
        assert n > e
        if comb(n, e) > 10 * rounds:
            return rng.choice(n, e, replace=False).tolist()
        left = turns.setdefault((node, n), [])
        if not left:
            left += combinations(range(n), e)
            rng.shuffle(left)
        return left.pop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coder, "WORKING_SET", working_set)  # 1: of each code, a message for each 64 bytes
        for round in range(rounds):
            models = whole.play(round)
            found = lossy.play(round, lose)
            assert models.keys() == found.keys()
            assert all(same_bits(model, found[k]) for k, model in models.items())
    for tier in whole.communicator.ledger.links:
        counts = (run.communicator.ledger.per_link(tier) for run in (whole, lossy))
        np.testing.assert_array_equal(*counts)


@settings(max_examples=40)
@given(
    t=topologies(max_H=6, max_K=25),
    medium=MEDIA,
    scheme=SCHEMES,
    aggregators=SOME,
    e=st.integers(1, 2),
    more=st.integers(1, 6),
    seed=st.integers(0, 10**6),
)
def test_more_are_lost_than_may_be(
    t: Topology, medium: str, scheme: str, aggregators: Aggregators, e: int, more: int, seed: int
) -> None:
    """It is decoded right all the same, as by a relay that hears more than it needs, or the relay is left out."""
    rng, run = np.random.default_rng(seed), Run(t, medium, scheme, aggregators, e)

    def lose(node: str, message: Message) -> Sequence[int]:
        return rng.choice(len(message), min(len(message), e + more), replace=False).tolist()

    models = run.play(0, lose)
    there = t.restricted(relays=run.outcome.relays)
    assert run.outcome.empty or run.outcome.users.tolist() == list(there.present)
    assert set(models) == (set() if run.outcome.empty else set(there.present))


def test_what_a_relay_does_not_need_makes_up_for_more(caplog: pytest.LogCaptureFixture) -> None:
    """Over a broadcast, relay 0 hears all that the others need, and can do without all but what it needs itself."""
    t, n = Topology([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 1, 1]]), 3 + 1
    first, second = (Run(t, "broadcast", "optimal", "all", 1) for _ in range(2))
    assert [(block.pieces, len(block.downlink)) for block in first.communicator.plan.blocks] == [(1, n - 1)]
    assert first.play(0, lambda node, message: range(n - 1) if node == "relay 0" else ())
    assert second.play(0, lambda node, message: [0, 3] if node == "relay 1" else ())
    assert second.outcome.relays == (0, 2, 3)
    assert f"2 of the server's {n} messages of a code were lost" in caplog.text


@pytest.mark.parametrize("medium", ["broadcast", "unicast"])
def test_a_margin_is_counted_and_foretold(medium: str) -> None:
    without, run = (Run(any_r(K=20, H=5, r=3, seed=2), medium, "optimal", "all", e, m=64) for e in (0, 2))
    for each in (without, run):
        each.play(0)
    told, before = run.communicator.describe(), without.communicator.describe()
    assert told["loads"]["server_to_relays"] == pytest.approx(told["loads_theory"]["server_to_relays"], rel=0.01)
    copies = 5 if medium == "unicast" else 1
    more = sum(2 * copies / block.pieces for block in run.communicator.plan.blocks)
    assert told["loads_theory"]["server_to_relays"] == pytest.approx(before["loads_theory"]["server_to_relays"] + more)
    assert told["loads_theory"]["relays_to_server"] == before["loads_theory"]["relays_to_server"]
    assert told["bounds"] == before["bounds"]


def test_how_to_make_up_for_a_loss_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run, found = Run(symmetric(K=20, H=5, r=3), "broadcast", "optimal", "all", 1, rounds=3), []
    inverse = coder.linalg.inverse
    monkeypatch.setattr(coder.linalg, "inverse", lambda A: found.append(len(A)) or inverse(A))
    run.play(0)
    assert not found
    run.play(1, lambda node, message: [1])
    once = len(found)
    assert once == 5 * len(run.communicator.plan.blocks)
    run.play(2, lambda node, message: [1])
    assert len(found) == once
