"""Contracts of communicators, links and quantizers. For a class of your own:

    class TestMine(CommunicatorContract):
        def make(self, topology, network, wire, links):
            return Mine(topology, network, wire, links=links)

and pytest runs the tests of the contract.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hmtl.communication import TIERS, Communicator, InProcess, LinkLedger, Links, Network
from hmtl.communication.accounting.ledger import RELAYS_TO_USERS, USERS_TO_RELAYS
from hmtl.communication.codecs.formats import Quantizer
from hmtl.communication.messages import Message, host_name, relay_name
from hmtl.errors import CodingError
from hmtl.testing.scripted import Counting, ScriptedAggregator, ScriptedUsers, random_numbers, rounded, same_bits
from hmtl.testing.topologies import moving, topologies
from hmtl.topology import Moving, Topology, any_r, symmetric

INHERITED = [HealthCheck.differing_executors]  # several classes inherit the same test


class CommunicatorContract:
    """Tests that every communicator passes. Inherit it and implement `make`."""

    def make(
        self, topology: Topology | Moving, network: Network, wire: Any, links: Callable[[LinkLedger], Links]
    ) -> Communicator:
        """Return a communicator to test."""
        raise NotImplementedError

    @settings(max_examples=15, suppress_health_check=INHERITED)
    @given(
        topology=st.one_of(topologies(), moving()),
        m=st.integers(1, 40),
        extras=st.integers(0, 2),
        wire=st.sampled_from((None, None, "float64", "float32", "bfloat16")),
        medium=st.sampled_from(("broadcast", "unicast")),
        gone=st.sampled_from((0.0, 0.0, 0.2, 0.6)),
        seed=st.integers(0, 1000),
    )
    def test_models_reach_their_users_and_every_bit_is_counted(
        self, topology: Topology | Moving, m: int, extras: int, wire: str | None, medium: str, gone: float, seed: int
    ) -> None:
        rng, K, H, rounds = np.random.default_rng(seed), topology.K, topology.H, 4
        absent = [set(np.flatnonzero(rng.random(K) < gone).tolist()) for _ in range(rounds)]
        away = [set(np.flatnonzero(rng.random(H) < gone).tolist()) for _ in range(rounds)]
        ivs = [random_numbers(seed + round, K, m + extras, wire) for round in range(rounds)]
        communicator = self.make(topology, Network(medium=medium), wire, Counting)
        users, aggregator = ScriptedUsers(ivs, absent, extras), ScriptedAggregator(K, m + extras)
        expected = ScriptedAggregator(K, m + extras)
        waiting: set[int] = set()
        unsettled: set[int] = set()
        for round in range(rounds):
            outcome = communicator.round(round, users, aggregator, away[round])
            reached = {k for k in range(K) if set(topology.at(round).relays_of(k)) - away[round]}
            sent = set(range(K)) - absent[round] - waiting
            heard = sorted(sent & reached)
            assert outcome.relays == tuple(sorted(set(range(H)) - away[round]))
            assert users.idle == waiting, "users who received no model stay idle"
            if outcome.empty:
                assert any(away[: round + 1]), "a round counts if all relays were present so far"
                assert len(outcome.users) == 0
                assert not users.models
                waiting |= set(range(K)) - reached
                unsettled = (unsettled | sent) - (sent & reached)
            else:
                ids, rows = np.array(heard, dtype=np.int64), rounded(ivs[round][heard], m, wire)
                assert outcome.users.tolist() == heard
                assert [int(ids) for ids in aggregator.seen[-1][0]] == heard
                assert same_bits(aggregator.seen[-1][1], rows)
                models = rounded(expected.update(ids, rows.clone()), m, wire)
                assert set(users.models) == reached
                assert all(same_bits(model, models[k]) for k, model in users.models.items())
                waiting = set(range(K)) - reached
                unsettled = (unsettled | sent) - reached
            assert set(users.sent) == unsettled
            assert {k for at, k in users.committed if at == round} <= set(heard)
            assert len(aggregator.seen) == len(expected.seen)
            posted, ledger = cast(Counting, communicator._links).bits, communicator.ledger
            assert posted == {(tier, kind): ledger.bits(tier, kind=kind).total for tier, kind in posted}
            assert sum(posted.values()) == sum(ledger.bits(tier).total for tier in TIERS)
        counted = {(round, k) for round in range(rounds) for k in range(K)}
        assert set(users.committed).isdisjoint(users.dropped)
        assert set(users.committed) | set(users.dropped) | {(at, k) for k, at in users.sent.items()} <= counted

    def test_further_numbers_are_overhead(self) -> None:
        topology = symmetric(K=20, H=5, r=3)
        communicator = self.make(topology, Network(), None, InProcess)
        users = ScriptedUsers([random_numbers(0, 20, 8, None)], [set()], 2)
        communicator.round(0, users, ScriptedAggregator(20, 8))
        assert communicator.ledger.bits(USERS_TO_RELAYS) == (20 * 6 * 64, 20 * 2 * 64)
        down = communicator.ledger.bits(RELAYS_TO_USERS)  # three further numbers, a receipt
        assert down == (20 * 6 * 64, 20 * (3 * 64 + 32))
        assert communicator.ledger.bits(RELAYS_TO_USERS, link=7, round=0) == (6 * 64, 3 * 64 + 32)
        assert communicator.V_bits == 6 * 64

    def test_a_loaded_state_continues_with_the_same_bits(self) -> None:
        """Some users wait, some relays missed a round, and there was a set-up."""
        topology = any_r(K=12, H=4, r=1, seed=3)
        ivs = [random_numbers(round, 12, 5, None) for round in range(6)]
        away: list[set[int]] = [{1}, set(), {0, 2}, {3}, set(), {1}]

        def fresh() -> tuple[Communicator, ScriptedUsers, ScriptedAggregator]:
            communicator = self.make(topology, Network(), None, InProcess)
            return communicator, ScriptedUsers(ivs, [set()] * 6, 1), ScriptedAggregator(12, 5)

        def play(
            communicator: Communicator, users: ScriptedUsers, aggregator: ScriptedAggregator, rounds: range
        ) -> list[dict[int, Tensor]]:
            models = []
            for round in rounds:
                communicator.round(round, users, aggregator, away[round])
                models.append(users.models)
            return models

        for cut in (1, 3, 5):
            whole, users, aggregator = fresh()
            whole.setup(ScriptedUsers([ivs[0]] * 2, [set()] * 2, 5), ScriptedAggregator(12, 5))
            play(whole, users, aggregator, range(cut))
            then, users_then, aggregator_then = fresh()
            then.load_state_dict(whole.state_dict())
            users_then.sent, aggregator_then.state = dict(users.sent), aggregator.state_dict()
            ours, theirs = (
                play(*parts, range(cut, 6))
                for parts in ((whole, users, aggregator), (then, users_then, aggregator_then))
            )
            for one, other in zip(ours, theirs, strict=True):
                assert one.keys() == other.keys()
                assert all(same_bits(one[k], other[k]) for k in one)
            for tier in TIERS:
                np.testing.assert_array_equal(whole.ledger.per_link(tier), then.ledger.per_link(tier))
            assert whole.setup_seconds == then.setup_seconds
            assert whole.V_bits == then.V_bits

    def test_a_setup_is_recorded_separately_as_overhead(self) -> None:
        topology = symmetric(K=10, H=5, r=2)
        communicator = self.make(topology, Network(), None, InProcess)
        facts = ScriptedUsers([random_numbers(9, 10, 3, None)] * 2, [set(), set()], 3)
        aggregator = ScriptedAggregator(10, 3)
        communicator.setup(facts, aggregator)
        assert same_bits(aggregator.seen[0][1], facts.ivs[0])
        assert set(facts.models) == set(range(10))
        ledger = communicator.ledger
        assert ledger.rounds == 0
        assert ledger.bits(USERS_TO_RELAYS, round="setup") == (0, 10 * 3 * 64)
        assert ledger.bits(USERS_TO_RELAYS) == (0, 10 * 3 * 64)
        own, uncoded = communicator.setup_seconds
        assert own > 0
        assert uncoded > 0
        communicator.round(0, ScriptedUsers([random_numbers(1, 10, 4, None)], [set()], 0), ScriptedAggregator(10, 4))
        assert ledger.bits(USERS_TO_RELAYS, round=0) == (10 * 4 * 64, 0)

    def test_a_wrong_number_of_rows_is_refused(self) -> None:
        communicator = self.make(symmetric(K=5, H=5, r=1), Network(), None, InProcess)
        with pytest.raises(CodingError, match="IVs"):
            communicator.round(
                0, ScriptedUsers([torch.zeros(6, 3, dtype=torch.float64)], [set()], 0), ScriptedAggregator(5, 3)
            )
        with pytest.raises(CodingError, match="models"):
            communicator.round(
                0, ScriptedUsers([torch.zeros(4, 3, dtype=torch.float64)], [set()], 0), ScriptedAggregator(4, 3)
            )

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_numbers_on_a_gpu(self) -> None:
        communicator = self.make(symmetric(K=10, H=5, r=2), Network(), None, InProcess)
        users = ScriptedUsers([random_numbers(0, 10, 4, None).cuda()], [set()], 0)
        users.ivs = [users.ivs[0]]
        aggregator = ScriptedAggregator(10, 4)
        communicator.round(0, users, aggregator)
        assert all(model.is_cuda for model in users.models.values())
        assert same_bits(aggregator.seen[0][1].cpu(), users.ivs[0].cpu())


class QuantizerContract:
    """Tests that every quantizer passes. Inherit it and implement `make`."""

    def make(self) -> Quantizer:
        """Return a quantizer to test."""
        raise NotImplementedError

    @settings(max_examples=25, suppress_health_check=INHERITED)
    @given(n=st.integers(0, 4), m=st.integers(1, 150), seed=st.integers(0, 1000))
    def test_rows_of_equal_length_have_encodings_of_equal_length(self, n: int, m: int, seed: int) -> None:
        quantizer = self.make()
        rows = quantizer.encode(torch.from_numpy(np.random.default_rng(seed).normal(size=(n, m))))
        assert rows.dtype == torch.uint8
        assert quantizer.bits(m) % 8 == 0
        assert rows.shape == (n, quantizer.bits(m) // 8)
        for dtype in (torch.float64, torch.float32):
            decoded = torch.full((n, m), torch.nan, dtype=dtype)
            quantizer.decode(rows, decoded)
            assert decoded.isfinite().all()

    @settings(max_examples=25, suppress_health_check=INHERITED)
    @given(n=st.integers(1, 4), m=st.integers(1, 150), seed=st.integers(0, 1000))
    def test_rows_are_encoded_independently_and_reproducibly(self, n: int, m: int, seed: int) -> None:
        quantizer = self.make()
        x = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, m)))
        rows, one_by_one = quantizer.encode(x), [quantizer.encode(x[k : k + 1]) for k in range(n)]
        assert torch.equal(rows, torch.cat(one_by_one))
        decoded, alone = torch.empty_like(x), torch.empty_like(x)
        quantizer.decode(rows, decoded)
        for k, row in enumerate(one_by_one):
            quantizer.decode(row, alone[k : k + 1])
        assert torch.equal(decoded, alone)

    @settings(max_examples=25, suppress_health_check=INHERITED)
    @given(m=st.integers(1, 150), seed=st.integers(0, 1000))
    def test_sending_what_was_left_out_reaches_the_numbers(self, m: int, seed: int) -> None:
        """Otherwise the errors that senders keep would grow."""
        quantizer = self.make()
        left = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, m)))
        first = float(left.norm())
        for _ in range(40):
            decoded = torch.empty_like(left)
            quantizer.decode(quantizer.encode(left), decoded)
            left = left - decoded
        assert float(left.norm()) <= 1e-3 * first


class LinksContract:
    """Tests that every kind of links passes. Inherit it and implement `make`."""

    def make(self, ledger: LinkLedger) -> Links:
        """Return links to test."""
        raise NotImplementedError

    def message(self, sender: str, receivers: tuple[str, ...], round: int = 0, **fields: Any) -> Message:
        rows = torch.arange(12, dtype=torch.uint8).view(3, 4)
        parts: dict[str, Any] = {"links": np.array([4, 0, 2]), "payload": rows, "overhead": rows[:, :1] + 100} | fields
        return Message(round, TIERS[0], "IVs", sender, receivers, users=np.array([0, 2, 4]), **parts)

    def test_each_receiver_collects_a_message_once(self) -> None:
        links = self.make(LinkLedger(K=5, H=3))
        links.begin(0)
        names = [relay_name(i) for i in range(3)]
        for n in (0, 1):
            links.post(self.message(host_name(n), (names[0], names[2])))
        for name in names:
            assert links.collect(name, "report") == []
            arrived = links.collect(name, "IVs")
            assert [message.sender for message in arrived] == ([] if name == names[1] else [host_name(0), host_name(1)])
            for message in arrived:
                assert torch.equal(message.payload[message.rows()], self.message("", ()).payload)
                assert torch.equal(message.overhead[message.rows()], self.message("", ()).overhead)
                assert message.of_users().tolist() == [0, 2, 4]
            assert links.collect(name, "IVs") == []

    def test_a_new_round_discards_messages_that_nobody_collected(self) -> None:
        links = self.make(LinkLedger(K=5, H=3))
        links.begin(0)
        links.post(self.message(host_name(0), (relay_name(1),)))
        links.begin(0)
        links.post(self.message(host_name(0), (relay_name(1),), round=1))
        arrived = links.collect(relay_name(1), "IVs")
        assert [message.round for message in arrived] == [1]

    def test_post_counts_each_row_on_its_link(self) -> None:
        ledger = LinkLedger(K=5, H=3)
        links = self.make(ledger)
        ledger.begin_round()
        links.begin(0)
        links.post(self.message(host_name(0), (relay_name(1), relay_name(2))))
        assert ledger.per_link(TIERS[0]).tolist() == [[32, 8], [0, 0], [32, 8], [0, 0], [32, 8]]
        links.post(self.message(host_name(0), (relay_name(1),), links=3, at=torch.tensor([2, 0])))
        assert ledger.per_link(TIERS[0])[3].tolist() == [64, 16]
